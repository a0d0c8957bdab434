"""The paper's table on a benchmark of others: its data, what cells share, what is refused, how it is told. No simulator
is needed for a plan; tests/worlds runs one."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lapa import cli, plugins
from lapa.benchmarks import _language_table, libero, metaworld
from lapa.contracts import LapaError
from lapa.experiments.demo_real import RealDemoSettings, demo_real_plan
from lapa.experiments.paper_cells import Asked, Common, TableCell, TableRow, cells, common_of, parse
from lapa.experiments.paper_markdown import markdown
from lapa.experiments.paper_scores import build
from lapa.experiments.paper_table import described, read_results, recipe_of, run_paper, steps_of
from lapa.experiments.schedule import PlanStep
from lapa.experiments.worlds import FEW, WORLDS, Demonstrated, world_of
from lapa.plots.budgets import budget_curves

FIVE = "metaworld:reach-v3+push-v3+pick-place-v3+door-open-v3+button-press-topdown-v3"
THREE = ("scratch", "vpt", "lapa")


def table(settings: str = "all", rows: tuple[str, ...] = ("all",), seeds: int = 1, benchmark: str = FIVE,
          other: str = "", **more: Any) -> Asked:  # fmt: skip
    common = common_of(benchmark, other, more.pop("videos", None), more.pop("episodes", None),
                       more.pop("validation", None), more.pop("preset", None), more.pop("set", ()))  # fmt: skip
    return parse(settings.split(","), rows, seeds, more.pop("budgets", ()), more.pop("only", ()), common, **more)


def plan(asked: Asked, out: Path = Path("out")) -> dict[str, PlanStep]:
    return {step.name: step for step in steps_of(asked, out, {})}


def datasets(step: PlanStep) -> list[str]:
    return [value for word, value in pairwise(step.command) if word == "--dataset"]


def after(step: PlanStep, word: str) -> str:
    return step.command[step.command.index(word) + 1]


def everything_before(name: str, steps: dict[str, PlanStep]) -> set[str]:
    return {name}.union(*(everything_before(need, steps) for need in steps[name].needs))


# --- the data


def test_a_step_that_reads_data_waits_for_those_who_make_them(tmp_path: Path) -> None:
    steps = plan(table(), tmp_path)
    makes = {f"lerobot:{step.out}": name for name, step in steps.items() if step.command[0] == "collect"}
    for name, step in steps.items():
        assert step.command[0] in cli.COMMANDS
        before = everything_before(name, steps)
        for spec in datasets(step):
            assert makes[spec.partition(",")[0]] in before, f"{name} reads {spec}"


def test_which_videos_labels_and_tests_a_setting_has() -> None:
    steps = plan(table(budgets=("3",)))
    made = {name: after(step, "--benchmark") for name, step in steps.items() if step.command[0] == "collect"}
    home = made["seed0/data/home"]
    assert home == f"{FIVE},camera=corner4+topview,size=128,repeat=2,rest=0.5", "track looks at two cameras"
    assert made["seed0/data/elsewhere"] == f"{FIVE},camera=corner3,size=128,repeat=2,rest=0.5,look=other"
    assert made["seed0/data/so101_pick-place"] == "so101:pick-place"
    assert (
        after(steps["seed0/data/home"], "--episodes")
        == after(steps["seed0/data/so101_pick-place"], "--episodes")
        == "250"
    )
    tested = steps["seed0/lapa/home+3/test"]
    assert after(tested, "--benchmark").startswith(FIVE)
    assert after(tested, "--episodes") == "100"
    fit = {name: datasets(step) for name, step in steps.items() if step.command[0] == "quantize"}
    assert fit == {
        f"seed0/lapa/{which}/fit": [f"lerobot:out/seed0/data/{which}"]
        for which in ("home", "elsewhere", "so101_pick-place")
    }


def test_labels_and_tests_of_cross_task_have_no_task_in_common() -> None:
    steps = plan(table("cross-task", ("lapa",), budgets=("1",)))
    labelled = {Path(spec.partition(",")[0]).name for spec in datasets(steps["seed0/lapa/home+some1/tuned"])}
    tested = after(steps["seed0/lapa/home+some1/others"], "--benchmark").partition(",")[0].partition(":")[2].split("+")
    assert labelled == {"reach-v3", "pick-place-v3", "button-press-topdown-v3"}
    assert set(tested) == {"push-v3", "door-open-v3"}
    assert after(steps["seed0/lapa/home+some1/others"], "--episodes") == "40"
    assert "push-v3" in after(steps["seed0/data/home"], "--benchmark"), "the videos show all tasks"


def test_a_smaller_budget_is_part_of_a_larger_one_and_of_no_video() -> None:
    steps = plan(table("in-domain", ("scratch", "lapa")))
    chosen = {budget: datasets(steps[f"seed0/scratch/{budget}/tuned"]) for budget in FEW}
    for budget in FEW:
        assert len(chosen[budget]) == 5
        for spec in chosen[budget]:
            folder, _, span = spec.partition(",episodes=0-")
            assert (int(span) + 1 if span else 10) == budget
            assert folder in {other.partition(",")[0] for other in chosen[10]}
    seeds = {after(step, "--seed") for step in steps.values() if step.command[0] == "collect"}
    assert seeds == {"1", "2"}, "other scenes than those of the videos"
    more = plan(table("in-domain", ("scratch",), budgets=("20",)))
    assert after(more["seed0/data/labels20/reach-v3"], "--episodes") == "20"


def test_one_robot_in_all_labelled_data() -> None:
    """Datasets of several robots would make a policy of several robots."""
    steps = plan(table())
    robots = {after(s, "--robot") for n, s in steps.items() if s.command[0] == "collect" and "so101" not in n}
    assert robots == {"metaworld"}
    other = steps["seed0/data/so101_pick-place"].command
    assert "--robot" not in other
    assert "--noise" not in other


def test_track_learns_from_videos_and_labels_of_two_cameras() -> None:
    steps = plan(table("in-domain,cross-env,cross-embodiment", ("track",), budgets=("3",)))
    fit, learn = steps["seed0/track/home+3/fit"], steps["seed0/track/home+3/latent"]
    assert after(fit, "--cameras") == "corner4,topview"
    assert datasets(fit) == ["lerobot:out/seed0/data/home"]
    assert fit.command.count("--labelled") == 5
    assert after(learn, "--labels") == "out/seed0/track/home+3/fit/labels"
    assert datasets(learn) == ["lerobot:out/seed0/data/home"]
    assert "camera=corner4," in after(steps["seed0/track/home+3/test"], "--benchmark")
    assert "rest" not in after(steps["seed0/track/home+3/test"], "--benchmark"), "of demonstrations alone"
    tuned = [name for name in steps if name.endswith("tuned")]
    assert tuned == ["seed0/track/home+3/tuned"], "videos from elsewhere have other cameras than the labels"


def test_track_with_one_camera_beside_track_with_two() -> None:
    """On the same demonstrations, which two cameras film."""
    steps = plan(table("all", ("track", "track_one"), benchmark=FIVE, budgets=("3",)))
    two, one = (steps[f"seed0/{row}/home+3/fit"] for row in ("track", "track_one"))
    assert (after(two, "--cameras"), after(one, "--cameras")) == ("corner4,topview", "corner4")
    assert datasets(two) == datasets(one)
    assert after(steps["seed0/track_one/home+3/latent"], "--labels").endswith("track_one/home+3/fit/labels")
    assert {name.rpartition("/")[0] for name in steps if "track_one" in name} == {
        f"seed0/track_one/home+{few}3" for few in ("", "some")
    }
    assert "track_one" not in table("in-domain").rows, "asked for by name alone"


def test_track_looks_through_the_policys_camera_where_that_is_all() -> None:
    world = world_of("language_table")
    assert "track" in world.rows
    assert "track_one" not in world.rows, "it is the same"
    assert world.cameras == ()


# --- what cells share


def test_what_cells_share_is_made_once() -> None:
    steps = plan(table(rows=("all", "unipi"), seeds=2))
    names = [name for name in steps if name.startswith("seed0")]
    assert len(names) * 2 == len(steps), "each seed has its own data, models and tests"
    kinds = [steps[name].command[0] for name in names]
    assert kinds.count("collect") == 5 + 3, "labels of each task; videos at home, elsewhere, of another robot"
    assert kinds.count("quantize") == 3
    assert kinds.count("fit") == 2 * len(FEW), "inverse dynamics: for each budget of all tasks and of some"
    assert not any("actionvla/so101" in name for name in names)
    scratch = [name for name in names if "/scratch/" in name and name.endswith("tuned")]
    assert len(scratch) == 2 * len(FEW), "it knows no videos"
    assert [name for name in names if "/unipi/" in name and name.endswith("tuned")] == [
        f"seed0/unipi/{which}/tuned" for which in ("home+3", "home+some3", "elsewhere+3", "so101_pick-place+3")
    ], "one budget"
    assert {name for name in names if "/random/" in name} == {"seed0/random/test", "seed0/random/others"}


def test_rows_have_one_budget_the_main_one_or_the_largest() -> None:
    def budgets(*asked: str) -> set[int]:
        return {
            cell.budget
            for cell in cells(table("in-domain", ("unipi", "lapa"), budgets=asked))
            if cell.row.name == "unipi"
        }

    assert (budgets(), budgets("1", "10"), budgets("1", "3")) == ({3}, {10}, {3})


def test_options_fix_the_way_to_finetune_and_yours_come_last() -> None:
    steps = plan(table("in-domain", ("lapa",), budgets=("3",), set=("finetune.steps=7",)))
    assert steps["seed0/lapa/home+3/tuned"].command[0] == "finetune"
    recipe = recipe_of(table(set=("finetune.steps=7",)).common.options)
    assert (recipe.finetune.steps, recipe.window, recipe.policy.code_head) == (7, 0.1, "nearest")
    assert recipe.laq.encoder == "efficientnet", "preset video"
    assert recipe_of(table().common.quick().options).finetune.steps == 10
    demo = demo_real_plan(RealDemoSettings(), Path("out"))
    training = next(step.command for step in demo if step.command[0] == "pretrain")
    assert {word for word in training if "=" in word} >= set(WORLDS["metaworld"].recipe), "one place"


def test_what_you_say_of_the_benchmark_goes_over_what_is_usual() -> None:
    world = world_of("metaworld:push,size=64,repeat=4")
    assert isinstance(world, Demonstrated)
    assert world.test(world.settings["in-domain"], "test", 20) == (
        "metaworld:push-v3,batch=25,camera=corner4,size=64,repeat=4", 20,
    )  # fmt: skip
    assert len(world_of("metaworld").settings["in-domain"].budgets) == 4
    assert len(plan(table("in-domain", ("expert",), benchmark="metaworld"))) == 1
    other = plan(table("cross-embodiment", ("lapa",), other="libero:libero_object,camera=agentview", budgets=("1",)))
    assert after(other["seed0/data/libero_libero_object"], "--benchmark") == "libero:libero_object,camera=agentview"


# --- Language Table and LIBERO


def collected(steps: dict[str, PlanStep], part: str) -> dict[str, str]:
    """{what follows seed0/data/PART: the benchmark} of steps that collect."""
    start = f"seed0/data/{part}"
    return {name.removeprefix(start): after(step, "--benchmark") for name, step in steps.items()
            if step.command[0] == "collect" and name.startswith(start)}  # fmt: skip


def test_language_table_has_tests_of_combinations_seen_and_unseen() -> None:
    steps = plan(table(benchmark="language_table", rows=("lapa",), budgets=("3",)))
    five = "language_table:block2block+block2absolute+block2block_relative+block2relative+separate"
    usual = ",blocks=BLOCK_4,split=seen,size=128"
    assert collected(steps, "home") == {"": five + usual}
    assert collected(steps, "elsewhere") == {"": f"{five}{usual},camera=corner,look=other"}
    assert collected(steps, "so101_pick-place") == {"": "so101:pick-place"}
    labels = collected(steps, "labels10/")
    assert labels["separate"] == f"language_table:separate{usual}"
    assert len(labels) == 5
    for which in ("home+3", "elsewhere+3", "so101_pick-place+3"):
        for split in ("seen", "unseen"):
            tested = after(steps[f"seed0/lapa/{which}/{split}"], "--benchmark")
            assert tested == f"{five},batch=10{usual.replace('seen', split)}"
    others = after(steps["seed0/lapa/home+some3/others"], "--benchmark")
    assert others == f"language_table:block2absolute+block2relative,batch=10{usual}"
    assert "seed0/lapa/home+some3/unseen" not in steps


def test_libero_makes_its_videos_task_by_task_and_tests_few_tasks_at_a_time() -> None:
    steps = plan(table(benchmark="libero:libero_goal,size=64", rows=("lapa",), budgets=("1",)))
    each = [f"libero_goal/{number}" for number in range(10)]
    both = "agentview+frontview"
    for part, camera in (("home/", both), ("elsewhere/", "frontview"), ("labels10/", both)):
        assert collected(steps, part) == {task: f"libero:{task},camera={camera},size=64" for task in each}
    assert after(steps["seed0/data/home/libero_goal/3"], "--episodes") == "50"
    assert len(datasets(steps["seed0/lapa/home/fit"])) == 10
    assert after(steps["seed0/data/so101_pick-place"], "--episodes") == "500"
    tested = after(steps["seed0/lapa/home+1/test"], "--benchmark")
    assert tested == f"libero:{'+'.join(each)},keep=2,camera=agentview,size=64"
    labelled = {spec.partition(",")[0][-1] for spec in datasets(steps["seed0/lapa/home+some1/tuned"])}
    assert labelled == set("02468")
    others = after(steps["seed0/lapa/home+some1/others"], "--benchmark").partition(",")[0]
    assert others == f"libero:{'+'.join(each[1::2])}"
    one = plan(table("in-domain", ("expert",), benchmark="libero:libero_object/3,keep=1"))
    assert after(one["seed0/expert/test"], "--benchmark") == "libero:libero_object/3,keep=1,camera=agentview,size=128"


RATES = {"metaworld": metaworld.HZ, "language_table": _language_table.HZ, "libero": libero.HZ}


@pytest.mark.parametrize("name", WORLDS)
def test_codes_of_stage_2_are_the_actions_of_stage_3(name: str) -> None:
    known = WORLDS[name]
    recipe = recipe_of(table(benchmark=name).common.options)
    rate = RATES[name] / int(known.options.get("repeat", "1"))
    assert recipe.chunk == pytest.approx(recipe.latent_chunk * recipe.window * rate)
    assert known.elsewhere
    assert known.home(name)[1], "its default has tasks"
    made = world_of(name).guess(recipe, 50, 20, 0)
    assert made.evaluate > made.scripted > 0


def test_the_papers_figures_stand_beside_language_tables_where_they_are_of_the_same() -> None:
    asked = table(benchmark="language_table", rows=("expert", *THREE, "actionvla"), budgets=("3",))
    known = made(asked)
    results = {"common": described(asked.common), **build(known, asked), "cells": known}
    assert list(results["table"]["in-domain"]) == ["seen", "unseen"]
    text = markdown(results)
    main = text.partition("## As the paper's Table 2")[2].partition("##")[0]
    head, _, *rows = [line.split(" | ") for line in main.strip().splitlines()]
    lapa = dict(zip(head, next(row for row in rows if row[0] == "| LAPA"), strict=True))
    told = {column: cell.partition("paper ")[2].strip(" |") for column, cell in lapa.items()}
    assert {column.partition(" 3 labels")[0]: figure for column, figure in told.items() if figure} == {
        "in-domain, seen,": "62.0", "in-domain, unseen,": "49.6", "cross-env, seen,": "33.6",
        "cross-env, unseen,": "29.6",
    }  # fmt: skip
    assert "paper 76%" in text, "the share of the gap"
    assert "## By task, seen: " in text
    assert "Language Table" in text.partition("\n")[0]


@pytest.mark.parametrize(
    ("benchmark", "settings", "says"),
    [
        ("libero", "in-domain", r"lapa\[libero\]"),
        ("language_table", "cross-env", r"lapa\[language-table\].*LANGUAGE_TABLE"),
        ("language_table,clone=/nowhere", "in-domain", r'lapa\[language-table\]"$'),
        ("metaworld:push", "in-domain", r"lapa\[metaworld\]"),
    ],
)
def test_a_plan_needs_nothing_and_a_run_says_what_is_not_there(
    benchmark: str, settings: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(plugins, "_there", lambda need: False)
    out = tmp_path / "table"
    command = ["compare", "--benchmark", benchmark, "--settings", settings, "--methods", "all", "--seeds", "1"]
    cli.main([*command, "--out", str(out), "--dry-run"])
    assert "lapa collect --benchmark " + benchmark.partition(",")[0].partition(":")[0] in capsys.readouterr().out
    asked = table(settings, benchmark=benchmark)
    with pytest.raises(LapaError, match=says) as refused:
        run_paper(asked, out)
    assert "\n" not in str(refused.value)
    assert not out.exists()


def test_a_policy_server_is_one_more_row() -> None:
    asked = table(
        "in-domain,cross-env", ("expert",), servers=("openpi://127.0.0.1:8000,execute=5",), budgets=("1", "3")
    )
    steps = plan(asked)
    assert len(steps) == 2
    (served,) = (step for step in steps.values() if "--policy" in step.command)
    assert after(served, "--policy") == after(served, "--name") == "openpi://127.0.0.1:8000,execute=5"
    assert served.name.count("/") == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": "cross-domain"}, "cross-task"),
        ({"settings": "cross-task", "benchmark": "metaworld:push-v3"}, "cross-task"),
        ({"rows": ("scratch_ungrounded",)}, "scratch_ungrounded"),
        ({"settings": "cross-embodiment", "rows": ("actionvla",)}, "actionvla"),
        ({"benchmark": "metaworld:pusch-v3"}, "push-v3"),
        ({"benchmark": "metaworld,camra=corner"}, "camera"),
        ({"benchmark": "metawold"}, "metaworld"),
        ({"benchmark": "aloha:insertion"}, "--labelled"),
        ({"benchmark": "libero:libero_objects"}, "libero_object"),
        ({"benchmark": "libero:libero_object/10"}, "0 to 9"),
        ({"benchmark": "language_table:block2blok"}, "block2block"),
        ({"benchmark": "language_table:all,split=all"}, "split="),
        ({"benchmark": "tabletop:real"}, "tabletop:real"),
        ({"benchmark": "tabletop", "other": "so101:pick-place"}, "--other"),
        ({"validation": 5}, "--validation"),
        ({"episodes": 0}, "episode"),
        ({"servers": ("127.0.0.1:8000",)}, "openpi://"),
        ({"preset": "laptp"}, "laptop"),
    ],
)
def test_what_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(LapaError, match=says):
        plan(table(**change))


def test_tables_of_two_worlds_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    old = {name: value for name, value in described(Common()).items() if name not in ("benchmark", "other")}
    path.write_text(json.dumps({"common": old, "cells": {}, "sources": {}, "seconds": {}}))
    read_results(path, described(Common()))
    with pytest.raises(LapaError, match="benchmark tabletop"):
        read_results(path, described(table().common))


# --- figures and layout


def made(asked: Asked) -> dict[str, Any]:
    """Cells as a run would leave them."""
    rates = {"scratch": 0.2, "vpt": 0.4, "lapa": 0.6, "actionvla": 0.8, "expert": 1.0}
    found: dict[str, Any] = {}
    for cell in cells(asked):
        for split in cell.setting.splits:
            rate = rates.get(cell.row.name, 0.0)
            tasks = asked.common.world.test(cell.setting, split, 1)[0].partition(",")[0].partition(":")[2].split("+")
            here: dict[str, Any] = {
                "method": cell.row.name, "seed": cell.seed, "split": split, "success": rate, "episodes": 10,
                "families": dict.fromkeys(tasks, rate), "mean_steps": 9.0,
                "outcomes": "".join("01"[i < 10 * rate] for i in range(10)),
                "stages": {task: {"reached": 1.0, "moved": rate} for task in tasks},
            }  # fmt: skip
            if cell.row.method:
                here |= {"budget": cell.budget, "family": cell.setting.family}
                here |= {"videos": cell.setting.videos} if cell.row.method.source else {}
            found[cell.score(split)] = here
    return found


def test_the_table_says_what_each_setting_has(tmp_path: Path) -> None:
    asked = table(rows=("expert", *THREE, "actionvla"), budgets=("1", "3"), servers=("openpi://a:1",))
    known = made(asked)
    results = {"common": described(asked.common), **build(known, asked), "cells": known}
    assert {name: list(splits) for name, splits in results["table"].items()} == {
        "in-domain": ["test"], "cross-task": ["others"], "cross-env": ["test"], "cross-embodiment": ["test"],
    }  # fmt: skip
    here = results["table"]["in-domain"]["test"]["3"]
    assert here["lapa"]["gap_closed"] == pytest.approx(2 / 3)
    assert here["openpi://a:1"]["success"] == 0
    assert "actionvla" not in results["table"]["cross-embodiment"]["test"]["3"]
    assert "lapa - scratch" in results["paired"]["cross-task"]["others"]["1"]
    text = markdown(results)
    assert "Meta-World" in text.partition("\n")[0]
    assert "paper 6" not in text, "its figures are of other columns"
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ActionVLA | 80.0")]
    assert rows[0][-1].startswith("not possible")
    assert "60 (100, 60)" in text, "LAPA: solved, and how many reached and moved"
    assert "openpi://a:1" in text
    tasks = next(line for line in text.splitlines() if line.startswith("| cross-task, 3 labels a task"))
    assert tasks.split(" | ")[1:] == ["push-v3", "door-open-v3 |"]
    budget_curves(results["table"], tmp_path / "curves.png")
    part = Asked(("in-domain",), asked.rows, common=asked.common)
    assert build(json.loads(json.dumps(known)), part)["table"] == results["table"], "known cells stay"


def test_where_a_server_writes() -> None:
    cell = TableCell(world_of(FIVE).settings["in-domain"], 3, TableRow("openvla://10.0.0.1:80/act", None), 1)
    assert cell.score("test") == "seed1/openvla_10.0.0.1_80_act/test"
