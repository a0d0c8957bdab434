"""UniPi: imagine the next frames from image and instruction, then read the actions off them with inverse dynamics.

The backbone's readout (the backbone is that of all methods) tells the video diffusion which future is wanted. Stage 2
trains both on all videos, stage 3 on the few labelled trajectories; `adapt` gives the planner VPT's inverse dynamics,
and with it actions (paper section 4.1).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from lapa.actions.meaning import Meaning
from lapa.artefacts.folder import load_artefact
from lapa.artefacts.settings import checked, typed_value
from lapa.backbones import Backbone, build_backbone, pictures
from lapa.contracts import Array, Inputs, Labels, LapaError, Logs, Observation, PolicySpec
from lapa.data.futures import Futures, futures
from lapa.data.index import Index
from lapa.data.observations import ONE, Seen, seen
from lapa.data.pack import Packed
from lapa.data.pixels import as_pixels
from lapa.measures.probes import r2
from lapa.models.idm import IDMConfig, InverseDynamics
from lapa.models.video_diffusion import VideoDiffusion, VideoDiffusionConfig
from lapa.plots.codes import future_frames
from lapa.policies import Examples, Monitor, OnBackbone, Policy, Which, acting_frames, tell_of_texts
from lapa.recipe import Recipe
from lapa.runtime.distributed import device
from lapa.runtime.precision import fast_dtype
from lapa.training.logbook import Logbook

WATCHED = 256  # futures, fixed for the run, that a planner is judged by
SHOWN = 5  # of them in the picture
AT_ONCE = 64  # observations imagined at once: larger batches leave the cache


@dataclass(frozen=True)
class PlannerBatch:
    """What the backbone encodes; the frames that it stands for, uint8 [B, size, size, 3]; and those to imagine, uint8
    [B, K, size, size, 3]."""

    inputs: Inputs
    now: Tensor
    future: Tensor


@dataclass(frozen=True)
class Config(OnBackbone):
    """A backbone (a plug-in of lapa/backbones with its options) and the video diffusion."""

    learns: ClassVar[tuple[str, ...]] = ("frames",)
    pretrained_by: ClassVar[str] = "pretrain_planner"
    finetuned_by: ClassVar[str] = "finetune_planner"

    video: VideoDiffusionConfig = VideoDiffusionConfig()

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The same backbone as the other policies', and `planner` of the recipe."""
        return cls(recipe.policy.backbone, recipe.policy.backbone_options, recipe.planner)

    def build(self, pretrained: bool = True) -> VideoPlanner:
        """A planner that imagines; `give` makes it act. `pretrained=False` skips the backbone's own weights."""
        return VideoPlanner(self, build_backbone(self.backbone, self.backbone_options, pretrained))

    @classmethod
    def ways(cls, saved: Mapping[str, Any] | None) -> tuple[str, ...]:
        """See PolicyConfig: it goes on imagining, or is given the inverse dynamics as it is."""
        return ("head", "all", "all-long", "as-it-is")

    @classmethod
    def settings(cls, saved: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """See PolicyConfig."""
        return {"policy": saved.get("model", {}), "planner": saved.get("model", {}).get("video", {})}


@dataclass(frozen=True)
class SavedReader:
    """What config.json says of the inverse dynamics (InverseDynamics.description)."""

    model: IDMConfig
    dimensions: int


class VideoPlanner(Policy):
    """See the module's docstring."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        read = backbone.image_spec
        self.imagined = replace(read, size=config.video.pixels or read.size)
        self.video = VideoDiffusion(config.video, backbone.width)
        self.reader: InverseDynamics | None = None
        self.meaning: Meaning | None = None  # of what it reads
        self.camera = ONE

    @property
    def spec(self) -> PolicySpec:
        """See Policy."""
        executed, meaning = self.config.video.executed, self.meaning
        state, action = (meaning.state, meaning.spec) if meaning else ((), None)
        return PolicySpec((self.camera,), state, action, executed, executed)

    @property
    def origin(self) -> Mapping[str, str]:
        """See Policy: the backbone's."""
        return self.backbone.origin

    def overlooked(self, texts: Sequence[str]) -> list[str]:
        """See Policy: the backbone's."""
        return self.backbone.overlooked(texts)

    @property
    def dimensions(self) -> int:
        """A, once it has inverse dynamics."""
        return len(self.reader.mean) if self.reader is not None else 0

    def give(self, reader: InverseDynamics) -> None:
        """From now on this model reads the actions from the imagined frames. It is not trained any more."""
        self.reader = reader.requires_grad_(False)

    # --- learning

    def examples(self, labels: Labels, data: Index, about: Mapping[str, Any], recipe: Recipe) -> Examples:
        """The frames that the labels say come next."""
        if not isinstance(data, Packed):
            raise LapaError("A policy that imagines frames (UniPi) needs a pack of the videos; leave out --stream.")
        self.camera = data.camera or ONE
        frames = data.starts[labels.episode] + labels.frame
        films = futures(data, frames, data.starts[labels.episode] + labels.values[:, 0], self.config.video.frames)
        return Examples(frames, films, lambda out, seed: watcher(self, films, frames, out, seed))

    def adapt(self, data: Packed, recipe: Recipe, idm: Path | None = None) -> Examples:
        """It learns to imagine these data, and reads actions with `idm`, or with the model that it has."""
        actions = data.require_actions("finetuning")
        self.camera = data.camera or ONE
        parents = self.as_it_is(idm)
        frames = acting_frames(data)
        films = futures(data, frames, frames + 1, self.config.video.frames)
        if self.dimensions != actions.shape[1]:
            raise LapaError(
                f"{data.spec} has {actions.shape[1]} action dimensions; the policy speaks {self.dimensions}. Give it "
                "inverse dynamics of this robot (--idm)."
            )
        return Examples(frames, films, lambda out, seed: watcher(self, films, frames, out, seed), parents=parents)

    def as_it_is(self, idm: Path | None = None) -> dict[str, str]:
        """Open the inverse dynamics model for a planner that has none yet. Returns its path and hash."""
        if idm is not None:
            artefact = load_artefact(idm, "idm")
            self.give(InverseDynamics.opened(artefact))
            self.meaning = Meaning.from_json(artefact.config.get("meaning"))
            return {str(idm): artefact.hash}
        if self.reader is None:
            raise LapaError(
                "This policy imagines frames, and something must read actions off them: fit inverse dynamics with "
                "`lapa fit` on the labelled trajectories and give its folder as --idm."
            )
        return {}

    def trainable(self, which: Which) -> Iterator[nn.Parameter]:
        """Freeze all but the video diffusion, or all but vision encoder and reader, and return what trains."""
        super().trainable(which)
        self.requires_grad_(which == "all")
        for parameter in self.backbone.groups()["vision"]:
            parameter.requires_grad_(False)
        self.video.requires_grad_(True)
        if self.reader is not None:
            self.reader.requires_grad_(False)
        return (p for p in self.parameters() if p.requires_grad)

    def batch(self, seen: Seen, targets: Array) -> PlannerBatch:
        """See Policy. `targets` are the next frames, uint8 [B, K, H, W, 3]."""
        (images,) = seen.images.values()
        future = pictures(targets.reshape(-1, *targets.shape[2:]), self.imagined).unflatten(0, targets.shape[:2])
        return PlannerBatch(self.backbone.prepare(seen), pictures(images, self.imagined), future)

    def loss(self, batch: PlannerBatch) -> tuple[Tensor, Logs]:
        """The video diffusion's."""
        now = self._pixels(batch.now)
        future = self._pixels(batch.future.flatten(0, 1))
        return self.video.loss(now, future.unflatten(0, (len(now), -1)), self._condition(batch.inputs))

    def _condition(self, inputs: Inputs) -> Tensor:
        where = next(self.video.parameters()).device
        readout: Tensor = self.backbone({name: tensor.to(where) for name, tensor in inputs.items()}).readout
        return readout

    # --- imagining and acting

    @torch.no_grad()
    def imagine(self, images: Any, texts: Sequence[str]) -> Tensor:
        """uint8 [B, H, W, 3] or float [B, 3, H, W] in [0, 1] -> the next frames, float32 [B, K, 3, size, size] in
        [0, 1]. The same image and text give the same frames. In the fastest arithmetic of this machine."""
        return self._imagine(Seen.of(images, texts))

    def _imagine(self, seen: Seen) -> Tensor:
        (images,) = seen.images.values()
        now = self._pixels(pictures(images, self.imagined))
        noise = torch.stack([self._noise(pixels, text) for pixels, text in zip(now.cpu(), seen.texts, strict=True)])
        with torch.autocast(device().type, fast_dtype(), enabled=fast_dtype() != torch.float32):
            return self.video.sample(now, self._condition(self.backbone.prepare(seen)), noise.to(now.device))

    @torch.no_grad()
    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        """B observations -> float32 [B, executed, A] in the robot's units. Ask again when they are done."""
        if self.reader is None:
            raise LapaError("This policy imagines frames and cannot act yet; finetune it first (lapa finetune).")
        shown = seen(observations, self.spec)
        tell_of_texts(self, shown.texts)
        return np.concatenate([self._plan(shown.part(i, i + AT_ONCE)) for i in range(0, len(shown), AT_ONCE)])

    def _plan(self, seen: Seen) -> Array:
        (images,) = seen.images.values()
        now = self._pixels(pictures(images, self.imagined))
        actions = self.read(now, self._imagine(seen)[:, : self.config.video.executed]).cpu().numpy()
        return self.meaning.along(actions, seen.state) if self.meaning else actions

    def read(self, now: Tensor, film: Tensor) -> Tensor:
        """Actions that lead through a film: float [B, 3, H, W], [B, K, 3, H, W] -> float32 [B, K, A], robot units."""
        assert self.reader is not None
        frames = [now, *film.unbind(1)]
        return torch.stack([self.reader.predict(a, b) for a, b in pairwise(frames)], 1)

    def _pixels(self, images: Tensor) -> Tensor:
        return as_pixels(images, self.imagined.size, next(self.video.parameters()).device)

    def _noise(self, pixels: Tensor, text: str) -> Tensor:
        """Noise that is a function of what is seen, so that a plan does not depend on the batch it is made in."""
        content = (pixels * 255).round().byte().numpy().tobytes()
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode(), zlib.crc32(content)))
        return torch.randn(self.config.video.frames, *pixels.shape, generator=generator)

    # --- saving

    def description(self) -> dict[str, Any]:
        """What config.json needs to open this planner again."""
        reader = self.reader.description() if self.reader is not None else None
        return {**super().description(), "reader": reader, "camera": self.camera,
                "meaning": self.meaning and asdict(self.meaning)}  # fmt: skip

    def restore(self, saved: Mapping[str, Any]) -> None:
        """See Policy."""
        self.meaning = Meaning.from_json(saved.get("meaning"))
        self.camera = typed_value(str, saved.get("camera", ONE), "camera")
        if (content := saved.get("reader")) is not None:
            reader = checked(SavedReader, content, "reader")
            self.give(InverseDynamics(reader.model, reader.dimensions))
        if self.reader is not None and self.meaning and len(self.meaning.spec) != self.dimensions:
            raise LapaError(f"meaning.spec has {len(self.meaning.spec)} actions, the reader {self.dimensions}.")


def watcher(planner: VideoPlanner, real: Futures, frames: Array, out: Path, seed: int) -> Monitor:
    """A monitor for `fit`: imagined futures beside the real ones, as a picture and in figures.

    error_over_copy is that of the imagined frames; action_agreement, once the planner reads actions, the R^2 of the
    true ones. Both are of training data: no video is held out from the policies.
    """
    rows = np.random.default_rng(seed).choice(len(frames), min(WATCHED, len(frames)), replace=False)
    packed = real.packed
    now, texts = packed.gather(frames[rows]), [packed.instructions[e] for e in packed.episode_of(frames[rows])]
    future = real[rows]

    def monitor(step: int, book: Logbook) -> Logs:
        film = planner.imagine(now, texts)
        begin, end = (as_pixels(x, planner.imagined.size, device()) for x in (now, future.reshape(-1, *now.shape[1:])))
        true = end.view_as(film)
        error, copy = (float((x - true).square().mean()) for x in (film, begin[:, None]))
        logs = {"watched/error_over_copy": error / max(copy, 1e-9)}
        if planner.reader is not None and packed.actions is not None:
            steps = packed.steps()  # absolute actions are read as changes of the state
            assert steps is not None
            acted = steps[np.column_stack([frames[rows], real.index[rows, :-1]])]  # [B, K, A]
            read = planner.read(begin, film).cpu().numpy()
            logs["watched/action_agreement"] = r2(read.reshape(len(read), -1), acted.reshape(len(read), -1))
        picture = out / "pictures" / "futures.png"
        title = f"The next frames, real and imagined; step {step}"
        future_frames(begin[:SHOWN], true[:SHOWN], film[:SHOWN], texts[:SHOWN], picture, title)
        book.picture("futures", picture)
        return logs

    return monitor
