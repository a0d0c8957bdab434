"""An artefact of others is input like any other: whatever config.json, manifest.json and weights hold, it is opened as
it was made or refused with a LapaError; no traceback, no memory that it asks for, no silence."""

from __future__ import annotations

import copy
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lapa
from lapa.actions.codebook import ActionCodebook
from lapa.actions.meaning import Meaning
from lapa.actions.scales import Scales
from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.artefacts.folder import file_hash, provenance, save_artefact
from lapa.artefacts.hub import _published, model_card
from lapa.backbones.tiny import Config as TinyConfig
from lapa.contracts import ActionSpec, Labels, LapaError
from lapa.data.labelled import MANIFEST, TABLE, read_labels, read_shard, write_manifest, write_shard
from lapa.labels import source_config
from lapa.labels.latent import Config as LatentLabels
from lapa.models.idm import IDMConfig, InverseDynamics
from lapa.policies import vla
from lapa.policies.video_planner import Config as PlannerConfig
from lapa.policies.video_planner import VideoPlanner
from lapa.recipe import Recipe
from lapa.stage2_label import source_image_size
from lapa.stage3_finetune import chosen_settings, learner

MOST = 400 << 10  # KiB that opening spoilt artefacts may add to the memory of this process
VALUES = [10**9, 10**6, 10**30, -1, 0, 1, 2, 3, 0.5, -0.5, 1e308, float("nan"), float("inf"), "x", "", True, False,
          None, [], [1], ["x"], [[1.0]], [[]], {}, {"x": 1}, [10**9] * 3]  # fmt: skip
CASES = 560  # over all kinds
NOTES = ("results", "provenance", "hash", "ended_early", "tuning")
OLD = Path(__file__).parents[1] / "fixtures" / "lapa_0_1"

Open = Callable[[Path], dict[str, torch.Tensor]]


def laq_at(path: Path) -> dict[str, torch.Tensor]:
    """Opened in every way that there is; what it does."""
    size = source_image_size(str(path))
    labels = LatentLabels(path=str(path)).build()
    frames = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    codes = labels.laq.encode(frames, frames[::-1])
    return {"codes": codes, "drawn": labels.laq.decode(frames, codes), "window": torch.tensor(labels.window)}


def idm_at(path: Path) -> dict[str, torch.Tensor]:
    model = InverseDynamics.from_pretrained(path)
    source_config(str(path)).build()
    frames = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    return {"actions": model.predict(frames, frames[::-1])}


def policy_at(path: Path) -> dict[str, torch.Tensor]:
    learner(path, Recipe())
    chosen_settings(path, Recipe(), ["policy.decoding=centre"])
    policy = lapa.Policy.from_pretrained(path)
    frames = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    seen: dict[str, Any] = {"images": dict.fromkeys(policy.spec.cameras, frames), "instruction": "push it"}
    if policy.spec.state:
        seen["state"] = np.zeros(len(policy.spec.state), np.float32)
    if not policy.dimensions:
        return {"codes": policy.predict_codes(frames[None], ["push it"])}
    return {"actions": torch.as_tensor(policy.act(seen))}  # type: ignore[arg-type]


def backbone_at(path: Path) -> dict[str, torch.Tensor]:
    return dict(replace(SMALL, grounded=True, weights=str(path)).build().state_dict())


def labels_at(path: Path) -> dict[str, torch.Tensor]:
    labels, manifest = read_labels(path)
    told = {key: value for key, value in manifest.items() if key != "sums"}
    return {"values": torch.as_tensor(labels.values), "told": torch.frombuffer(bytearray(json.dumps(
        told, sort_keys=True).encode()), dtype=torch.uint8)}  # fmt: skip


SMALL = TinyConfig(image_size=24, width=32, depth=1, heads=2, vision_width=16, vocabulary=64, grounded=False)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, tiny: Recipe) -> dict[str, tuple[Path, Open]]:
    """An untrained artefact of every kind, and how it is opened."""
    root = tmp_path_factory.mktemp("artefacts")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    notes = {"recipe": tiny.to_json(), "results": {"loss": 1.0}, "provenance": provenance(0, {"video:x": "ab"}, {})}

    def saved(name: str, kind: str, described: dict[str, Any], model: torch.nn.Module) -> Path:
        save_artefact(root / name, kind, {**described, **notes}, model.state_dict())
        return root / name

    made: dict[str, tuple[Path, Open]] = {}
    for name, laq in {"laq": tiny.laq, "laq_fsq": replace(tiny.laq, quantizer="fsq", quantizer_options={})}.items():
        model = tiny.to_json()["laq"] | {"quantizer": laq.quantizer, "quantizer_options": dict(laq.quantizer_options)}
        made[name] = saved(name, "laq", {"model": model}, laq.build()), laq_at
    absolute = Meaning(ActionSpec(("x", "y"), ("absolute", "binary"), 5.0), (True, False), ("x", "y"))
    idm = InverseDynamics(IDMConfig(image_size=24, width=8, blocks=1), 2)
    described = idm.description() | {
        "meaning": json.loads(json.dumps(absolute.__dict__ | {"spec": absolute.spec.__dict__}))
    }
    made["idm"] = saved("idm", "idm", described, idm), idm_at
    made["backbone"] = (
        saved("backbone", "backbone", {"model": SMALL.__dict__, "domains": ["sim"]}, SMALL.build()),
        backbone_at,
    )

    actions = rng.normal(size=(40, 2, 2))
    actions[..., 1] = actions[..., 1] > 0
    said = rng.dirichlet(np.ones(4), (40, 2))
    spaces = {
        "codes": CodeSpace(2, 4, code_embeddings=tuple(map(tuple, rng.normal(size=(8, 2)).tolist()))),
        "bins": ActionSpace.fit(actions[:, 0], 5, 2, ("x", "y")),
        "clusters": ActionCodebook.clusters(actions, 4, ("x", "y")),
        "readout": ActionCodebook.from_readout(said, actions, ("x", "y")),
    }
    options = {key: value for key, value in SMALL.__dict__.items() if key not in ("weights",)}
    for name, space in spaces.items():
        head = "linear" if name == "readout" else "parallel"
        policy = vla.Config(
            backbone_options=options, head=head, head_options={"width": 16}, state=name == "bins"
        ).build()
        if name == "bins":
            policy.reads = vla.Reads(("top", "wrist"), ("x", "y"), (0.0, 1.0), (1.0, 2.0))
            policy.backbone.extend(policy.reads.cameras, 2)
            policy.scales = Scales.of(actions[:, 0], np.arange(40) % 2, ("arm", "hand"))
        policy.grow(space)
        policy.meaning = absolute if name in ("bins", "clusters") else None
        made[name] = saved(name, "policy", {**policy.description(), "method": "lapa"}, policy), policy_at
    planner = VideoPlanner(PlannerConfig(backbone_options=options, video=tiny.planner), SMALL.build())
    planner.give(idm)
    planner.meaning = absolute
    made["planner"] = saved("planner", "policy", {**planner.description(), "method": "unipi"}, planner), policy_at
    made["labels"] = some_labels(root / "labels"), labels_at
    return made


def some_labels(path: Path) -> Path:
    (path / TABLE).mkdir(parents=True)
    values = np.arange(12).reshape(6, 2) % 4
    write_shard(path / TABLE / "a.parquet", Labels("codes", np.repeat([0, 1], 3), np.tile([0, 1, 2], 2), values))
    _, content, _ = read_shard(path / TABLE / "a.parquet")
    write_manifest(path, {
        "method": "lapa", "source": "runs/laq", "source_hash": "ab", "kind": "codes", "classes": 4,
        "window_seconds": 0.2, "end": "drop", "dataset": "video_folder:x", "fingerprint": "cd", "outline": "ef",
        "image_size": 24, "pairs": 6, "action_names": [], "meaning": None, "skipped": [], "left_out": [],
        "code_counts": [[1, 2], [3, 0]], "code_embeddings": [[0.5]] * 8,
        "shards": [{"file": "a.parquet", "pairs": 6, "hash": content}],
    })  # fmt: skip
    return path


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value, of lists the first entry's alone."""
    if path:
        yield path
    inside = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for key, value in inside:
        yield from places(value, (*path, key))


def spoilt(content: Any, place: tuple[Any, ...], rng: np.random.Generator) -> str:
    """Change the value at a place; says how."""
    *way, last = place
    for step in way:
        content = content[step]
    what = int(rng.integers(len(VALUES) + 3))
    if what == len(VALUES):
        del content[last]
        return "missing"
    if what == len(VALUES) + 1 and isinstance(content, dict):
        content[f"{last}_"] = content.pop(last)
        return "renamed"
    if what == len(VALUES) + 2 and isinstance(content, dict):
        content["surprise"] = 1
        return "unknown"
    value = VALUES[what % len(VALUES)]
    content[last] = content[last] * 2 if isinstance(content[last], str) and rng.random() < 0.2 else value
    return repr(content[last])


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def opened(path: Path, how: Open, case: str) -> dict[str, torch.Tensor] | None:
    """What an artefact does; None where it is refused. Raises AssertionError for any other error."""
    try:
        return how(path)
    except LapaError:
        return None
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error


def peak() -> int:
    """KiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("sums", [True, False], ids=["as lapa writes it", "without sums"])
def test_every_field_spoilt(kinds: dict[str, tuple[Path, Open]], tmp_path: Path, sums: bool) -> None:
    """Without sums a value of the right type that fits the weights is a change like any that its user may mean."""
    rng, refused, before = np.random.default_rng(int(sums)), 0, 0
    for kind, (source, how) in kinds.items():
        file = MANIFEST if kind == "labels" else "config.json"
        path, content = tmp_path / kind, json.loads((source / file).read_text())
        shutil.copytree(source, path)
        right = how(path)
        before = before or peak()
        if not sums:
            content.pop("sums")
        every = [p for p in places(content) if p[0] not in ("sums", "recipe", *NOTES)]
        every += [("recipe", "window"), ("recipe",), ("provenance",), ("provenance", "versions"), ("hash",)]
        every = [p for p in every if p[0] in content]
        for number in rng.choice(len(every), CASES // 2 // len(kinds)):
            changed = copy.deepcopy(content)
            case = f"{kind}: {'.'.join(map(str, every[number]))}: {spoilt(changed, every[number], rng)}"
            (path / file).write_text(json.dumps(changed))
            found = opened(path, how, case)
            refused += found is None
            if found is not None and sums:
                assert same(found, right), f"{case}: opened, and does something else"
            assert peak() - before < MOST, f"{case}: {peak() - before:,} KiB"
    assert refused > CASES // 4


OPENED_OLD = {"laq": laq_at, "idm": idm_at, "policy_codes": policy_at, "policy_actions": policy_at,
              "policy_linear": policy_at, "policy_bins": policy_at, "policy_planner": policy_at,
              "labels": labels_at}  # fmt: skip


@pytest.mark.parametrize("kind", OPENED_OLD)
def test_what_lapa_0_1_wrote_spoilt(kind: str, tmp_path: Path) -> None:
    """It has no sums, and goes through another translation."""
    rng, how, path = np.random.default_rng(len(kind)), OPENED_OLD[kind], tmp_path / kind
    shutil.copytree(OLD / kind, path)
    file = path / (MANIFEST if kind == "labels" else "config.json")
    content = json.loads(file.read_text())
    every = [p for p in places(content) if p[0] not in ("recipe", *NOTES)]
    every += [("recipe",), ("provenance",)] if kind != "labels" else []
    for number in rng.choice(len(every), 8):
        changed = copy.deepcopy(content)
        case = f"{kind}: {'.'.join(map(str, every[number]))}: {spoilt(changed, every[number], rng)}"
        file.write_text(json.dumps(changed))
        opened(path, how, case)


@pytest.mark.parametrize(
    ("place", "value"),
    [("dim", 10**9), ("dim", "x"), ("spatial_depth", 10**6), ("image_size", 10**6), ("heads", None), ("codes", 1.0),
     ("symmetric", 1), ("encoder_input", "smell")],
)  # fmt: skip
@pytest.mark.parametrize("sums", [True, False])
def test_a_setting_is_refused_by_its_name_or_by_the_weights(
    kinds: dict[str, tuple[Path, Open]], tmp_path: Path, place: str, value: Any, sums: bool
) -> None:
    """What is of another type is named; a size of the right type does not fit the weights."""
    shutil.copytree(kinds["laq"][0], tmp_path / "laq")
    file = tmp_path / "laq/config.json"
    content = json.loads(file.read_text())
    content["model"][place] = value
    if not sums:
        del content["sums"]
    file.write_text(json.dumps(content))
    before = peak()
    with pytest.raises(LapaError, match=str(file.parent)) as refused:
        lapa.LAQ.from_pretrained(tmp_path / "laq")
    if not isinstance(value, int) or place == "symmetric":
        assert f"model.{place}" in str(refused.value)
    assert peak() - before < MOST


def test_a_count_that_nothing_checks_but_its_range(kinds: dict[str, tuple[Path, Open]], tmp_path: Path) -> None:
    """Two to the power of a million is not counted to."""
    shutil.copytree(kinds["idm"][0], tmp_path / "idm")
    file = tmp_path / "idm/config.json"
    content = json.loads(file.read_text())
    content["model"]["blocks"] = 10**6
    file.write_text(json.dumps(content))
    with pytest.raises(LapaError, match="blocks"):
        InverseDynamics.from_pretrained(tmp_path / "idm")


def test_a_setting_that_fits_and_was_changed_is_named(kinds: dict[str, tuple[Path, Open]], tmp_path: Path) -> None:
    """No shape of a weight tells of it, and the codes would be others: the sums do."""
    shutil.copytree(kinds["laq"][0], tmp_path / "laq")
    file = tmp_path / "laq/config.json"
    content = json.loads(file.read_text())
    content["model"]["encoder_input"], content["recipe"]["window"] = "contrast", 0.7
    file.write_text(json.dumps(content))
    with pytest.raises(LapaError, match=r"model\.encoder_input is .contrast.*recipe\.window is 0\.7.*sums"):
        lapa.LAQ.from_pretrained(tmp_path / "laq")
    del content["sums"]
    file.write_text(json.dumps(content))
    assert lapa.LAQ.from_pretrained(tmp_path / "laq").config.encoder_input == "contrast", "whoever means it may"


def test_spoilt_weights(kinds: dict[str, tuple[Path, Open]], tmp_path: Path) -> None:
    """Cut short, longer, with another header, other names, shapes and kinds of numbers, with the hash that goes with
    them or without."""
    rng = np.random.default_rng(3)
    for kind in ("laq", "idm", "codes", "planner", "backbone"):
        source, how = kinds[kind]
        path = tmp_path / kind
        shutil.copytree(source, path)
        file, config = path / "model.safetensors", json.loads((path / "config.json").read_text())
        whole, tensors = file.read_bytes(), load_file(file)
        name = sorted(tensors)[0]
        length = int.from_bytes(whole[:8], "little")
        harmed: list[bytes] = [whole[: len(whole) // 2], whole[:5], b"", whole + b"x"]
        harmed += [(2**40).to_bytes(8, "little") + whole[8:], whole[:8] + b"[" * length + whole[8 + length :]]
        for change in (
            {k: v for k, v in tensors.items() if k != name},
            {**tensors, "more": torch.zeros(2)},
            {**tensors, name: torch.zeros(3, 1, 4)},
            {**tensors, name: torch.zeros(tensors[name].shape, dtype=torch.int64)},
            {name: tensors[name]},
        ):
            save_file(change, file)
            harmed.append(file.read_bytes())
        for _ in range(6):
            at = int(rng.integers(8 + length))
            harmed.append(whole[:at] + bytes([int(rng.integers(256))]) + whole[at + 1 :])
        for number, content in enumerate(harmed):
            file.write_bytes(content)
            for right_hash in (True, False):
                told = {**config, "hash": file_hash(file)} if right_hash else config
                (path / "config.json").write_text(json.dumps(told))
                found = opened(path, how, f"{kind}, weights {number}")
                assert found is None or content == whole or right_hash, f"{kind}, weights {number}"


def test_a_shard_that_points_elsewhere(tmp_path: Path) -> None:
    path = some_labels(tmp_path / "labels")
    (tmp_path / "a.parquet").write_bytes((path / TABLE / "a.parquet").read_bytes())
    content = json.loads((path / MANIFEST).read_text())
    content["shards"][0]["file"] = "../../a.parquet"
    del content["sums"]
    (path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(LapaError, match=r"\.\./\.\./a\.parquet"):
        read_labels(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", '{"kind": "laq"}', "[" * 100_000,
                                  '{"kind": ' + "9" * 5000 + "}", '{"kind": "\\ud800"}', "\xff"])  # fmt: skip
def test_a_config_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    (tmp_path / "model.safetensors").write_bytes(b"")
    for how in (laq_at, idm_at, policy_at, backbone_at):
        with pytest.raises(LapaError, match=str(tmp_path)):
            how(tmp_path)


def test_the_card_of_what_lapa_0_1_wrote() -> None:
    """In today's words: a head called "read" then is "linear" now."""
    config = _published(OLD / "policy_linear")
    assert config["model"]["head"] == "parallel"
    card = model_card(config, "me/policy", "mit")
    assert '"linear"' in card
    assert '"read"' not in card
    assert '"head_width"' not in card
