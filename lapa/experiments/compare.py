"""`lapa compare`: the methods of methods.py, each trained on the same videos and the same few labels, and judged.

A plan is a list of `lapa` commands (schedule.py), so every number can be made again by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lapa.artefacts.folder import read_json, write_json
from lapa.contracts import Episode, LapaError
from lapa.data.pack import Packed, pack
from lapa.data.spec import open_dataset
from lapa.evaluate import Trial, differences, open_benchmark, require_same_actions
from lapa.experiments.schedule import PlanStep
from lapa.measures.offline import POLICY
from lapa.methods import METHODS, READ, STAGE_1, Method, fitted_for
from lapa.plugins import choose
from lapa.recipe import Recipe, overridden, preset
from lapa.stage1_points import LABELS
from lapa.stage3_finetune import FIVE, HELD_OUT, can_replay

QUICK = tuple(  # runs every step; the figures mean nothing
    word
    for setting in (
        "quantize.steps=20",
        "fit_idm.steps=10",
        "pretrain.steps=10",
        "finetune.steps=10",
        "pretrain_planner.steps=10",
        "finetune_planner.steps=10",
    )
    for word in ("--set", setting)
)
SMALL = 16  # pixels; only actions are looked at
FITTED_BY = {"laq": "quantize", "idm": "fit", "points": "track"}  # what stage 1 fits -> the command that does
ASKED = "asked.json"
USUAL = "tabletop"  # the benchmark if none is given
LONGEST_FIRST = ("unipi", "track", "lapa", "read", "vpt", "actionvla", "scratch")


class Plan:
    """Steps by name, all in one folder. A step that several results need is planned once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: dict[str, PlanStep] = {}

    def add(self, name: str, command: tuple[str, ...], marker: str, needs: tuple[str, ...], seconds: float) -> str:
        """Plan `command` with --out FOLDER/NAME and return the name, which is how others need it."""
        out = self.folder / name
        step = PlanStep(name, (*command, "--out", str(out)), out, out / marker, needs, seconds)
        if self.steps.setdefault(name, step) != step:
            raise ValueError(f"two steps called {name}")
        return name

    def path(self, name: str) -> str:
        """Where a step writes, as its users are told."""
        return str(self.folder / name)


@dataclass(frozen=True)
class Guess:
    """Guessed seconds of each step on one slow core. `films`: of a policy that imagines video."""

    ground: float = 420
    laq: float = 175
    idm: float = 90
    points: float = 300
    labels: float = 60
    no_labels: float = 5
    pretrain: float = 150
    pretrain_films: float = 300
    finetune: float = 10
    tune: float = 60
    tune_films: float = 200
    evaluate: float = 20
    evaluate_films: float = 120
    scripted: float = 12


@dataclass(frozen=True)
class Chain:
    """The input of stages 1 and 2 of a method: specs of datasets, options as words of the command line, and names of
    steps.

    name: (method, step, whether it depends on the videos, whether on the labelled trajectories) -> the step's name.
    needs, labels_need: the steps that make the videos, and the labelled trajectories. cameras: see Comparison. replay:
    stage 3 goes on learning stage 2's labels (stage3_finetune.can_replay). learn: more options of stages 2 and 3 alone;
    learn_needs: steps that stage 2 waits for.
    """

    videos: tuple[str, ...]
    labelled: tuple[str, ...]
    common: tuple[str, ...]
    name: Callable[[str, str, bool, bool], str]
    needs: tuple[str, ...] = ()
    guess: Guess = Guess()
    labels_need: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    replay: bool = False
    learn: tuple[str, ...] = ()
    learn_needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Start:
    """Where stage 3 of a method begins. options: words that name what stages 1 and 2 have made; needs: the steps that
    it waits for; fitted, labels: the steps of stage 1 and of the labels, "" where there is none."""

    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    fitted: str = ""
    labels: str = ""


def pretrained(plan: Plan, method: Method, chain: Chain) -> Start:
    """Plan stages 1 and 2 of a method."""
    if not method.source:
        return Start(needs=chain.labels_need)
    guess, films = chain.guess, method.read_by == "policy"
    fitted = _fitted(plan, method, chain) if method.fits else ""
    if method.source == STAGE_1:
        few, folder, labels = True, str(Path(plan.path(fitted)) / LABELS), fitted
    else:
        word, read = method.read_by != "labels", method.source == READ
        source, few = (method.source, False) if word else (plan.path(fitted), method.fits == "idm" or read)
        told = datasets(chain.labelled, "--labelled") if read else ()
        needs = (*chain.needs, *(() if word else (fitted,)), *(chain.labels_need if read else ()))
        labels = plan.add(chain.name(method.name, "labels", True, few),
                          ("label", *datasets(chain.videos), "--source", source, *told), "manifest.json", needs,
                          guess.no_labels if word else guess.labels)  # fmt: skip
        folder = plan.path(labels)
    learn = ("pretrain", *datasets(chain.videos), "--labels", folder, *chain.common, *chain.learn, "--resume")
    latent = plan.add(chain.name(method.name, "latent", True, few), learn, "config.json",
                      (labels, *chain.learn_needs), guess.pretrain_films if films else guess.pretrain)  # fmt: skip
    options: tuple[str, ...] = ("--policy", plan.path(latent))
    if chain.replay and method.replays:
        options = (*options, *datasets(chain.videos, "--videos"), "--labels", folder)
    if films:
        options = (*options, "--idm", plan.path(fitted))
    return Start(options, (latent, *chain.labels_need, *((fitted,) if films else ())), fitted, labels)


def _fitted(plan: Plan, method: Method, chain: Chain) -> str:
    """Plan what stage 1 trains for a method, and return the step's name. VPT and UniPi share inverse dynamics."""
    guess, watched, few = chain.guess, datasets(chain.videos), datasets(chain.labelled)
    owner = method.name if method.fits == "points" else fitted_for(str(method.fits))
    videos, labels, data, needs, cost = {
        "laq": (True, False, watched, chain.needs, guess.laq),
        "idm": (False, True, few, chain.labels_need, guess.idm),
        "points": (True, True, (*watched, *datasets(chain.labelled, "--labelled")),
                   (*chain.needs, *chain.labels_need), guess.points),
    }[str(method.fits)]  # fmt: skip
    cameras = ("--cameras", ",".join(chain.cameras)) if method.fits == "points" and chain.cameras else ()
    command = (FITTED_BY[str(method.fits)], *data, *cameras, *chain.common, "--resume")
    return plan.add(chain.name(owner, "fit", videos, labels), command, "config.json", needs, cost)


@dataclass(frozen=True)
class Comparison:
    """What all methods share: videos for stages 1 and 2, labelled trajectories for stage 3, the test.

    benchmark: None where there is none for this robot; then the labelled trajectories that `lapa finetune` holds out
    are the test. cameras: those that the method track looks at, () the dataset's own.
    """

    videos: tuple[str, ...]
    labelled: tuple[str, ...]
    benchmark: str | None = USUAL
    episodes: int = 500
    seed: int = 0
    recipe_options: tuple[str, ...] = ()  # extra options of the training commands, such as --preset
    films: int = 4  # episodes of each method that are written as animations
    finetune_options: tuple[str, ...] = ()  # further ones of stage 3
    cameras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        Trial(self.episodes, self.seed)  # refuses now what would be refused after the training


def begin(setting: Comparison, out: Path) -> None:
    """Begin a comparison in `out`, or go on with it. What is finished there is not run again, so raises LapaError where
    it was begun with another setting, and says where its data have changed since."""
    ours, path = json.loads(json.dumps(asdict(setting))), out / ASKED
    before = read_json(path, "settings of the comparison") if path.exists() else ours
    before = {"cameras": [], **before}  # one that was begun before there was this setting has none
    if changed := [name for name in ours if before.get(name) != ours[name]]:
        told = f"{changed[0]} {json.dumps(before.get(changed[0]))}, here {json.dumps(ours[changed[0]])}"
        raise LapaError(f"{out} holds a comparison with other settings ({told}). Give the same, or another --out.")
    now = {spec: open_dataset(spec).signature() for spec in (*setting.videos, *setting.labelled)}
    begun = before.get("data", now)
    for spec in (spec for spec in now if begun.get(spec) != now[spec]):
        print(f"Note: {spec} has changed since this comparison began. What is finished in {out} is of the data as they "
              "were; for all of it on the new ones give another --out.", file=sys.stderr)  # fmt: skip
    write_json(path, {**ours, "data": begun})


def require_actions(setting: Comparison, methods: tuple[str, ...]) -> tuple[str, ...]:
    """The methods to compare, by default those that the data allow.

    Looks at the first episode of each dataset. Raises LapaError, before anything is trained, when the labelled
    trajectories do not fit the benchmark, or the videos do not fit a method.
    """
    for name in methods:
        choose(name, METHODS, "method")
    packs = _labelled(setting.labelled)
    if setting.benchmark is None and (count := sum(packed.episodes for packed in packs)) < FIVE:
        raise LapaError("Without a benchmark the methods are judged by labelled trajectories that are held out. That "
                        f"takes {FIVE} or more; there are {count}. Give more --labelled or a --benchmark.")  # fmt: skip
    for packed in packs if setting.benchmark is not None else ():
        assert packed.action_spec
        task = open_benchmark(str(setting.benchmark)).spec
        require_same_actions(packed.action_spec, packed.spec, task, str(setting.benchmark))
    mute = next((spec for spec in setting.videos if not _has_actions(spec)), None)
    if mute and "actionvla" in methods:
        raise LapaError(f"actionvla learns from the true actions of the videos, and {mute} has none. Leave it out.")
    if mute and not methods:
        print(f"actionvla is left out: it learns from the true actions of the videos, and {mute} has none.")
    return methods or ("scratch", "vpt", "lapa", *(() if mute else ("actionvla",)))


def benchmark_for(labelled: Sequence[str]) -> str | None:
    """USUAL where the labelled trajectories are of its world, else None; says which."""
    task = open_benchmark(USUAL).spec
    packs = _labelled(labelled)
    found = next((d for p in packs if p.action_spec and (d := differences(p.action_spec, task.action))), None)
    if found is None:
        print(
            f"The labelled trajectories are those of {USUAL}: policies are tried there (--benchmark chooses another)."
        )
        return USUAL
    print(f"No --benchmark is given, and {USUAL} is another world ({'; '.join(found)}): policies are judged by their "
          "error on labelled trajectories that are held out.")  # fmt: skip
    return None


def _labelled(specs: Sequence[str]) -> list[Packed]:
    """Each dataset, packed at a small size. All of them say what the actions are: one alone may not move its gripper.
    Raises LapaError for a dataset without actions."""
    for spec in specs:
        if not _has_actions(spec):
            raise LapaError(f"{spec} has no actions, and --labelled needs them.")
    return [pack([spec], SMALL, quiet=True) for spec in specs]


def _has_actions(spec: str) -> bool:
    """Whether the first episode that can be read has actions."""
    found = next((e for e in open_dataset(spec).episodes(SMALL) if isinstance(e, Episode)), None)
    return found is not None and found.actions is not None


def plan(
    methods: Sequence[str], setting: Comparison, folder: Path, scripted: Sequence[str] = (), needs: tuple[str, ...] = ()
) -> list[PlanStep]:
    """The steps from data to one results.json per method, longest chains first. Without a benchmark the last step of
    a method is `lapa finetune`, which also measures the error.

    `needs` are steps that make the data. Raises LapaError for a method that is unknown.
    """
    rows = [METHODS[choose(name, METHODS, "method")] for name in methods]
    made, guess = Plan(folder), Guess()
    common = ("--seed", str(setting.seed), *setting.recipe_options)

    def name(method: str, step: str, videos: bool, few: bool) -> str:
        return f"{step}/{method}"

    before, recipe = recipe_of(common[2:]), recipe_of((*common[2:], *setting.finetune_options))
    replay = can_replay(recipe) and before.policy.cameras == recipe.policy.cameras
    chain = Chain(setting.videos, setting.labelled, common, name, needs, guess, needs, setting.cameras, replay)
    for row in sorted(rows, key=lambda r: LONGEST_FIRST.index(r.name)):
        start = pretrained(made, row, chain)
        options = (*start.options, *common, *setting.finetune_options, "--resume")
        tuned = made.add(f"policy/{row.name}", ("finetune", *datasets(setting.labelled), *options), "config.json",
                         start.needs, guess.finetune)  # fmt: skip
        if setting.benchmark is not None:
            score = _evaluation(setting, ("--policy", made.path(tuned)), row.name)
            cost = guess.evaluate_films if row.read_by == "policy" else guess.evaluate
            made.add(f"eval/{row.name}", score, "results.json", (tuned,), cost)
    for fixed in scripted:
        made.add(f"eval/{fixed}", _evaluation(setting, ("--row", fixed), fixed), "results.json", (), guess.scripted)
    return list(made.steps.values())


def recipe_of(options: Sequence[str]) -> Recipe:
    """The recipe that "--preset NAME --set A=B .." means."""
    words = list(zip(options[::2], options[1::2], strict=True))
    named = preset(next((value for word, value in words if word == "--preset"), "laptop"))
    return overridden(named, [value for word, value in words if word == "--set"])


def datasets(specs: Sequence[str], option: str = "--dataset") -> tuple[str, ...]:
    """Specs as words of the command line."""
    return tuple(part for spec in specs for part in (option, spec))


def _evaluation(setting: Comparison, actor: tuple[str, ...], name: str) -> tuple[str, ...]:
    return ("evaluate", *actor, "--name", name, "--benchmark", str(setting.benchmark),
            "--episodes", str(setting.episodes), "--seed", str(setting.seed),
            "--video", str(setting.films))  # fmt: skip


def gather(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """The scores under `folder/eval`, {name: {"success", "interval", "episodes", "families"}}."""
    kept = ("success", "interval", "episodes", "families")
    read = {name: read_json(folder / "eval" / name / "results.json", f"evaluation of {name}") for name in names}
    return {name: {key: content[key] for key in kept} for name, content in read.items()}


def errors(methods: Sequence[str], folder: Path) -> dict[str, Any]:
    """The held-out error of each policy that `lapa finetune` made in `folder` (measures/offline.py): one row for each
    method, then the rows that need no policy, which are the same for all. {"rows", "names", "chunk", ..}."""
    found = {name: read_json(folder / "policy" / name / HELD_OUT, f"held-out error of {name}") for name in methods}
    rows = {name: content["rows"][POLICY] for name, content in found.items()}
    first = found[methods[0]]
    beside = {name: row for name, row in first["rows"].items() if name != POLICY}
    return {**first, "rows": {**rows, **beside}}


def with_earlier(methods: tuple[str, ...], folder: Path, result: str) -> tuple[str, ...]:
    """The methods and, behind them, those that an earlier run into `folder` finished, which had the same settings
    (`begin`). Says which. result: the file of a finished method, with {} for its name."""
    earlier = tuple(n for n in METHODS if n not in methods and (folder / result.format(n)).exists())
    if earlier:
        print(f"Also shown, from an earlier run: {', '.join(earlier)}.")
    return (*methods, *earlier)


def in_order(methods: Sequence[str], rows: Sequence[str]) -> list[str]:
    """The methods between the benchmark's own rows: first those that a method should beat; the expert is last."""
    return [*(row for row in rows if row != "expert"), *methods, *(row for row in rows if row == "expert")]


def told(row: dict[str, Any]) -> str:
    """One result as text."""
    low, high = row["interval"]
    return f"{row['success']:6.1%}  ({low:.1%} to {high:.1%}, {row['episodes']} episodes)"


def gap_closed(results: dict[str, Any]) -> float | None:
    """LAPA's share of the way from Scratch to ActionVLA; None when it is not defined."""
    if not {"scratch", "lapa", "actionvla"} <= results.keys():
        return None
    low, high = results["scratch"]["success"], results["actionvla"]["success"]
    return (results["lapa"]["success"] - low) / (high - low) if high > low else None
