"""A scripted expert for LIBERO: the simulator tells it where things are, and it works off the goals one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lapa.benchmarks._libero_scene import OPEN, Scene
from lapa.contracts import Array

STEP, TURN = 0.05, 0.5  # metres and radians of an action of 1
GAIN = 1.6  # the arm goes some 60% of what it is told in one step
WIDEST = 0.072  # metres between the open fingers, with room on both sides
FINGER = 0.04  # metres from the middle of the open hand to a finger
DEEP, RIM = 0.035, 0.02  # metres below its top where an object is taken, and a rim
FLAT = 0.03  # metres; what is lower and wider than the hand is dragged
TILT = np.radians(75)  # from pointing down, to take the handle of a drawer
FREE, SHUT = -1.0, 1.0
UP = np.array([0, 0, 1.0])

Grasp = tuple[Array, Array]  # the place of the hand, and its turn [3, 3]


class Expert:
    """Acts in one scene from its beginning. An action is one of `repeat` steps of the simulator."""

    def __init__(self, scene: Scene, repeat: int = 1) -> None:
        self.scene, self.repeat = scene, repeat
        self._home, self._down = scene.hand(), scene.turn()  # the hand points down at the beginning
        self._moves = self._all()

    def act(self) -> Array:
        """float32 [7]: what it does now."""
        return next(self._moves, OPEN)

    def _all(self) -> Iterator[Array]:
        """Each goal that does not hold, again and again; each time another grasp."""
        for attempt in range(20):
            for goal in [goal for goal in self.scene.goals if not self.scene.holds(goal)]:
                if goal[0] in ("open", "close"):
                    yield from self._slide(goal[1], goal[0] == "open")
                elif goal[0] in ("turnon", "turnoff"):
                    yield from self._rotate(goal[1], goal[0] == "turnon", attempt)
                elif self._dragged(goal[1], goal[2]):
                    yield from self._drag(goal[1], goal[2])
                else:
                    yield from self._carry(goal[1], goal[2], goal[0] == "in", attempt)
            yield OPEN

    # --- carrying

    def _carry(self, what: str, where: str, inside: bool, attempt: int) -> Iterator[Array]:
        """Take an object and put it on or into something, which is opened first."""
        if inside and self.scene.drawer(where) and not self.scene.opened(where):
            yield from self._slide(where, True)
        grasps = self._grasps(what)
        place, turn = grasps[attempt % len(grasps)]
        yield from self._take(place, turn)
        if not self.scene.touching(self.scene.geoms(what)):
            yield from self._stay(turn, FREE, 4)
            return
        held = self.scene.place(what) - self.scene.hand()
        hangs = self.scene.hand()[2] - self.scene.points(what)[:, 2].min()
        goal = self._goal(what, where, inside) - held
        over = max(self._highest(what) + hangs + 0.02, goal[2] + 0.03, place[2] + 0.1)  # 0.1: out of a drawer
        yield from self._to(np.append(place[:2], over), turn, SHUT, near=0.03)
        yield from self._to(np.append(goal[:2], over), turn, SHUT, near=0.012)
        yield from self._to(goal, turn, SHUT, near=0.008, most=30)
        yield from self._stay(turn, FREE, 6)
        yield from self._up(0.1)

    def _take(self, place: Array, turn: Array) -> Iterator[Array]:
        """Go down to a place with an open hand, close it, and lift it by some centimetres."""
        here = self.scene.hand()
        if here[2] < place[2] + 0.08:
            yield from self._up(place[2] + 0.1 - here[2])
        yield from self._to(place + 0.08 * UP, turn, FREE, near=0.012)
        yield from self._to(place, turn, FREE, near=0.005, most=30)
        yield from self._close(turn)
        yield from self._to(place + 0.06 * UP, turn, SHUT, near=0.03)

    def _goal(self, what: str, where: str, inside: bool) -> Array:
        """float [3]: where the object is let go."""
        above = self.scene.place(what)[2] - self.scene.points(what)[:, 2].min()  # its place above its lowest point
        at = self.scene.place(where)
        if inside:
            top = self.scene.points(where)[:, 2].max() + 0.005
        elif self.scene.region(where):
            top = at[2]
        else:
            points = self.scene.points(where)
            near = np.linalg.norm(points[:, :2] - at[:2], axis=1) < 0.06
            top = (points[near] if near.any() else points)[:, 2].max()
        return np.append(at[:2], top + above + 0.005)

    def _highest(self, but: str) -> float:
        """Height of all objects but one."""
        return max((float(self.scene.points(name)[:, 2].max()) for name in self.scene.movable() if name != but),
                   default=0.0)  # fmt: skip

    # --- how to take things

    def _grasps(self, what: str) -> list[Grasp]:
        """Ways to take an object from above, the best first: across where it is narrow, or by the rim."""
        boxes = self.scene.boxes(but=what)
        return self._narrow(self.scene.points(what), boxes) or self._rims(self.scene.points(what), boxes)

    def _narrow(self, points: Array, boxes: Array) -> list[Grasp]:
        low, high = points[:, 2].min(), points[:, 2].max()
        turns = np.radians(np.arange(-90, 90, 15))
        widths = np.array([np.ptp(points[:, :2] @ _across(turn)) for turn in turns])
        middle = (points[:, :2].min(0) + points[:, :2].max(0)) / 2
        place = np.append(middle, max(high - DEEP, low + 0.012))
        found = []
        for turn, width in zip(turns, widths, strict=True):
            if width < WIDEST:
                sides = [place[:2] + side * FINGER * _across(turn) for side in (-1, 1)]
                wide = width > widths.min() + 0.006
                found.append(((_blocked(sides, place[2], boxes), wide, abs(turn)), (place, self._turned(turn))))
        return [grasp for _, grasp in sorted(found, key=lambda each: each[0])]

    def _rims(self, points: Array, boxes: Array) -> list[Grasp]:
        """By the rim of what is wider than the hand: one finger inside."""
        low, high = points[:, 2].min(), points[:, 2].max()
        rim = points[points[:, 2] > high - 0.015]
        middle = (rim[:, :2].min(0) + rim[:, :2].max(0)) / 2
        radius = np.linalg.norm(rim[:, :2] - middle, axis=1).max() - 0.004
        found = []
        for angle in np.radians(np.arange(0, 360, 15)):
            turn = angle % np.pi - np.pi / 2
            way = np.array([np.cos(angle), np.sin(angle)])
            place = np.append(middle + radius * way, max(high - RIM, low + 0.012))
            blocked = _blocked([middle + (radius + FINGER) * way], place[2], boxes)
            found.append(((blocked, abs(turn)), (place, self._turned(turn))))
        return [grasp for _, grasp in sorted(found, key=lambda each: each[0])]

    def _turned(self, angle: float) -> Array:
        """float [3, 3]: the hand that points down, turned about the vertical."""
        return _rotation(UP, angle) @ self._down

    # --- dragging

    def _dragged(self, what: str, where: str) -> bool:
        """Is it too flat and wide to be taken, and only to be moved on the table?"""
        size = np.ptp(self.scene.points(what), axis=0)
        return bool(size[2] < FLAT and size[:2].min() > WIDEST and self.scene.on_table(where))

    def _drag(self, what: str, where: str) -> Iterator[Array]:
        """Press on it inside its rim, in front of its middle, and go."""
        at, points = self.scene.place(where), self.scene.points(what)
        middle, low, radius = self.scene.place(what), points[:, 2].min(), np.ptp(points[:, :2], axis=0).min() / 2
        way = (at - middle)[:2] / max(np.linalg.norm((at - middle)[:2]), 1e-6)
        start = np.append(middle[:2] + 0.5 * radius * way, low + 0.012)
        yield from self._to(start + 0.08 * UP, self._down, SHUT, near=0.012)
        yield from self._to(start, self._down, SHUT, near=0.006, most=30)
        for _ in range(80):
            left = (at - self.scene.place(what))[:2]
            if np.linalg.norm(left) < 0.012:
                break
            ahead = self.scene.hand()[:2] + left * min(1.0, 0.04 / np.linalg.norm(left))
            yield self._motion(np.append(ahead, low + 0.008), self._down, SHUT)
        yield from self._up(0.1)

    # --- drawers and knobs

    def _slide(self, region: str, out: bool) -> Iterator[Array]:
        """Pull a drawer open by its handle, or push it shut."""
        outward, left = self.scene.slide(region, out)
        tips = [self.scene.corners(geom) for geom in self.scene.moving(region)]
        handle = max(tips, key=lambda points: float((points @ outward).mean())).mean(0)
        angle = float(np.arctan2(-outward[0], outward[1]))  # the fingers above and below the handle
        flat = (angle + np.pi / 2) % np.pi - np.pi / 2
        turn = _rotation(np.cross(UP, outward), TILT) @ self._turned(flat)
        yield from self._to(np.append((handle + 0.15 * outward)[:2], self.scene.hand()[2]), self._down, FREE, near=0.05)
        yield from self._to(handle + 0.12 * outward, turn, FREE if out else SHUT, near=0.015)
        if out:
            yield from self._to(handle, turn, FREE, near=0.008, most=30)
            yield from self._close(turn)
        end = handle + left * outward + (0.03 if out else -0.03) * outward
        yield from self._to(end, turn, SHUT, near=0.01, most=50)
        yield from self._stay(turn, FREE, 5)
        yield from self._to(end + 0.1 * outward, turn, FREE, near=0.02, most=20)
        yield from self._up(0.15)
        yield from self._to(self._home, self._down, FREE, near=0.04)  # the wrist turned far: not from here elsewhere

    def _rotate(self, knob: str, on: bool, attempt: int) -> Iterator[Array]:
        """Take a knob by what stands up of it, and turn it."""
        axis, left = self.scene.knob(knob, on)
        parts = [self.scene.corners(geom) for geom in self.scene.moving(knob)]
        top = max(float(points[:, 2].max()) for points in parts)
        fin = np.concatenate([points for points in parts if points[:, 2].max() > top - 0.02])
        grasps = self._narrow(fin, self.scene.boxes(but=knob)[:0])
        place, turn = grasps[attempt % len(grasps)]
        place = np.append(place[:2], top - 0.015)
        yield from self._to(place + 0.08 * UP, turn, FREE, near=0.012)
        yield from self._to(place, turn, FREE, near=0.006, most=30)
        yield from self._close(turn)
        for part in np.linspace(0, 1, 12)[1:]:
            yield self._motion(place, _rotation(axis, part * left) @ turn, SHUT)
        yield from self._stay(_rotation(axis, left) @ turn, SHUT, 8)
        yield from self._stay(self.scene.turn(), FREE, 5)
        yield from self._up(0.1)

    # --- moving

    def _to(self, place: Array, turn: Array, grip: float, near: float, most: int = 60) -> Iterator[Array]:
        """Go to a place and a turn, until it is near (metres) or so many actions are over."""
        for _ in range(most):
            action = self._motion(place, turn, grip)
            if np.linalg.norm(place - self.scene.hand()) < near and np.abs(action[3:6]).max() < 0.3:
                return
            yield action

    def _up(self, by: float) -> Iterator[Array]:
        yield from self._to(self.scene.hand() + by * UP, self.scene.turn(), FREE, near=0.03, most=20)

    def _close(self, turn: Array) -> Iterator[Array]:
        """Shut the hand, until the fingers come no nearer to each other."""
        place, before = self.scene.hand(), self.scene.opening()
        for step in range(20):
            yield self._motion(place, turn, SHUT)
            if step > 3 and before - self.scene.opening() < 0.001:
                return
            before = self.scene.opening()

    def _stay(self, turn: Array, grip: float, steps: int) -> Iterator[Array]:
        place = self.scene.hand()
        for _ in range(steps):
            yield self._motion(place, turn, grip)

    def _motion(self, place: Array, turn: Array, grip: float) -> Array:
        """float32 [7]: a step to a place and a turn [3, 3]."""
        off = (place - self.scene.hand()) / STEP
        turned = _axis_angle(turn @ self.scene.turn().T) / TURN
        motion = np.clip(np.append(off, turned) * GAIN, -self.repeat, self.repeat)
        return np.append(motion, grip).astype(np.float32)


def _across(angle: float) -> Array:
    """float [2]: the way of the fingers of a hand that points down and is turned by an angle."""
    return np.array([-np.sin(angle), np.cos(angle)])


def _blocked(places: list[Array], height: float, boxes: Array) -> int:
    """How many of these places [2] a finger cannot reach from above, down to a height, for `boxes` [N, 2, 3]."""
    inside = [
        (np.abs(place - boxes[:, :, :2].mean(1)) < np.ptp(boxes[:, :, :2], axis=1) / 2 + 0.012).all(1)
        & (boxes[:, 1, 2] > height - 0.008) for place in places
    ]  # fmt: skip
    return sum(bool(each.any()) for each in inside)


def _rotation(axis: Array, angle: float) -> Array:
    """float [3, 3]: about an axis of length 1."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned: Array = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turned


def _axis_angle(turn: Array) -> Array:
    """float [3] of a rotation [3, 3]."""
    angle = np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    size = np.linalg.norm(axis)
    return axis / size * angle if size > 1e-6 else np.zeros(3)
