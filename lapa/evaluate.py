"""`lapa evaluate`: policy x benchmark -> outcomes, success per family with 95% intervals, one JSON and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lapa import __version__
from lapa.artefacts.folder import read_json, write_json
from lapa.contracts import Actor, Benchmark, LapaError, Outcome
from lapa.measures.intervals import wilson
from lapa.plots.codes import animation, success_bars


def share(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """{"success", "interval", "episodes"} of some outcomes; the interval is Wilson's at 95%."""
    wins = sum(o.success for o in outcomes)
    low, high = wilson(wins, len(outcomes))
    return {"success": wins / len(outcomes), "interval": [low, high], "episodes": len(outcomes)}


def require_fit(dimensions: int, who: str, name: str, benchmark: Benchmark) -> None:
    """Raise LapaError unless the benchmark called `name` takes actions of so many dimensions; `who` has or gives
    them."""
    if dimensions != benchmark.dimensions:
        raise LapaError(
            f"{who}: {dimensions} action dimensions; the benchmark {name} has {benchmark.dimensions}. Use "
            "lapa.Policy.act on your robot, or add a benchmark (CONTRIBUTING.md)."
        )


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
    Raises LapaError when `out` holds anything but an earlier try at this very evaluation.
    """
    about = {"seed": seed, "episodes": episodes, **about}
    _require_room(out, {"method": name, **about})
    outcomes = benchmark.run(actor, episodes, seed, record=min(video, episodes))
    families = {f: [o for o in outcomes if o.family == f] for f in benchmark.families}
    results = {
        "method": name,
        **share(outcomes),
        "families": {family: share(some) for family, some in families.items() if some},
        "mean_steps": sum(o.steps for o in outcomes) / len(outcomes),
        "lapa": __version__,
        **about,
        "outcomes": [asdict(o) for o in outcomes],
    }
    for stale in _animations(out):
        stale.unlink()
    for i, frames in enumerate(benchmark.frames[:video]):
        told = {**asdict(outcomes[i]), "method": name}
        animation(frames, out / f"episode_{i}.gif", fps=10, scale=1)
        write_json(out / f"episode_{i}.json", told)
    success_bars({name: results}, out / "success.png")
    write_json(out / "results.json", results)
    return results


def _require_room(out: Path, wanted: dict[str, Any]) -> None:
    """Raise LapaError when `out` holds something else, or the evaluation of something else."""
    results = out / "results.json"
    own = {results, out / "success.png", *_animations(out)}
    inside = {path for path in out.iterdir() if path.name[0] != "."} if out.exists() else set()
    if other := sorted(inside - own):
        raise LapaError(f"{out} holds more than an evaluation ({other[0].name}). Choose another --out.")
    if results.exists():
        before = read_json(results, "evaluation")
        if changed := [key for key, value in wanted.items() if before.get(key) != value]:
            raise LapaError(
                f"{out} holds another evaluation ({changed[0]} {before.get(changed[0])}, not {wanted[changed[0]]}). "
                "Remove it or choose another --out."
            )


def _animations(out: Path) -> list[Path]:
    return [path for kind in ("gif", "json") for path in out.glob(f"episode_*.{kind}")]
