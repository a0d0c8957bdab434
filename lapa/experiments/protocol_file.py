"""The YAML file of `lapa protocol`: tasks, types of generalisation, methods -> the poses that every method meets.

A pose is one initial state of the scene: a task, a type and the number of a rollout. It is written out in full here,
so that the session (protocol.py) asks nothing of the file. What is wrong is a LapaError with the file and the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapa.contracts import LapaError
from lapa.plugins import choose

STAGES: dict[str, dict[str, float]] = {  # the credits are the paper's (its real-robot tasks), the words are ours
    "knock": {"reach": 0.5, "knock over": 1},
    "cover": {"pick up": 0.33, "cover partly": 0.66, "cover": 1},
    "pick-place": {"reach": 0.25, "grasp": 0.5, "move": 0.75, "place": 1},
}
OF_SCENE = ("instruction", "setup", "pictures", "benchmark")  # the type's; else the task's; else the file's
OF_FILE = ("seed", "rollouts", "methods", "tasks", "types", "benchmark")
METHODS, ROLLOUTS = 26, 1000  # at most: letters; initial poses of a task and type
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")

EXAMPLE = """\
seed: 0               # of the blind order
rollouts: 6           # initial poses of each task and type; every method meets the same ones

methods:              # the names alone, or a command for each: lapa starts it, so that you need not know which it is
  scratch: python run_robot.py --policy runs/scratch --instruction {instruction}
  lapa: python run_robot.py --policy runs/policy --instruction {instruction}

tasks:
  knock:
    instruction: knock the cup over
    stages: knock               # preset: reach .5, knock over 1
  cover:
    instruction: cover the cube with the towel
    stages: cover               # preset: pick up .33, cover partly .66, cover 1
  carrot:
    instruction: put the carrot on the plate
    stages: {reach: .25, grasp: .5, move: .75, place: 1}    # the preset pick-place, written out

types:
  seen:
    setup: the objects of the training data, where the picture shows them
    # pictures: poses/            # a folder or a list of files: one for all rollouts, or one for each
  unseen-object:
    setup: an object of the same kind that is not in the training data, at the same place
  unseen-instruction:
    instruction:                  # one text for all tasks, or one for each
      knock: make the cup fall
      cover: hide the cube under the towel
      carrot: the plate needs a carrot
"""


@dataclass(frozen=True)
class Task:
    """`stages`: (name, credit) in order; the last one has credit 1 and is success."""

    name: str
    stages: tuple[tuple[str, float], ...]

    def credit(self, stage: int) -> float:
        """Of the number of stages that were reached; 0: none."""
        return self.stages[stage - 1][1] if stage else 0.0


@dataclass(frozen=True)
class Pose:
    """One initial state. `rollout` counts from 1 within task and type; `picture` is a path, "" without."""

    task: str
    type: str
    rollout: int
    instruction: str
    setup: str
    picture: str
    benchmark: str


@dataclass(frozen=True)
class Protocol:
    """A file that was read. `methods`: name -> command, policy folder, policy server, or "" where nothing is given."""

    seed: int
    tasks: dict[str, Task]
    types: tuple[str, ...]
    methods: dict[str, str]
    poses: tuple[Pose, ...]

    @property
    def simulated(self) -> bool:
        """Does a simulator stand in the person's place?"""
        return bool(self.poses[0].benchmark)


def read_protocol(file: Path) -> Protocol:
    """Read and check the file. Raises LapaError."""
    told = _mapping(_yaml(file), f"{file}")
    for key in told:
        choose(str(key), OF_FILE, "key", f" in {file}")
    seed, rollouts = (_whole(told.get(key, 0), f"{file}: {key}") for key in ("seed", "rollouts"))
    if not 1 <= rollouts <= ROLLOUTS:
        raise LapaError(f"{file}: rollouts is the number of initial poses of each task and type, 1 to {ROLLOUTS}.")
    parts = {key: dict(_named(told.get(key), f"{file}: {key}")) for key in ("methods", "tasks", "types")}
    methods = {name: _run(value, f"{file}: methods.{name}") for name, value in parts["methods"].items()}
    if len(methods) > METHODS:
        raise LapaError(f"{file}: methods: at most {METHODS} are compared, a letter each; there are {len(methods)}.")
    tasks, scenes = {}, {}
    for kind, own in (("tasks", (*OF_SCENE, "stages")), ("types", OF_SCENE)):
        for name, value in parts[kind].items():
            where = f"{file}: {kind}.{name}"
            scenes[kind, name] = found = {} if value is None else _mapping(value, where)
            for key in found:
                choose(str(key), own, "key", f" in {where}")
            if kind == "tasks":
                tasks[name] = Task(name, _stages(found.get("stages"), f"{where}.stages"))
    poses = []
    for task in tasks:
        for type_ in parts["types"]:
            levels = ((f"types.{type_}", scenes["types", type_]), (f"tasks.{task}", scenes["tasks", task]), ("", told))
            poses += list(_poses(file, task, type_, rollouts, levels, tuple(tasks)))
    if len({bool(pose.benchmark) for pose in poses}) > 1:
        bare = next(pose for pose in poses if not pose.benchmark)
        raise LapaError(
            f"{file}: benchmark: give it for every task and type, or for none; {bare.task}, {bare.type} has none."
        )
    return Protocol(seed, tasks, tuple(parts["types"]), methods, tuple(poses))


def _poses(
    file: Path, task: str, type_: str, rollouts: int, levels: tuple[tuple[str, Mapping[str, Any]], ...],
    tasks: tuple[str, ...],
) -> Iterator[Pose]:  # fmt: skip
    """The initial states of one task and type."""
    found: dict[str, Any] = dict.fromkeys(OF_SCENE)
    places = {}
    for key in OF_SCENE:
        for name, level in levels:
            if level.get(key) is not None:
                places[key] = f"{file}: {f'{name}.' if name else ''}{key}"
                found[key] = _of_task(level[key], task, tasks, places[key])
                break
    texts = {
        key: _text(found[key], places[key]) if found[key] is not None else "" for key in OF_SCENE if key != "pictures"
    }
    if not texts["instruction"] and not texts["benchmark"]:
        raise LapaError(f"{file}: tasks.{task}.instruction is missing: the text that the policy is told.")
    pictures = [""] if found["pictures"] is None else _pictures(found["pictures"], file, places["pictures"])
    if len(pictures) not in (1, rollouts):
        raise LapaError(
            f"{places['pictures']}: one picture for all rollouts or one for each of {rollouts}, not {len(pictures)}."
        )
    for i in range(rollouts):
        picture = pictures[i % len(pictures)]
        yield Pose(task, type_, i + 1, texts["instruction"], texts["setup"], picture, texts["benchmark"])


def _yaml(file: Path) -> Any:
    """The file's content. Raises LapaError where it is no YAML, or names a key twice (YAML itself keeps the last)."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        _require_distinct(yaml.compose(text, Loader=yaml.SafeLoader), file, set())
        return yaml.safe_load(text)
    except OSError as error:
        raise LapaError(f"{file}: cannot be read ({error.strerror}). `lapa protocol --example` prints one.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise LapaError(f"{file}: is no YAML ({' '.join(str(error).split())}).") from None


def _require_distinct(node: Any, file: Path, seen: set[int]) -> None:
    if node is None or id(node) in seen or isinstance(node.value, str):
        return
    seen.add(id(node))
    names: set[str] = set()
    for part in node.value:
        if not isinstance(part, tuple):
            _require_distinct(part, file, seen)
            continue
        key, value = part
        if isinstance(key.value, str) and key.value in names:
            raise LapaError(
                f'{file}, line {key.start_mark.line + 1}: "{key.value}" is there twice. Rename or remove one.'
            )
        names.add(str(key.value))
        _require_distinct(value, file, seen)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not value:
        raise LapaError(f"{where}: needs `key: value` lines; `lapa protocol --example` prints a file.")
    return value


def _named(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """(name, settings) of `name: settings` lines, or of a list of names and of mappings with a `name`."""
    if isinstance(value, list) and value:
        pairs = [(one.get("name"), {k: v for k, v in one.items() if k != "name"} or None) if isinstance(one, dict)
                 else (one, None) for one in value]  # fmt: skip
    else:
        pairs = list(_mapping(value, where).items())
    seen: set[str] = set()
    for name, settings in pairs:
        if not isinstance(name, str) or not name.strip():
            raise LapaError(f"{where}: each has a name that is a text, not {name!r}. Put it in quotes.")
        if name in seen:
            raise LapaError(f'{where}: "{name}" is there twice. Rename or remove one.')
        seen.add(name)
        yield name, settings


def _run(value: Any, where: str) -> str:
    """How a method is run: `name: text`, or a `run: text` below the name."""
    if isinstance(value, dict):
        for key in value:
            choose(str(key), ("run",), "key", f" in {where}")
        value = value.get("run")
    return "" if value is None else _text(value, where)


def _stages(value: Any, where: str) -> tuple[tuple[str, float], ...]:
    if isinstance(value, str):
        value = STAGES[choose(value, STAGES, "preset", f" for {where}")]
    if not isinstance(value, dict) or not value:
        raise LapaError(
            f"{where}: a preset ({', '.join(STAGES)}), or stages with credits such as {{reach: .5, place: 1}}."
        )
    last = 0.0
    for name, credit in value.items():
        if not isinstance(name, str) or isinstance(credit, bool) or not isinstance(credit, int | float):
            raise LapaError(f"{where}: each is a name with a number, not {name!r}: {credit!r}.")
        if not last < credit <= 1:
            raise LapaError(f"{where}.{name}: credits increase, from above 0 to 1; {credit:g} follows {last:g}.")
        last = float(credit)
    if last != 1:
        raise LapaError(f"{where}: the last stage is success and has credit 1, not {last:g}.")
    return tuple((name, float(credit)) for name, credit in value.items())


def _of_task(value: Any, task: str, tasks: tuple[str, ...], where: str) -> Any:
    """A value for all tasks, or that of this task out of {task: value}."""
    if not isinstance(value, dict):
        return value
    for name in value:
        choose(str(name), tasks, "task", f" for {where}")
    if value.get(task) is None:
        raise LapaError(f"{where}: {task} is missing. Give one for each task ({', '.join(tasks)}), or one for all.")
    return value[task]


def _pictures(value: Any, file: Path, where: str) -> list[str]:
    """Paths as they are shown; the file's are relative to its folder. A folder stands for its pictures, sorted."""
    named = value if isinstance(value, list) else [value]
    paths = [file.parent.resolve() / Path(_text(one, where)).expanduser() for one in named]
    if not isinstance(value, list) and paths[0].is_dir():
        paths = sorted(path for path in paths[0].iterdir() if path.suffix.lower() in PICTURES)
        if not paths:
            raise LapaError(f"{where}: {value} holds no picture ({', '.join(PICTURES)}).")
    if not paths:
        raise LapaError(f"{where}: the list is empty. Name pictures or leave it out.")
    for path in paths:
        if not path.is_file():
            raise LapaError(f"{where}: there is no picture {path}.")
    return [str(path) for path in paths]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise LapaError(f"{where}: a text, not {value!r}. Put it in quotes if it is one.")
    return value.strip()


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise LapaError(f"{where}: a whole number from 0 on, not {value!r}.")
    return value
