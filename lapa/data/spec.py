"""What a dataset is called on the command line: NAME:PATH[,option=value...], such as lerobot:data/robot,camera=top.

NAME is a file in lapa/datasets; the options are the other fields of its Config, and for any of them those of
data/select.py (an option of its own goes first) and `weight`, its share when several datasets are trained on. A comma
that belongs to the path is no trouble where the path exists.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from lapa import plugins
from lapa.contracts import Dataset, LapaError
from lapa.data.folders import printable
from lapa.data.images import Fit
from lapa.data.select import Choice
from lapa.plugins import find, names, source_hash

FORM = "Write NAME:PATH[,option=value...], such as lerobot:data/robot or tabletop:sim,episodes=200."


@dataclass(frozen=True)
class Spec:
    """A dataset by name: `build()` opens it, `key` tells it from others in a cache (with the data's signature).

    `options` are its own, `choice` those that every dataset has."""

    name: str
    path: str
    options: dict[str, Any]
    choice: Choice = Choice()
    weight: float | None = None
    fit: Fit = "squash"

    def build(self) -> Dataset:
        """Open the dataset. Raises LapaError when it refuses the path or an option."""
        dataset: Dataset = find("datasets", self.name)(path=self.path, **self.options).build()
        return self.choice.of(dataset, f"{self.name}:{self.path}", self.fit)

    @property
    def key(self) -> list[Any]:
        """Name, path (absolute where it is a place on disk) and options, as JSON values."""
        here = Path(self.path).expanduser()
        own = source_hash("datasets", self.name)  # one that is being written changes often
        key = [self.name, str(here.absolute()) if here.exists() else self.path, sorted(self.options.items())]
        return [*key, own] if own else key


def parse(text: str) -> Spec:
    """NAME:PATH[,option=value...] -> Spec. Raises LapaError for an unknown name or option, or a value that does not
    fit."""
    name, colon, rest = text.partition(":")
    if not (colon and name and rest):
        raise LapaError(f'"{text}" does not name a dataset. {FORM} Names: {", ".join(names("datasets"))}.')
    try:
        text.encode()
    except UnicodeEncodeError:  # what is made of it is to say where it came from
        raise LapaError(
            f"{printable(text)}: a path that is not UTF-8 cannot be saved. Rename it, or make a link to it (ln -s)."
        ) from None
    name, path, options = plugins.parse("datasets", text, get_type_hints(Choice) | {"weight": float})
    own = {field.name for field in fields(find("datasets", name))}
    weight = options.pop("weight", None)
    if weight is not None and not 0 < weight < math.inf:
        raise LapaError(f"{text}: a weight is above 0, not {weight}.")
    choice = Choice(**{option: options.pop(option) for option in asdict(Choice()).keys() & options.keys() - own})
    choice.check(text)
    return Spec(name, path or "", options, choice, weight)


def parted(joined: str) -> tuple[str, ...]:
    """The datasets of a pack's `spec`, "a:x b:y"; a path may hold spaces."""
    return tuple(re.split(rf" (?=(?:{'|'.join(names('datasets'))}):)", joined))


def open_dataset(text: str) -> Dataset:
    """The dataset that NAME:PATH[,option=value...] names. Raises LapaError as `parse` and the dataset do."""
    return parse(text).build()


def with_camera(texts: Sequence[str], camera: str) -> tuple[str, ...]:
    """The datasets with `camera` chosen wherever there is a choice and none was made. Raises LapaError when none has
    cameras to choose from."""
    specs = [parse(text) for text in texts]
    several = [any(field.name == "camera" for field in fields(find("datasets", spec.name))) for spec in specs]
    if not any(several):
        which = f"there is one camera only in {' '.join(texts)}" if texts else "it goes with --dataset NAME:PATH"
        raise LapaError(f"--camera {camera}: {which}.")
    free = [has and "camera" not in spec.options for has, spec in zip(several, specs, strict=True)]
    return tuple(f"{text},camera={camera}" if one else text for text, one in zip(texts, free, strict=True))


def cameras_of(spec: Spec, wanted: Sequence[str] = ()) -> list[Spec]:
    """The dataset once per camera, each with the option `camera`: those wanted, in their order, else the one that the
    dataset would choose and then all others. Raises LapaError for a camera that is not there."""
    has_choice = any(field.name == "camera" for field in fields(find("datasets", spec.name)))
    if not wanted:
        if not has_choice or "camera" in spec.options:
            return [spec]
        dataset = spec.build()
        names = list(getattr(dataset, "colour_cameras", getattr(dataset, "cameras", ())))
        own = getattr(dataset, "camera", "")
        wanted = sorted(names, key=lambda name: own != name and not own.endswith((f".{name}", f"/{name}")))
        if len(names) < 2:
            return [spec]
    elif not has_choice:
        if len(wanted) > 1:
            raise LapaError(f"{spec.name}:{spec.path} has one camera, not {', '.join(wanted)}.")
        return [spec]
    return [replace(spec, options={**spec.options, "camera": name}) for name in wanted]
