"""A frozen vision encoder in a policy, and two ways to make tokens of what it sees: keypoints, or the grid itself."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn

from lapa import plugins
from lapa.artefacts.limits import uncounted

SHARP = 2.0  # deviation of a keypoint's scores over the cells at first: its place then tells of the picture


class Eyes(nn.Module):
    """The frozen vision encoder: float [B, 3, S, S] in [0, 1] -> float16 [B, channels * rows * columns].

    `name` and `options` of a plug-in of lapa/encoders. Its weights are those of its package: they are neither saved nor
    loaded with the rest (`keep_out`). On torch's "meta" device, where shapes are compared, it has none."""

    def __init__(self, name: str, options: Mapping[str, Any], image_size: int) -> None:
        super().__init__()
        self.name, its = name, plugins.configure("encoders", name, options)
        self.shape: tuple[int, int, int] = its.grid(image_size)
        self.key = f"grid {self.name} {its!r} {its.weights()}"  # what its features depend on
        with uncounted():
            self.net: nn.Module = nn.Identity() if torch.empty(0).is_meta else its.build()
        self.net.eval().requires_grad_(False)

    @property
    def numbers(self) -> int:
        """Of a picture."""
        channels, rows, columns = self.shape
        return channels * rows * columns

    def train(self, mode: bool = True) -> Self:
        """It stays as it is."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        first = next(chain(self.net.parameters(), self.net.buffers()), None)
        if first is not None and first.device != pixels.device:  # to go through all of it takes milliseconds
            self.net.to(pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):  # the same in training and in service
            found: Tensor = self.net.grid(pixels.float())  # type: ignore[operator]
        return found.flatten(1).half()


def keep_out(module: nn.Module) -> None:
    """What is saved of a module holds nothing of its part `vision`, an Eyes."""
    module.register_state_dict_post_hook(_leave_out)
    module.register_load_state_dict_pre_hook(_put_in)


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """What is saved holds nothing of the vision encoder."""
    for name in [name for name in state if name.startswith(f"{prefix}vision.")]:
        del state[name]


def _put_in(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """The inverse, before it is loaded: what the vision encoder has already."""
    state |= {f"{prefix}vision.{name}": tensor for name, tensor in module.vision.state_dict().items()}  # type: ignore[union-attr]


def places_of(rows: int, columns: int) -> Tensor:
    """Middles of the cells, x and y in [-1, 1]: float32 [rows * columns, 2]."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1) * 2 - 1


class Keypoints(nn.Module):
    """Where in the picture each of so many learnt features is (spatial softmax), as one token."""

    places: Tensor

    def __init__(self, shape: tuple[int, int, int], count: int, width: int) -> None:
        super().__init__()
        channels, rows, columns = shape
        self.norm = nn.LayerNorm(channels)
        self.find = nn.Linear(channels, count)
        nn.init.normal_(self.find.weight, std=SHARP * channels**-0.5)
        self.token = nn.Linear(2 * count, width)
        self.register_buffer("places", places_of(rows, columns), persistent=False)

    def forward(self, grid: Tensor) -> Tensor:
        """float [B, channels, rows, columns] -> [B, 1, width]."""
        with torch.autocast(grid.device.type, enabled=False):
            cells = self.norm(grid.float().flatten(2).transpose(1, 2))
            found = self.find(cells).softmax(1).transpose(1, 2) @ self.places  # [B, keypoints, 2]
            return self.token(found.flatten(1))[:, None]


class Grid(nn.Module):
    """A token for each cell, with its place."""

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, rows, columns = shape
        self.norm = nn.LayerNorm(channels)
        self.token = nn.Linear(channels, width)
        angles = places_of(rows, columns)[..., None] * torch.pi * 2.0 ** (torch.arange(width // 4) % 4 - 1)
        self.position = nn.Parameter(torch.cat([angles.sin(), angles.cos()], -1).flatten(1))

    def forward(self, grid: Tensor) -> Tensor:
        """float [B, channels, rows, columns] -> [B, rows * columns, width]."""
        cells = self.norm(grid.float().flatten(2).transpose(1, 2))
        return self.token(cells) + self.position
