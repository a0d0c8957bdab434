"""The command line. Each command is a function: its arguments are the options, its docstring the help.

Heavy imports stay inside the commands, so `lapa --help` answers at once. Every command prints what it did, where it
wrote, and the command that comes next. What the user can mend is a LapaError: one line, exit code 1.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lapa.contracts import LapaError

if TYPE_CHECKING:
    from lapa.data.pack import Packed
    from lapa.data.stream import Stream
    from lapa.recipe import Recipe


def _datasets(
    dataset: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME:PATH[,OPTION=VALUE]")
    ] = (),
    camera: str | None = None,
) -> tuple[str, ...]:
    """The options that say what to read.

    Args:
        dataset: what to read, given once or more: docs/datasets.md, `lapa list`
        camera: camera of every --dataset that has several; the same as ,camera=NAME behind each
    """
    from lapa.data.spec import with_camera

    return with_camera(dataset, camera) if camera else dataset


Datasets = Annotated[tuple[str, ...], tyro.conf.arg(name="", constructor=_datasets)]
Seed = Annotated[int, tyro.conf.arg(help="seed of everything random")]
Preset = Annotated[
    str,
    tyro.conf.arg(help="named settings: laptop, video (real clips) or paper; `lapa list` shows them"),
]
Steps = Annotated[int | None, tyro.conf.arg(help="optimizer steps (None: the preset's)")]
Options = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        name="set",
        metavar="NAME=VALUE",
        help="change one setting of the preset, such as laq.codebook_size=32; repeatable",
    ),
]
Log = Annotated[
    Literal["none", "trackio", "wandb"],
    tyro.conf.arg(help="also log to trackio or W&B; JSONL and TensorBoard are always written"),
]
Resume = Annotated[
    bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="go on from the checkpoint in --out; done already is fine")
]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME,NAME", help_behavior_hint="")]
Memory = Annotated[
    int | None,
    tyro.conf.arg(
        metavar="MB",
        help="read videos while training, without a pack on disk, with so many MB of frames in memory, such as 1000",
    ),
]
SkipBad = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="list and skip videos that cannot be read")]


def demo(
    out: Path = Path("runs/demo"),
    videos: int = 6000,
    labels: int = 20,
    episodes: int = 500,
    seed: Seed = 0,
    workers: int = 0,
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Watch LAPA learn from videos without actions and compare it with its baselines; ten minutes on two cores.

    Makes the data, fits LAQ, labels, pretrains, finetunes and evaluates every method, and writes a report. Interrupt it
    at any time and run it again: it goes on from the last finished step.

    Args:
        out: folder of everything the demo makes
        videos: episodes of video without actions
        labels: labelled trajectories for finetuning
        episodes: test episodes per method
        workers: steps run side by side, one thread each (0: one per core)
        quick: rehearse the whole path in about two minutes on a hundredth of the work; the figures mean nothing
    """
    from lapa.demo import DemoSettings, run_demo

    run_demo(DemoSettings(videos, labels, episodes, seed, quick), out, workers)


def cache(
    dataset: Datasets,
    preset: Preset = "laptop",
    image_size: int | None = None,
    workers: int = 0,
    estimate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    skip_bad: SkipBad = False,
) -> None:
    """Read datasets ahead of time, with all cores: the small frames that other commands would make one by one.

    Says first how much disk it takes, and refuses what does not fit. Killed, the same command goes on where it was.
    quantize, label and pretrain can also do without it: see their --stream.

    Args:
        dataset: what to read, given once or more
        preset: the settings you will train with: they say which sizes of frames are needed
        image_size: pixels a side, in place of the preset's
        workers: processes (0: one per core)
        estimate: say how much disk it takes, and stop
    """
    from lapa.cache import estimate as measure
    from lapa.cache import make, require_room
    from lapa.recipe import preset as named

    if workers < 0:
        raise LapaError(f"--workers must not be below 0, got {workers}.")
    recipe = named(preset)
    sizes = [image_size] if image_size else sorted({recipe.laq.image_size, recipe.policy_image_size})
    wanted = [measure(spec, size, skip_bad) for size in sizes for spec in _some(dataset)]
    for one in wanted:
        said = "cannot be told before it is read" if one.frames is None else f"{one.frames:,} frames"
        said += f", {one.bytes / 1e6:,.1f} MB" if one.frames is not None else ""
        print(f"{one.spec} at {one.image_size} pixels: {said}" + (", in the cache already" if one.there else ""))
    free = require_room(wanted)
    need = sum(one.bytes for one in wanted if not one.there)
    where = wanted[0].entry.parent
    print(f"{need / 1e6:,.1f} MB to be written; {free / 1e6:,.0f} MB are free in {where}.")
    if estimate:
        return
    for one in wanted:
        if not one.there:
            make(one, workers, skip_bad)
            print(f"{one.spec} at {one.image_size} pixels is in {one.entry}.")


def collect(
    dataset: Datasets,
    out: Path,
    without_actions: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    skip_bad: SkipBad = False,
) -> None:
    """Write a dataset to disk as a LeRobot v3.0 dataset (parquet + mp4), such as Tabletop demonstrations.

    Example: lapa collect --dataset tabletop:sim,episodes=200,seed=1 --out data/sim

    Args:
        out: new folder
        without_actions: leave the actions out: mere video, as LAPA's premise has it
    """
    from lapa.collect import collect as write

    made = write(_some(dataset), out, skip_bad, without_actions)
    print(f"Wrote {made['episodes']} episodes, {made['frames']} frames, to {out} ({made['with']} actions).")
    _next(f"lapa inspect --dataset lerobot:{out} --out runs/inspect")


def quantize(
    dataset: Datasets,
    out: Path,
    method: Literal["lapa", "vpt", "unipi"] = "lapa",
    preset: Preset = "laptop",
    steps: Steps = None,
    window: float | None = None,
    seed: Seed = 0,
    log: Log = "none",
    resume: Resume = False,
    stream: Memory = None,
    skip_bad: SkipBad = False,
    set: Options = (),
) -> None:
    """Stage 1: LAPA learns latent actions from video (LAQ); VPT and UniPi fit inverse dynamics, one for both.

    --dataset are the videos, for vpt and unipi the labelled trajectories.

    Args:
        out: folder of the artefact; pictures and metrics.jsonl appear there while it trains
        method: lapa fits LAQ on video without actions; vpt and unipi fit inverse dynamics on labelled trajectories
        window: seconds between the two frames (None: the preset's)
    """
    from lapa.run_folder import begin
    from lapa.stage1_latent_actions import fit_idm, fit_laq

    key = "quantize" if method == "lapa" else "fit_idm"
    recipe = _recipe(preset, (*set, *([f"window={window}"] if window is not None else [])), key, steps, log)
    if method != "lapa" and stream:
        raise LapaError(f"--stream belongs to --method lapa; {method} reads its few trajectories at once.")
    read: dict[str, Any] = {"stream": stream} if stream else {}
    if begin(out, recipe, seed, resume, "laq" if method == "lapa" else "idm", dataset=dataset, **read):
        return
    _watch(out)
    size = recipe.laq.image_size if method == "lapa" else recipe.idm.image_size
    if method == "lapa":
        packed = (_stream if stream else _pack)(dataset, size, skip_bad)
        results = fit_laq(packed, recipe, out, seed, stream or 0)
    else:
        results = fit_idm(_pack(dataset, size, skip_bad), recipe, out, seed)
    _told(results)
    print(f"{'LAQ' if method == 'lapa' else 'The inverse dynamics model'} is in {out}.")
    print(f"Look: lapa inspect {out}" + (f" {_again(dataset)}" if method == "lapa" else ""))
    source = "future_frames" if method == "unipi" else out
    _next(f"lapa label {_again(dataset if method == 'lapa' else ('VIDEOS',))} --source {source} --out runs/labels")


def label(
    dataset: Datasets,
    source: str,
    out: Path,
    end: Literal["drop", "clip"] = "drop",
    precision: Literal["float32", "bfloat16"] = "float32",
    compile: bool = False,
    workers: int = 0,
    engine: Literal["local", "ray"] = "local",
    shard: int = 0,
    stream: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    skip_bad: SkipBad = False,
) -> None:
    """Stage 2a: label every frame of the videos. Interrupt it at any time and run it again: it goes on.

    Args:
        source: folder made by `lapa quantize`, ground_truth (the dataset's own actions, for ActionVLA) or future_frames
            (the frames to come, for UniPi)
        out: new folder for labels.parquet (a folder of shards) and manifest.json
        end: frames whose later frame would lie past the end of the episode: drop them, or clip to the last frame
        precision: arithmetic of a LAQ; bfloat16 is several times as fast at the paper's size; about 2% of codes differ
        compile: compile a LAQ first: a minute at the start, then about a tenth faster on a CPU; for long jobs
        workers: processes on this machine (0: this one); with ray, tasks (0: one per GPU of the cluster, else per core)
        engine: ray labels on the Ray cluster of RAY_ADDRESS, whose machines share the disk (pip install 'lapa[scale]')
        shard: pairs written at once, at least; what a killed process has to do again (0: up to 4,096)
        stream: decode the videos while labelling, without a pack on disk; the same labels
    """
    from lapa.stage2_label import label as write
    from lapa.stage2_label import source_image_size

    packed = (_stream if stream else _pack)(dataset, source_image_size(source), skip_bad)
    manifest = write(packed, source, out, end, precision, compile=compile, shard=shard, workers=workers,
                     engine=engine, datasets=dataset, skip_bad=skip_bad)  # fmt: skip
    print(f"Labelled {manifest['pairs']} frames ({manifest['kind']}) in {out}.")
    for position, counts in enumerate(manifest.get("code_counts", [])):
        used = sum(map(bool, counts))
        shares = " ".join(f"{count / manifest['pairs']:.0%}" for count in counts[:16])
        print(
            f"  codes at position {position}: {used} of {len(counts)} used; {shares}{' ..' if len(counts) > 16 else ''}"
        )
    if manifest["skipped"]:
        print(f"  damaged videos that were skipped: {len(manifest['skipped'])}; manifest.json lists them")
    if "r2_of_true_actions" in manifest:
        print(f"  R^2 of the dataset's own actions: {manifest['r2_of_true_actions']:.3f}")
    _next(f"lapa pretrain {_again(dataset)} --labels {out} --out runs/latent")


def pretrain(
    dataset: Datasets,
    labels: Path,
    out: Path,
    preset: Preset = "laptop",
    steps: Steps = None,
    seed: Seed = 0,
    log: Log = "none",
    resume: Resume = False,
    source: Path | None = None,
    stream: Memory = None,
    skip_bad: SkipBad = False,
    set: Options = (),
) -> None:
    """Stage 2b: a policy learns to predict the labels from the frame and the instruction.

    --dataset are the videos that were labelled, given as they were for `lapa label`.

    Args:
        labels: folder made by `lapa label`
        out: folder of the artefact
        source: refuse labels that were not made by the label source in this folder (None: the folder that the labels
            name, if it is still there)
    """
    from lapa.data.labelled import read_labels
    from lapa.run_folder import begin
    from lapa.stage2_pretrain import optimised_by
    from lapa.stage2_pretrain import pretrain as train
    from lapa.training.checkpoint import read_json

    recipe = _recipe(preset, set, optimised_by(labels), steps, log)
    streamed = {"stream": stream} if stream else {}
    if begin(out, recipe, seed, resume, "policy", dataset=dataset, labels=labels, **streamed):
        return
    _watch(out)
    found, manifest = read_labels(labels)
    # The source that made the labels, if it is still there, must not have been trained again since.
    made_by = source or Path(str(manifest["source"]))
    known = source is not None or (made_by / "config.json").exists()
    wanted = str(read_json(made_by / "config.json", "finished label source")["hash"]) if known else None
    packed = (_stream if stream else _pack)(dataset, int(manifest["image_size"]), skip_bad)
    _told(train(packed, found, manifest, recipe, out, seed, wanted, stream or 0))
    print(f"The pretrained policy is in {out}.")
    idm = " --idm IDM" if manifest["kind"] == "frames" else ""
    _next(f"lapa finetune --dataset ROBOT --policy {out}{idm} --out runs/policy")


def finetune(
    dataset: Datasets,
    out: Path,
    policy: Path | None = None,
    idm: Path | None = None,
    head: Literal["read", "own", "new"] | None = None,
    trainable: Literal["head", "all"] | None = None,
    preset: Preset = "laptop",
    steps: Steps = None,
    seed: Seed = 0,
    log: Log = "none",
    resume: Resume = False,
    skip_bad: SkipBad = False,
    set: Options = (),
) -> None:
    """Stage 3: a few labelled trajectories turn a pretrained policy into a robot policy.

    --dataset are those trajectories.

    Args:
        out: folder of the artefact
        policy: folder made by `lapa pretrain` (None: the backbone alone, the Scratch baseline)
        idm: for unipi alone: folder made by `lapa quantize --method unipi`, which reads actions off imagined frames
        head: read: keep the head, and read off the labels what its classes, such as latent codes, mean as actions
            (trains nothing, best for a few trajectories); own: train a new head in place of a latent one, as the paper
            does, or go on with one that speaks actions; new: train a new one (None: the preset's)
        trainable: head: the new head alone (best below some 50 trajectories), for unipi the video diffusion; all: all
            but the vision encoder (None: the preset's)
    """
    from lapa.run_folder import begin
    from lapa.stage3_finetune import finetune as train
    from lapa.stage3_finetune import optimised_by

    told = {"head": head, "trainable": trainable}
    options = (*set, *(f"{name}={value}" for name, value in told.items() if value))
    recipe = _recipe(preset, options, optimised_by(policy), steps, log)
    read_by = {"idm": idm} if idm else {}
    if begin(out, recipe, seed, resume, "policy", dataset=dataset, policy=policy, **read_by):
        return
    _watch(out)
    _told(train(_pack(dataset, recipe.policy_image_size, skip_bad), policy, recipe, out, seed, idm))
    print(f"The robot policy is in {out}.")
    _next(f"lapa evaluate --policy {out} --benchmark tabletop --episodes 500 --out runs/eval")


def tune(
    dataset: Datasets,
    out: Path,
    policy: Path | None = None,
    idm: Path | None = None,
    benchmark: str = "tabletop",
    look: str = "sim",
    episodes: int = 200,
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    like: Path | None = None,
    preset: Preset = "laptop",
    seed: Seed = 0,
    resume: Resume = False,
    skip_bad: SkipBad = False,
    set: Options = (),
) -> None:
    """Stage 3 in several ways, each scored on validation scenes of a benchmark; the best becomes the policy.

    --dataset are labelled robot trajectories. Tried are: reading off them what a pretrained head's classes mean (read);
    training the head alone (head), all but the vision encoder, gently (all) or four times as long (all-long); and for a
    policy that speaks actions already, the same with a new head (new-head, all-new-head, all-long-new-head) and no
    finetuning (as-it-is). Steps and learning rate are the preset's times a factor (lapa/tune.py).

    Args:
        out: folder of the best policy
        policy: folder made by `lapa pretrain` (None: the backbone alone, the Scratch baseline)
        idm: for unipi alone: folder made by `lapa quantize --method unipi`, which reads actions off imagined frames
        benchmark: a plug-in of lapa/benchmarks
        look: tabletop: sim, real or hand
        episodes: validation episodes for each way
        only: try only this way, given once or more
        like: finetune the way that an earlier `lapa tune` chose in this folder, without a search
    """
    from lapa import plugins
    from lapa.run_folder import begin
    from lapa.tune import chosen
    from lapa.tune import tune as search

    if like and only:
        raise LapaError("Give either --like or --only.")
    if episodes < 1:
        raise LapaError(f"--episodes must be at least 1, got {episodes}.")
    recipe = _recipe(preset, set, "finetune", None, "none")
    read_by = {"idm": idm} if idm else {}
    scenes = plugins.find("benchmarks", benchmark)(look=look, validation=True).build()
    ways = (chosen(like),) if like else only
    if begin(out, recipe, seed, resume, "policy", dataset=dataset, policy=policy, ways=ways, episodes=episodes,
             **read_by):  # fmt: skip
        return
    packed = _pack(dataset, recipe.policy_image_size, skip_bad)
    found = search(packed, policy, recipe, out, seed, scenes, episodes, ways, idm)
    print(f"Chosen: {found['chosen']}. The robot policy is in {out}.")
    _next(f"lapa evaluate --policy {out} --benchmark {benchmark} --episodes 500 --out runs/eval")


def evaluate(
    out: Path,
    policy: Path | None = None,
    row: Literal["no_op", "random", "expert"] | None = None,
    name: str | None = None,
    benchmark: str = "tabletop",
    look: str = "sim",
    split: str = "seen",
    instruction: Literal["right", "shuffled", "empty"] = "right",
    episodes: int = 500,
    video: int = 0,
    seed: Seed = 0,
    validation: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Roll a policy (or a scripted row) out on a benchmark: success per family with 95% intervals.

    Args:
        out: folder for results.json, success.png and animations
        policy: folder made by `lapa finetune`
        row: a scripted row in place of a policy
        name: name in the results (None: the policy's method)
        benchmark: a plug-in of lapa/benchmarks
        look: tabletop: sim, real or hand
        split: tabletop: seen, or unseen (held-out objects and phrases)
        instruction: what the policy is told: the right words, those of another scene, or none (does it listen?)
        episodes: test episodes
        video: write the first so many episodes as animations
        validation: use the validation scenes, for choosing settings
    """
    from lapa import plugins
    from lapa.evaluate import evaluate as score
    from lapa.policies import Policy
    from lapa.training.checkpoint import load_artefact

    if (policy is None) == (row is None):
        raise LapaError("Give either --policy FOLDER or --row no_op|random|expert.")
    if episodes < 1 or video < 0:
        raise LapaError(f"--episodes must be at least 1 and --video at least 0, got {episodes} and {video}.")
    settings = {"look": look, "split": split, "validation": validation, "instruction": instruction}
    world = plugins.find("benchmarks", benchmark)(**settings).build()
    about: dict[str, Any] = {"benchmark": benchmark, "settings": settings}
    if policy:
        artefact = load_artefact(policy, "policy")
        about |= {"policy": str(policy), "hash": artefact.hash}
    actor = Policy.from_pretrained(policy) if policy else str(row)
    named = name or (str(artefact.config.get("method")) if policy else str(row))
    results = score(named, actor, world, episodes, seed, out, video, about)
    low, high = results["interval"]
    words = "" if instruction == "right" else f", {instruction} instructions"
    print(f"{named}: {results['success']:.1%} of {episodes} episodes (95%: {low:.1%} to {high:.1%}){words}.")
    for family, part in results["families"].items():
        print(f"  {family:<16} {part['success']:.1%}  ({part['interval'][0]:.1%} to {part['interval'][1]:.1%})")
    print(f"Results, picture and animations are in {out}.")


def compare(
    dataset: Datasets,
    out: Path,
    labelled: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME:PATH")] = (),
    settings: Names = (),
    methods: Names = (),
    seeds: int = 3,
    budgets: Names = (),
    videos: int = 6000,
    episodes: int = 500,
    validation: int = 200,
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    results: Path | None = None,
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    benchmark: str = "tabletop",
    preset: Preset = "laptop",
    seed: Seed = 0,
    workers: int = 0,
    set: Options = (),
) -> None:
    """The paper's table on Tabletop (--settings), or several methods on your own data (--dataset, --labelled). Resumes.

    Examples: lapa compare --settings all --methods all --seeds 3 --out runs/paper; lapa compare --settings in-domain
    --methods lapa,vpt --budgets 20 --seeds 1 --out runs/part;
    lapa compare --dataset video_folder:clips/ --labelled lerobot:robot/ --out runs/mine. The first runs for hours; stop
    it at any time, and the same command goes on.

    --dataset are your videos for stages 1 and 2.

    Args:
        out: folder of everything; for a table results.json, table.md and curves.png
        labelled: your labelled trajectories for stage 3, given once or more
        settings: in-domain, cross-task, cross-env, cross-embodiment, or all
        methods: table: its rows (none: all of them); your data: methods (none: scratch,vpt,lapa,actionvla)
        seeds: table: training seeds, from 0 on; data, models and test scenes differ between them
        budgets: table: numbers of labelled trajectories (none: 5,10,20,50,100; cross-task 100)
        videos: table: episodes of video
        episodes: test episodes a method (table: and a seed and split)
        validation: table: validation episodes for each way to finetune
        only: table: run only cells with this text in their title, such as "lapa", "cross-env 20 " or "seed 0"
        results: table: results.json of an earlier table; what it has is not run again
        quick: table: rehearse on a hundredth of the work; the figures mean nothing
        dry_run: table: say what would be run, and how long it would take
        benchmark: your data: a plug-in of lapa/benchmarks
        seed: your data: seed of everything random
        workers: steps run side by side, one thread each (0: one per core)
    """
    options = ("--preset", preset, *(part for option in set for part in ("--set", option)))
    if settings:
        if dataset or labelled:
            raise LapaError("Give either --settings, or --dataset and --labelled.")
        from lapa.cells import Common, parse
        from lapa.paper import run_paper

        common = Common(videos, episodes, validation, options)
        asked = parse(_names(settings), _names(methods) or ("all",), seeds, _names(budgets), only,
                      common.quick() if quick else common)  # fmt: skip
        if run_paper(asked, out, workers, results, dry_run) is not None:
            print((out / "table.md").read_text(), end="")
            print(f"Table, figures and picture are in {out}.")
        return
    from lapa.compare import Setting, gap_closed, gather, plan
    from lapa.explorer.codes import success_bars
    from lapa.schedule import run
    from lapa.training.checkpoint import write_json

    if not labelled:
        raise LapaError("Give --settings all for the paper's table, or --dataset and --labelled for your own data.")
    named = _names(methods)
    if not named or "all" in named:
        named = ("scratch", "vpt", "lapa", "actionvla")
    setting = Setting(_some(dataset), labelled, benchmark, episodes, seed, options)
    scripted = ("no_op", "random", "expert")
    seconds = run(plan(named, setting, out, scripted), out, workers)
    scores = gather([*scripted[:2], *named, scripted[2]], out)
    write_json(out / "results.json", {"methods": scores, "seconds": seconds, "settings": dataclasses.asdict(setting)})
    success_bars(scores, out / "success.png")
    _table(scores)
    closed = gap_closed(scores)
    if closed is not None:
        print(f"LAPA closes {closed:.0%} of the gap from Scratch to ActionVLA.")
    print(f"Table and picture are in {out}.")


def study(
    name: Annotated[Literal["quantizers", "options", "collapse"], tyro.conf.Positional],
    out: Path,
    dataset: Datasets = (),
    preset: Preset = "laptop",
    seeds: int | None = None,
    steps: Steps = None,
    workers: int = 0,
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    results: Path | None = None,
    set: Options = (),
) -> None:
    """Settings of stage 1 side by side on your data: what do the codes tell, are all in use? Resumes.

    Each cell is a `lapa quantize` with one seed. Its figures are of episodes that are held out: perplexity at each
    position, error over copying, and, where the dataset has actions and states, how much of action, displacement and
    position the codes tell. --dataset are the videos (none: 1,500 episodes of Tabletop).

    Args:
        name: quantizers: each quantizer with 8 and 16 codes; options: the paper's decoder, and frozen features if you
            --set objectives.features_of=FOLDER, beside the preset; collapse: the preset itself with many seeds
        out: folder of all runs, results.json, table.md and study.png
        seeds: seeds per setting (None: the study's)
        workers: runs side by side, one thread each (0: one per core)
        only: run only rows with this text in their name, given once or more; the table shows all that are done
        results: results.json of an earlier study; what it has is not run again
    """
    from lapa.plugins import choose
    from lapa.study import STUDIES, TABLETOP, Setting, run_study

    usual = STUDIES[choose(name, STUDIES, "study")]
    options = ("--preset", preset, *(part for option in set for part in ("--set", option)))
    setting = Setting(name, dataset or (TABLETOP,), seeds if seeds is not None else usual.seeds,
                      steps if steps is not None else usual.steps, options, only)  # fmt: skip
    run_study(setting, out, workers, results)
    print((out / "table.md").read_text(), end="")
    print(f"Table, figures and picture are in {out}.")


def ablate(
    name: Annotated[Literal["codes", "positions", "window", "videos", "policy", "compute"], tyro.conf.Positional],
    out: Path,
    seeds: int = 3,
    videos: int = 6000,
    labels: int = 20,
    episodes: int = 500,
    preset: Preset = "laptop",
    workers: int = 0,
    set: Options = (),
) -> None:
    """One setting of LAPA turned through its values, from video to success on Tabletop, beside what the codes tell.

    Resumes. A cell takes about six minutes of a core. Data and scenes are those of `lapa compare --settings in-domain`.

    Args:
        name: codes: |C| 4 to 64; positions: s 1, 2, 4; window: 0.2 to 1 s; videos: 1 to 100% of them; policy: sizes of
            the backbone, without grounding, for only one size has grounded weights; compute: steps of pretraining, 125
            to 2,000, of LAPA and of ActionVLA
        out: folder of all runs, results.json, table.md and ablation.png
        seeds: training seeds, from 0 on; data, models and test scenes differ between them
        videos: episodes of video
        labels: labelled trajectories
        episodes: test episodes a seed
        workers: steps run side by side, one thread each (0: one per core)
    """
    from lapa.ablation import Asked, run_ablation

    options = ("--preset", preset, *(part for option in set for part in ("--set", option)))
    run_ablation(Asked(name, seeds, videos, labels, episodes, options), out, workers)
    print((out / "table.md").read_text(), end="")
    print(f"Table, figures and picture are in {out}.")


def inspect(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN|NAME:PATH ...]")] = (),
    dataset: Datasets = (),
    out: Path | None = None,
    window: float | None = None,
    image_size: int = 96,
    skip_bad: SkipBad = False,
) -> None:
    """Look at runs (curves, results; also while they train), at a dataset, or at what a LAQ makes of a dataset.

    Examples: lapa inspect video_folder:clips/; lapa inspect runs/laq; lapa inspect runs/a runs/b; lapa inspect runs/laq
    --dataset video_folder:clips/, where any dataset will do, not only the one that the LAQ was trained on.
    A dataset, given by itself or with --dataset, is always read to its end, and what cannot be read is listed.

    Args:
        runs: folders of lapa quantize, pretrain or finetune, to compare if there are several; with --dataset the code
            gallery and the probe table of each LAQ among them; or datasets
        out: folder for pictures and inspect.json (None: RUN/inspect for one run, else runs/inspect)
        window: seconds between the two frames (None: what the LAQ was trained with)
        image_size: pixels a side of the contact sheet's frames where no LAQ sets it
    """
    from lapa.inspect import inspect_dataset, inspect_runs

    named = [run for run in runs if ":" in run and not Path(run).exists()]
    folders, datasets = [Path(run) for run in runs if run not in named], (*named, *dataset)
    where = out or (folders[0] / "inspect" if len(folders) == 1 else Path("runs/inspect"))
    if folders:
        inspect_runs(folders, datasets, where, window=window, skip_bad=skip_bad)
    elif datasets:
        inspect_dataset(datasets, where, image_size)
    else:
        raise LapaError("Give the folder of a run, such as runs/laq, or --dataset NAME:PATH, or both.")


def analyse(
    what: Annotated[Literal["transplant", "algebra", "information", "rollout", "language"], tyro.conf.Positional],
    run: Annotated[Path, tyro.conf.Positional],
    dataset: Datasets = (),
    policy: Path | None = None,
    out: Path | None = None,
    episodes: int = 500,
    seed: Seed = 0,
) -> None:
    """One question about what was learnt, answered with a figure, its baseline and a picture.

    Example: lapa analyse transplant runs/laq. What figures mean: docs/analysis.md. Give as --dataset videos that the
    LAQ was not trained on; without it they are 300 episodes of each look of Tabletop (for rollout, of sim).

    Args:
        what: transplant: do codes read off one look of Tabletop move the robot of another the same way? algebra: do
            codes add up, and turn round when the video is played backwards? information: do codes tell the action, or
            the object? rollout: how long do drawings of policy and decoder stay true? language: does the policy listen?
        run: folder of a LAQ (for language, of a policy made by `lapa finetune`)
        policy: for rollout: folder made by `lapa pretrain` from this LAQ's labels
        out: folder for WHAT.png and WHAT.json (None: RUN/analysis)
        episodes: for language: test episodes for each kind of instruction
    """
    from lapa.analysis.command import answer

    answer(what, run, dataset, policy, out or run / "analysis", episodes, seed)


def ground(
    out: Path,
    steps: int = 4000,
    batch_size: int = 128,
    learning_rate: float = 1.5e-3,
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Stage 0: rebuild the weights of the tiny backbone that ship with lapa (about seven minutes on one core).

    Args:
        out: folder of the artefact; lapa/backbones/weights is where the package looks
        steps: optimizer steps
        batch_size: scenes a step
        learning_rate: peak learning rate of Adam
    """
    from lapa.recipe import Recipe
    from lapa.run_folder import begin
    from lapa.stage0_grounding import ground as train
    from lapa.training.loop import Optimisation

    how = Optimisation(steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup=100)
    if begin(out, Recipe(), seed, resume, "backbone", how=how):
        return
    _told(train(out, how, seed))
    print(f"The grounded backbone is in {out}.")


def convert(
    form: tyro.conf.Positional[Literal["laq-official"]],
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    image_size: int | None = None,
    patch_size: int | None = None,
    heads: int | None = None,
    dim_head: int | None = None,
    codes: int | None = None,
    window: float | None = None,
    reverse: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Turn a LAQ checkpoint of the authors' released code into an artefact, or with --reverse the other way round.

    Example: lapa convert laq-official vae.100000.pt runs/laq --image-size 256

    Args:
        form: laq-official: the state dict that the released LAQ trainer saves
        source: checkpoint file (with --reverse: folder of the artefact)
        out: new folder of the artefact (with --reverse: new checkpoint file)
        image_size: pixels a side of the images it was trained on; the weights do not tell
        patch_size: pixels a side of a patch (None: read off the weights; if given, checked, as the next three)
        heads: attention heads
        dim_head: width of a head
        codes: s; weights of 4 and of 16 codes differ in nothing but the image size
        window: seconds between the two frames it was trained on (None: the paper preset's)
        reverse: write a state dict that the released code loads
    """
    from lapa.convert import from_released, to_released

    if reverse:
        config = to_released(source, out)
    elif image_size is None:
        raise LapaError("Give --image-size, the pixels a side of the training images (256 in the released settings).")
    else:
        config = from_released(source, out, image_size, patch_size, heads, dim_head, codes, window)
    print(
        f"{config.codes} codes of {config.codebook_size} kinds; images of {config.image_size} pixels in patches of "
        f"{config.patch_size}; dim {config.dim}; {config.spatial_depth} spatial and {config.temporal_depth} temporal "
        f"layers with {config.heads} heads of {config.dim_head}."
    )
    print(f"{'The released checkpoint' if reverse else 'LAQ'} is in {out}.")
    if not reverse:
        _next(f"lapa label --dataset VIDEOS --source {out} --out runs/labels")


def export(
    form: tyro.conf.Positional[Literal["lerobot", "jsonl", "hub"]],
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LABELS|RUN")],
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT|USER/NAME")],
    dataset: Datasets = (),
    image_size: int | None = None,
    fps: float | None = None,
    license: str | None = None,
    private: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Hand results on: labels as a LeRobot dataset or as the released code's jsonl, a model to the hub.

    Examples: lapa export lerobot runs/labels data/labelled; lapa export hub runs/laq me/laq --license apache-2.0
    --dataset says where the labelled videos are now (none: where they were when they were labelled).

    Args:
        form: lerobot: the labelled videos as a LeRobot v3.0 dataset with latent_action; jsonl: images and rows for the
            released LAPA training script; hub: upload a LAQ or a policy with a model card
        source: folder of `lapa label`; for hub, of `lapa quantize`, `pretrain` or `finetune`
        out: new folder; for hub, the repository
        image_size: make the frames squares of so many pixels a side (None: as they are at the source)
        fps: lerobot: the one rate to write, where the videos have several
        license: hub: the licence of the weights, such as apache-2.0; mind that of the videos
        private: hub: for your eyes only
    """
    if form == "hub":
        from lapa.hub import push_to_hub

        if not license:
            raise LapaError("Say which licence the weights have, such as --license apache-2.0.")
        print(f"{source} is at {push_to_hub(source, out, license, private)}")
        _next(f'lapa.LAQ.from_pretrained("{out}"), or lapa.Policy, in Python')
        return
    from lapa.export import ROWS, export_jsonl, export_lerobot, open_labelled

    if image_size is not None and image_size < 1:
        raise LapaError(f"--image-size is at least 1, got {image_size}.")
    labelled = open_labelled(source, dataset)
    if form == "lerobot":
        export_lerobot(labelled, Path(out), image_size, fps)
        print(f"Wrote {labelled.packed.episodes} episodes with latent_action to {out}; frames without a label have -1.")
        _next(f"lapa inspect --dataset lerobot:{out} --out runs/inspect")
        return
    if fps is not None:
        raise LapaError("--fps belongs to `lapa export lerobot`; a jsonl has a row per frame.")
    rows = export_jsonl(labelled, Path(out), image_size)
    classes, width = labelled.manifest["classes"], labelled.codes.shape[1]
    print(f"Wrote {rows} rows to {out}/{ROWS}, and the images beside it; {labelled.without} frames have no label.")
    print(f"For the released script: delta_vocab_size={classes}, n_tokens_per_delta={width}; image tokens come from "
          "its VQGAN (docs/export.md).")  # fmt: skip


def show_list(preset: str | None = None) -> None:
    """Name every method, preset and plug-in.

    Args:
        preset: print all settings of this preset; each can be changed with --set NAME=VALUE
    """
    from lapa import plugins
    from lapa.methods import METHODS
    from lapa.recipe import PRESETS
    from lapa.recipe import preset as named

    if preset:
        print(json.dumps(named(preset).to_json(), indent=1))
        return
    print("methods")
    for row in METHODS.values():
        print(f"  {row.name:<18}{row.note}")
    print("presets\n  " + "  ".join(PRESETS))
    for kind in plugins.KINDS:
        print(kind)
        for name in plugins.names(kind):
            print(f"  {name:<18}{plugins.describe(kind, name)}")


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "cache": cache,
    "collect": collect,
    "quantize": quantize,
    "label": label,
    "pretrain": pretrain,
    "finetune": finetune,
    "tune": tune,
    "evaluate": evaluate,
    "compare": compare,
    "study": study,
    "ablate": ablate,
    "inspect": inspect,
    "analyse": analyse,
    "ground": ground,
    "convert": convert,
    "export": export,
    "list": show_list,
}


MANY = ("quantize", "label", "pretrain", "finetune", "ground")  # run in many processes under torchrun


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Exit codes: 0 done, 1 an error the user can mend, 2 a wrong option, 130 interrupted by Ctrl-C,
    143 stopped by SIGTERM."""
    given = sys.argv[1:] if arguments is None else arguments
    if "LAPA_PARENT" in os.environ:
        from lapa.schedule import end_with_parent

        end_with_parent()
    try:
        with _processes(given[0] if given else ""):
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="lapa", description=__doc__.partition("\n")[0], args=arguments
            )
    except LapaError as error:
        sys.exit(_complain(str(error), error))
    except KeyboardInterrupt as error:
        _complain(
            "interrupted. What was finished is kept; run the same command again (with --resume where it trains).", error
        )
        sys.exit(130)
    except BrokenPipeError:  # `lapa list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = (
                f"the disk is full ({error.filename or 'while writing'}). Free some space and run the same command "
                "again (with --resume where it trains); what was finished is kept."
            )
            sys.exit(_complain(message, error))
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            message = f"cannot use {error.filename}: {error.strerror}. Choose a place you may write to."
            sys.exit(_complain(message, error))
        raise


def _processes(command: str) -> AbstractContextManager[None]:
    """The other processes, under torchrun."""
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return nullcontext()
    if command not in MANY:
        raise LapaError(f"lapa {command} runs in one process, without torchrun. Many serve {', '.join(MANY)}.")
    from lapa.training.distributed import processes

    return processes()


def _complain(message: str, error: BaseException) -> int:
    """Tell the user, once, however many processes have failed."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from lapa.training.distributed import first_to_fail

        if not first_to_fail(error):
            return 1
    print(f"lapa: {message}", file=sys.stderr)
    return 1


def _some(dataset: tuple[str, ...]) -> tuple[str, ...]:
    if not dataset:
        raise LapaError("Give at least one --dataset NAME:PATH, such as video_folder:clips/ or lerobot:data/.")
    return dataset


def _names(given: tuple[str, ...]) -> tuple[str, ...]:
    """ "lapa,vpt" or "lapa" "vpt" -> the two names."""
    return tuple(name for part in given for name in part.split(",") if name)


def _pack(dataset: tuple[str, ...], image_size: int, skip_bad: bool) -> Packed:
    from lapa.data.pack import pack

    return _opened(pack, dataset, image_size, skip_bad)


def _stream(dataset: tuple[str, ...], image_size: int, skip_bad: bool) -> Stream:
    from lapa.data.stream import stream

    return _opened(stream, dataset, image_size, skip_bad)


def _opened(read: Callable[..., Any], dataset: tuple[str, ...], image_size: int, skip_bad: bool) -> Any:
    from lapa.training.distributed import once_a_machine

    found = once_a_machine(lambda: read(_some(dataset), image_size, skip_bad=skip_bad))
    for reason in found.bad:
        print(f"skipped: {reason}", file=sys.stderr)
    bad = f", {len(found.bad)} skipped" if found.bad else ""
    print(f"{found.spec}: {found.episodes} episodes, {len(found)} frames{bad}.")
    return found


def _recipe(preset: str, options: tuple[str, ...], stage: str, steps: int | None, log: str) -> Recipe:
    """The preset with `--set` options, `--steps` and `--log` applied."""
    from lapa.recipe import override
    from lapa.recipe import preset as named
    from lapa.training.logbook import require

    short = ([f"{stage}.steps={steps}"] if steps is not None else []) + (
        [f"{stage}.log={log}"] if log != "none" else []
    )
    recipe = named(preset)
    for option in (*options, *short):
        recipe = override(recipe, option)
    require(getattr(recipe, stage).log)  # now, and not after minutes of reading videos
    return recipe


def _told(results: dict[str, Any]) -> None:
    from lapa.training.metrics import MEANING

    for name, value in results.items():
        values = value if isinstance(value, list) else [value]
        shown = ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        print(f"  {name:<20} {shown:<16} {MEANING.get(name, '')}".rstrip())


def _table(results: dict[str, Any]) -> None:
    from lapa.compare import told

    for name, row in results.items():
        print(f"  {name:<10} {told(row)}")


def _watch(out: Path) -> None:
    print(f"Watch: tensorboard --logdir {out}, or lapa inspect {out}")


def _again(dataset: tuple[str, ...]) -> str:
    return " ".join(f"--dataset {spec}" for spec in dataset)


def _next(command: str) -> None:
    print(f"Next: {command}")
