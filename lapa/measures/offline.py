"""The open-loop error of a policy's actions on recorded episodes, for robots that have no benchmark.

At each frame the policy is asked for its chunk of actions, and these are compared with the recorded ones. The unit
of an error is the error of always giving the mean action, so that row is 1. Each dimension counts alike. Beside the
policy stand rows that need no policy: holding the state (no motion), the mean action, and a ridge regression on the
state and a small picture. A policy that is no better than these has learnt nothing of use.

The error is open-loop: it says how near an action is to the expert's in the expert's situations. It does not say where
the policy's own actions lead. Success needs a low error, but a low error does not guarantee success.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lapa.contracts import ActionKind, Array, LapaError, Observation, PolicySpec
from lapa.data.images import resized
from lapa.data.pack import Packed
from lapa.measures.intervals import by_episode
from lapa.measures.linear import LinearFit
from lapa.measures.motion import PIXELS, kinds_of

MOST = 1500  # frames that a policy is asked about, evenly spread
FITTED = 2000  # frames that the ridge regression is fitted on
AT_ONCE = 64
SHORT = 0.7  # of the expert's steps: a policy that makes shorter ones may stall
POLICY, HOLD, MEAN, RIDGE = "policy", "hold the state", "mean action", "ridge regression"


class BatchActor(Protocol):
    """What is asked of a policy here."""

    def act_batch(self, observations: Sequence[Observation]) -> Array: ...


@dataclass(frozen=True)
class Recorded:
    """Frames int64 [N] of some episodes and what was done from there on: actions float64 [N, C, A] with known bool
    [N, C], False past the end of the episode, where the last action is repeated."""

    packed: Packed
    frames: Array
    episode: Array
    actions: Array
    known: Array

    @property
    def state(self) -> Array | None:
        """float64 [N, S] at the frames."""
        return None if self.packed.state is None else self.packed.state[self.frames].astype(np.float64)

    @property
    def before(self) -> Array:
        """The action before each frame, float64 [N, A]; at the first frame of an episode NaN."""
        assert self.packed.actions is not None
        before = self.packed.actions[np.maximum(self.frames - 1, 0)].astype(np.float64)
        before[self.packed.starts[self.episode] == self.frames] = np.nan
        return before


def recorded(packed: Packed, episodes: Array, chunk: int, most: int = MOST) -> Recorded:
    """Frames of these episodes int64 [E] that have an action; at most `most`, evenly spread.

    Raises LapaError without actions, and where no episode has two frames."""
    actions = packed.require_actions("the offline error")
    spans = [np.arange(packed.starts[e], packed.starts[e + 1] - 1) for e in episodes]
    frames = np.concatenate(spans) if spans else np.empty(0, np.int64)
    if not len(frames):
        raise LapaError(f"{packed.spec}: no episode to judge the actions by has two frames.")
    if len(frames) > most:
        frames = frames[np.linspace(0, len(frames) - 1, most).round().astype(int)]
    episode = packed.episode_of(frames)
    ahead = frames[:, None] + np.arange(chunk)
    last = packed.starts[episode + 1][:, None] - 2
    return Recorded(packed, frames, episode, actions[np.minimum(ahead, last)].astype(np.float64), ahead <= last)


def asked(policy: BatchActor, some: Recorded, spec: PolicySpec | None = None) -> Array:
    """The policy's chunks float64 [N, C', A] at the frames; `spec`: what it needs to be shown (None: one picture and
    the instruction). Raises LapaError where it speaks other actions, and for numbers that are not finite."""
    packed, parts = some.packed, []
    for start in range(0, len(some.frames), AT_ONCE):
        frames = some.frames[start : start + AT_ONCE]
        parts.append(np.asarray(policy.act_batch(observations(packed, frames, spec)), np.float64))
    said = np.concatenate(parts)
    if said.shape[2] != some.actions.shape[2]:
        raise LapaError(
            f"{packed.spec} has actions of {some.actions.shape[2]} dimensions; the policy gives {said.shape[2]}."
        )
    if not np.isfinite(said).all():
        raise LapaError("The policy answered with a number that is not finite; that has no error. Train it anew.")
    return said


def observations(packed: Packed, frames: Array, spec: PolicySpec | None) -> list[Any]:
    """What a policy is shown at frames int64 [B] of a dataset, one at a time: contracts.Observation."""
    cameras = spec.cameras if spec is not None else ()
    if len(cameras) > 1:
        views = {camera: packed.gather(frames, camera) for camera in cameras}
        shown: list[dict[str, Any]] = [
            {"images": {camera: view[i] for camera, view in views.items()}} for i in range(len(frames))
        ]
    else:
        shown = [{"image": picture} for picture in packed.gather(frames)]
    reads_state = spec is not None and bool(spec.state) and packed.state is not None
    for one, frame, episode in zip(shown, frames, packed.episode_of(frames), strict=True):
        one["instruction"] = packed.instructions[episode]
        if reads_state and packed.state is not None:
            one["state"] = packed.state[frame]
    return shown


def beside(some: Recorded, kinds: Sequence[ActionKind], fit: Recorded | None) -> dict[str, Array]:
    """What rows that need no policy give in place of the recorded actions, float64 [N, C, A], fitted on the frames
    `fit` (None: no ridge regression, and the mean is of `some` itself)."""
    source = fit or some
    chunk = some.actions.shape[1]
    mean = _mean(source, kinds)
    made = {HOLD: np.repeat(_held(some, kinds, mean)[:, None], chunk, 1)}
    made[MEAN] = np.broadcast_to(mean, some.actions.shape)
    if fit is not None:
        read = LinearFit.fit(_seen(fit), fit.actions.reshape(len(fit.frames), -1), fit.episode)
        made[RIDGE] = read(_seen(some)).reshape(some.actions.shape)
    return made


def _mean(some: Recorded, kinds: Sequence[ActionKind]) -> Array:
    """The mean action float64 [A]; of a switch its more frequent end."""
    first = some.actions[:, 0]
    mean = first.mean(0)
    for i in np.flatnonzero(np.array(kinds) == "binary"):
        low, high = first[:, i].min(), first[:, i].max()
        mean[i] = high if (first[:, i] > (low + high) / 2).mean() > 0.5 else low
    return mean


def _held(some: Recorded, kinds: Sequence[ActionKind], mean: Array) -> Array:
    """No motion, float64 [N, A]: deltas of 0; the present state, or the target before, of absolute ones; a switch as it
    was."""
    of, before, state = np.array(kinds), some.before, some.state
    before = np.where(np.isnan(before), mean, before)
    held = np.where(of == "delta", 0.0, before)
    if state is not None and state.shape[1] == held.shape[1]:
        held = np.where(of == "absolute", state, held)
    return held


def _seen(some: Recorded) -> Array:
    """The small picture and the state, each number over how much it varies together with its kind: float64 [N, F]."""
    size = min(PIXELS, some.packed.image_size)
    small = np.stack([resized(frame, size).ravel() / 255 for frame in some.packed.gather(some.frames)])
    if some.state is None:
        return small
    assert some.packed.state is not None
    spread = some.packed.state.std(0).astype(np.float64) + 1e-9
    # As heavy as all pixels together, so that one penalty suits both.
    weight = np.sqrt(small.shape[1] / some.state.shape[1]) * 0.25
    return np.hstack([small, weight * (some.state - some.packed.state.mean(0)) / spread])


def table(some: Recorded, kinds: Sequence[ActionKind], given: dict[str, Array]) -> dict[str, dict[str, Any]]:
    """The figures of each row that gives float64 [N, C, A], which must have the row MEAN:

    error      mean of the dimensions, each over that of the mean action; interval: 95% of it, over episodes
    by_step    the same at each step of the chunk; by_dimension: of each dimension, None where nothing varies
    absolute   mean absolute error of each dimension, in the robot's units
    step       mean length of its motion over that of the recorded one; None where nothing moves. Switches are left out
    """
    known = some.known[..., None]
    unit = (np.abs(given[MEAN] - some.actions) * known).sum((0, 1)) / known.sum((0, 1))
    varies = (unit > 1e-9) & ~_at_rest(some, kinds, unit)
    if not varies.any():
        raise LapaError(f"{some.packed.spec}: the recorded actions do not vary, so there is nothing to predict.")
    moved = _motion(some, kinds)
    true_length = _length(moved(some.actions), some.known)
    found = {}
    for name, actions in given.items():
        missed = np.abs(actions - some.actions) * known
        each = missed.sum((0, 1)) / known.sum((0, 1))
        share = np.where(varies, missed / np.where(varies, unit, 1), 0).sum(2) / varies.sum()  # [N, C]
        of_row, steps = share.sum(1), some.known.sum(1)

        def error(weight: Array, of_row: Array = of_row, steps: Array = steps) -> float:
            return float((of_row * weight).sum() / max((steps * weight).sum(), 1e-9))

        length = _length(moved(actions), some.known)
        found[name] = {
            "error": error(np.ones(len(of_row))),
            "interval": by_episode(some.episode, error, draws=400),
            "by_step": (share.sum(0) / np.maximum(some.known.sum(0), 1)).tolist(),
            "by_dimension": [float(e / u) if v else None for e, u, v in zip(each, unit, varies, strict=True)],
            "absolute": each.tolist(),
            "step": length / true_length if true_length > 1e-9 else None,
        }
    return found


def _at_rest(some: Recorded, kinds: Sequence[ActionKind], unit: Array) -> Array:
    """Dimensions in which the expert rests, bool [A]: a parked joint. Their targets vary by rounding alone, or far less
    than the state beside them does; over so small a unit any error is without bounds."""
    rests = unit <= 1e-6 * np.abs(some.actions).max((0, 1))
    if some.state is not None and some.state.shape[1] == len(unit):
        ahead = some.actions[:, 0] - some.state
        noise = np.abs(ahead - ahead.mean(0)).mean(0)
        rests |= (np.array(kinds) == "absolute") & (unit < 0.25 * noise)
    return rests


def _motion(some: Recorded, kinds: Sequence[ActionKind]) -> Callable[[Array], Array]:
    """From actions float64 [N, C, A] to how far they go from where the robot is, each dimension over its spread."""
    of, state = np.array(kinds), some.state
    origin = np.zeros((len(some.frames), len(of)))
    if (of == "absolute").any():
        at = state if state is not None and state.shape[1] == len(of) else _held(some, kinds, _mean(some, kinds))
        origin = np.where(of == "absolute", at, 0.0)
    go = some.actions - origin[:, None]
    spread = np.sqrt(np.square(go)[some.known].mean(0))
    scale = np.where((of != "binary") & (spread > 1e-9), 1 / np.maximum(spread, 1e-9), 0.0)
    return lambda actions: (actions - origin[:, None]) * scale


def _length(motion: Array, known: Array) -> float:
    return float(np.linalg.norm(motion, axis=2)[known].mean())


def offline(
    policy: BatchActor,
    packed: Packed,
    episodes: Array,
    fit: tuple[Packed, Array] | None,
    spec: PolicySpec | None = None,
    most: int = MOST,
) -> dict[str, Any]:
    """The table of a policy on these episodes int64 [E] of a dataset; `fit`: a dataset and the episodes of it on which
    the rows without a policy are fitted; `spec`: what the policy is shown; `most`: frames that it is asked about.

    {"rows": `table`, "names", "kinds", "chunk", "frames", "episodes", "verdict"}. Raises LapaError where the actions do
    not fit."""
    first = recorded(packed, episodes, 1, most)
    said = asked(policy, first, spec)
    some = recorded(packed, episodes, said.shape[1], most)
    kinds = kinds_of(packed)
    base = None if fit is None else recorded(fit[0], fit[1], said.shape[1], FITTED)
    found = table(some, kinds, {POLICY: said, **beside(some, kinds, base)})
    names = (
        packed.action_names if len(packed.action_names) == len(kinds) else [f"action_{i}" for i in range(len(kinds))]
    )
    return {
        "rows": found,
        "names": list(names),
        "kinds": list(kinds),
        "chunk": int(said.shape[1]),
        "frames": len(some.frames),
        "episodes": len(np.unique(some.episode)),
        "verdict": verdict(found),
    }


def verdict(found: dict[str, dict[str, Any]], name: str = POLICY) -> str:
    """In words: is the policy better than what needs none, and does it move as far as the expert?"""
    own = found[name]["error"]
    ahead = [f"{row} ({found[row]['error']:.2f})" for row in found if row != name and found[row]["error"] <= own]
    words = (
        f"The policy is off by {own:.2f} of what the mean action is: "
        + (f"no better than {', '.join(ahead)}." if ahead else "better than every row that needs no policy.")
    )  # fmt: skip
    step = found[name]["step"]
    if step is not None and step < SHORT:
        words += f" Its steps are {step:.2f} times as long as the expert's: the arm may stall."
    return words


def nearest(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Of several rows of `table` the one with the least error among those whose steps are not too SHORT; where all are,
    the one with the longest steps. The first of equals."""
    long = [name for name, row in found.items() if row["step"] is None or row["step"] >= SHORT]
    if long:
        return min(long, key=lambda name: found[name]["error"])
    return max(found, key=lambda name: found[name]["step"])


def lines(result: Mapping[str, Any]) -> list[str]:
    """The table for people."""
    found, chunk = result["rows"], result["chunk"]
    wide = max(map(len, found))
    ends = "" if chunk == 1 else f"  step 1  step {chunk}"
    shown = [f"{'':<{wide}}  error  95% over episodes  step length{ends}"]
    for name, row in found.items():
        step = "-" if row["step"] is None else f"{row['step']:.2f}"
        ends = "" if chunk == 1 else f"  {row['by_step'][0]:6.2f}  {row['by_step'][-1]:6.2f}"
        shown.append(f"{name:<{wide}}  {row['error']:5.2f}  {interval(row, result):^18}  {step:>11}{ends}")
    each = zip(result["names"], found[POLICY]["absolute"], found[POLICY]["by_dimension"], strict=True)
    shown.append("policy, by dimension (mean absolute error in the robot's units, of the mean action's): "
                 + ", ".join(f"{n} {a:.3g} ({'-' if b is None else f'{b:.2f}'})" for n, a, b in each))  # fmt: skip
    return [*shown, result["verdict"]]


def interval(row: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The interval of a row of a result as text. One episode has nothing to resample: it tells of no other."""
    low, high = row["interval"]
    return "one episode" if result["episodes"] == 1 else f"{low:.2f} to {high:.2f}"
