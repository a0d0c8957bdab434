"""Released LAQ checkpoints: the same codes and pixels here, and the same file back. Reference outputs were made with
the released code; see fixtures/README.md beside this file and, for the larger ones, in shared/fixtures."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lapa import cli
from lapa.artefacts.folder import file_hash, load_artefact, read_tensors, save_artefact
from lapa.contracts import LapaError
from lapa.interop.convert import CODES, from_released, released_config, released_names, to_released
from lapa.models.laq import LAQ, LAQConfig, shrink
from lapa.models.released_layout import MixedPEG, mixed_codes
from lapa.models.transformer import PEG
from lapa.recipe import preset

HERE = Path(__file__).parents[1] / "fixtures"
SHARED = Path(__file__).parents[3] / "shared" / "fixtures" / "laq_official"


@dataclass(frozen=True)
class Reference:
    """A released model and what it answered. frames float32 [B, 3, 2, S, S]."""

    arguments: dict[str, Any]
    weights: dict[str, torch.Tensor]
    frames: torch.Tensor
    indices: torch.Tensor
    recon: torch.Tensor
    recon_all_ones: torch.Tensor

    @property
    def image_size(self) -> int:
        size: int = self.arguments["image_size"]
        return size


def reference(name: str) -> Reference:
    """ "s2", "s16" and "s64" are beside this file, "s1_c8" and "s4_c8" in shared."""
    path = HERE / f"released_{name}.safetensors"
    if path.exists():
        found, metadata = read_tensors(path)
        weights = {k.removeprefix("weights."): v for k, v in found.items() if k.startswith("weights.")}
        rest = {k: found[k] for k in ("indices", "recon", "recon_all_ones")}
        return Reference(json.loads(metadata["arguments"]), weights, found["frames"].float() / 255, **rest)
    if not SHARED.is_dir():
        pytest.skip(f"the reference set {name} is in {SHARED}, which is not on this machine")
    outputs = {k: torch.from_numpy(v) for k, v in np.load(SHARED / f"{name}.npz").items()}
    weights = torch.load(SHARED / f"{name}.pt", weights_only=True)
    return Reference(json.loads((SHARED / f"{name}.json").read_text()), weights, **outputs)


ALL = ("s1_c8", "s2", "s4_c8", "s16", "s64")


@pytest.fixture(params=ALL)
def released(request: pytest.FixtureRequest) -> Reference:
    return reference(request.param)


@pytest.fixture
def s2() -> Reference:
    return reference("s2")


@pytest.fixture
def checkpoint(s2: Reference, tmp_path: Path) -> Path:
    return saved(s2.weights, tmp_path / "vae.5000.pt")


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit, under the same names."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


# --- the same numbers ---------------------------------------------------------------------------------


def test_codes_are_equal_and_pixels_agree(released: Reference, tmp_path: Path) -> None:
    from_released(saved(released.weights, tmp_path / "in.pt"), tmp_path / "laq", released.image_size)
    laq = LAQ.from_pretrained(tmp_path / "laq")
    now, later = released.frames.unbind(2)
    codes = laq.encode(now, later)
    assert torch.equal(codes, released.indices)
    torch.testing.assert_close(laq.decode(now, codes, clamp=False), released.recon, atol=1e-4, rtol=0)
    ones = laq.decode(now, torch.ones_like(codes), clamp=False)
    torch.testing.assert_close(ones, released.recon_all_ones, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["s2", "s16", "s64"])
def test_training_goes_on_as_in_the_released_code(name: str, tmp_path: Path) -> None:
    """The same loss and gradients, with the noise of NSVQ given (its formula is written out here)."""
    theirs, outputs = reference(name), read_tensors(HERE / f"released_{name}.safetensors")[0]
    from_released(saved(theirs.weights, tmp_path / "in.pt"), tmp_path / "laq", theirs.image_size)
    laq = LAQ.from_pretrained(tmp_path / "laq").train()
    now, later = theirs.frames.unbind(2)
    z, v = laq.difference(now, later), outputs["noise"]
    error = (z - laq.quantizer.lookup(theirs.indices)).norm(dim=-1, keepdim=True)
    loss = (laq.predict(now, z + error / v.norm(dim=-1, keepdim=True) * v) - later).square().mean()
    torch.testing.assert_close(loss, outputs["loss"], atol=1e-5, rtol=0)
    loss.backward()
    names, gradients = released_names(laq), dict(laq.named_parameters())
    kept = {ours: outputs[f"gradient.{n}"] for ours, n in names.items() if f"gradient.{n}" in outputs}
    assert set(kept) == {"quantizer.codebook", "temporal.blocks.0.peg.conv.weight"}
    for ours, gradient in kept.items():
        torch.testing.assert_close(gradients[ours].grad, gradient, atol=1e-4 * float(gradient.abs().max()), rtol=0)


def test_without_the_quirks_it_is_another_model(released: Reference, tmp_path: Path) -> None:
    """So the references do see them: the convolution shows in the codes, the mixing in the pixels if s > 1."""
    from_released(saved(released.weights, tmp_path / "in.pt"), tmp_path / "laq", released.image_size)
    laq = LAQ.from_pretrained(tmp_path / "laq")
    plain = replace(laq.config, released_layout=False).build().eval()
    plain.load_state_dict(laq.state_dict())
    now, later = released.frames.unbind(2)
    assert not torch.equal(plain.encode(now, later), released.indices)
    off = (plain.decode(now, released.indices, clamp=False) - released.recon).abs().max()
    assert off < 1e-4 if released.indices.shape[1] == 1 else off > 1e-2


def test_everything_but_the_image_size_is_read_off_the_weights(released: Reference, tmp_path: Path) -> None:
    config = from_released(saved(released.weights, tmp_path / "in.pt"), tmp_path / "laq", released.image_size)
    theirs = released.arguments
    assert config.codes == theirs["code_seq_len"]
    for name in (
        "dim",
        "quant_dim",
        "codebook_size",
        "patch_size",
        "spatial_depth",
        "temporal_depth",
        "heads",
        "dim_head",
    ):
        assert getattr(config, name) == theirs[name], name


def test_there_and_back_is_the_same_file(released: Reference, tmp_path: Path) -> None:
    from_released(saved(released.weights, tmp_path / "in.pt"), tmp_path / "laq", released.image_size)
    to_released(tmp_path / "laq", tmp_path / "back.pt")
    assert same(torch.load(tmp_path / "back.pt", weights_only=True), released.weights)


def test_the_released_peg_is_its_own_inverse_order() -> None:
    """Written out with indices: token (patch, frame) number n of the memory stands where (frame, patch) number n is."""
    torch.manual_seed(0)
    peg = MixedPEG(3)
    torch.nn.init.normal_(peg.conv.weight)
    plain = PEG(3)
    plain.load_state_dict(peg.state_dict())
    t, h, w = 2, 2, 3
    video = torch.randn(1, t, h, w, 3)
    place = [divmod(n, t) for n in range(t * h * w)]  # memory order: patch, frame
    shuffled = torch.stack([video[0, frame, patch // w, patch % w] for patch, frame in place]).view(1, t, h, w, 3)
    answer = plain(shuffled).view(t * h * w, 3)
    for n, (patch, frame) in enumerate(place):
        torch.testing.assert_close(peg(video)[0, frame, patch // w, patch % w], answer[n])


def test_mixed_codes() -> None:
    mixed = mixed_codes(torch.arange(6.0).view(1, 2, 3))  # two codes, three coordinates
    assert mixed.tolist() == [[[0, 2, 4], [1, 3, 5]]]
    one = torch.randn(2, 1, 3)
    assert torch.equal(mixed_codes(one), one)


def test_the_small_cnn_is_the_released_one() -> None:
    """On every grid of patches from which the released CNN gets its s codes, and CODES knows just those."""
    half = ((3, 3), 2, 1)
    layers = {1: [half, ((4, 4), 1, 0)], 2: [half, ((3, 4), 1, 0)], 4: [half, ((3, 3), 1, 0)],
              16: [half, half], 64: [half], 256: [half]}  # fmt: skip
    for codes, expected in layers.items():
        target = LAQConfig(image_size=16, patch_size=1, codes=codes).code_grid
        fits = []
        for grid in range(1, 65):
            size = (grid, grid)
            for kernel, stride, pad in expected:
                size = tuple((n + 2 * pad - k) // stride + 1 for n, k in zip(size, kernel, strict=True))
            if size == target:
                fits.append(grid)
                cnn = [m for m in shrink(2, grid, *target) if isinstance(m, torch.nn.Conv2d)]
                assert [(c.kernel_size, c.stride[0], c.padding[0]) for c in cnn] == expected, (grid, codes)
        assert CODES[codes] == (range(fits[0], fits[-1] + 1), [kernel for kernel, _, _ in expected])


# --- what a checkpoint may look like ------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    ["module", "model", "ema", "legacy", "reversed", "half", "state_dict", "compiled", "compiled on several",
     "lightning", "arguments", "ema compiled", "safetensors"],
)  # fmt: skip
def test_forms_of_a_checkpoint(form: str, s2: Reference, checkpoint: Path, tmp_path: Path) -> None:
    w = s2.weights
    path = tmp_path / f"{form}.pt"
    match form:
        case "module":
            saved({f"module.{k}": v for k, v in w.items()}, path)
        case "model":
            saved({"model": w, "optim": {"state": {}, "param_groups": []}, "steps": 5000.0}, path)
        case "ema":
            online = {f"online_model.{k}": v + 1 for k, v in w.items()}
            saved({**online, "initted": torch.tensor(True), **{f"ema_model.{k}": v for k, v in w.items()}}, path)
        case "legacy":
            torch.save(w, path, _use_new_zipfile_serialization=False)
        case "reversed":
            saved(dict(reversed(w.items())), path)
        case "state_dict":
            saved({"state_dict": w}, path)
        case "compiled":
            saved({f"_orig_mod.{k}": v for k, v in w.items()}, path)
        case "compiled on several":
            saved({"model": {f"module._orig_mod.{k}": v for k, v in w.items()}}, path)
        case "lightning":
            inside = {f"model.{k}": v for k, v in w.items()}
            saved({"state_dict": inside, "epoch": 3, "hyper_parameters": {"lr": 1e-4}}, path)
        case "arguments":
            saved({"model": w, "args": argparse.Namespace(image_size=16)}, path)
        case "ema compiled":
            halves = {"online_model": 1.0, "ema_model": 0.0}
            saved({f"_orig_mod.{half}.{k}": v + d for half, d in halves.items() for k, v in w.items()}, path)
        case "safetensors":
            path = tmp_path / "model.safetensors"
            save_file({k: v.clone() for k, v in w.items()}, path)
        case "half":
            saved({k: v.half() for k, v in w.items()}, path)
    from_released(path, tmp_path / "laq", 16)
    to_released(tmp_path / "laq", tmp_path / "back.pt")
    expected = {k: v.half().float() for k, v in w.items()} if form == "half" else w
    assert same(torch.load(tmp_path / "back.pt", weights_only=True), expected)


def changed(weights: dict[str, torch.Tensor], change: str) -> Any:
    w = dict(weights)
    gamma = "enc_temporal_transformer.layers.1.1.norm.gamma"
    match change:
        case "missing":
            del w[gamma]
        case "extra":
            w["discr.weight"] = torch.zeros(1)
        case "shape":
            w[gamma] = torch.ones(13)
        case "renamed":
            w["vq.codebook"] = w.pop("vq.codebooks")
        case "kernel":
            w["vq.cnn_encoder.2.weight"] = torch.zeros(4, 4, 5, 5)
        case "nan":
            w[gamma] = torch.full((12,), torch.nan)
        case "double":
            w[gamma] = w[gamma].double()
        case "no tensor":
            w["steps"] = 3  # type: ignore[assignment]
        case "other model":
            return {"conv.weight": torch.zeros(3, 3)}
        case "list":
            return [torch.zeros(1)]
        case "empty":
            return {}
    return w


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("missing", "missing enc_temporal_transformer.layers.1.1.norm.gamma"),
        ("extra", "unexpected discr.weight"),
        ("shape", r"enc_temporal_transformer.layers.1.1.norm.gamma is \(13,\), expected \(12,\)"),
        ("renamed", "no vq.codebooks"),
        ("kernel", "kernels 3x3, 5x5"),
        ("nan", "layers.1.1.norm.gamma .*infinite"),
        ("double", "norm.gamma .*torch.float64"),
        ("no tensor", "steps .*int"),
        ("other model", r"to_patch_emb_first_frame\.2\.weight.* conv\.weight"),
        ("list", "list"),
        ("empty", "weights"),
    ],
)
def test_weights_that_are_not_a_released_laq(change: str, says: str, s2: Reference, tmp_path: Path) -> None:
    path = saved(changed(s2.weights, change), tmp_path / "in.pt")
    with pytest.raises(LapaError, match=says) as told:
        from_released(path, tmp_path / "laq", 16)
    assert str(path) in str(told.value)
    assert not (tmp_path / "laq").exists()


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "zip", "code", "folder", "absent", "pointer"])
def test_files_that_are_no_checkpoint(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    path, trace = tmp_path / "in.pt", tmp_path / "trace"
    match kind:
        case "text":
            path.write_text("no checkpoint\n")
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(checkpoint.read_bytes()[:40_000])
        case "zip":
            path.write_bytes(b"PK\x05\x06" + bytes(18))  # an archive of nothing
        case "code":
            saved({"a": Bomb(trace)}, path)
        case "folder":
            path.mkdir()
        case "pointer":
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 100\n")
    says = {"folder": "is not a file", "absent": "does not exist", "pointer": "git lfs pull"}.get(
        kind, "not a PyTorch checkpoint of tensors alone"
    )
    with pytest.raises(LapaError, match=says) as told:
        from_released(path, tmp_path / "laq", 16)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)
    assert not trace.exists()
    assert not (tmp_path / "laq").exists()


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"image_size": 32}, "32 pixels.*14 or 16 pixels"),
        ({"image_size": 15}, "2 pixels.* image_size of 15"),
        ({"image_size": 0}, "image_size of 0"),
        ({"patch_size": 4}, "patch_size 2, not 4"),
        ({"heads": 4}, "heads 3, not 4"),
        ({"dim_head": 64}, "dim_head 5, not 64"),
        ({"codes": 4}, "codes 2, not 4"),
        ({"window": 0.0}, "window"),
        ({"window": float("nan")}, "window"),
    ],
)
def test_sizes_that_contradict_the_weights(sizes: dict, says: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(LapaError, match=says):
        from_released(checkpoint, tmp_path / "laq", **{"image_size": 16, **sizes})
    assert not (tmp_path / "laq").exists()


def test_nothing_is_written_over(checkpoint: Path, tmp_path: Path) -> None:
    config = from_released(checkpoint, tmp_path / "laq", 16, 2, 3, 5)
    assert config.released_layout
    for again in (tmp_path / "laq", checkpoint):
        with pytest.raises(LapaError, match="exists already"):
            from_released(checkpoint, again, 16)
    with pytest.raises(LapaError, match="exists already"):
        to_released(tmp_path / "laq", checkpoint)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"released_layout": False}, r"released_layout=False \(released: True\)"),
        ({"decoder": "unet"}, r"decoder=unet \(released: transformer\)"),
        ({"normalise": True}, r"normalise=True \(released: False\)"),
        ({"codes": 9}, "no 9 codes from 8x8 patches"),
        ({"codes": 16}, "no 16 codes from 8x8 patches"),
    ],
)
def test_models_that_the_released_code_does_not_have(change: dict, says: str, tmp_path: Path) -> None:
    config = replace(released_config(TINY), **change)
    save_artefact(tmp_path / "laq", "laq", {"model": config.__dict__}, config.build().state_dict())
    with pytest.raises(LapaError, match=says):
        to_released(tmp_path / "laq", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


TINY = LAQConfig(image_size=16, patch_size=2, dim=12, spatial_depth=1, temporal_depth=1, heads=2, dim_head=4,
                 codes=4, codebook_size=8, quant_dim=4)  # fmt: skip


def test_a_model_trained_here_in_the_released_layout_goes_back(tmp_path: Path) -> None:
    config = released_config(TINY)
    laq = config.build()
    save_artefact(tmp_path / "laq", "laq", {"model": config.__dict__}, laq.state_dict())
    to_released(tmp_path / "laq", tmp_path / "out.pt")
    assert from_released(tmp_path / "out.pt", tmp_path / "again", 16) == config
    assert same(dict(LAQ.from_pretrained(tmp_path / "again").state_dict()), dict(laq.state_dict()))


# --- the artefact, through the commands ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["s2", "s4_c8"])
def test_a_converted_checkpoint_labels_inspects_and_pretrains(
    name: str, clips: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = reference(name)
    source, laq = saved({f"module.{k}": v for k, v in theirs.weights.items()}, tmp_path / "vae.pt"), tmp_path / "laq"

    def run(*arguments: object) -> str:
        cli.main([str(a) for a in arguments])
        return capsys.readouterr().out

    said = run("convert", "laq-official", source, laq, "--image-size", theirs.image_size, "--window", 0.3,
               "--patch-size", theirs.arguments["patch_size"], "--heads", theirs.arguments["heads"])  # fmt: skip
    codes = theirs.indices.shape[1]
    assert f"{codes} codes of {theirs.arguments['codebook_size']} kinds" in said
    assert f"--source {laq}" in said
    made = load_artefact(laq, "laq").config
    assert made["provenance"]["parents"] == {str(source): file_hash(source)}
    assert made["recipe"]["window"] == 0.3
    data = ("--dataset", f"video_folder:{clips}")
    run("label", *data, "--source", laq, "--out", tmp_path / "labels")
    run("inspect", laq, *data, "--out", tmp_path / "inspect")
    (seen,) = json.loads((tmp_path / "inspect/inspect.json").read_text())["runs"].values()
    assert len(seen["on_dataset"]["perplexity"]) == codes
    run("pretrain", *data, "--labels", tmp_path / "labels", "--steps", 1, *small, "--out", tmp_path / "latent")
    for more in (("--image-size", 99), ("--hz", 7)):  # nothing is passed over in silence
        with pytest.raises(SystemExit):
            run("convert", "laq-official", laq, tmp_path / "back.pt", "--reverse", *more)
    run("convert", "laq-official", laq, tmp_path / "back.pt", "--reverse")
    assert same(torch.load(tmp_path / "back.pt", weights_only=True), theirs.weights)


def test_the_window_is_the_papers(checkpoint: Path, tmp_path: Path) -> None:
    from_released(checkpoint, tmp_path / "laq", 16)
    assert load_artefact(tmp_path / "laq", "laq").config["recipe"]["window"] == preset("paper").window


def test_the_image_size_must_be_said(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", "laq-official", str(checkpoint), str(tmp_path / "laq")])
    assert ended.value.code == 1
    assert "Give --image-size" in capsys.readouterr().err
