"""The order of pictures by their names, whatever the names are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lapa.contracts import BadVideo
from lapa.data.sequences import Series, series_of


def found(names: list[str], seed: int = 0) -> tuple[list[Path], list[Series]]:
    images = [Path("clip", names[i]) for i in np.random.default_rng(seed).permutation(len(names))]
    return images, series_of(images)


@pytest.mark.parametrize(
    "form",
    [
        "{i}.png", "img_{i}.jpg", "{i:04d}_left.png", "rgb_{i:04d}_640x480.png", "f_{i:06d}_of_000100.png",
        "frame{i:05d}.jpg", "shot1.{i:04d}.png", "cam2_frame-{i}.png", "frame_{i:06d}_{t}.jpg", "IMG_{i}.JPG",
        "2024-01-05_{i:03d}.png", "{i:03d}-{odd:03d}.png",
    ],
)  # fmt: skip
def test_numbers_anywhere(form: str) -> None:
    names = [form.format(i=i, t=1700000000123 + 33 * i + i % 3, odd=i * 7919 % 1000) for i in range(3, 15)]
    images, (one,) = found(names)
    assert [images[i].name for i in one.order] == names
    one.check(images, "x")
    images, (one,) = found([name for name in names if name != names[5]])
    with pytest.raises(BadVideo, match=r"x: .*missing"):
        one.check(images, "x")


@pytest.mark.parametrize(
    ("names", "rate"),
    [
        ([f"{1305031102 + i // 30}.{i % 30 * 33333:06d}.png" for i in range(60)], 30),
        ([f"{1403636579763555584 + 50000000 * i}.png" for i in range(10)], 20),
        ([f"{1700000000000 + 100 * i}.png" for i in range(10)], 10),
        ([f"2024-01-05_10-59-{58 + i // 10:02d}-{i % 10 * 100:03d}.jpg" for i in range(20)], 10),
        ([f"rgb_{1700000000 + i // 5}.{i % 5 * 2}00.png" for i in range(20)], 5),
        ([f"{i / 10:.1f}.jpg" for i in range(24)], 10),
        ([f"frame_{i / 10:.1f}s.jpg" for i in range(24)], 10),
        ([f"t={i * 0.25}.jpg" for i in range(24)], 4),
        ([f"2024-01-05_10-{11 + i // 60}-{i % 60:02d}.jpg" for i in range(50, 74)], 1),
        ([f"IMG_20240105_1011{i}.jpg" for i in (57, 58, 59)] + [f"IMG_20240105_10120{i}.jpg" for i in range(9)], 1),
        ([f"2024-01-05 10.{11 + i // 60}.{i % 60:02d}.png" for i in range(50, 74)], 1),
    ],
)
def test_names_that_are_times(names: list[str], rate: float) -> None:
    images, (one,) = found(names)
    assert [images[i].name for i in one.order] == names
    assert one.times is not None
    np.testing.assert_allclose(np.diff(one.times), 1 / rate, rtol=0.01)
    one.check(images, "x")


@pytest.mark.parametrize("form", ["20240105_{:06d}.png", "20240105_{:03d}00.png", "{:010d}.png"])
def test_counters_that_may_be_taken_for_times(form: str) -> None:
    images, (one,) = found([form.format(i) for i in range(0, 24)])
    assert one.times is None
    one.check(images, "x")


def test_frame_before_the_view() -> None:
    for form in ("frame_{:03d}_{}.jpg", "step{}-{}.png", "t={}_{}.png"):
        for first in (0, 7):  # whichever number the first frame has
            names = [form.format(first + i, view) for view in range(2) for i in range(12)]
            images, (one,) = found(sorted(names))
            assert [images[i].name for i in one.order] == names[:12]
            assert any("camera: " in note for note in one.notes)
            one.check(images, "x")


def test_several_clips_in_one_folder() -> None:
    for names in (
        [f"{e}.{i}.jpg" for e in range(2) for i in range(5)],
        [f"20240105_{e:04d}_{i:02d}.jpg" for e in range(2) for i in range(5)],
        [f"ep{e}_step_{i}.jpg" for e in range(2) for i in range(5)],
        [f"{e:06d}_{i:06d}.jpg" for e in range(2) for i in range(5)],
        [f"traj{e}_{i:04d}.png" for e in range(2) for i in range(5 * e, 5 * e + 5)],
        [f"{task}_{i}.png" for task in ("open_drawer", "pick_cup") for i in range(5)],
    ):
        images, clips = found(names)
        assert [[images[i].name for i in clip.order] for clip in clips] == [names[:5], names[5:]]
        assert len({clip.name for clip in clips}) == 2
        for clip in clips:
            clip.check(images, "x")


@pytest.mark.parametrize(
    ("first", "second"),
    [("{}.png", "{}_mask.png"),
     ("{}.color.jpg", "{}.depth.png"), ("left_{}.png", "right_{}.png"), ("frame-{}.color.png", "frame-{}.depth.png"),
     ("cam0_{}.png", "cam1_{}.png"), ("image0_{}.png", "image1_{}.png"), ("rgb_{}.png", "infrared_{}.png")],
)  # fmt: skip
def test_several_cameras_in_one_folder(first: str, second: str) -> None:
    images, (one,) = found([form.format(i) for form in (second, first) for i in range(12)])
    assert [images[i].name for i in one.order] == [first.format(i) for i in range(12)]
    assert any("camera: " in note for note in one.notes)


@pytest.mark.parametrize("clips", [1, 2])
def test_a_clip_of_one_picture_joins_no_other(clips: int) -> None:
    names = [f"ep{e}_{i}.png" for e in range(clips) for i in range(5)]
    images, series = found([*names, f"ep{clips}_0.png"])
    assert [[images[i].name for i in one.order] for one in series] == [names[5 * e : 5 * e + 5] for e in range(clips)]
    assert f"such as ep{clips}_0.png" in " ".join(series[0].notes)


def test_pictures_that_are_no_frames() -> None:
    images, (one,) = found([*(f"img_{i}.png" for i in range(5)), "cover.png"])
    assert len(one.order) == 5
    assert "cover.png" in one.notes[0]
    images, (one,) = found(["a.png", "b.png", "c.png"])
    assert [images[i].name for i in one.order] == ["a.png", "b.png", "c.png"]
    images, (one,) = found(["1.png", "2.png", "2.png", "3.png"])
    with pytest.raises(BadVideo, match=r"2\.png"):
        one.check(images, "x")
