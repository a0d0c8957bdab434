"""Checkpoints: from them a run continues, on a CPU of one machine bit for bit, on any number of processes.

`out/checkpoints/step_000120/` holds one safetensors file for each process that wrote it (weights, optimizer, EMA) and
`state.json` (step, seed, what was watched). The step is the position in the data and in every schedule, and all
random states are functions of (seed, step). A checkpoint is written into a hidden folder and then renamed, so every
checkpoint is complete. torch.distributed.checkpoint splits and joins the tensors (shards.py); its own format is a
pickle, hence the safetensors. It takes a second to import, so only a run that saves or goes on does.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lapa.artefacts.folder import file_hash, read_json, replacing, require_fit, write_json
from lapa.artefacts.older import upgraded_weights
from lapa.artefacts.settings import object_at
from lapa.artefacts.sums import require_sums, with_sums
from lapa.contracts import LapaError, Logs
from lapa.runtime.distributed import on_first_rank

STATE, BEST = "state.json", "best"
DAMAGE = (SafetensorError, ValueError, KeyError, AssertionError)  # what the readers raise at a file of another content


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the best, to which the link `best` points: that with the
    lowest watched `figure` ("" for none). `frozen` is a hash of the weights that do not change: they are not saved, and
    a run goes on only with the same. With `slack`, a share of it, the best is the latest that is no more than that
    above the lowest so far."""

    def __init__(self, out: Path, seed: int, keep: int, figure: str = "", slack: float = 0.0, frozen: str = "") -> None:
        self.folder, self.seed, self.keep, self.figure = out / "checkpoints", seed, keep, figure
        self.slack, self.frozen = slack, frozen

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, in order."""
        there = (found.parent.name.removeprefix("step_") for found in self.folder.glob(f"step_*/{STATE}"))
        return sorted(int(number) for number in there if number.isdecimal())

    def watched(self, step: int) -> Logs:
        """What was watched at a step with a checkpoint; nothing where the monitor did not run or was broken off."""
        return dict(self._about(step)["watched"])

    def best(self) -> int | None:
        """The best step, of equals the first; None where the figure was never watched."""
        scores = {step: self.watched(step).get(self.figure) for step in self.steps()}
        known = {step: score for step, score in scores.items() if score is not None}
        if self.slack and known:
            most = (1 + self.slack) * min(self._lowest(), *known.values())
            return max((step for step, score in known.items() if score <= most), default=max(known))
        return min(known, key=lambda step: (known[step], step), default=None)

    def _lowest(self) -> float:
        """The lowest figure so far, also of steps that are no longer kept; infinity where there is none."""
        steps = self.steps()
        return float(self._about(steps[-1]).get("lowest", math.inf)) if steps else math.inf

    def _about(self, step: int) -> dict[str, Any]:
        """What state.json says. Raises LapaError where it is not as it was written."""
        path = self.path(step)
        try:
            told = object_at(read_json(path / STATE, "whole checkpoint"), STATE)
            require_sums(told, STATE)
            for name in ("logs", "watched"):
                object_at(told.get(name), f"{STATE}: {name}")
            if told.get("step") != step:
                raise LapaError(f"{STATE}: step is {told.get('step')}")
        except LapaError as error:
            raise LapaError(_damaged(path, str(error))) from None
        return told

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.folder / f"step_{step:06d}"

    def save(self, state: Mapping[str, Tensor], step: int, logs: Logs, watched: Logs, flush: bool = True) -> None:
        """Write a checkpoint, whole or not at all, and remove what need not be kept. Every rank calls it.

        `flush` waits until the disk has it, so that it is whole even if the power goes; a slow disk takes its time.
        Raises OSError (a full disk, say); the checkpoints before stay.
        """
        from lapa.training.shards import CheckpointException, write_shards

        path, work = self.path(step), self.folder / f".step_{step:06d}.tmp"

        def begin() -> None:
            for left in self.folder.glob(".*.tmp"):  # of a run that was killed
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:  # the link `best`, before it was renamed
                    left.unlink()
            work.mkdir(parents=True)

        def end() -> None:
            about = {"step": step, "seed": self.seed, "logs": logs, "watched": watched, "frozen": self.frozen}
            if self.slack and math.isfinite(lowest := min(self._lowest(), watched.get(self.figure, math.inf))):
                about["lowest"] = lowest
            about["shards"] = {file.name: file_hash(file) for file in sorted(work.glob("*.safetensors"))}
            write_json(work / STATE, with_sums(about))
            self._remove(path)  # the same step, written before
            os.replace(work, path)
            self._forget()

        try:
            on_first_rank(begin)
            with _alone_is_fine():
                write_shards(state, work, flush)
            on_first_rank(end)
        except CheckpointException as error:
            shutil.rmtree(work, ignore_errors=True)
            raise next(iter(error.failures.values()))[0] from None
        except OSError:
            shutil.rmtree(work, ignore_errors=True)
            raise

    def restore(
        self,
        state: Mapping[str, Tensor],
        make: Callable[[str, torch.Size, torch.dtype], Tensor | None],
        step: int | None = None,
    ) -> tuple[int, Logs]:
        """Read the newest checkpoint, or that of `step`, into the tensors of `state`, in place; returns its step and
        logs (0 and none if there is no checkpoint).

        make(name, shape, dtype) gives a tensor for what the checkpoint has and `state` has not yet. Raises LapaError
        when the checkpoint is damaged, of another seed, or does not fit `state`; OSError when it cannot be read at all.
        """
        steps = self.steps()
        if not steps:
            return 0, {}
        from lapa.training.shards import CheckpointException, HuggingFaceStorageReader, read_shards

        path = self.path(steps[-1] if step is None else step)
        about = self._about(steps[-1] if step is None else step)
        if about.get("seed") != self.seed:
            raise LapaError(f"{path} was written with --seed {about.get('seed')}, not {self.seed}.")
        if about.get("frozen", self.frozen) != self.frozen:
            raise LapaError(
                f"{path} was written with other frozen weights (hash {about['frozen']}, now {self.frozen}): the policy "
                "or backbone that the run began with has changed. Start it anew in another --out."
            )
        for file in path.glob("*.safetensors"):
            file.open("rb").close()  # raises what is wrong; safetensors says of all it may not open that it is missing
        for name, content in about.get("shards", {}).items():  # of an older lapa: none
            if not (path / name).exists() or file_hash(path / name) != content:
                raise LapaError(_damaged(path, f"{name} is missing or has changed since it was written"))
        try:
            reader = HuggingFaceStorageReader(str(path))
            entries: dict[str, Any] = reader.read_metadata().state_dict_metadata
            stored = upgraded_weights({name: name for name in entries})  # today's name -> that in the checkpoint
            found = {new: (entries[old].size, entries[old].properties.dtype) for new, old in stored.items()}
            target = dict(state)
            made = {name: make(name, *found[name]) for name in found.keys() - target.keys()}
            shapes = {name: torch.empty(size, device="meta") for name, (size, _) in found.items()}
            target |= {name: tensor for name, tensor in made.items() if tensor is not None}
            require_fit(target, shapes, path)
            with _alone_is_fine():
                read_shards({stored[name]: tensor for name, tensor in target.items()}, reader)
        except (CheckpointException, *DAMAGE) as error:
            for reason in _reasons(error):
                if not isinstance(reason, DAMAGE):  # no memory, no connection: the checkpoint may well be good
                    raise reason from None
            raise LapaError(_damaged(path, _first_line(error))) from None
        return int(about["step"]), dict(about["logs"])

    def _forget(self) -> None:
        """Remove all but the newest and the best."""
        steps, best = self.steps(), self.best()
        if best is not None:
            with replacing(self.folder / BEST) as link:
                link.symlink_to(self.path(best).name)
        for step in steps[: -self.keep]:
            if step != best:
                self._remove(self.path(step))

    def _remove(self, path: Path) -> None:
        """First out of sight: what a kill leaves half removed is no checkpoint any more."""
        hidden = path.with_name(f".{path.name}.old.tmp")
        if path.exists():
            os.replace(path, hidden)
            shutil.rmtree(hidden)


def _damaged(path: Path, why: str) -> str:
    return (f"{path} is damaged ({why.rstrip('.')}). Remove that folder; the run then goes on from the checkpoint "
            "before it, as if it had been killed there.")  # fmt: skip


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Without the library's warning that there is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _reasons(error: BaseException) -> list[BaseException]:
    """What was raised on the ranks; torch wraps what comes up while tensors are read."""
    from lapa.training.shards import CheckpointException

    return [each for each, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]


def _first_line(error: BaseException) -> str:
    error = _reasons(error)[0]
    return str(error).partition("\n")[0] or type(error).__name__
