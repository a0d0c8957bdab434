"""Policies with a robot's inputs: state, several cameras, absolute targets, chunks at the end of an episode."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lapa
from lapa.actions.codebook import ActionCodebook
from lapa.actions.meaning import Meaning
from lapa.artefacts.folder import load_artefact
from lapa.contracts import ActionSpec, LapaError, PolicySpec
from lapa.data import observations
from lapa.data.joined import join
from lapa.data.observations import seen
from lapa.data.pack import Packed, pack
from lapa.policies import chunks_after, configured
from lapa.recipe import Recipe, override
from lapa.runtime.distributed import ParallelModel, shares
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain, sampler
from lapa.stage3_finetune import finetune
from lapa.training import loop

ARM = ActionSpec(("shoulder", "elbow", "gripper"), ("absolute", "absolute", "binary"), 10.0)
PICTURE = np.zeros((40, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def arm() -> Packed:
    """Tabletop's pictures with the actions and the state of an arm: two joints that are told where to be, a gripper."""
    packed = pack(["tabletop:sim,episodes=8,seed=3"], 24, quiet=True)
    assert packed.actions is not None
    steps = np.concatenate([np.zeros((1, 2), np.float32), packed.actions[:-1]])
    joints = np.concatenate([np.cumsum(steps[a:b], 0) for a, b in pairwise(packed.starts)])
    joints += 5 * packed.episode_of(np.arange(len(packed)))[:, None]  # every episode is elsewhere
    grip = (np.arange(len(packed)) % 7 < 3).astype(np.float32)
    state = np.column_stack([joints, np.roll(grip, 1)]).astype(np.float32)
    actions = np.column_stack([joints + packed.actions, grip]).astype(np.float32)
    return replace(
        packed, actions=actions, state=state, action_spec=ARM, action_names=ARM.names, state_names=ARM.names,
        widths=(3,), camera="top", cameras=("top",), embodiments=("arm",),
    )  # fmt: skip


def changed(recipe: Recipe, *options: str) -> Recipe:
    for option in options:
        recipe = override(recipe, option)
    return recipe


def observed(arm: Packed, frame: int, **more: Any) -> Any:
    assert arm.state is not None
    return {"image": arm.gather(np.array([frame]))[0], "instruction": "push", "state": arm.state[frame], **more}


# --- absolute targets -----------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [0, 16])
def test_absolute_targets_are_learnt_relative_to_the_state(
    clusters: int, arm: Packed, tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(arm, None, replace(tiny, clusters=clusters), tmp_path, 7)
    assert "2 dimensions (shoulder, elbow)" in capsys.readouterr().out
    policy = lapa.Policy.from_pretrained(tmp_path)
    assert policy.spec.action == ARM
    assert policy.spec.state == ARM.names
    first = policy.act(observed(arm, 3))
    assert arm.state is not None
    moved = policy.act(observed(arm, 3) | {"state": arm.state[3] + np.float32([100, 10, 0])})
    np.testing.assert_allclose(moved - first, [[100, 10, 0]], atol=1e-4)
    steps = np.abs(arm.actions - arm.state)[:, :2].max() if arm.actions is not None else 0
    assert np.abs(first[0, :2] - arm.state[3, :2]).max() <= steps + 1e-5, "no further than a step of the data"
    with pytest.raises(LapaError, match=r'state, 3 numbers .*"shoulder"'):
        policy.act({"image": PICTURE, "instruction": "push"})
    with pytest.raises(LapaError, match="3 finite numbers"):
        policy.act({"image": PICTURE, "instruction": "push", "state": np.zeros(2)})


def test_the_bins_of_a_chunk_reach_as_far_as_its_last_step(arm: Packed, tiny: Recipe) -> None:
    """Relative to the present state the fourth target is farther than the first: its bins must reach there too."""
    policy = configured(tiny).build()
    examples = policy.adapt(arm, replace(tiny, clusters=0, bins=64, chunk=4))
    assert arm.state is not None
    chunks, pad = chunks_after(arm, examples.frames, 4)
    whole, state = ~pad.any(1), arm.state[examples.frames][:, None]
    learnt = policy.acting.decode(examples.targets[whole].reshape(-1, 4, 3))  # type: ignore[attr-defined]
    away = (chunks - state)[whole][..., :2]
    off = np.abs(learnt[..., :2] - away).mean((0, 2))
    assert (off < 0.15 * np.abs(away).mean((0, 2))).all()


@pytest.mark.parametrize("options", [("clusters=0",), ("clusters=16",), ("policy.head=regression",)])
def test_actions_that_a_kept_head_cannot_answer_are_told(
    options: tuple[str, ...], arm: Packed, tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a robot that counts in other units: they are learnt as the nearest that the head knows; a head of numbers
    answers in their range from then on, and learns at the whole rate."""
    recipe = replace(changed(tiny, *options), actions="given", head="own")
    finetune(arm, None, recipe, tmp_path / "metres", 7)
    finetune(arm, tmp_path / "metres", recipe, tmp_path / "again", 7)
    assert "lie outside" not in capsys.readouterr().out
    assert arm.actions is not None
    gentle = replace(recipe, kept_head_rate=0.0)
    finetune(replace(arm, actions=100 * arm.actions), tmp_path / "metres", gentle, tmp_path / "centimetres", 7)
    said = capsys.readouterr().out
    assert re.search(r"% of the labelled (shoulder|elbow|gripper) lie outside ", said)
    numbers = options == ("policy.head=regression",)
    assert ("--head new makes one" in said, "in the range of these labels" in said) == (not numbers, numbers)
    if numbers:
        before, after = (lapa.Policy.from_pretrained(tmp_path / name) for name in ("metres", "centimetres"))
        np.testing.assert_allclose(after.acting.reach, 100 * np.array(before.acting.reach), rtol=1e-5)
        assert not all(a.equal(b) for a, b in zip(after.head.parameters(), before.head.parameters(), strict=True))


def test_actions_of_another_kind_or_rate_are_told_where_a_head_is_kept(
    arm: Packed, tiny: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, own = configured(tiny).build(), replace(tiny, head="own", actions="given")
    policy.adapt(arm, own)
    policy.adapt(arm, own)
    assert "something else" not in capsys.readouterr().out
    other = replace(ARM, kinds=("delta", "absolute", "binary"), hz=30.0)
    policy.adapt(replace(arm, action_spec=other), own)
    said = capsys.readouterr().out
    assert "shoulder was absolute and is delta; there were 10 actions a second and are 30." in said
    assert "elbow" not in said


@pytest.mark.parametrize("turn", [2 * np.pi, 360.0])
def test_angles_that_wrap_are_told(turn: float, arm: Packed, tiny: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    assert arm.actions is not None
    assert arm.state is not None
    angle = np.linspace(0, 4 * turn, len(arm)).astype(np.float32)  # goes round, and further by a step each time
    state, actions = arm.state.copy(), arm.actions.copy()
    state[:, 1], actions[:, 1] = angle, angle + turn / 100
    configured(tiny).build().adapt(replace(arm, state=state, actions=actions), tiny)
    assert "whole turn" not in capsys.readouterr().out
    state, actions = ((table + turn / 2) % turn - turn / 2 for table in (state, actions))
    configured(tiny).build().adapt(replace(arm, state=state, actions=actions), tiny)
    said = capsys.readouterr().out
    assert re.search(r"elbow is a whole turn from the state in \d\.\d% of the labelled targets: an angle in", said)
    assert "shoulder is" not in said


def test_trajectories_of_several_rates_are_told(
    arm: Packed, tiny: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    configured(tiny).build().adapt(arm, tiny)
    assert "actions a second" not in capsys.readouterr().out
    configured(tiny).build().adapt(replace(arm, fps=np.where(np.arange(8) < 4, 10.0, 30.0)), tiny)
    assert "have 10 to 30 actions a second, and the policy answers at 10" in capsys.readouterr().out


def test_absolute_targets_as_they_are(arm: Packed, tiny: Recipe, tmp_path: Path) -> None:
    finetune(arm, None, replace(tiny, actions="given"), tmp_path, 7)
    policy = lapa.Policy.from_pretrained(tmp_path)
    assert policy.spec.state == ()
    assert policy.act({"image": PICTURE, "instruction": "push"}).shape == (1, 3)
    with pytest.raises(LapaError, match=r"actions=relative: .*\bstate\b"):
        finetune(replace(arm, state=None), None, replace(tiny, actions="relative"), tmp_path / "out", 7)


def test_there_and_back() -> None:
    meaning = Meaning(ARM, (True, True, False), ARM.names)
    rng = np.random.default_rng(0)
    chunks, state = rng.normal(size=(5, 4, 3)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    learnt = meaning.targets(chunks, state)
    np.testing.assert_allclose(learnt[:, 2, :2], chunks[:, 2, :2] - state[:, :2], atol=1e-6)
    np.testing.assert_array_equal(learnt[..., 2], chunks[..., 2])
    np.testing.assert_allclose(meaning.robot(learnt, state), chunks, atol=1e-6)
    along = meaning.along(np.diff(chunks, axis=1, prepend=state[:, None]), state)
    np.testing.assert_allclose(along[..., :2], chunks[..., :2], atol=1e-5)


@pytest.mark.parametrize("head", ["own", "linear"])
def test_pretrained_on_changes_of_state(head: str, arm: Packed, tiny: Recipe, tmp_path: Path) -> None:
    """ActionVLA's labels of absolute targets are changes of state; its policy adds the state back, before stage 3 and
    after it."""
    manifest = label(arm, "ground_truth", tmp_path / "labels")
    assert list(manifest["meaning"]["relative"]) == [True, True, False]
    from lapa.data.labelled import read_labels

    labels, manifest = read_labels(tmp_path / "labels")
    pretrain(arm, labels, manifest, tiny, tmp_path / "latent", 7)
    finetune(arm, tmp_path / "latent", replace(tiny, head=head), tmp_path / "policy", 7)
    for name in ("latent", "policy"):
        policy = lapa.Policy.from_pretrained(tmp_path / name)
        one, two = (policy.act(observed(arm, 3) | {"state": np.float32([at, at, 0])}) for at in (0, 50))
        np.testing.assert_allclose(two - one, [[50, 50, 0]], atol=1e-4)


# --- the state ------------------------------------------------------------------------------------


def test_the_state_is_read(arm: Packed, tiny: Recipe, tmp_path: Path) -> None:
    recipe = changed(replace(tiny, actions="given", trainable="all"), "policy.state=true")
    finetune(arm, None, recipe, tmp_path, 7)
    saved = load_artefact(tmp_path, "policy")
    assert {"backbone.state.weight", "backbone.state.bias"} <= saved.tensors.keys()
    assert saved.config["reads"]["mean"] == pytest.approx(arm.state.mean(0).tolist(), rel=1e-4)  # type: ignore[union-attr]
    policy = lapa.Policy.from_pretrained(tmp_path)
    assert policy.spec.state == ARM.names
    here, there = (policy.act(observed(arm, 3) | {"state": np.float32([at, at, 0])}) for at in (0, 30))
    assert not np.array_equal(here, there)


def test_a_policy_learns_to_read_the_state_in_stage_3(arm: Packed, tiny: Recipe, tmp_path: Path) -> None:
    manifest = label(arm, "ground_truth", tmp_path / "labels")
    from lapa.data.labelled import read_labels

    pretrain(arm, read_labels(tmp_path / "labels")[0], manifest, tiny, tmp_path / "latent", 7)
    changes = {"state": True}
    with pytest.raises(LapaError, match="--head linear"):
        finetune(arm, tmp_path / "latent", replace(tiny, head="linear"), tmp_path / "out", 7, changes=changes)
    finetune(arm, tmp_path / "latent", replace(tiny, head="own"), tmp_path / "policy", 7, changes=changes)
    before, after = (load_artefact(tmp_path / name, "policy").tensors for name in ("latent", "policy"))
    assert {name for name in after if name not in before} == {"backbone.state.weight", "backbone.state.bias"}
    with pytest.raises(LapaError, match="state"):
        finetune(arm, tmp_path / "policy", replace(tiny, head="own"), tmp_path / "less", 7, changes={"state": False})
    with pytest.raises(LapaError, match=r"policy\.state=true: .*\bstate\b"):
        finetune(replace(arm, state=None), None, changed(tiny, "policy.state=true"), tmp_path / "none", 7)


def test_the_names_of_the_state_are_those_of_the_robot(
    arm: Packed, tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = changed(replace(tiny, head="own", actions="given"), "policy.state=true")
    finetune(arm, None, recipe, tmp_path / "one", 7)
    other = replace(arm, state_names=("j0", "j1", "grip"))
    finetune(other, tmp_path / "one", recipe, tmp_path / "two", 7)
    assert lapa.Policy.from_pretrained(tmp_path / "two").spec.state == ("j0", "j1", "grip")
    assert "shoulder, elbow, gripper the policy reads j0, j1, grip" in capsys.readouterr().err
    with pytest.raises(LapaError, match="another order, gripper, elbow, shoulder"):
        finetune(replace(arm, state_names=ARM.names[::-1]), tmp_path / "one", recipe, tmp_path / "three", 7)
    turned = ActionSpec(ARM.names[::-1], ARM.kinds[::-1], ARM.hz)
    with pytest.raises(LapaError, match=r"another order \(gripper, elbow, shoulder;.*--head new"):
        finetune(replace(arm, action_spec=turned, action_names=turned.names), tmp_path / "one", recipe,
                 tmp_path / "four", 7)  # fmt: skip


def test_two_datasets_of_one_robot_in_another_order(arm: Packed) -> None:
    assert arm.action_spec is not None
    names = ARM.names[::-1]
    other = replace(arm, action_names=names, state_names=names, action_spec=replace(arm.action_spec, names=names))
    assert join([arm, arm])["actions"] is not None
    assert join([arm, other])["actions"] is None
    assert join([arm, other])["state"] is None
    told = join([arm, other])["notes"]
    assert any("state: left out, for the datasets have 3 numbers, 3 numbers in another order" in note for note in told)
    less = join([arm, replace(arm, state=None, state_names=())])
    assert any("have 3 numbers, none; absolute actions are not taken as changes of it" in n for n in less["notes"])
    assert not any("left out" in note for note in join([arm, arm])["notes"])
    named = replace(other, action_names=tuple("abc"), state_names=tuple("abc"))
    assert join([arm, named])["actions"] is not None, "those of another robot are asked for"


# --- cameras --------------------------------------------------------------------------------------


def two_cameras(arm: Packed) -> Packed:
    """The same episodes seen from a second camera, upside down."""
    wrist = replace(arm, camera="wrist", _maps=tuple(frames[:, ::-1] for frames in arm._maps))
    return replace(arm, cameras=("top", "wrist"), _views=(wrist,))


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_two_cameras(trainable: Any, arm: Packed, tiny: Recipe, tmp_path: Path) -> None:
    recipe = changed(replace(tiny, actions="given", trainable=trainable), 'policy.cameras=["top","wrist"]')
    finetune(two_cameras(arm), None, recipe, tmp_path, 7)
    embedding = load_artefact(tmp_path, "policy").tensors["backbone.camera"]
    assert embedding.shape == (2, 16)
    assert embedding.abs().sum() > 0, "it is learnt, also where only what is new trains"
    policy = lapa.Policy.from_pretrained(tmp_path)
    assert policy.spec.cameras == ("top", "wrist")
    policy.backbone.camera.data.normal_()  # type: ignore[union-attr,operator]  # as after more than four steps
    top, wrist = (two_cameras(arm).gather(np.array([frame]))[0] for frame in (3, 4))

    def act(**images: np.ndarray) -> np.ndarray:
        return policy.act({"images": images, "instruction": "push"})

    acted = act(top=top, wrist=wrist)
    assert not np.array_equal(acted, act(top=top, wrist=255 - wrist)), "it looks at both"
    assert not np.array_equal(acted, act(top=wrist, wrist=top)), "and tells them apart"
    np.testing.assert_array_equal(acted, act(wrist=wrist, top=top))
    turned = {"cameras": ("wrist", "top")}
    finetune(two_cameras(arm), tmp_path, replace(recipe, head="own"), tmp_path / "turned", 7, changes=turned)
    assert lapa.Policy.from_pretrained(tmp_path / "turned").spec.cameras == ("top", "wrist"), "as it was taught"
    with pytest.raises(LapaError, match=r'camera "wrist".* "top"'):
        act(top=top)
    with pytest.raises(LapaError, match=r'no camera "front".*Its cameras: top, wrist'):
        finetune(two_cameras(arm), None, changed(tiny, 'policy.cameras=["front"]'), tmp_path / "out", 7)


def test_one_camera_and_no_state_have_no_new_weights(tiny: Recipe, arm: Packed, tmp_path: Path) -> None:
    finetune(arm, None, tiny, tmp_path, 7)
    names = load_artefact(tmp_path, "policy").tensors.keys()
    assert not {name for name in names if name.startswith(("backbone.camera", "backbone.state"))}


# --- the end of an episode ------------------------------------------------------------------------


def test_chunks_go_on_to_the_end(arm: Packed) -> None:
    last = int(arm.starts[1]) - 2  # the last frame with an action that leads somewhere
    chunks, pad = chunks_after(arm, np.array([last - 2, last - 1, last]), 3)
    assert arm.actions is not None
    np.testing.assert_array_equal(pad, [[False] * 3, [False, False, True], [False, True, True]])
    np.testing.assert_array_equal(chunks[2, 0], arm.actions[last])
    np.testing.assert_array_equal(chunks[1, :2], arm.actions[last - 1 : last + 1])
    with pytest.raises(LapaError, match=r"\b500\b"):
        chunks_after(arm, np.array([0, 1]), 500)


@pytest.mark.parametrize("clusters", [0, 16])
def test_what_lies_past_the_end_teaches_nothing(clusters: int, arm: Packed, tiny: Recipe, tmp_path: Path) -> None:
    """Whatever stands there: the same policy, bit by bit."""
    assert arm.actions is not None
    other = arm.actions.copy()
    other[arm.starts[1:] - 1] = 1e6
    recipe = replace(tiny, clusters=clusters, chunk=4)
    for name, data in (("one", arm), ("two", replace(arm, actions=other))):
        finetune(data, None, recipe, tmp_path / name, 7)
    one, two = (load_artefact(tmp_path / name, "policy") for name in ("one", "two"))
    assert one.config["space"] == two.config["space"]
    assert all(torch.equal(one.tensors[key], two.tensors[key]) for key in one.tensors)


def test_a_part_of_a_chunk_has_the_class_that_fits_it() -> None:
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(60, 3, 2))
    words = ActionCodebook.clusters(chunks, 8)
    pad = np.zeros((60, 3), bool)
    pad[::2, 2] = True
    spoilt = np.where(pad[..., None], 1e3, chunks)
    found = words.encode(spoilt, pad)[:, 0]
    means = np.array(words.means).reshape(8, 3, 2) / words.unit
    for row in range(60):
        here = ~pad[row]
        distance = ((means[:, here] - chunks[row, here] / words.unit) ** 2).sum((1, 2))
        assert found[row] == distance.argmin()
    said = rng.dirichlet(np.ones(4), size=60)[:, None]
    read, same = (ActionCodebook.from_readout(said, x, pad=pad) for x in (spoilt, chunks))
    assert read == same


# --- observations ---------------------------------------------------------------------------------


def test_observations_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = PolicySpec(("image",), (), None), PolicySpec(("top", "wrist"), (), None)
    short = {"image": PICTURE, "instruction": "push"}
    assert seen([short], one).texts == ["push"]
    np.testing.assert_array_equal(
        seen([{"images": {"front": PICTURE}, "instruction": ""}], one).images["image"][0], PICTURE
    )
    for wrong, message in (
        (short | {"imgae": PICTURE}, '"imgae"'),
        ({"instruction": "push"}, '"images" is missing'),
        ({"image": PICTURE}, '"instruction" is missing'),
        (short | {"instruction": None}, "instruction.* None"),
        (short | {"images": {"top": PICTURE}}, 'both "image" and "images"'),
        ({"image": PICTURE.astype(np.float32), "instruction": ""}, r"float32 \[40, 30, 3\]"),
        ({"image": PICTURE[..., 0], "instruction": ""}, r"uint8 \[40, 30\]"),
        (
            {"images": {"a": PICTURE, "b": PICTURE}, "instruction": ""},
            r'camera "image".* "a", "b"',
        ),
        ("push", "got str"),
        (short | {"instruction": "\ud800"}, "no text"),
        ({"image": PICTURE[:0], "instruction": ""}, r"uint8 \[0, 30, 3\]"),
        ({"image": [[1, 2], [3]], "instruction": ""}, r"\[\[1, 2\], \[3\]\]"),
    ):
        with pytest.raises(LapaError, match=message):
            seen([wrong], one)  # type: ignore[list-item]
    with pytest.raises(LapaError, match="got none"):
        seen([], one)
    arm = PolicySpec(("image",), ("x", "y"), None)
    for state, message in (
        ([1, np.nan], r'"x", "y".*\[1.0, nan\]'),
        ([1e300, 0], r"\[inf, 0.0\]"),
        ([1, 10**400], r"\[1, 1000"),
        (["a", "b"], r"\['a', 'b'\]"),
        ([[1], [2, 3]], r"\[\[1\], \[2, 3\]\]"),
        ({"x": 1, "y": 2}, "'x': 1"),
        ([1, 2, 3], r"shape \[3\]"),
    ):
        with pytest.raises(LapaError, match=message):
            seen([short | {"state": state}], arm)  # type: ignore[list-item]
    with pytest.raises(LapaError, match=r'camera "top".* "image"'):
        seen([short], two)
    observations._SAID.clear()
    full = {"images": {"top": PICTURE, "wrist": PICTURE, "back": PICTURE}, "instruction": "", "state": np.zeros(2),
            "embodiment": "arm"}  # fmt: skip
    for _ in range(2):
        seen([full], two)
    told = capsys.readouterr().err
    assert [told.count(word) for word in ('"back"', "state", "embodiment")] == [1, 2, 1], "once each"


@pytest.mark.parametrize("options", [("clusters=0",), ("policy.head=regression",)])
def test_an_accumulated_step_is_that_of_the_whole_batch(options: tuple[str, ...], arm: Packed, tiny: Recipe) -> None:
    """Micro-batches with chunks that the end of an episode cuts short have fewer targets, and count by them."""
    loop.seed_everything(0)
    policy = configured(changed(tiny, *options)).build()
    examples = policy.adapt(arm, replace(changed(tiny, *options), chunk=4))
    last = np.flatnonzero(np.diff(arm.episode_of(examples.frames)))  # the last frame of an episode with an action
    rows = np.concatenate([last[:4], last[:4] - 5])
    source = sampler(policy, arm, examples, 8)

    def step(accumulate: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        policy.zero_grad()
        parts = [(share, source.load(rows[share.start : share.start + share.count])) for share in shares(8, accumulate)]
        how = replace(tiny.finetune, accumulate=accumulate)
        logs = loop._backward(ParallelModel(policy, "ddp"), parts, how, 0, 0)
        return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}, logs

    (whole, told), (split, its) = step(1), step(2)
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, atol=1e-6, rtol=1e-4)
    name = "absolute_error" if "regression" in options[0] else "accuracy"
    assert (its["loss"], its[name]) == pytest.approx((told["loss"], told[name]), rel=1e-5)
