"""Policies (plug-ins, one file each): what they learn from labels, what they learn from a robot, and how they act.

`Policy.from_pretrained` opens any of them. A policy of one's own is a file with a `Config(PolicyConfig)` and a
`Policy`; the stages, `lapa tune` and the commands use nothing else of it. `--set policy.name=NAME` chooses it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import numpy as np
from torch import Tensor, nn

from lapa import plugins
from lapa.artefacts.folder import Artefact, load_artefact
from lapa.artefacts.pretrained import Reference, require_same
from lapa.backbones import Backbone
from lapa.contracts import Array, Labels, LapaError, Logs, Observation, PolicySpec
from lapa.data.features import FrameFeatures
from lapa.data.images import Fit
from lapa.data.index import Index
from lapa.data.observations import LONGEST, ONE, Seen, say_once
from lapa.data.pack import Packed
from lapa.methods import policy_of
from lapa.recipe import Recipe
from lapa.runtime.distributed import device
from lapa.runtime.threads import acting
from lapa.training.logbook import Logbook

Monitor = Callable[[int, Logbook], Logs]
Which = Literal["head", "all"]
ALONE = -2  # the number of the episode that `Policy.act` is asked about


@dataclass(frozen=True)
class Examples:
    """What a policy learns from: N examples.

    frames   int64 [N], counted over the whole pack
    targets  targets[rows int64 [B]] is the second argument of `Policy.batch`, such as int64 [N, positions]
    watch    (out, seed) -> a monitor for training, or None
    results  figures of a policy that is ready and trains nothing; None: it must be trained
    parents  {path: hash} of what it was given beside the data
    kept     stage 3: the policy keeps a head that speaks actions already (Recipe.kept_head_rate)
    dropped  stage 3: the latent head that a new one replaces (Policy.again); None: there was none
    """

    frames: Array
    targets: Any
    watch: Callable[[Path, int], Monitor] | None = None
    results: Logs | None = None
    parents: Mapping[str, str] | None = None
    kept: bool = False
    dropped: nn.Module | None = None


@dataclass(frozen=True)
class PolicyConfig(ABC):
    """Base class of a policy's `Config`: all that can be known before the policy is built.

    learns        kinds of labels that it can be pretrained on (contracts.Labels)
    pretrained_by, finetuned_by   the settings of the recipe that say how stages 2 and 3 optimise it
    changeable    settings of the Config that stage 3 may change
    cameras       names of the cameras that it reads; (): the one that the dataset gives
    """

    learns: ClassVar[tuple[str, ...]] = ("codes", "actions")
    pretrained_by: ClassVar[str] = "pretrain"
    finetuned_by: ClassVar[str] = "finetune"
    changeable: ClassVar[tuple[str, ...]] = ()
    cameras: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The Config that a recipe describes: here the options in `policy.options`."""
        made: Self = plugins.configure("policies", plugins.name_of(cls), recipe.policy.options)
        return made

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Pixels a side of the pictures that it reads."""

    @property
    def fit(self) -> Fit:
        """How pictures are made square (contracts.ImageSpec)."""
        return "squash"

    def borrowed(self) -> dict[str, Reference]:
        """Which weights it has from elsewhere that nobody trains here, by part (artefacts/pretrained.py): config.json
        names them, and they are not saved. Raises LapaError where they are not installed."""
        return {}

    def require_pretrainable(self, kind: str) -> None:
        """Raises LapaError where it cannot learn labels of this kind (contracts.Labels) in stage 2."""
        return

    @abstractmethod
    def build(self, pretrained: bool = True) -> Policy:
        """A new policy. `pretrained=False` skips weights that come from elsewhere, because
        those of a saved policy follow."""

    @classmethod
    def ways(cls, saved: Mapping[str, Any] | None) -> tuple[str, ...]:
        """Ways to finetune that `lapa tune` tries (experiments/tune.py), in order; saved: what config.json says of the
        pretrained policy, None without pretraining."""
        return ("head", "all", "all-long")

    @classmethod
    def settings(cls, saved: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Groups of settings of the recipe that a pretrained policy keeps unchanged, by name."""
        return {"policy": saved.get("model", {})}

    @classmethod
    def may_change(cls, saved: Mapping[str, Any], recipe: Recipe) -> tuple[str, ...]:
        """Settings of the Config that stage 3 may change as this recipe has it."""
        return cls.changeable

    @classmethod
    def kept_with_head(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the recipe that a pretrained policy keeps for as long as it keeps its head."""
        return {}

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Settings that stage 3 can choose by the error of actions on held-out episodes, each with all its values
        (Recipe.choose_decoding)."""
        kinds = get_type_hints(type(self))
        return {name: get_args(kinds[name]) for name in self.changeable if get_origin(kinds[name]) is Literal}

    @classmethod
    def trains(cls, saved: Mapping[str, Any] | None, recipe: Recipe) -> bool:
        """Does stage 3 take optimizer steps, from what config.json says of the pretrained policy (None: from none)?"""
        return True


@dataclass(frozen=True)
class OnBackbone(PolicyConfig):
    """Base class of the `Config` of a policy on a plug-in of lapa/backbones, which says what pictures it reads."""

    backbone: str = "tiny"
    backbone_options: dict[str, Any] = field(default_factory=dict)

    @property
    def image_size(self) -> int:
        """The backbone's."""
        size: int = plugins.configure("backbones", self.backbone, self.backbone_options).image_size
        return size

    @property
    def fit(self) -> Fit:
        """The backbone's, where its Config has one."""
        return getattr(plugins.configure("backbones", self.backbone, self.backbone_options), "fit", "squash")

    def borrowed(self) -> dict[str, Reference]:
        """The backbone's, where its Config has `borrowed`."""
        config = plugins.configure("backbones", self.backbone, self.backbone_options)
        return config.borrowed() if hasattr(config, "borrowed") else {}


class Policy(nn.Module, ABC):
    """From what is seen to what a robot does. All policies have these methods.

    policy = lapa.Policy.from_pretrained("runs/policy")
    actions = policy.act({"image": frame, "instruction": "put the carrot on the plate"})
    """

    config: Any  # its PolicyConfig

    @staticmethod
    def from_pretrained(path: str | Path) -> Policy:
        """Open a policy: a folder made by `lapa finetune` or `lapa pretrain`, or user/name on the hub.

        Raises LapaError if there is none, or if its weights are damaged.
        """
        return opened(load_artefact(path, "policy"))

    @property
    @abstractmethod
    def spec(self) -> PolicySpec:
        """Which inputs it needs and what it answers."""

    @property
    def dimensions(self) -> int:
        """Numbers in an action; 0 before stage 3, when the policy does not speak a robot's actions."""
        return len(self.spec.action) if self.spec.action else 0

    # --- learning

    @abstractmethod
    def examples(self, labels: Labels, data: Index, about: Mapping[str, Any], recipe: Recipe) -> Examples:
        """Stage 2: prepare to learn labels of these data; `about` is their manifest. Row i of the examples is row i
        of the labels."""

    @abstractmethod
    def adapt(self, data: Packed, recipe: Recipe, idm: Path | None = None) -> Examples:
        """Stage 3: prepare to learn the actions of these trajectories; `idm`: what `--idm` gives. Raises LapaError
        where they do not fit."""

    def again(self, labels: Labels, data: Packed, about: Mapping[str, Any], own: Examples) -> Examples:
        """Stage 3, after `adapt`, which gave `own`: prepare to learn stage 2's labels of its videos again, beside the
        trajectories; see `examples`. Raises LapaError where that is not possible."""
        raise LapaError("This policy cannot learn stage 2's labels again in stage 3. Leave --labels and --videos out.")

    def finish(self) -> None:
        """Stage 3 has ended: let go of what only its training needed. By default there is nothing."""

    def as_it_is(self, idm: Path | None = None) -> dict[str, str]:
        """Prepare to act without stage 3. Returns {path: hash} of what it was given."""
        refuse_idm(idm)
        return {}

    @abstractmethod
    def batch(self, seen: Seen, targets: Any) -> Any:
        """What `loss` takes, on the CPU: called in loader threads."""

    def robot_batch(self, seen: Seen, actions: Array, pad: Array) -> Any:
        """What `loss` takes, of robot data that another library reads (interop/lerobot_policy.py): actions float32
        [B, chunk, A] in the robot's units, pad bool [B, chunk]: those that do not exist. Raises LapaError for a policy
        that cannot learn so."""
        raise LapaError("This policy learns from lapa's own reader alone (lapa finetune).")

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, Logs]:
        """See contracts.Trainable."""

    def features(self, data: Packed) -> Mapping[str, FrameFeatures]:
        """What its frozen vision encoder sees in every frame, by camera, computed once and kept on disk; {}: it looks
        at pictures. Every rank calls it alike."""
        return {}

    def trainable(self, which: Which) -> Iterator[nn.Parameter]:
        """Freeze what does not train and return what does: the new part alone ("head"), or as much as stage 2 trains
        ("all"). Here: everything."""
        if which not in ("head", "all"):
            raise LapaError(f'Trainable is "head" or "all", not "{which}".')
        return (p for p in self.parameters() if p.requires_grad)

    def overlooked(self, texts: Sequence[str]) -> list[str]:
        """Sentences for the user: which parts of the instructions it does not read."""
        return []

    @property
    def origin(self) -> Mapping[str, str]:
        """{where weights came from: their hash}, beside the policy that it was pretrained as."""
        return {}

    # --- acting

    def predict_codes(self, images: Any, texts: Sequence[str]) -> Tensor:
        """The likeliest latent codes, int64 [B, s]. Raises LapaError for a policy that predicts none."""
        raise LapaError("This policy predicts no latent codes.")

    @abstractmethod
    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        """B observations -> float32 [B, chunk, A] in the robot's units. `ids` says which running episode each is of,
        for a policy that remembers. Raises LapaError before stage 3, and for a wrong observation."""

    def act(self, observation: Observation) -> Array:
        """What to do now: one observation -> float32 [chunk, A], the next actions in the robot's units.

        An observation is {"image": uint8 [H, W, 3], "instruction": str}; with several cameras it has "images",
        {camera: uint8 [H, W, 3]}, and where the policy reads the state, "state", float32 [S]; of a policy of several
        robots "embodiment", the name of one. Images may be of any size. To a policy that remembers, all calls are of
        one episode; `reset()` begins another. Raises LapaError for what is not an observation, and for a policy that
        was not finetuned.
        """
        with acting(self):
            found: Array = self.act_batch([observation], [ALONE])[0]
        return found

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """Forget these running episodes (None: all). By default there is nothing to forget."""

    # --- saving

    def lent(self) -> tuple[str, list[str]]:
        """The shipped weights that this policy may hold unchanged ("": none), and the names of its own that they may be
        (artefacts/borrowed.py)."""
        backbone = getattr(self, "backbone", None)
        if not isinstance(backbone, Backbone) or not backbone.ships:
            return "", []
        frozen = {id(parameter) for parameter in backbone.groups()["vision"]}
        return backbone.ships, [name for name, parameter in self.named_parameters() if id(parameter) in frozen]

    def description(self) -> dict[str, Any]:
        """What config.json needs to open this policy again."""
        borrowed = self.config.borrowed()
        return {
            "policy": plugins.name_of(self.config),
            "model": asdict(self.config),
            **({"frozen": borrowed} if borrowed else {}),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Make the parts that `description` names, before the saved weights are loaded."""


def config_class(name: str) -> type[PolicyConfig]:
    """The `Config` of a policy. Raises LapaError for an unknown name."""
    found: type[PolicyConfig] = plugins.find("policies", name)
    return found


def configured(recipe: Recipe, method: str = "scratch") -> PolicyConfig:
    """The policy that the recipe describes for a method's labels: `policy.name`, or the method's own."""
    return config_class(recipe.policy.name or policy_of(method)).of(recipe)


def opened(artefact: Artefact) -> Policy:
    """Open a saved policy, strictly. Raises LapaError where config.json and weights do not fit."""
    config = saved_config(artefact)
    require_same(artefact.config.get("frozen"), config.borrowed(), f"{artefact.path}/config.json")

    def make() -> Policy:
        policy = config.build(pretrained=False)
        policy.restore(artefact.config)
        return policy

    policy = artefact.build(make, own=_own(config))
    artefact.require_known(policy.description())
    return policy.to(device()).eval()


def saved_config(artefact: Artefact) -> PolicyConfig:
    """The `Config` that config.json describes. Raises LapaError for a field that is missing, unknown or of another
    type, and for an unknown policy."""
    kind = config_class(artefact.value(str, "policy"))
    return artefact.settings(kind, defaults=plugins.source_hash("policies", plugins.name_of(kind)) is not None)


def _own(config: PolicyConfig) -> bool:
    """Is the policy, its backbone or its head somebody's own plug-in?"""
    parts = {"policies": plugins.name_of(config), "backbones": getattr(config, "backbone", None),
             "heads": getattr(config, "head", None)}  # fmt: skip
    return any(name is not None and plugins.source_hash(kind, name) is not None for kind, name in parts.items())


def look(
    data: Index,
    frames: Array,
    spec: PolicySpec,
    gathered: Mapping[str, Array] | None = None,
    features: Mapping[str, FrameFeatures] | None = None,
) -> Seen:
    """The inputs of a policy of this spec at frames int64 [B] of the data; `gathered`: pictures read before;
    `features`: what Policy.features gives, in place of pictures."""
    texts = [data.instructions[e] for e in data.episode_of(frames)]
    state = data.state[frames] if spec.state and data.state is not None else None
    if features:
        return Seen({}, texts, state, features={camera: found[frames] for camera, found in features.items()})
    images = gathered or {camera: camera_of(data, camera).gather(frames) for camera in spec.cameras}
    return Seen(images, texts, state)


def camera_of(data: Any, camera: str) -> Packed:
    """The data of this camera; a dataset with one camera has one view. Raises LapaError for an unknown camera and names
    the known ones."""
    if camera in (ONE, data.camera or ONE):
        found: Packed = data
        return found
    seen_by: Packed = data.view(camera)
    return seen_by


def tell_of_texts(policy: Policy, texts: Sequence[str]) -> None:
    """Say, once for each instruction that a policy acts on, what of it the policy does not read."""
    for text in set(texts) - _LOOKED_AT:
        if len(_LOOKED_AT) < MOST_TEXTS:
            _LOOKED_AT.add(text)
            told = text if len(text) <= LONGEST else f"{text[:LONGEST]}.."
            for sentence in policy.overlooked([text]):
                say_once(f'the instruction "{told}": {sentence}')


_LOOKED_AT: set[str] = set()
MOST_TEXTS = 1000  # instructions that are looked at in a process: a server may be given any number


def refuse_idm(idm: Path | None) -> None:
    """Raises LapaError when `--idm` is given to a policy that has no use for it."""
    if idm is not None:
        raise LapaError("--idm is for a policy that imagines frames (UniPi); this one predicts actions. Leave it out.")


def acting_frames(data: Packed) -> Array:
    """Frames with an action after them, int64 [N]: all but the last of each episode."""
    ends = np.repeat(data.starts[1:], np.diff(data.starts))
    frames = np.flatnonzero(np.arange(len(data)) + 1 < ends)
    if not len(frames):
        raise LapaError(f"{data.spec}: no episode has two frames, so no action leads anywhere.")
    return frames


def chunks_after(data: Packed, frames: Array, chunk: int) -> tuple[Array, Array]:
    """The actions after each of these frames, float32 [N, chunk, A], and bool [N, chunk]: those past the end of the
    episode, where the last action stands in. Raises LapaError when all chunks reach past the end."""
    last = data.starts[data.episode_of(frames) + 1] - 2
    index = frames[:, None] + np.arange(chunk)
    pad = index > last[:, None]
    if pad.any(1).all():
        raise LapaError(f"{data.spec}: no episode is longer than the action chunk of {chunk}.")
    return data.require_actions("finetuning")[np.minimum(index, last[:, None])], pad
