"""What features that need no training tell of a real robot's change of state over 0.6 s, by held-out episodes.

    python benchmarks/change_of_state.py lerobot:data/robot [EVERY]

Every ninth frame (EVERY) begins a pair; episodes with number % 5 == 0 are held out.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from lapa.data.pack import pack
from lapa.data.pairs import window_pairs
from lapa.measures.motion import baselines, motion

SIZE, WINDOW = 96, 0.6


def main(spec: str, every: int = 9) -> None:
    packed = pack([spec], SIZE)
    pairs = window_pairs(packed, WINDOW)
    rows = np.flatnonzero(pairs.frame % every == 0)
    did = motion(packed, pairs, rows)
    assert did is not None
    episode = pairs.episode[rows]
    test = episode % 5 == 0
    print(f"{did.what}: {len(rows):,} pairs, {len(np.unique(episode[test]))} episodes held out")
    for codes in (64, 256):
        began = time.monotonic()
        for name, row in baselines(packed, pairs, rows, did.values, episode, test, codes).items():
            print(f"  {name:<20} mean {row.mean:.2f}, weighted {row.weighted:.2f}")
        print(f"  ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
