"""Figures are tested as they are in use."""

from __future__ import annotations

import pytest

from lapa.measures import probes

LENGTH = probes.MLP_STEPS  # before the session's fixture shortens it


@pytest.fixture(autouse=True)
def _whole_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MLP_STEPS", LENGTH)
