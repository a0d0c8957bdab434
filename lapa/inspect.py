"""`lapa inspect`: look at a dataset, and at what a LAQ makes of it, before spending hours on it.

Writes contact_sheet.png and inspect.json; with a LAQ also gallery.png and reconstructions.png.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lapa.contracts import Array
from lapa.data.pack import Packed, pack
from lapa.data.pairs import PairIndex, window_pairs
from lapa.explorer.codes import contact_sheet, describe, gallery, reconstructions
from lapa.models.laq import LAQ
from lapa.stage1_latent_actions import code_table, watch
from lapa.training.checkpoint import load_artefact, write_json

WATCHED = 2000  # pairs on which a LAQ is judged
SHOWN = 6  # pairs and scenes in a picture
MEANING = {
    "error_over_copy": "error of the reconstruction relative to showing the present frame again; below 1 is better",
    "action_r2": "share of the robot's action that the code tells; 1 is all of it",
    "displacement_r2": "share of the effector's motion that the code tells; 1 is all of it",
    "position_r2": "share of the effector's place that the code tells; near 0 is good",
    "perplexity": "codes in use at each position, of {size}; 1 has collapsed",
}


def inspect_dataset(specs: Sequence[str], out: Path, image_size: int, skip_bad: bool = False) -> dict[str, Any]:
    """Print a dataset's figures, write its contact sheet and inspect.json to `out`; returns what the JSON holds.

    `specs` are NAME:PATH. Raises LapaError for data that cannot be read (bad episodes are listed with skip_bad).
    """
    return _write(out, {"dataset": _dataset(pack(specs, image_size, skip_bad=skip_bad), out)})


def inspect_laq(path: Path, specs: Sequence[str], out: Path, skip_bad: bool = False, seed: int = 0) -> dict[str, Any]:
    """As inspect_dataset, and the LAQ saved at `path` on that dataset: its figures, code gallery, reconstructions.

    Raises LapaError when `path` is not a LAQ or no episode is as long as its window.
    """
    laq, recipe = LAQ.from_pretrained(path), load_artefact(path, "laq").config["recipe"]
    packed = pack(specs, laq.config.image_size, skip_bad=skip_bad)
    pairs = window_pairs(packed, recipe["window"], recipe.get("end", "drop"))
    about = {"dataset": _dataset(packed, out)}
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(pairs), min(WATCHED, len(pairs)), replace=False)
    results = watch(laq, packed, pairs, rows)
    _print_laq(path, recipe["window"], results, laq.config.codebook_size)
    codes, motion = code_table(laq, packed, pairs, rows)
    scenes = packed.gather(_one_an_episode(pairs, rng))
    title = f"What each code does to the same scenes: {path}"
    gallery(laq, scenes, out / "gallery.png", title, codes=codes, motion=motion)
    some = pairs.batch(packed, _moving(packed, pairs, rows))
    reconstructions(laq, some.now, some.later, out / "reconstructions.png", f"Reconstructions: {path}")
    return _write(out, {**about, "laq": {"path": str(path), "window_seconds": recipe["window"], **results}})


def _dataset(packed: Packed, out: Path) -> dict[str, Any]:
    about = describe(packed)
    _print_dataset(about)
    contact_sheet(packed, out / "contact_sheet.png")
    return about


def _one_an_episode(pairs: PairIndex, rng: np.random.Generator) -> Array:
    """Frames int64 [<= SHOWN] from episodes spread over the dataset."""
    episodes = np.unique(pairs.episode)
    chosen = episodes[np.unique(np.linspace(0, len(episodes) - 1, min(SHOWN, len(episodes))).round().astype(int))]
    return np.array([pairs.now[rng.choice(np.flatnonzero(pairs.episode == e))] for e in chosen])


def _moving(packed: Packed, pairs: PairIndex, rows: Array) -> Array:
    """The pairs of `rows` in which most happens, one from each of SHOWN equal parts of them."""
    some = pairs.batch(packed, rows[:240])
    change = np.abs(some.later.astype(np.float32) - some.now).mean((1, 2, 3))
    parts = np.array_split(np.arange(len(change)), min(SHOWN, len(change)))
    return rows[[part[np.argmax(change[part])] for part in parts]]


def _print_dataset(about: dict[str, Any]) -> None:
    texts, seconds = about["instructions"], about["seconds"]
    rows = {
        "episodes": f"{about['episodes']:,}",
        "frames": f"{about['frames']:,}, shown at {about['image_size']} x {about['image_size']} pixels",
        "hours": f"{about['hours']:.2f}",
        "fps": ", ".join(f"{rate} ({n} episodes)" for rate, n in about["fps"].items()),
        "seconds an episode": "{shortest:.1f} to {longest:.1f}, median {median:.1f}".format(**seconds),
        "instructions": f"{texts['distinct']:,} distinct, {texts['missing']:,} missing",
        "longest instruction": texts["longest"] or "-",
        "actions": "none" if about["actions"] is None else f"{len(about['actions'])} dimensions (robot units)",
        **{
            f"  {a['name']}": f"{a['min']:.3g} to {a['max']:.3g}, mean {a['mean']:.3g}, deviation {a['std']:.3g}"
            for a in about["actions"] or []
        },
        "skipped": f"{len(about['bad'])} unreadable" if about["bad"] else "none",
        **{f"  {i + 1}": reason for i, reason in enumerate(about["bad"])},
    }
    _print_table(f"Dataset {about['dataset']}", {name: (value,) for name, value in rows.items()})


def _print_laq(path: Path, window: float, results: dict[str, Any], size: int) -> None:
    shown = {
        name: (
            ", ".join(f"{v:.1f}" for v in results[name]) if name == "perplexity" else f"{results[name]:.3f}",
            meaning.format(size=size),
        )
        for name, meaning in MEANING.items()
        if name in results
    }
    _print_table(f"LAQ {path}, window {window:g} s", shown)


def _print_table(title: str, rows: Mapping[str, tuple[str, ...]]) -> None:
    table = Table(
        title=escape(title), title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False
    )
    for name, cells in rows.items():
        table.add_row(name, *(escape(c) for c in cells))
    Console(highlight=False).print(table)


def _write(out: Path, content: dict[str, Any]) -> dict[str, Any]:
    write_json(out / "inspect.json", content)
    Console(highlight=False).print(f"Pictures and figures: {out}/", markup=False)
    return content
