"""Stage 2a, `lapa label`: dataset x label source -> labels on disk, one row per frame that has a later frame.

The pairs are cut into shards of whole episodes. Every process, be it this one, a worker, a rank of torchrun or a task
on a Ray cluster, walks the same list (`work`): its own part first, then what the others have not done yet. A shard
appears whole under its name or not at all, and what is there is skipped; so any process can be killed at any time,
nothing is missing, doubled or torn, and the same command goes on. No process talks to another: they meet in the folder.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lapa.actions.meaning import Meaning
from lapa.artefacts.folder import read_json, write_json
from lapa.contracts import Array, FramePairs, Labels, LabelSource, LapaError
from lapa.data.folders import new_folder
from lapa.data.index import APART, Index
from lapa.data.labelled import MANIFEST, TABLE, joined, read_manifest, read_shard, write_manifest, write_shard
from lapa.data.observations import say_once
from lapa.data.pack import Packed, pack
from lapa.data.pairs import PairIndex, pair_counts, tell_of_window, too_slow, window_pairs
from lapa.data.stream import Stream, forward, stream
from lapa.labels import BATCH, source_config
from lapa.measures.probes import r2
from lapa.methods import of_source
from lapa.plugins import name_of
from lapa.recipe import Recipe
from lapa.runtime.distributed import gather, on_first_rank, rank, ranks
from lapa.runtime.memory import keep_freed_memory
from lapa.runtime.progress import Progress
from lapa.runtime.workers import start, until_all_have_ended

SHARD = 4096  # pairs in a shard, about: what a killed process has to do again; fewer where that makes few shards
SHARDS = 64
PLAN = "plan.json"  # in a folder that is not finished
MANIFEST_OF_PLAN = {  # fields of a plan that the labels depend on -> what the manifest calls them
    "fingerprint": "fingerprint",
    "source_hash": "source_hash",
    "end": "end",
    "precision": "precision",
    "compile": "compiled",
    "image_size": "image_size",
}
Engine = Literal["local", "ray"]


def source_image_size(source: str) -> int:
    """Pixels a side that the source looks at; for those that look at none the size that most policies read, which saves
    a second pack. Raises LapaError for anything that is not a label source."""
    return source_config(source).image_size() or Recipe().policy_image_size


@dataclass(frozen=True)
class LabelSettings:
    """What is labelled, and how: plan.json, all that another process needs to help.

    window in seconds (None: adjacent frames); shard as in `label`.
    """

    datasets: tuple[str, ...]
    skip_bad: bool
    image_size: int
    fingerprint: str
    source: str
    source_hash: str
    window: float | None
    end: Literal["drop", "clip"]
    precision: str
    compile: bool
    shard: int
    stream: bool = False

    def same_labels(self, other: LabelSettings) -> bool:
        """Do both give the same shards? Where data and source lie does not matter."""
        place = {"datasets": (), "skip_bad": False, "source": ""}
        return replace(self, **place) == replace(other, **place)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Shard:
    """Episodes first : last, with so many pairs."""

    file: str
    first: int
    last: int
    pairs: int


def cut(packed: Index, plan: LabelSettings) -> list[Shard]:
    """The shards, in order: whole episodes, a new shard for every `plan.shard` pairs."""
    counts = pair_counts(packed, plan.window, plan.end)
    ends = np.cumsum(counts)
    size = plan.shard or int(np.clip(ends[-1] // SHARDS, BATCH, SHARD))
    groups = (ends - counts) // size
    firsts = np.flatnonzero(np.diff(groups, prepend=-1))
    spans = [(int(a), int(b), int(counts[a:b].sum())) for a, b in zip(firsts, [*firsts[1:], len(counts)], strict=True)]
    spans = [span for span in spans if span[2]]  # episodes that are too short, at the end
    return [Shard(f"part-{number:06d}.parquet", *span) for number, span in enumerate(spans)]


def label(
    packed: Packed | Stream,
    source: str,
    out: Path,
    end: Literal["drop", "clip"] = "drop",
    precision: str = "float32",
    *,
    compile: bool = False,
    shard: int = 0,
    workers: int = 0,
    engine: Engine = "local",
    datasets: Sequence[str] = (),
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Label every pair of the source's window into the folder `out`; go on where an earlier call stopped.

    From a stream the labels are those that a pack of the same data gives, byte for byte. An episode that turns out to
    be damaged stops it, or is left out where the stream skips bad ones; episodes after it keep their numbers in the
    shards.

    workers: processes on this machine (0: this one; under torchrun its ranks), or tasks on the Ray cluster (0: one per
    GPU, else one per core). `datasets` and `skip_bad` are what `packed` was packed with: other processes open it again.
    shard: pairs in one, at least (0: by the number of pairs). precision is the arithmetic of a LAQ: "float32", or
    "bfloat16"; `compile` compiles it first (labels/latent.py). Returns the manifest. Raises LapaError when the source
    does not fit the data (no actions for ground truth, say) or is no LAQ and was given these choices, when `out` holds
    something else, and when shards are missing in the end because processes died.
    """
    if shard < 0 or workers < 0:
        raise LapaError(f"--shard and --workers must not be below 0, got {shard} and {workers}.")
    if ranks() > 1 and (workers > 1 or engine != "local"):
        raise LapaError("Under torchrun its processes share the work; leave out --workers and --engine.")
    keep_freed_memory()
    labeller = open_source(source, precision, compile)
    plan = LabelSettings(
        tuple(datasets) or (packed.spec,), skip_bad, packed.image_size, packed.fingerprint,
        source, labeller.hash, labeller.window, end, precision, compile, shard, isinstance(packed, Stream),
    )  # fmt: skip
    if there := on_first_rank(lambda: finished_before(out, plan)):
        if rank() == 0:
            print(f"{out} is finished already.")
        return there
    shards = cut(packed, plan)
    tell_of_window(packed, plan.window, end)
    if rank() == 0:
        tell_of_rate(packed, getattr(labeller, "robot", None))
    labelled(packed, labeller, plan, shards[0], {}, only=1)  # a source that does not fit says so before it writes
    on_first_rank(lambda: begin(out, plan))
    folder, total = out / TABLE, sum(s.pairs for s in shards)
    done = count_pairs(folder, shards)
    if 0 < done < total and rank() == 0:
        print(f"Going on: {done:,} of {total:,} pairs are labelled already.")
    faults: list[str] = []
    with Progress("labelling", total, done=done, unit="pairs", quiet=rank() > 0) as progress:
        if engine == "ray":
            faults = on_ray(out, workers, lambda: progress.update(count_pairs(folder, shards)))
        elif workers > 1:
            faults = on_this_machine(out, workers, lambda: progress.update(count_pairs(folder, shards)))
        else:
            work(packed, labeller, plan, shards, folder, rank(), ranks(), Tally(folder, shards, progress))
        gather(None)  # every rank has looked at every shard
        progress.update(count_pairs(folder, shards))
    missing = sum(not (folder / s.file).exists() for s in shards)
    why = f" {'; '.join(faults)}." if faults else ""
    if missing:
        raise LapaError(f"{missing} of {len(shards)} shards are not labelled.{why} Run the same command again.")
    if faults:
        print(f"The others did the work of those that failed:{why}", file=sys.stderr)
    return on_first_rank(lambda: finish(packed, labeller, plan, shards, out))


def tell_of_rate(packed: Index, robot: Meaning | None) -> None:
    """Say where the frames of the videos lie nearer or farther apart than those that inverse dynamics was fitted on:
    what it reads off two frames is then a motion of another length of time than an action of the `robot`."""
    if robot is None or not ("delta" in robot.spec.kinds or any(robot.relative)):
        return
    slow, fast, hz = float(packed.fps.min()), float(packed.fps.max()), robot.spec.hz
    if fast > APART * hz or slow * APART < hz:
        many = f"{slow:.4g}" if slow == fast else f"{slow:.4g} to {fast:.4g}"
        say_once(f"the videos have {many} frames a second, and the inverse dynamics was fitted at {hz:.4g}. What it "
                 "reads off two frames is a motion of another length than an action of the robot. Take the videos at "
                 "its rate: the options fps= and stride= of --dataset leave frames out.")  # fmt: skip


def open_source(source: str, precision: str = "float32", compile: bool = False) -> LabelSource:
    """The label source. Raises LapaError for anything that is none, and for one without these choices."""
    return source_config(source, precision=precision, compile=compile).build()


def finished_before(out: Path, plan: LabelSettings) -> dict[str, Any] | None:
    """The manifest of the labels in `out` if they are whole and those that `plan` would give; None if there is nothing.

    Raises LapaError when they are others. How they were made (shards, workers, a stream) does not matter.
    """
    if not (out / MANIFEST).exists():
        return None
    manifest = read_manifest(out)
    there = {name: manifest.get(key) for name, key in MANIFEST_OF_PLAN.items()}
    wanted = {name: getattr(plan, name) for name in MANIFEST_OF_PLAN}
    if differ := [name for name in there if there[name] != wanted[name]]:
        told = ", ".join(f"{name} {there[name]}, not {wanted[name]}" for name in differ)
        raise LapaError(f"{out} exists already, with other labels ({told}). Remove it or choose another path.")
    for shard in manifest["shards"]:
        if not (out / TABLE / shard["file"]).exists():
            raise LapaError(f"{out / TABLE / shard['file']} is missing. Remove {out} and label again.")
    return manifest


def begin(out: Path, plan: LabelSettings) -> None:
    """Make the folder, or accept one that was begun with the same plan. Raises LapaError for any other."""
    if not (out / PLAN).exists() or (out / MANIFEST).exists():
        if out.exists():
            raise LapaError(f"{out} exists already. Remove it or choose another path.")
        with new_folder(out, twin_is_fine=True) as fresh:  # the same command elsewhere may be as quick
            (fresh / TABLE).mkdir()
            write_json(fresh / PLAN, asdict(plan))
    if not plan.same_labels(_plan(read_json(out / PLAN, "plan of unfinished labels"))):
        raise LapaError(
            f"{out} exists already, with unfinished labels of other data, another source or other settings ({PLAN}). "
            "Remove it or choose another path."
        )


def _plan(found: dict[str, Any]) -> LabelSettings:
    window = None if found["window"] == 1e-9 else found["window"]  # as lapa 0.1 wrote it for adjacent frames
    return LabelSettings(**{**found, "datasets": tuple(found["datasets"]), "window": window})


def labelled(
    packed: Packed | Stream,
    labeller: LabelSource,
    plan: LabelSettings,
    shard: Shard,
    bad: dict[int, str],
    only: int | None = None,
    tell: Callable[[int], None] = lambda pairs: None,
    threads: int = 1,
) -> Labels:
    """Labels of one shard (of its `only` first pairs, if given); `tell` is called with the pairs done so far.

    Episodes that turn out to be damaged have none, and are entered in `bad` with the reason."""
    part = packed.subset(np.arange(shard.first, shard.last))
    pairs = window_pairs(part, plan.window, plan.end)
    rows = np.arange(len(pairs))[:only]
    batches = np.split(rows, range(BATCH, len(rows), BATCH))
    damaged: dict[int, str] = {}
    kept, values = [rows[:0]], []
    with closing(_loaded(part, pairs, batches, threads, damaged)) as loaded:
        for some, batch in loaded:
            kept.append(some)
            values.append(labeller.label(batch))
            tell(int(some[-1]) + 1)
    done = np.concatenate(kept)
    good = ~np.isin(pairs.episode[done], list(damaged))
    bad |= {shard.first + episode: why for episode, why in damaged.items()}
    found = np.concatenate(values)[good] if values else np.zeros((0, 0))
    rows = done[good]
    return Labels(labeller.kind, pairs.episode[rows] + shard.first, pairs.frame[rows], found)


def _loaded(
    part: Packed | Stream, pairs: PairIndex, batches: Sequence[Array], threads: int, bad: dict[int, str]
) -> Generator[tuple[Array, FramePairs], None, None]:
    if isinstance(part, Stream):
        yield from forward(part, pairs, batches, threads, bad)
    else:
        yield from ((batch, pairs.batch(part, batch)) for batch in batches)


def work(
    packed: Packed | Stream,
    labeller: LabelSource,
    plan: LabelSettings,
    shards: list[Shard],
    folder: Path,
    number: int = 0,
    count: int = 1,
    tell: Callable[[int], None] = lambda pairs: None,
) -> None:
    """Process `number` of `count`: label what is not there yet. When it returns, no shard is missing."""
    threads = max(1, (os.cpu_count() or 1) // count)  # that decode, in a stream
    for shard in walk(shards, folder, number, count):
        if not (folder / shard.file).exists():
            bad: dict[int, str] = {}
            found = labelled(packed, labeller, plan, shard, bad, tell=tell, threads=threads)
            try:
                write_shard(folder / shard.file, found, bad)
            except FileNotFoundError:  # another process had done it, and has finished and swept since
                if not (folder / shard.file).exists():
                    raise
            tell(0)


def walk(shards: list[Shard], folder: Path, number: int, count: int) -> Iterator[Shard]:
    """One process's own shards; then, in an order of its own, those that the others have not done."""
    mine = np.array_split(np.arange(len(shards)), count)[number]
    yield from (shards[i] for i in mine)
    there = set(os.listdir(folder))
    rest = [shard for shard in shards if shard.file not in there]
    yield from (rest[i] for i in np.random.default_rng(number).permutation(len(rest)))


def count_pairs(folder: Path, shards: list[Shard]) -> int:
    """Pairs in the shards that are done."""
    there = set(os.listdir(folder))
    return sum(shard.pairs for shard in shards if shard.file in there)


class Tally:
    """Progress of a process that works itself: what is in the folder, looked at now and then, and its own shard."""

    def __init__(self, folder: Path, shards: list[Shard], progress: Progress) -> None:
        self.folder, self.shards, self.progress = folder, shards, progress
        self.there, self.looked = progress.done, time.monotonic()

    def __call__(self, pairs: int) -> None:
        """`pairs` of the present shard are done."""
        if not pairs or time.monotonic() - self.looked > 1.0:
            self.there, self.looked = count_pairs(self.folder, self.shards), time.monotonic()
        self.progress.update(min(self.there + pairs, self.progress.total))


def finish(
    packed: Packed | Stream, labeller: LabelSource, plan: LabelSettings, shards: list[Shard], out: Path
) -> dict[str, Any]:
    """Read every shard back, check it against the plan, and write the manifest with hashes and figures.

    Raises LapaError for a shard that is damaged, after removing it: the same command labels it again.
    """
    counts: Array = np.zeros((0, 0), np.int64)
    actions: list[Labels] = []  # to be held against the dataset's own
    entries: list[dict[str, Any]] = []
    bad: dict[int, str] = {}
    pairs_of, slow = pair_counts(packed, plan.window, plan.end), too_slow(packed.fps, plan.window)
    for shard in shards:
        path = out / TABLE / shard.file
        try:
            part, content, damaged = read_shard(path)
            expected = shard.pairs - int(pairs_of[list(damaged)].sum())
            inside = (part.episode >= shard.first) & (part.episode < shard.last)
            if len(part.episode) != expected or not inside.all():
                raise LapaError(f"{path} does not hold the {shard.pairs} pairs it should.")
        except LapaError as error:
            path.unlink(missing_ok=True)
            raise LapaError(f"{error} It was removed; run the same command again.") from None
        bad |= damaged
        entries.append({"file": shard.file, "pairs": expected, "hash": content})
        if not expected:
            continue
        if part.kind == "codes":
            here = np.stack([np.bincount(c, minlength=labeller.classes) for c in part.values.T])
            counts = counts + here if counts.size else here
        elif part.kind == "actions" and packed.actions is not None and part.values.shape[1] == packed.actions.shape[1]:
            actions.append(part)
    left_out = sorted(bad)
    if not any(entry["pairs"] for entry in entries):
        raise LapaError(f"{packed.spec} has no episode that can be read: {bad[left_out[0]]}")
    named = labeller.kind != "actions" or bool(actions)  # an inverse dynamics model may speak of another robot
    origin = packed.without(left_out) if isinstance(packed, Stream) else packed
    manifest = {
        "method": of_source(name_of(source_config(plan.source))),
        "source": plan.source,
        "source_hash": labeller.hash,
        "kind": labeller.kind,
        "classes": labeller.classes,
        "precision": plan.precision,
        "compiled": plan.compile,
        "window_seconds": labeller.window,
        "end": plan.end,
        "dataset": packed.spec,
        "fingerprint": origin.fingerprint,
        "outline": origin.outline,
        "acts": origin.acts,
        "image_size": packed.image_size,
        "pairs": sum(entry["pairs"] for entry in entries),
        "episodes_too_short": int(((pairs_of == 0) & ~slow).sum()),
        "episodes_too_slow": int(slow.sum()),
        "action_names": list(packed.action_names) if named else [],
        "meaning": _meaning(labeller, packed),
        "skipped": [*packed.bad, *(bad[episode] for episode in left_out)],
        "left_out": left_out,
        "taught": sorted(labeller.taught(origin)) if hasattr(labeller, "taught") else [],
    }
    if counts.size:
        manifest["code_counts"] = counts.tolist()  # [s][classes]
        manifest["code_embeddings"] = np.asarray(getattr(labeller, "code_embeddings", ())).tolist()  # [s * classes][k]
    elif actions and packed.actions is not None:
        every = joined(actions)
        now = packed.starts[every.episode] + every.frame
        true = packed.acted(now, now + 1)
        assert true is not None
        manifest["r2_of_true_actions"] = r2(every.values, true)
    write_manifest(out, {**manifest, "shards": entries})
    for left in (out / PLAN, *(out / TABLE).glob(".*.tmp")):  # of processes that were killed while they wrote
        left.unlink(missing_ok=True)
    return {**manifest, "shards": entries}


def _meaning(labeller: LabelSource, packed: Index) -> dict[str, Any] | None:
    """What labels that are actions mean; None for others, and where nobody knows."""
    tell = getattr(labeller, "meaning", None)
    found = tell(packed) if tell else None
    return asdict(found) if found else None


# --- other processes ------------------------------------------------------------------------------


def help_with(out: Path, number: int, count: int, tell: Callable[[int], None] = lambda pairs: None) -> None:
    """What another process does: open data and source by the plan in `out`, and work.

    Raises LapaError when they are no longer what they were.
    """
    keep_freed_memory()
    plan = _plan(read_json(out / PLAN, "plan of unfinished labels"))
    opened = stream if plan.stream else pack
    packed = opened(plan.datasets, plan.image_size, skip_bad=plan.skip_bad, quiet=True)
    labeller = open_source(plan.source, plan.precision, plan.compile)
    if (packed.fingerprint, labeller.hash) != (plan.fingerprint, plan.source_hash):
        raise LapaError(
            f"The dataset or {plan.source} has changed since {out} was begun. Remove {out} and begin again."
        )
    work(packed, labeller, plan, cut(packed, plan), out / TABLE, number, count, tell)


def on_this_machine(out: Path, workers: int, told: Callable[[], None]) -> list[str]:
    """Several processes beside this one, which only looks on. Returns what went wrong with which."""
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)), **os.environ}
    processes = [
        start("lapa.stage2_label", str(out), str(number), str(workers), environment={**environment, **_own_gpu(number)})
        for number in range(workers)
    ]
    return [
        f"worker {number} " + (f"was killed ({signal.Signals(-code).name})" if code < 0 else "failed")
        for number, code in enumerate(until_all_have_ended(processes, told))
        if code
    ]


def _own_gpu(number: int) -> dict[str, str]:
    """Workers take the GPUs in turn."""
    import torch

    if not torch.cuda.is_available():
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return {"CUDA_VISIBLE_DEVICES": seen.split(",")[number % torch.cuda.device_count()]}


def on_ray(out: Path, workers: int, told: Callable[[], None]) -> list[str]:
    """Tasks on a Ray cluster; a task whose machine is lost starts again elsewhere. Returns what went wrong.

    Data, source, `out` and the cache lie on a disk that all machines share, and lapa is installed on each. Raises
    LapaError when Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise LapaError("--engine ray needs Ray: pip install 'lapa[scale]'.") from None
    cache = {"LAPA_CACHE": str(Path(os.environ["LAPA_CACHE"]).absolute())} if os.environ.get("LAPA_CACHE") else {}
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, runtime_env={"env_vars": cache})  # of RAY_ADDRESS, or of this machine
    try:
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        count = workers or gpus or max(1, int(there.get("CPU", 1)))
        task = ray.remote(num_cpus=1, num_gpus=min(gpus, 1), max_retries=3)(_ray_task)
        waiting = {task.remote(str(out.absolute()), number, count, os.getcwd()): number for number in range(count)}
        faults = []
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=0.5)
            for reference in ready:
                number = waiting.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    faults.append(f"task {number}: {getattr(error, 'cause', None) or error}")
            told()
        return faults
    finally:
        if ours:
            ray.shutdown()


def _ray_task(out: str, number: int, count: int, folder: str) -> None:
    os.chdir(folder)  # paths in the plan are as the user gave them
    help_with(Path(out), number, count)


def _worker(out: str, number: str, count: str) -> None:
    """`python -m lapa.stage2_label OUT NUMBER COUNT`: one of --workers. It ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops us
    parent = os.getppid()

    def tell(pairs: int) -> None:
        if os.getppid() != parent:
            sys.exit(1)

    try:
        help_with(Path(out), int(number), int(count), tell)
    except LapaError as error:
        sys.exit(f"worker {number}: {error}")


if __name__ == "__main__":
    _worker(*sys.argv[1:])
