"""Ablations: cells share what does not differ, run once, resume, and arrive in JSON, table and picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from here import here
from PIL import Image

from lapa import cli
from lapa.contracts import LapaError
from lapa.experiments import ablation
from lapa.experiments.sweep import Row, slug
from lapa.recipe import override, preset


def test_ablations_share_what_does_not_differ(tmp_path: Path) -> None:
    codes = ablation.plan(ablation.AblationSettings("codes", seeds=2), tmp_path).steps
    assert len(codes) == 5 * 2 * 5
    assert next(iter(codes)) == "c_4/seed0/laq"
    assert "laq.codebook_size=64" in codes["c_64/seed1/latent"].command
    policy = ablation.plan(ablation.AblationSettings("policy", seeds=1), tmp_path).steps
    assert len(policy) == 2 + 3 + 3 * 5, "one LAQ and its labels for all sizes, and weights for three of them"
    assert not any("backbone_options" in word for word in policy["laq/seed0/laq"].command)
    small = policy["width_32_depth_2/seed0/latent"]
    assert small.needs == ("laq/seed0/labels", "ground/width32_depth2")
    folder = tmp_path / "ground/width32_depth2"
    assert f'policy.backbone_options={{"width":32,"depth":2,"weights":"{folder}"}}' in small.command
    assert policy["ground/width32_depth2"].command[-2:] == ("--out", str(folder))
    videos = ablation.plan(ablation.AblationSettings("videos", seeds=1, videos=1000), tmp_path).steps
    told = [word for step in videos.values() for word in step.command if word.startswith("tabletop:")]
    assert {spec.split(",")[1] for spec in told} == {f"episodes={n}" for n in (10, 30, 100, 300, 1000, 20)}
    compute = ablation.plan(ablation.AblationSettings("compute", seeds=1), tmp_path).steps
    assert len(compute) == 2 + 1 + 10 * 3, "one set of labels for each method"
    assert compute["actionvla_125_steps/seed0/latent"].needs == ("truth/seed0/labels",)
    assert "ground_truth" in compute["truth/seed0/labels"].command
    for row in (row for rows in ablation.ABLATIONS.values() for row in rows):
        changed = [override(preset("laptop"), option) != preset("laptop") for option in (*row.settings, *row.policy)]
        assert all(changed) or row.name in (
            "|C| 16",
            "s 1",
            "width 128, depth 3",
            "0.2 s",
            "LAPA: 2,000 steps",
            "ActionVLA: 2,000 steps",
        ), "those are the preset's own"
    with pytest.raises(LapaError, match="seed"):
        ablation.AblationSettings("codes", seeds=0)


def test_an_ablation_with_the_same_codes_shows_success_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(ablation, "dots", lambda rows, panels, *_: drawn.extend(panel.title for panel in panels))
    cells = [{"row": f"LAPA: {n} steps", "success": n / 1000, "seconds": n / 10, "seconds_of_stage_1": 200.0,
              "action_r2": 0.9, "error_over_copy": 0.4} for n in (125, 250)]  # fmt: skip
    for name in ("policy", "videos"):
        ablation.picture(ablation.AblationSettings(name), cells, tmp_path / "x.png")
    alone = ["success on test scenes"]  # the clock of a machine that does other work is no figure to draw
    assert drawn[:2] == [*alone, *alone]
    assert len(drawn) == 4
    ablation.picture(ablation.AblationSettings("compute"), cells, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size[0] > 600


@pytest.mark.slow
def test_an_ablation_runs_resumes_and_is_drawn(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here(monkeypatch)
    rows = (Row("small", ("laq.codebook_size=4",)), Row("few videos", share=0.2),
            Row("true actions", method="actionvla"))  # fmt: skip
    monkeypatch.setitem(ablation.ABLATIONS, "codes", rows)
    short = [w for stage in ("quantize", "pretrain", "finetune") for w in ("--set", f"{stage}.steps=2")]
    words = ["ablate", "codes", *small, *short, "--seeds", "1", "--videos", "100", "--labels", "2", "--episodes", "5"]
    cli.main([*words, "--out", str(tmp_path)])
    written = json.loads((tmp_path / "results.json").read_text())
    assert [run["row"] for run in written["cells"]] == ["small", "few videos", "true actions"]
    assert [("action_r2" in run, run["samples"]) for run in written["cells"]] == [(True, 16), (True, 16), (False, 16)]
    for run in written["cells"]:
        score = json.loads((tmp_path / slug(run["row"]) / "seed0/eval/results.json").read_text())
        assert run["success"] == score["success"]
        assert score["seed"] == 0
        assert not score["validation"]
    assert (tmp_path / "ablation.png").exists()
    before = (tmp_path / "small/seed0/eval/results.json").stat().st_mtime_ns
    cli.main([*words, "--out", str(tmp_path)])
    assert (tmp_path / "small/seed0/eval/results.json").stat().st_mtime_ns == before
    assert "few videos" in capsys.readouterr().out
    with pytest.raises(LapaError, match="other settings"):
        ablation.run_ablation(ablation.AblationSettings("videos"), tmp_path)
