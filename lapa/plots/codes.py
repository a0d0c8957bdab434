"""Pictures of data, codes and results, as files: PNG, and for moving pictures GIF, WebP or APNG.

Most are one sheet: a title, a note that says how to read it, columns with captions, rows of tiles. Small frames are
enlarged by whole factors, so that each pixel becomes a square.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from lapa.artefacts.folder import replacing
from lapa.contracts import Array, LapaError
from lapa.data.pack import Packed
from lapa.data.pixels import Images, as_pixels
from lapa.models.laq import LAQ
from lapa.plots.figure import save
from lapa.plots.flow import flow_tiles

PAPER, INK, MUTED, LINE = (255, 255, 255), (28, 30, 34), (104, 108, 116), (214, 217, 222)
ACCENT, PLAIN, REFERENCE = "#1f6feb", "#8a94a3", "#d3d8df"  # LAPA; the other methods; rows that learn nothing
TITLE, TEXT, SMALL = 19, 14, 13  # font sizes in pixels
MARGIN, GAP = 18, 4  # pixels around a sheet and between its tiles
AMPLIFY = 2  # differences are multiplied by this
MOST_CODES = 64  # rows of a gallery if the caller does not choose the codes
LETTERS = 24  # in a line above the bars of a task family
REFERENCES = ("no_op", "random", "expert")
METHOD_NAMES = {
    "no_op": "no action",
    "random": "random",
    "scratch": "Scratch",
    "unipi": "UniPi",
    "vpt": "VPT",
    "lapa": "LAPA",
    "read": "LAPA, read",
    "track": "Track",
    "actionvla": "ActionVLA",
    "expert": "expert",
}
FORMATS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}

Cell = Array | str  # uint8 [h, w, 3] or words


class Dreamer(Protocol):
    """A policy that still has its latent head."""

    def predict_codes(self, images: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """float [B, 3, H, W] in [0, 1] and B instructions -> codes int64 [B, s]."""
        ...


# What a LAQ has learnt


def reconstructions(laq: LAQ, now: Images, later: Images, path: Path, title: str) -> None:
    """One row for each pair: now, future, the future that the decoder draws from the codes, and how they differ.

    `now` and `later` are as LAQ reads them, [B, ...]; B rows are drawn.
    """
    codes = laq.encode(now, later)
    drawn = laq.decode(now, codes)
    x, y = (as_pixels(images, laq.config.image_size, drawn.device) for images in (now, later))
    error, copy = ((f - y).square().mean((1, 2, 3)).cpu().numpy() for f in (drawn, x))
    pictures = [_tiles(_frames(images), 144) for images in (x, y, drawn)] + [_tiles(_difference(y, drawn), 144)]
    rows = [
        [code_name(code), *tiles, f"{e / c:.2f}" if c > 1e-9 else "still"]
        for code, *tiles, e, c in zip(codes.tolist(), *pictures, error, copy, strict=True)
    ]
    note = (
        f"Difference: future minus reconstruction, {AMPLIFY} times as strong; grey is none. "
        "Error / copy: squared error relative to showing now again; below 1 the code told something."
    )
    heads = ["code", "now", "future", "reconstruction", "difference", "error / copy"]
    _save(_sheet(title, note, heads, rows), path)


def gallery(
    laq: LAQ,
    scenes: Array,
    path: Path,
    title: str,
    codes: Array | None = None,
    motion: Array | None = None,
    flow: Array | None = None,
    domains: Sequence[str] = ("",),
) -> None:
    """Each code applied by the decoder to the same scenes: a code with a meaning does the same in all of them.

    scenes uint8 [n, S, S, 3]. codes int64 [K, s]: the rows. Without them the rows are all codes of the codebook at the
    first position, then at the second, and so on; the other positions have code 0. motion float [K, 2]: the mean
    motion of the effector in the pairs of each code, drawn as an arrow (x right, y down). With several domains there
    are equally many scenes of each, domain after domain, and motion is [K, domains, 2]. Raises LapaError when the
    lengths differ.
    """
    size, device = laq.config.image_size, next(laq.parameters()).device
    table = _one_by_one(laq) if codes is None else np.asarray(codes)
    if motion is not None and len(motion) != len(table):
        raise LapaError(f"The gallery has {len(table)} codes and {len(motion)} motions; give one motion a code.")
    pixels, each = as_pixels(scenes, size, device), len(scenes) // len(domains)
    drawn = None if motion is None else _arrows(np.reshape(motion, (-1, 2)))
    fields = None if flow is None else flow_tiles(flow, 96)

    def row(name: str, tiles: list[Array], k: int | None, change: Cell) -> list[Cell]:
        cells: list[Cell] = [name]
        for i in range(len(domains)):
            cells += [] if drawn is None else [""] if k is None else [drawn[k * len(domains) + i]]
            cells += tiles[i * each : (i + 1) * each]
        return [*cells, change, *([] if fields is None else [""] if k is None else [fields[k]])]

    rows = [row("scene", _tiles(_frames(pixels), 96), None, "")]
    for k, code in enumerate(table):
        future = laq.decode(pixels, np.repeat(code[None], len(pixels), 0))
        (change,) = _tiles(_difference(future[:1], pixels[:1]), 96)
        rows.append(row(code_name(code), _tiles(_frames(future), 96), k, change))
    heads = ["code"]
    for domain in domains:
        heads += [] if drawn is None else [f"in {domain}" if domain else "motion"]
        heads += [f"{domain} {j + 1}".strip() for j in range(each)]
    heads += ["change in 1", *([] if fields is None else ["flow"])]
    whose = "the effector" if fields is None else "the picture"
    note = (
        "First row: the scenes. Each further row: what the decoder expects to see next if that code happens. "
        + ("" if drawn is None else f"Arrow: how {whose} moved on average when the code was seen. ")
        + f"Change: {AMPLIFY} times as strong; grey is none."
        + ("" if fields is None else " Flow: which way each part of the picture moved on average, on one scale.")
    )
    _save(_sheet(title, note, heads, rows), path)


def imagine(policy: Dreamer, laq: LAQ, image: Array, instruction: str, steps: int) -> Array:
    """Closed loop without a robot: the policy chooses a code, the decoder draws the next frame, and so on.

    image uint8 [H, W, 3] -> uint8 [steps + 1, S, S, 3], the first being the image; a step is one window.
    """
    frame = as_pixels(image[None], laq.config.image_size, next(laq.parameters()).device)
    frames = [frame]
    for _ in range(steps):
        frame = laq.decode(frame, policy.predict_codes(frame, [instruction]))
        frames.append(frame)
    return _frames(torch.cat(frames))


def rollout_strip(real: Array, imagined: Array, path: Path, title: str = "Real and imagined", most: int = 8) -> None:
    """Two rows of frames over time: uint8 [T, H, W, 3] each, of any two sizes; at most `most` columns."""
    length = min(len(real), len(imagined))
    if not length:
        raise LapaError("A rollout strip needs at least one real and one imagined frame.")
    shown = np.unique(np.linspace(0, length - 1, min(most, length)).round().astype(int))
    tiles = [_tiles(frames[shown], 120) for frames in (real, imagined)]
    rows: list[list[Cell]] = [["real", *tiles[0]], ["imagined", *tiles[1]]]
    note = (
        "Real: what happened. Imagined: from the first frame on, the policy names a code and the decoder draws "
        "the next frame, which the policy sees next; no camera, no robot."
    )
    _save(_sheet(title, note, ["", *(f"step {t}" for t in shown)], rows), path)


def future_frames(
    now: torch.Tensor, real: torch.Tensor, imagined: torch.Tensor, texts: Sequence[str], path: Path, title: str
) -> None:
    """Two rows for each scene: what happened and what was imagined, each also as its difference from the present frame.

    float in [0, 1]: now [B, 3, H, W]; real and imagined [B, K, 3, H, W]; `texts` are the instructions.
    """
    rows: list[list[Cell]] = []
    for begin, text, *films in zip(now, texts, real, imagined, strict=True):
        for name, film in zip(("real", "imagined"), films, strict=True):
            frames = [*_frames(film), *_difference(film, begin.expand_as(film))]
            first = _tiles(_frames(begin[None]), 96)[0] if name == "real" else _words(text, 96)
            rows.append([name, first, *(tile for frame in frames for tile in _tiles(frame[None], 96))])
    steps = [f"in {k} step{'s' if k > 1 else ''}" for k in range(1, real.shape[1] + 1)]
    note = f"Change: each frame minus the present one, {AMPLIFY} times as strong; grey is none."
    _save(_sheet(title, note, ["", "now", *steps, *("change" for _ in steps)], rows), path)


def _words(text: str, size: int) -> Array:
    """A tile with words on it, uint8 [size, size, 3]."""
    image = Image.new("RGB", (size, size), PAPER)
    pen = ImageDraw.Draw(image)
    for i, line in enumerate(_wrap(text, _font(SMALL), size, most=size // (SMALL + 4))):
        pen.text((0, i * (SMALL + 4)), line, font=_font(SMALL), fill=MUTED)
    return np.asarray(image)


def _one_by_one(laq: LAQ) -> Array:
    """Every code at every position, the other positions at 0: int64 [<= MOST_CODES, s]."""
    s, size = laq.quantizer.positions, laq.quantizer.size
    table = np.zeros((s, size, s), np.int64)
    for position in range(s):
        table[position, :, position] = np.arange(size)
    return table.reshape(-1, s)[:MOST_CODES]


def code_name(code: Sequence[int] | Array) -> str:
    """The name of a code in pictures: its numbers, position by position."""
    return " ".join(str(int(c)) for c in code)


def _frames(pixels: torch.Tensor) -> Array:
    """float [B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3]."""
    return (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _difference(a: torch.Tensor, b: torch.Tensor) -> Array:
    """a - b around mid-grey, amplified: uint8 [B, H, W, 3]."""
    return _frames(0.5 + AMPLIFY * (a - b))


def _arrows(motion: Array, size: int = 64) -> list[Array]:
    """Motions float [K, 2] as arrows on one scale, uint8 [size, size, 3]: a dot is no motion, a blank tile unknown."""
    lengths = np.linalg.norm(motion, axis=1)
    longest = max(float(np.nanmax(lengths, initial=0.0)), 1e-9)
    return [_arrow(m / longest, size) for m in np.asarray(motion, np.float64)]


def _arrow(direction: Array, size: int) -> Array:
    fine = 4 * size  # drawn large, then reduced: smooth edges
    image = Image.new("RGB", (fine, fine), PAPER)
    pen, middle, reach = ImageDraw.Draw(image), np.full(2, fine / 2), np.hypot(*direction)
    if reach < 0.08:
        pen.ellipse([*(middle - fine / 16), *(middle + fine / 16)], fill=MUTED)
    elif np.isfinite(reach):
        forward = direction / reach
        side = np.array([-forward[1], forward[0]])
        tip, tail = middle + 0.45 * fine * direction, middle - 0.45 * fine * direction
        head = min(0.2 * fine, 0.6 * float(np.hypot(*(tip - tail))))
        neck = tip - head * forward
        pen.line([*tail, *neck], fill=INK, width=fine // 16)
        pen.polygon([tuple(p) for p in (tip, neck + 0.6 * head * side, neck - 0.6 * head * side)], fill=INK)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


# What is in a dataset


def contact_sheet(packed: Packed, path: Path, count: int = 24) -> None:
    """First, middle and last frame of up to `count` episodes of the dataset, with rate, length and instruction."""
    chosen = np.unique(np.linspace(0, packed.episodes - 1, min(count, packed.episodes)).round().astype(int))
    cards = [_card(packed, int(e)) for e in chosen]
    columns = min(3, len(cards))
    rows = [_level(cards[i : i + columns], columns) for i in range(0, len(cards), columns)]
    title = packed.spec if len(packed.spec) < 90 else packed.spec[:88] + " …"
    note = f"First, middle and last frame of {len(chosen)} of {packed.episodes} episodes, square as models see them."
    _save(_sheet(title, note, [""] * columns, rows, gap=14), path)


def _card(packed: Packed, episode: int) -> Array:
    """Three frames and two lines of words, uint8 [h, w, 3]."""
    start, stop = int(packed.starts[episode]), int(packed.starts[episode + 1])
    tiles = _tiles(packed.gather(np.array([start, (start + stop - 1) // 2, stop - 1])), 112)
    strip = _row_of(tiles, GAP)
    lines = _wrap(packed.instructions[episode] or "(no instruction)", _font(SMALL), strip.shape[1], most=2)
    fps = float(packed.fps[episode])
    facts = f"{fps:g} fps · {stop - start} frames · {(stop - start) / fps:.1f} s"
    image = Image.new("RGB", (strip.shape[1], strip.shape[0] + (len(lines) + 1) * (SMALL + 5) + 4), PAPER)
    image.paste(Image.fromarray(strip), (0, 0))
    pen, y = ImageDraw.Draw(image), strip.shape[0] + 5
    for line, colour in [*((line, INK) for line in lines), (facts, MUTED)]:
        pen.text((0, y), line, font=_font(SMALL), fill=colour)
        y += SMALL + 5
    return np.asarray(image)


def _level(cards: Sequence[Array], columns: int) -> list[Cell]:
    """Cards of one width as a row of `columns` cells of one height. The rest is white."""
    row = np.full((columns, max(len(card) for card in cards), cards[0].shape[1], 3), 255, np.uint8)
    for cell, card in zip(row[: len(cards)], cards, strict=True):
        cell[: len(card)] = card
    return list(row)


def describe(packed: Packed) -> dict[str, Any]:
    """A dataset in figures, ready for JSON: sizes, rates, instructions, action ranges (robot units), bad episodes."""
    lengths = np.diff(packed.starts)
    seconds = lengths / packed.fps
    rates, episodes = np.unique(packed.fps, return_counts=True)
    sizes, having = np.unique(packed.sizes, axis=0, return_counts=True)
    texts = [text for text in packed.instructions if text]
    return {
        "dataset": packed.spec,
        "datasets": int(packed.source.max()) + 1,
        "episodes": packed.episodes,
        "frames": len(packed),
        "hours": float(seconds.sum() / 3600),
        "image_size": packed.image_size,
        "sizes": {f"{width} x {height}": int(n) for (height, width), n in zip(sizes, having, strict=True)},
        "fps": {f"{rate:g}": int(n) for rate, n in zip(rates, episodes, strict=True)},
        "seconds": {
            k: float(f(seconds)) for k, f in (("shortest", np.min), ("median", np.median), ("longest", np.max))
        },
        "instructions": {
            "distinct": len(set(texts)),
            "longest": max(texts, key=len, default=""),
            "missing": packed.episodes - len(texts),
        },
        "actions": None if packed.actions is None else _ranges(packed.actions, packed.action_names),
        "state": None if packed.state is None else list(packed.state_names) or packed.state.shape[1],
        "told": packed.told(),
        "bad": list(packed.bad),
    }


def _ranges(values: Array, names: tuple[str, ...]) -> list[dict[str, Any]]:
    names = names if len(names) == values.shape[1] else tuple(f"dimension {i}" for i in range(values.shape[1]))
    figures = {"min": values.min(0), "mean": values.mean(0), "max": values.max(0), "std": values.std(0)}
    return [{"name": n, **{k: float(v[i]) for k, v in figures.items()}} for i, n in enumerate(names)]


# How well the methods do


def success_bars(
    results: Mapping[str, Mapping[str, Any]], path: Path, title: str = "Success", what: str = "episodes solved"
) -> None:
    """One bar for each method, with its interval, for all tasks and, below, for each task family, five in a row.

    results: {method: {"success": share, "interval": (low, high), "families": {family: the same}}}. what: the numbers.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(results)
    families = list(dict.fromkeys(f for row in results.values() for f in row.get("families", {})))
    wide = max(1, min(len(families), 5 if max(map(len, families), default=0) < 18 else 4))
    rows, tall = -(-len(families) // wide), 0.29 * len(methods)
    figure = Figure(figsize=(6.8, tall + 1.0 + rows * (tall * 0.62 + 0.9)), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + rows, wide, height_ratios=[1, *[0.62] * rows])
    _bars(figure.add_subplot(grid[0, :]), methods, results, title, what)
    for i, family in enumerate(families):
        part = {m: results[m]["families"][family] for m in methods if family in results[m].get("families", {})}
        axes = figure.add_subplot(grid[1 + i // wide, i % wide])
        _bars(axes, methods, part, textwrap.fill(family.replace("_", " "), LETTERS))
        if i % wide:
            axes.set_yticklabels([])
    save(figure, path)


def _bars(axes: Any, methods: list[str], results: Mapping[str, Mapping[str, Any]], title: str, what: str = "") -> None:
    """Horizontal bars in per cent, first method on top. With `what` the figures are written beside them."""
    labelled = bool(what)
    size = 10.5 if labelled else 8
    for y, name in enumerate(methods):
        if name not in results:
            continue
        value, (low, high) = 100 * results[name]["success"], (100 * v for v in results[name]["interval"])
        colour = ACCENT if name == "lapa" else REFERENCE if name in REFERENCES else PLAIN
        axes.barh(y, value, height=0.68, color=colour)
        axes.plot([low, high], [y, y], color="#1c1e22", linewidth=1.3 if labelled else 0.9, solid_capstyle="butt")
        if labelled:
            axes.text(high + 1.2, y, f"{value:.1f}%", va="center", fontsize=size)
    axes.set_yticks(range(len(methods)), [METHOD_NAMES.get(name, name) for name in methods], fontsize=size)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_xlim(0, 113 if labelled else 104)
    axes.set_xticks([0, 25, 50, 75, 100] if labelled else [0, 50, 100])
    axes.tick_params(axis="x", labelsize=size - 1, color="#d6d9de")
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, loc="left", fontsize=12 if labelled else 8, fontweight="bold" if labelled else "normal")
    if labelled:
        axes.set_xlabel(f"{what}, %; the line is the 95% interval", fontsize=size - 1.5, color="#686c74")
    axes.grid(axis="x", color="#e6e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


# Moving pictures


def animation(frames: Array, path: Path, fps: float, scale: int = 1, hold: float = 1.2) -> None:
    """Frames uint8 [T, H, W, 3] as .gif, .webp or .png (APNG), repeated for ever; `hold`: seconds of the last frame.

    A GIF has one palette of 256 colours for all frames, so that colours do not change between frames.
    Raises LapaError for another ending, no frames, or a rate of 0 or less.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None or not len(frames) or not fps > 0 or scale < 1:
        raise LapaError(
            f"An animation needs a .gif, .webp or .png path, frames, fps above 0 and a scale of at least 1; "
            f"got {path.name}, {len(frames)} frames, {fps} fps, scale {scale}."
        )
    film = [Image.fromarray(f) for f in np.repeat(np.repeat(frames, scale, 1), scale, 2)]
    if kind == "GIF":
        film = _one_palette(film)
    step = max(round(1000 / fps), 20)  # browsers slow down a GIF of less than 20 ms a frame
    durations = [step] * (len(film) - 1) + [max(step, round(1000 * hold))]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"optimize": False} if kind == "GIF" else {}
    with replacing(path) as temporary:
        film[0].save(temporary, kind, save_all=True, append_images=film[1:], duration=durations, loop=0, **options)


def _one_palette(film: list[Image.Image]) -> list[Image.Image]:
    some = film[:: max(len(film) // 12, 1)]
    width, height = film[0].size
    together = Image.new("RGB", (width, height * len(some)))
    for i, image in enumerate(some):
        together.paste(image, (0, i * height))
    palette = together.quantize(256, Image.Quantize.MEDIANCUT, kmeans=1)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in film]


# The sheet


def _sheet(title: str, note: str, heads: list[str], rows: Sequence[Sequence[Cell]], gap: int = GAP) -> Image.Image:
    """Rows of cells, with a caption above each column. Words are in the middle of their cell."""
    columns = list(zip(*rows, strict=True))
    widths = [
        max(max(_cell_width(c) for c in column), _width(head, _font(SMALL)))
        for head, column in zip(heads, columns, strict=True)
    ]
    heights = [max([TEXT + 8, *(c.shape[0] for c in row if not isinstance(c, str))]) for row in rows]
    inner = sum(widths) + gap * (len(widths) - 1)
    inner = max(inner, 420)
    words = [
        (line, _font(TITLE, bold=True), INK, TITLE + 8) for line in _wrap(title, _font(TITLE, True), inner, most=2)
    ]
    words += [(line, _font(SMALL), MUTED, SMALL + 5) for line in _wrap(note, _font(SMALL), inner, most=4)]
    top = MARGIN + sum(step for *_, step in words) + 10 + (SMALL + 8 if any(heads) else 0)
    image = Image.new("RGB", (inner + 2 * MARGIN, top + sum(heights) + gap * (len(rows) - 1) + MARGIN), PAPER)
    pen, y = ImageDraw.Draw(image), MARGIN
    for line, font, colour, step in words:
        pen.text((MARGIN, y), line, font=font, fill=colour)
        y += step
    lefts = [MARGIN + sum(widths[:i]) + gap * i for i in range(len(widths))]
    for head, left, width in zip(heads, lefts, widths, strict=True):
        pen.text((left + width / 2, top - 7), head, font=_font(SMALL), fill=MUTED, anchor="ms")
    y = top
    for row, height in zip(rows, heights, strict=True):
        for cell, left, width in zip(row, lefts, widths, strict=True):
            if isinstance(cell, str):
                pen.text((left + width / 2, y + height / 2), cell, font=_font(TEXT), fill=INK, anchor="mm")
            else:
                corner = (left + (width - cell.shape[1]) // 2, y + (height - cell.shape[0]) // 2)
                image.paste(Image.fromarray(cell), corner)
        y += height + gap
    return image


def _cell_width(cell: Cell) -> int:
    return _width(cell, _font(TEXT)) + 12 if isinstance(cell, str) else cell.shape[1]


def _tiles(frames: Array, target: int) -> list[Array]:
    """uint8 [n, H, W, 3] -> n tiles about `target` pixels high: enlarged by a whole factor, or reduced by averaging."""
    height, width = frames.shape[1:3]
    if height > 1.5 * target:
        size, how = (max(round(width * target / height), 1), target), Image.Resampling.BOX
    else:
        factor = max(round(target / height), 1)
        size, how = (width * factor, height * factor), Image.Resampling.NEAREST
    return [np.asarray(Image.fromarray(frame).resize(size, how)) for frame in frames]


def _row_of(tiles: Sequence[Array], gap: int) -> Array:
    spacer = np.full((tiles[0].shape[0], gap, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, spacer)][:-1], axis=1)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which is part of matplotlib: the picture is the same on every machine."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


def _width(text: str, font: ImageFont.FreeTypeFont) -> int:
    return int(font.getlength(text)) + 1


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Lines of at most `width` pixels. If the text needs more than `most` lines, the last one ends in an ellipsis."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < most:
        cut = len(rest)
        while _width(rest[:cut], font) > width and cut > 1:
            space = rest.rfind(" ", 1, cut)
            cut = space if space > 0 else cut - 1
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    if rest:
        last = lines[-1]
        while last and _width(last + " …", font) > width:
            last = last[:-1]
        lines[-1] = last.rstrip() + " …"
    return lines


def _save(image: Image.Image, path: Path) -> None:
    """As a PNG, whole or not at all."""
    with replacing(path) as temporary:
        image.save(temporary, "PNG", optimize=True)
