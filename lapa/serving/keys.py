"""Which of a client's keys is which camera of the policy, its state, the instruction.

Every kind of client has its own keys: "observation/image", {"images": {"cam_high": ..}}, "full_image". Nested keys are
written with a slash here: "images/cam_high". Four presets have the keys of well-known robots in all protocols. For any
other robot a small file names them. Without either, names are compared. The choice is printed. If an observation can be
understood in two ways, it is refused, and the answer lists its keys.

A file is JSON or YAML:

    cameras: {top: observation/image, wrist: observation/wrist_image}      camera of the policy: key of the client
    state: [observation/joint_position, observation/gripper_position]      one key, or several that are joined
    instruction: prompt
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import Array, LapaError, Observation, PolicySpec
from lapa.data.cameras import fault_by_name, is_on_hand
from lapa.plugins import choose
from lapa.serving import Fault, shortened
from lapa.serving.pictures import as_picture, is_picture

Either = tuple[str, ...]  # keys of one meaning in several protocols; the first in the observation is used
INSTRUCTION: Either = ("prompt", "instruction", "task_description", "language_instruction", "task", "language", "text")
STATES = ("state", "states", "proprio", "qpos", "agent_pos", "robot_state", "joint_state")
LONGEST_INSTRUCTION = 2000  # characters
MOST_NUMBERS = 1000  # of a state


@dataclass(frozen=True)
class Preset:
    """The keys of a well-known robot or benchmark.

    cameras  those of the scene first; channels_first: its servers take pictures as [3, H, W]
    state    the parts that are joined to the state, with their lengths
    actions  length of an action; chunk: number of actions that its clients need in an answer, 0: any
    """

    cameras: tuple[Either, ...]
    state: tuple[tuple[Either, int], ...]
    actions: int
    chunk: int = 0
    channels_first: bool = False


PRESETS = {
    "libero": Preset(
        (("observation/image", "images/agentview", "full_image", "image"),
         ("observation/wrist_image", "images/wrist", "wrist_image", "left_wrist_image")),
        ((("observation/state", "states", "state"), 8),), 7,
    ),
    "droid": Preset(
        (("observation/exterior_image_1_left", "full_image", "image"), ("observation/exterior_image_2_left",),
         ("observation/wrist_image_left", "wrist_image")),
        ((("observation/joint_position",), 7), (("observation/gripper_position",), 1)), 8, chunk=10,
    ),
    "aloha": Preset(
        (("images/cam_high", "full_image", "image"), ("images/cam_low",),
         ("images/cam_left_wrist", "left_wrist_image"), ("images/cam_right_wrist", "right_wrist_image")),
        ((("state",), 14),), 14, channels_first=True,
    ),
    "widowx": Preset(
        (("observation/image", "image", "full_image", "images/external_cam", "images/3rd_view_camera"),
         ("observation/wrist_image", "wrist_image")),
        ((("observation/state", "state", "proprio"), 7),), 7,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Keys:
    """How a client's observation becomes the policy's.

    cameras      camera of the policy -> keys of the client; empty: names are compared
    state        keys of its parts; empty: names are compared
    usual        the instruction for observations without one; None: these are refused
    embodiment   the robot whose actions are wanted, for observations that do not name one
    say          is called with a sentence about each choice
    """

    spec: PolicySpec
    cameras: Mapping[str, Either] = field(default_factory=dict)
    state: tuple[Either, ...] = ()
    instruction: Either = INSTRUCTION
    usual: str | None = None
    embodiment: str = ""
    say: Callable[[str], None] = lambda sentence: None

    def observation(self, sent: Any) -> tuple[Observation, Array | None]:
        """The policy's observation, and the client's state, float32 [n], even if the policy does not read it. Raises
        Fault."""
        if not isinstance(sent, Mapping):
            raise Fault(f"An observation is a dictionary; got {type(sent).__name__}.")
        flat = {key: value for key, value in flattened(sent).items() if value is not None}  # None: it has none
        taken = self._cameras(flat)
        images = {camera: as_picture(flat[key], key) for camera, key in taken.items()}
        state = self._state(flat)
        observation = Observation(images=images, instruction=self._instruction(flat))
        if self.spec.state:
            if state is None or len(state) != len(self.spec.state):
                raise Fault(self._no_state(flat, state))
            observation["state"] = state
        robot = flat.get("embodiment", "")
        if not isinstance(robot, str):
            raise Fault(f"The embodiment is {type(robot).__name__}; it is a text.")
        if robot or self.embodiment:
            observation["embodiment"] = robot or self.embodiment
        return observation, state

    def lines(self) -> list[str]:
        """The choices, one line each, for the message at start."""
        cameras = [f"{camera} from {' or '.join(keys)}" for camera, keys in self.cameras.items()]
        state = " + ".join(" or ".join(part) for part in self.state)
        read = f"{len(self.spec.state)} numbers ({_few(self.spec.state)})" if self.spec.state else "not read"
        named = "; ".join(cameras) or f"{', '.join(self.spec.cameras)}, found by name in what a client sends"
        usual = "" if self.usual is None else f', else "{self.usual}"'
        return [
            f"cameras      {named}",
            f"state        {read}" + (f", from {state or 'state'}" if self.spec.state else ""),
            f"instruction  from {' or '.join(self.instruction)}{usual}",
        ]

    # --- parts of an observation

    def _cameras(self, flat: Mapping[str, Any]) -> dict[str, str]:
        """Camera of the policy -> key of the client."""
        if not self.cameras:
            there = [key for key, value in flat.items() if is_picture(value) or _like_picture(value)]
            found = matched(self.spec.cameras, there)
            if not there:
                raise Fault(f"The observation has no picture. There is {_few(list(flat)) or 'nothing'}.")
            if found is None:
                raise Fault(f"The policy looks at the cameras {_few(self.spec.cameras)}; which of the pictures "
                            f"{_few(there)} they are, the names do not say. Name them alike, or "
                            "start the server with --keys.")  # fmt: skip
            for camera, key in found.items():
                if camera not in key:
                    self.say(f"the camera {camera} is taken from {shortened(key)}")
            return found
        chosen = {camera: next((key for key in keys if key in flat), "") for camera, keys in self.cameras.items()}
        if missing := [camera for camera, key in chosen.items() if not key]:
            keys = " or ".join(self.cameras[missing[0]])
            raise Fault(
                f"The camera {missing[0]} is taken from {keys}, which is not there. There is {_few(list(flat))}."
            )
        return chosen

    def _state(self, flat: Mapping[str, Any]) -> Array | None:
        keys = [next((key for key in part if key in flat), "") for part in self.state]
        if not keys or not all(keys):
            keys = [key for key in flat if (key == STATES[0] if self.state else _end(key) in STATES)]
            if len(keys) > 1 and self.spec.state:
                raise Fault(f"The policy reads the state {_few(self.spec.state)}; which of {_few(keys)} that is, the "
                            "names do not say. Send one, or start the server with --keys.")  # fmt: skip
            if not keys:
                return None
            keys = keys[:1]
        return np.concatenate([_numbers(flat[key], key) for key in keys])

    def _no_state(self, flat: Mapping[str, Any], state: Array | None) -> str:
        wanted = f"The policy reads a state of {len(self.spec.state)} numbers ({_few(self.spec.state)})"
        if state is not None:
            return f"{wanted}; the observation has {len(state)}."
        keys = " and ".join(" or ".join(part) for part in self.state) or " or ".join(STATES[:3])
        return f"{wanted} from {keys}, which is not there. There is {_few(list(flat))}."

    def _instruction(self, flat: Mapping[str, Any]) -> str:
        key = next((key for key in self.instruction if key in flat), None)
        if key is None:
            key = next((key for key in flat if _end(key) in self.instruction), None)
        if key is None:
            if self.usual is None:
                raise Fault(f"The observation has no instruction ({' or '.join(self.instruction[:3])}). There is "
                            f"{_few(list(flat))}. --instruction of the server gives one to all.")  # fmt: skip
            return self.usual
        text = flat[key]
        if isinstance(text, list) and len(text) == 1:
            text = text[0]
        if not isinstance(text, str) or len(text) > LONGEST_INSTRUCTION:
            raise Fault(f"{key} is a text of at most {LONGEST_INSTRUCTION:,} characters.")
        return text


def keys_of(spec: PolicySpec, told: str, **more: Any) -> Keys:
    """The Keys of a policy for `told`: "" (names are compared), a preset, or a file.

    Raises LapaError for an unknown preset, and for a file that does not fit the policy.
    """
    if not told:
        return Keys(spec, **more)
    if Path(told).suffix.lower() in (".json", ".yaml", ".yml"):
        return _of_file(spec, Path(told), more)
    preset = PRESETS[choose(told, PRESETS, "preset of keys, nor a .json or .yaml file")]
    ends = {keys[0]: keys for keys in preset.cameras}
    found = matched(spec.cameras, list(ends), first=True)
    if found is None:
        raise LapaError(
            f"--keys {told}: the policy looks at the cameras {_few(spec.cameras)}; which of {', '.join(ends)} they "
            "are, the names do not say. Write a small file (docs/serving.md)."
        )
    cameras = {camera: ends[key] for camera, key in found.items()}
    return Keys(spec, cameras, tuple(part for part, _ in preset.state), **more)


def notes_on(preset: str, spec: PolicySpec) -> list[str]:
    """The differences between a policy and what the clients of a preset expect."""
    if preset not in PRESETS or spec.action is None:
        return []
    known, found = PRESETS[preset], []
    state = sum(count for _, count in known.state)
    if len(spec.action) != known.actions:
        found.append(
            f"clients of {preset} take actions of {known.actions} numbers; this policy gives {len(spec.action)}"
        )
    if spec.state and len(spec.state) != state:
        found.append(f"clients of {preset} send a state of {state} numbers; this policy reads {len(spec.state)}")
    if known.chunk and spec.chunk != known.chunk:
        found.append(f"clients of {preset} take chunks of {known.chunk} actions; this policy gives {spec.chunk}")
    return found


def matched(cameras: Sequence[str], keys: Sequence[str], first: bool = False) -> dict[str, str] | None:
    """Camera of the policy -> key of the client, each key once; None if the names do not decide.

    First the last parts of the names are compared: "observation.images.top" is "images/top". Then the only camera that
    is not on a hand gets the only such picture; likewise for the one on a hand. The only camera gets the only picture,
    whatever its name. `first`: of several pictures that are not from a hand take the first; the most important key
    comes first.
    """
    found: dict[str, str] = {}
    for camera in cameras:
        for same in (_same, _same_end):
            if len(fit := [key for key in keys if same(camera, key)]) == 1:
                found[camera] = fit[0]
                break
    if len(set(found.values())) < len(found):
        return None
    rest = [camera for camera in cameras if camera not in found]
    free = [key for key in keys if key not in found.values()]
    for hand in (True, False):
        ours = [camera for camera in rest if is_on_hand(_end(camera)) == hand]
        theirs = [key for key in free if is_on_hand(_end(key)) == hand and not fault_by_name(_end(key))]
        if len(ours) == 1 and theirs and (len(theirs) == 1 or (first and not hand)):
            found[ours[0]] = theirs[0]
    if len(cameras) == len(keys) == 1:
        found = {cameras[0]: keys[0]}
    return found if len(found) == len(cameras) else None


def flattened(sent: Mapping[Any, Any], within: str = "", depth: int = 0) -> dict[str, Any]:
    """{"images": {"top": x}} -> {"images/top": x}."""
    found: dict[str, Any] = {}
    for name, value in sent.items():
        key = f"{within}{name}"
        if isinstance(value, Mapping) and depth < 4:
            found |= flattened(value, f"{key}/", depth + 1)
        else:
            found[key] = value
    return found


def _of_file(spec: PolicySpec, path: Path, more: dict[str, Any]) -> Keys:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            told = json.loads(text)
        else:
            import yaml

            told = yaml.safe_load(text)
    except OSError as error:
        raise LapaError(f"--keys {path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise LapaError(f"--keys {path}: is no JSON ({error}).") from None
    except Exception as error:  # what PyYAML raises is of a class that exists only where it is installed
        raise LapaError(f"--keys {path}: is no YAML ({error}).") from None
    known = ("cameras", "state", "instruction")
    if not isinstance(told, dict) or not set(told) <= set(known):
        raise LapaError(f"--keys {path}: has {', '.join(known)}, such as {{cameras: {{{spec.cameras[0]}: image}}}}.")
    cameras, state, instruction = (told.get(name) for name in known)
    cameras = cameras or {}
    if not isinstance(cameras, dict) or set(map(str, cameras)) - set(spec.cameras):
        raise LapaError(f"--keys {path}: cameras are those of the policy, {_few(spec.cameras)}, each with a key.")
    if cameras and (missing := [camera for camera in spec.cameras if camera not in cameras]):
        raise LapaError(f"--keys {path}: the camera {missing[0]} has no key.")
    return Keys(
        spec,
        {camera: _either(cameras[camera], path) for camera in spec.cameras} if cameras else {},
        tuple((key,) for key in _either(state, path)) if state else (),
        _either(instruction, path) if instruction else INSTRUCTION,
        **more,
    )


def _either(told: Any, path: Path) -> Either:
    names = told if isinstance(told, list) else [told]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise LapaError(f"--keys {path}: a key is a text or a list of texts, not {told!r}.")
    return tuple(names)


def _numbers(value: Any, key: str) -> Array:
    """float32 [n]. Raises Fault."""
    try:
        with np.errstate(over="ignore"):  # what is too large for float32 is not finite
            found = np.atleast_1d(np.asarray(value, np.float32))
    except (ValueError, TypeError, OverflowError):
        found = np.zeros((0, 0), np.float32)
    if found.ndim != 1 or not 1 <= len(found) <= MOST_NUMBERS or not np.isfinite(found).all():
        raise Fault(f"{key} is a list of 1 to {MOST_NUMBERS:,} finite numbers; got {_what(value)}.")
    return found


def _what(value: Any) -> str:
    if isinstance(value, np.ndarray):
        finite = value.dtype.kind != "f" or bool(np.isfinite(value).all())
        return f"{value.dtype} {list(value.shape)}" + ("" if finite else ", not all of them finite")
    return shortened(value, 60)


def _like_picture(value: Any) -> bool:
    """Lists in lists in a list: a picture in plain JSON."""
    depth = 0
    while isinstance(value, list) and value:
        value, depth = value[0], depth + 1
    return depth >= 3


def _same(camera: str, key: str) -> bool:
    return camera == key


def _same_end(camera: str, key: str) -> bool:
    return _end(camera) == _end(key)


def _end(key: str) -> str:
    return re.split(r"[./]", key)[-1]


def _few(names: Sequence[str]) -> str:
    shown = [shortened(name, 60)[1:-1] for name in names[:8]]
    return ", ".join(shown) + (", .." if len(names) > 8 else "")
