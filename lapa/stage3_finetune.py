"""Stage 3, `lapa finetune`: a few labelled trajectories turn a pretrained policy into a robot policy.

The policy (lapa/policies) and the recipe's `head` say how. In the paper (section 3.3) the latent head is dropped, and a
new one learns the robot's discretised actions. With "linear" nothing is trained: labels tell what a code means on this
robot. UniPi learns to imagine these frames, and inverse dynamics reads the actions from them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from lapa.artefacts.folder import REHEARSAL, describe, ended_early, load_artefact, read_json, write_json
from lapa.artefacts.settings import object_at
from lapa.backbones import Backbone
from lapa.contracts import Array, Labels, LapaError, PolicySpec
from lapa.data.episode_keys import keys_of, seen_among
from lapa.data.index import counted
from lapa.data.observations import say_once
from lapa.data.pack import Packed
from lapa.measures.offline import POLICY, lines, nearest, offline
from lapa.measures.probes import of_each_fifth
from lapa.plots.offline import offline_error
from lapa.plugins import configure
from lapa.policies import Examples, Policy, PolicyConfig, Which, configured, opened, saved_config
from lapa.recipe import Recipe
from lapa.runtime.distributed import on_first_rank, rank
from lapa.stage2_pretrain import sampler, save_policy, tell_of_instructions
from lapa.training.loop import Optimisation, Sampler, fit, seed_everything

HELD_OUT = "held_out.json"
FIVE = 5  # labelled episodes, from which on some are held out
ASKED = 600  # held-out frames that a policy is asked about


@dataclass(frozen=True)
class Replay:
    """What stage 2 learnt from, which stage 3 learns again beside the trajectories: videos, their labels, and the
    manifest of these. share: of the steps."""

    packed: Packed
    labels: Labels
    manifest: Mapping[str, Any]
    share: float


def can_replay(recipe: Recipe) -> bool:
    """Whether stage 3 of this recipe can go on learning stage 2's labels: it trains all of the pretrained policy, for
    one robot, and the head looks no more often than the backbone."""
    policy = recipe.policy
    every = getattr(configure("heads", policy.head, policy.head_options), "every", 0)
    trains = recipe.head == "own" and recipe.trainable == "all" and policy.name in ("", "vla")
    return recipe.replay > 0 and trains and recipe.scale == "joint" and not every


def learner(policy_path: Path | None, recipe: Recipe) -> PolicyConfig:
    """The policy that is finetuned (None: the backbone alone, as the recipe has it): what can be known of it without
    its weights. Raises LapaError when `policy_path` holds none, and where what it is made of is not installed."""
    config = configured(recipe) if policy_path is None else saved_config(describe(policy_path, "policy"))
    config.borrowed()  # what is not installed is told now, and not after minutes of reading data
    return config


def _class_at(policy_path: Path) -> type[PolicyConfig]:
    return type(saved_config(describe(policy_path, "policy")))


def finetune(
    packed: Packed,
    policy_path: Path | None,
    recipe: Recipe,
    out: Path,
    seed: int,
    idm_path: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    rehearse: bool = True,
    replay: Replay | None = None,
) -> dict[str, Any]:
    """Finetune the policy at `policy_path` (None: the backbone alone, the Scratch baseline) and save it to `out`.

    `idm_path`: the inverse dynamics model of a policy that imagines frames. `replay`: see Replay. `changes`: settings
    of the policy that stage 3 changes (chosen_settings). `rehearse`: with FIVE labelled episodes or more, do it with a
    fifth held out first, and print the error of actions on those; the policy that is kept is trained on all. Raises
    LapaError when the inverse dynamics model is missing or not wanted, and when the dataset has no actions, or actions
    of other dimensions than the policy speaks.
    """
    packed.require_actions("finetuning")
    changes = dict(changes or {})
    held = _rehearse(packed, policy_path, recipe, out, seed, idm_path, changes, replay) if rehearse else {}
    policy, results, parents, method = _learn(
        packed, policy_path, recipe, out, seed, idm_path, {**changes, **held.get("chosen", {})}, replay
    )
    tell_of_instructions(packed, policy)
    if "failed" in held:
        _say(held["failed"])
    elif held and ended_early(out):
        _say("The held-out error is not kept: it is that of a policy which was trained to the end.")
    elif held:
        own = held["rows"][POLICY]
        results |= {"held_out_error": own["error"], "held_out_step_length": own["step"]}
    save_policy(policy, recipe, results, out, seed, packed, parents, method, labelled=labelled_by(packed, policy_path))
    return results


def _learn(
    packed: Packed,
    policy_path: Path | None,
    recipe: Recipe,
    out: Path,
    seed: int,
    idm_path: Path | None,
    changes: Mapping[str, Any],
    replay: Replay | None = None,
    title: str = "finetuning",
) -> tuple[Policy, dict[str, Any], dict[str, str], str]:
    """The finetuned policy, its results, what it was made from and its method. Checkpoints and log go to `out`."""
    seed_everything(seed)
    policy, parents, method = _start(policy_path, recipe)
    policy.config = replace(policy.config, **changes)
    how: Optimisation = getattr(recipe, policy.config.finetuned_by)
    examples = policy.adapt(packed, recipe, idm_path)
    if examples.kept and recipe.kept_head_rate != 1:
        how = replace(how, learning_rate=how.learning_rate * recipe.kept_head_rate)
        say_once(f"The policy keeps its head of actions, so it learns at {how.learning_rate:g} "
                 f"(kept_head_rate={recipe.kept_head_rate:g}).")  # fmt: skip
    parents |= examples.parents or {}
    results = examples.results
    if results is None:
        sample = sampler(policy, packed, examples, how.batch_size)
        if replay and _worth(policy_path, recipe, examples):
            sample = _beside(sample, policy, replay, how.batch_size, examples)
            parents |= {str(replay.manifest["source"]): str(replay.manifest["source_hash"])}
        results = fit(policy, sample, how, out, seed=seed, title=title,
                      parameters=policy.trainable(what_trains(policy, policy_path, recipe.trainable)),
                      monitor=examples.watch and examples.watch(out, seed))  # fmt: skip
        policy.finish()
    return policy, dict(results), parents, method


def _worth(policy_path: Path | None, recipe: Recipe, own: Examples) -> bool:
    """Whether what stage 2 taught is there to be kept. Raises LapaError where nothing was taught, and where a head of
    actions is to be replaced."""
    if policy_path is None or (recipe.head == "new" and own.dropped is None):
        raise LapaError("--labels and --videos keep what a policy learnt in stage 2, and this one begins anew. Leave "
                        "them out, or use --policy and --head own.")  # fmt: skip
    if not own.kept and own.dropped is None:
        say_once("Stage 2's labels are not learnt again: the head was made anew, for these actions.")
        return False
    if not own.kept and recipe.trainable == "head":
        say_once("Stage 2's labels are not learnt again: they are codes, and the new head alone is trained, which does "
                 "not answer them (--trainable all).")  # fmt: skip
        return False
    return True


def _beside(own: Sampler, policy: Policy, replay: Replay, size: int, examples: Examples) -> Sampler:
    """Batches of the trajectories and, in a share of the steps, of stage 2's labels. Rows of those are below 0. Raises
    LapaError where the policy cannot learn them again."""
    videos = _as_shown(replay.packed, policy.spec)
    before = sampler(policy, videos, policy.again(replay.labels, videos, replay.manifest, examples), size)
    say_once(f"{replay.share:.0%} of the steps learn stage 2's labels of {counted(videos.episodes, 'video')} "
             "again (replay).")  # fmt: skip

    def draw(rng: np.random.Generator) -> Array:
        return -1 - before.draw(rng) if rng.random() < replay.share else own.draw(rng)

    def load(rows: Array) -> Any:
        return before.load(-1 - rows) if rows[0] < 0 else own.load(rows)

    return Sampler(draw, load)


def _as_shown(videos: Packed, spec: PolicySpec) -> Packed:
    """Stage 2's videos as a policy of this spec can be shown them: by their own camera, whatever its name is, where it
    looks by one; without a state that is not the robot's."""
    its = videos.state is not None and videos.state.shape[1] == len(spec.state)
    same = its and videos.state_names in ((), spec.state)
    camera = spec.cameras[0] if len(spec.cameras) == 1 else videos.camera
    return replace(videos, camera=camera, state=videos.state if same else None)


def what_trains(policy: Policy, pretrained: Path | None, wanted: Which) -> Which:
    """What is wanted, or "all" where the head alone would read what nobody has trained."""
    backbone = getattr(policy, "backbone", None)
    if pretrained is None and wanted == "head" and isinstance(backbone, Backbone) and backbone.untaught:
        say_once("Without a pretrained policy all but what is frozen is trained, not the head alone: the "
                 "backbone has not learnt from videos or robots yet.")  # fmt: skip
        return "all"
    return wanted


def labelled_by(packed: Packed, policy_path: Path | None) -> dict[str, list[str]]:
    """The episodes whose actions the policy has seen, by their keys (data/episode_keys.py)."""
    return {"trained": sorted(_taught_before(policy_path) | keys_of(packed))}


def _taught_before(policy_path: Path | None) -> frozenset[str]:
    """Keys of the episodes whose actions stage 2 has taught the policy, or an earlier stage 3."""
    saved = None if policy_path is None else describe(policy_path, "policy")
    if saved is None or "labelled" not in saved.config:
        return frozenset()
    return frozenset(saved.value(tuple[str, ...], "labelled", "trained"))


def _rehearse(
    packed: Packed,
    policy_path: Path | None,
    recipe: Recipe,
    out: Path,
    seed: int,
    idm_path: Path | None,
    changes: Mapping[str, Any],
    replay: Replay | None,
) -> dict[str, Any]:
    """Finetune on four fifths of the labelled episodes, and measure and print the error of actions on the others
    (measures/offline.py); the policy that is kept learns from all of them afterwards. Returns what out/held_out.json
    holds; with `recipe.choose_decoding` also "chosen": the settings that do best there, of those that stage 3 may
    change and that the user has not set. Nothing with fewer than FIVE episodes; "failed", a sentence, where the other
    four fifths cannot be learnt from by themselves, or nothing can be measured on what is held out."""
    done = out / HELD_OUT
    config = learner(policy_path, recipe)
    steps = getattr(recipe, config.finetuned_by).steps
    if on_first_rank(done.exists):
        there = _measured(done, config)
        if there.get("steps", steps) == steps:  # not so where the run has been made longer since
            return there
    if packed.episodes < FIVE:
        _say(f"{counted(packed.episodes, 'labelled episode')}: too few to hold one out; no held-out error.")
        return {}
    if recipe.scale == "each" and np.ptp(packed.source):
        _say("Each of several robots is scaled by itself (scale=each): no held-out error.")
        return {}
    each = np.arange(packed.episodes)
    test = of_each_fifth(each)
    work = out / REHEARSAL

    def measure(policy: Policy) -> dict[str, Any]:
        chosen = changes if recipe.choose_decoding else None
        found = {**_errors(policy, packed, each[test], each[~test], chosen), "steps": steps}
        write_json(done, found)
        offline_error(found, out / "pictures" / "held_out.png", "Held-out error of actions")
        shutil.rmtree(work, ignore_errors=True)
        return found

    try:
        with redirect_stdout(StringIO()):  # what is read off the labels is said of the policy that is kept
            policy, *_ = _learn(packed.subset(each[~test]), policy_path, recipe, work, seed, idm_path, changes,
                                replay, "finetuning, a fifth held out")  # fmt: skip
        found = on_first_rank(lambda: measure(policy))
    except LapaError as error:  # what is wrong with all the episodes is raised when these are learnt from
        on_first_rank(lambda: shutil.rmtree(work, ignore_errors=True))
        return {"failed": f"There is no held-out error: with {int(test.sum())} of {packed.episodes} labelled episodes "
                          f"held out it came to this: {error}"}  # fmt: skip
    _say(f"Held out: {int(test.sum())} of {packed.episodes} labelled episodes, learnt from the others (the policy that "
         "is kept learns from all). Open-loop error of actions; 1 is as far off as the mean action:")  # fmt: skip
    _say("\n".join(f"  {line}" for line in lines(found)))
    if taught := int(seen_among(packed, _taught_before(policy_path))[test].sum()):
        _say(f"The labels of stage 2 were made with the actions of {taught} of these {int(test.sum())}, so this error "
             "flatters the policy.")  # fmt: skip
    if alone := _alone(packed.instructions, test):
        _say(f"{alone} of the {int(test.sum())} held out ask for what none of the others shows, so this is the error "
             "in tasks without labels; in the labelled ones expect less.")  # fmt: skip
    for name, value in found.get("chosen", {}).items():
        tried = ", ".join(
            f"{other} {row['error']:.2f} with steps {row['step'] or 0:.2f} as long"
            for other, row in found[name].items()
        )
        _say(f"{name}={value} is chosen by these episodes: {tried}. To choose yourself: --set policy.{name}=..")
    return found


def _measured(path: Path, config: PolicyConfig) -> dict[str, Any]:
    """What the run has measured before it was killed. Raises LapaError for what it has not written."""
    told = object_at(read_json(path, "held-out error"), str(path))
    own = object_at(object_at(told.get("rows"), f"{path}: rows").get(POLICY), f"{path}: rows.{POLICY}")
    choices = config.choices()
    chosen = object_at(told.get("chosen", {}), f"{path}: chosen")
    if not {"error", "step"} <= own.keys() or any(value not in choices.get(name, ()) for name, value in chosen.items()):
        raise LapaError(f"{path} is not as lapa wrote it. Remove it; the held-out error is then measured anew.")
    return told


def _alone(instructions: Sequence[str], test: Array) -> int:
    """How many of the episodes `test`, bool [E], have an instruction that none of the others has."""
    shown = {text for text, held in zip(instructions, test, strict=True) if not held}
    return sum(text not in shown for text, held in zip(instructions, test, strict=True) if held)


def _errors(
    policy: Policy, packed: Packed, test: Array, fit_on: Array, changes: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The offline error, and with `changes` what is best of each changeable setting that is not among them."""
    config, chosen, tried = policy.config, dict[str, Any](), dict[str, Any]()

    def measured() -> dict[str, Any]:
        return offline(policy, packed, test, (packed, fit_on), policy.spec, ASKED)

    for name, values in config.choices().items() if changes is not None else ():
        if name in (changes or {}):
            continue
        found = {}
        for value in values:
            policy.config = replace(policy.config, **{name: value})
            found[value] = measured()["rows"][POLICY]
        chosen[name] = nearest(found)
        tried[name] = {value: {"error": row["error"], "step": row["step"]} for value, row in found.items()}
        policy.config = replace(policy.config, **{name: chosen[name]})
    return {**measured(), "chosen": chosen, **tried}


def _say(text: str) -> None:
    if rank() == 0:
        print(text, flush=True)


def as_it_is(
    packed: Packed,
    policy_path: Path,
    recipe: Recipe,
    out: Path,
    seed: int,
    idm_path: Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Save the policy at `policy_path` to `out` untrained; one that imagines frames is given `idm_path` to act by.
    `changes`: settings of the policy that are changed."""
    policy, parents, method = _start(policy_path, recipe)
    policy.config = replace(policy.config, **(changes or {}))
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
    may = its.may_change(saved, recipe)
    if "policy.head" in chosen and "head_options" in may:  # another head has other options
        chosen.add("policy.head_options")
    changed = {name: getattr(recipe.policy, name) for name in may if f"policy.{name}" in chosen}
    for name in sorted(chosen - {f"policy.{name}" for name in changed}):
        group, _, field = name.partition(".")
        if group in groups and field in groups[group]:
            instead = "give it a new head (--head new)" if field.startswith("head") else "pretrain with it"
            _require_same(name, wanted[group][field], groups[group][field], policy_path, instead)
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
