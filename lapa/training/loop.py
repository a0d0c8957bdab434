"""The one training loop.

Randomness is a function of (seed, step): the batch of step k is drawn from a generator seeded with both, and torch is
reseeded with both before each micro-batch. Nothing random is carried from step to step, so a run that is killed and
resumed from its last checkpoint ends with the same bits as an unbroken one: on a CPU, of one machine, with as many
threads and processes. Another processor rounds differently. A GPU adds in no fixed order
(index_add_, cumsum, convolutions going backward), so there no two runs are alike to the bit, resumed or not.
"""

from __future__ import annotations

import hashlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from lapa.contracts import LapaError, Logs
from lapa.plugins import choose
from lapa.runtime.distributed import (
    Parallel,
    ParallelModel,
    Share,
    clip_gradients,
    device,
    layers,
    mean_over_all,
    on_any_rank,
    on_first_rank,
    rank,
    ranks,
    shares,
    sum_over_ranks,
    working_on,
)
from lapa.runtime.memory import keep_freed_memory
from lapa.runtime.precision import NO_SHADOW, AdamW, ShadowWeights, fast_dtype
from lapa.runtime.progress import Progress
from lapa.training.batches import Sampler, batches, sequence
from lapa.training.ema import EMA
from lapa.training.logbook import Logbook, Tracker
from lapa.training.resume import Checkpoints
from lapa.training.stop import Finish, Stop, Stopped, leave

__all__ = ["Optimisation", "Sampler", "device", "fast_dtype", "fit", "seed_everything"]


@dataclass(frozen=True)
class Optimisation:
    """How one stage is optimised. Raises LapaError for a value that cannot be meant."""

    steps: int
    """optimizer steps"""
    batch_size: int = 64
    """samples a step, over all processes and micro-batches"""
    accumulate: int = 1
    """micro-batches a step, one after another: as much less memory, the same step (but for batch statistics, and for
    what the head parallel hides in `rounds`, or autoregressive says in `directions`)"""
    learning_rate: float = 1e-3
    """peak learning rate of Adam"""
    betas: tuple[float, float] = (0.9, 0.99)
    """decay of Adam's two moving averages"""
    weight_decay: float = 0.0
    """decoupled weight decay (AdamW)"""
    clip: float = 1.0
    """gradient norm is clipped to this; 0: not at all"""
    warmup: int = 20
    """steps of linear warm-up"""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """learning rate after the warm-up: constant, or linear or cosine down to a twentieth"""
    ema: float = 0.0
    """decay of the moving average of the weights that the artefact then holds, such as 0.999; 0: off"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """arithmetic of the model (runtime/precision.py); auto is bfloat16 where the GPU, or without one the CPU,
    has instructions for it. The weights that are optimised and saved are float32 either way"""
    compile: bool = False
    """torch.compile the layers: minutes at the start, quicker steps"""
    recompute: bool = False
    """activation checkpointing: keep only the input of each layer and compute it again in the backward pass"""
    parallel: Parallel = "ddp"
    """with torchrun: ddp, each process holds the model; fsdp, each holds a slice of its weights and optimizer"""
    keep: int = 2
    """newest checkpoints kept, beside the best"""
    log: Tracker = "none"
    """also log to trackio or W&B; JSONL and TensorBoard are always written"""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal:
                choose(str(value), get_args(kind), f"value of {name}")
            elif kind is bool:
                _require(isinstance(value, bool), name, "is true or false", value)
            elif kind is int:
                least = 0 if name == "warmup" else 1
                _require(_number(value, int) and value >= least, name, f"is a whole number from {least} on", value)
            elif kind is float:
                _require(_number(value) and 0 <= value < math.inf, name, "is a number from 0 on", value)
        _require(self.ema < 1, "ema", "is a number from 0 up to, not including, 1", self.ema)
        two = isinstance(self.betas, tuple | list) and len(self.betas) == 2
        _require(
            two and all(_number(beta) and 0 <= beta < 1 for beta in self.betas),
            "betas", "are two numbers from 0 up to, not including, 1, such as (0.9, 0.99)", self.betas,
        )  # fmt: skip

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        if self.schedule == "constant":
            return self.learning_rate * warm
        share = step / max(self.steps, 1)
        left = 1 - share if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))
        return self.learning_rate * warm * (0.05 + 0.95 * left)

    def dtype(self) -> torch.dtype:
        """Arithmetic on this machine's CPU or GPU."""
        if self.precision == "auto":
            return fast_dtype()
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


def _number(value: object, *kinds: type) -> bool:
    """Whether `value` is of one of the kinds, int and float if none is named; True and False are no numbers."""
    return isinstance(value, kinds or (int, float)) and not isinstance(value, bool)


def _require(holds: bool, name: str, what: str, value: object) -> None:
    if not holds:
        raise LapaError(f"{name} {what}; got {value!r}.")


def seed_everything(seed: int, step: int = 0) -> np.random.Generator:
    """Seed torch with (seed, step) and return a numpy generator seeded alike.

    torch.manual_seed would give the same numbers. But for every kind of accelerator that is not in use it also keeps a
    stack trace, at every call: milliseconds a step, and memory that is never freed.
    """
    both = sequence(seed, step)
    state = int(both.generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(state)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(state)
    return np.random.default_rng(both)


def fit(
    model: nn.Module,
    sampler: Sampler,
    how: Optimisation,
    out: Path,
    *,
    seed: int,
    title: str,
    parameters: Iterable[nn.Parameter] | None = None,
    monitor: Callable[[int, Logbook], Logs] | None = None,
    monitor_every: int = 0,
    best: str = "",
    patience: int = 0,
    slack: float = 0.0,
    save_every: float = 30.0,
    until: int = 0,
) -> Logs:
    """Train `model` (contracts.Trainable) in place and return the last logs. Every rank calls it alike.

    parameters are those to train (default: all that require gradients). monitor(step, logbook) returns extra logs every
    `monitor_every` steps and at the end; it runs on rank 0, with the weights that would be saved. Checkpoints go to
    `out/checkpoints` every `save_every` seconds (large ones more rarely: saving takes a twentieth of the time at most),
    whenever the monitor has run, at the end and when asked to stop, and are read back if they are there; that with the
    lowest watched figure `best` is kept. With `patience`, training ends once the monitor has run so many times without
    a lower one, and the weights and the logs are those of the best step, which "best_step" names; a later step counts
    as better as long as its figure is no more than `slack`, a share, above the lowest. The logbook in `out` gets an
    entry every hundredth of the steps, and whenever the monitor has run or codes were replaced. With `until` it ends
    after that many of the steps, from where another call goes on. A file `out/finish` ends it early
    (training/stop.py): after the present step or, when it is started anew, at its last checkpoint.

    Raises LapaError when the loss stops being a number; KeyboardInterrupt or SystemExit(143) when asked to stop.
    """
    keep_freed_memory()
    mine = shares(how.batch_size, how.accumulate)
    model.to(device()).train()
    names = {id(p): name for name, p in model.named_parameters()}
    wanted = {names[id(p)] for p in (model.parameters() if parameters is None else parameters) if p.requires_grad}
    # Without `parameters` there may be weights that the model itself changes (a codebook, say): all are saved.
    frozen = {} if parameters is None else {n: p for n, p in model.named_parameters() if n not in wanted}
    digest = weights_digest(frozen)
    parallel = ParallelModel(model, how.parallel)
    learner = parallel.model  # what trains: `model`, or under FSDP this rank's slices of it
    trained = {name: p for name, p in learner.named_parameters() if name in wanted}
    _prepare(learner, how, title)
    # Among several processes, DDP and FSDP have hooks on the weights themselves, which shadow would bypass.
    shadow = ShadowWeights(learner, how.dtype() if ranks() == 1 else torch.float32)
    optimizer = AdamW(
        [{"params": group} for group in parallel.groups(trained.values())], shadow,
        lr=how.learning_rate, betas=how.betas, weight_decay=how.weight_decay,
    )  # fmt: skip
    ema = EMA(trained, how.ema)
    checkpoints = Checkpoints(out, seed, how.keep, best, slack, digest)
    frozen = {name: p for name, p in learner.named_parameters() if name in frozen}
    start, logs = _restore(checkpoints, learner, optimizer, trained, ema, frozen)
    upkeep = getattr(learner, "after_step", None)
    saved, pause, step, asked = time.monotonic(), save_every, start, 0
    planned = min(until or how.steps, how.steps)
    finish, end, cut = Finish(out), planned, 0  # cut: the step where it was ended early
    [ending] = on_any_rank(finish.asked())
    if ending and 0 < start < planned:  # it was killed after its last step, or asked to end while it did not run
        end = cut = start

    def passed(at: int) -> bool:
        """Has the best step passed long enough ago? A function of what is on disk, so a resumed run decides alike."""
        found = on_first_rank(checkpoints.best) if patience and monitor_every else None
        return found is not None and at // monitor_every * monitor_every - found >= patience * monitor_every

    # A monitor that was broken off when the run was asked to stop runs before anything else.
    missed = bool(monitor and start and (start == end or (monitor_every and start % monitor_every == 0)))
    missed = missed and not on_first_rank(lambda: checkpoints.watched(start))
    with (
        Logbook(out, start - missed, how.log, quiet=rank() > 0) as book,
        Progress(title, end, out, done=start, quiet=rank() > 0) as progress,
        Stop() as stop,
        ExitStack() as stack,
    ):
        try:
            if missed and monitor:
                late = _watched(parallel, ema, monitor, start, book, stop)
                [asked] = on_any_rank(stop.asked)
                if late:
                    logs |= late
                    book.write(start, {"lr": how.rate(start - 1), **logs})
                    checkpoints.save(
                        _state(learner, optimizer, trained, ema, frozen), start, logs, late, flush=not asked
                    )
            if asked or passed(start):
                end = start
            loaded = stack.enter_context(closing(batches(sampler, mine, seed, range(start, end))))
            for step, micro_batches in enumerate(loaded, start):
                done, last = step + 1, bool(ending) or step + 1 == end
                for group in optimizer.param_groups:
                    group["lr"] = how.rate(step)
                optimizer.zero_grad(set_to_none=True)
                logs = _backward(parallel, micro_batches, how, seed, step, shadow)
                if not math.isfinite(logs["loss"]):
                    raise LapaError(f"{title}: the loss is {logs['loss']} at step {done}; try a lower learning rate.")
                clip_gradients(list(trained.values()), how.clip)
                optimizer.step()
                kept = upkeep(done) if upkeep else {}
                logs |= kept
                ema.update(done)

                watched: Logs = {}
                if monitor and (last or (monitor_every and done % monitor_every == 0)):
                    watched = _watched(parallel, ema, monitor, done, book, stop)
                    logs |= watched
                if last or watched or kept.get("codes_replaced") or done % max(1, how.steps // 100) == 0:
                    book.write(done, {"lr": how.rate(step), **logs})
                progress.update(done, logs)
                asked, due, ending = on_any_rank(stop.asked, time.monotonic() - saved > pause, finish.asked())
                if last or watched or asked or due:
                    began = time.monotonic()
                    checkpoints.save(
                        _state(learner, optimizer, trained, ema, frozen), done, logs, watched, flush=not asked
                    )
                    saved = time.monotonic()
                    pause = max(save_every, 20 * (saved - began)) if save_every > 0 else save_every
                if last and done < end:
                    cut = done
                if asked or last or (watched and passed(done)):
                    break
        except KeyboardInterrupt:
            # The step that was interrupted is repeated on resuming; the optimizer may be half-way through it.
            print(f"\n{title} interrupted in step {step + 1}; the last checkpoint stays in {out}.", file=sys.stderr)
            raise
    if asked:
        if rank() == 0:
            name = signal.Signals(asked).name
            print(f"\n{title} stopped by {name}; step {step + 1} of {how.steps} is saved in {out}.", file=sys.stderr)
        leave(asked)
    if cut and rank() == 0:
        finish.keep(cut, how.steps)
        print(f"{title}: ended early, as {finish.file} asks, after step {cut:,} of {how.steps:,}. The artefact is made "
              "from there.", file=sys.stderr)  # fmt: skip
    if patience and (chosen := on_first_rank(checkpoints.best)) is not None:
        reached = on_first_rank(checkpoints.steps)[-1]
        _, logs = _restore(checkpoints, learner, optimizer, trained, ema, frozen, chosen)
        logs = {**logs, "best_step": float(chosen)}
        if rank() == 0 and chosen < reached:
            early = f" Training ended there, of {how.steps:,}." if reached < how.steps else ""
            print(f"{title}: step {chosen:,} is kept, the best on what is held out; by step {reached:,} it was no "
                  f"better.{early}", flush=True)  # fmt: skip
    ema.swap()
    parallel.gather().eval()
    return logs


def _prepare(learner: nn.Module, how: Optimisation, title: str) -> None:
    """Switch on what the settings ask of the model's layers."""
    able = [module for module in learner.modules() if hasattr(module, "recompute")]
    if how.recompute and not able:
        raise LapaError(f"{title}: this model has no layers that can be recomputed; leave recompute out.")
    for module in able:
        module.recompute = how.recompute  # type: ignore[assignment]
    if how.compile:
        for layer in layers(learner) or [learner]:
            layer.compile()


def _backward(
    parallel: ParallelModel,
    micro_batches: Sequence[tuple[Share, Any]],
    how: Optimisation,
    seed: int,
    step: int,
    shadow: ShadowWeights = NO_SHADOW,
) -> Logs:
    """The gradients of one step, on every rank those of the global batch. Returns the logs, averaged over it."""
    parts, weights = [], _weights(parallel.model, micro_batches)
    for number, ((share, batch), weight) in enumerate(zip(micro_batches, weights, strict=True), 1):
        seed_everything(seed, step)  # every share draws the noise of the global batch, and takes its own
        dtype = how.dtype()
        with working_on(share), parallel.exchanging(number == len(micro_batches)), shadow.in_place():
            with torch.autocast(device().type, dtype, enabled=dtype != torch.float32):
                loss, logs = parallel.loss(batch)
            (loss * weight / how.accumulate).backward()
        parts.append({name: weight * value for name, value in {"loss": float(loss.detach()), **logs}.items()})
    parallel.gradients_done()
    return mean_over_all(parts)


def _weights(learner: nn.Module, micro_batches: Sequence[tuple[Share, Any]]) -> list[float]:
    """How much each micro-batch of this rank counts in the step, 1 on average over those of all ranks: by the number of
    its targets, where the model tells it (contracts.Trainable)."""
    counted = getattr(learner, "counted", None)
    if counted is None:
        return [1.0] * len(micro_batches)
    counts = torch.tensor([counted(batch) for _, batch in micro_batches], dtype=torch.float64)
    weights: list[float] = (counts * ranks() / sum_over_ranks(counts.mean()).clamp(min=1e-9)).tolist()
    return weights


def _watched(
    parallel: ParallelModel, ema: EMA, monitor: Callable[[int, Logbook], Logs], step: int, book: Logbook, stop: Stop
) -> Logs:
    """The monitor's figures, on every rank; none if it was asked to stop, for then nobody waits for them."""
    with ema.in_place(), torch.no_grad():
        whole = parallel.gather().eval()
        stop.interrupts = True
        try:
            return on_first_rank(lambda: monitor(step, book))
        except Stopped:
            return {}
        finally:
            stop.interrupts = False
            whole.train()
            parallel.release()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A hash of weights by name, 16 hex digits; "" for none."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if weights else ""


def _state(
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    ema: EMA,
    frozen: Mapping[str, nn.Parameter],
) -> dict[str, Tensor]:
    """All that changes in a run, by name; frozen weights do not."""
    whole = learner.state_dict()
    state = {f"model.{name}": tensor for name, tensor in whole.items() if name not in frozen}
    state |= {f"ema.{name}": tensor for name, tensor in ema.average.items()}
    for name, parameter in trained.items():
        state |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    return {name: tensor for name, tensor in state.items() if tensor.numel()}


def _restore(
    checkpoints: Checkpoints,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    ema: EMA,
    frozen: Mapping[str, nn.Parameter],
    step: int | None = None,
) -> tuple[int, Logs]:
    """Read the newest checkpoint back, or that of `step`, if there is one. Returns its step and logs."""
    moments: dict[str, dict[str, Tensor]] = {}

    def moment(full: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        kind, _, rest = full.partition(".")
        if kind == "model" and rest in frozen:  # of a run that an older lapa began
            return frozen[rest].detach()
        name, _, key = rest.rpartition(".")
        if kind != "optimizer" or name not in trained:
            return None
        like = trained[name]
        tensor = torch.zeros_like(like, dtype=dtype) if shape == like.shape else torch.zeros(shape, dtype=dtype)
        return moments.setdefault(name, {}).setdefault(key, tensor)

    step, logs = checkpoints.restore(_state(learner, optimizer, trained, ema, frozen), moment, step)
    for name, state in moments.items():
        optimizer.state[trained[name]] = state
    return step, logs
