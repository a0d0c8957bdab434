"""The output folder of a training run. `run.json` says how it was started, so that --resume cannot mix two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lapa.contracts import LapaError
from lapa.recipe import Recipe
from lapa.training.checkpoint import finished, load_artefact, read_json, write_json
from lapa.training.distributed import on_first_rank


def begin(out: Path, recipe: Recipe, seed: int, resume: bool, kind: str, **inputs: Any) -> bool:
    """Open the output folder of a training run; True when there is nothing left to do.

    Raises LapaError when `out` is in use without --resume, or was started with other settings.
    """
    return on_first_rank(lambda: _begin(out, recipe, seed, resume, kind, inputs))


def _begin(out: Path, recipe: Recipe, seed: int, resume: bool, kind: str, inputs: dict[str, Any]) -> bool:
    if seed < 0:
        raise LapaError(f"--seed is a whole number from 0 on, got {seed}.")
    inputs = {name: list(value) if isinstance(value, tuple) else str(value) for name, value in inputs.items()}
    started, wanted = out / "run.json", {"kind": kind, "seed": seed, "recipe": recipe.to_json(), **inputs}
    if out.exists() and any(file != started for file in out.iterdir()):  # a start that came to nothing is no use
        if not resume:
            raise LapaError(f"{out} is not empty. Add --resume to go on with it, or choose another --out.")
        if started.exists():
            before = read_json(started, "settings of the run")
            if before != wanted:
                raise LapaError(
                    f"{out} was started with other settings ({_difference(before, wanted)}). "
                    "Use those, or choose another --out."
                )
        if finished(out):
            load_artefact(out, kind)
            print(f"{out} is finished already.")
            return True
    write_json(started, wanted)
    return False


def _difference(before: dict[str, Any], now: dict[str, Any], path: str = "") -> str:
    """The first setting that differs, as "laq.dim 64 -> 96"."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if found := _difference(old, new, f"{path}{key}."):
                return found
        elif old != new:
            return f"{path}{key} {old} -> {new}"
    return ""
