"""`lapa convert lapa-official`: equal to the released code on its own outputs; strict on files of another form."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released_lapa import BINS, Released, array_bytes, packed, params_bytes, pickled, random_weights, tokenizer, written
from safetensors.torch import load_file

import lapa
from lapa.actions.meaning import Meaning
from lapa.actions.scales import Scales
from lapa.actions.spaces import ActionSpace
from lapa.artefacts.folder import save_artefact
from lapa.cli import main
from lapa.contracts import LapaError
from lapa.data.observations import Seen
from lapa.interop.convert_bins import read_bins, written_bins
from lapa.interop.convert_lapa import Choices, from_lapa
from lapa.interop.convert_lapa_back import to_lapa
from lapa.interop.convert_params import read_index
from lapa.interop.convert_vqgan import read_vqgan

FIXTURE = Path(__file__).parents[3] / "shared/fixtures/lapa7b"
SETS = sorted(path for path in FIXTURE.glob("tiny_*/*") if path.is_dir())
real = pytest.mark.skipif(not SETS, reason="../shared is not here")
each_set = pytest.mark.parametrize("folder", SETS or [FIXTURE], ids=lambda path: f"{path.parent.name}-{path.name}")


# --- beside outputs of the released code


@cache
def converted(folder: Path, *more: str) -> Any:
    """A policy of a set, through the command."""
    out = Path(os.environ["PYTEST_LAPA7B"]) / "-".join((folder.parent.name, folder.name, *more))
    bins = ["--bins", str(folder / "bins.csv")] if (folder / "bins.csv").exists() else []
    main(["convert", "lapa-official", str(folder / "params"), str(out), "--vqgan", str(folder.parent / "vqgan"),
          "--tokenizer", str(folder.parent / "tokenizer.model"), "--heads", str(settings(folder)["heads"]),
          *bins, *more])  # fmt: skip
    policy = lapa.Policy.from_pretrained(out)
    encode = policy.backbone.look
    policy.backbone.look = lambda pixels: torch.stack([_look(encode, picture) for picture in pixels])  # type: ignore[method-assign]
    return policy


_CODES: dict[bytes, torch.Tensor] = {}


def _look(encode: Any, picture: torch.Tensor) -> torch.Tensor:
    """The VQGAN is the same in all sets of a folder, and slow."""
    key = picture.numpy().tobytes()
    if key not in _CODES:
        _CODES[key] = encode(picture[None])[0]
    return _CODES[key]


@cache
def settings(folder: Path) -> dict[str, Any]:
    content = json.loads((folder.parent / "settings.json").read_text())
    return {**content, "heads": content["llama"]["num_attention_heads"]}


@cache
def inputs(folder: Path) -> tuple[list[np.ndarray], list[str]]:
    found = np.load(folder.parent / "inputs.npz")
    texts = [str(text) for text in found["instructions"]]
    return [found[f"image_{i}"] for i in range(len(texts))], texts


@cache
def outputs(folder: Path) -> dict[str, np.ndarray]:
    return dict(np.load(folder / "outputs.npz"))


@pytest.fixture(autouse=True, scope="module")
def _a_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    os.environ["PYTEST_LAPA7B"] = str(tmp_path_factory.mktemp("lapa7b"))
    yield
    converted.cache_clear()
    _CODES.clear()


def along(policy: Any, folder: Path, tokens: np.ndarray) -> np.ndarray:
    """The logits for the first images where these tokens are given before each."""
    given = torch.from_numpy(tokens.astype(np.int64))
    images, texts = inputs(folder)
    with torch.no_grad():
        context = policy.backbone(policy.backbone.prepare(Seen.of(images[: len(given)], texts[: len(given)])))
        return policy.head.generate(context, lambda _, position: given[:, position])[1].numpy()


@real
@each_set
def test_ids_codes_logits_and_tokens_are_those_of_the_released_code(folder: Path) -> None:
    policy, wanted = converted(folder), outputs(folder)
    images, texts = inputs(folder)
    prepared = policy.backbone.prepare(Seen.of(images, texts))
    np.testing.assert_array_equal(policy.backbone.ids(prepared), wanted["input_ids"])
    pixels = np.load(folder.parent / ("vision_crop.npz" if policy.backbone.config.crop else "vision_plain.npz"))
    known = len(pixels["pixels_uint8"])
    np.testing.assert_array_equal(prepared["pixels"][:known], pixels["pixels_uint8"])
    with torch.no_grad():
        context = policy.backbone(prepared)
        np.testing.assert_array_equal(context.mask, wanted["attention_mask"].astype(bool))
        logits = policy.head.logits(context).numpy()
        text = policy.backbone.kept["text"](context.readout).numpy()
        vision = policy.backbone.kept["vision"](context.readout[:2]).numpy()
    np.testing.assert_allclose(logits, wanted["logits_greedy"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(text, wanted["text_logits_last_prompt"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(vision, wanted["vision_logits_last_prompt"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(-1), wanted["tokens_greedy"])
    if "actions_greedy" in wanted:
        shown = [{"image": image, "instruction": text} for image, text in zip(images, texts, strict=True)]
        np.testing.assert_allclose(policy.act_batch(shown)[:, 0], wanted["actions_greedy"], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(policy.act(shown[1])[0], wanted["actions_greedy"][1], rtol=1e-6, atol=1e-7)
        probed = policy.space.decode(wanted["probe_tokens"].astype(np.int64).clip(max=policy.space.classes - 1))
        np.testing.assert_allclose(probed, wanted["probe_actions"], rtol=1e-6, atol=1e-7)
    else:
        codes = policy.predict_codes(images, texts)
        assert codes.dtype == torch.int64
        np.testing.assert_array_equal(codes, wanted["tokens_greedy"])


@real
@each_set
def test_the_residual_stream_is_that_of_the_training_form(folder: Path) -> None:
    """Image 0 without padding and cache; here with both, so in two parts."""
    policy, wanted = converted(folder), outputs(folder)
    images, texts = inputs(folder)
    layers: list[list[torch.Tensor]] = [[] for _ in policy.backbone.llama.layers]
    hooks = [layer.register_forward_hook(lambda *args, i=i: layers[i].append(args[2][0]))
             for i, layer in enumerate(policy.backbone.llama.layers)]  # fmt: skip
    ids = torch.from_numpy(wanted["full_input_ids_0"].astype(np.int64))
    given = ids[int(wanted["full_prompt_length_0"]) :]
    with torch.no_grad():
        context = policy.backbone(policy.backbone.prepare(Seen.of(images[:1], texts[:1])))
        policy.head.loss(context, given[None])
    for hook in hooks:
        hook.remove()
    for found, right in zip(layers, wanted["full_block_outputs_0"], strict=True):
        stream = torch.cat(found, 1)[0][-(int(context.mask[0].sum()) + len(given) - 1) :]  # without padding
        np.testing.assert_allclose(stream, right[: len(stream)], rtol=0, atol=2e-4)


@real
@each_set
def test_the_table_of_positions_in_bfloat16_is_a_switch(folder: Path) -> None:
    wanted = outputs(folder)
    tokens, right = wanted["tokens_greedy_bf16"][:3], wanted["logits_greedy_bf16"][:3]
    off = {more: np.abs(along(converted(folder, *more), folder, tokens) - right)
           for more in ((), ("--rope", "bfloat16"), ("--dtype", "bfloat16"))}  # fmt: skip
    assert off[()].max() > 0.5
    assert off["--rope", "bfloat16"].max() < 0.12
    assert off["--rope", "bfloat16"].mean() < 0.02
    assert off["--dtype", "bfloat16"].max() < 0.2


@real
@each_set
def test_the_released_way_to_choose_is_there_on_request(folder: Path) -> None:
    policy, wanted = converted(folder), outputs(folder)
    if "gumbel" not in wanted:
        head = policy.head
        head.config = replace(head.config, stop=2)
        np.testing.assert_array_equal(policy.predict_codes(*inputs(folder)), wanted["tokens_released"])
        head.config = replace(head.config, stop=-1)
        return
    noise = torch.from_numpy(wanted["gumbel"])

    def draw(logits: torch.Tensor, position: int) -> torch.Tensor:
        least = logits.topk(50).values[:, -1:]
        return (logits.masked_fill(logits < least, -torch.inf) + noise[:, position]).argmax(-1)

    with torch.no_grad():
        context = policy.backbone(policy.backbone.prepare(Seen.of(*inputs(folder))))
        tokens, logits = policy.head.generate(context, draw)
    np.testing.assert_array_equal(tokens, wanted["tokens_released"])
    np.testing.assert_allclose(logits, wanted["logits_released"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(policy.space.decode(tokens.numpy()), wanted["actions_released"], rtol=1e-6, atol=1e-7)


@real
@each_set
def test_there_and_back_is_the_same_to_the_byte(folder: Path, tmp_path: Path) -> None:
    converted(folder)
    made = Path(os.environ["PYTEST_LAPA7B"]) / f"{folder.parent.name}-{folder.name}"
    main(["convert", "lapa-official", str(made), str(tmp_path / "params"), "--reverse",
          "--vqgan", str(tmp_path / "vqgan"), "--tokenizer", str(tmp_path / "tokenizer.model")])  # fmt: skip
    _same_params(folder / "params", tmp_path / "params")
    assert (tmp_path / "tokenizer.model").read_bytes() == (folder.parent / "tokenizer.model").read_bytes()
    before, after = read_vqgan(folder.parent / "vqgan"), read_vqgan(tmp_path / "vqgan")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def _same_params(one: Path, other: Path) -> None:
    before, after = read_index(one), read_index(other)
    assert before.keys() == after.keys()
    for name, stored in before.items():
        assert (after[name].dtype, after[name].shape) == (stored.dtype, stored.shape)
        np.testing.assert_array_equal(after[name].bits(), stored.bits(), err_msg=name)


@real
def test_texts_become_the_ids_of_the_released_tokenizer() -> None:
    from lapa.models.lwm_prompt import Prompt

    for path in {folder.parent for folder in SETS}:
        prompt = Prompt((path / "tokenizer.model").read_bytes())
        for text, ids in json.loads((path / "settings.json").read_text())["tokenizer"]["encode"].items():
            assert prompt.ids(text) == ids, text


@real
@pytest.mark.parametrize("form", ["numpy", "jax", "frozen_numpy", "frozen_jax"])
def test_the_pickle_may_have_four_forms(form: str) -> None:
    expected = dict(np.load(FIXTURE / "pickle_forms/expected.npz"))
    found = read_vqgan(FIXTURE / f"pickle_forms/{form}.pkl")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


# --- on files that the tests write


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return written(tmp_path_factory.mktemp("latent"), latent=8)


@pytest.fixture(scope="module")
def action(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return written(tmp_path_factory.mktemp("action"), seed=1, latent=8, action=5)


@pytest.fixture(scope="module")
def policy(latent: Released, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lapa.Policy.from_pretrained(convert(latent, tmp_path_factory.mktemp("made")))


def convert(files: Released, folder: Path, *more: str) -> Path:
    """Through the command."""
    out = folder / "out"
    main(["convert", "lapa-official", str(files.folder / "params"), str(out), *files.arguments, "--heads", "2", *more])
    return out


def pictures_and_texts(count: int) -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (40 + 30 * i, 90, 3), np.uint8) for i in range(count)]
    return images, ["put the red cup near the spoon", "", "move <s> left </s>", "open the drawer " * 40][:count]


def reference(weights: dict[str, np.ndarray], ids: np.ndarray, parts: np.ndarray, heads: int) -> np.ndarray:
    """A Llama in float64, one token list at a time and without padding: ids [n] in the tables `parts` [n] ->
    the last norm's output [n, width]."""

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight

    tables = {name: weights[f"transformer/{name}/embedding"].astype(float) for name in ("wte", "vte", "dte")}
    x = np.stack([tables[part][i] for i, part in zip(ids, parts, strict=True)])
    count, width = x.shape
    size = width // heads
    angle = np.arange(count)[:, None] / 5e7 ** (np.arange(0, size, 2) / size)
    turn = np.exp(1j * angle)[:, None]
    for layer in range(len(weights["transformer/h/scan_decoder/attention/wq/kernel"])):

        def kernel(name: str, layer: int = layer) -> np.ndarray:
            return weights[f"transformer/h/scan_decoder/{name}/kernel"][layer].astype(float)

        h = norm(x, kernel("attention_norm"))
        q, k, v = ((h @ kernel(f"attention/{w}")).reshape(count, heads, size) for w in ("wq", "wk", "wv"))
        q, k = ((part[..., ::2] + 1j * part[..., 1::2]) * turn for part in (q, k))
        scores = np.einsum("qhd,khd->hqk", q, k.conj()).real / np.sqrt(size)
        scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", shares / shares.sum(-1, keepdims=True), v).reshape(count, width)
        x = x + mixed @ kernel("attention/wo")
        h = norm(x, kernel("ffn_norm"))
        gate = h @ kernel("feed_forward/w1")
        x = x + (gate / (1 + np.exp(-gate)) * (h @ kernel("feed_forward/w3"))) @ kernel("feed_forward/w2")
    return norm(x, weights["transformer/ln_f/kernel"].astype(float))


def test_logits_are_those_of_a_second_program(latent: Released, policy: Any) -> None:
    images, texts = pictures_and_texts(2)
    prepared = policy.backbone.prepare(Seen.of(images, texts))
    with torch.no_grad():
        ids, logits = policy.backbone.ids(prepared).numpy(), policy.logits(images, texts).numpy()
    words, behind = prepared["words"].shape[1], prepared["after"].shape[1]
    parts = np.array(["wte"] * words + ["vte"] * (ids.shape[1] - words - behind) + ["wte"] * behind)
    for row, present, found in zip(ids, prepared["present"].numpy(), logits, strict=True):
        first = int((~present).sum())
        codes = found.argmax(-1)[:-1]
        hidden = reference(latent.weights, np.concatenate([row[first:], codes]),
                           np.concatenate([parts[first:], ["dte"] * len(codes)]), heads=2)  # fmt: skip
        right = hidden[-len(found) :] @ latent.weights["delta_head/kernel"].astype(float)
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-4)


def test_one_at_a_time_is_as_many_at_once(policy: Any) -> None:
    images, texts = pictures_and_texts(4)
    with torch.no_grad():
        together = policy.logits(images, texts)
        alone = torch.cat([policy.logits([image], [text]) for image, text in zip(images, texts, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert together.shape == (4, 4, 8)
    assert len(torch.unique(together[:, 0], dim=0)) == 4, "picture and text matter"


def test_any_form_of_params_is_the_same_model(latent: Released, policy: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shuffled = dict(rng.permutation(np.array(list(latent.weights.items()), object)))
    single = {}
    for name, array in shuffled.items():
        if "scan_decoder" in name:
            single |= {name.replace("scan_decoder", str(i)): layer for i, layer in enumerate(array)}
        else:
            single[name] = array
    wrapped = {f"params/params/{name}": array for name, array in single.items()}
    for i, content in enumerate((params_bytes(shuffled, 101), params_bytes(single), params_bytes(wrapped, 1000))):
        files = replace(latent, folder=tmp_path / str(i))
        shutil.copytree(latent.folder, files.folder)
        (files.folder / "params").write_bytes(content)
        made = load_file(convert(files, files.folder) / "model.safetensors")
        for name, tensor in policy.state_dict().items():
            assert torch.equal(made[name].to(tensor.dtype), tensor), name


def test_back_to_the_released_form(action: Released, tmp_path: Path) -> None:
    out = convert(action, tmp_path)
    told = to_lapa(out, tmp_path / "back", bins=tmp_path / "bins.csv", chunk=1000)
    assert "The released code" not in told
    _same_params(action.folder / "params", tmp_path / "back")
    assert read_bins(tmp_path / "bins.csv", 5) == read_bins(action.folder / "bins.csv", 5)
    assert b"__msgpack_chunked_array__" in (tmp_path / "back").read_bytes()
    with pytest.raises(LapaError, match="back"):
        to_lapa(out, tmp_path / "back")


def test_what_the_released_code_would_do_otherwise_is_not_written(action: Released, tmp_path: Path) -> None:
    made = lapa.Policy.from_pretrained(convert(action, tmp_path))
    spec, names = made.meaning.spec, made.meaning.spec.names
    relative, scaled = Meaning(spec, (True,) * 3, names), Scales(((-1.0,) * 3,), ((1.0,) * 3,), ("arm",))
    for says, meaning, scales in (("actions=given", relative, None), ("scale=joint", made.meaning, scaled)):
        made.meaning, made.scales = meaning, scales
        save_artefact(tmp_path / says, "policy", {**made.description(), "method": "lapa"}, made.state_dict())
        with pytest.raises(LapaError, match=says):
            to_lapa(tmp_path / says, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_what_the_released_code_answers_otherwise_is_told(action: Released, tmp_path: Path) -> None:
    """Bins that were fitted mean the data in them; the released code knows their edges, and takes their middle."""
    made = lapa.Policy.from_pretrained(convert(action, tmp_path))
    names = made.meaning.spec.names
    fitted = ActionSpace.fit(np.random.default_rng(0).normal(size=(100, 3)), made.space.classes, names=names)
    made.head.space, made.config = fitted, replace(made.config, decoding="expectation")
    save_artefact(tmp_path / "run", "policy", {**made.description(), "method": "lapa"}, made.state_dict())
    told = to_lapa(tmp_path / "run", tmp_path / "back2")
    assert re.search(rf"up to \d\.\d+ apart in ({'|'.join(names)})", told)
    assert "decoding=expectation" in told


def test_the_weights_that_go_back_are_those_that_config_json_names(action: Released, tmp_path: Path) -> None:
    out = convert(action, tmp_path)
    weights = out / "model.safetensors"
    whole = weights.read_bytes()
    for content, says in (
        (whole[: len(whole) // 2], "does not match"),
        (whole[:-1] + b"x", "does not match"),
        (None, "is missing"),
    ):
        weights.unlink() if content is None else weights.write_bytes(content)
        with pytest.raises(LapaError, match=f"model.safetensors {says}"):
            to_lapa(out, tmp_path / "back")
        assert not (tmp_path / "back").exists()


def test_bins_that_fill_the_head_come_back(tmp_path: Path) -> None:
    space = ActionSpace.fit(np.random.default_rng(0).normal(size=(100, 3)), 8)
    (tmp_path / "bins.csv").write_text(written_bins(space))
    assert read_bins(tmp_path / "bins.csv", space.classes).edges == space.edges


def test_the_vqgan_may_be_written_by_a_numpy_of_today(latent: Released, tmp_path: Path) -> None:
    (tmp_path / "vqgan").write_bytes(pickled(latent.pictures).replace(b"cnumpy.core.", b"cnumpy._core."))
    for name, array in read_vqgan(tmp_path / "vqgan").items():
        np.testing.assert_array_equal(array, latent.pictures[name])


def test_a_robot_policy_acts_and_says_what_it_does(action: Released, tmp_path: Path) -> None:
    policy = lapa.Policy.from_pretrained(convert(action, tmp_path, "--hz", "7"))
    images, texts = pictures_and_texts(2)
    spec = policy.spec.action
    assert spec is not None
    assert (len(spec), spec.hz, spec.kinds[-1]) == (3, 7, "binary")
    acted = policy.act({"image": images[0], "instruction": texts[0]})
    assert (acted.shape, acted.dtype) == ((1, 3), np.float32)
    with torch.no_grad():
        classes = policy.logits(images[:1], texts[:1]).argmax(-1).numpy()
    np.testing.assert_array_equal(acted, policy.space.decode(classes))
    np.testing.assert_array_equal(policy.space.decode(np.array([[4, 3, 2], [0, 1, 1]])),
                                  np.array([[1, 1, 1], [-0.75, 0.05, 1]], np.float32))  # fmt: skip


def test_drawn_actions_differ_and_a_seed_repeats_them(action: Released, tmp_path: Path) -> None:
    out = convert(action, tmp_path, "--released-sampling")
    shown = {"image": pictures_and_texts(1)[0][0], "instruction": "take the pot"}
    policies = [lapa.Policy.from_pretrained(out) for _ in range(2)]
    for policy in policies:  # the same picture all the time: its codes need not be computed again
        policy.backbone.look = lambda pixels: torch.zeros(len(pixels), 16, dtype=torch.int64)  # type: ignore[attr-defined]
    runs = [[policy.act(shown) for _ in range(6)] for policy in policies]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert len(np.unique(runs[0], axis=0)) > 1


def test_memory_holds_one_tensor_at_a_time(latent: Released, tmp_path: Path) -> None:
    weights = random_weights(width=256, depth=6, inner=2048, latent=8)
    files = replace(latent, folder=tmp_path / "files")
    shutil.copytree(latent.folder, files.folder)
    content = params_bytes(weights, 10**6)
    (files.folder / "params").write_bytes(content)
    del content
    largest = 2 * max(array.size for array in weights.values())
    del weights
    arguments = [files.folder / name for name in ("params", "out", "vqgan", "tokenizer.model")]
    tracemalloc.start()
    from_lapa(*arguments, choices=Choices(heads=2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * largest, f"{peak:,} bytes; the largest tensor has {largest:,}"


@pytest.mark.parametrize("part", [0.0, 0.003, 0.2, 0.5, 0.9, 0.99999])
def test_a_file_that_is_cut_short_is_refused(latent: Released, tmp_path: Path, part: float) -> None:
    whole = (latent.folder / "params").read_bytes()
    (tmp_path / "params").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(LapaError, match="params"):
        read_index(tmp_path / "params")


@pytest.mark.parametrize("content", [
    b"not msgpack at all", b"\xc0" * 40, b"version https://git-lfs.github.com/spec/v1", packed([["a"], b"x"]),
    packed([["a", 3], b""]), packed([["a"], packed([1, 2])]),
])  # fmt: skip
def test_other_bytes_are_no_params(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "params").write_bytes(content)
    with pytest.raises(LapaError, match="params"):
        read_index(tmp_path / "params")


def _without(name: str) -> Any:
    return lambda weights: weights.pop(name)


def _changed(name: str, shape: tuple[int, ...]) -> Any:
    return lambda weights: weights.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without("transformer/h/scan_decoder/attention/wk/kernel"), "attention/wk"),
        (_without("vision_head/kernel"), "vision_head"),
        (_without("transformer/dte/embedding"), "dte"),
        (_without("transformer/ln_f/kernel"), "ln_f"),
        (_changed("transformer/h/scan_decoder/feed_forward/w2/kernel", (2, 24, 17)), "w2.*17"),
        (_changed("transformer/h/scan_decoder/attention_norm/kernel", (3, 16)), "attention_norm"),
        (_changed("delta_head/kernel", (16, 9)), "dte"),
        (_changed("transformer/wte/embedding", (300, 16)), "320.*300"),
        (_changed("transformer/vte/embedding", (8000, 16)), "8000"),
        (_changed("something/else", (2, 2)), "something/else"),
        (_changed("transformer/ln_f/kernel", (16, 1)), "ln_f"),
        (lambda w: w.update({"lm_head/kernel": np.full((16, 320), np.inf, np.float32)}), "lm_head.*infinite"),
    ],
)
def test_weights_that_do_not_fit_are_named(latent: Released, tmp_path: Path, change: Any, says: str) -> None:
    weights = dict(latent.weights)
    change(weights)
    shutil.copytree(latent.folder, tmp_path / "files")
    (tmp_path / "files/params").write_bytes(params_bytes(weights))
    with pytest.raises(LapaError, match=says):
        from_lapa(tmp_path / "files/params", tmp_path / "out", latent.folder / "vqgan",
                  latent.folder / "tokenizer.model", choices=Choices(heads=2))  # fmt: skip
    assert not (tmp_path / "out/config.json").exists()
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


@pytest.mark.parametrize(("heads", "says"), [(None, "--heads"), (3, "3 heads"), (16, "16 heads")])
def test_heads_must_be_known_and_fit(latent: Released, tmp_path: Path, heads: int | None, says: str) -> None:
    with pytest.raises(LapaError, match=says):
        from_lapa(latent.folder / "params", tmp_path / "out", latent.folder / "vqgan",
                  latent.folder / "tokenizer.model", choices=Choices(heads=heads))  # fmt: skip


def test_files_that_do_not_go_together_are_refused(latent: Released, action: Released, tmp_path: Path) -> None:
    params, vqgan, text = (latent.folder / name for name in ("params", "vqgan", "tokenizer.model"))
    (tmp_path / "other.model").write_bytes(tokenizer(310))
    (tmp_path / "none.model").write_bytes(b"no model")
    for model in ("other.model", "none.model", "absent.model"):
        with pytest.raises(LapaError, match=model):
            from_lapa(params, tmp_path / "out", vqgan, tmp_path / model, choices=Choices(heads=2))
    with pytest.raises(LapaError, match="--bins"):
        from_lapa(params, tmp_path / "out", vqgan, text, action.folder / "bins.csv", Choices(heads=2))
    with pytest.raises(LapaError, match="--bins"):
        from_lapa(action.folder / "params", tmp_path / "out", vqgan, text, choices=Choices(heads=2))
    (tmp_path / "short").write_bytes(pickled({k: v for k, v in latent.pictures.items() if "quant_conv" not in k}))
    with pytest.raises(LapaError, match="quant_conv"):
        from_lapa(params, tmp_path / "out", tmp_path / "short", text, choices=Choices(heads=2))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(LapaError, match="full"):
        from_lapa(params, tmp_path / "full", vqgan, text, choices=Choices(heads=2))


@pytest.mark.parametrize("content", [
    "", "0,1,2\n", "0,1,2,3\n0,1,2,3\n", "0,1,2,3,4\n0,1,x,3,4\n", "0,1,2,3,4\n0,1,1,3,4\n", "0,1,2,3,4\n3,2,1,,\n",
    "0,1,2,3,4\n0,nan,1,,\n", "0,1,2,3,4\n0,1,,3,4\n", "0,1,2,3,4\n1,,,,\n",
])  # fmt: skip
def test_a_csv_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "bins.csv").write_text(content)
    with pytest.raises(LapaError, match=r"bins\.csv"):
        read_bins(tmp_path / "bins.csv", 5)
    (tmp_path / "bins.csv").write_text(BINS)
    assert read_bins(tmp_path / "bins.csv", 5).classes == 5


class _Harmful:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


@pytest.mark.parametrize(("call", "arguments", "named"), [
    (os.system, ("touch {}",), "system"), (eval, ("open('{}', 'w')",), "eval"), (getattr, ("{}", "upper"), "getattr"),
    (np.load, ("{}",), "load"), (bytearray, (3,), "bytearray"),
])  # fmt: skip
def test_code_in_a_pickle_is_named_and_never_run(call: Any, arguments: Any, named: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    arguments = [a.format(mark) if isinstance(a, str) else a for a in arguments]
    for protocol in (0, 2, 4, 5):
        (tmp_path / "vqgan").write_bytes(pickle.dumps({"encoder": _Harmful(call, *arguments)}, protocol))
        with pytest.raises(LapaError, match=named):
            read_vqgan(tmp_path / "vqgan")
    assert not mark.exists()


@pytest.mark.parametrize("content", [
    b"", b"no pickle", pickle.dumps([1, 2]), pickle.dumps({"a": 3}), pickle.dumps({"a": {1: 2}}), pickle.dumps("text"),
    pickled({"a": np.zeros(3)}), pickled({"a": np.array([None, 3])}), pickled({"a": np.zeros(3, np.float32)})[:-20],
])  # fmt: skip
def test_a_pickle_of_other_things_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "vqgan").write_bytes(content)
    with pytest.raises(LapaError, match="vqgan"):
        read_vqgan(tmp_path / "vqgan")


def test_the_command_says_what_belongs_to_which_form(latent: Released, tmp_path: Path, capsys: Any) -> None:
    for more in (["--image-size", "256", *latent.arguments], ["--dtype", "bfloat16", "--reverse"], ["--vqgan", "x"]):
        with pytest.raises(SystemExit):
            main(["convert", "lapa-official", str(latent.folder / "params"), str(tmp_path / "out"), *more])
        assert more[0] in capsys.readouterr().err or "--tokenizer" in capsys.readouterr().err


def test_arrays_of_float32_are_kept(latent: Released, tmp_path: Path) -> None:
    files = replace(latent, folder=tmp_path / "files")
    shutil.copytree(latent.folder, files.folder)
    (files.folder / "params").write_bytes(params_bytes(latent.weights, dtype="float32"))
    out = convert(files, tmp_path)
    to_lapa(out, tmp_path / "back")
    assert {stored.dtype for stored in read_index(tmp_path / "back").values()} == {"float32"}
    assert array_bytes(np.zeros(2), None)[0] == 0xC9
