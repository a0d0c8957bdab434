"""Motions, read from features of frames by ridge regression and a few small networks, which a few labelled episodes
teach.

Networks read curves, and ridge regression goes on in a straight line where no labelled episode was. How much of each
is taken, labelled episodes that are left out tell. Tasks with small motions count as much as those with large ones:
small ones steer the hand. What features cannot tell, a fit fills in with the mean, and whoever learns from it would
learn motions that are too small. So what is read well is made longer by as much as it falls short in episodes left out;
what is read badly is noise in good part, and stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from lapa.contracts import Array
from lapa.measures.linear import LinearFit, rows_of
from lapa.runtime.progress import Progress

NETWORKS = 5
WIDTH = 256
DROPOUT = (0.1, 0.3)  # of the features, and of the layer
STEPS, BATCH, LEARNING_RATE, DECAY = 1500, 128, 1e-3, 0.1
FOLDS = 3  # of the episodes, each left out once
WELL = 0.5  # R^2 in episodes left out from which on what is read is made longer
LEAST_SLOPE = 0.5  # twice as long at most
SMALLEST = 0.1  # spread of a task's motions, of that of all: smaller ones count no more


@dataclass(frozen=True)
class MotionFit:
    """Of each target [D] the networks' mean counts `share` and ridge regression the rest, and what they tell then goes
    `slope` of the way from `mean` that is true. Networks read features that are standardised by centre and unit [F],
    and tell targets that are by mean and spread [D]. r2 [D]: in episodes left out; nan where none could be."""

    ridge: LinearFit
    networks: tuple[nn.Module, ...]
    centre: Array
    unit: Array
    mean: Array
    spread: Array
    share: Array
    slope: Array
    r2: Array

    @staticmethod
    def fit(features: Array, targets: Array, episode: Array, task: Array) -> MotionFit:
        """float [N, F], [N, D] of the frames of episodes int [N], which show tasks int [N]. The same input gives the
        same fit. Raises LapaError for fewer than four rows."""
        x, y = rows_of(features, targets)
        number = np.unique(episode, return_inverse=True)[1]
        folds = FOLDS if number.max() >= FOLDS - 1 else 0  # else no episode can be spared
        told = np.zeros((2, *y.shape))
        with Progress("reading motions", folds + NETWORKS, unit="networks") as progress:
            for fold in range(folds):
                out = number % folds == fold
                told[:, out] = _even(x[~out], y[~out], number[~out], task[~out], 1, progress)._both(x[out])
            found = _even(x, y, number, task, NETWORKS, progress)
        if not folds:
            return found
        weights = _weights((y - y.mean(0)) / found.spread, task) ** 2  # errors in units of each task's own spread
        apart = told[1] - told[0]
        share = np.clip((weights * apart * (y - told[0])).sum(0) / ((weights * apart**2).sum(0) + 1e-12), 0, 1)
        read, away = told[0] + share * apart, y - y.mean(0)
        far = np.maximum(np.square(away).sum(0), 1e-12)
        slope = np.clip((away * (read - read.mean(0))).sum(0) / far, LEAST_SLOPE, 1.0)
        slope = np.where(1 - np.square(y - read).sum(0) / far >= WELL, slope, 1.0)
        wrong = (read - y.mean(0)) / slope - away
        return replace(found, share=share, slope=slope, r2=1 - np.square(wrong).sum(0) / far)

    def __call__(self, features: Array) -> Array:
        """float [M, F] -> float64 [M, D]."""
        ridge, networks = self._both(features)
        read: Array = (ridge + self.share * (networks - ridge) - self.mean) / self.slope + self.mean
        return read

    def _both(self, features: Array) -> tuple[Array, Array]:
        """What ridge regression tells, and what the networks tell in the mean."""
        x = torch.from_numpy(((features - self.centre) / self.unit).astype(np.float32))
        with torch.no_grad():
            told = torch.stack([network(x) for network in self.networks]).mean(0).double().numpy()
        return self.ridge(features), told * self.spread + self.mean


def _even(x: Array, y: Array, episode: Array, task: Array, networks: int, progress: Progress) -> MotionFit:
    """A fit that takes half of each, and stretches nothing."""
    centre, unit, mean, spread = x.mean(0), x.std(0) + 1e-6, y.mean(0), y.std(0) + 1e-6
    features, targets = (x - centre) / unit, (y - mean) / spread
    made, weights = [], _weights(targets, task)
    for number in range(networks):
        made.append(_network(features, targets, weights, number))
        progress.update(progress.done + 1)
    ridge, one = LinearFit.fit(x, y, episode), np.ones_like(mean)
    return MotionFit(ridge, tuple(made), centre, unit, mean, spread, one / 2, one, one * np.nan)


def _weights(targets: Array, task: Array) -> Array:
    """How much each target counts, [N, D]: the less the more a task's motions are spread; 1 in the mean."""
    weights = np.empty_like(targets)
    for each in np.unique(task):
        rows = task == each
        weights[rows] = 1 / np.maximum(targets[rows].std(0), SMALLEST)
    return weights / weights.mean(0)


def _network(features: Array, targets: Array, weights: Array, seed: int) -> nn.Module:
    """One layer of WIDTH, fitted to standardised features [N, F] and targets [N, D] with weights [N, D]; the random
    numbers of others stay as they are."""
    x, y, w = (torch.from_numpy(each.astype(np.float32)) for each in (features, targets, weights))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Dropout(DROPOUT[0]), nn.Linear(x.shape[1], WIDTH), nn.ReLU(),
            nn.Dropout(DROPOUT[1]), nn.Linear(WIDTH, y.shape[1]),
        )  # fmt: skip
        optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=DECAY)
        for _ in range(STEPS):
            some = torch.randint(len(x), (BATCH,))
            loss: Tensor = (w[some] * (network(x[some]) - y[some]).square()).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()
