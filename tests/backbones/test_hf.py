"""The backbone hf on tiny models of all its families: what it reads, what it trains, what it saves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from resuming import killed_after, weights
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText
from vision_language_made import FORMS, IMAGE, MARKS, SIZE, made

import lapa
from lapa import cli, plugins
from lapa.actions.spaces import CodeSpace
from lapa.artefacts import pretrained
from lapa.artefacts.folder import describe, save_artefact
from lapa.backbones import build_backbone
from lapa.backbones.hf import Hf
from lapa.contracts import LapaError
from lapa.data.labelled import read_labels
from lapa.data.observations import Seen
from lapa.data.pack import Packed, pack
from lapa.data.pixels import as_pixels
from lapa.models.vision_language import EYES, FAMILIES, text_model
from lapa.policies import configured, saved_config
from lapa.recipe import PolicySettings, Recipe
from lapa.runtime.precision import ShadowWeights
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain
from lapa.stage3_finetune import finetune

Make = Callable[..., Hf]
every_family = pytest.mark.parametrize("name", FORMS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a family's tiny model is; made when it is first asked for."""
    root = tmp_path_factory.mktemp("models")

    def found(name: str) -> Path:
        return root / name if (root / name).exists() else made(name, root / name)

    return found


@pytest.fixture(scope="module")
def make(folder: Callable[[str], Path]) -> Make:
    """A new one."""

    def built(name: str, **options: Any) -> Hf:
        torch.manual_seed(2)
        backbone = build_backbone("hf", {"model": str(folder(name)), "image_size": 32, "rank": 2, **options}, True)
        assert isinstance(backbone, Hf)
        return backbone.eval()

    return built


@pytest.fixture(scope="module")
def reads(make: Make) -> Callable[[str], Hf]:
    """One for all tests that change nothing in it; it reads two cameras and a state."""
    known: dict[str, Hf] = {}

    def found(name: str) -> Hf:
        if name not in known:
            known[name] = make(name)
            known[name].extend(("camera 0", "camera 1"), 3)
        return known[name]

    return found


def seen(count: int = 4, cameras: int = 1, state: int = 0, size: int = 32) -> Seen:
    rng = np.random.default_rng(0)
    images = {f"camera {i}": rng.integers(0, 255, (count, size, size, 3), np.uint8) for i in range(cameras)}
    texts = ["push the red block", "stop", "push the blue circle to the left of the red block", ""]
    texts = (texts * count)[:count]
    return Seen(images, texts, rng.normal(size=(count, state)).astype(np.float32) if state else None)


def readout(backbone: Hf, shown: Seen) -> torch.Tensor:
    with torch.no_grad():
        return backbone(backbone.prepare(shown)).readout


def with_adapters(backbone: Hf) -> Hf:
    """Adapters that change something; new ones do not."""
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return backbone


def test_the_families() -> None:
    assert FORMS.keys() == FAMILIES.keys()


@every_family
def test_hidden_states_are_those_of_the_models_own_forward(name: str, reads: Any, folder: Any) -> None:
    """Each prompt alone, without padding, with what the model makes of its positions by itself."""
    backbone, own = reads(name), AutoModelForImageTextToText.from_pretrained(folder(name)).model.eval()
    shown = seen(3, cameras=2)
    with torch.no_grad():
        context = backbone(backbone.prepare(shown))
    pairs = np.stack(list(shown.images.values()), 1)
    for row, pair in enumerate(pairs):
        options = {**FAMILIES[name].options, **({"size": {"longest_edge": SIZE}} if "do_pad" in FAMILIES[name].options
                   else {})}  # fmt: skip
        given = dict(backbone.speaks.processor(images=[list(pair)], return_tensors="pt", **options))
        ids = backbone.prepare(shown.part(row, row + 1))["ids"]
        of_picture = (ids == IMAGE).long()
        if name in ("gemma3", "paligemma"):
            given["token_type_ids"] = of_picture if name == "gemma3" else torch.zeros_like(ids)
        if "qwen" in name:
            given["mm_token_type_ids"] = of_picture
        given.pop("num_crops", None)
        with torch.no_grad():
            expected = own(input_ids=ids, **given).last_hidden_state[0]
        torch.testing.assert_close(context.hidden[row][context.mask[row]], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(context.readout[row], expected[-1], rtol=1e-4, atol=1e-5)


@every_family
def test_what_is_kept_is_what_is_seen(name: str, reads: Any) -> None:
    """To the bit, alone and beside others, and also where the language model acts in bfloat16."""
    backbone, shown = reads(name), seen(3, cameras=2)
    kept = {camera: backbone._look(as_pixels(images, 32, "cpu")).numpy() for camera, images in shown.images.items()}
    known = Seen({}, shown.texts, features=kept)
    with torch.no_grad():
        fresh = backbone(backbone.prepare(shown))
        again = backbone(backbone.prepare(known))
        alone = backbone(backbone.prepare(known.part(1, 2)))
        plain = backbone.keeps
        backbone.keeps = False
        together = backbone(backbone.prepare(shown))
        backbone.keeps = plain
        with torch.autocast("cpu", torch.bfloat16):
            half, other = (backbone(backbone.prepare(one)).hidden for one in (shown, known))
    assert torch.equal(fresh.hidden, again.hidden)
    assert torch.equal(half, other)
    torch.testing.assert_close(alone.readout[0], again.readout[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.hidden[again.mask], together.hidden[together.mask], rtol=1e-4, atol=1e-5)


def test_what_is_trained_is_not_kept(make: Make, videos: Packed) -> None:
    for name, training, keeps in (("smolvlm", "full", False), ("qwen2_5_vl", "full", True), ("gemma3", "top", True)):
        backbone = make(name, training=training, top=1)
        assert backbone.keeps == keeps
        if not keeps:
            assert backbone.features(videos) is None
    assert make("smolvlm", precompute=False).features(videos) is None


def test_training_on_kept_features_and_on_pictures_is_equal_to_the_bit(
    videos: Packed, tiny: Recipe, trained: Path, folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(settings(tiny, folder("smolvlm")), chunk=3, head="new", trainable="all")
    with monkeypatch.context() as patch:
        patch.setattr(Packed, "gather", lambda *_: pytest.fail("a picture was read"))
        finetune(videos, trained / "latent", recipe, tmp_path / "kept", 7, rehearse=False)
    with monkeypatch.context() as patch:
        patch.setattr(Hf, "features", lambda *_: None)
        finetune(videos, trained / "latent", recipe, tmp_path / "seen", 7, rehearse=False)
    kept, seen = weights(tmp_path / "kept"), weights(tmp_path / "seen")
    assert any(".lora_" in name for name in kept)
    assert kept.keys() == seen.keys()
    assert all(torch.equal(seen[name], tensor) for name, tensor in kept.items())


@every_family
def test_everything_that_is_read_matters_and_neighbours_do_not(name: str, reads: Any) -> None:
    backbone = reads(name)
    whole = seen(8, 2, 3)
    found = readout(backbone, whole)
    assert found.shape == (8, backbone.width)
    alone = torch.cat([readout(backbone, whole.part(i, i + 1)) for i in range(8)])
    torch.testing.assert_close(alone, found, rtol=1e-4, atol=1e-5)
    assert whole.state is not None
    one, two = whole.images.values()
    others = {
        "picture": replace(whole, images={"camera 0": 255 - np.asarray(one), "camera 1": two}),
        "cameras": replace(whole, images={"camera 0": two, "camera 1": one}),
        "words": replace(whole, texts=[*whole.texts[1:], whole.texts[0]]),
        "state": replace(whole, state=whole.state + 1),
    }
    for what, other in others.items():
        assert (readout(backbone, other) - found).abs().amax(1).min() > 1e-4, what
    floats = {camera: torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2) / 255
              for camera, images in whole.images.items()}  # fmt: skip
    assert torch.equal(readout(backbone, replace(whole, images=floats)), found), "pictures that models make"


@every_family
def test_padding_on_the_left_or_on_the_right(name: str, reads: Any) -> None:
    backbone = reads(name)
    inputs = backbone.prepare(seen(3))
    turned = dict(inputs)
    for key in ("ids", "known", "spot", "position"):
        rows = [torch.roll(row, int(known.sum()), -1) for row, known in zip(inputs[key], inputs["known"], strict=True)]
        turned[key] = torch.stack(rows)
    assert not torch.equal(inputs["known"], turned["known"])
    with torch.no_grad():
        left, right = backbone(inputs), backbone(turned)
        torch.testing.assert_close(left.readout, right.readout, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(left.hidden[left.mask], right.hidden[right.mask], rtol=1e-4, atol=1e-5)


@every_family
def test_it_goes_on_after_its_prompt(name: str, reads: Any) -> None:
    """One by one, all at once, and (of models that read forwards alone) as a part of the prompt."""
    backbone = reads(name)
    words = torch.tensor([[20, 17, 19]] * 3)
    with torch.no_grad():
        inputs = backbone.prepare(seen(3))
        embeddings = backbone.model.get_input_embeddings()(words)
        together = backbone(inputs).further(embeddings)  # type: ignore[misc]
        further = backbone(inputs).further
        assert further is not None
        single = torch.cat([further(embeddings[:, i : i + 1]) for i in range(3)], 1)
        torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-5)
        if FAMILIES[name].both_ways == "prompt":
            return
        position = inputs["position"]
        last = position.flatten(1).amax(1).view(-1, *[1] * (position.ndim - 1))
        after = (last + torch.arange(1, 4)).expand(*position.shape[:-1], 3)
        longer = {**inputs, "ids": torch.cat([inputs["ids"], words], 1), "position": torch.cat([position, after], -1)}
        longer |= {"known": nn.functional.pad(inputs["known"], (0, 3), value=True)}
        torch.testing.assert_close(backbone(longer).hidden[:, -3:], together, rtol=1e-4, atol=1e-5)


# --- training


@every_family
def test_adapters_merge_exactly(name: str, make: Make, reads: Any) -> None:
    backbone, shown = with_adapters(make(name)), seen(2)
    apart = readout(backbone, shown)
    merged = [part for part in backbone.modules() if isinstance(part, LoraLayer)]
    assert len(merged) == 3 * 7
    for part in merged:
        part.merge()  # type: ignore[attr-defined]
    torch.testing.assert_close(readout(backbone, shown), apart, rtol=1e-4, atol=1e-5)
    assert (apart - readout(reads(name), shown)).abs().max() > 1e-3


TRAINED = {
    "lora": lambda name: ".lora_" in name,
    "top": lambda name: ".layers.2." in name or name.endswith(("language_model.norm.weight", "text_model.norm.weight")),
    "full": lambda name: not any(eye in name for eye in EYES),
}


MORE = [("smolvlm", "top"), ("smolvlm", "full"), ("qwen3_vl", "full"), ("gemma3", "top")]


@pytest.mark.parametrize(("name", "training"), [*((name, "lora") for name in FORMS), *MORE])
def test_what_is_frozen_gets_no_gradient(name: str, training: str, make: Make) -> None:
    backbone = with_adapters(make(name, training=training, top=1))
    backbone.extend(("camera 0",), 2)
    groups = backbone.groups()
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(id(p) for p in backbone.parameters())
    backbone.train().requires_grad_(True)  # as a policy does
    for parameter in groups["vision"]:
        parameter.requires_grad_(False)
    backbone(backbone.prepare(seen(2, state=2))).readout.square().sum().backward()
    learns = {key for key, p in backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    rest = {"state.weight", "state.bias"}
    wanted = {key for key, _ in backbone.model.named_parameters(prefix="model") if TRAINED[training](key)}
    assert rest <= learns <= wanted | rest
    unused = {key for key in wanted - learns if "lm_head" not in key}
    assert not {key for key in unused if ".layers." in key}, "all layers learn"
    assert {key.partition(".")[0] for key in backbone.state_dict()} <= {"model", "state"}
    assert backbone.state_dict().keys() == wanted | rest, "what is frozen is not saved"
    assert not any(part.training for part in backbone.model.modules())


@pytest.mark.parametrize("name", ["smolvlm", "gemma3", "llava_onevision", "qwen3_vl"])
def test_half_precision_in_training_and_in_service(name: str, reads: Any) -> None:
    """With shadow weights, as one process trains, and without, as policies act and as several processes train."""
    backbone, shown = reads(name), seen(2, state=3)
    exact = readout(backbone, shown)
    for dtype in (torch.bfloat16, torch.float32):
        with ShadowWeights(backbone, dtype).in_place(), torch.autocast("cpu", torch.bfloat16):
            context = backbone(backbone.prepare(shown))
            (found := context.readout).float().square().sum().backward()
            assert context.further(torch.ones(2, 1, backbone.width)).isfinite().all()
        assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.grad is not None)
        backbone.zero_grad()
        assert nn.functional.cosine_similarity(found.float(), exact).min() > 0.99


def test_activations_computed_again_give_the_same_gradients(make: Make) -> None:
    found = []
    for again in (False, True):
        backbone = with_adapters(make("gemma3"))
        backbone.recompute = again
        context = backbone(backbone.prepare(seen(2)))
        assert (context.further is None) == again
        context.readout.square().sum().backward()
        found.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert found[0]
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def test_the_first_layers_alone(make: Make, folder: Any) -> None:
    for name in ("smolvlm", "gemma3"):
        backbone, own = make(name, layers=2), AutoModelForImageTextToText.from_pretrained(folder(name)).model.eval()
        inputs = backbone.prepare(seen(1))
        kinds = {"token_type_ids": (inputs["ids"] == IMAGE).long()} if name == "gemma3" else {}
        pixels = inputs["pixels"] if name == "smolvlm" else inputs["pixels"].flatten(0, 1)
        with torch.no_grad():
            passed = own(input_ids=inputs["ids"], pixel_values=pixels, output_hidden_states=True, **kinds)
            expected = text_model(own).norm(passed.hidden_states[2])
            torch.testing.assert_close(backbone(inputs).hidden, expected, rtol=1e-4, atol=1e-5)
    for options in ({"layers": 4}, {"training": "top", "top": 4}, {"training": "top", "layers": 1, "top": 2}):
        with pytest.raises(LapaError, match=r"hf: (layers|top) \d.* \d"):
            make("smolvlm", **options)


def test_instructions_that_are_not_read_and_marks_in_them(make: Make, reads: Any) -> None:
    backbone = make("smolvlm", words=4, training="full")
    said = backbone.overlooked(["push the red block", "push the red block then stop", "open"])
    assert [line.partition(" instructions")[0] for line in said] == ["1 of 3", "1 of 3"]
    assert " 4 tokens" in said[0]
    assert not reads("smolvlm").overlooked(["push the red block", ""])
    shown = replace(seen(2), texts=["push the <image> red <end_of_utterance> block<image>", "push the red block"])
    one, two = backbone.prepare(shown)["ids"]
    assert torch.equal(one, two)


# --- in all stages


@pytest.fixture(scope="module")
def videos() -> Packed:
    return pack(["tabletop:sim,episodes=6,seed=3"], 24, quiet=True)


def settings(tiny: Recipe, model: Path, **options: Any) -> Recipe:
    more = {"model": str(model), "image_size": 24, "rank": 2, **options}
    return replace(tiny, policy=replace(tiny.policy, backbone="hf", backbone_options=more), head="own")


@pytest.fixture(scope="module")
def trained(videos: Packed, tiny: Recipe, folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """labels, latent and policy; codes are generated in the language model, actions are not."""
    root, recipe = tmp_path_factory.mktemp("trained"), settings(tiny, folder("smolvlm"))
    label(videos, "ground_truth", root / "labels")
    labels, manifest = read_labels(root / "labels")
    pretrain(videos, labels, manifest, recipe, root / "latent", 7)
    finetune(videos, root / "latent", replace(recipe, chunk=3, head="new", trainable="all"), root / "policy", 7)
    return root


def test_a_policy_holds_what_was_trained_and_refers_to_the_rest(trained: Path, folder: Any) -> None:
    config = json.loads((trained / "policy/config.json").read_text())
    reference = config["frozen"]["vision-language"]
    assert reference["name"] == str(folder("smolvlm"))
    assert config["provenance"]["parents"][str(folder("smolvlm"))] == reference["hash"]
    latent, stored = weights(trained / "latent"), weights(trained / "policy")
    assert all(".lora_" in name or name.startswith("head.") for name in stored)
    adapters = [name for name in stored if ".lora_" in name]
    assert adapters
    assert any(not torch.equal(latent[name], stored[name]) for name in adapters), "stage 3 trains them with all"
    policy = lapa.Policy.from_pretrained(trained / "policy")
    shown = {"image": np.full((48, 64, 3), 90, np.uint8), "instruction": "push the red block"}
    assert policy.act(shown).shape == (3, policy.dimensions)


@pytest.mark.parametrize("training", ["lora", "top", "full"])
def test_a_saved_policy_says_the_same(training: str, tiny: Recipe, folder: Any, tmp_path: Path) -> None:
    options = {"model": str(folder("qwen2_5_vl")), "image_size": 24, "training": training, "top": 1, "rank": 2}
    recipe = replace(tiny, policy=PolicySettings(backbone="hf", backbone_options=options, head="autoregressive",
                                                 head_options={"in_backbone": True}))  # fmt: skip
    policy = configured(recipe, "lapa").build()
    policy.grow(CodeSpace(2, 5))  # type: ignore[attr-defined]
    with torch.no_grad():
        for tensor in policy.state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    save_artefact(tmp_path, "policy", policy.description(), policy.state_dict())
    opened, shown = lapa.Policy.from_pretrained(tmp_path), seen(2)
    given = (next(iter(shown.images.values())), shown.texts)
    assert torch.equal(opened.logits(*given), policy.eval().logits(*given))  # type: ignore[attr-defined]
    assert opened.predict_codes(*given).shape == (2, 2)


def test_a_model_that_has_changed_on_disk(trained: Path, folder: Any, tmp_path: Path) -> None:
    model = folder("smolvlm")
    kept = tmp_path / "kept"
    shutil.copytree(model, kept)
    try:
        for file in ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
            if file.endswith("json"):
                (model / file).write_text((model / file).read_text() + "\n")
            else:
                tensors = load_file(model / file)
                next(iter(tensors.values())).add_(1)
                save_file(tensors, model / file, {"format": "pt"})
            with pytest.raises(LapaError, match=r"vision-language .*\(hash \w{16}\), not .*\(hash \w{16}\)"):
                lapa.Policy.from_pretrained(trained / "policy")
            shutil.copy2(kept / file, model / file)
        shutil.rmtree(model)
        with pytest.raises(LapaError, match=str(model)):
            lapa.Policy.from_pretrained(trained / "policy")
        found = saved_config(describe(trained / "policy", "policy"))
        assert (found.backbone, found.image_size) == ("hf", 24), "it can be described without"  # type: ignore[attr-defined]
    finally:
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(kept, model)
    lapa.Policy.from_pretrained(trained / "policy")


def test_without_pretraining_the_adapters_are_trained(
    videos: Packed, tiny: Recipe, folder: Any, tmp_path: Path
) -> None:
    recipe = settings(tiny, folder("paligemma"))
    assert recipe.trainable == "head"
    finetune(videos, None, recipe, tmp_path, 7, rehearse=False)
    assert any(tensor.abs().sum() > 0 for name, tensor in weights(tmp_path).items() if ".lora_B." in name)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(
    videos: Packed, tiny: Recipe, trained: Path, folder: Any, tmp_path: Path
) -> None:
    labels, manifest = read_labels(trained / "labels")

    def stage(out: Path) -> Any:
        return pretrain(videos, labels, manifest, settings(tiny, folder("smolvlm")), out, 7)

    killed_after(2, stage, tmp_path)
    stage(tmp_path)
    assert weights(tmp_path).keys() == weights(trained / "latent").keys()
    for name, tensor in weights(trained / "latent").items():
        assert torch.equal(weights(tmp_path)[name], tensor), name


@pytest.mark.slow
def test_two_processes_train_as_one(trained: Path, folder: Any, tmp_path: Path) -> None:
    """With ddp and with fsdp, one behind the other in the same two processes; the one is this process."""
    options = {"model": str(folder("smolvlm")), "image_size": 24, "rank": 2}
    command = ["pretrain", "--dataset", "tabletop:sim,episodes=6,seed=3", "--labels", str(trained / "labels"),
               "--steps", "2", "--seed", "7"]  # fmt: skip
    for setting in ("policy.backbone=hf", f"policy.backbone_options={json.dumps(options)}", "pretrain.batch_size=8",
                    "pretrain.precision=float32"):  # fmt: skip
        command += ["--set", setting]
    both = [[*command, "--set", f"pretrain.parallel={name}", "--out", str(tmp_path / name)] for name in ("ddp", "fsdp")]
    script = tmp_path / "both.py"
    script.write_text(
        "from lapa.cli import main\nfrom lapa.runtime.distributed import processes\n"
        f"with processes():\n    for words in {both!r}:\n        main(words)\n"
    )
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(start, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    cli.main([*command, "--out", str(tmp_path / "one")])
    one = weights(tmp_path / "one")
    assert any(".lora_B." in name and tensor.abs().sum() > 0 for name, tensor in one.items())
    for parallel in ("ddp", "fsdp"):
        two = weights(tmp_path / parallel)
        assert one.keys() == two.keys()
        for name, tensor in one.items():  # two steps of Adam at 1e-3: rounding may turn the smallest gradients
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-4)


# --- what cannot be


def test_models_of_the_hub_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    for revision in ("", "main", "0123456"):
        config = plugins.configure("backbones", "hf", {"model": "someone/model", "revision": revision})
        with pytest.raises(LapaError, match=rf"someone/model.*revision.*40.*\"{revision}\""):
            config.borrowed()
    commit = "0123456789" * 4

    def unreachable(repo: str, **about: Any) -> str:
        assert about["revision"] == commit
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    config = plugins.configure("backbones", "hf", {"model": "someone/model", "revision": commit})
    for ask in (config.borrowed, config.build):
        with pytest.raises(LapaError, match=r"someone/model.*no route to the hub") as told:
            ask()
        assert "\n" not in str(told.value)


def test_a_model_of_the_hub_is_named_by_its_commit(
    folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, asked = "abcdef0123" * 4, []
    (tmp_path / commit).symlink_to(folder("internvl"))

    def fetched(repo: str, **_: Any) -> str:
        asked.append(repo)
        return str(tmp_path / commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    config = plugins.configure("backbones", "hf", {"model": "someone/model", "revision": commit})
    reference = config.borrowed()["vision-language"]
    assert (reference["name"], reference["version"]) == ("someone/model", commit)
    assert config.borrowed()["vision-language"] == reference
    assert asked == ["someone/model"], "once"


@pytest.mark.parametrize("missing", ["transformers", "peft"])
def test_packages_that_are_not_installed(missing: str, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pretrained.importlib.util.find_spec
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    config = plugins.configure("backbones", "hf", {"model": str(folder("smolvlm"))})
    assert config.image_size == 224
    for ask in (config.borrowed, config.build):
        with pytest.raises(LapaError, match=rf'{missing}.*pip install "lapa\[hf\]"'):
            ask()
    if missing == "peft":
        replace(config, training="top", top=1).build()


def spoilt(folder: Path, out: Path, what: str) -> Path:
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    if what == "kind":
        config["model_type"] = "llama"
    elif what == "weights":
        tensors = load_file(out / "model.safetensors")
        save_file(dict(list(tensors.items())[:-2]), out / "model.safetensors", {"format": "pt"})
    elif what == "torn":
        (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:5000])
    elif what == "marks":
        for file in (out / "tokenizer.json", out / "tokenizer_config.json"):
            file.write_text(file.read_text().replace("<global-img>", "<somewhere>"))
    elif what == "pictures":
        (out / "preprocessor_config.json").unlink()
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize(
    ("what", "said"),
    [("kind", "llama.*smolvlm"), ("weights", r"2 of its weights"), ("torn", "weights"), ("marks", "<global-img>"),
     ("pictures", "image processor")],
)  # fmt: skip
def test_models_that_cannot_be_read(what: str, said: str, folder: Any, tmp_path: Path) -> None:
    model = spoilt(folder("smolvlm"), tmp_path / what, what)
    with pytest.raises(LapaError, match=said) as told:
        build_backbone("hf", {"model": str(model), "image_size": 32}, True)
    assert str(model) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"layers": -1}, {"words": 0}, {"image_size": 10**9}, {"training": "x"}]
)
def test_settings_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(LapaError, match=next(iter(options))):
        plugins.configure("backbones", "hf", options)


def test_a_model_must_be_named() -> None:
    with pytest.raises(LapaError, match='"model"'):
        plugins.configure("backbones", "hf", {}).build()
    assert len(set(MARKS)) == len(MARKS)
