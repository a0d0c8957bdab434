"""`lapa inspect`: at a dataset, at runs while they train and afterwards, at what a LAQ makes of any dataset."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lapa import cli
from lapa.analysis.inspect import _commonest, inspect_dataset, inspect_runs
from lapa.analysis.reading import note_if_trained_on
from lapa.artefacts.folder import write_json
from lapa.contracts import LapaError
from lapa.data.pack import pack
from lapa.data.spec import open_dataset
from lapa.plots.curves import curves
from lapa.recipe import Recipe
from lapa.stage1_latent_actions import fit_laq
from lapa.training.logbook import Logbook, read_metrics

OTHER = "tabletop:hand,episodes=8,seed=9"  # not what the LAQ was trained on


@pytest.fixture(scope="module")
def laq(robot: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LAQ of four steps."""
    out = tmp_path_factory.mktemp("runs") / "laq"
    fit_laq(pack([f"lerobot:{robot}"], tiny.laq.image_size, quiet=True), tiny, out, 0)
    return out


def unfinished(out: Path, tiny: Recipe, steps: int = 3) -> Path:
    """A run that is still training."""
    write_json(out / "run.json", {"kind": "laq", "seed": 5, "recipe": tiny.to_json(), "dataset": ["tabletop:sim"]})
    with Logbook(out) as book:
        for step in range(1, steps + 1):
            book.write(step, {"lr": 1e-3, "loss": math.exp(-step), "codes_replaced": 2.0, "perplexity_0": 2.0 * step})
    return out


def picture(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_dataset(tmp_path: Path) -> None:
    """Its figures are those of the episodes themselves."""
    made = inspect_dataset([OTHER], tmp_path, 32)
    assert {p.name for p in tmp_path.iterdir()} == {"contact_sheet.png", "inspect.json"}
    assert json.loads((tmp_path / "inspect.json").read_text()) == json.loads(json.dumps(made))
    about, episodes = made["dataset"], list(open_dataset(OTHER).episodes())
    seconds = [len(e.frames) / e.fps for e in episodes]
    assert (about["episodes"], about["frames"]) == (8, sum(len(e.frames) for e in episodes))
    assert about["hours"] == pytest.approx(sum(seconds) / 3600)
    assert about["seconds"] == pytest.approx(
        {"shortest": min(seconds), "median": float(np.median(seconds)), "longest": max(seconds)}
    )
    assert about["instructions"]["distinct"] == len({e.instruction for e in episodes})
    assert about["instructions"]["missing"] == 0
    actions = np.concatenate([e.actions for e in episodes])
    assert [a["name"] for a in about["actions"]] == ["dx", "dy"]
    assert [a["max"] for a in about["actions"]] == pytest.approx(actions.max(0))


def test_a_dataset_by_itself_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["inspect", OTHER, "--out", str(tmp_path), "--image-size", "32"])
    assert json.loads((tmp_path / "inspect.json").read_text())["dataset"]["dataset"] == OTHER
    with pytest.raises(SystemExit):
        cli.main(["inspect", "tabeltop:hand"])
    assert '"tabletop"' in capsys.readouterr().err


def test_every_clip_of_a_phone_has_its_own_rate() -> None:
    counts = {f"{29 + i / 100:g}": 1 for i in range(90)} | {"30": 5}
    assert _commonest(counts) == "30 (5 episodes), 29 (1 episode), 29.01 (1 episode), 29.02 (1 episode), " + (
        "87 others (inspect.json)"
    )


def test_a_laq_on_another_dataset(laq: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_runs([laq], [OTHER], tmp_path)
    names = ("contact_sheet", "curves", "gallery", "map", "reconstructions")
    assert {p.name for p in tmp_path.iterdir()} == {"inspect.json", *(f"{name}.png" for name in names)}
    for name in names:
        assert picture(tmp_path / f"{name}.png").std() > 5, f"{name} is blank"
    written = json.loads((tmp_path / "inspect.json").read_text())
    run = written["runs"]["laq"]
    assert (run["kind"], run["finished"], run["step"]) == ("laq", True, 4)
    figures = run["on_dataset"]
    assert {"error_over_copy", "action_r2", "displacement_r2", "position_r2"} <= set(figures)
    assert len(figures["perplexity"]) == len(figures["codes_in_use"]) == 1
    assert 1 <= figures["perplexity"][0] <= figures["codes_in_use"][0] <= 8
    said = capsys.readouterr().out
    assert f"{figures['action_r2']:.3f}" in said
    assert f"{figures['codes_in_use'][0]} of 8" in said
    assert f" {figures['dimensions']} dimensions" in said


def test_video_without_actions(laq: Path, clips: Path, tmp_path: Path) -> None:
    made = inspect_runs([laq], [f"video_folder:{clips}"], tmp_path)
    assert made["dataset"]["actions"] is None
    figures = made["runs"]["laq"]["on_dataset"]
    assert figures["error_over_copy"] > 0
    assert not any("_r2" in name for name in figures)


def test_another_window(laq: Path, tmp_path: Path) -> None:
    look = [inspect_runs([laq], [OTHER], tmp_path, window=w)["runs"]["laq"]["on_dataset"] for w in (None, 0.6)]
    assert [figures["window_seconds"] for figures in look] == [0.2, 0.6]
    assert look[0]["pairs"] > look[1]["pairs"], "longer windows fit less often"
    with pytest.raises(LapaError, match="window must be above 0"):
        inspect_runs([laq], [OTHER], tmp_path, window=0)


def test_a_run_that_is_still_training(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = unfinished(tmp_path / "run", tiny)
    made = inspect_runs([run], [], tmp_path / "look")["runs"]["run"]
    assert (made["finished"], made["step"], made["steps"]) == (False, 3, 4)
    assert made["newest"]["perplexity_0"] == 6.0
    assert {p.name for p in (tmp_path / "look").iterdir()} == {"curves.png", "inspect.json"}
    assert "step 3 of 4 (75%)" in capsys.readouterr().out
    with pytest.raises(LapaError, match=r"--dataset .*run\b"):
        inspect_runs([run], [OTHER], tmp_path / "look")


def test_runs_side_by_side(laq: Path, tiny: Recipe, tmp_path: Path) -> None:
    """Each run has a line in the curves, and each LAQ its own pictures, also where two folders have one name."""
    runs = [unfinished(tmp_path / "a" / "laq", tiny), laq, unfinished(tmp_path / "c", tiny, steps=2)]
    made = inspect_runs(runs, [OTHER], tmp_path / "look")
    assert list(made["runs"]) == ["a/laq", f"{laq.parent.name}/laq", f"{tmp_path.name}/c"]
    assert [("on_dataset" in run) for run in made["runs"].values()] == [False, True, False]
    with pytest.raises(LapaError, match="given twice"):
        inspect_runs([laq, laq], [], tmp_path / "look")


def test_an_artefact_without_a_log(laq: Path, tmp_path: Path) -> None:
    """As `lapa convert` makes it: config.json and weights, nothing else."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((laq / name).read_bytes())
    made = inspect_runs([bare], [], tmp_path / "look")["runs"]["bare"]
    assert (made["finished"], made["step"], made["newest"]) == (True, 0, {})
    assert not (tmp_path / "look/curves.png").exists()
    inspect_runs([bare], [OTHER], tmp_path / "look")
    assert (tmp_path / "look" / "gallery.png").exists()


def test_a_judge_that_was_the_teacher(
    laq: Path, robot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect_runs([laq], [f"lerobot:{robot}"], tmp_path)
    assert f" lerobot:{robot}" in capsys.readouterr().out
    note_if_trained_on(OTHER, f"tabletop:sim {OTHER}")
    assert " seed" in capsys.readouterr().out, "where there is another one to ask for"
    note_if_trained_on("tabletop:hand", OTHER)
    assert not capsys.readouterr().out


def test_a_name_is_no_emoji(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ ":robot:" is the end of a name and a colon, not a picture."""
    (tmp_path / "robot").mkdir()
    (tmp_path / "robot/clip_0.mp4").write_bytes((clips / "clip_0.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    inspect_dataset(["video_folder:robot"], tmp_path / "look:robot:", 24)
    said = capsys.readouterr()
    assert "packed video_folder:robot: 1 episode, " in said.err
    assert "look:robot:/" in said.out.replace("\n", "")


def test_what_is_not_a_run(tmp_path: Path, tiny: Recipe) -> None:
    with pytest.raises(LapaError, match="nowhere"):
        inspect_runs([tmp_path / "nowhere"], [], tmp_path / "look")
    unfinished(tmp_path / "runs" / "a", tiny)
    with pytest.raises(LapaError, match=r"runs .*runs/a\."):
        inspect_runs([tmp_path / "runs"], [], tmp_path / "look")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(LapaError, match=r"other\b.*config\.json"):
        inspect_runs([tmp_path / "other"], [], tmp_path / "look")


def test_curves_show_what_is_logged(tiny: Recipe, tmp_path: Path) -> None:
    """More is drawn where there is more to draw, and nothing that is logged is left out."""
    logged = read_metrics(unfinished(tmp_path / "run", tiny))
    curves({"run": logged}, tmp_path / "all.png", "All")
    curves({"run": {"loss": logged["loss"]}}, tmp_path / "one.png", "One")
    unknown = {f"never_heard_of_{x}": ([1, 2], [3.0, 4.0]) for x in "abc"}
    curves({"run": {**logged, **unknown}}, tmp_path / "more.png", "More")
    one, all_, more = (picture(tmp_path / f"{name}.png") for name in ("one", "all", "more"))
    assert one.shape[1] < all_.shape[1]
    assert all_.shape[0] < more.shape[0], "figures of no known kind have panels of their own"
    with pytest.raises(LapaError, match=r"\brun\b"):
        curves({"run": {}}, tmp_path / "none.png", "None")
