"""Single images as RGB pixels, and the order of numbered ones."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lapa.contracts import Array, BadVideo
from lapa.data.folders import printable
from lapa.data.video import Clip, squared

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_image(source: bytes | Path, where: str) -> Array:
    """A JPEG, PNG or the like as uint8 [H, W, 3]. Raises BadVideo naming `where` and the reason."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return np.asarray(image.convert("RGB"))
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
            raise BadVideo(f"{where}: is {frame.shape[1]} x {frame.shape[0]}, the frames before it are "
                           f"{shape[1]} x {shape[0]}.")  # fmt: skip
        frames.append(squared(frame, size))
    assert shape is not None
    return Clip(np.stack(frames), fps, (shape[0], shape[1]))


def number_of(path: Path | str) -> tuple[int | str, ...]:
    """A sort key by the numbers in a name: img_2.jpg comes before img_10.jpg."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", printable(Path(path).name)))
