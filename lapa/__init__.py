"""LAPA, Latent Action Pretraining from Videos: from video without actions to a robot policy.

laq = lapa.LAQ.from_pretrained(path)           codes = laq.encode(now, later)
policy = lapa.Policy.from_pretrained(path)     actions = policy.act({"image": ..., "instruction": ...})
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lapa.runtime.threads import wait_passively
from lapa.tabletop import register

__version__ = "0.1.0"
__all__ = ["LAQ", "LapaError", "Policy", "__version__"]

wait_passively()
register()

if TYPE_CHECKING:
    from lapa.contracts import LapaError
    from lapa.models.laq import LAQ
    from lapa.policies import Policy


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Load on first use, so that `import lapa` and `lapa --help` need no torch."""
    if name == "LAQ":
        from lapa.models.laq import LAQ

        return LAQ
    if name == "Policy":
        from lapa.policies import Policy

        return Policy
    if name == "LapaError":
        from lapa.contracts import LapaError

        return LapaError
    raise AttributeError(f"module 'lapa' has no attribute {name!r}")
