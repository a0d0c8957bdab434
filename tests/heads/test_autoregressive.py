"""Classes one after another: they fit together, and what is trained is what is generated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.contracts import Context, LapaError
from lapa.heads.autoregressive import Autoregressive, Config

SPACE = CodeSpace(3, 5)


def context(rows: int = 4, length: int = 6, width: int = 12, seed: int = 0) -> Context:
    g = torch.Generator().manual_seed(seed)
    hidden, mask = torch.randn(rows, length, width, generator=g), torch.ones(rows, length, dtype=torch.bool)
    mask[:, :2] = torch.arange(rows)[:, None] % 2 == 0
    return Context(hidden, mask, hidden[:, -1])


def made(space: Any = SPACE, **options: Any) -> Autoregressive:
    torch.manual_seed(0)
    return Config(heads=2, **options).build(12, space).eval()


def test_what_is_trained_is_what_is_generated() -> None:
    head = made()
    with torch.no_grad():
        classes, logits = head.generate(context(), lambda logits, _: logits.argmax(-1))
        loss, logs = head.loss(context(), classes)
    assert logits.shape == (4, 3, 5)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), classes.flatten()))
    assert logs["accuracy"] == 1
    assert torch.equal(head.predict(context()), classes)
    torch.testing.assert_close(head.logits(context()).softmax(-1), head.probabilities(context()))


def test_each_class_depends_on_those_before_it_and_on_nothing_after() -> None:
    head = made()
    given = torch.tensor([[1, 2, 3]]).expand(4, 3)

    def along(classes: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return head.generate(context(), lambda _, position: classes[:, position])[1]

    before = along(given)
    for position in range(3):
        changed = given.clone()
        changed[:, position] = 0
        differs = [not torch.allclose(a, b) for a, b in zip(before.unbind(1), along(changed).unbind(1), strict=True)]
        assert differs == [at > position for at in range(3)]


def test_it_looks_at_the_context_but_not_at_padding() -> None:
    head, seen = made(), context()
    with torch.no_grad():
        right = head.logits(seen)
        assert not torch.allclose(right[0], right[1])
        padded = replace(seen, hidden=seen.hidden.masked_fill(~seen.mask[..., None], 9.0))
        torch.testing.assert_close(head.logits(padded), right)
        other = replace(seen, hidden=seen.hidden.flip(0))
        assert not torch.allclose(head.logits(other), right)


def test_classes_that_go_together_are_drawn_together() -> None:
    """Two answers are equally right, (0, 0, 0) and (3, 4, 3): never half of one and half of the other."""
    answers = torch.tensor([[0, 0, 0], [3, 4, 3]])
    head = made(sample=True).train()
    seen = context(rows=32)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    for step in range(40):
        target = answers[torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(step))]
        loss, _ = head.loss(seen, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = head.eval().predict(seen)
    right = (drawn[:, None] == answers).all(-1)
    assert right.any(1).float().mean() > 0.9
    assert 0.2 < right[:, 0].float().mean() < 0.8
    assert right[:, 0].float().mean() + right[:, 1].float().mean() > 0.9


def test_targets_that_do_not_exist_are_not_learnt() -> None:
    head = made()
    target = torch.tensor([[1, 2, -100]]).repeat(4, 1)
    with torch.no_grad():
        short = head.loss(context(), target)[0]
        logits = head.generate(context(), lambda _, position: target[:, position].clamp(min=0))[1]
    torch.testing.assert_close(short, F.cross_entropy(logits[:, :2].flatten(0, 1), target[:, :2].flatten()))


def test_bins_that_a_dimension_lacks_are_never_generated() -> None:
    space = ActionSpace(((0.0, 1, 2, 3), (0.0, 1, 2)), chunk=2)
    head = made(space, sample=True, top=3)
    with torch.no_grad():
        for classes in (head.logits(context(64)).argmax(-1), head.predict(context(64))):
            assert (classes[:, 1::2] < 2).all()
    assert np.isfinite(space.decide(head.probabilities(context()).numpy(), "centre")).all()
    assert Config(heads=2).build(12, replace(space, width=5, outside=1.0)).logits(context()).shape == (4, 4, 5)


def test_draws_repeat_with_the_seed_and_come_from_the_top() -> None:
    one, two, other = (made(sample=True, seed=seed) for seed in (1, 1, 2))
    drawn = [[head.predict(context(64)) for _ in range(2)] for head in (one, two, other)]
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert not torch.equal(drawn[0][0], drawn[2][0])
    greedy = made(sample=True, top=1)
    assert torch.equal(greedy.predict(context()), greedy.logits(context()).argmax(-1))
    said = one.probabilities(context())
    assert torch.equal(said, said.round()), "what is drawn is what is done"


def test_a_stop_ends_the_classes() -> None:
    head = made()
    classes = head.logits(context(64)).argmax(-1)
    stop = int(classes[0, 0])
    stopped = made(stop=stop).predict(context(64))
    for before, after in zip(classes.tolist(), stopped.tolist(), strict=True):
        kept = before.index(stop) + 1 if stop in before else 3
        assert after == before[:kept] + [0] * (3 - kept)


def test_a_stop_ends_no_actions() -> None:
    """A policy keeps its options in stage 3, where a class is a bin and means no end."""
    space = ActionSpace(((0.0, 1, 2, 3),) * 3, chunk=2)
    acting, stopped = made(space), made(space, stop=2)
    with torch.no_grad():
        assert (acting.predict(context(64)) == 2).any()
        assert torch.equal(stopped.predict(context(64)), acting.predict(context(64)))
        assert torch.equal(stopped.probabilities(context()), acting.probabilities(context()))


@pytest.mark.parametrize("options", [{"layers": 0}, {"top": 0}, {"temperature": 0.0}, {"width": 0},
                                     {"stop": 99}, {"stop": -2}])  # fmt: skip
def test_settings_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(LapaError, match="autoregressive"):
        Config(**options).build(12, SPACE)


def test_in_a_backbone_that_cannot_go_on() -> None:
    with pytest.raises(LapaError, match=r"in_backbone.*recompute"):
        made(in_backbone=True).logits(context())


def test_what_its_classes_mean_cannot_be_read() -> None:
    with pytest.raises(LapaError, match="--head new"):
        made().reading()
