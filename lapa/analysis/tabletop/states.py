"""Which domain of Tabletop a dataset shows."""

from __future__ import annotations

from collections.abc import Sequence

from lapa.contracts import LapaError
from lapa.data.spec import parse


def domains_of(specs: Sequence[str], purpose: str) -> list[str]:
    """The domain of each spec. Raises LapaError unless all are Tabletop's: the simulator must know them."""
    parsed = [parse(spec) for spec in specs]
    if any(spec.name != "tabletop" for spec in parsed):
        raise LapaError(f"{purpose} needs datasets tabletop:DOMAIN, such as tabletop:real,episodes=300,seed=9.")
    return [spec.path for spec in parsed]
