"""Data in and out: `lapa cache`, `collect`, `convert`, `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lapa.commands.options import Datasets, Names, Preset, Seed, SkipBad, at_least_one, print_next, quoted, split_names
from lapa.contracts import LapaError

Quality = Annotated[int | Literal["exact", "auto"], tyro.conf.arg(metavar="INT|exact|auto")]


def cache(
    dataset: Datasets,
    preset: Preset = "laptop",
    image_size: int | None = None,
    workers: int = 0,
    estimate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    clear: Annotated[str | None, tyro.conf.arg(metavar="all|NAME:PATH|AGE")] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Read datasets ahead of time, with all cores.

    Makes the small frames that other commands would make with one core. Says first how much disk it takes, and stops
    if there is too little. If it is killed, the same command goes on where it was.
    quantize, label and pretrain can also work without it: see their --stream.

    Args:
        dataset: what to read, given once or more
        preset: the settings you will train with: they say which sizes of frames are needed
        image_size: pixels a side, in place of the preset's
        workers: processes (0: one per core)
        estimate: say how much disk it takes, and stop
        list: show what is in the cache, from which dataset, how large, and when it was last used
        clear: remove from the cache: all, what was made from one dataset, or what was not used for 30d, 12h, 2w, ..
    """
    from lapa.data.cache import estimate as measure
    from lapa.data.cache import make, require_room
    from lapa.data.cache_list import clear as remove
    from lapa.data.cache_list import entries, table
    from lapa.data.index import tell
    from lapa.data.pack import pack
    from lapa.recipe import preset as named

    if list or clear is not None:
        removed = [] if clear is None else remove("" if clear == "all" else clear)
        for line in (*(f"removed {line.strip()}" for line in table(removed)[:-1]), *table(entries())):
            print(line)
        return
    if workers < 0:
        raise LapaError(f"--workers must not be below 0, got {workers}.")
    if image_size is not None and image_size < 1:
        raise LapaError(f"--image-size is at least 1, got {image_size}.")
    recipe = named(preset)
    sizes = [image_size] if image_size else sorted({recipe.laq.image_size, recipe.policy_image_size})
    wanted = [measure(spec, size, skip_bad) for size in sizes for spec in at_least_one(dataset)]
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
    for one in {one.spec: one for one in wanted}.values():
        tell(pack([one.spec], one.image_size, skip_bad=skip_bad, quiet=True))


def collect(
    dataset: Datasets,
    out: Path,
    without_actions: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    cameras: Names = (),
    quality: Quality = "auto",
    robot: str = "",
    skip_bad: SkipBad = False,
    benchmark: str | None = None,
    episodes: int | None = None,
    noise: float = 0.0,
    seed: Seed = 0,
    workers: int = 1,
) -> None:
    """Write data, or episodes of a benchmark's expert, as LeRobot v3.0.

    That is parquet and mp4. Datasets are, for example, the demonstrations of Tabletop.
    Examples: lapa collect --dataset tabletop:sim,episodes=200,seed=1 --out data/sim
    lapa collect --benchmark tabletop:sim --episodes 20 --noise 0.2 --out data/sim

    --benchmark keeps the episodes in which its expert succeeds, with all cameras, state and actions, equally many of
    each task where scenes have one. Policies are never tried on their scenes.

    Args:
        out: new folder
        without_actions: leave the actions out, so that the data are video alone
        cameras: the cameras to keep, the main one first (none: all there are)
        quality: H.264's crf, such as 18 or 23, which browsers play; or exact, which keeps every pixel (auto: exact up
            to 128 pixels a side, else 18)
        robot: the robot's name, for robot_type, where the dataset names none
        benchmark: NAME[:PATH][,OPTION=VALUE], such as tabletop:sim
        episodes: benchmark: how many
        noise: benchmark: disturb the expert's motions by this share of their size, so that it shows how to recover; not
            while its gripper holds something
        seed: benchmark: which scenes
        workers: benchmark: processes that share the work; the result is the same
    """
    from lapa.data.index import counted
    from lapa.interop.collect import collect as write
    from lapa.interop.demonstrations import collect_demonstrations

    if benchmark is not None:
        if dataset or cameras:
            raise LapaError("--dataset and --cameras do not go with --benchmark.")
        if episodes is None:
            raise LapaError("Say how many --episodes of the benchmark's expert to collect.")
        made = collect_demonstrations(
            benchmark, episodes, out, seed, noise, quality, robot, without_actions, workers
        )  # fmt: skip
    elif episodes is not None or noise or seed or workers != 1:
        raise LapaError(
            "--episodes, --noise, --seed and --workers belong to --benchmark; a dataset has options of its own."
        )
    else:
        made = write(at_least_one(dataset), out, skip_bad, without_actions, split_names(cameras), quality, robot)
    print(f"Wrote {counted(made['episodes'], 'episode')}, {made['frames']} frames, to {out} ({made['with']} actions; "
          f"camera {', '.join(made['cameras'])}).")  # fmt: skip
    for note in made["notes"]:
        print(f"  {note}")
    print_next(f"lapa inspect --dataset {quoted(f'lerobot:{out}')} --out runs/inspect")


def convert(
    form: tyro.conf.Positional[Literal["laq-official", "lapa-official"]],
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    image_size: int | None = None,
    patch_size: int | None = None,
    heads: int | None = None,
    dim_head: int | None = None,
    codes: int | None = None,
    window: float | None = None,
    vqgan: Path | None = None,
    tokenizer: Path | None = None,
    bins: Path | None = None,
    crop: bool | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    rope: Literal["auto", "float32", "bfloat16"] = "auto",
    theta: float | None = None,
    hz: float = 5.0,
    released_sampling: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    reverse: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Open or write checkpoints of the authors' released code.

    The checkpoint becomes an artefact; with --reverse the artefact becomes a checkpoint.
    Examples: lapa convert laq-official vae.100000.pt runs/laq --image-size 256; lapa convert lapa-official params
    runs/lapa7b --vqgan vqgan --tokenizer tokenizer.model --rope bfloat16

    Args:
        form: laq-official: the state dict that the released LAQ trainer saves; lapa-official: LAPA-7B, LWM-Chat-1M and
            policies finetuned from them (docs/lapa_7b.md)
        source: checkpoint file, for lapa-official `params` (with --reverse: folder of the artefact)
        out: new folder of the artefact (with --reverse: new checkpoint file)
        image_size: laq: pixels a side of the images it was trained on; the weights do not tell it
        patch_size: laq: pixels a side of a patch (None: found from the weights; if given, it is checked, as the
            next three)
        heads: attention heads (lapa: None: from a settings.json beside params, else of 128 numbers each)
        dim_head: laq: width of a head
        codes: s. laq: weights for 4 and for 16 codes differ only in the image size. lapa: 4, unless given
        window: laq: seconds between the two frames it was trained on (None: the paper preset's)
        vqgan: lapa: the released file `vqgan` (with --reverse: write it here as well, as the next two)
        tokenizer: lapa: tokenizer.model
        bins: lapa: csv of action bins, for a policy with an action head
        crop: lapa: cut a tenth off the height of pictures, as the released robot server does (None: where there is an
            action head)
        dtype: lapa: of the weights, and the arithmetic in which it runs
        rope: lapa: arithmetic of the table of positions (auto: as dtype). The released training had bfloat16
        theta: lapa: base of the positions' frequencies (None: from settings.json, else 5e7)
        hz: lapa: actions a second
        released_sampling: lapa: as the released code, stop at code 2; draw actions at random instead of taking the
            likeliest
        reverse: write what the released code loads
    """
    from lapa.interop.convert import from_released, to_released

    given: dict[str, dict[str, Any]] = {
        "laq-official": {"--image-size": image_size, "--patch-size": patch_size, "--dim-head": dim_head,
                         "--window": window},
        "lapa-official": {"--vqgan": vqgan, "--tokenizer": tokenizer, "--bins": bins, "--crop": crop,
                          "--dtype": dtype if dtype != "float32" else None, "--rope": rope if rope != "auto" else None,
                          "--theta": theta, "--hz": hz if hz != 5.0 else None,
                          "--released-sampling": released_sampling or None},
        "both": {"--heads": heads, "--codes": codes},
    }  # fmt: skip
    files = ("--vqgan", "--tokenizer", "--bins") if form == "lapa-official" else ()
    for whose, options in given.items():
        for name in (name for name, value in options.items() if value is not None):
            if whose not in (form, "both"):
                raise LapaError(f"{name} belongs to {whose}. Leave it out.")
            if reverse and name not in files:
                raise LapaError(f"{name} means nothing with --reverse: the artefact says what it is. Leave it out.")
    if form == "lapa-official":
        _convert_lapa(source, out, vqgan, tokenizer, bins, reverse, heads=heads, codes=4 if codes is None else codes,
                      crop=crop, dtype=dtype, rope="" if rope == "auto" else rope, theta=theta, hz=hz,
                      released_sampling=released_sampling)  # fmt: skip
        return
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
        print_next(f"lapa label --dataset VIDEOS --source {quoted(out)} --out runs/labels")


def _convert_lapa(
    source: Path,
    out: Path,
    vqgan: Path | None,
    tokenizer: Path | None,
    bins: Path | None,
    reverse: bool,
    **choices: Any,
) -> None:
    from lapa.interop.convert_lapa import Choices, from_lapa
    from lapa.interop.convert_lapa_back import to_lapa

    if reverse:
        print(to_lapa(source, out, vqgan, tokenizer, bins))
        return
    if vqgan is None or tokenizer is None:
        raise LapaError("Give --vqgan and --tokenizer, the files that were published beside `params`.")
    print(from_lapa(source, out, vqgan, tokenizer, bins, Choices(**choices)))
    print(f"The model is in {out}.")
    print_next("in Python, policy = lapa.Policy.from_pretrained(..); what else it is for: docs/lapa_7b.md")


EXPORT_TAKES = {
    "lerobot": ("dataset", "image_size", "fps", "quality", "robot"), "jsonl": ("dataset", "image_size"),
    "lerobot-policy": ("feature",), "hub": ("license", "private"),
}  # fmt: skip


def export(
    form: tyro.conf.Positional[Literal["lerobot", "jsonl", "lerobot-policy", "hub"]],
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LABELS|RUN")],
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT|USER/NAME")],
    dataset: Datasets = (),
    image_size: int | None = None,
    fps: float | None = None,
    quality: Annotated[int | Literal["exact"] | None, tyro.conf.arg(metavar="INT|exact")] = None,
    robot: str = "",
    feature: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="CAMERA=NAME")] = (),
    license: str | None = None,
    private: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Export labels (LeRobot, jsonl), a policy (LeRobot, the hub), a LAQ.

    The released LAPA code reads the jsonl.
    Examples: lapa export lerobot runs/labels data/labelled; lapa export hub runs/laq me/laq --license apache-2.0
    --dataset says where the labelled videos are now (none: where they were when they were labelled).

    Args:
        form: lerobot: the labelled videos as a LeRobot v3.0 dataset with latent_action; jsonl: images and rows for the
            released LAPA training script; lerobot-policy: a policy as a checkpoint for lerobot-eval and lerobot-train
            (docs/lerobot.md); hub: upload a LAQ or a policy with a model card
        source: folder of `lapa label`; for lerobot-policy, of `lapa finetune`; for hub, of `lapa quantize`, `pretrain`
            or `finetune`
        out: new folder; for hub, the repository
        image_size: make the frames squares with this many pixels a side (None: as they are at the source)
        fps: lerobot: the one rate to write, where the videos have several
        quality: lerobot: H.264's crf, such as 23, which browsers play (None: 18); or exact, which keeps every pixel
        robot: lerobot: the robot's name, for robot_type, where the dataset names none
        feature: lerobot-policy: the name of a camera in LeRobot, where it is not observation.images.CAMERA; repeatable
        license: hub: the licence of the weights, such as apache-2.0; it must suit the licence of the videos
        private: hub: only you can see it
    """
    given = {"dataset": dataset, "image_size": image_size, "fps": fps, "quality": quality, "robot": robot,
             "feature": feature, "license": license, "private": private}  # fmt: skip
    for name, value in given.items():
        if value not in ("", ()) and value is not None and value is not False and name not in EXPORT_TAKES[form]:
            owners = " and ".join(other for other, takes in EXPORT_TAKES.items() if name in takes)
            raise LapaError(
                f"--{name.replace('_', '-')} belongs to `lapa export` {owners}, not to {form}. Leave it out."
            )
    if form == "hub":
        from lapa.artefacts.hub import push_to_hub

        if not license:
            raise LapaError("Say which licence the weights have, such as --license apache-2.0.")
        print(f"{source} is at {push_to_hub(source, out, license, private)}")
        print_next(f'lapa.LAQ.from_pretrained("{out}"), or lapa.Policy, in Python')
        return
    if form == "lerobot-policy":
        from lapa.interop.lerobot_policy import export_policy

        print("\n".join(export_policy(source, Path(out), feature)))
        print(f"Wrote {out}, a checkpoint of LeRobot. It needs: pip install lerobot_policy_lapa (docs/lerobot.md)")
        print_next(f"lerobot-eval --policy.path={quoted(out)} --env.type=..")
        return
    from lapa.data.index import counted, tell
    from lapa.data.video import GOOD
    from lapa.interop.export import ROWS, export_jsonl, export_lerobot, open_labelled

    if image_size is not None and image_size < 1:
        raise LapaError(f"--image-size is at least 1, got {image_size}.")
    labelled = open_labelled(source, dataset)
    tell(labelled.packed)
    if form == "lerobot":
        export_lerobot(labelled, Path(out), image_size, fps, GOOD if quality is None else quality, robot)
        episodes = counted(labelled.packed.episodes, "episode")
        print(f"Wrote {episodes} with latent_action to {out}; frames without a label have -1.")
        print_next(f"lapa inspect --dataset {quoted(f'lerobot:{out}')} --out runs/inspect")
        return
    rows = export_jsonl(labelled, Path(out), image_size)
    classes, width = labelled.manifest["classes"], labelled.codes.shape[1]
    print(f"Wrote {rows} rows to {out}/{ROWS}, and the images beside it; {labelled.without} frames have no label.")
    print(f"For the released script: delta_vocab_size={classes}, n_tokens_per_delta={width}; image tokens come from "
          "its VQGAN (docs/export.md).")  # fmt: skip
