"""The released policy code beside ours, at equal shape and weights, in turn: how long a latent action takes.

    python benchmarks/policy_vs_released.py --reference FACTORY.py:make --python OTHER_PYTHON --tokenizer MODEL

A Llama of LAPA-7B's layout with 100M weights (float32) and the VQGAN of LAPA-7B read one picture of 256 x 256 and a
prompt of 391 tokens and generate 4 latent codes, one after another. Weights are random, and the same on both sides:
ours are written with `lapa convert lapa-official --reverse`. It says whether the codes of both sides are equal.

The released code is JAX and no part of lapa. FACTORY is called in OTHER_PYTHON, which has its packages, as
make(folder=.., width=.., depth=.., heads=.., intermediate=.., vocabulary=.., classes=.., codes=.., theta=.., eps=..);
`folder` has the files params, vqgan and tokenizer.model. It returns two functions:

    look(image uint8 [256, 256, 3]) -> int [256]        the VQGAN's codes
    generate(ids [1, L], present bool [1, L], vision bool [1, L]) -> int [1, codes]

Each side is a process of its own on the same one core (--threads), and they take turns. Beside the time on the clock
stands that of the processor, over all threads of the side: it is what the clock would say on an idle machine. A ratio
is of two neighbours.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = {"width": 640, "depth": 12, "heads": 10, "intermediate": 1728, "vocabulary": 32000, "theta": 5e7, "eps": 1e-6}
CODES, KINDS, STOP = 4, 8, 2
WORDS, PICTURE, AFTER = 128, 256, 6  # tokens of the prompt: words (40 of them present), codes of the picture, the end
END_OF_VISION = 8193
PARTS = ("look", "generate")

Sides = tuple[Callable[[Any], Any], Callable[[Any, Any, Any], Any]]


def prompt(turn: int) -> dict[str, Any]:
    """Another picture and another instruction each turn."""
    rng = np.random.default_rng(turn)
    small = rng.integers(0, 256, (16, 16, 3), np.uint8)
    words = rng.integers(3, SHAPE["vocabulary"], (1, WORDS))
    words[:, : WORDS - 40] = 0
    return {"image": np.kron(small, np.ones((16, 16, 1), np.uint8)), "words": words,
            "after": np.arange(100, 100 + AFTER)[None]}  # fmt: skip


def whole(words: Any, codes: Any, after: Any) -> tuple[Any, Any, Any]:
    """Ids [1, L], present and vision bool [1, L] of the released prompt."""
    ids = np.concatenate([words, codes.reshape(1, -1), [[END_OF_VISION]], after], 1).astype(np.int32)
    present = np.arange(ids.shape[1])[None] >= WORDS - 40
    place = np.arange(ids.shape[1])[None] - WORDS
    return ids, present, (place >= 0) & (place <= PICTURE)


def ours(folder: str) -> Sides:
    """Of lapa."""
    import torch

    import lapa

    policy: Any = lapa.Policy.from_pretrained(folder)

    def look(image: Any) -> Any:
        with torch.inference_mode():
            return policy.backbone.look(torch.from_numpy(image)[None])[0].numpy()

    def generate(ids: Any, present: Any, vision: Any) -> Any:
        parts = np.split(ids.astype(np.int64), [WORDS, WORDS + PICTURE, WORDS + PICTURE + 1], 1)
        given = {"words": parts[0], "codes": parts[1], "after": parts[3], "present": present[:, :WORDS]}
        with torch.inference_mode():
            context = policy._context({name: torch.from_numpy(value) for name, value in given.items()})
            return policy.head.predict(context).numpy()

    return look, generate


def reference(factory: str, folder: str) -> Sides:
    """Of the other implementation."""
    file, _, name = factory.partition(":")
    spec = importlib.util.spec_from_file_location("factory", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Sides = getattr(module, name or "make")(folder=folder, codes=CODES, classes=KINDS, **SHAPE)
    return found


def serve(factory: str, folder: str, threads: int) -> None:
    """A side: answers numbers of turns, one a line, with times and results. The interpreter may be one without lapa."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what the packages print is no answer
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    look, generate = reference(factory, folder) if factory else ours(folder)
    for line in sys.stdin:
        given, told = prompt(int(line)), dict[str, Any]()
        seen = np.asarray(timed(told, "look", look, given["image"]))
        codes = np.asarray(timed(told, "generate", generate, *whole(given["words"], seen, given["after"])))
        told |= {"seen": seen.ravel().tolist(), "codes": codes.ravel().tolist()}
        print(json.dumps(told), file=answers, flush=True)


def timed(told: dict[str, Any], name: str, call: Callable[..., Any], *given: Any) -> Any:
    """Its result; told[name] = milliseconds on the clock and of the processor."""
    began, worked = time.perf_counter(), time.process_time()
    found = call(*given)
    told[name] = [1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - worked)]
    return found


def files(folder: Path, tokenizer: Path) -> int:
    """A policy of random weights in folder/ours and in the released form in the folder itself. Returns its weights."""
    import torch

    from lapa.actions.spaces import CodeSpace
    from lapa.artefacts.folder import save_artefact
    from lapa.backbones.lwm import Config as Backbone
    from lapa.interop.convert_lapa_back import to_lapa
    from lapa.policies.vla import Config

    text, generator = tokenizer.read_bytes(), torch.Generator().manual_seed(0)
    options = {**SHAPE, "words": WORDS, "tokenizer_bytes": len(text)}
    policy: Any = Config(
        backbone="lwm", backbone_options=options, head="autoregressive", head_options={"in_backbone": True}
    ).build(pretrained=False)
    assert isinstance(policy.backbone.config, Backbone)
    policy.grow(CodeSpace(CODES, KINDS))
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5, generator=generator)
        policy.backbone.tokenizer.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        policy.head.output.weight[STOP] = policy.head.output.weight[0]  # never the likeliest: it would end the answer
    save_artefact(folder / "ours", "policy", policy.description(), policy.state_dict())
    to_lapa(folder / "ours", folder / "params", folder / "vqgan", folder / "tokenizer.model")
    return sum(weight.numel() for name, weight in policy.named_parameters() if "vqgan" not in name)


class Side:
    """A process that answers turns."""

    def __init__(self, name: str, python: str, factory: str, folder: Path, threads: int) -> None:
        self.name, self.times = name, list[Mapping[str, Any]]()
        alone = {} if threads > 1 else {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        command = [python, __file__, "--serve", factory, "--folder", str(folder), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, "OMP_NUM_THREADS": str(threads), **alone})  # fmt: skip

    def answer(self, turn: int) -> Mapping[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(turn, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: its process ended; what it printed is above.")
        found: Mapping[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def milliseconds(side: Side, part: str, which: int) -> list[float]:
    """Of each turn; part "both" is a whole answer."""
    parts = PARTS if part == "both" else (part,)
    return [sum(turn[name][which] for name in parts) for turn in side.times]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", metavar="FACTORY.py:make", default="", help="the other implementation")
    parser.add_argument("--python", default=sys.executable, help="its interpreter")
    parser.add_argument("--tokenizer", type=Path, help="a sentencepiece model, which the released code opens")
    parser.add_argument("--repeats", type=int, default=7, help="turns (default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="cores of both sides (default: 1)")
    parser.add_argument("--serve", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve, given.folder, given.threads)
        return
    if not given.tokenizer:
        parser.error("--tokenizer is needed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = files(folder, given.tokenizer)
        sides = [Side("ours", sys.executable, "", folder / "ours", given.threads)]
        if given.reference:
            sides.insert(0, Side("released", given.python, given.reference, folder, given.threads))
        print(
            f"{weights / 1e6:.0f}M weights beside the VQGAN, float32, {given.threads} threads, numpy {np.__version__}"
        )
        for turn in range(given.repeats + 1):
            said = [side.answer(turn) for side in sides]
            agree = [len({tuple(one[key]) for one in said}) == 1 for key in ("seen", "codes")]
            if turn:  # before that each side warms up and compiles
                for side, one in zip(sides, said, strict=True):
                    side.times.append(one)
            print(f"turn {turn}: codes {said[0]['codes']}; equal: picture {agree[0]}, latent {agree[1]}", flush=True)
        for side in sides:
            side.close()
    print("| | " + " | ".join(f"{side.name}, processor (clock), ms" for side in sides) + " | ratio, median (range) |")
    for part in (*PARTS, "both"):
        cells = [f"{statistics.median(milliseconds(side, part, 1)):,.0f} "
                 f"({statistics.median(milliseconds(side, part, 0)):,.0f})" for side in sides]  # fmt: skip
        ratios = (
            [a / b for a, b in zip(*(milliseconds(side, part, 1) for side in sides), strict=True)] if sides[1:] else []
        )
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
        print(f"| {part} | " + " | ".join(cells) + f" | {spread} |")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
