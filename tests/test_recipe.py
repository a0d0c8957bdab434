"""The recipe and the options that change it."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from lapa.contracts import LapaError
from lapa.recipe import Recipe, overridden

# plug-in -> the setting with its options
WITH_OPTIONS = {
    "laq.quantizer": "quantizer_options",
    "policy.name": "options",
    "policy.backbone": "backbone_options",
    "policy.head": "head_options",
}


def options_in(recipe: Recipe, plugin: str) -> Any:
    return getattr(getattr(recipe, plugin.partition(".")[0]), WITH_OPTIONS[plugin])


@pytest.mark.parametrize("plugin", WITH_OPTIONS)
def test_another_plugin_drops_the_options_of_the_one_before(plugin: str) -> None:
    given = f'{plugin.partition(".")[0]}.{WITH_OPTIONS[plugin]}={{"width":16}}'
    before = overridden(Recipe(), [given])
    assert options_in(before, plugin) == {"width": 16}
    assert options_in(overridden(before, [f"{plugin}=other"]), plugin) == {}
    assert options_in(overridden(before, ["window=0.4"]), plugin) == {"width": 16}


@pytest.mark.parametrize("plugin", WITH_OPTIONS)
def test_a_plugin_and_its_options_are_given_in_either_order(plugin: str) -> None:
    both = (f"{plugin}=other", f'{plugin.partition(".")[0]}.{WITH_OPTIONS[plugin]}={{"width":16}}')
    for order in permutations(both):
        assert options_in(overridden(Recipe(), order), plugin) == {"width": 16}


def test_settings_that_go_together_alone() -> None:
    """Neither would be right with what is there now, and they may be given in any order."""
    pairs = (("laq.image_size=60", "laq.patch_size=10"), ("planner.frames=1", "planner.executed=1"))
    for pair in pairs:
        for order in permutations(pair):
            changed = overridden(Recipe(), order)
            assert (changed.laq.image_size, changed.laq.patch_size) in ((60, 10), (48, 8))
    with pytest.raises(LapaError, match=r'"laq.image_size=60 laq.patch_size=11": .*11'):
        overridden(Recipe(), ["laq.image_size=60", "laq.patch_size=11"])
    assert overridden(Recipe(), ["window=0.4", "window=0.6"]).window == 0.6, "the last one counts"
    assert overridden(Recipe(), ["planner.pixels=0"]).planner.pixels == 0


def test_starts_stay_where_they_are_given() -> None:
    starts, options = 'starts=[{},{"warmup":300}]', 'laq.quantizer_options={"balance":0.1}'
    for order in permutations((starts, options)):
        assert overridden(Recipe(), order).starts == ({}, {"warmup": 300})
    for name in ("laq.quantizer_options", "laq.quantizer-options"):
        assert overridden(Recipe(), [f"{name}={{}}"]).starts == ()
