"""What codes tell of a robot's motion on real video, beside features that need no training, on the same pairs.

    python benchmarks/latents_on_video.py lerobot:../shared/data/real_g1 [LAQ ...] [--seeds 3]

Target: the change of the state over the window. Pairs: every ninth frame. Episodes whose number is divisible by 5 are
held out whole; the ridge's penalty is chosen on other training episodes. Prints a Markdown table: R^2, mean over the
dimensions and weighted by variance. Without a LAQ it fits codes to frozen encoders (models/directions.py), once a seed;
with LAQs it adds a row for each. These must not have been trained on the episodes held out here, which are not those
that `hold_out` keeps from training: leave them out with the dataset's option `without=`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from lapa import LAQ
from lapa.contracts import Array
from lapa.data.features import frame_features
from lapa.data.pack import Packed, pack
from lapa.data.pairs import PairIndex, window_pairs
from lapa.measures.motion import clustered, motion, small_pictures, told
from lapa.measures.probes import one_hot
from lapa.models.directions import Directions
from lapa.models.kmeans import KMeans
from lapa.stage1_latent_actions import DIRECTED, encode_all

WINDOW, EVERY, FIFTH = 0.6, 9, 5
DIM, SIZE, LEVELS = 24, 64, 2


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("dataset")
    ask.add_argument("laq", nargs="*")
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--encoders", nargs="*", default=["pixels", "efficientnet"])
    ask.add_argument("--size", type=int, default=96)
    options = ask.parse_args()
    packed = pack([options.dataset], options.size)
    pairs = window_pairs(packed, WINDOW)
    rows = np.flatnonzero(pairs.frame % EVERY == 0)
    test = pairs.episode[rows] % FIFTH == 0
    did = motion(packed, pairs, rows)
    assert did is not None, "the dataset says nothing of what the robot did"

    def row(name: str, *features: Array) -> None:
        """One table row: the mean over seeds, and the spread where there are several."""
        found = [told(some, did.values, pairs.episode[rows], test) for some in features]
        weighted = [one.weighted for one in found]
        spread = f" ({min(weighted):.2f} to {max(weighted):.2f})" if len(found) > 1 else ""
        print(f"| {name} | {np.mean([one.mean for one in found]):.2f} | {np.mean(weighted):.3f}{spread} |", flush=True)

    print(f"{did.what}; {len(rows)} pairs, {int(test.sum())} of them held out\n")
    print("| features | mean | weighted |\n|---|---|---|")
    first, difference = small_pictures(packed, pairs, rows)
    row("first picture, 24 px", first)
    row("difference picture, 24 px", difference)
    row("k-means of 256 on its 16 principal components", clustered(difference, ~test, 256))
    for name in options.encoders:
        seen = _features(packed, name)
        change = seen[pairs.later[rows]].astype(np.float32) - seen[pairs.now[rows]]
        row(f"{name}: difference of the features", change)
        row(f"{name}: k-means of 256 on its 16 principal components", clustered(change, ~test, 256))
        fitted = [_codes(packed, pairs, rows, seen, name, seed) for seed in range(options.seeds)]
        row(f"**{name}: {DIM} directions that persist**", fitted[0][0])
        row(f"**{name}: their {LEVELS} codes of {SIZE}**", *(one_hot(codes, SIZE) for _, codes in fitted))
    for path in options.laq:
        laq = LAQ.from_pretrained(path)
        row(path, one_hot(encode_all(laq, packed, pairs, rows), laq.config.codebook_size))


def _features(packed: Packed, name: str) -> Array:
    directions = Directions(name, {}, packed.image_size, DIM)
    key = f"{directions.config!r} {directions.config.weights()}"
    return frame_features(packed, directions.features, len(directions.axes), name, key)


def _codes(packed: Packed, pairs: PairIndex, rows: Array, seen: Array, name: str, seed: int) -> tuple[Array, Array]:
    """Fitted to training episodes alone: the directions float32 [R, DIM] and the codes int64 [R, LEVELS] of `rows`."""
    directions = Directions(name, {}, packed.image_size, DIM)
    pool = np.flatnonzero(pairs.episode % FIFTH > 0)
    some = np.sort(np.random.default_rng(seed).choice(pool, min(DIRECTED, len(pool)), replace=False))
    start, end = pairs.now[some], pairs.later[some]
    directions.fit(seen[start], seen[(start + end) // 2], seen[end])
    axes = directions.axes.numpy()
    quantizer = KMeans(DIM, SIZE, LEVELS)
    quantizer.fit((seen[end].astype(np.float32) - seen[start]) @ axes, seed)
    d = (seen[pairs.later[rows]].astype(np.float32) - seen[pairs.now[rows]]) @ axes
    return d, quantizer(torch.from_numpy(d)[:, None]).codes.numpy()


if __name__ == "__main__":
    main()
