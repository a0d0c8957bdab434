"""Where a policy's ceiling on Tabletop comes from (docs/experiments.md, "The ceiling"). Validation scenes only.

python benchmarks/ceiling.py expert                    the demonstrator without its noise, and rounded to bins
python benchmarks/ceiling.py oracle --steps 1000 4000  imitation with perfect sight: a small network reads the state
python benchmarks/ceiling.py failures runs/latent      how the failed episodes of a policy ended
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import nn

from lapa.actions.spaces import ActionSpace
from lapa.contracts import Array, Observation
from lapa.evaluate import VALIDATION_SEEDS
from lapa.policies import Policy
from lapa.tabletop import expert, world
from lapa.tabletop import language as lang
from lapa.tabletop.env import Table
from lapa.training.loop import Optimisation

Act = Callable[[Table], Array]
VIDEO_SEEDS = 100_000  # those of tabletop:sim,seed=1
BINS = 32


@dataclass(frozen=True)
class Rollout:
    """N episodes: done bool [N]; effector [N, T, 2]; blocks [N, T, BLOCKS, 2]."""

    table: Table
    done: Array
    effector: Array
    blocks: Array

    def told(self) -> str:
        """Success in all and by family."""
        of = [f"{name} {self.done[self.table.tasks.family == k].mean():.0%}" for k, name in enumerate(lang.FAMILIES)]
        return f"{self.done.mean():.1%} | {' '.join(of)}"

    def ends(self) -> Counter[str]:
        """How the failed episodes ended."""
        return Counter(self._end(i) for i in np.flatnonzero(~self.done))

    def _end(self, i: int) -> str:
        a, b = self.table.tasks.a[i], self.table.tasks.b[i]
        moved = world.length(self.blocks[i, -1] - self.blocks[i, 0])
        last = self.effector[i, -20:]
        reach = world.length(last - last.mean(0)).max()
        how = "stands still" if reach < 0.02 else "dithers" if reach < 0.06 else "wanders"
        if moved[a] < 0.03:
            return f"A not moved{', another was' if moved.max() > 0.05 else ''}; {how}"
        return f"A moved, goal missed{', B moved' if a != b and moved[b] > world.STILL else ''}; {how}"


def roll_out(act: Act, episodes: int) -> Rollout:
    """Run validation scenes to the time limit; a scene that is done stays."""
    table = Table(VALIDATION_SEEDS + np.arange(episodes))
    done = np.zeros(episodes, bool)
    effector, blocks = [table.scenes.effector], [table.scenes.blocks]
    while table.tick < world.TIME_LIMIT and not done.all():
        done |= table.step(np.where(done[:, None], 0.0, act(table)))
        effector.append(table.scenes.effector)
        blocks.append(table.scenes.blocks)
    return Rollout(table, done, np.stack(effector, 1), np.stack(blocks, 1))


def state_of(table: Table, relative: bool) -> Array:
    """All that matters, float32 [N, F]: effector, A, B, two other blocks, family, place, direction; with `relative`
    also the ways between them. Where there is no B a third block stands in its place."""
    scenes, tasks = table.scenes, table.tasks
    rows, index = np.arange(len(scenes)), np.arange(world.BLOCKS)
    rank = np.where(index == tasks.a[:, None], 0, np.where(index == tasks.b[:, None], 1, 2))
    order = np.argsort(rank, axis=1, kind="stable")
    blocks, hand = scenes.blocks[rows[:, None], order], scenes.effector
    parts = [2 * hand - 1, 2 * blocks.reshape(len(rows), -1) - 1, np.eye(len(lang.FAMILIES))[tasks.family],
             2 * tasks.goal - 1, tasks.direction]  # fmt: skip
    if relative:
        ways = [blocks[:, 0] - hand, blocks[:, 1] - blocks[:, 0], tasks.goal - blocks[:, 0]]
        parts += [4 * way for way in (*ways, *(blocks[:, k] - hand for k in range(1, world.BLOCKS)))]
    return np.concatenate(parts, 1).astype(np.float32)


def demonstrations(episodes: int, relative: bool) -> tuple[Array, Array]:
    """States float32 [N, F] and actions float32 [N, 2] of the expert, as in the videos."""
    states, actions = [], []
    for start in range(0, episodes, 250):
        table = Table(VIDEO_SEEDS + np.arange(start, min(start + 250, episodes)))
        done = np.zeros(len(table.scenes), bool)
        while table.tick < world.TIME_LIMIT and not done.all():
            action = table.expert()
            states.append(state_of(table, relative)[~done])
            actions.append(action[~done])
            done |= table.step(action)
    return np.concatenate(states), np.concatenate(actions)


def run_expert(episodes: int = 1000) -> None:
    """The expert's plan with other noise than its own, executed exactly or rounded to 32 bins."""
    _, actions = demonstrations(500, False)
    space = ActionSpace.fit(actions, BINS)
    for noise in (0.0, 0.05, 0.1, 0.2, 0.4):
        for rounded in (False, True):
            rng = np.random.default_rng(0)

            def act(
                table: Table, noise: float = noise, rounded: bool = rounded, rng: np.random.Generator = rng
            ) -> Array:
                action = expert.act(table.scenes, table.tasks)
                action = action + noise * world.STEP * rng.normal(size=action.shape)
                return space.decode(space.encode(action)) if rounded else action

            print(f"noise {noise}{', rounded' if rounded else ''}: {roll_out(act, episodes).told()}", flush=True)


def oracle(
    steps: tuple[int, ...] = (1000,),
    videos: int = 6000,
    rate: float = 1e-3,
    batch_size: int = 128,
    width: int = 256,
    relative: bool = False,
    episodes: int = 300,
    seed: int = 0,
) -> None:
    """A network of three hidden layers learns the binned action from the true state, as a policy does from pixels."""
    states, actions = demonstrations(videos, relative)
    space = ActionSpace.fit(actions, BINS)
    x, y = torch.from_numpy(states), torch.from_numpy(space.encode(actions))
    for count in steps:
        torch.manual_seed(seed)
        sizes = [x.shape[1], width, width, width]
        hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        model = nn.Sequential(*hidden, nn.Linear(width, 2 * BINS))
        how = Optimisation(steps=count, learning_rate=rate)
        optimizer = torch.optim.AdamW(model.parameters(), betas=how.betas, weight_decay=0.0)
        losses = []
        for step in range(count):
            rows = torch.randint(len(x), (batch_size,))
            optimizer.param_groups[0]["lr"] = how.rate(step)
            loss = F.cross_entropy(model(x[rows]).view(-1, BINS), y[rows].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        print(f"{count} steps, rate {rate}, {videos} videos: loss {np.mean(losses[-100:]):.3f}")
        for decode in (space.expect, space.expect_norm_preserving):

            @torch.no_grad()
            def act(table: Table, model: nn.Module = model, decode: Callable[[Array], Array] = decode) -> Array:
                logits: torch.Tensor = model(torch.from_numpy(state_of(table, relative)))
                return decode(logits.view(-1, 2, BINS).softmax(-1).numpy())

            found = roll_out(act, episodes)
            print(f"  {decode.__name__}: {found.told()}\n    {dict(found.ends().most_common(6))}", flush=True)


def failures(policy: Path, episodes: int = 300) -> None:
    """How the failed episodes of a trained policy ended."""
    actor = Policy.from_pretrained(policy)

    def act(table: Table) -> Array:
        seen = zip(table.images(), table.instructions, strict=True)
        actions: Array = actor.act_batch([Observation(images={"image": i}, instruction=t) for i, t in seen])[:, 0]
        return actions

    found = roll_out(act, episodes)
    print(found.told())
    for end, count in found.ends().most_common():
        print(f"  {count:4} {end}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.extras.subcommand_cli_from_dict({"expert": run_expert, "oracle": oracle, "failures": failures})
