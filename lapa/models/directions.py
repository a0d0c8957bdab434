"""An encoder that is fitted, not trained: the directions of frozen features whose change persists.

    place of a frame = features(frame) @ axes            d = place(x_{t+H}) - place(x_t)

What moves at one moment moves on at the next: a robot's arm goes the same way for a while. Noise, flicker and the
compression of the video do not. So the window is cut in two halves, and those directions are taken in which the change
of the features in the first half tells most of the change in the second (canonical correlation, on the principal
components of the change over the window). Each is scaled to unit deviation times its correlation to the power of
COUNTS, so that the codebook spends its codes on what persists. No labels, no gradient descent, no luck: the same video
gives the same directions.

Where a few episodes have actions, space is stretched along what tells them (`stretched`): codes then tell apart what
matters to the robot. The directions stay the same.

Beside the directions there may be the main flow (measures/flow.py): which way in the picture what moves most went, two
numbers. A direction of the features may mean another way for another robot; these two mean the same everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import nn

from lapa import plugins
from lapa.contracts import Array, LapaError
from lapa.measures.flow import flows, main_motion
from lapa.measures.linear import LinearFit

COMPONENTS = 256  # principal components of the change that directions are looked for in, at most
SHRINK = 1e-2  # of the mean variance of the components, added to each: little data cannot then invent directions
COUNTS = 1.5  # power of a direction's correlation that it is scaled by: 1 or 2 tells less on one of two robots
LEAST = 0.01  # correlation that a direction counts with, at least
TAUGHT = 4.0  # how much the labelled motion counts against all that persists, if the directions tell the whole of it
FOLDS = 5  # parts of the labelled episodes of which each is left out once


class Directions(nn.Module):
    """State: `axes` float32 [features, dim]; with `flow`, how much that counts, `ways` float32 [2], what the main flow
    is multiplied by. The frozen encoder is no part of it; it is loaded when first used."""

    axes: torch.Tensor
    ways: torch.Tensor

    def __init__(self, encoder: str, options: dict[str, Any], image_size: int, dim: int, flow: float = 0) -> None:
        super().__init__()
        self.config: Any = plugins.configure("encoders", encoder, options)
        self.name, self.dim, self.flow = encoder, dim, flow
        self.register_buffer("axes", torch.zeros(self.config.features(image_size), dim))
        if flow:
            self.register_buffer("ways", torch.ones(2))
        self._encoder: tuple[nn.Module, ...] = ()  # a tuple: neither saved nor trained

    @property
    def encoder(self) -> nn.Module:
        """The frozen encoder, on the device of the axes."""
        if not self._encoder:
            self._encoder = (self.config.build().eval().requires_grad_(False),)
        return self._encoder[0].to(self.axes.device)

    @torch.no_grad()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """float [B, 3, S, S] in [0, 1] -> float32 [B, features], rounded to float16 as they are kept on disk: a frame
        has the same place whether its features are read or computed."""
        with torch.autocast(pixels.device.type, enabled=False):  # codes must not depend on the arithmetic of training
            found: torch.Tensor = self.encoder(pixels.float())
        return found.half().float()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """float [B, 3, S, S] in [0, 1] -> places float32 [B, dim]."""
        return self.place(self.features(pixels))

    def place(self, features: torch.Tensor) -> torch.Tensor:
        """float [B, features] -> float32 [B, dim]."""
        with torch.autocast(features.device.type, enabled=False):
            return features.float() @ self.axes

    def between(self, now: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """Pixels of the two frames, float [B, 3, S, S] in [0, 1] each -> their difference, float32 [B, dim], and behind
        it the main flow."""
        return torch.cat([self(later) - self(now), self.way(now, later)], 1)

    def way(self, now: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """The same -> the main flow alone, x and y, float32 [B, 2]; [B, 0] where it does not count."""
        if not self.flow:
            return now.new_zeros(len(now), 0)
        frames = [(x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy() for x in (now, later)]
        return torch.from_numpy(main_motion(flows(*frames))).to(self.ways) * self.ways

    def weigh(self, moved: Array, way: Array) -> None:
        """Differences float [N, dim] and main flow float [N, 2] of pairs: make the flow `flow` times as long as the
        differences, in the root of the mean square."""
        length = np.sqrt(np.square(moved).sum(1).mean() / way.shape[1])
        self.ways.copy_(torch.from_numpy(self.flow * length / np.maximum(way.std(0), 1e-6)))

    def fit(self, start: Array, middle: Array, end: Array) -> Array:
        """Features float [N, features] at the start, middle and end of the windows: find the directions. Returns their
        correlations float64 [dim], the largest first. Raises LapaError where there are too few windows."""
        axes, correlations = persistent(start, middle, end, self.dim)
        self.axes.copy_(torch.from_numpy(axes))
        return correlations

    def stretch(self, change: Array, moved: Array, episode: Array) -> float:
        """See `stretched`: the axes are stretched along what tells the motion of labelled pairs. Returns the share of
        its variance that is told."""
        axes, share = stretched(self.axes.cpu().numpy(), change, moved, episode)
        self.axes.copy_(torch.from_numpy(axes))
        return share


def persistent(start: Array, middle: Array, end: Array, dim: int) -> tuple[Array, Array]:
    """Features float [N, F] at the start, middle and end of N windows -> axes float32 [F, dim], scaled, and their
    correlations float64 [dim]."""
    whole = end.astype(np.float64) - start
    if len(whole) <= dim or whole.shape[1] < dim:
        raise LapaError(
            f"{len(whole)} windows of {whole.shape[1]} features are too few for {dim} directions. Give more video, or "
            f"take fewer: --set laq.quant_dim={max(1, min(len(whole) // 4, whole.shape[1]))}."
        )
    basis = principal(whole, max(dim, min(COMPONENTS, len(whole) // 4, whole.shape[1])))
    first, second = (middle.astype(np.float64) - start) @ basis, (end.astype(np.float64) - middle) @ basis
    own = (first.T @ first + second.T @ second) / 2
    both = (first.T @ second + second.T @ first) / 2
    own += np.eye(len(own)) * (SHRINK * np.trace(own) / len(own) + 1e-12)
    found, vectors = scipy.linalg.eigh(both, own)
    correlations, axes = found[::-1][:dim], basis @ vectors[:, ::-1][:, :dim]
    deviation = np.maximum((whole @ axes).std(0), 1e-12)
    return (axes * (np.maximum(correlations, LEAST) ** COUNTS / deviation)).astype(np.float32), correlations


def stretched(axes: Array, change: Array, moved: Array, episode: Array) -> tuple[Array, float]:
    """The axes [F, dim] for another distance: |d|^2 becomes |d|^2 + TAUGHT * share * |motion that d tells|^2,
    each in units of its mean. What d tells is a ridge regression on labelled pairs, its penalty chosen on episodes left
    out; `share` is what it tells of the motion's variance in episodes that are left out of it, at least 0.

    change float [M, F] of the features over the window, moved float [M, A], episode int64 [M], of two or more. Returns
    the axes and the share.
    """
    deviation = moved.std(0)  # each dimension counts as much: metres, radians and a gripper's levels are no one unit
    target = moved / (np.maximum(deviation, 1e-3 * deviation.max()) + 1e-12) / np.sqrt(moved.shape[1])
    d = change.astype(np.float64) @ axes
    left_out, fold = np.empty_like(target), np.unique(episode, return_inverse=True)[1] % FOLDS
    for k in np.unique(fold):
        rest = fold != k
        left_out[~rest] = LinearFit.fit(d[rest], target[rest], episode[rest])(d[~rest])
    share = max(0.0, 1 - float(np.square(target - left_out).sum() / np.square(target - target.mean(0)).sum()))
    weights = LinearFit.fit(d, target, episode).weights
    along, whole = np.square(d @ weights).sum(1).mean() + 1e-12, np.square(d).sum(1).mean()
    values, vectors = np.linalg.eigh(np.eye(len(weights)) + TAUGHT * share * whole / along * weights @ weights.T)
    return (axes @ (vectors * np.sqrt(values)) @ vectors.T).astype(np.float32), share


def principal(x: Array, count: int) -> Array:
    """The first `count` principal components of float64 [N, F], as columns [F, count]."""
    small = x.shape[1] > len(x)
    size = min(x.shape)
    _, vectors = scipy.linalg.eigh(x @ x.T if small else x.T @ x, subset_by_index=[size - count, size - 1])
    axes = x.T @ vectors if small else vectors
    made: Array = axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    return made
