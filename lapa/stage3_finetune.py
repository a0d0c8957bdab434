"""Stage 3, `lapa finetune`: from what a policy says to robot actions, learnt from a few labelled trajectories.

The recipe's `head` says how. In the paper (section 3.3; "own", "new") the latent head is dropped and a new one learns
the robot's discretised actions; a policy that already speaks actions (VPT, ActionVLA) keeps its own, or gets a new one
as well (another robot's actions, say). With "linear" nothing is trained: all keep their heads, and what a code, or an
action class, means for this robot is read off the labels by linear regression, near classes meaning similar actions,
which a handful of trajectories suffices for. UniPi goes on learning to imagine and is given the inverse dynamics that
reads actions off its frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lapa.actions.codebook import ActionCodebook
from lapa.actions.saved import space_from_json
from lapa.actions.scales import Scales
from lapa.actions.spaces import ActionSpace
from lapa.actions.tables import Decoding
from lapa.artefacts.folder import load_artefact, read_json
from lapa.artefacts.hub import local
from lapa.contracts import Array, LapaError, Logs
from lapa.data.futures import Futures, futures
from lapa.data.pack import Packed
from lapa.measures.probes import r2
from lapa.models.idm import InverseDynamics
from lapa.plugins import find
from lapa.policies.video_planner import VideoPlanner
from lapa.policies.vla import VLA
from lapa.policies.vla import Config as VLAConfig
from lapa.recipe import Recipe
from lapa.stage2_pretrain import classes_of_actions, sampler, save_policy, watcher
from lapa.training.loop import Optimisation, device, fit, seed_everything

AT_ONCE = 256  # frames that a policy is asked about at once
FOLDS = 10  # parts of the labelled trajectories of which each is left out once
LITTLE = 0.3  # R^2 below which the user hears that reading is not enough
OPTIMISED = {"vla": "finetune", "video_planner": "finetune_planner"}  # policy -> setting of the recipe


def optimised_by(policy_path: Path | None) -> str:
    """The setting of the recipe that says how the policy at `policy_path` (None: the backbone alone) is finetuned."""
    if policy_path is None:
        return OPTIMISED["vla"]
    config = read_json(local(policy_path) / "config.json", "finished policy artefact")
    return OPTIMISED.get(str(config.get("policy")), OPTIMISED["vla"])


def finetune(
    packed: Packed,
    policy_path: Path | None,
    recipe: Recipe,
    out: Path,
    seed: int,
    idm_path: Path | None = None,
    decoding: Decoding | None = None,
) -> Logs:
    """Finetune the policy at `policy_path` (None: the backbone alone, the Scratch baseline) and save it to `out`.

    `idm_path`: the inverse dynamics model of a policy that imagines frames. `decoding`: in place of the policy's own.
    Raises LapaError when the inverse dynamics model lacks or is not wanted, and when the dataset has no actions, or
    actions of other dimensions than the policy speaks.
    """
    actions = packed.require_actions("finetuning")
    seed_everything(seed)
    policy, parents, method = _start(policy_path, recipe)
    if decoding and isinstance(policy, VLA):
        policy.config = replace(policy.config, decoding=decoding)
    how: Optimisation = getattr(recipe, OPTIMISED[policy.description()["policy"]])
    targets: Array | Futures
    if isinstance(policy, VideoPlanner):
        parents |= _give_reader(policy, idm_path)
        frames = acting_frames(packed, 1)
        targets = futures(packed, frames, frames + 1, policy.config.video.frames)
        monitor = watcher(policy, targets, frames, out, seed)
    elif idm_path is not None:
        raise LapaError("--idm is for a policy that imagines frames (UniPi); this one predicts actions. Leave it out.")
    else:
        monitor = None
        own = policy.space if recipe.head == "own" and isinstance(policy.space, ActionSpace | ActionCodebook) else None
        chunk = own.chunk if own else recipe.chunk
        frames = acting_frames(packed, chunk)
        chunks = np.stack([actions[frames + k] for k in range(chunk)], 1)
        source, each = packed.source[packed.episode_of(frames)], recipe.scale == "each"
        each = policy.scales is not None if own else each  # its classes mean what they meant
        policy.scales = Scales.of(actions[frames], source) if each else None
        chunks = policy.scales.normalise(chunks, source) if policy.scales else chunks
        if recipe.head == "linear" and policy.space is not None:
            results = _read(policy, packed, frames, chunks)
            save_policy(policy, recipe, results, out, seed, packed, parents, method)
            return results
        if own is None:
            policy.space = None
            space, targets = classes_of_actions(chunks, recipe, packed.action_names)
            policy.adapt(space)
        elif own.dimensions == actions.shape[1]:
            targets = own.encode(chunks).reshape(len(chunks), own.positions)
    if policy.dimensions != actions.shape[1]:
        raise LapaError(
            f"{packed.spec} has {actions.shape[1]} action dimensions; the policy speaks {policy.dimensions}. "
            "Give it a new head (--head new)."
        )
    results = fit(policy, sampler(packed, frames, targets, how.batch_size), how, out, seed=seed, title="finetuning",
                  parameters=policy.trainable(recipe.trainable), monitor=monitor)  # fmt: skip
    save_policy(policy, recipe, results, out, seed, packed, parents, method)
    return results


def as_it_is(
    packed: Packed, policy_path: Path, recipe: Recipe, out: Path, seed: int, idm_path: Path | None = None
) -> None:
    """Save the policy at `policy_path` to `out` untrained; one that imagines frames is given `idm_path` to act by."""
    policy, parents, method = _start(policy_path, recipe)
    if isinstance(policy, VideoPlanner):
        parents |= _give_reader(policy, idm_path)
    save_policy(policy, recipe, {}, out, seed, packed, parents, method)


def _read(policy: VLA, packed: Packed, frames: Array, chunks: Array) -> Logs:
    """Keep the head; what its classes mean is told by the labels. Returns how well: R^2 of the labelled actions, and of
    those of trajectories that were left out in turn."""
    episode = packed.episode_of(frames)
    texts = [packed.instructions[e] for e in episode]
    parts = range(0, len(frames), AT_ONCE)
    policy = policy.to(device()).eval()
    said = np.concatenate(
        [policy.probabilities(packed.gather(frames[i : i + AT_ONCE]), texts[i : i + AT_ONCE]) for i in parts]
    )
    assert policy.space is not None
    code_embeddings = policy.space.code_embeddings
    meaning = ActionCodebook.from_readout(said, chunks, packed.action_names, code_embeddings)
    policy.read_as(meaning)
    fit = _agreement(meaning.decide(said, "expectation"), chunks)
    results = {"labels": float(len(frames)), "r2_of_labels": fit}
    told = f"R^2 of their actions {fit:.2f}"
    fold = np.unique(episode, return_inverse=True)[1] % FOLDS
    if fold.any():  # more than one trajectory
        unseen = np.empty(chunks.shape, np.float32)
        for k in np.unique(fold):
            others = ActionCodebook.from_readout(said[fold != k], chunks[fold != k], code_embeddings=code_embeddings)
            unseen[fold == k] = others.decide(said[fold == k], "expectation")
        fit = results["r2_left_out"] = _agreement(unseen, chunks)
        told += f"; {fit:.2f} of trajectories left out in turn"
    print(
        f"What {meaning.positions} x {meaning.classes} classes mean was read off {len(frames):,} labelled frames "
        f"({told}). Nothing was trained; --head own or new trains one.",
        flush=True,
    )
    if fit < LITTLE:
        print("That is little: what the policy predicts hardly tells these actions. Try --head own (with a "
              "benchmark for this robot, `lapa tune` finds out what is best).", flush=True)  # fmt: skip
    return results


def _agreement(acted: Array, chunks: Array) -> float:
    return r2(acted.reshape(len(chunks), -1), chunks.reshape(len(chunks), -1))


def _start(path: Path | None, recipe: Recipe) -> tuple[VLA | VideoPlanner, dict[str, str], str]:
    if path is None:
        return recipe.policy.build(), {}, "scratch"
    artefact = load_artefact(path, "policy")
    policy = find("policies", str(artefact.config.get("policy"))).load(artefact)
    return policy, {str(path): artefact.hash}, str(artefact.config.get("method"))


def _give_reader(planner: VideoPlanner, path: Path | None) -> dict[str, str]:
    """Open the inverse dynamics model for a planner that has none yet. Returns its path and hash."""
    if path is not None:
        planner.adapt(InverseDynamics.from_pretrained(path))
        return {str(path): load_artefact(path, "idm").hash}
    if planner.reader is None:
        raise LapaError(
            "This policy imagines frames, and something must read actions off them: fit inverse dynamics with "
            "`lapa fit` on the labelled trajectories and give its folder as --idm."
        )
    return {}


def acting_frames(packed: Packed, chunk: int) -> Array:
    """Frames with a whole chunk of actions after them, int64 [N]; the last frame of an episode leads nowhere."""
    ends = np.repeat(packed.starts[1:], np.diff(packed.starts))
    frames = np.flatnonzero(np.arange(len(packed)) + chunk < ends)
    if not len(frames):
        raise LapaError(f"{packed.spec}: no episode is longer than the action chunk of {chunk}.")
    return frames


def image_size(policy_path: Path | None, recipe: Recipe) -> int:
    """Pixels a side that the policy reads (None: the recipe's). Raises LapaError when `policy_path` holds none."""
    if policy_path is None:
        return recipe.policy_image_size

    def backbone(backbone: str, backbone_options: dict[str, Any], **_: Any) -> VLAConfig:
        return VLAConfig(backbone, backbone_options)

    return replace(recipe, policy=load_artefact(policy_path, "policy").settings(backbone)).policy_image_size


KEPT_WITH_THE_HEAD = ("chunk", "clusters", "bins", "scale")  # settings of a head that speaks actions


def chosen_decoding(policy_path: Path | None, recipe: Recipe, options: Sequence[str]) -> Decoding | None:
    """The decoding that the user chose for a policy that has one already, or None: the policy keeps its own.

    options: what the user set himself, "NAME=VALUE"; the rest of the recipe is a preset's, which knows nothing of the
    policy at `policy_path`. Raises LapaError for what he set otherwise than that policy has it, where stage 3 keeps it.
    """
    if policy_path is None:
        return None
    policy, wanted = read_json(local(policy_path) / "config.json", "finished policy artefact"), recipe.to_json()
    model = policy.get("model", {})
    groups = {"policy": model, "planner": model.get("video", {})}
    chosen = {option.partition("=")[0].strip().replace("-", "_") for option in options}
    for name in sorted(chosen - {"policy.decoding"}):
        group, _, field = name.partition(".")
        if group in groups and field in groups[group]:
            _require_same(name, wanted[group][field], groups[group][field], policy_path, "pretrain with it")
    space = policy.get("space") or {}
    if recipe.head == "own" and space.get("kind") in ("actions", "codebook"):
        has = {**policy.get("recipe", {}), "chunk": space_from_json(space).chunk}  # type: ignore[union-attr]
        for name in sorted(chosen & set(KEPT_WITH_THE_HEAD) & set(has)):
            _require_same(name, wanted[name], has[name], policy_path, "give it a new head (--head new)")
    return recipe.policy.decoding if "policy.decoding" in chosen else None


def _require_same(name: str, wanted: Any, has: Any, where: Path, instead: str) -> None:
    if wanted != has:
        raise LapaError(
            f"{name}={wanted} would mean nothing: the policy in {where} was made with {name}={has} and goes on with "
            f"that. Leave it out, or {instead}."
        )
