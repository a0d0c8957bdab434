"""Commands that train or label: `lapa quantize`, `fit`, `label`, `pretrain`, `finetune`, `tune`, `ground`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lapa.commands.options import (
    Datasets,
    How,
    Memory,
    Names,
    Options,
    Preset,
    Resume,
    Seed,
    SkipBad,
    Training,
    again,
    note_on_policy,
    open_pack,
    open_stream,
    print_next,
    print_results,
    print_watch,
    quoted,
    recipe_of,
    refuse_changed,
    same_preset,
    split_names,
    streamed,
)
from lapa.contracts import LapaError

APART = 0.5  # R^2 of the dataset, predicted from the codes; above it the user gets a note
USUAL = Training()
LITTLE = 0.3  # R^2 of inverse dynamics on its own training pairs; below it the user gets a note


def quantize(
    dataset: Datasets,
    out: Path,
    window: float | None = None,
    labelled: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME:PATH")] = (),
    stream: Memory = None,
    how: How = USUAL,
) -> None:
    """Stage 1: learn latent actions (LAQ) from video without actions.

    --dataset are the videos. VPT and UniPi have another stage 1: `lapa fit`.

    Args:
        out: folder of the artefact; pictures and metrics.jsonl appear there while it trains
        window: seconds between the two frames (None: the preset's)
        labelled: a few robot episodes with actions, as NAME:PATH,episodes=0-9: codes then tell apart what moves this
            robot (presets with a frozen encoder; docs/latents.md)
    """
    from lapa.run_folder import begin, done_before
    from lapa.stage1_latent_actions import fit_laq

    recipe = how.recipe("quantize", *([f"window={window}"] if window is not None else []))
    inputs: dict[str, Any] = {"dataset": dataset, **streamed(stream)}
    inputs |= {"labelled": labelled} if labelled else {}
    if done_before(out, recipe, how.seed, how.resume, "laq", "quantize", **inputs):
        return
    packed: Any = (open_stream if stream else open_pack)(dataset, recipe.laq.image_size, how.skip_bad)
    few = open_pack(labelled, recipe.laq.image_size, how.skip_bad) if labelled else None
    content = [found.fingerprint for found in (packed, few) if found is not None]
    begin(out, recipe, how.seed, how.resume, "laq", "quantize", content=content, **inputs)
    print_watch(out)
    results = fit_laq(packed, recipe, out, how.seed, stream or 0, few)
    print_results(results)
    if results.get("dataset_mlp_r2", 0) > APART:
        print("The codes tell which dataset a pair is from: each has an alphabet of its own; what is learnt on one is "
              "lost on another. Try --set laq.encoder_input=contrast --set laq.symmetric=true, and more --steps: "
              "docs/analysis.md.")  # fmt: skip
    print(f"LAQ is in {out}.")
    print(f"Look: lapa inspect {quoted(out)} {again(dataset)}")
    print_next(f"lapa label {again(dataset)} --source {quoted(out)} --out runs/labels")


def fit(
    dataset: Datasets,
    out: Path,
    how: How = USUAL,
) -> None:
    """Stage 1 of the baselines VPT and UniPi: fit inverse dynamics.

    The model learns which action lies between two adjacent frames. Both baselines use it: VPT labels the videos with
    it, UniPi finds the actions between the frames that it imagines. --dataset are the few labelled trajectories.

    Args:
        out: folder of the artefact; metrics.jsonl appears there while it trains
    """
    from lapa.run_folder import begin, done_before
    from lapa.stage1_latent_actions import fit_idm

    recipe = how.recipe("fit_idm")
    if done_before(out, recipe, how.seed, how.resume, "idm", "fit_idm", dataset=dataset):
        return
    packed = open_pack(dataset, recipe.idm.image_size, how.skip_bad)
    packed.require_actions("inverse dynamics (lapa fit)")
    begin(out, recipe, how.seed, how.resume, "idm", "fit_idm", content=[packed.fingerprint], dataset=dataset)
    print_watch(out)
    results = fit_idm(packed, recipe, out, how.seed)
    print_results(results)
    if results.get("train_r2", 1) < LITTLE:
        print("That is little for the very pairs it was trained on: it cannot read the actions off the frames, so its "
              "labels will hardly tell them. Train it for longer (--steps), or check that actions and frames belong "
              "together: lapa inspect DATASET.")  # fmt: skip
    print(f"The inverse dynamics model is in {out}.")
    print(f"Look: lapa inspect {quoted(out)}")
    print(f"For UniPi: lapa label --dataset VIDEOS --source future_frames{same_preset(how.preset)} --out runs/labels")
    print_next(f"lapa label --dataset VIDEOS --source {quoted(out)} --out runs/labels")


def track(
    dataset: Datasets,
    out: Path,
    labelled: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME:PATH")] = (),
    cameras: Names = (),
    how: How = USUAL,
) -> None:
    """Stages 1 and 2a in one: follow the hand, label with actions.

    It is not of the paper. Keypoints are learnt that tell the robot's motions in the labelled episodes and go with the
    optical flow of all videos. With two cameras the labels also hold in tasks that no labelled episode shows
    (docs/latents.md).

    Args:
        out: folder of the run; the labels are in OUT/labels
        labelled: a few robot episodes with actions, as NAME:PATH,episodes=0-9, filmed by the same cameras as the videos
        cameras: cameras of all of them, separated by commas. One sees no depth: give two where there are two (none:
            the one that the dataset gives)
    """
    from lapa.labels._read import require_one_rate
    from lapa.run_folder import begin, done_before
    from lapa.stage1_points import LABELS, PICTURE
    from lapa.stage1_points import track as train

    if not labelled:
        raise LapaError("Give a few episodes with actions: --labelled NAME:PATH, such as lerobot:robot,episodes=0-9.")
    recipe = how.recipe("fit_points")
    cameras = split_names(cameras)
    inputs: dict[str, Any] = {"dataset": dataset, "labelled": labelled, "cameras": cameras}
    if done_before(out, recipe, how.seed, how.resume, "points", "fit_points", **inputs):
        return
    packed, few = (
        open_pack(each, recipe.points.image_size, how.skip_bad, cameras=cameras) for each in (dataset, labelled)
    )
    require_one_rate(packed, few, "lapa track")
    content = [packed.fingerprint, few.fingerprint]
    begin(out, recipe, how.seed, how.resume, "points", "fit_points", content=content, **inputs)
    print_watch(out)
    manifest = train(packed, few, recipe, out, how.seed)
    print(f"Labelled {manifest['pairs']} frames (actions) in {out / LABELS}.")
    print(f"Look: {out / PICTURE} shows where the keypoints are; those of a good run go with the hand.")
    if "r2_of_true_actions" in manifest:
        print(f"  R^2 of the dataset's own actions: {manifest['r2_of_true_actions']:.3f}")
    if len(cameras) < 2:
        print("One camera sees no depth: where the tasks of the videos have labels that may do, in others it did not.")
    print_next(f"lapa pretrain {again(dataset)} --labels {quoted(out / LABELS)}{same_preset(how.preset)} "
               "--out runs/latent")  # fmt: skip


def label(
    dataset: Datasets,
    source: str,
    out: Path,
    preset: str | None = None,
    end: Literal["drop", "clip"] = "drop",
    precision: Literal["float32", "bfloat16"] = "float32",
    compile: bool = False,
    workers: int = 0,
    engine: Literal["local", "ray"] = "local",
    shard: int = 0,
    stream: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    skip_bad: SkipBad = False,
    labelled: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME:PATH")] = (),
) -> None:
    """Stage 2a: label every frame of the videos.

    Interrupt it at any time and run it again: it goes on. If everything is done already, it says so.

    Args:
        source: folder made by `lapa quantize` or `lapa fit`, ground_truth (the dataset's own actions, for ActionVLA)
            or future_frames (the frames to come, for UniPi)
        out: new folder for labels.parquet (a folder of shards) and manifest.json
        preset: the preset for pretraining the policy; the next command that is printed names it (None: the source's)
        end: frames whose later frame would be past the end of the episode: drop them, or clip to the last frame
        precision: arithmetic of a LAQ; bfloat16 is several times as fast at the paper's size; about 2% of codes differ
        compile: compile a LAQ first: a minute at the start, then about a tenth faster on a CPU; for long jobs
        workers: processes on this machine (0: this one); with ray, tasks (0: one per GPU of the cluster, else per core)
        engine: ray labels on the Ray cluster of RAY_ADDRESS, whose machines share the disk (pip install 'lapa[scale]')
        shard: least number of pairs in a file; a process that is killed loses one file at most (0: up to 4,096 pairs)
        stream: decode the videos while labelling, without a pack on disk; the labels are the same
        labelled: a few robot episodes with actions, filmed as the videos are: they say what a LAQ's latent actions mean
            on this robot, and the labels are actions (the method read)
    """
    from lapa.artefacts.folder import read_config
    from lapa.labels._read import read_with_laq
    from lapa.recipe import nearest_preset
    from lapa.recipe import preset as named
    from lapa.stage2_label import label as write
    from lapa.stage2_label import source_image_size

    if preset:
        named(preset)  # refuses an unknown one
    size = source_image_size(source)
    if labelled:
        usual = {"end": end, "precision": precision, "compile": compile, "workers": workers, "engine": engine,
                 "shard": shard, "stream": stream}  # fmt: skip
        refuse_changed(usual, "labels of codes, and not to --labelled", label)
        videos, few = (open_pack(each, size, skip_bad) for each in (dataset, labelled))
        manifest = read_with_laq(videos, few, Path(source), out)
    else:
        packed = (open_stream if stream else open_pack)(dataset, size, skip_bad)
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
    made_by = Path(source) / "config.json"  # ground_truth and future_frames have no folder
    recipe = read_config(made_by.parent, "finished label source").get("recipe") if made_by.exists() else None
    found = preset or (nearest_preset(recipe) if recipe else "laptop")
    print_next(f"lapa pretrain {again(dataset)} --labels {quoted(out)}{same_preset(found)} --out runs/latent")


def pretrain(
    dataset: Datasets,
    labels: Path,
    out: Path,
    source: Path | None = None,
    stream: Memory = None,
    how: How = USUAL,
) -> None:
    """Stage 2b: a policy learns to predict the labels.

    It predicts them from the frame and the instruction.

    --dataset are the videos that were labelled, written as they were for `lapa label`.

    Args:
        labels: folder made by `lapa label`
        out: folder of the artefact
        source: refuse labels that were not made by the label source in this folder (None: the folder that the labels
            name, if it is still there)
    """
    from lapa.artefacts.folder import read_config
    from lapa.data.index import digest_of
    from lapa.data.labelled import read_labels, require_told
    from lapa.methods import METHODS
    from lapa.run_folder import begin, done_before
    from lapa.stage2_pretrain import check_labels, learner
    from lapa.stage2_pretrain import pretrain as train
    from lapa.stage3_finetune import can_replay

    policy = learner(labels, how.recipe())
    recipe = how.recipe(policy.pretrained_by)
    note_on_policy(how.preset, recipe)
    inputs: dict[str, Any] = {"dataset": dataset, "labels": labels, **streamed(stream)}
    if done_before(out, recipe, how.seed, how.resume, "policy", policy.pretrained_by, **inputs):
        return
    found, manifest = read_labels(labels)
    require_told(manifest, ("method", "source", "source_hash", "kind", "classes", "fingerprint"), labels)
    # The source that made the labels, if it is still there, must not have been trained again since.
    made_by = source or Path(str(manifest["source"]))
    known = source is not None or (made_by / "config.json").exists()
    wanted = str(read_config(made_by, "finished label source").get("hash")) if known else None
    if stream:
        packed: Any = open_stream(dataset, policy.image_size, how.skip_bad)
    else:
        packed = open_pack(dataset, policy.image_size, how.skip_bad, policy.fit, policy.cameras)
    check_labels(packed, found, manifest, wanted)
    written = digest_of(*(shard["hash"].encode() for shard in manifest["shards"]))
    content = [packed.fingerprint, str(manifest["source_hash"]), written]
    begin(out, recipe, how.seed, how.resume, "policy", policy.pretrained_by, content=content, **inputs)
    print_watch(out)
    print_results(train(packed, found, manifest, recipe, out, how.seed, wanted, stream or 0))
    print(f"The pretrained policy is in {out}.")
    more = " --idm IDM" if manifest["kind"] == "frames" else ""
    row = METHODS.get(manifest["method"])
    if not more and can_replay(recipe) and (row is None or row.replays):
        more = f" {again(dataset, '--videos')} --labels {quoted(labels)}"
    print_next(f"lapa finetune --dataset ROBOT --policy {quoted(out)}{more}{same_preset(how.preset)} --out runs/policy")


def finetune(
    dataset: Datasets,
    out: Path,
    policy: Path | None = None,
    idm: Path | None = None,
    head: Literal["linear", "own", "new"] | None = None,
    trainable: Literal["head", "all"] | None = None,
    videos: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME:PATH")] = (),
    labels: Path | None = None,
    how: How = USUAL,
) -> None:
    """Stage 3: make it a robot policy with a few labelled trajectories.

    --dataset are those trajectories.

    Args:
        out: folder of the artefact
        policy: folder made by `lapa pretrain` (None: the backbone alone, the Scratch baseline)
        idm: for unipi alone: folder made by `lapa fit`, which reads actions off imagined frames
        head: linear: keep the head; the labels say which action each of its classes (latent codes, say) means; nothing
            is trained; best for a few trajectories. own: train a new head in place of a latent one, as the paper does;
            a head that predicts actions is trained further. new: train a new head (None: the preset's)
        trainable: head: the new head alone (best on Tabletop with few labels), for unipi the video diffusion; all:
            everything but the vision encoder (None: the preset's)
        videos: the videos of stage 2, with --labels: they go on being learnt in half of the steps (--set replay=0.5),
            so that a few trajectories do not wipe out what they taught. Latent actions are learnt by the latent head,
            beside the new one, and that head is dropped at the end
        labels: the labels of these videos that stage 2 learnt
    """
    from lapa.artefacts.folder import describe
    from lapa.data.labelled import read_labels
    from lapa.run_folder import begin, done_before
    from lapa.stage2_pretrain import check_labels
    from lapa.stage3_finetune import Replay, chosen_settings, learner
    from lapa.stage3_finetune import finetune as train

    inherited = _saved(policy)
    told = {"head": head, "trainable": trainable}
    more = [f"{name}={value}" for name, value in told.items() if value]
    its = learner(policy, how.recipe("", *more))
    recipe = how.recipe(its.finetuned_by, *more)
    note_on_policy(how.preset, recipe)
    reads = not its.trains(inherited or None, recipe)
    trains = {"--steps": how.steps, "--trainable": trainable, "--labels": labels}
    for name, value in trains.items() if reads else ():
        if value is not None:
            raise LapaError(
                f"{name} is for training; --head linear{'' if head else f' (of --preset {how.preset})'} trains "
                f"nothing. Add --head own, or leave {name} out."
            )
    changes = chosen_settings(policy, recipe, (*how.set, *more))
    if bool(videos) != (labels is not None):
        raise LapaError("--videos and --labels belong together: the videos of stage 2 and what it learnt of them.")
    beside = {"videos": videos, "labels": labels} if labels else {}
    inputs = {"dataset": dataset, "policy": policy, **({"idm": idm} if idm else {}), **beside}
    if done_before(out, recipe, how.seed, how.resume, "policy", its.finetuned_by, **inputs):
        return
    usual = recipe.policy.decoding
    has = inherited.get("model", {}).get("decoding", usual)
    if "decoding" not in changes and has != usual:
        print(f"Note: {policy} was pretrained with policy.decoding={has} and keeps it; --preset {how.preset} has "
              f"{usual}. To change it, add --set policy.decoding={usual}.")  # fmt: skip
    packed = open_pack(dataset, its.image_size, how.skip_bad, its.fit, changes.get("cameras", its.cameras))
    packed.require_actions("finetuning")
    made = {"policy": policy, "idm": idm}
    content = [packed.fingerprint, *(describe(path, kind).hash for kind, path in made.items() if path)]
    replay = None
    if labels and recipe.replay:
        watched = open_pack(videos, its.image_size, how.skip_bad, its.fit, changes.get("cameras", its.cameras))
        found, manifest = read_labels(labels)
        check_labels(watched, found, manifest)
        replay = Replay(watched, found, manifest, recipe.replay)
        content += [watched.fingerprint, str(manifest["source_hash"])]
    begin(out, recipe, how.seed, how.resume, "policy", its.finetuned_by, content=content, **inputs)
    if not reads:
        print_watch(out)
    print_results(train(packed, policy, recipe, out, how.seed, idm, changes, replay=replay))
    print(f"The robot policy is in {out}.")
    _print_trial(out, dataset, packed.embodiments)


def _print_trial(policy: Path, dataset: tuple[str, ...], robots: tuple[str, ...]) -> None:
    """How to try a policy: on the benchmark that its robot belongs to, else on recorded episodes."""
    if (known := _world(dataset, robots)) is not None:
        print_next(
            f"lapa evaluate --policy {quoted(policy)} --benchmark {quoted(known)} --episodes 500 --out runs/eval"
        )
        return
    print("In a simulator of the robot: lapa evaluate --benchmark NAME (`lapa list` names those that there are).")
    print_next(f"lapa evaluate --policy {quoted(policy)} {again(dataset)} --out runs/eval")


def _world(dataset: tuple[str, ...], robots: tuple[str, ...]) -> str | None:
    """The benchmark that these data are of, as `lapa evaluate` takes it: the one that all say they were collected from,
    or the one whose name and usual path are the name of every robot; None: that is not known."""
    from lapa import plugins
    from lapa.data.spec import parse
    from lapa.interop.demonstrations import benchmark_of

    told = {benchmark_of(parse(text)) for text in dataset}
    if told != {None}:
        return told.pop() if len(told) == 1 else None
    paths = {name: fields(plugins.find("benchmarks", name)) for name in plugins.names("benchmarks")}
    usual = {name: next((part.default for part in its if part.name == "path"), "") for name, its in paths.items()}
    return next((name for name, path in usual.items() if robots and {*robots} <= {name, f"{name}_{path}"}), None)


def _saved(policy: Path | None) -> dict[str, Any]:
    """What config.json says of a pretrained policy, if one is given. Raises LapaError when there is no such folder."""
    from lapa.artefacts.folder import describe
    from lapa.artefacts.hub import local

    if policy is None:
        return {}
    if not (folder := local(policy)).is_dir():
        raise LapaError(f"There is no folder {folder}. --policy is a folder made by `lapa pretrain`.")
    return describe(policy, "policy").config


def tune(
    dataset: Datasets,
    out: Path,
    policy: Path | None = None,
    idm: Path | None = None,
    benchmark: str | None = None,
    episodes: int = 200,
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    preset: Preset = "laptop",
    seed: Seed = 0,
    resume: Resume = False,
    skip_bad: SkipBad = False,
    set: Options = (),
) -> None:
    """Stage 3 in several ways; the best on what is held out is kept.

    --dataset are labelled robot trajectories. The ways are: linear (the trajectories say which action each class of the
    pretrained head means); head (train the head alone); all (everything but the vision encoder, with a low learning
    rate); all-long (the same, four times as long). For a policy that already predicts actions: also with a new head
    (new-head, all-new-head, all-long-new-head). For such a policy and for unipi: also no finetuning (as-it-is). Steps
    and learning rate are those of the preset, times a factor (lapa/experiments/tune.py).

    Args:
        out: folder of the best policy
        policy: folder made by `lapa pretrain` (None: the backbone alone, the Scratch baseline)
        idm: for unipi alone: folder made by `lapa fit`, which reads actions off imagined frames
        benchmark: NAME[:PATH][,OPTION=VALUE], on whose validation scenes the ways are scored (none: tabletop where the
            trajectories are of its world; else the error of actions on trajectories that are held out)
        episodes: validation episodes for each way
        only: try only this way; may be given several times
    """
    from lapa.data.observations import say_once
    from lapa.evaluate import Trial, differences, open_benchmark, require_same_actions
    from lapa.experiments.tune import changes_of, require_enough
    from lapa.experiments.tune import tune as search
    from lapa.run_folder import begin, done_before
    from lapa.stage3_finetune import learner

    Trial(episodes, seed, validation=True)  # refuses now what would be refused after the first way
    _saved(policy)
    recipe = recipe_of(preset, set)
    note_on_policy(preset, recipe)
    for name in sorted({option.partition("=")[0].strip() for option in set} & {"head", "trainable"}):
        say_once(f"--set {name} changes nothing here: each way to finetune has its own. --only chooses a way.")
    inputs: dict[str, Any] = {"dataset": dataset, "policy": policy, "ways": only, "episodes": episodes}
    inputs |= {"idm": idm} if idm else {}
    inputs |= {"benchmark": benchmark} if benchmark else {}
    if done_before(out, recipe, seed, resume, "policy", **inputs):
        return
    its, changes = learner(policy, recipe), changes_of(policy, recipe, only, set)
    cameras = next(iter(changes.values())).get("cameras", its.cameras)
    packed = open_pack(dataset, its.image_size, skip_bad, its.fit, cameras)
    packed.require_actions("finetuning")
    assert packed.action_spec
    scenes = open_benchmark(benchmark or "tabletop")
    if benchmark is not None:
        require_same_actions(packed.action_spec, packed.spec, scenes.spec, benchmark)
    elif others := differences(packed.action_spec, scenes.spec.action):
        print(f"No --benchmark is given, and tabletop is another world ({'; '.join(others)}): the ways are scored by "
              "the error of actions on labelled episodes that are held out.")  # fmt: skip
    here = benchmark is not None or not differences(packed.action_spec, scenes.spec.action)
    if not here:
        require_enough(packed)
    begin(out, recipe, seed, resume, "policy", content=[packed.fingerprint], **inputs)
    found = search(packed, policy, recipe, out, seed, scenes if here else None, episodes, only, idm, changes)
    print(f"Chosen: {found['chosen']}. The robot policy is in {out}.")
    where = f"--benchmark {quoted(benchmark or 'tabletop')} --episodes 500" if here else "--dataset OTHER_EPISODES"
    print_next(f"lapa evaluate --policy {quoted(out)} {where} --out runs/eval")


def ground(
    out: Path,
    steps: int = 4000,
    batch_size: int = 128,
    learning_rate: float = 1.5e-3,
    width: int | None = None,
    depth: int | None = None,
    domains: Names = (),
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Stage 0: make the weights of the tiny backbone that lapa ships.

    It takes about seven minutes on one core. Another --width or --depth makes a backbone of another size.
    A policy starts from the weights in FOLDER with
    --set 'policy.backbone_options={"weights":"FOLDER","width":64,"depth":2}', naming the size they have.

    Args:
        out: folder of the artefact (without weights=, the package uses lapa/backbones/weights)
        steps: optimizer steps
        batch_size: scenes a step
        learning_rate: peak learning rate of Adam
        width: hidden size of the language model and of the readout, a multiple of 4 (None: that of the shipped weights)
        depth: layers of the language model (None: those of the shipped weights)
        domains: domains of Tabletop that it sees (none: sim,real,hand)
    """
    from lapa.backbones import tiny
    from lapa.plugins import choose
    from lapa.recipe import Recipe
    from lapa.run_folder import begin
    from lapa.tabletop.grounding import ground as train
    from lapa.tabletop.render import DOMAINS
    from lapa.training.loop import Optimisation

    how = Optimisation(steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup=100)
    size: dict[str, Any] = {name: value for name, value in (("width", width), ("depth", depth)) if value is not None}
    config = tiny.Config(**size, grounded=False)
    config.build()  # refuses an impossible size before the folder is written
    domains = split_names(domains) or tuple(DOMAINS)
    for domain in domains:
        choose(domain, DOMAINS, "domain of Tabletop")
    if begin(out, Recipe(), seed, resume, "backbone", how=how, domains=domains, **size):
        return
    print_results(train(out, how, seed, config, domains))
    print(f"The grounded backbone is in {out}.")
    told = json.dumps({**size, "weights": str(out)}, separators=(",", ":"))
    print(f"A policy starts from it with --set 'policy.backbone_options={told}'")


def stop(run: Annotated[Path, tyro.conf.Positional]) -> None:
    """End a run early and make the artefact of its present weights.

    The run ends after the present step, and LAQ after its trial starts. While finetune still measures its held-out
    error there is nothing to keep, and this says so. If the run is not running now, its own command with --resume ends
    it at its last checkpoint. To continue it instead: remove RUN/finish, then its command with --resume.

    Args:
        run: folder of lapa quantize, fit, track, pretrain or finetune
    """
    from lapa.run_folder import end_early

    if end_early(run):
        print(f"{run} will end after the present step, and be kept. Remove {run / 'finish'} to let it go on.")
    else:
        print(f"{run} is finished already. To make it longer: its command with --resume and more --steps.")
