"""Two domains of Tabletop, read with perfect codes."""

from __future__ import annotations

import pytest
from hand_coded import reading

from lapa.analysis.reading import Reading


@pytest.fixture(scope="module")
def sim() -> Reading:
    return reading("sim")


@pytest.fixture(scope="module")
def real() -> Reading:
    return reading("real")
