"""State -> pixels, in three domains.

    sim   light table, round dark effector; the robot's home
    real  dark wood, other palette, square two-tone effector, a camera that shakes; actions turned by 90 degrees, x 1.5
    hand  cloth, a two-finger hand that moves smoothly and pauses; actions mirrored, x 0.5

Blocks and effectors are sprites, anti-aliased once at 8 x 8 sub-pixel offsets, then looked up and blended, so that
motion of a fraction of a pixel is visible and a frame costs microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from lapa.contracts import Array
from lapa.tabletop import language as lang
from lapa.tabletop.world import BLOCK_RADIUS, EFFECTOR_RADIUS, Scenes

OFFSETS = 8  # sub-pixel positions per axis
SAMPLES = 4  # samples per pixel and axis when a sprite is drawn


@dataclass(frozen=True)
class Domain:
    """One rendering of the table and one robot frame. `frame` maps board motion to robot action: a = frame @ delta."""

    palette: dict[str, tuple[int, int, int]]
    ground: Callable[[int], Array]  # size -> float32 [variants, size, size, 3] in 0..255
    effector: Callable[[Array, Array], Array]  # x, y in effector radii -> [..., 4] RGBA, colour 0..255, alpha 0..1
    frame: tuple[tuple[float, float], tuple[float, float]]
    shake: float = 0.0  # camera shake, standard deviation in board units
    smooth: float = 0.0  # share of the previous motion kept by the demonstrator
    pause: float = 0.0  # share of steps at which the demonstrator holds still


def _grid(size: int) -> tuple[Array, Array]:
    axis = (np.arange(size) + 0.5) / size
    return np.meshgrid(axis, axis)


def _plain(size: int) -> Array:
    x, y = _grid(size)
    edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)) < 0.02
    shades = [
        np.where(edge[..., None], 0.86, 1.0) * np.array(c) for c in ((226, 224, 220), (218, 220, 224), (230, 226, 216))
    ]
    return np.stack(shades).astype(np.float32)


def _wood(size: int) -> Array:
    x, y = _grid(size)
    boards = []
    for k in range(6):
        grain = np.sin(40 * (y + 0.03 * np.sin(7 * x + k)) + k) * 7 + np.sin(11 * x + 23 * y + 2 * k) * 4
        boards.append(np.stack([62 + grain, 46 + 0.8 * grain, 38 + 0.6 * grain], -1) * (0.9 + 0.05 * k))
    return np.stack(boards).astype(np.float32)


def _cloth(size: int) -> Array:
    x, y = _grid(size)
    weave = np.sin(60 * x) * 4 + np.sin(60 * y) * 4
    return np.stack(
        [np.stack([104 - 12 * y + weave, 122 - 14 * x + weave, 128 + 9 * k + weave], -1) for k in range(4)]
    ).astype(np.float32)


def _paint(layers: list[tuple[Array, tuple[int, int, int]]]) -> Array:
    """Stack (mask, colour) layers, last on top -> RGBA."""
    rgba = np.zeros((*layers[0][0].shape, 4))
    for mask, colour in layers:
        rgba = np.where(mask[..., None], np.array([*colour, 1.0]), rgba)
    return rgba


def _disc_tool(x: Array, y: Array) -> Array:
    r = np.hypot(x, y)
    return _paint([(r <= 1, (40, 40, 46)), (r <= 0.45, (245, 245, 245))])


def _square_tool(x: Array, y: Array) -> Array:
    inside = np.maximum(abs(x), abs(y)) <= 0.92
    return _paint([(inside, (235, 235, 228)), (inside & (y > 0), (255, 140, 0))])


def _fingers(x: Array, y: Array) -> Array:
    skin, shade = (224, 172, 136), (196, 140, 106)
    palm = np.hypot(x, (y - 0.35) * 1.2) <= 0.75
    left, right = np.hypot((x + 0.5) * 2.2, y + 0.45) <= 0.62, np.hypot((x - 0.5) * 2.2, y + 0.45) <= 0.62
    return _paint([(palm, shade), (left | right, skin)])


DOMAINS = {
    "sim": Domain(
        {"red": (214, 40, 40), "green": (30, 150, 60), "blue": (40, 80, 215), "yellow": (240, 190, 20)},
        _plain,
        _disc_tool,
        ((1.0, 0.0), (0.0, 1.0)),
    ),
    "real": Domain(
        {"red": (190, 70, 60), "green": (95, 150, 90), "blue": (90, 120, 190), "yellow": (225, 205, 120)},
        _wood,
        _square_tool,
        ((0.0, -1.5), (1.5, 0.0)),
        shake=0.004,
    ),
    "hand": Domain(
        {"red": (200, 50, 70), "green": (60, 130, 70), "blue": (60, 70, 160), "yellow": (230, 200, 60)},
        _cloth,
        _fingers,
        ((-0.5, 0.0), (0.0, 0.5)),
        smooth=0.4,
        pause=0.1,
    ),
}


def _shape(name: str, x: Array, y: Array) -> Array:
    """Is (x, y), in block radii, inside the shape?"""
    if name == "disc":
        return np.hypot(x, y) <= 0.95
    if name == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85
    if name == "triangle":
        return (y <= 0.8) & (abs(x) * 1.75 <= y + 1.0)
    angle = np.arctan2(x, -y) % (2 * math.pi / 5)  # five-pointed star
    wedge = np.minimum(angle, 2 * math.pi / 5 - angle)
    return np.hypot(x, y) * (np.cos(wedge) + 1.2 * np.sin(wedge)) <= 1.05


def _sprite(radius: float, size: int, colour_at: Callable[[Array, Array], Array]) -> Array:
    """Premultiplied RGBA at every sub-pixel offset: float32 [OFFSETS, OFFSETS, w, w, 4], offset order y, x."""
    half = math.ceil(radius * size) + 1
    width = 2 * half + 1
    fine = (np.arange(width * SAMPLES) + 0.5) / SAMPLES - half
    table = np.empty((OFFSETS, OFFSETS, width, width, 4), np.float32)
    for oy in range(OFFSETS):
        for ox in range(OFFSETS):
            x, y = np.meshgrid(fine - (ox + 0.5) / OFFSETS, fine - (oy + 0.5) / OFFSETS)
            rgba = colour_at(x / (radius * size), y / (radius * size))
            rgba = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)
            table[oy, ox] = rgba.reshape(width, SAMPLES, width, SAMPLES, 4).mean((1, 3))
    return table


@cache
def _sheet(domain: str, size: int) -> tuple[Array, Array, Array]:
    """Block sprites [objects, ...], the effector's sprite [1, ...], and the grounds, for one domain and image size."""
    style = DOMAINS[domain]
    blocks = []
    for name in lang.OBJECTS:
        colour, shape = name.split()
        rgb = style.palette[colour]
        blocks.append(_sprite(BLOCK_RADIUS, size, lambda x, y, s=shape, c=rgb: _paint([(_shape(s, x, y), c)])))  # type: ignore[misc]
    return np.stack(blocks), _sprite(EFFECTOR_RADIUS, size, style.effector)[None], style.ground(size)


@cache
def _shakes() -> Array:
    return np.random.default_rng(0).normal(size=(997, 2))


def render(scenes: Scenes, domain: str = "sim", size: int = 48, tick: int = 0) -> Array:
    """uint8 [N, size, size, 3]. `tick` is the time step; it only matters where the camera shakes."""
    blocks, effector, grounds = _sheet(domain, size)
    shake = DOMAINS[domain].shake * _shakes()[(scenes.seeds * 31 + tick * 7) % 997]
    pad = blocks.shape[-2]
    canvas = np.zeros((len(scenes), size + 2 * pad, size + 2 * pad, 3), np.float32)
    canvas[:, pad:-pad, pad:-pad] = grounds[scenes.seeds % len(grounds)]
    for i in range(scenes.blocks.shape[1]):
        _blend(canvas, blocks, scenes.kinds[:, i], scenes.blocks[:, i] + shake, size, pad)
    _blend(canvas, effector, np.zeros(len(scenes), np.int64), scenes.effector + shake, size, pad)
    return (canvas[:, pad:-pad, pad:-pad] + 0.5).astype(np.uint8)


def _blend(canvas: Array, sheet: Array, kind: Array, centre: Array, size: int, pad: int) -> None:
    """Draw sprite `kind[n]` with its centre at `centre[n]` (board units) onto canvas n, in place."""
    width = sheet.shape[-2]
    position = np.clip(centre, 0.0, 1.0) * size
    whole = np.floor(position).astype(np.int64)
    offset = np.minimum(((position - whole) * OFFSETS).astype(np.int64), OFFSETS - 1)
    sprite = sheet[kind, offset[:, 1], offset[:, 0]]
    corner = whole + pad - width // 2
    rows = corner[:, 1, None, None] + np.arange(width)[:, None]
    columns = corner[:, 0, None, None] + np.arange(width)
    at = (np.arange(len(kind))[:, None, None], rows, columns)
    canvas[at] = canvas[at] * (1 - sprite[..., 3:]) + sprite[..., :3]
