"""Policies: loss(batch), adapt(action space), act(observation). `Policy.from_pretrained` opens any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Policy:
    """Opens policies of every kind."""

    @staticmethod
    def from_pretrained(path: str | Path) -> Any:
        """The policy saved at `path` by stage 2 or 3, ready to act. Raises LapaError if it is not one."""
        from lapa.artefacts.folder import load_artefact
        from lapa.plugins import find

        artefact = load_artefact(path, "policy")
        return find("policies", str(artefact.config.get("policy"))).load(artefact)
