"""Language Table as a benchmark, with the user's clone: scenes, pictures, blocks that can be pushed, the oracle."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lapa import plugins
from lapa.evaluate import Trial, open_benchmark, roll_out

if how := plugins.missing("benchmarks", "language_table"):
    pytest.skip(f"language_table is not there: {how}", allow_module_level=True)

from lapa.benchmarks import _language_table as real


@pytest.fixture(scope="module")
def table() -> Any:
    return open_benchmark("language_table,blocks=BLOCK_4,size=32,max_steps=120")


def test_scenes_and_pictures_are_those_of_their_seeds(table: Any) -> None:
    shown = table.reset([0, 4])
    first = [(s["instruction"], s["state"], s["images"]["front"]) for s in shown]
    for _ in range(4):
        table.step(np.full((2, 2), 0.03))
    np.random.seed(5)  # noqa: NPY002
    for (words, state, picture), again in zip(first[::-1], table.reset([4, 0]), strict=True):
        assert words == again["instruction"]
        np.testing.assert_array_equal(state, again["state"])
        np.testing.assert_array_equal(picture, again["images"]["front"])
    assert table.tasks() == ("separate", "block2block")
    assert first[0][2].shape == (32, 32, 3)


def test_the_picture_is_upright_and_shows_the_block_where_it_is(table: Any) -> None:
    """The red moon, put at the far left of the table as the camera sees it and then at the near right."""
    table.reset([0])
    world = table._worlds[0]
    body = world.env._block_to_pybullet_id["red_moon"]
    found = []
    for place in ([0.2, -0.2, 0.0], [0.5, 0.2, 0.0]):
        world.env._pybullet_client.resetBasePositionAndOrientation(body, place, [0.70710678, 0, 0, 0.70710678])
        red, green, blue = world.picture().astype(int).transpose(2, 0, 1)
        rows, columns = np.nonzero(red > np.maximum(green, blue) + 50)
        found.append((np.median(rows), np.median(columns)))
    (far, left), (near, right) = found
    assert near > far + 30, "what is nearer to the camera is lower"
    assert right > left + 60


def test_another_look_is_the_same_scene_with_its_blocks_in_their_colours(table: Any) -> None:
    other = open_benchmark("language_table,blocks=BLOCK_4,size=64,camera=corner,look=other")
    (shown,), (seen,) = table.reset([5]), other.reset([5])
    np.testing.assert_array_equal(shown["state"], seen["state"])
    assert shown["instruction"] == seen["instruction"]
    parts: dict[str, list[Any]] = {"table": [], "red": []}
    for world in (table._worlds[0], other._worlds[0]):
        picture = world.picture().astype(int)
        parts["table"].append(np.median(picture[60:150, 60:260].reshape(-1, 3), 0))
        red, green, blue = picture.transpose(2, 0, 1)
        rows, columns = np.nonzero(red > 1.9 * np.maximum(green, blue))  # of the red moon; wood is less red
        assert len(rows) > 30
        parts["red"].append((np.median(rows), np.median(columns)))
    assert np.abs(np.subtract(*parts["table"])).max() > 40, "dark grey and wood"
    assert np.linalg.norm(np.subtract(*parts["red"])) > 15, "seen from elsewhere"
    assert next(iter(seen["images"].values())).shape == (64, 64, 3)


def test_blocks_can_be_pushed_and_unused_ones_lie_still(table: Any) -> None:
    table.reset([0])
    world = table._worlds[0]
    block = np.array(world.state[f"block_{world.pushed}_translation"])
    unused = {k: v for k, v in world.state.items() if k.startswith("block_red_star") and "translation" in k}
    for _ in range(25):
        way = np.array(world.state[f"block_{world.pushed}_translation"]) - world.state["effector_translation"]
        table.step(0.03 * way[None] / max(np.linalg.norm(way), 0.03))
        if "moved" in world.stages():
            break
    assert "moved" in world.stages()
    assert np.linalg.norm(world.state[f"block_{world.pushed}_translation"] - block) > real.MOVED
    assert unused
    for key, place in unused.items():
        np.testing.assert_array_equal(world.state[key], place)


def test_the_oracle_does_it(table: Any) -> None:
    outcomes, _ = roll_out(table, table.baselines()["expert"], Trial(3, seed=1))
    assert sum(o.success for o in outcomes) >= 2
    assert all(o.stages == ("reached", "moved") for o in outcomes if o.success)


def test_the_planner_plans_as_the_repository_does() -> None:
    with real._importing_from(Path(os.environ["LANGUAGE_TABLE"]).expanduser().resolve()):
        planner = importlib.import_module(f"{real.MODULES}.oracles.rrt_star")
    rng, its = np.random.default_rng(0), planner.RRTStar
    corners = ([0.2, -0.25], [0.55, 0.25])
    blocks, ends = rng.uniform(*corners, (7, 2)), rng.uniform(*corners, (2, 2))
    paths = []
    before = np.random.get_state()  # noqa: NPY002
    for chosen in (its, real.quick(its)):
        planner.RRTStar = chosen
        np.random.seed(0)  # noqa: NPY002
        path, found = planner.get_shortest_path_no_collisions(
            *ends, (0.15, 0.64), (-0.34, 0.34), list(map(tuple, blocks)), [0.015] * 7, 0.015, 0.05, 0.1, 0.5, 200
        )
        paths.append(path)
        assert found
    np.random.set_state(before)  # noqa: NPY002
    np.testing.assert_allclose(*paths)
    assert len(paths[0]) > 2
