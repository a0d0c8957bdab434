"""The embedded benchmark: what its sentences mean, that it is the same for everyone, and that it obeys physics."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import lapa  # noqa: F401  (registers the environment)
from lapa.contracts import Array, LapaError, Outcome
from lapa.data.spec import open_dataset
from lapa.evaluate import Trial, open_benchmark, roll_out
from lapa.tabletop import language as lang
from lapa.tabletop import world
from lapa.tabletop.env import ACTION_NAMES, STATE_NAMES, Table
from lapa.tabletop.render import DOMAINS, render

ALL_DOMAINS = pytest.mark.parametrize("domain", DOMAINS)
BOTH_SPLITS = pytest.mark.parametrize("split", lang.PHRASES)
RELATIONS = ("block2block", "block2side", "separate")


def solved(seeds: Array, families: tuple[str, ...] = lang.FAMILIES, domain: str = "sim") -> tuple[world.Scenes, Array]:
    """Each scene at the moment the expert solves it, and which scenes it solved."""
    table = Table(seeds, domain, families=families)
    done, kept = np.zeros(len(seeds), bool), table.scenes
    for _ in range(world.TIME_LIMIT):
        new = table.step(table.expert()) & ~done
        kept = replace(
            kept,
            blocks=np.where(new[:, None, None], table.scenes.blocks, kept.blocks),
            effector=np.where(new[:, None], table.scenes.effector, kept.effector),
        )
        done |= new
    return kept, done


# --- how hard it is -------------------------------------------------------------------------------


def rolled_out(row: str, where: str) -> list[Outcome]:
    """A row of the benchmark on a thousand validation scenes."""
    benchmark = open_benchmark(where)
    return roll_out(benchmark, benchmark.baselines()[row], Trial(1000, validation=True))[0]


@ALL_DOMAINS
@BOTH_SPLITS
def test_the_expert_solves_every_family(domain: str, split: str) -> None:
    outcomes = rolled_out("expert", f"tabletop:{domain},split={split}")
    asked = Counter(o.family for o in outcomes)
    won = Counter(o.family for o in outcomes if o.success)
    assert asked == dict.fromkeys(lang.FAMILIES, 200)
    assert all(won[family] >= 0.97 * 200 for family in lang.FAMILIES), won


@ALL_DOMAINS
def test_doing_nothing_or_anything_fails(domain: str) -> None:
    assert not any(o.success for o in rolled_out("no_op", f"tabletop:{domain}"))
    assert np.mean([o.success for o in rolled_out("random", f"tabletop:{domain}")]) < 0.05


def test_the_expert_is_as_fast_as_the_issue_asks() -> None:
    """5,000 rendered steps a second on an idle core; a fifth of that even on a crowded one."""
    table = Table(np.arange(256))
    started = time.process_time()
    for _ in range(20):
        table.step(table.expert())
        table.images()
    assert 20 * 256 / (time.process_time() - started) > 1000


# --- what success means ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", RELATIONS)
def test_swapping_a_and_b_changes_success(family: str) -> None:
    """The same final board, asked the other way round: B was not the one to move."""
    seeds = np.arange(200)
    scenes, done = solved(seeds, (family,))
    _, tasks = world.reset(seeds, families=(family,))
    assert world.success(scenes, tasks)[done].all()
    swapped = replace(tasks, a=tasks.b, b=tasks.a)
    assert not world.success(scenes, swapped).any()


def one(family: str, a: Array, b: Array, moved: Array, direction: str = "", goal: Array | None = None) -> bool:
    """Success of one scene with A at `a` and B at `b`, after both moved to `moved` [2, 2]."""
    away = np.array([[0.9, 0.1], [0.9, 0.9]])
    start = np.concatenate([[a, b], away])[None]
    tasks = world.Tasks(
        np.array([lang.FAMILIES.index(family)]), np.array([0]), np.array([1]),
        np.array([goal if goal is not None else (0.5, 0.5)]),
        np.array([lang.DIRECTIONS[direction] if direction else (0.0, 0.0)]), ("",), start,
    )  # fmt: skip
    now = world.Scenes(np.arange(4)[None], np.concatenate([moved, away])[None], np.array([[0.5, 0.95]]), np.array([0]))
    return bool(world.success(now, tasks)[0])


LEFT, MIDDLE = np.array([0.2, 0.5]), np.array([0.6, 0.5])
X, Y = np.eye(2)


def test_block2block_means_a_goes_to_b() -> None:
    beside = MIDDLE - 0.17 * X
    assert one("block2block", LEFT, MIDDLE, np.array([beside, MIDDLE]))
    assert not one("block2block", LEFT, MIDDLE, np.array([LEFT, LEFT + 0.17 * X])), "B came to A"
    assert not one("block2block", LEFT, MIDDLE, np.array([beside - 0.1 * X, MIDDLE])), "not there yet"


def test_block2side_means_that_side() -> None:
    left_of, right_of = MIDDLE - 0.2 * X, MIDDLE + 0.2 * X
    assert one("block2side", LEFT, MIDDLE, np.array([left_of, MIDDLE]), "left")
    assert not one("block2side", LEFT, MIDDLE, np.array([right_of, MIDDLE]), "left")
    assert one("block2side", LEFT, MIDDLE, np.array([MIDDLE - 0.2 * Y, MIDDLE]), "up"), "y points down"
    assert not one("block2side", LEFT, MIDDLE, np.array([MIDDLE + 0.2 * Y, MIDDLE]), "up")


def test_separate_means_a_leaves_b() -> None:
    b = LEFT + 0.16 * X
    assert one("separate", LEFT, b, np.array([LEFT - 0.4 * Y, b]))
    assert not one("separate", LEFT, b, np.array([LEFT, b + 0.4 * X])), "B left A"


def test_block2relative_is_relative_to_where_a_was() -> None:
    assert one("block2relative", LEFT, MIDDLE, np.array([LEFT - world.MOVE * Y, MIDDLE]), "up")
    assert not one("block2relative", LEFT, MIDDLE, np.array([LEFT + world.MOVE * Y, MIDDLE]), "up")
    assert not one("block2relative", LEFT, MIDDLE, np.array([MIDDLE - world.MOVE * Y, LEFT]), "up"), "another block"


def test_block2absolute_is_a_place_of_the_board() -> None:
    goal = np.array(lang.PLACES["top right corner"])
    assert one("block2absolute", LEFT, MIDDLE, np.array([goal + 0.05, MIDDLE]), goal=goal)
    assert not one("block2absolute", LEFT, MIDDLE, np.array([LEFT, goal]), goal=goal), "that was B"
    assert goal[0] > 0.5 > goal[1], "x points right, y down"


@BOTH_SPLITS
def test_nothing_is_done_at_the_start(split: str) -> None:
    assert not world.success(*world.reset(np.arange(3000), split)).any()


# --- seen and unseen ------------------------------------------------------------------------------


def test_held_out_objects_are_never_seen() -> None:
    seen_scenes, seen = world.reset(np.arange(2000), "seen")
    unseen_scenes, unseen = world.reset(np.arange(2000), "unseen")
    a_seen = {lang.OBJECTS[k] for k in world.pick(seen_scenes.kinds, seen.a)}
    a_unseen = {lang.OBJECTS[k] for k in world.pick(unseen_scenes.kinds, unseen.a)}
    assert a_unseen == set(lang.HELD_OUT_OBJECTS)
    assert not a_unseen & {lang.OBJECTS[k] for k in seen_scenes.kinds.ravel()}, "not even as a bystander"
    assert a_seen | a_unseen == set(lang.OBJECTS)
    assert not any(name in text for name in lang.HELD_OUT_OBJECTS for text in seen.instruction)


def test_held_out_phrases_are_never_seen() -> None:
    def bare(texts: tuple[str, ...]) -> set[str]:
        for name in lang.OBJECTS:
            texts = tuple(text.replace(name, "OBJECT") for text in texts)
        return set(texts)

    seen, unseen = (bare(world.reset(np.arange(1500), split)[1].instruction) for split in ("seen", "unseen"))
    assert len(seen) > 30 < len(unseen)
    assert not seen & unseen
    verbs = [{text.split()[0] for text in some} for some in (seen, unseen)]
    assert not verbs[0] & verbs[1]


def test_the_sentence_names_the_blocks_of_the_task() -> None:
    scenes, tasks = world.reset(np.arange(500))
    for kind_a, kind_b, family, text in zip(
        world.pick(scenes.kinds, tasks.a), world.pick(scenes.kinds, tasks.b), tasks.family, tasks.instruction,
        strict=True,
    ):  # fmt: skip
        where = [text.find(lang.OBJECTS[kind]) for kind in (kind_a, kind_b)]
        assert where[0] > 0, text
        assert where[1] > where[0] or lang.FAMILIES[family] not in RELATIONS, text


# --- the same for everyone ------------------------------------------------------------------------


@ALL_DOMAINS
def test_a_scene_is_the_same_in_every_batch(domain: str) -> None:
    """Alone, in a batch, and in another order: state, pixels and the expert's action, bit for bit."""
    seeds = np.array([3, 1_000_000_007, 12, 5, 77])
    batch, other = Table(seeds, domain), Table(seeds[::-1].copy(), domain)
    alone = [Table([seed], domain) for seed in seeds]
    for _ in range(25):
        actions = batch.expert()
        np.testing.assert_array_equal(other.expert()[::-1], actions)
        np.testing.assert_array_equal(np.concatenate([t.expert() for t in alone]), actions)
        for table, acted in ((batch, actions), (other, actions[::-1])):
            table.step(acted)
        for table, action in zip(alone, actions, strict=True):
            table.step(action[None])
        np.testing.assert_array_equal(other.state()[::-1], batch.state())
        np.testing.assert_array_equal(np.concatenate([t.state() for t in alone]), batch.state())
        np.testing.assert_array_equal(other.images()[::-1], batch.images())
        np.testing.assert_array_equal(np.concatenate([t.images() for t in alone]), batch.images())


def test_the_seed_decides_everything() -> None:
    one, two = (open_dataset("tabletop:real,episodes=4,seed=1") for _ in range(2))
    for first, second in zip(one.episodes(), two.episodes(), strict=True):
        assert first.instruction == second.instruction
        np.testing.assert_array_equal(first.frames, second.frames)
        np.testing.assert_array_equal(first.actions, second.actions)
    other = next(open_dataset("tabletop:real,episodes=4,seed=2").episodes())
    assert other.frames.shape != first.frames.shape or (other.frames != first.frames).any()


def test_test_scenes_are_never_trained_on() -> None:
    from lapa.datasets.tabletop import TRAINING_SEEDS
    from lapa.evaluate import TEST_SEEDS, VALIDATION_SEEDS

    assert TRAINING_SEEDS <= TEST_SEEDS < TEST_SEEDS + 9_999 * 100_000 < VALIDATION_SEEDS
    with pytest.raises(LapaError, match="seed 0 to"):
        open_dataset("tabletop:sim,seed=10000")


# --- physics --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.0, 5.0), st.booleans())
def test_blocks_stay_on_the_board_and_apart(seed: int, force: float, aimed: bool) -> None:
    """Thirty random pushes, also straight at blocks, and longer than the robot can move."""
    rng = np.random.default_rng(seed)
    scenes, _ = world.reset(rng.integers(2**31, size=8))
    for _ in range(30):
        towards = world.unit(scenes.blocks[:, 0] - scenes.effector) if aimed else 0
        delta = force * world.STEP * (towards + rng.normal(size=(8, 2)))
        after = world.step(scenes, delta)
        moved = world.length(after.effector - scenes.effector)
        assert moved.max() <= world.STEP + 1e-3
        assert np.isfinite(after.blocks).all()
        assert (after.blocks >= world.BLOCK_RADIUS).all()
        assert (after.blocks <= 1 - world.BLOCK_RADIUS).all()
        assert (after.effector >= 0).all()
        assert (after.effector <= 1).all()
        gaps = world.length(after.blocks[:, :, None] - after.blocks[:, None]) + np.eye(world.BLOCKS)
        assert gaps.min() > 2 * world.BLOCK_RADIUS - 0.03, "blocks in each other"
        reach = world.length(after.blocks - after.effector[:, None])
        assert reach.min() > world.BLOCK_RADIUS + world.EFFECTOR_RADIUS - 0.03, "the effector is inside a block"
        scenes = after


def test_what_is_not_touched_does_not_move() -> None:
    scenes, _ = world.reset(np.arange(200))
    after = world.step(scenes, np.full((200, 2), 0.02))
    reach = world.length(scenes.blocks - after.effector[:, None]).min(1)
    far = reach > world.BLOCK_RADIUS + world.EFFECTOR_RADIUS + world.STEP
    assert far.sum() > 50
    np.testing.assert_array_equal(after.blocks[far], scenes.blocks[far])
    np.testing.assert_allclose((after.effector - scenes.effector)[far], 0.02, atol=1e-12)


def test_a_push_pushes() -> None:
    """Straight at a block from the left: it ends touching the effector, displaced to the right."""
    blocks = np.array([[[0.5, 0.5], [0.2, 0.2], [0.8, 0.2], [0.8, 0.8]]])
    scenes = world.Scenes(np.arange(4)[None], blocks, np.array([[0.36, 0.5]]), np.array([0]))
    after = world.step(scenes, np.array([[0.05, 0.0]]))
    np.testing.assert_allclose(after.effector[0], [0.41, 0.5], atol=1e-9)
    np.testing.assert_allclose(after.blocks[0, 0], [0.41 + world.BLOCK_RADIUS + world.EFFECTOR_RADIUS, 0.5], atol=1e-9)
    np.testing.assert_array_equal(after.blocks[0, 1:], blocks[0, 1:])


@pytest.mark.parametrize("actions", [np.zeros((2, 3)), np.zeros(2), np.full((2, 2), np.nan), np.full((2, 2), np.inf)])
def test_actions_that_are_none(actions: Array) -> None:
    with pytest.raises(LapaError, match=r"shape"):
        Table([1, 2]).step(actions)


# --- three domains ----------------------------------------------------------------------------------


def test_every_look_looks_different() -> None:
    scenes, _ = world.reset(np.arange(8))
    images = {domain: render(scenes, domain).astype(float) for domain in DOMAINS}
    for one in DOMAINS:
        for other in DOMAINS:
            assert one == other or np.abs(images[one] - images[other]).mean() > 20, (one, other)


@ALL_DOMAINS
def test_motion_of_a_third_of_a_pixel_is_visible(domain: str) -> None:
    scenes, _ = world.reset(np.arange(8))
    moved = replace(scenes, effector=scenes.effector + 1 / 48 / 3)
    assert (render(scenes, domain) != render(moved, domain)).any((1, 2, 3)).all()


def test_only_the_real_camera_shakes() -> None:
    scenes, _ = world.reset(np.arange(8))
    shaken = {
        domain: bool((render(scenes, domain, tick=0) != render(scenes, domain, tick=1)).any()) for domain in DOMAINS
    }
    assert shaken == {"sim": False, "real": True, "hand": False}


def test_the_same_motion_is_another_action_in_each_look() -> None:
    motion = np.array([0.03, 0.01])
    actions = {domain: np.array(style.frame) @ motion for domain, style in DOMAINS.items()}
    np.testing.assert_allclose(actions["real"], [-0.015, 0.045], err_msg="turned by 90 degrees, times 1.5")
    np.testing.assert_allclose(actions["hand"], [-0.015, 0.005], err_msg="mirrored, halved")
    expected = world.step(world.reset([4])[0], motion[None]).effector
    for domain, action in actions.items():
        table = Table([4], domain)
        table.step(action[None])
        np.testing.assert_allclose(table.scenes.effector, expected, rtol=0, atol=1e-15)


@ALL_DOMAINS
def test_frame_and_inverse_are_exact(domain: str) -> None:
    frame = np.array(DOMAINS[domain].frame)
    np.testing.assert_array_equal(np.linalg.inv(frame) @ frame, np.eye(2))


# --- Gymnasium ------------------------------------------------------------------------------------


@ALL_DOMAINS
def test_gymnasium_is_content(domain: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("lapa/Tabletop-v0", domain=domain).unwrapped)


@ALL_DOMAINS
def test_the_vector_environment_equals_single_ones(domain: str) -> None:
    many = gymnasium.make_vec("lapa/Tabletop-v0", 3, "vector_entry_point", domain=domain)
    singles = [gymnasium.make("lapa/Tabletop-v0", domain=domain) for _ in range(3)]
    seen, _ = many.reset(seed=[11, 12, 13])
    each = [env.reset(seed=seed) for env, seed in zip(singles, (11, 12, 13), strict=True)]
    np.testing.assert_array_equal(seen["image"], [o["image"] for o, _ in each])
    assert seen["instruction"] == tuple(o["instruction"] for o, _ in each)
    live = np.ones(3, bool)
    for _ in range(world.TIME_LIMIT):
        actions = np.stack([info["expert_action"] for _, info in each])
        seen, rewards, terminated, truncated, _ = many.step(actions)
        for i in np.flatnonzero(live):
            observed, reward, done, cut, info = singles[i].step(actions[i])
            each[i] = observed, info
            np.testing.assert_array_equal(seen["image"][i], observed["image"])
            assert (rewards[i], terminated[i], truncated[i]) == (reward, done, cut)
        live &= ~(terminated | truncated)
        if not live.any():
            break
    assert not live.any()
    assert terminated.all(), "the expert solves these three"


def test_an_episode_that_leads_nowhere_is_truncated() -> None:
    env = gymnasium.make("lapa/Tabletop-v0")
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(world.TIME_LIMIT)]
    assert ends == [(False, False)] * (world.TIME_LIMIT - 1) + [(False, True)]
    env.reset(seed=0)
    assert env.render().shape == (256, 256, 3)


def test_a_misspelt_look_is_corrected() -> None:
    with pytest.raises(LapaError, match='"hand"'):
        gymnasium.make("lapa/Tabletop-v0", domain="hnad")


def test_names_and_shapes_of_what_is_recorded() -> None:
    episode = next(open_dataset("tabletop:hand,episodes=1").episodes())
    length = len(episode.frames)
    assert episode.state_names == STATE_NAMES
    assert episode.action_names == ACTION_NAMES
    assert episode.state.shape == (length, len(STATE_NAMES))
    assert episode.actions.shape == (length, len(ACTION_NAMES))
    frame = np.array(DOMAINS["hand"].frame)
    free = np.abs(episode.state[:-1, :2] - 0.5).max(1) < 0.4  # away from walls
    motion = np.diff(episode.state[:, :2], axis=0)
    np.testing.assert_allclose((motion @ frame.T)[free], episode.actions[:-1][free], atol=0.02)
