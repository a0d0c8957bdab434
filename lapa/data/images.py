"""Single images as RGB pixels, the one way to resize them, and the order of numbered ones."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from lapa.contracts import Array, BadVideo
from lapa.data.bilinear import released_square
from lapa.data.folders import printable, readable

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".jp2")
LARGEST = 8192 * 8192  # pixels of a picture; a header that says more is taken for damage before memory is
ORIENTATION = 0x0112  # the EXIF tag of how a picture is to be turned
Source = bytes | Path | Array  # of an image: a file's bytes, a file, or pixels uint8 [H, W, 3]
Fit = Literal["squash", "pad", "crop", "released"]


def resized(frame: Array, size: int | None, fit: Fit = "squash") -> Array:
    """uint8 [H, W, 3] -> uint8 [size, size, 3], each new pixel the mean of the area it covers; None: as it is.

    The one resize: packs, training, probes and service show a model the same pixels, to the bit. A picture that is no
    square is made one by `fit`: "squash" changes its shape, "pad" keeps it between black bars, "crop" takes the square
    in its middle; "released" squashes as the released LAPA code does (data/bilinear.py), without means.
    """
    height, width = frame.shape[:2]
    if size is None or (height, width) == (size, size):
        return frame
    if fit == "released":
        return released_square(frame, size)
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        frame = frame[top : top + side, left : left + side]
        return frame if side == size else _scaled(frame, size, size)
    if fit == "pad":
        inner = [max(1, round(length * size / max(height, width))) for length in (height, width)]
        top, left = ((size - length) // 2 for length in inner)
        square = np.zeros((size, size, 3), np.uint8)
        square[top : top + inner[0], left : left + inner[1]] = _scaled(frame, *inner)
        return square
    return _scaled(frame, size, size)


def _scaled(frame: Array, height: int, width: int) -> Array:
    picture = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX))


@dataclass(frozen=True)
class Clip:
    """A whole video at an even rate: frames uint8 [T, H, W, 3], T >= 2; `size` is (H, W) as it is seen. `notes` as in
    contracts.Episode."""

    frames: Array
    fps: float
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


def blank(length: int, size: tuple[int, int]) -> Array:
    """A stand-in for frames, uint8 [length, H, W, 3], that holds no memory."""
    return np.broadcast_to(np.uint8(0), (length, *size, 3))


def read_image(source: Source, where: str) -> Array:
    """A JPEG, PNG or the like as uint8 [H, W, 3], turned as its EXIF tag says. Raises BadVideo naming `where` and the
    reason, also for a depth map: one channel of 16 bits or more."""
    if isinstance(source, np.ndarray):
        return source
    with opened_image(source, where) as image:
        return decoded(image, where)


def decoded(image: Image.Image, where: str) -> Array:
    """What `read_image` makes of an opened image."""
    if deep(image):
        raise BadVideo(f"{where}: is a depth map (one channel of more than 8 bits), not a colour picture.")
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(image.convert("RGB"))


def deep(image: Image.Image) -> bool:
    """Has a picture one channel of more than 8 bits, as depth maps have?"""
    return image.mode.startswith("I") or image.mode == "F"


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


def read_frames(sources: Sequence[Source], wheres: Sequence[str], fps: float, size: int | None) -> Clip:
    """Images of one clip, in order, as a Clip. Raises BadVideo for one that cannot be read or has another size, and
    for fewer than two."""
    outline = outline_of(sources, wheres, fps)
    return Clip(np.stack(list(frames_of(sources, wheres, outline.size, size))), fps, outline.size)


def outline_of(sources: Sequence[Source], wheres: Sequence[str], fps: float) -> Clip:
    """The same without decoding: a stand-in for the frames, of the size that the first image's header tells."""
    if len(sources) < 2:
        raise BadVideo(f"{wheres[0] if wheres else 'A clip'}: has {len(sources)} frames; a pair of frames needs two.")
    first = sources[0]
    if isinstance(first, np.ndarray):
        return Clip(blank(len(sources), first.shape[:2]), fps, first.shape[:2])
    with opened_image(first, wheres[0]) as image:
        turned = image.getexif().get(ORIENTATION, 1) > 4  # by a quarter: height and width change places
        size = (image.width, image.height) if turned else (image.height, image.width)
    return Clip(blank(len(sources), size), fps, size)


def frames_of(
    sources: Sequence[Source], wheres: Sequence[str], shape: tuple[int, int], size: int | None, start: int = 0
) -> Iterator[Array]:
    """The images from `start` on as frames. Raises BadVideo for one that cannot be read or is not of `shape` (H, W),
    that of the first."""
    for source, where in zip(sources[start:], wheres[start:], strict=True):
        frame = read_image(source, where)
        if frame.shape[:2] != shape:
            sizes = [f"{width} x {height}" for height, width in (frame.shape[:2], shape)]
            raise BadVideo(f"{where}: is {sizes[0]}, but {wheres[0]} is {sizes[1]}.")
        yield resized(frame, size)


def number_of(path: Path | str) -> tuple[int | str, ...]:
    """A sort key by the numbers in a name: img_2.jpg comes before img_10.jpg."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", printable(Path(path).name)))
