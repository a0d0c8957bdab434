"""lapa's benchmarks as environments of LeRobot: --env.type=lapa --env.task=tabletop (as `lapa evaluate --benchmark`).

Seed i of LeRobot is scene i of lapa's tests, so `lerobot-eval --seed=0` meets the scenes that `lapa evaluate` meets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from lapa.contracts import Observation
from lapa.evaluate import Trial, open_benchmark
from lapa.interop.lerobot_policy import ACTION, IMAGES, STATE, features_of

ID = "lapa/Benchmark-v0"
FIRST = Trial(1).seeds[0]
FILM = 192  # pixels a side of a film


class BenchmarkEnv(gym.Env):
    """One scene at a time. Observations: pixels, {camera: uint8 [H, W, 3]}, and agent_pos, the state."""

    def __init__(self, benchmark: str = "tabletop", render_mode: str = "rgb_array") -> None:
        self._world = open_benchmark(benchmark)
        spec = self._world.spec
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": max(1, round(spec.action.hz))}
        self.render_mode = render_mode
        self._max_episode_steps = spec.max_steps
        self.task = self.task_description = ""
        self._short = {name: feature.removeprefix(IMAGES) for name, feature in features_of(spec.cameras).items()}
        low, high = np.array(spec.limits or [(-np.inf, np.inf)] * len(spec.action), np.float32).T
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)
        shown = self._shown(self._world.reset([FIRST])[0])
        self.observation_space = _space(shown)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(10_000))
        self._steps = 0
        self._seen = self._world.reset([FIRST + seed])[0]
        self.task = self.task_description = self._seen["instruction"]
        return self._shown(self._seen), {"is_success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        made = self._world.step(np.asarray(action, np.float64)[None])[0]
        self._seen, self._steps = made.observation, self._steps + 1
        done = made.success or made.done
        truncated = not done and self._steps >= self._max_episode_steps
        return self._shown(self._seen), float(made.success), done, truncated, {"is_success": bool(made.success)}

    def render(self) -> np.ndarray:
        draw = getattr(self._world, "picture", None)
        return draw(0, FILM) if draw else np.asarray(next(iter(self._seen["images"].values())))

    def _shown(self, seen: Observation) -> dict[str, Any]:
        shown = {"pixels": {self._short[name]: np.asarray(seen["images"][name]) for name in self._short}}
        return {**shown, "agent_pos": np.asarray(seen["state"], np.float32)} if "state" in seen else shown


def _space(shown: Any) -> gym.Space:
    if isinstance(shown, dict):
        return gym.spaces.Dict({name: _space(each) for name, each in shown.items()})
    if shown.dtype == np.uint8:
        return gym.spaces.Box(0, 255, shown.shape, np.uint8)
    return gym.spaces.Box(-np.inf, np.inf, shown.shape, np.float32)


gym.register(ID, BenchmarkEnv)


@EnvConfig.register_subclass("lapa")
@dataclass
class LapaEnvConfig(EnvConfig):
    """task: a benchmark of lapa, NAME[:PATH][,OPTION=VALUE]. The rest is what the benchmark says."""

    task: str | None = "tabletop"
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        env = BenchmarkEnv(self.task or "tabletop")
        self.fps = env.metadata["render_fps"]
        self.features = {ACTION: PolicyFeature(FeatureType.ACTION, env.action_space.shape)}
        self.features_map = {ACTION: ACTION}
        for short, space in env.observation_space["pixels"].spaces.items():
            self.features[f"pixels/{short}"] = PolicyFeature(FeatureType.VISUAL, space.shape)
            self.features_map[f"pixels/{short}"] = IMAGES + short
        if "agent_pos" in env.observation_space.spaces:
            shape = env.observation_space["agent_pos"].shape
            self.features["agent_pos"] = PolicyFeature(FeatureType.STATE, shape)
            self.features_map["agent_pos"] = STATE

    @property
    def package_name(self) -> str:
        return __package__

    @property
    def gym_id(self) -> str:
        return ID

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"benchmark": self.task or "tabletop"}
