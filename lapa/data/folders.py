"""Folders on disk: written whole or not at all, and recognised by the listing of their files."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lapa.contracts import BadVideo, LapaError

LONGEST_POINTER = 1024  # bytes: Git LFS itself takes no longer file for a pointer


@contextmanager
def new_folder(path: Path, *, twin_is_fine: bool = False) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write into; rename it to `path` when the block ends well.

    When the block raises, the temporary folder is removed and nothing appears at `path`. A `path` that exists
    raises LapaError, unless `twin_is_fine`: then whoever renames first wins and the other copy is dropped
    (for entries named by their content, where two writers write the same thing).
    """
    if path.exists() and not twin_is_fine:
        raise LapaError(f"{path} exists already. Remove it or choose another path.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise LapaError(
            f"Cannot write {path}: {error.strerror}. Choose a folder that you may write to (for the cache: LAPA_CACHE)."
        ) from None
    try:
        yield work
        work.chmod(0o755)  # mkdtemp makes it private; what is shared should be readable
        try:
            os.rename(work, path)
        except OSError:
            if not path.exists():
                raise
            if not twin_is_fine:
                raise LapaError(f"{path} appeared while it was being written. Nothing was replaced.") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def existing_folder(path: str | Path, what: str) -> Path:
    """The folder `path` with ~ expanded. Raises LapaError when it is missing or is not a folder."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise LapaError(f"{what}: {folder} is a file. Give the folder that it belongs to, such as {folder.parent}.")
        raise LapaError(f"{what}: {folder} does not exist. Check the path.")
    return folder


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below `root` whose names end in one of `suffixes` (in any case), sorted; hidden ones are left out.

    Links to folders are followed, each folder once, so a loop of links ends. A link to nowhere is among the files:
    whoever opens it can say so. Raises LapaError for a folder that may not be read.
    """

    def refuse(error: OSError) -> None:
        raise LapaError(f"{printable(error.filename)}: this folder cannot be read ({error.strerror}).")

    found, seen = [], set()
    for here, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here, n) for n in names if n.lower().endswith(suffixes) and not n.startswith(".")]
    return sorted(found)


def no_files(root: Path, suffixes: tuple[str, ...]) -> list[BadVideo]:
    """What to say of folders below `root` that are called as files are."""
    found = [Path(here, name) for here, names, _ in os.walk(root) for name in names if name.lower().endswith(suffixes)]
    return [BadVideo(f"{printable(path)}: is a folder and no file of data.") for path in sorted(found)]


def readable(path: Path) -> Path:
    """`path`, to be opened. Raises BadVideo for a folder, for a pipe, which would be waited for, for a device, which
    may never end, and for what stands for a file that was not downloaded (Git LFS, git-annex)."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise BadVideo(f"{printable(path)}: is no file but a folder, a pipe or a device.")
    if why := _pointer(path):
        raise BadVideo(f"{printable(path)}: {why}")
    return path


def is_pointer(path: Path) -> bool:
    """Does `path` stand for a file that was not downloaded (Git LFS, git-annex)?"""
    return bool(_pointer(path))


def _pointer(path: Path) -> str:
    """What `path` stands for and how to get it, "" for a file that is itself."""
    if os.path.islink(path) and not os.path.exists(path) and ".git/annex/" in os.readlink(path):
        return "is a link of git-annex, the file itself is not here. Run git annex get (or datalad get) in its folder."
    if not os.path.isfile(path) or os.path.getsize(path) > LONGEST_POINTER:
        return ""
    try:
        with path.open("rb") as file:
            head = file.read(LONGEST_POINTER)
    except OSError:
        return ""  # whoever opens it says why it cannot be read
    if head.startswith((b"version https://git-lfs", b"version https://hawser")):
        return "is a Git LFS pointer, not the file itself. Run git lfs pull in its folder, or download it again."
    if head.startswith(b"/annex/objects/"):
        return "is a pointer of git-annex, not the file itself. Run git annex get (or datalad get) in its folder."
    return ""


def printable(path: os.PathLike[str] | str) -> str:
    """A path as text that can be printed and saved, also where its bytes are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def listing_hash(root: Path, files: Iterable[Path]) -> str:
    """A hash of names, sizes and modification times: cheap, and different when the data on disk differ."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(files):
        stat = file.stat() if file.exists() else file.lstat()  # of a link to nowhere, the link
        name = os.fsencode(os.path.relpath(file, root))
        if not os.access(file, os.R_OK):  # it may be one day, and nothing else of it changes then
            name += b"\0unreadable"
        digest.update(name + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
