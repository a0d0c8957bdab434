"""Does the policy listen? The same scenes with the right instruction, with that of another scene, and with none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lapa.contracts import Actor
from lapa.evaluate import share
from lapa.plots.codes import success_bars
from lapa.plugins import find

TOLD = ("right", "shuffled", "empty")


def language(policy: Actor, episodes: int, out: Path, seed: int = 0) -> dict[str, Any]:
    """Success for each kind of instruction, by family too, and `out/language.png`."""
    results = {}
    for told in TOLD:
        world = find("benchmarks", "tabletop")(instruction=told).build()
        outcomes = world.run(policy, episodes, seed)
        families = {f: [o for o in outcomes if o.family == f] for f in world.families}
        results[told] = {
            **share(outcomes),
            "families": {family: share(some) for family, some in families.items() if some},
        }
    success_bars(results, out / "language.png", "Success by what the policy is told")
    return results
