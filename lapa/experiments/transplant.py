"""`lapa study transplant`: does a code of one robot move another robot the same way?

A pair of frames of one dataset gives codes; the LAQ's decoder applies them to a first frame of another dataset, with a
scene of its own. The optical flow from that frame to the decoded picture is held against the flow of the pair that the
codes are from: the same way is within ANGLE of it. Which way a flow goes is its mean, each cell counted by how much it
moves (measures/flow.py `main_motion`). Pairs that hardly move say nothing and are left out.

    same scene   the codes applied to their own first frame: the most that the decoder can show
    another      to frames of the other datasets
    shuffled     the same pictures, held against the flow of another pair: what chance gives
    direction of cells   the same question of each cell of the grid that moves in both flows, not of the whole picture
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lapa.artefacts.folder import load_artefact, replacing, write_json
from lapa.contracts import Array, LapaError
from lapa.data.pack import pack
from lapa.data.pairs import window_pairs
from lapa.experiments.sweep import markdown
from lapa.measures.flow import coarse_flow, flow_between, installed, main_motion
from lapa.models.laq import LAQ

ANGLE = 30.0  # degrees
MOVING = 0.5  # of the pairs, those that move most
PAIRS = 300  # of each dataset, at most
LEAST = 1e-3  # of a side of the picture: a flow that is shorter has no direction
BATCH = 32


def study_transplant(laq_path: str, datasets: tuple[str, ...], out: Path, seed: int = 0) -> dict[str, Any]:
    """Make the table of each two datasets and write it to out/table.md and out/results.json. Raises LapaError for fewer
    than two datasets and without the library for optical flow."""
    if len(datasets) < 2:
        raise LapaError("A transplant needs two datasets or more, one --dataset for each robot.")
    if not installed():
        raise LapaError('A transplant is judged by optical flow: pip install "lapa[flow]".')
    laq = LAQ.from_pretrained(laq_path)
    window = float(load_artefact(laq_path, "laq").value(float, "recipe", "window"))
    random = np.random.default_rng(seed)
    now, flow, codes = list[Array](), list[Array](), list[Array]()
    for spec in datasets:
        packed = pack([spec], laq.config.image_size)
        pairs = window_pairs(packed, window)
        rows = np.arange(0, len(pairs), -(-len(pairs) // (2 * PAIRS)))
        each = coarse_flow(packed, pairs, rows)
        speed = np.linalg.norm(main_motion(each), axis=1)
        kept = np.sort(np.argsort(-speed)[: max(2, round(MOVING * len(rows)))])
        some = pairs.batch(packed, rows[kept])
        now.append(np.asarray(some.now))
        flow.append(each[kept])
        codes.append(_encoded(laq, np.asarray(some.now), np.asarray(some.later)))
    found: dict[str, Any] = {}
    for a, source in enumerate(datasets):
        for b, target in enumerate(datasets):
            onto = np.arange(len(now[a])) if a == b else random.integers(len(now[b]), size=len(now[a]))
            made = _flow_of(laq, now[b][onto], codes[a])
            other = np.roll(np.arange(len(made)), len(made) // 2)
            found[f"{source} -> {target}"] = {
                "same_scene": a == b, "pairs": len(made),
                "within": same_way(flow[a], made), "shuffled": same_way(flow[a][other], made),
                "cells": same_way_by_cell(flow[a], made), "cells_shuffled": same_way_by_cell(flow[a][other], made),
            }  # fmt: skip
            print(f"{source} -> {target}: {_words(found[f'{source} -> {target}'])}", flush=True)
    results = {"laq": laq_path, "datasets": list(datasets), "window": window, "rows": found}
    write_json(out / "results.json", results)
    with replacing(out / "table.md") as file:
        file.write_text(table(results))
    return results


def _encoded(laq: LAQ, now: Array, later: Array) -> Array:
    parts = [laq.encode(now[i : i + BATCH], later[i : i + BATCH]).cpu().numpy() for i in range(0, len(now), BATCH)]
    return np.concatenate(parts)


def _flow_of(laq: LAQ, now: Array, codes: Array) -> Array:
    """The flow from frames uint8 [N, S, S, 3] to what the decoder makes of them with the codes int64 [N, s]."""
    made = []
    for start in range(0, len(now), BATCH):
        frames = now[start : start + BATCH]
        decoded = laq.decode(frames, codes[start : start + BATCH]).permute(0, 2, 3, 1).cpu().numpy()
        pictures = np.round(decoded * 255).astype(np.uint8)
        made += [flow_between(a, b) for a, b in zip(frames, pictures, strict=True)]
    return np.stack(made)


def same_way(source: Array, made: Array) -> float:
    """Flows float [N, 2, rows, columns] each: the share of pairs that both move, within ANGLE of each other. A decoded
    picture in which nothing moves counts as another way."""
    return _within(main_motion(source), main_motion(made))


def same_way_by_cell(source: Array, made: Array) -> float:
    """The same of all cells that move in both: those faster than half of the fastest of their flow."""
    speed = [np.linalg.norm(flow, axis=1) for flow in (source, made)]
    both = np.logical_and.reduce([each > each.max((1, 2), keepdims=True) / 2 for each in speed])
    a, b = (flow.transpose(0, 2, 3, 1)[both] for flow in (source, made))
    return _within(a, b) if len(a) else 0.0


def _within(a: Array, b: Array) -> float:
    length = [np.linalg.norm(way, axis=1) for way in (a, b)]
    cosine = (a * b).sum(1) / np.maximum(length[0] * length[1], 1e-12)
    return float(((cosine >= np.cos(np.deg2rad(ANGLE))) & (length[1] > LEAST)).mean())


def _words(row: Mapping[str, Any]) -> str:
    return (f"{row['within']:.0%} of {row['pairs']} pairs the same way (shuffled {row['shuffled']:.0%}), of the cells "
            f"{row['cells']:.0%} ({row['cells_shuffled']:.0%})")  # fmt: skip


def table(results: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        [name, f"{row['pairs']}", *(f"{row[key]:.0%}" for key in ("within", "shuffled", "cells", "cells_shuffled"))]
        for name, row in results["rows"].items()
    ]
    head = [f"codes of -> frame of; within {ANGLE:.0f} degrees", "pairs", "whole", "shuffled", "cells", "shuffled"]
    return f"LAQ {results['laq']}\n\n{markdown(head, lines)}\n"
