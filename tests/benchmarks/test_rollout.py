"""The rollout in evaluate.py: the scenes of before, queues of actions, what a policy is told, whose policy it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lapa.contracts import ActionSpec, Array, LapaError, Observation, PolicySpec, Step, TaskSpec
from lapa.evaluate import Trial, differences, evaluate, open_benchmark, require_fit, roll_out, share
from lapa.tabletop import world
from lapa.tabletop.benchmark import TabletopBenchmark
from lapa.tabletop.env import Table

# Of lapa 0.1, before evaluate.py owned the rollout: (successes, steps) of the first twelve scenes with seed 3.
BEFORE: dict[str, tuple[str, list[int]]] = {
    "tabletop:sim,split=seen no_op": ("000000000000", [60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60]),
    "tabletop:sim,split=seen random": ("000000000000", [60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60]),
    "tabletop:sim,split=seen expert": ("111111111111", [20, 23, 21, 14, 29, 8, 15, 28, 16, 24, 32, 18]),
    "tabletop:real,split=unseen no_op": ("000000000000", [60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60]),
    "tabletop:real,split=unseen random": ("000000000000", [60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60]),
    "tabletop:real,split=unseen expert": ("111111111111", [20, 25, 23, 11, 22, 13, 21, 40, 21, 8, 14, 30]),
    "tabletop:hand,split=seen no_op": ("000000000000", [60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60]),
    "tabletop:hand,split=seen random": ("000000000000", [60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60]),
    "tabletop:hand,split=seen expert": ("111111111111", [24, 25, 24, 17, 28, 9, 18, 37, 21, 28, 39, 21]),
}  # fmt: skip


@pytest.mark.parametrize("where", sorted({key.rpartition(" ")[0] for key in BEFORE}))
@pytest.mark.parametrize("row", ["no_op", "random", "expert"])
def test_rows_of_tabletop_end_as_in_lapa_0_1(where: str, row: str) -> None:
    benchmark = open_benchmark(where)
    outcomes, _ = roll_out(benchmark, benchmark.baselines()[row], Trial(12, seed=3))
    won, steps = BEFORE[f"{where} {row}"]
    assert "".join("01"[o.success] for o in outcomes) == won
    assert [o.steps for o in outcomes] == steps


class Clumsy:
    """A policy that knows the expert and errs by what it sees and hears; chunks of two actions."""

    def __init__(self, benchmark: TabletopBenchmark) -> None:
        self.benchmark, self.heard = benchmark, list[tuple[int, ...]]()

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        assert ids is not None
        self.heard.append(tuple(ids))
        shown = [(o["images"]["image"], o["instruction"]) for o in observations]
        return clumsy(self.benchmark.table.expert()[list(ids)], shown)


def clumsy(right: Array, shown: Sequence[tuple[Array, str]]) -> Array:
    noise = [[len(text) % 5 - 2, int(picture[:24].mean() > picture[24:].mean()) - 0.5] for picture, text in shown]
    return np.stack([right, right + 0.004 * np.array(noise)], 1).astype(np.float32)


@pytest.mark.parametrize("domain", ["sim", "hand"])
def test_a_policy_on_tabletop_ends_as_in_a_plain_loop(domain: str) -> None:
    """All scenes in step, asked about until they are done: what lapa 0.1 did."""
    count, trial = 40, Trial(40, seed=1, validation=True)
    table = Table(list(trial.seeds), domain)
    done, steps, asked = np.zeros(count, bool), np.full(count, world.TIME_LIMIT), []
    for step in range(0, world.TIME_LIMIT, 2):
        active = np.flatnonzero(~done)
        asked.append(tuple(active))
        images = table.images()
        chunk = np.zeros((2, count, 2), np.float32)
        chunk[:, active] = clumsy(
            table.expert()[active], [(images[i], table.instructions[i]) for i in active]
        ).transpose(1, 0, 2)
        for k in range(2):
            done |= table.step(chunk[k])
            steps = np.where(done & (steps == world.TIME_LIMIT), step + k + 1, steps)
        if done.all():
            break
    benchmark = open_benchmark(f"tabletop:{domain}")
    assert isinstance(benchmark, TabletopBenchmark)
    actor = Clumsy(benchmark)
    outcomes, _ = roll_out(benchmark, actor, trial)
    assert [o.success for o in outcomes] == done.tolist()
    assert [o.steps for o in outcomes] == steps.tolist()
    assert 0.2 < done.mean() <= 1
    assert set(actor.heard) <= {tuple(map(int, ids)) for ids in asked}


# --- queues, with a world that only counts


@dataclass
class Counting:
    """Each scene ends after as many steps as its seed's last digit says; it keeps every action."""

    spec = TaskSpec(ActionSpec(("x",), ("absolute",), 10.0), ("top", "wrist"), ("count",), 9, ("x",), batch=4)

    def reset(self, seeds: Sequence[int]) -> list[Observation]:
        self.ends, self.tick, self.got = [seed % 10 for seed in seeds], 0, list[Array]()
        return [self._shown(i) for i in range(len(seeds))]

    def _shown(self, i: int) -> Observation:
        picture = np.full((4, 6, 3), self.tick, np.uint8)
        return {"images": {"top": picture, "wrist": picture}, "instruction": f"until {self.ends[i]}",
                "state": np.array([self.tick], np.float32)}  # fmt: skip

    def step(self, actions: Array) -> list[Step]:
        self.got.append(actions.copy())
        self.tick += 1
        over = [self.tick >= end > 0 for end in self.ends]
        return [Step(self._shown(i), over[i] and self.ends[i] % 2 == 1, over[i]) for i in range(len(over))]

    def tasks(self) -> tuple[str, ...]:
        return ("count",) * len(self.ends)

    def baselines(self) -> dict[str, Any]:
        return {}


class Speaker:
    """Says the tick it was asked at, and what comes next: chunks of three."""

    spec: PolicySpec | None = None

    def __init__(self, execute: int | None = None) -> None:
        self.asked, self.told, self.forgot = list[tuple[int, ...]](), list[str](), 0
        if execute:
            self.spec = PolicySpec(("top", "wrist"), ("x",), Counting.spec.action, 3, execute)

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        assert ids is not None
        self.asked.append(tuple(ids))
        self.told += [o["instruction"] for o in observations]
        ticks = np.array([o["state"] for o in observations])
        return (ticks[:, None] + np.arange(3)[:, None]).astype(np.float32)

    def reset(self, ids: Sequence[int] | None = None) -> None:
        self.forgot += 1


def test_batches_queues_and_ends() -> None:
    counting, speaker = Counting(), Speaker()
    outcomes, films = roll_out(counting, speaker, Trial(10), record=6)
    assert [o.steps for o in outcomes] == [9, *range(1, 10)]
    assert [o.success for o in outcomes] == [False] + [i % 2 == 1 for i in range(1, 10)]
    assert [len(film) for film in films] == [10, 2, 3, 4, 5, 6]
    assert all(film.shape[1:] == (4, 6, 3) for film in films), "of the first camera"
    assert speaker.forgot == 3, "batches of 4, 4 and 2"
    # The last batch has the scenes that end after 8 and 9 steps: asked together, then nobody is asked about nothing.
    assert speaker.asked[-3:] == [(0, 1), (0, 1), (0, 1)]
    assert speaker.asked[:3] == [(0, 1, 2, 3), (0,), (0,)]
    np.testing.assert_array_equal(np.concatenate(counting.got)[:, 0].reshape(-1, 2)[:8, 0], range(8))
    assert counting.got[8][0] == 0, "a scene that is done is sent zeros"


@pytest.mark.parametrize(("most", "parts"), [(0, 3), (3, 4), (5, 3)])
def test_no_more_scenes_than_a_policy_can_remember(most: int, parts: int) -> None:
    speaker = Speaker()
    speaker.most = most  # type: ignore[attr-defined]
    outcomes, _ = roll_out(Counting(), speaker, Trial(10))
    assert speaker.forgot == parts
    assert outcomes == roll_out(Counting(), Speaker(), Trial(10))[0]


def test_a_benchmark_may_say_in_which_order_scenes_are_run() -> None:
    class Sorted(Counting):
        def order(self, seeds: Sequence[int]) -> list[int]:
            return sorted(seeds, key=lambda seed: seed % 3)

        def reset(self, seeds: Sequence[int]) -> list[Observation]:
            begun.append([seed % 10 for seed in seeds])
            return super().reset(seeds)

    begun: list[list[int]] = []
    plain = roll_out(Counting(), Speaker(), Trial(10), record=6)
    outcomes, films = roll_out(Sorted(), Speaker(), Trial(10), record=6)
    assert begun == [[2, 5, 8, 0], [3, 6, 9, 1], [4, 7]]
    assert outcomes == plain[0], "in the order of their seeds"
    assert [len(film) for film in films] == [len(film) for film in plain[1]]
    told = Speaker()
    roll_out(Sorted(), told, Trial(10, instruction="shuffled"))
    assert all(told.told[i] != f"until {begun[0][i]}" for i in range(4))


class Stopped(Speaker):
    """Interrupted at its n-th question."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        if len(self.asked) == self.after:
            raise KeyboardInterrupt
        return super().act_batch(observations, ids)


def test_an_interrupted_evaluation_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scenes that were done are not run again, and the results are those of an unbroken run."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    evaluate("speaker", Speaker(), Counting(), Trial(10), whole, 0, {"policy": "a"})
    with pytest.raises(KeyboardInterrupt):
        evaluate("speaker", Stopped(4), Counting(), Trial(10), broken, 0, {"policy": "a"})
    assert [path.name for path in broken.iterdir()] == ["unfinished.json"], "four scenes of ten"
    capsys.readouterr()
    speaker, counting = Speaker(), Counting()
    evaluate("speaker", speaker, counting, Trial(10), broken, 0, {"policy": "a"})
    assert "4 episodes of an interrupted run are kept" in capsys.readouterr().err
    assert speaker.forgot == 2, "batches of 4 and 2"
    assert (broken / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert sorted(path.name for path in broken.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_scenes_that_are_filmed_are_run_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate("speaker", Stopped(4), Counting(), Trial(10), tmp_path, 1, {})
    evaluate("speaker", Speaker(), Counting(), Trial(10), tmp_path, 1, {})
    assert (tmp_path / "episode_0.gif").exists()
    assert not (tmp_path / "unfinished.json").exists()


@pytest.mark.parametrize("torn", ["{bad", "[1]", "{}"])
def test_a_file_that_is_no_evaluation_is_named(torn: str, tmp_path: Path) -> None:
    (tmp_path / "unfinished.json").write_text(torn)
    with pytest.raises(LapaError, match=r"unfinished\.json is "):
        evaluate("speaker", Speaker(), Counting(), Trial(10), tmp_path, 0, {})


def test_another_evaluation_does_not_go_on_from_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate("speaker", Stopped(4), Counting(), Trial(10), tmp_path, 0, {"policy": "a"})
    speaker = Speaker()
    evaluate("speaker", speaker, Counting(), Trial(10), tmp_path, 0, {"policy": "b"})
    assert speaker.forgot == 3
    assert "of another evaluation (policy differs): begun anew" in capsys.readouterr().err


def test_what_is_kept_of_a_server_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Servers of others do not say which policy they have."""
    about = {"policy": "openpi://robot:8000", "hash": ""}
    with pytest.raises(KeyboardInterrupt):
        evaluate("speaker", Stopped(4), Counting(), Trial(10), tmp_path, 0, about)
    evaluate("speaker", Speaker(), Counting(), Trial(10), tmp_path, 0, about)
    assert "are kept, of the policy that openpi://robot:8000 had then." in capsys.readouterr().err


@pytest.mark.parametrize(("execute", "its", "times"), [(None, None, 3), (None, 1, 9), (2, None, 5), (2, 1, 5)])
def test_how_much_of_a_chunk_is_carried_out(execute: int | None, its: int | None, times: int) -> None:
    """All of it, what the policy's spec says, or what the trial says."""
    speaker = Speaker(its)
    roll_out(Counting(), speaker, Trial(1, execute=execute))
    assert len(speaker.asked) == times


def test_more_than_an_answer_has_cannot_be_carried_out() -> None:
    with pytest.raises(LapaError, match=r"--execute 4.* 3 actions"):
        roll_out(Counting(), Speaker(), Trial(1, execute=4))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_actions_that_are_no_numbers_are_not_carried_out(wrong: float) -> None:
    """As of a policy whose training went astray: it must not count as a policy that fails."""

    class Astray(Speaker):
        def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
            return np.full_like(super().act_batch(observations, ids), wrong)

    with pytest.raises(LapaError, match="not finite"):
        roll_out(Counting(), Astray(), Trial(1))


def test_shuffled_instructions_of_all_batches() -> None:
    speaker = Speaker()
    outcomes, _ = roll_out(Counting(), speaker, Trial(10, instruction="shuffled"))
    assert [o.instruction for o in outcomes] == [f"until {i}" for i in range(10)], "judged by the right one"
    first = [speaker.told[i] for i in range(4)]
    assert all(told != f"until {i}" for i, told in enumerate(first))
    with pytest.raises(LapaError, match=r"\btwo\b"):
        roll_out(Counting(), speaker, Trial(1, instruction="shuffled"))


# --- whose policy it is


SEVEN = ActionSpec((*"xyzabc", "gripper"), (*("delta",) * 6, "binary"), 10.0)
TASK = TaskSpec(SEVEN, ("top", "wrist"), ("pick",), 50, ("x", "y"))
FITS = PolicySpec(("wrist",), ("x", "y"), SEVEN)


@dataclass
class Actor:
    spec: PolicySpec | None
    dimensions: int = 7


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (FITS, ""),
        (replace(FITS, state=()), ""),
        (replace(FITS, cameras=("side",)), "camera side.* top, wrist"),
        (replace(FITS, state=("y", "x")), "state y, x.* x, y"),
        (replace(FITS, action=replace(SEVEN, hz=30.0)), r"\b30 .*\b10\b"),
        (replace(FITS, action=replace(SEVEN, kinds=(*("absolute",) * 6, "binary"))), "x .*absolute.* delta"),
        (replace(FITS, action=replace(SEVEN, names=tuple("abcdefg"))), r"a, b, c, d, \.\..* x, y, z, a"),
        (replace(FITS, action=replace(SEVEN, names=tuple(f"action_{i}" for i in range(7)))), ""),
        (replace(FITS, action=ActionSpec(("dx", "dy"), ("delta", "delta"), 10.0)), "2 numbers at 10 Hz"),
    ],
)  # fmt: skip
def test_worlds_are_told_apart_by_their_spec(spec: PolicySpec, says: str) -> None:
    if not says:
        return require_fit(Actor(spec), "runs/policy", TASK, "arm")
    with pytest.raises(LapaError, match=r"runs/policy.*\barm\b") as error:
        require_fit(Actor(spec), "runs/policy", TASK, "arm")
    assert re.search(says, str(error.value))
    assert str(error.value).startswith("runs/policy ")


def test_the_only_camera_may_be_another_and_that_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for camera, told in (("side", True), ("top", False), ("image", False)):
        require_fit(Actor(replace(FITS, cameras=(camera,))), "runs/policy", replace(TASK, cameras=("top",)), "arm")
        assert ("camera side; arm shows it top" in capsys.readouterr().err) == told


def test_equal_dimensions_alone_are_not_enough() -> None:
    """Two numbers of another robot are not Tabletop's."""
    here = open_benchmark("tabletop").spec
    joints = ActionSpec(("shoulder", "elbow"), ("absolute", "absolute"), 5.0)
    assert len(differences(joints, here.action)) == 2
    with pytest.raises(LapaError, match="shoulder, elbow"):
        require_fit(Actor(PolicySpec(("image",), (), joints), 2), "runs/policy", here, "tabletop")


def test_artefacts_that_do_not_say_what_their_actions_mean(capsys: pytest.CaptureFixture[str]) -> None:
    require_fit(Actor(None, 7), "runs/old", TASK, "arm")
    said = capsys.readouterr().err
    assert "runs/old" in said
    assert "0.1" in said
    with pytest.raises(LapaError, match=r"\b2 numbers.*\b7 numbers"):
        require_fit(Actor(None, 2), "runs/old", TASK, "arm")
    require_fit(Actor(None, 0), "runs/latent", TASK, "arm")  # it says itself why it cannot act


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"episodes": 1, "seed": 10_000}, {"episodes": 100_001},
                                   {"episodes": 1, "execute": 0}, {"episodes": 1, "instruction": "loud"}])  # fmt: skip
def test_what_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LapaError):
        Trial(**wrong)


def test_what_was_achieved_on_the_way_is_kept() -> None:
    class Far(Counting):
        spec = replace(Counting.spec, stages=("reached", "moved"))

        def step(self, actions: Array) -> list[Step]:
            now = ("moved",) if self.tick == 1 else ("reached",) if self.tick == 2 else ()
            return [replace(step, stages=now) for step in super().step(actions)]

    trial = Trial(episodes=4)
    world = Far()
    outcomes, _ = roll_out(world, Speaker(), trial)  # they end after 9 steps at most, 1, 2 and 3
    assert [o.stages for o in outcomes] == [("reached", "moved"), (), ("moved",), ("reached", "moved")]
    assert share(outcomes, world.spec.stages)["stages"] == {"reached": 0.5, "moved": 0.75}
    assert "stages" not in share(outcomes)
