"""The backbone lwm in all stages, from weights of LWM's form; and at the paper's size, without memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released_lapa import backbone_options

import lapa
from lapa.actions.spaces import CodeSpace
from lapa.artefacts.folder import save_artefact
from lapa.backbones import lwm
from lapa.contracts import Labels, LapaError
from lapa.data.observations import Seen
from lapa.data.pack import pack
from lapa.interop.convert_lapa_back import to_lapa
from lapa.interop.convert_names import is_turned, layer_of, released_name
from lapa.interop.convert_params import read_index
from lapa.plugins import configure
from lapa.policies import configured
from lapa.recipe import PolicySettings, Recipe, preset
from lapa.stage2_pretrain import pretrain
from lapa.stage3_finetune import finetune

REAL = Path(__file__).parents[3] / "shared/fixtures/lapa7b/real_7b.json"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {**backbone_options(tmp_path_factory.mktemp("lwm")), "image_size": 128}


@pytest.fixture(scope="module")
def backbone(options: dict[str, Any]) -> Any:
    return configure("backbones", "lwm", options).build().eval()


def seen(count: int, size: int = 128) -> Seen:
    rng = np.random.default_rng(0)
    texts = ["put the red cup near the pot", "take the spoon", "open the drawer and close the drawer"]
    return Seen.of(rng.integers(0, 256, (count, size, size, 3), np.uint8), texts[:count])


def test_tokens_after_the_prompt_one_by_one_or_all_at_once(backbone: Any) -> None:
    embeddings = torch.randn(3, 5, backbone.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        inputs = backbone.prepare(seen(3))
        together = backbone(inputs).further(embeddings)
        further = backbone(inputs).further
        single = torch.cat([further(embeddings[:, i : i + 1]) for i in range(5)], 1)
    torch.testing.assert_close(together, single, rtol=0, atol=1e-5)


def test_padding_in_front_of_all_prompts_is_not_computed(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, lengths = backbone.prepare(seen(3)), list[int]()
    hook = backbone.llama.layers[0].register_forward_hook(lambda *args: lengths.append(args[2][0].shape[1]))
    with torch.no_grad():
        short = backbone(inputs)
        monkeypatch.setattr(lwm, "padding", lambda present: 0)
        whole = backbone(inputs)
    hook.remove()
    assert lengths[1] - lengths[0] == int((~inputs["present"]).sum(1).min()) > 0
    assert torch.equal(short.mask, whole.mask)
    torch.testing.assert_close(short.hidden[short.mask], whole.hidden[whole.mask], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(short.readout, whole.readout, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_prompt_through_what_follows_it(backbone: Any) -> None:
    backbone.zero_grad()
    backbone(backbone.prepare(seen(2))).further(torch.ones(2, 3, backbone.width))[:, -1].sum().backward()
    layer = backbone.llama.layers[0]
    assert backbone.text.weight.grad.abs().sum() > 0
    assert layer.wk.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.groups()["vision"])
    backbone.zero_grad()


def test_the_prompt_says_what_is_asked(backbone: Any) -> None:
    asked = []
    for kind in ("codes", "actions", "codebook", "codes"):
        backbone.answers(kind)
        asked.append(backbone.prepare(seen(1))["after"].tolist())
    assert asked[0] == asked[3] != asked[1] == asked[2]


def test_a_crop_changes_the_pixels_alone(options: dict[str, Any], backbone: Any) -> None:
    cropped = configure("backbones", "lwm", {**options, "crop": True}).build()
    one, other = backbone.prepare(seen(2)), cropped.prepare(seen(2))
    assert one["pixels"].shape == other["pixels"].shape
    assert not torch.equal(one["pixels"], other["pixels"])
    assert torch.equal(one["words"], other["words"])


@pytest.mark.parametrize("crop", [False, True])
def test_codes_kept_on_disk_are_those_of_the_pictures(options: dict[str, Any], crop: bool) -> None:
    backbone = configure("backbones", "lwm", {**options, "crop": crop}).build().eval()
    data = pack(["tabletop:sim,episodes=1,seed=3"], 128, quiet=True, fit="released")
    some = np.array([3, 0, 2])
    kept = backbone.features(data)
    assert kept is not None
    texts = ["push", "", "push it"]
    known = backbone.prepare(Seen({}, texts, features={"image": kept[some]}))
    assert "pixels" not in known
    shown = backbone.prepare(Seen.of(data.gather(some), texts))
    assert torch.equal(backbone.ids(known), backbone.ids(shown))
    assert configure("backbones", "lwm", {**options, "precompute": False}).build().features(data) is None


def test_long_instructions_lose_their_beginning_and_that_is_said(backbone: Any) -> None:
    long = "put the red cup near the pot " * 60
    assert backbone.overlooked([long, "take the pot"])[0].startswith("1 of 2 ")
    assert backbone.prepare(Seen.of(np.zeros((1, 128, 128, 3), np.uint8), [long]))["present"].all()


def test_weights_and_their_size_must_be_given(options: dict[str, Any]) -> None:
    with pytest.raises(LapaError, match="lapa-official"):
        configure("backbones", "lwm", {}).build()
    with pytest.raises(LapaError, match=r'"width":16.*"depth":2'):
        configure("backbones", "lwm", {"weights": options["weights"]}).build()
    for wrong in ({"image_size": 100}, {"vision_vocabulary": 8000}, {"heads": 3}, {"words": 0}):
        with pytest.raises(LapaError, match="lwm"):
            configure("backbones", "lwm", {**options, **wrong}).build()


def test_it_pretrains_finetunes_acts_and_goes_back(options: dict[str, Any], tiny: Recipe, tmp_path: Path) -> None:
    settings = PolicySettings(backbone="lwm", backbone_options=options, head="autoregressive",
                              head_options={"in_backbone": True}, decoding="centre")  # fmt: skip
    how = replace(tiny.pretrain, steps=2, batch_size=4)
    recipe = replace(tiny, policy=settings, head="own", clusters=0, bins=6, trainable="all", pretrain=how, finetune=how)
    data = pack(["tabletop:sim,episodes=2,seed=3"], 128, quiet=True, fit="released")
    frames = np.arange(8)
    codes = np.random.default_rng(0).integers(0, 5, (8, 3))
    labels = Labels("codes", np.zeros_like(frames), frames, codes)
    manifest = {"method": "lapa", "source": "laq", "source_hash": "0", "classes": 5, "fingerprint": data.fingerprint}
    results = pretrain(data, labels, manifest, recipe, tmp_path / "latent", 0)
    assert np.isfinite(results["loss"])
    latent = lapa.Policy.from_pretrained(tmp_path / "latent")
    assert latent.predict_codes(seen(2).images["image"], seen(2).texts).shape == (2, 3)
    before = configure("backbones", "lwm", options).build().state_dict()
    after = latent.backbone.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved
    assert all(name.startswith(("llama.", "text.", "vision.")) for name in moved), (
        "the VQGAN and what is kept are frozen"
    )
    finetune(data, tmp_path / "latent", recipe, tmp_path / "policy", 0, rehearse=False)
    policy = lapa.Policy.from_pretrained(tmp_path / "policy")
    acted = policy.act({"image": np.zeros((30, 40, 3), np.uint8), "instruction": "take the pot"})
    assert acted.shape == (1, policy.dimensions)
    assert np.isfinite(acted).all()
    to_lapa(tmp_path / "policy", tmp_path / "params")
    assert {"action_head/kernel", "transformer/ate/embedding"} < read_index(tmp_path / "params").keys()


def test_a_head_that_is_read_is_asked_as_before_when_it_is_opened_again(
    options: dict[str, Any], tiny: Recipe, tmp_path: Path
) -> None:
    """Its classes are codes, which the prompt asks for, though they mean actions now."""
    recipe = replace(tiny, policy=PolicySettings(backbone="lwm", backbone_options=options), head="linear")
    data = pack(["tabletop:sim,episodes=2,seed=3"], 128, quiet=True, fit="released")
    frames = np.arange(8)
    codes = Labels("codes", np.zeros_like(frames), frames, np.random.default_rng(0).integers(0, 5, (8, 1)))
    policy: Any = configured(recipe).build()
    policy.examples(codes, data, {"classes": 5}, recipe)
    assert "asked" not in policy.description()
    policy.adapt(data, recipe)
    save_artefact(tmp_path, "policy", {**policy.description(), "method": "lapa"}, policy.state_dict())
    again: Any = lapa.Policy.from_pretrained(tmp_path)
    assert (again.backbone.kind, policy.backbone.kind, again.space.kind) == ("codes", "codes", "codebook")
    shown = {"image": data.gather(frames[:1])[0], "instruction": "push"}
    np.testing.assert_array_equal(again.act(shown), policy.eval().act(shown))
    again.adapt(data, replace(recipe, head="new"))
    assert again.backbone.kind == "actions"


def test_the_preset_paper_is_lapa_7b() -> None:
    """Every weight of the published size, in no memory."""
    config = configured(preset("paper"), "lapa")
    with torch.device("meta"):
        policy = config.build(pretrained=False)
        policy.grow(CodeSpace(4, 8))
    shapes = {name: tuple(tensor.shape) for name, tensor in policy.named_parameters()}
    language = [name for name in shapes if "vqgan" not in name]
    assert sum(np.prod(shapes[name]) for name in language) == 6_807_687_168
    assert sum(np.prod(shapes[name]) for name in shapes if "vqgan" in name) == 146_244_675
    inputs = {"pixels": torch.zeros(1, 256, 256, 3, dtype=torch.uint8, device="meta"),
              "words": torch.zeros(1, 128, dtype=torch.int64, device="meta"),
              "present": torch.ones(1, 128, dtype=torch.bool, device="meta"),
              "after": torch.zeros(1, 6, dtype=torch.int64, device="meta")}  # fmt: skip
    with torch.no_grad():
        context = policy.backbone(inputs)
        assert context.hidden.shape == (1, 391, 4096)
        assert policy.head.logits(context).shape == (1, 4, 8)
    if REAL.exists():
        published = json.loads(REAL.read_text())["LAPA-7B latent (delta_llama)"]["shapes"]
        found: dict[str, tuple[int, ...]] = {}
        for name in language:
            shape = shapes[name][::-1] if is_turned(name) else shapes[name]
            found[released_name(name, "codes")] = shape if layer_of(name) is None else (32, *shape)
        assert found == {name: tuple(shape) for name, shape in published.items()}
