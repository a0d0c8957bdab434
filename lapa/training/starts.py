"""Several starts of one run: each is trained for a part of the steps, and the best one continues.

One round of successive halving (Jamieson and Talwalkar, 2016). It is for runs that may stand on a plateau for long,
which shows early. The result is, bit for bit, that of the chosen start alone (on a CPU, on one machine).

    OUT/starts/0, 1, ..    each start's own checkpoints, figures and pictures, until the run has ended
    OUT                    the chosen one's, copied, and then the rest of the run
    OUT/starts.json        which one was chosen, for a run that goes on when the others are gone
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from lapa.artefacts.folder import read_json
from lapa.contracts import LapaError
from lapa.runtime.distributed import on_first_rank
from lapa.training.resume import STATE, Checkpoints

FOLDER, CHOSEN = "starts", "starts.json"


def furthest(
    out: Path, count: int, seed: int, figure: str, begin: Callable[[int, Path], None]
) -> tuple[int, list[float]]:
    """Which of `count` starts goes on, and the watched `figure` of each: the lowest wins, the first of equals.

    begin(number, folder) trains a start into its folder, up to a checkpoint whose step was watched, or goes on with
    what is there. Afterwards `out` has the chosen one's checkpoint for `fit` to go on from. Every rank calls it; a run
    that was killed anywhere calls it again. Raises LapaError where a start has no such figure.
    """
    folders = [out / FOLDER / str(number) for number in range(count)]
    chosen = out / "checkpoints"
    if not on_first_rank(chosen.exists):
        for number, folder in enumerate(folders):
            begin(number, folder)

    def choose() -> tuple[int, list[float]]:
        scores = [_figure(folder, seed, figure) for folder in folders]
        best = min(range(count), key=scores.__getitem__)
        if not chosen.exists():
            _copy(folders[best], out, chosen)
        return best, scores

    return on_first_rank(choose)


def forget(out: Path) -> None:
    """Remove the starts of a run that has ended."""
    if (out / FOLDER).exists():
        shutil.rmtree(out / FOLDER)


def _figure(folder: Path, seed: int, figure: str) -> float:
    checkpoints = Checkpoints(folder, seed, 1)
    steps = checkpoints.steps()
    watched = read_json(checkpoints.path(steps[-1]) / STATE, "whole checkpoint")["watched"] if steps else {}
    if figure not in watched:
        raise LapaError(f"{folder} has no watched checkpoint to compare. Remove {folder.parents[1]} and start again.")
    return float(watched[figure])


def _copy(start: Path, out: Path, chosen: Path) -> None:
    """All but how far the start was; checkpoints last and at once: where they are, the choice has been made."""
    hidden = out / ".checkpoints.tmp"
    if hidden.exists():  # of a run that was killed here
        shutil.rmtree(hidden)
    for each in start.iterdir():
        if each.name == chosen.name:
            shutil.copytree(each, hidden, symlinks=True)
        elif each.is_dir():
            shutil.copytree(each, out / each.name, dirs_exist_ok=True)
        elif each.name != "progress":
            shutil.copy2(each, out / each.name)
    os.replace(hidden, chosen)
