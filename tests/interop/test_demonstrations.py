"""What the expert of a benchmark shows: all cameras, state and actions, in scenes that nobody is tested on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lapa import cli
from lapa.commands.train import _world
from lapa.contracts import Array, Episode, LapaError, Observation, Step
from lapa.data.pack import pack
from lapa.data.spec import open_dataset, parse
from lapa.evaluate import TEST_SEEDS, Trial, open_benchmark
from lapa.interop.demonstrations import _Noisy, benchmark_of, demonstrations, motion, origin

ANOTHER_WORLD = Path(__file__).parents[1] / "another_world"


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPA_PLUGINS", str(ANOTHER_WORLD))


def test_on_tabletop_they_are_those_of_the_dataset() -> None:
    shown = [e for e in open_dataset("tabletop:hand,episodes=6,seed=3").episodes() if isinstance(e, Episode)]
    made = [episode for episode, _ in demonstrations(open_benchmark("tabletop:hand"), 6, seed=3)]
    for one, other in zip(shown, made, strict=True):
        assert one.instruction == other.instruction
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.actions, other.actions)
        assert (one.fps, one.action_names) == (other.fps, other.action_names)


@pytest.mark.parametrize("path", ["steps", "joints"])
def test_all_cameras_state_and_actions(path: str) -> None:
    arm = open_benchmark(f"arm:{path}")
    for episode, films in demonstrations(arm, 5, seed=2):
        assert (episode.camera, list(films)) == ("front", ["wrist"])
        assert episode.frames.shape[1:] == (36, 48, 3)
        assert films["wrist"].shape == (len(episode.frames), 24, 24, 3)
        assert episode.action_kinds == arm.spec.action.kinds
        assert int(episode.id.removeprefix("seed-")) < TEST_SEEDS
        assert episode.state is not None
        assert episode.actions is not None
        # What is done leads from each frame to the next.
        moved = np.diff(episode.state[:, :6], axis=0)
        told = episode.actions[:-1, :6] - (episode.state[:-1, :6] if path == "joints" else 0)
        np.testing.assert_allclose(moved, told, atol=1e-6)
        assert episode.actions[-1, 6] == 1, "a gripper stays closed"
        last = episode.actions[-1, :6]
        np.testing.assert_array_equal(last, episode.actions[-2, :6] if path == "joints" else 0)


@pytest.mark.parametrize("path", ["steps", "joints"])
def test_noise_disturbs_motions_and_no_gripper(path: str) -> None:
    arm = open_benchmark(f"arm:{path}")
    size = motion(arm, arm.baselines()["expert"], 0)
    assert (size[:3] > 0.01).all()
    assert size[6] == 0
    quiet, loud, again = ([e for e, _ in demonstrations(arm, 4, noise=n)] for n in (0.0, 0.4, 0.4))
    for one, other, same in zip(quiet, loud, again, strict=True):
        np.testing.assert_array_equal(other.actions, same.actions)
        assert one.actions is not None
        assert other.actions is not None
        assert not np.array_equal(one.actions[0], other.actions[0])
        assert set(np.unique(other.actions[:, 6])) <= {0.0, 1.0}


def test_no_noise_while_a_gripper_holds_something() -> None:
    """Motions and gripper as at the beginning: disturbed; afterwards: those of the expert."""
    arm = open_benchmark("arm")
    trial = Trial(3)
    shown = arm.reset(trial.seeds)
    noisy = _Noisy(arm, np.array([0.02] * 6 + [0.0]), trial.seeds)
    held = False
    for _ in range(40):
        told = arm.baselines()["expert"].act_batch(shown, [0, 1, 2])
        made = noisy.act_batch(shown, [0, 1, 2])
        for i in range(3):
            closed = told[i, 0, 6] == 1
            assert np.array_equal(told[i], made[i]) == closed
            held |= closed
        shown = [step.observation for step in arm.step(told[:, 0])]
    assert held


def test_workers_share_the_work_and_change_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    alone, shared = (list(demonstrations(open_benchmark("arm"), 9, 3, 3.0, "arm", n)) for n in (1, 2))
    said = capsys.readouterr().err.splitlines()
    assert [e.id for e, _ in alone] == [e.id for e, _ in shared]
    for (one, views), (other, others) in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(views["wrist"], others["wrist"])
    assert len(said) == 2, "the scenes that failed are counted"
    assert said[0] == said[1]
    assert all(name in said[0] for name in ("blue", "red")), "by task"


class Rotating:
    """The arm, with two families by turns; scenes whose number is 3 modulo 4 fail."""

    def __init__(self) -> None:
        self.arm = open_benchmark("arm")
        self.spec = replace(self.arm.spec, families=("even", "odd"))
        self.baselines = self.arm.baselines

    def family(self, seed: int) -> str:
        return ("even", "odd")[seed % 2]

    def reset(self, seeds: Sequence[int]) -> list[Observation]:
        self.seeds = list(seeds)
        return self.arm.reset(seeds)

    def step(self, actions: Array) -> list[Step]:
        made = self.arm.step(actions)
        fine = [seed % 4 != 3 for seed in self.seeds]
        return [replace(step, success=step.success and good) for step, good in zip(made, fine, strict=True)]

    def tasks(self) -> tuple[str, ...]:
        return tuple(map(self.family, self.seeds))


def test_equally_many_of_each_family(capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [int(e.id.removeprefix("seed-")) for e, _ in demonstrations(Rotating(), 21)]
    assert sorted(s for s in seeds if s % 2 == 0) == list(range(0, 22, 2))
    assert sorted(s for s in seeds if s % 2) == list(range(1, 41, 4))
    assert "odd 9" in capsys.readouterr().err


def test_actions_are_those_that_can_be_carried_out() -> None:
    arm = open_benchmark("arm")
    arm.spec = replace(arm.spec, limits=((-0.05, 0.05),) * 6 + ((0.0, 1.0),))
    for episode, _ in demonstrations(arm, 3, noise=1.0):
        assert episode.actions is not None
        assert np.abs(episode.actions[:, :6]).max() <= np.float32(0.05)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "arm"
    cli.main(["collect", "--benchmark", "arm", "--episodes", "4", "--noise", "0.2", "--seed", "1", "--out", str(out)])
    assert "front, wrist" in capsys.readouterr().out
    packed = pack([f"lerobot:{out},camera=wrist"], 24, quiet=True)
    assert packed.episodes == 4
    assert packed.cameras == ("front", "wrist")
    spec = open_benchmark("arm").spec
    assert packed.action_spec == spec.action
    assert packed.state_names == spec.state
    assert json.loads((out / "meta/info.json").read_text())["fps"] == 10
    assert benchmark_of(parse(f"lerobot:{out},camera=wrist")) == "arm"
    assert benchmark_of(parse(f"lerobot:{out},stride=2")) is None, "at half the rate it is another robot"
    assert benchmark_of(parse("tabletop:sim,episodes=2")) is None


@pytest.mark.parametrize(
    ("sources", "robots", "world"),
    [
        (["far:a+b,size=9"], ("far_a_b",), "far:a+b,size=9"),
        (["far:a", "far:a"], ("far_a",), "far:a"),
        (["far:a", "far:b"], ("far_a",), None),
        (["", "far:b"], ("far_a",), None),
        ([""], ("tabletop_sim",), "tabletop"),
        ([""], ("tabletop_sim", "other"), None),
        ([""], ("metaworld_reach_v3",), None),
        ([""], (), None),
    ],
)
def test_the_next_command_names_the_whole_benchmark_or_none(
    tmp_path: Path, sources: list[str], robots: tuple[str, ...], world: str | None
) -> None:
    for i, source in enumerate(sources):
        (tmp_path / f"{i}/meta").mkdir(parents=True)
        told = origin(source, 0, 0.0) if source else {"sources": ["lerobot:elsewhere"]}
        (tmp_path / f"{i}/meta/lapa.json").write_text(json.dumps(told))
    assert _world(tuple(f"lerobot:{tmp_path / str(i)}" for i in range(len(sources))), robots) == world


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--benchmark arm", "how many --episodes"),
        ("--benchmark arm --episodes 0", "--episodes is 1 to"),
        ("--benchmark arm --episodes 2 --noise -1", "--noise"),
        ("--benchmark arm --episodes 2 --noise nan", "--noise"),
        ("--benchmark arm --episodes 2 --dataset tabletop:sim", "--benchmark"),
        ("--dataset tabletop:sim --episodes 2", "belong to --benchmark"),
        ("--dataset tabletop:sim --workers 2", "belong to --benchmark"),
        ("--benchmark arm --episodes 2 --workers 0", "--workers"),
        ("--benchmark gym:lapa/Tabletop-v0,max_steps=60 --episodes 2", "expert"),
    ],
)  # fmt: skip
def test_what_is_refused(words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["collect", *words.split(), "--out", str(tmp_path / "out")])
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_expert_that_fails_too_often_is_refused() -> None:
    with pytest.raises(LapaError, match=r"\b15 scenes.*\b3\b"):
        list(demonstrations(open_benchmark("arm"), 3, noise=50))
