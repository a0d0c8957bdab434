"""The worlds of the paper's table (paper_cells.py): which videos, labelled trajectories and tests each setting has.

Tabletop draws its data when they are read. In a benchmark of others (`Demonstrated`) its expert makes them: a step
`lapa collect` each, which all cells of a training seed share. To add one, add a row to WORLDS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from lapa.benchmarks import language_table, libero, metaworld
from lapa.contracts import LapaError
from lapa.evaluate import open_benchmark
from lapa.experiments.compare import Guess
from lapa.plugins import find, parse, suggest
from lapa.recipe import Recipe

BUDGETS = (5, 10, 20, 50, 100)
SPLITS = ("seen", "unseen")
SCRIPTED = ("no_op", "random", "expert")
TRAINED = ("scratch", "unipi", "vpt", "lapa", "actionvla")
VIDEO_SEED, LABEL_SEED = 1, 2  # of the data, added to 10 times the training seed, as `lapa demo` does


@dataclass(frozen=True)
class Source:
    """A dataset of the table. spec: NAME:PATH,..; or, where a step makes it, the options behind lerobot:ITS_FOLDER.

    step, command: the name of that step and its words, but for --out; seconds: guessed, of one core.
    """

    spec: str
    step: str = ""
    command: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Setting:
    """One column of the table, or a pair (seen, unseen).

    videos: what the videos show, in the names of steps; family: which trajectories are labelled, where it is not all;
    budgets: how many labelled trajectories; main: the budget that the table shows; splits: the tests; without: rows
    that this setting cannot have, and why.
    """

    name: str
    videos: str
    note: str
    family: str = ""
    budgets: tuple[int, ...] = BUDGETS
    main: int = 100
    splits: tuple[str, ...] = SPLITS
    without: Mapping[str, str] = field(default_factory=dict)


class World(ABC):
    """What the table must know of a world.

    title: its name in headings; unit: what a budget counts; rows: names of paper_cells.ROWS; costly: those that "all"
    leaves out; once: those that have the main budget alone; tunes: whether `lapa tune` chooses the way to finetune, on
    validation scenes, else options fix it; little: videos, test and validation episodes of --quick, at most; papers:
    settings in which the paper's figures stand beside ours, where the tests are `seen` and `unseen`; cameras: those
    that the method track looks at.
    """

    title: str
    unit: str
    rows: tuple[str, ...]
    costly: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    tunes: bool
    little: tuple[int, int, int]
    papers: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()

    @property
    def counted(self) -> str:
        """What a budget counts, in a picture."""
        return self.unit.replace("labels", "labelled trajectories")

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Setting]:
        """The columns, by name."""

    @abstractmethod
    def check(self, settings: Sequence[str]) -> None:
        """Raises LapaError where something that these settings need is not installed, or an option is wrong."""

    @abstractmethod
    def videos(self, setting: Setting, number: int, seed: int) -> tuple[Source, ...]:
        """What stages 1 and 2 watch for a training seed."""

    @abstractmethod
    def labels(self, setting: Setting, budget: int, seed: int) -> tuple[Source, ...]:
        """The labelled trajectories of stage 3 for a training seed; a smaller budget is part of a larger one."""

    @abstractmethod
    def part(self, number: int, of: int, seed: int) -> tuple[Source, ...]:
        """The first `number` of `of` videos in-domain for a training seed (`lapa ablate`)."""

    @abstractmethod
    def test(self, setting: Setting, split: str, number: int) -> tuple[str, int]:
        """The benchmark where a split is tested, and the number of episodes."""

    @abstractmethod
    def amount(self, common: Mapping[str, Any]) -> str:
        """How much of everything there is, as sentences of table.md. common: of paper_cells.Common, as JSON values."""

    @abstractmethod
    def guess(self, recipe: Recipe, videos: int, episodes: int, validation: int) -> Guess:
        """Guessed seconds of each step on one core."""


# --- Tabletop


class Tabletop(World):
    """Our own toy. All labels and all tests are in the domain `sim`."""

    title, unit, tunes, little = "Tabletop", "labels", True, (60, 20, 10)
    rows = ("no_op", "random", "scratch_ungrounded", *TRAINED, "expert")
    home, papers = "sim", ("in-domain", "cross-task", "cross-env", "cross-embodiment")

    @property
    def settings(self) -> Mapping[str, Setting]:
        """See World."""
        return TABLETOPS

    def check(self, settings: Sequence[str]) -> None:
        """Nothing is needed."""

    def videos(self, setting: Setting, number: int, seed: int) -> tuple[Source, ...]:
        """See World."""
        return (Source(f"tabletop:{setting.videos},episodes={number},seed={10 * seed + VIDEO_SEED}"),)

    def labels(self, setting: Setting, budget: int, seed: int) -> tuple[Source, ...]:
        """See World."""
        family = f",family={setting.family}" if setting.family else ""
        return (Source(f"tabletop:{self.home},episodes={budget},seed={10 * seed + LABEL_SEED}{family}"),)

    def part(self, number: int, of: int, seed: int) -> tuple[Source, ...]:
        """See World."""
        return self.videos(self.settings["in-domain"], number, seed)

    def test(self, setting: Setting, split: str, number: int) -> tuple[str, int]:
        """See World."""
        return f"tabletop:{self.home},split={split}", number

    def amount(self, common: Mapping[str, Any]) -> str:
        """See World."""
        return (
            f"{common['videos']:,} videos; {common['episodes']} test episodes a seed; the way to finetune chosen on "
            f"{common['validation']} validation episodes a seed."
        )

    def guess(self, recipe: Recipe, videos: int, episodes: int, validation: int) -> Guess:
        """With the models of `laptop`, on the machine of docs/results.md."""
        start, share, few = 4.0, videos / 6000, recipe.finetune.steps
        ways = 0.012 * few + 0.05 * few + 0.05 * 4 * few  # head, all, all-long
        films, few_films = recipe.pretrain_planner.steps, recipe.finetune_planner.steps
        return Guess(
            laq=start + 10 * share + 0.125 * (0.75 + 0.25 * max(1, len(recipe.starts))) * recipe.quantize.steps,
            idm=start + 0.06 * recipe.fit_idm.steps,
            labels=start + 64 * share,
            no_labels=start + 2 * share,
            pretrain=start + 0.075 * recipe.pretrain.steps,
            pretrain_films=start + 0.13 * films,
            tune=start + ways + 3 * 0.02 * validation,
            tune_films=start + 0.13 * 6 * few_films + 4 * 0.12 * validation,
            evaluate=start + 0.02 * episodes,
            evaluate_films=start + 0.12 * episodes,
            scripted=start + 0.004 * episodes,
        )


TABLETOPS = {
    each.name: each
    for each in (
        Setting("in-domain", "sim", "videos and labels of the robot, all families", main=20),
        Setting("cross-task", "sim", "labels of one family only", family="separate", budgets=(100,)),
        Setting("cross-env", "real", "videos of another environment and robot frame"),
        Setting("cross-embodiment", "hand", "videos of a hand"),
    )
}
TABLETOP = Tabletop()


# --- benchmarks of others

TEST, OTHERS = "test", "others"  # tests of all tasks; of those without labels


@dataclass(frozen=True)
class Known:
    """What is known to work in a benchmark of others, so that nobody need type it.

    tasks: the benchmark's path -> its tasks, each of which is a path too; options: of the benchmark; recipe: of
    training, over the preset; elsewhere: the options that differ in the videos of cross-env; other: the benchmark of
    another robot, for cross-embodiment; beside: a camera that films the demonstrations too, for the method track alone,
    "" if none; shown: further options of demonstrations alone; noise: of the demonstrations; tests: the options that
    differ in each split of the tests; trials: further ones of all tests; apart: videos are collected task by task, as a
    task takes much memory; papers: see World; seconds, others_seconds, trial_seconds: guessed for a demonstration of
    the one and of the other and for a test episode, on one core.
    """

    title: str
    tasks: Callable[[str], tuple[str, ...]]
    options: Mapping[str, str]
    recipe: tuple[str, ...]
    elsewhere: Mapping[str, str]
    other: str = "so101:pick-place"
    beside: str = ""
    shown: Mapping[str, str] = field(default_factory=dict)
    noise: str = "0.2"
    preset: str = "video"
    tests: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: {TEST: {}})
    trials: Mapping[str, str] = field(default_factory=lambda: {"batch": "25"})
    apart: bool = False
    papers: tuple[str, ...] = ()
    seconds: float = 1.0
    others_seconds: float = 5.0
    trial_seconds: float = 1.8

    def home(self, text: str) -> tuple[str, tuple[str, ...], dict[str, str]]:
        """NAME[:PATH][,option=value...] -> its name, tasks, and options, with those that nobody gave."""
        name, path, given = parse("benchmarks", text)
        told = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in given.items()}
        for split in self.tests.values():
            if own := sorted(split.keys() & told.keys()):
                raise LapaError(f"The table on {self.title} tests {' and '.join(self.tests)} itself: leave {own[0]}= "
                                f"out of {text}.")  # fmt: skip
        tasks = self.tasks(find("benchmarks", name)().path if path is None else path)
        return name, tasks, {**self.options, **told}


def written(name: str, tasks: tuple[str, ...], options: Mapping[str, str]) -> str:
    """The benchmark as the command line has it."""
    return ",".join([f"{name}:{'+'.join(tasks)}", *(f"{key}={value}" for key, value in options.items())])


FEW = (1, 3, 5, 10)  # labelled trajectories a task
COLLECTED = 10  # of each task, whatever the budget; where it is larger, as many as that


@dataclass(frozen=True)
class Demonstrated(World):
    """A benchmark whose expert makes videos and labelled trajectories. All is counted a task.

    name, tasks, options: of the benchmark where labels and tests are; other: the benchmark whose expert makes the
    videos of cross-embodiment.
    """

    known: Known
    name: str
    tasks: tuple[str, ...]
    options: Mapping[str, str]
    other: str

    unit, tunes, little = "labels a task", False, (4, 2, 0)
    once = ("unipi",)  # 2.4 s a step on a busy core, at 96 pixels
    costly = (*once, "track_one")

    @property
    def rows(self) -> tuple[str, ...]:  # type: ignore[override]
        """See World."""
        return ("no_op", "random", *TRAINED, "read", "track", *(("track_one",) if self.known.beside else ()), "expert")

    @property
    def cameras(self) -> tuple[str, ...]:  # type: ignore[override]
        """See World: () where the policy's own is all there is."""
        return tuple(_filmed(self.known, self.options).get("camera", "").split("+")) if self.known.beside else ()

    @property
    def title(self) -> str:  # type: ignore[override]
        """See World."""
        return self.known.title

    @property
    def papers(self) -> tuple[str, ...]:  # type: ignore[override]
        """See World."""
        return self.known.papers

    @property
    def labelled(self) -> tuple[str, ...]:
        """The tasks with labels in cross-task: the first, the third, .."""
        return self.tasks[::2]

    @property
    def settings(self) -> dict[str, Setting]:
        """See World. cross-task needs two tasks, cross-env something that can look otherwise."""
        few: dict[str, Any] = {"budgets": FEW, "main": 3, "splits": tuple(self.known.tests)}
        robot = self.other.partition(",")[0].replace(":", "_").replace("/", "_")
        moved = dict.fromkeys(("track", "track_one"), "the videos are filmed from elsewhere")
        made = [Setting("in-domain", "home", "videos and labels of the same world and tasks", **few)]
        if len(self.tasks) > 1:
            told = f"labels of {', '.join(self.labelled)}, tests of the other tasks"
            made.append(Setting("cross-task", "home", told, "some", **{**few, "splits": (OTHERS,)}))
        if self.known.elsewhere:
            told = ", ".join(f"{key}={value}" for key, value in self.known.elsewhere.items())
            made.append(Setting("cross-env", "elsewhere", f"videos with {told}", **few, without=moved))
        told, its = f"videos of {self.other}", "the videos' actions are another robot's"
        without = {"actionvla": its, "read": "the labels say nothing of another robot's motions", **moved}
        made.append(Setting("cross-embodiment", robot, told, **few, without=without))
        return {each.name: each for each in made}

    def check(self, settings: Sequence[str]) -> None:
        """See World."""
        for spec in dict.fromkeys(self._shown(self.settings[name]) for name in ("in-domain", *settings)):
            if "expert" not in open_benchmark(spec).baselines():
                raise LapaError(f"{spec} has no expert to make the videos. Give another --other or --benchmark.")

    def _shown(self, setting: Setting) -> str:
        """The benchmark whose expert makes the videos of a setting."""
        return self.other if setting.name == "cross-embodiment" else self._own(setting, self.tasks)

    def _own(self, setting: Setting, tasks: tuple[str, ...]) -> str:
        """Tasks of this benchmark, as the videos of a setting show them."""
        changed = self.known.elsewhere if setting.name == "cross-env" else {}
        return written(self.name, tasks, {**_filmed(self.known, self.options), **changed})

    def videos(self, setting: Setting, number: int, seed: int) -> tuple[Source, ...]:
        """See World: `number` a task; of another robot as many in all."""
        step, many, seed = f"seed{seed}/data/{setting.videos}", number * len(self.tasks), 10 * seed + VIDEO_SEED
        if setting.name == "cross-embodiment":  # no noise: nobody learns these actions
            return (Source("", step, _collect(self.other, many, seed), 5 + self.known.others_seconds * many),)
        if self.known.apart:
            each = ((task, self._own(setting, (task,))) for task in self.tasks)
            return tuple(self._collected(f"{step}/{task}", spec, number, seed) for task, spec in each)
        return (self._collected(step, self._shown(setting), many, seed),)

    def labels(self, setting: Setting, budget: int, seed: int) -> tuple[Source, ...]:
        """See World: the first `budget` of each task that has labels."""
        many = max(budget, COLLECTED)
        tasks = self.labelled if setting.family else self.tasks
        return self._first(budget, many, tasks, f"seed{seed}/data/labels{many}", 10 * seed + LABEL_SEED)

    def part(self, number: int, of: int, seed: int) -> tuple[Source, ...]:
        """See World: of each task."""
        return self._first(number, of, self.tasks, f"seed{seed}/data/home", 10 * seed + VIDEO_SEED)

    def _first(self, number: int, of: int, tasks: Sequence[str], step: str, seed: int) -> tuple[Source, ...]:
        """The first `number` of `of` demonstrations of each task. A step for each task: where scenes fail, a dataset of
        several has them in no known order."""
        made = []
        for task in tasks:
            filmed = written(self.name, (task,), _filmed(self.known, self.options))
            source = self._collected(f"{step}/{task}", filmed, of, seed)
            made.append(replace(source, spec=f",episodes=0-{number - 1}" if number < of else ""))
        return tuple(made)

    def _collected(self, step: str, spec: str, number: int, seed: int) -> Source:
        """Demonstrations of this robot."""
        words = (*_collect(spec, number, seed), "--noise", self.known.noise, "--robot", self.name)
        return Source("", step, words, 5 + self.known.seconds * number)

    def test(self, setting: Setting, split: str, number: int) -> tuple[str, int]:
        """See World."""
        tasks = tuple(task for task in self.tasks if split != OTHERS or task not in self.labelled)
        options = {**self.known.trials, **self.options, **self.known.tests.get(split, {})}
        return written(self.name, tasks, options), number * len(tasks)

    def amount(self, common: Mapping[str, Any]) -> str:
        """See World."""
        labelled = ", ".join(self.labelled)
        told = f" In cross-task the labels are of {labelled}, the tests of the other tasks." if self.tasks[1:] else ""
        return (
            f"Tasks: {', '.join(self.tasks)}. A task and a seed have {common['videos']} videos and "
            f"{common['episodes']} test episodes; the way to finetune is fixed by the options. Videos of "
            f"cross-embodiment: {self.other}, as many in all. "
            f"Benchmark: `{written(self.name, self.tasks, self.options)}`.{told}"
        )

    def guess(self, recipe: Recipe, videos: int, episodes: int, validation: int) -> Guess:
        """By the seconds in docs/results/demo_real.json, where two steps ran side by side on two cores."""
        start, videos, trials = 8.0, videos * len(self.tasks), episodes * len(self.tasks)
        return Guess(
            laq=start + 0.35 * videos + 0.15 * recipe.quantize.steps,
            idm=start + 0.42 * recipe.fit_idm.steps,
            points=start + 0.6 * videos + 0.3 * recipe.fit_points.steps,
            labels=start + 0.12 * videos,
            no_labels=start + 0.03 * videos,
            pretrain=start + 0.12 * recipe.pretrain.steps,
            pretrain_films=start + 2.4 * recipe.pretrain_planner.steps,
            finetune=start + 0.13 * recipe.finetune.steps,
            tune_films=start + 4.8 * recipe.finetune_planner.steps,
            evaluate=start + self.known.trial_seconds * trials,
            evaluate_films=start + (self.known.trial_seconds + 3) * trials,
            scripted=start + 0.2 * self.known.trial_seconds * trials,
        )


def _filmed(known: Known, options: Mapping[str, str]) -> dict[str, str]:
    """The options of demonstrations: with the camera beside the policy's own, which comes first, and `shown`."""
    cameras = options.get("camera", "").split("+")
    more = [known.beside] if known.beside and known.beside not in cameras else []
    filmed = {"camera": "+".join([*cameras, *more])} if "camera" in options else {}
    return {**options, **filmed, **{name: value for name, value in known.shown.items() if name not in options}}


def _collect(spec: str, number: int, seed: int) -> tuple[str, ...]:
    return ("collect", "--benchmark", spec, "--episodes", str(number), "--seed", str(seed))


def _recipe(window: str, latent_chunk: int, chunk: int) -> tuple[str, ...]:
    """What worked in Meta-World (docs/world_table.md). Codes of `latent_chunk` windows are the next `chunk` actions. In
    windows this short the main flow beside the directions was no gain."""
    return (
        "laq.flow=0",
        f"window={window}", f"latent_chunk={latent_chunk}", f"chunk={chunk}", "policy.code_head=nearest",
        "policy.head=regression", "head=own", "quantize.steps=300", "pretrain.steps=3000", "idm.image_size=96",
        "idm.blocks=3", "fit_idm.steps=500", "planner.pixels=96", "trainable=all", "finetune.steps=1500",
        "finetune.learning_rate=1e-3", "kept_head_rate=0.1",
    )  # fmt: skip


WORLDS: dict[str, Known] = {
    "metaworld": Known(
        "Meta-World",
        metaworld.tasks_named,
        {"camera": "corner4", "size": "128", "repeat": "2"},  # 40 actions a second
        _recipe("0.1", 2, 8),  # the arm is fast
        {"camera": "corner3", "look": "other"},
        beside="topview",
        shown={"rest": "0.5"},
    ),
    # Of these two, in-domain alone was run: their settings are guesses (docs/world_table.md).
    "language_table": Known(
        "Language Table",
        language_table.families_named,
        {"blocks": "BLOCK_4", "split": "seen", "size": "128"},  # 10 actions a second
        _recipe("0.2", 2, 4),
        {"camera": "corner", "look": "other"},
        tests={"seen": {"split": "seen"}, "unseen": {"split": "unseen"}},
        trials={"batch": "10"},
        papers=("in-domain", "cross-env"),
        seconds=8.0,  # eight more scenes are run for the size of the noise
        trial_seconds=4.0,
    ),
    "libero": Known(
        "LIBERO",
        libero.tasks_named,
        {"camera": "agentview", "size": "128"},  # 20 actions a second
        _recipe("0.2", 2, 8),
        {"camera": "frontview"},
        beside="frontview",  # agentview cuts the hand off
        noise="0.1",
        trials={"keep": "2"},  # 2.5 GB with a policy
        apart=True,
        seconds=7.0,
        trial_seconds=5.0,
    ),
}


@cache
def world_of(benchmark: str, other: str = "") -> World:
    """The world that --benchmark and --other name. Raises LapaError for one without a table."""
    if benchmark == "tabletop":
        if other:
            raise LapaError("--other is for the table of a benchmark of others.")
        return TABLETOP
    if benchmark.startswith(("tabletop:", "tabletop,")):
        raise LapaError(f"The table on Tabletop chooses domains and splits itself; {benchmark} has some: leave it out.")
    name = benchmark.partition(":")[0].partition(",")[0]
    if name not in WORLDS:
        raise LapaError(f"--benchmark {benchmark}: the table with --settings is on {', '.join(('tabletop', *WORLDS))}."
                        f"{suggest(name, WORLDS)} Elsewhere methods are compared on data that you give, with --dataset "
                        "and --labelled.")  # fmt: skip
    known = WORLDS[name]
    return Demonstrated(known, *known.home(benchmark), other or known.other)
