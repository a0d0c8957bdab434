"""Stage 1's model: LAQ, its quantizer and its inputs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa.contracts import FramePairs, LapaError
from lapa.data.pixels import as_pixels
from lapa.models.laq import LAQ, LAQConfig, contrast, shrink
from lapa.models.transformer import PEG, Attention, PositionBias

TINY = LAQConfig(
    image_size=32, patch_size=4, dim=16, spatial_depth=1, temporal_depth=1, heads=2, dim_head=8,
    codes=1, codebook_size=8, quant_dim=4, normalise=True, decoder="unet", unet_width=8,
)  # fmt: skip


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def frames(batch: int = 4, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)


def pairs(batch: int = 4, size: int = 32) -> FramePairs:
    zeros = np.zeros(batch, np.int64)
    return FramePairs(frames(batch, size, 0), frames(batch, size, 1), zeros, zeros, zeros + 1)


# The model


def test_paper_preset_at_full_size() -> None:
    with torch.device("meta"):
        model = LAQConfig().build()
        now = torch.empty(2, 3, 256, 256)
        difference = model.difference(now, now)
        future = model.predict(now, difference)
    assert sum(p.numel() for p in model.parameters()) == 343_796_080
    assert difference.shape == (2, 4, 32)
    assert future.shape == (2, 3, 256, 256)


@pytest.mark.parametrize("decoder", ["transformer", "unet"])
@pytest.mark.parametrize("codes", [1, 2, 4, 6, 16])
def test_encode_and_decode(codes: int, decoder: str) -> None:
    model = replace(TINY, codes=codes, decoder=decoder).build()
    now, later = frames(seed=0), frames(seed=1)
    z = model.encode(now, later)
    assert z.dtype == torch.int64
    assert z.shape == (4, codes)
    future = model.decode(now, z)
    assert future.dtype == torch.float32
    assert future.shape == (4, 3, 32, 32)
    assert not future.requires_grad
    assert 0 <= future.min() <= future.max() <= 1
    torch.testing.assert_close(model.reconstruct(now, later), future)
    assert model.training  # asking does not change the mode
    assert not model.quantizer.usage.any()  # nor the codebook's statistics


@pytest.mark.parametrize(
    ("quantizer", "codes"), [("nsvq", 1), ("nsvq", 4), ("vq_ema", 2), ("fsq", 2), ("residual", 1), ("residual", 2)]
)
def test_places_keep_the_distances_of_the_codebook(quantizer: str, codes: int) -> None:
    model = replace(TINY, codes=codes, quantizer=quantizer).build()
    positions, size = model.quantizer.positions, model.quantizer.size
    places = model.code_embeddings()
    assert places.dtype == np.float32
    assert len(places) == positions * size
    for position in range(positions):
        chosen = torch.zeros(size, positions, dtype=torch.int64)
        chosen[:, position] = torch.arange(size)
        embedding = model.quantizer.lookup(chosen).flatten(1).detach()
        mine = torch.from_numpy(places[position * size : (position + 1) * size])
        torch.testing.assert_close(torch.cdist(mine, mine), torch.cdist(embedding, embedding), atol=1e-3, rtol=1e-3)


def test_a_flat_codebook_is_known_for_flat() -> None:
    model = replace(TINY, quant_dim=16).build()
    plane = torch.randn(8, 2) @ torch.linalg.qr(torch.randn(16, 2))[0].T
    model.quantizer.codebook.data = plane + 1e-4 * torch.randn(8, 16) + 7
    assert model.code_embeddings().shape == (8, 2)


def test_uint8_and_float_agree() -> None:
    model = TINY.build()
    now, later = frames(seed=0), frames(seed=1)
    as_float = [torch.from_numpy(x).permute(0, 3, 1, 2) / 255 for x in (now, later)]
    assert torch.equal(model.encode(now, later), model.encode(*as_float))
    assert torch.equal(model.encode(now, later), model.encode(*(x.numpy() for x in as_float)))


def test_loss_of_copying_at_the_start() -> None:
    loss, logs = TINY.build().loss(pairs())
    copy = F.mse_loss(as_pixels(pairs().now, 32, "cpu"), as_pixels(pairs().later, 32, "cpu"))
    torch.testing.assert_close(loss, copy)
    assert logs["error_over_copy"] == pytest.approx(1)
    assert logs["mse"] == pytest.approx(float(copy))


def test_normalised_difference_has_no_common_part() -> None:
    model = TINY.build()
    d = model.normalise(model.difference(torch.rand(8, 3, 32, 32), torch.rand(8, 3, 32, 32)))
    torch.testing.assert_close(d.mean((0, 1)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(d.std((0, 1), correction=0), torch.ones(4), atol=1e-2, rtol=0)


def test_a_symmetric_difference_turns_round_exactly() -> None:
    a, b = (as_pixels(frames(seed=i), 32, "cpu") for i in (0, 1))
    for symmetric in (True, False):
        model = replace(TINY, symmetric=symmetric).build()
        for parameter in model.parameters():  # the layers that tell first from second start at zero
            parameter.data += 0.1 * torch.randn_like(parameter)
        there, back = model.difference(a, b), model.difference(b, a)
        assert torch.allclose(there, -back, atol=1e-6) == symmetric
        assert there.std() > 1e-3


def test_contrast_knows_no_colours() -> None:
    pixels = torch.full((3, 3, 32, 32), 0.4)
    pixels[1, :, 10:14, 20:24] = 0.9
    pixels[2, 0, 10:14, 20:24] = 0.1  # a dark one, in one channel
    flat, light, dark = contrast(pixels)
    assert flat.max() < 1e-6, "nothing stands out of an empty image"
    torch.testing.assert_close(light, dark)
    assert light.max() == 1
    assert light[:, 10:14, 20:24].mean() > 10 * light.mean()
    torch.testing.assert_close(contrast(1 - pixels), contrast(pixels))
    model = replace(TINY, encoder_input="contrast").build()
    night = 0.6 * pixels[[0, 1]] + 0.1
    assert torch.allclose(
        model.difference(pixels[[0, 0]], pixels[[0, 1]]), model.difference(night[[0, 0]], night), atol=1e-5
    )


def test_still_frames_do_not_divide_by_zero() -> None:
    batch = pairs()
    _, logs = TINY.build().loss(replace(batch, later=batch.now))
    assert np.isfinite(logs["error_over_copy"])


@pytest.mark.parametrize("decoder", ["transformer", "unet"])
def test_gradient_reaches_encoder_and_codebook(decoder: str) -> None:
    model = replace(TINY, decoder=decoder).build()
    if decoder == "unet":  # its last layer starts at zero, and so does everyone's gradient
        torch.nn.init.normal_(model.decoder.out.weight)
    model.loss(pairs())[0].backward()
    unused = {n for n, p in model.named_parameters() if p.numel() and (p.grad is None or not p.grad.any())}
    # By construction: self-attention owns a norm for a context it never has (as in the released model), softmax
    # is blind to the position MLP's last bias, and the CNN's last bias cancels in the difference.
    blind = {"position_bias.mlp.4.bias", "cnn.2.bias"}
    assert {n for n in unused if "attention.context_norm" not in n} <= blind


def test_decoder_leaves_the_patch_embedding_alone() -> None:
    model = replace(TINY, decoder="transformer").build()
    now = as_pixels(frames(), 32, "cpu")
    model.predict(now, torch.randn(4, 1, 4)).sum().backward()
    assert all(p.grad is None for p in model.patch_embedding.parameters())


def test_golden_loss() -> None:
    """Three Adam steps from a fixed seed. A change here is a change of the method: say so in the commit."""
    model = TINY.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss, _ = model.loss(pairs())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(GOLDEN, abs=1e-4)


GOLDEN = [0.165902, 0.183638, 0.166230]


def test_config_is_json() -> None:
    assert LAQConfig(**json.loads(json.dumps(asdict(TINY)))) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 5}, "patch_size 5 .*image_size 32"),
        ({"codes": 0}, "at least 1"),
        ({"codes": 11}, "11x1.* 8x8"),
        ({"codes": 81}, "8x8"),
        ({"decoder": "unett"}, '"unet"'),
        ({"encoder_input": "contrasts"}, '"contrast"'),
        ({"encoder_input": "contrast", "decoder": "transformer"}, "take laq.decoder=unet"),
        ({"quantizer_options": {"size": 4}}, r'"size".* laq\.codebook_size'),
    ],
)
def test_config_refuses(change: dict, message: str) -> None:
    with pytest.raises(LapaError, match=message):
        replace(TINY, **change)


@given(grid=st.integers(1, 32), rows=st.integers(1, 6), cols=st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_the_small_cnn_reaches_every_grid(grid: int, rows: int, cols: int) -> None:
    if cols <= rows <= grid:
        with torch.device("meta"):
            assert shrink(2, grid, rows, cols)(torch.empty(1, 2, grid, grid)).shape == (1, 2, rows, cols)


# Inputs


def test_other_sizes_are_resized_by_area() -> None:
    image = frames(2, 64)
    expected = image.reshape(2, 32, 2, 32, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2) / 255
    # Pixels are whole numbers after rows and after columns: half a level is lost twice at most.
    np.testing.assert_allclose(as_pixels(image, 32, "cpu").numpy(), expected, atol=1 / 255 + 1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 32, 32, 4), np.uint8), r"uint8 \[2, 32, 32, 4\]"),
        (np.zeros((32, 32, 3), np.uint8), "uint8"),
        (np.zeros((2, 32, 32, 3), np.float32), "float32"),
        (np.zeros((2, 3, 32, 32), np.int64), "int64"),
        (np.full((2, 3, 32, 32), 255.0), r"\[0, 1\]; got 255"),
        (np.full((2, 3, 32, 32), np.nan), r"\[0, 1\]"),
        (np.zeros((2, 0, 32, 3), np.uint8), "0x32"),
    ],
)
def test_images_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(LapaError, match=f"^later: .*{message}"):
        TINY.build().encode(frames(2), images)


def test_views_are_read_like_their_copies() -> None:
    """BGR turned into RGB, or a picture in a mirror, has strides below 0, which torch does not take."""
    for view in (frames()[..., ::-1], frames()[:, :, ::-1]):
        assert torch.equal(as_pixels(view, 32, "cpu"), as_pixels(view.copy(), 32, "cpu"))


@pytest.mark.parametrize(("now", "later"), [(4, 3), (1, 4), (0, 0)])
def test_what_is_no_pair_is_refused(now: int, later: int) -> None:
    model, rows = TINY.build(), np.arange(now)
    with pytest.raises(LapaError, match=rf"\b{now} and {later}\b"):
        model.encode(frames(now), frames(later))
    with pytest.raises(LapaError, match=rf"\b{now} and {later}\b"):
        model.loss(FramePairs(frames(now), frames(later), rows, rows, rows + 1))


@pytest.mark.parametrize("codes", [[[8]] * 4, [[-1]] * 4, [[0, 0]] * 4, [[0]] * 3, [[0.5]] * 4])
def test_codes_refused(codes: list) -> None:
    with pytest.raises(LapaError, match="codes"):
        TINY.build().decode(frames(), np.array(codes))


# Transformer blocks


@given(t=st.integers(1, 4), h=st.integers(1, 5), w=st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_peg_is_the_causal_3d_convolution(t: int, h: int, w: int) -> None:
    peg = PEG(6)
    torch.nn.init.normal_(peg.conv.weight)  # it starts at zero
    torch.nn.init.normal_(peg.conv.bias)
    video = torch.randn(2, t, h, w, 6)
    padded = F.pad(video.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 2, 0))
    torch.testing.assert_close(peg(video), peg.conv(padded).permute(0, 2, 3, 4, 1), atol=1e-4, rtol=1e-4)


def test_attention_is_its_formula() -> None:
    attention = Attention(8, heads=2, dim_head=4, null_keys=2)
    for p in attention.parameters():
        torch.nn.init.normal_(p)
    x, context = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    q = attention.to_q(attention.norm(x))[0].view(3, 2, 4)
    k, v = attention.to_kv(attention.context_norm(context))[0].view(5, 2, 2, 4).unbind(1)
    heads = []
    for h in range(2):
        keys = torch.cat([attention.null_kv[h, 0::2], k[:, h]])
        values = torch.cat([attention.null_kv[h, 1::2], v[:, h]])
        query = q[:, h] / q[:, h].norm(dim=-1, keepdim=True) * attention.q_scale
        keys = keys / keys.norm(dim=-1, keepdim=True) * attention.k_scale
        heads.append((8 * query @ keys.T).softmax(-1) @ values)
    torch.testing.assert_close(attention(x, context)[0], attention.to_out(torch.cat(heads, -1)), atol=1e-5, rtol=1e-4)


def test_position_bias_depends_on_the_offset_alone() -> None:
    bias = PositionBias(8, heads=2)(3, 4).view(2, 3, 4, 3, 4)
    assert torch.equal(bias[:, 0, 0, 1, 2], bias[:, 1, 1, 2, 3])
    assert not torch.equal(bias[:, 0, 0, 1, 2], bias[:, 1, 2, 0, 0])


def test_build_gives_a_module_with_the_quantizer_protocol() -> None:
    model = TINY.build()
    assert isinstance(model, LAQ)
    assert set(model.after_step(1)) == {"perplexity_0", "utilisation_0"}
    assert model.quantizer.size == 8
