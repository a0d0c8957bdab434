"""The recipe and the options that change it."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

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
