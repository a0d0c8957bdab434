"""Studies: cells are run once, resume, and their figures arrive unchanged in JSON, table and picture."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
from here import Here, here, light
from PIL import Image

from lapa import cli
from lapa.contracts import LapaError
from lapa.experiments.schedule import PlanStep, run
from lapa.experiments.study import STUDIES, Study, StudySettings, summary
from lapa.experiments.sweep import Row, cells, grid, slug
from lapa.recipe import override, preset

ROWS = (Row("NSVQ, |C| 4", ("laq.codebook_size=4",)), Row("NSVQ, |C| 8", ("laq.codebook_size=8",)))


@pytest.fixture
def little(small: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`lapa study quantizers` with two rows, two seeds and one step."""
    monkeypatch.setitem(STUDIES, "quantizers", Study("two rows", ROWS, seeds=2, steps=1))
    data = ("--dataset", "tabletop:sim,episodes=8,seed=8", "--set", "hold_out=4")
    options = [o for o in small if o != "--set" and o.startswith(("laq.", "quantize.")) and "codebook" not in o]
    options.append("starts=[]")  # which of several was chosen is lost with the config.json of a finished cell

    def command(out: Path, *more: str) -> None:
        settings = [part for option in options for part in ("--set", option)]
        cli.main(["study", "quantizers", *data, *settings, "--workers", "2", "--out", str(out), *more])

    return command


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Here:
    """What was run."""
    return here(monkeypatch)


@pytest.mark.slow
def test_a_study_runs_resumes_and_tells_what_its_cells_say(
    little: Callable[..., None], plan: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, started = tmp_path / "study", plan.started
    little(out)
    assert plan.asked == {"workers": 2, "keep_going": True}
    assert started == ["nsvq_c_4/seed0", "nsvq_c_8/seed0", "nsvq_c_4/seed1", "nsvq_c_8/seed1"]
    results = json.loads((out / "results.json").read_text())
    assert len(results["cells"]) == 4
    for cell in results["cells"]:
        made = json.loads((out / slug(cell["row"]) / f"seed{cell['seed']}" / "config.json").read_text())
        assert cell["results"] == made["results"]
        assert "held-out episode" in made["results"]["watched_on"]
        assert made["provenance"]["command"].startswith(cell["command"])
        assert made["recipe"]["quantize"]["steps"] == 1
        assert made["model"]["codebook_size"] == cell["codebook_size"] == int(cell["row"][-1])
    errors = [c["results"]["error_over_copy"] for c in results["cells"] if c["row"] == ROWS[0].name]
    figure = results["rows"][ROWS[0].name]["error_over_copy"]
    assert figure == {"mean": pytest.approx(sum(errors) / 2), "low": min(errors), "high": max(errors)}
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert len({line.count("|") - line.count("\\|") for line in table.splitlines()}) == 1, "as many cells in every line"
    assert len(table.splitlines()) == 4
    assert f"{figure['mean']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})" in table
    with Image.open(out / "study.png") as image:
        assert image.size[0] > 600

    # Again: nothing. A lost cell: that one. Elsewhere with these results: nothing. More seeds: those.
    started.clear()
    little(out)
    assert not started
    (out / "nsvq_c_8/seed1/config.json").unlink()
    little(out)
    assert started == ["nsvq_c_8/seed1"], "goes on from its checkpoint"
    assert json.loads((out / "results.json").read_text())["rows"] == results["rows"], "and ends with the same figures"
    started.clear()
    little(tmp_path / "later", "--results", str(out / "results.json"))
    assert not started
    assert json.loads((tmp_path / "later/results.json").read_text())["rows"] == results["rows"]

    # Some rows only: nothing else starts, what is there is shown all the same.
    little(tmp_path / "some", "--only", "|C| 8", "--results", str(out / "results.json"), "--seeds", "3")
    assert started == ["nsvq_c_8/seed2"]
    some = json.loads((tmp_path / "some/results.json").read_text())
    assert {name: row["seeds"] for name, row in some["rows"].items()} == {
        "NSVQ, |C| 4": [0, 1], "NSVQ, |C| 8": [0, 1, 2],
    }  # fmt: skip
    started.clear()

    # Other settings into the same folder would mix two studies.
    with pytest.raises(SystemExit):
        little(out, "--steps", "4")
    assert f"{out}" in capsys.readouterr().err.replace("\n", "")
    assert not started


def test_a_failed_cell_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    light(monkeypatch)

    def step(name: str, domain: str, needs: tuple[str, ...] = ()) -> PlanStep:
        out = tmp_path / name
        data = ("collect", "--dataset", f"tabletop:{domain},episodes=1", "--out", str(out))
        return PlanStep(name, data, out, out / "meta/info.json", needs)

    done: list[dict[str, float]] = []
    steps = [step("bad", "nosuch"), step("lost", "sim", ("bad",)), step("more", "sim", ("lost",)), step("good", "sim")]
    with pytest.raises(LapaError, match="Step bad "):
        run(steps, tmp_path, workers=1, after=lambda times: done.append(dict(times)), keep_going=True)
    assert [set(times) for times in done] == [{"bad", "good"}]
    assert not (tmp_path / "lost").exists()


def test_every_row_is_a_recipe() -> None:
    """The settings of each row exist, and rows of one study do not share a folder."""
    for name, each in STUDIES.items():
        assert len({slug(r.name) for r in each.rows}) == len(each.rows), name
        for r in each.rows:
            recipe = preset("laptop")
            for setting in r.settings:
                recipe = override(recipe, setting)
            recipe.laq.build()


def test_rows_that_lack_what_they_need_are_left_out() -> None:
    def rows(*options: str) -> set[str]:
        return {row.name for row in StudySettings("options", ("tabletop:sim",), 1, 1, options).rows()}

    everything = {r.name for r in STUDIES["options"].rows}
    assert everything - rows() == {r.name for r in STUDIES["options"].rows if r.needs}
    assert rows("--set", "objectives.features_of=vit") == everything


def test_the_command_line_knows_every_study() -> None:
    annotation = typing.get_type_hints(cli.study)["name"]
    assert set(typing.get_args(annotation)) == {*STUDIES, "latents", "camera", "transplant"}


def test_a_grid_is_every_combination() -> None:
    rows = grid((Row("a", ("1",)), Row("b", ("2",))), (Row("x", ("3",)), Row("y")))
    assert [(r.name, r.settings) for r in rows] == [
        ("a, x", ("1", "3")), ("a, y", ("1",)), ("b, x", ("2", "3")), ("b, y", ("2",)),
    ]  # fmt: skip


def test_the_first_seed_of_every_row_comes_first() -> None:
    assert [cell.name for cell in cells(ROWS, 2)] == [
        "nsvq_c_4/seed0", "nsvq_c_8/seed0", "nsvq_c_4/seed1", "nsvq_c_8/seed1",
    ]  # fmt: skip


def test_a_collapse_is_counted_at_the_worst_position() -> None:
    def cell(*perplexity: float) -> dict:
        return {"row": "r", "seed": 0, "codebook_size": 8, "results": {"perplexity": list(perplexity)}}

    found = summary([cell(7.9, 8.0), cell(7.9, 1.9), cell(2.1, 7.0)])["r"]
    assert found["collapsed"] == 1
    assert found["perplexity_share"] == {"mean": pytest.approx((7.9 + 1.9 + 2.1) / 24), "low": 1.9 / 8, "high": 7.9 / 8}
    assert found["perplexity"] == [pytest.approx((7.9 + 7.9 + 2.1) / 3), pytest.approx((8 + 1.9 + 7) / 3)]


@pytest.mark.parametrize("change", [{"seeds": 0}, {"steps": 0}, {"study": "quantisers"}, {"only": ("VQGAN",)}])
def test_settings_refused(change: dict) -> None:
    with pytest.raises(LapaError):
        StudySettings(**{"study": "quantizers", "datasets": ("tabletop:sim",), "seeds": 1, "steps": 1, **change})
