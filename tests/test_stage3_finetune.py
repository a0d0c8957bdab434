"""Stage 3 with a fifth of the labelled episodes held out first: what is printed, kept and chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from lapa import stage3_finetune as stage3
from lapa.artefacts.folder import load_artefact
from lapa.data.pack import Packed, pack
from lapa.measures.offline import POLICY, keys_of, nearest
from lapa.recipe import Recipe
from lapa.stage3_finetune import HELD_OUT, finetune


@pytest.fixture(scope="module")
def robot(tiny: Recipe) -> Packed:
    return pack(["tabletop:sim,episodes=10,seed=4"], 24, quiet=True)


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    return replace(tiny, head="new", clusters=4)


def test_the_policy_that_is_kept_is_that_of_all_episodes(
    robot: Packed, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = finetune(robot, None, recipe, tmp_path / "held", 0)
    said = capsys.readouterr().out
    finetune(robot, None, recipe, tmp_path / "all", 0, rehearse=False)
    held, every = (load_file(tmp_path / name / "model.safetensors") for name in ("held", "all"))
    assert all(held[name].equal(every[name]) for name in every)
    written = json.loads((tmp_path / "held" / HELD_OUT).read_text())
    assert results["held_out_error"] == written["rows"][POLICY]["error"]
    assert written["episodes"] == 2
    assert "2 of 10 labelled episodes" in said
    assert all(f"{row:<15}" in said for row in written["rows"])
    assert (tmp_path / "held/pictures/held_out.png").exists()
    assert not (tmp_path / "held/held_out").exists()
    config = load_artefact(tmp_path / "held", "policy").config
    assert set(config["labelled"]["trained"]) == set(keys_of(robot))
    assert written["chosen"] == {}


def test_what_is_held_out_is_not_learnt_from(
    robot: Packed, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[set[str]] = []
    judged: list[set[str]] = []
    learn, measure = stage3._learn, stage3.offline

    def learning(packed: Packed, *args: Any) -> Any:
        learnt.append(set(packed.ids))
        return learn(packed, *args)

    def measuring(policy: Any, packed: Packed, episodes: Any, fit: Any, *args: Any) -> Any:
        judged.append({packed.ids[e] for e in episodes})
        assert not judged[-1] & {fit[0].ids[e] for e in fit[1]}
        return measure(policy, packed, episodes, fit, *args)

    monkeypatch.setattr(stage3, "_learn", learning)
    monkeypatch.setattr(stage3, "offline", measuring)
    finetune(robot, None, recipe, tmp_path / "policy", 0)
    assert judged == [{robot.ids[0], robot.ids[5]}]
    assert learnt == [set(robot.ids) - judged[0], set(robot.ids)]


def test_a_killed_rehearsal_goes_on(
    robot: Packed, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(robot, None, recipe, tmp_path / "whole", 0)
    fit = stage3.fit

    def killed(*args: Any, **options: Any) -> Any:
        fit(*args, until=2, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage3, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(robot, None, recipe, tmp_path / "parts", 0)
    assert (tmp_path / "parts/held_out/checkpoints").exists()
    finetune(robot, None, recipe, tmp_path / "parts", 0)
    assert (tmp_path / "parts" / HELD_OUT).read_text() == (tmp_path / "whole" / HELD_OUT).read_text()
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_fewer_than_five_episodes_hold_none_out(
    robot: Packed, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = finetune(robot.subset(np.arange(4)), None, recipe, tmp_path, 0)
    assert "4 labelled episodes: too few" in capsys.readouterr().out
    assert "held_out_error" not in results
    assert not (tmp_path / HELD_OUT).exists()


@pytest.mark.parametrize("changes", [{}, {"decoding": "centre"}])
def test_decoding_is_chosen_where_nobody_chose(
    changes: dict[str, Any], robot: Packed, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(robot, None, replace(recipe, choose_decoding=True), tmp_path, 0, changes=changes)
    written = json.loads((tmp_path / HELD_OUT).read_text())
    kept = load_artefact(tmp_path, "policy").config["model"]["decoding"]
    if changes:
        assert kept == "centre"
        assert written["chosen"] == {}
        return
    tried = written["decoding"]
    assert set(tried) == {"expectation", "norm_preserving", "centre"}
    assert kept == written["chosen"]["decoding"] == nearest(tried)
    assert f"decoding={kept} is chosen" in capsys.readouterr().out


def test_short_steps_are_not_chosen_for_a_low_error() -> None:
    rows = {
        "expectation": {"error": 0.5, "step": 0.3},
        "norm_preserving": {"error": 0.6, "step": 1.0},
        "centre": {"error": 0.7, "step": 1.1},
    }
    assert nearest(rows) == "norm_preserving"
    assert nearest({name: {**row, "step": 0.2 + row["error"] / 10} for name, row in rows.items()}) == "centre"
    assert nearest({name: {**row, "step": None} for name, row in rows.items()}) == "expectation"
