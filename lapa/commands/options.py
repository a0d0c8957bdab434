"""What several commands share: options, opening data and recipes, and what is printed."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lapa.contracts import LapaError

if TYPE_CHECKING:
    from lapa.data.images import Fit
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
Benchmark = Annotated[
    str,
    tyro.conf.arg(
        metavar="NAME[:PATH][,OPTION=VALUE]",
        help="where policies are tried, such as tabletop:sim,split=unseen; `lapa list` names those that there are",
    ),
]
Seed = Annotated[int, tyro.conf.arg(help="seed of everything random")]
Preset = Annotated[
    str,
    tyro.conf.arg(
        help="named settings, the same in every command of a run: laptop (for Tabletop, minutes on a CPU), video (for "
        "your own videos and robots) or paper (the released settings, for GPUs); `lapa list` says more"
    ),
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
    bool,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.arg(help="go on from the checkpoint in --out, also for more --steps than before; done already is fine"),
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


@dataclass(frozen=True)
class Training:
    """Options of every stage, besides its data and its folder."""

    preset: Preset = "laptop"
    steps: Steps = None
    seed: Seed = 0
    log: Log = "none"
    resume: Resume = False
    skip_bad: SkipBad = False
    set: Options = ()

    def recipe(self, stage: str = "", *more: str) -> Recipe:
        """The preset with the options, those in `more` too; for a stage also with `steps` and `log` (recipe_of)."""
        stages = (stage, self.steps, self.log) if stage else ()
        return recipe_of(self.preset, (*self.set, *more), *stages)


How = Annotated[Training, tyro.conf.arg(name="")]


def at_least_one(dataset: tuple[str, ...]) -> tuple[str, ...]:
    """The datasets. Raises LapaError where none was given."""
    if not dataset:
        raise LapaError("Give at least one --dataset NAME:PATH, such as video_folder:clips/ or lerobot:data/.")
    return dataset


def split_names(given: tuple[str, ...]) -> tuple[str, ...]:
    """ "lapa,vpt" or "lapa" "vpt" -> the two names."""
    return tuple(name for part in given for name in part.split(",") if name)


def streamed(stream: int | None) -> dict[str, int]:
    """--stream for run.json; {} where a pack is read. Raises LapaError for no memory at all."""
    if stream is not None and stream < 1:
        raise LapaError(f"--stream is at least 1 MB, such as 1000, not {stream}. For a pack on disk leave it out.")
    return {} if stream is None else {"stream": stream}


def open_pack(
    dataset: tuple[str, ...], image_size: int, skip_bad: bool, fit: Fit = "squash", cameras: Sequence[str] = ()
) -> Packed:
    """Pack the datasets (data/pack.py) and print what was found."""
    from lapa.data.pack import pack

    return _opened(partial(pack, fit=fit, cameras=cameras), dataset, image_size, skip_bad)


def open_stream(dataset: tuple[str, ...], image_size: int, skip_bad: bool, fit: Fit = "squash") -> Stream:
    """Open the datasets as a stream (data/stream.py) and print what was found."""
    from lapa.data.stream import stream

    return _opened(partial(stream, fit=fit), dataset, image_size, skip_bad)


def _opened(read: Callable[..., Any], dataset: tuple[str, ...], image_size: int, skip_bad: bool) -> Any:
    from lapa.data.index import tell
    from lapa.runtime.distributed import once_a_machine

    found = once_a_machine(lambda: read(at_least_one(dataset), image_size, skip_bad=skip_bad))
    tell(found)
    return found


def recipe_of(
    preset: str, options: tuple[str, ...], stage: str = "", steps: int | None = None, log: str = "none"
) -> Recipe:
    """The preset with `--set` options, and with `--steps` and `--log` for a stage, a setting such as "pretrain"."""
    from lapa.recipe import overridden
    from lapa.recipe import preset as named
    from lapa.training.logbook import require

    short = ([f"{stage}.steps={steps}"] if steps is not None else []) + (
        [f"{stage}.log={log}"] if log != "none" else []
    )
    recipe = overridden(named(preset), (*options, *short))
    if stage:
        require(getattr(recipe, stage).log)  # before minutes are spent on reading videos
    return recipe


def note_on_policy(preset: str, recipe: Recipe) -> None:
    """Print on stderr what users must know of the policy of a preset."""
    from lapa.data.observations import say_once
    from lapa.recipe import NOTES

    if preset in NOTES:
        say_once(NOTES[preset].format(backbone=recipe.policy.backbone, pixels=recipe.policy_image_size))


def print_results(results: dict[str, Any]) -> None:
    """One figure in each line, with its meaning."""
    from lapa.measures.motion import lines
    from lapa.measures.probes import MEANING

    for name, value in results.items():
        if isinstance(value, dict):  # the headline of stage 1 comes last
            continue
        values = value if isinstance(value, list) else [value]
        shown = ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        print(f"  {name:<20} {shown:<16} {MEANING.get(name, '')}".rstrip())
    if "motion" in results:
        print("\n".join(lines(results["motion"])))


def print_table(results: dict[str, Any]) -> None:
    """The success of each method."""
    from lapa.experiments.compare import told

    for name, row in results.items():
        print(f"  {name:<10} {told(row)}")


def print_watch(out: Path) -> None:
    """How to follow the run that starts now."""
    print(f"Watch: tensorboard --logdir {quoted(out)}, or lapa inspect {quoted(out)}")


def quoted(path: Path | str) -> str:
    """A path as a shell takes it, for the next command."""
    return shlex.quote(str(path))


def again(dataset: tuple[str, ...], option: str = "--dataset") -> str:
    """The same --dataset options, for the next command, or another option with the same data."""
    return " ".join(f"{option} {quoted(spec)}" for spec in dataset)


def same_preset(preset: str) -> str:
    """The same --preset, for the next command."""
    return "" if preset == "laptop" else f" --preset {preset}"


def print_next(command: str) -> None:
    """The command that comes next."""
    print(f"Next: {command}")


def refuse_changed(given: dict[str, Any], owner: str, command: Callable[..., Any]) -> None:
    """Raise LapaError for the first option of the command that differs from its default: only `owner` can use it."""
    for name, value in given.items():
        if value != inspect.signature(command).parameters[name].default:
            raise LapaError(f"--{name.replace('_', '-')} belongs to {owner}. Leave it out.")
