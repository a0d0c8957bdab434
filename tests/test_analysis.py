"""What codes mean and whether policies listen: measured on hand-made codes where the right answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lapa.contracts import LapaError, Observation
from lapa.plugins import find


class Listener:
    """A policy that stays where it is and keeps what it was told, scene by scene."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def act_batch(self, observations: list[Observation]) -> Any:
        self.told.append(tuple(o["instruction"] for o in observations))
        return np.zeros((len(observations), 1, 2), np.float32)


def told(instruction: str, episodes: int = 12, seed: int = 0) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a policy was told in each scene, and what it should have been told."""
    listener = Listener()
    world = find("benchmarks", "tabletop")(instruction=instruction, validation=True).build()
    outcomes = world.run(listener, episodes, seed)
    assert len(set(listener.told)) == 1, "a scene is told the same at every step"
    return listener.told[0], tuple(o.instruction for o in outcomes)


def test_a_policy_is_told_the_right_words_others_or_none() -> None:
    heard, right = told("right")
    assert heard == right
    assert told("empty") == (("",) * 12, right)
    heard, same = told("shuffled")
    assert same == right, "success is judged by the right words"
    assert sorted(heard) == sorted(right)
    assert heard != told("shuffled", seed=1)[0]
    at = {text: i for i, text in enumerate(right)}
    assert len(at) == 12
    assert all(at[text] != i for i, text in enumerate(heard)), "no scene is told its own words"
    with pytest.raises(LapaError, match="at least two episodes"):
        told("shuffled", 1)
    with pytest.raises(LapaError, match="no instruction"):
        told("loud")
