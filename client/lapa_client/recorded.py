"""A dry run: the server's actions for recorded episodes, compared with the recorded actions. Nothing moves."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapa_client.client import Client


@dataclass(frozen=True)
class Episode:
    """images: camera -> uint8 [T, H, W, 3]; actions [T, A]: action t follows picture t; state [T, S] or None; fps: 0 if
    it is not known."""

    name: str
    images: dict[str, np.ndarray]
    actions: np.ndarray
    state: np.ndarray | None = None
    instruction: str = ""
    fps: float = 0.0

    def observation(self, step: int) -> dict[str, Any]:
        """The observation of this step."""
        shown: dict[str, Any] = {"images": {name: frames[step] for name, frames in self.images.items()},
                                 "prompt": self.instruction}  # fmt: skip
        return shown if self.state is None else {**shown, "state": np.asarray(self.state[step], np.float32)}


def read_episodes(source: str) -> Iterator[Episode]:
    """The episodes of a folder of .npz files, of one file, or of NAME:PATH[,OPTION=VALUE] if lapa is installed. Raises
    ValueError, which names the file, if it is not an episode."""
    path = Path(source)
    if path.is_dir() or path.suffix == ".npz":
        files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{source}: has no .npz files.")
        yield from map(_of_file, files)
        return
    try:
        from lapa.contracts import LapaError
        from lapa.data.spec import open_dataset
    except ImportError:
        raise ValueError(f"{source}: is no folder of .npz files. To read NAME:PATH, install lapa.") from None
    try:
        yield from _of_lapa(source, open_dataset(source).episodes())
    except LapaError as error:
        raise ValueError(str(error)) from None


def _of_lapa(source: str, episodes: Iterable[Any]) -> Iterator[Episode]:
    for episode in episodes:
        if isinstance(episode, Exception):
            print(f"passed over: {episode}")
        elif episode.actions is None:
            raise ValueError(f"{source}: {episode.id} has no actions to compare with.")
        else:
            state = None if episode.state is None else episode.state[: len(episode.actions)]
            yield Episode(episode.id, {episode.camera or "image": episode.frames}, episode.actions, state,
                          episode.instruction, episode.fps)  # fmt: skip


def _of_file(path: Path) -> Episode:
    try:
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            if isinstance(held, np.ndarray):
                raise ValueError("it is a single array")
            told = {key: held[key] for key in held.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}).") from None
    images = {key.partition("/")[2]: frames for key, frames in told.items() if key.startswith("images/")}
    if not images or "actions" not in told:
        raise ValueError(f"{path}: has no images/NAME and actions. It has {', '.join(told)}.")
    actions, state = told["actions"], told.get("state")
    lengths = {len(actions), *map(len, images.values()), *([] if state is None else [len(state)])}
    if actions.ndim != 2 or not len(actions) or max(lengths) - len(actions) > 1 or min(lengths) < len(actions):
        raise ValueError(f"{path}: images, state and actions go together, actions [T, A]; got {sorted(lengths)} steps.")
    if actions.dtype.kind not in "biuf" or not np.isfinite(actions).all():
        raise ValueError(f"{path}: the actions are finite numbers; these are not, of {actions.dtype}.")
    instruction, fps = _one(path, told, "instruction", ""), _one(path, told, "fps", 0)
    if not isinstance(instruction, str) or not isinstance(fps, int | float):
        raise ValueError(f"{path}: instruction is one text, fps one number; got {instruction!r} and {fps!r}.")
    return Episode(path.stem, images, actions, state, instruction, float(fps))


def _one(path: Path, told: dict[str, Any], key: str, missing: Any) -> Any:
    """The value of `key`, one for the whole episode; bytes as text. Raises ValueError where it has several."""
    values = set(np.ravel(told.get(key, missing)).tolist())
    if len(values) != 1:
        raise ValueError(f"{path}: {key} is one for the whole episode; got {len(values)} different ones.")
    value = values.pop()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def compare(client: Client, episodes: Iterable[Episode], execute: int | None = None) -> dict[str, Any]:
    """Send every `execute`-th observation (None: the server's number) and compare. Results over all steps:

    error, mean_action  float [A]: mean absolute error of the actions, and of the constant mean action
    jump       float [A]: the largest change between two successive actions
    late       share of answers that take longer than the actions before them (0 if the rate is not known)
    ms         of every answer. Raises ValueError if the actions have another number of dimensions, or if an answer has
               fewer than `execute` actions.
    """
    count = int(execute if execute is not None else client.about.get("execute") or 1)
    if count < 1:
        raise ValueError(f"--execute is at least 1, not {count}.")
    wanted, given, jumps, ms, late = [], [], [], [], []
    names: list[str] = []
    for episode in episodes:
        client.new_episode()
        names.append(episode.name)
        actions = np.asarray(episode.actions, np.float64)
        said: list[np.ndarray] = []
        for step in range(0, len(actions), count):
            answer = client.ask(episode.observation(step))
            if answer.actions.shape[1] != actions.shape[1]:
                raise ValueError(f"{episode.name}: has actions of {actions.shape[1]} numbers, the server gives "
                                 f"{answer.actions.shape[1]}.")  # fmt: skip
            if len(answer.actions) < min(count, len(actions) - step):
                raise ValueError(f"--execute {count}: the server answers with {len(answer.actions)} actions.")
            said.append(answer.actions[: min(count, len(actions) - step)])
            wanted.append(actions[step : step + len(said[-1])])
            ms.append(answer.ms)
            late.append(bool(episode.fps) and answer.ms > 1000 * count / episode.fps)
        given.append(np.concatenate(said))
        jumps.append(np.abs(np.diff(given[-1], axis=0)).max(0, initial=0))
    if not names:
        raise ValueError("There are no episodes.")
    right, found = np.concatenate(wanted), np.concatenate(given)
    return {
        "episodes": len(names), "steps": len(right), "error": np.abs(found - right).mean(0),
        "mean_action": np.abs(right - right.mean(0)).mean(0), "jump": np.max(jumps, 0), "late": float(np.mean(late)),
        "ms": ms,
    }  # fmt: skip


def table(found: dict[str, Any], names: list[str]) -> str:
    """The results as text, one line for each number of the action."""
    half, most = np.percentile(found["ms"], (50, 99))
    lines = [
        f"{found['episodes']} episodes, {found['steps']} steps. An answer took {half:.1f} ms (p99 {most:.1f}); "
        f"{found['late']:.0%} came too late.",
        f"{'':16} {'error':>9} {'mean action':>12} {'largest jump':>13}",
    ]
    for i in range(len(found["error"])):
        name = names[i] if i < len(names) else f"action_{i}"
        row = (found[key][i] for key in ("error", "mean_action", "jump"))
        lines.append("{:16} {:>9.4g} {:>12.4g} {:>13.4g}".format(name, *row))
    return "\n".join(lines)
