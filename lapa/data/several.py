"""Datasets of one kind in the folders below one: read one behind another, as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import length_hint
from pathlib import Path

from lapa.contracts import Array, BadVideo, Episode, LapaError, Seekable

SHOWN = 3  # datasets that are named


class Several:
    """The datasets `parts`, by their path below `root`. `room` is above every number of an episode of one of them.

    Episodes are called PATH/ID. Raises LapaError for parts of different robots, or that would be read by cameras of
    different names.
    """

    def __init__(self, root: Path, parts: Mapping[str, Seekable], room: int) -> None:
        self.root, self._parts, self._room = root, dict(parts), room
        self.cameras = _in_all([getattr(part, "cameras", ()) for part in parts.values()])
        self.colour_cameras = _in_all([getattr(part, "colour_cameras", self.cameras) for part in parts.values()])
        self.camera: str = getattr(next(iter(parts.values())), "camera", "")
        self._require_one("camera", "would be read by different cameras", "Say which with camera=, or give")
        self._require_one("embodiment", "are of different robots", "Give")
        self.notes = (f"read: {len(parts)} datasets below {root}: {self._named(self._parts)}",)

    def __len__(self) -> int:
        return sum(map(length_hint, self._parts.values()))

    def signature(self) -> str:
        """Those of the parts."""
        return " ".join(f"{name} {part.signature()}" for name, part in self._parts.items())

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield those of the parts, one part behind another."""
        for name, part in self._parts.items():
            for episode in part.episodes(size):
                yield self._called(name, episode)

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """See contracts.Seekable."""
        for place, (name, part) in enumerate(self._parts.items()):
            for number, episode in part.index():
                yield number if number < 0 else place * self._room + number, self._called(name, episode)

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """See contracts.Seekable."""
        return list(self._parts.values())[number // self._room].frames(number % self._room, size, start)

    def _called(self, name: str, episode: Episode | BadVideo) -> Episode | BadVideo:
        return episode if isinstance(episode, BadVideo) else replace(episode, id=f"{name}/{episode.id}")

    def _require_one(self, attribute: str, what: str, then: str) -> None:
        """Raises LapaError unless the parts agree on an attribute."""
        found: dict[str, list[str]] = {}
        for name, part in self._parts.items():
            found.setdefault(getattr(part, attribute, ""), []).append(name)
        if len(found) > 1:
            each = "; ".join(f"{value or 'unknown'}: {self._named(names)}" for value, names in found.items())
            raise LapaError(f"{self.root}: its datasets {what} ({each}). {then} each with a --dataset of its own.")

    @staticmethod
    def _named(names: Mapping[str, object] | list[str]) -> str:
        return ", ".join(list(names)[:SHOWN]) + (", .." if len(names) > SHOWN else "")


def _in_all(cameras: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(name for name in cameras[0] if all(name in others for others in cameras))
