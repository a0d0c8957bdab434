"""What is asked of Tabletop alone: measured on hand-made codes where the right answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hand_coded import SECTORS, recoded
from PIL import Image

from lapa.analysis.plans import OfEffector, OfPoint, follow, plans
from lapa.analysis.reading import Reading, motion_probe
from lapa.analysis.tabletop.information import OBJECT, entropy, mutual, polar, told, variables
from lapa.analysis.tabletop.transplant import cell, per_frame
from lapa.contracts import LapaError, Observation
from lapa.data.pack import pack
from lapa.data.pairs import window_pairs
from lapa.evaluate import Trial, open_benchmark, roll_out
from lapa.measures.linear import LinearFit

# Transplant


def test_perfect_codes_move_every_robot_the_same_way(sim: Reading, real: Reading) -> None:
    read_real = LinearFit.fit(real.features, per_frame(real))
    found = cell(sim, read_real, real, "real")
    assert found["share"] > 0.97
    assert found["interval"][0] <= found["share"] <= found["interval"][1]
    assert found["true_motion"] > 0.97
    assert 0.05 < found["shuffled"] < 0.4  # a sixth by chance; expert motion has favourite directions
    assert found["of"] + found["too_short"] == found["pairs"] == len(sim)
    read_sim = LinearFit.fit(sim.features, per_frame(sim))
    assert cell(sim, read_sim, real, "real")["share"] < 0.1, "commands of sim turn the robot of real by 90 degrees"


def test_codes_that_do_not_tell_the_motion_are_no_better_than_shuffled_ones(sim: Reading, real: Reading) -> None:
    blind = [recoded(r, r.episode[:, None] % 12) for r in (sim, real)]
    found = cell(blind[0], LinearFit.fit(blind[1].features, per_frame(blind[1])), blind[1], "real")
    assert abs(found["share"] - found["shuffled"]) < 0.1
    assert found["share"] < 0.4


# Information


def test_codes_that_are_actions_and_codes_that_are_objects(sim: Reading) -> None:
    known = variables(sim)
    assert set(known) == {"action", "position", "object", "colour", "shape", "family"}
    assert len(np.unique(known[OBJECT])) > 6
    assert known["action"].max() == 16
    acts, is_object = (told(known[name][:, None], known, sim.episode) for name in ("action", OBJECT))
    assert acts["variables"]["action"]["bits"] > 0.9 * entropy(known["action"])
    assert acts["object_over_action"] < 0.05
    assert is_object["object_over_action"] > 5
    assert is_object["variables"][OBJECT]["bits"] > 1
    both = told((known["action"] * 100 + known["shape"])[:, None], known, sim.episode)
    assert both["variables"]["object given action"]["bits"] > 0.5
    assert abs(acts["variables"]["object given action"]["bits"]) < 1e-9


def test_shuffling_whole_episodes_takes_all_chance_off() -> None:
    """Labels that are constant in an episode, and codes that prefer something in each: bits as counted, no truth."""
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(60), 20)
    habit, label = rng.integers(8, size=60), rng.integers(12, size=60)
    code = np.where(rng.random(1200) < 0.7, habit[episode], rng.integers(8, size=1200))
    found = told(code[:, None], {"label": label[episode]}, episode)["variables"]["label"]
    assert found["by_chance"] > 0.15
    assert abs(found["bits"]) < 3 * found["noise"]


def test_mutual_information_of_known_tables() -> None:
    a = np.arange(800) % 8
    assert entropy(a) == pytest.approx(3)
    assert mutual(a, a // 2) == pytest.approx(2)
    assert mutual(a, np.arange(800) // 8 % 10) == pytest.approx(0, abs=1e-9)
    turned = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], 1)
    assert len(np.unique(polar(np.concatenate([turned, 3 * turned, 0 * turned])))) == 17


# Plans


class Seer:
    """Knows each frame of a dataset by its pixels: a LAQ and a policy that name perfect codes."""

    config = SimpleNamespace(image_size=24)

    def __init__(self, r: Reading, blind: bool = False) -> None:
        frames = r.pairs.now[r.rows]
        self.code = {image.tobytes(): c for image, c in zip(r.packed.gather(frames), r.codes, strict=True)}
        self.blind = blind

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def encode(self, now: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        images = (now * 255).round().byte().permute(0, 2, 3, 1).numpy()
        return torch.from_numpy(np.stack([self.code[image.tobytes()] for image in images]))

    def decode(self, now: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return now

    def predict_codes(self, images: torch.Tensor, texts: Any) -> torch.Tensor:
        codes = self.encode(images, images)
        return torch.full_like(codes, SECTORS) if self.blind else codes


def test_plans_of_who_knows_and_of_who_stays(sim: Reading, tmp_path: Path) -> None:
    seer: Any = Seer(sim)
    knows = plans(seer, seer, sim, tmp_path / "plans.png", "Plans")
    assert knows["each_frame"]["within_45"] > 0.9
    assert knows["codes"]["miss"] < 0.3
    with Image.open(tmp_path / "plans.png") as image:
        assert np.asarray(image).std() > 10
    stays: Any = Seer(sim, blind=True)
    idle = plans(seer, stays, sim, tmp_path / "idle.png", "Plans")
    assert idle["each_frame"]["miss"] > 0.6
    starts = np.flatnonzero((sim.pairs.frame == 0) & (np.diff(sim.packed.starts)[sim.pairs.episode] > 13))[:3]
    ways, images, texts = follow(seer, seer, sim, starts, OfEffector(motion_probe(sim)))
    assert len(images) == len(texts) == 3
    true = ways["true"]
    assert np.array_equal(ways["plan"][:, 0], true[:, 0]), "a plan starts where the effector is"
    first = ways["plan"][:, 1:] - ways["plan"][:, :1]
    assert np.allclose(first, first[:, :1] * np.arange(1, 13)[:, None]), "drawn frames do not change here: one code"


def test_a_way_on_video_without_states_is_that_of_the_point_that_moves_most() -> None:
    """A bright square goes right in each of eight films, and down in the others; the codes say which."""
    square = np.kron(np.eye(7, dtype=np.uint8) * 195 + 60, np.ones((2, 2), np.uint8))[..., None]
    films = []
    for number in range(16):
        base = np.kron(
            np.random.default_rng(number).integers(60, 120, (12, 12, 3), np.uint8), np.ones((4, 4, 1), np.uint8)
        )
        for t in range(5):
            frame, down = base.copy(), number % 2
            y, x = 12 + 3 * t * down, 12 + 3 * t * (1 - down)
            frame[y : y + 14, x : x + 14] = square
            films.append(frame)
    packed = replace(
        pack(["tabletop:sim,episodes=16,seed=5"], 48, quiet=True).subset(np.arange(16)),
        _maps=(np.stack(films),), _rows=np.arange(80), starts=np.arange(0, 81, 5), fps=np.full(16, 10.0),
        actions=None, state=None, state_names=(),
    )  # fmt: skip
    pairs = window_pairs(packed, 0.1)
    reading = Reading("films", packed, pairs, np.arange(len(pairs)), (pairs.episode % 2)[:, None], 2)
    moves = OfPoint.fit(reading)
    true = moves.true(reading, packed.starts[:2, None] + np.arange(5))
    assert np.abs(true[:, 0] - 0.4).max() < 0.15, "it starts on the square"
    gone = true[:, -1] - true[:, 0]
    assert gone[0, 0] > 3 * abs(gone[0, 1])
    assert gone[1, 1] > 3 * abs(gone[1, 0])
    told = moves.step(np.eye(2), true[:, 0])
    assert np.abs(told - 3 / 48 * np.eye(2)).max() < 0.03


# Language


class Listener:
    """A policy that stays where it is and keeps what it was told, scene by scene."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Any:
        self.told.append(tuple(o["instruction"] for o in observations))
        return np.zeros((len(observations), 1, 2), np.float32)


def heard(instruction: str, episodes: int = 12, seed: int = 0) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a policy was told in each scene, and what it should have been told."""
    listener = Listener()
    trial = Trial(episodes, seed, validation=True, instruction=instruction)  # type: ignore[arg-type]
    outcomes, _ = roll_out(open_benchmark("tabletop"), listener, trial)
    assert len(set(listener.told)) == 1, "a scene is told the same at every step"
    return listener.told[0], tuple(o.instruction for o in outcomes)


def test_a_policy_is_told_the_right_words_others_or_none() -> None:
    said, right = heard("right")
    assert said == right
    assert heard("empty") == (("",) * 12, right)
    said, same = heard("shuffled")
    assert same == right, "success is judged by the right words"
    assert sorted(said) == sorted(right)
    assert said != heard("shuffled", seed=1)[0]
    at = {text: i for i, text in enumerate(right)}
    assert len(at) == 12
    assert all(at[text] != i for i, text in enumerate(said)), "no scene is told its own words"
    with pytest.raises(LapaError, match=r"\btwo\b"):
        heard("shuffled", 1)
    with pytest.raises(LapaError, match="no instruction"):
        heard("loud")
