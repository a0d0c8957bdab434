"""`lapa inspect`: look at a dataset, at runs (while they train or afterwards), and at the codes of a dataset.

    a dataset         contact_sheet.png and its figures
    runs              curves.png, the step they have reached, their results
    both              also gallery.png, map.png, reconstructions.png and the probe table of each LAQ on that dataset;
                      with a policy of stage 2 that predicts a LAQ's codes also plans.png: the way that it predicts

All figures also go to inspect.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lapa.analysis.plans import TITLES, plans
from lapa.analysis.reading import note_if_trained_on, open_laq, open_policy, read, short
from lapa.artefacts.folder import finished, read_config, read_json, write_json
from lapa.contracts import Array, LapaError
from lapa.data.labelled import MANIFEST, TABLE, read_manifest
from lapa.data.notes import kind_of
from lapa.data.pack import Packed, pack
from lapa.data.pairs import PairIndex, tell_of_window, window_pairs
from lapa.data.video import SUFFIXES
from lapa.measures.motion import lines
from lapa.measures.probes import MEANING, effector_columns
from lapa.methods import policy_of
from lapa.models.laq import LAQ
from lapa.models.laq_fit import encode_all
from lapa.models.laq_look import CodeTable, Look, code_table, judge, look_at
from lapa.plots.code_map import code_map
from lapa.plots.codes import contact_sheet, describe, gallery, reconstructions
from lapa.plots.curves import Curves, curves
from lapa.policies import config_class
from lapa.training.held_out import is_held_out
from lapa.training.logbook import FILE, read_metrics

SHOWN = 6  # pairs and scenes in a picture
PLANNED = 5000  # pairs on which the probe of plans is fitted, and plans are drawn
PROBES = ("action", "state", "displacement", "position", "dataset")
VIDEOS = tuple(f"{below}*{suffix}" for suffix in SUFFIXES for below in ("", "*/"))
STAGES = {"laq": "quantize", "idm": "fit_idm", "points": "fit_points"}


@dataclass(frozen=True)
class Run:
    """The folder of a training run or of an artefact: `about` is its config.json, or run.json until it is finished."""

    path: Path
    kind: str
    finished: bool
    about: dict[str, Any]
    metrics: Curves

    @property
    def step(self) -> int:
        """Optimizer steps that are logged."""
        return max((steps[-1] for steps, _ in self.metrics.values()), default=0)

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the whole run; None where nothing says so."""
        started = self.path / "run.json"
        about = read_json(started, "settings of the run") if started.exists() else {}
        stage = STAGES[self.kind] if self.kind in STAGES else _setting_of_policy(about)
        found = about.get("recipe", {}).get(stage, {}).get("steps")
        return int(found) if found else None

    def newest(self) -> dict[str, float]:
        """The last value of everything that is logged."""
        return {name: values[-1] for name, (_, values) in self.metrics.items()}


def _setting_of_policy(about: dict[str, Any]) -> str:
    """The name of the setting in the recipe that says how the policy of a run.json is optimised."""
    manifest = Path(about.get("labels", "")) / MANIFEST
    method = (
        read_manifest(manifest.parent)["method"] if manifest.is_file() else "unipi" if "idm" in about else "scratch"
    )
    its = config_class(about.get("recipe", {}).get("policy", {}).get("name") or policy_of(method))
    return its.pretrained_by if "labels" in about else its.finetuned_by


def read_run(path: Path) -> Run:
    """The run in the folder `path`. Raises LapaError where there is no folder, or no training run or artefact in it."""
    if not path.is_dir():
        raise LapaError(f"There is no folder {path}.")
    name = "config.json" if finished(path) else "run.json"
    if not (path / name).exists():
        inside = sorted(str(p.parent) for p in path.glob("*/run.json"))
        hint = f" There are runs in it: {', '.join(inside[:4])}." if inside else _dataset_hint(path)
        if (path / MANIFEST).exists() and (path / TABLE).exists():
            made = read_manifest(path)
            raise LapaError(
                f"{path} is not a run but labels: {made['pairs']:,} frames of {made['dataset']} ({made['kind']}, by "
                f"{made['source']}). They are for lapa pretrain --labels; what the codes do: lapa inspect on the LAQ."
            )
        raise LapaError(f"{path} is not a run: it has no run.json, no config.json.{hint}")
    about = read_config(path) if finished(path) else read_json(path / name, "settings of the run")
    if not isinstance(about, dict) or not isinstance(about.get("kind"), str):
        raise LapaError(f"{path} is not a run of lapa: {name} says of no kind what it is.")
    return Run(path, about["kind"], name == "config.json", about, read_metrics(path))


def _dataset_hint(path: Path) -> str:
    """' Did you mean video_folder:clips?' where the folder looks like a dataset, else an example."""
    found = "video_folder" if any(any(path.glob(one)) for one in VIDEOS) else ""
    if (other := kind_of(path)) not in ("", "frame_folder") or not found:
        found = other
    return (
        f" Did you mean {found}:{path}?" if found else " A dataset is given as NAME:PATH, such as video_folder:clips."
    )


def inspect_dataset(specs: Sequence[str], out: Path, image_size: int) -> dict[str, Any]:
    """Print a dataset's figures, write its contact sheet and inspect.json to `out`; returns what the JSON holds.

    `specs` are NAME:PATH. If there are several, the figures of each are printed too: their actions may differ in kind.
    Episodes that cannot be read are listed. Raises LapaError when no episode can be read.
    """
    parts = [describe(pack([spec], image_size, skip_bad=True)) for spec in specs] if len(specs) > 1 else []
    for about in parts:
        _print_dataset(about)
    return _write(out, {"dataset": _dataset(pack(specs, image_size, skip_bad=True), out), "parts": parts})


def inspect_runs(
    paths: Sequence[Path],
    specs: Sequence[str],
    out: Path,
    *,
    window: float | None = None,
    skip_bad: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Print the progress and results of the runs and draw their curves; with a dataset also look at their LAQs on it.

    `window` in seconds (None: the one that a LAQ was trained with). Returns what inspect.json holds. Raises LapaError
    when a path is not a run, a dataset comes without a finished LAQ, or no episode is as long as the window.
    """
    runs = dict(zip(_names(paths), map(read_run, paths), strict=True))
    laqs = {name: run for name, run in runs.items() if run.kind == "laq" and run.finished}
    if specs and not laqs:
        raise LapaError(
            f"--dataset shows what a finished LAQ makes of it; {_kinds(runs)}. Leave it out for the curves."
        )
    made: dict[str, Any] = {"runs": {name: _state(run) for name, run in runs.items()}}
    for name, run in runs.items():
        _print_state(run, made["runs"][name])
    if any(run.metrics for run in runs.values()):
        logged = {name: run.metrics for name, run in runs.items() if run.metrics}
        sizes = {run.about.get("recipe", {}).get("laq", {}).get("codebook_size") for run in runs.values()}
        title = f"Curves of {', '.join(logged) if len(logged) < 4 else f'{len(logged)} runs'}"
        curves(logged, out / "curves.png", title, sizes.pop() if len(sizes) == 1 else None)
    elif not specs:
        print(
            f"No curves: there is no {FILE} with a line in it"
            + ("." if all(r.finished for r in runs.values()) else " yet.")
        )
    for name, run in laqs.items() if specs else ():
        laq = LAQ.from_pretrained(run.path)
        packed = pack(specs, laq.config.image_size, skip_bad=skip_bad)
        if "dataset" not in made:
            made["dataset"] = _dataset(packed, out)
        of = f"_{name.replace('/', '_')}" if len(laqs) > 1 else ""
        made["runs"][name]["on_dataset"] = _look(run, laq, packed, specs, out, of, window, seed)
    if specs:
        made["plans"] = _plans(runs, laqs, specs, out, skip_bad)
    return _write(out, made)


def _look(
    run: Run, laq: LAQ, packed: Packed, specs: Sequence[str], out: Path, of: str, window: float | None, seed: int
) -> dict[str, Any]:
    """Figures of one LAQ on a dataset, and its three pictures."""
    recipe = run.about.get("recipe", {})
    seconds = recipe.get("window") if window is None else window
    if seconds is None:
        raise LapaError(f"{run.path}/config.json does not say which window it was trained with; give --window SECONDS.")
    pairs = window_pairs(packed, seconds, recipe.get("end", "drop"))
    tell_of_window(packed, seconds, recipe.get("end", "drop"))
    look = judged_by(run, packed, pairs, seed)
    for spec in () if look.held_out and len(specs) == 1 else specs:
        note_if_trained_on(spec, " ".join(run.about.get("provenance", {}).get("data", {})))
    rng, rows = np.random.default_rng(seed), look.rows
    results = {"window_seconds": seconds, "pairs": len(rows), **judge(laq, look)}
    results["codes_in_use"] = [len(np.unique(column)) for column in encode_all(laq, packed, pairs, rows).T]
    table = code_table(laq, packed, pairs, rows)
    _gallery(laq, packed, pairs, rng, specs, out / f"gallery{of}.png", run.path, table)
    domains, title = [short(spec) for spec in specs], f"Where the codes lie: {run.path}"
    results["dimensions"] = code_map(laq, table.codes, out / f"map{of}.png", title, table.motion, table.first, domains)
    _print_laq(run.path, packed, results, laq.config.codebook_size)
    some = pairs.batch(packed, _moving(packed, pairs, rows))
    reconstructions(laq, some.now, some.later, out / f"reconstructions{of}.png", f"Reconstructions: {run.path}")
    return results


def judged_by(run: Run, packed: Packed, pairs: PairIndex, seed: int) -> Look:
    """The pairs that judge the LAQ. If it was trained on this dataset with this window, they are those that stage 1
    held out, and the figures are those of its log. Else every fifth episode; the probes learn from the others."""
    about, recipe = run.about.get("provenance", {}), run.about.get("recipe", {})
    trained_on = packed.fingerprint in about.get("data", {}).values() and pairs.seconds == recipe.get("window")
    held_out = np.zeros(len(pairs), bool)
    if trained_on and "hold_out" in recipe:
        held_out, seed = is_held_out(pairs.episode, recipe["hold_out"]), about.get("seed", seed)
    return look_at(packed, pairs, held_out, seed, trained_on=trained_on)


def _gallery(
    laq: LAQ,
    packed: Packed,
    pairs: PairIndex,
    rng: Any,
    specs: Sequence[str],
    path: Path,
    of: Path,
    table: CodeTable,
) -> None:
    """Each code on scenes of the dataset. With several datasets: on the first frames of episodes, the same numbers in
    each. If Tabletop's domains have the same seed, these show the same scenes."""
    title = f"What each code does to the same scenes: {of}"
    if len(specs) == 1:
        scenes, domains = packed.gather(_one_an_episode(pairs, rng)), [""]
    else:
        common = int(np.bincount(packed.source).min())
        chosen = np.unique(np.linspace(0, common - 1, min(SHOWN // 2, common)).round().astype(int))
        episodes = np.concatenate([np.flatnonzero(packed.source == i)[chosen] for i in range(len(specs))])
        scenes, domains = packed.gather(packed.starts[episodes]), [short(spec) for spec in specs]
    gallery(laq, scenes, path, title, table.codes, table.motion, table.flow, domains)


def _plans(
    runs: Mapping[str, Run], laqs: Mapping[str, Run], specs: Sequence[str], out: Path, skip_bad: bool
) -> dict[str, Any]:
    """The ways that policies of stage 2 predict on the first dataset, {policy's name: figures}. A policy is left out if
    its LAQ is not among the runs, or if nothing tells what moves."""
    made: dict[str, Any] = {}
    sources = [open_laq(run.path) for run in laqs.values()]
    latent = {n: r for n, r in runs.items() if r.finished and (r.about.get("space") or {}).get("kind") == "codes"}
    for name, run in latent.items():
        parents = run.about.get("provenance", {}).get("parents", {}).values()
        for source in (s for s in sources if s.hash in parents):
            reading = read(source, specs[0], PLANNED, skip_bad=skip_bad, note=False)  # _look has printed the note
            of = f"_{name.replace('/', '_')}" if len(latent) > 1 else ""
            title = f"Where the policy means to go: {run.path}"
            try:
                made[name] = plans(source.laq, open_policy(run.path, source), reading, out / f"plans{of}.png", title)
            except LapaError as error:  # the rest can be shown
                print(f"No plans of {run.path}: {error}")
                continue
            _print_plans(run.path, made[name])
        if not any(s.hash in parents for s in sources):
            print(f"No plans of {run.path}: the LAQ that labelled its videos is not among the runs.")
    return made


def _print_plans(path: Path, figures: Mapping[str, Any]) -> None:
    rows = {
        TITLES[kind]: (f"{values['within_45']:.0%}", f"{values['miss']:.2f}")
        for kind, values in figures.items()
        if isinstance(values, dict)
    }
    title = f"{path}: {figures['plans']} plans of {figures['steps']} windows, of {figures['what']}"
    _print_table(title, rows, ("", "sets off within 45 degrees", "miss of the end / way gone"))


def _names(paths: Sequence[Path]) -> list[str]:
    """A different short name for each run: that of its folder, with folders above it where two would be the same."""
    whole = [path.resolve().parts for path in paths]
    if len(set(whole)) < len(whole):
        raise LapaError(f"A run is given twice: {', '.join(map(str, paths))}.")
    depth = next(d for d in range(1, 1 + max(map(len, whole))) if len({parts[-d:] for parts in whole}) == len(whole))
    return ["/".join(parts[-depth:]) for parts in whole]


def _kinds(runs: Mapping[str, Run]) -> str:
    return ", ".join(
        f"{run.path} is " + ("not finished" if run.kind == "laq" else f'a "{run.kind}"') for run in runs.values()
    )


def _state(run: Run) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "kind": run.kind,
        "finished": run.finished,
        "step": run.step,
        "steps": run.steps,
        "newest": run.newest(),
        "results": run.about.get("results"),
    }


def _print_state(run: Run, state: Mapping[str, Any]) -> None:
    of = f" of {state['steps']:,}" if state["steps"] else ""
    share = f" ({state['step'] / state['steps']:.0%})" if state["steps"] else ""
    data = run.about.get("dataset") or list(run.about.get("provenance", {}).get("data", {}))
    seed = run.about.get("seed", run.about.get("provenance", {}).get("seed"))
    rows = {
        "state": (
            "finished" if run.finished else f"step {state['step']:,}{of}{share}" if state["step"] else "started",
        ),
        "trained on": ("; ".join(data) or "-",),
        "seed": ("-" if seed is None else str(seed),),
    }
    figures = {k: v for k, v in (state["results"] or state["newest"]).items() if not isinstance(v, dict)}
    title = {"laq": "LAQ", "idm": "Inverse dynamics model", "policy": "Policy", "backbone": "Backbone"}
    rows |= {
        f"  {name}": (", ".join(f"{v:.3g}" for v in value) if isinstance(value, list) else _figure(value),)
        for name, value in figures.items()
    }
    _print_table(f"{title.get(run.kind, run.kind)} {run.path}", rows)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_laq(path: Path, packed: Packed, results: Mapping[str, Any], size: int) -> None:
    """The probe table, then one line for each position of the code."""
    probes: dict[str, tuple[str, ...]] = {}
    forms = [("linear", "{}_r2"), ("MLP", "{}_mlp_r2")]
    kinds = [(head, form) for head, form in forms if any(form.format(name) in results for name in PROBES)] or forms[:1]
    for name in PROBES:
        if any(form.format(name) in results for _, form in kinds):
            probes[name] = (*(f"{results[form.format(name)]:.3f}" for _, form in kinds), MEANING[f"{name}_r2"])
    if not {"action_r2", "state_r2"} & set(results):
        blank = [""] * len(kinds)
        lack = "the dataset has no actions" if packed.actions is None else "too few pairs or episodes"
        probes["action"] = (*blank, f"{lack}: cannot be told")
    if "displacement_r2" not in results:
        named = packed.state is not None and effector_columns(packed.state_names)
        lack = "too few pairs or episodes" if named else "nothing says where the effector is"
        probes["displacement, position"] = (*[""] * len(kinds), f"{lack}: cannot be told")
    error = f"{results['error_over_copy']:.3f}"
    probes["error / copy"] = (error, *[""] * (len(kinds) - 1), MEANING["error_over_copy"])
    title = f"{path} on {packed.spec}: {results['watched_on']}, {results['window_seconds']:g} s apart"
    _print_table(title, probes, ("R² of a probe", *(head for head, _ in kinds), ""))
    if "motion" in results:
        Console(highlight=False, emoji=False).print("\n".join(lines(results["motion"])), markup=False)
    used, effective = results["codes_in_use"], results["perplexity"]
    shown = {
        f"position {i}": (f"{used[i]} of {size}", f"{effective[i]:.1f}", _verdict(effective[i], size))
        for i in range(len(used))
    }
    _print_table("", shown, ("", "codes in use", "perplexity", ""))
    drawn = "map.png shows two of them" if results["dimensions"] > 2 else "see map.png"
    print(f"The codes lie in {results['dimensions']} dimensions: {drawn}.")


def _verdict(effective: float, size: int) -> str:
    if effective < 1.5:
        return "collapsed: all pairs get the same code"
    return "many codes idle" if effective < size / 2 else ""


def _dataset(packed: Packed, out: Path) -> dict[str, Any]:
    about = describe(packed)
    _print_dataset(about)
    contact_sheet(packed, out / "contact_sheet.png")
    return about


def _one_an_episode(pairs: PairIndex, rng: np.random.Generator) -> Array:
    """Frames int64 [<= SHOWN] from episodes spread over the dataset."""
    episodes = np.unique(pairs.episode)
    chosen = episodes[np.unique(np.linspace(0, len(episodes) - 1, min(SHOWN, len(episodes))).round().astype(int))]
    return np.array([pairs.now[rng.choice(np.flatnonzero(pairs.episode == e))] for e in chosen])


def _moving(packed: Packed, pairs: PairIndex, rows: Array) -> Array:
    """Divides `rows` into SHOWN equal parts and returns the pair of each part in which the picture changes most."""
    some = pairs.batch(packed, rows[:240])
    change = np.abs(some.later.astype(np.float32) - some.now).mean((1, 2, 3))
    parts = np.array_split(np.arange(len(change)), min(SHOWN, len(change)))
    return rows[[part[np.argmax(change[part])] for part in parts]]


def _print_dataset(about: dict[str, Any]) -> None:
    texts, seconds = about["instructions"], about["seconds"]
    rows = {
        "episodes": f"{about['episodes']:,}",
        "frames": f"{about['frames']:,}, shown at {about['image_size']} x {about['image_size']} pixels",
        "hours": f"{about['hours']:.2f}" + (f" ({about['hours'] * 60:.2g} minutes)" if about["hours"] < 1 else ""),
        "pictures": _commonest(about["sizes"]),
        "fps": _commonest(about["fps"]),
        "seconds an episode": "{shortest:.1f} to {longest:.1f}, median {median:.1f}".format(**seconds),
        "instructions": f"{texts['distinct']:,} distinct, {texts['missing']:,} missing",
        "longest instruction": texts["longest"] or "-",
        "actions": ("none" if about["datasets"] == 1 else "none in common")
        if about["actions"] is None
        else f"{len(about['actions'])} dimensions (robot units)",
        **{
            f"  {a['name']}": f"{a['min']:.3g} to {a['max']:.3g}, mean {a['mean']:.3g}, deviation {a['std']:.3g}"
            for a in about["actions"] or []
        },
        "cannot be read": str(len(about["bad"])) if about["bad"] else "none",
        **{f"  {i + 1}": reason for i, reason in enumerate(about["bad"])},
    }
    _print_table(f"Dataset {about['dataset']}", {name: (value,) for name, value in rows.items()})
    for line in about["told"]:  # what was chosen, and what was not
        print(f"  {line}")


def _commonest(counts: Mapping[str, int], shown: int = 4) -> str:
    """The most common sizes or rates with their number of episodes. Clips of a phone may all have different rates."""
    ordered = sorted(counts, key=lambda name: -counts[name])
    told = [f"{name} ({counts[name]:,} episode{'s' * (counts[name] > 1)})" for name in ordered[:shown]]
    rest = len(ordered) - shown
    return ", ".join([*told, f"{rest} others (inspect.json)"] if rest > 0 else told)


def _print_table(title: str, rows: Mapping[str, tuple[str, ...]], heads: Sequence[str] = ()) -> None:
    table = Table(
        title=escape(title), title_justify="left", title_style="bold", show_header=bool(heads), box=None, pad_edge=False
    )
    for head in heads:
        table.add_column(head, header_style="none")
    for name, cells in rows.items():
        table.add_row(name, *(escape(c) for c in cells))
    Console(highlight=False, emoji=False).print(table)


def _write(out: Path, content: dict[str, Any]) -> dict[str, Any]:
    write_json(out / "inspect.json", content)
    Console(highlight=False, emoji=False).print(f"Pictures and figures: {out}/", markup=False)
    return content
