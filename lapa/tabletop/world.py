"""State, contacts and success of the table: a batch of N independent scenes in plain numpy.

Every scene depends on its own seed alone, and every operation is element-wise, so a scene unrolls to the same
bits whatever batch it is in. Lengths are in board units: the board is [0, 1] x [0, 1], x right, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lapa.contracts import Array, LapaError
from lapa.plugins import choose
from lapa.tabletop import language as lang

BLOCKS = 4
BLOCK_RADIUS = 0.075
EFFECTOR_RADIUS = 0.05
STEP = 0.055  # longest effector motion of one step
TIME_LIMIT = 60  # steps
FPS = 5.0  # control rate in Hz, as Bridge's

NEAR = 2 * BLOCK_RADIUS + 0.05  # block2block: centre distance that counts as "at the other block"
FAR = 0.38  # separate: centre distance that counts as apart
SIDE_OFFSET = 0.22  # block2side: distance of the goal from B's centre
MOVE = 0.25  # block2relative: distance to go
TOLERANCE = 0.09  # block2absolute, block2side, block2relative: distance of A from its goal
STILL = 0.1  # B may be touched, not moved: a sentence that moves A is not done by moving B
MARGIN = 0.12  # goals keep this far from the board's edge


@dataclass(frozen=True)
class Tasks:
    """What is asked in each of N scenes. `a`, `b` index blocks (b = a where the family has no B);
    `goal` is the place for block2absolute; `direction` the unit vector of block2side and block2relative."""

    family: Array  # int64 [N], index into FAMILIES
    a: Array  # int64 [N]
    b: Array  # int64 [N]
    goal: Array  # float64 [N, 2]
    direction: Array  # float64 [N, 2]
    instruction: tuple[str, ...]
    start: Array  # float64 [N, BLOCKS, 2], block positions when the task was given


@dataclass(frozen=True)
class Scenes:
    """State of N scenes."""

    kinds: Array  # int64 [N, BLOCKS], index into OBJECTS
    blocks: Array  # float64 [N, BLOCKS, 2]
    effector: Array  # float64 [N, 2]
    seeds: Array  # int64 [N]

    def __len__(self) -> int:
        return len(self.effector)

    def head(self, count: int | None) -> Scenes:
        """The first `count` scenes; all of them for None."""
        return Scenes(self.kinds[:count], self.blocks[:count], self.effector[:count], self.seeds[:count])


def length(vector: Array) -> Array:
    """Euclidean length over the last axis of two, written out so that it is the same bits in every batch."""
    return np.sqrt(vector[..., 0] * vector[..., 0] + vector[..., 1] * vector[..., 1])


def unit(vector: Array) -> Array:
    """Unit vector; zero stays zero."""
    return vector / np.maximum(length(vector), 1e-9)[..., None]


def reset(
    seeds: Sequence[int] | Array, split: str = "seen", families: Sequence[str] = lang.FAMILIES
) -> tuple[Scenes, Tasks]:
    """Draw one scene and one task per seed. The family cycles with the seed, so every family gets its share.

    Raises LapaError for an unknown split or family.
    """
    choose(split, tuple(lang.PHRASES), "split of Tabletop")
    for family in families:
        choose(family, lang.FAMILIES, "task family of Tabletop")
    drawn = [_draw(int(seed), split, families[int(seed) % len(families)]) for seed in seeds]
    if not drawn:
        raise LapaError("Tabletop was asked for no scenes; give at least one seed.")
    kinds, blocks, effector, asked, a, b, goal, direction, text = zip(*drawn, strict=True)
    starts = np.array(blocks)
    scenes = Scenes(np.array(kinds), starts, np.array(effector), np.array(seeds, dtype=np.int64))
    return scenes, Tasks(
        np.array(asked), np.array(a), np.array(b), np.array(goal), np.array(direction), tuple(text), starts
    )


def _draw(seed: int, split: str, family: str) -> tuple:
    rng = np.random.default_rng([seed, list(lang.PHRASES).index(split)])
    while True:  # rejection sampling; a handful of tries
        kinds = _draw_kinds(rng, split)
        blocks = rng.uniform(0.18, 0.82, (BLOCKS, 2))
        a, b = 0, 1
        if family == "separate":
            angle = rng.uniform(0, 2 * np.pi)
            blocks[b] = blocks[a] + rng.uniform(0.165, 0.2) * np.array([np.cos(angle), np.sin(angle)])
        effector = rng.uniform(0.05, 0.95, 2)
        place = str(rng.choice(list(lang.PLACES))) if family == "block2absolute" else ""
        named = lang.SIDES if family == "block2side" else tuple(lang.DIRECTIONS)
        way = str(rng.choice(named)) if family in ("block2side", "block2relative") else ""
        goal = np.array(lang.PLACES[place] if place else (0.5, 0.5))
        direction = np.array(lang.DIRECTIONS[way] if way else (0.0, 0.0))
        if not _feasible(family, blocks, effector, goal, direction):
            continue
        order = rng.permutation(BLOCKS)  # A must not always be block 0
        a, b = int(np.argmin(order)), int(np.argmax(order == 1))
        uses_b = family in ("block2block", "block2side", "separate")
        text = lang.say(
            rng, split, family, a=lang.OBJECTS[kinds[0]], b=lang.OBJECTS[kinds[1]], place=place, direction=way
        )
        return (
            kinds[order], blocks[order], effector, lang.FAMILIES.index(family),
            a, b if uses_b else a, goal, direction, text,
        )  # fmt: skip


def _draw_kinds(rng: np.random.Generator, split: str) -> Array:
    """Four different objects; A (first) is held out in the unseen split, all are seen ones in the seen split."""
    seen = [lang.OBJECTS.index(name) for name in lang.SEEN_OBJECTS]
    held_out = [lang.OBJECTS.index(name) for name in lang.HELD_OUT_OBJECTS]
    first = rng.choice(seen if split == "seen" else held_out)
    pool = [k for k in (seen if split == "seen" else range(len(lang.OBJECTS))) if k != first]
    return np.concatenate([[first], rng.choice(pool, BLOCKS - 1, replace=False)])


def _feasible(family: str, blocks: Array, effector: Array, goal: Array, direction: Array) -> bool:
    """Blocks apart, nothing done yet, the goal on the board and free."""
    gaps = length(blocks[:, None] - blocks[None]) + np.eye(BLOCKS)
    if gaps.min() < 2 * BLOCK_RADIUS + 0.004 or blocks.min() < 0.16 or blocks.max() > 0.84:
        return False
    if length(blocks - effector).min() < BLOCK_RADIUS + EFFECTOR_RADIUS + 0.01:
        return False
    a, b = blocks[0], blocks[1]
    target = {
        "block2block": b,
        "block2absolute": goal,
        "block2side": b + SIDE_OFFSET * direction,
        "block2relative": a + MOVE * direction,
        "separate": a,
    }[family]
    if family == "separate":
        return bool(length(blocks[2:] - a).min() > 0.3)
    if family == "block2block" and length(a - b) < NEAR + 0.15:
        return False
    if family != "block2block" and (target.min() < MARGIN or target.max() > 1 - MARGIN or length(a - target) < 0.2):
        return False
    others = blocks[2:] if family in ("block2block", "block2side") else blocks[1:]
    return bool(length(others - target).min() > 0.24)


def step(scenes: Scenes, delta: Array) -> Scenes:
    """Move the effectors by `delta` (board units, float64 [N, 2], clipped to STEP); contacts are quasi-static."""
    delta = np.asarray(delta, dtype=np.float64)
    delta = delta * np.minimum(1.0, STEP / np.maximum(length(delta), 1e-9))[:, None]
    effector, blocks = scenes.effector, scenes.blocks
    reach = BLOCK_RADIUS + EFFECTOR_RADIUS
    for _ in range(2):  # substeps shorter than a radius: nothing tunnels
        effector = np.clip(effector + delta / 2, 0.0, 1.0)
        for _ in range(2):
            apart = blocks - effector[:, None]
            overlap = np.maximum(reach - length(apart), 0.0)
            blocks = blocks + unit(apart) * overlap[..., None]
            blocks = _separate_blocks(blocks)
            blocks = np.clip(blocks, BLOCK_RADIUS, 1 - BLOCK_RADIUS)
        apart = effector[:, None] - blocks  # a block held by the wall stops the effector
        overlap = np.maximum(reach - length(apart), 0.0)
        effector = np.clip(effector + (unit(apart) * overlap[..., None]).sum(1), 0.0, 1.0)
    return replace(scenes, effector=effector, blocks=blocks)


def _separate_blocks(blocks: Array) -> Array:
    blocks = blocks.copy()
    for i in range(BLOCKS):
        for j in range(i + 1, BLOCKS):
            apart = blocks[:, i] - blocks[:, j]
            push = unit(apart) * (np.maximum(2 * BLOCK_RADIUS - length(apart), 0.0) / 2)[:, None]
            blocks[:, i] += push
            blocks[:, j] -= push
    return blocks


def pick(blocks: Array, index: Array) -> Array:
    """Row-wise block positions: [N, BLOCKS, 2], [N] -> [N, 2]."""
    return blocks[np.arange(len(blocks)), index]


def success(scenes: Scenes, tasks: Tasks) -> Array:
    """bool [N]: is what the sentence asks now so? In relations A must have been moved to B, not B to A."""
    a, b = pick(scenes.blocks, tasks.a), pick(scenes.blocks, tasks.b)
    a_start, b_start = pick(tasks.start, tasks.a), pick(tasks.start, tasks.b)
    b_still = length(b - b_start) < STILL
    between = length(a - b)
    family = np.array(lang.FAMILIES)[tasks.family]
    side_goal, move_goal = b + SIDE_OFFSET * tasks.direction, a_start + MOVE * tasks.direction
    return np.select(
        [family == name for name in lang.FAMILIES],
        [
            (between < NEAR) & b_still,
            length(a - tasks.goal) < TOLERANCE,
            (length(a - side_goal) < TOLERANCE) & b_still,
            length(a - move_goal) < TOLERANCE,
            (between > FAR) & b_still,
        ],
        default=False,
    )
