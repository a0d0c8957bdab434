"""`lapa collect --benchmark`: what the expert of a benchmark does, as episodes with all cameras, state and actions."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO

import numpy as np

from lapa.contracts import ActionSpec, Actor, Array, Benchmark, Episode, LapaError, Observation, Outcome, Step
from lapa.evaluate import EPISODES, Trial, open_benchmark, roll_out
from lapa.interop.collect import Take
from lapa.runtime.workers import PARENT, end_with_parent

SIDE_BY_SIDE = 50  # scenes, where the benchmark takes as many as one likes
REHEARSED = 8  # scenes that tell how large the expert's motions are
TRIES = 5  # scenes for each demonstration, at most: an expert that fails more often is none

Shown = list[tuple[Outcome, Take | None]]  # each scene, and its episode where there was success


@dataclass(frozen=True)
class _Training(Trial):
    """Scenes below those of test and validation, by number."""

    scenes: tuple[int, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.seed * EPISODES + scene for scene in self.scenes)


def demonstrations(
    benchmark: Benchmark, episodes: int, seed: int = 0, noise: float = 0.0, spec: str = "", workers: int = 1
) -> Iterator[Take]:
    """Yield so many successful episodes of the expert as all cameras of the benchmark see them, in order of seed.

    Where a scene's seed tells its family (contracts.Benchmark), there are equally many of each. Says how many scenes
    failed.

    noise: standard deviation of what is added to every motion, as a share of the root mean square of the expert's
    motions; binary actions stay as they are, and while one of them is not as at the beginning (a gripper holds
    something) there is no noise. Actions are those that were carried out.
    workers: processes that share the work; what is yielded does not depend on their number. Each opens the benchmark
    that `spec` names. Raises LapaError where there is no expert, and where it fails too often.
    """
    if not 1 <= episodes <= EPISODES // TRIES or noise < 0:
        raise LapaError(f"--episodes is 1 to {EPISODES // TRIES:,} and --noise at least 0, not {episodes} and {noise}.")
    if not 1 <= workers <= 256:
        raise LapaError(f"--workers is 1 to 256, not {workers}.")
    rows = benchmark.baselines()
    if "expert" not in rows:
        raise LapaError(f"This benchmark has no expert to collect from; its rows: {', '.join(rows) or 'none'}.")
    sizes = noise * motion(benchmark, rows["expert"], seed) if noise else np.zeros(len(benchmark.spec.action))
    wanted = _Wanted(benchmark, episodes, seed)
    running: deque[Future[Shown]] = deque()
    with _at_work(benchmark, spec, workers) as begin:
        while wanted.any():
            while len(running) < (workers + 1 if workers > 1 else 1) and (scenes := wanted.next_scenes()):
                running.append(begin(_Training(len(scenes), seed, scenes=scenes), sizes))
            for outcome, take in running.popleft().result():
                if wanted.take(outcome):
                    assert take is not None
                    yield take
        for left in running:
            left.cancel()
    if told := wanted.failures():
        print(told, file=sys.stderr)


class _Wanted:
    """Which scenes to run next, and which of the results to keep: the first successes in order of seed."""

    def __init__(self, benchmark: Benchmark, episodes: int, seed: int) -> None:
        self.family: Callable[[int], str] | None = getattr(benchmark, "family", None)
        self.block, self.first, self.number = benchmark.spec.batch or SIDE_BY_SIDE, seed * EPISODES, 0
        self.quota = {"": episodes}
        if self.family is not None:
            each, more = divmod(episodes, len(benchmark.spec.families))
            self.quota = {name: each + (i < more) for i, name in enumerate(benchmark.spec.families)}
        self.made, self.tried, self.failed, self.begun = Counter[str](), Counter[str](), Counter[str](), Counter[str]()

    def _kind(self, seed: int) -> str:
        return self.family(seed) if self.family else ""

    def _open(self, kind: str) -> bool:
        return self.made[kind] < self.quota[kind]

    def any(self) -> bool:
        """Is anything missing? Raises LapaError when an expert had all its tries."""
        for kind in filter(self._open, self.quota):
            if self.tried[kind] >= TRIES * self.quota[kind]:
                of = f" of {kind}" if kind else ""
                raise LapaError(f"The expert succeeded {self.made[kind]} times in {self.tried[kind]} scenes{of}; "
                                f"{self.quota[kind]} were asked for. Ask for fewer, or for less --noise.")  # fmt: skip
        return any(map(self._open, self.quota))

    def next_scenes(self) -> tuple[int, ...]:
        """As many scenes as run side by side, of the kinds that something is missing of; (): all tries are begun."""
        scenes: list[int] = []
        open_kinds = [k for k in self.quota if self._open(k) and self.begun[k] < TRIES * self.quota[k]]
        while open_kinds and len(scenes) < self.block:
            kind = self._kind(self.first + self.number)
            if kind in open_kinds:
                scenes.append(self.number)
                self.begun[kind] += 1
                if self.begun[kind] == TRIES * self.quota[kind]:
                    open_kinds.remove(kind)
            self.number += 1
        return tuple(scenes)

    def take(self, outcome: Outcome) -> bool:
        """Is it wanted? Counts."""
        kind = self._kind(outcome.seed)
        if not self._open(kind):
            return False
        self.tried[kind] += 1
        self.made[kind] += outcome.success
        if not outcome.success:
            self.failed[outcome.family] += 1
        return outcome.success

    def failures(self) -> str:
        """A sentence on the scenes that failed and were left out, "" where none did."""
        if not self.failed:
            return ""
        each = ", ".join(f"{family} {count}" for family, count in self.failed.most_common())
        return f"Of {self.tried.total()} scenes the expert failed in {self.failed.total()}, left out: {each}."


# --- the processes


@contextmanager
def _at_work(benchmark: Benchmark, spec: str, workers: int) -> Iterator[Callable[[_Training, Array], Future[Shown]]]:
    """What begins some scenes, here or in other processes."""
    if workers == 1:
        yield lambda trial, sizes: _done(_show(benchmark, trial, sizes))
        return
    if not spec:
        raise LapaError("Several workers need the benchmark's name.")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _open_in_worker, (spec, os.getpid())) as pool:
        try:
            yield lambda trial, sizes: pool.submit(_show_in_worker, trial, sizes)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _done(shown: Shown) -> Future[Shown]:
    future: Future[Shown] = Future()
    future.set_result(shown)
    return future


_OPEN: list[Benchmark] = []  # a worker's


def _open_in_worker(spec: str, parent: int) -> None:
    os.environ[PARENT] = str(parent)
    end_with_parent()
    with redirect_stderr(StringIO()):  # the first process has said it
        _OPEN.append(open_benchmark(spec))


def _show_in_worker(trial: _Training, sizes: Array) -> Shown:
    return _show(_OPEN[0], trial, sizes)


def _show(benchmark: Benchmark, trial: _Training, sizes: Array) -> Shown:
    """The scenes of a trial, with noise of these `sizes`, float [A]."""
    recorder = _Recorder(benchmark)
    outcomes, _ = roll_out(recorder, _Noisy(benchmark, sizes, trial.seeds), trial)
    return [
        (outcome, recorder.episode(i, f"seed-{outcome.seed}", outcome.steps) if outcome.success else None)
        for i, outcome in enumerate(outcomes)
    ]


def motion(benchmark: Benchmark, expert: Actor, seed: int) -> Array:
    """How large the expert's motions are, float [A]: the root mean square of deltas, of absolute targets less the state
    (or the target before, where the state has other numbers); 0 where an action is binary."""
    trial = _Training(count := min(REHEARSED, benchmark.spec.batch or REHEARSED), seed, scenes=tuple(range(count)))
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

    def __init__(self, benchmark: Benchmark, sizes: Array, seeds: Sequence[int]) -> None:
        self.expert, self.spec, self.sizes = benchmark.baselines()["expert"], benchmark.spec, sizes
        self.rngs = [np.random.default_rng([seed, 11]) for seed in seeds]
        self.begun: dict[int, Array] = {}  # the switches at the beginning of each scene

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        chunks = np.asarray(self.expert.act_batch(observations, ids))
        if self.sizes.any() and ids is not None:
            chunks = chunks + np.stack([self._noise(i, chunk) for i, chunk in zip(ids, chunks, strict=True)])
        if self.spec.limits:
            chunks = np.clip(chunks, *np.array(self.spec.limits).T)
        return chunks

    def _noise(self, i: int, chunk: Array) -> Array:
        """float [chunk, A]: none while a gripper holds something."""
        switches = chunk[:, np.array(self.spec.action.kinds) == "binary"]
        free = (switches == self.begun.setdefault(i, switches[:1])).all(1)
        noise: Array = self.rngs[i].normal(size=chunk.shape) * self.sizes * free[:, None]
        return noise


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
