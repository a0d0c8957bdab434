"""A playable world model: the decoder draws what a code does to a frame, and its picture is the next input.

Each function returns a new state; none changes one. Pictures stay float tensors, as in analysis/rollout.py: they are
rounded only to be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lapa.analysis.reading import effector, in_picture
from lapa.contracts import Array, LapaError
from lapa.data.pixels import as_pixels
from lapa.explorer.opened import Code, Explored
from lapa.measures.flow import COLUMNS, ROWS
from lapa.measures.probes import one_hot
from lapa.policies import Policy

STEPS = 6  # codes that a policy names one after another


@dataclass(frozen=True)
class Play:
    """`frame`: where it began, counted over all videos. pictures: float [1, 3, S, S] in [0, 1], the real frame and one
    for each code."""

    frame: int
    pictures: tuple[torch.Tensor, ...]
    codes: tuple[Code, ...] = ()

    @property
    def now(self) -> torch.Tensor:
        """The newest picture."""
        return self.pictures[-1]


def begin(run: Explored, frame: int) -> Play:
    """At a real frame."""
    laq = run.source.laq
    return Play(frame, (as_pixels(run.packed.gather(np.array([frame])), laq.config.image_size, laq.device),))


def press(run: Explored, play: Play, code: Code) -> Play:
    """The decoder draws what the code does to the newest picture."""
    drawn = run.source.laq.decode(play.now, np.array([code], np.int64))
    return replace(play, pictures=(*play.pictures, drawn), codes=(*play.codes, code))


def undo(play: Play) -> Play:
    """One code less."""
    return replace(play, pictures=play.pictures[: max(1, len(play.codes))], codes=play.codes[:-1])


def back(play: Play) -> Play:
    """To the real frame."""
    return replace(play, pictures=play.pictures[:1], codes=())


def shown(pictures: Sequence[torch.Tensor]) -> Array:
    """float [1, 3, S, S] each -> uint8 [N, S, S, 3]."""
    stacked = torch.cat(list(pictures))
    made: Array = (stacked.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return made


def really(run: Explored, play: Play) -> list[int]:
    """The real frames of the video at the moments of the pictures, as far as the video goes: 1 to len(pictures)."""
    frames = [play.frame]
    while len(frames) < len(play.pictures) and (after := run.later(frames[-1])) is not None:
        frames.append(after)
    return frames


def own_code(run: Explored, play: Play) -> Code | None:
    """The code that LAQ reads in the real video at the moment of the newest picture; None where the video has ended."""
    frames = really(run, play)
    after = run.later(frames[-1]) if len(frames) == len(play.pictures) else None
    return None if after is None else code_between(run, frames[-1], after)


def code_between(run: Explored, now: int, later: int) -> Code:
    """The code of two real frames."""
    frames = run.packed.gather(np.array([now, later]))
    return tuple(run.source.laq.encode(frames[:1], frames[1:])[0].tolist())


@dataclass(frozen=True)
class Planned:
    """What a policy means to do from a picture on, without a robot: `codes`, what the decoder draws of them
    (uint8 [K + 1, S, S, 3], the first being the picture), their mean optical flow (float [K, 2, rows, columns]) and the
    way (float [K + 1, 2], shares of the picture) of `what`; the last two None where nothing tells them. `notes`: what
    the policy overlooks in the instruction."""

    text: str
    codes: tuple[Code, ...]
    pictures: Array
    flow: Array | None
    way: Array | None
    what: str
    notes: tuple[str, ...]


def policy_code(run: Explored, picture: torch.Tensor, text: str) -> Code:
    """The code that the policy names for a picture float [1, 3, S, S] and an instruction. Raises LapaError without a
    policy, and for one that needs more than a picture."""
    if run.policy is None:
        raise LapaError(f"No policy of {run.name} was given: lapa explore {run.run.path} --policy FOLDER.")
    if isinstance(run.policy, Policy) and (len((spec := run.policy.spec).cameras) > 1 or spec.state):
        needs = f"the cameras {', '.join(spec.cameras)}" + (" and the state" if spec.state else "")
        raise LapaError(f"{run.policy_name} reads {needs}; what the decoder draws is the picture of one camera.")
    return tuple(run.policy.predict_codes(picture, [text])[0].tolist())


def plan(run: Explored, play: Play, text: str, steps: int = STEPS) -> Planned:
    """What the policy does from the newest picture on: it names a code, the decoder draws, and so on."""
    imagined = Play(play.frame, play.pictures[-1:])
    for _ in range(steps):
        imagined = press(run, imagined, policy_code(run, imagined.now, text))
    codes = np.array(imagined.codes, np.int64)
    overlooked: list[str] = run.policy.overlooked([text]) if isinstance(run.policy, Policy) else []
    return Planned(
        text=text,
        codes=imagined.codes,
        pictures=shown(imagined.pictures),
        flow=flow_of(run, codes),
        way=way_of(run, play, codes),
        what=run.way.what if run.way else "",
        notes=tuple(overlooked),
    )


def flow_of(run: Explored, codes: Array) -> Array | None:
    """Codes int64 [K, s] -> the optical flow that they mean, float64 [K, 2, rows, columns], by a linear probe on the
    pairs of the videos. None where there is no probe."""
    if run.flow is None:
        return None
    return run.flow.probe(one_hot(codes, run.size)).reshape(-1, 2, ROWS, COLUMNS)


def way_of(run: Explored, play: Play, codes: Array) -> Array | None:
    """Codes int64 [K, s] from the newest picture on -> the way that they mean, float64 [K + 1, 2] in shares of the
    picture: of the effector where the state says where it was, else of the point that moves most. None where nothing
    tells it."""
    if run.way is None or not len(codes):
        return None
    past = np.array(play.codes, np.int64).reshape(-1, run.positions)
    if in_picture(run.packed):
        start, before = effector(run.packed)[play.frame], past
    else:
        start, before = _fastest(run, codes[:1]), past[:0]
    way = [start]
    for code in (*before, *codes):
        way.append(way[-1] + run.way.step(one_hot(code[None], run.size), way[-1][None])[0])
    return np.clip(np.array(way[len(before) :]), 0, 1)


def _fastest(run: Explored, code: Array) -> Array:
    """The middle of the cell that moves most by this code."""
    flow = flow_of(run, code)
    assert flow is not None
    i, j = np.unravel_index(np.linalg.norm(flow[0], axis=0).argmax(), (ROWS, COLUMNS))
    return np.array([(j + 0.5) / COLUMNS, (i + 0.5) / ROWS])
