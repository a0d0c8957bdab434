"""Do codes tell the action, or the object? Mutual information of the code with several things, in bits.

    action     direction (eight) and length (none, short, long) of the robot's actions over the window
    position   where the effector was, on a grid of three by three
    object     the block that the instruction moves (colour and shape); colour and shape alone
    family     the kind of task
    domain     which of the datasets, if there are several

A code that means "push the red star" in place of "push" would tell the object. Information that is counted on a
finite sample is always above zero. So the bits that shuffled labels give are subtracted. Whole episodes are shuffled:
neighbouring pairs are alike, and if single pairs were shuffled, chance would seem smaller than it is. The object is
also asked for given the action: does the code tell more of the object than the motion does?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lapa.analysis.reading import Reading, Source, effector, names_of, read
from lapa.analysis.tabletop.states import domains_of
from lapa.contracts import Array, LapaError
from lapa.data.spec import parse
from lapa.plots.figure import COLOURS, INK, MISS, figure, plain, save, whiskers
from lapa.tabletop import world
from lapa.tabletop.language import FAMILIES, SHAPES
from lapa.tabletop.render import DOMAINS

SECTORS, SHUFFLES = 8, 40
GOAL = 0.05  # object share of action share (issue 5)
OBJECT = "object"


def information(source: Source, specs: Sequence[str], out: Path, seed: int = 0) -> dict[str, Any]:
    """The bits for every dataset, for all together, and `out/information.png`. Raises LapaError unless they are
    Tabletop's: its tasks say which block is meant."""
    domains_of(specs, "What the codes tell of objects is asked of Tabletop, whose tasks name them; it")
    readings = [read(source, spec, seed=seed) for spec in specs]
    labels = [variables(r) for r in readings]
    each = zip(names_of(specs), readings, labels, strict=True)
    results = {name: told(r.codes, known, r.episode, seed) for name, r, known in each}
    if len(readings) > 1:
        together = {name: np.concatenate([known[name] for known in labels]) for name in ("action", OBJECT)}
        together["domain"] = np.repeat(np.arange(len(readings)), [len(r) for r in readings])
        episode = np.concatenate([10**6 * i + r.episode for i, r in enumerate(readings)])
        results["all together"] = told(np.concatenate([r.codes for r in readings]), together, episode, seed)
    _picture(results, out / "information.png")
    return results


def variables(reading: Reading) -> dict[str, Array]:
    """All things that a code of Tabletop could tell, as classes int64 [N]. The action is in the board's frame."""
    spec = parse(reading.packed.spec)
    families = (spec.options["family"],) if spec.options.get("family") else FAMILIES
    seeds = [int(name.rpartition("-")[2]) for name in reading.packed.ids]
    scenes, tasks = world.reset(seeds, spec.options.get("split", "seen"), families)
    kind = world.pick(scenes.kinds, tasks.a)[reading.episode]
    colour, shape = np.divmod(kind, len(SHAPES))  # as OBJECTS are ordered
    grid = np.minimum((effector(reading.packed)[reading.pairs.now[reading.rows]] * 3).astype(np.int64), 2)
    return {
        "action": polar(reading.actions @ np.linalg.inv(DOMAINS[spec.path].frame).T),
        "position": 3 * grid[:, 0] + grid[:, 1],
        OBJECT: kind,
        "colour": colour,
        "shape": shape,
        "family": tasks.family[reading.episode],
    }


def polar(motion: Array) -> Array:
    """Motions float [N, 2] -> classes int64 [N]: 0 for (almost) no motion, else its direction and if it is long."""
    if motion.shape[1] != 2:
        raise LapaError(f"Directions are of actions in the plane; these have {motion.shape[1]} dimensions.")
    length = np.linalg.norm(motion, axis=1)
    moving = length >= 0.25 * np.quantile(length, 0.9)
    sector = np.floor((np.arctan2(motion[:, 1], motion[:, 0]) / (2 * np.pi) + 0.5 / SECTORS) * SECTORS) % SECTORS
    longer = length > (np.median(length[moving]) if moving.any() else 0)
    return np.where(moving, 1 + 2 * sector + longer, 0).astype(np.int64)


def told(codes: Array, labels: Mapping[str, Array], episode: Array, seed: int = 0) -> dict[str, Any]:
    """Bits that codes int64 [N, s] tell of labels {name: int64 [N]}, minus those that shuffled labels give.

    {"entropy" of the code, "variables": {NAME: {"bits", "noise" (deviation over shuffles), "entropy"}}, "pairs",
    "object_over_action", "object_over_action_at_most": ratios of bits}. "object given action" is I(code; object |
    action).
    """
    _, code = np.unique(codes, axis=0, return_inverse=True)
    code = code.ravel()
    rng = np.random.default_rng(seed)
    orders = [_shuffled(episode, rng) for _ in range(SHUFFLES)]
    found: dict[str, Any] = {}
    for name, label in labels.items():
        found[name] = _corrected(lambda x: mutual(code, x), label, orders)
    if {"action", OBJECT} <= labels.keys():
        action = labels["action"]
        by_action = mutual(code, action)
        found["object given action"] = _corrected(
            lambda x: mutual(code, joint(x, action)) - by_action, labels[OBJECT], orders
        )
    results = {"pairs": len(code), "entropy": entropy(code), "variables": found}
    if {"action", OBJECT} <= labels.keys():
        bits, noise, of = found[OBJECT]["bits"], found[OBJECT]["noise"], max(found["action"]["bits"], 1e-9)
        results["object_over_action"] = max(bits, 0.0) / of
        results["object_over_action_at_most"] = max(bits + 1.96 * noise, 0.0) / of
    return results


def _corrected(measure: Any, label: Array, orders: Sequence[Array]) -> dict[str, float]:
    by_chance = np.array([measure(label[order]) for order in orders])
    return {
        "bits": float(measure(label) - by_chance.mean()),
        "noise": float(by_chance.std()),
        "by_chance": float(by_chance.mean()),
        "entropy": entropy(label),
    }


def _shuffled(episode: Array, rng: np.random.Generator) -> Array:
    """Rows int64 [N] with the episodes, each whole, in another order, starting at a random row."""
    order = np.argsort(episode, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(episode[order])) + 1)
    mixed = np.concatenate([parts[i] for i in rng.permutation(len(parts))])
    rows = np.empty_like(order)
    rows[order] = np.roll(mixed, int(rng.integers(len(mixed))))
    return rows


def entropy(label: Array) -> float:
    """Bits of labels int64 [N], as counted."""
    _, counts = np.unique(label, return_counts=True)
    return _bits(counts)


def mutual(a: Array, b: Array) -> float:
    """Bits that labels int64 [N] tell of each other, as counted: never below 0, and too many for few rows."""
    return entropy(a) + entropy(b) - entropy(joint(a, b))


def joint(a: Array, b: Array) -> Array:
    """Two labels as one."""
    return a * (int(b.max()) + 1) + b


def _bits(counts: Array) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _picture(results: dict[str, Any], path: Path) -> None:
    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    made = figure(5.2 * columns, 0.5 + 2.6 * rows, "What the codes tell, in bits")
    grid = list(made.subplots(rows, columns, squeeze=False).flat)
    for spare in grid[len(results) :]:
        spare.set_visible(False)
    for axes, (name, content) in zip(grid[: len(results)], results.items(), strict=True):
        values = [
            (v["bits"] + 0.0, (v["bits"] - 1.96 * v["noise"], v["bits"] + 1.96 * v["noise"]))
            for v in content["variables"].values()
        ]
        plain(axes, f"{name}: codes of {content['entropy']:.2f} bits", "bits told, less those of shuffled labels")
        whiskers(axes, list(content["variables"]), {"": values})
        axes.axvline(0, color=MISS, linewidth=0.9, zorder=0)
        axes.set_xlim(-0.1, 1.15 * max(v for v, _ in values) + 0.1)
        most = content["object_over_action_at_most"]
        ratio = f"object / action: {content['object_over_action']:.1%}\n(at most {most:.1%}; goal {GOAL:.0%})"
        axes.text(0.98, 0.03, ratio, transform=axes.transAxes, ha="right", va="bottom", fontsize=8.5,
                  color=COLOURS[2] if most <= GOAL else INK)  # fmt: skip
    save(made, path)
