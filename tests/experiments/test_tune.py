"""The search over ways to finetune: the best by validation is what is saved, resumed or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lapa import cli
from lapa.contracts import ActionSpec, LapaError, Observation, Step, TaskSpec
from lapa.data.labelled import read_labels
from lapa.data.pack import Packed, pack
from lapa.experiments.tune import CANDIDATES, candidates, tune
from lapa.policies import config_class
from lapa.recipe import Recipe
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain
from lapa.stage3_finetune import finetune


class Judge:
    """A benchmark that gives the policies it meets these shares of success, in order."""

    def __init__(self, shares: Sequence[float]) -> None:
        self.shares = list(shares)
        self.spec = TaskSpec(ActionSpec(("dx", "dy"), ("delta", "delta"), 5.0), ("image",), ("push",), 3)

    def reset(self, seeds: Sequence[int]) -> list[Observation]:
        self.wins, self.count = round(self.shares.pop(0) * len(seeds)), len(seeds)
        return [{"images": {"image": np.zeros((24, 24, 3), np.uint8)}, "instruction": "push"} for _ in seeds]

    def step(self, actions: np.ndarray) -> list[Step]:
        assert actions.shape == (self.count, 2)
        shown: Observation = {"images": {"image": np.zeros((24, 24, 3), np.uint8)}, "instruction": "push"}
        return [Step(shown, i < self.wins, True) for i in range(self.count)]

    def tasks(self) -> tuple[str, ...]:
        return ("push",) * self.count

    def baselines(self) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def packed(robot: Path) -> Packed:
    return pack([f"lerobot:{robot}"], 24, quiet=True)


@pytest.fixture(scope="module")
def actionvla(packed: Packed, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("actionvla")
    label(packed, "ground_truth", folder / "labels")
    labels, manifest = read_labels(folder / "labels")
    pretrain(packed, labels, manifest, tiny, folder / "latent", 7)
    return folder / "latent"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("best", range(len(CANDIDATES)))
def test_the_best_way_is_what_is_saved(
    best: int, packed: Packed, tiny: Recipe, actionvla: Path, tmp_path: Path
) -> None:
    ways = list(CANDIDATES)
    shares = [0.5] * len(ways)
    shares[best] = 0.75
    told = tune(packed, actionvla, tiny, tmp_path / "tuned", 7, Judge(shares), 8)
    assert told["chosen"] == ways[best]
    assert json.loads((tmp_path / "tuned/config.json").read_text())["tuning"] == told
    assert {way: score["success"] for way, score in told["validation"].items()} == dict(zip(ways, shares, strict=True))
    assert not (tmp_path / "tuned/tried").exists()
    way = CANDIDATES[ways[best]]
    if way.steps:
        finetune(packed, actionvla, way.of(tiny), tmp_path / "direct", 7)
        assert same(tmp_path / "tuned", tmp_path / "direct")
    else:
        assert same(tmp_path / "tuned", actionvla)


def test_without_a_benchmark_the_least_error_on_held_out_episodes_is_chosen(
    packed: Packed, tiny: Recipe, actionvla: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = ("linear", "head", "as-it-is")
    found = tune(packed, actionvla, tiny, tmp_path / "best", 7, None, 0, ways)
    scores = found["validation"]
    assert set(scores) == set(ways)
    assert found["chosen"] == min(scores, key=lambda name: scores[name]["error"])
    assert {score["episodes"] for score in scores.values()} == {3}, "each fifth of twelve"
    assert f"{scores['head']['error']:.3f} on 3 held-out episodes" in capsys.readouterr().out
    with pytest.raises(LapaError, match="4 episodes"):
        tune(packed.subset(np.arange(4)), actionvla, tiny, tmp_path / "few", 7, None, 0, ways)
    still = replace(packed, actions=np.zeros_like(packed.require_actions("this")))
    with pytest.raises(LapaError, match="head has no held-out error, and so cannot be compared"):
        tune(still, actionvla, tiny, tmp_path / "still", 7, None, 0, ("head", "as-it-is"))


def test_ways_differ_as_they_say(packed: Packed, tiny: Recipe, actionvla: Path, tmp_path: Path) -> None:
    assert CANDIDATES["all-long"].of(tiny).finetune.steps == 4 * tiny.finetune.steps
    for name in ("head", "new-head", "all"):
        finetune(packed, actionvla, CANDIDATES[name].of(tiny), tmp_path / name, 7)
    before = weights(actionvla)
    own, new, every = (weights(tmp_path / name) for name in ("head", "new-head", "all"))
    trunk = [k for k in before if k.startswith("backbone.")]
    assert all(torch.equal(before[k], part[k]) for part in (own, new) for k in trunk)
    assert not all(torch.equal(before[k], every[k]) for k in trunk)
    nearer = sum(float((before[k] - own[k]).square().sum()) for k in before if k.startswith("head."))
    farther = sum(float((before[k] - new[k]).square().sum()) for k in before if k.startswith("head."))
    assert nearer < farther / 4, "a new head has forgotten, its own has not"
    spaces = [json.loads((p / "config.json").read_text())["space"]["means"] for p in (actionvla, tmp_path / "head")]
    assert spaces[0] == spaces[1]


def test_a_killed_search_goes_on(packed: Packed, tiny: Recipe, actionvla: Path, tmp_path: Path) -> None:
    shares = [0.5, 0.25, 0.75, 0.5, 0.0, 0.25, 0.5, 0.0]
    whole = tune(packed, actionvla, tiny, tmp_path / "whole", 7, Judge(shares), 8)
    with pytest.raises(IndexError):  # breaks off after three scores
        tune(packed, actionvla, tiny, tmp_path / "broken", 7, Judge(shares[:3]), 8)
    assert not (tmp_path / "broken/config.json").exists()
    again = tune(packed, actionvla, tiny, tmp_path / "broken", 7, Judge(shares[3:]), 8)
    assert again == whole
    assert same(tmp_path / "whole", tmp_path / "broken")


def saved(kind: str, **model: Any) -> dict[str, Any]:
    return {"space": {"kind": kind}, "model": model}


UNREAD = [name for name in CANDIDATES if name != "linear"]


@pytest.mark.parametrize(
    ("policy", "before", "ways"),
    [
        ("vla", None, ["head", "all", "all-long"]),
        ("vla", saved("codes"), ["linear", "head", "all", "all-long"]),
        ("vla", saved("codebook"), list(CANDIDATES)),
        ("vla", saved("actions"), list(CANDIDATES)),
        ("vla", saved("codes", code_head="nearest"), ["head", "all", "all-long"]),
        ("vla", saved("actions", code_head="nearest"), list(CANDIDATES)),
        ("vla", saved("actions", head="autoregressive"), UNREAD),
        ("vla", saved("codes", head_options={"rounds": 2}), ["head", "all", "all-long"]),
        ("vla", saved("codes", head="autoregressive", code_head="parallel"), ["linear", "head", "all", "all-long"]),
        ("vla", saved("codebook", head="linear"), list(CANDIDATES)),
        ("vla", saved("numbers", head="regression"), UNREAD),
        ("video_planner", {}, ["head", "all", "all-long", "as-it-is"]),
    ],
)
def test_a_policy_is_tried_in_the_ways_that_suit_it(policy: str, before: Any, ways: list[str]) -> None:
    assert [each.name for each in candidates(config_class(policy).ways(before))] == ways


def test_ways_that_are_refused() -> None:
    ways = config_class("vla").ways(saved("codes"))
    with pytest.raises(LapaError, match="new-head: "):
        candidates(ways, ["new-head"])
    with pytest.raises(LapaError, match=r"linear: .*\bhead, all, all-long"):
        candidates(config_class("vla").ways(saved("codes", code_head="nearest")), ["linear"])
    with pytest.raises(LapaError, match='"all-long"'):
        candidates(ways, ["all-lomg"])


def test_the_command(small: list[str], robot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One way alone is not scored; --resume finds nothing to do."""
    data = ["--dataset", f"lerobot:{robot}", "--set", "finetune.steps=2", *small]
    cli.main(["tune", *data, "--episodes", "2", "--out", str(tmp_path / "searched")])
    assert "of 2 validation episodes" in capsys.readouterr().out
    one = ["tune", *data, "--seed", "1", "--only", "all", "--out", str(tmp_path / "one")]
    cli.main(one)
    assert "validation" not in capsys.readouterr().out
    config = json.loads((tmp_path / "one/config.json").read_text())
    assert config["tuning"] == {"chosen": "all", "validation": {}}
    assert config["method"] == "scratch"
    cli.main([*one, "--resume"])
    assert "finished already" in capsys.readouterr().out


def test_what_the_user_sets_is_heeded_or_refused(
    small: list[str], robot: Path, actionvla: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `lapa finetune`; and a search does not go on in another benchmark."""
    data = ["tune", "--dataset", f"lerobot:{robot}", "--policy", str(actionvla), *small, "--set", "finetune.steps=2"]

    def run(name: str, *more: str) -> Any:
        try:
            cli.main([*data, *more, "--out", str(tmp_path / name)])
        except SystemExit:
            return capsys.readouterr().err
        return json.loads((tmp_path / name / "config.json").read_text())["model"]

    for option, number in (("--episodes", "0"), ("--episodes", "100001"), ("--seed", "10000")):
        assert f"not {number}" in run("never", option, number)
    assert not (tmp_path / "never").exists()
    assert run("kept", "--only", "head")["decoding"] == "expectation"
    for way in ("head", "as-it-is"):
        assert run(way, "--only", way, "--set", "policy.decoding=centre")["decoding"] == "centre"
    same = ("policy.execute=0", "policy.cameras=[]", "policy.state=false")
    assert run("same", "--only", "as-it-is", *(word for option in same for word in ("--set", option)))["execute"] == 0
    assert "as-it-is: policy.execute" in run("kept_so", "--only", "as-it-is", "--set", "policy.execute=9")
    assert run("new", "--only", "new-head", "--set", "policy.head=regression")["head"] == "regression"
    told = run("own", "--only", "head", "--set", "policy.head=regression")
    assert "head: policy.head=regression" in told
    assert "--only" in told
    here = ["--only", "head", "--benchmark", "tabletop:sim"]
    assert run("world", *here)
    assert "other settings" in run("world", *here[:-1], "tabletop:real", "--resume")
