"""Any vision encoder of transformers, such as DINOv2, SigLIP, CLIP or ConvNeXt: a folder, or a hub id at a revision.

The grid is its last layer: a token for each patch, without those that stand for the whole picture. The vector of
stage 1 is the same, averaged over `pool` x `pool` patches.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lapa.artefacts.limits import uncounted
from lapa.artefacts.pretrained import Reference, Source, of_model, quietly
from lapa.contracts import LapaError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation, where the model says nothing


@dataclass(frozen=True)
class Config:
    """model: a folder or a hub id; revision: commit of a model of the hub; pool: patches a side that are averaged for
    the vector."""

    model: str = ""
    revision: str = ""
    pool: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.pool <= 16:
            raise LapaError(f"encoder hub: pool is 1 to 16, not {self.pool}.")

    def features(self, image_size: int) -> int:
        """Numbers a picture. Raises LapaError where the picture is too small, and as `grid`."""
        channels, rows, columns = self.grid(image_size)
        if not rows // self.pool:
            raise LapaError(
                f"encoder hub: pictures of {image_size} pixels have {rows} patches a side, fewer than pool."
            )
        return channels * (rows // self.pool) * (columns // self.pool)

    def grid(self, image_size: int) -> tuple[int, int, int]:
        """Channels, rows, columns. Raises LapaError where there is no such model, or it takes no such pictures."""
        return _shape(self._source(), image_size)

    def weights(self) -> str:
        """A hash of its files."""
        return self._source().hash

    def borrowed(self) -> Reference:
        """The folder or repository. Raises LapaError where it is not there."""
        return self._source().reference

    def build(self) -> nn.Module:
        return HubFeatures(self._source(), self.pool)

    def _source(self) -> Source:
        if not self.model:
            raise LapaError('encoder hub: say which model, a folder or a hub id: {"model": "FOLDER"}.')
        if importlib.util.find_spec("transformers") is None:
            raise LapaError('The encoder hub needs transformers: pip install "lapa[pieces]".')
        return of_model(self.model, self.revision, "model")


class HubFeatures(nn.Module):
    """float [B, 3, S, S] in [0, 1] -> float32 [B, F]; `grid` -> float32 [B, C, rows, columns]."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, source: Source, pool: int) -> None:
        super().__init__()
        from transformers import AutoModel

        self.net = _vision(_made(source, lambda: AutoModel.from_pretrained(source.path, dtype=torch.float32)))
        self.net.eval().requires_grad_(False)
        self.pool = pool
        for name, value in zip(("mean", "deviation"), _normalisation(source.path), strict=True):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(self.grid(images), self.pool).flatten(1)

    def grid(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return _seen(self.net, (images.float() - self.mean) / self.deviation).float()


def _seen(net: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The last hidden state as a grid."""
    size = pixels.shape[-1]
    own = getattr(net.config, "image_size", size)
    try:
        other = {"interpolate_pos_encoding": True} if own != size else {}
        found = net(pixel_values=pixels, **other)
    except TypeError:  # it does so unasked, or takes pictures of any size
        found = net(pixel_values=pixels)
    hidden = found.last_hidden_state
    if hidden.ndim == 4:
        return hidden
    side = size // int(net.config.patch_size)
    return hidden[:, hidden.shape[1] - side * side :].transpose(1, 2).unflatten(2, (side, side))


@lru_cache(16)
def _shape(source: Source, size: int) -> tuple[int, int, int]:
    """Of the grid, without the weights."""
    from transformers import AutoConfig, AutoModel

    config = _made(source, lambda: AutoConfig.from_pretrained(source.path))
    with uncounted(), torch.device("meta"), torch.no_grad():
        net = _vision(_made(source, lambda: AutoModel.from_config(config)))
        try:
            channels, rows, columns = _seen(net, torch.zeros(1, 3, size, size)).shape[1:]
        except (RuntimeError, ValueError, AttributeError, TypeError) as error:
            raise LapaError(f"encoder hub: {source.name} takes no pictures of {size} pixels ({error}).") from None
    return channels, rows, columns


def _vision(model: Any) -> Any:
    """The part that sees."""
    return getattr(model, "vision_model", model)


def _normalisation(folder: Path) -> tuple[Any, Any]:
    """Mean and deviation that pictures are brought to."""
    file = folder / "preprocessor_config.json"
    told = json.loads(file.read_text()) if file.exists() else {}
    return told.get("image_mean", IMAGENET[0]), told.get("image_std", IMAGENET[1])


def _made(source: Source, make: Any) -> Any:
    try:
        with quietly():
            return make()
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise LapaError(f"encoder hub: transformers cannot load {source.name} ({first}).") from None
