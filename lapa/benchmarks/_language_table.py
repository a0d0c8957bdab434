"""One table of the real Language Table (Google Research), from the user's clone of its repository and PyBullet.

The repository has no package to install. Its modules are imported from the clone, and seen by nobody else in this
process.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from lapa.contracts import Array, LapaError

MODULES = "language_table.environments"
REWARDS = {  # family -> its module and class
    "block2block": ("block2block", "BlockToBlockReward"),
    "block2absolute": ("block2absolutelocation", "BlockToAbsoluteLocationReward"),
    "block2block_relative": ("block2block_relative_location", "BlockToBlockRelativeLocationReward"),
    "block2relative": ("block2relativelocation", "BlockToRelativeLocationReward"),
    "separate": ("separate_blocks", "SeparateBlocksReward"),
}
HZ = 10.0  # actions a second of the repository's environment
LIMIT = 0.1  # metres of an action in x and y, as its action space says
NEAR, MOVED = 0.045, 0.02  # metres: the effector touches a block at about .03 of its middle
STAGES = ("reached", "moved")  # the effector is NEAR the block that is to be pushed; that has MOVED from its place
ASKED = ("block", "block1", "block2", "target_block", "location", "direction")  # what a task may be about
EVERY = 5  # one combination of five is unseen
MIDDLE = (0.375, 0.0)  # metres, of the table
TURNED = {"front": 0.0, "corner": math.radians(35)}  # camera -> how far it is turned about the middle of the table
# look=other: red, green, blue of the table and of the floor, where the light comes from, and its colour
WOOD, FLOOR, SUN, WARM = (0.62, 0.47, 0.3), (0.5, 0.75, 0.55), (-1.0, 1.5, 1.2), (1.0, 0.9, 0.75)
BESIDE = (5.0, 5.0, 0.0)  # metres: where the repository puts blocks that are not on the table
TRIES, REDRAWS = 50, 20  # tables until one is as it must be; tasks on a table

# --- the clone


@dataclass(frozen=True)
class Package:
    """What is used of the repository: the environment's class, the sets of blocks, the rewards by family and the
    oracle's class; what a reward answers where a table does not do."""

    table: Any
    blocks: Any
    rewards: dict[str, Any]
    oracle: Any
    failure: Any


@cache
def load(clone: Path) -> Package:
    """The modules of the clone. Raises LapaError where the folder holds no such repository.

    What they import without need for our purpose is replaced by stand-ins while they are imported: TensorFlow and
    tf_agents take long, old `gym` does not go with today's numpy. `sys.modules` is afterwards what it was before.
    """
    if not (clone / "language_table/environments/language_table.py").is_file():
        raise LapaError(f"{clone} is no clone of the repository google-research/language-table: it holds no "
                        "language_table/environments/language_table.py.")  # fmt: skip
    import pybullet  # noqa: F401  prints a line when it is loaded
    import pybullet_data  # noqa: F401
    import pybullet_utils.bullet_client  # noqa: F401

    with _importing_from(clone):
        part = lambda name: importlib.import_module(f"{MODULES}.{name}")  # noqa: E731
        planner: Any = part("oracles.rrt_star")
        planner.RRTStar = quick(planner.RRTStar)
        return Package(
            part("language_table").LanguageTable,
            part("blocks"),
            {family: getattr(part(f"rewards.{module}"), name) for family, (module, name) in REWARDS.items()},
            part("oracles.push_oracle_rrt_slowdown").ObstacleOrientedPushOracleBoard2dRRT,
            part("rewards.task_info").FAILURE,
        )


@contextmanager
def _importing_from(clone: Path) -> Iterator[None]:
    """Modules of the clone can be imported, with stand-ins for what they need not."""
    ours = _stand_ins()
    mine: Callable[[str], bool] = lambda name: name in ours or name.partition(".")[0] == "language_table"  # noqa: E731
    before = {name: module for name, module in sys.modules.items() if mine(name)}
    for name in before:
        del sys.modules[name]
    sys.modules.update(ours)
    sys.path.insert(0, str(clone))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(clone))
        for name in [name for name in sys.modules if mine(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _stand_ins() -> dict[str, ModuleType]:
    """Name -> module, with what the clone's modules ask of it while they are imported and run by us."""
    anything: Callable[..., None] = lambda *args, **options: None  # noqa: E731
    logging = SimpleNamespace(info=anything)
    spaces = SimpleNamespace(Box=anything, Dict=anything)
    policy = type("PyPolicy", (), {"__init__": anything})
    has: dict[str, dict[str, Any]] = {
        "absl": {"logging": logging},
        "cv2": {"FONT_HERSHEY_DUPLEX": 0},  # it would write sentences into pictures
        "gym": {"Env": object, "spaces": spaces},
        "imageio": {},
        "six": {},
        "tensorflow": {},
        "tf_agents": {},
        "tf_agents.policies": {"py_policy": SimpleNamespace(PyPolicy=policy)},
        "tf_agents.trajectories": {"policy_step": SimpleNamespace(), "time_step": SimpleNamespace()},
    }
    made = {name: ModuleType(name) for name in has}
    for name, parts in has.items():
        vars(made[name]).update(parts)
    return made


# --- its planner


def quick(planner: Any) -> Any:
    """The repository's RRT* with the same plans in less time: its distances are computed at once.

    Most of a scene's time goes there: it measures the way to each of up to 2,048 nodes for each of them.
    """

    class Quick(planner):
        def nearest_neighbor(self, nodes: list[Any], node: Any) -> Any:
            return nodes[int(np.argmin(np.hypot(*(self._places() - (node.x, node.y)).T)))]

        def find_nearest_neighbors(self, node: Any) -> list[int]:
            places, count = self._places(), len(self.vertex) + 1
            radius = min(self.search_radius * math.sqrt(math.log(count) / count), self.step_len)
            near = np.flatnonzero(np.hypot(*(places - (node.x, node.y)).T) <= radius)
            found: list[int] = near[self._free(np.array([node.x, node.y]), places[near])].tolist()
            return found

        @staticmethod
        def cost(node: Any) -> float:
            total = 0.0
            while (parent := node.parent) is not None:
                total += math.hypot(parent.x - node.x, parent.y - node.y)
                node = parent
            return total

        def _places(self) -> Array:
            """float [n, 2]: the nodes so far."""
            if not hasattr(self, "_filled"):
                self._all, self._filled = np.empty((self.iter_max + 1, 2)), 0
            for i in range(self._filled, len(self.vertex)):
                self._all[i] = self.vertex[i].x, self.vertex[i].y
            self._filled = len(self.vertex)
            return self._all[: self._filled]

        def _free(self, start: Array, ends: Array) -> Array:
            """bool [n]: is the straight way [2] -> [n, 2] free of obstacles, and are both its ends?"""
            free = ~self._inside(ends) & ~self._inside(start[None])
            way = ends - start
            length = (way**2).sum(1)
            for x, y, radius in self.obstacles:
                with np.errstate(invalid="ignore", divide="ignore"):  # nodes may be in one place
                    share = (way @ (x - start[0], y - start[1])) / length
                nearest = np.hypot(*(start + share[:, None] * way - (x, y)).T)
                free &= ~((share >= 0) & (share <= 1) & (nearest <= radius + self.delta))
            return free

        def _inside(self, places: Array) -> Array:
            """bool [n]: are these in an obstacle, or in the table's border?"""
            inside = np.zeros(len(places), bool)
            for x, y, radius in self.obstacles:
                inside |= np.hypot(*(places - (x, y)).T) <= radius + self.delta
            for x, y, width, height in self.boundary:
                beyond = places - (x - self.delta, y - self.delta)
                inside |= ((beyond >= 0) & (beyond <= np.array([width, height]) + 2 * self.delta)).all(1)
            return inside

    return Quick


# --- what is asked


def held_out(family: str, combination: tuple[str, ...]) -> bool:
    """Does `split=seen` never ask this? One combination of a family, blocks and place in five, by its name alone."""
    digest = hashlib.blake2b(" ".join((family, *combination)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % EVERY == 0


def combination(info: Any) -> tuple[str, ...]:
    """The blocks and the place that a task of the repository is about."""
    one = [str(getattr(info, name)) for name in ASKED if getattr(info, name, None) is not None]
    return (*one, *sorted(map(str, getattr(info, "avoid_blocks", ()))))


# --- a table


class World:
    """The simulator of one table, with what is known of the running episode.

    split    "seen" or "unseen" (`held_out`), or "all"
    repeat   steps of the simulator's 10 a second in which an action is carried out
    camera   one of TURNED
    look     "own" or "other"
    """

    def __init__(
        self, package: Package, blocks: str, split: str, repeat: int, camera: str = "front", look: str = "own"
    ) -> None:
        mode = package.blocks.LanguageTableBlockVariants(blocks)
        self._package, self._mode, self._split, self._repeat = package, mode, split, repeat
        self.env = _environment(package, mode, split != "unseen", HZ / repeat)
        _turn_camera(self.env, TURNED[camera])
        if look == "other":
            _other_look(self.env)
        self.clock = 0

    def begin(self, family: str, seed: int) -> None:
        """Scene `seed` of a family, which depends on nothing else. As in the repository's own evaluation, its oracle
        has a plan for it."""
        with self._global_state(np.random.RandomState(seed % 2**32).get_state()):
            for number in range(TRIES):
                if self._placed(family, seed, number):
                    break
            else:
                raise LapaError(f"language_table: no scene of {family} was found for seed {seed} with these blocks and "
                                f"this split in {TRIES} tries.")  # fmt: skip
        self.success = self.over = False
        self.instruction = str(self.env._instruction_str)
        self.pushed = str(self.env._start_block)
        self.state = self.env.compute_state()
        self._place = self._block()
        self.clock += 1

    def _placed(self, family: str, seed: int, number: int) -> bool:
        """Place blocks and choose a task; False where that cannot be done, where it is done already (`separate` has
        such), and where the oracle has no plan."""
        env = self.env
        env._reward_calculator = self._reward(family)
        env.seed(int(np.random.default_rng([seed, number, zlib.crc32(family.encode())]).integers(2**32)))
        env._robot.set_target_joint_positions(env._robot.initial_joint_positions)  # restoring does not
        try:
            env.reset()
        except ValueError:  # no room for a block
            return False
        state = env.compute_state()
        if env._reward_calculator.reward(state)[0] > 0:
            return False
        self._oracle = self._package.oracle(env, use_ee_planner=True)
        return bool(self._oracle.get_plan(state))

    def _reward(self, family: str) -> Any:
        """The repository's own, which chooses no task that is not of the split."""
        split, failure = self._split, self._package.failure

        class Chosen(self._package.rewards[family]):  # type: ignore[name-defined]
            def reset(self, state: Any, blocks_on_table: Any) -> Any:
                for _ in range(REDRAWS):
                    info = super().reset(state, blocks_on_table)
                    if info == failure or split == "all":
                        return info
                    if held_out(family, combination(info)) == (split == "unseen"):
                        return info
                return failure

        return Chosen(goal_reward=1.0, rng=None, delay_reward_steps=0, block_mode=self._mode)

    def step(self, action: Array) -> None:
        """Carry out a motion in metres, float [2], in equal parts, until there is success."""
        part = np.clip(np.asarray(action, np.float64) / self._repeat, -LIMIT, LIMIT)
        self.clock += 1
        for _ in range(self._repeat):
            _, reward, _, _ = self.env.step(part)
            if reward > 0:
                self.success = True
                break
        self.state = self.env.compute_state()

    def stages(self) -> tuple[str, ...]:
        """Those of STAGES that hold now."""
        place = self._block()
        near = np.linalg.norm(self.state["effector_translation"] - place) < NEAR
        holds = (near, np.linalg.norm(place - self._place) > MOVED)
        return tuple(name for name, yes in zip(STAGES, holds, strict=True) if yes)

    def expert(self) -> Array:
        """float [2]: where the repository's oracle moves now, metres."""
        with self._global_state(self._random):
            told = self._oracle._get_action_for_block_target(self.state)
        return np.asarray(told, np.float64)

    def picture(self) -> Array:
        """uint8 [180, 320, 3], drawn by the repository."""
        drawn: Array = self._package.table._render_camera(self.env, self.env._image_size)
        return drawn

    def _block(self) -> Array:
        place: Array = np.array(self.state[f"block_{self.pushed}_translation"], np.float64)
        return place

    @contextmanager
    def _global_state(self, state: Any) -> Iterator[None]:
        """The oracle and some sentences are drawn from numpy's global generator: it is this world's inside."""
        outside = np.random.get_state()  # noqa: NPY002
        np.random.set_state(state)  # noqa: NPY002
        try:
            yield
        finally:
            self._random = np.random.get_state()  # noqa: NPY002
            np.random.set_state(outside)  # noqa: NPY002


def _environment(package: Package, mode: Any, training: bool, rate: float) -> Any:
    """The repository's environment, which does not draw by itself and whose unused blocks lie still and apart."""
    used = {block for subset in package.blocks.get_all_block_subsets(mode, training) for block in subset}

    class Table(package.table):  # type: ignore[name-defined]
        def get_control_frequency(self) -> float:  # its oracles ask for this, and it has it not
            return rate

        def time_step_spec(self) -> None:
            pass

        action_spec = time_step_spec

        def _render_camera(self, image_size: Any, return_seg_mask: bool = False) -> None:
            pass  # it would draw at each look at the state

        def _save_state(self) -> None:
            client = self._pybullet_client
            client.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
            client.resetBasePositionAndOrientation = _apart(client.resetBasePositionAndOrientation)
            for block, body in self._block_to_pybullet_id.items():
                if block not in used:  # they lie at the foot of the arm, and would hold it fast
                    client.resetBasePositionAndOrientation(body, BESIDE, (0.0, 0.0, 0.0, 1.0))
                    client.changeDynamics(body, -1, mass=0)
            super()._save_state()

    return Table(block_mode=mode, training=training, reward_factory=None, render_text_in_image=False, seed=0)


def _turn_camera(env: Any, angle: float) -> None:
    """Turn it about an upright line through the middle of the table, by an angle in radians."""
    if not angle:
        return
    (x, y, z), (roll, pitch, yaw) = env._camera_pose, env._camera_orientation
    along, across = x - MIDDLE[0], y - MIDDLE[1]
    env._camera_pose = (
        MIDDLE[0] + math.cos(angle) * along - math.sin(angle) * across,
        MIDDLE[1] + math.sin(angle) * along + math.cos(angle) * across,
        z,
    )
    env._camera_orientation = (roll, pitch, yaw + angle)


def _other_look(env: Any) -> None:
    """Other colours of table and floor, and other light. Arm and blocks keep their colours: the sentences name some."""
    client = env._pybullet_client
    for body, colour in ((env._workspace_uid, WOOD), (0, FLOOR)):  # the floor is loaded first
        client.changeVisualShape(body, -1, rgbaColor=(*colour, 1.0))
    client.getCameraImage = partial(client.getCameraImage, lightDirection=SUN, lightColor=WARM)


def _apart(place: Callable[..., None]) -> Callable[..., None]:
    """Blocks beside the table are all put to one point, where they push each other about: give each a place."""
    numbers: dict[int, int] = {}
    counter = itertools.count()

    def reset(body: int, where: Any, turned: Any) -> None:
        x, y, z = where
        if x > 1:  # metres; the table ends at .6
            y += 0.2 * numbers.setdefault(body, next(counter))
        place(body, [x, y, z], turned)

    return reset
