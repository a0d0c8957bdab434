"""The statistics that LeRobot keeps: of each feature over an episode, and over the whole dataset.

A statistic has the shape of the feature: [D] for vectors, [3, 1, 1] for pictures, whose values are scaled to [0, 1];
`count` is [1]. LeRobot's own tools make those of an edited dataset from those of its episodes.
"""

from __future__ import annotations

import numpy as np

from lapa.contracts import Array

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STRIDE = 8  # statistics of pictures read every 8th frame; LeRobot samples them too

Stats = dict[str, Array]


def histogram(frames: Array) -> Array:
    """How often each level of each channel occurs in every STRIDE-th frame, int64 [3, 256]: it holds every statistic
    of uint8 [T, H, W, 3] exactly."""
    some = frames[::STRIDE]
    return np.stack([np.bincount(some[..., channel].ravel(), minlength=256) for channel in range(3)])


def of_pictures(counts: Array, size: tuple[int, int]) -> Stats:
    """Of a `histogram` of pictures of (H, W). Its count is that of the frames that were read."""
    level, total = np.arange(256) / 255, counts.sum(1)
    mean = counts @ level / total
    cumulated = np.cumsum(counts, 1) / total[:, None]
    stats = {"mean": mean, "std": np.sqrt(np.maximum(counts @ level**2 / total - mean**2, 0))}
    stats["min"] = level[(counts > 0).argmax(1)]
    stats["max"] = level[255 - (counts[:, ::-1] > 0).argmax(1)]
    stats |= {name: level[(cumulated >= q).argmax(1)] for name, q in QUANTILES.items()}
    return {name: value.reshape(3, 1, 1) for name, value in stats.items()} | {"count": total[:1] // (size[0] * size[1])}


def of_rows(values: Array) -> Stats:
    """Over the rows of [N] or [N, D], N >= 1."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    stats = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return stats | {"count": np.array([len(rows)])} | dict(zip(QUANTILES, quantiles, strict=True))


def of_rows_with_gaps(values: Array, none: int | None, whole: Stats | None = None) -> Stats:
    """The same without the rows that are `none` in every place. Where nothing else is there, `whole`, which tells
    nothing that other episodes do not, or else the rows as they are."""
    present = values if none is None else values[(values.reshape(len(values), -1) != none).all(1)]
    if len(present):
        return of_rows(present)
    return of_rows(values) if whole is None else whole | {"count": np.array([1])}
