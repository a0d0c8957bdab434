"""Stage 3, `lapa finetune`: the latent head is dropped, a new head learns the robot's discretised actions from a
few labelled trajectories (paper section 3.3). A policy that already speaks actions (VPT, ActionVLA) keeps its head
and its bins.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lapa.contracts import Array, LapaError, Logs
from lapa.data.pack import Packed
from lapa.data.transforms import ActionSpace
from lapa.policies.vla import VLA
from lapa.recipe import Recipe
from lapa.stage2_pretrain import sampler, save_policy
from lapa.training.checkpoint import load_artefact
from lapa.training.loop import fit, seed_everything


def finetune(packed: Packed, policy_path: Path | None, recipe: Recipe, out: Path, seed: int) -> Logs:
    """Finetune the policy at `policy_path` (None: the backbone alone, the Scratch baseline) and save it to `out`.

    Raises LapaError when the dataset has no actions, or actions of other dimensions than the policy speaks.
    """
    actions = packed.require_actions("finetuning")
    seed_everything(seed)
    policy, parents, method = _start(policy_path, recipe)
    frames = acting_frames(packed, recipe.chunk)
    if not isinstance(policy.space, ActionSpace):
        policy.adapt(ActionSpace.fit(actions[frames], recipe.bins, recipe.chunk, packed.action_names))
    space = policy.space
    assert isinstance(space, ActionSpace)
    if space.dimensions != actions.shape[1]:
        raise LapaError(
            f"{packed.spec} has {actions.shape[1]} action dimensions; the policy speaks {space.dimensions}."
        )
    targets = np.concatenate([space.encode(actions[frames + k]) for k in range(space.chunk)], axis=1)
    sample = sampler(packed, frames, targets, recipe.finetune.batch_size)
    results = fit(policy, sample, recipe.finetune, out, seed=seed, title="finetuning",
                  parameters=policy.trainable(recipe.trainable))  # fmt: skip
    save_policy(policy, recipe, results, out, seed, packed, parents, method)
    return results


def _start(path: Path | None, recipe: Recipe) -> tuple[VLA, dict[str, str], str]:
    if path is None:
        return recipe.policy.build(), {}, "scratch"
    artefact = load_artefact(path, "policy")
    return recipe.policy.load(artefact), {str(path): artefact.hash}, str(artefact.config.get("method"))


def acting_frames(packed: Packed, chunk: int) -> Array:
    """Frames with a whole chunk of actions after them, int64 [N]; the last frame of an episode leads nowhere."""
    ends = np.repeat(packed.starts[1:], np.diff(packed.starts))
    frames = np.flatnonzero(np.arange(len(packed)) + chunk < ends)
    if not len(frames):
        raise LapaError(f"{packed.spec}: no episode is longer than the action chunk of {chunk}.")
    return frames
