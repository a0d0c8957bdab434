"""Stage 3, `lapa finetune`: from what a policy says to robot actions, learnt from a few labelled trajectories.

How is the policy's own (lapa/policies) and the recipe's `head`: in the paper (section 3.3) the latent head is dropped
and a new one learns the robot's discretised actions; with "linear" nothing is trained, and what a code means for this
robot is read off the labels. UniPi goes on learning to imagine and is given the inverse dynamics that reads actions off
its frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lapa.artefacts.folder import describe, load_artefact
from lapa.contracts import LapaError, Logs
from lapa.data.pack import Packed
from lapa.policies import Policy, PolicyConfig, config_class, configured, opened, rebuilt
from lapa.recipe import Recipe
from lapa.stage2_pretrain import sampler, save_policy
from lapa.training.loop import Optimisation, fit, seed_everything


def learner(policy_path: Path | None, recipe: Recipe) -> PolicyConfig:
    """The policy that is finetuned (None: the backbone alone, as the recipe has it): what can be known of it without
    its weights. Raises LapaError when `policy_path` holds none."""
    if policy_path is None:
        return configured(recipe)
    config: PolicyConfig = describe(policy_path, "policy").settings(
        lambda **settings: rebuilt(_class_at(policy_path), settings)
    )
    return config


def _class_at(policy_path: Path) -> type[PolicyConfig]:
    return config_class(str(describe(policy_path, "policy").config.get("policy")))


def finetune(
    packed: Packed,
    policy_path: Path | None,
    recipe: Recipe,
    out: Path,
    seed: int,
    idm_path: Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Logs:
    """Finetune the policy at `policy_path` (None: the backbone alone, the Scratch baseline) and save it to `out`.

    `idm_path`: the inverse dynamics model of a policy that imagines frames. `changes`: settings of the policy that
    stage 3 changes (chosen_settings). Raises LapaError when the inverse dynamics model lacks or is not wanted, and when
    the dataset has no actions, or actions of other dimensions than the policy speaks.
    """
    packed.require_actions("finetuning")
    seed_everything(seed)
    policy, parents, method = _start(policy_path, recipe)
    policy.config = replace(policy.config, **(changes or {}))
    how: Optimisation = getattr(recipe, policy.config.finetuned_by)
    examples = policy.adapt(packed, recipe, idm_path)
    parents |= examples.parents or {}
    results = examples.results
    if results is None:
        results = fit(policy, sampler(policy, packed, examples, how.batch_size), how, out, seed=seed,
                      title="finetuning", parameters=policy.trainable(recipe.trainable),
                      monitor=examples.watch and examples.watch(out, seed))  # fmt: skip
    save_policy(policy, recipe, results, out, seed, packed, parents, method)
    return results


def as_it_is(
    packed: Packed, policy_path: Path, recipe: Recipe, out: Path, seed: int, idm_path: Path | None = None
) -> None:
    """Save the policy at `policy_path` to `out` untrained; one that imagines frames is given `idm_path` to act by."""
    policy, parents, method = _start(policy_path, recipe)
    parents |= policy.as_it_is(idm_path)
    save_policy(policy, recipe, {}, out, seed, packed, parents, method)


def _start(path: Path | None, recipe: Recipe) -> tuple[Policy, dict[str, str], str]:
    if path is None:
        return configured(recipe).build(), {}, "scratch"
    artefact = load_artefact(path, "policy")
    return opened(artefact), {str(path): artefact.hash}, str(artefact.config.get("method"))


def chosen_settings(policy_path: Path | None, recipe: Recipe, options: Sequence[str]) -> dict[str, Any]:
    """Settings of the policy at `policy_path` that the user chose anew, such as {"decoding": ..}; the others it keeps.

    options: what the user set himself, "NAME=VALUE"; the rest of the recipe is a preset's, which knows nothing of that
    policy. Raises LapaError for what he set otherwise than that policy has it, where stage 3 keeps it.
    """
    if policy_path is None:
        return {}
    saved, wanted, its = describe(policy_path, "policy").config, recipe.to_json(), _class_at(policy_path)
    groups, chosen = its.settings(saved), {option.partition("=")[0].strip().replace("-", "_") for option in options}
    changed = {name: getattr(recipe.policy, name) for name in its.changeable if f"policy.{name}" in chosen}
    for name in sorted(chosen - {f"policy.{name}" for name in changed}):
        group, _, field = name.partition(".")
        if group in groups and field in groups[group]:
            _require_same(name, wanted[group][field], groups[group][field], policy_path, "pretrain with it")
    has = its.kept_with_head(saved) if recipe.head == "own" else {}
    for name in sorted(chosen & set(has)):
        _require_same(name, wanted[name], has[name], policy_path, "give it a new head (--head new)")
    return changed


def _require_same(name: str, wanted: Any, has: Any, where: Path, instead: str) -> None:
    if wanted != has:
        raise LapaError(
            f"{name}={wanted} would mean nothing: the policy in {where} was made with {name}={has} and goes on with "
            f"that. Leave it out, or {instead}."
        )
