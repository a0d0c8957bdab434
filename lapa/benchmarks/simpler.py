"""SIMPLER, four tasks of the WidowX arm in pictures of a real kitchen (ManiSkill 3): simpler:all, simpler:carrot."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapa.benchmarks._mujoco import OwnRow
from lapa.contracts import ActionSpec, Actor, Array, LapaError, Observation, Step, TaskSpec
from lapa.data.images import resized
from lapa.plugins import choose, require

NEEDS = {"mani_skill": 'pip install "lapa[simpler]"', "sapien": 'pip install "lapa[simpler]"'}

HZ = 5.0
TASKS = {  # name -> ManiSkill's, its steps
    "stack": ("StackGreenCubeOnYellowCubeBakedTexInScene-v1", 60),
    "carrot": ("PutCarrotOnPlateInScene-v1", 60),
    "spoon": ("PutSpoonOnTableClothInScene-v1", 60),
    "eggplant": ("PutEggplantInBasketScene-v1", 120),
}
ASSETS = {"tasks/bridge_v2_real2sim_dataset": "bridge_v2_real2sim", "robots/widowx": "widowx250s"}  # folder -> name
CAMERA = "3rd_view_camera"
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
STATE = (*JOINTS, "left_finger", "right_finger")  # radians; metres of the fingers
ACTION = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")  # metres, radians; from -1, closed, to 1, open
MOVED = 0.03  # metres
STAGES = ("moved", "grasped", "placed")  # the object from its place; in the gripper so far; where it is to be, now
RULES = ("last", "any")


@dataclass(frozen=True)
class Config:
    """Which tasks, and how success is judged: `simpler:carrot,success=any`. An action says how far the hand is to
    be from where it was to be before, not from where it is; 5 a second."""

    path: str = "all"
    """all, or tasks joined by +: stack, carrot, spoon, eggplant"""
    success: str = "last"
    """last: at the last step, as SIMPLER judges; the stage `placed` tells of success at any step beside it. any: at the
    first step that has it, where the episode ends, as the LAPA paper judges"""
    size: int = 256
    """pixels a side of the picture, squashed from 640 x 480 (0: as it is)"""
    render: str = "gpu"
    """what draws, ManiSkill's render_backend: gpu, cpu or such as sapien_cuda:1"""
    batch: int = 4
    """episodes side by side"""

    def build(self) -> Simpler:
        """The benchmark. Raises LapaError where packages, assets or Vulkan are missing and for unknown names."""
        require("benchmarks", "simpler")
        return Simpler(self)


class Simpler:
    """One simulator a running episode. Scene `seed` is of task seed modulo their number, and of the fixed scenes of
    that task (24; 64 of eggplant) the next one each time."""

    def __init__(self, config: Config) -> None:
        self.config, self.families = config, _tasks(config.path)
        choose(config.success, RULES, "rule of success of SIMPLER")
        for option, value, low in (("size", config.size, 0), ("batch", config.batch, 1)):
            if not low <= value <= 4096:
                raise LapaError(f"simpler: {option} is {low} to 4096, not {value}.")
        steps = max(TASKS[task][1] for task in self.families)
        self.spec = TaskSpec(
            ActionSpec(ACTION, ("delta",) * 6 + ("binary",), HZ), (CAMERA,), self.families, steps, STATE, config.batch,
            stages=STAGES,
        )  # fmt: skip
        _require_assets()
        first = _World(self.families[0], config.render)  # what cannot be drawn here is refused now
        self._idle: dict[str, list[_World]] = {task: [] for task in self.families}
        self._idle[first.task].append(first)
        self._worlds: list[_World] = []
        rule = "at the last step; `placed`: at any" if config.success == "last" else "at any step"
        print(f"simpler: {', '.join(self.families)}; success {rule}; {HZ:g} actions a second, from target to target.",
              file=sys.stderr)  # fmt: skip

    # --- the contract

    def family(self, seed: int) -> str:
        """The task of a scene."""
        return self.families[int(seed) % len(self.families)]

    def reset(self, seeds: Sequence[int]) -> list[Observation]:
        """See Benchmark. Raises LapaError for more seeds than `batch`."""
        if len(seeds) > self.config.batch:
            raise LapaError(f"simpler runs {self.config.batch} episodes side by side (batch=), not {len(seeds)}.")
        for world in self._worlds:
            self._idle[world.task].append(world)
        self._worlds = []
        for seed in seeds:
            task = self.family(seed)
            world = self._idle[task].pop() if self._idle[task] else _World(task, self.config.render)
            world.begin(int(seed), int(seed) // len(self.families))
            self._worlds.append(world)
        self._random = [np.random.default_rng([int(seed), 9]) for seed in seeds]
        self._done = [Step(self._observation(world), False, False) for world in self._worlds]
        return [step.observation for step in self._done]

    def step(self, actions: Array) -> list[Step]:
        """See Benchmark."""
        for i, world in enumerate(self._worlds):
            if not self._done[i].done:
                world.step(actions[i])
                success = world.placed and (self.config.success == "any" or world.over)
                done = world.over or success
                self._done[i] = Step(self._observation(world), success, done, world.stages())
        return list(self._done)

    def tasks(self) -> tuple[str, ...]:
        """See Benchmark."""
        return tuple(world.task for world in self._worlds)

    def picture(self, i: int, size: int) -> Array:
        """Episode i as its camera sees it, at most `size` pixels a side."""
        from PIL import Image

        image = Image.fromarray(self._worlds[i].picture)
        image.thumbnail((size, size))
        return np.asarray(image)

    def baselines(self) -> Mapping[str, Actor]:
        """no_op: stays, with an open gripper; random: motions up to 2 cm and 0.1 radians. There is no expert."""
        stay = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
        return {"no_op": OwnRow(lambda i: stay), "random": OwnRow(self._anything)}

    # --- acting

    def _anything(self, i: int) -> Array:
        drawn = self._random[i].uniform(-1, 1, len(ACTION)) * [*[0.02] * 3, *[0.1] * 3, 1]
        return np.append(drawn[:-1], np.sign(drawn[-1])).astype(np.float32)

    def _observation(self, world: _World) -> Observation:
        return Observation(
            images={CAMERA: resized(world.picture, self.config.size or None)}, instruction=world.instruction,
            state=world.state,
        )  # fmt: skip


class _World:
    """The simulator of one task, with what is known of the running episode."""

    def __init__(self, task: str, render: str) -> None:
        import gymnasium
        import mani_skill.envs  # noqa: F401  registers the tasks

        self.task, (name, self._limit) = task, TASKS[task]
        try:
            self.env: Any = gymnasium.make(
                name, obs_mode="rgb+segmentation", num_envs=1, sim_backend="cpu", render_backend=render
            )
        except RuntimeError as error:  # SAPIEN has no class of its own for this
            raise LapaError(f"simpler cannot draw here: {str(error).strip().splitlines()[0]}. It needs Vulkan: the "
                            "driver of a GPU, or Mesa 25 or newer with render=cpu.") from None  # fmt: skip

    def begin(self, seed: int, scene: int) -> None:
        """Scene number `scene` of the task, modulo their number."""
        import torch

        seen, _ = self.env.reset(seed=seed % 2**31, options={"episode_id": torch.tensor([scene])})
        self.instruction = str(self.env.unwrapped.get_language_instruction()[0])
        self._count, self.over, self.placed, self._grasped = 0, False, False, False
        self._start = self._object()
        self._look(seen)

    def step(self, action: Array) -> None:
        """Carry out an action, float [7]."""
        seen, _, _, _, info = self.env.step(np.asarray(action, np.float32))
        self._count += 1
        self.over = self._count >= self._limit
        self.placed = bool(info["success"].any())
        self._grasped = self._grasped or bool(info["is_src_obj_grasped"].any())
        self._look(seen)

    def stages(self) -> tuple[str, ...]:
        """Those of STAGES that hold now."""
        moved = np.linalg.norm((self._object() - self._start)[:2]) > MOVED
        holds = (moved, self._grasped, self.placed)
        return tuple(name for name, yes in zip(STAGES, holds, strict=True) if yes)

    def _object(self) -> Array:
        """float [3]: where the object is that is to be moved."""
        world = self.env.unwrapped
        return _numpy(world.objs[world.source_obj_name].pose.p)[0].copy()

    def _look(self, seen: Mapping[str, Any]) -> None:
        self.picture = np.ascontiguousarray(_numpy(seen["sensor_data"][CAMERA]["rgb"])[0], np.uint8)
        self.state = _numpy(seen["agent"]["qpos"])[0].astype(np.float32)


def _numpy(tensor: Any) -> Array:
    found: Array = tensor.detach().cpu().numpy()
    return found


def _tasks(path: str) -> tuple[str, ...]:
    """The tasks that PATH names. Raises LapaError with a suggestion for an unknown one."""
    if path == "all":
        return tuple(TASKS)
    found = tuple(choose(name, TASKS, "task of SIMPLER") for name in path.split("+"))
    if len(set(found)) < len(found):
        raise LapaError(f"simpler:{path} names a task twice.")
    return found


def _require_assets() -> None:
    """Raise LapaError where the assets are missing: ManiSkill would ask at the keyboard whether to fetch them."""
    import mani_skill

    root = Path(mani_skill.ASSET_DIR)
    if lost := [name for folder, name in ASSETS.items() if not (root / folder).exists()]:
        how = "; ".join(f"python -m mani_skill.utils.download_asset {name}" for name in lost)
        raise LapaError(f"simpler needs assets that are not in {root} (MS_ASSET_DIR says where, less its last folder). "
                        f"Get them, under their own licence, CC BY-NC, with {how}")  # fmt: skip
