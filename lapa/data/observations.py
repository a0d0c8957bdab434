"""The inputs of a policy: observations of a robot, or frames of a dataset, checked and brought into one form.

{"image": picture, "instruction": text} is short for {"images": {"image": picture}, "instruction": text}. A key that no
policy knows is refused. A key that this policy does not use is named once on stderr.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lapa.contracts import Array, LapaError, Observation, PolicySpec
from lapa.data.pixels import Images

KEYS = ("images", "instruction", "state", "embodiment")
ONE = "image"  # the name of a camera that nobody has named
LONGEST = 100  # characters of a value in a message
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character of UTF-16: no tokenizer takes it

Pictures = Images | list[Array]  # a list where they are of several sizes


@dataclass(frozen=True)
class Seen:
    """B observations.

    images      camera -> uint8 [B, H, W, 3], float [B, 3, H, W] in [0, 1], or B pictures uint8 [H, W, 3] of any size
    texts       B instructions
    state       float32 [B, S] in the robot's units, or None
    embodiment  B names of robots, "" where an observation has none
    features    camera -> float16 [B, F], what a frozen vision encoder sees in the pictures, where that is known already
                (data/features.py); there are no images then
    """

    images: Mapping[str, Pictures]
    texts: list[str]
    state: Array | None = None
    embodiment: tuple[str, ...] = ()
    features: Mapping[str, Array] = field(default_factory=dict)

    @staticmethod
    def of(images: Pictures, texts: Sequence[str]) -> Seen:
        """Pictures of one camera with their instructions."""
        return Seen({ONE: images}, list(texts))

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Seen:
        """These observations."""
        if list(rows) == list(range(len(self))):
            return self
        chosen = list(rows)

        def some(each: Any) -> Any:
            return [each[row] for row in chosen] if isinstance(each, list | tuple) else each[chosen]

        return Seen(
            {camera: some(pictures) for camera, pictures in self.images.items()},
            some(self.texts),
            None if self.state is None else self.state[chosen],
            tuple(some(self.embodiment)) if self.embodiment else (),
            {camera: features[chosen] for camera, features in self.features.items()},
        )

    def part(self, start: int, end: int) -> Seen:
        """Observations start : end."""
        return Seen(
            {camera: pictures[start:end] for camera, pictures in self.images.items()},
            self.texts[start:end],
            None if self.state is None else self.state[start:end],
            self.embodiment[start:end],
            {camera: features[start:end] for camera, features in self.features.items()},
        )


def seen(observations: Sequence[Observation], spec: PolicySpec, embodiments: Sequence[str] = ()) -> Seen:
    """What a policy of this spec and of these robots uses of the observations.

    Raises LapaError for a wrong observation: an unknown key, a missing camera or state, a wrong number of values; and
    for none at all.
    """
    every = [_whole(observation) for observation in observations]
    if not every:
        raise LapaError("A policy is asked about one observation or more; got none.")
    images = {camera: _stacked([_picture(o["images"], camera, spec) for o in every]) for camera in spec.cameras}
    for unused in sorted({key for o in every for key in o["images"]} - set(spec.cameras)):
        if len(spec.cameras) > 1 or any(len(o["images"]) > 1 for o in every):
            say_once(f'This policy does not look at the camera "{unused}"; it looks at {_listed(spec.cameras)}.')
    state = np.stack([_state(o, spec.state) for o in every]) if spec.state and every else None
    if not spec.state and any("state" in o for o in every):
        say_once("This policy does not read the state of the robot; it was trained without (policy.state=false).")
    if not embodiments and any("embodiment" in o for o in every):
        say_once("This policy speaks the actions of one robot; the embodiment in an observation changes nothing.")
    names = tuple(str(o.get("embodiment", "")) for o in every)
    return Seen(images, [str(o["instruction"]) for o in every], state, names)


def _whole(observation: Any) -> dict[str, Any]:
    """An observation with the keys of contracts.Observation. Raises LapaError."""
    form = 'An observation is {"image": uint8 [H, W, 3], "instruction": str}, or has "images" by camera'
    if not isinstance(observation, Mapping):
        raise LapaError(f"{form}; got {type(observation).__name__}.")
    found = dict(observation)
    if ONE in found:
        if "images" in found:
            raise LapaError(f'{form}; got both "image" and "images".')
        found["images"] = {ONE: found.pop(ONE)}
    if unknown := [key for key in found if key not in KEYS]:
        raise LapaError(f"{form}; {_listed(unknown)} is no key of it. Known: image, {', '.join(KEYS)}.")
    if missing := [key for key in KEYS[:2] if key not in found]:
        raise LapaError(f"{form}; {_listed(missing)} is missing.")
    if not isinstance(found["instruction"], str) or SURROGATE.search(found["instruction"]):
        raise LapaError(f"{form}; the instruction is {_shown(found['instruction'])}, which is no text.")
    if not isinstance(found["images"], Mapping) or not found["images"]:
        raise LapaError(f'{form}; "images" is {type(found["images"]).__name__}.')
    return found


def _picture(images: Mapping[str, Any], camera: str, spec: PolicySpec) -> Array:
    """The picture of a camera; a policy of one camera takes the only picture there is, whatever its name."""
    if camera not in images and not (len(spec.cameras) == len(images) == 1):
        raise LapaError(
            f'This policy looks at the camera "{camera}", and the observation has {_listed(images)}. Give it by that '
            "name."
        )
    given = images[camera] if camera in images else next(iter(images.values()))
    try:
        picture = np.asarray(given)
    except ValueError:
        raise LapaError(
            f'An observation is {{"image": uint8 [H, W, 3], ..}}; the picture of {camera} is {_shown(given)}.'
        ) from None
    if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size or picture.dtype != np.uint8:
        raise LapaError(
            f'An observation is {{"image": uint8 [H, W, 3], ..}}; the picture of {camera} is {picture.dtype} '
            f"{list(picture.shape)}."
        )
    return picture


def _stacked(pictures: list[Array]) -> Array | list[Array]:
    return np.stack(pictures) if len({picture.shape for picture in pictures}) == 1 else pictures


def _state(observation: Mapping[str, Any], names: Sequence[str]) -> Array:
    if "state" not in observation:
        raise LapaError(f'This policy reads the state, {len(names)} numbers ({_listed(names)}): give it as "state".')
    wanted = f"This policy reads a state of {len(names)} finite numbers ({_listed(names)})"
    try:
        with np.errstate(over="ignore"):  # what is too large for float32 is not finite
            state = np.asarray(observation["state"], np.float32)
    except (ValueError, TypeError, OverflowError):
        raise LapaError(f"{wanted}; got {_shown(observation['state'])}.") from None
    if state.shape != (len(names),):
        raise LapaError(f"{wanted}; got shape {list(state.shape)}.")
    if not np.isfinite(state).all():
        raise LapaError(f"{wanted}; got {_shown(state.tolist())}.")
    return state


def _shown(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}.."


def _listed(names: Any) -> str:
    shown = [f'"{name}"' for name in names]
    return ", ".join(shown[:8]) + (", .." if len(shown) > 8 else "")


_SAID: set[str] = set()


def say_once(sentence: str) -> None:
    """Print a note to stderr, once in a process."""
    if sentence not in _SAID:
        _SAID.add(sentence)
        print(f"Note: {sentence}", file=sys.stderr, flush=True)
