"""Files in a tar, read where they lie: nothing is unpacked to the disk."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lapa.contracts import BadVideo
from lapa.data.folders import printable, readable

BLOCK = tarfile.BLOCKSIZE
LARGEST = 1 << 30  # bytes of a file that is read as a whole


@dataclass(frozen=True)
class Member(os.PathLike[str]):
    """A file in a tar: `size` bytes from `start` on."""

    tar: Path
    name: str
    start: int
    size: int

    def __fspath__(self) -> str:
        """For messages: the tar's path and the name in it."""
        return f"{os.fspath(self.tar)}, {self.name}"

    def opened(self) -> io.BufferedReader:
        """The file, to be read and sought in."""
        return io.BufferedReader(_Window(self))

    def read(self) -> bytes:
        """All of it. Raises BadVideo for more than fits into memory."""
        if self.size > LARGEST:
            raise BadVideo(f"{printable(self)}: has {self.size} bytes, more than is read at once.")
        with self.opened() as file:
            return file.read()


class _Window(io.RawIOBase):
    """Some bytes of a file, as a file."""

    def __init__(self, member: Member) -> None:
        self._fd, self._start, self._size, self._at = os.open(member.tar, os.O_RDONLY), member.start, member.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        wanted = max(min(len(buffer), self._size - self._at), 0)
        found = os.pread(self._fd, wanted, self._start + self._at)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def members(path: Path) -> Iterator[Member | BadVideo]:
    """The files of a tar in their order; a BadVideo last where it is damaged or breaks off. Links and other things that
    are no files are left out. Raises BadVideo for what is no tar."""
    where, end, size = printable(path), -1, 0
    try:
        with readable(path).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            size = os.path.getsize(path)
            while (info := tar.next()) is not None:
                if not (end < tar.offset and 0 <= info.offset_data <= info.offset_data + info.size <= size):
                    yield BadVideo(
                        f"{where}: {printable(info.name)} says that it has {info.size} bytes; the tar has {size}."
                    )
                    return
                end = tar.offset
                if info.isreg() and not info.sparse:
                    yield Member(path, printable(info.name), info.offset_data, info.size)
            file.seek(tar.offset)
            ends = len(file.read(BLOCK)) == BLOCK
            file.seek(tar.offset)  # from here on there are blocks of zeros and nothing else
            ends &= not any(any(part) for part in iter(lambda: file.read(1 << 20), b""))
        if not ends:
            place = f"{where}: breaks off or is damaged at byte {tar.offset} of {size}"
            yield BadVideo(f"{place}; what follows is not read. Copy it again.")
    except BadVideo:
        raise
    except Exception as error:  # tarfile raises many kinds for damaged headers
        reason = " ".join(str(error).split()) or type(error).__name__
        bad = BadVideo(f"{where}: cannot be read as a tar ({''.join(filter(str.isprintable, reason))[:200]}).")
        if end < 0:
            raise bad from None
        yield bad
