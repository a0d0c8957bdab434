"""One HTML file that shows what a run has done: figures, pictures, times, settings.

The file needs no other file: its style is inline, its pictures are data URIs, and it has no script. Input is a folder
with `results.json` (its keys are in `write_report`) and `pictures/`. In place of a missing picture there is a sentence.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from lapa.artefacts.folder import read_json, replacing
from lapa.contracts import LapaError
from lapa.plots.codes import METHOD_NAMES

Results = Mapping[str, Any]

PAPER = "https://arxiv.org/abs/2410.11758"
VIDEOS_OF = {"cross-embodiment": "a hand", "in-domain": "the robot itself"}  # setting of `lapa demo` -> its videos
ELSEWHERE = {  # what the other setting of `lapa demo` shows; figures: docs/results.md, three training seeds
    "cross-embodiment": "Where the videos show the robot itself, VPT does as well as LAPA (docs/results.md): lapa "
    "demo --setting in-domain --out runs/demo_in_domain",
    "in-domain": "Where the videos show a hand, VPT falls behind: lapa demo --out runs/demo_hand",
}

METHOD_NOTES = {
    "no_op": "never moves",
    "random": "walks at random",
    "scratch": "the backbone alone, finetuned on the labelled trajectories",
    "unipi": "imagines the next frames of the video; the same inverse dynamics as VPT's reads actions off them",
    "vpt": "inverse dynamics, fitted on the labelled trajectories, guesses the actions of all video",
    "lapa": "latent actions learnt from video without actions, then the labelled trajectories",
    "read": "the labelled trajectories say what latent actions mean, and these guess the actions of all video",
    "track": "points that go with the hand, learnt from the labelled trajectories and all video, guess the actions",
    "actionvla": "the true actions of all video: the upper bound that LAPA has no access to",
    "expert": "the script that made the demonstrations",
}
PROBES = {
    "action_r2": (
        "Action R²",
        "How much of the robot's action a linear function reads from the code, on held-out pairs.",
        "above 0.85 (1 is all of it, 0 none). A code that does not tell the action cannot help a policy.",
    ),
    "displacement_r2": (
        "Displacement R²",
        "The same for how far the effector really moved.",
        "close to the action R².",
    ),
    "position_r2": (
        "Position R²",
        "The same for where the effector was.",
        "near 0; a code should say what happened, not where.",
    ),
    "perplexity": (
        "Perplexity",
        "How many codes are effectively in use, at each position of the code.",
        "most of the codebook (1 means that all pairs get the same code). By itself no evidence of good codes.",
    ),
    "error_over_copy": (
        "Error / copy",
        "Squared error of the reconstruction, relative to showing the present frame again.",
        "below 1, where the code helped. By itself no evidence of good codes.",
    ),
}
COMMANDS = """\
lapa inspect  --dataset video_folder:clips/ --out runs/look
lapa quantize --dataset video_folder:clips/ --preset video --out runs/laq
lapa label    --dataset video_folder:clips/ --source runs/laq --out runs/labels
lapa pretrain --dataset video_folder:clips/ --labels runs/labels --preset video --out runs/latent
lapa finetune --dataset lerobot:robot_data/ --policy runs/latent --preset video --out runs/policy
lapa evaluate --policy runs/policy --dataset lerobot:robot_test/ --out runs/eval"""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1e22; --muted: #686c74; --line: #e1e4e8; --soft: #f5f6f8;
  --accent: #1f6feb; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e6e8eb; --muted: #9aa0a8; --line: #30343a;
  --soft: #1e2125; --accent: #6aa5ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.1rem 4rem; max-width: 58rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .8rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0 .9rem; max-width: 46rem; }
.answer { font-size: 1.15rem; line-height: 1.5; padding: .9rem 1.1rem; background: var(--soft);
  border-left: 4px solid var(--accent); border-radius: 0 6px 6px 0; max-width: none; }
.muted, figcaption { color: var(--muted); font-size: .9rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
figure { margin: 1rem 0; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px;
  border: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
td.n, th.n { text-align: right; white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; font-size: .85rem; }
tr.lapa td, tr.lapa th { color: var(--accent); }
tr.lapa td.n { font-weight: 600; }
figcaption { margin-top: .4rem; }
.films { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1rem; margin: .6rem 0 1.8rem; }
.films figure { margin: 0; }
.failed img { outline: 2px solid #c0392b; }
dt { font-weight: 600; }
dd { margin: 0 0 .6rem; max-width: 46rem; }
.films img { width: 100%; image-rendering: pixelated; }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
details details { margin-left: 1rem; }
details th { width: 40%; font-weight: 400; }
.bar { background: var(--accent); height: .55rem; border-radius: 3px; min-width: 2px; margin-top: .5rem; }
@media (max-width: 40rem) { td.note, th.note { display: none; } body { padding-top: 1.2rem; }
  h1 { font-size: 1.4rem; } }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } h2 { break-after: avoid; }
  tr { break-inside: avoid; } details::details-content { content-visibility: visible; }
  .answer { border: 1px solid #999; } }
"""


def write_report(folder: Path) -> Path:
    """Write `folder/report.html` from `folder/results.json` and `folder/pictures/`; returns its path.

    results.json: {"methods": {NAME: {"success", "interval": [low, high], "episodes", "families": {FAMILY: the same}}},
    "probe": {"action_r2", "displacement_r2", "position_r2", "perplexity": [..], "error_over_copy"},
    "seconds": {STEP: s}, "settings": {..}}. The number of labelled trajectories is settings["labels"], if there.
    Raises LapaError when results.json is missing, torn or without methods.
    """
    results = read_json(folder / "results.json", "results")
    if not isinstance(results, dict) or not results.get("methods"):
        raise LapaError(f"{folder}/results.json has no methods; run the command that writes it again.")
    pictures = folder / "pictures"
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(_page(results, pictures), encoding="utf-8")
    return folder / "report.html"


def answer(results: Results) -> str:
    """The result in one or two sentences of plain text, good or bad."""
    methods, labels = results["methods"], (results.get("settings") or {}).get("labels")
    few = f"{labels} labelled trajectories" if isinstance(labels, int) else "the same few labelled trajectories"
    setting = (results.get("settings") or {}).get("setting")
    if setting in VIDEOS_OF:
        few = f"videos of {VIDEOS_OF[setting]} and {few} of the robot"
    if "lapa" not in methods:
        return f"LAPA was not run; {len(methods)} other rows are below."
    lapa, scratch, bound = (methods.get(name) for name in ("lapa", "scratch", "actionvla"))
    parts = [f"With {few}, LAPA solves {_percent(lapa)} of the episodes"]
    if scratch:
        parts.append(f"Scratch, which saw no video, {_percent(scratch)}")
    if vpt := methods.get("vpt"):
        parts.append(f"VPT, which guesses the videos' actions, {_percent(vpt)}")
    if bound:
        parts.append(f"ActionVLA, which was told the true actions of all video, {_percent(bound)}")
    verdict = _verdict(lapa, scratch, bound) if scratch else ""
    level = vpt_verdict(methods)
    quick = (results.get("settings") or {}).get("quick")
    rehearsal = " This was a rehearsal (--quick): the figures mean nothing." if quick else ""
    return "; ".join(parts) + "." + verdict + (f" {level}" if level else "") + rehearsal


def vpt_verdict(methods: Results) -> str:
    """LAPA and VPT compared by their intervals; "" if one of them was not run."""
    if not {"lapa", "vpt"} <= methods.keys():
        return ""
    lapa, vpt = methods["lapa"], methods["vpt"]
    if lapa["interval"][0] > vpt["interval"][1]:
        return "LAPA is ahead of VPT."
    if vpt["interval"][0] > lapa["interval"][1]:
        return "VPT is ahead of LAPA."
    return "LAPA and VPT are level: their intervals overlap."


def _verdict(lapa: Results, scratch: Results, bound: Results | None) -> str:
    gain = lapa["success"] - scratch["success"]
    if gain <= 0:
        return " LAPA does not beat Scratch here: watching the videos did not help."
    told = ""
    if lapa["interval"][0] <= scratch["interval"][1]:
        told = " The intervals of LAPA and Scratch overlap, so the difference may be chance."
    if bound is None:
        return told
    gap = bound["success"] - scratch["success"]
    if gap <= 0:
        return told + " ActionVLA is no better than Scratch here, so there is no gap to close."
    return f" LAPA closes {100 * gain / gap:.0f}% of the gap from Scratch to ActionVLA.{told}"


def _percent(row: Results) -> str:
    return f"{100 * row['success']:.1f}%"


def _page(results: Results, pictures: Path) -> str:
    sections = [
        _section("What this is", _what(results)),
        _section("Success", _success(results, pictures)),
        _section("Episodes as they went", _films(pictures)),
        _section("What the codes mean", _codes(results, pictures)),
        *(
            _section(title, (f"<p>{text}</p>" if text else "") + _figure(pictures / name, caption))
            for title, (name, caption, text) in ONE_PICTURE.items()
            if title != FUTURES or "unipi" in results["methods"]
        ),
        _section("How long it took", _times(results.get("seconds") or {})),
        _section("Every setting", _settings(results.get("settings") or {})),
        _section("On your own videos", _how_to()),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>LAPA: from video to policy</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        "<h1>From video without actions to a robot policy</h1>\n"
        f'<p class="answer">{escape(answer(results))}</p>\n' + "\n".join(sections) + "\n</body>\n</html>\n"
    )


# Sections with one picture of `pictures`: title -> file, caption and the text above it
FUTURES = "The futures that UniPi imagines"
ONE_PICTURE = {
    "What the decoder draws": (
        "reconstructions.png",
        "Now, future, reconstruction from now and the code, difference.",
        "The decoder sees the present frame and the code. What it draws right beyond that, the code has told it. With "
        "one code of a few kinds it cannot know every pixel: moving things come out blurred or in the wrong place, and "
        "the last column shows where.",
    ),
    "A rollout that was imagined, beside the real one": (
        "rollout.png",
        "Above what happened, below what was imagined from the first frame.",
        "The pretrained policy names a code, the decoder draws the next frame, the policy looks at that drawing, and "
        "so on. Errors add up: after a few steps the drawing is blurred, and blocks may fade or split. All there is to "
        "see is whether the effector sets out the right way. The policy is never judged by these drawings.",
    ),
    FUTURES: (
        "futures.png",
        "Above what happened, below what was imagined, and what changes. These frames are of its own training data: no "
        "video is held out from a policy.",
        "UniPi has no codes: it draws the next frames by video diffusion from the present one and the instruction, and "
        "the inverse dynamics reads off the drawing what the robot must do.",
    ),
    "The videos": ("contact_sheet.png", "First, middle and last frame of some episodes.", ""),
}


# The other sections, in their order


def _what(results: Results) -> str:
    setting = (results.get("settings") or {}).get("setting")
    other = f"<p>{escape(ELSEWHERE[setting])}</p>" if setting in ELSEWHERE else ""
    return (
        f'<p>LAPA, <a href="{PAPER}">Latent Action Pretraining from Videos</a> (Ye et al., ICLR 2025), makes a robot '
        "policy from videos that have no action labels, and from a few robot trajectories that have them. This page "
        "shows one run of it on Tabletop, beside other methods.</p><dl>"
        "<dt>Tabletop</dt><dd>A small simulated world that belongs to this software. Four coloured blocks lie on a "
        "board, and a sentence says which block to push where. It is a toy: nothing here says how well a real robot "
        "would do. The vision and language model that all methods start from was taught by the simulator, on still "
        "pictures of all objects, phrases and backgrounds, where things are; it was taught nothing of motion.</dd>"
        "<dt>Effector</dt><dd>The part that pushes: the round tip of the robot or, in videos of a hand, two fingers. "
        "An action is how far it moves, in two numbers.</dd>"
        "<dt>LAQ</dt><dd>Latent action quantization, the first stage of LAPA. A network looks at two frames of a video "
        "and must say what happened between them with one of a few codes; a decoder must draw the second frame "
        "from the first and the code. The codes are the <em>latent actions</em>. No true action is used.</dd>"
        "<dt>Then</dt><dd>The policy learns to name the code of every frame of video from the picture and the "
        "sentence. At last the labelled trajectories tell what each code means in the robot's own actions.</dd></dl>"
        + other
    )


def _success(results: Results, pictures: Path) -> str:
    methods: Results = results["methods"]
    families = list(dict.fromkeys(f for row in methods.values() for f in row.get("families") or {}))
    overall = _table(
        ["method", "what it learns from", "solved", "95% interval", "episodes"],
        [
            [METHOD_NAMES.get(name, name), METHOD_NOTES.get(name, ""), *_share_cells(row), f"{row['episodes']}"]
            for name, row in methods.items()
        ],
        marked=[name == "lapa" for name in methods],
        numbers=3,
        note=1,
    )
    rows = [
        [METHOD_NAMES.get(name, name), *(_family_cell((row.get("families") or {}).get(f)) for f in families)]
        for name, row in methods.items()
    ]
    by_family = _table(["solved, %", *families], rows, [name == "lapa" for name in methods], numbers=len(families))
    return (
        _figure(
            pictures / "success.png",
            "All methods meet the same scenes. The pale rows learn nothing; they give the scale.",
        )
        + overall
        + (f"<p>By task family, with 95% intervals:</p>{by_family}" if families else "")
    )


def _codes(results: Results, pictures: Path) -> str:
    probe: Results = results.get("probe") or {}
    rows = [
        [name, _figures(probe[key]), f"{what} Good: {good}"]
        for key, (name, what, good) in PROBES.items()
        if probe.get(key) is not None
    ]
    table = _table(["figure", "here", "what it says"], rows, numbers=0) if rows else "<p>The codes were not probed.</p>"
    return (
        "<p>LAQ gives each pair of frames a code, and has never seen an action. If the codes are actions, then each "
        "one does the same thing to every scene:</p>"
        + _figure(pictures / "gallery.png", "Each code, applied by LAQ's decoder to the same six scenes.")
        + "<p>Where codes that lie near each other in LAQ's codebook mean similar motions, a few labelled trajectories "
        "tell what all of them mean:</p>"
        + _figure(pictures / "map.png", "Where the codes lie; arrows: how the effector moved under each.")
        + "<p>The true actions are used here to check the codes, and nowhere in their training:</p>"
        + table
    )


def _films(pictures: Path) -> str:
    """Films pictures/scene_NUMBER_METHOD.gif in a table: a row for each scene, a column for each method."""
    scenes: dict[int, list[Path]] = {}
    for path in pictures.glob("scene_*_*.gif"):
        scenes.setdefault(int(path.stem.split("_")[1]), []).append(path)
    if not scenes:
        return _missing("scene_*.gif")
    order = list(METHOD_NOTES)[::-1]
    text = (
        "<p>All methods meet the same test scenes. Here are the first two of them and, where there is one among those "
        "recorded, the first that LAPA did not solve. A red frame: not solved.</p>"
    )
    for number in sorted(scenes):
        films = sorted(scenes[number], key=lambda path: order.index(path.stem.split("_", 2)[2]))
        said = _about(films[0]).get("instruction", "")
        text += f"<p>Scene {number + 1}: “{escape(said)}”</p>" + (
            f'<div class="films">{"".join(_film(path) for path in films)}</div>'
        )
    return text


def _about(film: Path) -> dict[str, Any]:
    sidecar = film.with_suffix(".json")
    return dict(read_json(sidecar, "description of an episode")) if sidecar.exists() else {}


def _film(path: Path) -> str:
    about = _about(path)
    method = METHOD_NAMES.get(about.get("method", ""), about.get("method", ""))
    ended = "" if "success" not in about else "solved" if about["success"] else "not solved"
    steps = f"{about['steps']} steps" if "steps" in about else ""
    facts = ", ".join(str(fact) for fact in (method, ended, steps) if fact)
    failed = "" if about.get("success", True) else ' class="failed"'
    said = f"{method}: “{about.get('instruction', '')}”"
    return (
        f'<figure{failed}><img src="{_data_uri(path)}" alt="{escape(said)}">'
        f"<figcaption>{escape(facts)}</figcaption></figure>"
    )


def _times(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return "<p>No times were kept.</p>"
    longest = max(max(seconds.values()), 1e-9)
    rows = "".join(
        f'<tr><th scope="row">{escape(step)}</th><td class="n">{_duration(s)}</td>'
        f'<td style="width:50%"><div class="bar" style="width:{100 * s / longest:.1f}%"></div></td></tr>'
        for step, s in seconds.items()
    )
    return (
        f'<div class="wide"><table><tbody>{rows}</tbody></table></div>'
        f'<p class="muted">{_duration(sum(seconds.values()))} in sum; steps that ran side by side count each.</p>'
    )


def _settings(settings: Any) -> str:
    if not settings:
        return "<p>No settings were kept.</p>"
    return f"<details><summary>Show all settings</summary>{_nested(settings)}</details>"


def _nested(value: Mapping[str, Any]) -> str:
    """Values as a table; dictionaries as parts that a click opens."""
    leaves = {k: v for k, v in value.items() if not (isinstance(v, Mapping) and v)}
    rows = "".join(
        f'<tr><th scope="row">{escape(str(k))}</th>'
        f"<td>{escape(v if isinstance(v, str) else json.dumps(v, default=str))}</td></tr>"
        for k, v in leaves.items()
    )
    table = f'<div class="wide"><table><tbody>{rows}</tbody></table></div>' if rows else ""
    folds = (
        f"<details open><summary>{escape(str(k))}</summary>{_nested(v)}</details>"
        for k, v in value.items()
        if k not in leaves
    )
    return table + "".join(folds)


def _how_to() -> str:
    return (
        "<p>Any folder of videos will do; a <code>captions.csv</code> beside them with the columns "
        "<code>file,instruction</code> says what each one shows. The last two commands need trajectories of the robot "
        "with its actions: a few to finetune on, and others on which the policy's actions are compared with the true "
        f"ones.</p><pre>{escape(COMMANDS)}</pre>"
        "<p>Each command says what it wrote and which command comes next; <code>--help</code> shows its options.</p>"
    )


# The pieces


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def _table(
    heads: list[str], rows: Iterable[list[str]], marked: list[bool] | None = None, numbers: int = 0, note: int = -1
) -> str:
    """A table of text; the last `numbers` columns are right-aligned, column `note` is left out on a phone."""

    def kind(column: int) -> str:
        return ' class="note"' if column == note else ' class="n"' if column >= len(heads) - numbers else ""

    head = "".join(f'<th scope="col"{kind(i)}>{escape(text)}</th>' for i, text in enumerate(heads))
    body = ""
    for r, row in enumerate(rows):
        cells = "".join(f"<td{kind(i)}>{escape(text)}</td>" for i, text in enumerate(row) if i)
        body += f'<tr{" class=lapa" if marked and marked[r] else ""}><th scope="row">{escape(row[0])}</th>{cells}</tr>'
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _share_cells(row: Results) -> list[str]:
    low, high = row["interval"]
    return [_percent(row), f"{100 * low:.1f} – {100 * high:.1f}"]


def _family_cell(row: Results | None) -> str:
    if row is None:
        return "–"
    low, high = row["interval"]
    return f"{100 * row['success']:.0f} ({100 * low:.0f}–{100 * high:.0f})"


def _figures(value: float | list[float]) -> str:
    return ", ".join(f"{v:.1f}" for v in value) if isinstance(value, list) else f"{value:.3f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _figure(path: Path, caption: str) -> str:
    if not path.exists():
        return _missing(path.name)
    return (
        f'<figure><img src="{_data_uri(path)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _missing(name: str) -> str:
    return f'<p class="muted">There is no picture here: {escape(name)} was not made in this run.</p>'


def _data_uri(path: Path) -> str:
    kind = path.suffix.removeprefix(".")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
