"""Policies: loss(batch), adapt(action space), act(observation). `Policy.from_pretrained` opens any of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lapa.contracts import Array, Observation


class Policy:
    """A saved policy, ready to act. Policies of every kind have this face.

    policy = lapa.Policy.from_pretrained("runs/policy")
    actions = policy.act({"image": frame, "instruction": "put the carrot on the plate"})
    """

    @staticmethod
    def from_pretrained(path: str | Path) -> Policy:
        """Open a policy: a folder made by `lapa finetune` or `lapa pretrain`, or user/name on the hub.

        Raises LapaError if there is none, or if its weights are damaged.
        """
        from lapa.artefacts.folder import load_artefact
        from lapa.plugins import find

        artefact = load_artefact(path, "policy")
        opened: Policy = find("policies", str(artefact.config.get("policy"))).load(artefact)
        return opened

    @property
    def dimensions(self) -> int:
        """Numbers in an action; 0 before stage 3, when the policy does not speak a robot's actions."""
        raise NotImplementedError

    def act(self, observation: Observation) -> Array:
        """What to do now: one observation -> float32 [chunk, A], the next actions in the robot's units.

        An observation is {"image": uint8 [H, W, 3], "instruction": str}; with several cameras it has "images",
        {camera: uint8 [H, W, 3]}, and where the policy reads the state, "state", float32 [S]. Images may be of any
        size. Raises LapaError for what is not an observation, and for a policy that was not finetuned.
        """
        return self.act_batch([observation])[0]

    def act_batch(self, observations: Sequence[Observation]) -> Array:
        """The same for B observations at once -> float32 [B, chunk, A]."""
        raise NotImplementedError
