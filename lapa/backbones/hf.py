"""Any open vision-language model: SmolVLM, Idefics3, PaliGemma, Gemma3, LLaVA-OneVision, InternVL, Qwen-VL.

The model reads its own prompt, as it was trained to: pictures, instruction, and what begins its answer. The readout is
the hidden state of the last token. The vision encoder is frozen; what it sees in each frame is computed once and kept
on disk (models/sight.py). What is trained are adapters (LoRA), the last layers, or all the rest. What is frozen is no
part of an artefact: config.json names the model with the hash of its files.

    pictures --its image processor, frozen vision encoder, its projector--\\
    instruction --its tokenizer----------------------------------------------> its language model --> last token
    state --a linear layer, new-----------------------------------------------/
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lapa.artefacts.pretrained import Reference
from lapa.backbones import Backbone, pictures
from lapa.contracts import Context, ImageSpec, Inputs, LapaError
from lapa.data.features import FrameFeatures, frame_features
from lapa.data.images import Fit
from lapa.data.observations import Pictures, Seen, say_once
from lapa.data.pack import Packed
from lapa.models.language import layers_of
from lapa.models.sight import NUMBERS, Look, alone, as_seen, from_bits, instead, packed_bits, seeing
from lapa.models.vision_language import (
    EYES,
    VisionLanguage,
    shortened,
    source_of,
    text_model,
    trained_names,
    vision_language,
    with_lora,
)

LARGEST_SETTING = 100_000


@dataclass(frozen=True)
class Config:
    """Which model, and what of it is trained."""

    model: str = ""
    """a folder with a model of transformers, or a hub id"""
    revision: str = ""
    """the commit of a hub id, 40 hex digits"""
    image_size: int = 224
    """pixels a side of the frames that are kept; the model's own image processor resizes them"""
    fit: Fit = "squash"
    """how pictures are made square (contracts.ImageSpec)"""
    words: int = 64
    """longest instruction in tokens; the rest is cut"""
    layers: int = 0
    """the first so many layers of the language model; 0: all"""
    training: Literal["lora", "top", "full"] = "lora"
    """lora: adapters beside the linear layers of the language model; top: its last layers; full: all but the vision
    encoder. Stage 3 trains it with --trainable all"""
    rank: int = 16
    """of the adapters"""
    alpha: int = 32
    """their scale, times 1/rank"""
    top: int = 4
    """the last so many layers"""
    precompute: bool = True
    """keep on disk what is seen in all frames, where nothing of what sees is trained; false looks in each step"""
    grounded: bool = True
    """say what is trained; set to false where a saved policy is opened"""

    def __post_init__(self) -> None:
        sizes = {f.name: getattr(self, f.name) for f in fields(self) if f.type in ("int", int)}
        if wrong := [f"{n} {v}" for n, v in sizes.items() if not (n != "layers") <= v <= LARGEST_SETTING]:
            raise LapaError(f"hf: {', '.join(wrong)}: it is 1 to {LARGEST_SETTING:,} (0 for layers).")

    def borrowed(self) -> dict[str, Reference]:
        """The folder or hub id. Raises LapaError where it, transformers or peft is not there."""
        return {"vision-language": self._source().reference}

    def build(self) -> Hf:
        """The backbone with the model's own weights. Raises LapaError for a model that cannot be read."""
        return Hf(self, vision_language(self._source(), self.image_size))

    def _source(self) -> Any:
        needs = ("transformers", "peft") if self.training == "lora" else ("transformers",)
        return source_of(self.model, self.revision, needs)


class Hf(Backbone):
    """See the module's docstring."""

    untaught = True
    state: nn.Linear | None  # S -> width, where it reads the state

    def __init__(self, config: Config, speaks: VisionLanguage) -> None:
        super().__init__()
        self.config, self.speaks = config, speaks
        self.image_spec = ImageSpec(config.image_size, config.fit)
        if not torch.empty(0).is_meta:
            speaks.front(1)  # what cannot be read is told now
        self.model = speaks.network()
        seeing(self.model)
        self.model.in_float32 = EYES  # its pictures then meet the embeddings in one dtype (runtime/precision.py)
        shortened(self.model, config.layers)
        if config.training == "lora":
            with_lora(self.model, config.rank, config.alpha)
        self.width = int(text_model(self.model).config.hidden_size)
        wanted = trained_names(self.model, config.training, config.top)
        self.frozen = {f"model.{name}" for name in self.model.state_dict() if name not in wanted}
        self.model.eval().requires_grad_(False)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in wanted)
        language = {id(parameter) for parameter in text_model(self.model).parameters()}
        apart = all(id(p) in language for p in self.model.parameters() if p.requires_grad)
        self.keeps = config.precompute and apart  # with training=full the projector is trained, but for Qwen's
        if self.keeps:  # what sees is float32 as a whole
            others = (name for name, part in self.model.named_children()
                      if not any(id(parameter) in language for parameter in part.parameters()))  # fmt: skip
            self.model.in_float32 = tuple(others)
        self.recompute = False  # keep the input of each layer alone for the backward pass (training/loop.py)
        self.register_module("state", None)
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_put_in)
        source = speaks.source
        self.origin = {" ".join(filter(None, (source.name, source.version))): source.hash}
        if config.grounded and not torch.empty(0).is_meta:
            say_once(self._told())

    def _told(self) -> str:
        """Which model it is, and what is trained."""
        speaks, config = self.speaks, self.config
        whole, learns = (
            sum(p.numel() for p in self.parameters() if p.requires_grad or every) for every in (True, False)
        )
        commit = f" at commit {speaks.source.version}" if speaks.source.version else ""
        size = "" if speaks.family.grid else f" at {' x '.join(map(str, speaks.shape[-2:]))} pixels"
        return (f"The backbone is {speaks.source.name}{commit} ({speaks.config.model_type}): {speaks.tokens} tokens a "
                f"picture{size}. {config.training}: {learns:,} of {whole:,} weights are trained; its vision encoder is "
                "frozen.")  # fmt: skip

    def train(self, mode: bool = True) -> Self:
        """The model itself stays without dropout."""
        super().train(mode)
        self.model.eval()
        return self

    def extend(self, cameras: Sequence[str], state: int) -> None:
        """Pictures of all cameras are read, in this order; the state is one more token behind the instruction, which
        begins as large as words are."""
        if state and self.state is None:
            table = self.model.get_input_embeddings()
            self.state = nn.Linear(state, self.width).to(table.weight.device)
            with torch.no_grad():
                some = table(torch.arange(0, table.num_embeddings, 7, device=table.weight.device))
                nn.init.zeros_(self.state.bias)
                self.state.weight.normal_().mul_(some.float().square().mean().sqrt() * state**-0.5)

    # --- reading

    def features(self, packed: Packed) -> FrameFeatures | None:
        """See Backbone; float16 pairs that hold float32 numbers. None where what sees is trained too."""
        if not self.keeps:
            return None
        speaks = self.speaks
        key = f"{speaks.source.hash} {speaks.config.model_type} {self.config.image_size}"
        numbers = NUMBERS * speaks.parts * speaks.tokens * self.width
        hint = 'Or add "precompute":false to policy.backbone_options, which looks at the pictures in every step.'
        return frame_features(packed, self._look, numbers, "hf", key, hint)

    def _look(self, pixels: Tensor) -> Tensor:
        """float [B, 3, size, size] in [0, 1] -> float16 [B, numbers]."""
        if self.device != pixels.device:
            self.model.to(pixels.device)
        shown, grid = self.speaks.pixels(_whole(pixels)[:, None])
        inputs = {"pixels": shown.to(pixels.device)} | ({} if grid is None else {"grid": grid.to(pixels.device)})
        return packed_bits(alone(self.model.get_image_features, self._each(inputs)))

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return next(self.model.parameters()).device

    def _each(self, inputs: Inputs) -> Iterator[dict[str, Any]]:
        """Each picture alone, as the model's get_image_features takes it."""
        flat = {name: inputs[name].flatten(0, 1) for name in ("pixels", "grid") if name in inputs}
        for i in range(len(flat["pixels"])):
            yield self._pictures({name: each[i : i + 1, None] for name, each in flat.items()})

    def prepare(self, seen: Seen) -> Inputs:
        """features float32 [B, cameras, parts, tokens, D] where they are known, else pixels float32 [B, cameras, ..];
        grid int64 [B, cameras, 3] (Qwen); ids int64 [B, L], known bool [B, L] and spot bool [B, L]
        (VisionLanguage.rows); position int64 [B, L] or [B, 3, L]; state float32 [B, S] where it is read."""
        speaks, state = self.speaks, self.state is not None and seen.state is not None
        if seen.features:
            kept = torch.from_numpy(np.stack(list(seen.features.values()), 1))
            shown = {"features": from_bits(kept, speaks.parts, speaks.tokens)}
            grid = None if speaks.grid is None else speaks.grid.expand(*kept.shape[:2], -1)
        else:
            whole = [_whole(pictures(each, self.image_spec)) for each in seen.images.values()]
            pixels, grid = speaks.pixels(torch.stack(whole, 1))
            shown = {"pixels": pixels}
        cameras = len(seen.features or seen.images)
        ids, known, spot = speaks.rows(seen.texts, cameras, self.config.words, state)
        inputs = {**shown, "ids": ids, "known": known, "spot": spot}
        inputs |= {} if grid is None else {"grid": grid}
        inputs["position"] = self._positions(inputs)
        return inputs | ({"state": torch.from_numpy(seen.state)} if state else {})

    def _positions(self, inputs: Inputs) -> Tensor:
        known = inputs["known"]
        if not self.speaks.family.grid:
            return (known.cumsum(1) - 1).clamp(min=0) + self.speaks.family.first
        found = self.model.get_rope_index(
            input_ids=inputs["ids"], mm_token_type_ids=(inputs["ids"] == self.speaks.image_id).int(),
            image_grid_thw=inputs["grid"].flatten(0, 1), attention_mask=known.long(),
        )[0]  # fmt: skip
        return found.transpose(0, 1).contiguous()

    def encode(self, inputs: Inputs) -> Context:
        """The hidden states of the whole prompt; the readout is that of its last token, after which it goes on."""
        known, position = inputs["known"], inputs["position"]
        if position.ndim == 3:
            position = position.transpose(0, 1)
        again = self.recompute and torch.is_grad_enabled()
        cache = None if again else _new_cache()
        with self._with_state(inputs), self._recomputing(again), instead(self._seen(inputs)):
            hidden = self.model(
                input_ids=inputs["ids"], attention_mask=known.long(), position_ids=position,
                use_cache=cache is not None, **{_cache_name(self.model): cache}, **self._shown(inputs),
            ).last_hidden_state  # fmt: skip
        last = known.shape[1] - 1 - known.flip(1).int().argmax(1)
        readout = hidden[torch.arange(len(hidden), device=hidden.device), last]
        after = position.amax(0) if position.ndim == 3 else position
        further = None if cache is None else Continued(self.model, known, after.amax(1), cache)
        return Context(hidden, known, readout, further)

    def _seen(self, inputs: Inputs) -> Callable[[Look], Any] | None:
        """What the model sees in place of its own look: what is kept, or each picture alone; None: it looks itself."""
        kind = self.speaks.config.model_type
        if "features" in inputs:
            return lambda _: as_seen(inputs["features"].flatten(0, 1), kind)
        return (lambda look: as_seen(alone(look, self._each(inputs)), kind)) if self.keeps else None

    def _shown(self, inputs: Inputs) -> dict[str, Any]:
        """The pictures as this family's model takes them, and which tokens are a picture's."""
        if "features" in inputs:  # nobody looks at these
            given = {"pixel_values": inputs["features"].new_zeros(0)}
            given |= {"image_grid_thw": inputs["grid"].flatten(0, 1)} if self.speaks.family.grid else {}
        else:
            given = self._pictures(inputs)
        if both_ways := self.speaks.family.both_ways:
            of_picture = (inputs["ids"] == self.speaks.image_id).long()
            given["token_type_ids"] = of_picture if both_ways == "picture" else torch.zeros_like(of_picture)
        return given

    def _pictures(self, inputs: Inputs) -> dict[str, Any]:
        """The pictures, as this family's model takes them."""
        pixels, kind = inputs["pixels"], self.speaks.config.model_type
        if kind in ("smolvlm", "idefics3"):
            return {"pixel_values": pixels}
        if self.speaks.family.grid:
            return {"pixel_values": pixels.flatten(0, 2), "image_grid_thw": inputs["grid"].flatten(0, 1)}
        given: dict[str, Any] = {"pixel_values": pixels.flatten(0, 1)}
        if kind == "llava_onevision":  # told to be many, none is cut into tiles
            count = len(given["pixel_values"])
            sizes = torch.tensor([pixels.shape[-2:]] * count, device=pixels.device)
            given |= {"image_sizes": sizes, "batch_num_images": torch.tensor([max(count, 2)])}
        return given

    @contextmanager
    def _with_state(self, inputs: Inputs) -> Iterator[None]:
        """The state's token stands in place of the word at `spot`, for the length of a with-block and this thread."""
        if self.state is None or "state" not in inputs:
            yield
            return
        token, spot, mine = self.state(inputs["state"])[:, None], inputs["spot"][..., None], threading.get_ident()

        def put(_: nn.Module, __: Any, words: Tensor) -> Tensor:
            return torch.where(spot, token.to(words.dtype), words) if threading.get_ident() == mine else words

        hook = self.model.get_input_embeddings().register_forward_hook(put)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _recomputing(self, on: bool) -> Iterator[None]:
        """The language model's layers keep their input alone for the backward pass, for the length of a with-block."""
        layers: list[Any] = list(layers_of(text_model(self.model))) if on else []
        for layer in layers:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward

    def overlooked(self, texts: Sequence[str]) -> list[str]:
        """See Backbone."""
        most, unknown, said = self.config.words, self.speaks.tokenizer.unk_token_id, []
        tokens = [self.speaks.words(text) for text in texts]
        if cut := sum(len(each) > most for each in tokens):
            said.append(f"{cut} of {len(texts)} instructions are longer than the {most} tokens that the backbone hf "
                        "reads; the rest is cut (its option words).")  # fmt: skip
        if odd := sum(unknown is not None and unknown in each for each in tokens):
            said.append(f"{odd} of {len(texts)} instructions have words that {self.config.model} does not know; it "
                        "does not tell them apart.")  # fmt: skip
        return said

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """See Backbone. "vision" is all that is frozen."""
        named = [(name, parameter) for name, parameter in self.named_parameters() if not name.startswith("state.")]
        return {
            "vision": [parameter for name, parameter in named if name in self.frozen],
            "language": [parameter for name, parameter in named if name not in self.frozen],
            "rest": [] if self.state is None else list(self.state.parameters()),
        }


class Continued:
    """A contracts.Continuation: the language model goes on with its cache of keys and values, behind prompts that are
    padded on the left, as `prepare` makes them."""

    def __init__(self, model: Any, known: Tensor, last: Tensor, cache: Any) -> None:
        self.model, self.known, self.last, self.cache = model, known, last, cache

    def __call__(self, embeddings: Tensor) -> Tensor:
        """See contracts.Continuation."""
        count = embeddings.shape[1]
        self.known = F.pad(self.known, (0, count), value=True)
        position = self.last[:, None] + torch.arange(1, count + 1, device=self.last.device)
        self.last = position[:, -1]
        rope = position.expand(3, -1, -1) if hasattr(self.model, "get_rope_index") else position
        found: Tensor = self.model(
            inputs_embeds=embeddings, attention_mask=self.known.long(), position_ids=rope, use_cache=True,
            **{_cache_name(self.model): self.cache},
        ).last_hidden_state  # fmt: skip
        return found


def _new_cache() -> Any:
    """Keys and values of all tokens, also of layers that look at the nearest alone: masks see to that."""
    from transformers import DynamicCache

    return DynamicCache()


def _cache_name(model: Any) -> str:
    """What this version of transformers calls it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _whole(images: Pictures) -> Tensor:
    """uint8 [B, S, S, 3] as they are; float [B, 3, S, S] in [0, 1] rounded to such."""
    assert isinstance(images, Tensor)
    return images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def _leave_out(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """What is saved holds nothing of what is frozen."""
    for name in module.frozen:
        state.pop(f"{prefix}{name}", None)


def _put_in(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """The inverse, before it is loaded: what the model has already."""
    mine = module.model.state_dict()
    state |= {f"{prefix}{name}": mine[name.removeprefix("model.")] for name in module.frozen}
