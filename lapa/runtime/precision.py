"""bfloat16 at its full speed: the model computes with bfloat16 shadow weights, the optimizer keeps float32.

Autocast alone converts every weight to bfloat16 in each forward pass and every gradient back in each backward pass; in
a large model with a small batch that costs what the quicker products gain. Here the weights that products and
convolutions read have a bfloat16 copy, which takes their place while a loss and its gradients are computed:

    weight, float32 --rounded--> its shadow, bfloat16 --loss, backward--> gradient, bfloat16 --AdamW--> weight, float32

The model itself never changes: artefacts, checkpoints and moving averages hold the float32 weights. The arithmetic is
that of autocast, which stays on for the activations; norms, distances in the quantizer and the loss are float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # the layers whose weights autocast converts
MOMENTS = ("exp_avg", "exp_avg_sq")  # of the gradient, as torch.optim names them
CHUNK = 1 << 19  # weights updated at once on a CPU: few enough that the passes over them meet in its cache


def fast_dtype() -> torch.dtype:
    """bfloat16 where this machine's GPU, or without one its CPU, has instructions for it, else float32."""
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)  # older GPUs emulate it, slowly
    else:
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """The arithmetic of the tensors themselves, for the length of a with-block."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class ShadowWeights:
    """Copies in `dtype` of a model's float32 weights; none, and nothing to do, when that is float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._shadow: dict[nn.Parameter, nn.Parameter] = {}
        self._rounded: dict[nn.Parameter, tuple[int, int]] = {}  # which state of the weight the copy is of
        if dtype == torch.float32:
            return
        for module in _layers(model):
            for name, weight in module.named_parameters(recurse=False):
                if weight.dtype == torch.float32:
                    self._places.append((module, name, weight))
                    self._shadow[weight] = nn.Parameter(weight.detach().to(dtype), weight.requires_grad)
                    self._rounded[weight] = _state(weight)
                    weight.grad_dtype = None  # its gradient may have the copy's

    def of(self, weight: nn.Parameter) -> nn.Parameter | None:
        """The copy of a weight, if it has one."""
        return self._shadow.get(weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the copies for the length of a with-block. The backward pass belongs inside too: it
        may compute activations again. Afterwards the weights have the gradients of their copies."""
        with torch.no_grad():
            for weight, copied in self._shadow.items():
                if self._rounded[weight] != _state(weight):  # someone else moved it: a checkpoint, an average
                    copied.copy_(weight)
                    self.rounded(weight)
        for module, name, weight in self._places:
            module._parameters[name] = self._shadow[weight]
        try:
            yield
        finally:
            for module, name, weight in self._places:
                module._parameters[name] = weight
        for weight, copied in self._shadow.items():
            if copied.grad is not None:
                # One batch: bfloat16 is all there is. Several add up in float32, lest the small ones be lost.
                weight.grad = copied.grad if weight.grad is None else weight.grad.float().add_(copied.grad)
                copied.grad = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model computes as in training, without gradients, for the length of a with-block."""
        where = next((weight.device.type for weight in self._shadow), "cpu")
        with self.in_place(), torch.no_grad(), torch.autocast(where, self.dtype, enabled=bool(self._shadow)):
            yield

    def rounded(self, weight: nn.Parameter) -> None:
        """Note that the copy of `weight` is that of its present value."""
        self._rounded[weight] = _state(weight)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers whose weights get a copy. Children that a module names in `in_float32` keep theirs."""
    if isinstance(module, PRODUCTS):
        yield module
    for name, child in module.named_children():
        if name not in getattr(module, "in_float32", ()):
            yield from _layers(child)


NO_SHADOW = ShadowWeights(nn.Module(), torch.float32)


def _state(weight: nn.Parameter) -> tuple[int, int]:
    """Changes whenever the weight is written to or given other storage."""
    return weight._version, weight.data_ptr()


class AdamW(torch.optim.AdamW):
    """Fused AdamW over float32 weights and their copies, in one pass over memory."""

    def __init__(self, parameters: Iterable[Any], shadow: ShadowWeights, **settings: Any) -> None:
        super().__init__(parameters, fused=True, **settings)
        self.shadow = shadow

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient, of any dtype."""
        for group in self.param_groups:
            whole: list[tuple[Tensor, ...]] = []
            moved: list[tuple[nn.Parameter, nn.Parameter]] = []
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.zeros((), device=weight.device)
                    state |= {name: torch.zeros_like(weight) for name in MOMENTS}
                state["step"] = state["step"].to(weight.device) + 1
                tensors = tuple(
                    map(_local, (weight.detach(), weight.grad, *(state[k] for k in MOMENTS), state["step"]))
                )
                copied = self.shadow.of(weight)
                if copied is None or not weight.is_cpu:
                    whole.append(tensors)
                    if copied is not None:
                        moved.append((weight, copied))
                    continue
                flat = [tensor.view(-1).split(CHUNK) for tensor in (*tensors[:4], copied.detach())]
                for w, g, m, v, t in zip(*flat, strict=True):
                    self._update(group, [(w, g, m, v, state["step"])])
                    t.copy_(w)
                self.shadow.rounded(weight)
            self._update(group, whole)
            if moved:  # by hand: the fused kernel leaves no mark on the weight that `in_place` could notice
                torch._foreach_copy_([copied for _, copied in moved], [weight for weight, _ in moved])
                for weight, _ in moved:
                    self.shadow.rounded(weight)

    @staticmethod
    def _update(group: dict[str, Any], pieces: list[tuple[Tensor, ...]]) -> None:
        """(weight, gradient, first and second moment, step) -> the weight one step on, in place."""
        if not pieces:
            return
        weights, gradients, first, second, steps = (list(tensors) for tensors in zip(*pieces, strict=True))
        torch._fused_adamw_(
            weights, [g.float() for g in gradients], first, second, [], steps, lr=group["lr"],
            beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"],
            amsgrad=False, maximize=False,
        )  # fmt: skip


def _local(tensor: Tensor) -> Tensor:
    """This process's slice of a tensor that FSDP has sharded."""
    return getattr(tensor, "to_local", lambda: tensor)()
