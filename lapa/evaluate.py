"""`lapa evaluate`: policy x benchmark -> outcomes, success per family with 95% intervals, one JSON and a picture.

The rollout is here and nowhere else: the choice of scenes, how many run side by side, when a policy is asked, how much
of its answer is carried out, its instructions, films, counting. A benchmark sees actions, a policy sees observations.
"""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lapa import __version__
from lapa.actions.spec import described
from lapa.artefacts.folder import read_json, write_json
from lapa.contracts import ActionSpec, Actor, Array, Benchmark, LapaError, Observation, Outcome, PolicySpec, TaskSpec
from lapa.data.index import counted
from lapa.data.observations import ONE
from lapa.measures.intervals import wilson
from lapa.plots.codes import animation, success_bars
from lapa.plugins import choose, find, parse
from lapa.runtime.alone import hold
from lapa.runtime.progress import Progress

TEST_SEEDS = 1_000_000_000  # training data draws from below (datasets/tabletop.py)
VALIDATION_SEEDS = 2_000_000_000  # for choosing settings; never reported
EPISODES, SEEDS = 100_000, 10_000  # at most; beyond lie the scenes of training or of validation
FILM, FASTEST = 192, 50  # pixels a side of a film; its frames a second at most, twice those of the world otherwise
Told = Literal["right", "shuffled", "empty"]
Ended = Callable[[int, Sequence[Outcome]], None]


# --- the scenes and how they are run


@dataclass(frozen=True)
class Trial:
    """How a benchmark is run.

    seed         scene i has seed TEST_SEEDS + seed * 100,000 + i, so that every policy meets the same scenes
    validation   take VALIDATION_SEEDS in place of those
    instruction  what the policy is told: the scene's instruction, that of another scene, or nothing. Success is judged
                 by the right one
    execute      actions of a chunk that are carried out before the policy is asked again, no more than it has; None: as
                 its spec says, all where it says nothing
    """

    episodes: int
    seed: int = 0
    validation: bool = False
    instruction: Told = "right"
    execute: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.episodes <= EPISODES:
            raise LapaError(f"A benchmark is run for 1 to {EPISODES:,} episodes, not {self.episodes}.")
        if not 0 <= self.seed < SEEDS:
            raise LapaError(f"A benchmark is run with a seed from 0 to {SEEDS - 1:,}, not {self.seed}.")
        if self.execute is not None and self.execute < 1:
            raise LapaError(f"At least 1 action of a chunk is carried out, not {self.execute}.")
        choose(self.instruction, get_args(Told), "instruction")

    @property
    def seeds(self) -> Sequence[int]:
        """Of the scenes, in order."""
        first = (VALIDATION_SEEDS if self.validation else TEST_SEEDS) + self.seed * EPISODES
        return range(first, first + self.episodes)


def open_benchmark(text: str) -> Benchmark:
    """The benchmark that NAME[:PATH][,option=value...] names. Raises LapaError as `parse` and the benchmark do."""
    name, path, options = parse("benchmarks", text)
    benchmark: Benchmark = find("benchmarks", name)(**({} if path is None else {"path": path}), **options).build()
    return benchmark


def roll_out(
    benchmark: Benchmark,
    actor: Actor,
    trial: Trial,
    record: int = 0,
    size: int = FILM,
    known: Mapping[int, Outcome] | None = None,
    ended: Ended = lambda done, outcomes: None,
) -> tuple[list[Outcome], list[Array]]:
    """An Outcome per scene, and a film, uint8 [T, H, W, 3] of about `size` pixels a side, of the first `record`.

    A policy is asked about all scenes that are not done and have carried out its last answer. Scenes that run side by
    side and are all `known`, by their seeds, are not run again; those to be filmed are. `ended` is called after every
    step with how many scenes are over, and with the outcomes of those that ran side by side once all of them are, ()
    before. Raises LapaError when actions of the policy do not fit, are fewer than `trial.execute`, or are not finite.
    """
    order: Callable[[Sequence[int]], Sequence[int]] = getattr(benchmark, "order", lambda seeds: seeds)
    most = min(filter(None, (benchmark.spec.batch, getattr(actor, "most", 0))), default=0)
    parts = list(_side_by_side(order(trial.seeds), most))
    told = _told(benchmark, parts, trial)
    wanted = frozenset(trial.seeds[: max(record, 0)])
    outcomes: dict[int, Outcome] = {}
    films: dict[int, Array] = {}
    for seeds in parts:
        before = len(outcomes)
        if known and all(seed in known and seed not in wanted for seed in seeds):
            outcomes.update((seed, known[seed]) for seed in seeds)
            continue
        scenes = _Scenes(benchmark, actor, trial, told[before : before + len(seeds)])
        filmed = [i for i, seed in enumerate(seeds) if seed in wanted]
        made, more = scenes.run(seeds, filmed, size, before, ended)
        outcomes.update(zip(seeds, made, strict=True))
        films.update(zip((seeds[i] for i in filmed), more, strict=True))
        ended(len(outcomes), made)
    return [outcomes[seed] for seed in trial.seeds], [films[seed] for seed in trial.seeds if seed in films]


def _side_by_side(seeds: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(seeds), most or len(seeds)):
        yield seeds[start : start + (most or len(seeds))]


def _told(benchmark: Benchmark, parts: Sequence[Sequence[int]], trial: Trial) -> list[str | None]:
    """What the policy is told in each scene; None: what the scene says."""
    if trial.instruction != "shuffled":
        return [None if trial.instruction == "right" else ""] * trial.episodes
    if trial.episodes < 2:
        raise LapaError("Shuffled instructions are those of other scenes: evaluate at least two episodes.")
    right = [shown["instruction"] for seeds in parts for shown in benchmark.reset(seeds)]
    if len(set(right)) == 1:
        raise LapaError(f'All scenes have the instruction "{right[0]}": to shuffle them changes nothing.')
    ring = np.random.default_rng([trial.seed, 10]).permutation(len(right))  # each scene is told what another asks
    asked = dict(zip(ring.tolist(), np.roll(ring, 1).tolist(), strict=True))
    return [right[asked[i]] for i in range(len(right))]


class _Scenes:
    """Scenes that run side by side: a queue of actions each."""

    def __init__(self, benchmark: Benchmark, actor: Actor, trial: Trial, told: Sequence[str | None]) -> None:
        self.benchmark, self.actor, self.told = benchmark, actor, told
        self.asked = trial.execute
        self.execute = trial.execute or getattr(getattr(actor, "spec", None), "execute", None)
        self.queues: list[deque[Array]] = [deque() for _ in told]

    def run(
        self, seeds: Sequence[int], filmed: Sequence[int], size: int, before: int, ended: Ended
    ) -> tuple[list[Outcome], list[Array]]:
        """An Outcome per scene, and films of those whose numbers are `filmed`. `before` are the scenes before these."""
        spec, count = self.benchmark.spec, len(seeds)
        shown = self.benchmark.reset(seeds)
        forget = getattr(self.actor, "reset", None)  # of a policy that remembers
        if forget is not None:
            forget(None)
        families, right = self.benchmark.tasks(), [observation["instruction"] for observation in shown]
        steps, won, over = np.full(count, spec.max_steps), np.zeros(count, bool), np.zeros(count, bool)
        films = {i: [self._picture(i, shown, size)] for i in filmed}
        achieved: list[set[str]] = [set() for _ in range(count)]
        for step in range(1, spec.max_steps + 1):
            running = np.flatnonzero(~over).tolist()
            actions = self._actions(running, shown)
            for i, made in enumerate(self.benchmark.step(actions)):
                if not over[i]:
                    shown[i], won[i], over[i] = made.observation, made.success, made.done or made.success
                    steps[i] = step
                    achieved[i].update(made.stages)
            for i in running:
                if i in films:
                    films[i].append(self._picture(i, shown, size))
            if over.all():
                break
            ended(before + int(over.sum()), ())
        stages = [tuple(name for name in spec.stages if name in those) for those in achieved]
        told = zip(families, seeds, right, won.tolist(), steps.tolist(), stages, strict=True)
        return [Outcome(*each) for each in told], [np.stack(film) for film in films.values()]

    def _actions(self, running: Sequence[int], shown: Sequence[Observation]) -> Array:
        """The next action of each running scene, float [B, A]; zeros for the others."""
        if waiting := [i for i in running if not self.queues[i]]:
            chunks = np.asarray(self.actor.act_batch([self._observation(i, shown) for i in waiting], waiting))
            wanted = len(self.benchmark.spec.action)
            if chunks.ndim != 3 or chunks.shape[0] != len(waiting) or not chunks.shape[1] or chunks.shape[2] != wanted:
                raise LapaError(
                    f"The benchmark needs actions [{len(waiting)}, chunk, {wanted}], the policy gave "
                    f"{list(chunks.shape)}. Is it of another robot?"
                )
            if self.asked and self.asked > chunks.shape[1]:
                raise LapaError(f"--execute {self.asked}: an answer has {chunks.shape[1]} actions. Leave it out.")
            if not np.isfinite(chunks).all():
                raise LapaError(
                    "The policy answered with a number that is not finite; nothing can carry that out. Train it anew."
                )
            for i, chunk in zip(waiting, chunks, strict=True):
                self.queues[i].extend(chunk[: self.execute])
        actions = np.zeros((len(shown), len(self.benchmark.spec.action)))
        for i in running:
            actions[i] = self.queues[i].popleft()
        return actions

    def _observation(self, i: int, shown: Sequence[Observation]) -> Observation:
        said = self.told[i]
        return shown[i] if said is None else {**shown[i], "instruction": said}

    def _picture(self, i: int, shown: Sequence[Observation], size: int) -> Array:
        draw = getattr(self.benchmark, "picture", None)
        picture: Array = draw(i, size) if draw is not None else shown[i]["images"][self.benchmark.spec.cameras[0]]
        return picture


# --- whose policy is it?


def require_fit(actor: Any, who: str, task: TaskSpec, name: str) -> None:
    """Raise LapaError unless the policy `actor`, called `who`, acts in the world of the benchmark called `name`.

    Where its spec does not say what its actions mean (artefacts of lapa 0.1), only their number must fit, and a note
    says so. A policy without actions passes here: its own error says why it cannot act.
    """
    policy: PolicySpec | None = getattr(actor, "spec", None)
    if policy is None or policy.action is None:
        if not actor.dimensions:
            return
        if actor.dimensions != len(task.action):
            raise misfit(who, name, [f"{actor.dimensions} numbers; there it takes {described(task.action)}"])
        print(f"Note: {who} does not say what its actions mean (artefacts of lapa 0.1 do not). {name} takes as many "
              "numbers; whether they mean the same, nobody checks.", file=sys.stderr)  # fmt: skip
        return
    found = differences(policy.action, task.action)
    if not (len(policy.cameras) == len(task.cameras) == 1) and (lost := set(policy.cameras) - set(task.cameras)):
        found.append(f"it looks at the camera {', '.join(sorted(lost))}, there is {', '.join(task.cameras)}")
    if policy.state and policy.state != task.state:
        found.append(f"it reads the state {_few(policy.state)}, there is {_few(task.state) or 'none'}")
    if found:
        raise misfit(who, name, found)
    if policy.cameras != task.cameras and len(policy.cameras) == len(task.cameras) == 1 and policy.cameras != (ONE,):
        print(f"Note: {who} has learnt from the camera {policy.cameras[0]}; {name} shows it {task.cameras[0]}.",
              file=sys.stderr)  # fmt: skip


def require_same_actions(action: ActionSpec, who: str, task: TaskSpec, name: str) -> None:
    """Raise LapaError unless the trajectories `who` have the actions that the benchmark takes."""
    if found := differences(action, task.action):
        raise misfit(who, name, found)


def differences(ours: ActionSpec, theirs: ActionSpec) -> list[str]:
    """The differences between two worlds, in words. Names that only count (action_0, ..) are not compared."""
    if len(ours) != len(theirs):
        return [f"{described(ours)}; there it takes {described(theirs)}"]
    found = []
    if ours.names != theirs.names and not (_counted(ours.names) or _counted(theirs.names)):
        found.append(f"actions called {_few(ours.names)}, there {_few(theirs.names)}")
    if wrong := [i for i in range(len(ours)) if ours.kinds[i] != theirs.kinds[i]]:
        i = wrong[0]
        found.append(f"{theirs.names[i]} is {ours.kinds[i]}, there {theirs.kinds[i]} (a dataset's kinds= says so)")
    if not math.isclose(ours.hz, theirs.hz, rel_tol=0.02):
        found.append(f"{ours.hz:g} actions a second, there {theirs.hz:g}")
    return found


def misfit(who: str, name: str, found: Sequence[str]) -> LapaError:
    """The error that says in what `who` does not fit the benchmark called `name`."""
    return LapaError(
        f"{who} is not of the world of the benchmark {name}: {'; '.join(found)}. Use lapa.Policy.act on your robot, or "
        "add a benchmark (CONTRIBUTING.md)."
    )


def _counted(names: Sequence[str]) -> bool:
    return all(name.rpartition("_")[2].isdigit() and name.startswith("action") for name in names)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", .." if len(names) > 4 else "")


# --- the figures


def by_family(
    outcomes: Sequence[Outcome], families: Sequence[str], stages: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """The `share` of each family that occurs."""
    some = {family: [o for o in outcomes if o.family == family] for family in families}
    return {family: share(those, stages) for family, those in some.items() if those}


def share(outcomes: Sequence[Outcome], stages: Sequence[str] = ()) -> dict[str, Any]:
    """{"success", "interval", "episodes"} of some outcomes, and with `stages` {"stages": {name: share of episodes that
    got so far}}; the interval is Wilson's at 95%."""
    wins = sum(o.success for o in outcomes)
    low, high = wilson(wins, len(outcomes))
    far = {name: sum(name in o.stages for o in outcomes) / len(outcomes) for name in stages}
    told = {"success": wins / len(outcomes), "interval": [low, high], "episodes": len(outcomes)}
    return {**told, "stages": far} if far else told


def evaluate(
    name: str, actor: Actor, benchmark: Benchmark, trial: Trial, out: Path, video: int, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Run the trial, write `out/results.json`, `out/success.png` and animations of the first `video` episodes.

    `about` is kept in the JSON (benchmark, policy path and hash). What an interrupted try at this very evaluation has
    finished, `out/unfinished.json`, is not run again, but for what is filmed. Raises LapaError when `out` holds
    anything but a try at this very evaluation.
    """
    about = {**asdict(trial), **about}
    hold(out)
    _require_room(out, {"method": name, **about})
    unfinished = Unfinished(out / "unfinished.json", {"method": name, "lapa": __version__, **about})
    known, filmed = dict(unfinished.outcomes), min(video, trial.episodes)
    with Progress(f"testing {name}", trial.episodes, out, len(known), unit="episodes") as bar:

        def ended(done: int, outcomes: Sequence[Outcome]) -> None:
            bar.update(max(done, len(known)))
            unfinished.add(outcomes)

        outcomes, films = roll_out(benchmark, actor, trial, filmed, known=known, ended=ended)
    results = {
        "method": name,
        **share(outcomes, benchmark.spec.stages),
        "families": by_family(outcomes, benchmark.spec.families, benchmark.spec.stages),
        "mean_steps": sum(o.steps for o in outcomes) / len(outcomes),
        "lapa": __version__,
        **about,
        "outcomes": [asdict(o) for o in outcomes],
    }
    for stale in _animations(out):
        stale.unlink()
    fps = min(FASTEST, 2 * benchmark.spec.action.hz)
    for i, frames in enumerate(films):
        told = {**asdict(outcomes[i]), "method": name}
        animation(frames, out / f"episode_{i}.gif", fps=fps, scale=1)
        write_json(out / f"episode_{i}.json", told)
    success_bars({name: results}, out / "success.png")
    write_json(out / "results.json", results)
    unfinished.path.unlink(missing_ok=True)
    return results


class Unfinished:
    """What an evaluation has so far: outcomes by their seeds, in a file that is written anew with each group of scenes.

    A file of another evaluation is begun anew, with a note. Raises LapaError for a file that is none.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, json.loads(json.dumps(about, default=str))
        self.outcomes: dict[int, Outcome] = {}
        if path.exists():
            found = read_json(path, "unfinished evaluation")
            if not isinstance(found, dict) or not isinstance(found.get("about"), dict):
                raise LapaError(f"{path} is no unfinished evaluation. Remove it.")
            changed = [key for key in self.about if found["about"].get(key) != self.about[key]]
            if changed:
                print(f"{path} is of another evaluation ({changed[0]} differs): begun anew.", file=sys.stderr)
            else:
                made = [Outcome(**{**one, "stages": tuple(one["stages"])}) for one in found["outcomes"]]
                self.outcomes = {one.seed: one for one in made}
                then = f", of the policy that {server} had then" if "://" in (server := about.get("policy", "")) else ""
                print(f"{counted(len(made), 'episode')} of an interrupted run are kept{then}.", file=sys.stderr)

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Keep these too."""
        if outcomes:
            self.outcomes.update((one.seed, one) for one in outcomes)
            write_json(self.path, {"about": self.about, "outcomes": [asdict(one) for one in self.outcomes.values()]})


def _require_room(out: Path, wanted: dict[str, Any]) -> None:
    """Raise LapaError when `out` holds something else, or the evaluation of something else."""
    results = out / "results.json"
    own = {results, *(out / other for other in ("success.png", "unfinished.json", "progress")), *_animations(out)}
    inside = {path for path in out.iterdir() if path.name[0] != "."} if out.exists() else set()
    if other := sorted(inside - own):
        raise LapaError(f"{out} holds more than an evaluation ({other[0].name}). Choose another --out.")
    if results.exists():
        before = read_json(results, "evaluation")
        if changed := [key for key, value in wanted.items() if before.get(key) != value]:
            raise LapaError(
                f"{out} holds another evaluation ({changed[0]} {before.get(changed[0])}, not {wanted[changed[0]]}). "
                "Remove it or choose another --out."
            )


def _animations(out: Path) -> list[Path]:
    return [path for kind in ("gif", "json") for path in out.glob(f"episode_*.{kind}")]
