"""parallel: queries, and rounds in which the most certain positions are kept and given back."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.contracts import Context, LapaError
from lapa.heads._rounds import HIDDEN, Rounds, hidden_at_random, still_open
from lapa.heads.parallel import Config, Parallel

SPACE = CodeSpace(3, 5)
# Right answers: the likeliest class of each position by itself, (0, 0, 0), is no answer at all.
ANSWERS = torch.tensor([[0, 1, 1], [1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0]])
TARGETS = ANSWERS.repeat_interleave(torch.tensor([8, 3, 3, 3, 3]), 0).repeat(4, 1)


def context(rows: int = 4, length: int = 6, width: int = 12, seed: int = 0) -> Context:
    g = torch.Generator().manual_seed(seed)
    hidden, mask = torch.randn(rows, length, width, generator=g), torch.ones(rows, length, dtype=torch.bool)
    mask[:, :2] = torch.arange(rows)[:, None] % 2 == 0
    return Context(hidden, mask, hidden[:, -1])


def made(space: Any = SPACE, **options: Any) -> Any:
    torch.manual_seed(0)
    return Config(width=32, heads=2, **options).build(12, space).eval()


def taught(**options: Any) -> tuple[Any, Context]:
    """A head that has seen one context with all answers, as often as they occur."""
    head, one = made(**options).train(), context(1)
    rows = len(TARGETS)
    seen = Context(one.hidden.expand(rows, -1, -1), one.mask.expand(rows, -1), one.readout.expand(rows, -1))
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(120):
        loss, _ = head.loss(seen, TARGETS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval(), one


def joint(head: Any, seen: Context) -> float:
    """How many of its answers are right as a whole."""
    with torch.no_grad():
        return float((head.predict(seen)[:, None] == ANSWERS).all(-1).any(1).float().mean())


@pytest.mark.parametrize("queries", ["none", "decoder"])
def test_rounds_make_positions_fit_together(queries: str) -> None:
    head, seen = taught(queries=queries, rounds=2)
    assert joint(head, seen) == 1
    head.rounds = 1
    assert joint(head, seen) == 0, "the same weights in one round"


def test_by_default_it_is_what_it_was() -> None:
    head = made()
    assert isinstance(head, Parallel)
    assert [tuple(p.shape) for p in head.state_dict().values()] == [(32, 12), (32,), (15, 32), (15,)]
    torch.testing.assert_close(head.logits(context()), head(context().readout).view(4, 3, 5))


@pytest.mark.parametrize("queries", ["none", "decoder"])
def test_what_is_kept_is_given_back_and_stays(queries: str) -> None:
    head, seen = made(queries=queries, rounds=3), context(16)
    asked: list[Tensor] = []
    ask = head._asked
    head._asked = lambda context, shown: asked.append(shown) or ask(context, shown)
    with torch.no_grad():
        found = head.logits(seen)
        classes = head.predict(seen)
    del head._asked
    assert [(shown == HIDDEN).sum(1).unique().tolist() for shown in asked[:3]] == [[3], [2], [1]]
    for shown in asked[1:3]:
        kept = shown != HIDDEN
        assert torch.equal(shown[kept], classes[kept])
    assert torch.equal(asked[1][asked[1] >= 0], asked[2][asked[1] >= 0])
    with torch.no_grad():
        first = head._asked(seen, asked[0])
        last = head._asked(seen, asked[2])
    sure = first.softmax(-1).amax(-1)
    assert torch.equal(sure.argmax(1), (asked[1] >= 0).float().argmax(1)), "the most certain one"
    open_last = asked[2] == HIDDEN
    torch.testing.assert_close(found[open_last], last[open_last])
    assert not torch.allclose(first[open_last], last[open_last]), "it depends on what was kept"


@pytest.mark.parametrize(("rounds", "positions"), [(1, 4), (2, 2), (3, 4), (4, 4), (5, 56), (8, 9)])
def test_each_round_keeps_more(rounds: int, positions: int) -> None:
    left = [positions, *still_open(rounds, positions), 0]
    assert len(left) == rounds + 1
    assert all(a > b for a, b in pairwise(left))


def test_what_is_hidden_in_training() -> None:
    torch.manual_seed(0)
    target = torch.zeros(4000, 4, dtype=torch.int64)
    target[::2, 2:] = -100  # past the end of an episode
    target[1] = -100
    hidden = hidden_at_random(target)
    assert hidden[target < 0].all()
    counts = hidden[3::2].sum(1).bincount(minlength=5) / 1999
    assert counts[0] == 0
    assert (counts[1:] - 0.25).abs().max() < 0.05
    of_two = hidden[::2, :2].sum(1).bincount(minlength=3) / 2000
    assert of_two[0] == 0
    assert (of_two[1:] - 0.5).abs().max() < 0.05
    assert (hidden[3::2].float().mean(0) - 0.625).abs().max() < 0.05, "any position"


@pytest.mark.parametrize("options", [{"rounds": 2}, {"queries": "decoder"}, {"queries": "decoder", "rounds": 3}])
def test_only_what_there_is_is_learnt_and_said(options: dict[str, Any]) -> None:
    space = ActionSpace(((0.0, 1, 2, 3), (0.0, 1, 2)), chunk=2)
    head, target = made(space, **options), torch.tensor([[1, 0, -100, -100]]).repeat(8, 1)
    loss, logs = head.loss(context(8), target)
    loss.backward()
    assert loss.isfinite()
    assert 0 <= logs["accuracy"] <= 1
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    with torch.no_grad():
        assert (head.predict(context(64))[:, 1::2] < 2).all()


def test_queries_look_at_the_context_but_not_at_padding() -> None:
    head, seen = made(queries="decoder"), context()
    with torch.no_grad():
        right = head.logits(seen)
        padded = Context(seen.hidden.masked_fill(~seen.mask[..., None], 9.0), seen.mask, seen.readout)
        torch.testing.assert_close(head.logits(padded), right)
        other = Context(seen.hidden.flip(0), seen.mask, seen.readout)
        assert not torch.allclose(head.logits(other), right)


def test_queries_behind_the_prompt_are_read_in_one_pass() -> None:
    asked = []

    def further(embeddings: Tensor) -> Tensor:
        asked.append(embeddings)
        return embeddings * 2 + seen.readout[:, None]

    seen = context()
    head: Rounds = made(queries="backbone")
    with pytest.raises(LapaError, match="decoder"):
        head.logits(seen)
    with torch.no_grad():
        said = head.logits(Context(seen.hidden, seen.mask, seen.readout, further))
    assert [tuple(one.shape) for one in asked] == [(4, 3, 12)]
    assert said.shape == (4, 3, 5)
    assert not torch.allclose(said[:, 0], said[:, 1])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"rounds": 0}, "rounds"), ({"rounds": 4}, "4.*3 positions"), ({"layers": 0}, "layers"),
     ({"queries": "backbone", "rounds": 2}, "queries")],
)  # fmt: skip
def test_settings_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LapaError, match=said):
        made(**options)


def test_what_its_classes_mean_cannot_be_read() -> None:
    with pytest.raises(LapaError, match="--head new"):
        made(rounds=2).reading()
