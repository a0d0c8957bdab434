"""The cells of the paper's table as values: a row in a setting with a budget of labels and a training seed (paper
section 4.1, Table 2).

A setting says which videos stages 1 and 2 watch and which labelled trajectories stage 3 gets. The evaluation is always
in `sim`, on seen and on unseen instructions and objects. The paper has a cross-environment column (here: videos in the
domain `real`, whose robot has another frame). There is one more column here, with videos of a `hand`.

A cell ends in one evaluation for each split. The name of a step says what goes into it. So a step that two cells share
has one name.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lapa.contracts import LapaError
from lapa.experiments.compare import QUICK
from lapa.methods import METHODS, Method
from lapa.plugins import choose

BUDGETS = (5, 10, 20, 50, 100)
SPLITS = ("seen", "unseen")
HOME = "sim"  # the domain of all labels and all tests
VIDEO_SEED, LABEL_SEED = 1, 2  # of the data, added to 10 times the training seed, as `lapa demo` does


@dataclass(frozen=True)
class Setting:
    """One pair of columns (seen, unseen) of the table.

    videos: the domain of the videos; family: the one task family of the labels ("" for all); budgets: how many labelled
    trajectories; main: the budget that the table shows.
    """

    name: str
    videos: str
    note: str
    family: str = ""
    budgets: tuple[int, ...] = BUDGETS
    main: int = 100

    def video_spec(self, episodes: int, seed: int) -> str:
        """The dataset that stages 1 and 2 watch for a training seed."""
        return f"tabletop:{self.videos},episodes={episodes},seed={10 * seed + VIDEO_SEED}"

    def label_spec(self, budget: int, seed: int) -> str:
        """The labelled trajectories of stage 3 for a training seed; a smaller budget is part of a larger one."""
        family = f",family={self.family}" if self.family else ""
        return f"tabletop:{HOME},episodes={budget},seed={10 * seed + LABEL_SEED}{family}"


SETTINGS = {
    each.name: each
    for each in (
        Setting("in-domain", "sim", "videos and labels of the robot, all families", main=20),
        Setting("cross-task", "sim", "labels of one family only", family="separate", budgets=(100,)),
        Setting("cross-env", "real", "videos of another environment and robot frame"),
        Setting("cross-embodiment", "hand", "videos of a hand"),
    )
}


@dataclass(frozen=True)
class TableRow:
    """A row of the table; method None: a scripted one."""

    name: str
    method: Method | None
    grounded: bool = True


ROWS = {
    row.name: row
    for row in (
        TableRow("no_op", None),
        TableRow("random", None),
        TableRow("scratch_ungrounded", METHODS["scratch"], grounded=False),
        TableRow("scratch", METHODS["scratch"]),
        TableRow("unipi", METHODS["unipi"]),
        TableRow("vpt", METHODS["vpt"]),
        TableRow("lapa", METHODS["lapa"]),
        TableRow("actionvla", METHODS["actionvla"]),
        TableRow("expert", None),
    )
}


@dataclass(frozen=True)
class Common:
    """What all cells of a table share. Two tables that differ in it must not be mixed.

    videos: episodes of video; episodes: of each test; validation: of each way to finetune that is tried; options: words
    of the training commands, such as --preset.
    """

    videos: int = 6000
    episodes: int = 500
    validation: int = 200
    options: tuple[str, ...] = ("--preset", "laptop")

    def __post_init__(self) -> None:
        if min(self.videos, self.episodes, self.validation) < 1:
            raise LapaError("A table needs at least one video, one test episode and one validation episode.")

    def quick(self) -> Common:
        """The same with a hundredth of the work."""
        return Common(min(self.videos, 60), min(self.episodes, 20), min(self.validation, 10), (*self.options, *QUICK))


@dataclass(frozen=True)
class Asked:
    """The part of the table that is wanted. budgets (): each setting's own. only: cells with one of these texts in
    their title, such as "lapa", "cross-env 20 " or "seed 0"."""

    settings: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: int = 3
    budgets: tuple[int, ...] = ()
    only: tuple[str, ...] = ()
    common: Common = Common()


@dataclass(frozen=True)
class TableCell:
    """See the module's docstring."""

    setting: Setting
    budget: int
    row: TableRow
    seed: int

    @property
    def title(self) -> str:
        """The title that is shown, and that --only looks at."""
        return f"{self.setting.name} {self.budget} {self.row.name} seed {self.seed}"

    def name(self, method: str, step: str, videos: bool, few: bool) -> str:
        """The name of a step and of its folder: the method, and the videos and labels that it uses."""
        parts = [self.setting.videos] * videos + [f"{self.setting.family}{self.budget}"] * few
        return "/".join(part for part in (f"seed{self.seed}", method, "+".join(parts), step) if part)

    def score(self, split: str) -> str:
        """Name of the evaluation on a split."""
        method = self.row.method
        return self.name(self.row.name, split, bool(method and method.source), method is not None)

    @property
    def tuned(self) -> str:
        """Name of the last step of training."""
        return self.score("tuned")


def parse(
    settings: Sequence[str],
    rows: Sequence[str],
    seeds: int,
    budgets: Sequence[str],
    only: Sequence[str],
    common: Common,
) -> Asked:
    """Names, or "all", -> Asked. Raises LapaError for what is unknown or empty."""
    named = tuple(SETTINGS) if "all" in settings else tuple(choose(s, SETTINGS, "setting") for s in settings)
    found = tuple(ROWS) if "all" in rows else tuple(choose(name, ROWS, "method") for name in rows)
    if seeds < 1:
        raise LapaError(f"A table needs at least one seed, got {seeds}.")
    for budget in budgets:
        if not budget.isdigit() or not int(budget):
            raise LapaError(f'A budget is a number of labelled trajectories, such as 20, not "{budget}".')
    asked = Asked(named, tuple(n for n in ROWS if n in found), seeds, tuple(map(int, budgets)), tuple(only), common)
    for text in only:
        if not any(text in cell.title for cell in cells(replace(asked, only=()))):
            raise LapaError(f'No cell has "{text}" in its title, such as "in-domain 20 lapa seed 0".')
    return asked


def cells(asked: Asked) -> list[TableCell]:
    """All cells that are asked for: first those of the table itself, seed by seed, then those of the other budgets."""
    made = []
    for seed, name in itertools.product(range(asked.seeds), asked.settings):
        setting = SETTINGS[name]
        for budget, row in itertools.product(asked.budgets or setting.budgets, map(ROWS.__getitem__, asked.rows)):
            made.append(TableCell(setting, budget, row, seed))
    made.sort(key=lambda cell: cell.budget != cell.setting.main)
    return [cell for cell in made if any(text in cell.title for text in asked.only or ("",))]
