"""Do codes add up, and do they change sign when a video is played backwards?

That is: d(a, c) = d(a, b) + d(b, c), and d(b, a) = -d(a, b).

An error is the squared distance between what the sum (or the sign) predicts and what LAQ finds. It is divided by the
same distance to what LAQ finds for other pairs: 0 is exact, 1 is chance, 2 is the opposite. Three things are measured:

    difference  what the quantizer gets from the encoder, e_{t+H} - e_t
    code        the codebook's entry for it; the decoder gets nothing else
    motion      the displacement that the code means, by a linear probe fitted on other episodes

(a, c) spans two windows, twice what LAQ was trained on. No code stands for so long a motion. So the direction of the
motion is compared as well. "constant" is the share of the difference's energy that is the same for all pairs of a
dataset. It cannot change sign. Where it differs between datasets, their codes differ too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lapa.analysis.reading import Reading, Source, angles, motion_probe, names_of, read
from lapa.contracts import Array, LapaError
from lapa.data.pairs import following
from lapa.data.pixels import as_pixels
from lapa.measures.intervals import by_episode, share_by_episode
from lapa.measures.linear import LinearFit
from lapa.measures.probes import effector_columns, one_hot
from lapa.models.laq import LAQ
from lapa.plots.figure import MISS, figure, plain, save, whiskers

MOST = 4000  # triples of frames
STILL = 0.25  # of the mean displacement; a smaller motion has no direction
LEVELS = ("difference", "code", "motion")


def algebra(source: Source, specs: Sequence[str], out: Path, seed: int = 0) -> dict[str, Any]:
    """The errors of every dataset, and `out/algebra.png`. Without states there is no motion."""
    results = {}
    for name, spec in zip(names_of(specs), specs, strict=True):
        results[name] = of_reading(source.laq, read(source, spec, seed=seed), seed)
    _picture(results, out / "algebra.png")
    return results


def of_reading(laq: LAQ, reading: Reading, seed: int = 0) -> dict[str, Any]:
    """{"additivity": {LEVEL: {"error", "interval"}}, "reversal": the same, "within_30": {..: a share}, "constant",
    "triples"}."""
    probe, test = None, reading
    if reading.packed.state is not None:
        fit, test = reading.halves(seed)
        probe = motion_probe(fit)
    after = following(test.pairs)[test.rows]
    chained = np.flatnonzero(after >= 0)
    if not len(chained):
        raise LapaError(f"{test.name}: no episode is two windows long.")
    chained = np.random.default_rng(seed).permutation(chained)[:MOST]
    rows = test.rows[chained]
    a, b, c = test.pairs.now[rows], test.pairs.later[rows], test.pairs.later[after[chained]]
    read_off = {name: _levels(laq, test, *frames, probe) for name, frames in
                {"ab": (a, b), "bc": (b, c), "ac": (a, c), "ba": (b, a)}.items()}  # fmt: skip
    episode = test.episode[chained]
    difference = read_off["ab"]["difference"]
    constant = np.square(difference.mean(0)).sum() / max(np.square(difference).sum(1).mean(), 1e-12)
    results: dict[str, Any] = {
        "triples": len(chained), "constant": float(constant), "additivity": {}, "reversal": {},
    }  # fmt: skip
    for level in read_off["ab"]:
        ab, bc, ac, ba = (read_off[name][level] for name in ("ab", "bc", "ac", "ba"))
        results["additivity"][level] = over_chance(ab + bc, ac, episode, seed)
        results["reversal"][level] = over_chance(-ab, ba, episode, seed)
    if probe is not None and effector_columns(reading.packed.state_names):  # directions are of the effector
        ab, bc, ac, ba = (read_off[name]["motion"] for name in ("ab", "bc", "ac", "ba"))
        results["within_30"] = {
            name: _direction(expected, found, episode, seed)
            for name, expected, found in (("additivity", ab + bc, ac), ("reversal", -ab, ba))
        }
    return results


def over_chance(expected: Array, found: Array, episode: Array, seed: int = 0) -> dict[str, Any]:
    """Squared distance of two batches float [N, D], divided by its mean when the rows of one batch are shuffled.

    {"error", "interval" over episodes}. Where both batches are constant: 0 if they are equal, else 1 (chance).
    """
    miss = np.square(expected - found).sum(1)
    apart = np.square(expected.mean(0) - found.mean(0)).sum()
    chance = float(expected.var(0).sum() + found.var(0).sum() + apart)
    if chance < 1e-12:
        return {"error": 0.0, "interval": [0.0, 0.0]}
    low, high = by_episode(episode, lambda weight: float((miss * weight).sum() / max(weight.sum(), 1)) / chance, seed)
    return {"error": float(miss.mean()) / chance, "interval": [low, high]}


def _direction(expected: Array, found: Array, episode: Array, seed: int) -> dict[str, Any]:
    """Of the predicted motions that have a direction, the share that is found within 30 degrees."""
    length = np.linalg.norm(expected, axis=1)
    long = length >= STILL * length.mean()
    return share_by_episode(angles(expected, found)[long] <= 30, episode[long], seed)


def _levels(laq: LAQ, reading: Reading, now: Array, later: Array, probe: LinearFit | None) -> dict[str, Array]:
    """What LAQ finds for the frames int64 [N] and [N] (numbers in the whole pack): float64 [N, D] for each level."""
    parts = [_read_off(laq, reading, now[i : i + 256], later[i : i + 256]) for i in range(0, len(now), 256)]
    difference, entry, codes = (np.concatenate(column) for column in zip(*parts, strict=True))
    levels = {"difference": difference, "code": entry}
    if probe is not None:
        levels["motion"] = probe(one_hot(codes, reading.classes))
    return levels


@torch.no_grad()
def _read_off(laq: LAQ, reading: Reading, now: Array, later: Array) -> tuple[Array, Array, Array]:
    """For one batch and a LAQ in evaluation mode: differences and codebook entries float64 [B, s * d], codes [B, s]."""
    where = next(laq.parameters()).device
    x, y = (as_pixels(reading.packed.gather(frames), laq.config.image_size, where) for frames in (now, later))
    difference = laq.difference(x, y).float()
    quantized = laq.quantizer(laq.normalise(difference))
    entry = laq.denormalise(quantized.embedding)
    return *(v.flatten(1).double().cpu().numpy() for v in (difference, entry)), quantized.codes.cpu().numpy()


def _picture(results: dict[str, Any], path: Path) -> None:
    rows = [level for level in LEVELS if all(level in r["reversal"] for r in results.values())]
    made = figure(8.6, 1.5 + 0.22 * len(rows) * (1 + len(results)), "Do codes add up, and turn round?")
    names = {"additivity": "d(a,c) = d(a,b) + d(b,c)", "reversal": "d(b,a) = -d(a,b)"}
    for axes, (rule, formula) in zip(made.subplots(1, 2), names.items(), strict=True):
        series = {
            name: [(r[rule][level]["error"], r[rule][level]["interval"]) for level in rows]
            for name, r in results.items()
        }
        plain(axes, f"{rule.capitalize()} error: {formula}", "0 is exact, 1 is chance, 2 is the opposite")
        whiskers(axes, rows, series)
        axes.axvline(1, color=MISS, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axes.set_xlim(0, max(1.15, axes.get_xlim()[1] + 0.1))
        if len(series) > 1:
            axes.legend(fontsize=8, frameon=False, loc="lower right")
    save(made, path)
