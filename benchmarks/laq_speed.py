"""Speed and memory of LAQ: one training step and one labelling pass, another implementation beside ours.

    python benchmarks/laq_speed.py --reference FILE.py:FACTORY     # the paper's size, batch 4
    python benchmarks/laq_speed.py --preset laptop --threads 1     # ours alone, at the size of `make demo`

FACTORY is called with the settings it takes by name, of dim, quant_dim, codebook_size, image_size, patch_size,
spatial_depth, temporal_depth, dim_head, heads and code_seq_len (all of them if it takes **settings). It returns a
module called as the released one is: `module(video [B, 3, 2, H, W], step=n) -> (loss, unique)` and
`module.inference(video, return_only_codebook_ids=True)`. It trains as its authors train it: float32, Adam, clipped
gradients.

Each side lives in a process of its own, so that peak memory is its own (resident set on a CPU, allocated on a GPU), and
they take turns, so that both see the same weather. A ratio is of the two neighbours in a turn. The share is of the rate
that this machine reaches in one product of the model's most common shape, in the side's own arithmetic.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lapa.contracts import FramePairs
from lapa.labels.latent import freeze
from lapa.models.laq import LAQConfig
from lapa.recipe import override, preset
from lapa.runtime.distributed import clip_gradients, device
from lapa.runtime.memory import keep_freed_memory
from lapa.runtime.precision import AdamW, ShadowWeights
from lapa.training.loop import Optimisation, _prepare

Job = Callable[[], Any]


def ours(c: LAQConfig, how: Optimisation, eager: bool) -> tuple[Job, Job]:
    """A training step as training/loop.py takes it, and a labelling pass as `lapa label` does, compiled or `eager`."""
    keep_freed_memory()
    model = c.build().to(device()).train()
    _prepare(model, how, "LAQ")
    shadow, step = ShadowWeights(model, how.dtype()), 0
    parameters = list(model.parameters())
    optimizer = AdamW(parameters, shadow, lr=how.learning_rate, betas=how.betas, weight_decay=how.weight_decay)
    video = videos(c, how.batch_size)
    frames = (video * 255).to(torch.uint8).permute(2, 0, 3, 4, 1).contiguous().numpy()  # as they come from the disk
    zeros = np.zeros(how.batch_size, np.int64)
    batch = FramePairs(frames[0], frames[1], zeros, zeros, zeros + 1)

    def train() -> None:
        nonlocal step
        step += 1
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with shadow.in_place():
            with torch.autocast(device().type, how.dtype(), enabled=how.dtype() != torch.float32):
                loss, _ = model.loss(batch)
            loss.backward()
        clip_gradients(parameters, how.clip)
        optimizer.step()
        model.after_step(step)

    plain, frozen = model.difference, None if eager else freeze(model)

    def label() -> None:
        model.difference = frozen or plain  # as labels/latent.py does
        with shadow.evaluating():
            model.encode(batch.now, batch.later).cpu()
        model.difference = plain

    return train, label


def reference(factory: str, c: LAQConfig, how: Optimisation) -> tuple[Job, Job]:
    """The same of another implementation, as the released trainer does it."""
    file, _, name = factory.partition(":")
    spec = importlib.util.spec_from_file_location("reference", file)
    if spec is None or spec.loader is None or not name:
        raise SystemExit(f'--reference is FILE.py:FACTORY, not "{factory}".')
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    make = getattr(found, name)
    settings = {
        "dim": c.dim, "quant_dim": c.quant_dim, "codebook_size": c.codebook_size, "image_size": c.image_size,
        "patch_size": c.patch_size, "spatial_depth": c.spatial_depth, "temporal_depth": c.temporal_depth,
        "dim_head": c.dim_head, "heads": c.heads, "code_seq_len": c.codes,
    }  # fmt: skip
    takes = inspect.signature(make).parameters
    if not any(p.kind == p.VAR_KEYWORD for p in takes.values()):
        settings = {key: value for key, value in settings.items() if key in takes}
    model: nn.Module = make(**settings).to(device()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=how.learning_rate, betas=how.betas)
    video, step = videos(c, how.batch_size).to(device()), 0

    def train() -> None:
        nonlocal step
        step += 1
        model.train()
        loss, _ = model(video, step=step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), how.clip)
        optimizer.step()
        optimizer.zero_grad()

    def label() -> None:
        model.eval()
        with torch.no_grad():
            model.inference(video, return_only_codebook_ids=True).cpu()

    return train, label


def videos(c: LAQConfig, batch: int) -> torch.Tensor:
    """float32 [B, 3, 2, H, W] in [0, 1], the same for both sides."""
    return torch.rand(batch, 3, 2, c.image_size, c.image_size, generator=torch.Generator().manual_seed(0))


def side(
    pipe: Connection, factory: str, c: LAQConfig, how: Optimisation, eager: bool, threads: int, times: int
) -> None:
    """A process: warm up, then time a job whenever its name arrives. Sends back seconds a pass."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    jobs = dict(zip(("train", "label"), reference(factory, c, how) if factory else ours(c, how, eager), strict=True))
    counts = {}
    for name, job in jobs.items():
        job()
        with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
            job()
        # Products of matrices alone: the counter takes the backward pass of a depthwise convolution for a dense one.
        counts[name] = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "conv" not in str(op))
        job()
    rate = products(torch.float32 if factory else how.dtype(), c, how.batch_size)
    pipe.send({"flops": counts, "rate": rate})
    while name := pipe.recv():
        pipe.send(timed(jobs[name], times))
    on_gpu = device().type == "cuda"
    pipe.send(
        torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )


def timed(job: Job, times: int) -> float:
    """Seconds a pass, averaged over `times` of them in a row."""
    finish = torch.cuda.synchronize if device().type == "cuda" else lambda: None
    finish()
    begin = time.perf_counter()
    for _ in range(times):
        job()
    finish()
    return (time.perf_counter() - begin) / times


def products(dtype: torch.dtype, c: LAQConfig, batch: int) -> float:
    """Operations a second in products of the shape that takes most of the model's time; the best of ten."""
    tokens, inner = batch * 2 * (c.image_size // c.patch_size) ** 2, 2 * int(8 / 3 * c.dim)
    a = torch.randn(tokens, c.dim, device=device()).to(dtype)
    b = torch.randn(inner, c.dim, device=device()).to(dtype)
    times = max(1, int(2e9 / (tokens * c.dim * inner)))
    return 2 * tokens * c.dim * inner / min(timed(lambda: nn.functional.linear(a, b), times) for _ in range(10))


class Side:
    """One implementation in a process of its own."""

    def __init__(self, name: str, factory: str, *settings: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=side, args=(other, factory, *settings), daemon=True)
        self.process.start()
        other.close()
        self.about = self.pipe.recv()
        self.seconds: dict[str, list[float]] = {"train": [], "label": []}

    def run(self, job: str) -> None:
        self.pipe.send(job)
        self.seconds[job].append(self.pipe.recv())

    def close(self) -> float:
        """Ends the process. Returns its peak memory in GB."""
        self.pipe.send("")
        peak = self.pipe.recv() / 1e9
        self.process.join()
        return peak


def told(values: list[float], form: str = ".3f") -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default="", metavar="FILE.py:FACTORY", help="the other implementation")
    parser.add_argument("--preset", default="paper", help="a preset of lapa (default: paper)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of the preset"
    )
    parser.add_argument("--batch", type=int, default=0, help="pairs (default: 4 for paper, else the preset's)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"), help="of ours")
    parser.add_argument("--compile", action="store_true", help="torch.compile our training step")
    parser.add_argument("--eager-labels", action="store_true", help="label without compiling (lapa label --compile)")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing in ours")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all)")
    o = parser.parse_args(arguments)

    recipe = preset(o.preset)
    for option in o.set:
        recipe = override(recipe, option)
    c, on_gpu = recipe.laq, device().type == "cuda"
    batch = o.batch or (4 if o.preset == "paper" and not on_gpu else recipe.quantize.batch_size)
    how = replace(recipe.quantize, batch_size=batch, precision=o.precision, compile=o.compile, recompute=o.recompute)
    settings = (c, how, o.eager_labels, o.threads, 10 if on_gpu or c.dim < 256 else 1)
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {o.threads} threads"
    print(f"{o.preset}: {c.image_size} pixels, batch {batch}, {where}, torch {torch.__version__}; ours: {how.dtype()}")
    sides = [Side("reference", o.reference, *settings)] if o.reference else []
    sides.append(Side("ours", "", *settings))
    for _ in range(o.repeats):
        for job in ("train", "label"):
            for each in sides:
                each.run(job)

    for each in sides:
        peak = each.close()
        for job, doing in (("train", "training step"), ("label", "labelling pass")):
            seconds, flops = each.seconds[job], each.about["flops"][job]
            share = flops / statistics.median(seconds) / each.about["rate"]
            print(
                f"{each.name:<10} {doing:<15} {told(seconds)} s   {batch / statistics.median(seconds):.2f} pairs/s   "
                f"{flops / 1e9:.0f} GFLOP, {share:.0%} of {each.about['rate'] / 1e9:.0f} GFLOP/s"
            )
        print(f"{each.name:<10} peak memory     {peak:.2f} GB")
    speeds = {}
    for job, doing in (("train", "training"), ("label", "labelling")):
        if o.reference:
            ratios = [a / b for a, b in zip(sides[0].seconds[job], sides[1].seconds[job], strict=True)]
            print(f"{doing}: ours is {told(ratios, '.2f')} times as fast")
            speeds[doing] = f"{statistics.median(ratios):.2f}x"
        else:
            speeds[doing] = f"{batch / statistics.median(sides[0].seconds[job]):.2f} pairs/s"
    print(" ".join(f"{doing} {speed}" for doing, speed in speeds.items()))


if __name__ == "__main__":
    main()
