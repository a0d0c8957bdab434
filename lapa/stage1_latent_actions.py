"""Stage 1, `lapa quantize` and `lapa fit`: fit the label source.

    lapa  LAQ on video without actions            vpt  inverse dynamics on the few labelled trajectories

The same step for both, so that comparisons cannot drift. Actions, where the videos have them, are read by the probe
alone: it asks how much of the true action a code tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lapa.actions.meaning import Meaning
from lapa.artefacts.folder import finished, provenance, read_json, save_artefact, write_json
from lapa.contracts import Array, FramePairs, LapaError, Logs
from lapa.data.buffer import Buffer, excerpt
from lapa.data.episode_keys import keys_of
from lapa.data.mixture import Mixture
from lapa.data.pack import Packed
from lapa.data.pairs import PairIndex, pair_counts, tell_of_window, window_offsets, window_pairs
from lapa.data.stream import Stream
from lapa.measures.motion import behind, told, verdict
from lapa.measures.probes import one_hot, r2
from lapa.models.idm import InverseDynamics
from lapa.models.laq import LAQ
from lapa.models.laq_fit import Taught, encode_all, features_of, fit_codes, taught_by
from lapa.models.laq_look import (
    CHOICE,
    FITTED,
    WATCHED,
    Look,
    code_table,
    error_over_copy,
    full_codes,
    judge,
    look_at,
    over_datasets,
    watch,
)
from lapa.models.objectives import Taught as Objective
from lapa.plots.code_map import code_map
from lapa.plots.codes import gallery, reconstructions
from lapa.recipe import Recipe
from lapa.runtime.distributed import on_first_rank, rank
from lapa.training.held_out import is_held_out
from lapa.training.logbook import Logbook, by_position
from lapa.training.loop import Optimisation, Sampler, fit, seed_everything
from lapa.training.starts import CHOSEN, forget, furthest
from lapa.training.starts import FOLDER as STARTS

LOWEST = "watched/choice_error"  # of checkpoints and of starts, the best
JUDGED = 1000  # training pairs that inverse dynamics is judged by
FEWEST = 8  # episodes of which segments are looked at, at least, to fit probes on


def fit_laq(
    packed: Packed | Stream,
    recipe: Recipe,
    out: Path,
    seed: int,
    megabytes: int = 1024,
    labelled: Packed | None = None,
) -> dict[str, Any]:
    """Train LAQ on the pairs of the window and save it to `out`. Returns the results kept in its config.json.

    A stream is read through a shuffle buffer; its frames in memory take `megabytes` at most (data/buffer.py).
    Every `recipe.hold_out`th episode is held out and the figures are of those, or else of training pairs.
    What the videos have of actions is not looked at but by the probe. What the episodes of `labelled` say of the
    robot's motion is: they stretch the directions of a frozen encoder (models/directions.py).
    """
    tell_of_window(packed, recipe.window, recipe.end)
    taught = None if labelled is None else taught_by(labelled, recipe.laq, recipe.window)
    if isinstance(packed, Stream):
        return _fit_from_stream(packed, recipe, out, seed, megabytes, taught)
    pairs = window_pairs(packed, recipe.window, recipe.end)
    held_out = is_held_out(pairs.episode, recipe.hold_out)
    look = look_at(packed, pairs, held_out, seed)
    sampler = _sampler(packed, pairs, recipe.quantize, np.flatnonzero(~held_out))
    return _fit(look, sampler, {packed.spec: packed.fingerprint}, recipe, out, seed, taught)


def _fit_from_stream(
    stream: Stream, recipe: Recipe, out: Path, seed: int, megabytes: int, taught: Taught | None
) -> dict[str, Any]:
    counts = pair_counts(stream, recipe.window, recipe.end)
    reach = window_offsets(stream.fps, recipe.window)
    held_out = is_held_out(np.arange(stream.episodes), recipe.hold_out) & (counts > 0)
    shown = held_out.copy() if held_out.any() else counts > 0
    if held_out.any():  # as many of those that are trained on, spread evenly, to fit the probes
        rest = np.flatnonzero(~held_out & (counts > 0))
        chosen = np.linspace(0, len(rest) - 1, min(len(rest), max(FEWEST, int(held_out.sum())))).round().astype(int)
        shown[rest[chosen]] = True
    looked_at = replace(stream, weights=None)
    packed = excerpt(looked_at, np.where(shown, counts, 0), reach, seed=seed, samples=CHOICE + WATCHED + FITTED,
                     megabytes=megabytes // 4)  # fmt: skip
    pairs = window_pairs(packed, recipe.window)
    # Several segments may be of one episode: they stay on one side.
    number = {key: e for e, key in enumerate(zip(stream.source.tolist(), stream.ids, strict=True))}
    origin = np.array([number[key] for key in zip(packed.source.tolist(), packed.ids, strict=True)])
    look = look_at(packed, pairs, held_out[origin[pairs.episode]], seed, origin[pairs.episode])
    look = replace(look, excerpt=True)
    left = megabytes - -(-packed.nbytes // 2**20)
    buffer = Buffer(stream, np.where(held_out, 0, counts), reach, seed=seed, batch=recipe.quantize.batch_size,
                    megabytes=left)  # fmt: skip
    with closing(buffer):
        sampler = Sampler(lambda rng: buffer.draw(rng, recipe.quantize.batch_size), buffer.pairs, buffer.begin)
        return _fit(look, sampler, {stream.spec: stream.fingerprint}, recipe, out, seed, taught)


def _fit(
    look: Look,
    sampler: Sampler,
    data: dict[str, str],
    recipe: Recipe,
    out: Path,
    seed: int,
    taught: Taught | None,
) -> dict[str, Any]:
    packed, pairs = look.packed, look.pairs
    recipe, starts = _start(look, sampler, recipe, out, seed, taught)
    laq = _train(look, sampler, recipe, out, seed, "LAQ", taught)
    if taught is not None:
        data = data | {taught.packed.spec: taught.packed.fingerprint}

    def finish() -> dict[str, Any]:
        results = judge(laq, look)
        results["training_perplexity"] = laq.watcher.perplexity()
        scenes = packed.gather(
            pairs.now[np.random.default_rng(seed + 1).choice(len(pairs), min(6, len(pairs)), replace=False)]
        )
        said = code_table(laq, packed, pairs, look.rows)
        title = "What each code does to the same scenes"
        gallery(laq, scenes, out / "pictures" / "gallery.png", title, said.codes, over_datasets(said.motion), said.flow)
        code_map(laq, said.codes, out / "pictures" / "map.png", "Where the codes lie", said.motion, said.first)
        made = {"model": asdict(recipe.laq), "recipe": recipe.to_json(), "results": results,
                "provenance": provenance(seed, data, {})}  # fmt: skip
        save_artefact(out, "laq", {**made, **starts}, laq.state_dict())
        forget(out)
        return results

    return on_first_rank(finish)


def _start(
    look: Look, sampler: Sampler, recipe: Recipe, out: Path, seed: int, taught: Taught | None
) -> tuple[Recipe, dict[str, Any]]:
    """Try the recipe's starts, if there are several, each up to where LAQ is first watched. Returns the recipe of the
    one that goes on, and what to tell of them. A run that had begun before there were starts goes on as it was; one
    that was finished, and is to be longer now, with the start that was chosen."""
    count, begun = len(recipe.starts), on_first_rank((out / "checkpoints").exists)
    if begun and count > 1 and (known := on_first_rank(lambda: _chosen(out))) is not None:
        return (recipe.start(known["chosen"]), {"starts": known}) if known else (recipe, {})
    if count < 2 or (begun and not on_first_rank((out / STARTS).exists)):
        return (recipe.start(0) if count == 1 else recipe), {}
    for number in range(count):
        recipe.start(number).laq.build()  # what cannot be built is said before anything has been trained

    def begin(number: int, folder: Path) -> None:
        title = f"LAQ, start {number + 1} of {count}"
        _train(look, sampler, recipe.start(number), folder, seed, title, taught, until=_first_look(recipe))

    best, errors = furthest(out, count, seed, LOWEST, begin)
    if rank() == 0:
        told = ", ".join(f"{json.dumps(how)} {error:.3f}" for how, error in zip(recipe.starts, errors, strict=True))
        print(f"LAQ goes on from start {best + 1} of {count}: error over copying after {_first_look(recipe):,} of "
              f"{recipe.quantize.steps:,} steps by options of the quantizer: {told}.", flush=True)  # fmt: skip
    told_later = {"error_over_copy": errors, "chosen": best}
    on_first_rank(lambda: write_json(out / CHOSEN, told_later))
    return recipe.start(best), {"starts": told_later}


def _chosen(out: Path) -> dict[str, Any] | None:
    """What was told of the starts: {} for a finished run without any, None where nothing is known yet. Runs of before
    there was CHOSEN have it in config.json, once they are finished."""
    if (out / CHOSEN).exists():
        told: dict[str, Any] = read_json(out / CHOSEN, "choice among the starts")
        return told
    return (read_json(out / "config.json", "LAQ").get("starts") or {}) if finished(out) else None


def _first_look(recipe: Recipe) -> int:
    return max(1, recipe.quantize.steps // 4)


def _train(
    look: Look,
    sampler: Sampler,
    recipe: Recipe,
    out: Path,
    seed: int,
    title: str,
    taught: Taught | None,
    until: int = 0,
) -> LAQ:
    """LAQ from its first weights, or from the checkpoint in `out`, to the last step or `until`."""
    seed_everything(seed)
    laq = recipe.laq.build()
    if recipe.objectives.features and laq.directions is not None:
        raise LapaError("objectives.features teaches LAQ's own encoder; leave it out with laq.encoder.")
    learner = Objective(laq, recipe.objectives) if recipe.objectives.features else laq
    if laq.directions is not None:
        sampler = _fit_directions(laq, look, sampler, seed, taught)

    def monitor(step: int, book: Logbook) -> Logs:
        results = watch(laq, look) | {"choice_error": error_over_copy(laq, look, look.choice)}
        results |= _compare(laq, look, results, step, title, recipe)
        picture = out / "pictures" / f"reconstructions_{step:06d}.png"
        _picture(laq, look.packed, look.pairs, look.rows, picture, f"step {step}")
        book.picture("reconstructions", picture)
        return by_position({f"watched/{name}": value for name, value in results.items()})

    # A tracker is told of the run, not of what it might have become.
    how = replace(recipe.quantize, log="none") if until else recipe.quantize
    fit(learner, sampler, how, out,
        seed=seed, title=title, monitor=monitor, monitor_every=_first_look(recipe), best=LOWEST,
        until=until)  # fmt: skip
    return laq


def _fit_directions(laq: LAQ, look: Look, sampler: Sampler, seed: int, taught: Taught | None) -> Sampler:
    """Fit directions and codebook to the pairs that are not held out. Returns the sampler, its pairs with their codes
    where the frames are in a pack: the decoder is then trained without looking at any frame with the encoder."""
    packed, pairs = look.packed, look.pairs
    on_first_rank(lambda: len(features_of(laq, packed)))  # one process fills the cache, the others read it
    said = fit_codes(laq, packed, pairs, np.flatnonzero(~look.unseen), seed, taught)
    if rank() == 0:
        print(f"LAQ: {said}", flush=True)
    if look.excerpt:
        return sampler
    codes = encode_all(laq, packed, pairs, np.arange(len(pairs)))
    return replace(sampler, load=lambda some: replace(sampler.load(some), codes=codes[some]))


def fit_idm(packed: Packed, recipe: Recipe, out: Path, seed: int) -> dict[str, Any]:
    """Train the inverse dynamics model on adjacent frames of all labelled trajectories and save it to `out`.

    The R^2 is of the training pairs: few labels are too dear to hold out. How good it is on video shows in
    `lapa label`, where the video has actions to compare with.
    """
    actions = packed.require_actions("inverse dynamics (lapa fit)")
    pairs = window_pairs(packed, None)
    tell_of_window(packed, None)
    seed_everything(seed)
    model = InverseDynamics(recipe.idm, actions.shape[1])
    moved = packed.acted(pairs.now, pairs.later)  # absolute actions are learnt as changes of the state
    assert moved is not None
    model.standardise(moved)
    sample = _sampler(packed, pairs, recipe.fit_idm, np.arange(len(pairs)))
    fit(model, sample, recipe.fit_idm, out, seed=seed, title="inverse dynamics")

    def finish() -> dict[str, Any]:
        rows = np.linspace(0, len(pairs) - 1, min(len(pairs), JUDGED)).round().astype(int)  # of all episodes
        some = pairs.batch(packed, rows)
        assert some.actions is not None
        results = {"train_r2": r2(model.predict(some.now, some.later).cpu().numpy(), some.actions), "pairs": len(pairs)}
        meaning = Meaning.of(packed)  # over adjacent frames an absolute action gives the change of state
        made = {**model.description(), "meaning": meaning and asdict(meaning), "recipe": recipe.to_json(),
                "labelled": {"trained": sorted(keys_of(packed))}, "results": results,
                "provenance": provenance(seed, {packed.spec: packed.fingerprint}, {})}  # fmt: skip
        save_artefact(out, "idm", made, model.state_dict())
        return results

    return on_first_rank(finish)


def _sampler(packed: Packed, pairs: PairIndex, how: Optimisation, rows: Array) -> Sampler:
    mixture = Mixture(packed, pairs.episode[rows])

    def draw(rng: np.random.Generator) -> Array:
        return rows[mixture.draw(rng, how.batch_size)]

    def load(some: Array) -> FramePairs:
        return pairs.batch(packed, some)

    return Sampler(draw, load)


def _compare(laq: LAQ, look: Look, results: Mapping[str, Any], step: int, title: str, recipe: Recipe) -> Logs:
    """Figures of features that need no training, to log beside those of the codes. Says so, in words, when the codes
    tell no more."""
    compared = look.comparison(full_codes(laq))
    if compared is None:
        return {}
    did, others = compared
    if (known := results.get("action_r2", results.get("state_r2"))) is None:
        rows, test = look.probed
        features = one_hot(encode_all(laq, look.packed, look.pairs, rows), laq.config.codebook_size)
        known = told(features, did.values, look.episode[rows], test).weighted
    codes = float(known)
    fitted_before = laq.directions is not None and step > _first_look(recipe)  # its codes do not change any more
    if behind(codes, others) and not fitted_before:
        said = verdict(codes, others, did.what, look.judged, look.held_out)
        print(f"{title}, step {step:,}: {said}", flush=True)
    return {f"{name.replace(' ', '_').partition('_of_')[0].replace('-', '_')}_r2": row.weighted
            for name, row in others.items()}  # fmt: skip


def _picture(laq: LAQ, packed: Packed, pairs: PairIndex, rows: Array, path: Path, title: str) -> None:
    moving = np.argsort(-_motion(packed, pairs, rows[:64]))[:6]
    some = pairs.batch(packed, rows[moving])
    reconstructions(laq, some.now, some.later, path, title)


def _motion(packed: Packed, pairs: PairIndex, rows: Array) -> Array:
    some = pairs.batch(packed, rows)
    return np.abs(some.later.astype(np.float32) - some.now).mean((1, 2, 3))
