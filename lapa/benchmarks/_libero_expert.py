"""A scripted expert for LIBERO: it looks into the simulator for where things are, and works off the goals one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lapa.benchmarks._libero_scene import OPEN, Scene
from lapa.contracts import Array

STEP, TURN = 0.05, 0.5  # metres and radians of an action of 1
GAIN = 1.6  # the arm goes some 60% of what it is told in one step
WIDEST = 0.072  # metres between the open fingers, with room on both sides
DEEP = 0.035  # how far below its top an object is taken, if it is that high
CLEAR = 0.09  # metres above what is on the table, when something is carried
FREE, SHUT = -1.0, 1.0

Grasp = tuple[Array, float]  # the place of the hand, and its turn about the vertical


class Expert:
    """Acts in one scene from its beginning."""

    def __init__(self, scene: Scene, repeat: int = 1) -> None:
        self.scene, self.repeat = scene, repeat
        self._down = scene.turn()  # the hand points down at the beginning
        self._moves = self._all()

    def act(self) -> Array:
        """float32 [7]: what it does now."""
        return next(self._moves, OPEN)

    def _all(self) -> Iterator[Array]:
        for attempt in range(20):
            open_goals = [goal for goal in self.scene.goals if not self.scene.holds(goal)]
            for goal in open_goals or self.scene.goals[:1]:
                yield from self._towards(goal, attempt)

    def _towards(self, goal: tuple[str, ...], attempt: int) -> Iterator[Array]:
        if len(goal) == 3:
            yield from self._carry(goal[1], goal[2], goal[0] == "in", attempt)
        else:
            yield OPEN

    # --- carrying

    def _carry(self, what: str, where: str, inside: bool, attempt: int) -> Iterator[Array]:
        """Take an object and put it on or into something."""
        grasps = self._grasps(what)
        place, turn = grasps[attempt % len(grasps)]
        over = self._ceiling()
        here = self.scene.hand()
        if here[2] < over:
            yield from self._to(np.append(here[:2], min(over, here[2] + 0.1)), 0.0, FREE, near=0.03)
        above = np.append(place[:2], max(place[2] + 0.08, min(over, place[2] + 0.15)))
        yield from self._to(above, turn, FREE, near=0.012)
        yield from self._to(place, turn, FREE, near=0.005, most=40)
        yield from self._grip(turn, SHUT, 8)
        yield from self._to(np.append(place[:2], max(over, place[2] + 0.05)), turn, SHUT, near=0.03)
        if not self.scene.touching(self.scene.geoms(what)):
            yield from self._grip(turn, FREE, 4)
            return
        held = self.scene.place(what) - self.scene.hand()
        goal = self._goal(what, where, inside)
        high = max(over, goal[2] + 0.02) - held[2] * 0
        yield from self._to(np.append((goal - held)[:2], high), turn, SHUT, near=0.012)
        yield from self._to(goal - held, turn, SHUT, near=0.008, most=40)
        yield from self._grip(turn, FREE, 6)
        up = self.scene.hand()
        yield from self._to(np.append(up[:2], up[2] + 0.1), turn, FREE, near=0.03)

    def _goal(self, what: str, where: str, inside: bool) -> Array:
        """float [3]: where the object is let go."""
        under = self.scene.place(what)[2] - self.scene.points(what)[:, 2].min()  # of its place above its lowest point
        at = self.scene.place(where)
        if inside:
            top = self.scene.points(where)[:, 2].max()
            return np.append(at[:2], top + under + 0.01)
        if where in self.scene.env.object_sites_dict:
            top = at[2]
        else:
            points = self.scene.points(where)
            near = np.linalg.norm(points[:, :2] - at[:2], axis=1) < 0.06
            top = points[near, 2].max() if near.any() else points[:, 2].max()
        return np.append(at[:2], top + under + 0.01)

    def _ceiling(self) -> float:
        """Height at which the hand carries things over all others."""
        tops = [self.scene.points(name)[:, 2].max() for name in self.scene.movable()]
        return float(max(tops) + CLEAR)

    def _grasps(self, what: str) -> list[Grasp]:
        """Ways to take an object from above, the best first."""
        points = self.scene.points(what)
        low, high = points[:, 2].min(), points[:, 2].max()
        turns = np.radians(np.arange(-90, 90, 15))
        across = np.stack([-np.sin(turns), np.cos(turns)])  # the way of the fingers, [2, K]
        along = points[:, :2] @ across
        widths = np.ptp(along, 0)
        if widths.min() < WIDEST:
            fit = np.flatnonzero(widths < min(WIDEST, widths.min() + 0.006))
            middle = (points[:, :2].min(0) + points[:, :2].max(0)) / 2
            height = max(high - DEEP, low + 0.012)
            order = fit[np.argsort(np.abs(turns[fit]))]
            return [(np.append(middle, height), float(turns[i])) for i in order]
        return self._rims(points, high)

    def _rims(self, points: Array, high: float) -> list[Grasp]:
        """By the rim of what is wider than the hand: one finger inside."""
        rim = points[points[:, 2] > high - 0.015]
        middle = (rim[:, :2].min(0) + rim[:, :2].max(0)) / 2
        radius = np.linalg.norm(rim[:, :2] - middle, axis=1).max() - 0.004
        found = []
        for angle in np.radians(np.arange(0, 360, 15)):
            turn = (angle - np.pi / 2 + np.pi / 2) % np.pi - np.pi / 2
            place = np.append(middle + radius * np.array([np.cos(angle), np.sin(angle)]), high - 0.02)
            found.append((abs(turn), (place, float(turn))))
        return [grasp for _, grasp in sorted(found, key=lambda each: each[0])]

    # --- moving

    def _to(self, place: Array, turn: float, grip: float, near: float, most: int = 60) -> Iterator[Array]:
        """Go to a place with the hand turned about the vertical, until it is near (metres)."""
        for _ in range(most):
            action = self._motion(place, turn, grip)
            if np.linalg.norm(place - self.scene.hand()) < near and np.abs(action[3:6]).max() < 0.3:
                return
            yield action

    def _grip(self, turn: float, grip: float, steps: int) -> Iterator[Array]:
        place = self.scene.hand()
        for _ in range(steps):
            yield self._motion(place, turn, grip)

    def _motion(self, place: Array, turn: float, grip: float) -> Array:
        """float32 [7]: a step to a place and a turn."""
        cos, sin = np.cos(turn), np.sin(turn)
        wanted = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ self._down
        off = (place - self.scene.hand()) / STEP
        turned = _axis_angle(wanted @ self.scene.turn().T) / TURN
        most = max(np.abs(off).max() * GAIN / self.repeat, 1.0)
        motion = np.concatenate([off * GAIN / most, np.clip(turned, -1, 1)])
        return np.append(np.clip(motion, -self.repeat, self.repeat), grip).astype(np.float32)


def _axis_angle(turn: Array) -> Array:
    """float [3] of a rotation [3, 3]."""
    angle = np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    size = np.linalg.norm(axis)
    return axis / size * angle if size > 1e-6 else np.zeros(3)


__all__: Sequence[str] = ("Expert",)
