"""The open-loop error against actors whose actions are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_robots
import numpy as np
import pytest
from PIL import Image

from lapa.contracts import Array, LapaError
from lapa.data.episode_keys import keys_of, seen_among
from lapa.data.index import digest_of
from lapa.data.pack import Packed, pack
from lapa.measures.offline import HOLD, MEAN, POLICY, RIDGE, lines, offline, recorded
from lapa.plots.offline import offline_error

CHUNK = 3


@pytest.fixture(scope="module")
def packed() -> Packed:
    return pack(["tabletop:sim,episodes=16,seed=6"], 24, quiet=True)


class Knows:
    """Answers with the recorded chunk, times `scale` and off by `off`; asked in the order of the frames."""

    def __init__(self, packed: Packed, episodes: Array, scale: float = 1.0, off: float = 0.0) -> None:
        some = recorded(packed, episodes, CHUNK)
        self.actions, self.frames, self.packed, self.at = scale * some.actions + off, some.frames, packed, 0

    def act_batch(self, observations: Sequence[Any]) -> Array:
        rows = slice(self.at, self.at + len(observations))
        assert (observations[0]["image"] == self.packed.gather(self.frames[rows][:1])[0]).all()
        self.at = rows.stop
        return self.actions[rows].astype(np.float32)


def test_the_expert_makes_no_error_and_half_of_its_steps_half_of_one(packed: Packed, tmp_path: Path) -> None:
    episodes = np.arange(8, 16)
    perfect = offline(Knows(packed, episodes), packed, episodes, (packed, np.arange(8)))
    rows = perfect["rows"]
    assert list(rows) == [POLICY, HOLD, MEAN, RIDGE]
    assert rows[POLICY]["error"] == pytest.approx(0, abs=1e-6)
    assert rows[POLICY]["step"] == pytest.approx(1, abs=1e-6)
    assert rows[MEAN]["error"] == pytest.approx(1)
    assert rows[HOLD]["step"] == 0
    assert len(rows[POLICY]["by_step"]) == CHUNK
    assert not any(f"{row} (" in perfect["verdict"] for row in rows), "it names the rows that are as good"
    half = offline(Knows(packed, episodes, 0.5), packed, episodes, None)
    assert half["rows"][POLICY]["step"] == pytest.approx(0.5, abs=1e-6)
    assert half["rows"][POLICY]["error"] == pytest.approx(half["rows"][HOLD]["error"] / 2, abs=1e-6)
    assert RIDGE not in half["rows"]
    assert "may stall" in half["verdict"]
    text = "\n".join(lines(perfect))
    assert all(name in text for name in (*rows, *packed.action_names))
    offline_error(perfect, tmp_path / "offline.png", "offline error")
    with Image.open(tmp_path / "offline.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_an_error_is_told_in_units_and_in_those_of_the_mean_action(packed: Packed) -> None:
    episodes = np.arange(4)
    found = offline(Knows(packed, episodes, off=0.01), packed, episodes, None)["rows"]
    assert found[POLICY]["absolute"] == pytest.approx([0.01, 0.01], rel=1e-4)
    expected = [0.01 / unit for unit in found[MEAN]["absolute"]]
    assert found[POLICY]["by_dimension"] == pytest.approx(expected, rel=1e-4)
    assert found[POLICY]["error"] == pytest.approx(np.mean(expected), rel=1e-4)
    low, high = found[POLICY]["interval"]
    assert low <= found[POLICY]["error"] <= high


def test_what_lies_past_the_end_of_an_episode_is_not_judged(packed: Packed) -> None:
    some = recorded(packed, np.array([2, 5]), CHUNK)
    lengths = np.diff(packed.starts)[[2, 5]]
    assert len(some.frames) == (lengths - 1).sum(), "the last frame leads nowhere"
    assert (~some.known).sum() == 2 * (1 + 2), "the last frames have two and one actions ahead"
    assert packed.actions is not None
    first = packed.starts[2]
    assert some.actions[0] == pytest.approx(packed.actions[first : first + CHUNK])
    few = recorded(packed, np.arange(16), 1, most=10)
    assert len(few.frames) == 10
    assert len(np.unique(few.episode)) > 6


def test_holding_the_state_where_targets_are_absolute_and_a_gripper_stays_as_it_was(packed: Packed) -> None:
    rng = np.random.default_rng(0)
    state = np.cumsum(rng.normal(size=(len(packed), 3)), 0).astype(np.float32)
    ends = np.append(state[1:], state[-1:], 0)
    gripper = (np.arange(len(packed)) // 40 % 2).astype(np.float32)
    robot = replace(packed, state=state, actions=np.column_stack([ends[:, :2], gripper]),
                    state_names=("a", "b", "c"), action_names=("a", "b", "gripper"))  # fmt: skip
    if hasattr(packed, "action_spec"):
        from lapa.contracts import ActionSpec

        spec = ActionSpec(("a", "b", "gripper"), ("absolute", "absolute", "binary"), 10)
        robot = replace(robot, action_spec=spec)  # type: ignore[call-arg]
    episodes = np.arange(16)
    made = offline(Knows(robot, episodes), robot, episodes, (robot, episodes))
    assert made["kinds"] == ["absolute", "absolute", "binary"]
    hold = made["rows"][HOLD]
    assert hold["by_step"][0] < hold["by_step"][-1], "the further ahead, the worse it is to stay"
    assert hold["by_dimension"][0] < 0.5
    assert hold["absolute"][2] < 0.2, "a switch that stays is wrong only where it switches"
    assert hold["step"] == 0


@pytest.mark.parametrize("jitter", [0.0, 2e-7, 1e-5])
def test_a_parked_joint_is_left_out_of_the_error(packed: Packed, jitter: float) -> None:
    """Its target stands still but for rounding, and its state has noise, which a policy of relative actions passes on.
    Over so small a unit the error would have no bounds."""
    from lapa.contracts import ActionSpec

    rng = np.random.default_rng(0)
    state = np.cumsum(rng.normal(size=(len(packed), 3)), 0).astype(np.float32)
    state[:, 2] = 0.5 + 1e-3 * rng.normal(size=len(packed))
    ends = np.append(state[1:], state[-1:], 0)
    ends[:, 2] = 0.5 + jitter * rng.normal(size=len(packed))
    spec = ActionSpec(("a", "b", "parked"), ("absolute",) * 3, 10)
    robot = replace(packed, state=state, actions=ends, state_names=("a", "b", "c"), action_names=spec.names,
                    action_spec=spec)  # fmt: skip
    rows = offline(Knows(robot, np.arange(16), off=1e-3), robot, np.arange(16), (robot, np.arange(16)))["rows"]
    assert rows[POLICY]["by_dimension"][2] is None
    assert rows[POLICY]["absolute"][2] == pytest.approx(1e-3, rel=1e-3), "told in the robot's units"
    assert rows[POLICY]["error"] == pytest.approx(np.mean(rows[POLICY]["by_dimension"][:2]))
    assert all(share is not None for share in rows[HOLD]["by_dimension"][:2])


def test_other_dimensions_are_refused(packed: Packed) -> None:
    class Other:
        def act_batch(self, observations: Sequence[Any]) -> Array:
            return np.zeros((len(observations), 1, 7), np.float32)

    with pytest.raises(LapaError, match=r"\b2 dimensions.*\b7\b"):
        offline(Other(), packed, np.arange(3), None)
    with pytest.raises(LapaError, match="needs them"):
        offline(Other(), replace(packed, actions=None, widths=(0,)), np.arange(3), None)


def test_episodes_are_known_again_at_another_size_and_in_another_order(packed: Packed) -> None:
    assert len(keys_of(packed)) == 16
    known = keys_of(packed.subset(np.array([3, 1])))
    assert np.flatnonzero(seen_among(packed, known)).tolist() == [1, 3]
    small = pack(["tabletop:sim,episodes=4,seed=6"], 32, quiet=True)
    assert seen_among(packed, keys_of(small)).tolist() == [True] * 4 + [False] * 12
    assert not seen_among(pack(["tabletop:sim,episodes=4,seed=7"], 32, quiet=True), keys_of(packed)).any()


def test_episodes_are_known_again_at_another_rate_and_without_a_state(tmp_path: Path) -> None:
    """Other actions, but the same place; and of one that is not there any more, the same actions."""
    robot = f"hdf5:{made_robots.robomimic(tmp_path / 'robot.hdf5', (6, 7, 8, 9))}"
    whole = pack([robot], 32, quiet=True)
    known = keys_of(whole.subset(np.array([0, 2])))
    for options in (",stride=2", ",state=none"):
        assert seen_among(pack([f"{robot}{options}"], 32, quiet=True), known).tolist() == [True, False, True, False]
    elsewhere = replace(whole, spec=f"hdf5:{tmp_path}/gone.hdf5", state=None)
    assert seen_among(elsewhere, known).tolist() == [True, False, True, False]
    assert not seen_among(replace(elsewhere, actions=whole.actions + 1), known).any()


def test_the_keys_of_an_older_lapa_are_known(packed: Packed) -> None:
    """They were hashes of instruction, actions and state."""
    state = np.arange(len(packed), dtype=np.float32)[:, None]
    robot = replace(packed, state=state)
    assert robot.actions is not None
    span = slice(int(robot.starts[2]), int(robot.starts[3]))
    old = digest_of(robot.instructions[2].encode(), robot.actions[span].tobytes(), state[span].tobytes())
    assert np.flatnonzero(seen_among(robot, {old})).tolist() == [2]


def test_one_episode_tells_of_no_other(packed: Packed) -> None:
    episodes = np.arange(8, 9)
    found = offline(Knows(packed, episodes, 0.5), packed, episodes, (packed, np.arange(8)))
    assert sum("one episode" in line for line in lines(found)) == 4
    assert not any(" to " in line for line in lines(found)[1:5])


def test_actions_that_are_no_numbers_have_no_error(packed: Packed) -> None:
    with pytest.raises(LapaError, match="not finite"):
        offline(Knows(packed, np.arange(8, 16), np.nan), packed, np.arange(8, 16), None)
