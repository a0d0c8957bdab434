"""The panels of the page as HTML: strings made of what the other files compute.

What can be clicked has the attribute data-do="ACTION"; page.py says what the actions do. All words that come from
outside (instructions, names of files) are escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from lapa.contracts import Array
from lapa.explorer.opened import Code, Explored
from lapa.explorer.play import Planned, Play, really, shown
from lapa.plots.codes import code_name
from lapa.plots.flow import flow_tiles

CODES = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # keys of codes 0, 1, ..
COMMANDS = (  # key as browsers call it, as people do, action, what it does
    ("ArrowLeft", "←", "frame:-1", "previous frame"),
    ("ArrowRight", "→", "frame:1", "next frame"),
    ("Shift+ArrowLeft", "Shift ←", "window:-1", "one window back"),
    ("Shift+ArrowRight", "Shift →", "window:1", "one window on"),
    ("ArrowUp", "↑", "video:-1", "previous video"),
    ("ArrowDown", "↓", "video:1", "next video"),
    ("Escape", "Esc", "back", "back to the real frame"),
    ("Backspace", "⌫", "undo", "undo one code"),
    (" ", "Space", "own", "play the code of the video itself (in both runs)"),
    ("Enter", "Enter", "policy", "play the code that the policy names"),
    ("/", "/", "write", "write an instruction; Enter asks the policy"),
    (",", ",", "position:-1", "keys set the position to the left"),
    (".", ".", "position:1", "keys set the position to the right"),
    ("-", "-", "run:1", "keys go to the other run"),
    ("PageUp", "Page ↑", "tab:-1", "previous panel below"),
    ("PageDown", "Page ↓", "tab:1", "next panel below"),
    ("Shift+PageUp", "Shift Page ↑", "page:-1", "previous pairs"),
    ("Shift+PageDown", "Shift Page ↓", "page:1", "next pairs"),
)
TABS = {"plan": "Policy", "pairs": "Pairs", "map": "Map", "told": "What the codes tell", "keys": "Keys"}
PIXELLED = 64  # a side: smaller pictures are sent without loss and shown pixel by pixel
TRAIL = 7  # pictures in a row
PAGE = 12  # pairs on a page


def picture(frame: Array) -> str:
    """uint8 [H, W, 3] -> a data URL."""
    held, small = io.BytesIO(), max(frame.shape[:2]) <= PIXELLED
    image = Image.fromarray(frame)
    if small:
        image.save(held, "PNG", compress_level=1)
    else:
        image.save(held, "JPEG", quality=92, subsampling=0)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(held.getvalue()).decode()}"


def shape(run: Explored, frame: int) -> str:
    """CSS: the video's own shape, for models see squares."""
    height, width = run.packed.sizes[run.packed.episode_of(np.array([frame]))[0]].tolist()
    own = width / height if run.packed.fit == "squash" and 0.4 <= width / height <= 2.5 else 1.0
    how = "pixelated" if run.packed.image_size <= PIXELLED else "auto"
    return f"aspect-ratio:{own:.3f};image-rendering:{how}"


def _tile(frame: Array, style: str, caption: str = "", over: str = "") -> str:
    drawn = f'<img src="{picture(frame)}" style="{style}" decoding="sync" alt="">{over}'
    return f'<figure><div class="pic">{drawn}</div><figcaption>{caption}</figcaption></figure>'


def _button(action: str, words: str, key: str = "", off: bool = False, classes: str = "") -> str:
    shortcut = f" <kbd>{escape(key)}</kbd>" if key else ""
    disabled = " disabled" if off else ""
    return f'<button data-do="{escape(action)}" class="{classes}"{disabled}>{words}{shortcut}</button>'


def header(runs: Sequence[Explored]) -> str:
    """What this is, in words for people who have not read the paper."""
    window = runs[0].source.window
    names = " and ".join(f"<b>{escape(run.name)}</b>" for run in runs)
    return (
        f"<h1>lapa explore <span>{names} on {escape(runs[0].reading.name)}</span></h1>"
        f"<p>A <b>code</b> is a number that LAPA has learnt, from video alone, for what may happen within {window:g} "
        "s. Press a code: the picture becomes what the model expects to see next. Press again: it goes on from there."
        "</p>"
    )


def notes(runs: Sequence[Explored]) -> str:
    """What is missing."""
    lines = [f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes]
    return "".join(f'<p class="note">{escape(line)}</p>' for line in lines)


def video(run: Explored, frame: int, code: Code | None) -> str:
    """A frame, the frame one window later, and the code that LAQ reads between them."""
    packed, later = run.packed, run.later(frame)
    episode = int(packed.episode_of(np.array([frame]))[0])
    start, stop, fps = int(packed.starts[episode]), int(packed.starts[episode + 1]), float(packed.fps[episode])
    style, window = shape(run, frame), run.source.window
    first = _tile(packed.gather(np.array([frame]))[0], style, f"frame {frame - start + 1} of {stop - start}")
    if later is None:
        second = '<figure><div class="pic none">the video ends before</div><figcaption></figcaption></figure>'
        told = f"No frame of this video lies {window:g} s later, so it has no code here."
    else:
        second = _tile(packed.gather(np.array([later]))[0], style, f"{window:g} s later")
        told = f"Between them the LAQ reads code <b>{code_name(code or ())}</b>."
    text = packed.instructions[episode]
    words = f"“{escape(text)}”" if text else "This video has no instruction."
    return (
        f'<div class="two">{first}{second}</div><p>{told}</p><p class="quiet">{words}<br>'
        f"{fps:g} frames a second, {(stop - start) / fps:.1f} s</p>"
    )


def caption(run: Explored, play: Play) -> str:
    """What the large picture is."""
    if not play.codes:
        return "The real frame. Press a code."
    seconds = len(play.codes) * run.source.window
    return f"Imagined: code <b>{code_name(play.codes[-1])}</b>; {seconds:.3g} s after the real frame."


def buttons(run: Explored, play: Play) -> str:
    """The commands of the large picture."""
    bare = not play.codes
    made = [
        _button("back", "back", "Esc", bare),
        _button("undo", "undo", "⌫", bare),
        _button("own", "as the video", "Space"),
        _button("policy", "as the policy", "Enter", run.policy is None),
    ]
    return f'<div class="line">{"".join(made)}</div>'


def trail(run: Explored, play: Play) -> str:
    """The last pictures, and below them what really happened."""
    if not play.codes:
        return (
            '<p class="quiet">Below the picture stands the way so far: what is imagined, and what really happened.</p>'
        )
    real, style, first = really(run, play), shape(run, play.frame), max(0, len(play.pictures) - TRAIL)
    names = ["start", *map(code_name, play.codes)]
    some = range(first, len(play.pictures))
    imagined = "".join(
        _tile(frame, style, names[i]) for i, frame in zip(some, shown(play.pictures[first:]), strict=True)
    )
    there = [frame for i, frame in enumerate(real) if i >= first]
    frames = run.packed.gather(np.array(there, np.int64)) if there else ()
    happened = "".join(_tile(frame, style) for frame in frames)
    missing = '<span class="quiet">the video has ended</span>' if len(there) < len(some) else ""
    return (
        f'<div class="strip"><span>imagined</span>{imagined}</div>'
        f'<div class="strip"><span>real</span>{happened}{missing}</div>'
    )


def arrow(motion: Array, longest: float, size: int = 22) -> str:
    """A motion [2] as an SVG arrow; a dot where there is none, nothing where it is not known."""
    if not np.isfinite(motion).all():
        return f'<svg width="{size}" height="{size}"></svg>'
    reach, half = float(np.hypot(*motion)) / max(longest, 1e-9), size / 2
    if reach < 0.08:
        return f'<svg width="{size}" height="{size}"><circle cx="{half}" cy="{half}" r="1.6" class="dot"/></svg>'
    turned = float(np.degrees(np.arctan2(motion[1], motion[0])))
    long = half * (0.35 + 0.6 * reach)
    head = 0.45 * long + 2
    return (
        f'<svg width="{size}" height="{size}"><g transform="translate({half} {half}) rotate({turned:.0f})">'
        f'<line x1="{-long:.1f}" y1="0" x2="{long - head / 2:.1f}" y2="0" class="shaft"/>'
        f'<path d="M{long:.1f} 0 l{-head:.1f} {-head / 2:.1f} v{head:.1f} z"/></g></svg>'
    )


def keyboard(run: Explored, code: Code, position: int) -> str:
    """A button for each code, of the position that is chosen."""
    arrows, shares = run.arrows[position], run.shares[position]
    longest = float(np.nanmax(np.linalg.norm(arrows, axis=1), initial=0.0))
    made = []
    for k in range(run.size):
        known = "" if k >= len(CODES) else f"<kbd>{CODES[k]}</kbd>"
        classes = "code on" if k == code[position] else "code" if shares[k] or not len(run.reading) else "code unused"
        title = f"code {k}: {shares[k]:.1%} of the pairs"
        made.append(
            f'<button class="{classes}" data-do="code:{k}" title="{title}">{arrow(arrows[k], longest)}'
            f"<span>{k}</span>{known}</button>"
        )
    what = f"The arrow shows which way {run.moved.what} goes on average when the code is seen." if run.moved else ""
    return (
        f'{positions(run, code, position)}<div class="codes">{"".join(made)}</div>'
        f'<p class="quiet">One button a code. {what}</p>'
    )


def positions(run: Explored, code: Code, position: int) -> str:
    """Which position the keys set, where a pair has several codes."""
    if run.positions == 1:
        return ""
    chosen = "".join(
        f'<button data-do="at:{p}" class="{"on" if p == position else ""}">{code[p]}</button>'
        for p in range(run.positions)
    )
    return (
        f'<div class="line at">A pair has {run.positions} codes. Keys set {position + 1} of {run.positions} '
        f"<kbd>,</kbd> <kbd>.</kbd> {chosen}</div>"
    )


def words(lines: Sequence[str], title: str = "") -> str:
    """Sentences."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return head + "".join(f"<p>{escape(line)}</p>" for line in lines)


def plan_panel(run: Explored, play: Play, plan: Planned | None, trouble: str = "") -> str:
    """The codes that the policy names for an instruction, as pictures, as flow and as a way."""
    head = (
        '<p class="says">What the policy would do for an instruction, without a robot: it names a code, the decoder '
        "draws what follows, and the policy looks at that.</p>"
    )
    if run.policy is None:
        told = (
            f"No policy was given for {escape(run.name)}. Make one with lapa pretrain and add --policy FOLDER "
            "to lapa explore."
        )
        return f'{head}<p class="note">{told}</p>'
    if trouble:
        return f'{head}<p class="note">{escape(trouble)}</p>'
    if plan is None:
        return f"{head}<p>Write an instruction above (key <kbd>/</kbd>) and press Enter.</p>"
    style = shape(run, play.frame)
    over = "" if plan.way is None else way(plan.way)
    start = _tile(plan.pictures[0], style, "now" if plan.way is None else f"now, and the way of {plan.what}", over)
    tiles = "".join(
        _tile(frame, style, f"code {code_name(code)}")
        for frame, code in zip(plan.pictures[1:], plan.codes, strict=True)
    )
    flows = ""
    if plan.flow is not None:
        drawn = "".join(_tile(tile, style).replace("pic", "pic flow") for tile in flow_tiles(plan.flow, 120))
        flows = f'<div class="strip"><span>flow</span><figure class="big"></figure>{drawn}</div>'
    else:
        flows = '<p class="note">No flow and no way: nothing tells how things move in these videos.</p>'
    said = f"“{escape(plan.text)}”" if plan.text else "No instruction"
    overlooked = "".join(f'<p class="note">{escape(note)}</p>' for note in plan.notes)
    return (
        f"{head}<p>{said}, {len(plan.codes)} codes of {run.source.window:g} s:</p>{overlooked}"
        f'<div class="strip wide"><span>pictures</span>{start.replace("<figure>", "<figure class=big>", 1)}{tiles}'
        f'</div>{flows.replace("strip", "strip wide")}<p class="quiet">Flow: which way each part of the picture moves '
        "in the pairs of your videos that have the code. Way: these motions one after another.</p>"
    )


def way(points: Array) -> str:
    """A way float [K, 2] in shares of the picture, as an SVG over it."""
    line = " ".join(f"{100 * x:.1f},{100 * y:.1f}" for x, y in points)
    x, y = 100 * points[-1]
    return (
        '<svg class="over" viewBox="0 0 100 100" preserveAspectRatio="none">'
        f'<polyline points="{line}" class="under"/><polyline points="{line}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/></svg>'
    )


def pairs_panel(run: Explored, code: Code, whole: bool, position: int, page: int) -> tuple[str, int]:
    """All pairs of the videos that got a code, side by side, a page of them; and the number of pages."""
    whole = whole or run.positions == 1
    rows = run.having(code, None if whole else position)
    pages = max(1, -(-len(rows) // PAGE))
    page = int(np.clip(page, 0, pages - 1))
    which = f"code {code_name(code)}" if whole else f"code {code[position]} at position {position + 1}"
    head = (
        f'<p class="says">All pairs of frames in your videos that got {which}: if the code has a meaning, the same '
        "happens in all of them. A click goes to the frame.</p>"
    )
    choice = (
        ""
        if run.positions == 1
        else _button("whole", "ask for this position alone" if whole else "ask for all positions")
    )
    turn = (
        f'<div class="line">{choice}{_button("page:-1", "◀", "", page == 0)}'
        f"{len(rows):,} of {len(run.reading):,} pairs, page {page + 1} of {pages}"
        f"{_button('page:1', '▶', '', page + 1 >= pages)}</div>"
    )
    some = run.reading.rows[rows[page * PAGE : (page + 1) * PAGE]]
    index, packed = run.reading.pairs, run.packed
    cards = []
    for row, now, later in zip(some, packed.gather(index.now[some]), packed.gather(index.later[some]), strict=True):
        frame, episode = int(index.now[row]), int(index.episode[row])
        style, name = shape(run, frame), escape(packed.ids[episode])
        cards.append(
            f'<div class="pair" data-do="go:{frame}" title="{name}, frame {index.frame[row] + 1}">'
            f"{_tile(now, style)}{_tile(later, style)}</div>"
        )
    none = "" if cards else '<p class="note">No pair has it.</p>'
    return f'{head}{turn}{none}<div class="pairs">{"".join(cards)}</div>', pages


def map_panel(run: Explored, code: Code, position: int) -> str:
    """Where the codes of a position lie among each other."""
    places = map_places(run, position)
    arrows = run.arrows[position]
    longest = float(np.nanmax(np.linalg.norm(arrows, axis=1), initial=0.0))
    made = []
    for k, (x, y) in enumerate(places):
        drawn = arrow(arrows[k], longest, 40).replace("<svg", f'<svg x="{x - 20:.1f}" y="{y - 20:.1f}"', 1)
        made.append(
            f'<g data-do="code:{k}" class="{"on" if k == code[position] else ""}">'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="13"/>{drawn}<text x="{x + 17:.1f}" y="{y - 11:.1f}">{k}</text></g>'
        )
    at = f", of position {position + 1}" if run.positions > 1 else ""
    known = " The arrow is the mean motion of its pairs." if run.moved else ""
    return (
        f'<p class="says">A map of the codes{at}: two that lie near each other mean similar things to the decoder.'
        f'{known} A click presses the code.</p><svg class="map" viewBox="0 0 900 420">{"".join(made)}</svg>'
    )


def map_places(run: Explored, position: int, width: float = 900, height: float = 420) -> Array:
    """Places of the codes of a position along the first two principal directions of the codebook, float64 [|C|, 2], in
    a frame of width x height."""
    entries = run.source.laq.code_embeddings()[position * run.size : (position + 1) * run.size].astype(np.float64)
    entries = entries if entries.shape[1] else np.zeros((run.size, 1))
    left, spread, _ = np.linalg.svd(entries - entries.mean(0), full_matrices=False)
    found = (left * spread)[:, :2]
    where = np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
    low, high = where.min(0), where.max(0)
    room = np.array([width, height]) - 80
    scale = (room / np.maximum(high - low, 1e-9)).min() if np.ptp(where) > 1e-9 else 0.0
    made: Array = 40 + room / 2 + (where - (low + high) / 2) * scale
    return made


def told_panel(lines: Sequence[str], figures: Sequence[tuple[str, str]] | None, busy: bool) -> str:
    """How much the codes tell, in words."""
    head = '<p class="says">How much the codes say about what happens in your videos.</p>'
    if figures is None:
        wait = '<p class="note">Measuring; this takes seconds.</p>'
        ask = _button("measure", "Measure it: half a minute at most on small data")
        return f"{head}{words(lines)}{wait if busy else f'<p>{ask}</p>'}"
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in figures)
    return f"{head}{words(lines)}<table>{rows}</table>"


def keys_panel(run: Explored, several: bool) -> str:
    """All keys."""
    last = CODES[min(run.size, len(CODES)) - 1]
    rows = [("0" if last == "0" else f"0 .. {last}", f"codes 0 to {min(run.size, len(CODES)) - 1}: 0-9, a-z, then A-Z")]
    hidden = set() if several else {"run:1"}
    hidden |= set() if run.positions > 1 else {"position:-1", "position:1"}
    rows += [(name, what) for _, name, action, what in COMMANDS if action not in hidden]
    made = "".join(f"<tr><th><kbd>{escape(key)}</kbd></th><td>{escape(what)}</td></tr>" for key, what in rows)
    return f'<p class="says">Everything can be done with keys.</p><table class="keys">{made}</table>'


def tabs(chosen: str) -> str:
    """The panels below."""
    return "".join(
        f'<button data-do="show:{name}" class="{"on" if name == chosen else ""}">{title}</button>'
        for name, title in TABS.items()
    )
