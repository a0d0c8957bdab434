"""A policy on disk, made once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lapa.data.pack import Packed
from lapa.recipe import Recipe
from lapa.stage3_finetune import finetune


@pytest.fixture(scope="session")
def artefact(packed: Packed, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with chunks of three actions, after four steps."""
    path = tmp_path_factory.mktemp("policy") / "arm"
    finetune(packed, None, replace(tiny, chunk=3), path, 0)
    return path
