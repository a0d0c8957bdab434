"""A scripted expert for LIBERO: the simulator tells it where things are, and it works off the goals one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lapa.benchmarks._libero_grasps import UP, WIDEST, aside, grasps, narrow
from lapa.benchmarks._libero_scene import OPEN, Scene
from lapa.contracts import Array

STEP, TURN = 0.05, 0.5  # metres and radians of an action of 1
GAIN = 1.6  # the arm goes some 60% of what it is told in one step
FLAT = 0.03  # metres; what is lower and wider than the hand is dragged
TILT = np.radians(75)  # from pointing down, to take the handle of a drawer
STUCK = 15  # actions that bring the hand no nearer to where it goes
FREE, SHUT = -1.0, 1.0


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
        others = self.scene.solids(but=what)
        ways = grasps(self.scene.points(what), others)
        place, angle = ways[attempt % len(ways)]
        turn = self._turned(angle)
        yield from self._take(place, turn)
        if not self.scene.touching(self.scene.geoms(what)):
            yield from self._stay(turn, FREE, 4)
            return
        held = self.scene.place(what) - self.scene.hand()
        hangs = self.scene.hand()[2] - self.scene.points(what)[:, 2].min()
        goal = self._goal(what, where, inside) - held
        over = max(self._highest(what) + hangs + 0.02, goal[2] + 0.03, place[2] + 0.1)  # 0.1: out of a drawer
        start = self.scene.hand()
        start = start + aside(start, angle, self.scene.points(what), others, over)
        up, above = np.append(start[:2], over), np.append(goal[:2], over)
        for target, near, most in ((start, 0.02, 60), (up, 0.03, 60), (above, 0.012, 60), (goal, 0.008, 30)):
            yield from self._to(target, turn, SHUT, near, most)
            if not self.scene.touching(self.scene.geoms(what)):
                break  # it fell
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
            lost = np.linalg.norm((self.scene.hand() - self.scene.place(what))[:2]) > radius
            if np.linalg.norm(left) < 0.012 or lost:
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
        ways = narrow(fin, self.scene.solids(but=knob))
        place, angle = ways[attempt % len(ways)]
        place, turn = np.append(place[:2], top - 0.015), self._turned(angle)
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
        """Go to a place and a turn, until it is near (metres), comes no nearer or so many actions are over."""
        best, since = np.inf, 0
        for _ in range(most):
            action = self._motion(place, turn, grip)
            off = float(np.linalg.norm(place - self.scene.hand()))
            if off < near and np.abs(action[3:6]).max() < 0.3:
                return
            missing = off + STEP / TURN * float(np.linalg.norm(_axis_angle(turn @ self.scene.turn().T)))
            best, since = (missing, 0) if missing < best - 0.001 else (best, since + 1)
            if since > STUCK:
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
