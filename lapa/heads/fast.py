"""A small head that acts at a higher rate between two looks of the large model.

    answer   0        1        2        3        4
    backbone looks                               looks       with every = 4
             plan --------------------------->   plan
    head     looks    looks    looks    looks    looks

The plan is the readout of the backbone's last look: what is to be done. The head itself is small and looks at each
picture, with a frozen vision encoder of its own, and reads the state: where things are now. It is trained in stage 3 on
plans as old as they are in service. A regression (heads/regression.py) of both makes the actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from lapa import plugins
from lapa.actions.numbers import NumberSpace
from lapa.artefacts.pretrained import Reference
from lapa.contracts import Context, LapaError, Logs
from lapa.data.features import FrameFeatures, frame_features
from lapa.data.pack import Packed
from lapa.data.pixels import as_pixels
from lapa.heads import ChunkHead, absolute_error
from lapa.models.eyes import Eyes, Keypoints, keep_out


@dataclass(frozen=True)
class Config:
    """How often the backbone looks, and the size of the head."""

    numbers: ClassVar[bool] = True

    every: int = 8
    """the backbone looks at the first of so many answers"""
    execute: int = 1
    """actions of an answer that are carried out before the next one. With `every` it says how old a plan gets"""
    vision: str = "efficientnet"
    """a plug-in of lapa/encoders, such as pixels; never trained"""
    vision_options: dict[str, Any] = field(default_factory=dict)
    """its options"""
    keypoints: int = 64
    """learnt features whose places in the picture it looks for"""
    width: int = 256

    def build(self, width: int, space: NumberSpace) -> Fast:
        """A new head for readouts of this width. Raises LapaError on settings that cannot be."""
        if min(self.every, self.execute, self.keypoints, self.width) < 1:
            raise LapaError("fast: every, execute, keypoints and width are at least 1.")
        if self.execute > space.chunk:
            raise LapaError(
                f"fast: execute {self.execute} is more than the chunk of {space.chunk} actions; set chunk, or execute."
            )
        return Fast(width, self, space)

    def borrowed(self) -> Reference:
        """The package of its vision encoder. Raises LapaError where it is not installed."""
        found: Reference = plugins.configure("encoders", self.vision, self.vision_options).borrowed()
        return found


class Fast(ChunkHead):
    """See the module's docstring."""

    in_float32 = ("vision", "looks")  # coordinates have more digits than bfloat16 (runtime/precision.py)
    state: nn.Linear | None

    def __init__(self, inputs: int, config: Config, space: NumberSpace) -> None:
        super().__init__()
        self.space, self.config = space, config
        self.every, self.execute = config.every, config.execute
        self.plan = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, config.width))
        self.net = nn.Sequential(
            nn.LayerNorm(config.width), nn.ReLU(), nn.Linear(config.width, config.width), nn.ReLU(),
            nn.Linear(config.width, space.chunk * space.dimensions),
        )  # fmt: skip
        self.vision: Eyes | None = None
        self.looks = nn.ModuleList()
        self.register_module("state", None)
        self._met: tuple[int, int, int] | None = None

    def meet(self, image_size: int, cameras: int, state: int) -> None:
        """See AnyHead."""
        if self._met not in (None, (image_size, cameras, state)):
            raise LapaError(
                "The head fast was made for other cameras or another state than are now to be read. Give the policy a "
                "new head (--head new)."
            )
        if self._met is None:
            config, self._met = self.config, (image_size, cameras, state)
            self.vision = Eyes(config.vision, config.vision_options, image_size)
            shape = self.vision.shape
            self.looks.extend(Keypoints(shape, config.keypoints, config.width) for _ in range(cameras))
            self.state = nn.Linear(state, config.width) if state else None
            keep_out(self)

    def trained(self) -> Iterator[nn.Parameter]:
        """See AnyHead."""
        return (p for name, p in self.named_parameters() if not name.startswith("vision."))

    def features(self, packed: Packed) -> FrameFeatures | None:
        """See AnyHead."""
        eyes = self._eyes
        return frame_features(packed, eyes, eyes.numbers, eyes.name, eyes.key)

    @property
    def _eyes(self) -> Eyes:
        assert self.vision is not None, "meet comes first"
        return self.vision

    def answer(self, context: Context) -> Tensor:
        """-> float32 [B, chunk, A]. `now` of the context: features float16 [B, cameras, F] where they are known, else
        images uint8 [B, cameras, S, S, 3]; state float [B, S] where it is read."""
        now = context.now
        x = self.plan(context.readout)
        seen = now["features"] if "features" in now else self._look(now["images"])
        for look, grid in zip(self.looks, seen.unbind(1), strict=True):
            x = x + look(grid.unflatten(1, self._eyes.shape))[:, 0]
        if self.state is not None:
            x = x + self.state(now["state"])
        found: Tensor = self.net(x).float()
        return found.unflatten(1, (self.space.chunk, -1))

    def _look(self, images: Tensor) -> Tensor:
        """-> float16 [B, cameras, F]."""
        pixels = as_pixels(images.flatten(0, 1), images.shape[2], images.device)
        found: Tensor = self._eyes(pixels)
        return found.unflatten(0, images.shape[:2])

    def loss(self, context: Context, target: Tensor) -> tuple[Tensor, Logs]:
        """The mean absolute error of the actions that there are."""
        return absolute_error(self.answer(context), target)
