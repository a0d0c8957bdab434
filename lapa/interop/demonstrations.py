"""`lapa collect --benchmark`: what the expert of a benchmark does, as episodes with all cameras, state and actions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lapa.contracts import ActionSpec, Actor, Array, Benchmark, Episode, LapaError, Observation, Step
from lapa.evaluate import EPISODES, Trial, roll_out
from lapa.interop.collect import Take

SIDE_BY_SIDE = 50  # scenes, where the benchmark takes as many as one likes
REHEARSED = 8  # scenes that tell how large the expert's motions are
TRIES = 5  # scenes for each demonstration, at most: an expert that fails more often is none


@dataclass(frozen=True)
class _Training(Trial):
    """Scenes below those of test and validation, from number `start` on."""

    start: int = 0

    @property
    def seeds(self) -> range:
        first = self.seed * EPISODES + self.start
        return range(first, first + self.episodes)


def demonstrations(benchmark: Benchmark, episodes: int, seed: int = 0, noise: float = 0.0) -> Iterator[Take]:
    """Yield so many successful episodes of the expert as all cameras of the benchmark see them, in order of seed.

    noise: standard deviation of what is added to every motion, as a share of the root mean square of the expert's
    motions; binary actions stay as they are. Actions are those that were carried out. Raises LapaError where there is
    no expert, and where it fails too often.
    """
    if not 1 <= episodes <= EPISODES // TRIES or noise < 0:
        raise LapaError(f"--episodes is 1 to {EPISODES // TRIES:,} and --noise at least 0, not {episodes} and {noise}.")
    rows = benchmark.baselines()
    if "expert" not in rows:
        raise LapaError(f"This benchmark has no expert to collect from; its rows: {', '.join(rows) or 'none'}.")
    sizes = noise * motion(benchmark, rows["expert"], seed) if noise else np.zeros(len(benchmark.spec.action))
    made = tried = 0
    most = benchmark.spec.batch or SIDE_BY_SIDE
    while made < episodes:
        if tried >= TRIES * episodes:
            raise LapaError(f"The expert succeeded {made} times in {tried} scenes; {episodes} were asked for. Ask for "
                            "fewer, or for less --noise.")  # fmt: skip
        trial = _Training(min(most, TRIES * episodes - tried), seed, start=tried)
        recorder = _Recorder(benchmark)
        outcomes, _ = roll_out(recorder, _Noisy(rows["expert"], sizes, trial.seeds), trial)
        for i, outcome in enumerate(outcomes):
            if outcome.success and made < episodes:
                made += 1
                yield recorder.episode(i, f"seed-{outcome.seed}", outcome.steps)
        tried += trial.episodes


def motion(benchmark: Benchmark, expert: Actor, seed: int) -> Array:
    """How large the expert's motions are, float [A]: the root mean square of deltas, of absolute targets less the state
    (or the target before, where the state has other numbers); 0 where an action is binary."""
    trial = _Training(min(REHEARSED, benchmark.spec.batch or REHEARSED), seed)
    recorder = _Recorder(benchmark)
    outcomes, _ = roll_out(recorder, expert, trial)
    kinds = np.array(benchmark.spec.action.kinds)
    moved = []
    for i, outcome in enumerate(outcomes):
        episode, _ = recorder.episode(i, "", outcome.steps)
        actions, state = episode.actions, episode.state
        assert actions is not None
        told = state is not None and state.shape == actions.shape
        from_here = actions - state if told else np.diff(actions, axis=0, prepend=actions[:1])
        moved.append(np.where(kinds == "absolute", from_here, actions)[:-1])
    sizes: Array = np.sqrt(np.square(np.concatenate(moved)).mean(0))
    return np.where(kinds == "binary", 0.0, sizes)


class _Noisy:
    """An expert whose motions are disturbed. The noise of a scene depends on its seed and nothing else."""

    def __init__(self, expert: Actor, sizes: Array, seeds: Sequence[int]) -> None:
        self.expert, self.sizes = expert, sizes
        self.rngs = [np.random.default_rng([seed, 11]) for seed in seeds]

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        chunks = np.asarray(self.expert.act_batch(observations, ids))
        if not self.sizes.any() or ids is None:
            return chunks
        return chunks + np.stack([self.rngs[i].normal(size=chunks.shape[1:]) for i in ids]) * self.sizes


class _Recorder:
    """A benchmark that keeps what it shows and what it is told."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark, self.spec = benchmark, benchmark.spec

    def reset(self, seeds: Sequence[int]) -> list[Observation]:
        first = self.benchmark.reset(seeds)
        self.shown = [[_looked_at(shown)] for shown in first]
        self.done: list[list[Array]] = [[] for _ in seeds]
        self.over = [False] * len(seeds)
        return first

    def step(self, actions: Array) -> list[Step]:
        made = self.benchmark.step(actions)
        for i, step in enumerate(made):
            if not self.over[i]:
                self.shown[i].append(_looked_at(step.observation))
                self.done[i].append(np.asarray(actions[i], np.float32))
                self.over[i] = step.done or step.success
        return made

    def tasks(self) -> tuple[str, ...]:
        return self.benchmark.tasks()

    def baselines(self) -> Mapping[str, Actor]:
        return self.benchmark.baselines()

    def episode(self, i: int, name: str, steps: int) -> Take:
        """Scene i until it was over."""
        shown, spec = self.shown[i][: steps + 1], self.spec
        actions = np.stack([*self.done[i][:steps], _last(spec.action, self.done[i][steps - 1])])
        state = np.stack([s["state"] for s in shown]).astype(np.float32) if spec.state else None
        films = {camera: np.stack([s["images"][camera] for s in shown]) for camera in spec.cameras}
        main = spec.cameras[0]
        episode = Episode(
            id=name, frames=films.pop(main), fps=spec.action.hz, instruction=shown[0]["instruction"], actions=actions,
            state=state, state_names=spec.state, action_names=spec.action.names, camera=main,
            action_kinds=spec.action.kinds,
        )  # fmt: skip
        return episode, films


def _looked_at(shown: Observation) -> Observation:
    """An observation with its pictures and numbers as they are now."""
    kept = {**shown, "images": {camera: np.array(picture) for camera, picture in shown["images"].items()}}
    if "state" in shown:
        kept["state"] = np.array(shown["state"])
    return kept  # type: ignore[return-value]


def _last(spec: ActionSpec, before: Array) -> Array:
    """The last frame leads nowhere: no motion, and targets and grippers stay."""
    return np.where(np.array(spec.kinds) == "delta", 0.0, before).astype(np.float32)
