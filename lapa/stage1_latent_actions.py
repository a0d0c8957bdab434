"""Stage 1, `lapa quantize`: fit the label source.

    lapa  LAQ on video without actions            vpt  inverse dynamics on the few labelled trajectories

The same step for both, so that comparisons cannot drift. Actions, where the videos have them, are read by the probe
alone: it asks how much of the true action a code tells.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import Array, FramePairs, Logs
from lapa.data.pack import Packed
from lapa.data.pairs import PairIndex, window_pairs
from lapa.explorer.codes import gallery, reconstructions
from lapa.models.idm import InverseDynamics
from lapa.models.laq import LAQ, as_pixels
from lapa.recipe import Recipe
from lapa.training.checkpoint import provenance, save_artefact
from lapa.training.loop import Optimisation, Sampler, device, fit, seed_everything
from lapa.training.metrics import perplexity, probe

WATCHED = 4000  # pairs, fixed for the run, on which stage 1 is watched


def fit_laq(packed: Packed, recipe: Recipe, out: Path, seed: int, monitor_every: int = 150) -> dict[str, Any]:
    """Train LAQ on all pairs of the window and save it to `out`. Returns the results kept in its config.json."""
    pairs = window_pairs(packed, recipe.window, recipe.end)
    seed_everything(seed)
    laq = recipe.laq.build()
    watched = np.random.default_rng(seed).choice(len(pairs), min(WATCHED, len(pairs)), replace=False)

    def monitor(step: int) -> Logs:
        results = watch(laq, packed, pairs, watched)
        _picture(laq, packed, pairs, watched, out / "pictures" / f"reconstructions_{step:06d}.png", f"step {step}")
        return {k: v for k, v in results.items() if isinstance(v, float)}

    fit(laq, _sampler(packed, pairs, recipe.quantize), recipe.quantize, out,
        seed=seed, title="LAQ", monitor=monitor, monitor_every=monitor_every)  # fmt: skip
    results = watch(laq, packed, pairs, watched)
    scenes = packed.gather(
        pairs.now[np.random.default_rng(seed + 1).choice(len(pairs), min(6, len(pairs)), replace=False)]
    )
    codes, motion = code_table(laq, packed, pairs, watched)
    gallery(
        laq,
        scenes,
        out / "pictures" / "gallery.png",
        "What each code does to the same scenes",
        codes=codes,
        motion=motion,
    )
    made = {"model": asdict(recipe.laq), "recipe": recipe.to_json(), "results": results,
            "provenance": provenance(seed, {packed.spec: packed.fingerprint}, {})}  # fmt: skip
    save_artefact(out, "laq", made, laq.state_dict())
    return results


def fit_idm(packed: Packed, recipe: Recipe, out: Path, seed: int) -> dict[str, Any]:
    """Train the inverse dynamics model on adjacent frames of labelled trajectories and save it to `out`.

    Every tenth trajectory is held out for the reported R^2 when there are at least ten; it is not trained on.
    """
    actions = packed.require_actions("an inverse dynamics model (--method vpt)")
    pairs = window_pairs(packed, 1e-9)
    held_out = pairs.episode % 10 == 9
    rows = np.flatnonzero(~held_out)
    seed_everything(seed)
    model = InverseDynamics(recipe.idm, actions.shape[1])
    model.standardise(actions[pairs.now[rows]])
    sample = _sampler(packed, pairs, recipe.fit_idm, rows)
    fit(model, sample, recipe.fit_idm, out, seed=seed, title="inverse dynamics")
    test = pairs.batch(packed, np.flatnonzero(held_out)) if held_out.any() else None
    results = {"held_out_r2": _r2(model, test) if test else None, "pairs": len(rows)}
    made = {**model.description(), "recipe": recipe.to_json(), "results": results,
            "provenance": provenance(seed, {packed.spec: packed.fingerprint}, {})}  # fmt: skip
    save_artefact(out, "idm", made, model.state_dict())
    return results


def _r2(model: InverseDynamics, pairs: FramePairs) -> float:
    assert pairs.actions is not None
    error = pairs.actions - model.predict(pairs.now, pairs.later).cpu().numpy()
    spread = pairs.actions - pairs.actions.mean(0)
    return float(1 - np.square(error).sum() / max(np.square(spread).sum(), 1e-12))


def _sampler(packed: Packed, pairs: PairIndex, how: Optimisation, rows: Array | None = None) -> Sampler:
    pool = np.arange(len(pairs)) if rows is None else rows

    def sample(rng: np.random.Generator) -> FramePairs:
        return pairs.batch(packed, pool[rng.integers(len(pool), size=how.batch_size)])

    return sample


def encode_all(laq: LAQ, packed: Packed, pairs: PairIndex, rows: Array, batch: int = 256) -> Array:
    """Codes int64 [len(rows), s] of the given pairs."""
    parts = []
    for start in range(0, len(rows), batch):
        some = pairs.batch(packed, rows[start : start + batch])
        parts.append(laq.encode(some.now, some.later).cpu().numpy())
    return np.concatenate(parts)


def watch(laq: LAQ, packed: Packed, pairs: PairIndex, rows: Array) -> dict[str, Any]:
    """error_over_copy, perplexity per position and, where the data allow, the linear probes, on fixed pairs."""
    codes = encode_all(laq, packed, pairs, rows)
    error = copy = 0.0
    for start in range(0, min(len(rows), 1024), 256):
        some = pairs.batch(packed, rows[start : start + 256])
        now, later = (as_pixels(x, laq.config.image_size, device()) for x in (some.now, some.later))
        future = laq.decode(now, codes[start : start + 256])
        error += float((future - later).square().sum())
        copy += float((now - later).square().sum())
    results: dict[str, Any] = {"error_over_copy": error / max(copy, 1e-9)}
    results |= probe(codes, laq.config.codebook_size, packed, pairs, rows)
    return results | {"perplexity": perplexity(codes, laq.config.codebook_size)}


def code_table(laq: LAQ, packed: Packed, pairs: PairIndex, rows: Array, most: int = 16) -> tuple[Array, Array | None]:
    """The most used full codes int64 [K, s] and, where the data have a state, the mean motion of each, float [K, 2]."""
    codes = encode_all(laq, packed, pairs, rows)
    kinds, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts)[:most]
    if packed.state is None or packed.state.shape[1] < 2:
        return kinds[order], None
    moved = (packed.state[pairs.later[rows]] - packed.state[pairs.now[rows]])[:, :2]
    return kinds[order], np.stack([moved[inverse.ravel() == k].mean(0) for k in order])


def _picture(laq: LAQ, packed: Packed, pairs: PairIndex, rows: Array, path: Path, title: str) -> None:
    moving = np.argsort(-_motion(packed, pairs, rows[:64]))[:6]
    some = pairs.batch(packed, rows[moving])
    reconstructions(laq, some.now, some.later, path, title)


def _motion(packed: Packed, pairs: PairIndex, rows: Array) -> Array:
    some = pairs.batch(packed, rows)
    return np.abs(some.later.astype(np.float32) - some.now).mean((1, 2, 3))
