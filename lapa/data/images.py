"""Single images as RGB pixels, and the order of numbered ones."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lapa.contracts import Array, BadVideo
from lapa.data.folders import printable, readable
from lapa.data.video import LARGEST, Clip, squared

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_image(source: bytes | Path, where: str) -> Array:
    """A JPEG, PNG or the like as uint8 [H, W, 3]. Raises BadVideo naming `where` and the reason."""
    try:
        with Image.open(readable(source) if isinstance(source, Path) else io.BytesIO(source)) as image:
            if image.width * image.height > LARGEST:
                raise BadVideo(f"{where}: says that it has {image.width} x {image.height} pixels.")
            return np.asarray(image.convert("RGB"))
    except BadVideo:
        raise
    except Exception as error:  # what Pillow's decoders raise for damaged bytes has no common class
        raise BadVideo(f"{where}: the image cannot be read ({error or type(error).__name__}).") from None


def read_frames(sources: Sequence[bytes | Path], wheres: Sequence[str], fps: float, size: int | None) -> Clip:
    """Images of one clip, in order, as a Clip. Raises BadVideo for one that cannot be read or has another size, and
    for fewer than two."""
    if len(sources) < 2:
        raise BadVideo(f"{wheres[0] if wheres else 'A clip'}: has {len(sources)} frames; a pair of frames needs two.")
    frames: list[Array] = []
    shape = None
    for source, where in zip(sources, wheres, strict=True):
        frame = read_image(source, where)
        shape = shape or frame.shape
        if frame.shape != shape:
            sizes = [f"{width} x {height}" for height, width, _ in (frame.shape, shape)]
            raise BadVideo(f"{where}: is {sizes[0]}, but {wheres[0]} is {sizes[1]}.")
        frames.append(squared(frame, size))
    assert shape is not None
    return Clip(np.stack(frames), fps, (shape[0], shape[1]))


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
