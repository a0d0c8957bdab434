"""How long a policy takes to answer: `autoregressive`, `parallel`, `flow` and `fast` in turn, on several backbones.

    python benchmarks/policy_latency.py                           # tiny, pieces (MiniLM, SmolLM2), lwm at a tiny size
    python benchmarks/policy_latency.py --only lwm-7b --repeats 1 # the size of LAPA-7B, random bfloat16 weights, 14 GB
    python benchmarks/policy_latency.py --own 'mine=hf={"model":"FOLDER"}'     # any backbone with its options

Nothing is trained: an untrained policy takes as long. One observation at a time, as on a robot: a picture of 256 x 256
pixels and a new instruction each ten answers. The arms share one backbone and take turns in one process for each
backbone, so that all see the same weather and peak memory is the backbone's own; a ratio is of two neighbours. Beside
the time on the clock stands that of the processor, over all threads: with --threads 1 it is what the clock would say on
a machine that does nothing else.

    codes    4 latent codes of 8 kinds (stage 2)
    chunk    8 actions of 7 numbers (stage 3): in 256 bins, one after another or all at once; or as numbers
    fast     between two looks of the backbone, and the mean of one look in `--every` answers

On a GPU it is the same code; `--graphs` there compiles backbone and heads with CUDA graphs, for static shapes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

CODES, KINDS, CHUNK, NUMBERS, BINS = 4, 8, 8, 7, 256
SEVEN = {"dtype": "bfloat16"}
TINY_LWM = {"width": 64, "depth": 2, "heads": 4, "intermediate": 128, "image_size": 64, "vqgan_width": 32,
            "vqgan_mult": [1, 1, 2, 2, 2], "vqgan_blocks": 1}  # fmt: skip
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("tiny", {}),
    "pieces-minilm": ("pieces", {}),
    "pieces-smollm2": ("pieces", {"language": "smollm2"}),
    "lwm-tiny": ("lwm", TINY_LWM),
    "lwm-7b": ("lwm", SEVEN),
}
USUAL = ("tiny", "pieces-minilm", "pieces-smollm2", "lwm-tiny")
INSTRUCTIONS = ("put the red cup near the pot", "take the spoon", "open the drawer and close the drawer")
KINDS_OF_ANSWER = ("codes", "chunk")
STEPS = 10  # answers with one instruction


def policies(backbone: str, options: Mapping[str, Any], every: int, graphs: bool) -> dict[str, Any]:
    """name of the arm -> an untrained policy; all have the same backbone."""
    import torch

    from lapa.actions.numbers import NumberSpace
    from lapa.actions.spaces import ActionSpace, CodeSpace
    from lapa.backbones import build_backbone
    from lapa.policies.vla import VLA, Config
    from lapa.runtime.distributed import device

    torch.manual_seed(0)
    body: Any = build_backbone(backbone, dict(options), pretrained=backbone != "lwm").eval()
    if backbone == "lwm":
        fill(body)
        untokenised(body)
    body = body.to(device())
    if graphs:
        body.encode = torch.compile(body.encode, mode="reduce-overhead", dynamic=False)
    normal = np.random.default_rng(0).normal(size=(2000, CHUNK, NUMBERS)).astype(np.float32)
    codes, bins = CodeSpace(CODES, KINDS), ActionSpace.fit(normal[:, 0], BINS, CHUNK)
    numbers = NumberSpace.fit(normal)
    one_by_one = {"in_backbone": True} if backbone == "lwm" else {}
    arms = {
        "codes autoregressive": ("autoregressive", one_by_one, codes),
        "codes parallel": ("parallel", {}, codes),
        "chunk autoregressive": ("autoregressive", one_by_one, bins),
        "chunk parallel": ("parallel", {}, bins),
        "chunk flow": ("flow", {}, numbers),
        "chunk fast": ("fast", {"every": every}, numbers),
    }
    found = {}
    for name, (head, its, space) in arms.items():
        policy = VLA(Config(head=head, head_options=its, backbone=backbone, backbone_options=dict(options)), body)
        policy.grow(space)
        policy.head.to(device())
        found[name] = policy.eval()
    return found


def fill(module: Any) -> None:
    """Random weights without a copy of them: pages that nobody has written to cost no memory, and no time to read."""
    import torch

    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in module.parameters():
            flat, some = weight.view(-1), (noise * 0.02).to(weight.dtype)
            for start in range(0, len(flat), len(some)):
                part = flat[start : start + len(some)]
                part.copy_(some[: len(part)])


def untokenised(body: Any) -> None:
    """LWM's prompt without its tokenizer, which is not part of lapa: as many tokens as an instruction has."""
    import torch

    words, vocabulary = body.config.words, body.config.vocabulary

    def prepare(seen: Any) -> dict[str, torch.Tensor]:
        (images,) = seen.images.values()
        present = (torch.arange(words) >= words - 40).expand(len(seen), -1)
        ids = torch.arange(words).expand(len(seen), -1) % vocabulary
        after = torch.arange(6).expand(len(seen), -1)
        return {"pixels": body._squares(images), "words": ids, "present": present, "after": after}

    body.prepare, body.overlooked = prepare, lambda texts: []


def observations() -> Iterator[dict[str, Any]]:
    """Without end; another picture each time."""
    rng, count = np.random.default_rng(0), 0
    frames = rng.integers(0, 256, (16, 256, 256, 3), np.uint8)
    while True:
        text = INSTRUCTIONS[count // STEPS % len(INSTRUCTIONS)]
        yield {"image": frames[count % len(frames)], "instruction": text}
        count += 1


def timed(policy: Any, one: Mapping[str, Any], name: str) -> tuple[float, float]:
    """Milliseconds of an answer, on the clock and of the processor."""
    import torch

    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    finish()
    began, worked = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        if name.startswith("codes"):
            policy.predict_codes(one["image"][None], [one["instruction"]])
        else:
            policy.act(one)
    finish()
    return 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - worked)


def measured(row: str, told: tuple[str, dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    """All arms of one backbone, in turn: {"ms": {arm: [..]}, "GB": .., "weights": ..}."""
    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
    made = policies(*told, given.every, given.graphs)
    fast = made["chunk fast"]
    made = {name: policy for name, policy in made.items() if not given.arms or name in given.arms}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in (*made, "fast between looks")}
    shown = observations()
    long = row == "lwm-7b"  # which has no time to warm up
    for turn in range(given.repeats + (not long)):
        one = next(shown)
        for name, policy in made.items():
            fast.reset()
            took = timed(policy, one, name)
            between = timed(fast, one, "fast between looks") if name == "chunk fast" else None
            if turn or long:  # else it warms up
                times[name].append(took)
                times["fast between looks"] += [between] if between is not None else []
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = sum(p.numel() for p in fast.backbone.parameters())
    language = getattr(fast.backbone, "language", None)
    weights += sum(p.numel() for p in language.model.parameters()) if hasattr(language, "model") else 0
    return {"row": row, "ms": times, "GB": peak / 1e9, "weights": weights, "threads": torch.get_num_threads()}


def _process(pipe: Any, *arguments: Any) -> None:
    pipe.send(measured(*arguments))


def alone(call: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    """In a process of its own, so that peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=call, args=(other, *arguments), daemon=True)
    process.start()
    other.close()
    found: dict[str, Any] = pipe.recv()
    process.join()
    return found


def ratio(slow: list[tuple[float, float]], quick: list[tuple[float, float]]) -> float:
    """The median of neighbours, by the processor's time; of as many turns as both have had."""
    turns = min(len(slow), len(quick))
    return statistics.median(a[1] / b[1] for a, b in zip(slow[:turns], quick[:turns], strict=True))


def told(found: Mapping[str, Any], every: int) -> list[str]:
    """Lines of a table."""
    times, lines = found["ms"], []
    for name, each in ((name, each) for name, each in times.items() if each):
        clock, worked = (np.array(part) for part in zip(*each, strict=True))
        lines.append(
            f"| {found['row']} | {name} | {np.median(clock):,.1f} | {np.percentile(clock, 99):,.1f} | "
            f"{np.median(worked):,.1f} | {np.percentile(worked, 99):,.1f} | {1e3 / np.median(worked):,.1f} |"
        )
    if times.get("chunk fast"):
        look, between = (statistics.median(w for _, w in times[name]) for name in ("chunk fast", "fast between looks"))
        mean = (look + (every - 1) * between) / every
        lines.append(f"| {found['row']} | fast, mean of one look in {every} | | | {mean:,.1f} | | {1e3 / mean:,.1f} |")
    pairs = {kind: [times.get(f"{kind} {head}") for head in ("autoregressive", "parallel")] for kind in KINDS_OF_ANSWER}
    lines.append(
        f"{found['row']}: {found['weights'] / 1e6:,.1f}M weights, peak memory {found['GB']:.2f} GB, {found['threads']} "
        f"threads, load {os.getloadavg()[0]:.1f}. autoregressive over parallel, processor: "
        + ", ".join(f"{kind} {ratio(slow, quick):.2f}" for kind, (slow, quick) in pairs.items() if slow and quick)
    )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=ROWS, default=[], help="rows; repeatable")
    parser.add_argument("--arms", action="append", default=[], help='such as "codes parallel" (default: all)')
    parser.add_argument("--own", action="append", default=[], metavar="NAME=BACKBONE=JSON", help="a row of your own")
    parser.add_argument("--repeats", type=int, default=30, help="turns (default: 30)")
    parser.add_argument("--every", type=int, default=8, help="answers for each look of the backbone, of the head fast")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    parser.add_argument("--graphs", action="store_true", help="on a GPU: CUDA graphs")
    given = parser.parse_args()
    rows = {name: ROWS[name] for name in given.only or ([] if given.own else USUAL)}
    for text in given.own:
        name, backbone, options = text.split("=", 2)
        rows[name] = (backbone, json.loads(options))
    print("| backbone | arm | clock ms, median | p99 | processor ms, median | p99 | a second of the processor |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        for line in told(alone(_process, name, row, given), given.every):
            print(line, flush=True)


if __name__ == "__main__":
    main()
