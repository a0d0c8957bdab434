"""How long `Policy.act` takes with torch's own threads, with one thread, and as lapa sets them; in turn, in one run.

    python benchmarks/act_threads.py [--policy runs/policy] [--busy 2]

Each arm is a process of its own, for some settings are read when torch is loaded. --busy starts so many processes that
do nothing but compute, as on a machine that trains or draws pictures at the same time. Without --policy it is a policy
of the laptop preset that was not trained, which takes as long. Prints milliseconds: median, 95th percentile, longest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ARMS = {  # name -> what the environment says
    "torch's own": {"OMP_WAIT_POLICY": "ACTIVE"},
    "one thread": {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "1"},
    "torch before lapa": {"TORCH_FIRST": "1"},
    "as lapa sets them": {},
}
CALLS, WARM, ROUNDS = 20, 3, 2


def measure(path: str | None) -> list[float]:
    """Milliseconds of each call."""
    if "TORCH_FIRST" in os.environ:
        import torch  # noqa: F401
    import numpy as np

    import lapa
    from lapa.actions.spaces import ActionSpace
    from lapa.policies import configured
    from lapa.recipe import preset

    if path:
        policy = lapa.Policy.from_pretrained(path)
    else:
        policy = configured(preset("laptop")).build()
        policy.grow(ActionSpace.fit(np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32), 32))
        policy.eval()
    frame = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    times = []
    for _ in range(WARM + CALLS):
        began = time.perf_counter()
        policy.act({"image": frame, "instruction": "push the red star to the blue disc"})
        times.append(1e3 * (time.perf_counter() - began))
    return times[WARM:]


def main() -> None:
    """Run all arms in turn, and again."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--policy")
    options.add_argument("--busy", type=int, default=0)
    options.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.measure:
        print(json.dumps(measure(given.policy)))
        return
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.busy)]
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    try:
        for _ in range(ROUNDS):
            for arm, told in ARMS.items():
                command = [sys.executable, __file__, "--measure"]
                command += ["--policy", given.policy] if given.policy else []
                done = subprocess.run(command, env=environment | told, capture_output=True, text=True, check=True)
                found[arm] += json.loads(done.stdout.splitlines()[-1])
    finally:
        for process in busy:
            process.kill()
    print(f"{os.cpu_count()} cores, {given.busy} busy processes beside it, load {os.getloadavg()[0]:.1f}")
    for arm, times in found.items():
        ranked = sorted(times)
        print(f"{arm:<18} {ranked[len(ranked) // 2]:8.1f} {ranked[int(0.95 * len(ranked))]:8.1f} {ranked[-1]:8.1f} ms")


if __name__ == "__main__":
    main()
