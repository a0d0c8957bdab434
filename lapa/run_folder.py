"""The output folder of a training run. `run.json` says how it was started, so that --resume cannot mix two runs.

A run may be ended early and kept (`end_early`, `lapa stop`), and made longer: --resume with more steps than before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lapa.artefacts.folder import FINISH, REHEARSAL, describe, finished, read_config, read_json, write_json
from lapa.artefacts.older import upgraded
from lapa.artefacts.settings import object_at
from lapa.contracts import LapaError
from lapa.data.spec import parse
from lapa.recipe import PRESETS, Recipe, nearest_preset
from lapa.runtime.alone import hold
from lapa.runtime.distributed import on_first_rank
from lapa.training.loop import Optimisation
from lapa.training.resume import Checkpoints

PLACES = ("labels", "policy", "idm")  # inputs that are folders
DATA = ("dataset", "labelled", "videos")  # inputs that are datasets
CONTENT = "content"  # in run.json: fingerprints of what the run learns from, known when that has been read


def begin(
    out: Path,
    recipe: Recipe,
    seed: int,
    resume: bool,
    kind: str,
    stage: str | None = None,
    *,
    content: Sequence[str] = (),
    **inputs: Any,
) -> bool:
    """Open the output folder of a training run; True when there is nothing left to do.

    `stage` is the setting of the recipe that says how the run is optimised, such as "quantize": with it, --resume may
    give more steps than before. `content` are fingerprints of what it learns from. The folder is held until the command
    ends. Raises LapaError when `out` is in use without --resume or by another process, or was started with other
    settings or on other data.
    """

    def start() -> bool:
        wanted = _wanted(recipe, seed, kind, inputs)
        hold(out)
        if _done(out, wanted, resume, stage):
            return True
        if (out / "run.json").exists():
            before = _started(out)
            begun = any(file.name != "run.json" for file in out.iterdir())
            known = before.get(CONTENT, [])
            both = min(len(known), len(content))  # an older lapa has noted fewer
            if begun and list(known[:both]) != list(content[:both]):
                told = [*wanted.get("dataset", []), *(wanted[name] for name in PLACES if name in wanted)]
                raise LapaError(
                    f"{out} was started on other data: {', '.join(told)} has changed since, or what was made of it. "
                    "Put it back, or choose another --out."
                )
            if stage and _steps(before, stage) < _steps(wanted, stage):
                _lengthen(out, before, recipe, stage)
                before = _with_steps(before, wanted, stage)
            if added := _difference(before, _completed(before, wanted)):
                print(f"Note: {out} was started by a lapa without this setting; it goes on with its default ({added}).")
        write_json(out / "run.json", wanted | ({CONTENT: list(content)} if content else {}))
        return False

    return on_first_rank(start)


def done_before(
    out: Path, recipe: Recipe, seed: int, resume: bool, kind: str, stage: str | None = None, **inputs: Any
) -> bool:
    """What `begin` would answer or raise, without a trace in `out`: to be asked before the data are read, which takes
    time and may fail."""
    return on_first_rank(lambda: _done(out, _wanted(recipe, seed, kind, inputs), resume, stage))


def end_early(out: Path) -> bool:
    """Ask the run in `out` to end after the step at hand and to be kept; False when it has ended already.

    Raises LapaError when there is no run, and where there is no policy yet that could be kept.
    """
    if not (out / "run.json").exists():
        raise LapaError(f"{out} is not the folder of a run that trains: run.json is missing.")
    if (out / REHEARSAL).is_dir() and not Checkpoints(out, 0, 1).steps():
        raise LapaError(
            f"{out} still measures its held-out error, and there is no policy yet that could be kept. Wait until it "
            "trains that, or end it with Ctrl-C: its command with --resume goes on."
        )
    if finished(out) and _planned(read_config(out)) == _planned(_started(out)):
        return False
    (out / FINISH).touch()
    return True


def _started(out: Path) -> dict[str, Any]:
    """How the run in `out` was started, in today's words: lapa 0.1 may have started it. Raises LapaError for what no
    lapa has written."""
    where = str(out / "run.json")
    before: dict[str, Any] = object_at(upgraded(read_json(out / "run.json", "settings of the run")), where)
    object_at(before.get("recipe", {}), f"{where}: recipe")
    for key in DATA:
        data = before.get(key, [])
        if not isinstance(data, str | list) or not all(isinstance(spec, str) for spec in data):
            raise LapaError(f"{where}: {key} is {json.dumps(data)}, no dataset. Remove {out} or choose another --out.")
    return before


def _wanted(recipe: Recipe, seed: int, kind: str, inputs: dict[str, Any]) -> dict[str, Any]:
    if seed < 0:
        raise LapaError(f"--seed is a whole number from 0 on, got {seed}.")
    told = {name: list(value) if isinstance(value, tuple) else str(value) for name, value in inputs.items()}
    return {"kind": kind, "seed": seed, "recipe": recipe.to_json(), **told}


def _done(out: Path, wanted: dict[str, Any], resume: bool, stage: str | None = None) -> bool:
    started = out / "run.json"
    if not out.exists() or all(file == started for file in out.iterdir()):  # a start that came to nothing is no use
        return False
    if not resume:
        raise LapaError(f"{out} is not empty. Add --resume to go on with it, or choose another --out.")
    if started.exists():
        before = _completed(_started(out), wanted)
        if stage and _steps(before, stage) > _steps(wanted, stage):
            raise LapaError(
                f"{out} was started with {_steps(before, stage):,} steps, and a run cannot be made shorter than it was "
                f"planned (--steps {_steps(wanted, stage)}). `lapa stop {out}` ends it early, or choose another --out."
            )
        if found := _difference(_places(_with_steps(before, wanted, stage)), _places(wanted)):
            raise LapaError(f"{out} was started with other settings ({found}). Use those, or choose another --out.")
    if not finished(out):
        others = {file.name for file in out.iterdir() if file.name[0] != "."} - {FINISH}
        if others and not started.exists():
            raise LapaError(f"{out} holds no run to go on with: there is {min(others)} and no run.json. Choose another "
                            "--out.")  # fmt: skip
        return False
    made = describe(out, wanted["kind"]).config
    if stage and _steps(made, stage) < _steps(wanted, stage):
        return False  # made before the run was lengthened, and in use until the longer one is there
    early = made.get("ended_early")
    if early and not (out / FINISH).exists():
        return False
    print(f"{out} is finished already." if not early else
          f"{out} was ended early, after step {early['step']:,} of {early['steps']:,}, and is kept as it is. To train "
          f"it to the end, remove {out / FINISH} and run the same command again.")  # fmt: skip
    return True


def _steps(settings: dict[str, Any], stage: str) -> int:
    """Steps of the stage in run.json or config.json; 0 where it is not told."""
    how = settings.get("recipe", {}).get(stage)
    steps = how.get("steps") if isinstance(how, dict) else None
    return steps if isinstance(steps, int) else 0


def _planned(settings: dict[str, Any]) -> dict[str, int]:
    """Steps of every stage."""
    recipe = settings.get("recipe", {})
    return {stage: how["steps"] for stage, how in recipe.items() if isinstance(how, dict) and "steps" in how}


def _with_steps(before: dict[str, Any], wanted: dict[str, Any], stage: str | None) -> dict[str, Any]:
    """`before`, with the steps of the stage as they are wanted now."""
    if not stage or not _steps(before, stage):
        return before
    made = deepcopy(before)
    made["recipe"][stage]["steps"] = _steps(wanted, stage)
    return made


def _lengthen(out: Path, before: dict[str, Any], recipe: Recipe, stage: str) -> None:
    """Say what more steps mean for a run, and let it go on where it had ended."""
    how: Optimisation = getattr(recipe, stage)
    planned, there = _steps(before, stage), Checkpoints(out, 0, 1).steps()
    at = there[-1] if there else 0
    print(f"{out} goes on from step {at:,} to {how.steps:,} (planned before: {planned:,}).")
    old, new = replace(how, steps=planned).rate(min(at, planned)), how.rate(at)
    if at and how.schedule != "constant":
        print(f"Note: the learning rate, {how.schedule} over the steps, is planned anew over {how.steps:,}: at step "
              f"{at:,} it goes from {old:.2g} to {new:.2g}. What comes of it is not what {how.steps:,} steps from the "
              "start would have given.")  # fmt: skip
    (out / FINISH).unlink(missing_ok=True)


def _completed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run with those that lapa did not have yet when it started, where we have them as the preset
    does: who did not choose them cannot be asked to choose them otherwise."""
    usual = PRESETS[nearest_preset(now["recipe"])].to_json()
    return {**before, "recipe": _filled(before.get("recipe", {}), now["recipe"], usual)}


def _filled(before: dict[str, Any], now: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    made = dict(before)
    for key, value in now.items():
        if key not in before and value == usual[key]:
            made[key] = value
        # The options of a plug-in are no settings of lapa: one that is not there was not given.
        elif isinstance(value, dict) and isinstance(before.get(key), dict) and not key.endswith("_options"):
            made[key] = _filled(before[key], value, usual[key])
    return made


def _places(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with datasets and folders written in one way: "clips", "clips/" and the whole path are one place."""
    made = {key: _here(value) if key in PLACES else value for key, value in settings.items() if key != CONTENT}
    for key in DATA:
        data = settings.get(key, [])
        made[key] = [_one_way(text) for text in ([data] if isinstance(data, str) else data)]
    return made


def _one_way(text: str) -> str:
    try:
        spec = parse(text)
    except LapaError:  # of a run that was started with a plug-in which is not there now
        return text
    options = {**spec.options, **asdict(spec.choice), "weight": spec.weight}
    options = {name: value for name, value in options.items() if value is not None}
    return ",".join([f"{spec.name}:{_here(spec.path)}", *(f"{name}={options[name]}" for name in sorted(options))])


def _here(path: str) -> str:
    place = Path(path).expanduser()
    return str(place.resolve() if place.exists() else place)


def _difference(before: dict[str, Any], now: dict[str, Any], path: str = "") -> str:
    """The first setting that differs, as "laq.dim 64 -> 96"; nothing where none does."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if found := _difference(old, new, f"{path}{key}."):
                return found
        elif old != new:
            return f"{path}{key} {old} -> {new}"
    return ""
