"""What bad input gets: one message that says what, where and what to do, an exit code, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import SafetensorError

from lapa import cli
from lapa.artefacts import folder as checkpoint
from lapa.artefacts.folder import load_artefact
from lapa.contracts import Episode
from lapa.data.lerobot_format import LeRobotWriter
from lapa.data.video import VideoFile
from lapa.recipe import ABOUT, PRESETS
from lapa.training import loop
from lapa.training.resume import Checkpoints

TABLE = "tabletop:sim,episodes=4,seed=6"
Refuses = Callable[..., str]


def run(*arguments: object) -> None:
    cli.main([str(a) for a in arguments])


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Refuses:
    """Run a command that must fail with an exit code and a message that has all of `says`; returns the message."""

    def check(*arguments: object, says: Sequence[object], code: int = 1) -> str:
        with pytest.raises(SystemExit) as ended:
            run(*arguments)
        message = capsys.readouterr().err
        assert ended.value.code == code, message
        for part in says:
            assert str(part) in message, message
        assert "Traceback" not in message
        if code == 1:
            assert message.splitlines()[-1].startswith("lapa: "), "the message is the last thing said"
        return message

    return check


@pytest.fixture(scope="module")
def made(robot: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """laq, labels, latent and policy of one step each, made by the commands of the README."""
    folder = tmp_path_factory.mktemp("made")
    data = ("--dataset", f"lerobot:{robot}")
    run("quantize", *data, "--steps", 1, *small, "--out", folder / "laq")
    run("label", *data, "--source", folder / "laq", "--out", folder / "labels")
    run("pretrain", *data, "--labels", folder / "labels", "--steps", 1, *small, "--out", folder / "latent")
    run("finetune", *data, "--policy", folder / "latent", *small, "--out", folder / "policy")
    return folder


# --- data that cannot be read ---------------------------------------------------------------------


def test_a_missing_folder(refuses: Refuses, tmp_path: Path) -> None:
    for name in ("video_folder", "lerobot"):
        path = tmp_path / "nowhere"
        refuses("quantize", "--dataset", f"{name}:{path}", "--out", tmp_path / "out",
                says=(path,))  # fmt: skip


def test_a_typing_error_does_not_use_up_the_folder(refuses: Refuses, small: list[str], tmp_path: Path) -> None:
    """The corrected command works without --resume and without another --out."""
    out = tmp_path / "out"
    refuses("quantize", "--dataset", "tabletop:smi", "--out", out, says=('"sim"?',))
    run("quantize", "--dataset", TABLE, "--steps", 1, *small, "--out", out)
    assert load_artefact(out, "laq")


@pytest.fixture
def partly_bad(clips: Path, tmp_path: Path) -> Path:
    """Six good clips, an empty file, and one that is no video."""
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    (folder / "clip_7.mp4").write_bytes(b"")
    (folder / "clip_3b.mp4").write_text("this is no video")
    return folder


def test_unreadable_videos_are_named(refuses: Refuses, partly_bad: Path, small: list[str], tmp_path: Path) -> None:
    command = ("quantize", "--dataset", f"video_folder:{partly_bad}", "--steps", 1, *small, "--out", tmp_path / "out")
    refuses(*command, says=(partly_bad / "clip_3b.mp4", "--skip-bad"))


def test_unreadable_videos_are_skipped_on_request(
    partly_bad: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--dataset", f"video_folder:{partly_bad}", "--skip-bad")
    run("quantize", *data, "--steps", 1, *small, "--out", tmp_path / "out")
    said = capsys.readouterr()
    for name in ("clip_3b.mp4", "clip_7.mp4"):
        assert f"skipped: {partly_bad / name}" in said.err
    assert "6 episodes" in said.out
    assert "2 skipped" in said.out
    run("label", *data, "--source", tmp_path / "out", "--out", tmp_path / "labels")
    assert "2 skipped" in capsys.readouterr().out


def test_an_empty_video_alone(refuses: Refuses, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/empty.mp4").touch()
    data = ("--dataset", f"video_folder:{tmp_path / 'clips'}", "--out", tmp_path / "out")
    refuses("quantize", *data, says=(tmp_path / "clips/empty.mp4",))
    refuses("quantize", *data, "--skip-bad", says=(tmp_path / "clips", "empty.mp4"))


def test_every_episode_shorter_than_the_window(refuses: Refuses, clips: Path, tmp_path: Path) -> None:
    says = ("100 s", '"clip_', "5 fps")
    refuses("quantize", "--dataset", f"video_folder:{clips}", "--window", 100, "--out", tmp_path / "out", says=says)


def test_one_episode_shorter_than_the_window(clips: Path, small: list[str], tmp_path: Path) -> None:
    """It is left out; its neighbours are labelled."""
    shutil.copytree(clips, tmp_path / "clips")
    video = VideoFile(tmp_path / "clips/clip_0.mp4", 5, 48, 48)
    video.add(np.zeros((2, 48, 48, 3), np.uint8))
    video.close()
    data = ("--dataset", f"video_folder:{tmp_path / 'clips'}")
    run("quantize", *data, "--window", 0.4, "--steps", 1, *small, "--out", tmp_path / "laq")
    run("label", *data, "--source", tmp_path / "laq", "--out", tmp_path / "labels")
    assert json.loads((tmp_path / "labels/manifest.json").read_text())["episodes_too_short"] == 1
    labelled = set(pq.read_table(tmp_path / "labels/labels.parquet")["episode"].to_pylist())
    assert labelled == {1, 2, 3, 4, 5}


def test_actions_that_are_nan(refuses: Refuses, robot: Path, tmp_path: Path) -> None:
    shutil.copytree(robot, tmp_path / "robot")
    path = next((tmp_path / "robot/data").rglob("*.parquet"))
    table = pq.read_table(path)
    actions = np.array(table["action"].to_pylist(), np.float32)
    actions[5, 1] = np.nan
    column = pa.array(actions.tolist(), table["action"].type)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)
    says = (tmp_path / "robot", '"episode_000000"', "nan", "frame 5", "dimension 1")
    refuses("finetune", "--dataset", f"lerobot:{tmp_path / 'robot'}", "--out", tmp_path / "out", says=says)


def test_another_image_size_is_resized(made: Path, tmp_path: Path, small: list[str]) -> None:
    """A robot with a larger camera finetunes a policy of small images; the same board, the same actions."""
    run("collect", "--dataset", "tabletop:sim,episodes=3,size=96", "--out", tmp_path / "large")
    run("finetune", "--dataset", f"lerobot:{tmp_path / 'large'}", "--policy", made / "latent", *small,
        "--out", tmp_path / "policy")  # fmt: skip
    run("evaluate", "--policy", tmp_path / "policy", "--episodes", 2, "--out", tmp_path / "eval")


def test_two_image_sizes_in_one_dataset(refuses: Refuses, tmp_path: Path) -> None:
    refuses("collect", "--dataset", "tabletop:sim,episodes=1,size=48", "--dataset", "tabletop:sim,episodes=1,size=32",
            "--out", tmp_path / "out", says=("32", "48"))  # fmt: skip
    assert not (tmp_path / "out").exists()
    refuses("quantize", "--dataset", TABLE, "--set", "laq.patch_size=7", "--out", tmp_path / "laq",
            says=("patch_size 7", "image_size 48"))  # fmt: skip


def test_video_without_actions_cannot_finetune(refuses: Refuses, clips: Path, tmp_path: Path) -> None:
    data = ("--dataset", f"video_folder:{clips}", "--out", tmp_path / "out")
    refuses("finetune", *data, says=(clips, "no actions", "finetuning"))
    refuses("fit", *data, says=(clips, "no actions", "lapa fit"))
    assert not (tmp_path / "out").exists(), "what comes to nothing leaves no folder"
    refuses("label", "--source", "ground_truth", "--dataset", data[1], "--out", tmp_path / "labels",
            says=("actions", "LAQ"))  # fmt: skip


def test_a_robot_of_other_dimensions(
    refuses: Refuses, made: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    with LeRobotWriter(tmp_path / "arm", 5.0, 24, tuple("xyz")) as writer:
        for i in range(2):
            frames = rng.integers(0, 256, (6, 24, 24, 3), np.uint8)
            writer.add(Episode(str(i), frames, 5.0, "push", rng.normal(size=(6, 3)).astype(np.float32)))
    data = ("--dataset", f"lerobot:{tmp_path / 'arm'}")
    refuses("finetune", *data, "--policy", made / "policy", "--head", "own", *small, "--out", tmp_path / "out",
            says=("3 action dimensions", "policy speaks 2"))  # fmt: skip
    run("finetune", *data, "--policy", made / "latent", *small, "--out", tmp_path / "arm_policy")
    assert f"Next: lapa evaluate --policy {tmp_path / 'arm_policy'}" in capsys.readouterr().out
    misfit = (f"{data[1]}", "3 numbers", "2 numbers at 5 Hz", "lapa.Policy.act")
    refuses("evaluate", "--policy", tmp_path / "arm_policy", "--out", tmp_path / "eval",
            says=(*misfit, f"{tmp_path / 'arm_policy'} (finetuned on "))  # fmt: skip
    refuses("analyse", "language", tmp_path / "arm_policy", says=misfit[1:])
    tune = ("tune", *data, "--policy", made / "latent", "--out", tmp_path / "tuned")
    refuses(*tune, "--benchmark", "tabletop", says=misfit)
    refuses(*tune, says=("2 episodes", "5 or more"))  # without a benchmark
    compare = ("compare", "--dataset", TABLE, "--labelled", data[1], "--out", tmp_path / "compared")
    refuses(*compare, "--benchmark", "tabletop", says=misfit)
    refuses(*compare, says=("5 or more; there are 2",))  # without a benchmark
    both = ("--dataset", TABLE, *data, "--out", tmp_path / "both")
    refuses("finetune", *both, says=(TABLE, data[1], "2 and 3 dimensions"))
    for name in ("eval", "tuned", "compared", "both"):
        assert not (tmp_path / name).exists()


# --- misspelt -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("quantize --dataset video_foldr:x", '"video_folder"?'),
        ("quantize --dataset clips/", '"clips/" NAME:PATH'),
        ("quantize", "--dataset"),
        ("quantize --dataset tabletop:sim,episods=3", '"episodes"?'),
        ("quantize --dataset tabletop:sim,episodes=many", 'episodes "many"'),
        ("quantize --dataset tabletop:sim --preset laptpo", '"laptpo" "laptop"?'),
        ("quantize --dataset tabletop:sim --set laq.codebok_size=3", '"codebook_size"?'),
        ("quantize --dataset tabletop:sim --set codebook_size=3", "laq.codebook_size?"),
        ("quantize --dataset tabletop:sim --set quantise.steps=3", '"quantize"?'),
        ("quantize --dataset tabletop:sim --set quantize.steps=many", "steps"),
        ("quantize --dataset tabletop:sim --set quantize.steps=0", "steps 1"),
        ("quantize --dataset tabletop:sim --stream 0", "--stream 1 0"),
        ("quantize --dataset tabletop:sim --set quantize.betas=[0.9]", '"quantize.betas=[0.9]" two'),
        ("ground --depth 0", "width depth 128 0"),
        ("ground --width 30", "30 4 width heads"),
        ("ground --batch-size 0", "batch_size 1 0"),
        ("quantize --dataset tabletop:sim --set quantize=3", "quantize steps,"),
        ("quantize --dataset tabletop:sim --set window.frames=3", "window"),
        ("quantize --dataset tabletop:sim --set quantize.schedule=cosin", '"cosine"?'),
        ("quantize --dataset tabletop:sim --set laq.decoder=unt", '"unet"?'),
        ("quantize --dataset tabletop:sim --set window", "NAME=VALUE"),
        ("quantize --dataset tabletop:sim --window 0", "window 0"),
        ("quantize --dataset tabletop:sim --seed -1", "--seed 0"),
        ("quantize --dataset tabletop:sim --steps 0", "steps 1"),
        ("finetune --dataset tabletop:sim --set policy.backbone=tniy", '"tiny"?'),
        ("label --dataset tabletop:sim --source ground_trth", 'ground_trth --source'),
        ("pretrain --dataset tabletop:sim --labels nowhere", "nowhere"),
        ("evaluate --row no_op --benchmark tabeltop", '"tabletop"?'),
        ("evaluate --row no_op --benchmark tabletop:hnad", '"hand"?'),
        ("evaluate --row no_op --benchmark tabletop:sim,split=unsen", '"unseen"?'),
        ("evaluate --row no_op --benchmark tabletop,splt=seen", '"split"?'),
        ("evaluate --row no_op --benchmark tabletop,size=large", 'size "large"'),
        ("evaluate --row no_opp", '"no_op"?'),
        ("evaluate --row no_op --execute 0", "1 action"),
        ("evaluate --row no_op --episodes 0", "1 100,000 episodes 0"),
        ("evaluate --row no_op --seed 10000", "seed 0 9,999"),
        ("evaluate", "--policy --row"),
        ("finetune --dataset tabletop:sim --policy nowhere", "nowhere --policy"),
        ("evaluate --policy nowhere", "nowhere policy"),
        ("compare --dataset tabletop:sim --labelled tabletop:sim --methods laap", '"lapa"?'),
        ("inspect", "--dataset NAME:PATH"),
        ("inspect nowhere", "nowhere"),
        ("inspect --dataset tabletop:sim --camera top", "--camera top one tabletop:sim"),
        ("inspect tabletop:sim --camera top", "--camera top --dataset"),
        ("inspect --dataset tabletop:sim,episodes=2 --image-size 0", "size 1 pixel"),
    ],
)  # fmt: skip
def test_misspelt_values(arguments: str, says: str, refuses: Refuses, tmp_path: Path) -> None:
    """The message has each part of `says`: what was misspelt, its bounds, the suggestion."""
    refuses(*arguments.split(), "--out", tmp_path / "out", says=tuple(says.split()))


def test_no_pixel_is_no_size(refuses: Refuses) -> None:
    refuses("cache", "--dataset", TABLE, "--image-size", 0, says=("--image-size", "1", "0"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("quantize --datset tabletop:sim --out x", "--dataset"),
        ("quantize --dataset tabletop:sim", "--out"),
        ("quantise --dataset tabletop:sim --out x", "quantize"),
        ("export lerobt a b", "lerobot"),
        ("quantize --dataset tabletop:sim --out x --steps many", "--steps"),
    ],
)
def test_misspelt_options(arguments: str, says: str, refuses: Refuses) -> None:
    refuses(*arguments.split(), says=(says,), code=2)


# --- artefacts that do not fit --------------------------------------------------------------------


def test_an_artefact_of_another_kind(refuses: Refuses, made: Path, robot: Path, tmp_path: Path) -> None:
    data, out = ("--dataset", f"lerobot:{robot}"), ("--out", tmp_path / "out")
    refuses("label", *data, "--source", made / "policy", *out, says=(made / "policy", '"policy"'))
    refuses("evaluate", "--policy", made / "laq", *out, says=(made / "laq", '"laq"', '"policy"'))
    refuses("inspect", made / "policy", *data, *out, says=("LAQ", made / "policy", '"policy"'))
    refuses("inspect", made / "labels", *out, says=(made / "labels", f"lerobot:{robot}"))
    refuses("inspect", robot, *out, says=(f"lerobot:{robot}?",))
    refuses("inspect", made, *out, says=(made, made / "laq", made / "latent", made / "policy"))
    refuses("pretrain", *data, "--labels", made / "laq", *out, says=(made / "laq", '"laq"', "`lapa label`"))
    refuses("analyse", "rollout", made / "laq", says=("rollout", "--policy FOLDER"))
    refuses("analyse", "algebra", made / "laq", "--policy", made / "latent", says=("--policy", "rollout"))
    refuses("finetune", *data, "--policy", made / "labels", *out, says=(made / "labels", "policy", "config.json"))


def test_an_artefact_with_missing_keys(refuses: Refuses, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "policy", tmp_path / "policy")
    config = json.loads((tmp_path / "policy/config.json").read_text())
    del config["model"]
    (tmp_path / "policy/config.json").write_text(json.dumps(config))
    refuses("evaluate", "--policy", tmp_path / "policy", "--episodes", 1, "--out", tmp_path / "out",
            says=(tmp_path / "policy/config.json", '"policy"'))  # fmt: skip


def test_a_policy_without_a_robot_head(refuses: Refuses, made: Path, tmp_path: Path) -> None:
    refuses("evaluate", "--policy", made / "latent", "--episodes", 1, "--out", tmp_path / "out",
            says=("latent codes", "lapa finetune"))  # fmt: skip


def test_labels_that_belong_to_something_else(
    refuses: Refuses, made: Path, robot: Path, small: list[str], tmp_path: Path
) -> None:
    refuses("pretrain", "--dataset", TABLE, "--labels", made / "labels", "--out", tmp_path / "out",
            says=(f"lerobot:{robot}", TABLE, "lapa label"))  # fmt: skip
    data = ("--dataset", f"lerobot:{robot}")
    run("quantize", *data, "--steps", 1, *small, "--seed", 5, "--out", tmp_path / "laq")
    refuses("pretrain", *data, "--labels", made / "labels", "--source", tmp_path / "laq", "--out", tmp_path / "two",
            says=[load_artefact(folder / "laq", "laq").hash for folder in (made, tmp_path)])  # fmt: skip


def test_labels_are_never_overwritten(
    refuses: Refuses, made: Path, robot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command finds them finished; one that would give others is refused."""
    before = (made / "labels/labels.parquet/part-000000.parquet").read_bytes()
    command = ("label", "--dataset", f"lerobot:{robot}", "--source", made / "laq", "--out", made / "labels")
    run(*command)
    said = capsys.readouterr().out
    assert f"{made / 'labels'} " in said
    assert f"Next: lapa pretrain --dataset lerobot:{robot} --labels {made / 'labels'}" in said
    refuses(*command, "--end", "clip", says=(made / "labels", "drop", "clip"))
    refuses(*command[:2], TABLE, *command[3:], says=(made / "labels", "fingerprint"))
    assert (made / "labels/labels.parquet/part-000000.parquet").read_bytes() == before


# --- --out in use ---------------------------------------------------------------------------------


def test_out_in_use(
    refuses: Refuses, made: Path, robot: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", "--dataset", f"lerobot:{robot}", "--steps", 1, *small, "--out", made / "laq"]
    before = load_artefact(made / "laq", "laq").hash
    refuses(*command, says=(made / "laq", "--resume", "--out"))
    refuses(*command, "--resume", "--seed", 3, says=("(seed 0 -> 3)",))
    refuses(*command, "--resume", "--set", "fit_idm.steps=9", says=("(recipe.fit_idm.steps ",))
    refuses(*command, "--resume", "--dataset", TABLE, says=("(dataset [",))
    run(*command, "--resume")
    assert f"{made / 'laq'} " in capsys.readouterr().out.replace("\n", " ")
    assert load_artefact(made / "laq", "laq").hash == before


def test_resume_after_an_update(
    refuses: Refuses,
    robot: Path,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A setting that lapa did not have yet stops nobody, unless it was chosen; nor does another way to write a path."""
    command = ["quantize", "--dataset", f"lerobot:{robot}", "--steps", 1, *small, "--out", tmp_path / "laq", "--resume"]
    run(*command)
    started = tmp_path / "laq/run.json"
    about = json.loads(started.read_text())
    for group, setting in (("idm", "shift"), ("laq", "unet_width")):
        del about["recipe"][group][setting]
    started.write_text(json.dumps(about))
    refuses(*command, says=("(recipe.laq.unet_width None -> 8)",))  # `small` chose it
    del about["recipe"]["laq"]["codes"]
    about["recipe"]["laq"]["unet_width"] = 8
    started.write_text(json.dumps(about))
    run(*command)
    assert "Note" not in capsys.readouterr().out, "it is finished"
    shutil.copytree(tmp_path / "laq", tmp_path / "stopped")
    (tmp_path / "stopped/config.json").unlink()
    run(*command[:-3], "--out", tmp_path / "stopped", "--resume")
    assert "(recipe.idm.shift None -> " in capsys.readouterr().out
    monkeypatch.chdir(robot.parent)
    for path in ("robot", "robot/", robot.parent / "robot/"):
        run("quantize", "--dataset", f"lerobot:{path}", *command[3:])
    refuses("quantize", "--dataset", "lerobot:robots", *command[3:], says=("(dataset [",))
    about["recipe"]["laq"]["quantizer_options"] = {}
    started.write_text(json.dumps(about))
    refuses(*command, says=("(recipe.laq.quantizer_options.",))  # those of a plug-in were not given


def test_an_evaluation_is_not_overwritten(refuses: Refuses, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    command = ("evaluate", "--row", "no_op", "--episodes", 2, "--out", out)
    run(*command, "--video", 2)
    run(*command, "--video", 1)
    assert not (out / "episode_1.gif").exists(), "of the run before"
    refuses(*command[:-2], "--seed", 1, "--out", out, says=(out, "(seed 0, not 1)"))
    refuses("evaluate", "--policy", made / "policy", "--episodes", 2, "--out", out, says=(out,))
    refuses("evaluate", "--row", "no_op", "--out", made / "laq", says=(made / "laq",))


def test_reading_takes_no_options_of_training(refuses: Refuses, made: Path, robot: Path, tmp_path: Path) -> None:
    command = ("finetune", "--dataset", f"lerobot:{robot}", "--policy", made / "latent", "--out", tmp_path / "out")
    refuses(*command, "--steps", 9, says=("--steps", "--preset laptop", "--head own"))
    refuses(*command, "--head", "linear", "--trainable", "all", says=("--trainable", "--head linear"))


def test_options_of_the_other_comparison(refuses: Refuses, tmp_path: Path) -> None:
    own = ("compare", "--dataset", TABLE, "--labelled", TABLE, "--out", tmp_path / "out")
    for option in ("--dry-run", "--quick", "--seeds 1", "--budgets 20", "--only lapa", "--results x", "--videos 9",
                   "--validation 9", "--other so101", "--server openpi://x:1"):  # fmt: skip
        refuses(*own, *option.split(), says=(option.split()[0], "--settings"))
    for option in ("--seed 1", "--benchmark other", "--set-finetune chunk=2"):
        refuses("compare", "--settings", "all", *option.split(), "--out", tmp_path / "out",
                says=(option.split()[0], "--dataset", "--labelled"))  # fmt: skip
    for option, says in (("--episodes 0", "episodes"), ("--seed 10000", "seed"), ("--seed -1", "seed"),
                         ("--set-finetune policy.heda=regression", "heda"), ("--set chunk=0", "chunk")):  # fmt: skip
        refuses(*own, *option.split(), says=(says,))  # now, and not after the training
    assert not (tmp_path / "out").exists()


def test_methods_that_the_data_do_not_allow(
    refuses: Refuses, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lapa.experiments.compare import Comparison, require_actions

    assert require_actions(Comparison((TABLE,), (TABLE,)), ()) == ("scratch", "vpt", "lapa", "actionvla")
    assert require_actions(Comparison((TABLE, f"video_folder:{clips}"), (TABLE,)), ()) == ("scratch", "vpt", "lapa")
    assert "actionvla" in capsys.readouterr().out
    for videos, labelled, says in (
        (f"video_folder:{clips}", TABLE, "actionvla"),
        (TABLE, f"video_folder:{clips}", "--labelled"),
    ):
        refuses("compare", "--dataset", videos, "--labelled", labelled, "--methods", "actionvla", "--out",
                tmp_path / "out", says=(says,))  # fmt: skip


@pytest.mark.parametrize("command", ["quantize --dataset", "inspect --dataset", "evaluate --row no_op --episodes 1"])
def test_out_is_a_file(command: str, refuses: Refuses, small: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    data = [TABLE] if command.endswith("--dataset") else []
    refuses(*command.split(), *data, "--out", tmp_path / "out", says=(tmp_path / "out",))
    assert (tmp_path / "out").read_text() == "precious"


# --- a full disk ----------------------------------------------------------------------------------


def full_disk_at(call: int, function: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """`function`, but call number `call` and all later ones find the disk full."""
    calls = 0

    def full(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise error
        return function(*arguments, **options)

    return full


FULL = {  # where, at which call
    "save_file": (checkpoint, 3, SafetensorError("Error while serializing: I/O error: No space left (os error 28)")),
    "replace": (os, 7, OSError(errno.ENOSPC, "No space left on device", "model.safetensors")),
}


@pytest.mark.parametrize("where", FULL)
def test_a_full_disk_keeps_the_checkpoint(
    where: str, refuses: Refuses, robot: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write in the middle of a run finds no room. Later there is some, and --resume ends as if nothing had been."""
    command = ["quantize", "--dataset", f"lerobot:{robot}", "--steps", 4, *small, "--out", tmp_path / "out"]
    monkeypatch.setitem(loop.fit.__kwdefaults__, "save_every", -1.0)
    with monkeypatch.context() as patch:
        module, call, error = FULL[where]
        patch.setattr(module, where, full_disk_at(call, getattr(module, where), error))
        refuses(*command, says=("disk", "--resume"))
    assert not (tmp_path / "out/config.json").exists()
    assert not list((tmp_path / "out").glob(".*.tmp")), "no torn file stays behind"
    assert 1 <= Checkpoints(tmp_path / "out", 0, 2).steps()[-1] < 4
    run(*command, "--resume")
    run(*command[:-1], tmp_path / "unbroken")
    assert load_artefact(tmp_path / "out", "laq").hash == load_artefact(tmp_path / "unbroken", "laq").hash


def test_labels_on_a_full_disk(
    refuses: Refuses, made: Path, robot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later there is some room, and the same command goes on from the shards that are done."""
    command = ("label", "--dataset", f"lerobot:{robot}", "--source", made / "laq", "--shard", 32)
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full_disk_at(3, pq.write_table, FULL["replace"][2]))
        refuses(*command, "--out", tmp_path / "labels", says=("disk",))
    assert len(list((tmp_path / "labels/labels.parquet").iterdir())) == 2, "no torn shard"
    run(*command, "--out", tmp_path / "labels")
    run(*command, "--out", tmp_path / "unbroken")
    once, again = ((tmp_path / name / "manifest.json").read_bytes() for name in ("unbroken", "labels"))
    assert once == again


@pytest.mark.parametrize(
    ("code", "says"), [(errno.EFBIG, ("FAT", "part-000000")), (errno.ENAMETOOLONG, ("part-000000", "long"))]
)
def test_a_disk_that_does_not_take_a_file(
    code: int, says: tuple[str, ...], refuses: Refuses, made: Path, robot: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    error = OSError(code, os.strerror(code), "part-000000.parquet")
    monkeypatch.setattr(pq, "write_table", full_disk_at(1, pq.write_table, error))
    command = ("label", "--dataset", f"lerobot:{robot}", "--source", made / "laq", "--out", tmp_path / "labels")
    refuses(*command, says=says)


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c(robot: Path, small: list[str], tmp_path: Path) -> None:
    """Exit code 130, no traceback, the checkpoint stays, and --resume goes on from it."""
    out = tmp_path / "out"
    command = ["quantize", "--dataset", f"lerobot:{robot}", "--steps", "24", *small, "--out", str(out)]
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell ignores it\n"
        "from lapa.training import loop; loop.fit.__kwdefaults__['save_every'] = -1.0\n"
        "from lapa.cli import main; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True)
    while not (checkpoints := Checkpoints(out, 0, 2)).steps():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    assert "Traceback" not in message
    assert "SIGINT" in message
    assert message.splitlines()[-1].startswith("lapa: ")
    assert 1 <= checkpoints.steps()[-1] < 24
    run(*command, "--resume")
    assert load_artefact(out, "laq")
    logged = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert logged == list(range(1, 25)), "every step once"


# --- help and listing -----------------------------------------------------------------------------


def test_help_is_complete_and_light() -> None:
    """Every command has help with its defaults, and none of it imports torch."""
    code = (
        "import sys\nfrom lapa.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    print('=== ' + name)\n"
        "    try:\n        main([name, '--help'])\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
        "print('=== torch' if 'torch' in sys.modules else '=== light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    helps = dict(part.partition("\n")[::2] for part in done.stdout.split("=== ")[1:])
    assert "light" in {key.strip() for key in helps}
    assert {"demo", "quantize", "label", "pretrain", "finetune", "evaluate", "compare", "inspect", "list"} <= set(helps)
    for name, text in helps.items():
        if name.strip() in cli.COMMANDS and name not in ("list", "cache", "stop"):
            assert "(default: " in text, name
            assert "--out" in text or " OUT" in text or name in ("serve", "explore"), name  # they write nothing


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    run("list")
    said = capsys.readouterr().out
    for word in ("lapa", "scratch", "vpt", "actionvla", "unipi", "laptop", "video_folder", "nsvq", "tiny", "tabletop"):
        assert word in said
    for preset, about in ABOUT.items():
        assert f"{preset:<18}{about}" in said
    assert ABOUT.keys() == PRESETS.keys()


def test_what_comes_next_keeps_the_preset_and_can_be_pasted(
    robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my runs"
    # The encoder of the preset wants larger pictures, and its backbone has other options.
    small = [*small, "--set", "laq.encoder=pixels", "--set", "policy.backbone=tiny"]
    data, video = ("--dataset", f"lerobot:{robot}"), ("--preset", "video", "--steps", 1, *small)

    def says(*arguments: object) -> tuple[list[str], str]:
        run(*arguments)
        said = capsys.readouterr()
        return shlex.split(said.out.partition("Next: ")[2]), said.out + said.err

    following, said = says("fit", *data, *video, "--out", folder / "idm")
    assert following[-4:-2] == ["--source", str(folder / "idm")]
    assert "lapa inspect" in said
    says("quantize", *data, *video, "--out", folder / "laq")
    following, _ = says("label", *data, "--source", folder / "laq", "--out", folder / "labels")
    assert following[4:8] == ["--labels", str(folder / "labels"), "--preset", "video"]
    truth = ("label", *data, "--source", "ground_truth", "--preset", "video", "--out", folder / "truth")
    following, _ = says(*truth)
    assert following[4:8] == ["--labels", str(folder / "truth"), "--preset", "video"]
    following, _ = says("pretrain", *data, "--labels", folder / "labels", *video, "--out", folder / "latent")
    again = ["--videos", f"lerobot:{robot}", "--labels", str(folder / "labels")]
    assert following[4:12] == ["--policy", str(folder / "latent"), *again, "--preset", "video"]
    laptop = (*small, "--head", "own", "--out", folder / "laptop")
    _, said = says("finetune", *data, "--policy", folder / "latent", *laptop)
    assert f"Note: {folder / 'latent'} " in said
    assert " policy.decoding=expectation " in said
    _, said = says("finetune", *data, "--policy", folder / "latent", *video, "--out", folder / "video")
    assert "Note: " not in said


def test_instructions_that_are_missing_or_not_read(
    clips: Path, made: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(clips, tmp_path / "clips")
    texts = ["", "", "推", "push " * 17, "push", "push"]
    rows = "".join(f"clip_{i}.mp4,{text}\n" for i, text in enumerate(texts))
    (tmp_path / "clips/captions.csv").write_text(f"file,instruction\n{rows}", "utf-8")
    data = ("--dataset", f"video_folder:{tmp_path / 'clips'}")
    run("label", *data, "--source", made / "laq", "--out", tmp_path / "labels")
    run("pretrain", *data, "--labels", tmp_path / "labels", "--steps", 1, *small, "--out", tmp_path / "latent")
    said = capsys.readouterr()
    assert "2 of 6 episodes" in said.out
    assert said.err.count("Warning: 1 of 6 instructions") == 2
    assert " 16 words" in said.err
    assert "accuracy" in said.out
    assert "chance is 1 / classes" in said.out


def test_every_command_says_what_comes_next(
    made: Path, robot: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--dataset", f"lerobot:{robot}")
    run("fit", *data, "--steps", 1, *small, "--out", tmp_path / "idm")
    assert f"Next: lapa label --dataset VIDEOS --source {tmp_path / 'idm'}" in capsys.readouterr().out
    run("label", *data, "--source", tmp_path / "idm", "--out", tmp_path / "labels")
    assert f"Next: lapa pretrain --dataset lerobot:{robot} --labels {tmp_path / 'labels'}" in capsys.readouterr().out
    run("finetune", *data, "--policy", made / "latent", *small, "--out", tmp_path / "policy")
    said = capsys.readouterr().out
    assert f"Next: lapa evaluate --policy {tmp_path / 'policy'}" in said
    assert "Watch: " not in said, "reading trains nothing"
    run("evaluate", "--policy", tmp_path / "policy", "--episodes", 5, "--video", 1, "--out", tmp_path / "eval")
    said = capsys.readouterr().out
    assert "of 5 episodes (95%: " in said
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert results["episodes"] == 5
    assert results["method"] == "lapa"
    assert len(results["outcomes"]) == 5
    assert (tmp_path / "eval/episode_0.gif").exists()


@pytest.mark.parametrize(("told", "warns"), [(0.9, True), (0.1, False)])
def test_codes_that_tell_the_dataset(
    told: float,
    warns: bool,
    robot: Path,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    probe = lambda features, targets, *_: told if set(targets.ravel()) == {0.0, 1.0} else 0.5  # noqa: E731
    monkeypatch.setattr("lapa.measures.probes.mlp_r2", probe)
    two = [word for _ in range(2) for word in ("--dataset", f"lerobot:{robot}")]
    run("quantize", *two, "--steps", 1, *small, "--set", "hold_out=2", "--out", tmp_path)
    said = capsys.readouterr().out
    assert f"dataset_mlp_r2       {told}" in said
    assert ("--set laq.encoder_input=contrast --set laq.symmetric=true" in said) == warns
