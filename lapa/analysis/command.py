"""`lapa analyse`: finds the question by its name. Its answer is a few lines on the console, WHAT.json and WHAT.png."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lapa.analysis.algebra import algebra
from lapa.analysis.reading import open_laq, open_policy
from lapa.analysis.rollout import rollout
from lapa.analysis.tabletop.information import information
from lapa.analysis.tabletop.language import WHERE, language
from lapa.analysis.tabletop.transplant import transplant
from lapa.artefacts.folder import write_json
from lapa.contracts import LapaError
from lapa.evaluate import open_benchmark, require_fit
from lapa.policies import Policy

DOMAINS = tuple(f"tabletop:{domain},episodes=300,seed=9" for domain in ("sim", "real", "hand"))


def answer(
    what: str, run: Path, specs: Sequence[str], policy: Path | None, out: Path, episodes: int, seed: int
) -> dict[str, Any]:
    """Answer question `what` about the artefact at `run`; returns what WHAT.json holds. Raises LapaError when the
    question needs a policy or another artefact."""
    if what == "rollout" and policy is None:
        raise LapaError("rollout needs --policy FOLDER, of `lapa pretrain` on the labels of this LAQ.")
    if what != "rollout" and policy is not None:
        raise LapaError(f"--policy belongs to rollout; leave it out of {what}.")
    if what == "language":
        speaker = Policy.from_pretrained(run)
        require_fit(speaker, str(run), open_benchmark(WHERE).spec, WHERE)
        results = language(speaker, episodes, out, seed)
    else:
        source = open_laq(run)
        if policy is not None:
            results = rollout(source, open_policy(policy, source), specs or DOMAINS[:1], out, seed)
        else:
            questions: dict[str, Callable[..., dict[str, Any]]] = {
                "transplant": transplant, "algebra": algebra, "information": information,
            }  # fmt: skip
            results = questions[what](source, specs or DOMAINS, out, seed)
    about = {"what": what, "run": str(run), "datasets": list(specs or DOMAINS), "policy": policy, "seed": seed}
    if what == "language":
        about = {"what": what, "run": str(run), "episodes": episodes, "seed": seed}
    write_json(out / f"{what}.json", {**about, "results": results})
    print("\n".join(TOLD[what](results)))
    print(f"Picture and figures: {out}/{what}.png, {what}.json")
    return results


def _transplant(results: dict[str, Any]) -> list[str]:
    lines = []
    for c in results["cells"]:
        low, high = c["interval"]
        lines.append(
            f"  {c['from']:>6} -> {c['to']:<6} {c['share']:6.1%} ({low:.1%} to {high:.1%}); "
            f"shuffled {c['shuffled']:.1%}, true motion {c['true_motion']:.1%}; "
            f"{c['of']} pairs; {c['too_short']} of {c['pairs']} too short"
        )
    return [
        *lines,
        f"Across domains {results['across_domains']:.1%} of motions are within {results['within_degrees']:.0f} degrees "
        f"(shuffled codes {results['shuffled']:.1%}, true motion {results['true_motion']:.1%}).",
    ]


def _algebra(results: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in results.items():
        for rule in ("additivity", "reversal"):
            errors = ", ".join(f"{level} {v['error']:.2f}" for level, v in found[rule].items())
            near = f"; motion within 30 degrees {found['within_30'][rule]['share']:.0%}" if "within_30" in found else ""
            lines.append(f"  {name:<10} {rule:<11} {errors}{near}")
        lines.append(f"  {name:<10} constant    {found['constant']:.0%} of the difference is the same for all pairs")
    return [*lines, "0 is exact, 1 is chance."]


def _information(results: dict[str, Any]) -> list[str]:
    return [
        f"  {name:<13} codes of {found['entropy']:.2f} bits; "
        + ", ".join(f"{k} {v['bits']:.3f}" for k, v in found["variables"].items())
        + f"; object / action {found['object_over_action']:.1%} (at most {found['object_over_action_at_most']:.1%})"
        for name, found in results.items()
    ]


def _rollout(results: dict[str, Any]) -> list[str]:
    at = sorted({1, results["horizon"] // 2, results["horizon"]})
    lines = [
        f"  {name:<9} " + "  ".join(f"{values[h - 1]:.2f}" for h in at) for name, values in results["over_copy"].items()
    ]
    after = ", ".join(map(str, at))
    return [f"{results['episodes']} episodes; squared error over that of copying, after {after} windows:", *lines]


def _language(results: dict[str, Any]) -> list[str]:
    return [
        f"  {told:<9} {row['success']:.1%} ({row['interval'][0]:.1%} to {row['interval'][1]:.1%})"
        for told, row in results.items()
    ]


TOLD = {
    "transplant": _transplant,
    "algebra": _algebra,
    "information": _information,
    "rollout": _rollout,
    "language": _language,
}
