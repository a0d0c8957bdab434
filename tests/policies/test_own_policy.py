"""A policy in a file outside the package is pretrained, finetuned, tuned and acts, chosen by --set policy.name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lapa
from lapa import cli, plugins
from lapa.contracts import LapaError
from lapa.data.labelled import read_labels
from lapa.data.pack import pack
from lapa.evaluate import Trial, roll_out
from lapa.experiments.tune import tune
from lapa.recipe import Recipe, override
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain
from lapa.stage3_finetune import as_it_is, finetune

OWN = '''"""The mean colour of the picture, one linear layer, and a regression: a policy of one's own."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lapa.actions.meaning import Meaning
from lapa.contracts import PolicySpec
from lapa.data.observations import seen
from lapa.policies import Examples, Policy, PolicyConfig, acting_frames, chunks_after, refuse_idm


@dataclass(frozen=True)
class Config(PolicyConfig):
    """Its options."""

    size: int = 24
    hidden: int = 8

    @property
    def image_size(self):
        return self.size

    def build(self, pretrained=True):
        return Colour(self)


class Colour(Policy):
    def __init__(self, config):
        super().__init__()
        self.config, self.meaning = config, None
        self.body = nn.Sequential(nn.Linear(3, config.hidden), nn.Tanh())
        self.head = nn.Identity()

    @property
    def spec(self):
        return PolicySpec(("image",), (), self.meaning and self.meaning.spec)

    def examples(self, labels, data, about, recipe):
        self.grow(labels.values.shape[1])
        return Examples(data.starts[labels.episode] + labels.frame, labels.values.astype(np.float32))

    def adapt(self, data, recipe, idm=None):
        refuse_idm(idm)
        frames, self.meaning = acting_frames(data), Meaning.of(data)
        chunks, _ = chunks_after(data, frames, 1)
        self.grow(chunks.shape[2])
        return Examples(frames, chunks[:, 0])

    def grow(self, count):
        self.head = nn.Linear(self.config.hidden, count)

    def colours(self, seen):
        (images,) = seen.images.values()
        return torch.tensor(np.stack([np.asarray(image).mean((0, 1)) / 255 for image in images]), dtype=torch.float32)

    def batch(self, seen, targets):
        return self.colours(seen), torch.from_numpy(targets)

    def loss(self, batch):
        loss = (self.head(self.body(batch[0])) - batch[1]).square().mean()
        return loss, {"error": float(loss.detach())}

    @torch.no_grad()
    def act_batch(self, observations, ids=None):
        return self.head(self.body(self.colours(seen(observations, self.spec))))[:, None].numpy()

    def description(self):
        meaning = self.meaning and [list(self.meaning.spec.names), list(self.meaning.spec.kinds), self.meaning.spec.hz]
        return {**super().description(), "out": self.head.out_features, "speaks": meaning}

    def restore(self, saved):
        from lapa.contracts import ActionSpec

        self.grow(saved["out"])
        if saved["speaks"]:
            names, kinds, hz = saved["speaks"]
            self.meaning = Meaning(ActionSpec(tuple(names), tuple(kinds), hz), (False,) * len(names))
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own/policies").mkdir(parents=True)
    (tmp_path / "own/policies/colour.py").write_text(OWN)
    monkeypatch.setenv(plugins.OWN, str(tmp_path / "own"))


def mine(recipe: Recipe) -> Recipe:
    for option in ("policy.name=colour", 'policy.options={"hidden":4}', "head=own"):
        recipe = override(recipe, option)
    return recipe


@pytest.mark.usefixtures("own")
def test_from_labels_to_a_score(robot: Path, tiny: Recipe, tmp_path: Path) -> None:
    recipe, packed = mine(tiny), pack([f"lerobot:{robot}"], 24, quiet=True)
    label(packed, "ground_truth", tmp_path / "labels")
    labels, manifest = read_labels(tmp_path / "labels")
    pretrain(packed, labels, manifest, recipe, tmp_path / "latent", 7)
    finetune(packed, tmp_path / "latent", recipe, tmp_path / "policy", 7)
    as_it_is(packed, tmp_path / "latent", recipe, tmp_path / "as_it_is", 7)
    policy = lapa.Policy.from_pretrained(tmp_path / "policy")
    assert policy.config.hidden == 4
    assert policy.act({"image": packed.gather(np.arange(1))[0], "instruction": "push"}).shape == (1, 2)
    world = plugins.find("benchmarks", "tabletop")().build()
    told = tune(packed, tmp_path / "latent", recipe, tmp_path / "tuned", 7, world, 2)
    assert set(told["validation"]) == {"head", "all", "all-long"}
    outcomes, _ = roll_out(world, lapa.Policy.from_pretrained(tmp_path / "tuned"), Trial(2, 0))
    assert len(outcomes) == 2


@pytest.mark.usefixtures("own")
def test_labels_that_it_does_not_learn(robot: Path, tiny: Recipe, tmp_path: Path) -> None:
    packed = pack([f"lerobot:{robot}"], 24, quiet=True)
    label(packed, "future_frames", tmp_path / "labels")
    labels, manifest = read_labels(tmp_path / "labels")
    with pytest.raises(LapaError, match=r"frames.* codes .*actions"):
        pretrain(packed, labels, manifest, mine(tiny), tmp_path / "latent", 7)


@pytest.mark.usefixtures("own")
def test_by_command(robot: Path, tmp_path: Path, small: list[str]) -> None:
    data, labels, latent, policy = ["--dataset", f"lerobot:{robot}"], *(str(tmp_path / x) for x in ("a", "b", "c"))
    chosen = ["--set", "policy.name=colour", "--set", "head=own", *small]
    cli.main(["label", *data, "--source", "ground_truth", "--out", labels])
    cli.main(["pretrain", *data, "--labels", labels, "--steps", "2", *chosen, "--out", latent])
    cli.main(["finetune", *data, "--policy", latent, "--steps", "2", *chosen, "--out", policy])
    cli.main(["evaluate", "--policy", policy, "--episodes", "2", "--out", str(tmp_path / "eval")])
    assert json.loads((tmp_path / "eval/results.json").read_text())["episodes"] == 2
    assert json.loads((Path(policy) / "config.json").read_text())["policy"] == "colour"
