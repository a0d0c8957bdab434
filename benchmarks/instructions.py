"""Does a policy follow its instructions? The same frames with the right instruction, with another one, and with none.

    python benchmarks/instructions.py POLICY NAME:PATH[,OPTION=VALUE] .. [--labels=LABELS]

POLICY is a folder of `lapa pretrain`, with the LABELS it learnt (`lapa label`) and the datasets as they were given
there, or of `lapa finetune`. The datasets have several tasks. Judged are episodes that the policy was not trained on:
each n-th of the labels (hold_out of the recipe), or all episodes of a dataset that stage 3 has not seen. Another
instruction is that of another episode, in other words, drawn at random (seed 0). Prints the accuracy and the loss of
codes, or the error of actions (1: the mean action), with 95% intervals over episodes of the difference to the right
instruction.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lapa.artefacts.folder import describe
from lapa.contracts import Array, Labels
from lapa.data.labelled import read_labels
from lapa.data.pack import Packed, pack
from lapa.measures.intervals import by_episode
from lapa.measures.offline import asked, recorded
from lapa.policies import Policy, look
from lapa.training.held_out import is_held_out

FRAMES = 3000  # judged, at most
AT_ONCE = 128


def others(texts: tuple[str, ...]) -> tuple[str, ...]:
    """For each episode the instruction of a random other one that has other words."""
    rng = np.random.default_rng(0)
    return tuple(str(rng.choice([other for other in texts if other != text])) for text in texts)


def of_codes(policy: Policy, labels: Labels, rows: Array) -> Callable[[Packed], dict[str, Array]]:
    """Accuracy and loss of each of these rows of the labels, float [N], on a pack."""

    def measure(packed: Packed) -> dict[str, Array]:
        features, found = policy.features(packed), []
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            frames = packed.starts[labels.episode[some]] + labels.frame[some]
            inputs = policy.batch(look(packed, frames, policy.spec, features=features), labels.values[some])
            with torch.no_grad():
                context = policy.backbone(inputs.inputs)  # type: ignore[operator, union-attr]
                likely = policy.head.logits(context).log_softmax(-1)  # type: ignore[operator, union-attr]
            targets = inputs.targets[..., None]
            right = (likely.argmax(-1) == inputs.targets).float().mean(1)
            found.append(torch.stack([right, -likely.gather(-1, targets)[..., 0].mean(1)]))
        accuracy, loss = torch.cat(found, 1).numpy()
        return {"accuracy of codes": accuracy, "loss of codes": loss}

    return measure


def of_actions(policy: Policy, chunk: int) -> Callable[[Packed], dict[str, Array]]:
    """Error of the actions of each frame, float [N], over that of the mean action."""

    def measure(packed: Packed) -> dict[str, Array]:
        some = recorded(packed, np.arange(packed.episodes), chunk, FRAMES)
        missed = np.abs(asked(policy, some, policy.spec)[:, :chunk] - some.actions)
        mean = np.abs(some.actions - some.actions.mean((0, 1)))
        varies = mean.mean((0, 1)) > 1e-9
        return {"error of actions": (missed / np.maximum(mean.mean((0, 1)), 1e-9))[..., varies].mean((1, 2))}

    return measure


def main(folder: str, *given: str) -> None:
    specs = [one for one in given if not one.startswith("--labels=")]
    labelled = "".join(one.removeprefix("--labels=") for one in given if one not in specs)
    policy = Policy.from_pretrained(folder)
    packed = pack(specs, policy.config.image_size, cameras=policy.config.cameras, fit=policy.config.fit, quiet=True)
    if len(set(packed.instructions)) < 2:
        sys.exit(f"{packed.spec} has one instruction only; whether it is followed does not show.")
    if labelled:
        labels, _ = read_labels(Path(labelled))
        every = int(describe(folder, "policy").config["recipe"]["hold_out"])
        held = np.flatnonzero(is_held_out(labels.episode, every))
        rows = held[np.linspace(0, len(held) - 1, min(FRAMES, len(held))).astype(int)]
        measure, episode = of_codes(policy, labels, rows), labels.episode[rows]
    else:
        measure = of_actions(policy, policy.spec.chunk)
        episode = recorded(packed, np.arange(packed.episodes), policy.spec.chunk, FRAMES).episode
    texts = packed.instructions
    asked_with = {"right": texts, "another's": others(texts), "none": ("",) * len(texts)}
    found = {name: measure(replace(packed, instructions=given)) for name, given in asked_with.items()}
    print(f"{len(episode):,} frames of {len(np.unique(episode))} episodes, {len(set(texts))} instructions.")
    print("| instruction | " + " | ".join(found["right"]) + " |\n|---|" + "---|" * len(found["right"]))
    for name, figures in found.items():
        cells = []
        for figure, values in figures.items():
            off = values - found["right"][figure]
            low, high = by_episode(episode, lambda w, off=off: float((off * w).sum() / w.sum()))
            cells.append(f"{values.mean():.3f}" + ("" if name == "right" else f" ({low:+.3f} to {high:+.3f})"))
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
