"""Points that are followed through video: keypoints of several cameras, and the place in space that they tell.

Each tracker has `keypoints` in each camera: where a learnt feature of a frozen encoder is, by spatial softmax. A
network makes of their places in all cameras a place in space, one number for each motion of the robot. Two losses: in
the labelled episodes the difference of two places is the robot's motion in between; in all videos a keypoint moves as
the optical flow beneath it: it stays on what it is on, in tasks without labels too. Several trackers learn side by side
from other beginnings. The place teaches the keypoints alone; motions are then read from the keypoints of all trackers
(labels/_read.py).

It is ours, not the paper's (docs/latents.md "Following the hand").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa import plugins
from lapa.contracts import LapaError, Logs
from lapa.models.eyes import places_of
from lapa.runtime.distributed import noise_like

BEND = 0.1  # of the smooth absolute error of a motion, in deviations of the longest


@dataclass(frozen=True)
class PointsConfig:
    """What is followed, and how."""

    encoder: str = "efficientnet"
    """a plug-in of lapa/encoders; never trained"""
    encoder_options: dict[str, Any] = field(default_factory=dict)
    """its options"""
    image_size: int = 128
    """pixels a side that it looks at"""
    keypoints: int = 2
    """in each camera"""
    width: int = 32
    """of the two layers that find a keypoint"""
    trackers: int = 3
    """learnt side by side; their places are averaged"""
    window: float = 0.1
    """seconds of the optical flow; motions are learnt over one, two and three of it"""
    follow: float = 1.0
    """how much it counts that keypoints move as the flow; 0: not at all"""
    dropout: float = 0.1
    """share of the encoder's channels that a training step does not see"""

    def __post_init__(self) -> None:
        if min(self.image_size, self.keypoints, self.width, self.trackers) < 1:
            raise LapaError("points: image_size, keypoints, width and trackers are at least 1.")
        if not self.window > 0 or self.follow < 0 or not 0 <= self.dropout < 1:
            raise LapaError("points: window is above 0 seconds, follow not below 0, dropout from 0 to below 1.")


def _finer(grid: Tensor) -> Tensor:
    """Of an encoder that has no finer cells itself: float [B, C, rows, columns] -> [B, C, 2 rows, 2 columns]."""
    return F.interpolate(grid, scale_factor=2, mode="bilinear")


class Looks(NamedTuple):
    """What one tracker finds: place float [B, D]; of each camera heat [B, K, cells] and points [B, K, 2] in -1..1."""

    place: Tensor
    heat: list[Tensor]
    points: list[Tensor]


class PointsBatch(NamedTuple):
    """Features float16 [B, C, rows, columns] of each camera at both ends of labelled pairs and of pairs of video; the
    robot's motion in the labelled ones float32 [B, D]; the flow in the others [B, 2, cells], in halves of a picture."""

    now: list[Tensor]
    later: list[Tensor]
    motion: Tensor
    video_now: list[Tensor]
    video_later: list[Tensor]
    flow: list[Tensor]


class _Tracker(nn.Module):
    cells: Tensor

    def __init__(self, config: PointsConfig, shape: Sequence[int], cameras: int, motions: int) -> None:
        super().__init__()
        channels, rows, columns = shape
        self.dropout = config.dropout
        self.find = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, config.width, 1), nn.ReLU(), nn.Conv2d(config.width, config.keypoints, 1)
            )
            for _ in range(cameras)
        )  # fmt: skip
        self.sharp = nn.Parameter(torch.tensor(1.0))
        self.place = nn.Sequential(nn.Linear(2 * config.keypoints * cameras, 64), nn.GELU(), nn.Linear(64, motions))
        self.register_buffer("cells", places_of(rows, columns), persistent=False)

    def forward(self, seen: Sequence[Tensor]) -> Looks:
        """Standardised features of each camera."""
        scores = [find(self._some(x)).flatten(2) for find, x in zip(self.find, seen, strict=True)]
        heat = [(score * self.sharp.exp()).softmax(-1) for score in scores]
        points = [each @ self.cells for each in heat]
        return Looks(self.place(torch.cat([each.flatten(1) for each in points], 1)), heat, points)

    def _some(self, x: Tensor) -> Tensor:
        """In training without a share of the channels."""
        if not self.training or not self.dropout:
            return x
        drawn = torch.special.ndtr(noise_like(x.new_empty(*x.shape[:2], 1, 1)))
        return x * (drawn >= self.dropout) / (1 - self.dropout)


class Points(nn.Module):
    """All trackers. See the module's docstring."""

    middle: Tensor
    spread: Tensor
    unit: Tensor

    def __init__(self, config: PointsConfig, shape: tuple[int, int, int], cameras: int, motions: int) -> None:
        super().__init__()
        self.config = config
        encoder = plugins.configure("encoders", config.encoder, config.encoder_options)
        self.finer: Callable[[Tensor], Tensor] = getattr(encoder, "finer", _finer)
        self.shape: tuple[int, ...] = tuple(self.finer(torch.zeros(1, *shape)).shape[1:])
        """channels, rows and columns of what keypoints are looked for in"""
        self.trackers = nn.ModuleList(_Tracker(config, self.shape, cameras, motions) for _ in range(config.trackers))
        self.register_buffer("middle", torch.zeros(cameras, self.shape[0], 1, 1))
        self.register_buffer("spread", torch.ones(cameras, self.shape[0], 1, 1))
        self.register_buffer("unit", torch.ones(motions))

    def standardise(self, features: Sequence[Tensor], motion: Tensor) -> None:
        """Fit to features [n, C, rows, columns] of each camera and to motions float [n, D]."""
        for camera, seen in enumerate(self.finer(each.float()) for each in features):
            self.middle[camera, :, 0, 0] = seen.mean((0, 2, 3))
            self.spread[camera, :, 0, 0] = seen.std((0, 2, 3)).clamp_min(1e-3)
        self.unit.copy_(2 * motion.double().std(0).clamp_min(1e-6))

    def seen(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of each camera, in finer cells and standardised, float32."""
        where = self.middle.device
        finer = [self.finer(x.to(where).float()) for x in features]
        return [(x - m) / s for x, m, s in zip(finer, self.middle, self.spread, strict=True)]

    def loss(self, batch: PointsBatch) -> tuple[Tensor, Logs]:
        """Of the trackers' sum: the error of the motion, and by how much keypoints do not move as the flow."""
        parts = zip(batch.now, batch.later, batch.video_now, batch.video_later, strict=True)
        seen = self.seen([torch.cat([x.float() for x in each]) for each in parts])
        wanted = batch.motion.to(self.unit.device) / self.unit
        count, more = len(wanted), len(batch.flow[0])
        first, second = slice(2 * count, 2 * count + more), slice(2 * count + more, None)
        error, astray = self.unit.new_zeros(()), self.unit.new_zeros(())
        for tracker in self.trackers:
            found: Looks = tracker(seen)
            error = error + F.smooth_l1_loss(found.place[count : 2 * count] - found.place[:count], wanted, beta=BEND)
            for heat, points, flow in zip(found.heat, found.points, batch.flow, strict=True):
                beneath = torch.einsum("bkn,bcn->bkc", heat[first], flow.to(heat.device))
                astray = astray + (points[second] - points[first] - beneath).abs().mean()
        loss = error + self.config.follow * astray
        each = len(self.trackers)
        return loss, {"motion": float(error.detach()) / each, "astray": float(astray.detach()) / each}

    @torch.no_grad()
    def points(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of each camera [B, C, rows, columns] -> where its keypoints are, those of one tracker after another,
        float32 [B, trackers * K, 2] from -1 to 1, x to the right and y down."""
        return self._points([tracker(self.seen(features)) for tracker in self.trackers])

    @torch.no_grad()
    def look(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features of each camera [B, C, rows, columns] -> the points of all cameras float32 [B, 2 * points]; and what
        lies at the first tracker's keypoints, float32 [B, F]."""
        seen = self.seen(features)
        found = [tracker(seen) for tracker in self.trackers]
        there = [torch.einsum("bkn,bcn->bkc", heat, x.flatten(2)) for heat, x in zip(found[0].heat, seen, strict=True)]
        points = torch.cat([each.flatten(1) for each in self._points(found)], 1)
        return points, torch.cat([each.flatten(1) for each in there], 1)

    @staticmethod
    def _points(found: Sequence[Looks]) -> list[Tensor]:
        return [torch.cat(each, 1) for each in zip(*(one.points for one in found), strict=True)]
