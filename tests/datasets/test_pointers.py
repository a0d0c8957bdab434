"""Files that stand in for others until they are downloaded: pointers of Git LFS, links of git-annex."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import frame_folders, jsonl, lerobot_v21, pictures, rlds, something, video

from lapa.contracts import LapaError
from lapa.data.pack import pack
from lapa.data.stream import stream

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 7654321\n".format("cd" * 32)


def pointers(root: Path) -> dict[str, str]:
    """Data sets of every kind in which a file is a pointer, and that file's name."""
    made = {
        f"video_folder:{root / 'clips'}": video(root / "clips/a.mp4", pictures(4)),
        f"frame_folder:{frame_folders(root / 'ff')},fps=5": root / "ff/lift_cup/img_0.png",
        f"something_v2:{something(root / 'ss')}": root / "ss/labels/train.json",
        f"lapa_jsonl:{jsonl(root / 'js')},fps=5": root / "js/data.jsonl",
        f"rlds:{rlds(root / 'bridge')}": next((root / "bridge").glob("*.tfrecord*")),
        f"lerobot:{lerobot_v21(root / 'lr')}": root / "lr/data/chunk-000/episode_000000.parquet",
        f"lerobot:{lerobot_v21(root / 'lv')}": root / "lv/videos/chunk-000/observation.images.top/episode_000000.mp4",
    }
    for file in made.values():
        file.write_text(POINTER)
    return {spec: file.name for spec, file in made.items()}


def packed(spec: str, cache: Path) -> None:
    pack([spec], 8, quiet=True, cache=cache)


def streamed(spec: str, cache: Path) -> None:
    list(stream([spec], 8, quiet=True, cache=cache).frames(0))


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    for spec, name in pointers(tmp_path).items():
        for read in (packed, streamed):
            with pytest.raises(LapaError) as caught:
                read(spec, tmp_path / "cache")
            assert "Git LFS" in str(caught.value), (spec, str(caught.value))
            assert name in str(caught.value)


def test_a_link_of_git_annex(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").symlink_to("../.git/annex/objects/XX/SHA256E-s1--0.mp4")
    with pytest.raises(LapaError, match=r"a\.mp4.*git annex get"):
        pack([f"video_folder:{tmp_path / 'clips'}"], 8, quiet=True, cache=tmp_path / "cache")
