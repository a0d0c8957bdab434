"""What lies beside the data and is not read: counted and named once, never passed over in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lapa.data.folders import printable
from lapa.data.images import SUFFIXES as IMAGES
from lapa.plugins import names

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
PREVIEWS = (".lrv", ".lrf", ".thm")  # what GoPro and DJI keep beside each video
MOST = 8  # kinds that are named
CHANGES = "instructions: change within the episode; the first is taken for all of it"


def ending(path: Path) -> str:
    """ ".mp4", ".tar.gz", "" in lower case."""
    name = path.name.lower()
    return next((kind for kind in ARCHIVES if name.endswith(kind)), path.suffix.lower())


def not_read(files: Iterable[Path]) -> tuple[str, ...]:
    """A note that counts files by their endings, () for none. Archives have to be unpacked, which it says."""
    count = Counter(ending(file) for file in files)
    if not count:
        return ()
    kinds = [f"{number} {_kind(kind)}" for kind, number in count.most_common(MOST)]
    rest = sum(count.values()) - sum(number for _, number in count.most_common(MOST))
    total = sum(count.values())
    told = ", ".join([*kinds, *([f"{rest} of other kinds"] if rest else [])])
    return (f"not read: {total} file{'s' * (total != 1)} beside the data: {told}",)


def archives(files: Iterable[Path]) -> list[Path]:
    """Those that are archives."""
    return [file for file in files if ending(file) in ARCHIVES]


def refuse_archive(path: Path) -> str:
    """What to say of an archive that is given as a dataset, "" for anything else."""
    return f"{printable(path)}: is an archive. Unpack it and give the folder." if ending(path) in ARCHIVES else ""


KINDS = {  # reader -> what its datasets hold, the first that fits
    "lerobot": ("meta/info.json",),
    "rlds": ("features.json", "*/features.json", "*.tfrecord*", "*/*.tfrecord*"),
    "hdf5": ("*.hdf5", "*.h5", "*/*.hdf5", "*/*.h5"),
    "zarr": (".zgroup", "zarr.json", "*/.zgroup", "*.zarr", "*.zarr.zip"),
    "mcap": ("*.mcap", "*/*.mcap", "*.bag"),
    "frame_folder": tuple(f"{below}*{suffix}" for below in ("", "*/", "*/*/") for suffix in IMAGES),
}


def kind_of(root: Path) -> str:
    """The reader that a folder seems to be for, as far as names of files tell; "" where none is known. A folder within
    a LeRobot dataset counts as that."""
    if any((folder / "meta/info.json").is_file() for folder in (root, *root.absolute().parents[:3])):
        return "lerobot"
    found = (kind for kind, globs in KINDS.items() if any(any(root.glob(one)) for one in globs))
    return next((kind for kind in found if kind in names("datasets")), "")


def _kind(ending: str) -> str:
    if ending in ARCHIVES:
        return f"{ending} (an archive: unpack it)"
    if ending in PREVIEWS:
        return f"{ending} (a preview of a video)"
    return ending or "without an ending"
