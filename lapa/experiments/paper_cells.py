"""The cells of the paper's table as values: a row in a setting with a budget of labels and a training seed (paper
section 4.1, Table 2).

A setting says which videos stages 1 and 2 watch and which labelled trajectories stage 3 gets. Its world (worlds.py)
says where these come from and where policies are tried. The paper has three settings; the one with videos of another
body is from its second table.

A cell ends in one evaluation for each split. The name of a step says what goes into it. So a step that two cells share
has one name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lapa.contracts import LapaError
from lapa.experiments.compare import QUICK
from lapa.experiments.worlds import BUDGETS as BUDGETS
from lapa.experiments.worlds import SPLITS as SPLITS
from lapa.experiments.worlds import TABLETOP, WORLDS, Setting, World, world_of
from lapa.methods import METHODS, Method
from lapa.plugins import choose

SETTINGS = TABLETOP.settings


@dataclass(frozen=True)
class TableRow:
    """A row of the table; method None: a scripted one, or a policy server, openpi://HOST:PORT. alone: stage 1 too looks
    through the policy's camera alone."""

    name: str
    method: Method | None
    grounded: bool = True
    alone: bool = False


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
        TableRow("read", METHODS["read"]),
        TableRow("track", METHODS["track"]),
        TableRow("track_one", replace(METHODS["track"], name="track_one"), alone=True),
        TableRow("actionvla", METHODS["actionvla"]),
        TableRow("expert", None),
    )
}


@dataclass(frozen=True)
class Common:
    """What all cells of a table share. Two tables that differ in it must not be mixed.

    videos: episodes of video; episodes: of each test; validation: of each way to finetune that is tried; options: words
    of the training commands, such as --preset; benchmark, other: see worlds.py. On a benchmark of others the numbers
    are those of each task, and validation is 0.
    """

    videos: int = 6000
    episodes: int = 500
    validation: int = 200
    options: tuple[str, ...] = ("--preset", "laptop")
    benchmark: str = "tabletop"
    other: str = ""

    def __post_init__(self) -> None:
        if min(self.videos, self.episodes, self.validation if self.world.tunes else 1) < 1:
            raise LapaError("A table needs at least one video, one test episode and one validation episode.")
        if self.validation and not self.world.tunes:
            raise LapaError(f"--validation: in the table on {self.world.title} options fix how policies are finetuned "
                            "(--set trainable=.., head=.., finetune.steps=..). Leave it out.")  # fmt: skip

    @property
    def world(self) -> World:
        """Where all this is."""
        return world_of(self.benchmark, self.other)

    def quick(self) -> Common:
        """The same with a hundredth of the work."""
        videos, episodes, validation = self.world.little
        return replace(self, videos=min(self.videos, videos), episodes=min(self.episodes, episodes),
                       validation=min(self.validation, validation), options=(*self.options, *QUICK))  # fmt: skip


def common_of(
    benchmark: str | None,
    other: str,
    videos: int | None,
    episodes: int | None,
    validation: int | None,
    preset: str | None,
    settings: Sequence[str],
) -> Common:
    """What the options of `lapa compare` say, where they were given, and else what suits the world. settings:
    NAME=VALUE each, which go over those of the world."""
    where = benchmark or "tabletop"
    world_of(where, other)  # refuses an unknown one
    known = WORLDS.get(where.partition(":")[0].partition(",")[0])
    usual = (6000, 500, 200) if known is None else (50, 20, 0)
    given = (videos, episodes, validation)
    some, tests, scenes = (u if g is None else g for u, g in zip(usual, given, strict=True))
    named = preset or ("laptop" if known is None else known.preset)
    options = (*(known.recipe if known else ()), *settings)
    words = ("--preset", named, *(part for option in options for part in ("--set", option)))
    return Common(some, tests, scenes, words, where, other)


@dataclass(frozen=True)
class Asked:
    """The part of the table that is wanted. budgets (): each setting's own. only: cells with one of these texts in
    their title, such as "lapa", "cross-env 20 " or "seed 0". servers: policy servers, a row each."""

    settings: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: int = 3
    budgets: tuple[int, ...] = ()
    only: tuple[str, ...] = ()
    common: Common = Common()
    servers: tuple[str, ...] = ()


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
        folder = re.sub(r"[^\w.-]+", "_", method)  # of a policy server
        return "/".join(part for part in (f"seed{self.seed}", folder, "+".join(parts), step) if part)

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
    servers: Sequence[str] = (),
) -> Asked:
    """Names, or "all", -> Asked; what is named twice counts once. Raises LapaError for what is unknown or empty."""
    world = common.world
    there = tuple(world.settings)
    chosen = [choose(s, there, f"setting of {world.title}") for s in settings if s != "all"]
    named = there if "all" in settings else tuple(dict.fromkeys(chosen))
    every = tuple(name for name in world.rows if name not in world.costly)
    named_rows = tuple(choose(name, world.rows, "method") for name in rows if name != "all")
    found = (*every, *named_rows) if "all" in rows else named_rows
    if seeds < 1:
        raise LapaError(f"A table needs at least one seed, got {seeds}.")
    for budget in budgets:
        if not budget.isdigit() or not int(budget):
            raise LapaError(f'A budget is a number of labelled trajectories, such as 20, not "{budget}".')
    for server in servers:
        if "://" not in server:
            raise LapaError(f'"{server}" is no policy server. Write openpi://HOST:PORT or openvla://HOST:PORT.')
    asked = Asked(
        named, tuple(n for n in ROWS if n in found), seeds, tuple(dict.fromkeys(map(int, budgets))), tuple(only),
        common, tuple(dict.fromkeys(servers)),
    )  # fmt: skip
    if not cells(replace(asked, only=())):
        raise LapaError(f"{', '.join(named)} with {', '.join(found)}: such a table has no cell (docs/world_table.md).")
    for text in only:
        if not any(text in cell.title for cell in cells(replace(asked, only=()))):
            raise LapaError(f'No cell has "{text}" in its title, such as "in-domain 20 lapa seed 0".')
    return asked


def cells(asked: Asked) -> list[TableCell]:
    """All cells that are asked for: first those of the table itself, seed by seed, then those of the other budgets."""
    made, world = [], asked.common.world
    rows = [*map(ROWS.__getitem__, asked.rows), *(TableRow(server, None) for server in asked.servers)]
    for seed, name in itertools.product(range(asked.seeds), asked.settings):
        setting = world.settings[name]
        budgets = asked.budgets or setting.budgets
        main = setting.main if setting.main in budgets else max(budgets)
        for budget, row in itertools.product(budgets, rows):
            if row.name not in setting.without and (budget == main or row.name not in world.once):
                made.append(TableCell(setting, budget, row, seed))
    made.sort(key=lambda cell: cell.budget != cell.setting.main)
    return [cell for cell in made if any(text in cell.title for text in asked.only or ("",))]
