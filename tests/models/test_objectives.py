"""What stage 1 can ask of LAQ beside the reconstruction; pairs that follow each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lapa.contracts import FramePairs, LapaError
from lapa.data.pack import pack
from lapa.data.pairs import following, window_pairs
from lapa.models.laq import LAQConfig
from lapa.models.objectives import FeatureDecoder, FrozenFeatures, Objectives, Taught

TINY = LAQConfig(
    image_size=24, patch_size=6, dim=16, spatial_depth=1, temporal_depth=1, heads=2, dim_head=8,
    codes=1, codebook_size=8, quant_dim=4, normalise=True, decoder="unet", unet_width=8,
)  # fmt: skip


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def batch(rows: int = 8) -> FramePairs:
    images = np.random.default_rng(0).integers(0, 256, (2, rows, 24, 24, 3), dtype=np.uint8)
    zeros = np.zeros(rows, np.int64)
    return FramePairs(images[0], images[1], zeros, zeros, zeros + 1)


# Frozen features


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=24, patch_size=8
    )
    folder = tmp_path_factory.mktemp("encoder")
    transformers.Dinov2Model(config).save_pretrained(folder)
    return str(folder)


def test_features_count_in_units_of_copying(encoder: str) -> None:
    laq = TINY.build().eval()
    now, later = (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 for x in (batch().now, batch().later))
    plain, _ = laq.loss(batch())
    loss, logs = Taught(laq, Objectives(features=0.5, features_of=encoder)).loss(batch())
    torch.testing.assert_close(loss, plain + 0.5 * F.mse_loss(now, later) * logs["features"])


def test_feature_targets_are_frozen_and_not_saved(encoder: str) -> None:
    taught = Taught(TINY.build(), Objectives(features=1.0, features_of=encoder, pixels=False))
    target = taught.target[0]
    before = {k: v.clone() for k, v in target.state_dict().items()}
    torch.nn.init.normal_(taught.predict_features.up.weight)  # it starts at zero, and so does everyone's gradient
    optimizer = torch.optim.SGD(taught.parameters(), lr=1.0)
    loss, logs = taught.loss(batch())
    loss.backward()
    optimizer.step()
    assert logs["features"] > 0
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    assert not any(p.requires_grad for p in target.parameters())
    assert not any("target" in key for key in taught.state_dict())
    weight = taught.laq.project_in.weight
    assert weight.grad is not None
    assert weight.grad.any(), "the codes learn from the features alone"


def test_features_start_from_copying(encoder: str) -> None:
    features = FrozenFeatures(encoder)(torch.rand(2, 3, 48, 48))
    assert features.shape == (2, 10, 16)
    torch.testing.assert_close(features.mean(-1), torch.zeros(2, 10), atol=1e-5, rtol=0)
    assert torch.equal(FeatureDecoder(16, 8)(features, torch.randn(2, 1, 8)), features)


def test_features_need_an_encoder(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(LapaError, match="features_of"):
        Taught(TINY.build(), Objectives(features=1.0))
    with pytest.raises(LapaError, match="cannot load"):
        Taught(TINY.build(), Objectives(features=1.0, features_of=str(tmp_path)))


# Pairs


def test_a_width_that_its_transformer_cannot_have() -> None:
    with pytest.raises(LapaError, match=r"laq\.dim is a multiple of 4, not 18"):
        FeatureDecoder(8, 18)


def test_what_follows_starts_where_its_forerunner_ends() -> None:
    table = pack(["tabletop:sim,episodes=12,seed=9"], 24, quiet=True)
    pairs = window_pairs(table, 0.2)
    after = following(pairs)
    some = np.flatnonzero(after >= 0)
    assert len(some) > len(pairs) / 2
    np.testing.assert_array_equal(pairs.now[after[some]], pairs.later[some])
    np.testing.assert_array_equal(pairs.episode[after[some]], pairs.episode[some])
    np.testing.assert_array_equal(pairs.offset[after[some]], pairs.offset[some])
    last = np.flatnonzero(after < 0)
    ends = table.starts[pairs.episode[last] + 1] - 1
    assert (pairs.later[last] + pairs.offset[last] > ends).all(), "only what would go on past the end"
