"""Does the policy use the instruction? The same scenes with the right one, with one of another scene, with none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from lapa.contracts import Actor
from lapa.evaluate import Told, Trial, by_family, open_benchmark, roll_out, share
from lapa.plots.codes import success_bars

WHERE = "tabletop"


def language(policy: Actor, episodes: int, out: Path, seed: int = 0) -> dict[str, Any]:
    """Success for each kind of instruction, by family too, and `out/language.png`."""
    results, benchmark = {}, open_benchmark(WHERE)
    for told in get_args(Told):
        outcomes, _ = roll_out(benchmark, policy, Trial(episodes, seed, instruction=told))
        results[told] = {**share(outcomes), "families": by_family(outcomes, benchmark.spec.families)}
    success_bars(results, out / "language.png", "Success by what the policy is told")
    return results
