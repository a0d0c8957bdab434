"""`lapa study transplant`: does a code of one robot move another robot the same way?

A pair of frames of one dataset gives codes; the LAQ's decoder applies them to a first frame of another dataset, with a
scene of its own. The optical flow from that frame to the decoded picture is held against the flow of the pair that the
codes are from: the same way is within ANGLE of it. Which way a flow goes is its mean, each cell counted by how much it
moves (measures/flow.py `main_motion`). Pairs that hardly move say nothing and are left out.

    same scene   the codes applied to their own first frame: the most that the decoder can show
    another      to frames of the other datasets
    shuffled     the same pictures, held against the flow of another pair: what chance gives
    direction of cells   the same question of each cell of the grid that moves in both flows, not of the whole picture

Where little video teaches how things look, pictures blur. With a frozen encoder a decoder of flow (models/
flow_decoder.py) is therefore asked the same: it learns from all datasets together what codes do to frames, and is
judged by episodes that it has not learnt from, one in EVERY.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lapa.artefacts.folder import load_artefact, replacing, write_json
from lapa.contracts import Array, LapaError
from lapa.data.pack import pack
from lapa.data.pairs import window_pairs
from lapa.data.pixels import as_pixels
from lapa.experiments.sweep import markdown
from lapa.measures.flow import coarse_flow, flow_between, installed, main_motion
from lapa.measures.probes import EVERY
from lapa.models.flow_decoder import FlowDecoder
from lapa.models.laq import LAQ
from lapa.models.laq_fit import encode_all
from lapa.training.held_out import is_held_out

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
    robots = [_robot(laq, spec, window) for spec in datasets]
    decoder = _flow_decoder(laq, robots, seed)
    found: dict[str, Any] = {}
    for source, a in zip(datasets, robots, strict=True):
        for target, b in zip(datasets, robots, strict=True):
            rows, onto = _apart(a.moving(a.all), b.moving(b.all), a is b, random)
            row = {"same_scene": a is b, **_judged(a.flow[rows], _flow_of(laq, b.now[onto], a.codes[rows]))}
            if decoder is not None:
                rows, onto = _apart(a.moving(a.held_out), b.moving(b.held_out), a is b, random)
                made = decoder(b.cells[onto], torch.from_numpy(a.codes[rows])).numpy()
                row["flow_decoder"] = _judged(a.flow[rows], made)
            found[f"{source} -> {target}"] = row
            print(f"{source} -> {target}: {_words(row)}", flush=True)
    results = {"laq": laq_path, "datasets": list(datasets), "window": window, "rows": found}
    write_json(out / "results.json", results)
    with replacing(out / "table.md") as file:
        file.write_text(table(results))
    return results


@dataclass(frozen=True)
class Robot:
    """Pairs of one dataset: first frames uint8 [N, S, S, 3], flow float32 [N, 2, rows, columns], codes int64 [N, s],
    held_out bool [N], and what the frozen encoder sees in the first frames, float [N, channels, r, c] (none: empty)."""

    now: Array
    flow: Array
    codes: Array
    held_out: Array
    cells: torch.Tensor

    @property
    def all(self) -> Array:
        """bool [N]."""
        return np.ones(len(self.now), bool)

    def moving(self, among: Array) -> Array:
        """Of the pairs `among`, bool [N], those that move most: int64, ascending."""
        rows = np.flatnonzero(among)
        speed = np.linalg.norm(main_motion(self.flow[rows]), axis=1)
        return np.sort(rows[np.argsort(-speed)[: max(2, round(MOVING * len(rows)))]])


def _robot(laq: LAQ, spec: str, window: float) -> Robot:
    packed = pack([spec], laq.config.image_size)
    pairs = window_pairs(packed, window)
    rows = np.arange(0, len(pairs), -(-len(pairs) // (2 * PAIRS)))
    some = pairs.batch(packed, rows)
    now, cells = np.asarray(some.now), torch.zeros(len(rows), 0, 0, 0)
    if laq.directions is not None:
        pixels = as_pixels(now, laq.config.image_size, laq.device).split(BATCH)
        with torch.no_grad():
            cells = torch.cat([laq.directions.encoder.grid(part).cpu() for part in pixels])  # type: ignore[operator]
    held_out = is_held_out(pairs.episode[rows], EVERY)
    return Robot(now, coarse_flow(packed, pairs, rows), encode_all(laq, packed, pairs, rows), held_out, cells)


def _flow_decoder(laq: LAQ, robots: Sequence[Robot], seed: int) -> FlowDecoder | None:
    """Trained on the pairs of all robots that are not held out; None, and why is said, where that cannot be."""
    if laq.directions is None or not all(robot.held_out.any() for robot in robots):
        print(f"No decoder of flow: it takes a frozen encoder, and {EVERY} episodes of each dataset.", flush=True)
        return None
    learnt = [~robot.held_out for robot in robots]
    cells = torch.cat([robot.cells[torch.from_numpy(rows)] for robot, rows in zip(robots, learnt, strict=True)])
    codes, flow = (
        np.concatenate([getattr(robot, name)[rows] for robot, rows in zip(robots, learnt, strict=True)])
        for name in ("codes", "flow")
    )
    decoder = FlowDecoder(cells.shape[1], codes.shape[1], laq.config.codebook_size)
    decoder.fit(cells, codes, flow, seed)
    return decoder


def _apart(rows: Array, others: Array, same: bool, random: np.random.Generator) -> tuple[Array, Array]:
    """Pairs whose codes are applied, and the frames they are applied to: their own, or any of the others."""
    return rows, rows if same else others[random.integers(len(others), size=len(rows))]


def _judged(flow: Array, made: Array) -> dict[str, Any]:
    other = np.roll(np.arange(len(made)), len(made) // 2)
    return {"pairs": len(made),
            "within": same_way(flow, made), "shuffled": same_way(flow[other], made),
            "cells": same_way_by_cell(flow, made), "cells_shuffled": same_way_by_cell(flow[other], made)}  # fmt: skip


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
    said = (f"{row['within']:.0%} of {row['pairs']} pairs the same way (shuffled {row['shuffled']:.0%}), of the cells "
            f"{row['cells']:.0%} ({row['cells_shuffled']:.0%})")  # fmt: skip
    return f"{said}; by the decoder of flow {_words(row['flow_decoder'])}" if "flow_decoder" in row else said


def table(results: Mapping[str, Any]) -> str:
    """Markdown."""
    every = {name: row for name, row in results["rows"].items()}
    every |= {f"{name}, decoder of flow": row["flow_decoder"] for name, row in every.items() if "flow_decoder" in row}
    lines = [
        [name, f"{row['pairs']}", *(f"{row[key]:.0%}" for key in ("within", "shuffled", "cells", "cells_shuffled"))]
        for name, row in every.items()
    ]
    head = [f"codes of -> frame of; within {ANGLE:.0f} degrees", "pairs", "whole", "shuffled", "cells", "shuffled"]
    return f"LAQ {results['laq']}\n\n{markdown(head, lines)}\n"
