"""Figures that say whether a stage has worked: intervals of success, and what the codes tell.

Error and perplexity are no evidence of good codes; the linear probes are. Good codes tell the action and the
displacement of the robot, and not where the robot is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lapa.contracts import Array, LapaError
from lapa.data.pack import Packed
from lapa.data.pairs import PairIndex

LEAST = 16  # pairs: half of them fit a probe, and fewer would tell nothing
MLP_STEPS = 150  # of Adam on all rows at once
RIDGE = 1e-4  # of the mean variance of the features: enough for the collinear columns of one-hot codes

MEANING = {  # of the figures that training ends with
    "error_over_copy": "below 1 beats showing the present frame again",
    "action_r2": "what the robot did; 1 is told in full",
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
    "prediction_perplexity": "classes in use by its predictions; 1 has collapsed",
    "labels": "labelled frames that the meaning was read off",
    "r2_of_labels": "of those frames' actions; 1 is all, 0 nothing",
}


def linear_r2(features: Array, targets: Array, seed: int = 0) -> float:
    """How much of `targets` [N, D] a linear function of `features` [N, F] tells: R^2 on held-out rows.

    Ridge regression on a random half of the rows, R^2 on the other half, each target weighted by its variance.
    1 is everything, 0 no more than the mean, below 0 worse than the mean. Targets that do not vary give 0.
    Raises LapaError for fewer than four rows or two lengths.
    """
    x, y = _rows(features, targets)
    fit, test = _halves(len(x), seed)
    return _score(Linear.fit(x[fit], y[fit])(x[test]), y[test])


@dataclass(frozen=True)
class Linear:
    """A linear function of features, fitted by ridge regression: what the probes read codes with."""

    weights: Array
    centre: Array
    mean: Array

    @staticmethod
    def fit(features: Array, targets: Array) -> Linear:
        """float [N, F], [N, D]. Raises LapaError for fewer than four rows or two lengths."""
        x, y = _rows(features, targets)
        return Linear(_ridge(x - x.mean(0), y - y.mean(0)), x.mean(0), y.mean(0))

    def __call__(self, features: Array) -> Array:
        """float [M, F] -> float64 [M, D]."""
        told: Array = (features - self.centre) @ self.weights + self.mean
        return told


def mlp_r2(features: Array, targets: Array, seed: int = 0) -> float:
    """As linear_r2, for a small MLP (one hidden layer of 32) in place of the linear function: with several codes a pair
    it reads what only their combination tells. Stopped where a fifth of the fitted half is predicted best. A quarter
    of a second on one core for 4,000 rows of 32 features."""
    import torch  # the rest of this file needs none
    from torch import nn

    x, y = _rows(features, targets)
    fit, test = _halves(len(x), seed)
    centre, scale = y[fit].mean(0), np.sqrt(np.square(y[fit] - y[fit].mean(0)).mean()) + 1e-12
    kept, check = np.split(fit, [4 * len(fit) // 5])
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
    return _score(answer + centre, y[test])


def r2(predicted: Array, true: Array) -> float:
    """Variance-weighted R^2 of predictions float [N, D]: 1 is perfect, 0 no better than the mean."""
    spread = float(np.square(true - true.mean(0)).sum())
    return 1 - float(np.square(true - predicted).sum()) / max(spread, 1e-12)


def _rows(features: Array, targets: Array) -> tuple[Array, Array]:
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    if len(x) != len(y) or len(x) < 4:
        raise LapaError(f"A probe needs at least 4 rows of features and as many targets; got {len(x)} and {len(y)}.")
    return x, y


def _halves(rows: int, seed: int) -> tuple[Array, Array]:
    order = np.random.default_rng(seed).permutation(rows)
    return order[: rows // 2], order[rows // 2 :]


def _score(predicted: Array, true: Array) -> float:
    """R^2 over all columns together; 0 where the truth does not vary."""
    spread = np.square(true - true.mean(0)).sum()
    return float(1 - np.square(true - predicted).sum() / spread) if spread > 1e-12 else 0.0


def _ridge(x: Array, y: Array) -> Array:
    """Weights [F, D] of centred features [M, F] and targets [M, D], through the smaller of the two Gram matrices."""
    penalty = RIDGE * np.square(x).sum() / x.shape[1] + 1e-12
    if x.shape[1] <= len(x):
        return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
    return x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), y)


def one_hot(codes: Array, classes: int) -> Array:
    """int64 [N, s] -> float32 [N, s * classes], one block of columns a position."""
    return np.eye(classes, dtype=np.float32)[codes].reshape(len(codes), -1)


def perplexity(codes: Array, classes: int) -> list[float]:
    """Effective number of codes in use at each position of int64 [N, s]: 1 (collapsed) to `classes` (uniform)."""
    return [_effective(np.bincount(column, minlength=classes)) for column in codes.T]


def _effective(counts: Array) -> float:
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(share * np.log(share)).sum()))


def probe(codes: Array, classes: int, packed: Packed, pairs: PairIndex, rows: Array, seed: int = 0) -> dict[str, float]:
    """What the codes int64 [N, s] of pairs `rows` int64 [N] tell, as held-out R^2; only what the data allow, which is
    nothing with fewer than LEAST pairs.

    action_r2        the sum of the robot's actions over the window
    displacement_r2  how far the effector moved over the window
    position_r2      where the effector was; high means that the codes say where and not what
    dataset_r2       which of several datasets the pair is from; high means that each has an alphabet of its own
    action_mlp_r2, displacement_mlp_r2, ...   the same for an MLP in place of a linear function

    The effector is the columns of the state whose name starts with "effector", else the whole state.
    """
    if len(rows) < LEAST:
        return {}
    features = one_hot(codes, classes)
    now, later = pairs.now[rows], pairs.later[rows]
    targets: dict[str, Array] = {}
    if packed.actions is not None:
        until = np.concatenate([np.zeros((1, packed.actions.shape[1])), np.cumsum(packed.actions, 0, np.float64)])
        targets["action"] = until[later] - until[now]
    if packed.state is not None:
        columns = effector_columns(packed.state_names, packed.state.shape[1])
        before, after = packed.state[now][:, columns], packed.state[later][:, columns]
        targets |= {"displacement": after - before, "position": before}
    source = packed.source[pairs.episode[rows]]
    if np.ptp(source):
        targets["dataset"] = np.eye(source.max() + 1)[source]
    linear = {f"{name}_r2": linear_r2(features, target, seed) for name, target in targets.items()}
    return linear | {f"{name}_mlp_r2": mlp_r2(features, target, seed) for name, target in targets.items()}


def effector_columns(names: tuple[str, ...], width: int) -> list[int]:
    """Columns of the state that say where the effector is; all of them when no name tells."""
    return [i for i, name in enumerate(names) if name.startswith("effector")] or list(range(width))
