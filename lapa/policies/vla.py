"""The vision-language-action policy: backbone, context, one head.

In stage 2 the classes are latent codes (LAPA) or discretised actions (ActionVLA, VPT). In stage 3 there is a new
head for the robot's actions, or the head is kept and the labels tell what its classes mean. Both stages use the loss of
the head. In the paper (section 3.3; `head` "own" and "new") the latent head is dropped and a new one learns the
robot's discretised actions; a policy that already predicts actions (VPT, ActionVLA) keeps its head, or gets a new
one. With "linear" nothing is trained (heads/linear.py). A head of stage 3 may also answer with actions as numbers
(heads/flow.py, heads/regression.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from lapa.actions.codebook import ActionCodebook
from lapa.actions.meaning import Meaning
from lapa.actions.numbers import NumberSpace
from lapa.actions.saved import AnySpace, space_from_json
from lapa.actions.scales import Scales, scales_from_json
from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.actions.tables import Decoding
from lapa.artefacts.pretrained import Reference
from lapa.artefacts.settings import typed_value
from lapa.backbones import Backbone, build_backbone, pictures
from lapa.contracts import Array, Context, Inputs, Labels, LapaError, Logs, Observation, PolicySpec
from lapa.data.features import FrameFeatures
from lapa.data.index import Index
from lapa.data.observations import Seen, say_once, seen
from lapa.data.pack import Packed
from lapa.data.pairs import window_offsets
from lapa.data.spec import parted
from lapa.heads import AnyHead, Head, predicts_numbers
from lapa.plugins import configure, find
from lapa.policies import (
    Examples,
    Policy,
    Which,
    acting_frames,
    camera_of,
    chunks_after,
    look,
    refuse_idm,
    tell_of_texts,
)
from lapa.policies._kept import WithHead
from lapa.policies._looks import Aged, Looks, plans
from lapa.policies._reads import Reads, met
from lapa.policies._targets import (
    actions_ahead,
    codes_ahead,
    kept_space,
    meaning_of,
    outside,
    space_of_actions,
    tell_of_reading,
    tell_of_turns,
)
from lapa.recipe import Recipe
from lapa.runtime.distributed import device, once_a_machine
from lapa.runtime.precision import fast_dtype

AT_ONCE = 256  # frames that it is asked about at once
FINETUNED = "learns from plans of every age: lapa finetune trains it."
MANY = 0.5  # of the labelled actions of a batch: so many outside of what a head can answer are told


@dataclass(frozen=True)
class PolicyBatch:
    """What the backbone encodes, and targets int64 [B, positions], -100 where there is none; for a head that answers
    with numbers float32 [B, chunk, A], NaN where there is none."""

    inputs: Inputs
    targets: Tensor
    now: Inputs = field(default_factory=dict)
    """what a head that looks for itself is shown"""
    latent: bool = False
    """the targets are codes for the latent head that goes on learning in stage 3"""


@dataclass(frozen=True)
class Codes:
    """Codes int64 [B, positions], -100 where there is none, for the latent head in stage 3."""

    values: Array

    def __getitem__(self, rows: Array) -> Codes:
        return Codes(self.values[rows])


@dataclass(frozen=True)
class Config(WithHead):
    """A backbone and a head, plug-ins of lapa/backbones and lapa/heads with their options."""

    changeable: ClassVar[tuple[str, ...]] = ("decoding", "cameras", "state", "execute")

    head: str = "parallel"
    head_options: dict[str, Any] = field(default_factory=dict)
    code_head: str = ""
    """the head of latent codes, with its own defaults; "": `head`"""
    decoding: Decoding = "expectation"
    """classes to robot units: the expected action, the same at full length, or what the likeliest class means"""
    cameras: tuple[str, ...] = ()  # type: ignore[misc]
    """the cameras that it looks at; (): the one that the dataset gives"""
    state: bool = False
    """read the state of the robot"""
    execute: int = 0
    """how many actions of an answer are carried out before it is asked again; 0: all, or what the head says"""

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """From `policy` of the recipe."""
        return cls(**{each.name: getattr(recipe.policy, each.name) for each in fields(cls)})

    def build(self, pretrained: bool = True) -> VLA:
        """A policy without a head; `grow` makes one. `pretrained=False` skips the backbone's own weights."""
        return VLA(self, build_backbone(self.backbone, self.backbone_options, pretrained))

    def head_for(self, kind: str) -> tuple[str, dict[str, Any]]:
        """The head for a space of this kind, and its options."""
        return (self.code_head, {}) if kind == "codes" and self.code_head else (self.head, self.head_options)

    @property
    def numbers(self) -> bool:
        """Does its head for actions answer with numbers?"""
        return predicts_numbers(configure("heads", self.head, self.head_options))

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """See PolicyConfig. Numbers need no decoding."""
        return {} if self.numbers else super().choices()

    def borrowed(self) -> dict[str, Reference]:
        """The backbone's, and the head's where its Config has `borrowed`."""
        config = configure("heads", self.head, self.head_options)
        own = config.borrowed() if hasattr(config, "borrowed") else {}
        return {**super().borrowed(), **({"head": own} if own else {})}

    def require_pretrainable(self, kind: str) -> None:
        """See PolicyConfig."""
        name, options = self.head_for(kind)
        config = configure("heads", name, options)
        if predicts_numbers(config) and kind == "codes":
            raise LapaError(
                f"The head {name} answers with a robot's actions as numbers, and latent codes are classes. Choose "
                f"another one for the codes, such as --set policy.code_head=nearest; {name} is then that of stage 3."
            )
        if getattr(config, "every", 0):
            raise LapaError(
                f"The head {name} looks for itself, so it is for stage 3. Pretrain with another policy.head, then "
                f"lapa finetune --head new --set policy.head={name}."
            )


class VLA(Policy):
    """See the module's docstring."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        self.head: AnyHead | nn.Identity = nn.Identity()
        self.latent: nn.Module | None = None  # in stage 3, the latent head where it goes on learning; never saved
        self.reads = Reads()
        self.meaning: Meaning | None = None  # of its actions
        self.scales: Scales | None = None  # of the robots it speaks the actions of, if each has its own
        self.looks = Looks()
        self.asked = ""  # which kind of space the backbone's prompt asks for: a head that is read goes on as it was
        self.grown: tuple[str, dict[str, Any]] | None = None  # which head it has, with its options

    @property
    def space(self) -> AnySpace | None:
        """What its head predicts; None before it has one."""
        return self.head.space if isinstance(self.head, AnyHead) else None

    @property
    def acting(self) -> ActionSpace | ActionCodebook | NumberSpace | None:
        """Its space, once it predicts actions."""
        return None if self.space is None or isinstance(self.space, CodeSpace) else self.space

    @property
    def dimensions(self) -> int:
        """A, once it predicts actions; 0 before."""
        return self.acting.dimensions if self.acting else 0

    @property
    def spec(self) -> PolicySpec:
        """See Policy."""
        chunk = self.acting.chunk if self.acting else 1
        meaning = self.meaning if self.acting else None
        state = self.reads.state or (meaning.state if meaning else ())
        execute = self.config.execute or (self.head.execute if isinstance(self.head, AnyHead) else 0)
        return PolicySpec(self.reads.cameras, state, meaning.spec if meaning else None, chunk, execute or chunk)

    @property
    def origin(self) -> Mapping[str, str]:
        """See Policy: the backbone's."""
        return self.backbone.origin

    def overlooked(self, texts: Sequence[str]) -> list[str]:
        """See Policy: the backbone's."""
        return self.backbone.overlooked(texts)

    def grow(self, space: AnySpace) -> None:
        """Replace the head by a new one for `space`. Raises LapaError where it predicts nothing of that kind."""
        name, options = self.config.head_for(space.kind)
        config = configure("heads", name, options)
        if predicts_numbers(config) != isinstance(space, NumberSpace):
            raise LapaError(f"The head {name} does not predict {space.kind}.")
        self.head = config.build(self.backbone.width, space)
        self._require_executable()
        self.grown = name, dict(options)
        self._introduce()
        self._ask_for(space.kind)

    def _ask_for(self, kind: str) -> None:
        """The backbone's prompt asks for this kind of answer from now on."""
        self.asked = kind
        self.backbone.answers(kind)

    def _require_executable(self) -> None:
        """Raises LapaError where `execute` is not 0 and the head cannot be asked again after so many actions."""
        asked, head = self.config.execute, self._answering()
        if asked and head.execute:
            raise LapaError(
                f"policy.execute={asked}: the head {self.config.head} says itself when it is asked again. Leave it "
                f'out, or set its own: policy.head_options={{"execute":{asked}}}.'
            )
        if self.acting and not 0 <= asked <= self.acting.chunk:
            raise LapaError(
                f"policy.execute={asked}: 1 to {self.acting.chunk} actions of an answer can be carried out (0: all). "
                "Set chunk, or policy.execute."
            )

    def _introduce(self) -> None:
        """Tell the head what is shown to the policy."""
        self._answering().meet(self.backbone.image_spec.size, len(self.reads.cameras), len(self.reads.state))
        self._answering().means(None if self.scales else self.meaning)  # scaled actions have another zero

    # --- learning

    def examples(self, labels: Labels, data: Index, about: Mapping[str, Any], recipe: Recipe) -> Examples:
        """Codes are classes as they are, of `latent_chunk` windows; actions, `chunk` of them, are numbers, or put into
        clusters or equal-mass bins first."""
        self.config.require_pretrainable(labels.kind)
        self._meet(data)
        frames = data.starts[labels.episode] + labels.frame
        if labels.kind == "codes":
            embeddings = tuple(map(tuple, about.get("code_embeddings", ())))
            windows = recipe.latent_chunk
            self.grow(CodeSpace(labels.values.shape[1], int(about["classes"]), "codes", embeddings, windows))
            offsets = window_offsets(data.fps, about.get("window_seconds"))
            targets = codes_ahead(labels, offsets, windows)
            if (targets < 0).any(1).all():
                raise LapaError(
                    f"{data.spec}: no episode is as long as the {windows} windows of latent_chunk={windows}."
                )
            return Examples(frames, targets)
        self.meaning = Meaning.from_json(about.get("meaning"))
        chunks, pad = actions_ahead(labels, recipe.chunk, self.meaning)
        if pad.any(1).all():
            raise LapaError(f"{data.spec}: no episode is longer than the action chunk of {recipe.chunk}.")
        if recipe.scale == "each" and about["source"] == "ground_truth":  # others speak one robot's units
            source = data.source[labels.episode]
            self.scales = Scales.of(chunks[:, 0], source, robots(data))
            chunks = self.scales.normalise(chunks, source)
        names = tuple(about.get("action_names") or ())
        space = space_of_actions(chunks, pad, recipe, names, self.config.numbers)
        self.grow(space)
        return Examples(frames, space.targets(chunks, pad))

    def adapt(self, data: Packed, recipe: Recipe, idm: Path | None = None) -> Examples:
        """See Policy and the module's docstring. Of chunks that reach past the end of an episode the existing actions
        are learnt."""
        refuse_idm(idm)
        actions = data.require_actions("finetuning")
        own = self.acting if recipe.head == "own" else None
        kept = False
        if own is not None and own.dimensions != actions.shape[1]:
            raise LapaError(
                f"{data.spec} has {actions.shape[1]} action dimensions; the policy speaks {own.dimensions}. "
                "Give it a new head (--head new)."
            )
        reading, new = recipe.head == "linear" and self.space is not None, self._meet(data)
        if own is not None or reading:
            self._require_grown()
        if reading and new:
            raise LapaError(
                "This policy has not seen that camera or state before, and must be trained to read it; --head linear "
                "trains nothing. Add --head own or new."
            )
        self.meaning = meaning_of(data, recipe, self.meaning if own is not None else None)
        frames = acting_frames(data)
        chunks, pad = chunks_after(data, frames, own.chunk if own else recipe.chunk)
        if self.meaning:
            chunks = self.meaning.targets(chunks, None if data.state is None else data.state[frames])
            tell_of_turns(self.meaning, chunks, pad)
        source, each = data.source[data.episode_of(frames)], recipe.scale == "each"
        each = self.scales is not None if own else each  # its classes mean what they meant
        self.scales = Scales.of(chunks[:, 0], source, robots(data)) if each else None
        chunks = self.scales.normalise(chunks, source) if self.scales else chunks
        if reading:
            return Examples(frames, None, results=self._read(data, frames, chunks, pad))
        dropped = self.head if own is None and isinstance(self.space, CodeSpace) else None
        if own is None:
            own = space_of_actions(chunks, pad, recipe, data.action_names, self.config.numbers)
            self.grow(own)
        else:
            own, kept = kept_space(own, chunks, pad)
            self._answering().space = own
            self._require_executable()
            self._introduce()
        targets, head = own.targets(chunks, pad), self._answering()
        made = self._with_plans(data, frames, targets, head) if head.every else Examples(frames, targets)
        return replace(made, kept=kept, dropped=dropped)

    def again(self, labels: Labels, data: Packed, about: Mapping[str, Any], own: Examples) -> Examples:
        """See Policy: actions in the space of the head that was kept, or codes by the latent head that a new one has
        replaced, which goes on learning beside it. Videos without a state are shown with the mean one."""
        wants, space = "Leave --labels and --videos out.", self._answering().space
        if self._answering().every or self.scales:
            raise LapaError(f"The head {self.config.head} and scale=each learn the trajectories alone. {wants}")
        if self.reads.state and data.state is None:
            say_once(f"{data.spec} has no such state: of these videos the policy is shown the mean one.")
        frames = data.starts[labels.episode] + labels.frame
        if labels.kind == "codes" and isinstance(own.dropped, AnyHead):
            self.latent, offsets = own.dropped, window_offsets(data.fps, about["window_seconds"])
            return Examples(frames, Codes(codes_ahead(labels, offsets, self.latent.space.windows)))
        if labels.kind != "actions":
            raise LapaError(f"These labels are {labels.kind}, and the policy has learnt actions in stage 2. {wants}")
        if space.dimensions != labels.values.shape[1]:
            raise LapaError(f"The labels have {labels.values.shape[1]} action dimensions; the policy speaks "
                            f"{space.dimensions}. {wants}")  # fmt: skip
        chunks, pad = actions_ahead(labels, space.chunk, Meaning.from_json(about.get("meaning")))
        return Examples(frames, space.targets(chunks, pad))

    def finish(self) -> None:
        """See Policy: the latent head is dropped, as in the paper."""
        self.latent = None

    def _with_plans(self, data: Packed, frames: Array, targets: Array, head: AnyHead) -> Examples:
        """Examples for a head that looks for itself: with plans of every age that they have in service. Raises
        LapaError for data that another library reads (interop/lerobot_policy.py)."""
        if not isinstance(data, Packed):
            raise LapaError(f"The head {self.config.head} {FINETUNED}")
        of_plans, each = plans(data, frames, (head.every - 1) * (head.execute or head.space.chunk))

        def found() -> dict[str, FrameFeatures]:
            every = {camera: head.features(camera_of(data, camera)) for camera in self.reads.cameras}
            return {camera: seen for camera, seen in every.items() if seen is not None}

        state = self.reads.standardised(data.state) if self.reads.state and data.state is not None else None
        return Examples(of_plans, Aged(targets, frames, each, once_a_machine(found), state))

    def _require_grown(self) -> None:
        """Raises LapaError where another head was asked for than the one that is kept."""
        asked = self.config.head_for(self.space.kind if self.space else "")
        if self.grown is not None and self.grown != asked:
            (has, its), (head, options) = self.grown, asked
            raise LapaError(
                f"policy.head={head} {options or ''}: this policy keeps the head that it has, {has} {its or ''}. "
                "Leave it out, or give it a new head (--head new)."
            )

    def _meet(self, data: Index) -> bool:
        """Set cameras and state by these data. Returns whether that needs new weights."""
        before, self.reads = self.reads, met(self.reads, self.config.cameras, self.config.state, data)
        self.backbone.extend(self.reads.cameras, len(self.reads.state))
        return len(self.reads.cameras) > len(before.cameras) or len(self.reads.state) > len(before.state)

    def _read(self, data: Packed, frames: Array, chunks: Array, pad: Array) -> Logs:
        """Keep the head; the labels tell what its classes mean."""
        self.to(device()).eval()
        spec, features = self.spec, self.features(data)
        parts = [frames[i : i + AT_ONCE] for i in range(0, len(frames), AT_ONCE)]
        said = np.concatenate([self._said(look(data, some, spec, features=features)) for some in parts])
        assert isinstance(self.head, AnyHead)
        self.head = self.head.reading()
        had, takes = self.grown[1] if self.grown else {}, {each.name for each in fields(find("heads", "linear"))}
        options = {name: value for name, value in had.items() if name in takes}
        self.config = replace(self.config, head="linear", head_options=options)
        self.grown = self.config.head_for("codebook")
        results: Logs = self.head.read(said, chunks, pad, data.episode_of(frames), data.action_names)  # type: ignore[operator]
        tell_of_reading(results, self.head.space, len(frames))
        return results

    def features(self, data: Packed) -> Mapping[str, FrameFeatures]:
        """See Policy: the backbone's."""

        def found() -> dict[str, FrameFeatures]:
            every = {camera: self.backbone.features(camera_of(data, camera)) for camera in self.reads.cameras}
            return {camera: seen for camera, seen in every.items() if seen is not None}

        return once_a_machine(found)

    def trainable(self, which: Which) -> Iterator[nn.Parameter]:
        """Freeze all but the head, or all but the vision encoder, and return what trains."""
        super().trainable(which)
        self.requires_grad_(which == "all")
        groups = self.backbone.groups()
        for parameter in groups["vision"]:
            parameter.requires_grad_(False)
        self.head.requires_grad_(False)
        latent = self.latent.trained() if isinstance(self.latent, AnyHead) else ()
        for parameter in (*groups["rest"], *self._answering().trained(), *latent):
            parameter.requires_grad_(True)
        return (p for p in self.parameters() if p.requires_grad)

    def batch(self, seen: Seen, targets: Any) -> PolicyBatch:
        """See Policy. targets: an array; Codes; or an array with what the head itself is shown (looks.Aged)."""
        if isinstance(targets, Codes):
            return PolicyBatch(self._prepare(seen), torch.from_numpy(targets.values), latent=True)
        values, now = targets if isinstance(targets, tuple) else (targets, {})
        return PolicyBatch(self._prepare(seen), torch.from_numpy(values), now)

    def robot_batch(self, seen: Seen, actions: Array, pad: Array) -> PolicyBatch:
        """See Policy: for the head that it has. Of several robots the actions are those of the observations' robot."""
        if self.acting is None:
            raise LapaError("This policy predicts latent codes, not robot actions; give it a head for them first.")
        if self._answering().every:
            raise LapaError(f"The head {self.config.head} {FINETUNED}")
        chunks = self.meaning.targets(actions, seen.state) if self.meaning else actions
        if self.scales:
            robots = seen.embodiment or ("",) * len(seen)
            chunks = self.scales.normalise(chunks, _asked(robots, self.scales.names))
        share, where = outside(self.acting, chunks, pad)
        if share > MANY:  # a batch has few actions
            say_once(f"many of the labelled {where} Give it a new head.")
        return self.batch(seen, self.acting.targets(chunks, pad))

    def _prepare(self, seen: Seen) -> Inputs:
        return self.backbone.prepare(replace(seen, state=self._state(seen)))

    def _state(self, seen: Seen) -> Array | None:
        """As the model reads it; 0, the mean, where there is none."""
        if not self.reads.state:
            return None
        nothing = np.zeros((len(seen), len(self.reads.state)), np.float32)
        return nothing if seen.state is None else self.reads.standardised(seen.state)

    def loss(self, batch: PolicyBatch) -> tuple[Tensor, Logs]:
        """The head's."""
        context = self._shown(self._context(batch.inputs), batch.now)
        head = self.latent if batch.latent else self.head
        assert isinstance(head, AnyHead)
        return head.loss(context, batch.targets.to(context.readout.device))

    def counted(self, batch: PolicyBatch) -> int:
        """See contracts.Trainable: the targets that there are."""
        known = ~batch.targets.isnan() if batch.targets.is_floating_point() else batch.targets >= 0
        return int(known.sum())

    # --- saying and acting

    def logits(self, images: Any, texts: Sequence[str]) -> Tensor:
        """uint8 [B, H, W, 3] or float [B, 3, H, W] in [0, 1] -> float32 [B, positions, classes]; impossible ones are
        -inf."""
        return self._of_classes().logits(self._context(self._prepare(Seen.of(images, texts))))

    def _answering(self) -> AnyHead:
        if not isinstance(self.head, AnyHead):
            raise LapaError("This policy has no head yet; pretrain or finetune it first.")
        return self.head

    def _of_classes(self) -> Head:
        if not isinstance(head := self._answering(), Head):
            raise LapaError(f"The head {self.config.head} answers with actions as numbers; it has no classes.")
        return head

    def _context(self, inputs: Inputs) -> Context:
        first = next(self._answering().parameters())
        context: Context = self.backbone({name: tensor.to(first.device) for name, tensor in inputs.items()})
        if context.readout.dtype == first.dtype or torch.is_autocast_enabled(first.device.type):
            return context
        # A backbone in an arithmetic of its own, such as lwm in bfloat16: the head has float32.
        return replace(context, hidden=context.hidden.to(first.dtype), readout=context.readout.to(first.dtype))

    @staticmethod
    def _shown(context: Context, now: Inputs) -> Context:
        """The context with what the head itself is shown."""
        where = context.readout.device
        return replace(context, now={name: tensor.to(where) for name, tensor in now.items()}) if now else context

    def _planned(self, seen: Seen, ids: Sequence[int] | None) -> Context:
        """The context for a head that looks for itself: of running episodes the backbone's last look, else a new one;
        and what is seen now."""
        head, state, spec = self._answering(), self._state(seen), self.backbone.image_spec

        def look(rows: list[int]) -> Context:
            return self._context(self._prepare(seen.take(rows)))

        every = list(range(len(seen)))
        context = look(every) if ids is None else self.looks.context(ids, seen.texts, head.every, look)
        now = {"images": torch.stack([pictures(each, spec) for each in seen.images.values()], 1)}
        return self._shown(context, now if state is None else {**now, "state": torch.from_numpy(state)})

    @torch.no_grad()
    def probabilities(self, images: Any, texts: Sequence[str]) -> Array:
        """-> float32 [B, positions, classes], in the fastest arithmetic of this machine, or the backbone's own."""
        self._of_classes()
        return self._said(Seen.of(images, texts))

    @torch.no_grad()
    def _said(self, seen: Seen, ids: Sequence[int] | None = None) -> Array:
        """What the head answers."""
        head = self._answering()
        dtype = self.backbone.acts_in or fast_dtype()
        with torch.autocast(device().type, dtype, enabled=dtype != torch.float32):
            context = self._planned(seen, ids) if head.every else self._context(self._prepare(seen))
            found: Array = head.answer(context).cpu().numpy()
        return found

    @torch.no_grad()
    def predict_codes(self, images: Any, texts: Sequence[str]) -> Tensor:
        """The likeliest latent codes of the next window, int64 [B, s]. Raises LapaError once the latent head has been
        dropped."""
        if not isinstance(self.space, CodeSpace):
            raise LapaError("This policy predicts robot actions, not codes: its latent head was dropped in stage 3.")
        context = self._context(self._prepare(Seen.of(images, texts)))
        return self._of_classes().predict(context)[:, : self.space.codes]

    @torch.no_grad()
    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        """B observations -> float32 [B, chunk, A] in the robot's units; of a policy with `scales` in those of the
        observation's "embodiment" (the first, where it says none)."""
        if self.acting is None:
            raise LapaError("This policy predicts latent codes, not robot actions; finetune it first (lapa finetune).")
        names = self.scales.names if self.scales else ()
        shown = seen(observations, self.spec, names)
        tell_of_texts(self, shown.texts)
        actions = self.acting.decide(self._said(shown, ids), self.config.decoding)
        actions = self.scales.restore(actions, _asked(shown.embodiment, names)) if self.scales else actions
        return self.meaning.robot(actions, shown.state) if self.meaning else actions

    @torch.no_grad()
    def directions(self, observations: Sequence[Observation]) -> list[str]:
        """What it says before it acts on these B observations, such as "move up and left". Raises LapaError for a
        policy whose head says nothing (heads/autoregressive.py `directions`)."""
        shown = seen(observations, self.spec, self.scales.names if self.scales else ())
        dtype = self.backbone.acts_in or fast_dtype()
        with torch.autocast(device().type, dtype, enabled=dtype != torch.float32):
            return self._answering().says(self._context(self._prepare(shown)))

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """See Policy: the backbone's looks."""
        self.looks.forget(ids)

    # --- saving

    def description(self) -> dict[str, Any]:
        """What config.json needs to open this policy again."""
        told = {"space": self.space, "scales": self.scales, "meaning": self.meaning, "reads": self.reads}
        asks = type(self.backbone).answers is not Backbone.answers and self.space and self.asked != self.space.kind
        return {
            **super().description(),
            **{key: value and asdict(value) for key, value in told.items()},
            **({"asked": self.asked} if asks else {}),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """See Policy."""
        self.meaning = Meaning.from_json(saved.get("meaning"))
        if (reads := saved.get("reads")) is not None:
            self.reads = Reads.from_json(reads)
            self.backbone.extend(self.reads.cameras, len(self.reads.state))
        self.grow(space_from_json(saved.get("space")))
        if "asked" in saved:
            self._ask_for(typed_value(str, saved["asked"], "asked"))
        self.scales = scales_from_json(saved.get("scales"))
        if self.acting and self.meaning and len(self.meaning.spec) != self.dimensions:
            raise LapaError(f"meaning.spec has {len(self.meaning.spec)} actions, the space {self.dimensions}.")
        if self.acting and self.scales and len(self.scales.low[0]) != self.dimensions:
            raise LapaError(f"scales have {len(self.scales.low[0])} actions, the space {self.dimensions}.")


def _asked(embodiment: Sequence[str], names: Sequence[str]) -> Array:
    """Names of robots, "" for none -> their numbers int64 [B]. Raises LapaError for one that is not known."""
    if wrong := [name for name in embodiment if name and name not in names]:
        raise LapaError(f'This policy does not speak the actions of the robot "{wrong[0]}". Known: {", ".join(names)}.')
    if len(names) > 1 and not all(embodiment):
        say_once(
            f'An observation without "embodiment" is answered in the actions of {names[0]} (of {", ".join(names)}).'
        )
    return np.array([names.index(name) if name else 0 for name in embodiment], np.int64)


def robots(data: Index) -> tuple[str, ...]:
    """A name for the robot of each dataset; a name that occurs again gets a number."""
    specs = parted(data.spec)
    found = data.embodiments if all(data.embodiments) else specs
    if len(found) != len(data.widths):
        return tuple(map(str, range(len(data.widths))))
    before = [found[:i].count(name) for i, name in enumerate(found)]
    return tuple(f"{name} {n + 1}" if n else name for name, n in zip(found, before, strict=True))
