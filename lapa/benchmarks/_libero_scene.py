"""A world of LIBERO as numbers: steps, success, where the hand and the objects are, what the fingers touch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from lapa.benchmarks._libero_grasps import Solids
from lapa.contracts import Array

STAGES = ("reached", "grasped", "moved", "lifted")
MOVED, TURNED = 0.03, 0.1  # metres; share of the way of a drawer or a knob
OPEN = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)  # the action that stays and opens the hand


class Scene:
    """What the simulator of a task, a robosuite environment of LIBERO, knows. Places are in metres, in the world."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.goals: tuple[tuple[str, ...], ...] = tuple(tuple(goal) for goal in env.parsed_problem["goal_state"])
        gripper = env.robots[0].gripper
        self._fingers = [frozenset(map(env.sim.model.geom_name2id, gripper.important_geoms[side]))
                         for side in ("left_finger", "right_finger")]  # fmt: skip
        self._subjects = {goal[1]: self.moving(goal[1]) for goal in self.goals}

    # --- running

    def step(self, action: Array) -> None:
        """Carry out an action [7] for 1/20 s. This is robosuite's own step without what it observes."""
        env = self.env
        env.timestep += 1
        for part in range(int(env.control_timestep / env.model_timestep)):
            env._pre_action(action, part == 0)
            env.sim.step()
        env.cur_time += env.control_timestep
        env._post_process()

    def settle(self, steps: int) -> None:
        """Wait, as published evaluations do, until objects lie still; what is then is the beginning."""
        self.env.sim.forward()
        self.env._post_process()  # a burner that glowed in the episode before goes out
        for _ in range(steps):
            self.step(OPEN)
        self._began = {name: self.place(name) for name in self._subjects}
        self._joints = {name: self._ways(name) for name in self._subjects}

    def success(self) -> bool:
        """Do all goals hold?"""
        return bool(self.env._check_success())

    def holds(self, goal: tuple[str, ...]) -> bool:
        """Does one of `goals` hold?"""
        return bool(self.env._eval_predicate(list(goal)))

    # --- what is shown and told

    def state(self) -> Array:
        """float32 [8], as clients of LIBERO send it: place of the hand, its turn as axis times angle, both fingers."""
        robot, data = self.env.robots[0], self.env.sim.data
        w, *axis = data.get_body_xquat(robot.robot_model.eef_name)
        w = float(np.clip(w, -1, 1))
        size = np.sqrt(1 - w * w)
        turn = np.zeros(3) if np.isclose(size, 0) else np.array(axis) * 2 * np.arccos(w) / size
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([self.hand(), turn, fingers]).astype(np.float32)

    def stages(self) -> tuple[str, ...]:
        """Those of STAGES that hold now for a subject of the goals: a finger touches it, both do, it is away from where
        it began, it is higher."""
        holds = set[str]()
        for name, geoms in self._subjects.items():
            touching = self.touching(geoms)
            moved = self.place(name) - self._began[name]
            went = max((abs(now - then) / way for (now, way), (then, _) in
                        zip(self._ways(name), self._joints[name], strict=True)), default=0.0)  # fmt: skip
            found = (touching > 0, touching > 1, np.linalg.norm(moved) > MOVED or went > TURNED, moved[2] > MOVED)
            holds |= {stage for stage, yes in zip(STAGES, found, strict=True) if yes}
        return tuple(stage for stage in STAGES if stage in holds)

    # --- where things are

    def hand(self) -> Array:
        """float [3]: the place between the finger tips."""
        return np.array(self.env.sim.data.site_xpos[self.env.robots[0].eef_site_id])

    def turn(self) -> Array:
        """float [3, 3]: how the hand is turned; its third column is the way it points. At the beginning
        the fingers lie along y."""
        site = self.env.robots[0].eef_site_id
        return np.array(self.env.sim.data.site_xmat[site]).reshape(3, 3)

    def opening(self) -> float:
        """Metres between the fingers."""
        left, right = self.env.sim.data.qpos[self.env.robots[0]._ref_gripper_joint_pos_indexes]
        return float(left - right)

    def place(self, name: str) -> Array:
        """float [3]: of an object, a fixture or a region."""
        data, model = self.env.sim.data, self.env.sim.model
        if name in self.env.object_sites_dict:
            return np.array(data.site_xpos[model.site_name2id(name)])
        return np.array(data.body_xpos[self._body(name)])

    def touching(self, geoms: Iterable[int]) -> int:
        """How many fingers touch one of these geoms."""
        of = frozenset(geoms)
        data = self.env.sim.data
        pairs = [(data.contact[i].geom1, data.contact[i].geom2) for i in range(data.ncon)]
        return sum(any((a in finger and b in of) or (b in finger and a in of) for a, b in pairs)
                   for finger in self._fingers)  # fmt: skip

    def movable(self) -> tuple[str, ...]:
        """The names of the objects that may be carried."""
        return tuple(self.env.objects_dict)

    def solids(self, but: str) -> Solids:
        """All that can collide, but for one object, the robot and the table."""
        names = [name for name in (*self.env.objects_dict, *self.env.fixtures_dict)
                 if name != but and name in self.env.obj_body_id]  # fmt: skip
        geoms, data = [geom for name in names for geom in self.geoms(name)], self.env.sim.data
        ends = np.array([[own.min(0), own.max(0)] for own in map(self._own, geoms)]).reshape(-1, 2, 3)
        low, high = ends[:, 0], ends[:, 1]
        axes = np.array([data.geom_xmat[geom] for geom in geoms]).reshape(-1, 3, 3)
        places = np.array([data.geom_xpos[geom] for geom in geoms]).reshape(-1, 3)
        return Solids(places + np.einsum("nij,nj->ni", axes, (low + high) / 2), axes, (high - low) / 2)

    def region(self, name: str) -> bool:
        """Is it a place on or in something, and no thing?"""
        return name in self.env.object_sites_dict

    def on_table(self, name: str) -> bool:
        """Is it a place on the table or the floor?"""
        return self.region(name) and self.env.object_sites_dict[name].parent_name is None

    def geoms(self, name: str) -> tuple[int, ...]:
        """The geoms that can collide of an object or a fixture with all its parts; of a region the part it is on."""
        return self._within(self._body(name))

    def moving(self, name: str) -> tuple[int, ...]:
        """The geoms that can collide of a region's part (a drawer), or of what turns of a fixture (a knob)."""
        joints = self._joint_ids(name)
        return self._within(int(self.env.sim.model.jnt_bodyid[joints[0]])) if joints else self.geoms(name)

    def _within(self, body: int) -> tuple[int, ...]:
        model, within = self.env.sim.model, {body}
        for i in range(body + 1, model.nbody):  # parts come after what they belong to
            if model.body_parentid[i] in within:
                within.add(i)
        return tuple(g for g in range(model.ngeom) if model.geom_bodyid[g] in within and model.geom_contype[g])

    def points(self, name: str) -> Array:
        """float [N, 3]: corners of all that can collide of an object, a fixture or a region's part."""
        return np.concatenate([self.corners(geom) for geom in self.geoms(name)])

    def corners(self, geom: int) -> Array:
        """float [N, 3]: of one geom; of round ones points on its rims."""
        data = self.env.sim.data
        placed: Array = self._own(geom) @ np.array(data.geom_xmat[geom]).reshape(3, 3).T + data.geom_xpos[geom]
        return placed

    def _own(self, geom: int) -> Array:
        """Its corners in its own axes."""
        model = self.env.sim.model._model
        own = _corners(int(model.geom_type[geom]), tuple(model.geom_size[geom]))
        if model.geom_dataid[geom] >= 0:
            mesh = model.geom_dataid[geom]
            start = model.mesh_vertadr[mesh]
            own = model.mesh_vert[start : start + model.mesh_vertnum[mesh]]
        return own

    def drawer(self, name: str) -> bool:
        """Is it in something that opens?"""
        return self.region(name) and bool(self._joint_ids(name))

    def opened(self, region: str) -> bool:
        """Is a drawer open?"""
        return bool(self.env.object_states_dict[region].is_open())

    def slide(self, region: str, out: bool) -> tuple[Array, float]:
        """The way a drawer opens, float [3], and how far it has to go along it, in metres: less than 0 to be shut."""
        model, data = self.env.sim.model, self.env.sim.data
        number = self._joint_ids(region)[0]
        low, high = model.jnt_range[number]
        parent = self.env.get_object(self.env.object_sites_dict[region].parent_name)
        open_at, shut_at = (low, high) if parent.is_open(low) else (high, low)
        way = np.array(data.xaxis[number]) * np.sign(open_at - shut_at)
        left = abs((open_at if out else shut_at) - data.qpos[model.jnt_qposadr[number]])
        return way, float(left if out else -left)

    def knob(self, name: str, on: bool) -> tuple[Array, float]:
        """The axis of a knob, float [3], and by how much it has to be turned about it, in radians."""
        model, data = self.env.sim.model, self.env.sim.data
        number = self._joint_ids(name)[0]
        ranges = self.env.get_object(name).object_properties["articulation"]
        wanted = np.mean(ranges["default_turnon_ranges" if on else "default_turnoff_ranges"])
        left = wanted - data.qpos[model.jnt_qposadr[number]]
        return np.array(data.xaxis[number]), float(left)

    def _ways(self, name: str) -> list[tuple[float, float]]:
        """(value, length of its range) of each joint of a drawer or a knob."""
        model, data = self.env.sim.model, self.env.sim.data
        return [(float(data.qpos[model.jnt_qposadr[j]]), float(np.ptp(model.jnt_range[j]))) for j in
                self._joint_ids(name)]  # fmt: skip

    def _joint_ids(self, name: str) -> list[int]:
        """Of a drawer, a door or a knob; none of a free object."""
        if name in self.env.objects_dict:
            return []
        found = self.env.object_sites_dict.get(name) or self.env.get_object(name)
        return [self.env.sim.model.joint_name2id(joint) for joint in (found.joints or [])]

    def _body(self, name: str) -> int:
        """The body of an object or fixture, or the one that a region is on."""
        model = self.env.sim.model
        if name in self.env.object_sites_dict:
            return int(model.site_bodyid[model.site_name2id(name)])
        return int(self.env.obj_body_id[name])


@cache
def _corners(kind: int, size: tuple[float, ...]) -> Array:
    """float [N, 3]: of a primitive of MuJoCo, in its own axes."""
    import mujoco

    one, two, three = size
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return np.array([[x, y, z] for x in (-one, one) for y in (-two, two) for z in (-three, three)])
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        two = three = one
    angles = np.arange(16) * np.pi / 8
    if kind in (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE):
        ring = np.stack([one * np.cos(angles), one * np.sin(angles)], 1)
        return np.concatenate([np.c_[ring, np.full(16, z)] for z in (-two, two)])
    return np.array([[one, 0, 0], [-one, 0, 0], [0, two, 0], [0, -two, 0], [0, 0, three], [0, 0, -three]])
