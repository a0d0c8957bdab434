"""Folders on disk: written whole or not at all, and recognised by the listing of their files."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lapa.contracts import LapaError


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
        raise LapaError(f"Cannot write {path}: {error.strerror}. Choose a folder that you may write to.") from None
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
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise LapaError(f"{what}: {folder} {problem}. Check the path.")
    return folder


def listing_hash(root: Path, files: Iterable[Path]) -> str:
    """A hash of names, sizes and modification times: cheap, and different when the data on disk differ."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(files):
        stat = file.stat()
        digest.update(f"{file.relative_to(root).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
