"""A policy as a checkpoint of LeRobot: what is written, and that it is the same policy. LeRobot is not needed here;
with it the plug-in is tested in test_lerobot_plugin.py."""

from __future__ import annotations

import ast
import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_made import JOINTS, arm
from safetensors import safe_open

from lapa import cli
from lapa.artefacts.folder import describe
from lapa.contracts import LapaError
from lapa.data.observations import Seen
from lapa.data.pack import Packed, pack
from lapa.interop.lerobot_policy import (
    begin,
    executed,
    features_of,
    open_policy,
    recipe_of,
    require_fit,
    save_policy,
    trains,
)
from lapa.policies import Policy, look
from lapa.recipe import Recipe
from lapa.stage3_finetune import finetune

PLUGIN = Path(__file__).parents[2] / "lerobot_policy_lapa"
SEEN: dict[str, Any] = {
    "image": np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8),
    "instruction": "push",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arm(tmp_path_factory.mktemp("arm") / "arm")


@pytest.fixture(scope="module")
def two_eyed(dataset: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of two cameras and the state, chunks of two."""
    path = tmp_path_factory.mktemp("policy") / "policy"
    settings = replace(tiny.policy, cameras=("top", "wrist"), state=True)
    data = pack([f"lerobot:{dataset}"], 24, quiet=True, cameras=("top", "wrist"))
    finetune(data, None, replace(tiny, policy=settings, chunk=2, clusters=4), path, 0)
    return path


@pytest.fixture(scope="module")
def checkpoint(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lerobot") / "out"
    cli.main(["export", "lerobot-policy", str(chain / "policy"), str(out)])
    return out


def test_the_files(checkpoint: Path, chain: Path) -> None:
    found = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    processors = {"policy_preprocessor.json", "policy_postprocessor.json"}
    assert found == {"config.json", "model.safetensors", "lapa_artefact/config.json", *processors}
    assert (checkpoint / "model.safetensors").read_bytes() == (chain / "policy/model.safetensors").read_bytes()
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["type"] == "lapa"
    assert config["cameras"] == {"main": "observation.images.main"}
    assert config["input_features"] == {"observation.images.main": {"type": "VISUAL", "shape": [3, 24, 24]}}
    assert config["output_features"] == {"action": {"type": "ACTION", "shape": [2]}}
    assert (config["chunk_size"], config["n_action_steps"], config["optimizer_lr"]) == (3, 3, 1e-3)
    assert config["kept_head_rate"] == 1
    for name in sorted(processors):
        steps = json.loads((checkpoint / name).read_text())["steps"]
        (kinds,) = [step["config"]["norm_map"] for step in steps if "normalizer" in step["registry_name"]]
        assert set(kinds.values()) == {"IDENTITY"}


def test_lapa_opens_a_checkpoint_as_the_policy_that_it_is(checkpoint: Path, chain: Path) -> None:
    ours, theirs = (Policy.from_pretrained(path).act(SEEN) for path in (chain / "policy", checkpoint))
    np.testing.assert_array_equal(ours, theirs)
    damaged = shutil.copytree(checkpoint, checkpoint.parent / "damaged")
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(data)
    with pytest.raises(LapaError, match=r"model\.safetensors"):
        Policy.from_pretrained(damaged)


def test_weights_from_elsewhere_are_not_in_a_checkpoint(
    robot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the backbone `tiny` as it ships."""
    run = tmp_path / "run"
    cli.main(["finetune", "--dataset", f"lerobot:{robot},episodes=0-2", "--steps", "1", "--out", str(run)])
    capsys.readouterr()
    cli.main(["export", "lerobot-policy", str(run), str(tmp_path / "out")])
    names = describe(run, "policy").config["borrowed"]["names"]
    assert f" {len(names)} " in capsys.readouterr().out
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert names
        assert not set(names) & set(file.keys())
    np.testing.assert_array_equal(*(Policy.from_pretrained(tmp_path / name).act(SEEN) for name in ("run", "out")))


def test_cameras_and_state(two_eyed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ["--feature", "wrist=observation.images.gripper_cam"]
    cli.main(["export", "lerobot-policy", str(two_eyed), str(tmp_path / "out"), *told])
    said = capsys.readouterr().out
    assert all(name in said for name in ("observation.images.top", "observation.images.gripper_cam", "task"))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["cameras"] == {"top": "observation.images.top", "wrist": "observation.images.gripper_cam"}
    assert config["input_features"]["observation.state"] == {"type": "STATE", "shape": [3]}
    with pytest.raises(LapaError, match="exists already"):
        cli_export(two_eyed, tmp_path / "out")
    for wrong in ("side=x", "top="):
        with pytest.raises(LapaError, match="top, wrist"):
            features_of(("top", "wrist"), [wrong])
    with pytest.raises(LapaError, match="--feature"):
        features_of(("top", "wrist"), ["wrist=observation.images.top"])
    assert features_of(("obs/agentview", "observation.images.main")) == {
        "obs/agentview": "observation.images.obs_agentview",
        "observation.images.main": "observation.images.main",
    }


def cli_export(run: Path, out: Path) -> None:
    from lapa.interop.lerobot_policy import export_policy

    export_policy(run, out)


def test_a_policy_of_codes_is_refused(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(LapaError, match=r"--policy\.start="):
        cli_export(chain / "latent", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_same_targets_as_lapas_own_reader(
    two_eyed: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Actions of another library's batch become the targets that stage 3 has; those of other units are told."""
    policy = Policy.from_pretrained(two_eyed)
    data: Packed = pack([f"lerobot:{dataset}"], 24, quiet=True, cameras=("top", "wrist"))
    recipe = replace(recipe_of("laptop", ["chunk=2", "clusters=4", "head=own"]))
    examples = policy.adapt(data, recipe)
    frames = examples.frames
    assert data.actions is not None
    rows = np.minimum(frames[:, None] + np.arange(2), data.starts[data.episode_of(frames) + 1][:, None] - 2)
    pad = frames[:, None] + np.arange(2) != rows
    batch = policy.robot_batch(look(data, frames, policy.spec), data.actions[rows], pad)
    np.testing.assert_array_equal(batch.targets.numpy(), examples.targets)
    assert pad.any()
    loss, _ = policy.loss(batch)
    assert torch.isfinite(loss)
    assert "lie outside" not in capsys.readouterr().err
    policy.robot_batch(look(data, frames, policy.spec), 1000 * data.actions[rows], pad)
    assert "many of the labelled" in capsys.readouterr().err


def test_a_policy_begins_and_is_saved(chain: Path, dataset: Path, tiny: Recipe, tmp_path: Path) -> None:
    """A new head for the actions of a dataset, on a pretrained policy; nothing is trained."""
    made = begin(str(dataset), replace(tiny, chunk=2, clusters=4), str(chain / "latent"))
    assert made.policy.spec.action is not None
    assert (made.policy.spec.action.names, made.policy.spec.chunk, made.policy.dimensions) == (JOINTS, 2, 3)
    assert made.policy.spec.state == JOINTS  # the actions are relative to it
    save_policy(made, tmp_path / "out", made.policy.state_dict())
    again = open_policy(tmp_path / "out")
    shown = Seen.of(np.zeros((2, 24, 24, 3), np.uint8), ["a", "b"])
    np.testing.assert_array_equal(*(one.policy.logits(shown.images["image"], shown.texts).detach().numpy()
                                    for one in (made, again)))  # fmt: skip
    config = describe(tmp_path / "out", "policy").config
    assert next(iter(config["provenance"]["parents"])) == str(chain / "latent")
    assert len(config["labelled"]["trained"]) == 2 * 3, "by what they do, and by their place"
    with pytest.raises(LapaError, match="laq"):
        begin(str(dataset), tiny, str(chain / "laq"))
    for options, says in (("finetune.steps=9", "steps"), ("finetune.schedule = constant", "schedule")):
        with pytest.raises(LapaError, match=f"finetune.{says} means nothing in LeRobot"):
            begin(str(dataset), tiny, "", ["finetune.learning_rate=1e-4", options])


def test_a_dataset_that_a_policy_goes_on_with(two_eyed: Path, dataset: Path) -> None:
    """Numbers, names in any of LeRobot's forms, and the rate. The features' shapes are LeRobot's own: tuples."""
    spec = Policy.from_pretrained(two_eyed).spec
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    assert require_fit(spec, features, 10) == require_fit(spec, {}, 10) == []
    shuffled = ["elbow", "shoulder", "gripper"]
    for name in ("action", "observation.state"):
        for wrong, match in (
            ({"names": shuffled}, "another order"),
            ({"names": {"motors": shuffled}}, "another order"),
            ({"shape": (7,), "names": None}, "3 numbers.* 7"),
        ):
            with pytest.raises(LapaError, match=f"{match}.*--policy.start"):
                require_fit(spec, {**features, name: {**features[name], **wrong}}, 10)
        other = {**features, name: {**features[name], "names": ["a", "b", "c"]}}
        assert [("shoulder" in told, "a, b, c" in told) for told in require_fit(spec, other, 10)] == [(True, True)]
    assert "30 actions a second" in require_fit(spec, features, 30)[0]
    assert (executed(spec, 2, 0), executed(replace(spec, execute=1), 2, 0), executed(spec, 2, 1)) == (2, 1, 1)
    for chunk, steps, match in ((1, 0, "chunk_size=1.* 2 actions"), (2, 3, "n_action_steps is 1 to .* 2; got 3")):
        with pytest.raises(LapaError, match=match):
            executed(spec, chunk, steps)


def test_what_nobody_has_trained_is_trained_with_the_head(
    chain: Path, dataset: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in stage 3: a backbone that begins without a policy (pieces, hf)."""
    alone, after = begin(str(dataset), tiny), begin(str(dataset), tiny, str(chain / "latent"))
    assert trains(alone, "head") == "head", "tiny has been grounded"
    monkeypatch.setattr(type(alone.policy.backbone), "untaught", True)
    assert (trains(alone, "head"), trains(after, "head"), trains(after, "all")) == ("all", "head", "all")


def test_what_learns_in_lapa_alone_does_not_begin_in_lerobot(dataset: Path, tiny: Recipe) -> None:
    """A head that looks for itself learns from plans of every age; UniPi from the frames behind each."""
    looks = replace(tiny.policy, head="fast", head_options={"vision": "pixels"})
    for settings in (looks, replace(tiny.policy, name="video_planner")):
        with pytest.raises(LapaError, match="lapa finetune"):
            begin(str(dataset), replace(tiny, policy=settings))


def test_the_names_by_which_lerobot_finds_the_plug_in() -> None:
    """Its rules, lerobot 0.6.1: the distribution's name, and modules and classes of the policy's name."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())
    assert project["project"]["name"] == PLUGIN.name == "lerobot_policy_lapa"
    assert project["tool"]["setuptools"]["packages"] == [PLUGIN.name]
    wanted = {"configuration_lapa": "LapaConfig", "modeling_lapa": "LapaPolicy",
              "processor_lapa": "make_lapa_pre_post_processors"}  # fmt: skip
    for module, name in wanted.items():
        tree = ast.parse((PLUGIN / f"{module}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
