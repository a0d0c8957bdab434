"""`lapa collect --benchmark`: what the expert of a benchmark does, as episodes with all cameras, state and actions."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from lapa.artefacts.folder import read_json
from lapa.contracts import ActionSpec, Actor, Array, Benchmark, Episode, LapaError, Observation, Outcome, Step
from lapa.data.spec import Spec
from lapa.data.video import Quality
from lapa.evaluate import EPISODES, Trial, open_benchmark, roll_out
from lapa.interop.collect import Take, mere_video, write
from lapa.runtime.workers import PARENT, end_with_parent

SIDE_BY_SIDE = 50  # scenes, where the benchmark takes as many as one likes
REHEARSED = 8  # scenes that tell how large the expert's motions are
TRIES = 5  # scenes for each demonstration, at most: an expert that fails more often is none

EXPERT = ", its expert"  # what follows the benchmark where a dataset says what it was made from

Shown = tuple[int, Outcome, Take | None]  # a scene's number, how it ended, and its episode where there was success


@dataclass(frozen=True)
class _Training(Trial):
    """Scenes below those of test and validation, by number; `noise` is the size of what is added to each number of an
    action, (): none."""

    scenes: tuple[int, ...] = ()
    noise: tuple[float, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.seed * EPISODES + scene for scene in self.scenes)


def collect_demonstrations(
    benchmark: str,
    episodes: int,
    out: Path,
    seed: int = 0,
    noise: float = 0.0,
    quality: Quality = "auto",
    robot: str = "",
    without_actions: bool = False,
    workers: int = 1,
) -> dict[str, Any]:
    """Write so many demonstrations of the benchmark NAME[:PATH][,option=value...] to the new folder `out`, as LeRobot
    v3.0. Returns what `write` does, and raises LapaError as it and `demonstrations` do."""
    takes = demonstrations(open_benchmark(benchmark), episodes, seed, noise, benchmark, workers)
    if without_actions:
        takes = mere_video(takes)
    robot = robot or re.sub(r"\W+", "_", benchmark.partition(",")[0])
    return write(takes, out, origin(benchmark, seed, noise), episodes, quality, robot)


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
    if not 1 <= episodes <= EPISODES // TRIES or not 0 <= noise < math.inf:
        raise LapaError(
            f"--episodes is 1 to {EPISODES // TRIES:,} and --noise a number from 0 on, not {episodes} and {noise}."
        )
    if not 1 <= workers <= 256:
        raise LapaError(f"--workers is 1 to 256, not {workers}.")
    rows = benchmark.baselines()
    if "expert" not in rows:
        raise LapaError(f"This benchmark has no expert to collect from; its rows: {', '.join(rows) or 'none'}.")
    sizes = tuple((noise * motion(benchmark, rows["expert"], seed)).tolist()) if noise else ()
    wanted = _Wanted(benchmark, episodes, seed)
    most = benchmark.spec.batch or SIDE_BY_SIDE
    with _at_work(benchmark, spec, workers) as show:
        while scenes := wanted.round():
            size = min(most, -(-len(scenes) // workers))
            parts = (tuple(scenes[start : start + size]) for start in range(0, len(scenes), size))
            for scene, outcome, take in show(_Training(len(p), seed, scenes=p, noise=sizes) for p in parts):
                wanted.count(scene, outcome)
                if take is not None:
                    yield take
    if told := wanted.failures():
        print(told, file=sys.stderr)


def origin(benchmark: str, seed: int, noise: float) -> dict[str, Any]:
    """What meta/lapa.json of such a dataset says of it."""
    return {"sources": [benchmark + EXPERT], "seed": seed, "noise": noise}


def benchmark_of(spec: Spec) -> str | None:
    """The benchmark, with its options, that a dataset was collected from, where the dataset says so; None also where it
    is read at another rate, as its actions are another robot's then."""
    told = Path(spec.path).expanduser() / "meta/lapa.json"
    if spec.choice.stride not in (None, 1) or spec.choice.fps is not None or not told.is_file():
        return None
    found = read_json(told, "dataset's origin")
    sources = found.get("sources") if isinstance(found, dict) else None
    one = sources[0] if isinstance(sources, list) and len(sources) == 1 else None
    return one.removesuffix(EXPERT) if isinstance(one, str) and one.endswith(EXPERT) else None


class _Wanted:
    """Which scenes to run next, and how it went: of each family the first successes in order of seed."""

    def __init__(self, benchmark: Benchmark, episodes: int, seed: int) -> None:
        family: Callable[[int], str] = getattr(benchmark, "family", lambda seed: "")
        self.kind = lambda scene: family(seed * EPISODES + scene)
        kinds = benchmark.spec.families if hasattr(benchmark, "family") else ("",)
        each, more = divmod(episodes, len(kinds))
        self.missing = {kind: each + (i < more) for i, kind in enumerate(kinds)}
        self.left = {kind: TRIES * count for kind, count in self.missing.items()}
        self.scenes = {kind: self._scenes(kind) for kind in kinds}
        self.tried, self.failed = Counter[str](), Counter[str]()

    def _scenes(self, kind: str) -> Iterator[int]:
        return (scene for scene in count() if self.kind(scene) == kind)

    def round(self) -> list[int]:
        """Scenes that may bring all that is missing, in order; [] at the end. Raises LapaError when an expert had all
        its tries."""
        for kind, missing in self.missing.items():
            if missing and not self.left[kind]:
                tried, of = self.tried[kind], f" of {kind}" if kind else ""
                raise LapaError(f"The expert succeeded {tried // TRIES - missing} times in {tried} scenes{of}; "
                                f"{tried // TRIES} were asked for. Ask for fewer, or for less --noise.")  # fmt: skip
        again = {kind: min(missing, self.left[kind]) for kind, missing in self.missing.items()}
        self.left = {kind: left - again[kind] for kind, left in self.left.items()}
        return sorted(next(self.scenes[kind]) for kind, some in again.items() for _ in range(some))

    def count(self, scene: int, outcome: Outcome) -> None:
        """Take note of how a scene ended."""
        self.tried[self.kind(scene)] += 1
        self.missing[self.kind(scene)] -= outcome.success
        self.failed[outcome.family] += not outcome.success

    def failures(self) -> str:
        """A sentence on the scenes that failed and were left out, "" where none did."""
        if not self.failed.total():
            return ""
        each = ", ".join(f"{family} {some}" for family, some in self.failed.most_common() if some)
        return f"Of {self.tried.total()} scenes the expert failed in {self.failed.total()}, left out: {each}."


# --- the processes


@contextmanager
def _at_work(
    benchmark: Benchmark, spec: str, workers: int
) -> Iterator[Callable[[Iterable[_Training]], Iterator[Shown]]]:
    """What shows scenes, here or in other processes, in their order."""
    if workers == 1:
        yield lambda trials: (shown for trial in trials for shown in _show(benchmark, trial))
        return
    if not spec:
        raise LapaError("Several workers need the benchmark's name.")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _open_in_worker, (spec, os.getpid())) as pool:
        try:
            yield lambda trials: _in_turn(pool, trials, workers + 1)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_turn(pool: ProcessPoolExecutor, trials: Iterable[_Training], ahead: int) -> Iterator[Shown]:
    """The scenes of all trials, of which `ahead` are begun before the first is read: their pictures fill memory."""
    running: deque[Future[list[Shown]]] = deque()
    for trial in trials:
        running.append(pool.submit(_show_in_worker, trial))
        if len(running) > ahead:
            yield from running.popleft().result()
    while running:
        yield from running.popleft().result()


_OPEN: list[Benchmark] = []  # a worker's


def _open_in_worker(spec: str, parent: int) -> None:
    os.environ[PARENT] = str(parent)
    end_with_parent()
    with redirect_stderr(StringIO()):  # the first process has said it
        _OPEN.append(open_benchmark(spec))


def _show_in_worker(trial: _Training) -> list[Shown]:
    return _show(_OPEN[0], trial)


def _show(benchmark: Benchmark, trial: _Training) -> list[Shown]:
    recorder = _Recorder(benchmark)
    outcomes, _ = roll_out(recorder, _Noisy(benchmark, np.array(trial.noise), trial.seeds), trial)
    return [
        (scene, outcome, recorder.episode(i, f"seed-{outcome.seed}", outcome.steps) if outcome.success else None)
        for i, (scene, outcome) in enumerate(zip(trial.scenes, outcomes, strict=True))
    ]


def motion(benchmark: Benchmark, expert: Actor, seed: int) -> Array:
    """How large the expert's motions are, float [A]: the root mean square of deltas, of absolute targets less the state
    (or the target before, where the state has other numbers); 0 where an action is binary."""
    some = min(REHEARSED, benchmark.spec.batch or REHEARSED)
    recorder = _Recorder(benchmark, pictures=False)
    outcomes, _ = roll_out(recorder, expert, _Training(some, seed, scenes=tuple(range(some))))
    kinds = np.array(benchmark.spec.action.kinds)
    moved = []
    for i, outcome in enumerate(outcomes):
        actions, state = recorder.numbers(i, outcome.steps)
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
    """A benchmark that keeps what it shows, with or without its pictures, and what it is told."""

    def __init__(self, benchmark: Benchmark, pictures: bool = True) -> None:
        self.benchmark, self.spec, self.pictures = benchmark, benchmark.spec, pictures

    def reset(self, seeds: Sequence[int]) -> list[Observation]:
        first = self.benchmark.reset(seeds)
        self.shown = [[self._looked_at(shown)] for shown in first]
        self.done: list[list[Array]] = [[] for _ in seeds]
        self.over = [False] * len(seeds)
        return first

    def step(self, actions: Array) -> list[Step]:
        made = self.benchmark.step(actions)
        for i, step in enumerate(made):
            if not self.over[i]:
                self.shown[i].append(self._looked_at(step.observation))
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
        actions, state = self.numbers(i, steps)
        films = {camera: np.stack([s["images"][camera] for s in shown]) for camera in spec.cameras}
        main = spec.cameras[0]
        episode = Episode(
            id=name, frames=films.pop(main), fps=spec.action.hz, instruction=shown[0]["instruction"], actions=actions,
            state=state, state_names=spec.state, action_names=spec.action.names, camera=main,
            action_kinds=spec.action.kinds,
        )  # fmt: skip
        return episode, films

    def numbers(self, i: int, steps: int) -> tuple[Array, Array | None]:
        """Actions float32 [T, A] and state float32 [T, S] of scene i until it was over."""
        actions = np.stack([*self.done[i][:steps], _last(self.spec.action, self.done[i][steps - 1])])
        told = self.shown[i][: steps + 1]
        return actions, np.stack([s["state"] for s in told]).astype(np.float32) if self.spec.state else None

    def _looked_at(self, shown: Observation) -> Observation:
        """An observation with its pictures and numbers as they are now."""
        images = {name: np.array(picture) for name, picture in shown["images"].items()} if self.pictures else {}
        kept = {**shown, "images": images}
        if "state" in shown:
            kept["state"] = np.array(shown["state"])
        return kept  # type: ignore[return-value]


def _last(spec: ActionSpec, before: Array) -> Array:
    """The last frame leads nowhere: no motion, and targets and grippers stay."""
    return np.where(np.array(spec.kinds) == "delta", 0.0, before).astype(np.float32)
