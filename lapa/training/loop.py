"""The one training loop.

Randomness is a function of (seed, step): the batch of step k is drawn from a generator seeded with both, and torch is
reseeded with both before each step. Nothing random is carried from step to step, so a run that is killed and resumed
from its last checkpoint ends with the same bits as an unbroken one.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lapa.contracts import LapaError, Logs
from lapa.training.checkpoint import load_strictly, read_tensors, write_tensors
from lapa.training.memory import keep_freed_memory
from lapa.training.progress import Progress

Sampler = Callable[[np.random.Generator], Any]


@dataclass(frozen=True)
class Optimisation:
    """How one stage is optimised."""

    steps: int
    """optimizer steps"""
    batch_size: int = 64
    """samples a step"""
    learning_rate: float = 1e-3
    """peak learning rate of Adam"""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    """decoupled weight decay (AdamW)"""
    clip: float = 1.0
    """gradient norm is clipped to this"""
    warmup: int = 20
    """steps of linear warm-up"""
    schedule: Literal["constant", "cosine"] = "cosine"
    """learning rate after the warm-up: constant, or cosine down to a twentieth"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """arithmetic of the forward pass; auto is bfloat16 where the processor has instructions for it"""

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        if self.schedule == "constant":
            return self.learning_rate * warm
        share = step / max(self.steps, 1)
        return self.learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))

    def dtype(self) -> torch.dtype:
        """Arithmetic on this machine's CPU or GPU."""
        if self.precision == "auto":
            return fast_dtype()
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


def fast_dtype() -> torch.dtype:
    """bfloat16 where the processor has instructions for it, else float32."""
    fast = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seed_everything(seed: int, step: int = 0) -> np.random.Generator:
    """Seed torch with (seed, step) and return a numpy generator seeded alike."""
    sequence = np.random.SeedSequence([seed, step])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
    return np.random.default_rng(sequence)


def fit(
    model: nn.Module,
    sample: Sampler,
    how: Optimisation,
    out: Path,
    *,
    seed: int,
    title: str,
    parameters: Iterable[nn.Parameter] | None = None,
    monitor: Callable[[int], Logs] | None = None,
    monitor_every: int = 0,
    save_every: float = 30.0,
) -> Logs:
    """Train `model` (contracts.Trainable) in place and return the last logs.

    sample(rng) draws a batch; parameters are those to train (default: all that require gradients); monitor(step)
    returns extra logs every `monitor_every` steps and at the end. A checkpoint is written to `out` every
    `save_every` seconds and at the end, and read back if it is there. `out/metrics.jsonl` gets a line now and then.

    Raises LapaError when the loss stops being a number.
    """
    if how.steps < 1 or how.batch_size < 1:
        raise LapaError(f"{title} needs at least one step and one sample a step, got {how.steps} and {how.batch_size}.")
    keep_freed_memory()
    trained = [p for p in (model.parameters() if parameters is None else parameters) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=how.learning_rate, betas=how.betas, weight_decay=how.weight_decay)
    checkpoint, metrics = out / "checkpoint.safetensors", out / "metrics.jsonl"
    start = _restore(checkpoint, model, optimizer, trained) if checkpoint.exists() else 0
    _keep_metrics_until(metrics, start)
    where, dtype = device(), how.dtype()
    model.to(where).train()
    logs: Logs = {}
    saved = time.monotonic()
    step = start
    with Progress(title, how.steps, out, done=start) as progress:
        try:
            for step in range(start, how.steps):
                rng = seed_everything(seed, step)
                for group in optimizer.param_groups:
                    group["lr"] = how.rate(step)
                batch = sample(rng)
                with torch.autocast(where.type, dtype, enabled=dtype != torch.float32):
                    loss, logs = model.loss(batch)  # type: ignore[operator]
                if not torch.isfinite(loss):
                    raise LapaError(
                        f"{title}: the loss is {loss.item()} at step {step + 1}; try a lower learning rate."
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(trained, how.clip)
                optimizer.step()
                upkeep = getattr(model, "after_step", None)
                logs = {"loss": float(loss.detach()), **logs, **(upkeep(step + 1) if upkeep else {})}
                last = step + 1 == how.steps
                watched = monitor is not None and (last or (monitor_every and (step + 1) % monitor_every == 0))
                if monitor and watched:
                    logs |= _watched(model, monitor, step + 1)
                if last or watched or (step + 1) % max(1, how.steps // 100) == 0:
                    _append(metrics, {"step": step + 1, "lr": how.rate(step), **logs})
                progress.update(step + 1, logs)
                if not last and time.monotonic() - saved > save_every:
                    _save(checkpoint, model, optimizer, trained, step + 1)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            # The step that was interrupted is repeated on resuming; the optimizer may be half-way through it.
            print(f"\n{title} interrupted in step {step + 1}; the last checkpoint stays in {out}.", file=sys.stderr)
            raise
    _save(checkpoint, model, optimizer, trained, how.steps)
    model.eval()
    return logs


def _watched(model: nn.Module, monitor: Callable[[int], Logs], step: int) -> Logs:
    model.eval()
    try:
        with torch.no_grad():
            return monitor(step)
    finally:
        model.train()


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], step: int
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, parameter in enumerate(trained):
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in optimizer.state.get(parameter, {}).items()}
    write_tensors(path, tensors, {"step": str(step)})


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]) -> int:
    tensors, metadata = read_tensors(path)
    load_strictly(model, {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, path)
    for i, parameter in enumerate(trained):
        prefix = f"optimizer.{i}."
        state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        if state:
            optimizer.state[parameter] = state
    return int(metadata.get("step", "0"))


def _keep_metrics_until(path: Path, step: int) -> None:
    """Forget lines after the checkpoint that is being resumed, so that every step is logged once."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinity for one that a full disk or a kill has torn."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
