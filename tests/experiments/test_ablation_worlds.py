"""Ablations on a benchmark of others: their rows, what they share, what is refused, what is told.

No simulator is needed for a plan, and a run is made up here."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lapa import cli
from lapa.contracts import LapaError
from lapa.experiments import ablation
from lapa.experiments.ablation import AblationSettings, plan, settings_of
from lapa.experiments.ablation_rows import ABLATIONS, AROUND, OWN
from lapa.experiments.compare import Plan
from lapa.experiments.schedule import PlanStep
from lapa.experiments.worlds import WORLDS, world_of
from lapa.recipe import overridden

FIVE = "metaworld:reach-v3+push-v3+pick-place-v3+door-open-v3+button-press-topdown-v3"
TASKS = FIVE.partition(":")[2].split("+")


def asked(name: str, *settings: str, benchmark: str = FIVE, seeds: int = 1, **more: Any) -> AblationSettings:
    amounts = (more.pop("videos", None), more.pop("labels", None), more.pop("episodes", None))
    return settings_of(name, benchmark, seeds, amounts, more.pop("preset", None), settings, **more)


def steps(*given: Any, **more: Any) -> dict[str, PlanStep]:
    return plan(asked(*given, **more), Path("out")).steps


def after(step: PlanStep, word: str) -> str:
    return step.command[step.command.index(word) + 1]


def datasets(step: PlanStep) -> list[str]:
    return [value for word, value in pairwise(step.command) if word == "--dataset"]


def everything_before(name: str, made: dict[str, PlanStep]) -> set[str]:
    return {name}.union(*(everything_before(need, made) for need in made[name].needs))


def names(name: str, *settings: str, **more: Any) -> list[str]:
    return [row.name.removesuffix(OWN) for row in asked(name, *settings, **more).rows]


# --- rows


def test_rows_stand_around_what_the_recipe_has() -> None:
    assert set(AROUND) == set(ABLATIONS)
    assert names("codes") == [f"|C| {n}" for n in (8, 16, 32, 64, 128)]
    assert names("codes", "laq.codebook_size=48")[3:5] == ["|C| 48", "|C| 64"]
    assert names("positions") == ["s 1", "s 2", "s 4", "s 3, |C| 16", "s 4, |C| 8"]
    assert names("positions", "laq.codebook_size=48") == ["s 1", "s 2", "s 4"], "no whole number of bits"
    assert names("window") == ["1 x 0.2 s", "2 x 0.1 s", "4 x 0.05 s"]
    assert names("videos") == [f"{n} videos a task" for n in (2, 5, 15, 50)]
    assert names("videos", videos=4) == ["1 video a task", "4 videos a task"]
    assert names("policy") == ["width 48, depth 1", "width 96, depth 2", "width 192, depth 2", "width 384, depth 4"]
    assert names("compute")[:6] == ["Scratch", *(f"LAPA: {n} steps" for n in ("200", "400", "800", "1,600", "3,000"))]
    assert names("compute", "pretrain.steps=30")[6:] == [f"ActionVLA: {n} steps" for n in (2, 4, 8, 16, 30)]


@pytest.mark.parametrize("name", sorted(AROUND))
def test_each_row_changes_the_recipe_but_one(name: str) -> None:
    """That one is the recipe's own, and has a folder that all ablations share."""
    of = asked(name)
    own = [row for row in of.rows if row.folder]
    assert [(row.settings, row.policy, row.share, row.folder) for row in own] == [((), (), 1.0, "usual")]
    assert len({cell.name for cell in of.cells}) == len(of.rows)
    for row in of.rows:
        changed = overridden(of.recipe, (*row.settings, *row.policy)) != of.recipe
        assert changed or row.share < 1 or row.method or row in own


@pytest.mark.parametrize(
    "settings", [(), ("window=0.2", "latent_chunk=1"), ("window=0.1", "latent_chunk=4", "chunk=16")]
)
def test_windows_of_a_row_take_the_time_of_the_chunk(settings: tuple[str, ...]) -> None:
    of = asked("window", *settings)
    for row in of.rows:
        recipe = overridden(of.recipe, row.settings)
        assert recipe.window * recipe.latent_chunk == pytest.approx(of.recipe.window * of.recipe.latent_chunk)
        assert recipe.chunk == of.recipe.chunk


def test_sizes_keep_what_else_is_said_of_the_backbone() -> None:
    said = 'policy.backbone_options={"keypoints":32,"width":60}'
    of = asked("policy", said)
    assert names("policy", said)[1] == "width 60, depth 2"
    found = [overridden(of.recipe, row.policy).policy.backbone_options for row in of.rows]
    assert [options["keypoints"] for options in found] == [32] * 4
    assert [options["width"] for options in found] == [48, 60, 96, 384]


# --- steps


def test_data_are_made_once_a_seed_and_read_by_all() -> None:
    made = steps("codes", seeds=2)
    makes = {f"lerobot:{step.out}": name for name, step in made.items() if step.command[0] == "collect"}
    assert sorted(makes.values()) == sorted(
        f"seed{seed}/data/{kind}/{task}" for seed in (0, 1) for kind in ("home", "labels10") for task in TASKS
    )
    for name, step in made.items():
        assert step.command[0] in cli.COMMANDS
        before = everything_before(name, made)
        for spec in datasets(step):
            assert makes[spec.partition(",")[0]] in before, f"{name} reads {spec}"
    home = made["seed1/data/home/push-v3"]
    assert (after(home, "--episodes"), after(home, "--seed"), after(home, "--robot")) == ("50", "11", "metaworld")
    assert after(home, "--benchmark").startswith("metaworld:push-v3,camera=corner4")
    assert after(made["seed1/data/labels10/push-v3"], "--seed") == "12", "other scenes"
    few = steps("codes", labels=3)["usual/seed0/policy"]
    assert [spec.partition(",")[2] for spec in datasets(few)] == ["episodes=0-2"] * 5


def test_a_share_of_the_videos_has_all_tasks_alike() -> None:
    made = steps("videos", videos=20)
    for name, n in (("1_video_a_task", 1), ("2_videos_a_task", 2), ("6_videos_a_task", 6)):
        for step in ("laq", "labels", "latent"):
            told = datasets(made[f"{name}/seed0/{step}"])
            assert told == [f"lerobot:out/seed0/data/home/{task},episodes=0-{n - 1}" for task in TASKS]
    assert not any("," in spec for spec in datasets(made["usual/seed0/latent"]))
    assert len([step for step in made.values() if step.command[0] == "collect"]) == 10


def test_all_cells_have_the_same_tests() -> None:
    made = steps("window", seeds=2, benchmark="metaworld:reach-v3+push-v3,size=64")
    tests = [step for step in made.values() if step.command[0] == "evaluate"]
    assert {after(step, "--benchmark") for step in tests} == {
        "metaworld:reach-v3+push-v3,batch=25,camera=corner4,size=64,repeat=2"
    }
    assert {after(step, "--episodes") for step in tests} == {"40"}
    assert [after(step, "--seed") for step in tests] == ["0", "0", "0", "1", "1", "1"]


def test_a_row_has_its_settings_behind_those_of_the_recipe() -> None:
    made = steps("window", "finetune.steps=7")
    for stage in ("laq", "latent", "policy"):
        words = made[f"4_x_0.05_s/seed0/{stage}"].command
        assert [word for word in words if word.startswith(("window=", "latent_chunk="))] == [
            "window=0.1", "latent_chunk=2", "window=0.05", "latent_chunk=4"
        ]  # fmt: skip
        assert words.index("finetune.steps=7") > words.index("finetune.steps=1500")


def test_ablations_in_one_folder_share_what_does_not_differ() -> None:
    every = [steps(name) for name in AROUND]
    together: dict[str, PlanStep] = {}
    for made in every:
        for name, step in made.items():
            assert together.setdefault(name, step).command == step.command, name
    count = [step.command[0] for step in together.values()].count
    assert count("collect") == 10
    assert count("evaluate") == 4 + 4 + 2 + 3 + 3 + 10 + 1, "the recipe's own row once"
    assert count("quantize") == 4 + 4 + 2 + 3 + 1
    assert {"usual/seed0/eval", "laq/seed0/labels", "truth/seed0/labels"} <= together.keys()
    scratch = together["scratch/seed0/policy"]
    assert "--policy" not in scratch.command
    assert set(scratch.needs) == {f"seed0/data/labels10/{task}" for task in TASKS}
    assert together["actionvla_200_steps/seed0/latent"].needs[0] == "truth/seed0/labels"


def test_no_row_pays_for_the_first_look_at_all_frames() -> None:
    made = steps("compute")
    assert made["seen/seed0"].command[-5:-2] == ("--set", "pretrain.steps=1", "--resume")
    stage2 = [step for name, step in made.items() if name.endswith("/latent")]
    assert len(stage2) == 10
    assert all("seen/seed0" in step.needs for step in stage2)


# --- other methods than LAPA


def test_methods_in_one_folder_share_data_and_latent_actions() -> None:
    lapa, read = steps("videos"), steps("videos", method="read")
    shared = {name for name in lapa if read.get(name) == lapa[name]}
    assert {name.rpartition("/")[2] for name in lapa.keys() - shared} == {"labels", "latent", "policy", "eval"}
    assert {"laq/seed0/laq", "2_videos_a_task/seed0/laq", "seen/seed0"} <= shared
    few = read["read/2_videos_a_task/seed0/labels"]
    assert after(few, "--source") == "out/2_videos_a_task/seed0/laq"
    assert after(few, "--labelled") == "lerobot:out/seed0/data/labels10/reach-v3"
    assert steps("compute", method="read")["read/lapa_read_200_steps/seed0/latent"].needs[0] == "read/seed0/labels"
    assert read["read/usual/seed0/latent"].needs == ("read/seed0/labels", "seen/seed0")


def test_what_reads_no_video_is_fitted_once() -> None:
    made = steps("videos", method="vpt")
    assert [name for name, step in made.items() if step.command[0] == "fit"] == ["vpt/seed0/fit"]
    assert "vpt/2_videos_a_task/seed0/labels" in made
    assert "--videos" in made["vpt/usual/seed0/policy"].command


def test_stage_3_is_that_of_the_table() -> None:
    """It goes on learning stage 2's labels, but where the table does not."""
    made = steps("compute")
    kept = made["lapa_200_steps/seed0/policy"]
    assert after(kept, "--videos").startswith("lerobot:out/seed0/data/home/")
    assert after(kept, "--labels") == "out/laq/seed0/labels"
    assert after(made["actionvla_200_steps/seed0/policy"], "--labels") == "out/truth/seed0/labels"
    assert "--videos" not in steps("codes", "replay=0")["usual/seed0/policy"].command


def test_two_methods_are_told_apart(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = asked("compute", benchmark="metaworld:reach-v3+push-v3", method="read")
    names_of = [row.name.removesuffix(OWN) for row in of.rows]
    assert names_of[1] == "LAPA, read: 200 steps"
    assert names_of[-1] == "ActionVLA: 3,000 steps"
    monkeypatch.setitem(globals(), "TIMES", finish(of, made_up, dict.fromkeys(names_of, 0.4)))
    ablation.run_ablation(of, made_up)
    cells = json.loads((made_up / "compute_read/results.json").read_text())["cells"]
    assert ["r2_of_true_actions" in cell for cell in (cells[0], cells[1], cells[-1])] == [False, True, True]
    assert [("action_r2" in cell) for cell in (cells[1], cells[-1])] == [True, False]
    assert "labels' R²" in (made_up / "compute_read/table.md").read_text()
    with Image.open(made_up / "compute_read/ablation.png") as image:
        assert image.size[0] > 600


# --- refused


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"benchmark": "aloha:insertion"}, "aloha:insertion"),
        ({"benchmark": "metawold"}, '"metaworld"'),
        ({"benchmark": "metaworld:pusch-v3"}, "push-v3"),
        ({"benchmark": "tabletop:sim"}, "tabletop:sim"),
        ({"name": "videos", "videos": 1}, "--videos 1"),
        ({"labels": 0}, "label"),
        ({"method": "scratch", "name": "videos"}, "scratch"),
        ({"method": "actionvla", "name": "videos"}, "actionvla"),
        ({"method": "unipi", "name": "videos"}, "for lapa, read, track, vpt"),
        ({"method": "reed", "name": "videos"}, '"read"'),
        ({"method": "read"}, "lapa ablate codes --method read"),
        ({"name": "window", "settings": ("chunk=1", "latent_chunk=1")}, "chunk=1"),
        ({"name": "policy", "preset": "laptop"}, "policy.backbone=tiny"),
        ({"name": "policy", "settings": ('policy.backbone_options={"language":"smollm2"}',)}, "smollm2"),
        ({"name": "policy", "settings": ('policy.backbone_options={"heads":7,"width":56}',)}, "heads 7"),
    ],
)
def test_what_is_not_there_is_refused_at_once(given: dict[str, Any], says: str) -> None:
    name, settings = given.pop("name", "codes"), given.pop("settings", ())
    with pytest.raises(LapaError) as error:
        asked(name, *settings, **given)
    assert says in str(error.value)


def test_tabletop_is_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders of before go on."""
    of = settings_of("codes", "tabletop", 2, (None, None, None), None, ())
    assert of == AblationSettings("codes", 2, options=("--preset", "laptop"))
    before = {"name": "codes", "seeds": 2, "videos": 6000, "labels": 20, "episodes": 500,
              "options": ["--preset", "laptop"]}  # fmt: skip
    (tmp_path / "ablation.json").write_text(json.dumps(before))
    cli.main(["ablate", "codes", "--seeds", "2", "--dry-run", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "collect" not in printed
    assert printed.count("run   lapa evaluate") == 10
    with pytest.raises(LapaError, match="seeds 2, here 1"):
        ablation.run_ablation(AblationSettings("codes", 1, options=("--preset", "laptop")), tmp_path, dry_run=True)


# --- what is told


def finish(of: AblationSettings, out: Path, wins: dict[str, float]) -> dict[str, float]:
    """Write what the steps of all cells would, and their seconds."""
    times = dict.fromkeys(plan(of, out).steps, 10.0)
    for cell in of.cells:
        share = wins[cell.row.name.removesuffix(OWN)] - 0.1 * cell.seed
        score = {"success": share, "interval": [0, 1], "episodes": 40, "families": {
            "reach-v3": {"success": share}, "push-v3": {"success": 0.0}}}  # fmt: skip
        policy = {"recipe": {"pretrain": {"steps": 3000, "batch_size": 128}},
                  "results": {"accuracy": 0.8, "watched/accuracy": 0.6}}  # fmt: skip
        laq = {"results": {"error_over_copy": 0.4, "action_r2": 0.86, "action_mean_r2": 0.8, "perplexity": [40.0, 30.0],
                           "watched_on": "pairs"}}  # fmt: skip
        labels = {"r2_of_true_actions": 0.75}
        made = {f"{cell.name}/eval/results.json": score}
        method, start = of.method_of(cell.row), ablation._start(Plan(out), of, cell)
        if method.source:
            made[f"{cell.name}/latent/config.json"] = policy
            if method.fits == "laq":
                made[f"{start.fitted}/config.json"] = laq
            if method.name != "lapa":
                made[f"{start.labels}/manifest.json"] = labels
        for name, content in made.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(json.dumps(content))
        if method.source:
            metrics = out / cell.name / "latent/metrics.jsonl"
            metrics.write_text('{"step": 30}\n{"step": 1200, "loss": 1}\n')
    return times


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of ablations whose steps nobody runs."""
    monkeypatch.setattr(ablation, "run_cells", lambda planned, out, workers, keep: keep(TIMES))
    monkeypatch.setattr(type(world_of("metaworld:reach-v3+push-v3")), "check", lambda *_: None)
    monkeypatch.setenv("LAPA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "out"


TIMES: dict[str, float] = {}


def test_what_was_found_is_told_for_each_ablation(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = {"benchmark": "metaworld:reach-v3+push-v3", "episodes": 20}
    of = asked("window", seeds=2, **two)
    monkeypatch.setitem(
        globals(), "TIMES", finish(of, made_up, dict(zip(names("window"), (0.5, 0.7, 0.6), strict=True)))
    )
    found = ablation.run_ablation(of, made_up)
    assert found is not None
    written = json.loads((made_up / "window/results.json").read_text())
    assert len(written["cells"]) == 6
    first = written["cells"][1]
    assert (first["row"], first["success"], first["held_out_accuracy"]) == (f"2 x 0.1 s{OWN}", 0.7, 0.6)
    assert (first["action_mean_r2"], "position_r2" in first) == (0.8, False)
    assert first["samples"] == 1200 * 128, "training ended early"
    assert (first["seconds"], first["seconds_of_stage_1"]) == (10, 30), "LAQ, labels, the first look at all frames"
    table = (made_up / "window/table.md").read_text()
    assert "65.0% (60.0% to 70.0%) | 54 to 75" in table, "52 of 80"
    assert "position" not in table
    assert table.count("reach-v3") == table.count("push-v3") == 1
    with Image.open(made_up / "window/ablation.png") as image:
        assert image.size[0] > 600
    compute = asked("compute", **two)
    monkeypatch.setitem(globals(), "TIMES", finish(compute, made_up, dict.fromkeys(names("compute"), 0.4)))
    ablation.run_ablation(compute, made_up)
    cells = json.loads((made_up / "compute/results.json").read_text())["cells"]
    assert "samples" not in cells[0], "Scratch"
    assert cells[5]["row"] == f"LAPA: 3,000 steps{OWN}"
    assert [("action_r2" in cell, cell["seconds_of_stage_1"]) for cell in cells[5:7]] == [(True, 30), (False, 20)]
    assert (made_up / "compute/ablation.png").exists()
    assert (made_up / "window/table.md").read_text() == table, "each has a folder"
    with pytest.raises(LapaError, match="labels 10, here 3"):
        ablation.run_ablation(asked("codes", labels=3, **two), made_up)


def test_what_is_not_known_of_codes_has_no_column(tmp_path: Path) -> None:
    cells = [{"row": name, "success": 0.5, "episodes": 10, "error_over_copy": 0.4, "perplexity": [3.0], "samples": 8,
              "seconds": None, "seconds_of_stage_1": 0} for name in ("|C| 8", "|C| 16")]  # fmt: skip
    told = ablation.table(cells)
    assert "R²" not in told
    assert "\\|C\\| 8" in told
    ablation.picture(asked("codes"), cells, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()


@pytest.mark.parametrize("world", sorted(WORLDS))
def test_every_world_has_rows_and_makes_its_data(world: str) -> None:
    for name in AROUND:
        of = asked(name, benchmark=world)
        assert len(of.rows) > 1
        made = plan(of, Path("out")).steps
        makes = {f"lerobot:{step.out}": step.name for step in made.values() if step.command[0] == "collect"}
        latent = next(step for step in made if step.endswith("/latent"))
        assert {makes[spec.partition(",")[0]] for spec in datasets(made[latent])} <= everything_before(latent, made)
        assert of.test[0].startswith(f"{world}:")
