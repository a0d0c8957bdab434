"""A policy as a checkpoint of LeRobot, for the plug-in `lerobot_policy_lapa` (docs/lerobot.md). LeRobot is not needed.

    OUT/config.json                LeRobot's: type "lapa", features, which camera is which feature
    OUT/policy_preprocessor.json   nothing is normalised: the policy reads and answers in the robot's units
    OUT/policy_postprocessor.json
    OUT/model.safetensors          the weights of the artefact
    OUT/lapa_artefact/config.json  the rest of the artefact. So OUT is opened wherever lapa takes a policy

Weights that the policy has from elsewhere stay references (artefacts/pretrained.py, artefacts/borrowed.py).
"""

from __future__ import annotations

import math
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from lapa.artefacts.download import WITHIN
from lapa.artefacts.folder import Artefact, describe, load_artefact, provenance, save_artefact, weights_at, write_json
from lapa.contracts import LapaError, PolicySpec
from lapa.data.folders import new_folder
from lapa.data.index import tell
from lapa.data.lerobot_meta import names_of
from lapa.data.pack import Packed
from lapa.data.stream import stream
from lapa.policies import Policy, Which, configured, opened
from lapa.recipe import Recipe, overridden, preset
from lapa.stage3_finetune import chosen_settings, labelled_by, what_trains

CONFIG = "config.json"
PROCESSORS = ("policy_preprocessor", "policy_postprocessor")
STATE, TASK, ACTION, IMAGES = "observation.state", "task", "action", "observation.images."
AS_THEY_ARE = {kind: "IDENTITY" for kind in ("VISUAL", "STATE", "ACTION")}
SAME_RATE = 0.02  # by which rates may differ
ANEW = "give it a new head: lerobot-train --policy.type=lapa --policy.start=FOLDER in place of --policy.path."
KEPT = ("method", "recipe", "labelled")  # what an artefact says beside its description


@dataclass(frozen=True)
class Opened:
    """A policy that LeRobot runs or trains. `about`: what its artefact says beside its description; `parents`: where it
    comes from, {path: hash}; `data`: {dataset: fingerprint} of what its head was made for."""

    policy: Policy
    about: Mapping[str, Any]
    parents: Mapping[str, str]
    data: Mapping[str, str]


def export_policy(run: Path, out: Path, named: Sequence[str] = ()) -> list[str]:
    """Write the policy in `run` as the new folder `out`; `named`: CAMERA=NAME, for cameras that have another name in
    LeRobot. Returns lines for people. Raises LapaError for a policy that does not predict actions yet."""
    artefact = load_artefact(run, "policy")
    policy = opened(artefact)
    if policy.spec.action is None:
        raise LapaError(
            f"{run} predicts latent codes, not robot actions. Finetune it first (lapa finetune), or do that in "
            f"LeRobot: lerobot-train --policy.type=lapa --policy.start={run}"
        )
    cameras = features_of(policy.spec.cameras, named)
    config = checkpoint_config(policy, cameras, artefact.config.get("recipe", {}))
    with new_folder(out) as work:
        shutil.copyfile(weights_at(artefact.path), weights_at(work))
        (work / WITHIN).mkdir()
        shutil.copyfile(artefact.path / CONFIG, work / WITHIN / CONFIG)
        write_json(work / CONFIG, config)
        for name, content in processors(config).items():
            write_json(work / f"{name}.json", content)
    return [*mapping(policy.spec, cameras), *_elsewhere(artefact)]


def open_policy(folder: Path) -> Opened:
    """The policy in a checkpoint. Raises LapaError as `Policy.from_pretrained` does."""
    artefact = load_artefact(folder, "policy")
    about = {key: artefact.config[key] for key in KEPT if key in artefact.config}
    data = artefact.config.get("provenance", {}).get("data", {})
    return Opened(opened(artefact), about, {str(folder): artefact.hash}, data)


def begin(dataset: str, recipe: Recipe, start: str = "", options: Sequence[str] = ()) -> Opened:
    """A policy with a new head for the actions of `dataset`, a LeRobot folder, as stage 3 makes it: of the policy
    `start`, or of the recipe's backbone alone. `options` are those that the user chose, NAME=VALUE. Pictures are not
    read; nothing is trained. Raises LapaError."""
    names = [option.partition("=")[0].strip().replace("-", "_") for option in options]
    if deaf := [name for name in names if name.startswith("finetune.") and name[9:] not in OPTIMISATION.values()]:
        raise LapaError(f"{deaf[0]} means nothing in LeRobot, whose own options say that (--steps, --batch_size, ..). "
                        "Leave it out of --policy.set.")  # fmt: skip
    recipe = replace(recipe, head="new")
    policy = Policy.from_pretrained(start) if start else configured(recipe).build()
    parents = {start: describe(start, "policy").hash} if start else {}
    if type(policy).robot_batch is Policy.robot_batch:
        raise LapaError("Policies of this kind learn from lapa's own reader alone (lapa finetune), not in LeRobot.")
    policy.config = replace(policy.config, **chosen_settings(Path(start) if start else None, recipe, options))
    data = stream((f"lerobot:{dataset}",), policy.config.image_size, quiet=True)
    tell(data)
    policy.adapt(cast(Packed, data), recipe)  # frames are read only where nothing is trained
    about = {"method": "lapa" if start else "scratch", "recipe": recipe.to_json()}
    taught = labelled_by(cast(Packed, data), Path(start) if start else None)
    return Opened(policy, {**about, "labelled": taught}, parents, {data.spec: data.outline})


def trains(made: Opened, wanted: Which) -> Which:
    """What of it LeRobot trains: what is `wanted`, but all where it begins without a policy and the head alone would
    read what nobody has trained."""
    return what_trains(made.policy, Path(next(iter(made.parents))) if made.parents else None, wanted)


def save_policy(made: Opened, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the artefact of a checkpoint: its weights and lapa_artefact/config.json. `tensors` are under the names that
    `made.policy.state_dict()` has."""
    policy = made.policy
    told = provenance(0, made.data, {**made.parents, **policy.origin})
    told["command"] = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    config = {**policy.description(), **made.about, "results": {}, "provenance": told}
    (folder / WITHIN).mkdir(parents=True, exist_ok=True)
    save_artefact(folder / WITHIN, "policy", config, tensors, *policy.lent())


def recipe_of(name: str, options: Sequence[str]) -> Recipe:
    """The recipe of a policy that begins in LeRobot: a preset, and options "NAME=VALUE" as for --set. Raises LapaError
    for what is unknown."""
    return overridden(preset(name), options)


# --- names and files of LeRobot


def features_of(cameras: Sequence[str], named: Sequence[str] = ()) -> dict[str, str]:
    """Camera of the policy -> LeRobot's feature: observation.images.CAMERA, or what `named` says (CAMERA=NAME).
    Raises LapaError for an unknown camera, and for a feature of two."""
    told = dict(one.partition("=")[::2] for one in named)
    if wrong := [camera for camera, feature in told.items() if camera not in cameras or not feature]:
        raise LapaError(f"--feature {wrong[0]}: write CAMERA=NAME; this policy's cameras: {', '.join(cameras)}.")
    found = {camera: told.get(camera) or _feature(camera) for camera in cameras}
    if len(set(found.values())) < len(found):
        raise LapaError(
            f"Two cameras of {', '.join(cameras)} have the same name in LeRobot. Add --feature CAMERA=NAME."
        )
    return found


def require_fit(spec: PolicySpec, features: Mapping[str, Any], rate: float) -> list[str]:
    """Whether a policy can learn, with the head that it has, from a dataset of LeRobot with these features and so many
    frames a second. Returns what people should know. Raises LapaError where actions or state are others, or in another
    order."""
    told = []
    for what, feature, ours in (
        ("actions", ACTION, spec.action.names if spec.action else ()),
        ("state", STATE, spec.state),
    ):
        if not ours or feature not in features:
            continue
        count, theirs = features[feature]["shape"][0], names_of(features[feature])
        if count != len(ours):
            raise LapaError(f"The policy's {what} has {len(ours)} numbers; {feature} here has {count}; {ANEW}")
        if theirs != ours and sorted(theirs) == sorted(ours):
            raise LapaError(f"{feature} here has the policy's {what} in another order ({', '.join(theirs)}; the policy "
                            f"has {', '.join(ours)}); {ANEW}")  # fmt: skip
        if len(theirs) == len(ours) and theirs != ours:
            told.append(f"in place of the {what} {', '.join(ours)} the policy learns {', '.join(theirs)}")
    if spec.action and not math.isclose(rate, spec.action.hz, rel_tol=SAME_RATE):
        told.append(f"the dataset has {rate:g} actions a second, and the policy answers at {spec.action.hz:g}: the "
                    "same number is a motion of another size")  # fmt: skip
    return told


def executed(spec: PolicySpec, chunk: int, steps: int) -> int:
    """How many actions of an answer LeRobot carries out, its n_action_steps; `steps` 0: as many as the policy says.
    Raises LapaError where there are not so many, and where the policy's answers have not `chunk` actions."""
    if chunk != spec.chunk:
        raise LapaError(f"policy.chunk_size={chunk}: the policy answers with {spec.chunk} actions at once. Leave it "
                        f"out, or {ANEW}")  # fmt: skip
    if not 0 <= steps <= chunk:
        raise LapaError(f"policy.n_action_steps is 1 to policy.chunk_size, {chunk}; got {steps}.")
    return steps or spec.execute


def _feature(camera: str) -> str:
    return camera if camera.startswith(IMAGES) else IMAGES + re.sub(r"[^A-Za-z0-9_.-]", "_", camera)


def mapping(spec: PolicySpec, cameras: Mapping[str, str]) -> list[str]:
    """What is read from where, for people."""
    lines = [f"camera {camera}: {feature}" for camera, feature in cameras.items()]
    lines.append(f"state: {f'{STATE}, {len(spec.state)} numbers' if spec.state else 'not read'}")
    count, rate = (len(spec.action), f" at {spec.action.hz:g} Hz") if spec.action else (0, "")
    answer = f"{count} numbers{rate}, {spec.chunk} at once, {spec.execute} of them executed"
    return [*lines, f"instruction: {TASK}", f"action: {ACTION}, {answer}"]


def checkpoint_config(policy: Policy, cameras: Mapping[str, str], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """LeRobot's config.json. The optimisation is that of stage 3 in the recipe, for `lerobot-train --policy.path`,
    which keeps the head."""
    spec, size = policy.spec, policy.config.image_size
    inputs = {feature: {"type": "VISUAL", "shape": [3, size, size]} for feature in cameras.values()}
    if spec.state:
        inputs[STATE] = {"type": "STATE", "shape": [len(spec.state)]}
    assert spec.action is not None
    how = recipe.get(policy.config.finetuned_by, {})
    settings = {name: how[key] for name, key in OPTIMISATION.items() if key in how}
    return {
        "type": "lapa",
        "input_features": inputs,
        "output_features": {ACTION: {"type": "ACTION", "shape": [len(spec.action)]}},
        "normalization_mapping": AS_THEY_ARE,
        "cameras": dict(cameras),
        "chunk_size": spec.chunk,
        "n_action_steps": spec.execute,
        **{name: recipe[name] for name in ("trainable", "kept_head_rate") if name in recipe},
        **settings,
    }


OPTIMISATION = {  # of the plug-in's configuration -> of the recipe
    "optimizer_lr": "learning_rate",
    "optimizer_betas": "betas",
    "optimizer_weight_decay": "weight_decay",
    "optimizer_grad_clip_norm": "clip",
}


def processors(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The two pipelines, {name: content} of their files. The device is set by LeRobot; statistics are not used."""
    kinds = {"eps": 1e-8, "norm_map": AS_THEY_ARE}
    every = {**config["input_features"], **config["output_features"]}
    before = [
        _step("rename_observations_processor", rename_map={}),
        _step("to_batch_processor"),
        _step("device_processor", device="cpu", float_dtype=None),
        _step("normalizer_processor", features=every, **kinds),
    ]
    after = [
        _step("unnormalizer_processor", features=config["output_features"], **kinds),
        _step("device_processor", device="cpu", float_dtype=None),
    ]
    return {name: {"name": name, "steps": steps} for name, steps in zip(PROCESSORS, (before, after), strict=True)}


def _step(name: str, **config: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": config}


def _elsewhere(artefact: Artefact) -> list[str]:
    """The weights that the checkpoint refers to and does not hold."""
    parts = artefact.config.get("frozen", {}).items()
    lines = [f"not in the checkpoint: {part}, from {' '.join(filter(None, (one.get('name'), one.get('version'))))}"
             for part, one in parts]  # fmt: skip
    if borrowed := artefact.config.get("borrowed"):
        count, lender = len(borrowed["names"]), borrowed["from"]
        lines.append(f"not in the checkpoint: {count} tensors that ship with lapa ({lender})")
    return lines
