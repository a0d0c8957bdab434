"""Who acts in a benchmark: the policy in a folder, a policy server, or one of the benchmark's own rows."""

from __future__ import annotations

from typing import NamedTuple

from lapa.contracts import Actor, Benchmark
from lapa.evaluate import require_fit
from lapa.plugins import choose


class Player(NamedTuple):
    """An actor, its name in results, and what results.json says of it."""

    actor: Actor
    name: str
    about: dict[str, str]


def of_policy(text: str, world: Benchmark, benchmark: str) -> Player:
    """A policy's folder, or a server SCHEME://... Raises LapaError where there is none, or one of another world."""
    if "://" in text:
        from lapa.serving.remote import remote

        server = remote(text, world.spec, benchmark)
        require_fit(server, text, world.spec, benchmark)
        return Player(server, text.partition(",")[0], {"policy": text, "hash": server.hash})
    from lapa.artefacts.folder import load_artefact
    from lapa.policies import opened

    artefact = load_artefact(text, "policy")
    actor = opened(artefact)
    data = " ".join(artefact.config.get("provenance", {}).get("data", {}))
    require_fit(actor, f"{text} (finetuned on {data})", world.spec, benchmark)
    return Player(actor, str(artefact.config.get("method")), {"policy": text, "hash": artefact.hash})


def of_row(name: str, world: Benchmark, benchmark: str, sought: str = "row") -> Player:
    """Raises LapaError for a row that the benchmark does not have; `sought`: what `name` could have been."""
    rows = world.baselines()
    named = choose(name, rows, sought, f" of {benchmark}")
    return Player(rows[named], named, {})
