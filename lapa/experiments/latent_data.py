"""`lapa study latents --dataset all`: the datasets that latent actions are judged on.

Recordings are read where they lie (FOLDERS, or `all:FOLDER`). Demonstrations of a simulator's expert are made once, by
the code of `lapa collect --benchmark`, and stay in the cache. Whatever cannot be had here is left out, and why is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lapa.contracts import LapaError
from lapa.data.folders import existing_folder
from lapa.data.index import cache_folder, digest_of
from lapa.interop.demonstrations import collect_demonstrations

ALL = "all"
FOLDERS = ("data", "shared/data", "../shared/data")  # where recordings are looked for
RECORDED = {"real_g1": "lerobot:{}", "real_clips": "video_folder:{}/videos"}  # folder -> dataset
TABLETOP = "tabletop:sim,episodes=60,seed=1"
DEMONSTRATIONS, NOISE = 50, 0.2
EXPERTS = {  # benchmark -> options of the dataset that is made of its demonstrations
    "metaworld:mt10,repeat=2": "",
    "so101:pick-place": "",
    "libero:libero_object": "",
}

Collect = Callable[[str, int, Path, float], object]


@dataclass(frozen=True)
class Found:
    """Datasets NAME:PATH, in the order in which they are judged; and what is left out, a sentence each."""

    datasets: tuple[str, ...]
    left_out: tuple[str, ...]


def is_all(text: str) -> bool:
    """Whether a --dataset is "all" or "all:FOLDER"."""
    return text.partition(":")[0] == ALL


def find_all(text: str, collect: Collect | None = None) -> Found:
    """What "all" or "all:FOLDER" names. With a FOLDER, recordings are looked for there alone. Raises LapaError where it
    does not exist."""
    _, _, given = text.partition(":")
    folders = [existing_folder(given, text)] if given else [Path(name) for name in FOLDERS]
    datasets, left_out = list[str](), list[str]()
    for name, form in RECORDED.items():
        there = [folder / name for folder in folders if (folder / name).is_dir()]
        if there:
            datasets.append(form.format(there[0].resolve()))
        else:
            left_out.append(f"{name}: not in {', '.join(map(str, folders))} (name its folder: --dataset all:FOLDER)")
    for benchmark, options in EXPERTS.items():
        try:
            datasets.append(f"lerobot:{demonstrated(benchmark, collect or _collect)}{options}")
        except LapaError as error:
            left_out.append(f"{benchmark}: {error}")
    return Found((*datasets, TABLETOP), tuple(left_out))


def demonstrated(benchmark: str, collect: Collect) -> Path:
    """The folder in the cache with DEMONSTRATIONS of this benchmark's expert, made where it is not there yet. Raises
    LapaError where they cannot be made."""
    digest = digest_of(json.dumps([benchmark, DEMONSTRATIONS, NOISE]).encode())
    folder = cache_folder() / "demonstrations" / f"{benchmark.partition(':')[0]}-{digest[:8]}"
    if not folder.exists():
        print(f"Collecting {DEMONSTRATIONS} demonstrations of {benchmark} in {folder}.", flush=True)
        collect(benchmark, DEMONSTRATIONS, folder, NOISE)
    return folder


def _collect(benchmark: str, episodes: int, out: Path, noise: float) -> None:
    collect_demonstrations(benchmark, episodes, out, noise=noise)
