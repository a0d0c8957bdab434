"""The data path on one page: what flows between the stages, and what each plug-in must offer.

    video -datasets-> Episode -data/pack or data/stream-> Index -data/pairs-> FramePairs -labels-> Labels
          -stage2_pretrain-> policy -stage3_finetune-> robot policy -act-> Actions -evaluate-> Outcome

The classes of plug-ins with weights are in their folders: Backbone in backbones/__init__.py, Head in
heads/__init__.py, Policy in policies/__init__.py.

Shapes: B batch, T frames of an episode, H and W pixels, A action dimensions, S state dimensions, s codes per
pair of frames. Images are uint8 RGB outside models and float in [0, 1], channels first, inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, TypedDict, get_args, runtime_checkable

from numpy.typing import NDArray

if TYPE_CHECKING:  # so that listing plug-ins and printing help need no torch
    import torch

Array = NDArray[Any]
Logs = dict[str, float]
ActionKind = Literal["delta", "absolute", "binary"]
Inputs = dict[str, "torch.Tensor"]  # what a backbone encodes, by name: pixels, tokens, ..; the first axis is the batch


class LapaError(Exception):
    """An error that the user can mend. The message says what is wrong, where, and what to do. The command line prints
    it without a traceback and exits with code 1."""


class BadVideo(LapaError):
    """One episode of a dataset cannot be read; the others can. Names the path and the reason."""


@dataclass(frozen=True)
class Episode:
    """One video with its instruction. `actions` may be None: LAPA learns without them.

    frames   uint8 [T, H, W, 3]; actions[t] (float32 [T, A], robot units) leads from frames[t] to frames[t+1].
    state    float32 [T, S] or None, in the units of absolute actions.
    size     (H, W) of the picture at the source, where the frames were made smaller.
    camera   the name of the camera that took the frames, where the source has one.
    action_kinds  what its actions are, as the source says (see ActionSpec); (): it does not say, and lapa tells from
                  the data (actions/spec.py).
    embodiment    the robot's name, where the source has one.
    notes    what was chosen, changed or passed over in reading it, "SUBJECT: .." each, such as "camera: top, the first
             but for wrist (on the hand)". Commands print each once, with the number of the episodes that it is true of.
    instruction_from  where the instruction stands, in words: "captions.csv", "names of files"; "": in the dataset.
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
    camera: str = ""
    action_kinds: tuple[ActionKind, ...] = ()
    embodiment: str = ""
    notes: tuple[str, ...] = ()
    instruction_from: str = ""


@dataclass(frozen=True)
class FramePairs:
    """A batch of frame pairs: the window in seconds, turned into `offset` frames by each episode's fps.

    now, later  uint8 [B, H, W, 3]; episode, frame, offset  int64 [B] (offset in frames, >= 1, 0 only when clipped).
    actions     float32 [B, A], the sum of the actions over the window, or None.
    codes       int64 [B, s], where the codes of the pairs are known already (a frozen encoder), or None.
    """

    now: Array
    later: Array
    episode: Array
    frame: Array
    offset: Array
    actions: Array | None = None
    codes: Array | None = None


@dataclass(frozen=True)
class Labels:
    """What a label source says of frame pairs: row i belongs to (episode[i], frame[i]).

    values  int64 [N, s] codes when `kind` is "codes"; float32 [N, A] (robot units) when it is "actions"; int64 [N, 1],
            the number of the next frame, when it is "frames".
    """

    kind: str
    episode: Array
    frame: Array
    values: Array


@dataclass(frozen=True)
class ActionSpec:
    """What the numbers of an action mean. Datasets, artefacts, benchmarks and servers all use it.

    names   one for each dimension, such as "left_elbow" or "gripper"
    kinds   "delta": how far to go in one step of time. "absolute": where to be, in the units of the state.
            "binary": one of two values, such as a gripper's
    hz      actions a second
    """

    names: tuple[str, ...]
    kinds: tuple[ActionKind, ...]
    hz: float

    def __post_init__(self) -> None:
        if len(self.names) != len(self.kinds):
            raise LapaError(f"An action has as many names as kinds; got {len(self.names)} and {len(self.kinds)}.")
        if unknown := set(self.kinds) - set(get_args(ActionKind)):
            raise LapaError(f"An action is {', '.join(get_args(ActionKind))}, not {sorted(unknown)[0]}.")

    def __len__(self) -> int:
        """A."""
        return len(self.names)


@dataclass(frozen=True)
class ImageSpec:
    """How a backbone wants its pictures: squares of `size` pixels a side. `fit` says how others are made square:
    "squash" resizes both sides, "pad" adds a border, "crop" cuts the longer side, "released" squashes as the released
    LAPA code does."""

    size: int
    fit: Literal["squash", "pad", "crop", "released"] = "squash"


class Continuation(Protocol):
    """A language model that goes on where its prompt ends. It remembers what it has read since."""

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings float [B, n, D] of the next n tokens -> their hidden states [B, n, D]; each sees those before."""
        ...


@dataclass(frozen=True)
class Context:
    """What a backbone makes of pictures and instructions; a head reads it.

    hidden   float [B, L, D]: the hidden states of the last layer, as far as the backbone computes them
    mask     bool [B, L]: False where there is padding
    readout  float [B, D]: the hidden state that sums up the others, such as the last token's
    further  reads further tokens after these, for heads that generate in the backbone; None: it cannot
    now      what a head that looks for itself is shown, by name (heads/fast.py): the rest may be older
    """

    hidden: torch.Tensor
    mask: torch.Tensor
    readout: torch.Tensor
    further: Continuation | None = None
    now: Inputs = field(default_factory=dict)


@dataclass(frozen=True)
class PolicySpec:
    """What a policy needs to be shown and what it answers. Readable without its weights.

    cameras  the pictures that it reads, by name and in this order. Where it is one, the observation may use any name
    state    names of the numbers of the state that it reads; (): none
    action   None before stage 3, while the policy predicts codes
    chunk    number of actions in an answer; execute: how many of them are carried out before it is asked again
    """

    cameras: tuple[str, ...]
    state: tuple[str, ...]
    action: ActionSpec | None
    chunk: int = 1
    execute: int = 1


class Observation(TypedDict):
    """What a robot or a benchmark shows a policy.

    With one camera {"image": picture, "instruction": text} says the same. A key that no policy knows is refused.
    """

    images: Mapping[str, Array]  # camera -> uint8 [H, W, 3], of any size
    instruction: str
    state: NotRequired[Array]  # float32 [S], robot units
    embodiment: NotRequired[str]  # whose actions are wanted from a policy of several robots, by name


Actions = Array  # float32 [chunk, A] in the robot's units


@dataclass(frozen=True)
class TaskSpec:
    """What a benchmark shows and takes.

    families   kinds of task, for tables; max_steps: an episode without success after so many steps has failed
    state      names of the numbers of the state that it shows; (): none
    batch      episodes that it runs side by side at most; 0: any number
    limits     the lowest and the highest value of each action: what is beyond is carried out as these; (): not known
    stages     what an episode may achieve on its way, such as "reached", "moved", "lifted"; (): nothing is told
    """

    action: ActionSpec
    cameras: tuple[str, ...]
    families: tuple[str, ...]
    max_steps: int
    state: tuple[str, ...] = ()
    batch: int = 0
    limits: tuple[tuple[float, float], ...] = ()
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """The result of one action in one episode. `done`: the episode has ended, with or without success. `stages`: those
    of TaskSpec.stages that hold now."""

    observation: Observation
    success: bool
    done: bool
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How one benchmark episode ended. `stages`: those of TaskSpec.stages that held at any time."""

    family: str
    seed: int
    instruction: str
    success: bool
    steps: int
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quantized:
    """A quantizer's answer. `embedding` [B, s, d] goes to the decoder. `codes` int64 [B, positions] are the labels."""

    embedding: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor
    logs: Logs = field(default_factory=dict)


class Dataset(Protocol):
    """A source of episodes, read once from front to back. Frames may be of any size and fps.

    It may have `cameras: tuple[str, ...]`, the names of all its cameras, `colour_cameras`, those that are no depth maps
    and the like (data/cameras.py), and `episode_indices: tuple[int, ...]`, what
    its episodes are called by number where that is not their place in the order; where an episode may be yielded in
    pieces, also `episode_number(number: int) -> int`, that of a number that `index` gives. It may have
    `notes: tuple[str, ...]`: what it chose and what it passed over, each as "KEY: TEXT", known when its episodes have
    been read. Every command prints them.
    """

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        """Yield every episode in a fixed order. Raises LapaError on data that cannot be read.

        With `size`, frames are made size x size as they are read (data/images.py `resized`): a long film at full size
        would fill the memory. An episode that cannot be read is yielded as a BadVideo in its place.
        """
        ...

    def signature(self) -> str:
        """A cheap hash that changes when the data on disk changes (names, sizes, times)."""
        ...


@runtime_checkable
class Seekable(Dataset, Protocol):
    """A dataset that can open any episode at any frame. Reading without a pack needs this (data/stream.py).

    Both methods are called from several threads.
    """

    def index(self) -> Iterator[tuple[int, Episode | BadVideo]]:
        """What `episodes` yields, without decoding: the frames have the right shape but hold no memory
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

    `forward` in training mode may count. The codebook changes only in `after_step`. Random numbers come from torch.
    """

    size: int
    positions: int

    def forward(self, z: torch.Tensor) -> Quantized: ...

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, positions] -> float [B, s, d]."""
        ...

    def after_step(self, step: int) -> Logs:
        """Called by the loop after optimizer step number `step` (from 1), to look after the codebook."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """Everything that learns has this method, so there is one training loop (training/loop.py).

    Where the loss is a mean over as many targets as a batch happens to have, it also has `counted(batch) -> int`, their
    number: micro-batches, and those of other processes, then count by it, and the step is that of the whole batch.
    """

    def loss(self, batch: Any) -> tuple[torch.Tensor, Logs]: ...


class LabelSource(Protocol):
    """Where labels of stage 2a come from: LAQ (codes), inverse dynamics or the dataset (actions), the video (frames).

    `hash` tells it from others; `window` is in seconds, None for adjacent frames; `classes` is |C|, 0 for actions.
    A source of codes may have `code_embeddings`, float [s * |C|, k]. Codes with near embeddings mean similar motions;
    stage 3 uses this. One of actions has `taught(data)`, keys of the episodes whose actions its labels tell of
    (data/episode_keys.py). What can be known before it is opened is in its Config (labels/__init__.py).
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
    """All that a benchmark or a robot sees of a policy. Where it can remember so many running episodes at most, it has
    `most`, their number (0: any)."""

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        """B observations -> float32 [B, chunk, A], robot units. `ids` are the numbers of the running
        episodes, for actors that remember; others ignore it."""
        ...


class Benchmark(Protocol):
    """Tasks with a success test. It never sees a policy: evaluate.py asks the policy, executes and counts.

    Episodes run side by side: row i of what goes in and out is episode i of the last `reset`. It may have
    `picture(i, size)` -> uint8 [H, W, 3], about `size` pixels a side, for films of episode i; else those are of the
    first camera. Where a scene's seed alone tells its family, it may have `family(seed)` -> str: `lapa collect` then
    takes equally many of each. Where the order of scenes costs time or memory, it may have `order(seeds)` -> the same
    seeds as they are best run.
    """

    spec: TaskSpec

    def reset(self, seeds: Sequence[int]) -> list[Observation]:
        """Begin len(seeds) episodes. The same seed gives the same scene, whatever the other seeds are."""
        ...

    def step(self, actions: Array) -> list[Step]:
        """float [B, A] in the robot's units -> the results. Episodes that are done stay as they are; their rows of
        `actions` are ignored."""
        ...

    def tasks(self) -> tuple[str, ...]:
        """The family of each episode, one of spec.families."""
        ...

    def baselines(self) -> Mapping[str, Actor]:
        """Actors to compare with, as far as they exist: no_op, random, expert. They are made for this benchmark and
        may look into it; `ids` says which episodes they are asked about."""
        ...
