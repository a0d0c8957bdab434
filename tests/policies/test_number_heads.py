"""Policies whose head answers with numbers: from labelled trajectories to actions, saved, opened and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resuming import resumed_equals_unbroken

import lapa
from lapa import cli, plugins
from lapa.artefacts.folder import load_artefact
from lapa.contracts import Labels, LapaError
from lapa.data.labelled import read_labels
from lapa.data.pack import Packed
from lapa.policies import chunks_after
from lapa.recipe import Recipe, override
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain
from lapa.stage3_finetune import HELD_OUT, chosen_settings, finetune

FLOW = ("policy.head=flow", 'policy.head_options={"width":16,"heads":2,"layers":1,"steps":2}')
OPTIONS = {"flow": FLOW, "regression": ("policy.head=regression", 'policy.head_options={"width":16}')}


def changed(recipe: Recipe, *options: str) -> Recipe:
    for option in options:
        recipe = override(recipe, option)
    return recipe


@pytest.fixture(scope="module")
def latent(packed: Packed, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of stage 2 that predicts classes, with the head parallel."""
    folder = tmp_path_factory.mktemp("latent")
    label(packed, "ground_truth", folder / "labels")
    labels, manifest = read_labels(folder / "labels")
    pretrain(packed, labels, manifest, tiny, folder / "policy", 7)
    return folder


@pytest.mark.parametrize("head", OPTIONS)
def test_resumed_to_the_bit_and_opened_again(head: str, packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    recipe = changed(tiny, *OPTIONS[head], "chunk=3")
    four = packed.subset(np.arange(4))  # too few for a rehearsal
    made = resumed_equals_unbroken(lambda out: finetune(four, None, recipe, out, 7), tmp_path)
    policy = lapa.Policy.from_pretrained(made)
    assert (policy.spec.chunk, policy.config.head) == (3, head)
    picture = {"image": packed.gather(np.arange(1))[0], "instruction": "push"}
    actions = policy.act(picture)
    assert actions.shape == (3, 2)
    assert np.array_equal(actions, policy.act(picture))
    assert packed.actions is not None
    assert (np.abs(actions) <= np.abs(packed.actions).max(0) + 1e-6).all()
    with pytest.raises(LapaError, match=head):
        policy.logits(picture["image"][None], ["push"])  # type: ignore[operator]


@pytest.mark.parametrize("head", OPTIONS)
def test_targets_are_the_scaled_actions(head: str, packed: Packed, tiny: Recipe) -> None:
    from lapa.policies import configured

    recipe = changed(tiny, *OPTIONS[head], "chunk=4")
    policy: Any = configured(recipe).build()
    examples = policy.adapt(packed, recipe)
    chunks, pad = chunks_after(packed, examples.frames, 4)
    assert np.array_equal(np.isnan(examples.targets), np.broadcast_to(pad[..., None], chunks.shape))
    back = policy.space.decide(np.nan_to_num(examples.targets), "expectation")
    np.testing.assert_allclose(back[~pad], chunks[~pad], atol=1e-5)


def test_a_pretrained_policy_gets_a_head_of_another_kind(
    latent: Path, packed: Packed, tiny: Recipe, robot: Path, tmp_path: Path
) -> None:
    told = [part for option in (*FLOW, "chunk=2") for part in ("--set", option)]
    cli.main(["finetune", "--dataset", f"lerobot:{robot}", "--policy", str(latent / "policy"), "--steps", "2", *told,
              "--head", "new", "--out", str(tmp_path / "new")])  # fmt: skip
    policy = lapa.Policy.from_pretrained(tmp_path / "new")
    assert policy.config.head == "flow"
    body = [load_artefact(path, "policy").tensors for path in (latent / "policy", tmp_path / "new")]
    assert all(torch.equal(body[0][name], body[1][name]) for name in body[0] if name.startswith("backbone."))
    again = changed(tiny, *FLOW, "head=own")
    finetune(packed, tmp_path / "new", again, tmp_path / "own", 7, rehearse=False)
    assert lapa.Policy.from_pretrained(tmp_path / "own").spec.chunk == 2
    for head in ("own", "linear"):  # a head of actions that is kept is no other head
        with pytest.raises(LapaError, match=r"policy\.head=regression.*--head new"):
            chosen_settings(
                tmp_path / "new", changed(tiny, *OPTIONS["regression"], f"head={head}"), ["policy.head=regression"]
            )
    with pytest.raises(LapaError, match=r"regression.*flow"):
        finetune(packed, tmp_path / "new", again, tmp_path / "x", 7, changes={"head": "regression"}, rehearse=False)


def test_codes_have_a_head_of_their_own(
    latent: Path, packed: Packed, tiny: Recipe, tmp_path: Path, robot: Path, capsys: Any
) -> None:
    """Numbers are no codes."""
    actions, about = read_labels(latent / "labels")
    labels = Labels("codes", actions.episode, actions.frame, np.arange(2 * len(actions.frame)).reshape(-1, 2) % 4)
    places = np.random.default_rng(0).normal(size=(8, 3)).tolist()
    manifest = {**about, "method": "lapa", "kind": "codes", "classes": 4, "code_embeddings": places}
    recipe = changed(tiny, *FLOW, "latent_chunk=2")
    with pytest.raises(LapaError, match=r"flow.*policy\.code_head"):
        pretrain(packed, labels, manifest, recipe, tmp_path / "latent", 7)
    pretrain(packed, labels, manifest, changed(recipe, "policy.code_head=nearest"), tmp_path / "latent", 7)
    pretrained = lapa.Policy.from_pretrained(tmp_path / "latent")
    assert pretrained.space.positions == 4
    assert pretrained.predict_codes(packed.gather(np.arange(3)), ["push"] * 3).shape == (3, 2)
    with pytest.raises(LapaError, match=r"Nearest.*--head new"):
        finetune(
            packed, tmp_path / "latent", changed(recipe, "policy.code_head=nearest", "head=linear"), tmp_path / "no", 7
        )
    own = changed(recipe, "policy.code_head=nearest", "head=own", "chunk=2")
    finetune(packed, tmp_path / "latent", own, tmp_path / "policy", 7, rehearse=False)
    assert lapa.Policy.from_pretrained(tmp_path / "policy").spec.chunk == 2


@pytest.mark.parametrize(
    "options",
    [('policy.head_options={"rounds":1,"width":8}',), (*OPTIONS["regression"], "policy.code_head=parallel")],
    ids=["said as it is", "a head of its own"],
)
def test_a_head_that_was_read_is_opened_with_the_options_that_it_has(
    options: tuple[str, ...], latent: Path, packed: Packed, tiny: Recipe, tmp_path: Path
) -> None:
    """Not with those of the head that it is not, nor with those that a linear head does not know."""
    actions, about = read_labels(latent / "labels")
    labels = Labels("codes", actions.episode, actions.frame, np.arange(len(actions.frame))[:, None] % 4)
    recipe = changed(tiny, *options, "head=linear")
    manifest = {**about, "method": "lapa", "kind": "codes", "classes": 4}
    pretrain(packed, labels, manifest, recipe, tmp_path / "latent", 7)
    finetune(packed, tmp_path / "latent", recipe, tmp_path / "policy", 7, rehearse=False)
    policy = lapa.Policy.from_pretrained(tmp_path / "policy")
    assert policy.act({"image": packed.gather(np.arange(1))[0], "instruction": "push"}).shape == (1, 2)


def test_stage_2_on_actions_takes_the_head_and_the_chunk_of_stage_3(
    latent: Path, packed: Packed, tiny: Recipe, tmp_path: Path
) -> None:
    labels, manifest = read_labels(latent / "labels")
    recipe = changed(tiny, *OPTIONS["regression"], "chunk=3")
    pretrain(packed, labels, manifest, recipe, tmp_path / "pretrained", 7)
    before = lapa.Policy.from_pretrained(tmp_path / "pretrained")
    assert (before.spec.chunk, before.config.head) == (3, "regression")
    kept = changed(recipe, "head=own", "finetune.steps=1", "finetune.learning_rate=1e-9")
    finetune(packed, tmp_path / "pretrained", kept, tmp_path / "kept", 7, rehearse=False)
    picture = {"image": packed.gather(np.arange(1))[0], "instruction": "push"}
    after = lapa.Policy.from_pretrained(tmp_path / "kept")
    np.testing.assert_allclose(after.act(picture), before.act(picture), atol=1e-4)
    with pytest.raises(LapaError, match=r"fast.*stage 3"):  # it looks for itself
        pretrain(packed, labels, manifest, changed(tiny, "policy.head=fast"), tmp_path / "fast", 7)


def test_what_it_says_cannot_be_read_and_needs_no_decoding(packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    recipe = replace(changed(tiny, *OPTIONS["regression"]), choose_decoding=True)
    finetune(packed, None, recipe, tmp_path / "policy", 7)
    assert '"chosen": {}' in (tmp_path / "policy" / HELD_OUT).read_text()
    with pytest.raises(LapaError, match="--head new"):
        finetune(packed, tmp_path / "policy", replace(recipe, head="linear"), tmp_path / "read", 7)
    saved = load_artefact(tmp_path / "policy", "policy").config
    assert "linear" not in type(lapa.Policy.from_pretrained(tmp_path / "policy").config).ways(saved)


OWN = '''"""The mean of all hidden states, one layer: a regression of one's own."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lapa.heads import ChunkHead


@dataclass(frozen=True)
class Config:
    numbers: ClassVar[bool] = True

    def build(self, width, space):
        return Mean(width, space)


class Mean(ChunkHead):
    def __init__(self, width, space):
        super().__init__()
        self.space = space
        self.out = nn.Linear(width, space.chunk * space.dimensions)

    def answer(self, context):
        return self.out(context.hidden.mean(1)).float().unflatten(1, (self.space.chunk, -1))

    def loss(self, context, target):
        missed = (self.answer(context) - target).nan_to_num()
        loss = missed.square().mean()
        return loss, {"error": float(loss.detach())}
'''


def test_a_regression_in_a_file_of_ones_own(
    packed: Packed, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own/heads").mkdir(parents=True)
    (tmp_path / "own/heads/mean.py").write_text(OWN)
    monkeypatch.setenv(plugins.OWN, str(tmp_path / "own"))
    finetune(packed.subset(np.arange(4)), None, changed(tiny, "policy.head=mean", "chunk=2"), tmp_path / "policy", 7)
    policy = lapa.Policy.from_pretrained(tmp_path / "policy")
    assert policy.act({"image": packed.gather(np.arange(1))[0], "instruction": "push"}).shape == (2, 2)


def test_a_damaged_description(packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    from lapa.actions.saved import space_from_json

    recipe = changed(tiny, *OPTIONS["regression"])
    finetune(packed.subset(np.arange(4)), None, recipe, tmp_path, 7)
    space = load_artefact(tmp_path, "policy").config["space"]
    assert space["kind"] == "numbers"
    for field, value in (("high", space["high"][:1]), ("reach", [[1, 0], [0, 1]]), ("chunk", 0), ("low", [])):
        with pytest.raises(LapaError, match=rf"space\.{field}"):
            space_from_json({**space, field: value})


def test_it_is_asked_again_before_its_answer_is_used_up(packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    four, asked = packed.subset(np.arange(4)), changed(tiny, *OPTIONS["regression"], "chunk=4", "policy.execute=3")
    finetune(four, None, asked, tmp_path / "policy", 7)
    spec = lapa.Policy.from_pretrained(tmp_path / "policy").spec
    assert (spec.chunk, spec.execute) == (4, 3)
    keeps = replace(asked, head="own")
    told = chosen_settings(tmp_path / "policy", changed(keeps, "policy.execute=0"), ("policy.execute=0",))
    finetune(four, tmp_path / "policy", keeps, tmp_path / "kept", 7)
    finetune(four, tmp_path / "policy", keeps, tmp_path / "all", 7, changes=told)
    assert lapa.Policy.from_pretrained(tmp_path / "kept").spec.execute == 3
    assert lapa.Policy.from_pretrained(tmp_path / "all").spec.execute == 4
    with pytest.raises(LapaError, match=r"policy\.execute=5"):
        finetune(four, tmp_path / "policy", keeps, tmp_path / "more", 7, changes={"execute": 5})
    file = tmp_path / "all" / "config.json"
    saved = json.loads(file.read_text())
    del saved["model"]["execute"], saved["sums"]  # as it was saved before there was this setting
    file.write_text(json.dumps(saved))
    assert lapa.Policy.from_pretrained(tmp_path / "all").spec.execute == 4
    fast = changed(tiny, "policy.head=fast", 'policy.head_options={"vision":"pixels"}', "policy.execute=1")
    with pytest.raises(LapaError, match="head_options"):
        finetune(four, None, fast, tmp_path / "fast", 7)
