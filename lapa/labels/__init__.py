"""Label sources: what stage 2 predicts. The same two steps for every method: fit (stage 1), then label all video."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lapa import plugins
from lapa.artefacts.folder import describe, read_config
from lapa.contracts import LabelSource, LapaError

BATCH = 64  # pairs labelled at once: larger batches leave the cache and are a third slower on a CPU


@dataclass(frozen=True)
class SourceConfig(ABC):
    """What a label source's `Config` derives from.

    opens  the kind of artefact that `path` is a folder of; "": it opens nothing, and `--source` is the plug-in's name
    """

    opens: ClassVar[str] = ""
    path: str = ""

    @abstractmethod
    def build(self) -> LabelSource:
        """Open it. Raises LapaError if the folder is not what it should be."""

    def image_size(self) -> int | None:
        """Pixels a side of the pictures that it looks at, read without its weights; None: it looks at none."""
        if not self.opens:
            return None
        return describe(self.path, self.opens).value(int, "model", "image_size")


def source_config(source: str, **options: Any) -> SourceConfig:
    """The `Config` that `--source` means: a folder made by stage 1, or the name of a plug-in that opens nothing.

    `options` are set where they are not the default. Raises LapaError for anything else, and for an option that this
    source does not have.
    """
    name = _plugin(source)
    given = {key: value for key, value in options.items() if value not in ("float32", False)}
    known = plugins.find("labels", name).__dataclass_fields__
    if refused := [f"--{key}" for key in given if key not in known]:
        raise LapaError(f"{' and '.join(refused)}: labels of {name} have no such choice ({source}). Leave it out.")
    made: SourceConfig = plugins.configure("labels", name, {"path": source, **given})
    return made


def _plugin(source: str) -> str:
    configs = {name: plugins.find("labels", name) for name in plugins.names("labels")}
    words = [name for name, config in configs.items() if not config.opens]
    if source in words:
        return source
    path = Path(source)
    if not path.is_dir():
        raise LapaError(
            f"There is no folder {source}. --source is a folder made by `lapa quantize`, or {' or '.join(words)}."
            f"{plugins.suggest(source, words)}"
        )
    kind = str(read_config(path, "finished label source (lapa quantize makes one)").get("kind"))
    found = {config.opens: name for name, config in configs.items() if config.opens}
    if kind not in found:
        raise LapaError(
            f'{source} holds a "{kind}" artefact; labels come from {" or ".join(sorted(found))} (lapa quantize makes '
            "them)."
        )
    return found[kind]
