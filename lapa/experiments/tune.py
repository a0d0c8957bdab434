"""`lapa tune`: stage 3 in several ways, each scored on validation scenes; the best becomes the policy.

What is trained on a few trajectories, and for how long, has a large effect (docs/experiments.md). The best way differs
between methods, budgets and robots. So every method gets the same search. It does not use test scenes. A search that
was killed goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lapa.artefacts.folder import describe, finished, load_artefact, read_json, save_artefact, write_json
from lapa.contracts import Benchmark, LapaError
from lapa.data.pack import Packed
from lapa.evaluate import Trial, roll_out, share
from lapa.measures.offline import POLICY, offline
from lapa.measures.probes import of_each_fifth
from lapa.plugins import choose
from lapa.policies import Policy
from lapa.recipe import Recipe
from lapa.run_folder import begin
from lapa.stage3_finetune import ASKED, FIVE, HELD_OUT, as_it_is, chosen_settings, finetune, learner

TRIED = "tried"  # below the output folder, until the choice is made
SCORE = "validation.json"
AS_IT_IS = ("decoding",)  # settings that are changed in a policy which learns nothing more


@dataclass(frozen=True)
class Candidate:
    """A way to finetune: what is trained, which head (Recipe), and factors of the recipe's steps and learning rate.

    steps 0: the pretrained policy as it is.
    """

    name: str
    trainable: Literal["head", "all"] = "head"
    head: Literal["linear", "own", "new"] = "own"
    steps: float = 1.0
    rate: float = 1.0

    def of(self, recipe: Recipe, setting: str = "finetune") -> Recipe:
        """The recipe with this way to finetune. `setting`: the part of the recipe that optimises stage 3."""
        how = getattr(recipe, setting)
        steps = max(1, round(how.steps * self.steps))
        tuned: Any = replace(how, steps=steps, learning_rate=how.learning_rate * self.rate)
        return replace(recipe, trainable=self.trainable, head=self.head, **{setting: tuned})


CANDIDATES = {
    each.name: each
    for each in (
        Candidate("linear", head="linear"),
        Candidate("head"),
        Candidate("all", "all", rate=0.25),
        Candidate("all-long", "all", steps=4.0, rate=0.5),
        Candidate("as-it-is", steps=0.0),
        Candidate("new-head", "head", "new"),
        Candidate("all-new-head", "all", "new", rate=0.25),
        Candidate("all-long-new-head", "all", "new", steps=4.0, rate=0.5),
    )
}


def candidates(ways: Sequence[str], only: Sequence[str] = ()) -> list[Candidate]:
    """The ways to try: `only`, or all CANDIDATES, without those that do not suit the policy (not in `ways`, from
    PolicyConfig.ways). Raises LapaError for an unknown name, and when nothing is left."""
    named = [CANDIDATES[choose(name, CANDIDATES, "way to finetune")] for name in only or CANDIDATES]
    found = [each for each in named if each.name in ways]
    if not found:
        raise LapaError(
            f"{', '.join(only)}: not for this policy, whose head is another or that has none yet. It can be finetuned "
            f"by {', '.join(ways)}."
        )
    return found


def changes_of(
    policy_path: Path | None, recipe: Recipe, only: Sequence[str], options: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Of each way that is tried the settings of the policy that the user chose anew (stage3_finetune.chosen_settings);
    options: what he set himself, NAME=VALUE. Raises LapaError for what a way cannot heed."""
    its = learner(policy_path, recipe)
    saved = None if policy_path is None else describe(policy_path, "policy").config
    made = {}
    for each in candidates(its.ways(saved), only):
        try:
            made[each.name] = chosen_settings(policy_path, each.of(recipe, its.finetuned_by), options)
            if not each.steps:
                _require_kept(made[each.name], recipe, saved or {})
        except LapaError as error:
            raise LapaError(f"{each.name}: {error} Or name the ways to try that can do with it (--only).") from None
    return made


def _require_kept(changes: Mapping[str, Any], recipe: Recipe, saved: Mapping[str, Any]) -> None:
    """Raises LapaError for settings that are changed and cannot be without finetuning."""
    has, wanted = saved.get("model", {}), recipe.to_json()["policy"]
    for name in sorted(set(changes) - set(AS_IT_IS)):
        if wanted[name] != has.get(name, wanted[name]):
            raise LapaError(f"policy.{name} is not changed in a policy that is kept as it is.")


def require_enough(packed: Packed) -> None:
    """Raises LapaError where there are too few labelled episodes to hold some out."""
    if packed.episodes < FIVE:
        raise LapaError(
            f"{packed.spec} has {packed.episodes} episodes: without a benchmark {FIVE} or more are needed, of which "
            "some are held out to choose by."
        )


def tune(
    packed: Packed,
    policy_path: Path | None,
    recipe: Recipe,
    out: Path,
    seed: int,
    benchmark: Benchmark | None,
    episodes: int,
    only: Sequence[str] = (),
    idm_path: Path | None = None,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Finetune in every way, score each on `episodes` validation scenes (drawn with `seed`), save the best to `out`.
    `changes`: settings of the policy that stage 3 changes, by way (`changes_of`).

    Without a benchmark each way is scored by the error of actions on labelled episodes that are held out
    (measures/offline.py). A single way is not scored. Of equal scores the first one is chosen. Returns
    {"chosen": NAME, "validation": {NAME: {"success" or "error", "interval", "episodes"}}}; config.json keeps it as
    "tuning". Raises LapaError as `candidates` and `finetune` do, and without a benchmark for fewer than FIVE episodes.
    """
    if benchmark is None:
        require_enough(packed)
    saved = None if policy_path is None else describe(policy_path, "policy").config
    ways = learner(policy_path, recipe).ways(saved)
    tried = [(each, out / TRIED / each.name) for each in candidates(ways, only)]
    scores: dict[str, dict[str, Any]] = {}
    for each, folder in tried:
        _make(each, packed, policy_path, recipe, folder, seed, idm_path, (changes or {}).get(each.name, {}),
              rehearse=benchmark is None)  # fmt: skip
        if len(tried) < 2:
            continue
        if benchmark is not None:
            score = scores[each.name] = _score(folder, benchmark, Trial(episodes, seed, validation=True))
            print(f"{each.name}: {score['success']:.1%} of {episodes} validation episodes.", flush=True)
        else:
            score = scores[each.name] = _error(folder, packed, each.steps > 0)
            print(f"{each.name}: error {score['error']:.3f} on {score['episodes']} held-out episodes.", flush=True)
    best = max(tried, key=lambda pair: _merit(scores[pair[0].name]) if scores else 0.0)
    made = load_artefact(best[1], "policy")
    tuning = {"chosen": best[0].name, "validation": scores}
    kept = {key: value for key, value in made.config.items() if key not in ("kind", "format", "hash")}
    reference = kept.get("borrowed", {})
    save_artefact(out, "policy", {**kept, "tuning": tuning}, made.tensors, reference.get("from", ""),
                  reference.get("names", ()))  # fmt: skip
    shutil.rmtree(out / TRIED)
    return tuning


def _make(
    each: Candidate,
    packed: Packed,
    policy_path: Path | None,
    recipe: Recipe,
    folder: Path,
    seed: int,
    idm_path: Path | None,
    changes: Mapping[str, Any],
    rehearse: bool,
) -> None:
    wanted = each.of(recipe, learner(policy_path, recipe).finetuned_by)
    if begin(folder, wanted, seed, True, "policy", dataset=packed.spec, policy=policy_path):
        return
    if each.steps:
        finetune(packed, policy_path, wanted, folder, seed, idm_path, changes, rehearse)
    else:
        assert policy_path is not None
        as_it_is(packed, policy_path, wanted, folder, seed, idm_path, changes)


def _merit(score: dict[str, Any]) -> float:
    """More is better."""
    return float(score["success"]) if "success" in score else -float(score["error"])


def _error(folder: Path, packed: Packed, trained: bool) -> dict[str, Any]:
    """The error on the episodes that `finetune` held out. A policy that was not finetuned is judged on them too.
    Raises LapaError for one that was, and has no such error."""
    path, each = folder / HELD_OUT, np.arange(packed.episodes)
    if not path.exists():
        if trained:  # it has learnt from them all
            raise LapaError(
                f"{folder.name} has no held-out error, and so cannot be compared. Give a --benchmark, or name one way "
                "with --only."
            )
        test, policy = of_each_fifth(each), Policy.from_pretrained(folder)
        write_json(path, offline(policy, packed, each[test], (packed, each[~test]), policy.spec, ASKED))
    found = read_json(path, "held-out error")
    row = found["rows"][POLICY]
    return {"error": row["error"], "interval": row["interval"], "episodes": found["episodes"], "step": row["step"]}


def _score(folder: Path, benchmark: Benchmark, trial: Trial) -> dict[str, Any]:
    path = folder / SCORE
    if not path.exists():
        assert finished(folder)
        write_json(path, share(roll_out(benchmark, Policy.from_pretrained(folder), trial)[0]))
    found: dict[str, Any] = read_json(path, "validation score")
    return found
