"""LWM, the paper's vision-language model of 7B weights, in which codes and actions are generated as further tokens.

A picture becomes 256 codes of a frozen VQGAN (models/vqgan.py), each a token of the language model (models/llama.py).
The weights come from `lapa convert lapa-official` (docs/lapa_7b.md); the head `autoregressive` with "in_backbone": true
goes on after the prompt, as the paper does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.backbones import Backbone, pictures
from lapa.contracts import Context, ImageSpec, Inputs, LapaError
from lapa.data.bilinear import cropped
from lapa.data.features import FrameFeatures, frame_features
from lapa.data.images import Fit
from lapa.data.observations import Pictures, Seen
from lapa.data.pack import Packed
from lapa.models.llama import Continued, Dense, Llama, LlamaConfig
from lapa.models.lwm_prompt import AFTER, END_OF_VISION, VISION_IDS, Prompt
from lapa.models.vqgan import VQGAN, VQGANConfig

AT_ONCE = 8  # pictures that the VQGAN encodes at once, of many
HIGH = 128  # codes are kept as a multiple of this and the rest
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NOT_OF_THE_WEIGHTS = ("weights", "grounded", "image_size", "words", "fit", "crop", "dtype", "rope", "kept_latent",
                      "precompute")  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Sizes of the model (those of LWM-Chat-1M), how pictures are prepared and in which arithmetic it runs."""

    weights: str = ""
    """a folder that `lapa convert lapa-official` made of LWM's own weights; of these very sizes. Read when a policy is
    made, not when a saved one is opened: that has weights of its own"""
    grounded: bool = True
    """start from `weights`; False leaves them open, for a saved policy, whose weights follow"""
    width: int = 4096
    depth: int = 32
    heads: int = 32
    intermediate: int = 11008
    theta: float = 5e7
    eps: float = 1e-6
    vocabulary: int = 32000
    vision_vocabulary: int = 8448
    image_size: int = 256
    vqgan_width: int = 128
    vqgan_mult: tuple[int, ...] = (1, 2, 2, 4, 6)
    vqgan_blocks: int = 2
    vqgan_z: int = 64
    vqgan_embedding: int = 64
    vqgan_codes: int = 8192
    tokenizer_bytes: int = 499723
    """size of the tokenizer's file (Llama 2's), which is kept with the weights"""
    words: int = 128
    """tokens of the prompt before the picture; longer ones lose their beginning"""
    fit: Fit = "released"
    """how pictures are made square (contracts.ImageSpec)"""
    crop: bool = False
    """cut a tenth off the height, as the released robot server does"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the language model's weights, and the arithmetic in which it acts"""
    rope: Literal["", "float32", "bfloat16"] = ""
    """arithmetic of the table of positions; "": that of `dtype`. The released weights were trained with bfloat16"""
    precompute: bool = True
    """where a pack of pictures is trained on, compute the codes of all of them once and keep them on disk"""
    kept_latent: int = 0
    """codes of a latent head that a released robot policy has beside its own; kept, not used"""

    @property
    def grid(self) -> int:
        """Codes of a picture's side."""
        return self.image_size // self.vqgan.stride

    @property
    def vqgan(self) -> VQGANConfig:
        """Of the picture's tokenizer."""
        return VQGANConfig(self.vqgan_width, tuple(self.vqgan_mult), self.vqgan_blocks, self.vqgan_z,
                           self.vqgan_embedding, self.vqgan_codes)  # fmt: skip

    @property
    def llama(self) -> LlamaConfig:
        """Of the language model."""
        return LlamaConfig(self.width, self.depth, self.heads, self.intermediate, self.theta, self.eps,
                           DTYPES[self.rope or self.dtype])  # fmt: skip

    def build(self) -> LWM:
        """The backbone, with the weights in `weights` if `grounded`. Raises LapaError on sizes that cannot be, and on
        weights of another size."""
        if min(self.vocabulary, self.words, self.tokenizer_bytes) < 1 or self.kept_latent < 0:
            raise LapaError("lwm: vocabulary, words and tokenizer_bytes are at least 1, kept_latent at least 0.")
        if self.image_size < self.vqgan.stride or self.image_size % self.vqgan.stride:
            raise LapaError(f"lwm: image_size is a multiple of {self.vqgan.stride}, not {self.image_size}.")
        if self.vision_vocabulary < VISION_IDS or self.vqgan_codes > VISION_IDS - 2:
            raise LapaError(
                f"lwm: vision_vocabulary is at least {VISION_IDS} and vqgan_codes at most {VISION_IDS - 2}, not "
                f"{self.vision_vocabulary} and {self.vqgan_codes}."
            )
        if not self.grounded:
            return LWM(self)
        if not self.weights:
            raise LapaError(
                "The backbone lwm starts from the weights of LWM-Chat-1M. Convert them with `lapa convert "
                """lapa-official`, and add --set 'policy.backbone_options={"weights":"FOLDER"}' (docs/lapa_7b.md)."""
            )
        return self._with_weights()

    def _with_weights(self) -> LWM:
        from lapa.artefacts.folder import load_artefact, load_strictly

        found = load_artefact(self.weights, "backbone")
        made = found.settings(Config, defaults=True)
        names = [field.name for field in fields(self) if field.name not in NOT_OF_THE_WEIGHTS]
        if wrong := [name for name in names if _plain(getattr(made, name)) != _plain(getattr(self, name))]:
            said = ", ".join(f'"{name}":{_json(getattr(made, name))}' for name in wrong)
            raise LapaError(
                f"The weights in {found.path} are of another size. Say so in policy.backbone_options, beside "
                f'"weights": {said}.'
            )
        model = LWM(self)
        load_strictly(model, found.tensors, found.path)
        model.origin = {self.weights: found.hash}
        return model


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _json(value: Any) -> str:
    return str(_plain(value)).replace(" ", "").replace("'", '"')


class Table(nn.Embedding):
    """Embeddings whose weights come from a file: making them costs nothing."""

    def reset_parameters(self) -> None:
        """Nothing."""


def padding(present: Tensor) -> int:
    """How many columns of present bool [B, n] are padding on the left of all rows; none where shapes are compiled or
    there are no values."""
    if present.is_meta or torch.compiler.is_compiling():
        return 0
    return int((~present.any(0)).cumprod(0).sum())


class LWM(Backbone):
    """See the module's docstring. Weights that no part of lapa reads (the heads for text and pictures) are kept, so
    that a policy can be given back to the released code."""

    in_float32 = ("vqgan",)  # runtime/precision.py

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, dtype = config, DTYPES[config.dtype]
        self.width, self.image_spec = config.width, ImageSpec(config.image_size, config.fit)
        self.acts_in = torch.float32  # that is, in the weights' own
        self.vqgan = VQGAN(config.vqgan)
        self.text = Table(config.vocabulary, config.width, dtype=dtype)
        self.vision = Table(config.vision_vocabulary, config.width, dtype=dtype)
        self.llama = Llama(config.llama, dtype)
        kept = {"text": config.vocabulary, "vision": config.vision_vocabulary}
        kept |= {"latent": config.kept_latent} if config.kept_latent else {}
        self.kept = nn.ModuleDict({name: Dense(config.width, size, dtype) for name, size in kept.items()})
        self.kept_table = Table(config.kept_latent, config.width, dtype=dtype) if config.kept_latent else None
        self.tokenizer: Tensor
        self.register_buffer("tokenizer", torch.zeros(config.tokenizer_bytes, dtype=torch.uint8))
        self.kind = "codes"

    @property
    def prompt(self) -> Prompt:
        """Its tokenizer."""
        return Prompt(self.tokenizer.cpu().numpy().tobytes())

    def answers(self, kind: str) -> None:
        """The prompt ends with <delta> before codes, with <action> before actions."""
        self.kind = kind if kind in AFTER else "actions"

    def features(self, packed: Packed) -> FrameFeatures | None:
        """The codes of every frame, two numbers each: float16 holds no number of 13 bits."""
        if not self.config.precompute:
            return None
        digest = hashlib.blake2b(digest_size=8)
        for tensor in self.vqgan.state_dict().values():
            digest.update(tensor.cpu().numpy())
        key = f"codes {digest.hexdigest()} {self.config.crop}"
        return frame_features(packed, self._codes_in_two, 2 * self.config.grid**2, "lwm", key)

    def _codes_in_two(self, pixels: Tensor) -> Tensor:
        """float [B, 3, size, size] in [0, 1] -> float16 [B, 2 * codes]."""
        self.vqgan.to(pixels.device)
        squares = self._squares(pixels.cpu()).to(pixels.device)
        codes = torch.cat([self.look(some) for some in squares.split(AT_ONCE)])
        return torch.stack([codes // HIGH, codes % HIGH], 2).flatten(1).half()

    def _squares(self, images: Pictures) -> Tensor:
        """Pictures -> uint8 [B, size, size, 3], as the VQGAN is shown them."""
        squares = pictures(images, self.image_spec)
        if squares.dtype != torch.uint8:
            squares = (squares * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        if self.config.crop:
            squares = torch.from_numpy(np.stack([cropped(square) for square in squares.numpy()]))
        return squares.contiguous()

    def prepare(self, seen: Seen) -> Inputs:
        """codes int64 [B, codes] where they are known, else pixels uint8 [B, size, size, 3]; words int64 [B, words] and
        present bool [B, words], the prompt before the picture; after int64 [B, n], that behind it."""
        if seen.features:
            (known,) = seen.features.values()
            high, low = torch.from_numpy(known).long().unflatten(1, (-1, 2)).unbind(2)
            shown = {"codes": high * HIGH + low}
        else:
            (images,) = seen.images.values()
            shown = {"pixels": self._squares(images)}
        prompt = self.prompt
        words, present = prompt.rows(seen.texts, self.config.words)
        after = torch.from_numpy(prompt.after(self.kind)).expand(len(words), -1)
        return {**shown, "words": torch.from_numpy(words), "present": torch.from_numpy(present), "after": after}

    def look(self, pixels: Tensor) -> Tensor:
        """uint8 [B, size, size, 3] -> int64 [B, codes], row by row."""
        scaled = (pixels.double() / 127.5 - 1).float().permute(0, 3, 1, 2)
        with torch.no_grad():
            return self.vqgan.encode(scaled).flatten(1)

    def ids(self, inputs: Inputs) -> Tensor:
        """All tokens of the prompt, int64 [B, L]; those between words and after are of the picture's vocabulary."""
        codes = inputs["codes"] if "codes" in inputs else self.look(inputs["pixels"])
        end = codes.new_full((len(codes), 1), END_OF_VISION)
        return torch.cat([inputs["words"], codes, end, inputs["after"]], 1)

    def encode(self, inputs: Inputs) -> Context:
        """The hidden states of the whole prompt; the readout is that of its last token, after which it goes on. Columns
        that are padding in all rows are not computed, and zero."""
        skip = padding(inputs["present"])
        words, present = inputs["words"][:, skip:], inputs["present"][:, skip:]
        ids, behind = self.ids({**inputs, "words": words}), inputs["after"].shape[1]
        parts = ids.split([words.shape[1], ids.shape[1] - words.shape[1] - behind, behind], 1)
        # The prompt's residual stream is float32 also in bfloat16, as in the released code.
        x = torch.cat([self.text(parts[0]), self.vision(parts[1]), self.text(parts[2])], 1).float()
        present = F.pad(present, (0, ids.shape[1] - words.shape[1]), value=True)
        hidden, cache = self.llama(x, present)
        further = Continued(self.llama, present, cache)
        return Context(F.pad(hidden, (0, 0, skip, 0)), F.pad(present, (skip, 0)), hidden[:, -1], further)

    def overlooked(self, texts: Sequence[str]) -> list[str]:
        """See Backbone."""
        cut = self.prompt.overlong(texts, self.config.words)
        told = (
            f"{cut} of {len(texts)} instructions are too long: with them the prompt has more than {self.config.words} "
        )
        return [f"{told}tokens, and its beginning is cut."] if cut else []

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """See Backbone. "vision" are the VQGAN, and what is kept without being read: neither is trained."""
        kept = [] if self.kept_table is None else list(self.kept_table.parameters())
        language = [*self.text.parameters(), *self.vision.parameters(), *self.llama.parameters()]
        return {"vision": [*self.vqgan.parameters(), *self.kept.parameters(), *kept], "language": language, "rest": []}
