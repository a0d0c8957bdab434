"""Episodes that nothing is trained on, and watching a policy on them: its loss, its accuracy, and that of always naming
the most frequent label."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from lapa.contracts import Array, LapaError, Logs
from lapa.measures.probes import one_in
from lapa.training.logbook import Logbook
from lapa.training.loop import Optimisation, device, seed_everything

LOOKS = 10  # in a run
FRAMES = 1500  # held-out frames, fixed for the run
LOSS = "watched/loss"  # the figure by which the best step is chosen
SLACK = 0.05  # above the lowest loss: a later step, of a lower learning rate, is preferred within this share of it
Monitor = Callable[[int, Logbook], Logs]


def is_held_out(episode: Array, every: int) -> Array:
    """Episodes int64 [N] -> bool [N]: one in `every`, which no model is trained on. Raises LapaError when all are."""
    held = one_in(every - 1 - episode % every + episode // every * every, every)
    if held.all():
        raise LapaError(
            f"hold_out={every} keeps one episode in {every} from training, and none is left to train on. Choose a "
            "larger one, such as 20, or give more episodes."
        )
    return held


def held_out_monitor(
    learner: nn.Module,
    batches: Callable[[], Iterable[tuple[int, Any]]],
    how: Optimisation,
    seed: int,
    usual: float | None,
) -> Monitor:
    """A monitor for `fit`: every log of the learner's `loss`, averaged over held-out batches, as "watched/..".

    batches() gives what `loss` takes with the number of its samples; the same each time. Noise that a loss draws is the
    same each time, too. `usual` is logged beside the accuracy as "watched/most_frequent", if there is one."""

    def monitor(step: int, book: Logbook) -> Logs:
        total, count, dtype = dict[str, float](), 0, how.dtype()
        for number, (samples, batch) in enumerate(batches()):
            seed_everything(seed, number)
            with torch.autocast(device().type, dtype, enabled=dtype != torch.float32):
                loss, logs = learner.loss(batch)  # type: ignore[operator]
            for name, value in {"loss": float(loss), **logs}.items():
                total[name] = total.get(name, 0.0) + samples * float(value)
            count += samples
        found = {f"watched/{name}": value / count for name, value in total.items()}
        return found if usual is None else {**found, "watched/most_frequent": usual}

    return monitor


def most_frequent(trained: Any, held_out: Any) -> float | None:
    """The accuracy of always naming the most frequent class of each position: counted on int64 [N, positions], judged
    by int64 [M, positions]; -100 is no label. None for what are no classes."""
    if not (isinstance(trained, np.ndarray) and trained.ndim == 2 and np.issubdtype(trained.dtype, np.integer)):
        return None
    right = known = 0
    for position in range(trained.shape[1]):
        here, there = trained[:, position], held_out[:, position]
        usual = int(np.bincount(here[here >= 0]).argmax()) if (here >= 0).any() else -1
        right += int((there[there >= 0] == usual).sum())
        known += int((there >= 0).sum())
    return right / known if known else None


def spread(rows: Array, most: int, seed: int) -> Array:
    """`most` of rows int64 [N] at random, always the same for a seed, in order; all if there are no more."""
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
