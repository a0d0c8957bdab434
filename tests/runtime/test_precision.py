"""What makes training quick, and that it changes no result that it must not change."""

from __future__ import annotations

import importlib
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lapa import plugins
from lapa.backbones.tiny import ImageAttention
from lapa.contracts import FramePairs
from lapa.models.laq import LAQ, LAQConfig
from lapa.runtime.precision import AdamW, ShadowWeights, fast_dtype
from lapa.training.loop import Optimisation, Sampler, fit

TINY = LAQConfig(
    image_size=32, patch_size=8, dim=32, spatial_depth=1, temporal_depth=1, heads=2, dim_head=16, codes=4,
    codebook_size=8, quant_dim=8,
)  # fmt: skip


def pairs(rows: np.ndarray) -> FramePairs:
    frames = np.random.default_rng(0).integers(0, 256, (16, 2, 32, 32, 3), dtype=np.uint8)[rows]
    zeros = np.zeros(len(rows), np.int64)
    return FramePairs(frames[:, 0], frames[:, 1], zeros, zeros, zeros + 1)


SAMPLER = Sampler(lambda rng: rng.integers(16, size=8), pairs)


def model(seed: int = 0) -> LAQ:
    torch.manual_seed(seed)
    return TINY.build()


def gradients(laq: LAQ, shadow: ShadowWeights, batches: int = 1) -> dict[str, torch.Tensor]:
    """Gradients in bfloat16 arithmetic, as float32."""
    for _ in range(batches):
        torch.manual_seed(0)
        with shadow.in_place():
            with torch.autocast("cpu", torch.bfloat16):
                loss, _ = laq.loss(pairs(np.arange(8)))
            loss.backward()
    return {name: p.grad.float() for name, p in laq.named_parameters() if p.grad is not None and p.numel()}


# ShadowWeights


def test_twins_are_autocast() -> None:
    """The same arithmetic: bfloat16 products of rounded weights. Only gradients of weights used twice differ."""
    laq, other = model(), model()
    shadow = gradients(laq, ShadowWeights(laq, torch.bfloat16))
    autocast = gradients(other, ShadowWeights(other, torch.float32))
    assert shadow.keys() == autocast.keys()
    for name in shadow:
        torch.testing.assert_close(
            shadow[name], autocast[name], rtol=0.02, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    exact = [name for name in shadow if torch.equal(shadow[name], autocast[name])]
    assert len(exact) > 0.8 * len(shadow)


@pytest.mark.parametrize("quantizer", plugins.names("quantizers"))
def test_quantizers_compute_in_float32(quantizer: str) -> None:
    """Those with layers of their own too: FSQ's projections once met a rounded twin."""
    torch.manual_seed(0)
    laq = replace(TINY, quantizer=quantizer).build()
    seen: list[torch.dtype] = []
    for layer in laq.quantizer.modules():
        layer.register_forward_pre_hook(lambda layer, _: seen.extend(p.dtype for p in layer.parameters(recurse=False)))
    made = gradients(laq, ShadowWeights(laq, torch.bfloat16))
    assert set(seen) <= {torch.float32}
    assert made["project_in.weight"].isfinite().all()


def test_twins_leave_no_trace() -> None:
    laq = model()
    before = {name: p.clone() for name, p in laq.state_dict().items()}
    with ShadowWeights(laq, torch.bfloat16).in_place():
        assert laq.project_in.weight.dtype == torch.bfloat16
        assert laq.quantizer.codebook.dtype == torch.float32  # distances decide codes
    assert all(torch.equal(before[name], p) for name, p in laq.state_dict().items())


def test_twins_notice_who_else_writes() -> None:
    laq = model()
    shadow = ShadowWeights(laq, torch.bfloat16)
    laq.load_state_dict(model(seed=1).state_dict())
    with shadow.in_place():
        seen = laq.project_in.weight.detach().clone()
    assert torch.equal(seen, laq.project_in.weight.detach().bfloat16())


def test_gradients_of_several_batches_add_up_in_float32() -> None:
    laq, other = model(), model()
    once, thrice = (
        gradients(laq, ShadowWeights(laq, torch.bfloat16)),
        gradients(other, ShadowWeights(other, torch.bfloat16), 3),
    )
    assert other.project_in.weight.grad is not None
    assert other.project_in.weight.grad.dtype == torch.float32
    assert torch.equal(thrice["project_in.weight"], 3 * once["project_in.weight"])


@pytest.mark.parametrize(("chunk", "on_a_cpu"), [(7, True), (1 << 19, True), (1 << 19, False)])
def test_adamw_is_that_of_torch(chunk: int, on_a_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the shadow follow the weights, in the branch for GPUs as well, where the weights are updated all at once."""
    monkeypatch.setattr("lapa.runtime.precision.CHUNK", chunk)
    if not on_a_cpu:
        monkeypatch.setattr(nn.Parameter, "is_cpu", False)
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    shadow = ShadowWeights(ours, torch.bfloat16)
    settings = {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1}
    optimizers = AdamW(ours.parameters(), shadow, **settings), torch.optim.AdamW(theirs.parameters(), **settings)
    for _ in range(3):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a).bfloat16()
            b.grad = a.grad.float()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        twin = shadow.of(a)
        assert twin is not None
        with shadow.in_place():
            assert torch.equal(twin, a.bfloat16())


@pytest.mark.parametrize(
    ("gpu", "has_bfloat16", "expected"),
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, False, torch.bfloat16)],
)
def test_fast_is_what_the_device_that_computes_has(
    gpu: bool, has_bfloat16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU before Ampere can store bfloat16 and emulate its products; the CPU beside it does not count."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert fast_dtype() == expected


# What is switched on by request


def test_recomputed_gradients_are_the_same() -> None:
    laq, other = model(), model()
    for part in (other.spatial, other.temporal, other.decoder.transformer):
        part.recompute = True
    kept, again = (
        gradients(laq, ShadowWeights(laq, torch.bfloat16)),
        gradients(other, ShadowWeights(other, torch.bfloat16)),
    )
    assert kept.keys() == again.keys()
    for name in kept:
        torch.testing.assert_close(again[name], kept[name], msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_compiled_training_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as for the compiler, which itself is spared: it takes minutes."""
    compiles = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiles(self, backend="aot_eager"))
    how = replace(HOW, steps=2)
    _, plain = trained(tmp_path / "plain", how)
    _, compiled = trained(tmp_path / "compiled", replace(how, compile=True))
    assert compiled == pytest.approx(plain, rel=0.01)


# Runs


def trained(out: Path, how: Optimisation) -> tuple[LAQ, float]:
    laq = model()
    return laq, fit(laq, SAMPLER, how, out, seed=0, title="LAQ")["loss"]


HOW = Optimisation(steps=12, batch_size=8, learning_rate=3e-3, warmup=2, precision="bfloat16")


def test_bfloat16_trains_as_float32_does(tmp_path: Path) -> None:
    half, half_loss = trained(tmp_path / "half", HOW)
    full, full_loss = trained(tmp_path / "full", replace(HOW, precision="float32"))
    assert half_loss == pytest.approx(full_loss, rel=0.02)
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    start = model().state_dict()
    moved = sum(float((p.detach() - start[n]).square().sum()) for n, p in full.named_parameters())
    apart = sum(float((p.detach() - half.state_dict()[n]).square().sum()) for n, p in full.named_parameters())
    assert apart < 0.1 * moved


@pytest.mark.parametrize("change", [{}, {"accumulate": 2}, {"ema": 0.9}])
def test_bfloat16_resumes_with_the_same_bits(change: dict, tmp_path: Path) -> None:
    how = replace(HOW, schedule="constant", **change)
    unbroken, _ = trained(tmp_path / "a", how)
    trained(tmp_path / "b", replace(how, steps=5))
    resumed, _ = trained(tmp_path / "b", how)
    for (name, a), b in zip(unbroken.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


# Memory

FAULTS = """
import resource, torch
from lapa.runtime.memory import keep_freed_memory
if {keep}: keep_freed_memory()
def work():
    for _ in range(20):
        torch.ones(10 << 20)  # 40 MiB: more than glibc learns to keep by itself
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    def faults(keep: bool) -> int:
        code = FAULTS.format(keep=keep)
        return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    assert faults(True) < 100 < faults(False)


# The benchmark

REFERENCE = """
import torch
class Other(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.layer = torch.nn.Linear(3, dim)
    def forward(self, video, step=0):
        return self.layer(video.mean((2, 3, 4))).square().mean(), 1
    def inference(self, video, return_only_codebook_ids=False):
        return self.layer(video.mean((2, 3, 4))).argmax(-1)
def make(dim):
    return Other(dim)
"""


@pytest.mark.slow
def test_the_benchmark_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each side in a process of its own. Labels without the compiler, which takes minutes."""
    (tmp_path / "other.py").write_text(REFERENCE)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    sizes = ("patch_size=8", "image_size=32", "dim=32", "spatial_depth=1", "temporal_depth=1", "heads=2", "dim_head=16")
    options = [part for size in sizes for part in ("--set", f"laq.{size}")]
    reference = ("--reference", f"{tmp_path}/other.py:make", "--repeats", "2", "--threads", "1", "--eager-labels")
    importlib.import_module("laq_speed").main([*reference, *options])
    told = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"training \d+\.\d\dx labelling \d+\.\d\dx", told[-1])
    assert sum("peak memory" in line for line in told) == 2


def test_attention_without_keys_is_attention() -> None:
    """The textbook's way: project the tokens to keys and values, split into heads, attend. Gradients too."""
    torch.manual_seed(0)
    attention, projection, heads = ImageAttention(32, 4), nn.Linear(16, 64), 4
    x, tokens = torch.randn(3, 5, 32, requires_grad=True), torch.randn(3, 7, 16, requires_grad=True)

    def split(t: torch.Tensor) -> torch.Tensor:
        return t.view(*t.shape[:2], heads, -1).transpose(1, 2)

    keys, values = projection(tokens).chunk(2, -1)
    mixed = nn.functional.scaled_dot_product_attention(split(attention.query(x)), split(keys), split(values))
    expected = attention.out(mixed.transpose(1, 2).flatten(2))
    found = attention(x, tokens, projection)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    over = (x, tokens, projection.weight)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), over)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), over), wanted, atol=1e-5, rtol=1e-4)
