"""What stage 3 keeps of a pretrained policy with a head, and the ways to finetune that suit it.

All of it follows from what config.json says: what the classes of the policy mean, and which head it has.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from lapa.actions.saved import space_from_json
from lapa.artefacts.settings import object_at
from lapa.heads import is_readable
from lapa.plugins import configure
from lapa.policies import OnBackbone
from lapa.recipe import Recipe

OF_THE_HEAD = ("chunk", "clusters", "bins", "scale")  # settings of the recipe that a head that speaks actions has


class WithHead(OnBackbone):
    """Base class of the `Config` of a policy with a plug-in of lapa/heads: its fields are `head`, `head_options` and
    `code_head` (policies/vla.py)."""

    @abstractmethod
    def head_for(self, kind: str) -> tuple[str, dict[str, Any]]:
        """The head for a space of this kind, and its options."""

    @classmethod
    def ways(cls, saved: Mapping[str, Any] | None) -> tuple[str, ...]:
        """See PolicyConfig. Without a head there is none to keep; some heads can be read; a head for actions can be
        trained further or replaced."""
        kind = _kind(saved)
        read = ("linear",) if kind and is_readable(cls._head_of(saved or {})) else ()
        again = ("as-it-is", "new-head", "all-new-head", "all-long-new-head") if kind not in ("", "codes") else ()
        return (*read, "head", "all", "all-long", *again)

    @classmethod
    def _head_of(cls, saved: Mapping[str, Any]) -> Any:
        """The Config of the head of a saved policy."""
        has = object_at(saved.get("model", {}), "model")
        its = cls(**{name: has[name] for name in ("head", "head_options", "code_head") if name in has})
        name, options = its.head_for(_kind(saved))
        return configure("heads", name, options)

    @classmethod
    def may_change(cls, saved: Mapping[str, Any], recipe: Recipe) -> tuple[str, ...]:
        """See PolicyConfig: where a new head is made, it may be another one."""
        kept = _kind(saved) not in (("",) if recipe.head == "linear" else ("", "codes")) and recipe.head != "new"
        return cls.changeable if kept else (*cls.changeable, "head", "head_options")

    @classmethod
    def kept_with_head(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """See PolicyConfig."""
        if _kind(saved) in ("", "codes"):
            return {}
        has = {**saved.get("recipe", {}), "chunk": space_from_json(saved.get("space")).chunk}  # type: ignore[union-attr]
        return {name: has[name] for name in OF_THE_HEAD if name in has}

    @classmethod
    def trains(cls, saved: Mapping[str, Any] | None, recipe: Recipe) -> bool:
        """See PolicyConfig."""
        return recipe.head != "linear" or not _kind(saved)


def _kind(saved: Mapping[str, Any] | None) -> str:
    """What the classes of a saved policy are; "" for one that has none."""
    space = (saved or {}).get("space")
    return "" if space is None else str(object_at(space, "space").get("kind", ""))
