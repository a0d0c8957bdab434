"""`lapa collect`: any dataset -> a LeRobot v3.0 dataset on disk, the project's one format."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from operator import length_hint
from pathlib import Path
from typing import Any

from lapa.artefacts.folder import provenance
from lapa.contracts import Array, BadVideo, Episode, LapaError
from lapa.data.lerobot_format import LeRobotWriter
from lapa.data.spec import open_dataset
from lapa.runtime.progress import Progress


def collect(specs: Sequence[str], out: Path, skip_bad: bool = False, without_actions: bool = False) -> dict[str, Any]:
    """Write the episodes of `specs` to the new folder `out`, with their actions or as mere video; returns counts.

    Raises LapaError when an episode cannot be read (unless `skip_bad`) or the episodes do not share size and fps.
    """
    datasets = [open_dataset(spec) for spec in specs]
    stream = _readable(chain.from_iterable(d.episodes() for d in datasets), skip_bad)
    if without_actions:
        stream = (replace(episode, actions=None, action_names=()) for episode in stream)
    first = next(stream, None)
    if first is None:
        raise LapaError(f"{', '.join(specs)}: no episode to write.")
    names = first.action_names or _numbered("action", first.actions)
    states = first.state_names or _numbered("state", first.state)
    origin = {"sources": list(specs), **provenance(0, {}, {})}
    frames = 0
    total = sum(length_hint(d) for d in datasets)
    with (
        LeRobotWriter(out, first.fps, first.frames.shape[1], names, states, origin) as writer,
        Progress("collecting", max(total, 1), unit="episodes") as progress,
    ):
        for number, episode in enumerate(chain([first], stream), 1):
            writer.add(episode)
            frames += len(episode.frames)
            progress.update(number)
    return {"episodes": number, "frames": frames, "with": "with" if names else "without"}


def _readable(stream: Iterable[Episode | BadVideo], skip_bad: bool) -> Iterator[Episode]:
    for episode in stream:
        if isinstance(episode, BadVideo):
            if not skip_bad:
                raise episode
            print(f"skipped: {episode}", file=sys.stderr)
        else:
            yield episode


def _numbered(name: str, values: Array | None) -> tuple[str, ...]:
    return () if values is None else tuple(f"{name}_{i}" for i in range(values.shape[1]))
