"""The output folder of a training run. `run.json` says how it was started, so that --resume cannot mix two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lapa.artefacts.folder import describe, finished, read_json, write_json
from lapa.artefacts.older import upgraded
from lapa.contracts import LapaError
from lapa.data.spec import parse
from lapa.recipe import PRESETS, Recipe, nearest_preset
from lapa.runtime.distributed import on_first_rank

PLACES = ("labels", "policy", "idm")  # inputs that are folders


def begin(out: Path, recipe: Recipe, seed: int, resume: bool, kind: str, **inputs: Any) -> bool:
    """Open the output folder of a training run; True when there is nothing left to do.

    Raises LapaError when `out` is in use without --resume, or was started with other settings.
    """

    def start() -> bool:
        wanted = _wanted(recipe, seed, kind, inputs)
        if _done(out, wanted, resume):
            return True
        if (out / "run.json").exists():
            before = _started(out)
            if added := _difference(before, _completed(before, wanted)):
                print(f"Note: {out} was started by a lapa without this setting; it goes on with its default ({added}).")
        write_json(out / "run.json", wanted)
        return False

    return on_first_rank(start)


def done_before(out: Path, recipe: Recipe, seed: int, resume: bool, kind: str, **inputs: Any) -> bool:
    """What `begin` would answer or raise, without a trace in `out`: to be asked before the data are read, which takes
    time and may fail."""
    return on_first_rank(lambda: _done(out, _wanted(recipe, seed, kind, inputs), resume))


def _started(out: Path) -> dict[str, Any]:
    """How the run in `out` was started, in today's words: lapa 0.1 may have started it."""
    before: dict[str, Any] = upgraded(read_json(out / "run.json", "settings of the run"))
    return before


def _wanted(recipe: Recipe, seed: int, kind: str, inputs: dict[str, Any]) -> dict[str, Any]:
    if seed < 0:
        raise LapaError(f"--seed is a whole number from 0 on, got {seed}.")
    told = {name: list(value) if isinstance(value, tuple) else str(value) for name, value in inputs.items()}
    return {"kind": kind, "seed": seed, "recipe": recipe.to_json(), **told}


def _done(out: Path, wanted: dict[str, Any], resume: bool) -> bool:
    started = out / "run.json"
    if not out.exists() or all(file == started for file in out.iterdir()):  # a start that came to nothing is no use
        return False
    if not resume:
        raise LapaError(f"{out} is not empty. Add --resume to go on with it, or choose another --out.")
    if started.exists():
        before = _completed(_started(out), wanted)
        if found := _difference(_places(before), _places(wanted)):
            raise LapaError(f"{out} was started with other settings ({found}). Use those, or choose another --out.")
    if not finished(out):
        return False
    describe(out, wanted["kind"])
    print(f"{out} is finished already.")
    return True


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
    made = {key: _here(value) if key in PLACES else value for key, value in settings.items()}
    data = settings.get("dataset", [])
    return {**made, "dataset": [_one_way(text) for text in ([data] if isinstance(data, str) else data)]}


def _one_way(text: str) -> str:
    try:
        spec = parse(text)
    except LapaError:  # of a run that was started with a plug-in which is not there now
        return text
    options = {**spec.options, **({"weight": spec.weight} if spec.weight else {})}
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
