"""Where the hand of LIBERO's arm can take a thing from above, and where it can rise with it: what is in the way."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lapa.contracts import Array

WIDEST = 0.072  # metres between the open fingers, with room on both sides
DEEP, RIM = 0.035, 0.02  # metres below its top where an object is taken, and a rim
OFF_RIM = (0.0, 0.012, -0.012, 0.024, -0.024)  # metres from a rim to the middle of the hand; more than 0: inwards
ROOM = 0.008  # metres between the hand and what it shall not touch
AHEAD = 0.3  # metres above the hand that the arm needs
UP = np.array([0, 0, 1.0])


class Grasp(NamedTuple):
    """The place of the hand [3], and by how much it is turned about the vertical."""

    place: Array
    angle: float


class Solids(NamedTuple):
    """Boxes, each with axes of its own: middle [N, 3], axes [N, 3, 3] (columns), half of each side [N, 3]."""

    middle: Array
    axes: Array
    half: Array

    def hit(self, points: Array, room: float = 0.0) -> int:
        """How many of these points [M, 3] lie in a box, or nearer to it than `room`."""
        reach = np.linalg.norm(self.half, axis=1)[:, None] + 2 * room
        near = ((self.middle + reach > points.min(0)) & (self.middle - reach < points.max(0))).all(1)
        own = np.einsum("mni,nij->mnj", points[:, None] - self.middle[near], self.axes[near])
        return int((np.abs(own) < self.half[near] + room).all(-1).any(1).sum())


NOTHING = Solids(np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros((0, 3)))


def across(angle: float) -> Array:
    """float [2]: the way of the fingers of a hand that points down and is turned by an angle."""
    return np.array([-np.sin(angle), np.cos(angle)])


def grasps(points: Array, others: Solids) -> list[Grasp]:
    """Ways to take a thing with these points [N, 3] from above, the best first: across where it is narrow, or by the
    rim."""
    return narrow(points, others) or _rims(points, others)


def narrow(points: Array, others: Solids = NOTHING) -> list[Grasp]:
    """Across, where it is narrower than the open hand."""
    low, high = points[:, 2].min(), points[:, 2].max()
    turns = np.radians(np.arange(-90, 90, 15))
    widths = np.array([np.ptp(points[:, :2] @ across(turn)) for turn in turns])
    middle = (points[:, :2].min(0) + points[:, :2].max(0)) / 2
    place = np.append(middle, max(high - DEEP, low + 0.012))
    found = []
    for turn, width in zip(turns, widths, strict=True):
        if width < WIDEST:
            wide = width > widths.min() + 0.006
            found.append(((others.hit(_hand(place, turn), ROOM), wide, abs(turn)), Grasp(place, turn)))
    return [grasp for _, grasp in sorted(found, key=lambda each: each[0])]


def _rims(points: Array, others: Solids) -> list[Grasp]:
    """By the rim of what is wider than the hand: one finger inside."""
    low, high = points[:, 2].min(), points[:, 2].max()
    rim = points[points[:, 2] > high - 0.015]
    middle = (rim[:, :2].min(0) + rim[:, :2].max(0)) / 2
    radius = np.linalg.norm(rim[:, :2] - middle, axis=1).max() - 0.004
    found = []
    for angle in np.radians(np.arange(0, 360, 15)):
        turn = angle % np.pi - np.pi / 2
        way = np.array([np.cos(angle), np.sin(angle)])
        for off in OFF_RIM:
            place = np.append(middle + (radius - off) * way, max(high - RIM, low + 0.012))
            found.append(((others.hit(_hand(place, turn), ROOM), abs(off), abs(turn)), Grasp(place, turn)))
    return [grasp for _, grasp in sorted(found, key=lambda each: each[0])]


def aside(hand: Array, angle: float, points: Array, others: Solids, height: float) -> Array:
    """float [3]: the shortest way to the side, up to 0.2 m, after which a hand with a thing of these points [N, 3] can
    rise to a height; zeros where it can at once, or nowhere."""
    low, high = points.min(0), points.max(0)
    levels = np.arange(high[2], height + high[2] - hand[2], 0.01)
    held = np.stack(np.meshgrid(*np.linspace(low, high, 3).T[:2], levels), -1).reshape(-1, 3)
    all_points = np.concatenate([held, _hand(hand, angle)])
    ways = [np.zeros(3), *(
        np.array([far * np.cos(turn), far * np.sin(turn), 0])
        for far in np.arange(0.02, 0.21, 0.02) for turn in np.radians(np.arange(0, 360, 22.5))
    )]  # fmt: skip
    return next((way for way in ways if not others.hit(all_points + way)), ways[0])


def _hand(place: Array, angle: float) -> Array:
    """float [M, 3]: points of an open hand there and of all that it passes through from above."""
    fingers = [(side, wide, 0.0) for side in (-0.048, -0.04, 0.04, 0.048) for wide in (-0.01, 0.0, 0.01)]
    palm = [(side, wide, 0.045) for side in np.linspace(-0.1, 0.1, 9) for wide in (-0.03, 0.0, 0.03)]
    wrist = [(0.06 * np.cos(turn), 0.06 * np.sin(turn), 0.13) for turn in np.radians(np.arange(0, 360, 45))]
    along, wide, low = np.array(fingers + palm + wrist).T
    heights = np.arange(0, AHEAD, 0.01)
    flat = np.outer(along, across(angle)) + np.outer(wide, [np.cos(angle), np.sin(angle)])
    column = np.concatenate([np.repeat(flat, len(heights), 0), np.tile(heights, len(flat))[:, None]], 1)
    return np.asarray(column[column[:, 2] >= np.repeat(low, len(heights))] + place)
