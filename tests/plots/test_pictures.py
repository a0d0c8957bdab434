"""Metrics against written-out formulas; pictures and the report as files that open."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lapa.contracts import LapaError
from lapa.data.pack import Packed, pack
from lapa.data.pairs import PairIndex, window_pairs
from lapa.experiments.report import PAPER, answer, write_report
from lapa.measures import probes as metrics
from lapa.measures.intervals import wilson
from lapa.models.laq import LAQ, LAQConfig
from lapa.plots import codes as explorer
from lapa.plots.code_map import code_map
from lapa.plots.flow import flow_tiles

TINY = LAQConfig(
    image_size=32, patch_size=8, dim=16, spatial_depth=1, temporal_depth=1, heads=2, dim_head=8,
    codes=1, codebook_size=6, quant_dim=4, normalise=True, decoder="unet", unet_width=8,
)  # fmt: skip
METHODS = ("no_op", "random", "scratch", "vpt", "lapa", "actionvla", "expert")
FAMILIES = ("block2block", "separate")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack(["tabletop:sim,episodes=12"], 32, cache=tmp_path_factory.mktemp("cache"), quiet=True)


@pytest.fixture(scope="module")
def pairs(packed: Packed) -> PairIndex:
    return window_pairs(packed, 0.4)


@pytest.fixture
def laq() -> LAQ:
    torch.manual_seed(0)
    return TINY.build().eval()


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


# Pictures


def test_reconstructions(laq: LAQ, packed: Packed, pairs: PairIndex, tmp_path: Path) -> None:
    some = pairs.batch(packed, np.arange(3))
    explorer.reconstructions(laq, some.now, some.later, tmp_path / "a" / "r.png", "Step 1")
    width, height = size_of(tmp_path / "a" / "r.png")
    assert width > 4 * 128
    assert 3 * 128 < height < 3 * 128 + 200
    explorer.reconstructions(laq, some.now[:1], some.now[:1], tmp_path / "still.png", "Nothing moves")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["r.png"]


def test_gallery(laq: LAQ, packed: Packed, tmp_path: Path) -> None:
    scenes = packed.gather(np.arange(6))
    explorer.gallery(laq, scenes, tmp_path / "all.png", "All codes")
    assert size_of(tmp_path / "all.png")[1] > 7 * 96
    motion = np.array([[0.1, 0.0], [0.0, 0.0], [np.nan, np.nan]])
    some = np.array([[4], [0], [1]])
    explorer.gallery(laq, scenes, tmp_path / "some.png", "Some", codes=some, motion=motion)
    assert size_of(tmp_path / "some.png")[1] < size_of(tmp_path / "all.png")[1]
    with pytest.raises(LapaError, match="motion"):
        explorer.gallery(laq, scenes, tmp_path / "bad.png", "Bad", codes=some, motion=motion[:2])
    four = replace(TINY, codes=4).build()
    explorer.gallery(four, scenes[:2], tmp_path / "four.png", "Four positions")
    assert size_of(tmp_path / "four.png")[1] > 25 * 96


def test_arrows_point_the_way() -> None:
    right, down, none = explorer._arrows(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    dark = [np.argwhere(a.mean(-1) < 128) for a in (right, down)]
    assert np.ptp(dark[0][:, 1]) > 1.5 * np.ptp(dark[0][:, 0])
    assert np.ptp(dark[1][:, 0]) > 1.5 * np.ptp(dark[1][:, 1])
    assert np.ptp((right.mean(-1) < 128).sum(0)[32:]) > 0  # the head is at the right
    assert (none.mean(-1) < 128).sum() < 80


class Steady:
    """Answers the same code to everything, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[torch.Tensor] = []

    def predict_codes(self, images: torch.Tensor, texts: Any) -> torch.Tensor:
        self.asked.append(images)
        return torch.full((len(images), 1), 2)


@pytest.mark.parametrize("dimensions", [0, 1, 2, 4])
def test_code_map_draws_motion_where_it_is_known(dimensions: int, laq: LAQ, tmp_path: Path) -> None:
    """The first of two codes moves, upwards: blue above it and nowhere below."""
    book = torch.zeros(6, 4)
    book[:, :dimensions] = torch.randn(6, dimensions)
    book[0] = book.mean(0)  # in the middle of the map
    laq.quantizer.codebook.data = book
    codes, motion = np.array([[0], [1]]), np.full((2, 1, 2), np.nan)
    assert code_map(laq, codes, tmp_path / "still.png", "Map", motion) == dimensions
    motion[0, 0] = [0, -0.1]  # in pictures down is positive
    code_map(laq, codes, tmp_path / "moving.png", "Map", motion, None, ["sim"])
    blue = []
    for name in ("still", "moving"):
        with Image.open(tmp_path / f"{name}.png") as image:
            pixels = np.asarray(image.convert("RGB"), int)
        blue.append((pixels[..., 2] > pixels[..., 0] + 100).nonzero()[0])
    assert not len(blue[0])
    assert len(blue[1]) > 50
    assert blue[1].max() < len(pixels) * 0.6


def test_code_map_of_several_codes_a_pair_shows_one_position(tmp_path: Path) -> None:
    laq = replace(TINY, codes=4).build().eval()
    pairs = np.random.default_rng(0).integers(0, 6, (9, 4))
    assert code_map(laq, pairs, tmp_path / "map.png", "Map", np.ones((9, 1, 2))) == 4, "of one position, not of all"
    assert size_of(tmp_path / "map.png")[0] > 500


def test_imagine_feeds_its_own_drawings_back(laq: LAQ, packed: Packed, tmp_path: Path) -> None:
    torch.nn.init.normal_(laq.decoder.out.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    policy, real = Steady(), packed.gather(np.arange(9))
    frames = explorer.imagine(policy, laq, real[0], "push", 5)
    assert frames.shape == (6, 32, 32, 3)
    assert frames.dtype == np.uint8
    assert (frames[0] == real[0]).all()
    assert len(policy.asked) == 5
    assert torch.equal(policy.asked[1], laq.decode(real[:1], np.array([[2]])))
    explorer.rollout_strip(real, frames, tmp_path / "rollout.png")
    assert size_of(tmp_path / "rollout.png")[0] > 6 * 96


def test_contact_sheet_and_description(packed: Packed, tmp_path: Path) -> None:
    odd = replace(packed, instructions=("", "a very long instruction " * 20, "漢字 <b>", *packed.instructions[3:]))
    explorer.contact_sheet(odd, tmp_path / "sheet.png", count=5)
    explorer.contact_sheet(packed.subset(np.array([3])), tmp_path / "one.png")
    assert size_of(tmp_path / "sheet.png")[0] > 2 * size_of(tmp_path / "one.png")[0] * 0.9
    about = json.loads(json.dumps(explorer.describe(odd)))
    assert about["episodes"] == 12
    assert about["frames"] == len(packed)
    assert about["hours"] == pytest.approx(len(packed) / 5 / 3600)
    assert about["fps"] == {"5": 12}
    assert about["instructions"]["missing"] == 1
    assert packed.actions is not None
    assert [a["max"] for a in about["actions"]] == pytest.approx(packed.actions.max(0).tolist())
    assert explorer.describe(replace(packed, actions=None))["actions"] is None


def shares(success: float) -> dict[str, Any]:
    low, high = wilson(round(100 * success), 100)
    return {"success": success, "interval": [low, high], "episodes": 100}


def methods(**success: float) -> dict[str, Any]:
    given = {m: success.get(m, 0.5) for m in METHODS}
    return {m: {**shares(s), "families": {f: shares(s) for f in FAMILIES}} for m, s in given.items()}


def test_success_bars(tmp_path: Path) -> None:
    explorer.success_bars(methods(), tmp_path / "all.png")
    explorer.success_bars({"lapa": {**shares(0.5), "families": {}}}, tmp_path / "one.png", "One")
    dear = {"pay $5_{ or $6": {**shares(0.5), "families": {"a $\\frac$ more": shares(0.5)}}}  # no formulas
    explorer.success_bars(dear, tmp_path / "dear.png", "From $1^ to $2^")
    assert size_of(tmp_path / "all.png") > size_of(tmp_path / "one.png")


@pytest.mark.filterwarnings("error")  # matplotlib warns where there is no room for the bars
def test_bars_of_many_families_have_room(tmp_path: Path) -> None:
    named = {f"pick up the red mug and put it on plate {i}": shares(0.5) for i in range(10)}
    explorer.success_bars({"actionvla": {**shares(0.5), "families": named}}, tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as picture:
        assert picture.width < 1100
        assert picture.height > 500  # three rows of families


def test_names_of_tasks_are_told_as_words(tmp_path: Path) -> None:
    for name in ("open_the_middle_drawer_of_the_cabinet", "open the middle drawer of the cabinet"):
        bars = {"lapa": {**shares(0.5), "families": {name: shares(0.5)}}}
        explorer.success_bars(bars, tmp_path / f"{name[:6]}.png")
    assert (tmp_path / "open_t.png").read_bytes() == (tmp_path / "open t.png").read_bytes()


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_animation(ending: str, packed: Packed, tmp_path: Path) -> None:
    frames = packed.gather(np.arange(8))
    explorer.animation(frames, tmp_path / f"film.{ending}", fps=10, scale=2)
    with Image.open(tmp_path / f"film.{ending}") as film:
        assert film.size == (64, 64)
        assert film.is_animated  # type: ignore[attr-defined]
        assert film.info["loop"] == 0
        shown = np.asarray(film.convert("RGB"))[::2, ::2]
    assert np.abs(shown.astype(int) - frames[0]).mean() < 2


def test_animation_refuses(tmp_path: Path) -> None:
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    for name, some, fps in (("a.mp4", frames, 5), ("a.gif", frames[:0], 5), ("a.gif", frames, 0)):
        with pytest.raises(LapaError, match=r"\.gif"):
            explorer.animation(some, tmp_path / name, fps)
    assert not list(tmp_path.iterdir())


def test_words_fit() -> None:
    font = explorer._font(13)
    for text in ("push the red star", "x" * 400, "word " * 90, ""):
        lines = explorer._wrap(text, font, 120, most=2)
        assert len(lines) <= 2
        assert all(font.getlength(line) <= 120 for line in lines)


# The report


def results(**success: float) -> dict[str, Any]:
    return {
        "methods": methods(**success),
        "probe": {
            "action_r2": 0.9,
            "displacement_r2": 0.8,
            "position_r2": 0.02,
            "perplexity": [11.5],
            "error_over_copy": 0.4,
        },
        "seconds": {"data": 3.0, "quantize": 123.0},
        "settings": {"labels": 20, "recipe": {"window": 0.2, "odd <name>": "<script>alert(1)</script>"}},
    }


def test_report_is_whole_and_escapes(tmp_path: Path, packed: Packed) -> None:
    pictures = tmp_path / "pictures"
    explorer.success_bars(methods(), pictures / "success.png")
    explorer.contact_sheet(packed, pictures / "contact_sheet.png", count=2)
    explorer.animation(packed.gather(np.arange(4)), pictures / "scene_0_lapa.gif", 5)
    about = {"instruction": '<img src="x" onerror="alert(1)">', "family": "separate", "success": False, "steps": 60}
    (pictures / "scene_0_lapa.json").write_text(json.dumps({**about, "method": "lapa"}))
    (tmp_path / "results.json").write_text(json.dumps(results(scratch=0.1, lapa=0.5, actionvla=0.6)))
    page = write_report(tmp_path).read_text()
    for name in METHODS:
        assert explorer.METHOD_NAMES[name] in page
    assert "80%" in page
    assert "not solved" in page
    assert page.count("data:image/png;base64,") == 2
    assert page.count("data:image/gif;base64,") == 1
    assert "gallery.png" in page
    assert "2 min 03 s" in page
    assert "<script" not in page
    assert "onerror=&quot;" in page
    text = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "", page)
    assert text.count(f'href="{PAPER}"') == 1, "a link, and nothing that is fetched"
    text = text.replace(PAPER, "")
    assert not re.search(r"https?:|//\w|@import|url\(|<link|<iframe", text)
    assert set(re.findall(r'src="([^"]*)"', text)) == {""}


def test_report_without_pictures_or_details(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"methods": results()["methods"]}))
    page = write_report(tmp_path).read_text()
    assert "<img" not in page
    assert page.count('<p class="muted">') == 7
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["report.html", "results.json"]


@pytest.mark.parametrize(
    ("success", "said"),
    [
        ({"scratch": 0.1, "lapa": 0.7, "actionvla": 0.9}, r"\b75%"),
        ({"scratch": 0.5, "lapa": 0.4, "actionvla": 0.9}, "not beat"),
        ({"scratch": 0.5, "lapa": 0.55, "actionvla": 0.9}, "chance"),
        ({"scratch": 0.3, "lapa": 0.6, "actionvla": 0.2}, "no gap"),
        ({"scratch": 0.1, "lapa": 0.8, "actionvla": 0.6}, r"\b140%"),
        ({"scratch": 0.1, "lapa": 0.8, "vpt": 0.78}, "LAPA.* VPT .*level"),
        ({"scratch": 0.1, "lapa": 0.9, "vpt": 0.3}, "LAPA .*ahead.* VPT"),
        ({"scratch": 0.1, "lapa": 0.3, "vpt": 0.9}, "VPT .*ahead.* LAPA"),
    ],
)
def test_answer_is_honest(success: dict[str, float], said: str) -> None:
    told = answer(results(**success))
    assert re.search(said, told)
    assert all(f"{100 * share:.1f}%" in told for share in success.values())


def test_report_refuses(tmp_path: Path) -> None:
    with pytest.raises(LapaError, match=r"results\.json"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text('{"methods": {}}')
    with pytest.raises(LapaError, match="no methods"):
        write_report(tmp_path)


def test_r2_is_one_for_the_truth_and_zero_for_the_mean() -> None:
    true = np.random.default_rng(0).normal(size=(50, 2))
    assert metrics.r2(true, true) == 1
    assert metrics.r2(np.broadcast_to(true.mean(0), true.shape), true) == pytest.approx(0)
    assert metrics.r2(true + 1, true) == pytest.approx(1 - 100 / np.square(true - true.mean(0)).sum())


def test_flow_is_drawn_where_it_is() -> None:
    flow = np.zeros((3, 2, 6, 8))
    flow[0, 0, :, 4:] = 1.0  # the right half moves to the right
    flow[1] = np.nan
    moving, unknown, still = flow_tiles(flow, 96)
    ink = (moving < 100).all(-1)
    assert ink[:, 56:].sum() > 20 * max(1, ink[:, :40].sum())
    assert (unknown == 255).all()
    assert (still > 150).all()
    assert (still < 255).any()
