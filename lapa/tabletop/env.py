"""The table as a simulation to step: `Table` for batches, and the Gymnasium environments around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space

from lapa.contracts import Array, LapaError
from lapa.plugins import choose
from lapa.tabletop import language as lang
from lapa.tabletop import world
from lapa.tabletop.expert import act as expert_motion
from lapa.tabletop.render import DOMAINS, render

TREMOR = 0.2  # standard deviation of the demonstrator's motor noise, in steps: demonstrations show recoveries
STATE_NAMES = ("effector_x", "effector_y", *(f"block{i}_{axis}" for i in range(world.BLOCKS) for axis in "xy"))
ACTION_NAMES = ("dx", "dy")


class Table:
    """N scenes of one domain. Actions are in robot units: `DOMAINS[domain].frame` turns board motion into them."""

    def __init__(
        self,
        seeds: Sequence[int] | Array,
        domain: str = "sim",
        split: str = "seen",
        families: Sequence[str] = lang.FAMILIES,
        image_size: int = 48,
    ) -> None:
        choose(domain, tuple(DOMAINS), "domain of Tabletop")
        self.domain, self.image_size, self.tick = domain, image_size, 0
        self.scenes, self.tasks = world.reset(seeds, split, families)
        self.frame = np.array(DOMAINS[domain].frame)
        self._noise = np.stack(
            [np.random.default_rng([int(s), 7]).normal(size=(world.TIME_LIMIT, 2)) for s in self.scenes.seeds]
        )
        self._rests = np.stack([np.random.default_rng([int(s), 8]).random(world.TIME_LIMIT) for s in self.scenes.seeds])
        self._last = np.zeros((len(self.scenes), 2))

    @property
    def instructions(self) -> tuple[str, ...]:
        return self.tasks.instruction

    def images(self, size: int | None = None, first: int | None = None) -> Array:
        """uint8 [N, size, size, 3] of the present state, or of the `first` scenes only."""
        return render(self.scenes.head(first), self.domain, size or self.image_size, self.tick)

    def state(self) -> Array:
        """float32 [N, 2 + 2 * BLOCKS], named by STATE_NAMES; for probes, not for policies."""
        flat = self.scenes.blocks.reshape(len(self.scenes), -1)
        return np.concatenate([self.scenes.effector, flat], 1).astype(np.float32)

    def step(self, actions: Array) -> Array:
        """Apply robot actions float [N, 2]; returns success, bool [N]. Raises LapaError on non-finite actions."""
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (len(self.scenes), 2) or not np.isfinite(actions).all():
            raise LapaError(
                f"Tabletop takes finite actions of shape ({len(self.scenes)}, 2), got {actions.shape}"
                f"{'' if np.isfinite(actions).all() else ' with NaN or infinity'}."
            )
        inverse = np.linalg.inv(self.frame)
        # Written out (no matmul): the same bits in every batch size.
        delta = np.stack([actions[:, 0] * row[0] + actions[:, 1] * row[1] for row in inverse], 1)
        self.scenes = world.step(self.scenes, delta)
        self.tick += 1
        return world.success(self.scenes, self.tasks)

    def expert(self) -> Array:
        """The demonstrator's next action, float32 [N, 2] in robot units, with its tremor, pauses and smoothness."""
        style, tick = DOMAINS[self.domain], min(self.tick, world.TIME_LIMIT - 1)
        motion = expert_motion(self.scenes, self.tasks) + TREMOR * world.STEP * self._noise[:, tick]
        motion = style.smooth * self._last + (1 - style.smooth) * motion
        motion = motion * np.minimum(1.0, world.STEP / np.maximum(world.length(motion), 1e-9))[:, None]
        motion = np.where((self._rests[:, tick] < style.pause)[:, None], 0.0, motion)
        self._last = motion
        return np.stack([motion[:, 0] * row[0] + motion[:, 1] * row[1] for row in self.frame], 1).astype(np.float32)


def _spaces(domain: str, image_size: int) -> tuple[gym.spaces.Dict, gym.spaces.Box]:
    reach = float(world.STEP * np.abs(np.array(DOMAINS[domain].frame)).max())
    observation = gym.spaces.Dict(
        image=gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
        instruction=gym.spaces.Text(max_length=160, charset="abcdefghijklmnopqrstuvwxyz "),
    )
    return observation, gym.spaces.Box(-reach, reach, (2,), np.float32)


class TabletopEnv(gym.Env[dict[str, Any], Array]):
    """`gymnasium.make("lapa/Tabletop-v0", domain="sim", split="seen", image_size=48)`: one scene a time; reward 1 and
    termination on success, truncation after 60 steps. `info` holds `family`, `success`, `expert_action`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": int(world.FPS)}  # noqa: RUF012  (Gymnasium's interface)

    def __init__(
        self, domain: str = "sim", split: str = "seen", image_size: int = 48, render_mode: str | None = "rgb_array"
    ) -> None:
        choose(domain, tuple(DOMAINS), "domain of Tabletop")
        self.domain, self.split, self.image_size, self.render_mode = domain, split, image_size, render_mode
        self.observation_space, self.action_space = _spaces(domain, image_size)
        self.table: Table | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        drawn = seed if seed is not None else int(self.np_random.integers(2**31))
        self.table = Table([drawn], self.domain, self.split, image_size=self.image_size)
        return self._observe(), self._info(False)

    def step(self, action: Array) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self.table is None:
            raise LapaError("Call reset() before step() on lapa/Tabletop-v0.")
        done = bool(self.table.step(np.asarray(action)[None])[0])
        truncated = not done and self.table.tick >= world.TIME_LIMIT
        return self._observe(), float(done), done, truncated, self._info(done)

    def render(self) -> Array:
        if self.table is None:
            raise LapaError("Call reset() before render() on lapa/Tabletop-v0.")
        return self.table.images(256)[0]

    def _observe(self) -> dict[str, Any]:
        assert self.table is not None
        return {"image": self.table.images()[0], "instruction": self.table.instructions[0]}

    def _info(self, done: bool) -> dict[str, Any]:
        assert self.table is not None
        family = lang.FAMILIES[int(self.table.tasks.family[0])]
        return {"family": family, "success": done, "expert_action": self.table.expert()[0]}


class TabletopVectorEnv(gym.vector.VectorEnv[dict[str, Any], Array, Array]):
    """`gymnasium.make_vec("lapa/Tabletop-v0", num_envs=N, vectorization_mode="vector_entry_point")`: N scenes stepped
    as one batch, each equal bit for bit to the single environment of its seed. A finished scene stays as it is until
    all are reset (autoreset is disabled)."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED, "render_fps": int(world.FPS)}  # noqa: RUF012

    def __init__(
        self, num_envs: int = 1, domain: str = "sim", split: str = "seen", image_size: int = 48, **_: Any
    ) -> None:
        choose(domain, tuple(DOMAINS), "domain of Tabletop")
        self.num_envs, self.domain, self.split, self.image_size = num_envs, domain, split, image_size
        self.single_observation_space, self.single_action_space = _spaces(domain, image_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.table: Table | None = None
        self._done = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if isinstance(seed, int):
            seed = [seed + i for i in range(self.num_envs)]
        seeds = [s if s is not None else int(self.np_random.integers(2**31)) for s in seed or [None] * self.num_envs]
        self.table = Table(seeds, self.domain, self.split, image_size=self.image_size)
        self._done = np.zeros(self.num_envs, bool)
        return self._observe(), {}

    def step(self, actions: Array) -> tuple[dict[str, Any], Array, Array, Array, dict[str, Any]]:
        if self.table is None:
            raise LapaError("Call reset() before step() on lapa/Tabletop-v0.")
        success = self.table.step(actions)
        new = success & ~self._done
        self._done = self._done | success
        truncated = ~self._done & (self.table.tick >= world.TIME_LIMIT)
        return self._observe(), new.astype(np.float64), self._done.copy(), truncated, {"success": self._done.copy()}

    def _observe(self) -> dict[str, Any]:
        assert self.table is not None
        return {"image": self.table.images(), "instruction": self.table.instructions}
