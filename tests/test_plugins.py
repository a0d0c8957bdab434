"""The folder is the registry: every file in it is visited and held to its contract."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import made
import made_robots
import numpy as np
import pytest
import torch
from released_lapa import backbone_options
from vision_language_made import SIZE
from vision_language_made import made as made_vlm

import lapa
from lapa import plugins
from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.artefacts.folder import save_artefact
from lapa.commands.look import show_list
from lapa.commands.options import note_on_policy
from lapa.contracts import BadVideo, Episode, FramePairs, LapaError, Observation
from lapa.data import observations
from lapa.data.labelled import read_labels
from lapa.data.observations import Seen
from lapa.data.pack import pack
from lapa.data.spec import open_dataset
from lapa.models.idm import InverseDynamics
from lapa.policies import Policy, configured
from lapa.recipe import PRESETS, PolicySettings, Recipe, preset
from lapa.stage1_latent_actions import fit_idm
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain
from lapa.stage3_finetune import finetune

ROOT = Path(lapa.__file__).parent
ALL = [(kind, file) for kind in plugins.KINDS for file in sorted((ROOT / kind).glob("*.py")) if file.stem[0] != "_"]


def every(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", plugins.names(kind))


@pytest.mark.parametrize(("kind", "file"), ALL, ids=lambda x: x if isinstance(x, str) else x.stem)
def test_every_file_is_a_plugin(kind: str, file: Path) -> None:
    assert file.stem in plugins.names(kind), f"{file} has no Config and is not listed"
    config = plugins.find(kind, file.stem)
    assert is_dataclass(config)
    assert config.__dataclass_params__.frozen
    assert callable(config.build) or kind == "policies"
    assert not config.__doc__.startswith("Config("), "say what its fields are"
    line = plugins.describe(kind, file.stem)
    assert 10 < len(line) <= 120, "the first line of the docstring is what `lapa list` shows"


def test_every_kind_has_a_plugin() -> None:
    for kind in plugins.KINDS:
        assert plugins.names(kind), kind


def test_a_misspelt_name_is_corrected() -> None:
    with pytest.raises(LapaError, match=r'lapa/datasets "lerobt".*"lerobot"\?.* Known: '):
        plugins.find("datasets", "lerobt")
    with pytest.raises(LapaError, match='"datasets"'):
        plugins.names("dataset")
    with pytest.raises(LapaError, match="Known: fsq, nsvq"):
        plugins.find("quantizers", "zzzzzz")


def test_a_new_file_is_a_new_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only files that define Config count: helpers beside plug-ins stay out."""
    (tmp_path / "quantizers").mkdir()
    (tmp_path / "quantizers/mine.py").write_text('"""Mine."""\n\nclass Config:\n    pass\n')
    (tmp_path / "quantizers/helper.py").write_text("def Config(): ...\n")
    packaged = plugins.names("quantizers")
    assert plugins.source_hash("quantizers", packaged[0]) is None
    monkeypatch.setenv(plugins.OWN, f"{tmp_path}")
    assert set(plugins.names("quantizers")) - set(packaged) == {"mine"}
    assert plugins.describe("quantizers", "mine") == "Mine."
    assert plugins.find("quantizers", "mine").__module__ == "lapa_own_quantizers_mine"
    assert plugins.source_hash("quantizers", "mine")
    with pytest.raises(LapaError, match="lapa/datasets "):
        plugins.find("datasets", "mine")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("fsq", "class Config: ...", ".*fsq"), ("broken", "def (", "is no Python")],
)
def test_files_of_ones_own_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    (tmp_path / "quantizers").mkdir()
    (tmp_path / f"quantizers/{name}.py").write_text(text)
    monkeypatch.setenv(plugins.OWN, str(tmp_path))
    with pytest.raises(LapaError, match=f"{name}.py: {message}"):
        plugins.names("quantizers")
    monkeypatch.setenv(plugins.OWN, str(tmp_path / "gone"))
    with pytest.raises(LapaError, match=r"LAPA_PLUGINS .*gone"):
        plugins.names("quantizers")


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lapa import plugins\n"
        "[plugins.describe(k, n) for k in plugins.KINDS for n in plugins.names(k)]\n"
        "print([m for m in ('torch', 'av', 'pyarrow', 'matplotlib', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- datasets -------------------------------------------------------------------------------------


@every("datasets")
def test_datasets_yield_valid_episodes(name: str, robot: Path, clips: Path, tmp_path: Path) -> None:
    paths: dict[str, Callable[[], str]] = {
        "lerobot": lambda: str(robot),
        "video_folder": lambda: str(clips),
        "tabletop": lambda: "real,episodes=3,size=32",
        "rlds": lambda: str(made.rlds(tmp_path)),
        "something_v2": lambda: str(made.something(tmp_path)),
        "frame_folder": lambda: f"{made.frame_folders(tmp_path)},fps=12",
        "lapa_jsonl": lambda: f"{made.jsonl(tmp_path)},fps=5",
        "hdf5": lambda: str(made_robots.robomimic(tmp_path / "demo.hdf5")),
        "mcap": lambda: str(made_robots.ros2(tmp_path / "a.mcap", made_robots.arm())),
        "webdataset": lambda: str(
            made_robots.tar(tmp_path / "a.tar", {f"{f.stem}.mp4": f.read_bytes() for f in clips.glob("*.mp4")})
        ),
        "zarr": lambda: str(made_robots.diffusion_policy(tmp_path / "pusht.zarr")),
    }
    assert name in paths, f"give this test small data for {name}"
    spec = f"{name}:{paths[name]()}"
    dataset = open_dataset(spec)
    episodes = list(dataset.episodes())
    assert episodes
    assert len({e.id for e in episodes}) == len(episodes)
    for episode in episodes:
        assert isinstance(episode, Episode)
        assert not isinstance(episode, BadVideo)
        length = len(episode.frames)
        assert episode.frames.dtype == np.uint8
        assert episode.frames.ndim == 4
        assert episode.frames.shape[3] == 3
        assert episode.fps > 0
        assert length >= 2
        assert isinstance(episode.instruction, str)
        for vector, names in ((episode.actions, episode.action_names), (episode.state, episode.state_names)):
            if vector is not None:
                assert vector.dtype == np.float32
                assert vector.shape[0] == length
                assert not names or vector.shape[1] == len(names)
    small = next(iter(dataset.episodes(16)))
    assert isinstance(small, Episode)
    assert name == "tabletop" or small.frames.shape[1:] == (16, 16, 3), "made small as it is read"
    again = open_dataset(spec)
    assert again.signature() == dataset.signature(), "the same data, the same signature"
    assert [e.id for e in again.episodes()] == [e.id for e in episodes], "in a fixed order"


# --- quantizers -----------------------------------------------------------------------------------


@every("quantizers")
def test_quantizers_meet_their_protocol(name: str) -> None:
    torch.manual_seed(0)
    quantizer = plugins.find("quantizers", name)(dim=6, size=8, positions=3).build()
    z = torch.randn(16, 3, 6, requires_grad=True)
    found = quantizer.train()(z)
    assert found.embedding.shape == z.shape
    assert found.codes.shape == (16, quantizer.positions)
    assert found.codes.dtype == torch.int64
    assert 0 <= found.codes.min() <= found.codes.max() < quantizer.size == 8
    assert found.loss.ndim == 0
    assert all(isinstance(v, float) for v in found.logs.values())
    (found.embedding.sum() + found.loss).backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0, "the encoder must learn through the quantizer"
    assert isinstance(quantizer.after_step(10), dict)
    with torch.no_grad():
        one, two = quantizer.eval()(z), quantizer(z)
    assert torch.equal(one.codes, two.codes)
    assert torch.equal(one.embedding, quantizer.lookup(one.codes)), "what is decoded is what lookup gives"


# --- backbones and policies -----------------------------------------------------------------------


@every("backbones")
def test_backbones_read_images_and_text(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = plugins.find("backbones", name)
    small = {"grounded": False} if "grounded" in {f.name for f in fields(config)} else {}
    small = {**backbone_options(tmp_path), "image_size": 128} if name == "lwm" else small
    small = {"model": str(made_vlm("smolvlm", tmp_path)), "image_size": SIZE} if name == "hf" else small
    backbone = config(**small).build().eval()
    images = torch.rand(3, 3, backbone.image_spec.size, backbone.image_spec.size)
    assert config(**small).image_size == backbone.image_spec.size
    texts = ["push the red disc to the blue star", "push", ""]
    with torch.no_grad():

        def read(images: torch.Tensor, texts: list[str]) -> torch.Tensor:
            context = backbone(backbone.prepare(Seen.of(images, texts)))
            assert context.hidden.shape == (*context.mask.shape, backbone.width)
            return context.readout

        readout = read(images, texts)
        assert readout.shape == (3, backbone.width)
        assert torch.isfinite(readout).all()
        alone = torch.cat([read(images[i : i + 1], texts[i : i + 1]) for i in range(3)])
        assert torch.allclose(readout, alone, atol=1e-4), "padding of other rows must not be read"
        assert not torch.allclose(readout[0], read(images[:1], ["push the red disc to the green star"])[0])
        assert not torch.allclose(readout[0], read(images[1:2], texts[:1])[0])
    assert backbone.overlooked([*texts, "Push it, gently!"]) == [], "all of it is read"
    groups = backbone.groups()
    assert set(groups) == {"vision", "language", "rest"}
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(grouped) == sorted(map(id, backbone.parameters())), "each weight is in one group"
    assert groups["vision"]
    assert groups["language"]


def test_the_tiny_backbone_says_what_it_does_not_read() -> None:
    backbone = plugins.find("backbones", "tiny")(grounded=False, words=4).build()
    blank, cut = backbone.overlooked(["把杯子放在盘子上", "push", "", "push it to the left", "\u092a"])
    assert blank.startswith("2 of 5 ")
    assert re.search(r"^1 of 5 .*\b4 words", cut)


@every("policies")
def test_policies_learn_and_act(name: str, tiny: Recipe) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images, texts = rng.integers(0, 256, (4, 24, 24, 3), np.uint8), ["push the red disc"] * 4
    vla, planner = configured(tiny).build(), configured(tiny, "unipi").build()
    vla.grow(ActionSpace.fit(rng.uniform(-3, 5, (50, 2)), 8, chunk=2))
    planner.give(InverseDynamics(tiny.idm, 2))
    targets = {"vla": np.zeros((4, 4), np.int64), "video_planner": rng.integers(0, 256, (4, 2, 24, 24, 3), np.uint8)}
    assert name in targets, f"give this test something to learn for {name}"
    policy = {"vla": vla, "video_planner": planner}[name].eval()
    loss, logs = policy.loss(policy.batch(Seen.of(images, texts), targets[name]))
    assert loss.ndim == 0
    assert all(isinstance(v, float) for v in logs.values())
    trained = {id(p) for p in policy.trainable("all")}
    assert trained
    assert not trained & {id(p) for p in policy.backbone.groups()["vision"]}, "the vision encoder is always frozen"
    assert policy.dimensions == 2
    observations = [Observation(image=image, instruction=text) for image, text in zip(images, texts, strict=True)]
    acted = policy.act_batch(observations)
    assert acted.shape == (4, 2, 2)
    assert acted.dtype == np.float32
    np.testing.assert_allclose(policy.act(observations[1]), acted[1], atol=2e-2)
    with pytest.raises(LapaError, match="picture"):
        policy.act({"picture": images[0], "instruction": "push"})
    with pytest.raises(LapaError, match=r"instruction .*None"):
        policy.act({"image": images[0], "instruction": None})
    large = Observation(image=images[1].repeat(2, 0).repeat(2, 1), instruction=texts[1])
    both = policy.act_batch([observations[0], large])
    np.testing.assert_allclose(both, acted[:2], atol=2e-2, err_msg="any size, also in one batch")
    assert policy.description()["policy"] == name


MINIMAL = '''"""The least that a backbone can be, of one's own."""

from dataclasses import dataclass

import torch
from torch import nn

from lapa.backbones import Backbone, pictures
from lapa.contracts import Context, ImageSpec


@dataclass(frozen=True)
class Config:
    """Pixels a side."""

    image_size: int = 24

    def build(self):
        return Least(self.image_size)


class Least(Backbone):
    def __init__(self, size):
        super().__init__()
        self.width, self.image_spec = 8, ImageSpec(size)
        self.vision, self.mix = nn.Linear(3, 8), nn.Linear(8, 8)

    def prepare(self, seen):
        (images,) = seen.images.values()
        return {"images": pictures(images, self.image_spec)}

    def encode(self, inputs):
        readout = self.mix(self.vision(inputs["images"].float().mean((1, 2)) / 255))
        return Context(readout[:, None], torch.ones(len(readout), 1, dtype=torch.bool), readout)

    def groups(self):
        return {"vision": list(self.vision.parameters()), "language": list(self.mix.parameters()), "rest": []}
'''


@pytest.mark.parametrize("source", ["ground_truth", "future_frames"])
def test_a_backbone_of_ones_own(
    source: str, robot: Path, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, opened, finetuned and opened again; it has image_size and nothing else to choose."""
    (tmp_path / "own/backbones").mkdir(parents=True)
    (tmp_path / "own/backbones/least.py").write_text(MINIMAL)
    monkeypatch.setenv(plugins.OWN, str(tmp_path / "own"))
    recipe = replace(tiny, policy=PolicySettings(backbone="least", head_options={"width": 8}), head="own")
    two = {name: replace(getattr(recipe, name), steps=2) for name in ("pretrain", "finetune", "pretrain_planner")}
    recipe = replace(recipe, **two, finetune_planner=two["finetune"], fit_idm=two["finetune"])
    packed, idm = pack([f"lerobot:{robot}"], recipe.policy_image_size, quiet=True), None
    if source == "future_frames":
        idm = tmp_path / "idm"
        fit_idm(packed, recipe, idm, 0)
    manifest = label(packed, source, tmp_path / "labels")
    pretrain(packed, read_labels(tmp_path / "labels")[0], manifest, recipe, tmp_path / "latent", 0)
    finetune(packed, tmp_path / "latent", recipe, tmp_path / "policy", 0, idm)
    policy = Policy.from_pretrained(tmp_path / "policy")
    assert policy.act({"image": packed.gather(np.arange(1))[0], "instruction": "push"}).shape[1:] == (2,)


def test_the_vla_adapts(tiny: Recipe) -> None:
    torch.manual_seed(0)
    policy = configured(tiny).build()
    policy.grow(CodeSpace(codes=2, classes=5))
    images = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), np.uint8)
    texts = ["push the red disc"] * 4
    loss, logs = policy.loss(policy.batch(Seen.of(images, texts), np.zeros((4, 2), np.int64)))
    assert loss.ndim == 0
    assert all(isinstance(v, float) for v in logs.values())
    assert policy.predict_codes(images, texts).shape == (4, 2)
    observations = [Observation(image=image, instruction=text) for image, text in zip(images, texts, strict=True)]
    with pytest.raises(LapaError, match="finetune"):
        policy.act_batch(observations)
    actions = np.random.default_rng(0).uniform(-3, 5, (50, 2))
    policy.grow(ActionSpace.fit(actions, 8, chunk=3))
    acted = policy.act_batch(observations)
    assert acted.shape == (4, 3, 2)
    assert acted.dtype == np.float32
    assert (acted >= -3).all()
    assert (acted <= 5).all()
    np.testing.assert_allclose(policy.act(observations[1]), acted[1], rtol=1e-4)
    with pytest.raises(LapaError, match="not codes"):
        policy.predict_codes(images, texts)


@pytest.mark.parametrize("which", ["head", "all"])
def test_what_is_frozen_gets_no_gradient(which: Any, tiny: Recipe) -> None:
    policy = configured(tiny).build()
    policy.grow(CodeSpace(1, 4))
    trained = {id(p) for p in policy.trainable(which)}
    images = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), np.uint8)
    policy.loss(policy.batch(Seen.of(images, ["push the disc"] * 4), np.arange(4)[:, None]))[0].backward()
    got = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert not any(name.startswith("backbone.vision.") for name in got), "the vision encoder is always frozen"
    assert any(name.startswith("backbone.") for name in got) == (which == "all")
    assert {"head.0.weight", "head.2.weight"} <= got
    assert all(id(p) in trained for p in policy.head.parameters())


# --- labels ---------------------------------------------------------------------------------------


@every("labels")
def test_label_sources_label(name: str, tiny: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = {"recipe": tiny.to_json()}
    laq, idm = tiny.laq.build(), InverseDynamics(tiny.idm, 2)
    save_artefact(tmp_path / "laq", "laq", {"model": recipe["recipe"]["laq"], **recipe}, laq.state_dict())
    save_artefact(tmp_path / "idm", "idm", {**idm.description(), **recipe}, idm.state_dict())
    path = {"latent": tmp_path / "laq", "inverse_dynamics": tmp_path / "idm"}
    source = plugins.find("labels", name)(path=str(path.get(name, name))).build()
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 24, 24, 3), np.uint8)
    rows = np.arange(5)
    actions = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    labels = source.label(FramePairs(frames[0], frames[1], rows, rows, rows + 1, actions))
    assert source.hash
    assert source.kind == {"latent": "codes", "future_frames": "frames"}.get(name, "actions")
    if source.kind == "codes":
        assert labels.dtype == np.int64
        assert labels.shape == (5, 1)
        assert labels.max() < source.classes == 8
    elif source.kind == "frames":
        np.testing.assert_array_equal(labels, 2 * rows[:, None] + 1)
    else:
        assert labels.dtype == np.float32
        assert labels.shape == (5, 2)
    if name == "ground_truth":
        np.testing.assert_array_equal(labels, actions)
        with pytest.raises(LapaError, match="need actions"):
            source.label(FramePairs(frames[0], frames[1], rows, rows, rows + 1))


def test_the_preset_paper_says_what_its_policy_is(capsys: pytest.CaptureFixture[str]) -> None:
    for name in PRESETS:
        observations._SAID.clear()
        note_on_policy(name, preset(name))
        said = capsys.readouterr().err
        assert ("7B" in said and "lwm" in said and "256 pixels" in said) == (name == "paper")


def test_an_option_that_a_plugin_lacks_is_corrected(tiny: Recipe) -> None:
    with pytest.raises(LapaError, match=r'lapa/backbones/tiny "widht".* "width"'):
        configured(replace(tiny, policy=replace(tiny.policy, backbone_options={"widht": 3}))).build()
    with pytest.raises(LapaError, match=r'lapa/quantizers/nsvq "treshold".* "threshold"'):
        replace(tiny.laq, quantizer_options={"treshold": 0.5}).build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": "high"}, "threshold .*lapa/quantizers/nsvq .*float, not 'high'"),
        ({"threshold": True}, "float, not True"),
        ({"schedule": 3}, r"schedule .*tuple.*, not 3"),
        ({"schedule": [[1, 2]]}, r"not \[\[1, 2\]\]"),
    ],
)
def test_an_option_of_another_type(tiny: Recipe, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LapaError, match=message):
        replace(tiny.laq, quantizer_options=options).build()
    replace(tiny.laq, quantizer_options={"threshold": 1, "schedule": [[1, 4, 1]]}).build()


# --- what is not installed ------------------------------------------------------------------------


def test_what_a_plugin_needs_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "benchmarks").mkdir()
    text = '"""A far world."""\n\nNEEDS = {"json": "no", "far_away": "pip install far", "farer": "pip install far"}\n'
    (tmp_path / "benchmarks/far.py").write_text(text + "import far_away\n\nclass Config:\n    pass\n")
    monkeypatch.setenv(plugins.OWN, str(tmp_path))
    assert plugins.missing("benchmarks", "far") == "pip install far", "once, and read without being imported"
    assert plugins.missing("benchmarks", "tabletop") == ""
    with pytest.raises(LapaError, match=r"far .*pip install far$"):
        plugins.require("benchmarks", "far")
    plugins.require("benchmarks", "tabletop")
    (tmp_path / "benchmarks/folder.py").write_text('NEEDS = {"$FAR_AWAY": "name it"}\nclass Config:\n    pass\n')
    plugins._files.cache_clear()
    assert plugins.missing("benchmarks", "folder") == "name it", "what a variable names"
    assert plugins.missing("benchmarks", "folder", given=("$FAR_AWAY",)) == ""
    monkeypatch.setenv("FAR_AWAY", "here")
    assert plugins.missing("benchmarks", "folder") == ""
    show_list()
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("pip install far") for line in lines if line.startswith("  far ")] == [True]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_option_is_nan_or_infinite(value: str) -> None:
    with pytest.raises(LapaError, match=f"threshold .* not {value}"):
        plugins.configure("quantizers", "nsvq", {"threshold": float(value)})
    with pytest.raises(LapaError, match=f'hz is a finite number, not "{value}"'):
        plugins.parse("benchmarks", f"gym:X-v0,hz={value}")
