"""Meta-World: an arm does 50 household tasks (MuJoCo): metaworld:mt10, mt50 or reach-v3+push-v3."""

from __future__ import annotations

import sys
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lapa.benchmarks._mujoco import Drawer, OwnRow, Pictures, numpy_state_kept, without_a_screen
from lapa.benchmarks._side_by_side import SideBySide
from lapa.contracts import ActionSpec, Actor, Array, LapaError, Observation, TaskSpec
from lapa.data.index import counted
from lapa.plugins import choose, require

NEEDS = {"metaworld": 'pip install "lapa[metaworld]"'}

HZ = 80.0  # steps of the simulator a second
LIMIT = 500  # of them in an episode; it refuses more
STATE = ("hand_x", "hand_y", "hand_z", "gripper_opening")  # metres; 0 closed to 1 open
ACTION = ("dx", "dy", "dz", "gripper")  # centimetres; from -1, opens, to 1, closes with full force
OBJECT = slice(4, 7)  # of what the simulator shows: where the object is, metres
GOAL = slice(-3, None)  # and where it is to be
# Tasks whose expert brings the wrist to the goal, where success asks for what the fingers hold, or for them: it stays
# 4.5 cm away, at the edge of success (5 or 7 cm). Here it aims with the fingertips (docs/benchmarks.md).
AIMED = ("reach-v3", "reach-wall-v3", "pick-place-v3", "pick-place-wall-v3")
NEAR, MOVED = 0.07, 0.02  # metres
STAGES = ("reached", "moved", "lifted")  # the hand is NEAR the object; that has MOVED from its place, and upwards
CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
# look=other: material -> the material whose texture it takes, and the tint of that, red, green, blue. Objects, goals
# and the arm keep their colours: the sentences name some.
SURFACES = {"table_wood": ("basic_floor", (0.95, 0.75, 0.45)), "basic_floor": ("table_wood", (0.8, 0.7, 1.0)),
            "wall_metal": ("table_wood", (0.5, 0.9, 0.9))}  # fmt: skip
LIT = (0.25, 0.2)  # the strength of the light beside the camera: all around, and from there; usually .4 and .4
SUN = ((-0.8, 0.2, -0.6), (0.75, 0.68, 0.5))  # the first lamp: where it shines to, and its colour
OTHERS = (0.12, 0.14, 0.2)  # the colour of the other lamps
MT10 = (
    *("reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3", "drawer-close-v3"),
    *("button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "window-close-v3"),
)
SENTENCES = {  # Meta-World has names of tasks and no sentences; these are ours
    "assembly-v3": "pick up the wrench and put its ring over the peg",
    "basketball-v3": "put the basketball into the hoop",
    "bin-picking-v3": "move the cube from the red bin to the blue bin",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button from above",
    "button-press-topdown-wall-v3": "press the button behind the wall from above",
    "button-press-v3": "press the button from the front",
    "button-press-wall-v3": "reach around the wall and press the button",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "take the wrench off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "hand-insert-v3": "put the hand into the hole",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-open-v3": "open the faucet",
    "faucet-close-v3": "close the faucet",
    "hammer-v3": "hammer the nail into the wall",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "pick-place-wall-v3": "lift the object over the wall to the goal",
    "pick-out-of-hole-v3": "pick the object out of the hole and bring it to the goal",
    "pick-place-v3": "pick up the puck and bring it to the blue dot",
    "plate-slide-v3": "slide the plate into the net",
    "plate-slide-side-v3": "slide the plate sideways into the net",
    "plate-slide-back-v3": "slide the plate back out of the net",
    "plate-slide-back-side-v3": "slide the plate sideways out of the net",
    "peg-insert-side-v3": "put the peg into the hole from the side",
    "peg-unplug-side-v3": "pull the peg out of the hole sideways",
    "soccer-v3": "push the ball into the goal",
    "stick-push-v3": "take the stick and push the box with it",
    "stick-pull-v3": "take the stick and pull the box with it",
    "push-v3": "push the puck to the green dot",
    "push-wall-v3": "push the object around the wall to the goal",
    "push-back-v3": "push the object back to the goal",
    "reach-v3": "move the hand to the red dot",
    "reach-wall-v3": "reach over the wall to the goal with the hand",
    "shelf-place-v3": "put the object on the shelf",
    "sweep-into-v3": "sweep the object into the hole",
    "sweep-v3": "sweep the object off the table",
    "window-open-v3": "open the window",
    "window-close-v3": "close the window",
}


@dataclass(frozen=True)
class Config:
    """Which tasks, and how they are seen: `metaworld:reach-v3+push-v3,camera=corner4,size=128`."""

    path: str = "mt10"
    """mt10, mt50, or tasks by name, joined by +"""
    camera: str = "corner4"
    """a camera, or several, joined by +: corner, corner2, corner3, corner4, topview, behindGripper, gripperPOV"""
    size: int = 128
    """pixels a side of the pictures"""
    repeat: int = 1
    """steps of the simulator for one action: 80 / repeat actions a second, each with a motion up to repeat cm"""
    max_steps: int | None = None
    """actions of an episode (None: 500 / repeat, the simulator's own limit)"""
    look: Literal["own", "other"] = "own"
    """other: other textures and colours of table, floor and walls, and light from another side in another colour"""
    shadows: bool = False
    """draw shadows and smooth edges, which takes 10 to 20 times as long without a GPU"""
    batch: int = 10
    """episodes side by side"""
    rest: float = 0.0
    """seconds that an episode goes on after its first success; demonstrations then show where to stay"""

    def build(self) -> MetaWorld:
        """The benchmark. Raises LapaError where the package is missing and for unknown tasks and cameras."""
        require("benchmarks", "metaworld")
        return MetaWorld(self)


class MetaWorld(SideBySide["_World"]):
    """One world a running episode. Scene `seed` is of task seed modulo their number, so that each has as many."""

    def __init__(self, config: Config) -> None:
        super().__init__("metaworld", config.batch)
        self.config, self.families = config, tasks_named(config.path)
        cameras = tuple(choose(name, CAMERAS, "camera of Meta-World") for name in config.camera.split("+"))
        if len(set(cameras)) < len(cameras):
            raise LapaError(f"metaworld: camera={config.camera} names a camera twice.")
        most = LIMIT // max(config.repeat, 1)
        steps = most if config.max_steps is None else config.max_steps
        for option, value, high in (("size", config.size, 4096), ("repeat", config.repeat, LIMIT),
                                    ("max_steps", steps, most), ("batch", config.batch, 1000)):  # fmt: skip
            if not 1 <= value <= high:
                raise LapaError(f"metaworld: {option} is 1 to {high}, not {value}.")
        if not 0 <= config.rest <= LIMIT / HZ:
            raise LapaError(f"metaworld: rest is 0 to {LIMIT / HZ:g} seconds, not {config.rest}.")
        reach = float(config.repeat)
        self.spec = TaskSpec(
            ActionSpec(ACTION, ("delta", "delta", "delta", "binary"), HZ / config.repeat), cameras, self.families,
            steps, STATE, config.batch, limits=((-reach, reach),) * 3 + ((-1.0, 1.0),),
            stages=STAGES,
        )  # fmt: skip
        without_a_screen()
        self._idle: dict[str, list[_World]] = {task: [] for task in self.families}
        self._drawers: dict[str, Drawer] = {}
        edges = "with" if config.shadows else "without"
        seen = f"{config.size} pixels" + (", another look" if config.look == "other" else "")
        tasks = counted(len(self.families), "task")
        print(f"metaworld: {tasks}; camera {', '.join(cameras)} at {seen}, {edges} shadows and smooth edges; "
              f"{HZ / config.repeat:g} actions a second.", file=sys.stderr)  # fmt: skip

    # --- the contract

    def family(self, seed: int) -> str:
        """The task of a scene."""
        return self.families[int(seed) % len(self.families)]

    def baselines(self) -> Mapping[str, Actor]:
        """no_op: stays, with an open hand; random: from all actions; expert: Meta-World's own, within the limits."""
        return {"no_op": OwnRow(self._stay), "random": OwnRow(self._anything), "expert": OwnRow(self._demonstrated)}

    # --- acting

    def _taken(self, seed: int) -> _World:
        idle = self._idle[task := self.family(seed)]
        return idle.pop() if idle else _World(task, self.config.look, round(self.config.rest * self.spec.action.hz))

    def _rest(self, worlds: Sequence[_World]) -> None:
        for world in worlds:
            self._idle[world.task].append(world)

    def _begin(self, world: _World, seed: int) -> None:
        world.begin(seed)

    def _act(self, world: _World, action: Array) -> None:
        world.step(action, self.config.repeat)

    def _stay(self, i: int) -> Array:
        return np.array([0, 0, 0, -1], np.float32)

    def _demonstrated(self, i: int) -> Array:
        reach = self.config.repeat
        return (self._worlds[i].expert() * [reach, reach, reach, 1]).astype(np.float32)

    def _observation(self, world: _World) -> Observation:
        def draw(camera: str) -> Array:
            if world.task not in self._drawers:
                self._drawers[world.task] = Drawer(world.env.model, self.config.size, self.config.shadows)
            return self._drawers[world.task].draw(world.env.model, world.env.data, camera)

        return Observation(
            images=Pictures(self.spec.cameras, draw, lambda: world.clock), instruction=SENTENCES[world.task],
            state=world.seen[: len(STATE)].astype(np.float32),
        )  # fmt: skip


class _World:
    """The simulator of one task, with what is known of the running episode. rest: actions after its first success,
    which lasts then, whatever they do."""

    def __init__(self, task: str, look: str = "own", rest: int = 0) -> None:
        from metaworld.env_dict import ENV_CLS_MAP
        from metaworld.policies import ENV_POLICY_MAP

        self.task, self.rest = task, rest
        self._policy: Any = ENV_POLICY_MAP[task]
        with numpy_state_kept():
            self.env: Any = ENV_CLS_MAP[task]()
        env = self.env
        env._partially_observable = False  # its expert needs the goal; a policy is not shown it
        env.__dict__.pop("sawyer_observation_space", None)  # made for the goal unseen
        env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
        if look == "other":
            _other_look(env.model)
        self.clock = 0

    def begin(self, seed: int) -> None:
        """Scene `seed` of this task, which depends on nothing else."""
        import mujoco

        with numpy_state_kept():
            np.random.seed(0)  # noqa: NPY002  where a task draws past its own generator
            self.env.seed(int(np.random.default_rng([seed, zlib.crc32(self.task.encode())]).integers(2**31)))
            self.seen, _ = self.env.reset()
        mujoco.mj_kinematics(self.env.model, self.env.data)  # it moves the goal after it has looked where things are
        self._place: Array | None = None  # of the object: the first picture of some tasks does not have it yet
        self.success = self.over = self._won = False
        self._left = self.rest
        self.clock += 1
        self._demonstrator = self._policy()

    def step(self, action: Array, repeat: int) -> None:
        """Carry out an action in `repeat` equal parts, until the episode ends."""
        part = np.clip(np.append(action[:3] / repeat, action[3]), -1, 1).astype(np.float32)
        self.clock += 1
        self._left -= self._won
        for _ in range(repeat):
            self.seen, _, _, self.over, info = self.env.step(part)
            self._won |= bool(info["success"])
            self._place = self.seen[OBJECT].copy() if self._place is None else self._place
            if self.over or (self._won and not self.rest):
                break
        self.success = self._won and (self._left == 0 or self.over)

    def stages(self) -> tuple[str, ...]:
        """Those of STAGES that hold now. Where the fingertips are to be somewhere, that place is the object."""
        if self._place is None:
            return ()
        if self.task.startswith("reach"):
            return ("reached",) if np.linalg.norm(self.env.tcp_center - self.env._target_pos) < NEAR else ()
        place = self.seen[OBJECT]
        near, moved = np.linalg.norm(self.seen[:3] - place) < NEAR, place - self._place
        holds = (near, np.linalg.norm(moved) > MOVED, moved[2] > MOVED)
        return tuple(name for name, yes in zip(STAGES, holds, strict=True) if yes)

    def expert(self) -> Array:
        """float [4] in [-1, 1]: what Meta-World's policy does now."""
        seen = self.seen.copy()
        if self.task in AIMED:
            seen[GOAL] += seen[:3] - self.env.tcp_center
        with warnings.catch_warnings():  # it asks for more than the limits, and says so
            warnings.simplefilter("ignore")
            told: Array = np.clip(self._demonstrator.get_action(seen), -1, 1)
        return told


def _other_look(model: Any) -> None:
    """Change surfaces and lights. Do it before the first picture: textures are read then."""
    import mujoco

    colour = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
    materials = {model.material(i).name: i for i in range(model.nmat)}  # two tasks have no walls
    textures = model.mat_texid[:, colour].copy()
    for name in SURFACES.keys() & materials:
        taken, tint = SURFACES[name]
        model.mat_texid[materials[name], colour] = textures[materials[taken]]
        model.mat_rgba[materials[name], :3] = tint
    model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = LIT
    model.light_dir[0], model.light_diffuse[0] = SUN
    model.light_diffuse[1:] = OTHERS


def tasks_named(path: str) -> tuple[str, ...]:
    """The tasks that PATH names. Raises LapaError with a suggestion for an unknown one."""
    if path.lower() in ("mt10", "mt50"):
        return MT10 if path.lower() == "mt10" else tuple(sorted(SENTENCES))
    known = (*SENTENCES, "mt10", "mt50")
    found = tuple(choose(name if name in known else f"{name}-v3" if f"{name}-v3" in known else name, known,
                         "task of Meta-World") for name in path.split("+"))  # fmt: skip
    if len(set(found)) < len(found) or set(found) & {"mt10", "mt50"}:
        raise LapaError(f"metaworld:{path}: each task once, or mt10 or mt50 alone.")
    return found
