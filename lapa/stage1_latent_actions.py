"""Stage 1, `lapa quantize` and `lapa fit`: fit the label source.

    lapa  LAQ on video without actions            vpt  inverse dynamics on the few labelled trajectories

The same step for both, so that comparisons cannot drift. Actions, where the videos have them, are read by the probe
alone: it asks how much of the true action a code tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lapa.actions.meaning import Meaning
from lapa.artefacts.folder import finished, provenance, read_json, save_artefact
from lapa.contracts import Array, FramePairs, LapaError, Logs
from lapa.data.buffer import Buffer, excerpt
from lapa.data.features import FrameFeatures, frame_features
from lapa.data.mixture import Mixture
from lapa.data.observations import say_once
from lapa.data.pack import Packed
from lapa.data.pairs import PairIndex, pair_counts, tell_of_window, window_offsets, window_pairs
from lapa.data.pixels import as_pixels
from lapa.data.stream import Stream
from lapa.measures.flow import coarse_flow, flow_motion, installed, main_motion
from lapa.measures.motion import Motion, Told, baselines, behind, motion, told, verdict
from lapa.measures.probes import LEAST, effector_columns, of_each_fifth, one_hot, perplexity, probe, r2
from lapa.models.idm import InverseDynamics
from lapa.models.laq import LAQ
from lapa.models.objectives import Taught as Objective
from lapa.plots.code_map import code_map
from lapa.plots.codes import gallery, reconstructions
from lapa.recipe import Recipe
from lapa.runtime.distributed import on_first_rank, rank
from lapa.training.held_out import is_held_out
from lapa.training.logbook import Logbook, by_position
from lapa.training.loop import Optimisation, Sampler, device, fit, seed_everything
from lapa.training.starts import FOLDER as STARTS
from lapa.training.starts import forget, furthest

BLOCK = 4096  # frames at a time
DIRECTED = 20_000  # pairs that the directions of a frozen encoder are fitted to, at most
FEWEST_TAUGHT = 3  # labelled episodes
FLOWED = 1000  # pairs whose optical flow is drawn by code, at most
CHOICE, WATCHED, FITTED = 1024, 3000, 2500  # pairs, fixed for the run: see Look
LOWEST = "watched/choice_error"  # of checkpoints and of starts, the best
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
    taught = None if labelled is None else taught_by(labelled, recipe)
    if isinstance(packed, Stream):
        return _fit_from_stream(packed, recipe, out, seed, megabytes, taught)
    pairs = window_pairs(packed, recipe.window, recipe.end)
    held_out = is_held_out(pairs.episode, recipe.hold_out)
    look = look_at(packed, pairs, held_out, seed)
    sampler = _sampler(packed, pairs, recipe.quantize, np.flatnonzero(~held_out))
    return _fit(look, sampler, {packed.spec: packed.fingerprint}, recipe, out, seed, taught)


@dataclass(frozen=True)
class Taught:
    """Labelled episodes: their pairs, and what the robot did in these."""

    packed: Packed
    pairs: PairIndex
    did: Motion


def taught_by(labelled: Packed, recipe: Recipe) -> Taught:
    """Raises LapaError where they say nothing of the motion, are too few, or nothing would learn from them."""
    if not recipe.laq.encoder:
        raise LapaError(
            "--labelled stretches the directions of a frozen encoder, and this LAQ trains its own. Leave it out, or "
            "choose one: --preset video, or --set laq.encoder=NAME."
        )
    pairs = window_pairs(labelled, recipe.window)
    did = motion(labelled, pairs, np.arange(len(pairs)))
    if did is None:
        raise LapaError(f"{labelled.spec} has neither actions nor a state, so it teaches nothing of the motion.")
    if (episodes := len(np.unique(pairs.episode))) < FEWEST_TAUGHT:
        raise LapaError(
            f"{labelled.spec} has {episodes} labelled episode{'s' * (episodes > 1)} as long as the window; codes get "
            f"better from some {FEWEST_TAUGHT} on (docs/latents.md). Give more, or leave --labelled out."
        )
    return Taught(labelled, pairs, did)


def _fit_from_stream(
    stream: Stream, recipe: Recipe, out: Path, seed: int, megabytes: int, taught: Taught | None
) -> dict[str, Any]:
    counts = pair_counts(stream, recipe.window, recipe.end)
    reach = window_offsets(stream.fps, recipe.window)
    held_out = is_held_out(np.arange(stream.episodes), recipe.hold_out) & (counts > 0)
    shown = held_out if held_out.any() else counts > 0
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


@dataclass(frozen=True)
class Look:
    """What a LAQ is judged by: rows of the pairs of a pack, int64 each.

    rows    what figures are reported of; choice: what starts and checkpoints are chosen by, of other episodes
    fit     what the probes are fitted on, of other episodes than `rows`
    episode int64 [P], of every pair of the pack (segments of a stream count as their episode)
    held_out  whether `rows` are of episodes that the LAQ was not trained on; where: what these are, in words
    unseen  bool [P], pairs of episodes that are held out
    excerpt whether the pack is an excerpt of a stream: training then has other pairs
    """

    packed: Packed
    pairs: PairIndex
    choice: Array
    rows: Array
    fit: Array
    episode: Array
    held_out: bool
    where: str
    unseen: Array
    excerpt: bool = False

    @cached_property
    def probed(self) -> tuple[Array, Array]:
        """Rows of `fit` and `rows` one behind the other, and which of them are the latter, bool: none where the probes
        cannot be judged by other episodes than they are fitted on."""
        apart = not len(np.intersect1d(self.episode[self.fit], self.episode[self.rows]))
        test = np.repeat([False, True], [len(self.fit), len(self.rows)])
        return np.concatenate([self.fit, self.rows]), test & apart

    def comparison(self, codes: int) -> tuple[Motion, dict[str, Told]] | None:
        """What the robot did in the rows of `probed`, or the optical flow where nothing says it, and what features that
        need no training tell of it, with as many clusters as there are codes. None where there are too few pairs, or
        no library for the flow, which is said. Made once: it is the same at every step."""
        if codes not in self._made:
            rows, test = self.probed
            did = motion(self.packed, self.pairs, rows)
            if did is None and min(test.sum(), (~test).sum()) >= LEAST:
                did = _flow(self.packed, self.pairs, rows)
            enough = did is not None and min(test.sum(), (~test).sum()) >= LEAST
            self._made[codes] = (
                (did, baselines(self.packed, self.pairs, rows, did.values, self.episode[rows], test, codes))
                if did is not None and enough
                else None
            )
        return self._made[codes]

    @cached_property
    def _made(self) -> dict[int, tuple[Motion, dict[str, Told]] | None]:
        return {}

    @property
    def judged(self) -> int:
        """Episodes that figures are reported of."""
        return len(np.unique(self.episode[self.rows]))


def _flow(packed: Packed, pairs: PairIndex, rows: Array) -> Motion | None:
    """The optical flow of the pairs; None, and a word, where the library is missing."""
    if installed():
        return flow_motion(packed, pairs, rows)
    say_once(
        "What the codes tell cannot be measured: the videos say nothing of what the robot did, and the library for "
        'optical flow is missing: pip install "lapa[flow]".'
    )
    return None


def look_at(
    packed: Packed,
    pairs: PairIndex,
    held_out: Array,
    seed: int,
    episode: Array | None = None,
    trained_on: bool = True,
) -> Look:
    """Draw what a LAQ is judged by. held_out bool [P]: pairs of episodes that it was not trained on.

    Half of the held-out episodes choose and the other half reports; probes are fitted on the rest. With a single one
    it does both. With none, each fifth episode reports and the others choose and fit. `where` says which it was.
    """
    episode = pairs.episode if episode is None else episode
    rng = np.random.default_rng(seed)
    some = np.unique(episode[held_out])
    if len(some):
        report = np.isin(episode, some[::2])
        choice, fit = np.isin(episode, some[1::2]) if len(some) > 1 else report, ~held_out
        of = f"{len(some[::2])} held-out episode{'s' * (len(some) > 2)}"
        where = f"pairs of {of}" + ("" if len(some) > 1 else ", too few for a choice on others")
    else:
        report = of_each_fifth(episode)
        choice = fit = ~report
        apart = bool(report.any())
        report = report if apart else fit
        where = f"pairs of {'training, of ' * trained_on}each fifth episode"
        if not apart:
            where = "pairs of training" if trained_on else "pairs of the only episode"

    def drawn(which: Array, most: int) -> Array:
        pool = np.flatnonzero(which)
        return rng.choice(pool, min(most, len(pool)), replace=False)

    rows = drawn(report, WATCHED)
    return Look(
        packed,
        pairs,
        drawn(choice, CHOICE),
        rows,
        drawn(fit, FITTED),
        episode,
        bool(len(some)) or not trained_on,
        where,
        held_out,
    )


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
    if begun and count > 1 and on_first_rank(lambda: finished(out)):
        told = on_first_rank(lambda: read_json(out / "config.json", "LAQ").get("starts"))
        return (recipe.start(told["chosen"]), {"starts": told}) if told else (recipe, {})
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
    return recipe.start(best), {"starts": {"error_over_copy": errors, "chosen": best}}


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


def fit_codes(laq: LAQ, packed: Packed, pairs: PairIndex, pool: Array, seed: int, taught: Taught | None = None) -> str:
    """Fit the directions and the codebooks of a LAQ with a frozen encoder to the pairs `pool`, int64. Returns what was
    fitted, in words. Raises LapaError where there are too few pairs."""
    directions, seen = laq.directions, features_of(laq, packed)
    assert directions is not None
    rows = np.sort(np.random.default_rng(seed).choice(pool, min(DIRECTED, len(pool)), replace=False))
    # A window of one frame has no middle: it and the next one are the halves, where the episode goes on so long.
    short = pairs.offset[rows] < 2
    inside = pairs.later[rows] + pairs.offset[rows] < packed.starts[pairs.episode[rows] + 1]
    keep = ~short | (inside & (pairs.offset[rows] > 0))
    rows, short = rows[keep], short[keep]
    start, later = pairs.now[rows], pairs.later[rows]
    middle = np.where(short, later, (start + later) // 2)
    end = np.where(short, later + pairs.offset[rows], later)
    correlations = directions.fit(seen[start], seen[middle], seen[end])
    stretched = "" if taught is None else _stretch(laq, taught, seed)
    where = places_of(laq, packed)
    laq.quantizer.fit(where[pairs.later[rows]] - where[pairs.now[rows]], seed)
    return (
        f"{directions.dim} directions of {directions.name}, fitted to {len(rows):,} windows. The change in one half of "
        f"a window tells that in the other with a correlation of {correlations[0]:.2f} in the first direction and "
        f"{correlations[-1]:.2f} in the last. {stretched}{laq.quantizer.positions} x {laq.quantizer.size} codes by "
        "k-means."
    )


def _stretch(laq: LAQ, taught: Taught, seed: int) -> str:
    """Stretch the directions by labelled episodes. Returns what to say of it."""
    assert laq.directions is not None
    packed, pairs = taught.packed, taught.pairs
    on_first_rank(lambda: len(features_of(laq, packed)))
    seen = features_of(laq, packed)
    rows = np.random.default_rng(seed).permutation(len(pairs))[:DIRECTED]
    change = seen[pairs.later[rows]].astype(np.float32) - seen[pairs.now[rows]]
    share = laq.directions.stretch(change, taught.did.values[rows], pairs.episode[rows])
    episodes = len(np.unique(pairs.episode))
    return (
        f"Stretched along what tells the {taught.did.what} of {episodes} labelled episodes ({share:.0%} of it in "
        "episodes that are left out). "
    )


def features_of(laq: LAQ, packed: Packed) -> FrameFeatures:
    """What the frozen encoder sees in every frame; from the cache where it is there."""
    directions = laq.directions
    assert directions is not None
    width, key = directions.axes.shape[0], f"{directions.config!r} {directions.config.weights()}"
    return frame_features(packed, directions.features, width, directions.name, key)


def places_of(laq: LAQ, packed: Packed) -> Array:
    """The place of every frame of a pack, float32 [N, dim] (models/directions.py)."""
    assert laq.directions is not None
    seen = features_of(laq, packed)
    parts = [
        laq.directions.place(torch.from_numpy(seen[i : i + BLOCK]).to(laq.device)) for i in range(0, len(seen), BLOCK)
    ]
    return torch.cat(parts).cpu().numpy()


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
    model.standardise(actions[pairs.now])
    sample = _sampler(packed, pairs, recipe.fit_idm, np.arange(len(pairs)))
    fit(model, sample, recipe.fit_idm, out, seed=seed, title="inverse dynamics")

    def finish() -> dict[str, Any]:
        some = pairs.batch(packed, np.arange(min(len(pairs), 1000)))
        assert some.actions is not None
        results = {"train_r2": r2(model.predict(some.now, some.later).cpu().numpy(), some.actions), "pairs": len(pairs)}
        meaning = Meaning.of(packed)  # over adjacent frames an absolute action gives the change of state
        made = {**model.description(), "meaning": meaning and asdict(meaning), "recipe": recipe.to_json(),
                "results": results, "provenance": provenance(seed, {packed.spec: packed.fingerprint}, {})}  # fmt: skip
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


def encode_all(laq: LAQ, packed: Packed, pairs: PairIndex, rows: Array, batch: int = 64) -> Array:
    """Codes int64 [len(rows), s] of the given pairs."""
    if laq.directions is not None:
        where = torch.from_numpy(places_of(laq, packed)).to(laq.device)
        return laq.codes_between(where[pairs.now[rows]], where[pairs.later[rows]]).cpu().numpy()
    parts = []
    for start in range(0, len(rows), batch):
        some = pairs.batch(packed, rows[start : start + batch])
        parts.append(laq.encode(some.now, some.later).cpu().numpy())
    return np.concatenate(parts)


def error_over_copy(laq: LAQ, look: Look, rows: Array) -> float:
    """Squared error of the later frames, decoded from their codes, over that of showing the present frame again."""
    error = copy = 0.0
    for start in range(0, min(len(rows), CHOICE), 256):
        some = look.pairs.batch(look.packed, rows[start : start + 256])
        now, later = (as_pixels(x, laq.config.image_size, device()) for x in (some.now, some.later))
        future = laq.decode(now, laq.encode(some.now, some.later).cpu().numpy())
        error += float((future - later).square().sum())
        copy += float((now - later).square().sum())
    return error / max(copy, 1e-9)


def watch(laq: LAQ, look: Look) -> dict[str, Any]:
    """error_over_copy, perplexity per position and, where the data allow, the probes: numbers alone."""
    rows, test = look.probed
    codes, size = encode_all(laq, look.packed, look.pairs, rows), laq.config.codebook_size
    results: dict[str, Any] = {"error_over_copy": error_over_copy(laq, look, look.rows)}
    results |= probe(codes, size, look.packed, look.pairs, rows, look.episode[rows], test)
    return results | {"perplexity": perplexity(codes[len(look.fit) :], size)}


def judge(laq: LAQ, look: Look) -> dict[str, Any]:
    """What `watch` gives, what it was watched on, and the headline: "motion", the codes beside features that need no
    training on the same pairs (measures/motion.py; of videos without actions or state measures/flow.py), with a verdict
    in words."""
    results = watch(laq, look)
    results["watched_on"] = f"{len(look.rows):,} {look.where}"
    compared = look.comparison(full_codes(laq))
    if compared is None:
        return results
    rows, test = look.probed
    did, others = compared
    features = one_hot(encode_all(laq, look.packed, look.pairs, rows), laq.config.codebook_size)
    codes = told(features, did.values, look.episode[rows], test)
    results["motion"] = {
        "what": did.what,
        "names": list(did.names),
        "episodes": look.judged,
        "rows": {name: row.to_json() for name, row in {"codes": codes, **others}.items()},
        "verdict": verdict(codes.weighted, others, did.what, look.judged),
    }
    return results


def full_codes(laq: LAQ) -> int:
    """How many different codes a pair may have."""
    return int(laq.quantizer.size**laq.quantizer.positions)


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
        print(f"{title}, step {step:,}: {verdict(codes, others, did.what, look.judged)}", flush=True)
    return {f"{name.replace(' ', '_').partition('_of_')[0].replace('-', '_')}_r2": row.weighted
            for name, row in others.items()}  # fmt: skip


@dataclass(frozen=True)
class CodeTable:
    """The most used full codes, and what moves when they occur. NaN where a code never occurs.

    codes   int64 [K, s]
    motion  float [K, datasets, 2], to the right and down: how the effector moves on average, where the state says where
            it is; else how the picture does, by its optical flow; None where neither is known
    first   the same of each code of the first position, float [|C|, datasets, 2]
    flow    float [K, 2, rows, columns]: the mean optical flow, where it is what tells the motion
    """

    codes: Array
    motion: Array | None
    first: Array | None
    flow: Array | None = None


def code_table(laq: LAQ, packed: Packed, pairs: PairIndex, rows: Array, most: int = 16) -> CodeTable:
    """Of the pairs `rows`; `most` full codes at most."""
    codes = encode_all(laq, packed, pairs, rows)
    kinds, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts)[:most]
    place = np.full(len(kinds), -1)
    place[order] = np.arange(len(order))
    row, flow = place[inverse.ravel()], None
    columns = effector_columns(packed.state_names)[:2]
    if packed.state is not None and len(columns) == 2:
        where = packed.state[:, columns]
        moved = where[pairs.later[rows]] - where[pairs.now[rows]]
    elif installed():
        some = np.sort(np.random.default_rng(0).permutation(len(rows))[:FLOWED])
        row, codes, rows = row[some], codes[some], rows[some]
        each = coarse_flow(packed, pairs, rows)
        moved, flow = main_motion(each), _means(each, row, len(order))
    else:
        return CodeTable(kinds[order], None, None)
    source, sources = packed.source[pairs.episode[rows]], int(packed.source.max()) + 1
    motion, first = (
        np.stack([_means(moved[source == j], group[source == j], count) for j in range(sources)], 1)
        for group, count in ((row, len(order)), (codes[:, 0], laq.config.codebook_size))
    )
    return CodeTable(kinds[order], motion, first, flow)


def over_datasets(motion: Array | None) -> Array | None:
    """Motion [K, datasets, 2] -> [K, 2], the mean of the datasets where it is known."""
    if motion is None:
        return None
    known = np.isfinite(motion)
    total = np.where(known, motion, 0).sum(1)
    return np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan)


def _means(values: Array, group: Array, count: int) -> Array:
    """The mean of the rows of each group 0 .. count - 1, float [count, ...]; NaN for one without rows. Rows of group -1
    are passed over."""
    made = np.full((count, *values.shape[1:]), np.nan, values.dtype)
    for g in np.unique(group[group >= 0]):
        made[g] = values[group == g].mean(0)
    return made


def _picture(laq: LAQ, packed: Packed, pairs: PairIndex, rows: Array, path: Path, title: str) -> None:
    moving = np.argsort(-_motion(packed, pairs, rows[:64]))[:6]
    some = pairs.batch(packed, rows[moving])
    reconstructions(laq, some.now, some.later, path, title)


def _motion(packed: Packed, pairs: PairIndex, rows: Array) -> Array:
    some = pairs.batch(packed, rows)
    return np.abs(some.later.astype(np.float32) - some.now).mean((1, 2, 3))
