"""The paper's table: what cells share, what is run again and what is not, the statistics, the layout."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from here import here
from PIL import Image

from lapa import cli
from lapa.contracts import LapaError
from lapa.experiments.compare import Comparison, begin, plan
from lapa.experiments.paper_cells import BUDGETS, ROWS, SETTINGS, Asked, Common, cells, parse
from lapa.experiments.paper_markdown import markdown, so_far
from lapa.experiments.paper_scores import build
from lapa.experiments.paper_table import described, read_results, steps_of
from lapa.experiments.schedule import PlanStep
from lapa.measures import intervals
from lapa.plots.budgets import budget_curves

FOUR = ("scratch", "vpt", "lapa", "actionvla")


def asked(settings: str = "all", rows: tuple[str, ...] = FOUR, seeds: int = 1, **others: Any) -> Asked:
    return parse(settings.split(","), rows, seeds, others.pop("budgets", ()), others.pop("only", ()), Common(**others))


def kinds(steps: list[PlanStep]) -> dict[str, int]:
    """{command: how many}, with the folders left out."""
    names = [step.command[0] for step in steps]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def test_what_is_named_twice_counts_once() -> None:
    twice = parse(["in-domain", "in-domain"], ["lapa", "lapa"], 1, ["20", "020"], (), Common(), ["openpi://a:1"] * 2)
    assert [cell.title for cell in cells(twice)] == ["in-domain 20 lapa seed 0", "in-domain 20 openpi://a:1 seed 0"]
    with pytest.raises(LapaError, match="crosstask"):
        asked("all,crosstask")


@pytest.mark.parametrize("wrong", [[], 3, {}, {"common": 3}, {"cells": []}, {"cells": {"seed0/lapa/sim/seen": 3}}])
def test_files_that_are_no_results_of_a_table(wrong: Any, tmp_path: Path) -> None:
    whole: dict[str, Any] = {"common": {}, "cells": {}, "sources": {}, "seconds": {}}
    (tmp_path / "results.json").write_text(json.dumps(whole | wrong if wrong and isinstance(wrong, dict) else wrong))
    with pytest.raises(LapaError, match=r"is not the results\.json"):
        read_results(tmp_path / "results.json", {})


def test_a_comparison_that_was_begun_before_there_were_cameras_goes_on(tmp_path: Path) -> None:
    mine = Comparison(("tabletop:sim,episodes=2",), ("tabletop:sim,episodes=1",), None)
    begin(mine, tmp_path)
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert asked.pop("cameras") == []
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    begin(mine, tmp_path)
    with pytest.raises(LapaError, match="other settings"):
        begin(replace(mine, cameras=("front",)), tmp_path)
    begin(replace(mine, cameras=("front",)), tmp_path / "other")
    with pytest.raises(LapaError, match=r'cameras \["front"\], here \[\]'):
        begin(mine, tmp_path / "other")


# --- the plan -------------------------------------------------------------------------------------


def test_what_cells_share_is_made_once(tmp_path: Path) -> None:
    steps = steps_of(asked(), tmp_path, {})
    assert len({step.name for step in steps}) == len(steps) == len({step.out for step in steps})
    # LAQ: one a domain. Inverse dynamics: one a set of labels (five budgets, and 100 of one family).
    assert kinds(steps)["fit"] == len(BUDGETS) + 1
    assert kinds(steps)["quantize"] == 3
    # Labels and latent policies: LAPA and ActionVLA one a domain, VPT one a domain and budget, and one for cross-task.
    assert kinds(steps)["label"] == kinds(steps)["pretrain"] == 3 + 3 + (3 * len(BUDGETS) + 1)
    # Finetuned: each method in each of 16 columns, but Scratch knows no videos: one a set of labels.
    columns = 3 * len(BUDGETS) + 1
    assert kinds(steps)["tune"] == 3 * columns + len(BUDGETS) + 1
    assert kinds(steps)["evaluate"] == 2 * kinds(steps)["tune"]


def test_what_few_labels_say_of_your_own_videos(tmp_path: Path) -> None:
    """read shares LAPA's LAQ; track looks at the cameras that are named; both see the labelled episodes in stage 1."""
    setting = Comparison(("lerobot:v",), ("lerobot:r,episodes=0-9",), None, cameras=("front", "top"))
    steps = {step.name: step for step in plan(("lapa", "read", "track"), setting, tmp_path)}
    assert [name for name in steps if name.startswith("fit/")] == ["fit/track", "fit/lapa"]
    read, track = steps["labels/read"].command, steps["fit/track"].command
    assert read[:7] == ("label", "--dataset", "lerobot:v", "--source", str(tmp_path / "fit/lapa"), "--labelled",
                        "lerobot:r,episodes=0-9")  # fmt: skip
    assert track[:7] == ("track", "--dataset", "lerobot:v", "--labelled", "lerobot:r,episodes=0-9", "--cameras",
                         "front,top")  # fmt: skip
    learn = steps["latent/track"].command
    assert learn[learn.index("--labels") + 1] == str(tmp_path / "fit/track/labels")
    assert not any("--videos" in step.command for step in steps.values()), "nothing is trained in stage 3"


def test_stage_3_goes_on_learning_what_stage_2_learnt(tmp_path: Path) -> None:
    """Where it trains all of the pretrained policy; not UniPi, Scratch, a new head, nor cameras that are new."""
    names = ("scratch", "vpt", "lapa", "unipi", "actionvla")

    def again(later: tuple[str, ...] = (), *options: str) -> list[str]:
        setting = Comparison(("lerobot:v",), ("lerobot:r",), None, recipe_options=("--preset", "video", *options),
                             finetune_options=later)  # fmt: skip
        steps = plan(names, setting, tmp_path)
        return [step.name for step in steps if step.command[0] == "finetune" and "--videos" in step.command]

    own = ("--set", "head=own")
    assert sorted(again((), *own)) == ["policy/actionvla", "policy/lapa", "policy/vpt"] == sorted(again(own))
    no = ("replay=0", "scale=each", "policy.head=fast")
    assert [option for option in no if again((), *own, "--set", option)] == []
    assert [option for option in ("head=new", 'policy.cameras=["top"]') if again(("--set", option), *own)] == []
    assert again((), *own, "--set", 'policy.cameras=["top"]'), "the cameras of stage 2"
    assert not again((), "--set", "trainable=head"), "the new head alone is trained"
    setting = Comparison(("lerobot:v",), ("lerobot:r",), None, recipe_options=("--preset", "video", *own))
    step = next(step for step in plan(("lapa",), setting, tmp_path) if step.name == "policy/lapa")
    words = list(step.command)
    assert words[words.index("--videos") + 1] == "lerobot:v"
    assert words[words.index("--labels") + 1] == str(tmp_path / "labels/lapa")


def test_in_domain_and_cross_task_share_stages_one_and_two(tmp_path: Path) -> None:
    both = steps_of(asked("in-domain,cross-task", ("lapa", "actionvla"), budgets=("100",)), tmp_path, {})
    one = steps_of(asked("in-domain", ("lapa", "actionvla"), budgets=("100",)), tmp_path, {})
    more = {step.name for step in both} - {step.name for step in one}
    assert {name.split("/")[-1] for name in more} == {"tuned", "seen", "unseen"}
    (tuned,) = (step for step in both if step.name == "seed0/lapa/sim+separate100/tuned")
    assert "tabletop:sim,episodes=100,seed=2,family=separate" in tuned.command
    assert tuned.needs == ("seed0/lapa/sim/latent",)


def test_every_command_is_one_that_lapa_reads(tmp_path: Path) -> None:
    """Also: a seed has its own data, models, test scenes and search."""
    steps = {step.name: step for step in steps_of(asked("cross-env", seeds=2, budgets=("20",)), tmp_path, {})}
    for step in steps.values():
        assert step.command[0] in cli.COMMANDS
        assert step.command[-2:] == ("--out", str(tmp_path / step.name))
        assert all(need in steps for need in step.needs)
    first, second = (" ".join(steps[f"seed{k}/lapa/real+20/tuned"].command) for k in (0, 1))
    assert "tabletop:sim,episodes=20,seed=2 " in first
    assert "tabletop:sim,episodes=20,seed=12 " in second
    assert all("--episodes 200 " in command and "--only" not in command for command in (first, second))
    assert steps["seed1/lapa/real+20/tuned"].needs == ("seed1/lapa/real/latent",)
    assert "tabletop:real,episodes=6000,seed=11" in steps["seed1/lapa/real/fit"].command
    assert steps["seed1/lapa/real+20/unseen"].command[-8:-2] == (
        "--benchmark", "tabletop:sim,split=unseen", "--episodes", "500", "--seed", "1",
    )  # fmt: skip


def test_unipi_shares_its_films_and_inverse_dynamics(tmp_path: Path) -> None:
    """Budgets share what it learnt from video, and VPT the model that reads actions."""
    steps = {step.name: step for step in steps_of(asked("in-domain", ("unipi", "vpt")), tmp_path, {})}
    assert [name for name in steps if "/unipi/" in name and name.endswith(("labels", "latent"))] == [
        "seed0/unipi/sim/labels", "seed0/unipi/sim/latent",
    ]  # fmt: skip
    tuned = steps["seed0/unipi/sim+20/tuned"]
    assert tuned.needs == ("seed0/unipi/sim/latent", "seed0/vpt/20/fit")
    assert tuned.command[tuned.command.index("--idm") + 1] == str(tmp_path / "seed0/vpt/20/fit")


def test_an_ablation_changes_the_backbone_alone(tmp_path: Path) -> None:
    wanted = asked("in-domain", ("scratch", "scratch_ungrounded"), budgets=("5",),
                   options=("--preset", "laptop", "--set", 'policy.backbone_options={"depth":1}'))  # fmt: skip
    tuned = {step.name: step.command for step in steps_of(wanted, tmp_path, {}) if step.command[0] == "tune"}
    grounded, not_grounded = tuned["seed0/scratch/5/tuned"], tuned["seed0/scratch_ungrounded/5/tuned"]
    assert set(not_grounded) - set(grounded) == {
        'policy.backbone_options={"depth":1,"grounded":false}', str(tmp_path / "seed0/scratch_ungrounded/5/tuned"),
    }  # fmt: skip


def test_what_is_done_needs_nothing_more(tmp_path: Path) -> None:
    wanted = asked("in-domain", ("lapa",), budgets=("5", "20"))
    for split in ("seen", "unseen"):
        marker = tmp_path / f"seed0/lapa/sim+20/{split}/results.json"
        marker.parent.mkdir(parents=True)
        marker.write_text("{}")
    waiting = [step.name for step in steps_of(wanted, tmp_path, {}) if not step.marker.exists()]
    assert "seed0/lapa/sim+5/tuned" in waiting
    assert "seed0/lapa/sim+20/tuned" not in waiting, "its evaluations are there"
    # What an earlier results.json has is not run, and another seed's search does not need it.
    known: dict[str, Any] = {f"seed0/lapa/sim+5/{split}": {"way": "all"} for split in ("seen", "unseen")}
    steps = {s.name: s for s in steps_of(asked("in-domain", ("lapa",), 2, budgets=("5",)), tmp_path, known)}
    assert "seed1/lapa/sim+5/tuned" in steps
    assert not any(name.startswith("seed0") for name in steps)


def test_the_table_comes_before_the_curves() -> None:
    order = [(cell.budget == cell.setting.main, cell.seed) for cell in cells(asked(seeds=2))]
    assert order == sorted(order, key=lambda pair: (not pair[0], pair[1]))
    few = cells(asked(only=("cross-env 20 lapa",)))
    assert [cell.title for cell in few] == ["cross-env 20 lapa seed 0"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": "cross-domain"}, "setting"),
        ({"rows": ("laap",)}, '"laap".*"lapa"'),
        ({"seeds": 0}, "seed"),
        ({"budgets": ("0",)}, "budget"),
        ({"budgets": ("few",)}, '"few"'),
        ({"only": ("seed 7",)}, '"seed 7"'),
        ({"episodes": 0}, "episode"),
    ],
)
def test_what_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(LapaError, match=says):
        asked(**change)


# --- statistics -----------------------------------------------------------------------------------


def draws(rates: list[float], episodes: int = 500) -> np.ndarray:
    """Seeds with exactly these success rates, in a random order: bool [S, E]."""
    rng = np.random.default_rng(3)
    return np.array([rng.permutation(np.arange(episodes) < rate * episodes) for rate in rates])


def test_the_interval_of_one_seed_is_the_binomial_one() -> None:
    low, high = intervals.success(draws([0.4]))
    half = 1.96 * (0.4 * 0.6 / 500) ** 0.5
    assert (low, high) == (pytest.approx(0.4 - half, abs=0.004), pytest.approx(0.4 + half, abs=0.004))


def test_seeds_that_differ_widen_the_interval() -> None:
    alike, apart = intervals.success(draws([0.5] * 3)), intervals.success(draws([0.48, 0.5, 0.52]))
    assert alike[1] - alike[0] == pytest.approx(2 * 1.96 * (0.25 / 1500) ** 0.5, abs=0.005), "three times the episodes"
    assert apart == pytest.approx(alike, abs=0.005), "that much their episodes explain"
    # Student's interval of .6, .7, .8: .7 plus and minus 4.30 x .1 / sqrt(3); a little less for what episodes explain.
    low, high = intervals.success(draws([0.6, 0.7, 0.8]))
    assert (low, high) == (pytest.approx(0.7 - 0.24, abs=0.03), pytest.approx(0.7 + 0.24, abs=0.03))
    assert intervals.success(draws([0.1, 0.5, 0.9])) == (0, 1)


@pytest.mark.parametrize("apart", [0.0, 0.03, 0.1])
def test_nine_in_ten_intervals_hold_the_truth(apart: float) -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        rates = 0.6 + apart * rng.standard_normal(3)
        low, high = intervals.success(rng.random((3, 100)) < rates[:, None])
        held += low <= 0.6 <= high
    assert held >= 176, "benchmarks/interval_coverage.py: of the plain bootstrap it is three in four"


def test_nothing_solved_is_not_certainty() -> None:
    low, high = intervals.success(np.zeros((3, 500), bool))
    assert low == 0
    assert 0.001 < high < 0.004, "Wilson's for 0 of 1,500"
    assert intervals.difference(np.zeros((3, 500), bool), np.zeros((3, 500), bool)) == (-high, high)
    solved = np.arange(500) < 500 * np.array([[0.2], [0.9], [1.0]])
    assert intervals.difference(solved, np.zeros_like(solved))[1] == 1.0, "no more than all"


def test_a_difference_is_taken_on_the_same_episodes() -> None:
    other = draws([0.5])
    one = other.copy()
    one[0, np.flatnonzero(~other[0])[:50]] = True  # wins whatever the other wins, and 50 of 500 more
    low, high = intervals.difference(one, other)
    half = 1.96 * (0.1 * 0.9 / 500) ** 0.5
    assert (low, high) == (pytest.approx(0.1 - half, abs=0.004), pytest.approx(0.1 + half, abs=0.004))
    shuffled = one[:, np.random.default_rng(0).permutation(500)]
    apart = intervals.difference(shuffled, other)
    assert apart[1] - apart[0] > 2 * (high - low), "unpaired episodes know less"


def test_the_share_of_a_gap() -> None:
    none, everything, half = np.zeros((1, 500), bool), np.ones((1, 500), bool), draws([0.5])
    assert intervals.gap_closed(none, half, everything) == pytest.approx(intervals.success(half), abs=0.006)
    assert intervals.gap_closed(draws([0.5]), half, np.roll(draws([0.51]), 250)) is None, "there may be no gap"


# --- figures and layout ---------------------------------------------------------------------------


def outcomes(rate: float, episodes: int = 40) -> dict[str, Any]:
    solved = np.arange(episodes) % 10 < round(10 * rate)
    success = float(solved.mean())
    return {"success": success, "families": {"push": success, "pull": rate}, "mean_steps": 9.0, "episodes": episodes,
            "outcomes": "".join("01"[int(s)] for s in solved)}  # fmt: skip


def made(seeds: int = 2) -> dict[str, Any]:
    """Cells as a run would leave them: in-domain with 5 and 20 labels, and cross-env with 100 for LAPA alone."""
    rates = {"no_op": 0.0, "scratch": 0.1, "vpt": 0.4, "lapa": 0.6, "actionvla": 0.8, "expert": 1.0}
    found: dict[str, Any] = {}
    for cell in cells(asked("in-domain,cross-env", tuple(rates), seeds, budgets=("5", "20", "100"))):
        name, alone = cell.row.name, cell.setting.name == "cross-env" or cell.budget == 100
        if alone and (name != "lapa" or cell.budget != 100 or cell.setting.name == "in-domain"):
            continue
        for split in ("seen", "unseen"):
            here: dict[str, Any] = {"method": name, "seed": cell.seed, "split": split}
            if cell.row.method:
                here |= {"budget": cell.budget, "family": "", "way": "head", "validation": {"head": 0.5, "all": 0.25}}
                here |= {"videos": cell.setting.videos} if cell.row.method.source else {}
            worse = 0.1 if split == "unseen" and 0 < rates[name] < 1 else 0.0
            found[cell.score(split)] = here | outcomes(rates[name] - worse)
    return found


def figures(known: dict[str, Any]) -> dict[str, Any]:
    return {"common": described(Common()), **build(known, asked("in-domain")), "cells": known}


def test_figures_of_the_cells() -> None:
    results = figures(made())
    table = results["table"]
    assert set(table) == {"in-domain", "cross-env"}, "cross-embodiment has Scratch's cells, but no videos of its own"
    lapa = table["in-domain"]["seen"]["20"]["lapa"]
    assert (lapa["success"], lapa["episodes"], lapa["seeds"], lapa["per_seed"]) == (0.6, 80, [0, 1], [0.6, 0.6])
    assert lapa["interval"][0] < 0.6 < lapa["interval"][1]
    assert lapa["gap_closed"] == pytest.approx((0.6 - 0.1) / (0.8 - 0.1))
    assert lapa["gap_interval"][0] < lapa["gap_closed"] < lapa["gap_interval"][1]
    assert table["in-domain"]["unseen"]["20"]["lapa"]["gap_closed"] == pytest.approx(0.5 / 0.7)
    assert "gap_closed" not in table["cross-env"]["seen"]["100"]["lapa"], "no Scratch, no ActionVLA, no gap"
    assert table["in-domain"]["seen"]["5"]["expert"]["success"] == 1, "rows without labels are in every budget"
    pairs = results["paired"]["in-domain"]["seen"]["20"]
    assert {name: round(found["difference"], 9) for name, found in pairs.items()} == {
        "lapa - vpt": 0.2, "lapa - scratch": 0.5, "lapa - actionvla": -0.2,
    }  # fmt: skip
    assert json.loads(json.dumps(results)) == results


def test_methods_are_compared_on_the_episodes_and_seeds_that_both_have() -> None:
    known = made()
    for split in ("seen", "unseen"):
        known[f"seed0/vpt/sim+20/{split}"] |= outcomes(0.4, 20)
        del known[f"seed1/vpt/sim+20/{split}"]
    results = figures(known)
    found = results["paired"]["in-domain"]["seen"]["20"]["lapa - vpt"]
    assert (found["episodes"], found["seeds"]) == (20, [0])
    assert "1 seed; 20 episodes" in markdown(results), "the table says where there is less"


def test_the_layout_of_the_table(tmp_path: Path) -> None:
    results = figures(made())
    text = markdown(results)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block
    head, _, *rows = re.search(r"## As the paper.*?\n\n((?:\|.*\n)+)", text)[1].splitlines()  # type: ignore[index]
    assert head == ("|  | in-domain, seen, 20 labels | in-domain, unseen, 20 labels | cross-env, seen, 100 labels "
                    "| cross-env, unseen, 100 labels |")  # fmt: skip
    first = [row.split(" | ")[0].strip("| ") for row in rows]
    assert first == ["no action", "Scratch", "VPT", "LAPA", "ActionVLA", "expert"]
    lapa = rows[3].split(" | ")
    assert lapa[1].startswith("60.0<br>(")
    assert "paper 62.0" in lapa[1]
    assert "paper 49.6" in lapa[2]
    assert "paper 33.6" in lapa[3]
    assert "; paper 76%" in text
    assert "| in-domain | seen | LAPA | 5 | 5 | more | more | 5, 20 |" in text
    assert "| in-domain | seen | Scratch | more | more | more | more | 5, 20 |" in text
    assert "+20.0 (" in text
    assert "| head, head | head 50.0, all 25.0 |" in text
    assert so_far(results).row_count == 4
    budget_curves(results["table"], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size[0] > 600
    assert "|" not in markdown(figures({})), "no table yet"
    assert set(ROWS) >= {cell["method"] for cell in results["cells"].values()}
    assert set(SETTINGS) >= set(results["table"])


# --- end to end -----------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that were run."""
    return here(monkeypatch).started


@pytest.mark.slow
def test_a_table_from_nothing(
    small: list[str], started: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "paper"
    few = ["--videos", "12", "--episodes", "4", "--validation", "2", "--quick", *small]
    part = ["compare", "--settings", "in-domain", "--methods", "expert,scratch,lapa,actionvla"]
    command = [*part, "--budgets", "3", "--seeds", "1", *few]

    cli.main([*command, "--out", str(out), "--dry-run"])
    planned = capsys.readouterr().out
    assert not out.exists()
    assert planned.count("\nrun   lapa ") == 16
    assert "done" not in planned.partition("\nrun ")[2]

    cli.main([*command, "--out", str(out)])
    assert len(started) == 16
    told = capsys.readouterr().out
    assert (out / "table.md").read_text() in told
    results = json.loads((out / "results.json").read_text())
    assert (out / "curves.png").exists()
    assert set(results["table"]) == {"in-domain"}
    for splits in results["table"].values():
        for budgets in splits.values():
            assert set(budgets["3"]) == {"expert", "scratch", "lapa", "actionvla"}
            assert budgets["3"]["expert"]["success"] == 1
            for row in budgets["3"].values():
                assert row["episodes"] == 4
                assert row["interval"][0] <= row["success"] <= row["interval"][1]
    scores = json.loads((out / "seed0/lapa/sim+3/seen/results.json").read_text())
    cell = results["cells"]["seed0/lapa/sim+3/seen"]
    assert cell["outcomes"] == "".join("01"[o["success"]] for o in scores["outcomes"])
    assert scores["validation"] is False
    tuned = json.loads((out / "seed0/actionvla/sim+3/tuned/config.json").read_text())
    assert len(tuned["tuning"]["validation"]) == 8, "a policy that speaks actions may keep its head"
    assert len(cell["validation"]) == 4
    assert "action_r2" in results["sources"]["seed0/lapa/sim/fit"]

    # Again: nothing. Elsewhere with these results: nothing, and the same table. A lost evaluation: that one.
    started.clear()
    cli.main([*command, "--out", str(out)])
    cli.main([*command, "--out", str(tmp_path / "later"), "--results", str(out / "results.json")])
    assert not started
    later = json.loads((tmp_path / "later/results.json").read_text())
    assert (later["table"], later["cells"]) == (results["table"], results["cells"])
    (out / "results.json").unlink()
    (out / "seed0/lapa/sim+3/unseen/results.json").unlink()
    cli.main([*command, "--out", str(out)])
    assert started == ["seed0/lapa/sim+3/unseen"]
    assert json.loads((out / "results.json").read_text())["table"] == results["table"], "the same bits"

    # Figures of other settings must not be mixed in.
    for where in (["--out", str(out)], ["--out", str(tmp_path / "new"), "--results", str(out / "results.json")]):
        with pytest.raises(SystemExit):
            cli.main([*command, "--videos", "13", *where])
        assert "videos 12, here 13" in capsys.readouterr().err
    changed = json.loads((out / "results.json").read_text())
    changed["common"]["recipe"]["pretrain"]["steps"] = 7  # the preset has changed since
    del changed["common"]["recipe"]["window"]  # and has come to have more settings
    (tmp_path / "earlier.json").write_text(json.dumps(changed))
    with pytest.raises(SystemExit):
        cli.main([*command, "--out", str(tmp_path / "new"), "--results", str(tmp_path / "earlier.json")])
    assert "recipe.pretrain.steps 7, here 10" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*command, "--out", str(tmp_path / "new"), "--dataset", "tabletop:sim"])
    assert "Give either --settings, or --dataset" in capsys.readouterr().err


def test_settings_of_stage_3_alone() -> None:
    """A head that answers with numbers is no head for stage 2."""
    more = ("--set", "policy.head=regression")
    setting = Comparison(("tabletop:sim",), ("tabletop:real",), recipe_options=("--preset", "laptop"),
                         finetune_options=more)  # fmt: skip
    steps = plan(("lapa", "vpt", "scratch"), setting, Path("out"))
    with_them = {step.name for step in steps if " ".join(more) in " ".join(step.command)}
    assert with_them == {"policy/lapa", "policy/vpt", "policy/scratch"}


def test_what_is_finished_is_of_the_same_setting(tmp_path: Path) -> None:
    """The steps that are done are skipped: with other data or options they would be taken for these."""
    first = Comparison(("tabletop:sim",), ("tabletop:real",), episodes=20, recipe_options=("--preset", "laptop"))
    begin(first, tmp_path)
    begin(first, tmp_path)
    for other, says in ((replace(first, episodes=30), "episodes 20, here 30"), (replace(first, benchmark=None), "null"),
                        (replace(first, labelled=("tabletop:hand",)), "tabletop:real.*here.*tabletop:hand"),
                        (replace(first, finetune_options=("--set", "chunk=2")), "chunk=2")):  # fmt: skip
        with pytest.raises(LapaError, match=says):
            begin(other, tmp_path)
    assert json.loads((tmp_path / "asked.json").read_text())["episodes"] == 20


def test_data_that_have_changed_since_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps that are done are of the data as they were."""
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "a.mp4").write_bytes(b"one")
    setting = Comparison((f"video_folder:{clips}",), ("tabletop:sim",))
    for _ in range(2):
        begin(setting, tmp_path / "out")
    assert "changed" not in capsys.readouterr().err
    (clips / "b.mp4").write_bytes(b"two")
    for _ in range(2):
        begin(setting, tmp_path / "out")
        assert f"video_folder:{clips} has changed" in capsys.readouterr().err
