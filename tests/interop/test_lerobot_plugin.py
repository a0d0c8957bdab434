"""The plug-in in LeRobot itself: found by name, the same actions, lerobot-eval and lerobot-train. Skipped where LeRobot
is not installed; `make test-lerobot` makes a place where it is (docs/lerobot.md)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="LeRobot is not installed here: make test-lerobot")
pytest.importorskip("lerobot_policy_lapa", reason="the plug-in is not installed here: make test-lerobot")

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot_made import arm

from lapa.data.pack import pack
from lapa.evaluate import Trial, open_benchmark, roll_out
from lapa.interop.lerobot_policy import export_policy
from lapa.policies import Policy
from lapa.recipe import PolicySettings, Recipe
from lapa.stage3_finetune import finetune

register_third_party_plugins()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arm(tmp_path_factory.mktemp("arm") / "arm")


@pytest.fixture(scope="module")
def two_eyed(dataset: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of two cameras and the state, chunks of two."""
    path = tmp_path_factory.mktemp("policy") / "policy"
    data = pack([f"lerobot:{dataset}"], 24, quiet=True, cameras=("top", "wrist"))
    settings = replace(tiny.policy, cameras=("top", "wrist"), state=True)
    finetune(data, None, replace(tiny, policy=settings, chunk=2, clusters=4), path, 0)
    return path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Run lerobot-eval or lerobot-train in this process, offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(name: str, *options: str) -> None:
        import importlib

        monkeypatch.setattr(sys, "argv", [name.replace("_", "-"), *options])
        importlib.import_module(f"lerobot.scripts.{name}").main()

    return run


def opened(folder: Path) -> tuple[Any, Any, Any]:
    """(policy, before, after) as LeRobot opens a checkpoint."""
    from lerobot.policies.factory import get_policy_class

    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    return policy, *make_pre_post_processors(config, pretrained_path=str(folder))


def as_lerobot_shows(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Observations as lerobot-eval makes them of an environment's: floats in [0, 1], channels first."""
    cameras = seen[0]["images"]
    batch: dict[str, Any] = {
        f"observation.images.{camera}": torch.from_numpy(np.stack([one["images"][camera] for one in seen]))
        .permute(0, 3, 1, 2).float() / 255
        for camera in cameras
    }  # fmt: skip
    if "state" in seen[0]:
        batch["observation.state"] = torch.from_numpy(np.stack([one["state"] for one in seen]))
    return {**batch, "task": [one["instruction"] for one in seen]}


def shown(count: int, cameras: tuple[str, ...], numbers: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    return [
        {"images": {name: random.integers(0, 255, (24, 32, 3), np.uint8) for name in cameras},
         "state": random.normal(size=numbers).astype(np.float32), "instruction": ("lift the cup", "push")[i % 2]}
        for i in range(count)
    ]  # fmt: skip


def test_the_same_actions(two_eyed: Path, tmp_path: Path) -> None:
    """Of the policy itself, through LeRobot's pipelines: batches, chunks, pictures in floats."""
    export_policy(two_eyed, tmp_path / "out")
    ours = Policy.from_pretrained(two_eyed)
    theirs, before, after = opened(tmp_path / "out")
    seen = shown(3, ("top", "wrist"), 3)
    wanted = ours.act_batch(seen)  # type: ignore[arg-type]
    with torch.inference_mode():
        chunk = after(theirs.predict_action_chunk(before(as_lerobot_shows(seen))))
    np.testing.assert_allclose(chunk.numpy(), wanted, atol=1e-6, rtol=0)
    theirs.reset()
    for step in range(2):  # the chunk is executed before the policy is asked again
        other = as_lerobot_shows(shown(3, ("top", "wrist"), 3)) if step else as_lerobot_shows(seen)
        np.testing.assert_allclose(after(theirs.select_action(before(other))).numpy(), wanted[:, step], atol=1e-6)
    one = {name: value[0] for name, value in as_lerobot_shows(seen[:1]).items()}  # a robot's, without a batch axis
    theirs.reset()
    np.testing.assert_allclose(after(theirs.select_action(before(one))).numpy()[0], wanted[0, 0], atol=1e-6)


def test_the_processors_are_those_that_lerobot_writes(two_eyed: Path, tmp_path: Path) -> None:
    export_policy(two_eyed, tmp_path / "out")
    config = PreTrainedConfig.from_pretrained(tmp_path / "out")
    for made in make_pre_post_processors(config):
        made.save_pretrained(tmp_path / "theirs")
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        ours, theirs = (json.loads((tmp_path / folder / name).read_text()) for folder in ("out", "theirs"))
        assert ours == theirs


def test_wrong_observations_are_refused(two_eyed: Path, tmp_path: Path) -> None:
    export_policy(two_eyed, tmp_path / "out")
    policy, before, _ = opened(tmp_path / "out")
    good = as_lerobot_shows(shown(1, ("top", "wrist"), 3))
    for change, match in (
        ({"observation.images.top": good["observation.images.top"] * 2 - 1}, "observation.images.top"),
        ({"observation.images.top": good["observation.images.top"][:, :1]}, "observation.images.top"),
    ):
        with pytest.raises(ValueError, match=match):
            policy.predict_action_chunk(before({**good, **change}))
    with pytest.raises(ValueError, match=r"observation\.images\.wrist"):
        policy.predict_action_chunk(before({k: v for k, v in good.items() if "wrist" not in k}))


def test_saved_again_it_is_the_same(two_eyed: Path, tmp_path: Path) -> None:
    export_policy(two_eyed, tmp_path / "out")
    policy, _, _ = opened(tmp_path / "out")
    policy.save_pretrained(tmp_path / "again")
    seen = shown(2, ("top", "wrist"), 3)
    wanted = Policy.from_pretrained(two_eyed).act_batch(seen)  # type: ignore[arg-type]
    again = type(policy).from_pretrained(tmp_path / "again").policy
    for found in (Policy.from_pretrained(tmp_path / "again"), again):
        np.testing.assert_array_equal(found.act_batch(seen), wanted)
    told = json.loads((tmp_path / "again/lapa_artefact/config.json").read_text())
    assert str(tmp_path / "out") in told["provenance"]["parents"]


def test_lerobot_eval_on_a_benchmark_of_lapa(chain: Path, tmp_path: Path, command: Callable[..., None]) -> None:
    """The same scenes as `lapa evaluate`, the same outcomes."""
    export_policy(chain / "policy", tmp_path / "out", ["main=observation.images.image"])
    command("lerobot_eval", f"--policy.path={tmp_path / 'out'}", "--env.type=lapa", "--env.task=tabletop", "--seed=0",
            "--eval.n_episodes=4", "--eval.batch_size=2", f"--output_dir={tmp_path / 'eval'}")  # fmt: skip
    found = json.loads((tmp_path / "eval/eval_info.json").read_text())["per_task"][0]["metrics"]["successes"]
    world = open_benchmark("tabletop")
    outcomes, _ = roll_out(world, Policy.from_pretrained(chain / "policy"), Trial(4))
    assert [bool(each) for each in found] == [each.success for each in outcomes]


@pytest.mark.parametrize("cameras", [1, 2])
def test_lerobot_train_from_a_latent_policy(
    cameras: int, chain: Path, dataset: Path, tmp_path: Path, command: Callable[..., None]
) -> None:
    """Then from its checkpoint; lapa opens both."""
    two = ["--policy.cameras={top: observation.images.top, wrist: observation.images.wrist}"] if cameras == 2 else []
    how = [f"--dataset.root={dataset}", "--dataset.repo_id=local/arm", "--policy.device=cpu", "--batch_size=4",
           "--num_workers=0", "--steps=3", "--save_freq=3", "--log_freq=1", "--wandb.enable=false"]  # fmt: skip
    command("lerobot_train", "--policy.type=lapa", f"--policy.start={chain / 'latent'}", "--policy.preset=laptop",
            "--policy.chunk_size=2", "--policy.trainable=all", *two, *how,
            f"--output_dir={tmp_path / 'one'}")  # fmt: skip
    first = tmp_path / "one/checkpoints/000003/pretrained_model"
    policy = Policy.from_pretrained(first)
    assert policy.spec.action is not None
    assert (policy.dimensions, policy.spec.chunk, len(policy.spec.cameras)) == (3, 2, cameras)
    assert (policy.spec.action.kinds, policy.spec.action.hz) == (("absolute",) * 3, 10)
    command("lerobot_train", f"--policy.path={first}", *how, f"--output_dir={tmp_path / 'two'}")
    second = Policy.from_pretrained(tmp_path / "two/checkpoints/000003/pretrained_model")
    seen = shown(2, policy.spec.cameras, 3)
    assert not np.array_equal(policy.act_batch(seen), second.act_batch(seen)), "it has been trained"  # type: ignore[arg-type]


def test_a_kept_head_learns_as_gently_as_in_stage_3(two_eyed: Path, tmp_path: Path) -> None:
    """With --policy.path LeRobot sets `pretrained_path`, and the head is kept."""
    export_policy(two_eyed, tmp_path / "out")
    path = tmp_path / "out/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kept_head_rate": 0.1}))
    config = PreTrainedConfig.from_pretrained(tmp_path / "out")
    whole = config.optimizer_lr
    assert config.get_optimizer_preset().lr == whole
    config.pretrained_path = tmp_path / "out"
    assert config.get_optimizer_preset().lr == config.get_scheduler_preset().peak_lr == pytest.approx(0.1 * whole)


def test_weights_of_packages_are_not_in_a_checkpoint(dataset: Path, tiny: Recipe, tmp_path: Path) -> None:
    """The backbone `pieces`: its encoders are referred to, before and after LeRobot has saved it."""
    for needed in ("efficientnet_lite_pytorch", "all_minilm_l6_v2", "gguf"):
        pytest.importorskip(needed)
    recipe = replace(tiny, policy=PolicySettings(backbone="pieces", state=True), clusters=4)
    finetune(pack([f"lerobot:{dataset}"], 128, quiet=True), None, recipe, tmp_path / "run", 0)
    export_policy(tmp_path / "run", tmp_path / "out")
    policy, before, after = opened(tmp_path / "out")
    seen = shown(2, policy.policy.spec.cameras, 3)
    wanted = Policy.from_pretrained(tmp_path / "run").act_batch(seen)  # type: ignore[arg-type]
    found = after(policy.predict_action_chunk(before(as_lerobot_shows(seen)))).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=0)
    policy.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").stat().st_size < 10e6  # of the trained part; the encoders have 100 MB
