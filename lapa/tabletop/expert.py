"""The scripted demonstrator: walk around the blocks to the point behind A, then push along the line to the goal."""

from __future__ import annotations

import math

import numpy as np

from lapa.contracts import Array
from lapa.tabletop import language as lang
from lapa.tabletop.world import (
    BLOCK_RADIUS,
    EFFECTOR_RADIUS,
    MOVE,
    NEAR,
    SIDE_OFFSET,
    STEP,
    Scenes,
    Tasks,
    length,
    pick,
    unit,
)

CONTACT = BLOCK_RADIUS + EFFECTOR_RADIUS
COMPASS = np.array([(math.cos(k * math.pi / 8), math.sin(k * math.pi / 8)) for k in range(16)])


def turn(vector: Array) -> Array:
    """Rotate by 90 degrees: (x, y) -> (-y, x)."""
    return np.stack([-vector[..., 1], vector[..., 0]], -1)


def goals(scenes: Scenes, tasks: Tasks) -> Array:
    """Where A's centre should go, float64 [N, 2]."""
    a, b = pick(scenes.blocks, tasks.a), pick(scenes.blocks, tasks.b)
    family = np.array(lang.FAMILIES)[tasks.family][:, None]
    at_block = b + unit(a - b) * (NEAR - 0.02)
    return np.select(
        [family == name for name in lang.FAMILIES],
        [
            at_block,
            tasks.goal,
            _beside(a, b, tasks.direction),
            pick(tasks.start, tasks.a) + MOVE * tasks.direction,
            a + 0.2 * _way_out(scenes, a, b),
        ],
    )


def _beside(a: Array, b: Array, direction: Array) -> Array:
    """The next point on A's way to the asked side of B: that side itself when B is not in between, otherwise a
    point further round B, by the shorter way."""
    out = unit(a - b)
    facing = (out * direction).sum(-1, keepdims=True)
    sense = np.where((turn(out) * direction).sum(-1, keepdims=True) >= 0, 1.0, -1.0)
    around = b + (SIDE_OFFSET + 0.03) * (out * 0.5 + turn(out) * sense * 0.75**0.5)  # 60 degrees on
    return np.where(facing > 0.4, b + SIDE_OFFSET * direction, around)


def _way_out(scenes: Scenes, a: Array, b: Array) -> Array:
    """Direction to push A away from a touching B: of 16 compass points the one that leads away, stays on the
    board, leaves room for the effector behind A, and is nearest to how the effector stands already."""
    away, ready = unit(a - b), unit(a - scenes.effector)
    score = []
    for compass in COMPASS:
        behind, end = a - (CONTACT + 0.015) * compass, a + 0.28 * compass
        crowded = np.maximum(CONTACT + 0.03 - length(behind - b), 0.0)
        off_board = np.maximum(np.abs(end - 0.5) - 0.4, 0.0).sum(-1) + 2 * np.maximum(
            np.abs(behind - 0.5) - 0.49, 0.0
        ).sum(-1)
        score.append((away * compass).sum(-1) + 0.35 * (ready * compass).sum(-1) - 40 * crowded - 8 * off_board)
    return COMPASS[np.argmax(score, axis=0)]


def act(scenes: Scenes, tasks: Tasks) -> Array:
    """Effector motion of one step, float64 [N, 2] in board units, at most STEP long."""
    a, effector, goal = pick(scenes.blocks, tasks.a), scenes.effector, goals(scenes, tasks)
    along = unit(goal - a)
    to_a = a - effector
    depth = (to_a * along).sum(-1)
    lateral = to_a - depth[:, None] * along
    behind = a - along * (CONTACT + 0.015)

    pushing = (depth > 0) & (length(lateral) < 0.045) & (length(to_a) < CONTACT + 0.05)
    left = length(goal - a) + np.maximum(length(to_a) - CONTACT, 0.0)
    push = unit(along + lateral * 12.0) * np.minimum(STEP, left + 0.01)[:, None]
    walk = _around(scenes, behind, np.where(tasks.b == tasks.a, -1, tasks.b))
    return np.where(pushing[:, None], push, walk)


def _around(scenes: Scenes, target: Array, keep_off: Array) -> Array:
    """A step towards `target` that bends around blocks in the way. Only block `keep_off` (int64 [N], -1 for none)
    must not be touched at all; nudging another now and then is how a notch between two blocks is left."""
    effector, clear = scenes.effector, CONTACT + 0.012
    way = target - effector
    distance, heading = length(way), unit(way)
    desired = heading
    for i in range(scenes.blocks.shape[1]):
        to_block = scenes.blocks[:, i] - effector
        gap = length(to_block)
        ahead = (to_block * heading).sum(-1)
        sideways = (to_block * turn(heading)).sum(-1)
        in_way = (ahead > 0) & (ahead < np.minimum(distance + 0.02, 0.3)) & (np.abs(sideways) < clear)
        # Walk the tangent to the block, bending outwards when closer than clear.
        tangent = turn(unit(to_block)) * np.where(sideways > 0, -1.0, 1.0)[:, None]
        bend = unit(tangent + unit(to_block) * np.clip((gap - clear) / 0.05, -1.0, 1.0)[:, None] * 0.8)
        desired = np.where((in_way & (gap < clear + 0.1))[:, None], bend, desired)
    motion = desired * np.minimum(STEP, distance)[:, None]
    to_block = pick(scenes.blocks, keep_off) - effector
    inward = (motion * unit(to_block)).sum(-1) - (length(to_block) - CONTACT - 0.004)
    inward = np.where(keep_off >= 0, inward, 0.0)
    return motion - unit(to_block) * np.maximum(inward, 0.0)[:, None]
