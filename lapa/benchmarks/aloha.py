"""ALOHA, two arms of seven joints each (MuJoCo): aloha:transfer-cube, aloha:insertion."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lapa.benchmarks import gym
from lapa.benchmarks._mujoco import Drawer, require_size, without_a_screen
from lapa.contracts import Array, LapaError
from lapa.plugins import choose, require

if TYPE_CHECKING:
    import gymnasium

NEEDS = {"gym_aloha": 'pip install "lapa[aloha]"'}
TASKS = {
    "transfer-cube": ("transfer_cube", "pick up the red cube with the right arm and hand it to the left arm"),
    "insertion": ("insertion", "pick up the red peg and the blue socket and put the peg into the socket"),
}
CAMERAS = ("top", "angle", "front_close", "left_pillar", "right_pillar", "left_wrist", "right_wrist")
PARTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
JOINTS = tuple(f"{side}_{part}" for side in ("left", "right") for part in PARTS)


@dataclass(frozen=True)
class Config:
    """Which task, and how it is seen. Actions are where the 14 joints are to be, 50 a second; grippers from 0, closed,
    to 1. There is no expert."""

    path: str = "transfer-cube"
    """transfer-cube or insertion"""
    camera: str = "top"
    """a camera, or several, joined by +: top, angle, front_close, left_pillar, right_pillar, left_wrist, right_wrist"""
    size: int = 128
    """pixels a side of the picture"""
    max_steps: int = 300
    """steps of an episode; 300 as gym-aloha registers it"""
    shadows: bool = False
    """draw shadows and smooth edges, slow without a GPU"""
    batch: int = 10
    """episodes side by side"""

    def build(self) -> gym.GymBenchmark:
        """The benchmark. Raises LapaError where the package is missing and for unknown tasks and cameras."""
        choose(self.path, TASKS, "task of ALOHA")
        cameras = [choose(name, CAMERAS, "camera of ALOHA") for name in self.camera.split("+")]
        if len(set(cameras)) < len(cameras):
            raise LapaError(f"aloha: camera={self.camera} names a camera twice.")
        require("benchmarks", "aloha")
        return _Aloha(self)


class _Aloha(gym.GymBenchmark):
    def __init__(self, config: Config) -> None:
        require_size("aloha", config.size)
        without_a_screen()
        self.its, self.drawers = config, list[Drawer]()
        super().__init__(
            gym.Config(
                path=config.path, images=config.camera, state="state", state_names="+".join(JOINTS), hz=50.0,
                instruction=TASKS[config.path][1], success="info.is_success", kinds="absolute",
                action_names="+".join(JOINTS), max_steps=config.max_steps, batch=config.batch,
            ),
            f"aloha:{config.path}",
        )  # fmt: skip

    def _make(self) -> Any:
        return _wrapped(self.its, self.drawers)


def _wrapped(config: Config, drawers: list[Drawer]) -> gymnasium.Env[Any, Any]:
    """The environment with the cameras that are wanted; it draws three at 640 x 480 each step otherwise. All share
    `drawers`."""
    import gymnasium
    from gym_aloha.env import AlohaEnv

    cameras = config.camera.split("+")

    class Seen(gymnasium.Wrapper):
        def __init__(self) -> None:
            super().__init__(AlohaEnv(TASKS[config.path][0], obs_type="pixels_agent_pos"))
            world: Any = self.env
            self.task, self.physics = world._env.task, world._env.physics
            self.task.get_observation = self.numbers

        def numbers(self, physics: Any) -> OrderedDict[str, Any]:
            return OrderedDict(qpos=self.task.get_qpos(physics), images={"top": physics.data.qpos})

        def reset(self, **told: Any) -> Any:
            seen, info = self.env.reset(**told)
            return self.shown(seen), info

        def step(self, action: Array) -> Any:
            seen, *rest = self.env.step(action)
            return self.shown(seen), *rest

        def shown(self, seen: Any) -> dict[str, Array]:
            model, data = self.physics.model.ptr, self.physics.data.ptr
            if not drawers:
                drawers.append(Drawer(model, config.size, config.shadows))
            return {name: drawers[0].draw(model, data, name) for name in cameras} | {"state": seen["agent_pos"]}

    return Seen()
