"""Stage 3 with a fifth of the labelled episodes held out first: what is printed, kept and chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resuming import resumed_equals_unbroken, steps_logged, weights
from safetensors.torch import load_file

import lapa
from lapa import cli
from lapa import stage3_finetune as stage3
from lapa.artefacts.folder import load_artefact, write_json
from lapa.contracts import LapaError
from lapa.data.episode_keys import keys_of
from lapa.data.labelled import read_labels
from lapa.data.pack import Packed, pack
from lapa.measures.offline import POLICY, nearest
from lapa.recipe import Recipe
from lapa.run_folder import end_early
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain
from lapa.stage3_finetune import HELD_OUT, finetune


@pytest.fixture(scope="module")
def ten() -> Packed:
    return pack(["tabletop:sim,episodes=10,seed=4"], 24, quiet=True)


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    return replace(tiny, head="new", clusters=4)


def test_the_policy_that_is_kept_is_that_of_all_episodes(
    ten: Packed, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = finetune(ten, None, recipe, tmp_path / "held", 0)
    said = capsys.readouterr().out
    finetune(ten, None, recipe, tmp_path / "all", 0, rehearse=False)
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
    assert set(config["labelled"]["trained"]) == set(keys_of(ten))
    assert written["chosen"] == {}


def test_an_error_in_tasks_without_labels_is_called_so(
    ten: Packed, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Episodes 0 and 8 are held out; with one label a task nothing else shows their tasks."""
    for texts, alone in (("abcdefghij", 2), ("abcdefghia", 1), ("aaaaaaaaaa", 0)):
        finetune(replace(ten, instructions=tuple(texts)), None, recipe, tmp_path / texts, 0)
        told = f"{alone} of the 2 held out ask for what none of the others shows" in capsys.readouterr().out
        assert told == (alone > 0)


def test_what_is_held_out_is_not_learnt_from(
    ten: Packed, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    finetune(ten, None, recipe, tmp_path / "policy", 0)
    assert judged == [{ten.ids[0], ten.ids[8]}]
    assert learnt == [set(ten.ids) - judged[0], set(ten.ids)]


def test_killed_in_the_rehearsal_and_in_the_training_itself(ten: Packed, recipe: Recipe, tmp_path: Path) -> None:
    """Killed twice, it ends with the weights and the held-out figures of a run that was never broken off."""
    resumed_equals_unbroken(lambda out: finetune(ten, None, recipe, out, 7), tmp_path, trainings=2)


def test_fewer_than_five_episodes_hold_none_out(
    ten: Packed, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = finetune(ten.subset(np.arange(4)), None, recipe, tmp_path, 0)
    assert "4 labelled episodes: too few" in capsys.readouterr().out
    assert "held_out_error" not in results
    assert not (tmp_path / HELD_OUT).exists()


def test_a_fifth_that_cannot_be_spared_is_no_reason_to_refuse(
    ten: Packed, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one episode of a dataset with a weight; the one that is as long as the chunk; actions that do not vary."""
    two = pack([f"tabletop:sim,episodes={n},seed=4,weight=1" for n in (1, 4)], 24, quiet=True)
    lengths = np.minimum(np.diff(ten.starts), [8, *[3] * 9])
    short = ten._only(
        np.arange(10), np.concatenate([s + np.arange(n) for s, n in zip(ten.starts[:-1], lengths, strict=True)])
    )
    short = replace(short, starts=np.cumsum([0, *lengths]))
    still = replace(ten, actions=np.zeros_like(ten.require_actions("this")))
    for number, (data, chunk) in enumerate(((two, 1), (short, 5), (still, 1))):
        results = finetune(data, None, replace(recipe, chunk=chunk), tmp_path / str(number), 0)
        assert "held_out_error" not in results
        assert "There is no held-out error: " in capsys.readouterr().out
        assert not (tmp_path / str(number) / "held_out").exists()


def test_the_held_out_error_is_of_as_many_steps_as_the_policy(
    ten: Packed, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = replace(recipe, finetune=replace(recipe.finetune, steps=2 * recipe.finetune.steps))
    first = finetune(ten, None, recipe, tmp_path / "run", 0)
    again = finetune(ten, None, longer, tmp_path / "run", 0)
    whole = finetune(ten, None, longer, tmp_path / "longer", 0)
    assert again["held_out_error"] == whole["held_out_error"] != first["held_out_error"]
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "finish").touch()
    assert "held_out_error" not in finetune(ten, None, recipe, tmp_path / "early", 0)
    assert "not kept: it is that of a policy which was trained to the end" in capsys.readouterr().out


def test_nothing_is_kept_before_there_is_a_policy(
    ten: Packed, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lapa stop` while the held-out error is measured; of a run that is made longer there is one already."""
    write_json(tmp_path / "run.json", {})
    measure, ended = stage3.offline, list[bool]()

    def measuring(*given: Any) -> Any:
        try:
            ended.append(end_early(tmp_path))
        except LapaError as error:
            ended.append("no policy yet" not in str(error))
        return measure(*given)

    monkeypatch.setattr(stage3, "offline", measuring)
    finetune(ten, None, recipe, tmp_path, 0)
    assert ended
    assert not any(ended)
    assert not (tmp_path / "finish").exists()
    (tmp_path / "config.json").unlink()
    before = ended.copy()
    longer = replace(recipe, finetune=replace(recipe.finetune, steps=2 * recipe.finetune.steps))
    finetune(ten, None, longer, tmp_path, 0)
    assert all(ended[len(before) :])
    assert len(ended) > len(before)
    assert steps_logged(tmp_path)[-1] == recipe.finetune.steps, "it ends where it was"


@pytest.mark.parametrize("changes", [{}, {"decoding": "centre"}])
def test_decoding_is_chosen_where_nobody_chose(
    changes: dict[str, Any], ten: Packed, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(ten, None, replace(recipe, choose_decoding=True), tmp_path, 0, changes=changes)
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


def test_a_held_out_error_that_lapa_has_not_written(ten: Packed, recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, choose_decoding=True)
    finetune(ten, None, recipe, tmp_path, 0)
    whole = json.loads((tmp_path / HELD_OUT).read_text())
    for told in ([], {"steps": 2}, {**whole, "chosen": {"decoding": "foo"}}, {**whole, "chosen": {"foo": 1}}):
        (tmp_path / HELD_OUT).write_text(json.dumps(told))
        with pytest.raises(LapaError, match=HELD_OUT.replace(".", r"\.")):
            finetune(ten, None, recipe, tmp_path, 0)


def test_two_short_trajectories_tell_what_classes_mean(
    chain: Path, packed: Packed, tiny: Recipe, tmp_path: Path
) -> None:
    """Also where the one without the other has too few frames to be judged by."""
    short = packed.subset(np.array([0, 1]))
    short = replace(short, starts=np.array([0, 2, len(short)]))
    results = finetune(short, chain / "latent", replace(tiny, chunk=2, head="linear"), tmp_path, 7)
    assert np.isfinite(results["r2_of_labels"])
    assert "r2_left_out" not in results


def test_short_steps_are_not_chosen_for_a_low_error() -> None:
    rows = {
        "expectation": {"error": 0.5, "step": 0.3},
        "norm_preserving": {"error": 0.6, "step": 1.0},
        "centre": {"error": 0.7, "step": 1.1},
    }
    assert nearest(rows) == "norm_preserving"
    assert nearest({name: {**row, "step": 0.2 + row["error"] / 10} for name, row in rows.items()}) == "centre"
    assert nearest({name: {**row, "step": None} for name, row in rows.items()}) == "expectation"


@pytest.mark.parametrize("clusters", [0, 16])
@pytest.mark.parametrize("name", ["lapa", "actionvla"])
def test_reading_the_labels_trains_nothing(
    name: str,
    clusters: int,
    packed: Packed,
    tiny: Recipe,
    chain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`head=linear`: the same weights, and actions that are what its classes mean, weighted by its probabilities."""
    recipe, start = replace(tiny, clusters=clusters, chunk=2), chain / "latent"
    if name == "actionvla":
        manifest = label(packed, "ground_truth", tmp_path / "labels")
        start = tmp_path / "latent"
        pretrain(packed, read_labels(tmp_path / "labels")[0], manifest, recipe, start, 7)
    results = finetune(packed, start, recipe, tmp_path / "policy", 7)
    one, two = weights(start), weights(tmp_path / "policy")
    assert all(torch.equal(one[key], two[key]) for key in one), "also where a dimension has fewer bins than another"
    policy = lapa.Policy.from_pretrained(tmp_path / "policy")
    frames = packed.gather(np.arange(6))
    texts = [packed.instructions[0]] * 6
    before = lapa.Policy.from_pretrained(start).probabilities(frames, texts)
    np.testing.assert_allclose(policy.probabilities(frames, texts), before, atol=1e-6)
    acted = policy.act_batch([{"image": f, "instruction": t} for f, t in zip(frames, texts, strict=True)])
    assert acted.shape == (6, 2, 2)
    means = np.array(policy.space.means).reshape(-1, 2, 2)
    found = (before.reshape(6, -1)[:, :, None, None] * means[None]).sum(1)
    low, high = np.array(policy.space.reach).T
    np.testing.assert_allclose(acted, np.clip(found, low, high), atol=1e-5)
    assert results["labels"] == len(packed) - packed.episodes, (
        "chunks to the end of an episode, and past it as far as it goes"
    )
    assert results["r2_of_labels"] > 0, "better than always the mean"
    assert ("--head own" in capsys.readouterr().out) == (results["r2_left_out"] < 0.3)
    assert results["r2_left_out"] < results["r2_of_labels"], "what was not seen is told less well"


def test_a_policy_that_keeps_its_head_keeps_its_chunk(
    packed: Packed, tiny: Recipe, chain: Path, tmp_path: Path
) -> None:
    """Also where the recipe has a shorter one: targets reach as far as the policy's chunks, and not into the next
    episode or past the last."""
    finetune(packed, chain / "policy", replace(tiny, head="own"), tmp_path, 7)
    assert lapa.Policy.from_pretrained(tmp_path).space.chunk == 3
    assert steps_logged(tmp_path) == [1, 2, 3, 4]


def test_a_head_that_is_kept_learns_at_a_rate_of_its_own(
    packed: Packed, tiny: Recipe, chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 0 it stays as it is; a latent head, which makes way for a new one, has the usual rate."""
    own = replace(tiny, head="own")
    still = replace(own, kept_head_rate=0.0)
    finetune(packed, chain / "policy", still, tmp_path / "kept", 7)
    assert "learns at 0 (kept_head_rate=0)" in capsys.readouterr().err
    before, after = weights(chain / "policy"), weights(tmp_path / "kept")
    assert all(after[name].equal(before[name]) for name in before)
    for name, recipe in {"usual": own, "still": still}.items():
        finetune(packed, chain / "latent", recipe, tmp_path / name, 7)
    usual, new = weights(tmp_path / "usual"), weights(tmp_path / "still")
    assert all(new[name].equal(usual[name]) for name in usual)


@pytest.mark.parametrize("head", ["linear", "own", "new"])
def test_each_robot_keeps_its_own_units(head: str, robot: Path, tiny: Recipe, tmp_path: Path) -> None:
    """The same episodes twice, the second time in other units: in stages 2 and 3 they are one robot's, and the policy
    acts in the units that it is asked for."""
    two = pack([f"lerobot:{robot}"] * 2, 24, quiet=True)
    assert two.actions is not None
    one = two.actions[: len(two) // 2]
    two = replace(two, actions=np.concatenate([one, 100 * one + 3]))
    recipe = replace(tiny, scale="each", head=head)
    manifest = label(two, "ground_truth", tmp_path / "labels")
    pretrain(two, read_labels(tmp_path / "labels")[0], manifest, recipe, tmp_path / "latent", 7)
    finetune(two, tmp_path / "latent", recipe, tmp_path / "policy", 7)
    assert lapa.Policy.from_pretrained(tmp_path / "latent").scales.datasets == 2
    policy = lapa.Policy.from_pretrained(tmp_path / "policy")
    seen = {"image": two.gather(np.arange(1))[0], "instruction": two.instructions[0]}
    one_robot, other = policy.scales.names
    first, second = policy.act(seen), policy.act({**seen, "embodiment": other})
    assert np.abs(first).max() <= np.abs(one).max() + 1e-3
    np.testing.assert_allclose(second, 100 * first + 3, rtol=1e-4)
    np.testing.assert_array_equal(policy.act({**seen, "embodiment": one_robot}), first)
    with pytest.raises(LapaError, match=r'the robot "gripper". Known: tabletop_sim, tabletop_sim 2\.'):
        policy.act({**seen, "embodiment": "gripper"})
    only = pack([f"lerobot:{robot}"], 24, quiet=True)  # whoever keeps such a head scales another dataset as well
    finetune(only, tmp_path / "latent", replace(recipe, scale="joint"), tmp_path / "joint", 7)
    scales = lapa.Policy.from_pretrained(tmp_path / "joint").scales
    assert (scales.datasets if scales else 0) == (1 if head == "own" else 0)


def test_who_says_nothing_yet_gets_a_head(packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    finetune(packed, None, tiny, tmp_path, 7)
    config = load_artefact(tmp_path, "policy").config
    assert config["recipe"]["head"] == "linear"
    assert config["space"]["classes"] == 16, "clusters of the labelled actions"
    assert steps_logged(tmp_path) == [1, 2, 3, 4]


def test_another_seed_is_another_model(packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    for seed in (1, 2):
        finetune(packed, None, tiny, tmp_path / str(seed), seed)
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_finetuning_needs_actions_of_the_same_robot(chain: Path, clips: Path, tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(LapaError, match=r"clips.* actions.* finetuning"):
        finetune(pack([f"video_folder:{clips}"], 24, quiet=True), chain / "latent", tiny, tmp_path / "out", 0)


def test_settings_that_a_pretrained_policy_has(
    robot: Path, small: list[str], chain: Path, packed: Packed, tiny: Recipe, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What the user sets is heeded or refused; what a preset says is not what the user says."""
    label(packed, "ground_truth", tmp_path / "labels")
    labels, manifest = read_labels(tmp_path / "labels")
    pretrain(packed, labels, manifest, tiny, tmp_path / "latent", 0)

    def run(name: str, *more: str) -> str:
        told = [part for option in ("finetune.steps=2", *more) for part in ("--set", option)]
        words = ["finetune", "--dataset", f"lerobot:{robot}", "--policy", str(tmp_path / "latent"), *told,
                 "--out", str(tmp_path / name)]  # fmt: skip
        try:
            cli.main(words)
        except SystemExit:
            return capsys.readouterr().err
        return str(load_artefact(tmp_path / name, "policy").config["model"]["decoding"])

    assert tiny.policy.decoding == "expectation"
    assert run("silent", "head=own") == "expectation", "not the preset's norm_preserving"
    assert run("chosen", "head=own", "policy.decoding=centre") == "centre"
    assert run("read", "head=linear", "policy.decoding=centre") == "centre"
    assert lapa.Policy.from_pretrained(tmp_path / "read").config.decoding == "centre"
    assert run("same", "head=own", 'policy.head_options={"width":16}', "chunk=1") == "expectation"
    wide = run("wide", 'policy.head_options={"width":64}')
    assert "policy.head_options={'width': 64} " in wide
    assert "policy.head_options={'width': 16} " in wide
    assert "chunk=2 " in run("chunk", "head=own", "chunk=2")
    assert "--head new" in run("clusters", "head=own", "clusters=0")
    assert run("new", "head=new", "chunk=2", "clusters=0") == "expectation"
