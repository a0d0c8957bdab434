"""A frozen vision encoder and a pretrained language model of parts, joined by what is trained: for any robot, on a CPU.

Both encoders are really pretrained (EfficientNet-lite0 on ImageNet and MiniLM on sentences by default) and have never
met; a projector and a small transformer learn to read them together, from all videos, in stage 2.

    picture --frozen vision encoder--> grid --keypoints or projection--> image tokens  \\
    instruction --frozen language model--> vector of the sentence ----------> a token   > transformer --> readout
    state ----------------------------------------------------------------> a token    /

`language=smollm2` (or any model that generates) is read word by word instead: image tokens, words and state go through
the language model itself, whose last layers are trained too (`reads`, `tuned`).

What the vision encoder sees in every frame is computed once and kept on disk (data/features.py), so a training step
takes milliseconds; acting computes the same numbers from the picture, rounded to float16 in the same way.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lapa import plugins
from lapa.artefacts.pretrained import Reference
from lapa.backbones import Backbone, grouped, pictures, with_cameras
from lapa.contracts import Context, ImageSpec, Inputs, LapaError
from lapa.data.features import FrameFeatures, frame_features
from lapa.data.observations import Seen
from lapa.data.pack import Packed
from lapa.data.pixels import as_pixels
from lapa.models.eyes import Eyes, Grid, Keypoints, keep_out
from lapa.models.language import Language, language_of, layers_of, source_of

LARGEST_SETTING = 100_000
ZERO_IS_FINE = ("layers", "tuned")


@dataclass(frozen=True)
class Config:
    """Which parts, and the sizes of what is trained."""

    image_size: int = 128
    """pixels a side of the pictures"""
    vision: str = "efficientnet"
    """a plug-in of lapa/encoders; never trained"""
    vision_options: dict[str, Any] = field(default_factory=dict)
    """its options"""
    language: str = "minilm"
    """minilm, smollm2, or any language model of transformers: a folder, or a hub id with a revision"""
    revision: str = ""
    """commit of a model of the hub"""
    layers: int = 0
    """the first so many layers of the language model; 0: all"""
    reads: Literal["auto", "sentence", "words"] = "auto"
    """sentence: one vector of each instruction, computed once, the language model is never trained; words: pictures and
    words go through the language model; auto: words where it is one that generates texts"""
    tuned: int = 4
    """with words: the last so many of the layers are trained; 0: none"""
    words: int = 64
    """longest instruction in tokens; the rest is cut"""
    image_tokens: Literal["keypoints", "grid"] = "keypoints"
    """keypoints: where in the picture learnt features are, one token a camera; grid: a token for each cell, slower"""
    keypoints: int = 64
    """how many"""
    width: int = 192
    """hidden size of the transformer and of the readout; with words it is the language model's"""
    depth: int = 2
    """layers of the transformer"""
    heads: int = 6
    """its attention heads"""
    dropout: float = 0.0
    """share of its activations that training leaves out, where few videos are learnt by heart; with sentence alone"""
    precompute: bool = True
    """keep on disk what the vision encoder sees in all frames; false looks at every picture again in each step"""
    grounded: bool = True
    """load the layers of the language model that are trained; set to false where a saved policy is opened"""

    def __post_init__(self) -> None:
        sizes = {f.name: getattr(self, f.name) for f in fields(self) if f.type in ("int", int)}
        if wrong := [f"{n} {v}" for n, v in sizes.items() if not (n not in ZERO_IS_FINE) <= v <= LARGEST_SETTING]:
            raise LapaError(f"pieces: {', '.join(wrong)}: it is 1 to {LARGEST_SETTING:,} (0 for layers and tuned).")
        if not 0 <= self.dropout < 1:
            raise LapaError(f"pieces: dropout {self.dropout}: it is 0 up to, not including, 1.")
        if self.width % self.heads or self.width % 4:
            raise LapaError(f"pieces: width {self.width} must be divisible by heads {self.heads} and by 4.")

    @property
    def eyes(self) -> Any:
        """The `Config` of the vision encoder."""
        return plugins.configure("encoders", self.vision, self.vision_options)

    def borrowed(self) -> dict[str, Reference]:
        """The packages, folders or hub ids of both encoders. Raises LapaError where they are not installed."""
        seen = self.eyes.borrowed()
        words = source_of(self.language, self.revision).reference
        return {**({"vision": seen} if seen else {}), "language": words}

    def build(self) -> Pieces:
        """The backbone. Raises LapaError where parts are not installed, and for sizes that do not fit them."""
        return Pieces(self)


class Pieces(Backbone):
    """See the module's docstring."""

    untaught = True
    in_float32 = ("look", "vision")  # coordinates have more digits than bfloat16 (runtime/precision.py)
    camera: nn.Parameter | None  # [cameras, width], with several cameras
    state: nn.Linear | None  # S -> width, where it reads the state

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.image_spec = config, ImageSpec(config.image_size)
        self.vision = Eyes(config.vision, config.vision_options, config.image_size)
        self.language = language_of(config.language, config.revision, config.layers)
        by_words = config.reads == "words" or (config.reads == "auto" and self.language.generates)
        if by_words:  # with layers of its own
            self.language = Language(config.language, config.revision, config.layers)
            self.acts_in = torch.float32  # one observation: rounding all weights would take longer than reading them
        self.width = self.language.width if by_words else config.width
        self.reader: SentenceReader | WordReader = (WordReader if by_words else SentenceReader)(config, self.language)
        shape = config.eyes.grid(config.image_size)
        keypoints = config.image_tokens == "keypoints"
        self.look: Keypoints | Grid = (
            Keypoints(shape, config.keypoints, self.width) if keypoints else Grid(shape, self.width)
        )
        keep_out(self)
        self.register_parameter("camera", None)
        self.register_module("state", None)
        self.origin = {" ".join(filter(None, (one["name"], one["version"]))): one["hash"]
                       for one in config.borrowed().values()}  # fmt: skip

    def extend(self, cameras: Sequence[str], state: int) -> None:
        """The image tokens of all cameras are read, each with an embedding of its camera, which begins at zero; the
        state is one more token."""
        self.camera = with_cameras(self.camera, len(cameras), self.width, self.device)
        if state and self.state is None:
            self.state = nn.Linear(state, self.width).to(self.device)

    @property
    def device(self) -> torch.device:
        """Of what is trained."""
        return next(self.look.parameters()).device

    # --- seeing and reading

    def features(self, packed: Packed) -> FrameFeatures | None:
        """See Backbone."""
        eyes = self.vision
        return frame_features(packed, eyes, eyes.numbers, eyes.name, eyes.key) if self.config.precompute else None

    def prepare(self, seen: Seen) -> Inputs:
        """features float16 [B, cameras, channels, rows, columns] where they are known, else images uint8
        [B, cameras, size, size, 3] or float [B, cameras, 3, size, size]; what the reader reads; state float32 [B, S]
        where it is read."""
        if seen.features:
            known = torch.from_numpy(
                np.stack(list(seen.features.values()), 1)
            )  # torch's own fails in autocast on a CPU
            shown = {"features": known.unflatten(2, self.vision.shape)}
        else:
            shown = {"images": torch.stack([pictures(each, self.image_spec) for each in seen.images.values()], 1)}
        state = {} if seen.state is None else {"state": torch.from_numpy(seen.state)}
        return {**shown, **self.reader.prepare(seen.texts), **state}

    def encode(self, inputs: Inputs) -> Context:
        """All tokens, and the last one as the readout."""
        grid = inputs["features"] if "features" in inputs else self.see(inputs["images"])
        tokens = self.look(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])
        if self.camera is not None:
            tokens = tokens + self.camera[:, None]
        more = []
        if self.state is not None and "state" in inputs:
            more.append(self.state(inputs["state"])[:, None])
        return self.reader(tokens.flatten(1, 2), inputs, more)

    @torch.no_grad()
    def see(self, images: Tensor) -> Tensor:
        """uint8 [B, cameras, size, size, 3] or float [B, cameras, 3, size, size] -> what the vision encoder sees, as it
        is kept on disk: float16 [B, cameras, channels, rows, columns]."""
        pixels = as_pixels(images.flatten(0, 1), self.image_spec.size, self.device)
        return self.vision(pixels).unflatten(1, self.vision.shape).unflatten(0, images.shape[:2])

    def overlooked(self, texts: Sequence[str]) -> list[str]:
        """See Backbone."""
        language, most, said = self.language, self.config.words, []
        if cut := sum(len(language.tokens(text)) > most for text in texts):
            said.append(f"{cut} of {len(texts)} instructions are longer than the {most} tokens that the backbone "
                        "pieces reads; the rest is cut (its option words).")  # fmt: skip
        if odd := sum(language.unread(text) for text in texts):
            said.append(f"{odd} of {len(texts)} instructions have words that the language model {language.name} does "
                        "not know; it does not tell them apart.")  # fmt: skip
        return said

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """See Backbone. Of the language model "language" has the layers that are trained alone."""
        rest = [] if self.camera is None else [self.camera]
        rest += [] if self.state is None else list(self.state.parameters())
        return grouped(self, self.vision, rest)


class SentenceReader(nn.Module):
    """A small transformer over image tokens, the vector of the sentence, and the state."""

    def __init__(self, config: Config, language: Language) -> None:
        super().__init__()
        self.language, self.most = language, config.words
        self.sentence = nn.Linear(language.width, config.width)
        self.readout = nn.Parameter(torch.randn(config.width) * 0.1)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width, config.heads, 4 * config.width, config.dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)

    def prepare(self, texts: Sequence[str]) -> Inputs:
        """sentence float32 [B, D]."""
        return {"sentence": self.language.vectors(texts, self.most)}

    def forward(self, image: Tensor, inputs: Inputs, more: list[Tensor]) -> Context:
        """Image tokens [B, K, width] -> the context of [image, sentence, more, readout]."""
        sentence = self.sentence(inputs["sentence"])[:, None]
        x = torch.cat([image, sentence, *more, self.readout.expand(len(image), 1, -1)], 1)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return Context(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), x[:, -1])


class WordReader(nn.Module):
    """The language model itself over image tokens, words, the state and a readout; its last layers are trained."""

    def __init__(self, config: Config, language: Language) -> None:
        super().__init__()
        self.language, self.most = language, config.words
        kept = language.config.num_hidden_layers
        if config.dropout:
            raise LapaError("pieces: dropout is of the small transformer (reads=sentence); with words it is 0.")
        if config.tuned > kept:
            raise LapaError(f"pieces: tuned {config.tuned}: language={language.name} has {kept} layers here.")
        self.tuned = language.blank(config.tuned) if config.tuned else nn.ModuleList()
        self.readout = nn.Parameter(torch.randn(language.width) * 0.1)
        if config.tuned and config.grounded:
            self.tuned.load_state_dict(layers_of(language.model)[-config.tuned :].state_dict())

    def prepare(self, texts: Sequence[str]) -> Inputs:
        """words int64 [B, L]; known bool [B, L], False for padding."""
        rows = [self.language.tokens(text, self.most) or [self.language.filler] for text in texts]
        longest, filler = max(map(len, rows), default=1), self.language.filler
        words = torch.tensor([row + [filler] * (longest - len(row)) for row in rows]).view(len(rows), longest)
        return {"words": words, "known": torch.arange(longest) < torch.tensor([[len(row)] for row in rows]).view(-1, 1)}

    def forward(self, image: Tensor, inputs: Inputs, more: list[Tensor]) -> Context:
        """Image tokens [B, K, D] -> the context of [image, words, more, readout]."""
        model = self._model(image.device)
        words = model.get_input_embeddings()(inputs["words"])  # type: ignore[operator]
        parts = [image, words, *more, self.readout.expand(len(image), 1, -1)]
        known = torch.ones(len(image), sum(part.shape[1] for part in parts), dtype=torch.bool, device=image.device)
        known[:, image.shape[1] : image.shape[1] + words.shape[1]] = inputs["known"]
        given: Mapping[str, Any] = {
            "inputs_embeds": torch.cat([part.to(words.dtype) for part in parts], 1),
            "attention_mask": known.long(),
            "position_ids": (known.cumsum(1) - 1).clamp(min=0),
            "use_cache": False,
        }
        takes = inspect.signature(model.forward).parameters
        hidden = model(**{name: value for name, value in given.items() if name in takes}).last_hidden_state
        return Context(hidden, known, hidden[:, -1])

    def _model(self, device: torch.device) -> nn.Module:
        """The language model with the layers that are trained in place of its own."""
        model = self.language.model.to(device)
        every = layers_of(model)
        for number, layer in enumerate(self.tuned, len(every) - len(self.tuned)):
            every[number] = layer
        return model
