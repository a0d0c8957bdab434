"""What codes mean: measured on hand-made codes where the right answer is known; and every question as a command."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hand_coded import recoded
from made import pictures, video
from PIL import Image

from lapa import cli
from lapa.analysis.algebra import of_reading, over_chance
from lapa.analysis.reading import Reading, angles
from lapa.analysis.rollout import over_horizon, rollout
from lapa.contracts import LapaError
from lapa.measures.intervals import by_episode
from lapa.models.laq import LAQ, LAQConfig

TINY = LAQConfig(
    image_size=24, patch_size=8, dim=16, spatial_depth=1, temporal_depth=1, heads=2, dim_head=8,
    codes=1, codebook_size=6, quant_dim=4, normalise=True, decoder="unet", unet_width=8,
)  # fmt: skip


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


@pytest.mark.parametrize("what", ["algebra", "information"])
def test_two_datasets_of_one_name_have_a_row_each(what: str, made: Path, tmp_path: Path) -> None:
    specs = [f"tabletop:sim,episodes=8,size=24,seed={seed}" for seed in (1, 2)]
    cli.main(["analyse", what, str(made / "laq"), *(f"--dataset={spec}" for spec in specs), "--out", str(tmp_path)])
    assert set(specs) <= set(json.loads((tmp_path / f"{what}.json").read_text())["results"])


# Rollout


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


def test_rollout_of_videos_that_stand_still_is_refused(tmp_path: Path) -> None:
    for i in range(2):
        video(tmp_path / f"clip_{i}.mp4", np.repeat(pictures(1), 20, 0))
    stay = SimpleNamespace(predict_codes=lambda images, texts: torch.zeros(len(images), 1, dtype=torch.long))
    source = SimpleNamespace(laq=Shifts(), window=0.1)
    with pytest.raises(LapaError, match="nothing moves within 12 windows"):
        rollout(source, stay, [f"video_folder:{tmp_path}"], tmp_path / "out")  # type: ignore[arg-type]


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
    assert str(tmp_path) in capsys.readouterr().out.replace("\n", "")


@pytest.mark.slow
def test_inspect_draws_plans_and_the_codes_of_several_looks(made: Path, tmp_path: Path) -> None:
    words = ["inspect", str(made / "laq"), str(made / "latent"), "--out", str(tmp_path / "both")]
    cli.main([*words, *(word for spec in SMALL for word in ("--dataset", spec))])
    assert {"plans.png", "gallery.png"} <= {p.name for p in (tmp_path / "both").iterdir()}
    written = json.loads((tmp_path / "both" / "inspect.json").read_text())
    assert set(written["plans"]["latent"]) == {"plans", "steps", "what", "plan", "each_frame", "codes"}
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
