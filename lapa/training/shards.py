"""The tensors of a checkpoint, as one safetensors file for each process: torch.distributed.checkpoint splits and joins
them. Import it where a checkpoint is written or read: the library takes a second."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from lapa.artefacts.folder import write_tensors

__all__ = ["CheckpointException", "HuggingFaceStorageReader", "read_shards", "write_shards"]


def write_shards(state: Mapping[str, Tensor], folder: Path, flush: bool) -> None:
    """Write the tensors into `folder`; every rank calls it. `flush` waits until the disk has them.

    Raises CheckpointException with what each rank raised.
    """
    dcp.save(dict(state), storage_writer=_Writer(str(folder), flush))


def read_shards(state: dict[str, Tensor], reader: HuggingFaceStorageReader) -> None:
    """Read into the tensors of `state`, in place; every rank calls it. Raises CheckpointException."""
    dcp.load(state, storage_reader=reader)


class _Writer(HuggingFaceStorageWriter):
    """One safetensors file a process, written straight from the tensors: the library's own holds a second and a third
    copy of them in memory."""

    def __init__(self, path: str, flush: bool) -> None:
        super().__init__(path, save_distributed=True)
        self.flush = flush

    def write_data(self, plan: Any, planner: Any) -> Future[list[WriteResult]]:
        tensors = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
        done: Future[list[WriteResult]] = Future()
        if tensors:
            number = plan.storage_data["shard_index"]
            offsets = {i.index.fqn: {"saved_offsets": list(i.tensor_data.chunk.offsets)} for i in plan.items}
            file = Path(self.path) / f"shard-{number:05d}.safetensors"
            write_tensors(file, tensors, {"DCP_SHARDING_INFO": json.dumps(offsets, sort_keys=True)}, self.flush)
        done.set_result([WriteResult(i.index, 0, None) for i in plan.items])
        return done
