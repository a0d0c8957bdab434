"""Plans that people can read: the way that a policy's codes mean, drawn on the present image, beside the true way.

A linear probe, fitted on other episodes, turns a code into motion. Where the state says where the effector is, a way is
that of the effector. On any other video it is that of the point that moves most, carried by the optical flow
(measures/flow.py): the probe then tells the flow of the whole picture. Two lines start at that point:

    plan            the policy sees the present image; after that, the frames that the decoder draws from its codes
    step by step    the policy sees every real frame of the video: what it would do at each moment

Two more lines are for comparison: the way that the codes of the video itself mean, and the true way.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lapa.analysis.reading import Reading, angles, effector, in_picture
from lapa.contracts import Array, LapaError
from lapa.data.pixels import as_pixels
from lapa.measures.flow import COLUMNS, ROWS, coarse_flow, flow_between, installed
from lapa.measures.linear import LinearFit
from lapa.measures.probes import one_hot
from lapa.models.laq import LAQ
from lapa.plots.codes import Dreamer
from lapa.plots.figure import COLOURS, INK, figure, save

STEPS = 12  # windows ahead, at most: half of the episodes are so long
LEAST = 2  # windows ahead, at least
JUDGED = 200  # plans behind the figures
SHOWN = 6
FLOWED = 1500  # pairs that the probe of the flow is fitted on
TITLES = {
    "plan": "plan, from this image alone",
    "each_frame": "policy, frame by frame",
    "codes": "codes of the video",
    "true": "what was done",
}
STYLE = {"plan": COLOURS[0], "each_frame": COLOURS[3], "codes": COLOURS[2], "true": INK}


class Motion(Protocol):
    """What moves. Places are shares of the picture, x to the right and y down."""

    @property
    def what(self) -> str:
        """What it is, in words."""
        ...

    def true(self, test: Reading, frames: Array) -> Array:
        """Frames int64 [B, T] of a pack -> where it really was, float64 [B, T, 2]."""
        ...

    def step(self, features: Array, places: Array) -> Array:
        """Codes as features float [B, F], and where it is, float64 [B, 2] -> how far it goes, float64 [B, 2]."""
        ...


@dataclass(frozen=True)
class OfEffector:
    """The effector, whose place is part of the state."""

    probe: LinearFit
    what: str = "the effector"

    def true(self, test: Reading, frames: Array) -> Array:
        """See Motion."""
        where: Array = effector(test.packed)[frames]
        return where

    def step(self, features: Array, places: Array) -> Array:
        """See Motion: it goes as far wherever it is."""
        return self.probe(features)


@dataclass(frozen=True)
class OfPoint:
    """The point that moves most, carried by the flow of the picture."""

    probe: LinearFit  # codes -> flow [2 * ROWS * COLUMNS]
    what: str = "the point that moves most"

    @staticmethod
    def fit(reading: Reading) -> OfPoint:
        """From the pairs of a reading."""
        some = reading.some(np.random.default_rng(0).permutation(len(reading))[:FLOWED])
        flow = coarse_flow(some.packed, some.pairs, some.rows)
        return OfPoint(LinearFit.fit(some.features, flow.reshape(len(some), -1), some.episode))

    def true(self, test: Reading, frames: Array) -> Array:
        """See Motion."""
        made = []
        for row in frames:
            film = test.packed.gather(row)
            flows = [flow_between(a, b) for a, b in itertools.pairwise(film)]
            early = np.linalg.norm(flows[: max(1, len(flows) // 4)], axis=1).mean(0)  # speed, [ROWS, COLUMNS]
            i, j = np.unravel_index(early.argmax(), early.shape)
            way = [np.array([(j + 0.5) / COLUMNS, (i + 0.5) / ROWS])]
            for flow in flows:
                way.append(way[-1] + _at(flow[None], way[-1][None])[0])
            made.append(way)
        return np.array(made, np.float64)

    def step(self, features: Array, places: Array) -> Array:
        """See Motion: as the flow where it is."""
        return _at(self.probe(features).reshape(-1, 2, ROWS, COLUMNS), places)


def _at(flow: Array, places: Array) -> Array:
    """Flow float [B, 2, rows, columns] at places [B, 2], between the middles of the cells: [B, 2]."""
    rows, columns = flow.shape[2:]
    x, y = np.clip(places[:, 0] * columns - 0.5, 0, columns - 1), np.clip(places[:, 1] * rows - 0.5, 0, rows - 1)
    left, top = np.minimum(x.astype(int), columns - 2), np.minimum(y.astype(int), rows - 2)
    u, v, b = (x - left)[:, None], (y - top)[:, None], np.arange(len(flow))
    upper = flow[b, :, top, left] * (1 - u) + flow[b, :, top, left + 1] * u
    lower = flow[b, :, top + 1, left] * (1 - u) + flow[b, :, top + 1, left + 1] * u
    made: Array = upper * (1 - v) + lower * v
    return made


def motion_of(reading: Reading, fit: Reading) -> Motion | None:
    """What moves in this dataset; None where nothing tells: no state of the effector, and no library for the flow."""
    if in_picture(reading.packed):
        return OfEffector(LinearFit.fit(fit.features, fit.moved))
    return OfPoint.fit(fit) if installed() else None


def plans(laq: LAQ, policy: Dreamer, reading: Reading, path: Path, title: str, seed: int = 0) -> dict[str, Any]:
    """Draw SHOWN plans to `path`, judge up to JUDGED: {"plans", "steps", "what", KIND: {"within_45", "miss"}}.

    within_45: the share of ways whose direction, over the first quarter, is within 45 degrees of the true one.
    miss: the distance between the end of a way and the true end, divided by the distance covered. Raises LapaError
    where nothing tells what moves, or no episode is LEAST windows long.
    """
    fit, test = reading.halves(seed)
    moves = motion_of(reading, fit)
    if moves is None:
        raise LapaError(
            f'{reading.name}: plans need optical flow (pip install "lapa[flow]"), or a state effector_x, effector_y in '
            "shares of the picture."
        )
    starts, steps = _starts(test, seed)
    ways, images, texts = follow(laq, policy, test, starts, moves, steps)
    early = max(1, steps // 4)
    true = ways["true"]
    gone = np.linalg.norm(true[:, -1] - true[:, 0], axis=1)
    results: dict[str, Any] = {"plans": len(starts), "steps": steps, "what": moves.what}
    for name, way in ways.items():
        if name != "true":
            off = angles(way[:, early] - way[:, 0], true[:, early] - true[:, 0])
            miss = np.linalg.norm(way[:, -1] - true[:, -1], axis=1)
            results[name] = {"within_45": float((off <= 45).mean()), "miss": float(miss.mean() / gone.mean())}
    _picture({name: way[:SHOWN] for name, way in ways.items()}, images[:SHOWN], texts[:SHOWN], path, title)
    return results


def _starts(test: Reading, seed: int) -> tuple[Array, int]:
    """The first pair of each episode that is long enough: rows of test.pairs, int64 [<= JUDGED]; and how many windows
    that is. Raises LapaError where none is LEAST windows long."""
    pairs = test.pairs
    first = np.flatnonzero(pairs.frame == 0)
    first = first[np.isin(pairs.episode[first], test.episode) & (pairs.offset[first] > 0)]
    windows = (np.diff(test.packed.starts)[pairs.episode[first]] - 1) // pairs.offset[first]
    if not len(first) or windows.max() < LEAST:
        raise LapaError(f"{test.name}: no episode is {LEAST} windows long.")
    steps = int(np.clip(np.median(windows), LEAST, STEPS))
    return np.random.default_rng(seed).permutation(first[windows >= steps])[:JUDGED], steps


def follow(
    laq: LAQ, policy: Dreamer, test: Reading, starts: Array, moves: Motion, steps: int = STEPS
) -> tuple[dict[str, Array], Array, list[str]]:
    """Ways float64 [B, steps + 1, 2] in shares of the picture, from the pairs `starts`; first images; instructions."""
    packed, pairs = test.packed, test.pairs
    frames = pairs.now[starts][:, None] + pairs.offset[starts][:, None] * np.arange(steps + 1)
    texts = [packed.instructions[e] for e in pairs.episode[starts]]
    size, where = laq.config.image_size, next(laq.parameters()).device
    video = [as_pixels(packed.gather(frames[:, t]), size, where) for t in range(steps + 1)]
    named: dict[str, list[Array]] = {"plan": [], "each_frame": [], "codes": []}
    drawn = video[0]
    for now, later in itertools.pairwise(video):
        planned = policy.predict_codes(drawn, texts)
        drawn = laq.decode(drawn, planned)
        for name, codes in (("plan", planned), ("each_frame", policy.predict_codes(now, texts)),
                            ("codes", laq.encode(now, later))):  # fmt: skip
            named[name].append(codes.cpu().numpy())
    true = moves.true(test, frames)
    ways = {}
    for name, sequence in named.items():
        way = [true[:, 0]]
        for told in sequence:
            way.append(way[-1] + moves.step(one_hot(told, test.classes), way[-1]))
        ways[name] = np.stack(way, 1)
    return {**ways, "true": true}, packed.gather(frames[:, 0]), texts


def _picture(ways: dict[str, Array], images: Array, texts: list[str], path: Path, title: str) -> None:
    """One row for each scene, one panel for each way, on the same image."""
    rows = len(images)
    made = figure(8.4, 0.6 + 2.25 * rows, title)
    grid = made.subplots(rows, len(ways), squeeze=False)
    for r in range(rows):
        for axes, (name, way) in zip(grid[r], ways.items(), strict=True):
            axes.imshow(images[r], extent=(0, 1, 1, 0), interpolation="nearest")
            x, y = way[r].T
            axes.plot(x, y, color="white", linewidth=4.2, solid_capstyle="round", clip_on=True)
            axes.plot(x, y, ".-", color=STYLE[name], linewidth=1.9, ms=5)
            axes.plot(x[-1:], y[-1:], "o", ms=7, mfc="white", mec=STYLE[name], mew=2)
            axes.set_xlim(0, 1)
            axes.set_ylim(1, 0)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if not r:
                axes.set_title(TITLES[name], fontsize=9, color=STYLE[name])
        grid[r][0].set_xlabel(f"“{texts[r]}”", fontsize=9, loc="left")
    save(made, path)
