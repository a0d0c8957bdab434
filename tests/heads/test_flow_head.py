"""Heads that answer with actions as numbers: flow matching and regression."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from lapa.actions.numbers import NumberSpace
from lapa.actions.saved import space_from_json
from lapa.contracts import Context, LapaError
from lapa.heads import flow, regression

CHUNK = 3
SPACE = NumberSpace((-1.0, -1.0), (1.0, 1.0), ((-2.0, 2.0), (-2.0, 2.0)), chunk=CHUNK)
BOTH = [flow.Config(width=16, heads=2, layers=1, draws=64), regression.Config(16)]


def context(rows: int = 4, length: int = 5, width: int = 12, seed: int = 0) -> Context:
    g = torch.Generator().manual_seed(seed)
    hidden, mask = torch.randn(rows, length, width, generator=g), torch.ones(rows, length, dtype=torch.bool)
    mask[:, :2] = torch.arange(rows)[:, None] % 2 == 0
    return Context(hidden, mask, hidden[:, -1])


def made(config: Any, space: NumberSpace = SPACE) -> Any:
    torch.manual_seed(0)
    return config.build(12, space).eval()


def learnt(head: Any, target: torch.Tensor, steps: int, rate: float = 1e-2) -> Any:
    seen = context(len(target))
    optimizer = torch.optim.AdamW(head.train().parameters(), rate)
    for step in range(steps):
        torch.manual_seed(step)
        loss, _ = head.loss(seen, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


@pytest.mark.parametrize(("config", "rate"), [(BOTH[0], 5e-3), (BOTH[1], 2e-2)], ids=["flow", "regression"])
def test_it_learns_the_chunk_that_belongs_to_what_is_seen(config: Any, rate: float) -> None:
    target = torch.tensor([[[0.8, -0.4], [0.2, 0.6], [-0.5, 0.1]], [[-0.6, 0.3], [0.4, -0.7], [0.9, 0.5]]])
    head = learnt(made(config), target, 100, rate)
    with torch.no_grad():
        said = head.answer(context(2))
    assert said.shape == (2, CHUNK, 2)
    assert said.dtype == torch.float32
    assert (said - target).abs().mean() < 0.2


@pytest.mark.parametrize("config", BOTH, ids=["flow", "regression"])
def test_what_lies_past_the_end_is_masked(config: Any) -> None:
    """The gradients of the other actions are those of a target that says nothing there, whatever is asked of it."""
    target = torch.zeros(4, CHUNK, 2)
    target[1, 1:], target[2] = torch.nan, torch.nan
    found = []
    for _ in range(2):
        head = made(config).train()
        torch.manual_seed(1)
        loss, _ = head.loss(context(), target)
        loss.backward()
        assert math.isfinite(float(loss.detach()))
        found.append([p.grad.clone() for p in head.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(bool(g.isfinite().all()) for g in found[0])
    torch.manual_seed(1)
    nothing, _ = made(config).loss(context(), torch.full((4, CHUNK, 2), torch.nan))
    assert float(nothing.detach()) == 0


def test_actions_that_are_do_not_look_at_those_that_are_not() -> None:
    head = made(BOTH[0])
    seen, x, t = head._seen(context()), torch.randn(4, CHUNK, 2), torch.full((4,), 0.5)
    past = torch.tensor([[False, False, True]]).expand(4, -1)
    other = x.clone()
    other[:, 2] = 9.0
    with torch.no_grad():
        one, two = (head.speed(each, t, seen, past)[:, :2] for each in (x, other))
        assert torch.equal(one, two)
        assert not torch.allclose(head.speed(x, t, seen)[:, :2], head.speed(other, t, seen)[:, :2])


@pytest.mark.parametrize("config", BOTH, ids=["flow", "regression"])
def test_it_looks_at_the_context_but_not_at_padding(config: Any) -> None:
    head, seen = made(config), context()
    with torch.no_grad():
        right = head.answer(seen)
        assert not torch.allclose(right[0], right[1])
        padded = replace(seen, hidden=seen.hidden.masked_fill(~seen.mask[..., None], 9.0))
        torch.testing.assert_close(head.answer(padded), right)
        alone = Context(seen.hidden[2:3], seen.mask[2:3], seen.readout[2:3])
        torch.testing.assert_close(head.answer(alone), right[2:3])


def test_flow_goes_one_of_two_ways_and_not_between_them() -> None:
    """Half of the examples go left, half go right, and what is seen does not tell."""
    space = replace(SPACE, low=(-1.0,), high=(1.0,), reach=((-2.0, 2.0),), chunk=1)
    head = made(flow.Config(width=16, heads=2, layers=1, noise="random"), space)
    seen = Context(*(each[:1].expand(64, *each.shape[1:]) for each in (context().hidden, context().mask)),
                   context().readout[:1].expand(64, -1))  # fmt: skip
    target = torch.where(torch.arange(64) % 2 == 0, 0.8, -0.8).view(64, 1, 1)
    optimizer = torch.optim.AdamW(head.train().parameters(), 1e-2)
    for step in range(150):
        torch.manual_seed(step)
        loss, _ = head.loss(seen, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.manual_seed(0)
    with torch.no_grad():
        said = head.eval().answer(seen).flatten()
    assert (said.abs() > 0.4).float().mean() > 0.8
    assert 0.2 < (said > 0).float().mean() < 0.8


@pytest.mark.parametrize(("noise", "alike"), [("seeded", True), ("zero", True), ("random", False)])
def test_where_a_path_begins(noise: Any, alike: bool) -> None:
    head = made(flow.Config(width=16, heads=2, noise=noise))
    with torch.no_grad():
        assert torch.equal(head.answer(context()), head.answer(context())) == alike
    other = made(flow.Config(width=16, heads=2, noise=noise, seed=1))
    with torch.no_grad():
        assert torch.equal(head.answer(context()), other.answer(context())) == (noise == "zero")


@pytest.mark.parametrize(
    "config", [flow.Config(layers=0), flow.Config(steps=0), flow.Config(width=10, heads=4), regression.Config(-1)]
)
def test_settings_that_cannot_be(config: Any) -> None:
    with pytest.raises(LapaError, match=r"^(flow|regression): "):
        config.build(12, SPACE)


def test_a_linear_regression_has_one_layer() -> None:
    assert len(list(made(regression.Config(0)).parameters())) == 2


# --- the numbers themselves


def test_numbers_there_and_back() -> None:
    rng = np.random.default_rng(0)
    actions = np.stack(
        [rng.normal(5, 2, 400), 1e-3 * rng.normal(size=400), np.arange(400) % 3 == 0, np.full(400, 7)], 1
    )
    chunks, pad = actions.reshape(100, 4, 4), np.zeros((100, 4), bool)
    pad[::3, 2:] = True
    spoilt = np.where(pad[..., None], 1e6, chunks)
    space = NumberSpace.fit(spoilt, ("x", "y", "grip", "still"), pad)
    assert space == NumberSpace.fit(chunks, ("x", "y", "grip", "still"), pad)
    targets = space.targets(spoilt, pad)
    assert targets.dtype == np.float32
    assert np.array_equal(np.isnan(targets), np.broadcast_to(pad[..., None], chunks.shape))
    assert np.abs(targets[~pad][:, :2]).mean() < 1
    assert set(np.unique(targets[~pad][:, 2])) == {-1.0, 1.0}
    back = space.decide(np.nan_to_num(targets), "expectation")
    np.testing.assert_allclose(back[~pad], chunks[~pad], rtol=1e-4, atol=1e-6)
    assert set(np.unique(space.decide(rng.normal(size=(9, 4, 4)), "centre")[..., 2])) <= {0.0, 1.0}
    low, high = chunks[~pad].min(0), chunks[~pad].max(0)
    wild = space.decide(np.full((1, 4, 4), 50.0), "expectation")
    np.testing.assert_allclose(wild[0, 0], high, rtol=1e-6)
    assert (space.decide(np.full((1, 4, 4), -50.0), "expectation")[0] >= low.astype(np.float32)).all()


def test_steps_that_go_farther_than_others_count_alike() -> None:
    """Actions relative to the present state, and a gripper."""
    rng = np.random.default_rng(1)
    away = np.cumsum(rng.normal(size=(300, 4, 2)) * (1, 50), 1)
    chunks = np.concatenate([away, rng.integers(0, 2, (300, 4, 1))], 2)
    pad = np.zeros((300, 4), bool)
    pad[::5, 3] = True
    space = NumberSpace.fit(chunks, pad=pad)
    assert np.allclose(space.steps, np.sqrt([1, 2, 3, 4]) / np.sqrt(2.5), atol=0.08)
    targets = space.targets(chunks, pad)
    spread = np.nanstd(targets, 0)
    assert (np.abs(spread[:, :2] / spread[:, :2].mean() - 1) < 0.1).all()
    assert set(np.unique(targets[~pad][:, 2])) == {-1.0, 1.0}
    back = space.decide(np.nan_to_num(targets), "expectation")
    np.testing.assert_allclose(back[~pad], chunks[~pad], rtol=1e-4, atol=1e-5)
    assert NumberSpace.fit(rng.normal(size=(300, 4, 2))).steps == (), "motions of one step are alike"
    assert space_from_json(json.loads(json.dumps(asdict(space)))) == space
    with pytest.raises(LapaError, match="steps does not go with"):
        space_from_json({**asdict(space), "steps": (1.0,)})
