"""The head that acts between two looks of the large model: when that looks, what is remembered, what is learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resuming import resumed_equals_unbroken

import lapa
from lapa import plugins
from lapa.actions.numbers import NumberSpace
from lapa.artefacts.folder import load_artefact
from lapa.commands.serve import Served
from lapa.contracts import Context, LapaError
from lapa.data.pack import Packed
from lapa.evaluate import Trial, roll_out
from lapa.policies import configured
from lapa.policies._looks import Looks, plans
from lapa.recipe import Recipe, override
from lapa.serving.answers import Asked
from lapa.stage3_finetune import finetune

SMALL = {"vision": "pixels", "vision_options": {"side": 6}, "keypoints": 4, "width": 16}


def recipe_of(tiny: Recipe, chunk: int = 2, **options: Any) -> Recipe:
    recipe = override(override(tiny, "policy.head=fast"), f"chunk={chunk}")
    return replace(recipe, policy=replace(recipe.policy, head_options={**SMALL, **options}))


@pytest.fixture(scope="module")
def four(packed: Packed) -> Packed:
    """Too few to hold one out, with a state."""
    some = packed.subset(np.arange(4))
    state = np.random.default_rng(0).normal(3, 2, (len(some), 3)).astype(np.float32)
    return replace(some, state=state, state_names=("a", "b", "c"))


def fresh(four: Packed, tiny: Recipe, state: bool = True, **options: Any) -> Any:
    """A policy with this head that acts in float32; not trained, which does not matter here."""
    recipe = recipe_of(tiny, **options)
    recipe = replace(recipe, policy=replace(recipe.policy, state=state))
    torch.manual_seed(0)
    policy: Any = configured(recipe).build()
    policy.adapt(four, recipe)
    policy.backbone.acts_in = torch.float32
    return policy.eval()


def shown(four: Packed, frame: int, text: str = "push") -> Any:
    assert four.state is not None
    return {"image": four.gather(np.array([frame]))[0], "instruction": text, "state": four.state[frame]}


class Counted:
    """Which pictures the backbone looks at."""

    def __init__(self, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks: list[int] = []
        inside = policy.backbone.forward

        def forward(inputs: Any) -> Context:
            self.looks.append(len(inputs["words"]))
            found: Context = inside(inputs)
            return found

        monkeypatch.setattr(policy.backbone, "forward", forward)


# --- when the backbone looks


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_backbone_looks_at_the_first_of_so_many_answers(
    every: int, four: Packed, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = fresh(four, tiny, every=every)
    counted = Counted(policy, monkeypatch)
    acted, looked = [], []
    for frame in range(7):
        acted.append(policy.act(shown(four, frame)))
        looked.append(bool(counted.looks))
        counted.looks.clear()
    assert looked == [frame % every == 0 for frame in range(7)]
    each = [policy.act_batch([shown(four, frame)])[0] for frame in range(7)]  # without ids there is no memory
    assert len(counted.looks) == 7
    for frame in range(7):
        assert np.allclose(acted[frame], each[frame], atol=1e-6) == (frame % every == 0)
    policy.reset()
    counted.looks.clear()
    assert np.allclose(policy.act(shown(four, 5)), each[5], atol=1e-6)
    assert counted.looks == [1]


def test_between_two_looks_it_sees_picture_and_state(four: Packed, tiny: Recipe) -> None:
    policy = fresh(four, tiny, every=50)
    first = policy.act(shown(four, 0))
    same = policy.act(shown(four, 0))
    assert np.array_equal(first, same)
    assert not np.allclose(policy.act({**shown(four, 0), "image": shown(four, 30)["image"]}), first)
    assert not np.allclose(policy.act({**shown(four, 0), "state": shown(four, 30)["state"]}), first)


def test_another_instruction_is_read_at_once(four: Packed, tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = fresh(four, tiny, every=50)
    counted = Counted(policy, monkeypatch)
    for text in ("push", "push", "pull", "pull"):
        policy.act(shown(four, 0, text))
    assert counted.looks == [1, 1]


def test_episodes_side_by_side_do_not_mix(four: Packed, tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """They begin and end at different times; each is answered as if it ran alone."""
    policy = fresh(four, tiny, every=3)
    starts = {7: 0, 8: 1, 9: 1, 4: 5}
    frame = {number: 11 * i for i, number in enumerate(starts)}
    alone = {}
    for number, start in starts.items():
        policy.reset()
        alone[number] = [policy.act(shown(four, frame[number] + t - start)) for t in range(start, 9)]
    policy.reset()
    counted = Counted(policy, monkeypatch)
    for t in range(9):
        ids = [number for number, start in starts.items() if start <= t][:: -1 if t % 2 else 1]
        acted = policy.act_batch([shown(four, frame[number] + t - starts[number]) for number in ids], ids)
        for number, actions in zip(ids, acted, strict=True):
            np.testing.assert_allclose(actions, alone[number][t - starts[number]], atol=1e-5)
    assert sum(counted.looks) == 3 + 3 + 3 + 2
    counted.looks.clear()
    policy.reset([7])
    policy.act_batch([shown(four, 0), shown(four, 1)], [7, 8])
    assert counted.looks == [1], "8 has had two of three answers"


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from lapa.policies import _looks as looks

    monkeypatch.setattr(looks, "MOST", 3)
    memory, asked = Looks(), []

    def look(rows: list[int]) -> Context:
        asked.extend(rows)
        return Context(*(torch.zeros(len(rows), 1, 2),) * 2, torch.zeros(len(rows), 2))

    for number in (1, 2, 3, 4, 4, 1):
        memory.context([number], [""], 9, look)
    assert len(asked) == 5, "4 is remembered, 1 is not"


# --- what it learns from


def test_plans_of_every_age_but_none_of_another_episode(four: Packed) -> None:
    frames = np.array([int(four.starts[1]), int(four.starts[1]) + 1, int(four.starts[2]) - 2])
    made, each = plans(four, frames, 2)
    assert len(made) == 9
    ages = frames[each] - made
    assert ages.tolist() == [0, 0, 0, 0, 1, 1, 0, 1, 2]
    assert np.array_equal(four.episode_of(made), four.episode_of(frames[each]))


def test_targets_are_of_the_present_and_plans_are_older(four: Packed, tiny: Recipe) -> None:
    recipe = recipe_of(tiny, chunk=3, every=3, execute=2)
    recipe = replace(recipe, policy=replace(recipe.policy, state=True))
    policy: Any = configured(recipe).build()
    examples = policy.adapt(four, recipe)
    frames = examples.targets.frames[examples.targets.each]
    assert set(frames - examples.frames) == {0, 1, 2, 3, 4}
    rows = np.random.default_rng(0).permutation(len(frames))[:64]
    values, now = examples.targets[rows]
    left = four.starts[four.episode_of(frames[rows]) + 1] - 1 - frames[rows]  # actions up to the end
    assert np.array_equal(np.isnan(values[..., 0]), np.arange(3) >= left[:, None])
    assert four.state is not None
    torch.testing.assert_close(now["state"].numpy(), policy.reads.standardised(four.state)[frames[rows]])
    pixels = torch.from_numpy(four.gather(frames[rows])).permute(0, 3, 1, 2) / 255
    assert torch.equal(now["features"][:, 0], policy.head.vision(pixels))
    assert policy.spec.execute == 2


def test_resumed_to_the_bit_opened_and_evaluated(four: Packed, tiny: Recipe, tmp_path: Path) -> None:
    recipe = recipe_of(tiny, every=3)
    made = resumed_equals_unbroken(lambda out: finetune(four, None, recipe, out, 7), tmp_path)
    saved = load_artefact(made, "policy")
    assert not [name for name in saved.tensors if "vision" in name and name.startswith("head.")]
    policy: Any = lapa.Policy.from_pretrained(made)
    assert (policy.spec.chunk, policy.spec.execute) == (2, 1)
    policy.backbone.acts_in = torch.float32
    world = plugins.find("benchmarks", "tabletop")().build()
    outcomes, _ = roll_out(world, policy, Trial(2, 0))
    assert len(outcomes) == 2
    served = Served(policy, policy.spec, policy.spec.action, "fast", "")
    asked = Asked(served.act, 9, policy.reset)
    here = [{key: each for key, each in shown(four, frame).items() if key != "state"} for frame in range(8)]
    policy.reset()
    alone = [policy.act(one) for one in here[:4]]
    answers = []
    for one, other in zip(here[:4], here[4:], strict=True):  # two clients at once
        answers.append(asked.ask(one, 1).result().chunk)
        asked.ask(other, 2).result()
    asked.close()
    assert all(np.array_equal(a, b) for a, b in zip(alone, answers, strict=True))
    wider = replace(recipe, head="own", policy=replace(recipe.policy, state=True))
    with pytest.raises(LapaError, match="--head new"):
        finetune(four, made, wider, tmp_path / "wider", 7, changes={"state": True})


def test_only_what_is_not_frozen_trains(tiny: Recipe) -> None:
    recipe = recipe_of(tiny, vision="efficientnet", vision_options={})
    body = {**recipe.policy.backbone_options, "image_size": 32}
    policy: Any = configured(replace(recipe, policy=replace(recipe.policy, backbone_options=body))).build()
    policy.grow(NumberSpace((-1.0,), (1.0,), ((-1.0, 1.0),), chunk=2))
    trained = {id(p) for p in policy.trainable("all")}
    assert not any(id(p) in trained or p.requires_grad for p in policy.head.vision.parameters())
    assert all(id(p) in trained for p in policy.head.plan.parameters())
    assert policy.config.borrowed()["head"]["name"]


@pytest.mark.parametrize("options", [{"every": 0}, {"execute": 0}, {"execute": 3}, {"keypoints": 0}])
def test_settings_that_cannot_be(options: dict[str, Any], four: Packed, tiny: Recipe) -> None:
    with pytest.raises(LapaError, match=r"^fast: "):
        fresh(four, tiny, **options)


@pytest.mark.parametrize("head", ["parallel", "autoregressive", "flow", "regression"])
def test_a_backbone_in_bfloat16_has_a_head_in_float32(head: str, four: Packed, tiny: Recipe) -> None:
    recipe = override(tiny, f"policy.head={head}")
    policy: Any = configured(recipe).build()
    policy.adapt(four, recipe)
    policy.backbone.acts_in, inside = torch.float32, policy.backbone.encode

    def encode(inputs: Any) -> Context:
        found = inside(inputs)
        return replace(found, hidden=found.hidden.bfloat16(), readout=found.readout.bfloat16())

    policy.backbone.encode = encode
    assert np.isfinite(policy.eval().act({"image": four.gather(np.arange(1))[0], "instruction": "push"})).all()
