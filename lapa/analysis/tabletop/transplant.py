"""Do codes mean the same motion in every domain? The robot of one domain executes the codes of another domain.

For domains A and B: each pair of frames of A gets its code. A linear probe, fitted on B alone, turns codes into
commands of B's robot (its axes are turned, mirrored and scaled). B's simulator executes the command in a random scene
of its own. The result is the angle between this motion and the motion in the pair of A, both in the board's frame.

A pair of A that moves less than STILL has no clear direction. It is left out, and the number of such pairs is given. A
command that does not move the robot counts as wrong. By chance 1 direction in 6 lies within 30 degrees. Three rows are
for comparison: codes shuffled among the pairs of A measure chance; the true motion of A, executed in B, measures how
much the walls hinder; and A = B measures how exact the codes themselves are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lapa.analysis.reading import Reading, Source, angles, effector, read
from lapa.analysis.tabletop.states import domains_of
from lapa.contracts import Array
from lapa.measures.intervals import share_by_episode
from lapa.measures.linear import LinearFit
from lapa.plots.figure import COLOURS, INK, MUTED, figure, plain, save
from lapa.tabletop import world
from lapa.tabletop.render import DOMAINS

STILL = world.STEP / 4  # board units
WITHIN = 30.0  # degrees
GOAL, PUBLIC = 0.9, 0.705  # of this project (issue 5); of a public world model, as quoted there
MOST = 2000  # pairs of A per cell
BLOCKS = slice(2, None)  # of Tabletop's state


def transplant(source: Source, specs: Sequence[str], out: Path, seed: int = 0) -> dict[str, Any]:
    """Every domain's codes in every domain; writes `out/transplant.png`. Raises LapaError unless all are Tabletop's."""
    domains = domains_of(specs, "A transplant is executed in the simulator; it")
    readings = {domain: read(source, spec, seed=seed) for domain, spec in zip(domains, specs, strict=True)}
    halves = {domain: reading.halves(seed) for domain, reading in readings.items()}
    probes = {domain: LinearFit.fit(fit.features, per_frame(fit)) for domain, (fit, _) in halves.items()}
    cells = [
        cell(test, probes[b], halves[b][1], b, seed) for _, test in halves.values() for b in domains
    ]  # fmt: skip
    across = [c for c in cells if c["from"] != c["to"]] or cells
    results = {
        "within_degrees": WITHIN,
        "still_below": STILL,
        "cells": [{k: v for k, v in c.items() if not k.endswith("angles")} for c in cells],
        "across_domains": float(np.mean([c["share"] for c in across])),
        "shuffled": float(np.mean([c["shuffled"] for c in across])),
        "true_motion": float(np.mean([c["true_motion"] for c in across])),
    }
    _picture(domains, cells, results, out / "transplant.png")
    return results


def cell(test: Reading, probe: LinearFit, scenes: Reading, domain: str, seed: int = 0) -> dict[str, Any]:
    """`probe` turns the codes of `test` into actions of one frame; these are executed in `domain`, from `scenes`.

    Returns shares with their interval over the episodes of `test`, counts, and "angles" float [N] in degrees.
    """
    rng = np.random.default_rng(seed)
    long = np.linalg.norm(test.moved, axis=1) >= STILL
    kept = rng.permutation(np.flatnonzero(long))[:MOST]
    some, moved = test.some(kept), test.moved[kept]
    starts = rng.choice(len(scenes), len(kept))
    frames = some.pairs.offset[some.rows]
    commands = probe(some.features)
    executed = {
        "codes": commands,
        "shuffled": commands[rng.permutation(len(commands))],
        "true motion": (moved / frames[:, None]) @ np.array(DOMAINS[domain].frame).T,
    }
    found = {name: angles(moved, execute(scenes, starts, domain, action, frames)) for name, action in executed.items()}
    return {
        "from": test.name,
        "to": domain,
        **share_by_episode(found["codes"] <= WITHIN, some.episode, seed),
        "shuffled": float((found["shuffled"] <= WITHIN).mean()),
        "true_motion": float((found["true motion"] <= WITHIN).mean()),
        "median_degrees": float(np.median(found["codes"])),
        "pairs": len(test),
        "too_short": int((~long).sum()),
        "angles": found["codes"],
        "shuffled_angles": found["shuffled"],
    }


def per_frame(reading: Reading) -> Array:
    """The robot's action of one frame of the window, on average: float [N, A]."""
    mean: Array = reading.actions / np.maximum(reading.pairs.offset[reading.rows], 1)[:, None]
    return mean


def execute(scenes: Reading, starts: Array, domain: str, action: Array, frames: Array) -> Array:
    """How far the effector goes, float64 [N, 2] in the board's frame, when the robot of `domain` repeats action [N, A]
    (its own units) for `frames` [N] steps, from the states that the pairs `starts` of `scenes` begin with."""
    first = scenes.pairs.now[scenes.rows[starts]]
    assert scenes.packed.state is not None
    blocks = scenes.packed.state[first][:, BLOCKS].astype(np.float64).reshape(len(first), -1, 2)
    nobody = np.zeros(blocks.shape[:2], np.int64)  # contacts do not depend on what the blocks look like
    begin = now = world.Scenes(nobody, blocks, effector(scenes.packed)[first], nobody[:, 0])
    delta = action @ np.linalg.inv(DOMAINS[domain].frame).T
    for step in range(int(frames.max())):
        now = world.step(now, np.where((step < frames)[:, None], delta, 0.0))
    moved: Array = now.effector - begin.effector
    return moved


def _picture(domains: list[str], cells: list[dict[str, Any]], results: dict[str, Any], path: Path) -> None:
    """The shares as a table; all angles as a curve."""
    made = figure(8.6, 3.7, "Codes of one domain, executed as motion in another")
    table, curve = made.subplots(1, 2, width_ratios=(1, 1.25))
    n = len(domains)
    shares = np.array([c["share"] for c in cells]).reshape(n, n)
    table.imshow(shares, cmap="Blues", vmin=0, vmax=1.3)
    for c, (i, j) in zip(cells, np.ndindex(n, n), strict=True):
        low, high = c["interval"]
        words = f"{c['share']:.0%}\n{low:.0%} to {high:.0%}\nshuffled {c['shuffled']:.0%}"
        table.text(j, i, words, ha="center", va="center", fontsize=8, color=INK, linespacing=1.5)
    plain(table, f"Share within {WITHIN:.0f} degrees", "executed in the domain", "codes read from the domain")
    table.set_xticks(range(n), domains)
    table.set_yticks(range(n), domains)
    table.grid(visible=False)
    table.spines[:].set_visible(False)
    degrees = np.linspace(0, 180, 181)
    same = [c for c in cells if c["from"] == c["to"]]
    across = [c for c in cells if c["from"] != c["to"]]
    for name, some, key, colour in (
        ("another domain", across, "angles", COLOURS[0]),
        ("the same domain", same, "angles", COLOURS[2]),
        ("shuffled codes", across or same, "shuffled_angles", COLOURS[4]),
    ):
        if some:
            found = np.sort(np.concatenate([c[key] for c in some]))
            curve.plot(
                degrees, 100 * np.searchsorted(found, degrees, side="right") / len(found), color=colour, label=name
            )
    curve.axvline(WITHIN, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    curve.plot([WITHIN], [100 * GOAL], "_", ms=14, mew=2, color=INK, label=f"goal, {GOAL:.0%}")
    curve.plot([WITHIN], [100 * PUBLIC], "_", ms=14, mew=2, color=COLOURS[1], label=f"public world model, {PUBLIC:.1%}")
    plain(curve, "All angles", "degrees between executed and shown motion", "share of pairs up to there, %")
    curve.set_xlim(0, 180)
    curve.set_ylim(0, 101)
    curve.set_xticks([0, 30, 60, 90, 120, 150, 180])
    curve.legend(fontsize=8, frameon=False, loc="lower right")
    save(made, path)
