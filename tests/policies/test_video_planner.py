"""UniPi: futures are imagined from image and instruction, and actions read off them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lapa
from lapa import cli
from lapa.analysis.inspect import read_run
from lapa.artefacts.folder import load_artefact, read_json
from lapa.contracts import LapaError, Observation
from lapa.data.futures import futures
from lapa.data.labelled import read_labels
from lapa.data.observations import Seen
from lapa.data.pack import Packed, pack
from lapa.experiments.report import write_report
from lapa.models.idm import InverseDynamics
from lapa.models.video_diffusion import VideoDiffusion, VideoDiffusionConfig
from lapa.policies import configured
from lapa.policies.video_planner import VideoPlanner
from lapa.recipe import Recipe
from lapa.stage1_latent_actions import fit_idm
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain
from lapa.stage3_finetune import as_it_is, finetune
from lapa.training.loop import Optimisation, Sampler, fit


@pytest.fixture(scope="module")
def packed(robot: Path) -> Packed:
    return pack([f"lerobot:{robot}"], 24, quiet=True)


@pytest.fixture(scope="module")
def made(packed: Packed, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """idm, labels, latent, policy: UniPi's chain after four steps a stage."""
    folder = tmp_path_factory.mktemp("unipi")
    fit_idm(packed, tiny, folder / "idm", 0)
    manifest = label(packed, "future_frames", folder / "labels")
    pretrain(packed, read_labels(folder / "labels")[0], manifest, tiny, folder / "latent", 0)
    finetune(packed, folder / "latent", tiny, folder / "policy", 0, folder / "idm")
    return folder


def test_labels_name_the_next_frame(packed: Packed, made: Path) -> None:
    labels, manifest = read_labels(made / "labels")
    assert manifest["method"] == "unipi"
    assert labels.kind == "frames"
    np.testing.assert_array_equal(labels.values[:, 0], labels.frame + 1)
    assert len(labels.frame) == len(packed) - packed.episodes, "every frame but the last of each episode"


def test_futures_end_with_their_episode(packed: Packed) -> None:
    first, second = packed.starts[1], packed.starts[2]
    frames = np.array([first - 3, first - 2, first, first + 1])
    found = futures(packed, frames, frames + 1, 3)
    np.testing.assert_array_equal(found.index[0], [first - 2, first - 1, first - 1])
    assert (found.index[2:] < second).all()
    images = found[np.array([1, 0])]
    assert images.shape == (2, 3, 24, 24, 3)
    np.testing.assert_array_equal(images[0, 0], packed.gather(np.array([first - 1]))[0])


# --- it learns ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Film:
    now: np.ndarray
    texts: list[str]
    future: np.ndarray


class Disc:
    """A white disc that goes left or right by two pixels a frame, as the sentence says, from anywhere."""

    texts = ("push the disc left", "push the disc right")

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        return np.stack([rng.integers(8, 16, 32), rng.integers(6, 18, 32), rng.integers(0, 2, 32)], 1)

    def load(self, rows: np.ndarray) -> Film:
        frames = [self._frame(x + k * (4 * side - 2), y) for k in range(3) for x, y, side in rows]
        film = np.stack(frames).reshape(3, len(rows), 24, 24, 3)
        return Film(film[0], [self.texts[side] for side in rows[:, 2]], film[1:].swapaxes(0, 1))

    @staticmethod
    def _frame(x: int, y: int) -> np.ndarray:
        rows, columns = np.mgrid[:24, :24]
        inside = (rows - y) ** 2 + (columns - x) ** 2 <= 9
        return np.repeat(np.where(inside, 220, 40).astype(np.uint8)[..., None], 3, 2)


def batch_of(planner: VideoPlanner, film: Film) -> Any:
    return planner.batch(Seen.of(film.now, film.texts), film.future)


@pytest.fixture(scope="module")
def dreamer(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> VideoPlanner:
    torch.manual_seed(0)
    recipe = replace(tiny, planner=VideoDiffusionConfig(width=16, blocks=1))
    planner = configured(recipe, "unipi").build()
    assert isinstance(planner, VideoPlanner)
    how = Optimisation(steps=250, batch_size=32, learning_rate=4e-3, precision="float32")
    disc, out = Disc(), tmp_path_factory.mktemp("disc")
    logs = fit(
        planner, Sampler(disc.draw, lambda rows: batch_of(planner, disc.load(rows))), how, out, seed=0, title="disc"
    )
    assert logs["error_over_copy"] < 0.5
    return planner


def error(film: torch.Tensor, batch: Film) -> float:
    """Squared error over that of copying the present frame."""
    true, now = batch.future / 255, batch.now[:, None] / 255
    wrong = film.permute(0, 1, 3, 4, 2).numpy() - true
    return float(np.square(wrong).sum() / np.square(now - true).sum())


@pytest.mark.slow
def test_it_imagines_what_the_sentence_says(dreamer: VideoPlanner) -> None:
    batch = Disc().load(Disc().draw(np.random.default_rng(5)))
    other = [Disc.texts[text == Disc.texts[0]] for text in batch.texts]
    right, wrong = dreamer.imagine(batch.now, batch.texts), dreamer.imagine(batch.now, other)
    assert right.shape == (32, 2, 3, 24, 24)
    assert 0 <= right.min() <= right.max() <= 1
    assert error(right, batch) < 0.5
    assert error(wrong, batch) > 1.2, "the opposite motion is worse than none"


@pytest.mark.slow
def test_the_same_sight_is_the_same_dream(dreamer: VideoPlanner) -> None:
    """Whatever else is in the batch; and noise matters: the sampler does not ignore it."""
    batch = Disc().load(Disc().draw(np.random.default_rng(6)))
    together = dreamer.imagine(batch.now, batch.texts)
    alone = dreamer.imagine(batch.now[3:4], batch.texts[3:4])
    assert torch.allclose(together[3:4], alone, atol=0.02)
    now = torch.rand(2, 3, 24, 24)
    condition = dreamer.backbone(dreamer.backbone.prepare(Seen.of(now, ["push", "push"]))).readout
    one, two = (dreamer.video.sample(now, condition, torch.full((2, 2, 3, 24, 24), fill)) for fill in (-1.0, 1.0))
    assert not torch.allclose(one, two)


def test_an_unlearnt_diffusion_copies() -> None:
    """The last layer starts at zero: the sampler ends at the present frame, from any noise."""
    video = VideoDiffusion(VideoDiffusionConfig(frames=3, width=8, blocks=1), 5)
    now = torch.rand(2, 3, 24, 24)
    film = video.sample(now, torch.randn(2, 5), torch.randn(2, 3, 3, 24, 24))
    assert torch.allclose(film, now[:, None].expand_as(film), atol=1e-6)


# --- it acts --------------------------------------------------------------------------------------


def test_a_silent_unet_goes_on_learning() -> None:
    """Pictures of another robot can push every unit before the last layer below zero; the gradient must survive it."""
    torch.manual_seed(0)
    model = VideoDiffusion(VideoDiffusionConfig(width=8, blocks=1), condition=4)
    torch.nn.init.normal_(model.unet.out.weight)
    torch.nn.init.constant_(model.unet.merge.second.bias, -1e3)
    now, future = torch.rand(2, 3, 16, 16), torch.rand(2, 2, 3, 16, 16)
    model.loss(now, future, torch.rand(2, 4))[0].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.unet.parameters())


def test_the_whole_chain_acts(made: Path, packed: Packed, tiny: Recipe) -> None:
    policy = lapa.Policy.from_pretrained(made / "policy")
    images = packed.gather(np.arange(70))
    seen = [Observation(image=image, instruction="push the red disc up") for image in images]
    acted = policy.act_batch(seen)
    assert acted.shape == (70, 2, 2), "two actions a plan: asking again is replanning"
    assert acted.dtype == np.float32
    np.testing.assert_allclose(policy.act(seen[66]), acted[66], atol=2e-2)
    reader = InverseDynamics.from_pretrained(made / "idm")
    film = policy.imagine(images[:5], ["push the red disc up"] * 5)
    now = torch.from_numpy(images[:5]).permute(0, 3, 1, 2) / 255
    np.testing.assert_allclose(acted[:5, 0], reader.predict(now, film[:, 0]).numpy(), atol=1e-2)
    np.testing.assert_allclose(acted[:5, 1], reader.predict(film[:, 0], film[:, 1]).numpy(), atol=1e-2)
    config = load_artefact(made / "policy", "policy").config
    assert config["method"] == "unipi"
    assert set(config["provenance"]["parents"]) == {str(made / "latent"), str(made / "idm")}
    assert {"watched/error_over_copy", "watched/action_agreement"} <= config["results"].keys()
    assert (made / "latent/pictures/futures.png").exists()


def test_one_action_a_plan(made: Path, packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    short = replace(tiny, planner=VideoDiffusionConfig(frames=3, executed=1, width=8, blocks=1))
    labels, manifest = read_labels(made / "labels")
    pretrain(packed, labels, manifest, short, tmp_path / "latent", 0)
    finetune(packed, tmp_path / "latent", short, tmp_path / "policy", 0, made / "idm")
    policy = lapa.Policy.from_pretrained(tmp_path / "policy")
    assert policy.act({"image": packed.gather(np.arange(1))[0], "instruction": "push"}).shape == (1, 2)
    with pytest.raises(LapaError, match="executes 1 to 2 actions of 2 frames, not 3"):
        VideoDiffusionConfig(frames=2, executed=3)


def test_it_imagines_smaller_frames_than_it_sees(packed: Packed, tiny: Recipe) -> None:
    """The backbone sees the picture as it is, and the video diffusion works with fewer pixels."""
    planner = configured(replace(tiny, planner=replace(tiny.planner, pixels=12)), "unipi").build()
    assert isinstance(planner, VideoPlanner)
    images = packed.gather(np.arange(4))
    shown, future = Seen.of(images[:2], ["push", "push"]), np.stack([images[1:3], images[2:4]], 1)
    batch = planner.batch(shown, future)
    assert batch.now.shape == (2, 12, 12, 3)
    assert batch.future.shape == (2, 2, 12, 12, 3)
    seen = planner.backbone.prepare(shown)
    assert all(torch.equal(batch.inputs[name], tensor) for name, tensor in seen.items())
    planner.loss(batch)[0].backward()
    assert planner.imagine(images[:2], ["push", "push"]).shape == (2, 2, 3, 12, 12)
    with pytest.raises(LapaError, match="pixels is a multiple of 4, or 0, not 10"):
        VideoDiffusionConfig(pixels=10)


def test_as_it_is(made: Path, packed: Packed, tmp_path: Path) -> None:
    """One of the ways that `lapa tune` tries: it is given the inverse dynamics, and nothing is trained."""
    as_it_is(packed, made / "latent", Recipe(), tmp_path / "policy", 0, made / "idm")
    latent, policy = (load_artefact(folder, "policy").tensors for folder in (made / "latent", tmp_path / "policy"))
    assert all(torch.equal(policy[name], tensor) for name, tensor in latent.items())
    acting = lapa.Policy.from_pretrained(tmp_path / "policy")
    assert acting.act({"image": packed.gather(np.arange(1))[0], "instruction": "push"}).shape[-1] == 2


def test_what_is_frozen(made: Path) -> None:
    latent, policy = (load_artefact(made / name, "policy").tensors for name in ("latent", "policy"))
    reader = load_artefact(made / "idm", "idm").tensors
    assert all(torch.equal(policy[f"reader.{name}"], tensor) for name, tensor in reader.items())
    changed = {name for name, tensor in latent.items() if not torch.equal(policy[name], tensor)}
    assert changed
    assert all(name.startswith("video.") for name in changed), "--trainable head: the video diffusion alone"


def test_what_does_not_belong_together(made: Path, packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    latent = lapa.Policy.from_pretrained(made / "latent")
    with pytest.raises(LapaError, match="finetune"):
        latent.act({"image": np.zeros((24, 24, 3), np.uint8), "instruction": "push"})
    with pytest.raises(LapaError, match=r"lapa fit.* --idm"):
        finetune(packed, made / "latent", tiny, tmp_path / "out", 0)
    with pytest.raises(LapaError, match="--idm"):
        finetune(packed, None, tiny, tmp_path / "out", 0, made / "idm")
    with pytest.raises(LapaError, match=r'"policy".* "idm"'):
        finetune(packed, made / "latent", tiny, tmp_path / "out", 0, made / "latent")


def test_the_commands(made: Path, robot: Path, small: list[str], tmp_path: Path, capsys: Any) -> None:
    """What a user types; each command names the next one."""
    data = f"lerobot:{robot}"
    idm, labels, latent, policy = (str(tmp_path / name) for name in ("idm", "labels", "latent", "policy"))
    cli.main(["fit", "--dataset", data, "--out", idm, "--steps", "2", *small])
    assert "lapa label --dataset VIDEOS --source future_frames" in capsys.readouterr().out
    cli.main(["label", "--dataset", data, "--source", "future_frames", "--out", labels])
    cli.main(["pretrain", "--dataset", data, "--labels", labels, "--out", latent, "--steps", "3", *small])
    assert f"--policy {latent} --idm IDM" in capsys.readouterr().out
    cli.main(["finetune", "--dataset", data, "--policy", latent, "--idm", idm, "--out", policy, "--steps", "2",
              *small])  # fmt: skip
    steps = {name: read_json(Path(folder) / "config.json", "policy")["recipe"][f"{name}_planner"]["steps"]
             for name, folder in (("pretrain", latent), ("finetune", policy))}  # fmt: skip
    assert steps == {"pretrain": 3, "finetune": 2}, "--steps is that of the stage that runs"
    cli.main(["evaluate", "--policy", policy, "--episodes", "3", "--out", str(tmp_path / "eval")])
    assert "unipi: " in capsys.readouterr().out
    assert [read_run(Path(folder)).steps for folder in (latent, policy)] == [3, 2], "lapa inspect knows whose steps"


def test_the_report_shows_the_futures(made: Path, tmp_path: Path) -> None:
    """Where there is a row of UniPi, and only there."""
    row = {"success": 0.2, "interval": [0.1, 0.3], "episodes": 50, "families": {}}
    (tmp_path / "pictures").mkdir()
    shutil.copy(made / "latent/pictures/futures.png", tmp_path / "pictures/futures.png")
    for methods, images in (({"unipi": row}, 1), ({"vpt": row}, 0)):
        (tmp_path / "results.json").write_text(json.dumps({"methods": methods}))
        page = write_report(tmp_path).read_text()
        assert page.count("data:image/png;base64,") == images
