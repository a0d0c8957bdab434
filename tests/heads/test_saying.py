"""autoregressive with directions: what it says comes first, and the action is given what was said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lapa
from lapa.actions.directions import SECOND
from lapa.actions.meaning import Meaning
from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.contracts import ActionSpec, Context, LapaError
from lapa.data.pack import Packed
from lapa.heads.autoregressive import Autoregressive, Config
from lapa.recipe import Recipe, override
from lapa.stage3_finetune import finetune

MEANING = Meaning(ActionSpec(("dx", "dy"), ("delta", "delta"), 5.0), (False, False))
WAYS = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
CHUNKS = np.repeat(WAYS[:, None], 3, 1)
SPACE = ActionSpace.fit(CHUNKS.reshape(-1, 2), 8, 3)
PHRASES = ["move right", "move left", "move down", "move up"]


def context(rows: int = 64, width: int = 12) -> Context:
    hidden = torch.randn(1, 5, width, generator=torch.Generator().manual_seed(0)).expand(rows, -1, -1)
    return Context(hidden, torch.ones(rows, 5, dtype=torch.bool), hidden[:, -1])


def made(**options: Any) -> Autoregressive:
    torch.manual_seed(0)
    head = Config(heads=2, directions=True, **options).build(12, SPACE)
    head.means(MEANING)
    return head.eval()


def test_it_does_what_it_says() -> None:
    """Four ways are equally right: it says one of them, and takes that one."""
    head, seen = made(sample=True).train(), context()
    targets = torch.from_numpy(SPACE.targets(CHUNKS, np.zeros((4, 3), bool))).repeat(16, 1)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(40):
        loss, logs = head.loss(seen, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert set(logs) >= {"accuracy", "direction_accuracy"}
    assert head.directions is not None
    said = list[list[str]]()
    direct = head._said

    def listened(*given: Any) -> Any:
        classes, state = direct(*given)
        said.append([head.directions.phrase(row) for row in classes.tolist()])  # type: ignore[union-attr]
        return classes, state

    head.eval()._said = listened  # type: ignore[method-assign]
    classes = head.predict(seen).numpy()
    moved = SPACE.decode(classes.reshape(-1, 3, 2))
    right = [np.abs(chunk - WAYS[PHRASES.index(phrase)]).max() < 0.1
             for chunk, phrase in zip(moved, said[0], strict=True) if phrase in PHRASES]  # fmt: skip
    assert np.mean(right) > 0.9
    assert len(right) > 50
    assert len({phrase for phrase in said[0] if phrase in PHRASES}) == 4


def test_the_action_is_given_what_was_said() -> None:
    head, seen = made(), context(2)
    with torch.no_grad():
        before = head.logits(seen)
        tell, head._tell = head._tell, lambda *given: torch.eye(3)[SECOND].expand(2, 1, 3) * 9  # type: ignore[method-assign]
        assert head.says(seen) == ["move down and right"] * 2
        after = head.logits(seen)
        head._tell = tell  # type: ignore[method-assign]
        assert torch.equal(head.logits(seen), before)
    assert before.shape == after.shape == (2, 6, 4 if SPACE.classes == 4 else SPACE.classes)
    assert not torch.allclose(before, after)


def test_what_is_trained_is_what_is_generated() -> None:
    head, seen = made(), context(4)
    with torch.no_grad():
        classes, logits = head.generate(seen, lambda logits, _: logits.argmax(-1))
        right = head._said(*head._begin(seen))[0]
        head._directions_of = lambda target: right  # type: ignore[method-assign]
        loss, logs = head.loss(seen, classes)
    of_classes = torch.nn.functional.cross_entropy(logits.flatten(0, 1), classes.flatten())
    assert float(loss) > float(of_classes)
    assert logs["accuracy"] == logs["direction_accuracy"] == 1


def test_without_directions_nothing_is_said() -> None:
    plain = Config(heads=2).build(12, SPACE)
    names = list(plain.state_dict())
    plain.means(MEANING)
    assert list(plain.state_dict()) == names
    with pytest.raises(LapaError, match='"directions":true'):
        plain.says(context(1))


def test_codes_have_no_directions() -> None:
    with pytest.raises(LapaError, match="stage 3"):
        Config(directions=True).build(12, CodeSpace(4, 8))


def test_a_policy_that_says_where_it_goes(packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    options = 'policy.head_options={"width":16,"heads":2,"layers":1,"directions":true}'
    recipe = override(override(override(tiny, "policy.head=autoregressive"), options), "chunk=3")
    finetune(packed.subset(np.arange(4)), None, recipe, tmp_path, 7, rehearse=False)
    policy: Any = lapa.Policy.from_pretrained(tmp_path)
    shown = {"image": packed.gather(np.arange(1))[0], "instruction": "push"}
    (said,) = policy.directions([shown])
    assert said == "stay" or said.startswith("move ")
    assert policy.act(shown).shape == (3, 2)
    head, joints = Config(directions=True).build(12, SPACE), replace(MEANING.spec, names=("shoulder", "elbow"))
    with pytest.raises(LapaError, match="words"):
        head.means(replace(MEANING, spec=joints))
    for wrong in (5, "ab", ["a"], ["a", 5]):
        with pytest.raises(LapaError, match="words of"):
            Config(directions=True, words={MEANING.spec.names[0]: wrong}).build(12, SPACE).means(MEANING)
