"""Any environment of Gymnasium: `gym:ID,option=value`, where options say where pictures, state and success are.

    gym:lapa/Tabletop-v0,success=info.success
    gym:gym_aloha/AlohaInsertion-v0,images=pixels.top,state=agent_pos,kinds=absolute,success=reward>=4
    gym:my_package:Arm-v0,images=front+wrist,state=joints,instruction=pick up the cube,success=info.is_success,hz=20

Where the observation is a dictionary, a KEY of it may go deeper, as pixels.top does; else the whole of it is called
"observation". What is not there is refused with the names of what is.
"""

from __future__ import annotations

import math
import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lapa.actions.spec import parse_kinds
from lapa.benchmarks._mujoco import OwnRow
from lapa.contracts import ActionSpec, Actor, Array, LapaError, Observation, Step, TaskSpec

WHOLE = "observation"  # what an observation that is no dictionary is called
RENDER = "render"
SUCCESS = ("is_success", "success")  # keys of info that are looked for where no option says
COMPARED: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, ">": operator.gt}


@dataclass(frozen=True)
class Config:
    """An environment and where its parts are."""

    path: str = ""
    """its id, such as CartPole-v1 or my_package:Arm-v0"""
    images: str = ""
    """KEY or KEY+KEY of pictures in the observation, or render ("": all pictures in the observation, else render)"""
    cameras: str = ""
    """NAME or NAME+NAME of them ("": the last part of each KEY)"""
    state: str = ""
    """KEY or KEY+KEY of numbers ("": no state)"""
    state_names: str = ""
    """NAME+NAME of each number of the state ("": state_0, ..)"""
    instruction: str = ""
    """what is asked, in words, or observation.KEY or info.KEY ("": observation.instruction, else nothing)"""
    success: str = ""
    """info.KEY, terminated, reward>=X or return>=X, the sum of rewards ("": info.is_success or info.success)"""
    kinds: str = "delta"
    """what the actions are: delta, absolute, or such as 6delta+binary"""
    action_names: str = ""
    """NAME+NAME of each ("": action_0, ..)"""
    hz: float | None = None
    """actions a second (None: render_fps of its metadata)"""
    max_steps: int | None = None
    """steps of an episode (None: its own limit)"""
    expert: str = ""
    """info.KEY of the action of a demonstrator ("": there is none)"""
    make: dict[str, Any] = field(default_factory=dict)
    """arguments of gymnasium.make, as JSON: make={"domain":"hand"}"""
    batch: int = 16
    """environments side by side"""

    def build(self) -> GymBenchmark:
        """The benchmark. Raises LapaError where something is not where the options say."""
        return GymBenchmark(self)


class GymBenchmark:
    """One environment a running episode, stepped one after another; a policy is asked about all of them at once."""

    def __init__(self, config: Config, name: str = "") -> None:
        """name: of the benchmark, as the user has it ("": gym:ID)."""
        self.config, self.name = config, name or f"gym:{config.path}"
        for option, value in (("batch", config.batch), ("max_steps", config.max_steps)):
            if value is not None and value < 1:
                raise LapaError(f"{self.name}: {option} is at least 1, not {value}.")
        if config.hz is not None and not 0 < config.hz < math.inf:
            raise LapaError(f"{self.name}: hz is above 0, not {config.hz:g}.")
        self._envs = [self._make()]
        env = self._envs[0]
        seen, info = env.reset(seed=0)
        self._keys = self._picture_keys(seen)
        self._state_keys = tuple(filter(None, config.state.split("+")))
        cameras = tuple(filter(None, config.cameras.split("+"))) or tuple(k.rpartition(".")[2] for k in self._keys)
        if len(set(cameras)) != len(self._keys):
            raise LapaError(f"{self.name}: cameras= needs a name of its own for each of {', '.join(self._keys)}.")
        self._success = self._judge()
        self.spec = TaskSpec(
            self._action_spec(env), cameras, (config.path.rpartition(":")[2],), self._max_steps(env),
            self._state_names(seen), config.batch,
        )  # fmt: skip
        self._infos: list[Mapping[str, Any]] = [info]
        self._observation(env, seen, info)  # what is not there is refused now
        words = self.config.instruction or ("observation.instruction" if _has(seen, "instruction") else "none")
        print(f"{self.name}: pictures from {', '.join(self._keys)}; state from "
              f"{', '.join(self._state_keys) or 'nowhere'}; instruction: {words}.", file=sys.stderr)  # fmt: skip

    # --- the contract

    def reset(self, seeds: Sequence[int]) -> list[Observation]:
        """See Benchmark. Raises LapaError for more seeds than `batch`."""
        if len(seeds) > self.config.batch:
            raise LapaError(f"{self.name} runs {self.config.batch} episodes side by side (batch=), not {len(seeds)}.")
        while len(self._envs) < len(seeds):
            self._envs.append(self._make())
        used = self._envs[: len(seeds)]
        begun = [env.reset(seed=int(seed)) for env, seed in zip(used, seeds, strict=True)]
        self._infos = [info for _, info in begun]
        self._returns, self._done = [0.0] * len(seeds), [False] * len(seeds)
        self._shown = [self._observation(env, *told) for env, told in zip(used, begun, strict=True)]
        self._random = [np.random.default_rng([int(seed), 9]) for seed in seeds]
        return list(self._shown)

    def step(self, actions: Array) -> list[Step]:
        """See Benchmark."""
        return [
            Step(self._shown[i], False, True) if done else self._step(i, actions[i])
            for i, done in enumerate(list(self._done))
        ]

    def tasks(self) -> tuple[str, ...]:
        """See Benchmark: the id of the environment."""
        return self.spec.families * len(self._done)

    def picture(self, i: int, size: int) -> Array:
        """What episode i's render() shows, else its first camera, at most `size` pixels a side."""
        from PIL import Image

        env = self._envs[i]
        drawn = self._rendered(env) if env.render_mode == "rgb_array" else next(iter(self._shown[i]["images"].values()))
        image = Image.fromarray(drawn)
        image.thumbnail((size, size))
        return np.asarray(image)

    def baselines(self) -> Mapping[str, Actor]:
        """no_op: zeros, or holding the state where targets are absolute and the state has as many numbers; random: from
        the action space; expert: where an option says."""
        rows: dict[str, Actor] = {}
        kinds, state = self.spec.action.kinds, self.spec.state
        if "absolute" not in kinds or len(state) == len(kinds):
            rows["no_op"] = OwnRow(self._stay)
        rows["random"] = OwnRow(self._anything)
        if self.config.expert:
            rows["expert"] = OwnRow(self._demonstrated)
        return rows

    # --- acting

    def _step(self, i: int, action: Array) -> Step:
        env = self._envs[i]
        space = env.action_space
        seen, reward, terminated, truncated, info = env.step(np.asarray(action, space.dtype).reshape(space.shape))
        self._returns[i] += float(reward)
        self._infos[i], self._shown[i] = info, self._observation(env, seen, info)
        success = self._success(float(reward), self._returns[i], bool(terminated), info)
        self._done[i] = success or bool(terminated) or bool(truncated)
        return Step(self._shown[i], success, self._done[i])

    def _stay(self, i: int) -> Array:
        absolute = np.array([kind == "absolute" for kind in self.spec.action.kinds])
        state = self._shown[i].get("state", np.zeros(len(absolute), np.float32))
        return np.where(absolute, state, 0.0) if absolute.any() else np.zeros(len(absolute), np.float32)

    def _anything(self, i: int) -> Array:
        space = self._envs[i].action_space
        low, high = (np.clip(np.nan_to_num(bound.ravel()), -1e3, 1e3) for bound in (space.low, space.high))
        drawn: Array = self._random[i].uniform(low, high).astype(np.float32)
        return drawn

    def _demonstrated(self, i: int) -> Array:
        return np.asarray(self._in_info(self._infos[i], self.config.expert, "expert"), np.float32).ravel()

    # --- where things are

    def _make(self) -> Any:
        import gymnasium

        options = self.config.make
        try:
            env = gymnasium.make(self.config.path, **options)
            modes = env.metadata.get("render_modes") or []
            if "rgb_array" in modes and "render_mode" not in options and env.render_mode != "rgb_array":
                env.close()
                env = gymnasium.make(self.config.path, **options, render_mode="rgb_array")
        except (gymnasium.error.Error, ImportError, TypeError, OSError) as error:
            raise LapaError(
                f"{self.name} cannot be made: {error}. Is the package that brings it installed, and named as in "
                "gym:PACKAGE:ID? Arguments are given as make=JSON."
            ) from None
        return env

    def _picture_keys(self, seen: Any) -> tuple[str, ...]:
        if self.config.images:
            return tuple(self.config.images.split("+"))
        return tuple(key for key, value in _leaves(seen) if _is_picture(value)) or (RENDER,)

    def _observation(self, env: Any, seen: Any, info: Mapping[str, Any]) -> Observation:
        pictures = [self._rendered(env) if key == RENDER else self._picture(seen, key) for key in self._keys]
        cameras = self.spec.cameras
        shown = Observation(images=dict(zip(cameras, pictures, strict=True)), instruction=self._words(seen, info))
        if self._state_keys:
            shown["state"] = self._state(seen)
        return shown

    def _picture(self, seen: Any, key: str) -> Array:
        found = np.asarray(self._at(seen, key, "images"))
        if not _is_picture(found):
            raise LapaError(f"{self.name}: images={key} is {found.dtype} {list(found.shape)}; a picture is uint8 "
                            "[H, W, 3].")  # fmt: skip
        return found

    def _rendered(self, env: Any) -> Array:
        import gymnasium

        try:
            drawn = env.render() if env.render_mode == "rgb_array" else None
        except gymnasium.error.Error as error:  # such as a package for drawing that is not installed
            raise LapaError(
                f"{self.name}: render() draws nothing: {error}. Or name a picture with images=KEY."
            ) from None
        if not _is_picture(drawn):
            raise LapaError(f"{self.name} has no picture: its observation holds none that is uint8 [H, W, 3], and "
                            "render() gives none. Name one with images=KEY.")  # fmt: skip
        return np.asarray(drawn)

    def _state(self, seen: Any) -> Array:
        parts = [np.asarray(self._at(seen, key, "state"), np.float32).ravel() for key in self._state_keys]
        return np.concatenate(parts)

    def _state_names(self, seen: Any) -> tuple[str, ...]:
        count = len(self._state(seen)) if self._state_keys else 0
        return self._named("state_names", "state", count)

    def _words(self, seen: Any, info: Mapping[str, Any]) -> str:
        told = self.config.instruction
        if told.startswith("info."):
            return self._text(self._in_info(info, told, "instruction"), told)
        if told.startswith("observation."):
            return self._text(self._at(seen, told.partition(".")[2], "instruction"), told)
        return told or (self._text(seen["instruction"], "instruction") if _has(seen, "instruction") else "")

    def _text(self, value: Any, where: str) -> str:
        """An instruction: a text, also in bytes or as NumPy has it. Raises LapaError for anything else."""
        found = value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
        with suppress(UnicodeDecodeError):
            found = found.decode() if isinstance(found, bytes) else found
        if not isinstance(found, str):
            raise LapaError(f"{self.name}: the instruction, {where}, is {type(value).__name__} and no text. Give "
                            "instruction= words, or where a text is.")  # fmt: skip
        return found

    def _at(self, seen: Any, key: str, option: str) -> Any:
        """The part of an observation that KEY names. Raises LapaError with the keys there are."""
        there = dict(_leaves(seen))
        if key not in there:
            raise LapaError(f"{self.name}: {option}={key} is not in the observation. It has {', '.join(there)}.")
        return there[key]

    def _in_info(self, info: Mapping[str, Any], told: str, option: str) -> Any:
        form, _, key = told.partition(".")
        if form != "info" or key not in info:
            there = ", ".join(f"info.{name}" for name in info) or "nothing"
            raise LapaError(f"{self.name}: {option}={told} is not in info. There is {there}.")
        return info[key]

    def _judge(self) -> Callable[[float, float, bool, Mapping[str, Any]], bool]:
        """(reward, return, terminated, info) of a step -> success."""
        told = self.config.success
        if told == "terminated":
            return lambda reward, total, terminated, info: terminated
        if found := re.fullmatch(r"(reward|return)(>=|>)(-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)", told):
            which, compare, threshold = found[1], COMPARED[found[2]], float(found[3])
            return lambda reward, total, terminated, info: compare(reward if which == "reward" else total, threshold)
        if told.startswith("info."):
            return lambda reward, total, terminated, info: bool(self._in_info(info, told, "success"))
        if told:
            raise LapaError(f"{self.name}: success={told} is info.KEY, terminated, reward>=X or return>=X.")
        return self._usual_success

    def _usual_success(self, reward: float, total: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        key = next((name for name in SUCCESS if name in info), None)
        if key is None:
            there = ", ".join(f"info.{name}" for name in info) or "nothing"
            raise LapaError(f"{self.name} does not say what success is: neither {' nor '.join(SUCCESS)} is in info "
                            f"({there}). Give success=info.KEY, terminated, reward>=X or return>=X.")  # fmt: skip
        return bool(info[key])

    def _action_spec(self, env: Any) -> ActionSpec:
        import gymnasium

        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
            raise LapaError(f"{self.name} takes {space}; lapa's policies give real numbers, a Box of floats.")
        count = int(np.prod(space.shape))
        hz = self.config.hz or env.metadata.get("render_fps")
        if not hz:
            raise LapaError(f"{self.name} does not say how many actions it takes a second. Give hz=.")
        names = self._named("action_names", "action", count)
        return ActionSpec(names, parse_kinds(self.config.kinds, count), float(hz))

    def _named(self, option: str, what: str, count: int) -> tuple[str, ...]:
        given = tuple(filter(None, str(getattr(self.config, option)).split("+")))
        if given and len(given) != count:
            raise LapaError(f"{self.name}: {option} are {len(given)}, and there are {count} numbers.")
        return given or tuple(f"{what}_{i}" for i in range(count))

    def _max_steps(self, env: Any) -> int:
        limit = self.config.max_steps or (env.spec.max_episode_steps if env.spec else None)
        if not limit:
            raise LapaError(f"{self.name} does not say how long an episode is. Give max_steps=.")
        return int(limit)


def _leaves(seen: Any, path: str = "") -> list[tuple[str, Any]]:
    """(KEY, value) of everything in an observation."""
    if not isinstance(seen, Mapping):
        return [(path or WHOLE, seen)]
    deeper = [_leaves(value, f"{path}.{key}" if path else str(key)) for key, value in seen.items()]
    return [leaf for part in deeper for leaf in part]


def _has(seen: Any, key: str) -> bool:
    return isinstance(seen, Mapping) and key in seen


def _is_picture(value: Any) -> bool:
    found = np.asarray(value) if isinstance(value, np.ndarray) else None
    return found is not None and found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
