"""The three stages on disk: resumed equals unbroken, what does not belong together is refused, and it learns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lapa
from lapa import cli
from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.artefacts.folder import load_artefact
from lapa.backbones.tiny import Config as TinyVLM
from lapa.contracts import FramePairs, LapaError
from lapa.data.labelled import read_labels
from lapa.data.observations import Seen
from lapa.data.pack import Packed, pack
from lapa.data.pairs import window_pairs
from lapa.data.pixels import as_pixels
from lapa.data.stream import stream
from lapa.methods import METHODS
from lapa.models.idm import InverseDynamics, shifted
from lapa.models.laq import LAQ
from lapa.policies import configured
from lapa.recipe import Recipe, override
from lapa.runtime.distributed import Share, working_on
from lapa.stage1_latent_actions import code_table, fit_idm, fit_laq
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain
from lapa.stage3_finetune import finetune
from lapa.tabletop import grounding as stage0_grounding
from lapa.tabletop.grounding import Grounding, scenes
from lapa.tabletop.render import DOMAINS, render
from lapa.training import loop
from lapa.training.resume import Checkpoints

Stage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def packed(robot: Path) -> Packed:
    return pack([f"lerobot:{robot}"], 24, quiet=True)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def steps_logged(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


# --- resumed equals unbroken ----------------------------------------------------------------------


def killed_after(steps: int, stage: Stage, out: Path) -> None:
    """Run a stage with a checkpoint at every step and interrupt it in the middle of step number steps + 1."""

    def seed(seed: int, step: int = 0) -> np.random.Generator:
        if step == steps:
            raise KeyboardInterrupt
        return seed_everything(seed, step)

    seed_everything = loop.seed_everything
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "seed_everything", seed)
        patch.setitem(loop.fit.__kwdefaults__, "save_every", -1.0)
        with pytest.raises(KeyboardInterrupt):
            stage(out)
    assert not (out / "config.json").exists()
    # Stage 3 trains twice: first without a fifth of the episodes, to measure its error, in a folder of its own.
    killed = out / "held_out" if (out / "held_out").exists() else out
    assert Checkpoints(killed, 7, 2).steps()[-1] == steps
    with (killed / "metrics.jsonl").open("a") as file:  # a run is often killed some steps after its last checkpoint
        file.write('{"step": 3, "loss": 7}\n{"step": 4, "lo')


def resumed_equals_unbroken(stage: Stage, folder: Path) -> Path:
    """Four steps at once, and two and two: every weight, every bit. Returns the artefact."""
    stage(folder / "unbroken")
    killed_after(2, stage, folder / "resumed")
    stage(folder / "resumed")
    one, two = weights(folder / "unbroken"), weights(folder / "resumed")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert steps_logged(folder / "resumed") == [1, 2, 3, 4]
    return folder / "unbroken"


@pytest.mark.parametrize("trainable", ["head", "all"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_to_the_same_bits(
    name: str, trainable: Any, packed: Packed, tiny: Recipe, tmp_path: Path
) -> None:
    method, recipe = METHODS[name], replace(tiny, trainable=trainable, head="own")
    start = reader = None
    if method.source:
        source = method.source
        if method.fits:
            fit = fit_laq if method.fits == "laq" else fit_idm
            fitted = resumed_equals_unbroken(lambda out: fit(packed, recipe, out, 7), tmp_path / "fit")
            reader, source = (fitted, source) if method.read_by == "policy" else (None, str(fitted))
        manifest = label(packed, source, tmp_path / "labels")
        assert manifest["method"] == name
        labels, _ = read_labels(tmp_path / "labels")
        start = resumed_equals_unbroken(
            lambda out: pretrain(packed, labels, manifest, recipe, out, 7), tmp_path / "latent"
        )
        if name == "lapa":
            space = load_artefact(start, "policy").config["space"]
            assert (
                space["code_embeddings"]
                == manifest["code_embeddings"]
                == LAQ.from_pretrained(fitted).code_embeddings().tolist()
            )
    policy = resumed_equals_unbroken(lambda out: finetune(packed, start, recipe, out, 7, reader), tmp_path / "policy")
    config = load_artefact(policy, "policy").config
    assert config["method"] == name
    assert list(config["provenance"]["parents"]) == [str(path) for path in (start, reader) if path]
    assert config["provenance"]["data"] == {packed.spec: packed.fingerprint}
    if start:
        frozen = [
            k for k in weights(policy) if k.startswith("backbone." if trainable == "head" else "backbone.vision.")
        ]
        assert frozen
        assert all(torch.equal(weights(policy)[k], weights(start)[k]) for k in frozen)


@pytest.mark.parametrize("clusters", [0, 16])
@pytest.mark.parametrize("name", ["lapa", "actionvla"])
def test_reading_the_labels_trains_nothing(
    name: str,
    clusters: int,
    packed: Packed,
    tiny: Recipe,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`head=linear`: the same weights, and actions that are what its classes mean, weighted by its probabilities."""
    recipe, start = replace(tiny, clusters=clusters, chunk=2), made / "latent"
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
    assert ("That is little" in capsys.readouterr().out) == (results["r2_left_out"] < 0.3)
    assert results["r2_left_out"] < results["r2_of_labels"], "what was not seen is told less well"


def test_a_policy_that_keeps_its_head_keeps_its_chunk(packed: Packed, tiny: Recipe, made: Path, tmp_path: Path) -> None:
    """Also where the recipe has a shorter one: targets reach as far as the policy's chunks, and not into the next
    episode or past the last."""
    finetune(packed, made / "policy", replace(tiny, head="own"), tmp_path, 7)
    assert lapa.Policy.from_pretrained(tmp_path).space.chunk == 3
    assert steps_logged(tmp_path) == [1, 2, 3, 4]


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


def test_both_frames_of_a_pair_are_shifted_alike() -> None:
    """Whole pixels, a way of its own for each pair, edges repeated; a part of the batch is moved as in the whole."""
    torch.manual_seed(0)
    images = torch.rand(40, 6, 9, 7)
    state = torch.get_rng_state()
    moved = shifted(images, 2)
    found = set()
    for image, result in zip(images, moved, strict=True):
        padded = torch.nn.functional.pad(image[None], (2, 2, 2, 2), mode="replicate")[0]
        ways = [(y, x) for y in range(5) for x in range(5) if torch.equal(padded[:, y : y + 9, x : x + 7], result)]
        assert ways
        found |= set(ways)
    assert len(found) > 15, "of 25"
    torch.set_rng_state(state)
    with working_on(Share(10, 5, 40)):
        assert torch.equal(shifted(images[10:15], 2), moved[10:15])


# --- golden losses --------------------------------------------------------------------------------

GOLDEN = {
    "laq": [0.170639, 0.167509, 0.168456],
    "idm": [1.348326, 0.858378, 0.890463],
    "codes": [1.486985, 1.379948, 1.514694],
    "actions": [0.938211, 0.937084, 0.911789],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_losses(name: str, tiny: Recipe, tmp_path: Path) -> None:
    """Three steps on noise. A change here is a change of the method: record it anew and say so in the commit."""
    loop.seed_everything(0)
    spaces = {"codes": CodeSpace(2, 4), "actions": ActionSpace(((0.0, 1.0, 2.0), (0.0, 1.0, 3.0, 9.0)), ("x", "y"), 2)}
    if name in spaces:
        model = configured(tiny).build()
        model.grow(spaces[name])
    else:
        model = tiny.laq.build() if name == "laq" else InverseDynamics(tiny.idm, 2)

    def draw(rng: np.random.Generator) -> np.ndarray:
        frames = rng.integers(0, 256, (2, 8, 24, 24, 3), np.uint8)
        answers = rng.integers(0, 2, (8, spaces[name].positions)) if name in spaces else rng.normal(size=(8, 2))
        return np.fromiter(zip(*frames, answers, strict=True), object)

    def load(drawn: np.ndarray) -> Any:
        now, later, answers = (np.stack(part) for part in zip(*drawn, strict=True))
        if name in spaces:
            return model.batch(Seen.of(now, ["push the red disc to the blue star"] * 8), answers)
        rows = np.arange(8)
        return FramePairs(now, later, rows, rows, rows + 1, answers.astype(np.float32))

    loop.fit(model, loop.Sampler(draw, load), replace(tiny.quantize, steps=3), tmp_path, seed=0, title=name)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(GOLDEN[name], abs=1e-3)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, tiny: Recipe) -> None:
    class Broken(torch.nn.Linear):
        def loss(self, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
            return self.weight.sum() * float("nan"), {}

    nothing = loop.Sampler(lambda rng: np.arange(8), lambda rows: None)
    with pytest.raises(LapaError, match="broken: the loss is nan at step 1; try a lower learning rate"):
        loop.fit(Broken(1, 1), nothing, tiny.quantize, tmp_path, seed=0, title="broken")


def test_the_learning_rate_warms_up_and_falls() -> None:
    how = loop.Optimisation(steps=100, learning_rate=2.0, warmup=10)
    rates = [how.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0, rel=0.03)
    assert rates[99] == pytest.approx(0.1, rel=0.02), "a twentieth"
    assert rates[55] == pytest.approx(2.0 * (0.05 + 0.475 * (1 + np.cos(0.55 * np.pi))))
    assert replace(how, schedule="constant").rate(99) == 2.0


# --- what does not belong together ----------------------------------------------------------------


@pytest.fixture(scope="module")
def made(packed: Packed, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """laq, labels, latent, policy: LAPA's chain after four steps a stage."""
    folder = tmp_path_factory.mktemp("made")
    fit_laq(packed, tiny, folder / "laq", 0)
    manifest = label(packed, str(folder / "laq"), folder / "labels")
    pretrain(packed, read_labels(folder / "labels")[0], manifest, tiny, folder / "latent", 0)
    finetune(packed, folder / "latent", replace(tiny, chunk=3), folder / "policy", 0)
    return folder


def test_labels_of_other_data(made: Path, tiny: Recipe, tmp_path: Path) -> None:
    other = pack(["tabletop:sim,episodes=12,seed=9"], 24, quiet=True)
    labels, manifest = read_labels(made / "labels")
    with pytest.raises(LapaError, match=r"made from lerobot:.*not from tabletop:sim,episodes=12,seed=9.*lapa label"):
        pretrain(other, labels, manifest, tiny, tmp_path / "out", 0)


def test_labels_of_another_laq(made: Path, packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    labels, manifest = read_labels(made / "labels")
    own = load_artefact(made / "laq", "laq").hash
    assert manifest["source_hash"] == own
    fit_laq(packed, tiny, tmp_path / "other", 1)
    other = load_artefact(tmp_path / "other", "laq").hash
    with pytest.raises(LapaError, match=rf"hash {own}, not from the one expected \({other}\)"):
        pretrain(packed, labels, manifest, tiny, tmp_path / "out", 0, source_hash=other)


def test_labels_that_point_outside(made: Path, packed: Packed, tiny: Recipe, tmp_path: Path) -> None:
    labels, manifest = read_labels(made / "labels")
    with pytest.raises(LapaError, match="point outside"):
        pretrain(packed, replace(labels, frame=labels.frame + 50), manifest, tiny, tmp_path / "out", 0)


def test_labels_of_an_unlabelled_dataset(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(LapaError, match="this dataset has none"):
        label(pack([f"video_folder:{clips}"], 24, quiet=True), "ground_truth", tmp_path / "labels")


def test_finetuning_needs_actions_of_the_same_robot(made: Path, clips: Path, tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(LapaError, match="has no actions, and finetuning needs them"):
        finetune(pack([f"video_folder:{clips}"], 24, quiet=True), made / "latent", tiny, tmp_path / "out", 0)


def damaged(made: Path, tmp_path: Path, harm: Callable[[Path], object]) -> Path:
    path = tmp_path / "policy"
    shutil.copytree(made / "policy", path)
    harm(path)
    return path


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        change(config)
        (path / "config.json").write_text(json.dumps(config))

    return apply


def without_a_key(path: Path) -> None:
    """Weights that match config.json but lack a tensor, as a run of another version may leave them."""
    tensors = weights(path)
    del tensors["head.0.bias"]
    save_file(tensors, path / "model.safetensors")
    edit(lambda c: c.update(hash=lapa.artefacts.folder.file_hash(path / "model.safetensors")))(path)


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)


def cut_short(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: (p / "config.json").unlink(), r"holds no finished policy artefact: config.json is missing"),
        (lambda p: (p / "model.safetensors").unlink(), r"model.safetensors is missing"),
        (lambda p: (p / "config.json").write_text("{"), r"config.json is not readable JSON"),
        (lambda p: (p / "config.json").write_text("[]"), r'holds a "None" artefact, not a "policy"'),
        (edit(lambda c: c.update(kind="laq")), r'holds a "laq" artefact, not a "policy"'),
        (edit(lambda c: c.update(format=99)), r"has artefact format 99; this lapa reads formats 1 and 2"),
        (edit(lambda c: c.update(policy="vlaa")), r'Did you mean "vla"'),
        (edit(lambda c: c.update(space={"kind": "actions"})), r"space in config.json is not one lapa wrote"),
        (without_a_key, r"do not fit the model: missing head.0.bias"),
        (
            edit(lambda c: c["model"].update(head_options={"width": 17})),
            r"head.0.weight is \(16, 32\), expected \(17, 32\)",
        ),
        (flip_a_bit, r"model.safetensors does not match config.json \(hash"),
        (cut_short, r"not a whole safetensors file"),
        (shutil.rmtree, r"There is no folder .*policy"),
    ],
)
def test_a_damaged_artefact_is_refused(made: Path, tmp_path: Path, harm: Any, message: str) -> None:
    path = damaged(made, tmp_path, harm)
    with pytest.raises(LapaError, match=message) as refused:
        lapa.Policy.from_pretrained(path)
    assert str(path) in str(refused.value) or "Did you mean" in message or "space" in message


def test_a_setting_of_another_version_is_refused(made: Path, tmp_path: Path) -> None:
    """A setting too many, or none at all: not a traceback."""
    for name, harm in {"none": lambda c: c.pop("model"), "flavour": lambda c: c["model"].update(flavour=1)}.items():
        path = damaged(made, tmp_path / name, edit(harm))
        with pytest.raises(
            LapaError, match=r'describe a "policy" of this lapa .*open it with the version that wrote it: 0'
        ):
            lapa.Policy.from_pretrained(path)


def test_an_option_that_a_plugin_lacks_is_corrected(tiny: Recipe) -> None:
    with pytest.raises(LapaError, match=r'option of lapa/backbones/tiny "widht". Did you mean "width"'):
        configured(replace(tiny, policy=replace(tiny.policy, backbone_options={"widht": 3}))).build()
    with pytest.raises(LapaError, match=r'option of lapa/quantizers/nsvq "treshold". Did you mean "threshold"'):
        replace(tiny.laq, quantizer_options={"treshold": 0.5}).build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": "high"}, "option threshold of lapa/quantizers/nsvq is a float, not 'high'"),
        ({"threshold": True}, "is a float, not True"),
        ({"schedule": 3}, r"schedule .* is a tuple.*, not 3"),
        ({"schedule": [[1, 2]]}, r"not \[\[1, 2\]\]"),
    ],
)
def test_an_option_of_another_type(tiny: Recipe, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LapaError, match=message):
        replace(tiny.laq, quantizer_options=options).build()
    replace(tiny.laq, quantizer_options={"threshold": 1, "schedule": [[1, 4, 1]]}).build()


@pytest.mark.parametrize("streamed", [False, True])
def test_something_is_left_to_train_on(robot: Path, tiny: Recipe, tmp_path: Path, streamed: bool) -> None:
    data = (stream if streamed else pack)([f"lerobot:{robot}"], 24, quiet=True)
    with pytest.raises(LapaError, match="hold_out=1 keeps one episode in 1 from training, and none is left"):
        fit_laq(data, replace(tiny, hold_out=1), tmp_path / "laq", 0)


def test_motion_is_the_effectors_or_nothing(made: Path, packed: Packed) -> None:
    """Whatever column it lies in; joints are no motion in the picture."""
    laq, pairs = lapa.LAQ.from_pretrained(made / "laq"), window_pairs(packed, 0.2)
    assert packed.state is not None
    assert packed.state_names[:2] == ("effector_x", "effector_y")
    rows = np.arange(64)
    codes, motion = code_table(laq, packed, pairs, rows)
    turned = replace(packed, state=packed.state[:, ::-1], state_names=packed.state_names[::-1])
    assert motion is not None
    np.testing.assert_allclose(code_table(laq, turned, pairs, rows)[1], motion[..., ::-1])  # type: ignore[arg-type]
    for names in (("joint_0", "joint_1"), ()):
        joints = replace(packed, state=packed.state[:, :2], state_names=names)
        assert code_table(laq, joints, pairs, rows)[1] is None
        np.testing.assert_array_equal(code_table(laq, joints, pairs, rows)[0], codes)


def test_labels_of_a_robot_of_other_dimensions(packed: Packed, robot: Path, tiny: Recipe, tmp_path: Path) -> None:
    """They cannot be held against the video's own actions, and are not called what those are called."""
    fit_idm(packed, tiny, tmp_path / "idm", 0)
    assert packed.actions is not None
    for number, width in enumerate((1, 3)):
        actions = np.repeat(packed.actions[:, :1], width, axis=1)
        video = replace(packed, actions=actions, action_names=("a", "b", "c")[:width])
        manifest = label(video, str(tmp_path / "idm"), tmp_path / f"labels{number}")
        assert "r2_of_true_actions" not in manifest
        assert manifest["action_names"] == []
    manifest = label(packed, str(tmp_path / "idm"), tmp_path / "labels")
    assert "r2_of_true_actions" in manifest
    assert manifest["action_names"] == list(packed.action_names)


@pytest.mark.parametrize("source", ["laq", "ground_truth", "future_frames"])
def test_a_policy_that_sees_more_than_its_labels_source(
    source: str, robot: Path, small: list[str], made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each stage reads the videos at the size of its own model, and the labels still have to be of these videos."""
    data, labels, latent = ["--dataset", f"lerobot:{robot}"], str(tmp_path / "labels"), str(tmp_path / "latent")
    larger = [*(option.replace('{"image_size":24', '{"image_size":32') for option in small), "--steps", "2"]
    cli.main(["label", *data, "--source", str(made / "laq") if source == "laq" else source, "--out", labels])
    with pytest.MonkeyPatch.context() as patch:
        seen = spy_on_packs(patch)
        cli.main(["pretrain", *data, "--labels", labels, "--out", latent, *larger])
        assert seen == [32]
        other = ["--dataset", "tabletop:sim,episodes=12,seed=9"]
        with pytest.raises(SystemExit):
            cli.main(["pretrain", *other, "--labels", labels, "--out", str(tmp_path / "other"), *larger])
        assert "made from lerobot:" in capsys.readouterr().err
        del seen[:]
        idm = ["--idm", str(tmp_path / "idm")] if source == "future_frames" else []
        if idm:
            fit_idm(pack(data[1:], 24, quiet=True), tiny_of(small), tmp_path / "idm", 0)
        cli.main(["finetune", *data, "--policy", latent, *idm, "--out", str(tmp_path / "policy"), "--steps", "2",
                  "--head", "own"])  # fmt: skip
        assert seen == [32], "as the policy reads, whatever the preset says"


def spy_on_packs(patch: pytest.MonkeyPatch) -> list[int]:
    """Sizes that are packed from now on."""
    sizes: list[int] = []

    def spied(specs: Any, image_size: int, **others: Any) -> Packed:
        sizes.append(image_size)
        return pack(specs, image_size, **others)

    patch.setattr("lapa.data.pack.pack", spied)
    return sizes


def tiny_of(small: list[str]) -> Recipe:
    recipe = Recipe()
    for option in small[1::2]:
        recipe = override(recipe, option)
    return replace(recipe, fit_idm=replace(recipe.fit_idm, steps=2))


def test_settings_that_a_pretrained_policy_has(
    robot: Path, small: list[str], made: Path, packed: Packed, tiny: Recipe, tmp_path: Path,
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
    assert "policy.head_options={'width': 64} would mean nothing" in run("wide", 'policy.head_options={"width":64}')
    assert "made with policy.head_options={'width': 16}" in run("wide", 'policy.head_options={"width":64}')
    assert "chunk=2 would mean nothing" in run("chunk", "head=own", "chunk=2")
    assert "--head new" in run("clusters", "head=own", "clusters=0")
    assert run("new", "head=new", "chunk=2", "clusters=0") == "expectation"


def test_an_artefact_can_be_read_by_others(made: Path) -> None:
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in (made / "laq").iterdir() if file.is_file())


def test_an_artefact_of_another_kind_is_refused(made: Path) -> None:
    with pytest.raises(LapaError, match='policy holds a "policy" artefact, not a "laq"'):
        lapa.LAQ.from_pretrained(made / "policy")
    with pytest.raises(LapaError, match='laq holds a "laq" artefact, not a "policy"'):
        lapa.Policy.from_pretrained(made / "laq")


# --- the public interface -------------------------------------------------------------------------


def test_laq_as_the_readme_uses_it(made: Path) -> None:
    laq = lapa.LAQ.from_pretrained(made / "laq")
    rng = np.random.default_rng(0)
    now, later = rng.integers(0, 256, (2, 5, 24, 24, 3), np.uint8)
    codes = laq.encode(now, later)
    assert codes.dtype == torch.int64
    assert codes.shape == (5, 1)
    as_floats = [torch.from_numpy(x).permute(0, 3, 1, 2) / 255 for x in (now, later)]
    assert torch.equal(laq.encode(*as_floats), codes)
    future = laq.decode(now, codes, clamp=True)
    assert future.dtype == torch.float32
    assert future.shape == (5, 3, 24, 24)
    assert 0 <= future.min() <= future.max() <= 1
    assert torch.equal(laq.decode(now, codes, clamp=False).clamp(0, 1), future)


def test_policy_as_the_readme_uses_it(made: Path, robot: Path) -> None:
    policy = lapa.Policy.from_pretrained(str(made / "policy"))
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    actions = policy.act({"image": image, "instruction": "push the red disc to the blue star"})
    assert actions.dtype == np.float32
    assert actions.shape == (3, 2)
    actual = pack([f"lerobot:{robot}"], 24, quiet=True).actions
    assert (actions >= actual.min(0)).all()
    assert (actions <= actual.max(0)).all()
    with pytest.raises(LapaError, match="An observation is"):
        policy.act({"picture": image, "instruction": "push"})
    latent = lapa.Policy.from_pretrained(made / "latent")
    with pytest.raises(LapaError, match="finetune it first"):
        latent.act({"image": image, "instruction": "push"})


def test_the_package_lists_its_face() -> None:
    assert {"LAQ", "Policy", "LapaError", "__version__"} <= set(lapa.__all__)
    assert all(getattr(lapa, name) for name in lapa.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Polcy'"):
        lapa.Polcy  # noqa: B018


# --- the grounded backbone ------------------------------------------------------------------------


def test_shipped_weights_ground() -> None:
    """A linear probe of the readout finds the block that the sentence names, in all looks; random weights do not."""
    rng = np.random.default_rng(2024)
    batches = [scenes(rng, 50, 48) for _ in range(24)]
    targets = np.concatenate([points[:, 0] for _, _, points, _, _ in batches])

    def error(grounded: bool) -> float:
        torch.manual_seed(0)
        backbone = TinyVLM(grounded=grounded).build().eval()
        with torch.no_grad():
            seen = [backbone.prepare(Seen.of(images, texts)) for images, texts, *_ in batches]
            readout = torch.cat([backbone(inputs).readout for inputs in seen])
        x = np.concatenate([readout.double().numpy(), np.ones((len(readout), 1))], 1)
        fit, test = slice(0, 1000), slice(1000, 1200)
        found = np.linalg.solve(x[fit].T @ x[fit] + 0.1 * np.eye(x.shape[1]), x[fit].T @ targets[fit])
        return float(np.linalg.norm(x[test] @ found - targets[test], axis=1).mean())

    assert error(grounded=True) < 0.1
    assert error(grounded=False) > 0.2


def test_a_backbone_of_another_size_is_grounded_and_starts_a_policy(
    tiny: Recipe, robot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ground"
    command = ["ground", "--steps", "2", "--batch-size", "4", "--depth", "1", "--out", str(out), "--width"]
    cli.main([*command, "32"])
    options = {"width": 32, "depth": 1, "weights": str(out)}
    assert json.dumps(options, separators=(",", ":")) in capsys.readouterr().out
    recipe = replace(tiny, policy=replace(tiny.policy, backbone_options=options))
    made = weights(out)
    start = configured(recipe).build().backbone.state_dict()
    assert start.keys() == made.keys()
    assert all(torch.equal(start[name], made[name]) for name in made)

    finetune(pack([f"lerobot:{robot}"], 48, quiet=True), None, recipe, tmp_path / "policy", 0)
    parents = load_artefact(tmp_path / "policy", "policy").config["provenance"]["parents"]
    assert parents == {str(out): load_artefact(out, "backbone").hash}
    with pytest.raises(LapaError, match="have width 32, depth 1; the backbone is to have width 128, depth 3"):
        TinyVLM(weights=str(out)).build()
    with pytest.raises(SystemExit):
        cli.main([*command, "64", "--resume"])
    assert "other settings (width 32 -> 64)" in capsys.readouterr().err
    shutil.rmtree(out)
    assert lapa.Policy.from_pretrained(tmp_path / "policy"), "it has weights of its own"
    with pytest.raises(LapaError, match=r"There is no folder .*ground"):
        configured(recipe).build()


def test_a_backbone_is_grounded_on_the_looks_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: set[str] = set()

    def watched(state: Any, look: str, size: int, tick: int = 0) -> Any:
        seen.add(look)
        return render(state, look, size, tick)

    monkeypatch.setattr(stage0_grounding, "render", watched)
    command = ["ground", "--steps", "8", "--batch-size", "4", "--width", "32", "--depth", "1", "--out"]
    cli.main([*command, str(tmp_path / "all")])
    assert seen == set(DOMAINS)
    seen.clear()
    cli.main([*command, str(tmp_path / "two"), "--domains", "sim,hand"])
    assert seen == {"sim", "hand"}
    assert json.loads((tmp_path / "two" / "config.json").read_text())["domains"] == ["sim", "hand"]
    with pytest.raises(SystemExit):
        cli.main([*command, str(tmp_path / "none"), "--domains", "sin"])
    assert 'no domain of Tabletop "sin"' in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_shipped_weights_have_one_size() -> None:
    with pytest.raises(LapaError, match=r"have width 128; .* width 64\. Say the same .* lapa ground"):
        TinyVLM(width=64).build()


def test_grounding_computes_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch comes on the CPU. The device "meta" stands for a GPU: it knows shapes alone and meets no other tensor."""
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: [0.0] * len(tensor))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: 0.0)
    images, texts, *answers = scenes(np.random.default_rng(0), 2, 48)
    model = Grounding(TinyVLM(grounded=False, width=32, depth=1).build()).to("meta")
    loss, _ = model.loss((as_pixels(images, 48, "cpu"), texts, *map(torch.from_numpy, answers)))
    assert loss.device.type == "meta"


def test_the_decoding_is_chosen_by_name(tiny: Recipe) -> None:
    space = ActionSpace.fit(np.random.default_rng(0).normal(size=(200, 2)), bins=8)
    image = np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)
    acted = {}
    for name in ("expectation", "norm_preserving", "centre"):
        torch.manual_seed(0)
        policy = configured(replace(tiny, policy=replace(tiny.policy, decoding=name))).build().eval()
        policy.grow(space)
        acted[name] = policy.act({"image": image, "instruction": "push the red disc left"})[0].astype(np.float64)
    mean, full = acted["expectation"], acted["norm_preserving"]
    assert np.linalg.norm(full) > 1.1 * np.linalg.norm(mean)  # an untrained policy wavers
    assert mean @ full == pytest.approx(np.linalg.norm(mean) * np.linalg.norm(full), rel=1e-4)
    assert all(np.isclose(space.centres()[d], acted["centre"][d]).any() for d in range(2))
