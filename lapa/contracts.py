"""The data path on one page: what flows between the stages, and the face each plug-in shows.

    video -datasets-> Episode -data/pack or data/stream-> Index -data/pairs-> FramePairs -labels-> Labels
          -stage2_pretrain-> policy -stage3_finetune-> robot policy -act-> Actions -evaluate-> Outcome

Shapes: B batch, T frames of an episode, H and W pixels, A action dimensions, S state dimensions, s codes per
pair of frames. Images are uint8 RGB outside models and float in [0, 1], channels first, inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict, runtime_checkable

from numpy.typing import NDArray

if TYPE_CHECKING:  # so that listing plug-ins and printing help need no torch
    import torch

Array = NDArray[Any]
Logs = dict[str, float]


class LapaError(Exception):
    """Something the user can mend. The message says what, where, and what to do; the command line prints it
    without a traceback and exits with code 1."""


class BadVideo(LapaError):
    """One episode of a dataset cannot be read; the others can. Names the path and the reason."""


@dataclass(frozen=True)
class Episode:
    """One video with its instruction. `actions` may be None: learning without them is the paper's premise.

    frames   uint8 [T, H, W, 3]; actions[t] (float32 [T, A], robot units) leads from frames[t] to frames[t+1].
    state    float32 [T, S] or None; read by probes and analysis only, never by a policy or by LAQ.
    size     (H, W) of the picture at the source, where the frames were made smaller on the way.
    """

    id: str
    frames: Array
    fps: float
    instruction: str = ""
    actions: Array | None = None
    state: Array | None = None
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class FramePairs:
    """A batch of frame pairs: the window in seconds, turned into `offset` frames by each episode's fps.

    now, later  uint8 [B, H, W, 3]; episode, frame, offset  int64 [B] (offset in frames, >= 1, 0 only when clipped).
    actions     float32 [B, A], the sum of the actions over the window, or None.
    """

    now: Array
    later: Array
    episode: Array
    frame: Array
    offset: Array
    actions: Array | None = None


@dataclass(frozen=True)
class Labels:
    """What a label source says of frame pairs: row i belongs to (episode[i], frame[i]).

    values  int64 [N, s] codes when `kind` is "codes"; float32 [N, A] (robot units) when it is "actions"; int64 [N, 1],
            the number of the frame that comes next, when it is "frames".
    """

    kind: str
    episode: Array
    frame: Array
    values: Array


class Observation(TypedDict):
    """What a robot or a benchmark shows a policy."""

    image: Array  # uint8 [H, W, 3], any size
    instruction: str
    dataset: NotRequired[int]  # whose actions are wanted from a policy of several robots (docs/datasets.md)


Actions = Array  # float32 [chunk, A] in the robot's units


@dataclass(frozen=True)
class Outcome:
    """How one benchmark episode ended."""

    family: str
    seed: int
    instruction: str
    success: bool
    steps: int


@dataclass(frozen=True)
class Quantized:
    """A quantizer's answer. `embedding` [B, s, d] goes to the decoder, `codes` int64 [B, positions] to the
    world."""

    embedding: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor
    logs: Logs = field(default_factory=dict)


class Dataset(Protocol):
    """A source of episodes, read once from front to back. Frames may be of any size and fps."""

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield every episode in a fixed order. Raises LapaError on data that cannot be read.

        With `size`, frames are made size x size as they are read (data/video.py `squared`): a long film at full size
        would fill the memory. An episode that is bad by itself is yielded as a BadVideo in its place.
        """
        ...

    def signature(self) -> str:
        """A cheap hash that changes when the data on disk changes (names, sizes, times)."""
        ...


@runtime_checkable
class Seekable(Dataset, Protocol):
    """A dataset that opens any of its episodes, from any frame on: what reading without a pack needs (data/stream.py).

    Both methods are called from several threads.
    """

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """What `episodes` yields, without decoding: the frames are a stand-in of their shape that holds no memory
        (data/video.py `blank`). The number beside an episode is what `frames` takes.

        Damage that shows before decoding is a BadVideo here, damage inside the pictures only when they are read.
        """
        ...

    def frames(self, number: int, size: int | None = None, start: int = 0) -> Iterator[Array]:
        """The frames of an episode from frame `start` on, uint8 [H, W, 3] or [size, size, 3]: those of `episodes`.

        Raises BadVideo on the way, where the pictures are damaged.
        """
        ...


class Quantizer(Protocol):
    """Continuous features [B, s, d] -> one of `size` codes at each of `positions` positions (s, or a multiple of it).

    `forward` in training mode may count, but the codebook changes in `after_step` alone. Randomness is torch's.
    """

    size: int
    positions: int

    def forward(self, z: torch.Tensor) -> Quantized: ...

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, positions] -> float [B, s, d]."""
        ...

    def after_step(self, step: int) -> Logs:
        """Called by the loop after optimizer step number `step` (from 1): codebook upkeep lives here."""
        ...


class Backbone(Protocol):
    """A vision-language model as a feature extractor.

    `width` is the size of the readout; `image_size` is the square input in pixels, and a field or property of the
    plug-in's Config too: frames are packed before the model is built. If `build` loads weights from elsewhere, give the
    Config a field `grounded: bool`: it is set to False where a saved policy is opened, whose weights come next.
    It may have `overlooked(texts) -> list[str]`: sentences for the user on what of the instructions it does not read;
    and `origin`, {where its weights came from: their hash}, for the provenance of policies that start from them.
    """

    width: int
    image_size: int

    def forward(self, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """float [B, 3, H, W] in [0, 1] and B strings -> readout [B, width]: the hidden state of the last token."""
        ...

    def vision_parameters(self) -> Iterator[torch.nn.Parameter]:
        """The vision encoder, frozen in stages 2 and 3."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """The one face of everything that learns, hence one training loop (training/loop.py)."""

    def loss(self, batch: Any) -> tuple[torch.Tensor, Logs]: ...


class LabelSource(Protocol):
    """Stage 2a's left side: LAQ (codes), an inverse dynamics model or the truth (actions), or the video (frames).

    `hash` tells it from others; `window` is in seconds, None for adjacent frames; `classes` is |C|, 0 for actions.
    One of codes may have `code_embeddings`, float [s * |C|, k]: codes that lie near each other mean similar motions,
    which stage 3 makes use of.
    """

    @property
    def kind(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def window(self) -> float | None: ...
    @property
    def classes(self) -> int: ...

    def label(self, pairs: FramePairs) -> Array:
        """-> int64 [B, s] codes, float32 [B, A] actions or int64 [B, 1] frames."""
        ...


class Actor(Protocol):
    """All that a benchmark or a robot sees of a policy."""

    def act_batch(self, observations: list[Observation]) -> Array:
        """B observations -> float32 [B, chunk, A]."""
        ...


class Benchmark(Protocol):
    """Tasks with a success test. A client of an Actor; it never sees a model."""

    families: tuple[str, ...]
    dimensions: int  # A of the actions that it takes
    frames: list[Array]  # uint8 [T, H, W, 3] of the scenes that the last run recorded

    def run(self, actor: Actor | str, episodes: int, seed: int = 0, record: int = 0) -> list[Outcome]:
        """Roll out an actor, or a scripted row by name, and keep pictures of the first `record` episodes."""
        ...

    def scripted(self) -> tuple[str, ...]:
        """Names of the reference rows: no_op, random, expert."""
        ...
