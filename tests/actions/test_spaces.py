"""Robot actions <-> classes: bins against quantiles written by hand, vocabularies against what they were made of."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lapa.actions.codebook import ActionCodebook
from lapa.actions.saved import Space, space_from_json
from lapa.actions.scales import Scales, scales_from_json
from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.contracts import LapaError

NUMBERS = st.floats(-1e3, 1e3, allow_nan=False, width=32)
TABLES = st.integers(2, 40).flatmap(lambda n: arrays(np.float32, (n, 2), elements=NUMBERS))


def test_edges_are_quantiles() -> None:
    space = ActionSpace.fit(np.array([[1.0], [9.0], [3.0], [7.0], [5.0]]), bins=4)
    assert space.edges == ((1.0, 3.0, 5.0, 7.0, 9.0),)
    np.testing.assert_array_equal(space.centres(), [[1, 3, 5, 8]], err_msg="the mean of what is in the bin")
    values = np.array([[1.0], [2.9], [3.0], [8.9], [9.0]])
    np.testing.assert_array_equal(space.encode(values), [[0], [0], [1], [3], [3]])


def test_quantiles_between_values_are_interpolated() -> None:
    space = ActionSpace.fit(np.array([[0.0], [1.0], [10.0], [20.0]]), bins=2)
    assert space.edges == ((0.0, 5.5, 20.0),)
    np.testing.assert_array_equal(space.centres(), [[0.5, 15]])
    assert not space._switches.any(), "two bins, but not two values"


def test_bins_have_equal_mass() -> None:
    actions = np.random.default_rng(0).exponential(size=(3200, 1))
    counts = np.bincount(ActionSpace.fit(actions, 32).encode(actions)[:, 0])
    assert len(counts) == 32
    assert 99 <= counts.min() <= counts.max() <= 101


def test_repeated_values_make_fewer_bins() -> None:
    actions = np.array([[0.0, x] for x in range(8)] + [[5.0, x] for x in range(8)] + [[9.0, 8.0]])
    space = ActionSpace.fit(actions, 8)
    assert len(space.edges[0]) < len(space.edges[1]) == 9
    assert space.classes == 8
    assert np.isnan(space.centres()[0]).sum() == 9 - len(space.edges[0])


def test_a_gripper_gets_two_bins_that_decode_to_its_values() -> None:
    actions = np.array([[0.0], [1.0], [1.0], [1.0]])
    space = ActionSpace.fit(actions, bins=32)
    assert (space.classes, space.edges) == (2, ((-0.5, 0.5, 1.5),))
    np.testing.assert_array_equal(space.decode(space.encode(actions)), actions)


@pytest.mark.parametrize("bins", [3, 32, 256])
def test_few_values_get_a_bin_each(bins: int) -> None:
    actions = np.repeat([[-1.0], [0.0], [1.0]], 50, axis=0)
    space = ActionSpace.fit(actions, bins)
    assert space.classes == 3
    np.testing.assert_array_equal(space.decode(space.encode(actions)), actions)
    assert not space._switches.any(), "three values are no switch"


@pytest.mark.parametrize("bins", [8, 32, 256])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_a_robot_that_mostly_rests_can_rest(low: float, share: float, bins: int) -> None:
    """Many zeros come back as zeros, and the rest as the motion that it was."""
    rng = np.random.default_rng(0)
    actions = np.where(rng.random((5000, 1)) < share, 0.0, rng.uniform(low, 1, (5000, 1)))
    space = ActionSpace.fit(actions, bins)
    assert space.classes <= bins
    assert not space._switches.any()
    back = space.decode(space.encode(actions))
    np.testing.assert_array_equal(back[actions == 0], 0)
    assert (back[actions > 0] > 0).all()
    assert (back[actions < 0] < 0).all()


@given(TABLES, st.integers(2, 12))
def test_a_value_that_repeats_decodes_to_itself(actions: np.ndarray, bins: int) -> None:
    space = ActionSpace.fit(actions, bins)
    assert space.classes <= max(bins, 2)
    back = space.decode(space.encode(actions))
    for column, told in zip(actions.T, back.T, strict=True):
        values, counts = np.unique(column, return_counts=True)
        often = np.isin(column, values[counts - 1 >= 2 * (len(column) - 1) / bins])
        np.testing.assert_allclose(told[often], column[often], rtol=1e-6)


def test_older_policies_keep_their_bins() -> None:
    """Without values a bin decodes to the middle of its edges, and two bins are a switch."""
    old = {"edges": [[0.0, 1.0, 4.0], [0.0, 1.0, 2.0, 4.0]], "names": ["grip", "x"], "chunk": 1, "kind": "actions"}
    space = space_from_json(old)
    assert isinstance(space, ActionSpace)
    np.testing.assert_array_equal(space.centres(), [[0.5, 2.5, np.nan], [0.5, 1.5, 3.0]])
    np.testing.assert_array_equal(space._switches, [True, False])
    with pytest.raises(LapaError, match=r"space.* config\.json"):
        space_from_json({**old, "values": [[0.0, 1.0], [0.0]]})


def test_a_constant_dimension_comes_back() -> None:
    space = ActionSpace.fit(np.full((4, 1), 0.25), bins=32)
    assert space.decode(space.encode(np.array([[0.25]]))) == pytest.approx(0.25)


@given(TABLES, st.integers(2, 12))
def test_decoding_is_within_a_bin(actions: np.ndarray, bins: int) -> None:
    space = ActionSpace.fit(actions, bins)
    classes = space.encode(actions)
    assert classes.dtype == np.int64
    assert (classes >= 0).all()
    for dimension, edges in enumerate(space.edges):
        assert (classes[:, dimension] < len(edges) - 1).all(), "never a bin that is not there"
        widest = np.diff(edges).max()
        error = np.abs(space.decode(classes)[:, dimension] - actions[:, dimension]).max()
        assert error <= widest + 1e-6 * np.abs(actions).max()


@given(TABLES, st.integers(2, 12))
def test_a_centre_is_in_its_own_bin(actions: np.ndarray, bins: int) -> None:
    space = ActionSpace.fit(actions, bins)
    centres = space.centres()
    for dimension, edges in enumerate(space.edges):
        for k in range(len(edges) - 1):
            if edges[k] < centres[dimension, k] < edges[k + 1]:  # adjacent numbers have no middle
                row = np.array([centres[d, min(k, len(e) - 2)] for d, e in enumerate(space.edges)])
                assert space.encode(row)[dimension] == k


@given(TABLES, st.integers(2, 12), st.data())
def test_expectation_of_a_sure_bin_is_its_centre(actions: np.ndarray, bins: int, data: st.DataObject) -> None:
    space = ActionSpace.fit(actions, bins)
    classes = np.array([data.draw(st.integers(0, len(e) - 2)) for e in space.edges])
    sure = np.eye(space.classes)[classes]
    np.testing.assert_allclose(space.expect(sure), space.decode(classes), rtol=1e-6)
    low, high = [e[0] for e in space.edges], [e[-1] for e in space.edges]
    evenly = np.array([[(k < len(e) - 1) / (len(e) - 1) for k in range(space.classes)] for e in space.edges])
    slack = 1e-3 + 1e-6 * np.abs(actions).max()
    assert (space.expect(evenly) >= np.array(low) - slack).all()
    assert (space.expect(evenly) <= np.array(high) + slack).all()


@given(TABLES, st.integers(2, 12), st.data())
def test_full_length_of_a_sure_bin_is_its_centre(actions: np.ndarray, bins: int, data: st.DataObject) -> None:
    space = ActionSpace.fit(actions, bins)
    classes = np.array([data.draw(st.integers(0, len(e) - 2)) for e in space.edges])
    found = space.expect_norm_preserving(np.eye(space.classes)[classes])
    largest = np.nanmax(np.abs(space.centres()))
    np.testing.assert_allclose(found, space.decode(classes), rtol=1e-5, atol=1e-6 * largest)


def test_who_wavers_goes_on_at_full_length() -> None:
    """Half up and left, half up and right: the mean is up, at less than half a step; at full length it is a step."""
    bins = np.linspace(-1.5, 1.5, 4)
    space = ActionSpace((tuple(bins), tuple(bins)))  # centres -1, 0, 1
    wavering = np.array([[0.5, 0.0, 0.5], [0.0, 0.6, 0.4]])
    mean, full = space.expect(wavering), space.expect_norm_preserving(wavering)
    np.testing.assert_allclose(mean, [0.0, 0.4], atol=1e-6)
    np.testing.assert_allclose(full, [0.0, 1.0], atol=1e-6)  # root mean square 1.18, the outermost centre is 1
    still = np.array([[0.0, 1.0, 0.0]] * 2)
    np.testing.assert_array_equal(space.expect_norm_preserving(still), [0.0, 0.0])


def test_what_lies_outside_goes_to_the_outermost_bins() -> None:
    space = ActionSpace.fit(np.arange(9.0)[:, None], 4)
    np.testing.assert_array_equal(space.encode(np.array([[-100.0], [100.0]])), [[0], [3]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    actions = np.zeros((5, 3))
    actions[2, 1] = value
    with pytest.raises(LapaError, match=rf"row 2, dimension 1 is {value}"):
        ActionSpace.fit(actions, 4)


@pytest.mark.parametrize("shape", [(1, 2), (0, 2), (8,)])
def test_too_few_actions(shape: tuple[int, ...]) -> None:
    with pytest.raises(LapaError, match=re.escape(f"shape {shape}")):
        ActionSpace.fit(np.zeros(shape), 4)


def test_chunks_count_as_positions() -> None:
    space = ActionSpace.fit(np.random.default_rng(0).normal(size=(50, 3)), 8, chunk=4, names=("x", "y", "z"))
    assert (space.dimensions, space.positions, space.classes) == (3, 12, 8)
    chunks = np.random.default_rng(1).normal(size=(5, 4, 3))
    classes = space.encode(chunks)
    assert space.decode(classes).shape == (5, 4, 3)
    np.testing.assert_array_equal(classes[:, 2], space.encode(chunks[:, 2]))


# --- classes that mean an action each -------------------------------------------------------------

MEANINGS = np.array([[1.0, 0.0], [0.0, 20.0], [-1.0, 0.0], [0.5, -20.0]])  # the second dimension has larger units


def seen_often(times: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of meanings, and actions that mean them."""
    rng = np.random.default_rng(0)
    which = rng.permutation(np.repeat(np.arange(4), times))
    return which, MEANINGS[which] * (1 + noise * rng.normal(size=(len(which), 1)))


def test_clusters_are_the_actions_there_are() -> None:
    which, actions = seen_often(50)
    words = ActionCodebook.clusters(actions, 4, ("x", "y"))
    assert (words.positions, words.classes, words.chunk, words.dimensions) == (1, 4, 1, 2)
    classes = words.encode(actions)
    assert classes.shape == (200, 1)
    assert len(set(zip(which, classes[:, 0], strict=True))) == 4, "one class for each"
    for decoding in ("expectation", "norm_preserving", "centre"):
        np.testing.assert_allclose(words.decide(np.eye(4)[classes], decoding)[:, 0], actions, atol=1e-6)
    assert words == ActionCodebook.clusters(actions, 4, ("x", "y")), "always the same"
    assert ActionCodebook.clusters(actions, 16).classes == 4, "no more than there are different actions"


@pytest.mark.parametrize("still", [0.0, 1e-9])
def test_a_dimension_that_stands_still_decides_no_class(still: float) -> None:
    """Also where it moves later on: the other dimensions are heard as well."""
    _, actions = seen_often(50, noise=0.05)
    more = np.column_stack([actions, still * np.random.default_rng(1).normal(size=len(actions))])
    words, of_two = ActionCodebook.clusters(more, 4), ActionCodebook.clusters(actions, 4)
    np.testing.assert_allclose(np.array(words.means)[:, :2], of_two.means, atol=1e-4)
    assert len(np.unique(words.encode(more + np.array([0, 0, 0.01])))) == 4


def test_what_codes_mean_is_read_off_soft_predictions() -> None:
    """Nobody says which code an action had: the policy's own doubtful predictions tell."""
    rng = np.random.default_rng(1)
    which, actions = seen_often(500)
    doubt = rng.dirichlet(np.ones(4), 2000)
    said = 0.6 * np.eye(4)[which] + 0.4 * doubt
    read = ActionCodebook.from_readout(said[:, None], said @ MEANINGS, ("x", "y"))
    np.testing.assert_allclose(np.array(read.means) / MEANINGS.max(0), MEANINGS / MEANINGS.max(0), atol=0.1)
    acted = read.decide(np.eye(4)[which][:, None], "centre")[:, 0]
    np.testing.assert_allclose(acted / MEANINGS.max(0), actions / MEANINGS.max(0), atol=0.1)
    few = ActionCodebook.from_readout(np.eye(4)[[0, 0, 0, 1]][:, None], MEANINGS[[0, 0, 0, 1]])
    np.testing.assert_allclose(few.means, MEANINGS * [[0.75], [0.5], [0], [0]], err_msg="one frame without motion each")


def test_codes_that_lie_near_each_other_mean_similar_actions() -> None:
    """Sixteen codes in a plane that means motion, turned and stretched; the labels show ten of them."""
    rng = np.random.default_rng(3)
    places = rng.normal(size=(16, 2))
    means = places @ np.array([[0.02, 0.5], [-0.03, 0.4]]) + [0.01, -0.2]
    shown = np.repeat(np.arange(10), 6)
    said, actions = np.eye(16)[shown][:, None], means[shown] + rng.normal(size=(60, 2)) * [0.001, 0.01]
    near, apart = (ActionCodebook.from_readout(said, actions, code_embeddings=p) for p in (places, ()))
    unit = np.array(near.unit)
    assert np.abs((np.array(near.means) - means) / unit).max() < 0.25, "also of the six that no label shows"
    assert np.all(np.array(apart.means)[10:] == 0), "without places nothing is known of those"
    lengths = ((means / unit) ** 2).sum(1)
    np.testing.assert_allclose(np.array(near.squares)[:, 0], lengths, atol=0.3)


def test_places_that_tell_nothing_do_little_harm() -> None:
    rng = np.random.default_rng(4)
    means = rng.normal(size=(16, 2))
    shown = np.tile(np.arange(16), 60)
    read = ActionCodebook.from_readout(
        np.eye(16)[shown][:, None], means[shown], code_embeddings=rng.normal(size=(16, 5))
    )
    np.testing.assert_allclose(read.means, means, atol=0.15)


def test_classes_of_actions_lie_where_their_actions_do() -> None:
    rng = np.random.default_rng(5)
    actions = rng.normal(size=(300, 2, 2)) * [0.01, 3.0]
    words = ActionCodebook.clusters(actions, 8)
    np.testing.assert_allclose(
        words.code_embeddings, np.reshape(np.array(words.means).reshape(8, 2, 2) / words.unit, (8, 4))
    )
    bins = ActionSpace.fit(actions[:, 0], 5, chunk=2)
    places = bins.code_embeddings.reshape(
        2, 2, 5, 2, 2
    )  # chunk, dimension, bin: a coordinate for each chunk and dimension
    for step, dimension in np.ndindex(2, 2):
        along = places[step, dimension, :, step, dimension]
        np.testing.assert_allclose(along / along[0], bins.centres()[dimension] / bins.centres()[dimension, 0])
        assert np.count_nonzero(places[step, dimension]) == np.count_nonzero(along), "and nowhere else"


def test_several_positions_add_up() -> None:
    """Two codes, one for each dimension; chunks of two actions, the second half the first."""
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 3, (3000, 2))
    first = (codes - 1) * [1.0, 5.0]
    chunks = np.stack([first, first / 2], 1)
    read = ActionCodebook.from_readout(np.eye(3)[codes], chunks)
    assert (read.positions, read.classes, read.chunk) == (2, 3, 2)
    assert len(read.means) == 6
    with pytest.raises(LapaError, match=r"\b2 classes"):
        read.encode(chunks)
    np.testing.assert_allclose(read.decide(np.eye(3)[codes[:50]], "expectation"), chunks[:50], atol=0.02)


def test_a_wavering_vocabulary_goes_on_at_full_length_and_not_farther() -> None:
    _, actions = seen_often(50)
    words = ActionCodebook.clusters(actions, 4)
    order = [int(words.encode(m[None])[0, 0]) for m in MEANINGS]
    said = np.zeros((1, 1, 4))
    said[0, 0, order[0]], said[0, 0, order[1]] = 0.8, 0.2
    mean, full = (words.decide(said, decoding)[0, 0] for decoding in ("expectation", "norm_preserving"))
    np.testing.assert_allclose(mean, [0.8, 4.0], atol=1e-6)
    squared = 0.8 * 1 / 0.5625 + 0.2 * 400 / 200  # the dimensions' mean squares are 0.5625 and 200
    np.testing.assert_allclose(full, mean * np.sqrt(squared / (0.64 / 0.5625 + 16 / 200)), rtol=1e-5)
    assert np.linalg.norm(full) > np.linalg.norm(mean)
    np.testing.assert_array_equal(words.decide(9 * said, "expectation")[0, 0], [1, 20], "no farther than any did")


@pytest.mark.parametrize("decoding", ["expectation", "norm_preserving", "centre"])
@pytest.mark.parametrize("way", ["bins", "clusters", "read"])
def test_a_gripper_is_open_or_closed(way: str, decoding: Any) -> None:
    """Also for who wavers; and the motion beside it is the same as without a gripper."""
    rng = np.random.default_rng(0)
    motion = rng.normal(size=(400, 2)) * [0.02, 0.1]
    actions = np.concatenate([motion, np.where(motion[:, :1] > 0, 0.04, 0.0)], 1)
    said = rng.dirichlet(np.ones(8), 400)[:, None]
    make = {
        "bins": lambda a: ActionSpace.fit(a, 8),
        "clusters": lambda a: ActionCodebook.clusters(a, 8),
        "read": lambda a: ActionCodebook.from_readout(said, a),
    }[way]
    space, without = make(actions), make(motion)
    wavering = rng.dirichlet(np.ones(space.classes), (50, space.positions))
    if way == "bins":
        wavering[:, np.isnan(space.centres())] = 0.0  # as the policy's head does
    acted = space.decide(wavering, decoding)
    np.testing.assert_allclose(np.unique(acted[..., 2]), [0.0, 0.04], atol=1e-6)
    assert space_from_json(json.loads(json.dumps(asdict(space)))) == space
    if way == "bins":  # each dimension has probabilities of its own
        beside = without.decide(wavering[:, :2], decoding)
        np.testing.assert_allclose(acted[..., :2], beside, rtol=1e-5)
    elif way == "read":
        np.testing.assert_allclose(acted[..., :2], without.decide(wavering, decoding), rtol=1e-4, atol=1e-7)


def test_scales_are_each_datasets_own_percentiles() -> None:
    rng = np.random.default_rng(0)
    source = np.repeat([0, 1], [2000, 300])
    actions = rng.uniform(-1, 1, (2300, 3)) * np.where(source == 0, 0.02, 30.0)[:, None] + source[:, None]
    actions[:, 2] = 0.5  # does not vary
    scales = Scales.of(actions, source)
    assert scales_from_json(json.loads(json.dumps(asdict(scales)))) == scales
    scaled = scales.normalise(actions, source)
    for dataset in (0, 1):
        mine = scaled[source == dataset]
        np.testing.assert_allclose(np.quantile(mine[:, :2], [0.01, 0.99], axis=0), [[-1, -1], [1, 1]], atol=1e-5)
        np.testing.assert_array_equal(mine[:, 2], 0)
    np.testing.assert_allclose(scales.restore(scaled, source), actions, rtol=1e-4, atol=1e-4)
    chunks = np.stack([actions, actions[::-1]], 1)
    np.testing.assert_allclose(scales.restore(scales.normalise(chunks, source), source), chunks, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("content", [{}, [], {"low": [[0.0]], "high": [[1.0, 2.0]]}, {"low": [["a"]], "high": [[1.0]]}])
def test_scales_of_something_else(content: Any) -> None:
    with pytest.raises(LapaError, match=r"scales.* config\.json"):
        scales_from_json(content)


def test_vocabularies_of_nothing_are_refused() -> None:
    with pytest.raises(LapaError, match=r"\btwo\b"):
        ActionCodebook.clusters(np.zeros((1, 2)), 4)
    with pytest.raises(LapaError, match="row 1, dimension 0 is nan"):
        ActionCodebook.from_readout(np.ones((2, 1, 1)), np.array([[0.0], [np.nan]]))
    still = ActionCodebook.clusters(np.zeros((9, 2)), 4)
    np.testing.assert_array_equal(still.decide(np.ones((1, 1, 1)), "norm_preserving"), np.zeros((1, 1, 2)))


@pytest.mark.parametrize(
    "space",
    [
        CodeSpace(4, 8),
        CodeSpace(1, 2, code_embeddings=((0.5, -1.0), (0.0, 1.0))),
        ActionSpace.fit(np.random.default_rng(0).normal(size=(50, 3)), 8, 2, ("x", "y", "z")),
        ActionCodebook.clusters(np.random.default_rng(0).normal(size=(50, 2, 3)), 8, ("x", "y", "z")),
    ],
)
def test_json_round_trip(space: Space) -> None:
    assert space_from_json(json.loads(json.dumps(asdict(space)))) == space


@pytest.mark.parametrize("content", [{}, {"kind": "codes"}, {"kind": "actions", "edges": [["a"]], "names": []}, None])
def test_json_of_something_else(content: object) -> None:
    with pytest.raises(LapaError, match=r"space.* config\.json"):
        space_from_json(content)  # type: ignore[arg-type]
