"""What LAQ's settings for several robots cost: CPU time of a training step and of labelling, over the default's.

    python benchmarks/laq_options.py

All are timed in turn in each round, on one thread; printed are medians, and the range, of ratios within rounds.
Random frames and weights: neither changes the time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lapa.contracts import FramePairs
from lapa.models.laq import LAQ
from lapa.recipe import preset

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "contrast": {"sees": "contrast"},
    "symmetric": {"symmetric": True},
    "both": {"sees": "contrast", "symmetric": True},
}
WARM = 3  # rounds that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64, help="pairs of a step")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config, rng, zeros = preset("laptop").laq, np.random.default_rng(0), np.zeros(asked.batch, np.int64)
    now, later = rng.integers(0, 256, (2, asked.batch, config.image_size, config.image_size, 3), dtype=np.uint8)
    batch = FramePairs(now, later, zeros, zeros, zeros + 1)
    models = {name: replace(config, **change).build() for name, change in SETTINGS.items()}
    rounds = [{name: timed(model, batch) for name, model in models.items()} for _ in range(WARM + asked.rounds)]
    print(f"{'':10}{'training step':>28}{'labelling':>28}")
    for name in models:
        ratios = zip(*([a / b for a, b in zip(r[name], r["default"], strict=True)] for r in rounds[WARM:]), strict=True)
        print(f"{name:10}" + "".join(f"{statistics.median(x):12.2f} ({min(x):.2f} to {max(x):.2f})" for x in ratios))


def timed(model: LAQ, batch: FramePairs) -> tuple[float, float]:
    """CPU seconds of a training step without the optimizer, and of the codes of the batch."""
    model.train()
    with torch.autocast("cpu", torch.bfloat16):  # as runtime/precision.py has it on this machine
        begin = time.process_time()
        model.loss(batch)[0].backward()
        middle = time.process_time()
        model.encode(batch.now, batch.later)
    return middle - begin, time.process_time() - middle


if __name__ == "__main__":
    main()
