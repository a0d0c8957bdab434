"""Datasets from the Hugging Face hub: fetched once into its cache, then read like any folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lapa.contracts import LapaError

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_repo(path: str) -> bool:
    """Whether `path` can be the name of a hub dataset, user/name, and is not a path in a folder that is here."""
    return bool(REPO.fullmatch(path)) and not Path(path).parent.exists()


def fetch(repo: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The files of hub dataset `repo` that match `patterns`, as a local folder; files fetched before stay.

    Raises LapaError when the hub cannot be reached, or does not know or show the dataset.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:  # all that huggingface_hub raises is one of them
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise LapaError(
            f"{repo} is neither a folder here nor a dataset that could be fetched from the hub ({reason}). Check the "
            "path and the network; for a private dataset run `hf auth login`."
        ) from None
