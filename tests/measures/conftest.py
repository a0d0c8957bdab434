"""Figures are tested as they are in use."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _whole_probes(_short_probes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lapa.measures.probes.MLP_STEPS", _short_probes)
