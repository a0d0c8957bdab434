"""How the reference of the site shows docstrings: what is named in columns becomes a list, and shapes stay shapes.

frames   int64 [N]          ->  * `frames`: int64 [N]
targets  of each frame          * `targets`: of each frame
"""

from __future__ import annotations

import re
from typing import Any

import griffe

NAMED = re.compile(r"([\w.,* ]*?\w(?: \[\w\])?)(?: {2,})(\S.*)")  # a name, two spaces or more, text
SHAPES = re.compile(r"(`[^`\n]*`)|\]\[")  # [D][A] would be a link by name


class Columns(griffe.Extension):
    """See the module's docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = shown(obj.docstring.value)


def shown(text: str) -> str:
    """The docstring as Markdown."""
    made = "\n\n".join(_paragraph(each) for each in re.split(r"\n{2,}", text))
    return SHAPES.sub(lambda found: found[1] or r"]\[", made)


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if lines[0].startswith(" ") or re.match(r"\w+:$", lines[0]) or not NAMED.fullmatch(lines[0]):
        return text
    made: list[str] = []
    for line in lines:
        if found := NAMED.fullmatch(line) if not line.startswith(" ") else None:
            made.append(f"* `{found[1]}`: {found[2]}")
        else:
            made.append(f"    {line.strip()}")
    return "\n".join(made)
