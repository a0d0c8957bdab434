"""Figures that say whether a stage has worked: what the codes tell.

Error and perplexity are no evidence of good codes; the probes are. Good codes tell the action and the displacement of
the robot, and not where the robot is. A probe is fitted on some episodes and tested on others. Frames of one episode
are alike: with rows of the same episode on both sides the figure would be too high.
"""

from __future__ import annotations

import math

import numpy as np

from lapa.contracts import Array
from lapa.data.pack import Packed
from lapa.data.pairs import PairIndex
from lapa.measures.linear import rows_of
from lapa.measures.motion import Told, motion, told

LEAST = 8  # pairs to fit a probe on, and pairs to judge it by: fewer would tell nothing
EVERY = 5  # of the episodes, one judges the probes that the others are fitted on
GOLDEN = 40503  # of 2^16, the golden ratio: its multiples are spread evenly over the places
MLP_STEPS = 150  # of Adam on all rows at once

MEANING = {  # of the figures that training ends with
    "error_over_copy": "below 1 beats showing the present frame again",
    "action_r2": "what the robot did, by variance; 1 is told in full",
    "action_mean_r2": "the same, the mean of its dimensions",
    "state_r2": "how the state changed, by variance; 1 is told in full",
    "state_mean_r2": "the same, the mean of its dimensions",
    "displacement_r2": "how far the effector went; 1 is told in full",
    "position_r2": "where the effector was; near 0 is good",
    "dataset_r2": "which dataset it is; near 0, they share the codes",
    "action_mlp_r2": "the same, read by a small network",
    "perplexity": "codes in effective use, by position; 1 has collapsed",
    "training_perplexity": "the same, in the last 50 training batches",
    "train_r2": "of the actions, on its own training pairs; 1 is all, 0 nothing",
    "pairs": "pairs of frames it was trained on",
    "loss": "of the last batch; falling is good, its size depends on the data",
    "accuracy": "labels named in the last batch; chance is 1 / classes",
    "watched/accuracy": "labels named on held-out episodes",
    "watched/most_frequent": "what always naming the most frequent label gives there",
    "watched/loss": "the loss on held-out episodes",
    "best_step": "the step with the lowest of those, whose weights these are",
    "held_out_error": "of actions, on labelled episodes left out; 1 is as far off as the mean action",
    "held_out_step_length": "length of its steps over the expert's there; far below 1 the arm stalls",
    "prediction_perplexity": "classes in use by its predictions; 1 has collapsed",
    "labels": "labelled frames that the meaning was read off",
    "r2_of_labels": "of those frames' actions; 1 is all, 0 nothing",
}


def one_in(number: Array, every: int) -> Array:
    """One of each `every` numbers in a row, int64 [N] -> bool [N]: the first of the first ones, elsewhere another place
    each time. So where data go through tasks in turn, those that are kept are not all of one task."""
    block = number // every
    place = (block * GOLDEN % 2**16) * every // 2**16
    chosen: Array = number % every == place
    return chosen


def of_each_fifth(episode: Array) -> Array:
    """Rows of one in EVERY episodes, bool [N]: those that judge. episode int64 [N]; one episode alone gives none."""
    kinds, row = np.unique(episode, return_inverse=True)
    return one_in(row, EVERY) & (len(kinds) > 1)


def linear_r2(features: Array, targets: Array, episode: Array, test: Array | None = None) -> float:
    """How much of `targets` [N, D] a linear function of `features` [N, F] tells, in the rows `test` bool [N] (None:
    those of each fifth episode), whose episodes int64 [N] are on no other side.

    Ridge regression on the other rows, its penalty chosen on episodes left out; R^2, each target weighted by its
    variance. 1 is everything, 0 no more than the mean, below 0 worse than the mean. Targets that do not vary give 0.
    Raises LapaError for fewer than four rows or two lengths.
    """
    x, y = rows_of(features, targets)
    return told(x, y, episode, of_each_fifth(episode) if test is None else test).weighted


def mlp_r2(features: Array, targets: Array, episode: Array, test: Array | None = None, seed: int = 0) -> float:
    """As linear_r2, for a small MLP (one hidden layer of 32) in place of the linear function: with several codes a pair
    it reads what only their combination tells. Stopped where a fifth of the episodes that fit it is predicted best. A
    quarter of a second on one core for 4,000 rows of 32 features."""
    import torch  # the rest of this file needs none
    from torch import nn

    x, y = rows_of(features, targets)
    test = of_each_fifth(episode) if test is None else test
    fit = np.flatnonzero(~test)
    checks = of_each_fifth(episode[fit])
    kept, check = (fit[~checks], fit[checks]) if checks.any() else (fit, fit)
    centre, scale = y[fit].mean(0), np.sqrt(np.square(y[fit] - y[fit].mean(0)).mean()) + 1e-12
    best, answer = math.inf, np.zeros_like(y[test])
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        inputs, wanted = torch.tensor(x, dtype=torch.float32), torch.tensor((y - centre) / scale, dtype=torch.float32)
        mlp = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, y.shape[1]))
        optimizer = torch.optim.AdamW(mlp.parameters(), lr=1e-2, weight_decay=1.0)
        for step in range(MLP_STEPS):
            loss = nn.functional.mse_loss(mlp(inputs[kept]), wanted[kept])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 10 == 9:
                error = nn.functional.mse_loss(mlp(inputs[check]), wanted[check]).item()
                if error < best:
                    best, answer = error, mlp(inputs[test]).detach().double().numpy() * scale
    return Told.of(answer + centre, y[test]).weighted


def r2(predicted: Array, true: Array) -> float:
    """Variance-weighted R^2 of predictions float [N, D]: 1 is perfect, 0 no better than the mean."""
    spread = float(np.square(true - true.mean(0)).sum())
    return 1 - float(np.square(true - predicted).sum()) / max(spread, 1e-12)


def one_hot(codes: Array, classes: int) -> Array:
    """int64 [N, s] -> float32 [N, s * classes], one block of columns a position."""
    return np.eye(classes, dtype=np.float32)[codes].reshape(len(codes), -1)


def perplexity(codes: Array, classes: int) -> list[float]:
    """Effective number of codes in use at each position of int64 [N, s]: 1 (collapsed) to `classes` (uniform)."""
    return [_effective(np.bincount(column, minlength=classes)) for column in codes.T]


def _effective(counts: Array) -> float:
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(share * np.log(share)).sum()))


def probe(
    codes: Array,
    classes: int,
    packed: Packed,
    pairs: PairIndex,
    rows: Array,
    episode: Array,
    test: Array,
    seed: int = 0,
) -> dict[str, float]:
    """What the codes int64 [N, s] of pairs `rows` int64 [N] tell, as R^2 on the rows `test` bool [N] of probes that are
    fitted on the others; only what the data allow, which is nothing with fewer than LEAST pairs on a side. `episode`
    int64 [N] is that of each row, and none is on both sides.

    action_r2        what the robot did over the window (measures/motion.py), each dimension weighted by its variance
    action_mean_r2   the mean of its dimensions
    state_r2, state_mean_r2   the same of the change of the state, where there are no actions
    displacement_r2  how far the effector moved over the window
    position_r2      where the effector was; high means that the codes say where and not what
    dataset_r2       which of several datasets the pair is from; high means that each has codes of its own
    action_mlp_r2, displacement_mlp_r2, ...   the same for an MLP in place of a linear function

    The effector is the columns of the state whose name starts with "effector". Where no name does, nothing says where
    it is, and displacement and position are left out.
    """
    if min(test.sum(), (~test).sum()) < LEAST:
        return {}
    features = one_hot(codes, classes)
    targets: dict[str, Array] = {}
    did = motion(packed, pairs, rows)
    if did is not None:
        targets["state" if packed.actions is None else "action"] = did.values
    if packed.state is not None and (columns := effector_columns(packed.state_names)):
        before, after = (packed.state[frames[rows]][:, columns] for frames in (pairs.now, pairs.later))
        targets |= {"displacement": after - before, "position": before}
    source = packed.source[pairs.episode[rows]]
    if np.ptp(source):
        targets["dataset"] = np.eye(source.max() + 1)[source]
    found: dict[str, float] = {}
    for name, target in targets.items():
        linear = told(features, target, episode, test)
        found[f"{name}_r2"] = linear.weighted
        if name in ("action", "state"):
            found[f"{name}_mean_r2"] = linear.mean
    return found | {f"{name}_mlp_r2": mlp_r2(features, target, episode, test, seed) for name, target in targets.items()}


def effector_columns(names: tuple[str, ...]) -> list[int]:
    """Columns of the state that say where the effector is, by their names; [] where none does."""
    return [i for i, name in enumerate(names) if name.startswith("effector")]
