"""Meta-World as a benchmark: scenes, pictures, actions, experts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lapa import cli, plugins
from lapa.contracts import Array, Benchmark, LapaError
from lapa.data.pack import pack
from lapa.evaluate import Trial, open_benchmark, roll_out

if how := plugins.missing("benchmarks", "metaworld"):
    pytest.skip(f"metaworld is not installed: {how}", allow_module_level=True)

from lapa.benchmarks.metaworld import CAMERAS, SENTENCES, STATE, MetaWorld
from lapa.interop.demonstrations import demonstrations

TWO = "metaworld:reach-v3+push-v3,size=32"


def looks(benchmark: Benchmark, seeds: list[int]) -> list[tuple[Array, Array]]:
    """State and first picture of scenes."""
    return [(o["state"], next(iter(o["images"].values()))) for o in benchmark.reset(seeds)]


def alike(one: tuple[Array, Array], other: tuple[Array, Array]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def two() -> MetaWorld:
    found = open_benchmark(TWO)
    assert isinstance(found, MetaWorld)
    return found


def test_a_seed_gives_a_scene_whatever_was_before_and_whatever_numpy_draws(two: MetaWorld) -> None:
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = looks(two, [4, 5, 6])
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    for _ in range(20):
        two.step(np.ones((3, 4)))
    np.random.seed(2)  # noqa: NPY002
    second = looks(two, [6, 5, 8, 4])
    assert alike(first[0], second[3])
    assert alike(first[1], second[1])
    assert alike(first[2], second[0])
    assert not alike(first[0], first[2])
    assert two.tasks() == ("reach-v3", "push-v3", "reach-v3", "reach-v3")


def test_scenes_of_several_tasks_differ_and_do_not_depend_on_the_list(two: MetaWorld) -> None:
    two.reset([6, 7])
    places = [world.env._target_pos[:2] for world in two._worlds]
    assert np.abs(places[0] - places[1]).max() > 0.001
    alone = open_benchmark("metaworld:push-v3,size=32")
    alone.reset([6, 7])
    np.testing.assert_array_equal(alone._worlds[1].env._target_pos[:2], places[1])


def test_the_first_picture_shows_the_goal_where_it_is(two: MetaWorld) -> None:
    """The simulator moves the goal after it has computed where things are."""
    two.reset([2])
    env = two._worlds[0].env
    np.testing.assert_allclose(env.data.site("goal").xpos, env._target_pos)


def test_up_is_up() -> None:
    """The hand goes up: what was drawn where it was goes, and it appears above, in every picture from the side."""
    cameras = [name for name in CAMERAS if name.startswith("corner")]
    bench = open_benchmark(f"metaworld:reach-v3,camera={'+'.join(cameras)},size=96")
    (first,) = bench.reset([3])
    low = dict(first["images"])
    for _ in range(12):
        (step,) = bench.step(np.array([[0, 0, 1.0, -1]]))
    high = dict(step.observation["images"])
    for camera in cameras:
        before, after = (_cyan(picture) for picture in (low[camera], high[camera]))
        assert after < before - 2, camera


def test_another_look_is_of_surfaces_and_light_alone() -> None:
    """Nothing moves, and what sentences name keeps its colour: the green goal of push, the blue one of pick-place."""
    tasks = "push-v3+pick-place-v3+hand-insert-v3"  # the last has no walls
    own, other = (open_benchmark(f"metaworld:{tasks},camera=corner3,size=96,look={x}") for x in ("own", "other"))
    one, two = looks(own, [0, 1, 2]), looks(other, [0, 1, 2])
    for (state, picture), (same, changed) in zip(one, two, strict=True):
        np.testing.assert_array_equal(state, same)
        assert (np.abs(picture.astype(int) - changed).max(-1) > 20).mean() > 0.5
        assert _cyan(picture) == _cyan(changed)
    for scene, channel in ((0, 1), (1, 2)):
        here, there = (_of_colour(seen[scene][1], channel) for seen in (one, two))
        np.testing.assert_allclose(here, there, atol=1.5)


def _of_colour(picture: Array, channel: int) -> Array:
    """The middle (row, column) of what has this colour and no other."""
    others = np.delete(picture.astype(int), channel, axis=2).max(-1)
    found = np.argwhere(picture[..., channel] > others + 60)
    assert len(found), "it is in the picture"
    return found.mean(0)


def _cyan(picture: Array) -> float:
    """The row of the cyan finger."""
    red, *others = picture.transpose(2, 0, 1).astype(int)
    return float(np.median(np.nonzero(np.minimum(*others) > red + 60)[0]))


def test_pictures_are_drawn_when_looked_at_and_not_later(two: MetaWorld) -> None:
    first, _ = two.reset([0, 1])
    two.step(np.zeros((2, 4)))
    with pytest.raises(RuntimeError, match="corner4"):
        first["images"]["corner4"]


def test_an_action_in_parts() -> None:
    """repeat=2 at twice the motion is two steps of the simulator."""
    slow, fast = open_benchmark(f"{TWO},repeat=2"), open_benchmark(TWO)
    assert (slow.spec.action.hz, slow.spec.max_steps) == (40.0, 250)
    slow.reset([1]), fast.reset([1])
    action = np.array([[0.4, -0.6, 0.2, 1.0]])
    for _ in range(3):
        (one,) = slow.step(action * [2, 2, 2, 1])
        fast.step(action)
        (other,) = fast.step(action)
        np.testing.assert_array_equal(one.observation["state"], other.observation["state"])
    far, near = (slow.reset([1]) and slow.step(np.array([[x, 0, 0, 1]])) for x in (9.0, 2.0))
    np.testing.assert_array_equal(far[0].observation["state"], near[0].observation["state"])


def test_names_and_experts_are_meta_worlds() -> None:
    from metaworld.env_dict import ENV_CLS_MAP, MT10_V3
    from metaworld.policies import ENV_POLICY_MAP

    assert set(SENTENCES) == set(ENV_CLS_MAP) == set(ENV_POLICY_MAP)
    assert len(set(SENTENCES.values())) == 50
    assert open_benchmark("metaworld").spec.families == tuple(MT10_V3)
    assert set(open_benchmark("metaworld:mt50").spec.families) == set(ENV_CLS_MAP)


def test_the_expert_succeeds_and_stays_within_the_limits() -> None:
    bench = open_benchmark("metaworld:reach-v3+push-v3+pick-place+door-open+button-press-topdown,size=16")
    outcomes, _ = roll_out(bench, bench.baselines()["expert"], Trial(10))
    assert sum(o.success for o in outcomes) >= 9
    assert all(o.instruction == SENTENCES[o.family] for o in outcomes)
    shown = bench.reset([0, 1, 2])
    asked = bench.baselines()["expert"].act_batch(shown)
    assert np.abs(asked).max() <= 1


def test_experts_of_goals_in_the_air_bring_the_fingertips_there_and_rest() -> None:
    """Meta-World's own come to rest 4.5 cm away."""
    bench = open_benchmark("metaworld:reach-v3+pick-place-v3+reach-wall-v3+pick-place-wall-v3,size=16,repeat=2,rest=1")
    assert isinstance(bench, MetaWorld)
    outcomes, _ = roll_out(bench, bench.baselines()["expert"], Trial(4))
    assert all(o.success for o in outcomes)
    for world in bench._worlds:
        place = world.seen[4:7] if "pick" in world.task else world.env.tcp_center
        assert np.linalg.norm(place - world.env._target_pos) < 0.02, world.task


def test_an_episode_that_rests_goes_on_after_its_first_success() -> None:
    ended, rested = (open_benchmark(f"metaworld:reach-v3,size=16,repeat=2{rest}") for rest in ("", ",rest=0.5"))
    without, longer = (roll_out(b, b.baselines()["expert"], Trial(3))[0] for b in (ended, rested))
    assert all(o.success for o in [*without, *longer])
    assert [o.steps for o in longer] == [o.steps + 20 for o in without]
    assert isinstance(rested, MetaWorld)
    rested.reset([0])
    world, made = rested._worlds[0], rested.baselines()["expert"]
    while not world._won:
        (step,) = rested.step(made.act_batch([rested._shown[0]])[:, 0])
    for left in range(19, -1, -1):
        assert not step.done
        (step,) = rested.step(np.array([[0, 0, 2.0, -1]]))
        assert step.success == step.done == (left == 0), "it counts though the hand has left the goal"


def test_an_episode_that_rests_ends_at_the_limit() -> None:
    bench = open_benchmark("metaworld:reach-v3,size=16,repeat=2,rest=6")
    (outcome,), _ = roll_out(bench, bench.baselines()["expert"], Trial(1))
    assert outcome.success
    assert outcome.steps == 250


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("metaworld:reach-v4", "reach-v3"),
        ("metaworld:reach-v3+reach-v3", "once"),
        ("metaworld:mt10+push-v3", "mt10"),
        ("metaworld,camera=corner9", "corner"),
        ("metaworld,camera=corner+corner", "corner"),
        ("metaworld,size=0", "size"),
        ("metaworld,look=new", "other"),
        ("metaworld,repeat=2,max_steps=251", "250"),
        ("metaworld,batch=0", "batch"),
        ("metaworld,rest=7", "6.25"),
        ("metaworld,rest=-1", "rest"),
    ],
)  # fmt: skip
def test_what_is_refused(spec: str, says: str) -> None:
    with pytest.raises(LapaError, match=says):
        open_benchmark(spec)


def test_demonstrations_as_equally_many_of_each_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shown"
    words = f"collect --benchmark {TWO},repeat=4,camera=corner2+gripperPOV --episodes 4 --noise 0.2 --without-actions"
    cli.main([*words.split(), "--out", str(out)])
    assert "corner2, gripperPOV" in capsys.readouterr().out
    packed = pack([f"lerobot:{out},camera=corner2"], 32, quiet=True)
    assert sorted(packed.instructions) == sorted(2 * [SENTENCES["reach-v3"], SENTENCES["push-v3"]])
    assert packed.state_names == STATE
    assert packed.action_spec is None


def test_demonstrations_are_within_the_limits(two: MetaWorld) -> None:
    for episode, _ in demonstrations(two, 2, noise=0.5):
        assert episode.actions is not None
        assert np.abs(episode.actions).max() == 1
        assert episode.fps == 80


def test_how_far_it_got() -> None:
    world = open_benchmark("metaworld:pick-place-v3+push-v3+reach-v3,size=32,repeat=4")
    rows = world.baselines()
    outcomes, _ = roll_out(world, rows["expert"], Trial(episodes=3))
    far = {o.family: o.stages for o in outcomes if o.success}
    assert far == {"pick-place-v3": ("reached", "moved", "lifted"), "push-v3": ("reached", "moved"),
                   "reach-v3": ("reached",)}  # fmt: skip
    outcomes, _ = roll_out(world, rows["no_op"], Trial(episodes=3))
    assert [(o.success, o.stages) for o in outcomes] == [(False, ())] * 3
