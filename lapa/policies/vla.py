"""The vision-language-action policy: backbone, readout, one MLP head over classes.

In stage 2 the classes are latent codes (LAPA) or discretised actions (ActionVLA, VPT). In stage 3 `adapt` drops the
head and grows one for the robot's actions, or `read_as` keeps it and says what its classes mean for the robot. One
loss, the cross-entropy, serves both stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.actions.codebook import ActionCodebook
from lapa.actions.saved import Space, space_from_json
from lapa.actions.scales import Scales, scales_from_json
from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.actions.tables import Decoding
from lapa.artefacts.folder import Artefact, load_strictly
from lapa.contracts import Array, LapaError, Logs, Observation
from lapa.data.pixels import as_pixels
from lapa.plugins import configure
from lapa.policies import Policy
from lapa.training.loop import device, fast_dtype

IMPOSSIBLE = -1e4  # a logit


@dataclass(frozen=True)
class Batch:
    """images uint8 [B, H, W, 3]; texts B strings; targets int64 [B, positions], -100 where there is none (for a policy
    that imagines: the next frames, uint8 [B, K, H, W, 3])."""

    images: Array
    texts: list[str]
    targets: Array


@dataclass(frozen=True)
class Config:
    """A backbone (a plug-in of lapa/backbones with its options) and the width of the head's hidden layer."""

    backbone: str = "tiny"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    head_width: int = 256
    decoding: Decoding = "expectation"
    """classes to robot units: the expected action, the same at full length, or what the likeliest class means"""

    def build(self, pretrained: bool = True) -> VLA:
        """A policy without a head; `adapt` gives it one. `pretrained=False` skips the backbone's own weights."""
        return VLA(self, build_backbone(self.backbone, self.backbone_options, pretrained))

    @staticmethod
    def load(artefact: Artefact) -> VLA:
        """Open a saved policy strictly."""
        policy = artefact.settings(Config).build(pretrained=False)
        policy.adapt(space_from_json(artefact.config.get("space") or {}))
        policy.scales = scales_from_json(artefact.config.get("scales"))
        load_strictly(policy, artefact.tensors, artefact.path)
        return policy.to(device()).eval()


class VLA(nn.Module, Policy):
    """See the module's docstring."""

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        self.space: Space | None = None
        self.scales: Scales | None = None  # of the datasets it speaks the actions of, if each has its own
        self.head: nn.Module = nn.Identity()

    @property
    def dimensions(self) -> int:
        """A, once it speaks actions."""
        return 0 if self.space is None or isinstance(self.space, CodeSpace) else self.space.dimensions

    def adapt(self, space: Space) -> None:
        """Drop the head and grow a new one for `space`. A head that already speaks this very space stays."""
        if space == self.space:
            return
        width: int = self.backbone.width  # type: ignore[assignment]
        self.head = nn.Sequential(
            nn.Linear(width, self.config.head_width), nn.ReLU(),
            nn.Linear(self.config.head_width, space.positions * space.classes),
        )  # fmt: skip
        self.space = space

    @torch.no_grad()
    def read_as(self, meaning: ActionCodebook) -> None:
        """Keep the head as it is: its classes mean these actions from now on."""
        assert self.space is not None
        assert (meaning.positions, meaning.classes) == (self.space.positions, self.space.classes)
        if isinstance(self.space, ActionSpace):  # bins that a dimension has not stay impossible
            last = self.head[-1]  # type: ignore[index]
            absent = torch.from_numpy(np.isnan(self.space.centres())).repeat(self.space.chunk, 1).flatten()
            last.weight[absent], last.bias[absent] = 0.0, IMPOSSIBLE
        self.space = meaning

    def trainable(self, which: Literal["head", "all"]) -> Iterator[nn.Parameter]:
        """Freeze all but the head, or all but the vision encoder, and return what trains."""
        if which not in ("head", "all"):
            raise LapaError(f'Trainable is "head" or "all", not "{which}".')
        self.requires_grad_(which == "all")
        for parameter in self.backbone.vision_parameters():  # type: ignore[operator]
            parameter.requires_grad_(False)
        self.head.requires_grad_(True)
        return (p for p in self.parameters() if p.requires_grad)

    def logits(self, images: Array | Tensor, texts: Sequence[str]) -> Tensor:
        """-> float32 [B, positions, classes]; impossible bins are -inf."""
        if self.space is None:
            raise LapaError("This policy has no head yet; pretrain or finetune it first.")
        size: int = self.backbone.image_size  # type: ignore[assignment]
        pixels = as_pixels(images, size, next(self.head.parameters()).device)
        hidden = self.backbone(pixels, list(texts))
        logits = self.head(hidden).float().view(-1, self.space.positions, self.space.classes)
        if isinstance(self.space, ActionSpace):
            absent = torch.from_numpy(np.isnan(self.space.centres())).to(logits.device)
            logits = logits.masked_fill(absent.repeat(self.space.chunk, 1), -torch.inf)
        return logits

    @torch.no_grad()
    def probabilities(self, images: Array | Tensor, texts: Sequence[str]) -> Array:
        """-> float32 [B, positions, classes], in the arithmetic that is fast here, whatever that of training."""
        with torch.autocast(device().type, fast_dtype(), enabled=fast_dtype() != torch.float32):
            found: Array = self.logits(images, texts).softmax(-1).cpu().numpy()
        return found

    def loss(self, batch: Batch) -> tuple[Tensor, Logs]:
        """Cross-entropy of the classes. Logs: accuracy, and the perplexity of the mean prediction."""
        logits = self.logits(batch.images, batch.texts)
        targets = torch.from_numpy(batch.targets).to(logits.device)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        with torch.no_grad():
            known = targets >= 0
            accuracy = (logits.argmax(-1) == targets)[known].float().mean()
            used = torch.special.entr(logits.softmax(-1).mean(0)).sum(-1).exp().mean()
        return loss, {"accuracy": float(accuracy), "prediction_perplexity": float(used)}

    @torch.no_grad()
    def predict_codes(self, images: Array | Tensor, texts: Sequence[str]) -> Tensor:
        """The likeliest latent codes, int64 [B, s]. Raises LapaError once the latent head has been dropped."""
        if not isinstance(self.space, CodeSpace):
            raise LapaError("This policy predicts robot actions, not codes: its latent head was dropped in stage 3.")
        return self.logits(images, texts).argmax(-1)

    @torch.no_grad()
    def act_batch(self, observations: Sequence[Observation]) -> Array:
        """B observations -> float32 [B, chunk, A] in the robot's units; of a policy with `scales` in those of the
        observation's "dataset" (0, the first, where it says none)."""
        space = self.space
        if space is None or isinstance(space, CodeSpace):
            raise LapaError("This policy predicts latent codes, not robot actions; finetune it first (lapa finetune).")
        size: int = self.backbone.image_size  # type: ignore[assignment]
        actions = space.decide(self.probabilities(*seen(observations, size)), self.config.decoding)
        if self.scales is None:
            return actions
        asked = np.array([o.get("dataset", 0) for o in observations])
        if wrong := [n for n in asked.tolist() if n not in range(self.scales.datasets)]:
            raise LapaError(
                f'An observation\'s "dataset" counts the {self.scales.datasets} this policy was finetuned on from 0 '
                f"on; got {wrong[0]}."
            )
        return self.scales.restore(actions, asked)

    def description(self) -> dict[str, Any]:
        """What config.json needs to open this policy again."""
        told = {"space": self.space, "scales": self.scales}
        return {"policy": "vla", "model": asdict(self.config), **{k: v and asdict(v) for k, v in told.items()}}


def build_backbone(name: str, options: dict[str, Any], pretrained: bool) -> nn.Module:
    """A plug-in of lapa/backbones; without weights of its own where it has the choice (contracts.Backbone)."""
    config = configure("backbones", name, options)
    if not pretrained and any(field.name == "grounded" for field in fields(config)):
        config = replace(config, grounded=False)
    built: nn.Module = config.build()
    return built


def seen(observations: Sequence[Observation], size: int) -> tuple[Array | Tensor, list[str]]:
    """Images, uint8 [B, H, W, 3] or, where they are of several sizes, float [B, 3, size, size] in [0, 1], and
    instructions. Raises LapaError for what is not an observation."""
    try:
        images, texts = zip(*((np.asarray(o["image"]), o["instruction"]) for o in observations), strict=True)
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"the instruction is {wrong[0]!r}")
    except (KeyError, ValueError) as error:
        raise LapaError(f'An observation is {{"image": uint8 [H, W, 3], "instruction": str}} ({error!r}).') from None
    if len({image.shape for image in images}) == 1:
        return np.stack(images), list(texts)
    return torch.cat([as_pixels(image[None], size, "cpu") for image in images]), list(texts)
