"""Many processes as one: `torchrun --nproc-per-node N -m lapa quantize ...` computes what one process would.

Every process is a rank. Each step, the rows of the global batch are dealt out to ranks and micro-batches, and what
depends on the whole batch stays so: noise is drawn for all rows (`noise_like`), statistics and counts are summed
(`sum_over_ranks`, `mean_over_ranks`). Hence two processes take the step of one, up to the order of the sums. CPU
tensors travel through gloo, GPU tensors through NCCL; with one process every function here is the identity and costs
nothing.
"""

from __future__ import annotations

import copy
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lapa.contracts import LapaError, Logs

T = TypeVar("T")
Parallel = Literal["ddp", "fsdp"]

PATIENCE = timedelta(days=1)  # a rank may pack data for hours while the others wait; a dead one is noticed at once


# --- processes ------------------------------------------------------------------------------------


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """This process's GPU if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) if ranks() > 1 else torch.cuda.current_device())


@contextmanager
def processes() -> Iterator[None]:
    """Join the other processes for the length of a with-block, if torchrun started several; only rank 0 prints.

    Raises PeerGone when another process has ended before.
    """
    global _store
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    _store, number, count = next(dist.rendezvous("env://"))
    # No backend named: gloo for CPU tensors and, where there are GPUs, NCCL for theirs.
    dist.init_process_group(store=dist.PrefixStore("lapa", _store), rank=number, world_size=count, timeout=PATIENCE)
    told = sys.stdout
    if number:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        yield
        dist.barrier()  # nobody leaves while another still talks to it
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        message = "another process of this run has ended without a word (torchrun says which, below). "
        raise PeerGone(message + "The last checkpoint stays; the same command with --resume goes on from it.") from None
    finally:
        if number:
            sys.stdout.close()
            sys.stdout = told
        dist.destroy_process_group()
        # gloo's threads outlive a group that DDP has used. One that still lets go of its last work, and asks for the
        # interpreter's lock when the interpreter has begun to end, aborts the process: here it gets the lock.
        time.sleep(0.5)


class PeerGone(LapaError):
    """Another process of the run has ended; its own message, if it had one, says why."""


_store: dist.Store | None = None  # outlives the processes' ties, to the end of the command


def first_to_fail(error: BaseException) -> bool:
    """Whether this process is the one to tell the user, the first to fail. PeerGone waits for the peer's own words."""
    if _store is None:  # alone, or failed before it met the others
        return os.environ.get("RANK", "0") == "0"
    for _ in range(50 if isinstance(error, PeerGone) else 0):
        if _store.add("failed", 0):
            break
        time.sleep(0.1)
    return _store.add("failed", 1) == 1


def on_first_rank(do: Callable[[], T]) -> T:
    """Rank 0 does it; every rank gets its answer, or raises its error."""
    if ranks() == 1:
        return do()
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            with _alone():
                answer = [do(), None]
        except Exception as error:
            answer = [None, error]
    dist.broadcast_object_list(answer, device=torch.device("cpu"))
    if answer[1] is not None:
        raise answer[1]
    result: T = answer[0]
    return result


def once_a_machine(do: Callable[[], T]) -> T:
    """One rank of each machine does it first, then the others, who find in the cache what it has left there."""
    if ranks() == 1:
        return do()
    result: list[T] = []
    fault: Exception | None = None
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        try:
            result = [do()]
        except Exception as error:
            fault = error
    for found in filter(None, gather(fault)):
        raise found
    return result[0] if result else do()


def mean_over_all(parts: Sequence[Logs]) -> Logs:
    """Figures of this rank's micro-batches -> their means over those of all ranks."""
    figures = torch.tensor([[part[name] for name in parts[0]] for part in parts], dtype=torch.float64).mean(0)
    return dict(zip(parts[0], (sum_over_ranks(figures) / ranks()).tolist(), strict=True))


def on_any_rank(*flags: int) -> list[int]:
    """Flags -> each one's highest value over all ranks."""
    highest = torch.tensor(flags, dtype=torch.int64)
    if ranks() > 1:
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    return highest.tolist()


def gather(mine: T) -> list[T]:
    """What each rank has, in the order of ranks, on every rank."""
    if ranks() == 1:
        return [mine]
    everyone: list[Any] = [None] * ranks()
    dist.all_gather_object(everyone, mine)
    return everyone


_together = True  # False while rank 0 does something on its own


@contextmanager
def _alone() -> Iterator[None]:
    """Sums over ranks are this rank's own: the others wait and would never answer."""
    global _together
    before, _together = _together, False
    try:
        yield
    finally:
        _together = before


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum over all ranks, a new tensor without a gradient: counts, and what else makes a statistic of the batch."""
    total = x.detach().clone()
    if ranks() > 1 and _together:
        dist.all_reduce(total)
    return total


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean over all ranks, with its gradient: statistics of the batch that are part of the model."""
    if ranks() == 1 or not _together:
        return x
    mean: Tensor = _Mean.apply(x)
    return mean


class _Mean(torch.autograd.Function):
    """Each rank's loss depends on every rank's x, and DDP averages the ranks' gradients: so does backward here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_over_ranks(x) / ranks()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_ranks(gradients[0]) / ranks()


# --- the batch ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """Rows [start, start + count) of a batch of `total` rows."""

    start: int
    count: int
    total: int


def shares(total: int, accumulate: int) -> list[Share]:
    """This rank's micro-batches of a global batch. Raises LapaError when it cannot be dealt out evenly."""
    parts = ranks() * accumulate
    if total % parts:
        raise LapaError(
            f"A batch of {total} cannot be split evenly over {ranks()} processes x {accumulate} accumulated "
            f"micro-batches. batch_size counts the samples of a step over all of them; make it a multiple of {parts}."
        )
    count = total // parts
    return [Share((i * ranks() + rank()) * count, count, total) for i in range(accumulate)]


_share: Share | None = None  # what the loop is working on


@contextmanager
def working_on(share: Share) -> Iterator[None]:
    """Tell `noise_like` which rows of the global batch the model sees in this with-block."""
    global _share
    before, _share = _share, share
    try:
        yield
    finally:
        _share = before


def noise_like(x: Tensor) -> Tensor:
    """Standard normal noise in the shape of x [b, ...], where b is a multiple of the rows in the batch.

    Drawn for the global batch and cut to this share of it, so it does not depend on how the batch was split.
    """
    if _share is None or _share.count == _share.total:
        return torch.randn_like(x)
    each = len(x) // _share.count  # rows of x a sample
    noise = torch.randn(_share.total * each, *x.shape[1:], dtype=x.dtype, device=x.device)
    return noise[_share.start * each : (_share.start + _share.count) * each]


class Dropout(nn.Module):
    """Dropout whose mask does not depend on how the batch was split, see `noise_like`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """[b, ...] -> same shape."""
        if not self.training or not self.p:
            return x
        if _share is None or _share.count == _share.total:
            return nn.functional.dropout(x, self.p)
        ones = x.new_ones(_share.total, *x.shape[1:])
        return x * nn.functional.dropout(ones, self.p)[_share.start : _share.start + _share.count]


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm without parameters over the batches of all ranks (SyncBatchNorm has no CPU path). float [N, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rows are alike in number on all ranks. Raises LapaError for a single row to train on: it has no spread."""
        if self.training and len(x) * ranks() < 2:
            raise LapaError(
                "Centring and scaling over the batch (laq.normalise) needs at least two rows, and this batch has one. "
                "Make batch_size at least twice accumulate, or set laq.normalise=false."
            )
        if ranks() == 1 or not self.training:
            return super().forward(x)
        mean = mean_over_ranks(x.mean(0))
        variance = mean_over_ranks((x - mean).square().mean(0))
        with torch.no_grad():
            count = len(x) * ranks()
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * count / max(count - 1, 1), self.momentum or 0.0)
            self.num_batches_tracked += 1
        return (x - mean) * (variance + self.eps).rsqrt()


# --- the model ------------------------------------------------------------------------------------


def layers(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost ModuleLists: the blocks of a transformer. What is compiled, sharded and
    recomputed one by one."""
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [layer for child in model.children() for layer in layers(child)]


class ParallelModel:
    """A model (contracts.Trainable) spread over the processes. `model` is what trains: the module that was given,
    or with FSDP a sharded copy of it, while the module that was given stays whole."""

    def __init__(self, model: nn.Module, how: Parallel) -> None:
        self.whole = self.model = model
        self._replicated: list[nn.Parameter] = []
        self._ddp: nn.parallel.DistributedDataParallel | None = None
        if ranks() == 1:
            return
        if how == "fsdp":
            self.model = copy.deepcopy(model)
            model.cpu()
            self._replicated = _shard(self.model)
        else:
            # Which parameters a step leaves alone depends on the model (LAQ has norms without a context, say).
            warnings.filterwarnings(
                "ignore", "Grad strides do not match", UserWarning
            )  # of 1x1 convolutions: no matter
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)  # its new name came with 2.13
                self._ddp = nn.parallel.DistributedDataParallel(
                    _Loss(model), broadcast_buffers=False, find_unused_parameters=True
                )

    def loss(self, batch: Any) -> tuple[Tensor, Logs]:
        """The loss of this share of the batch, ready for backward."""
        answer: tuple[Tensor, Logs] = (self._ddp or self.model.loss)(batch)  # type: ignore[operator]
        return answer

    def groups(self, parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
        """The parameters in groups that an optimizer can treat at once: sharded ones, and those that stay whole."""
        whole = {id(p) for p in self._replicated}
        kinds = [[], []]  # type: list[list[nn.Parameter]]
        for parameter in parameters:
            kinds[id(parameter) in whole].append(parameter)
        return [kind for kind in kinds if kind]

    @contextmanager
    def exchanging(self, gradients: bool) -> Iterator[None]:
        """Without exchange, gradients add up on this rank: only the last micro-batch needs to send them round."""
        if self.model is not self.whole:
            self.model.set_requires_gradient_sync(gradients)  # type: ignore[operator]
        with nullcontext() if self._ddp is None or gradients else self._ddp.no_sync():
            yield

    def gradients_done(self) -> None:
        """Average what FSDP left to us: the gradients of parameters that every rank holds."""
        for parameter in self._replicated:
            if parameter.grad is not None:
                parameter.grad = sum_over_ranks(parameter.grad) / ranks()

    @torch.no_grad()
    def gather(self) -> nn.Module:
        """The whole model with the weights of now, on this rank's device, until `release`. Every rank calls it."""
        if self.model is not self.whole:
            from torch.distributed.tensor import DTensor

            slices = self.model.state_dict()
            for name, tensor in self.whole.to(device()).state_dict().items():
                mine = slices[name]
                if tensor.numel():
                    tensor.copy_(mine.full_tensor() if isinstance(mine, DTensor) else mine)
        return self.whole

    def release(self) -> None:
        """The whole model is not needed for now: with FSDP it leaves the device."""
        if self.model is not self.whole:
            self.whole.cpu()


class _Loss(nn.Module):
    """`loss` as the forward pass, which is what DDP hooks into."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> tuple[Tensor, Logs]:
        answer: tuple[Tensor, Logs] = self.model.loss(batch)  # type: ignore[operator]
        return answer


def _shard(model: nn.Module) -> list[nn.Parameter]:
    """Shard in place, layer by layer. Returns the parameters that stay whole: those of the quantizer, which is small
    and moves its codebook by hand."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    quantizers = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "quantizer"]
    kept = [p for quantizer in quantizers for p in quantizer.parameters()]
    inside = {module for quantizer in quantizers for module in quantizer.modules()}
    mesh = dist.init_device_mesh(device().type, (ranks(),))
    for layer in layers(model):
        if layer not in inside:
            fully_shard(layer, mesh=mesh, ignored_params=set(kept))
    fully_shard(model, mesh=mesh, ignored_params=set(kept))
    register_fsdp_forward_method(model, "loss")
    return kept


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scale the gradients to a norm of at most `most`, over all shards; 0 leaves them. Returns the norm before."""
    kinds: dict[type, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            kinds.setdefault(type(parameter.grad), []).append(parameter)
    norms = [nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds.values()]
    whole = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    total = whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole))
    for kind in kinds.values() if most else ():
        nn.utils.clip_grads_with_norm_(kind, most, total)
    return total
