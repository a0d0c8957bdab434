"""`lapa evaluate`: policy x benchmark -> outcomes, success per family with 95% intervals, one JSON and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lapa import __version__
from lapa.contracts import Actor, Benchmark, Outcome
from lapa.explorer.codes import animation, success_bars
from lapa.training.checkpoint import write_json
from lapa.training.metrics import wilson


def share(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """{"success", "interval", "episodes"} of some outcomes; the interval is Wilson's at 95%."""
    wins = sum(o.success for o in outcomes)
    low, high = wilson(wins, len(outcomes))
    return {"success": wins / len(outcomes), "interval": [low, high], "episodes": len(outcomes)}


def evaluate(
    name: str,
    actor: Actor | str,
    benchmark: Benchmark,
    episodes: int,
    seed: int,
    out: Path,
    video: int,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Run `episodes` episodes, write `out/results.json`, `out/success.png` and animations of the first `video`.

    `actor` is a policy or the name of a scripted row; `about` is kept in the JSON (policy path, hash, settings).
    """
    outcomes = benchmark.run(actor, episodes, seed, record=min(video, episodes))
    families = {f: [o for o in outcomes if o.family == f] for f in benchmark.families}
    results = {
        "method": name,
        **share(outcomes),
        "families": {family: share(some) for family, some in families.items() if some},
        "mean_steps": sum(o.steps for o in outcomes) / len(outcomes),
        "seed": seed,
        "lapa": __version__,
        **about,
        "outcomes": [asdict(o) for o in outcomes],
    }
    for i, frames in enumerate(benchmark.frames[:video]):
        told = {**asdict(outcomes[i]), "method": name}
        animation(frames, out / f"episode_{i}.gif", fps=10, scale=1)
        write_json(out / f"episode_{i}.json", told)
    success_bars({name: results}, out / "success.png")
    write_json(out / "results.json", results)
    return results
