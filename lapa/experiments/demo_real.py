"""`lapa demo-real`: the whole method in a world that others wrote, with weights that others pretrained.

Meta-World's own expert makes the videos, backbone `pieces` reads pictures and words, four methods are trained on the
same few labelled trajectories, and a film shows them side by side in the same scenes. `demo` is the same on Tabletop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageSequence

from lapa.artefacts.folder import read_json, write_json
from lapa.contracts import Array, LapaError
from lapa.experiments.compare import QUICK, Comparison, gap_closed, gather, plan, told
from lapa.experiments.demo import begin
from lapa.experiments.schedule import PlanStep, run
from lapa.experiments.worlds import WORLDS, written
from lapa.plots.codes import METHOD_NAMES, animation, success_bars
from lapa.plugins import require

METHODS = ("scratch", "vpt", "lapa", "actionvla")
TASKS = "reach-v3+push-v3+pick-place-v3"  # door-open and button-press are solved by a blind policy
WORLD = WORLDS["metaworld"]
LESS = ("pretrain.steps=1200", "finetune.steps=1000", "finetune.learning_rate=5e-4")  # to be done in 20 minutes
SETTINGS = (*WORLD.recipe, *LESS, "replay=0")  # with so few steps each stage learns its own data alone
FILMS, FPS = 9, 20.0  # episodes of each method that are recorded; frames a second of a film


@dataclass(frozen=True)
class RealDemoSettings:
    """The options of `lapa demo-real`. `labels`: how many of the `videos` are labelled."""

    videos: int = 150
    labels: int = 30
    episodes: int = 60
    seed: int = 0
    quick: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.labels <= self.videos:
            raise LapaError(f"1 to {self.videos} of the videos are labelled, not {self.labels}.")

    def used(self) -> RealDemoSettings:
        """What is really run: little of it with `quick`."""
        return replace(self, videos=12, labels=min(self.labels, 12), episodes=6) if self.quick else self


def run_demo_real(settings: RealDemoSettings, out: Path, workers: int = 0) -> dict[str, Any]:
    """Run what is missing, write `out/results.json`, `out/success.png` and `out/scene_*.gif`, return the results.

    Raises LapaError when `out` holds a demo with other settings, and where Meta-World is not installed.
    """
    require("benchmarks", "metaworld")
    begin(asdict(settings), out)
    steps = demo_real_plan(settings, out)
    print(f"{len(steps)} steps into {out}; each is a lapa command you could type, with its log in {out}/logs.")
    seconds = run(steps, out, workers)
    results = {
        "methods": gather((*METHODS, "expert"), out),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "settings": {
            **asdict(settings.used()),
            "commands": {step.name: "lapa " + " ".join(step.command) for step in steps},
        },
    }
    write_json(out / "results.json", results)
    success_bars(results["methods"], out / "success.png", f"Meta-World, {settings.used().labels} labelled trajectories")
    recorded = len(list((out / "eval" / METHODS[0]).glob("episode_*.gif")))
    films = [side_by_side(out, scene) for scene in range(recorded)]
    _say(results, films)
    return results


def demo_real_plan(settings: RealDemoSettings, out: Path) -> list[PlanStep]:
    """Collect the data, then the plan of `lapa compare`."""
    name, each, options = WORLD.home(f"metaworld:{TASKS}")
    tasks, shown = written(name, each, options), written(name, each, {**options, **WORLD.shown})
    path, used = out / "data", settings.used()
    collect = ("collect", "--benchmark", shown, "--episodes", str(used.videos), "--noise", WORLD.noise, "--workers",
               "2", "--seed", str(settings.seed), "--out", str(path))  # fmt: skip
    data = PlanStep("data", collect, path, path / "meta" / "info.json", (), 300)
    labelled = f"lerobot:{path},episodes=0-{used.labels - 1}"
    setting = Comparison(
        (f"lerobot:{path}",), (labelled,), tasks, used.episodes, settings.seed,
        ("--preset", WORLD.preset, *_set(SETTINGS), *(QUICK if settings.quick else ())), min(FILMS, used.episodes),
    )  # fmt: skip
    return [data, *plan(METHODS, setting, out, ("expert",), ("data",))]


def _set(options: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for option in options for part in ("--set", option))


def side_by_side(out: Path, scene: int, methods: Sequence[str] = METHODS) -> Path:
    """A film of all methods in one scene, `out/scene_SCENE.gif`. Above each is its name and how the episode ended;
    one that has ended waits for the others."""
    films = [_frames(out / f"eval/{name}/episode_{scene}.gif") for name in methods]
    ended = [read_json(out / f"eval/{name}/episode_{scene}.json", "episode") for name in methods]
    longest = max(map(len, films))
    rows = [
        np.concatenate([_caption(f"{METHOD_NAMES.get(name, name)}: {_end(how)}", film.shape[2], how["success"]), frame])
        for name, film, how in zip(methods, films, ended, strict=True)
        for frame in [*film, *[film[-1]] * (longest - len(film))]
    ]
    together = np.concatenate(np.split(np.stack(rows), len(methods)), 2)
    path = out / f"scene_{scene}.gif"
    animation(together, path, FPS)
    return path


def _frames(path: Path) -> Array:
    with Image.open(path) as film:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)])


def _end(how: Mapping[str, Any]) -> str:
    if how["success"]:
        return f"success, step {how['steps']}"
    return f"failed{', ' + how['stages'][-1] if how['stages'] else ''}"


def _caption(text: str, width: int, success: bool) -> Array:
    image = Image.new("RGB", (width, 16), (223, 240, 223) if success else (248, 222, 222))
    ImageDraw.Draw(image).text((4, 2), text, (20, 20, 20))
    return np.asarray(image)


def _say(results: Mapping[str, Any], films: Sequence[Path]) -> None:
    settings = results["settings"]
    print(f"\nMeta-World, {settings['videos']} videos, {settings['labels']} of them labelled, backbone pieces "
          "(nothing of these tasks was told to it). Success (95% interval):")  # fmt: skip
    for name, row in results["methods"].items():
        print(f"  {name:<10} {told(row)}")
        for family, part in row["families"].items():
            far = "".join(f"  {stage} {share:.0%}" for stage, share in part.get("stages", {}).items())
            print(f"    {family:<16} {part['success']:6.1%}{far}")
    closed = gap_closed(dict(results["methods"]))
    if closed is not None:
        print(f"LAPA closes {closed:.0%} of the gap from Scratch to ActionVLA.")
    if settings["quick"]:
        print("This was a rehearsal (--quick): the figures mean nothing.")
    print(f"Films of the four methods in the same scenes: {films[0]} and {len(films) - 1} more beside it.")
