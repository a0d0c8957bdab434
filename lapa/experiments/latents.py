"""`lapa study latents`: what codes tell of the motion on real video, beside features that need no training.

    target     what the robot did over the window (measures/motion.py), and the coarse optical flow (measures/flow.py)
    pairs      every so manyth frame; one episode in EVERY is held out whole, as `--set hold_out=5` of `lapa quantize`
               does. Where tasks take turns, all of them are among those (training/held_out.py). Each seed holds out
               other episodes, so EVERY seeds hold out each episode once
    baselines  first picture, difference picture, k-means on it; of each frozen encoder: its difference, k-means on it,
               and four principal components of eight levels each
    codes      those of the preset `video` with each encoder (models/directions.py), without labels and with the actions
               of a few training episodes; and of finished LAQs

A row has several seeds: what split and luck do is in its spread. `results.json` and `table.md` are written after each
row; one that is there already is not run again. With "all" for a dataset those of latent_data.py are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from lapa.artefacts.folder import read_json, replacing, write_json
from lapa.contracts import Array, LapaError
from lapa.data.pack import Packed, pack
from lapa.data.pairs import PairIndex, window_pairs
from lapa.experiments.latent_data import find_all, is_all
from lapa.experiments.sweep import markdown
from lapa.measures.flow import flow_motion, installed
from lapa.measures.linear import LinearFit, rows_of
from lapa.measures.motion import CLUSTERS, Told, clustered, motion, small_pictures
from lapa.measures.probes import EVERY, one_hot, perplexity
from lapa.models.laq import LAQ, LAQConfig
from lapa.models.laq_fit import encode_all, features_of, fit_codes, taught_by
from lapa.recipe import preset
from lapa.training.held_out import is_held_out

ENCODERS = ("pixels", "efficientnet")
LABELLED = (3, 10)  # training episodes whose actions stretch the directions
PROTOCOL = 3  # raise it when figures change for the same data: 2 spreads the held-out episodes over tasks, 3: each
# seed has its own
PAIRS = 4000  # pairs that a table is made from, at most
LEVELS, LEVELLED = 8, 4  # levels of a component; components
COLUMNS = ("motion, mean", "motion", "position", "flow", "perplexity")
FIRST, DIFFERENCE = "first picture, 24 px", "difference picture, 24 px"
FEATURES, CODES = "{}: difference of its features", "{}: codes of the preset video"
BESIDE = (FIRST, DIFFERENCE, FEATURES.format("efficientnet"))  # in the summary


@dataclass(frozen=True)
class Asked:
    """What the tables of a study of latent actions share."""

    datasets: tuple[str, ...]
    seeds: int = 3
    laqs: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ENCODERS
    only: tuple[str, ...] = ()  # rows with one of these texts in their name; (): all

    def takes(self, row: str) -> bool:
        """Whether a row of this name is to be made."""
        return not self.only or any(text in row for text in self.only)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise LapaError(f"A study needs at least one seed, got {self.seeds}.")


@dataclass(frozen=True)
class Judge:
    """The pairs of one dataset that all rows are judged on.

    rows  int64 [R] of the pairs; episode int64 [R]; seed: which episodes are held out, 0 those of `is_held_out`
    targets  float64 [R, D] by column: what features are to tell
    """

    packed: Packed
    pairs: PairIndex
    rows: Array
    episode: Array
    targets: Mapping[str, Array]
    what: str
    seed: int = 0

    @staticmethod
    def of(packed: Packed, window: float) -> Judge:
        """Raises LapaError where there are too few episodes, or nothing to tell."""
        pairs = window_pairs(packed, window)
        rows = np.arange(0, len(pairs), -(-len(pairs) // PAIRS))
        episode = pairs.episode[rows]
        did = motion(packed, pairs, rows)
        targets = {} if did is None else {"motion": did.values}
        if packed.state is not None:
            targets["position"] = packed.state[pairs.now[rows]].astype(np.float64)
        if installed():
            targets["flow"] = flow_motion(packed, pairs, rows).values
        if not targets or len(np.unique(episode)) < EVERY:
            raise LapaError(
                f"{packed.spec}: a table needs {EVERY} episodes or more, and a state, actions or the library for "
                'optical flow (pip install "lapa[flow]").'
            )
        what = "optical flow alone" if did is None else did.what
        return Judge(packed, pairs, rows, episode, targets, what)

    @cached_property
    def test(self) -> Array:
        """Rows of held-out episodes, bool [R]. Raises LapaError where there are none."""
        held = self._held_out(self.episode)
        if not held.any():
            raise LapaError(f"{self.packed.spec}: no episode that seed {self.seed} holds out is as long as the window.")
        return held

    @property
    def fitting(self) -> Array:
        """Pairs of training episodes, int64: what codes are fitted to."""
        return np.flatnonzero(~self._held_out(self.pairs.episode))

    def _held_out(self, episode: Array) -> Array:
        """Episodes int64 [N] -> bool [N]: each seed takes the next one of EVERY in a row."""
        return is_held_out(episode // EVERY * EVERY + (episode + self.seed) % EVERY, EVERY)

    def figures(self, features: Array) -> dict[str, float]:
        """R^2 of each target on held-out episodes, each dimension weighted by its variance. One fit tells them all."""
        x, y = rows_of(features, np.concatenate(list(self.targets.values()), 1))
        said = LinearFit.fit(x[~self.test], y[~self.test], self.episode[~self.test])(x[self.test])
        found: dict[str, float] = {}
        at = 0
        for name, values in self.targets.items():
            here = slice(at, at := at + values.shape[1])
            one = Told.of(said[:, here], y[self.test, here])
            found[name] = one.weighted
            if name == "motion":
                found["motion, mean"] = one.mean
        return found

    def of_codes(self, codes: Array, size: int) -> dict[str, float]:
        """The same of codes int64 [R, s], and the perplexity of the worst position on held-out episodes."""
        return self.figures(one_hot(codes, size)) | {"perplexity": min(perplexity(codes[self.test], size))}


def study_latents(asked: Asked, out: Path) -> dict[str, Any]:
    """Make the tables of all datasets, one after another; returns what results.json holds. A dataset of "all" that
    cannot be judged is left out, and why is said. Tables that `out` has of other datasets stay, if they were made with
    the same settings."""
    path = out / "results.json"
    before = read_json(path, "results of a study")["tables"] if path.exists() else {}
    kept = {spec: made for spec, made in before.items() if _settings(asked).items() <= made["key"].items()}
    results: dict[str, Any] = {"setting": asdict(asked), "left_out": [], "tables": kept}
    for spec in asked.datasets:
        found = find_all(spec) if is_all(spec) else None
        for why in found.left_out if found else ():
            _leave_out(results, why)
        for one in found.datasets if found else (spec,):
            try:
                for table in _judged(one, asked, before.get(one)):
                    results["tables"][one] = table
                    _keep(results, out)
            except LapaError as error:
                if not found:
                    raise
                _leave_out(results, f"{one}: {error}")
                _keep(results, out)
    return results


def _keep(results: Mapping[str, Any], out: Path) -> None:
    write_json(out / "results.json", results)
    with replacing(out / "table.md") as file:
        file.write_text(report(results))


def _leave_out(results: dict[str, Any], why: str) -> None:
    results["left_out"].append(why)
    print(f"left out: {why}", flush=True)


def _judged(spec: str, asked: Asked, made: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The table of one dataset, after each new row and at the end; `made` is what an earlier run left of it."""
    recipe = preset("video")
    packed = pack([spec], recipe.laq.image_size)
    key = {**_settings(asked), "fingerprint": packed.fingerprint}
    same = made is not None and made["key"] == key
    if made is not None and same and made["complete"]:
        yield made
        return
    judge = Judge.of(packed, recipe.window)
    rows: dict[str, Any] = made["rows"] if made is not None and same else {}

    def so_far(complete: bool) -> dict[str, Any]:
        return {"key": key, "complete": complete, "what": judge.what, "pairs": len(judge.rows),
                "held_out": int(judge.test.sum()), "rows": rows, "flow_ranks_as_motion": ranks_alike(rows)}  # fmt: skip

    for name, make in _rows(judge, asked):
        if name not in rows and asked.takes(name):
            rows[name] = over(make())
            print(f"{spec}: {name}: {_words(rows[name])}", flush=True)
            yield so_far(False)
    yield so_far(not asked.only)


def _settings(asked: Asked) -> dict[str, Any]:
    """What the figures of a table depend on beside its dataset, as JSON gives it back."""
    whole = {
        **asdict(replace(asked, datasets=(), only=())),
        "preset": asdict(preset("video").laq),
        "protocol": PROTOCOL,
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in whole.items()}


def _rows(judge: Judge, asked: Asked) -> Iterator[tuple[str, Callable[[], list[dict[str, float]]]]]:
    """Each row's name, and what makes its figures, one for each seed."""
    first, difference = small_pictures(judge.packed, judge.pairs, judge.rows)
    clusters = min(CLUSTERS, max(2, int((~judge.test).sum()) // 4))
    judges = [replace(judge, seed=seed) for seed in range(asked.seeds)]

    def told(features: Array) -> list[dict[str, float]]:
        return [one.figures(features) for one in judges]

    def grouped(features: Array) -> list[dict[str, float]]:
        return [one.figures(clustered(features, ~one.test, clusters)) for one in judges]

    def levelled(features: Array) -> list[dict[str, float]]:
        return [one.figures(_levels(features, ~one.test)) for one in judges]

    def directed(config: LAQConfig) -> list[dict[str, float]]:
        return [one.figures(_fitted(one, config, 0)[1]) for one in judges]

    def coded(config: LAQConfig, few: int) -> list[dict[str, float]]:
        return [one.of_codes(_fitted(one, config, few)[0], config.codebook_size) for one in judges]

    yield FIRST, partial(told, first)
    yield DIFFERENCE, partial(told, difference)
    yield f"k-means of {clusters} on it", partial(grouped, difference)
    for name in asked.encoders:
        config = _config(name)
        change = _change(judge, config.build())
        yield FEATURES.format(name), partial(told, change)
        yield f"{name}: k-means of {clusters} on it", partial(grouped, change)
        yield f"{name}: {LEVELLED} components of {LEVELS} levels", partial(levelled, change)
        yield f"{name}: {config.quant_dim} directions that persist", partial(directed, config)
        for few in (0, *LABELLED):
            if few and not ("motion" in judge.targets and few < len(np.unique(judge.episode[~judge.test]))):
                continue
            label = CODES.format(name) + (f", {few} labelled episodes" if few else "")
            yield label, partial(coded, config, few)
    for path in asked.laqs:
        yield f"LAQ {path}", partial(_finished, judge, path)


def _finished(judge: Judge, path: str) -> list[dict[str, float]]:
    """Of a LAQ that has been trained already, with one split of its own: judged by the first seed's alone."""
    laq = LAQ.from_pretrained(path)
    codes = encode_all(laq, judge.packed, judge.pairs, judge.rows)
    return [judge.of_codes(codes, laq.config.codebook_size)]


def _change(judge: Judge, laq: LAQ) -> Array:
    """The difference of the frozen encoder's features over each pair, float32 [R, F]."""
    seen = features_of(laq, judge.packed)
    made: Array = seen[judge.pairs.later[judge.rows]].astype(np.float32) - seen[judge.pairs.now[judge.rows]]
    return made


def _config(encoder: str) -> LAQConfig:
    """The preset's codes with this encoder; the decoder, which is not trained here, as small as can be."""
    return replace(preset("video").laq, encoder=encoder, encoder_options={}, unet_width=4)


def _fitted(judge: Judge, config: LAQConfig, few: int) -> tuple[Array, Array]:
    """Codes int64 [R, s] and the differences in the directions, float32 [R, dim], fitted to training episodes, `few` of
    them with their actions."""
    laq, taught, packed, seed = config.build(), None, judge.packed, judge.seed
    if few:
        some = np.random.default_rng(seed).choice(np.unique(judge.pairs.episode[judge.fitting]), few, replace=False)
        taught = taught_by(packed.subset(np.sort(some)), config, preset("video").window)
    fit_codes(laq, packed, judge.pairs, judge.fitting, seed, taught)
    assert laq.directions is not None
    return encode_all(laq, packed, judge.pairs, judge.rows), _change(judge, laq) @ laq.directions.axes.numpy()


def _levels(change: Array, fit: Array) -> Array:
    """The first principal components, each cut into levels of equal share: one-hot float32 [R, components * levels]."""
    centred = change - change[fit].mean(0)
    _, _, axes = np.linalg.svd(centred[fit], full_matrices=False)
    places = centred @ axes[:LEVELLED].T
    edges = np.quantile(places[fit], np.arange(1, LEVELS) / LEVELS, axis=0)
    return one_hot(np.stack([np.searchsorted(*pair) for pair in zip(edges.T, places.T, strict=True)], 1), LEVELS)


def over(figures: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Of several seeds: mean, lowest and highest of each figure."""
    return {
        name: {"mean": fmean(values), "low": min(values), "high": max(values), "seeds": len(values)}
        for name in figures[0]
        for values in [[one[name] for one in figures]]
    }


def ranks_alike(rows: Mapping[str, Any]) -> float | None:
    """Spearman's rank correlation, over the rows, of what they tell of the flow and of the motion. None without one of
    them."""
    both = [(row["flow"]["mean"], row["motion"]["mean"]) for row in rows.values() if {"flow", "motion"} <= set(row)]
    return float(spearmanr(*zip(*both, strict=True)).statistic) if len(both) > 2 else None


def report(results: Mapping[str, Any]) -> str:
    """table.md: one table of all datasets, what was left out, and a table of each."""
    tables = results["tables"]
    parts = [summary(tables)] if len(tables) > 1 else []
    if results["left_out"]:
        parts.append("\n".join(["Left out:", "", *(f"* {why}" for why in results["left_out"])]))
    return "\n\n".join([*parts, *(table(spec, one) for spec, one in tables.items())]) + "\n"


def summary(tables: Mapping[str, Any]) -> str:
    """One row a dataset: what its rows tell of the motion, by variance and as the mean of its dimensions; without
    motion, of the flow. Of the codes also what they tell of the position, and their perplexity as a share of |C|."""
    shown = [name for name in BESIDE if any(name in one["rows"] for one in tables.values())]
    lines = []
    for spec, one in tables.items():
        rows = one["rows"]
        named = [CODES.format(encoder) for encoder in ENCODERS[::-1]]
        codes: Mapping[str, Any] = next((rows[name] for name in named if name in rows), {})
        share = codes["perplexity"]["mean"] / preset("video").laq.codebook_size if codes else None
        lines.append([spec, *(_motion_cell(rows.get(name)) for name in shown), _motion_cell(codes),
                      _cell(codes.get("position")), "" if share is None else f"{share:.2f}"])  # fmt: skip
    heads = ["R^2 by variance / mean of dimensions", *shown, "codes of the preset video", "their position",
             "perplexity, of the codes"]  # fmt: skip
    return markdown(heads, lines)


def _motion_cell(row: Mapping[str, Any] | None) -> str:
    if not row:
        return ""
    if "motion" not in row:
        return f"flow {_cell(row.get('flow'))}"
    return f"{_cell(row['motion'])} / {row['motion, mean']['mean']:.2f}"


def table(spec: str, made: Mapping[str, Any]) -> str:
    """One dataset as Markdown."""
    there = [column for column in COLUMNS if any(column in row for row in made["rows"].values())]
    lines = [[name, *(_cell(row.get(column)) for column in there)] for name, row in made["rows"].items()]
    ranks = made["flow_ranks_as_motion"]
    said = (
        f"`{spec}`: {made['what']}; {made['pairs']:,} pairs, {made['held_out']:,} of them held out, with each seed "
        "those of other episodes."
    )
    if ranks is not None:
        said += f" Flow ranks the rows as the motion does with a correlation of {ranks:.2f}."
    return f"{said}\n\n{markdown(['R^2 on held-out episodes', *there], lines)}"


def _cell(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return ""
    digits = 1 if figure["mean"] > 1 else 2
    spread = f" ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})" if figure["seeds"] > 1 else ""
    return f"{figure['mean']:.{digits}f}{spread}"


def _words(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_cell(figure)}" for name, figure in row.items())
