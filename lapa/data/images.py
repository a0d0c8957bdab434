"""Single images as RGB pixels, and the order of numbered ones."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from lapa.contracts import Array, BadVideo
from lapa.data.folders import printable, readable
from lapa.data.video import LARGEST, Clip, blank, squared

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_image(source: bytes | Path, where: str) -> Array:
    """A JPEG, PNG or the like as uint8 [H, W, 3]. Raises BadVideo naming `where` and the reason."""
    with opened_image(source, where) as image:
        return np.asarray(image.convert("RGB"))


@contextmanager
def opened_image(source: bytes | Path, where: str) -> Iterator[Image.Image]:
    """An image whose header has been read. Raises BadVideo for what goes wrong here and inside the with-block."""
    try:
        with Image.open(readable(source) if isinstance(source, Path) else io.BytesIO(source)) as image:
            if image.width * image.height > LARGEST:
                raise BadVideo(f"{where}: says that it has {image.width} x {image.height} pixels.")
            yield image
    except BadVideo:
        raise
    except Exception as error:  # what Pillow's decoders raise for damaged bytes has no common class
        raise BadVideo(f"{where}: the image cannot be read ({error or type(error).__name__}).") from None


def read_frames(sources: Sequence[bytes | Path], wheres: Sequence[str], fps: float, size: int | None) -> Clip:
    """Images of one clip, in order, as a Clip. Raises BadVideo for one that cannot be read or has another size, and
    for fewer than two."""
    outline = outline_of(sources, wheres, fps)
    return Clip(np.stack(list(frames_of(sources, wheres, outline.size, size))), fps, outline.size)


def outline_of(sources: Sequence[bytes | Path], wheres: Sequence[str], fps: float) -> Clip:
    """The same without decoding: a stand-in for the frames, of the size that the first image's header tells."""
    if len(sources) < 2:
        raise BadVideo(f"{wheres[0] if wheres else 'A clip'}: has {len(sources)} frames; a pair of frames needs two.")
    with opened_image(sources[0], wheres[0]) as image:
        size = (image.height, image.width)
    return Clip(blank(len(sources), size), fps, size)


def frames_of(
    sources: Sequence[bytes | Path], wheres: Sequence[str], shape: tuple[int, int], size: int | None, start: int = 0
) -> Iterator[Array]:
    """The images from `start` on as frames. Raises BadVideo for one that cannot be read or is not of `shape` (H, W),
    that of the first."""
    for source, where in zip(sources[start:], wheres[start:], strict=True):
        frame = read_image(source, where)
        if frame.shape[:2] != shape:
            sizes = [f"{width} x {height}" for height, width in (frame.shape[:2], shape)]
            raise BadVideo(f"{where}: is {sizes[0]}, but {wheres[0]} is {sizes[1]}.")
        yield squared(frame, size)


def check_steps(images: Sequence[Path], where: str) -> None:
    """Raises BadVideo for numbered images of which some are missing or double: the time between them would not be what
    fps says. Numbers may go up by any step, and by uneven ones within a half, as times do."""
    numbers = [[int(n) for n in re.findall(r"\d+", image.stem)[-1:]] for image in images]
    if len(images) < 3 or not all(numbers):
        return
    steps = np.diff([float(number) for (number,) in numbers])
    usual = float(np.median(steps))
    odd = np.flatnonzero((steps <= 0.5 * usual) | (steps >= 1.5 * usual))
    if len(odd):
        first, second = (printable(image.name) for image in images[int(odd[0]) :][:2])
        raise BadVideo(f"{where}: {first} is followed by {second}; images are missing or double.")


def number_of(path: Path | str) -> tuple[int | str, ...]:
    """A sort key by the numbers in a name: img_2.jpg comes before img_10.jpg."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", printable(Path(path).name)))
