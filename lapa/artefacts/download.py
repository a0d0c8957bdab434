"""What is named user/name is fetched from the Hugging Face hub: artefacts, and files of datasets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lapa.contracts import LapaError

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FILES = ("config.json", "model.safetensors")
WITHIN = (
    "lapa_artefact"  # a checkpoint of LeRobot holds the config.json of its artefact here (interop/lerobot_policy.py)
)


def is_repo(path: str | Path) -> bool:
    """Whether `path` can be the name of a repository, user/name, and is not a path in a folder that is here."""
    return bool(REPO.fullmatch(str(path))) and not Path(path).parent.exists()


def fetch(repo: str, patterns: Sequence[str], revision: str | None = None, kind: str = "dataset") -> Path:
    """The files of `repo`, a "dataset" or a "model", that match `patterns`, as a local folder; files fetched before
    stay.

    Raises LapaError when the hub cannot be reached, or does not know or show it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # what the network library below huggingface_hub raises has no class in common
        raise LapaError(
            f"{repo} is neither a folder here nor a {kind} that could be fetched from the hub ({reason(error)}). "
            f"Check the path and the network; for a private {kind} run `hf auth login`."
        ) from None


def local(path: str | Path) -> Path:
    """The folder of an artefact: `path` itself, or user/name fetched from the hub. Raises LapaError as `fetch`."""
    return fetch(str(path), (*FILES, f"{WITHIN}/config.json"), kind="model") if is_repo(path) else Path(path)


def reason(error: BaseException) -> str:
    """The first line of what lies under an error of huggingface_hub: a refused connection hides at the bottom."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__
