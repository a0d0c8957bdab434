"""How many labelled trajectories it takes to read off what codes mean, with and without the places of the codes.

    python benchmarks/few_labels.py tabletop:sim,episodes=100,seed=2 runs/paper/seed0/lapa/*/latent

For each latent policy (`lapa pretrain` on codes) and each number of trajectories, drawn at random 20 times from the
dataset: what the policy would do on the trajectories left out, against what it would do if the meaning were read off
those themselves. Squared error as a share of the squared length, and the share of frames that go more than 30 degrees
another way. Prints a Markdown table: means over policies and draws, and the worst draw.
"""

from __future__ import annotations

import sys

import numpy as np

from lapa.actions.codebook import ActionCodebook
from lapa.actions.spaces import CodeSpace
from lapa.contracts import Array
from lapa.data.pack import Packed, pack
from lapa.policies import Policy, acting_frames
from lapa.policies.vla import AT_ONCE, VLA

TRAJECTORIES, DRAWS = (1, 2, 3, 5, 10, 20), 20


def said(policy: VLA, packed: Packed, frames: Array) -> Array:
    """float32 [N, positions, classes]: what the policy predicts for the frames."""
    texts = [packed.instructions[e] for e in packed.episode_of(frames)]
    starts = range(0, len(frames), AT_ONCE)
    return np.concatenate(
        [policy.probabilities(packed.gather(frames[i : i + AT_ONCE]), texts[i : i + AT_ONCE]) for i in starts]
    )


def off(told: Array, wanted: Array) -> tuple[float, float]:
    """Two actions [N, A]: squared error / squared length, and the share more than 30 degrees apart."""
    along = (told * wanted).sum(1) / np.maximum(np.linalg.norm(told, axis=1) * np.linalg.norm(wanted, axis=1), 1e-12)
    return float(((told - wanted) ** 2).sum() / (wanted**2).sum()), float((along < np.cos(np.pi / 6)).mean())


def main(spec: str, *folders: str) -> None:
    found: dict[tuple[int, bool], list[tuple[float, float]]] = {}
    for folder in folders:
        policy = Policy.from_pretrained(folder)
        if not (isinstance(policy, VLA) and isinstance(policy.space, CodeSpace) and policy.space.code_embeddings):
            sys.exit(f"{folder} is not a policy that `lapa pretrain` made from codes with places.")
        packed = pack([spec], policy.backbone.image_spec.size, quiet=True)
        frames = acting_frames(packed, 1)
        actions, episode = packed.require_actions("this")[frames], packed.episode_of(frames)
        likely, rng = said(policy, packed, frames), np.random.default_rng(0)
        for count in TRAJECTORIES:
            for _ in range(DRAWS):
                mine = np.isin(episode, rng.choice(packed.episodes, count, replace=False))
                wanted = ActionCodebook.from_readout(likely[~mine], actions[~mine]).decide(
                    likely[~mine], "expectation"
                )[:, 0]
                for with_places in (False, True):
                    places = policy.space.code_embeddings if with_places else ()
                    read = ActionCodebook.from_readout(likely[mine], actions[mine], code_embeddings=places)
                    told = read.decide(likely[~mine], "expectation")[:, 0]
                    found.setdefault((count, with_places), []).append(off(told, wanted))
    print("| trajectories | error, each code by itself | with places | > 30° off, by itself | with places |")
    print("|---|---|---|---|---|")
    for count in TRAJECTORIES:
        pair = [np.array(found[count, with_places]) for with_places in (False, True)]
        cells = [f"{x[:, 0].mean():.3f} ({x[:, 0].max():.2f})" for x in pair]
        cells += [f"{x[:, 1].mean():.1%} ({x[:, 1].max():.0%})" for x in pair]
        print(f"| {count} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
