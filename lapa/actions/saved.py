"""A space as JSON has it, opened again."""

from __future__ import annotations

from typing import Any

import numpy as np

from lapa.actions.codebook import ActionCodebook
from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.actions.tables import as_rows
from lapa.contracts import LapaError

Space = CodeSpace | ActionSpace | ActionCodebook


def space_from_json(content: dict[str, Any]) -> Space:
    """Inverse of `dataclasses.asdict` after JSON. Raises LapaError on anything else."""
    try:
        kind, fields = content["kind"], {k: v for k, v in content.items() if k != "kind"}
        if kind == "codes":
            return CodeSpace(**{**fields, "code_embeddings": as_rows(np.array(fields.get("code_embeddings", ())))})
        if kind == "codebook":
            for name in ("means", "squares", "reach"):
                fields[name] = as_rows(np.array(fields[name]))
            for name in ("unit", "names", "switches", "absences"):
                fields[name] = tuple(fields.get(name, ()))
            return ActionCodebook(**fields)
        for name, given in (("edges", fields["edges"]), ("values", fields.get("values", ()))):
            fields[name] = tuple(tuple(float(x) for x in row) for row in given)
        for name in ("names", "switches"):
            fields[name] = tuple(fields.get(name, ()))
        if fields["values"] and [len(v) + 1 for v in fields["values"]] != [len(e) for e in fields["edges"]]:
            raise ValueError("values and edges do not go together")
        return ActionSpace(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise LapaError(f"The policy's space in config.json is not one lapa wrote ({error}).") from None
