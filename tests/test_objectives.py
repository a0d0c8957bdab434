"""What stage 1 can ask of LAQ beside the reconstruction, and the pairs that it asks it of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lapa import cli
from lapa.contracts import FramePairs, LapaError
from lapa.data.lessons import Lessons, Pool
from lapa.data.pack import Packed, pack
from lapa.data.pairs import following, several_windows, window_pairs
from lapa.models.laq import LAQConfig
from lapa.models.objectives import FeatureDecoder, FrozenFeatures, Objectives, Taught, alike, unlike
from lapa.training.checkpoint import load_artefact, read_tensors

TINY = LAQConfig(
    image_size=24, patch_size=6, dim=16, spatial_depth=1, temporal_depth=1, heads=2, dim_head=8,
    codes=1, codebook_size=8, quant_dim=4, normalise=True, decoder="unet", unet_width=8,
)  # fmt: skip


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def table() -> Packed:
    return pack(["tabletop:sim,episodes=12,seed=9"], 24, quiet=True)


def batch(rows: int = 8, actions: np.ndarray | None = None) -> FramePairs:
    images = np.random.default_rng(0).integers(0, 256, (2, rows, 24, 24, 3), dtype=np.uint8)
    zeros = np.zeros(rows, np.int64)
    return FramePairs(images[0], images[1], zeros, zeros, zeros + 1, actions)


def every_row(packed: Packed, windows: int = 1) -> Pool:
    pairs = several_windows(packed, 0.2, windows)
    return Pool(packed, pairs, np.arange(len(pairs)))


# Terms


def test_nothing_asked_is_the_loss_of_laq() -> None:
    laq = TINY.build()
    torch.manual_seed(1)
    expected, logs = laq.loss(batch())
    torch.manual_seed(1)
    loss, same = Taught(laq, Objectives()).loss(batch())
    assert torch.equal(loss, expected)
    assert same == logs
    assert not Objectives(windows=3).any, "several windows change the pairs alone"


def test_terms_count_in_units_of_copying() -> None:
    laq = TINY.build().eval()
    now, later = (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 for x in (batch().now, batch().later))
    plain, _ = laq.loss(batch())
    loss, logs = Taught(laq, Objectives(reversal=0.5)).loss(batch())
    torch.testing.assert_close(loss, plain + 0.5 * F.mse_loss(now, later) * logs["reversal"])


def test_reversal_is_nothing_for_a_difference_that_turns_round() -> None:
    a = torch.randn(8, 1, 4)
    assert unlike(a, a) == 0
    assert unlike(a, -a) == pytest.approx(2)
    assert unlike(torch.ones(4), torch.zeros(4)) == 1
    laq = TINY.build()
    laq.compare = lambda now, later: (later - now).mean((2, 3))[:, None, [0, 1, 2, 0]]  # type: ignore[method-assign]
    _, logs = Taught(laq, Objectives(reversal=1.0)).loss(batch())
    assert logs["reversal"] == pytest.approx(0, abs=1e-6)
    laq.compare = lambda now, later: (later + now).mean((2, 3))[:, None, [0, 1, 2, 0]]  # type: ignore[method-assign]
    _, logs = Taught(laq, Objectives(reversal=1.0)).loss(batch())
    assert logs["reversal"] == pytest.approx(2, abs=1e-6)


def test_additivity_is_nothing_for_a_sum(table: Packed) -> None:
    lessons = Lessons(every_row(table), 8, chained=True)
    chained = lessons.load(lessons.draw(np.random.default_rng(0)))
    laq = TINY.build()
    laq.compare = lambda now, later: (later - now).mean((2, 3))[:, None, [0, 1, 2, 0]]  # type: ignore[method-assign]
    _, logs = Taught(laq, Objectives(additivity=1.0)).loss(chained)
    assert logs["additivity"] == pytest.approx(0, abs=1e-6)
    _, logs = Taught(laq, Objectives(additivity=1.0)).loss(batch())  # pairs that do not follow each other
    assert logs["additivity"] > 0.1


def test_actions_are_read_where_they_are_known() -> None:
    actions = np.random.default_rng(1).normal(3, 5, (8, 2)).astype(np.float32)
    some = actions.copy()
    some[2:] = np.nan
    taught = Taught(TINY.build(), Objectives(actions=1.0), actions)
    loss, logs = taught.loss(batch(actions=some))
    loss.backward()
    assert np.isfinite(logs["actions"])
    for parameter in (taught.read_action.weight, taught.laq.project_in.weight):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
    with torch.no_grad():
        taught.read_action.weight.zero_()
        taught.read_action.bias.zero_()
    expected = np.square((actions[:2] - actions.mean(0)) / actions.std(0)).mean()
    assert taught.loss(batch(actions=some))[1]["actions"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("chained", [False, True])
def test_both_frames_are_changed_alike(chained: bool) -> None:
    now = torch.rand(4, 3, 24, 24)
    changed, same = alike(now, now, 1.0, chained)
    assert torch.equal(changed, same)
    assert 0 <= changed.min() <= changed.max() <= 1
    assert (changed - now).abs().mean((1, 2, 3)).min() > 0.01
    torch.testing.assert_close(alike(now, now, 0.0)[0], now, atol=1e-5, rtol=1e-4)
    twins = now[[0, 0, 1, 1]]
    one, other = alike(twins, twins, 1.0, chained)[0][:2]
    assert torch.equal(one, other) == chained, "pairs that follow each other stay in one picture"


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


def test_several_windows_are_all_pairs_of_each(table: Packed) -> None:
    one, two = window_pairs(table, 0.2), window_pairs(table, 0.4)
    both = several_windows(table, 0.2, 2)
    assert len(both) == len(one) + len(two)
    np.testing.assert_array_equal(both.offset[: len(one)], one.offset)
    np.testing.assert_array_equal(both.later[len(one) :], two.later)
    assert len(several_windows(table, 0.2, 10_000)) > len(both), "windows that fit no episode are left out"


@pytest.mark.parametrize("windows", [1, 3])
def test_what_follows_starts_where_its_forerunner_ends(table: Packed, windows: int) -> None:
    pairs = several_windows(table, 0.2, windows)
    after = following(pairs)
    some = np.flatnonzero(after >= 0)
    assert len(some) > len(pairs) / 2
    np.testing.assert_array_equal(pairs.now[after[some]], pairs.later[some])
    np.testing.assert_array_equal(pairs.episode[after[some]], pairs.episode[some])
    np.testing.assert_array_equal(pairs.offset[after[some]], pairs.offset[some])
    last = np.flatnonzero(after < 0)
    ends = table.starts[pairs.episode[last] + 1] - 1
    assert (pairs.later[last] + pairs.offset[last] > ends).all(), "only what would go on past the end"


def test_labels_come_from_the_labelled_alone(table: Packed) -> None:
    few = pack(["tabletop:sim,episodes=3,seed=10"], 24, quiet=True)
    lessons = Lessons(every_row(table), 8, every_row(few), every=4, chained=True)
    drawn = lessons.load(lessons.draw(np.random.default_rng(0)))
    assert drawn.actions is not None
    known = np.isfinite(drawn.actions).all(1)
    assert known.tolist() == [False] * 6 + [True] * 2, "every fourth chain"
    video, truth = lessons.video, lessons.labelled
    assert truth is not None
    for i in range(8):
        pool = truth if known[i] else video
        at = pool.packed.starts[drawn.episode[i]] + drawn.frame[i]
        np.testing.assert_array_equal(drawn.now[i], pool.packed.gather(np.array([at]))[0])
    np.testing.assert_array_equal(drawn.later[0::2], drawn.now[1::2])
    assert lessons.actions is not None
    assert len(lessons.actions) == len(truth.pairs)


def test_labelled_trajectories_from_the_command_line(
    robot: Path, clips: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", "--dataset", f"video_folder:{clips}", *small, "--steps", "2", "--out", str(tmp_path / "laq")]
    with pytest.raises(SystemExit):
        cli.main([*command, "--labelled", f"lerobot:{robot}"])
    assert "go together" in capsys.readouterr().err
    cli.main([*command, "--labelled", f"lerobot:{robot}", "--set", "objectives.actions=1", "--resume"])
    made = load_artefact(tmp_path / "laq", "laq")
    assert set(made.config["provenance"]["data"]) == {f"video_folder:{clips}", f"lerobot:{robot}"}
    assert not any("read_action" in key for key in made.tensors), "only training knows of the head"
    assert replace(LAQConfig(**made.config["model"])).build().state_dict().keys() == made.tensors.keys()


def test_a_step_with_everything_is_resumed_bit_for_bit(robot: Path, small: list[str], tmp_path: Path) -> None:
    ask = ("windows=2", "augment=1", "reversal=1", "additivity=1", "actions=1")
    command = ["quantize", "--dataset", f"lerobot:{robot}", "--labelled", f"lerobot:{robot}", *small,
               *(p for a in ask for p in ("--set", f"objectives.{a}")), "--steps", "4"]  # fmt: skip
    cli.main([*command, "--out", str(tmp_path / "whole")])
    with pytest.MonkeyPatch.context() as patch:
        calls = []
        step = Taught.loss

        def broken(self: Taught, pairs: FramePairs) -> tuple:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return step(self, pairs)

        patch.setattr(Taught, "loss", broken)
        with pytest.raises(SystemExit):
            cli.main([*command, "--out", str(tmp_path / "broken")])
    assert not (tmp_path / "broken/config.json").exists()
    cli.main([*command, "--out", str(tmp_path / "broken"), "--resume"])
    one, other = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "broken"))
    assert all(torch.equal(one[k], other[k]) for k in one)
