"""The contracts carry another world: a benchmark and a policy in files outside the package, from video to a score.

tests/another_world has an arm with seven actions (six steps or targets, and a gripper), two cameras and a state, and a
policy of its own kind. Nothing of them is known to lapa.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from here import here

import lapa
from lapa import cli
from lapa.contracts import LapaError
from lapa.evaluate import Trial, open_benchmark, roll_out
from lapa.policies import Policy

ANOTHER_WORLD = Path(__file__).parent / "another_world"
LONG = ("--set", "finetune.steps=800", "--set", "finetune.batch_size=64")
FEW = ("--set", "quantize.steps=6", "--set", "fit_idm.steps=4", "--set", "pretrain.steps=30")


def run(*words: object) -> None:
    cli.main([str(word) for word in words])


def results(folder: Path, name: str = "results.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


@pytest.fixture(scope="module", params=["steps", pytest.param("joints", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Any:
    """collect, quantize, label, pretrain and finetune by the command line, with the policy of another file."""
    folder, arm = tmp_path_factory.mktemp(request.param), f"arm:{request.param}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPA_PLUGINS", str(ANOTHER_WORLD))
        for name, episodes, seed in (("videos", 24, 1), ("labelled", 60, 2)):
            run("collect", "--benchmark", arm, "--episodes", episodes, "--seed", seed, "--noise", 0.3, "--out",
                folder / name)  # fmt: skip
        videos, labelled = (("--dataset", f"lerobot:{folder / name}") for name in ("videos", "labelled"))
        own = (*small, *FEW, "--set", "policy.name=glance", *LONG)
        run("quantize", *videos, *own, "--out", folder / "laq")
        run("label", *videos, "--source", folder / "laq", "--out", folder / "labels")
        run("pretrain", *videos, "--labels", folder / "labels", *own, "--out", folder / "latent")
        run("finetune", *labelled, "--policy", folder / "latent", *own, "--out", folder / "policy")
        yield folder, arm, own


def test_the_policy_is_of_this_world(world: Any) -> None:
    folder, arm, _ = world
    task = open_benchmark(arm).spec
    spec = Policy.from_pretrained(folder / "policy").spec
    assert spec.action == task.action
    assert spec.cameras == task.cameras == ("front", "wrist")
    assert spec.state == task.state
    assert (spec.chunk, spec.execute) == (2, 1)
    assert results(folder / "policy", "config.json")["policy"] == "glance"
    relative = results(folder / "policy", "config.json")["grown"]["meaning"]["relative"]
    assert relative == [arm == "arm:joints"] * 6 + [False]
    # The videos' own windows: targets give the change of state, steps add up.
    assert results(folder / "laq", "config.json")["results"]["perplexity"]


def test_it_is_evaluated_and_better_than_standing_still(world: Any, tmp_path: Path) -> None:
    folder, arm, _ = world
    run(
        "evaluate", "--policy", folder / "policy", "--benchmark", arm, "--episodes", 40, "--video", 1, "--out", tmp_path
    )
    found = results(tmp_path)
    assert found["benchmark"] == arm
    assert set(found["families"]) == {"red", "blue"}
    assert (tmp_path / "episode_0.gif").exists()
    still = open_benchmark(arm)
    assert not any(o.success for o in roll_out(still, still.baselines()["no_op"], Trial(40))[0])
    assert found["success"] > 0.05, "it goes to the block and closes the gripper, now and then"


@pytest.mark.slow
def test_tune_and_compare(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    folder, arm, own = world
    few = [word.replace("finetune.steps=800", "finetune.steps=5") for word in own]
    videos, labelled = f"lerobot:{folder / 'videos'}", f"lerobot:{folder / 'labelled'}"
    run("tune", "--dataset", labelled, "--policy", folder / "latent", "--benchmark", arm, "--episodes", 3, "--only",
        "head", "--only", "all", *few, "--out", tmp_path / "tuned")  # fmt: skip
    assert set(results(tmp_path / "tuned", "config.json")["tuning"]["validation"]) == {"head", "all"}
    if arm == "arm:steps":  # the other one is compared without its benchmark
        run("compare", "--dataset", videos, "--labelled", labelled, "--benchmark", arm, "--methods", "scratch,lapa",
            "--episodes", 3, *few, "--out", tmp_path / "compared")  # fmt: skip
        assert list(results(tmp_path / "compared")["methods"]) == ["no_op", "scratch", "lapa", "expert"]
        assert results(tmp_path / "compared")["methods"]["expert"]["success"] == 1


def test_compare_without_a_benchmark(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One's own robot: nobody says where to try the policies, so held-out trajectories judge them."""
    here(monkeypatch)
    folder, arm, own = world
    if arm == "arm:steps":
        return
    few = [word.replace("finetune.steps=800", "finetune.steps=5") for word in own]
    videos, labelled = f"lerobot:{folder / 'videos'}", f"lerobot:{folder / 'labelled'},episodes="
    run("compare", "--dataset", videos, "--labelled", f"{labelled}0-11", "--methods", "scratch,lapa", *few, "--out",
        tmp_path / "compared")  # fmt: skip
    rows = results(tmp_path / "compared")["offline"]["rows"]
    assert list(rows)[:2] == ["scratch", "lapa"]
    assert "mean action" in rows
    assert all(row["interval"][0] <= row["error"] <= row["interval"][1] for row in rows.values())
    assert (tmp_path / "compared/error.png").exists()
    assert not (tmp_path / "compared/eval").exists()
    assert "tabletop" in capsys.readouterr().out
    run("compare", "--dataset", videos, "--labelled", f"{labelled}0-11", "--methods", "lapa", *few, "--out",
        tmp_path / "compared")  # fmt: skip
    again = results(tmp_path / "compared")["offline"]["rows"]
    assert list(again)[:2] == ["lapa", "scratch"], "nothing that was found is lost"
    assert again == rows
    assert "from an earlier run: scratch" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("compare", "--dataset", videos, "--labelled", f"{labelled}0-3", *few, "--out", tmp_path / "few")
    assert "5 or more; there are 4" in capsys.readouterr().err


def test_worlds_are_not_mixed_up(world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, arm, _ = world
    other = "arm:joints" if arm == "arm:steps" else "arm:steps"
    for benchmark, says in ((other, "absolute"), ("tabletop", "2 numbers at 5 Hz")):
        with pytest.raises(SystemExit):
            run("evaluate", "--policy", folder / "policy", "--benchmark", benchmark, "--out", tmp_path / "out")
        message = capsys.readouterr().err
        assert says in message
        assert f"benchmark {benchmark}" in message
    with pytest.raises(SystemExit):
        run("tune", "--dataset", f"lerobot:{folder / 'labelled'}", "--benchmark", other, "--out", tmp_path / "out")
    assert f"benchmark {other}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_it_needs_to_be_shown(world: Any) -> None:
    folder, arm, _ = world
    policy = lapa.Policy.from_pretrained(folder / "policy")
    (shown,) = open_benchmark(arm).reset([1])
    assert policy.act(shown).shape == (2, 7)
    larger = {**shown, "images": {name: np.repeat(np.repeat(p, 3, 0), 3, 1) for name, p in shown["images"].items()}}
    np.testing.assert_allclose(policy.act(larger), policy.act(shown), atol=2e-3)  # pixels are rounded twice
    with pytest.raises(LapaError, match='"wrist"'):
        policy.act({**shown, "images": {"front": shown["images"]["front"], "side": shown["images"]["wrist"]}})
    with pytest.raises(LapaError, match="state"):
        policy.act({key: value for key, value in shown.items() if key != "state"})
