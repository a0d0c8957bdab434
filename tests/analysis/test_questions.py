"""What codes mean and whether policies listen: measured on hand-made codes where the right answer is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lapa import cli
from lapa.analysis.algebra import of_reading, over_chance
from lapa.analysis.information import OBJECT, entropy, mutual, polar, told, variables
from lapa.analysis.plans import follow, plans
from lapa.analysis.reading import Reading, angles, motion_probe
from lapa.analysis.rollout import over_horizon
from lapa.analysis.transplant import cell, per_frame
from lapa.contracts import LapaError, Observation
from lapa.data.pack import pack
from lapa.data.pairs import window_pairs
from lapa.evaluate import Trial, open_benchmark, roll_out
from lapa.measures.intervals import by_episode
from lapa.measures.linear import Linear
from lapa.models.laq import LAQ, LAQConfig

SECTORS = 24
TINY = LAQConfig(
    image_size=24, patch_size=8, dim=16, spatial_depth=1, temporal_depth=1, heads=2, dim_head=8,
    codes=1, codebook_size=6, quant_dim=4, normalise=True, decoder="unet", unet_width=8,
)  # fmt: skip


def sectors(moved: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A perfect alphabet: the direction of a motion, int64 [N, 1]; the last class is none."""
    angle = np.arctan2(moved[:, 1], moved[:, 0]) / (2 * np.pi) % 1
    still = np.linalg.norm(moved, axis=1) < 0.01
    return np.where(still, SECTORS, np.minimum((angle * SECTORS).astype(int), SECTORS - 1))[:, None]


def reading(domain: str, episodes: int = 40) -> Reading:
    """Every pair of some Tabletop videos with perfect codes."""
    packed = pack([f"tabletop:{domain},episodes={episodes},seed=7,size=24"], 24, quiet=True)
    pairs = window_pairs(packed, 0.2)
    rows = np.arange(len(pairs))
    bare = Reading(domain, packed, pairs, rows, np.zeros((len(rows), 1), np.int64), SECTORS + 1)
    return recoded(bare, sectors(bare.moved))


def recoded(r: Reading, codes: np.ndarray[Any, Any], classes: int = SECTORS + 1) -> Reading:
    return Reading(r.name, r.packed, r.pairs, r.rows, codes, classes)


@pytest.fixture(scope="module")
def sim() -> Reading:
    return reading("sim")


@pytest.fixture(scope="module")
def real() -> Reading:
    return reading("real")


# Transplant


def test_perfect_codes_move_every_robot_the_same_way(sim: Reading, real: Reading) -> None:
    read_real = Linear.fit(real.features, per_frame(real))
    found = cell(sim, read_real, real, "real")
    assert found["share"] > 0.97
    assert found["interval"][0] <= found["share"] <= found["interval"][1]
    assert found["true_motion"] > 0.97
    assert 0.05 < found["shuffled"] < 0.4  # a sixth by chance; expert motion has favourite directions
    assert found["of"] + found["too_short"] == found["pairs"] == len(sim)
    read_sim = Linear.fit(sim.features, per_frame(sim))
    assert cell(sim, read_sim, real, "real")["share"] < 0.1, "commands of sim turn the robot of real by 90 degrees"


def test_codes_that_do_not_tell_the_motion_are_no_better_than_shuffled_ones(sim: Reading, real: Reading) -> None:
    blind = [recoded(r, r.episode[:, None] % 12) for r in (sim, real)]
    found = cell(blind[0], Linear.fit(blind[1].features, per_frame(blind[1])), blind[1], "real")
    assert abs(found["share"] - found["shuffled"]) < 0.1
    assert found["share"] < 0.4


def test_angles_and_intervals() -> None:
    a = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    b = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    assert angles(a, b) == pytest.approx([0, 90, 180, 180])
    episode = np.repeat(np.arange(50), 10)
    same = np.repeat(np.random.default_rng(0).random(50) < 0.5, 10)  # all rows of an episode alike: fifty, not 500
    low, high = by_episode(episode, lambda w: float((same * w).sum() / w.sum()))
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 50), rel=0.2)


# Algebra


def test_errors_in_units_of_chance() -> None:
    rng = np.random.default_rng(0)
    episode = np.arange(4000) // 10
    x = rng.normal(size=(4000, 3)) * (1, 5, 20)
    assert over_chance(x, x, episode)["error"] == 0
    assert over_chance(x, rng.permutation(x), episode)["error"] == pytest.approx(1, abs=0.05)
    assert over_chance(x, -x, episode)["error"] == pytest.approx(2, abs=0.05)
    assert over_chance(x, x + rng.normal(size=x.shape) * x.std(0), episode)["error"] == pytest.approx(1 / 3, abs=0.03)
    assert over_chance(x * 0 + 1, x * 0 - 1, episode)["error"] == 1, "constant, and not what it should be"


@pytest.mark.parametrize(("power", "reversal"), [(1, 0.0), (2, 1.0)])
def test_a_difference_of_frame_embeddings_adds_up(
    sim: Reading, monkeypatch: pytest.MonkeyPatch, power: int, reversal: float
) -> None:
    """Differences of the same embedding of either frame do, their squares do not: those are the same both ways."""

    def embedded(self: LAQ, now: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        where = torch.linspace(0, 1, 24)
        x, y = ((image.mean(1) * where).mean((1, 2)) for image in (now, later))
        return 100 * (y - x)[:, None, None] ** power * torch.tensor([1.0, -2.0, 3.0, 0.5])

    monkeypatch.setattr(LAQ, "difference", embedded)
    torch.manual_seed(0)
    found = of_reading(TINY.build().eval(), recoded(sim, np.zeros((len(sim), 1), np.int64), 6))
    assert set(found["additivity"]) == set(found["reversal"]) == {"difference", "code", "motion"}
    assert (found["additivity"]["difference"]["error"] < 1e-6) == (power == 1)
    assert found["reversal"]["difference"]["error"] >= reversal - 1e-6
    assert (found["reversal"]["difference"]["error"] < 1e-6) == (power == 1)


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


# Rollout and plans


class Shifts:
    """A world in which every picture is the one before, moved to the right by the code, and a LAQ that knows."""

    config = SimpleNamespace(image_size=24)

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def encode(self, now: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        misses = torch.stack([(now.roll(k, 3) - later).square().sum((1, 2, 3)) for k in range(4)], 1)
        return misses.argmin(1, keepdim=True)

    def decode(self, now: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return torch.stack([image.roll(int(k), 2) for image, k in zip(now, codes, strict=True)])


def test_rollout_with_true_codes_follows_the_world() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (6, 24, 24, 3), np.uint8)]
    codes = rng.integers(1, 4, (6, 5))
    for t in range(5):
        frames.append(np.stack([np.roll(f, k, 1) for f, k in zip(frames[-1], codes[:, t], strict=True)]))
    stay = SimpleNamespace(predict_codes=lambda images, texts: torch.zeros(len(images), 1, dtype=torch.long))
    errors = over_horizon(Shifts(), stay, np.stack(frames, 1), [""] * 6)  # type: ignore[arg-type]
    assert all(error.shape == (6, 5) for error in errors.values())
    assert errors["true"].max() < 1e-9
    assert errors["one_step"].max() < 1e-9
    assert np.allclose(errors["policy"], errors["copy"]), "a policy that stays copies"
    assert errors["copy"].min() > 0.01
    assert errors["other"].mean() > 0.01


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
    ways, images, texts = follow(seer, seer, sim, starts, motion_probe(sim))
    assert len(images) == len(texts) == 3
    true = ways["true"]
    assert np.array_equal(ways["plan"][:, 0], true[:, 0]), "a plan starts where the effector is"
    first = ways["plan"][:, 1:] - ways["plan"][:, :1]
    assert np.allclose(first, first[:, :1] * np.arange(1, 13)[:, None]), "drawn frames do not change here: one code"


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
    with pytest.raises(LapaError, match="at least two episodes"):
        heard("shuffled", 1)
    with pytest.raises(LapaError, match="no instruction"):
        heard("loud")


# The commands


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    """laq/, latent/ and policy/ of two steps each."""
    folder = tmp_path_factory.mktemp("analysis")
    data = ("--dataset", "tabletop:sim,episodes=8,seed=3,size=24")

    def run(*words: object) -> None:
        cli.main([str(word) for word in words])

    run("quantize", *data, *small, "--steps", 2, "--out", folder / "laq")
    run("label", *data, "--source", folder / "laq", "--out", folder / "labels")
    run("pretrain", *data, *small, "--steps", 2, "--labels", folder / "labels", "--out", folder / "latent")
    run("finetune", *data, *small, "--policy", folder / "latent", "--out", folder / "policy")
    return folder


SMALL = [f"tabletop:{domain},episodes=12,seed=7,size=24" for domain in ("sim", "real")]


@pytest.mark.parametrize("what", ["transplant", "algebra", "information", "rollout", "language"])
def test_each_question_has_a_command_and_a_picture(
    what: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["analyse", what, str(made / ("policy" if what == "language" else "laq")), "--out", str(tmp_path)]
    if what == "language":
        words += ["--episodes", "5"]
    else:
        words += [word for spec in SMALL for word in ("--dataset", spec)]
    if what == "rollout":
        words += ["--policy", str(made / "latent")]
    cli.main(words)
    assert {p.name for p in tmp_path.iterdir()} == {f"{what}.png", f"{what}.json"}
    with Image.open(tmp_path / f"{what}.png") as image:
        assert np.asarray(image.convert("RGB")).std() > 5
    assert json.loads((tmp_path / f"{what}.json").read_text())["results"]
    assert "Picture and figures" in capsys.readouterr().out


def test_inspect_draws_plans_and_the_codes_of_several_looks(made: Path, tmp_path: Path) -> None:
    words = ["inspect", str(made / "laq"), str(made / "latent"), "--out", str(tmp_path / "both")]
    cli.main([*words, *(word for spec in SMALL for word in ("--dataset", spec))])
    assert {"plans.png", "gallery.png"} <= {p.name for p in (tmp_path / "both").iterdir()}
    written = json.loads((tmp_path / "both" / "inspect.json").read_text())
    assert set(written["plans"]["latent"]) == {"plans", "steps", "plan", "each_frame", "codes"}
    cli.main(["inspect", str(made / "laq"), "--dataset", SMALL[0], "--out", str(tmp_path / "one")])
    sizes = []
    for folder in ("both", "one"):
        with Image.open(tmp_path / folder / "gallery.png") as image:
            sizes.append(image.size[0])
    assert sizes[0] > sizes[1], "an arrow for each domain"


def test_questions_that_cannot_be_answered(made: Path, clips: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as error:
            cli.main([*map(str, words), "--out", str(tmp_path)])
        return str(error.value.code)

    assert refused("analyse", "rollout", made / "laq") == "1"
    assert refused("analyse", "algebra", made / "laq", "--policy", made / "latent") == "1"
    assert refused("analyse", "transplant", made / "laq", "--dataset", f"video_folder:{clips}") == "1"
    assert refused("analyse", "information", made / "laq", "--dataset", f"video_folder:{clips}") == "1"
    cli.main(["analyse", "algebra", str(made / "laq"), "--dataset", f"video_folder:{clips}", "--out", str(tmp_path)])
    assert set(json.loads((tmp_path / "algebra.json").read_text())["results"]["clips"]["reversal"]) == {
        "difference", "code",
    }  # fmt: skip
