"""What can be asked on the table, and in which words.

Five families after Language Table (paper Table 2). Each instruction names the block to move (A) and says where it
goes: to another block (B), to a place of the board, to a side of B, some way in a direction, or away from B.

The unseen split is harder in two ways: A is one of four colour-shape combinations that no seen task ever
mentions, and every phrase is a held-out synonym. Colours, shapes and words are each known to the grounded
backbone (as to the paper's pretrained VLM), but the videos and demonstrations never show them together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("disc", "square", "triangle", "star")
OBJECTS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
HELD_OUT_OBJECTS = ("red triangle", "green disc", "blue star", "yellow square")
SEEN_OBJECTS = tuple(name for name in OBJECTS if name not in HELD_OUT_OBJECTS)

FAMILIES = ("block2block", "block2absolute", "block2side", "block2relative", "separate")

# Board coordinates: x to the right, y downwards, both in [0, 1].
PLACES = {
    "top left corner": (0.17, 0.17),
    "top side": (0.5, 0.17),
    "top right corner": (0.83, 0.17),
    "left side": (0.17, 0.5),
    "centre": (0.5, 0.5),
    "right side": (0.83, 0.5),
    "bottom left corner": (0.17, 0.83),
    "bottom side": (0.5, 0.83),
    "bottom right corner": (0.83, 0.83),
}
_DIAGONAL = 0.5**0.5
DIRECTIONS = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up and left": (-_DIAGONAL, -_DIAGONAL),
    "up and right": (_DIAGONAL, -_DIAGONAL),
    "down and left": (-_DIAGONAL, _DIAGONAL),
    "down and right": (_DIAGONAL, _DIAGONAL),
}
SIDES = ("left", "right", "up", "down")


@dataclass(frozen=True)
class Phrases:
    """The words of one split: templates with {a} and, as the family needs, {b}, {place}, {side} or {direction}."""

    templates: dict[str, tuple[str, ...]]
    places: dict[str, tuple[str, ...]]
    sides: dict[str, tuple[str, ...]]
    directions: dict[str, tuple[str, ...]]


def _places(pattern: dict[str, str]) -> dict[str, tuple[str, ...]]:
    def reword(name: str) -> str:
        for old, new in pattern.items():
            name = name.replace(old, new)
        return name

    return {name: (reword(name),) for name in PLACES}


PHRASES = {
    "seen": Phrases(
        templates={
            "block2block": ("push the {a} to the {b}", "move the {a} next to the {b}", "slide the {a} to the {b}"),
            "block2absolute": (
                "push the {a} to the {place}",
                "move the {a} to the {place}",
                "slide the {a} into the {place}",
            ),
            "block2side": (
                "push the {a} {side} the {b}",
                "move the {a} {side} the {b}",
                "slide the {a} {side} the {b}",
            ),
            "block2relative": (
                "push the {a} {direction}",
                "move the {a} a bit {direction}",
                "slide the {a} {direction}",
            ),
            "separate": (
                "push the {a} away from the {b}",
                "move the {a} away from the {b}",
                "separate the {a} from the {b}",
            ),
        },
        places={name: (name, name.replace("side", "edge").replace("centre", "middle")) for name in PLACES},
        sides={
            "left": ("to the left of", "left of"),
            "right": ("to the right of", "right of"),
            "up": ("above",),
            "down": ("below",),
        },
        directions={name: (name,) for name in DIRECTIONS},
    ),
    "unseen": Phrases(
        templates={
            "block2block": ("bring the {a} over to the {b}", "put the {a} near the {b}"),
            "block2absolute": ("bring the {a} over to the {place}", "shove the {a} into the {place}"),
            "block2side": ("bring the {a} {side} the {b}", "put the {a} {side} the {b}"),
            "block2relative": ("shove the {a} {direction}", "nudge the {a} {direction}"),
            "separate": ("take the {a} far from the {b}", "pull the {a} apart from the {b}"),
        },
        places=_places({"top": "upper", "bottom": "lower", "centre": "center", "side": "border"}),
        sides={
            "left": ("on the left hand of",),
            "right": ("on the right hand of",),
            "up": ("over",),
            "down": ("under",),
        },
        directions={name: (name.replace("up", "upwards").replace("down", "downwards"),) for name in DIRECTIONS},
    ),
}


def say(
    rng: np.random.Generator, split: str, family: str, a: str, b: str = "", place: str = "", direction: str = ""
) -> str:
    """One instruction in the words of a split. `direction` is the side for family block2side."""
    words = PHRASES[split]

    def pick(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    return pick(words.templates[family]).format(
        a=a,
        b=b,
        place=pick(words.places[place]) if place else "",
        side=pick(words.sides[direction]) if family == "block2side" else "",
        direction=pick(words.directions[direction]) if family == "block2relative" else "",
    )
