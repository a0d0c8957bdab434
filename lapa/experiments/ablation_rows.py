"""The rows of each ablation: a few values of one setting (paper 4.6, Figures 5 and 15).

Those of Tabletop are written down. In a benchmark of others they stand around what its recipe has (`around`), and the
row that changes nothing is the same in all ablations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lapa.contracts import LapaError
from lapa.experiments.sweep import Row
from lapa.methods import METHODS
from lapa.plots.budgets import LINES
from lapa.plugins import choose, configure
from lapa.recipe import Recipe, override

OF_LAQ = {"codes": ("lapa",), "positions": ("lapa",), "window": ("lapa", "read")}  # methods that see a difference
USUAL, OWN = "usual", " (the recipe's)"  # the folder of the row that changes nothing; what follows its name


def backbone(**options: Any) -> tuple[str, ...]:
    """The options of the policy's backbone as a setting."""
    return (f"policy.backbone_options={json.dumps(options, separators=(',', ':'))}",)


ABLATIONS: dict[str, tuple[Row, ...]] = {
    "codes": tuple(Row(f"|C| {n}", (f"laq.codebook_size={n}",)) for n in (4, 8, 16, 32, 64)),
    "positions": tuple(Row(f"s {n}", (f"laq.codes={n}",)) for n in (1, 2, 4)),
    "window": tuple(Row(f"{n:g} s", (f"window={n:g}",)) for n in (0.2, 0.4, 0.6, 1.0)),
    "videos": tuple(Row(f"{n}% of the videos", share=n / 100) for n in (1, 3, 10, 30, 100)),
    "policy": (
        *(Row(f"width {w}, depth {d}", size=(w, d)) for w, d in ((32, 2), (64, 2))),
        Row("width 128, depth 3"),  # the preset's, whose weights ship
        Row("width 256, depth 4", size=(256, 4)),
        Row("width 128, depth 3, not grounded", policy=backbone(grounded=False)),
    ),
    "compute": tuple(
        Row(f"{title}: {n:,} steps", policy=(f"pretrain.steps={n}",), method=method)
        for title, method in (("LAPA", ""), ("ActionVLA", "actionvla"))
        for n in (125, 250, 500, 1000, 2000)
    ),
}


def around(name: str, recipe: Recipe, videos: int, method: str) -> tuple[Row, ...]:
    """The rows of an ablation in a benchmark of others, with this recipe and so many videos a task. method: a name of
    methods.METHODS, what is ablated.

    Raises LapaError where that leaves nothing to compare, or where a row does not go together with the recipe or the
    method.
    """
    made = AROUND[choose(name, AROUND, "ablation")](recipe, videos)
    if method not in OF_LAQ.get(name, METHODS):
        raise LapaError(f"lapa ablate {name} --method {method}: the rows would be alike, as they differ in the codes "
                        "of LAQ alone. Give videos, policy or compute.")  # fmt: skip
    if len(made) < 2:
        had = f"--videos {videos}" if name == "videos" else f"latent_chunk={recipe.latent_chunk}, chunk={recipe.chunk}"
        raise LapaError(f"lapa ablate {name}: with {had} the only row is {made[0].name}, and there is nothing to "
                        "compare it with. Give other numbers.")  # fmt: skip
    return tuple(_of(method, _without_what_is_there(row, recipe)) for row in made)


def _of(method: str, row: Row) -> Row:
    """The row of another method than LAPA has a folder of its own, so that several can be side by side."""
    if row.method or method == "lapa":
        return row
    return replace(row, name=row.name.replace(f"{LINES['lapa'][0]}:", f"{LINES[method][0]}:"), group=method)


def _without_what_is_there(row: Row, recipe: Recipe) -> Row:
    """The row with those settings alone that change the recipe; where there are none it is the recipe's own."""
    settings = tuple(setting for setting in row.settings if override(recipe, setting) != recipe)
    policy = tuple(setting for setting in row.policy if override(recipe, setting) != recipe)
    row = replace(row, settings=settings, policy=policy)
    own = not (settings or policy or row.method) and row.share == 1
    return replace(row, name=row.name + OWN, folder=USUAL) if own else row


def _codes(recipe: Recipe, videos: int) -> tuple[Row, ...]:
    sizes = sorted({8, 16, 32, 64, 128, recipe.laq.codebook_size})
    return tuple(Row(f"|C| {n}", (f"laq.codebook_size={n}",)) for n in sizes)


def _positions(recipe: Recipe, videos: int) -> tuple[Row, ...]:
    """With the recipe's |C|; then with as many bits in all as the recipe has, where whole codebooks of eight or more
    codes can hold them."""
    s, bits = recipe.laq.codes, recipe.laq.codes * math.log2(recipe.laq.codebook_size)
    made = [Row(f"s {n}", (f"laq.codes={n}",)) for n in sorted({1, 2, 4, s})]
    for n in sorted({2, 3, 4} - {s}):
        if (bits / n).is_integer() and bits / n >= 3:
            size = 2 ** int(bits / n)
            made.append(Row(f"s {n}, |C| {size}", (f"laq.codes={n}", f"laq.codebook_size={size}")))
    return tuple(made)


def _window(recipe: Recipe, videos: int) -> tuple[Row, ...]:
    """The time of a chunk of actions in one, two and four windows, as far as each has a whole number of actions."""
    seconds, own = recipe.window * recipe.latent_chunk, recipe.latent_chunk
    cuts = [n for n in sorted({1, 2, 4, own}) if n == own or recipe.chunk % n == 0]
    return tuple(Row(f"{n} x {seconds / n:g} s", (f"window={seconds / n:g}", f"latent_chunk={n}")) for n in cuts)


def _videos(recipe: Recipe, videos: int) -> tuple[Row, ...]:
    counts = sorted({max(1, round(videos * share)) for share in (0.04, 0.1, 0.3, 1)})
    return tuple(Row(f"{n} video{'s' * (n > 1)} a task", share=n / videos) for n in counts)


def _policy(recipe: Recipe, videos: int) -> tuple[Row, ...]:
    """Width and depth of `pieces`, whose own transformer learns from nothing but the videos."""
    given = recipe.policy.backbone_options
    other = given.get("language", "minilm") != "minilm" or given.get("reads") == "words"
    if recipe.policy.backbone != "pieces" or other:
        asked = {"policy.backbone": recipe.policy.backbone, "policy.backbone_options": given}
        raise LapaError("lapa ablate policy --benchmark: the sizes are those of the backbone pieces that reads an "
                        "instruction as one vector, by minilm. Here: "
                        f"{', '.join(f'{name}={value}' for name, value in asked.items())}.")  # fmt: skip
    own = configure("backbones", "pieces", given)
    made = []
    for width, depth in sorted({(48, 1), (96, 2), (384, 4), (own.width, own.depth)}):
        options = {**given, "width": width, "depth": depth}
        configure("backbones", "pieces", options)  # refuses what does not fit the options that were given
        size = () if (width, depth) == (own.width, own.depth) else backbone(**options)
        made.append(Row(f"width {width}, depth {depth}", policy=size))
    return tuple(made)


def _compute(recipe: Recipe, videos: int) -> tuple[Row, ...]:
    """A fifteenth of the recipe's steps of stage 2, twice as many and so on, and all of them; beside them none."""
    steps = sorted({max(1, round(recipe.pretrain.steps * part / 15)) for part in (1, 2, 4, 8, 15)})
    made = [Row(f"{title}: {n:,} steps", policy=(f"pretrain.steps={n}",), method=method)
            for title, method in (("LAPA", ""), ("ActionVLA", "actionvla")) for n in steps]  # fmt: skip
    return (Row("Scratch", method="scratch"), *made)


AROUND: Mapping[str, Callable[[Recipe, int], tuple[Row, ...]]] = {
    "codes": _codes,
    "positions": _positions,
    "window": _window,
    "videos": _videos,
    "policy": _policy,
    "compute": _compute,
}
