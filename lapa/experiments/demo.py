"""`lapa demo`: the whole method in about ten minutes on two cores: a plan of `lapa` commands, a report with pictures.

The videos show a hand and have no actions. Twenty labelled trajectories are of the robot. The result is a policy for
the robot. With --setting in-domain the videos show the robot itself.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapa.artefacts.folder import read_json, write_json
from lapa.contracts import LapaError
from lapa.data.pack import Packed, pack
from lapa.experiments.compare import QUICK, Comparison, gap_closed, gather, plan, told
from lapa.experiments.report import ELSEWHERE, VIDEOS_OF, vpt_verdict, write_report
from lapa.experiments.schedule import PlanStep, run
from lapa.models.laq import LAQ
from lapa.plots.codes import contact_sheet, imagine, rollout_strip, success_bars
from lapa.policies import Policy
from lapa.recipe import preset

METHODS = ("scratch", "vpt", "lapa", "actionvla")
SCRIPTED = ("no_op", "random", "expert")  # rows of the benchmark
SHOWN = ("no_op", "random", "scratch", "unipi", "vpt", "lapa", "actionvla", "expert")  # in this order
SHOWN_IN = {"cross-embodiment": "hand", "in-domain": "sim"}  # setting -> domain of the videos; labels are of sim
FILMED = ("lapa", "vpt", "scratch")  # methods whose episodes the report shows side by side
FILMS = 60  # episodes of each method that are recorded: LAPA should fail in one of them
VIDEO_SEED, LABEL_SEED = 1, 2  # of the training data, added to 10 times the demo's seed
LESS = ("pretrain.steps=800",)  # to be done in ten minutes


@dataclass(frozen=True)
class DemoSettings:
    """The options of `lapa demo`."""

    videos: int = 3000
    labels: int = 20
    episodes: int = 200
    setting: str = "cross-embodiment"
    seed: int = 0
    quick: bool = False


def run_demo(settings: DemoSettings, out: Path, workers: int = 0, unipi: bool = False) -> dict[str, Any]:
    """Run what is missing, write `out/results.json` and `out/report.html`, return the results.

    `unipi` adds that method, to a finished demo too. Raises LapaError when `out` holds a demo with other settings.
    """
    methods = (*METHODS, *(("unipi",) if unipi else ()))
    begin(asdict(settings), out)
    steps = demo_plan(settings, out, methods)
    print(f"{len(steps)} steps into {out}; each is a lapa command you could type, with its log in {out}/logs.")
    seconds = run(steps, out, workers)
    results = {
        "methods": gather([name for name in SHOWN if name in (*methods, *SCRIPTED)], out),
        "probe": read_json(out / "fit/lapa/config.json", "LAQ")["results"],
        "seconds": {k: round(v, 1) for k, v in seconds.items()},
        "settings": {**asdict(settings), "recipe": read_json(out / "policy/lapa/config.json", "policy")["recipe"],
                     "commands": {s.name: "lapa " + " ".join(s.command) for s in steps}},
    }  # fmt: skip
    write_json(out / "results.json", results)
    pictures(results, out)
    report = write_report(out)
    _say(results, report)
    return results


def begin(settings: dict[str, Any], out: Path) -> None:
    """Make the folder of a demo, or go on in it. Raises LapaError when it holds a demo with other settings."""
    out.mkdir(parents=True, exist_ok=True)
    asked = out / "settings.json"
    if asked.exists() and read_json(asked, "settings of the demo") != settings:
        raise LapaError(f"{out} holds a demo with other settings (settings.json). Remove it, or give another --out.")
    write_json(asked, settings)
    os.environ.setdefault("LAPA_CACHE", str((out / "cache").absolute()))


def demo_plan(settings: DemoSettings, out: Path, methods: Sequence[str] = METHODS) -> list[PlanStep]:
    """Make the data, then the plan of `lapa compare`."""
    videos, labels, episodes = settings.videos, settings.labels, settings.episodes
    less = tuple(word for setting in LESS for word in ("--set", setting))
    if settings.quick:
        videos, episodes = min(videos, 60), min(episodes, 20)
        less = QUICK
    steps = []
    domain = SHOWN_IN[settings.setting]
    data = (("videos", domain, videos, VIDEO_SEED, 25), ("labelled", "sim", labels, LABEL_SEED, 5))
    for name, look, count, seed, guess in data:
        spec = f"tabletop:{look},episodes={count},seed={settings.seed * 10 + seed}"
        path = out / "data" / name
        steps.append(
            PlanStep(
                f"data/{name}",
                ("collect", "--dataset", spec, "--out", str(path)),
                path,
                path / "meta" / "info.json",
                (),
                guess,
            )
        )
    setting = Comparison(
        (f"lerobot:{out}/data/videos",), (f"lerobot:{out}/data/labelled",), "tabletop", episodes, settings.seed, less,
        min(FILMS, episodes),
    )  # fmt: skip
    made = tuple(step.name for step in steps)
    return steps + plan(methods, setting, out, SCRIPTED, made)


def pictures(results: dict[str, Any], out: Path) -> None:
    """Everything the report shows, into `out/pictures`."""
    folder = out / "pictures"
    folder.mkdir(exist_ok=True)
    success_bars(
        results["methods"],
        folder / "success.png",
        f"Success with {results['settings']['labels']} labelled trajectories",
    )
    fitted = sorted((out / "fit/lapa/pictures").glob("reconstructions_*.png"))
    if fitted:
        shutil.copy(fitted[-1], folder / "reconstructions.png")
    for name in ("gallery", "map"):
        shutil.copy(out / f"fit/lapa/pictures/{name}.png", folder / f"{name}.png")
    _films(out, folder)
    if "unipi" in results["methods"]:
        shutil.copy(out / "policy/unipi/pictures/futures.png", folder / "futures.png")
    packed = pack([f"lerobot:{out}/data/videos"], preset("laptop").laq.image_size, quiet=True)
    contact_sheet(packed, folder / "contact_sheet.png")
    _rollout(packed, out, folder / "rollout.png")


def _films(out: Path, folder: Path) -> None:
    """The same scenes for several methods: the first two, and the first in which LAPA failed. Each is a film, such as
    `scene_3_vpt.gif`, with its outcome in a JSON file beside it."""
    outcomes = read_json(out / "eval/lapa/results.json", "evaluation of LAPA")["outcomes"]
    recorded = [i for i in range(len(outcomes)) if (out / f"eval/lapa/episode_{i}.gif").exists()]
    failed = [i for i in recorded if not outcomes[i]["success"] and i > 1]
    for i in (*recorded[:2], *failed[:1]):
        for method, kind in itertools.product(FILMED, ("gif", "json")):
            shutil.copy(out / f"eval/{method}/episode_{i}.{kind}", folder / f"scene_{i}_{method}.{kind}")


def _rollout(packed: Packed, out: Path, path: Path) -> None:
    """What latent policy and decoder imagine in closed loop from the first frame of an episode, beside the real frames.

    The episode is the first one of median length; it is not chosen by its result.
    """
    lengths = np.diff(packed.starts)
    episode = int(np.argmax(lengths == int(np.median(lengths))))
    real = packed.gather(np.arange(packed.starts[episode], packed.starts[episode + 1]))
    policy, laq = Policy.from_pretrained(out / "latent/lapa"), LAQ.from_pretrained(out / "fit/lapa")
    dreamt = imagine(policy, laq, real[0], packed.instructions[episode], len(real) - 1)
    rollout_strip(real, dreamt, path, f'"{packed.instructions[episode]}": real, and imagined by policy and decoder')


def _say(results: dict[str, Any], report: Path) -> None:
    print(f"\nVideos of {VIDEOS_OF[results['settings']['setting']]}, {results['settings']['labels']} labelled "
          "trajectories of the robot. Success (95% interval):")  # fmt: skip
    for name, row in results["methods"].items():
        print(f"  {name:<10} {told(row)}")
    closed = gap_closed(results["methods"])
    if closed is not None:
        print(f"LAPA closes {closed:.0%} of the gap from Scratch to ActionVLA.")
    if verdict := vpt_verdict(results["methods"]):
        print(verdict)
    print(ELSEWHERE[results["settings"]["setting"]])
    print(f"Report: {report}\nFigures: {report.parent}/results.json")
    print("Next, your own videos: lapa quantize --dataset video_folder:clips/ --preset video --out runs/laq")
