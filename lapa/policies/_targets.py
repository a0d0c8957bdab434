"""What a policy of classes or numbers learns from labels: chunks of codes and of actions, and the space they lie in.

A label is of one frame. A chunk has the labels of the frames behind it too: of an action those of the next frames, of
codes those that begin where the window before them ends.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lapa.actions.codebook import ActionCodebook
from lapa.actions.meaning import Meaning
from lapa.actions.numbers import NumberSpace
from lapa.actions.saved import Space
from lapa.actions.spaces import ActionSpace
from lapa.contracts import ActionSpec, Array, Labels, LapaError, Logs
from lapa.data.index import Index
from lapa.recipe import Recipe

SLACK, FEW = 0.05, 0.1  # of a range: no farther outside is inside; of the actions: no more outside is not told
AROUND = 0.1  # of a turn: a jump of nearly a turn
LITTLE = 0.3  # R^2 below which the user hears that reading is not enough
STILL = 0.25  # of the range of labelled actions: a head that answers in no more of it has held still
PART = 0.2  # of the numbers that move: where no more are answered in another range, a kept head goes on
SAME_RATE = 1.02  # times as fast, and no faster


def codes_ahead(labels: Labels, offsets: Array, windows: int) -> Array:
    """The codes of so many windows, one behind the other: int64 [N, windows * s], -100 where the video ends before.
    offsets int64 [E]: frames in a window of each episode."""
    rows, known = _behind(labels, offsets[labels.episode], windows)
    return np.where(known[..., None], labels.values[rows], -100).reshape(len(rows), -1)


def actions_ahead(labels: Labels, chunk: int, meaning: Meaning | None) -> tuple[Array, Array]:
    """Labels of actions -> chunks float32 [N, chunk, A] and bool [N, chunk]: those that do not exist. Labels that are
    changes of an absolute action add up to how far that is from the present state."""
    rows, known = _behind(labels, np.ones(len(labels.episode), np.int64), chunk)
    values = labels.values[rows]
    if meaning and any(meaning.relative):
        which = np.array(meaning.relative)
        values[..., which] = np.cumsum(np.where(known[..., None], values[..., which], 0), 1)
    return values.astype(np.float32), ~known


def _behind(labels: Labels, step: Array, count: int) -> tuple[Array, Array]:
    """Rows int64 [N, count] of the labels 0, step, 2 step, .. frames behind each label, and bool [N, count]: whether
    there is one, and all before it."""
    span = int(labels.frame.max()) + 1 + int(step.max()) * count
    at = labels.episode.astype(np.int64) * span + labels.frame
    order = np.argsort(at, kind="stable")
    wanted = at[:, None] + step[:, None] * np.arange(count)
    found = np.minimum(np.searchsorted(at[order], wanted), len(at) - 1)
    rows = order[found]
    return rows, np.logical_and.accumulate(at[rows] == wanted, 1)


def space_of_actions(
    actions: Array, pad: Array, recipe: Recipe, names: tuple[str, ...], numbers: bool
) -> ActionSpace | ActionCodebook | NumberSpace:
    """A space for chunks of actions [N, chunk, A]: numbers, or classes as the recipe says, clusters or bins. pad bool
    [N, chunk]: actions that do not exist."""
    if numbers:
        return NumberSpace.fit(actions, names, pad)
    if recipe.clusters:
        return ActionCodebook.clusters(actions, recipe.clusters, names, pad if pad.any() else None)
    # Of all steps: how far a target is from the present state grows along the chunk.
    return ActionSpace.fit(actions[~pad], recipe.bins, actions.shape[1], names)


def kept_space(
    space: ActionSpace | ActionCodebook | NumberSpace, actions: Array, pad: Array
) -> tuple[ActionSpace | ActionCodebook | NumberSpace, bool]:
    """What a head that is kept answers in stage 3, given labelled chunks [N, chunk, A], pad bool [N, chunk]; and
    whether what it has learnt still means the same.

    Where many labels lie outside what it could answer, that is said; of classes the nearest are learnt. A head of
    numbers answers those in the range of the labels from then on; where more than a fifth of all that move are such, as
    after pseudo-labels of another robot's videos, it begins anew. What the labels of stage 2 held still, as an arm that
    no video moves, does not count there.
    """
    shares = _outside(space, actions, pad)
    told = f"Note: {shares.max():.0%} of the labelled {_where(space, shares)}"
    if not isinstance(space, NumberSpace):
        if shares.max() > FEW:
            print(f"{told} --head new makes one for these.", flush=True)
        return space, True
    now = NumberSpace.fit(actions, space.names, pad)
    still, out = space.width < STILL * now.width, shares > FEW
    if not (still | out).any():
        return space, True
    if still.all() or (out & ~still).sum() > PART * (~still).sum():
        print(f"{told} From now on it answers in the range of these labels.", flush=True)
        return now, False
    names = [space.names[i] if space.names else f"action_{i}" for i in np.flatnonzero(still | out)]
    print(f"Note: {len(names)} of {len(still)} numbers go farther in the labelled episodes than in the labels of stage "
          f"2 ({', '.join(names[:4])}{', ..' if len(names) > 4 else ''}). They get the range that they have here.",
          flush=True)  # fmt: skip
    return space.with_ranges(still | out, now), True


def outside(space: ActionSpace | ActionCodebook | NumberSpace, actions: Array, pad: Array) -> tuple[float, str]:
    """Of chunks [N, chunk, A] the largest share of a number's actions that a head of this space cannot answer, and in
    words which; pad bool [N, chunk]: actions that do not exist."""
    shares = _outside(space, actions, pad)
    return float(shares.max()), _where(space, shares)


def _outside(space: ActionSpace | ActionCodebook | NumberSpace, actions: Array, pad: Array) -> Array:
    """Of chunks [N, chunk, A] the share of each number's actions that a head of this space cannot answer, [A]."""
    low, high = _reach(space)
    each, slack = actions[~pad], SLACK * (high - low)
    shares: Array = ((each < low - slack) | (each > high + slack)).mean(0)
    return shares


def _reach(space: ActionSpace | ActionCodebook | NumberSpace) -> Array:
    """The smallest and the largest value of each number that a head of this space can answer, [2, A]."""
    rows = space.edges if isinstance(space, ActionSpace) else space.reach
    return np.array([(ends[0], ends[-1]) for ends in rows]).T


def _where(space: ActionSpace | ActionCodebook | NumberSpace, shares: Array) -> str:
    """The number with the largest share [A] of actions outside, and what is inside, in words."""
    i, (low, high) = int(shares.argmax()), _reach(space)
    name = space.names[i] if space.names else f"action_{i}"
    return (
        f"{name} lie outside {low[i]:.3g} to {high[i]:.3g}, which is all that the head of this policy can answer: it "
        "was made for other actions, or other units."
    )


def tell_of_turns(meaning: Meaning, targets: Array, pad: Array) -> None:
    """Say where targets [N, chunk, A] relative to the state are jumps of a whole turn: an angle that wraps."""
    away = np.abs(targets[~pad])
    for i in np.flatnonzero(meaning.relative):
        for turn, unit in ((2 * np.pi, "radians"), (360.0, "degrees")):
            far = away[:, i] > turn / 2
            if far.any() and (np.abs(away[far, i] / turn - 1) < AROUND).all():
                print(f"Note: {meaning.spec.names[i]} is a whole turn from the state in {far.mean():.1%} of the "
                      f"labelled targets: an angle in {unit} that wraps. They teach a motion that there was not. "
                      "Unwrap the angle in the data (numpy.unwrap), state and action alike.", flush=True)  # fmt: skip


def tell_of_reading(results: Logs, space: Space, frames: int) -> None:
    """Say how well the labels of so many frames tell what the classes of a head mean (heads/linear.py)."""
    fit, left_out = results["r2_of_labels"], results.get("r2_left_out")
    told = f"R^2 of their actions {fit:.2f}"
    if left_out is not None:
        told += f"; {left_out:.2f} of trajectories left out in turn"
    print(
        f"What {space.positions} x {space.classes} classes mean was read off {frames:,} labelled frames "
        f"({told}). Nothing was trained; --head own or new trains one.",
        flush=True,
    )
    if (fit if left_out is None else left_out) < LITTLE:
        print("That is little: what the policy predicts hardly tells these actions. Try --head own (with a "
              "benchmark for this robot, `lapa tune` finds out what is best).", flush=True)  # fmt: skip


def meaning_of(data: Index, recipe: Recipe, kept: Meaning | None) -> Meaning | None:
    """What actions learnt from these data mean, which is printed; `kept`: what the head means that goes on. Raises
    LapaError where that is something else."""
    meaning = Meaning.of(data, recipe.actions)
    if kept and meaning:
        mine, its = kept.spec.names, meaning.spec.names
        if mine != its and sorted(mine) == sorted(its):
            raise LapaError(
                f"{data.spec} has the actions of this policy in another order ({', '.join(its)}; the policy speaks "
                f"{', '.join(mine)}). Give it a new head (--head new)."
            )
        _tell_of_change(kept.spec, meaning.spec)
        meaning = replace(meaning, relative=kept.relative, state=kept.state and meaning.state)
        if any(meaning.relative):
            if data.state is None or data.state.shape[1] != len(meaning.relative):
                raise LapaError(
                    f"This policy speaks actions relative to the state, and {data.spec} has no such state. Give it a "
                    "new head (--head new)."
                )
            meaning = replace(meaning, state=meaning.state or (data.state_names or meaning.spec.names))
    if meaning and (told := meaning.described()):
        print(told, flush=True)
    slow, fast = float(data.fps.min()), float(data.fps.max())
    if meaning and fast > SAME_RATE * slow:
        print(f"Note: the trajectories have {slow:g} to {fast:g} actions a second, and the policy answers at "
              f"{meaning.spec.hz:g}. At another rate an action is a motion of another size; give those of one rate.",
              flush=True)  # fmt: skip
    return meaning


def _tell_of_change(before: ActionSpec, now: ActionSpec) -> None:
    """Say where the actions that a kept head is to learn are not what those before were."""
    found = [f"{name} was {old} and is {new}" for name, old, new in zip(now.names, before.kinds, now.kinds, strict=True)
             if old != new]  # fmt: skip
    if max(before.hz, now.hz) > SAME_RATE * min(before.hz, now.hz):
        found.append(f"there were {before.hz:g} actions a second and are {now.hz:g}")
    if found:
        shown = "; ".join(found[:4]) + ("; .." if len(found) > 4 else "")
        print(f"Note: the policy keeps its head, and these actions mean something else than those before: {shown}. "
              "Give it a new head (--head new), or say what they are (kinds=, fps=).", flush=True)  # fmt: skip
