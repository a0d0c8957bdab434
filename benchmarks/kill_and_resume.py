"""Kill `lapa quantize` with SIGKILL at random moments, resume it each time, and compare with a run nobody killed.

    python benchmarks/kill_and_resume.py --times 100

Runs of 150 small steps, with a checkpoint after every step or every few (`--save-every`, seconds), are killed until
`--times` kills are reached; each run is killed at random moments until it ends by itself. A kill counts as "during a
save" when it leaves a half-written checkpoint behind. Prints the counts; exit code 1 if any result differs by a bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OPTIONS = (
    *("laq.image_size=24", "laq.patch_size=6", "laq.dim=16", "laq.spatial_depth=1", "laq.temporal_depth=1"),
    *("laq.heads=2", "laq.dim_head=8", "laq.codebook_size=8", "laq.quant_dim=4", "laq.unet_width=8"),
    *("quantize.batch_size=8", "quantize.ema=0.9"),
)
# Python and torch take seconds to start, the steps milliseconds: a forked child trains, so that only one start is paid.
SERVER = """
import os, sys
from lapa import cli
from lapa.training import loop
import lapa.stage1_latent_actions, lapa.plots.codes
loop.fit.__kwdefaults__["save_every"] = float(sys.argv[1])
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.stdin.close()
        cli.main(line.split())
        sys.stdout.flush()
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print("ended", os.waitstatus_to_exitcode(status), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="kills")
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of a run")
    parser.add_argument("--save-every", type=float, default=-1.0, help="seconds between checkpoints; -1: every step")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(measure(Path(folder), arguments.times, arguments.steps, arguments.save_every, arguments.seed))


def measure(folder: Path, times: int, steps: int, save_every: float, seed: int) -> int:
    rng = random.Random(seed)
    command = ["quantize", "--dataset", "tabletop:sim,episodes=4,seed=3", "--steps", str(steps)]
    command += [part for option in OPTIONS for part in ("--set", option)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LAPA_CACHE": str(folder / "cache")}
    server = subprocess.Popen(
        [sys.executable, "-u", "-c", SERVER, str(save_every)], text=True, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / "log").open("w"),
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None

    def train(out: Path, kill_after: float | None) -> bool:
        """One process; True when it ended by itself."""
        server.stdin.write(" ".join([*command, "--resume", "--out", str(out)]) + "\n")
        server.stdin.flush()
        child = int(next(line for line in server.stdout if line.strip().isdigit()))
        if kill_after is not None:
            time.sleep(kill_after)
            subprocess.run(["kill", "-9", str(child)], stderr=subprocess.DEVNULL, check=False)
        status = next(line for line in server.stdout if line.startswith("ended")).split()[1]
        if status not in ("0", "-9"):
            sys.exit(f"the run ended with {status}:\n{(folder / 'log').read_text()[-3000:]}")
        return status == "0"

    train(folder / "unbroken", None)
    started = time.monotonic()
    train(folder / "timed", None)
    length = time.monotonic() - started
    expected, twin = result(folder / "unbroken"), result(folder / "timed")
    assert expected == twin, "two unbroken runs differ; there is nothing to compare with"

    kills = saving = runs = differing = 0
    moments: list[int] = []
    seen: set[tuple[str, int]] = set()  # what earlier kills have left
    began = time.monotonic()
    while kills < times:
        out, runs = folder / f"run_{runs}", runs + 1
        while kills < times and not train(out, rng.uniform(0.05, 0.4 * length)):
            kills += 1
            left = {(found.name, found.lstat().st_ctime_ns) for found in (out / "checkpoints").glob(".*.tmp")}
            saving += bool(left - seen)
            seen |= left
            done = [int(found.name[5:]) for found in (out / "checkpoints").glob("step_*")]
            moments.append(max(done, default=0))
        if not (out / "config.json").exists():
            train(out, None)
        if (found := result(out)) != expected:
            differing += 1
            print("differ:", *(name for name in expected if found[name] != expected[name]), flush=True)
        shutil.rmtree(out)
        print(f"{kills} kills, {saving} of them during a save; {runs} runs, {differing} differ", flush=True)
    server.stdin.close()
    server.wait()
    spread = sorted(moments)
    print(f"killed after steps {spread[0]} to {spread[-1]}, median {spread[len(spread) // 2]}, of {steps}; "
          f"an unbroken run takes {length:.1f} s; {time.monotonic() - began:.0f} s in all")  # fmt: skip
    print(f"{kills} kills, {saving} during a save, {runs} resumed runs, {differing} differ from the unbroken one")
    return 1 if differing else 0


def result(out: Path) -> dict[str, Any]:
    """What must not differ: the weights, the optimizer's last state, and every logged figure."""
    last = max((out / "checkpoints").glob("step_*"))
    files = [out / "model.safetensors", *sorted(last.glob("*.safetensors"))]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    made = json.loads((out / "config.json").read_text())
    return {"weights": hashes[0], "state": hashes[1:], "metrics": lines, "results": made["results"]}


if __name__ == "__main__":
    main()
