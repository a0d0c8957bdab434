"""Commands that only show something: `lapa inspect`, `explore`, `analyse`, `list`."""

from __future__ import annotations

import importlib.util
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lapa.commands.options import Datasets, Seed, SkipBad
from lapa.contracts import LapaError


def inspect(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN|NAME:PATH ...]")] = (),
    dataset: Datasets = (),
    out: Path | None = None,
    window: float | None = None,
    image_size: int = 96,
    skip_bad: SkipBad = False,
) -> None:
    """Look at a dataset, at runs, or at a LAQ's codes of a dataset.

    For runs it shows curves and results, also while they train.
    Examples: lapa inspect video_folder:clips/; lapa inspect runs/laq; lapa inspect runs/a runs/b; lapa inspect runs/laq
    --dataset video_folder:clips/ (any dataset, not only the one that the LAQ was trained on).
    A dataset, alone or with --dataset, is always read to its end. Episodes that cannot be read are listed.

    Args:
        runs: folders of lapa quantize, pretrain or finetune; several are compared; with --dataset also the code gallery
            and the probe table of each LAQ among them. Or datasets
        out: folder for pictures and inspect.json (None: RUN/inspect for one run, else runs/inspect)
        window: seconds between the two frames (None: what the LAQ was trained with)
        image_size: pixels a side of the contact sheet's frames where no LAQ sets it
    """
    from lapa.analysis.inspect import inspect_dataset, inspect_runs
    from lapa.data.video import SUFFIXES

    videos = [run for run in runs if Path(run).is_file() and run.lower().endswith(SUFFIXES)]
    named = [run for run in runs if ":" in run and not Path(run).exists()]
    folders = [Path(run) for run in runs if run not in (*named, *videos)]
    datasets = (*named, *(f"video_folder:{video}" for video in videos), *dataset)
    where = out or (folders[0] / "inspect" if len(folders) == 1 else Path("runs/inspect"))
    if folders:
        inspect_runs(folders, datasets, where, window=window, skip_bad=skip_bad)
    elif datasets:
        inspect_dataset(datasets, where, image_size)
    else:
        raise LapaError("Give the folder of a run, such as runs/laq, or --dataset NAME:PATH, or both.")


def explore(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [OTHER]")],
    dataset: Datasets = (),
    policy: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FOLDER")] = (),
    pairs: int = 5000,
    port: int = 8070,
    skip_bad: SkipBad = False,
) -> None:
    """Try codes on a page in the browser: press one, see what it does.

    Example: lapa explore runs/laq --dataset video_folder:clips/ --policy runs/latent. With a second LAQ both are shown
    side by side. The page is served to this machine alone, and needs no network. Ctrl-C ends it. See docs/explorer.md.

    Args:
        runs: folder of `lapa quantize`, or of `lapa pretrain` on its labels; two are shown side by side
        dataset: the videos (none: those that the LAQ was trained on)
        policy: folder of `lapa pretrain`: the codes that it names for an instruction; repeatable
        pairs: read the codes of so many pairs of frames at most
        port: port of the page (0: any that is free)
    """
    if importlib.util.find_spec("nicegui") is None:
        raise LapaError('The explorer needs the package nicegui: pip install "lapa[explore]".')
    if not runs:
        raise LapaError("Give the folder of a LAQ, such as runs/laq.")
    if pairs < 1:
        raise LapaError(f"--pairs must be at least 1, got {pairs}.")
    from lapa.explorer.opened import explored
    from lapa.explorer.page import Explorer

    page = Explorer(explored(runs, dataset, policy, pairs, skip_bad), port)
    print(f"The explorer is at {page.url} (Ctrl-C ends it).")
    tunnel = f"ssh -L {page.port}:127.0.0.1:{page.port} THIS_MACHINE"
    print(f"From another machine: {tunnel}, then the same address.", flush=True)
    with suppress(KeyboardInterrupt):  # the way to end it
        page.run()


def analyse(
    what: Annotated[Literal["transplant", "algebra", "information", "rollout", "language"], tyro.conf.Positional],
    run: Annotated[Path, tyro.conf.Positional],
    dataset: Datasets = (),
    policy: Path | None = None,
    out: Path | None = None,
    episodes: int = 500,
    seed: Seed = 0,
) -> None:
    """Ask what the codes mean: a figure, its baseline and a picture.

    Example: lapa analyse transplant runs/laq. docs/analysis.md says what the figures mean. --dataset should be videos
    that the LAQ was not trained on (none: 300 episodes of each look of Tabletop; for rollout, of sim).

    Args:
        what: transplant: do codes of one look of Tabletop move the robot of another the same way? algebra: do codes
            add up, and change sign when the video is played backwards? information: do codes tell the action, or the
            object? rollout: for how long are frames drawn by policy and decoder right? language: does the policy use
            the instruction?
        run: folder of a LAQ (for language, of a policy made by `lapa finetune`)
        policy: for rollout: folder made by `lapa pretrain` from this LAQ's labels
        out: folder for WHAT.png and WHAT.json (None: RUN/analysis)
        episodes: for language: test episodes for each kind of instruction
    """
    from lapa.analysis.command import answer

    answer(what, run, dataset, policy, out or run / "analysis", episodes, seed)


def show_list(preset: str | None = None) -> None:
    """Name every method, preset and plug-in (datasets, backbones, ..).

    Args:
        preset: print all settings of this preset; each can be changed with --set NAME=VALUE
    """
    from lapa import plugins
    from lapa.methods import METHODS
    from lapa.recipe import ABOUT
    from lapa.recipe import preset as named

    if preset:
        print(json.dumps(named(preset).to_json(), indent=1))
        return
    print("methods")
    for row in METHODS.values():
        print(f"  {row.name:<18}{row.note}")
    print("presets (lapa list --preset NAME: all settings)")
    for name, about in ABOUT.items():
        print(f"  {name:<18}{about}")
    for kind in plugins.KINDS:
        print(kind)
        for name in plugins.names(kind):
            how = plugins.missing(kind, name)
            print(f"  {name:<18}{plugins.describe(kind, name)}" + (f" Not installed: {how}" if how else ""))
