"""The head that predicts a point among the codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.contracts import Context, LapaError
from lapa.heads import nearest

COARSE = [[-4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [0.0, -4.0]]  # what the first code adds, and the second
FINE = [[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]]
SPACE = CodeSpace(2, 4, code_embeddings=tuple(map(tuple, COARSE + FINE)), windows=2)


def context(rows: int, seed: int = 0) -> Context:
    hidden = torch.randn(rows, 3, 12, generator=torch.Generator().manual_seed(seed))
    return Context(hidden, torch.ones(rows, 3, dtype=torch.bool), hidden[:, -1])


def learnt(seen: Context, target: torch.Tensor, steps: int = 150) -> nearest.Nearest:
    torch.manual_seed(0)
    head = nearest.Config(32).build(12, SPACE)
    optimizer = torch.optim.AdamW(head.parameters(), 2e-2)
    for _ in range(steps):
        loss, _ = head.loss(seen, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


def test_it_learns_the_codes_of_every_window() -> None:
    seen = context(6)
    target = torch.randint(0, 4, (6, 4), generator=torch.Generator().manual_seed(1))
    head = learnt(seen, target)
    assert torch.equal(head.predict(seen), target)
    logits = head.logits(seen)
    assert logits.shape == (6, SPACE.positions, SPACE.classes)
    assert head.loss(seen, target)[1]["accuracy"] == 1


def test_what_lies_past_the_end_of_the_video_counts_for_nothing() -> None:
    seen = context(2)
    whole = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    cut = whole.clone()
    cut[:, 2:] = -100
    torch.manual_seed(0)
    head = nearest.Config(32).build(12, SPACE)
    due = head.table[0, whole[:, 0]] + head.table[1, whole[:, 1]]
    loss, _ = head.loss(seen, cut)
    assert float(loss.detach()) == pytest.approx(float((head.points(seen)[:, 0] - due).abs().mean().detach()), rel=1e-5)
    nothing, _ = head.loss(seen, torch.full((2, 4), -100))
    assert float(nothing.detach()) == 0


def test_the_wrong_code_that_lies_near_costs_less_than_one_that_lies_far() -> None:
    seen = context(1)
    head = learnt(seen, torch.tensor([[0, 0, 0, 0]]))
    near, far = (float(head.loss(seen, torch.tensor([[code, 0, 0, 0]]))[0].detach()) for code in (1, 2))
    assert near < far


def test_classes_that_have_no_place_are_refused() -> None:
    actions = ActionSpace.fit(np.random.default_rng(0).normal(size=(50, 2)), 4)
    with pytest.raises(LapaError, match=r"policy\.code_head"):
        nearest.Config().build(12, actions)
    with pytest.raises(LapaError, match="places"):
        nearest.Config().build(12, CodeSpace(2, 4))
    with pytest.raises(LapaError, match="width is at least 1, not 0"):
        nearest.Config(width=0).build(12, CodeSpace(1, 2, code_embeddings=((0.0,), (1.0,))))
    with pytest.raises(LapaError, match="different places"):
        nearest.Config().build(12, CodeSpace(1, 1, code_embeddings=((),)))
