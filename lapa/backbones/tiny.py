"""A vision-language transformer of about a million weights, grounded on static Tabletop scenes.

The stand-in for the paper's pretrained VLM on a laptop: a convolutional vision encoder (frozen in stages 2 and 3)
turns the image into a grid of tokens; a small language model over the instruction's words reads them by
cross-attention; the hidden state of the last token is the readout. `lapa ground` (stage0_grounding.py) trains the
weights that ship in `weights/`, and those of other sizes: `lapa ground --width 64 --depth 2 --out runs/ground`, then
`--set 'policy.backbone_options={"width":64,"depth":2,"weights":"runs/ground"}'` where a policy is trained.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.backbones import Backbone, grouped, pictures, with_cameras
from lapa.contracts import Context, ImageSpec, Inputs, LapaError
from lapa.data.observations import Seen
from lapa.data.pixels import as_pixels

LARGEST_SETTING = 1_000_000
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Config:
    """Architecture of the tiny backbone."""

    image_size: int = 48
    """input pixels a side"""
    width: int = 128
    """hidden size of the language model and of the readout"""
    depth: int = 3
    """layers of the language model"""
    heads: int = 4
    """attention heads"""
    vision_width: int = 64
    """channels of the vision encoder's tokens"""
    words: int = 16
    """longest instruction in words; the rest is cut"""
    vocabulary: int = 4096
    """hash buckets for words"""
    grounded: bool = True
    """start from grounded weights; False starts from random ones (an ablation)"""
    weights: str = ""
    """where the grounded weights are: a folder made by `lapa ground`, of this very size; "": those that ship with lapa.
    Read when a policy is made, not when a saved one is opened: that has weights of its own"""

    def build(self) -> TinyVLM:
        """The backbone, with grounded weights if `grounded`. Raises LapaError on sizes that cannot be, and on weights
        of another size."""
        if min(self.width, self.depth) < 1:
            raise LapaError(f"tiny: width and depth are at least 1, got {self.width} and {self.depth}.")
        sizes = {field.name: getattr(self, field.name) for field in fields(self) if field.type in ("int", int)}
        if wrong := [f"{name} {size}" for name, size in sizes.items() if not 1 <= size <= LARGEST_SETTING]:
            raise LapaError(f"tiny: {', '.join(wrong)}: it is 1 to {LARGEST_SETTING:,}.")
        if self.vocabulary < 2:
            raise LapaError(f"tiny: vocabulary is at least 2, not {self.vocabulary}.")
        if self.width % self.heads or self.width % 4 or self.vision_width % 4 or self.image_size % 4:
            raise LapaError(
                f"tiny: width {self.width} must be divisible by heads {self.heads}, and width, vision_width "
                f"{self.vision_width} and image_size {self.image_size} by 4."
            )
        model = TinyVLM(self)
        if self.grounded:
            from lapa.artefacts.folder import load_artefact, load_strictly

            found = load_artefact(self.weights or WEIGHTS, "backbone")
            found.require_known(("domains",))
            self._require_size(found.settings(Config), found.path)
            load_strictly(model, found.tensors, found.path)
            model.origin = {self.weights or "the weights that ship with lapa": found.hash}
        return model

    def _require_size(self, made: Config, where: Path) -> None:
        """Raises LapaError unless weights of size `made` fit."""
        sizes = [f.name for f in fields(self) if f.name not in ("grounded", "weights")]
        if wrong := [n for n in sizes if getattr(made, n) != getattr(self, n)]:
            has, asked = (", ".join(f"{n} {getattr(config, n)}" for n in wrong) for config in (made, self))
            raise LapaError(
                f"The grounded weights in {where} have {has}; the backbone is to have {asked}. Say the same in policy."
                "backbone_options, or make weights of that size, lapa ground --width .. --depth .. --out FOLDER, "
                'and add "weights":"FOLDER"; "grounded":false starts from random ones.'
            )


def split(text: str) -> list[str]:
    """Its words, without case and punctuation; of other alphabets than the Latin one nothing is left."""
    return re.findall(r"[a-z0-9]+", text.lower())


def _in_pieces(text: str) -> list[str]:
    """Its words with letters that `split` leaves out."""
    return [word for word in text.lower().split() if any(c.isalpha() and not c.isascii() for c in word)]


def tokenize(texts: list[str], words: int, vocabulary: int) -> Tensor:
    """Words -> hash buckets, int64 [B, longest text]; 0 is padding. Case and punctuation are dropped."""
    found = [split(text)[:words] for text in texts]
    longest = max(1, *map(len, found))
    rows = [[1 + zlib.crc32(word.encode()) % (vocabulary - 1) for word in row] for row in found]
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


class WordAttention(nn.Module):
    """Multi-head attention with a hand-written softmax: at 17 queries faster on a CPU than the fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """x [B, Q, D], keys and values [B, K, D], mask bool [B, K] (True = may be read) -> [B, Q, D]."""
        query, keys, values = (
            t.view(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in (self.query(x), keys, values)
        )
        scores = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
        mixed = scores.masked_fill(~mask[:, None, None], -1e4).softmax(-1) @ values
        return self.out(mixed.transpose(1, 2).flatten(2))


class ImageAttention(nn.Module):
    """Multi-head attention that makes no keys and no values: a query goes through the keys' weights before it meets
    the tokens, what it read goes through the values' weights afterwards. The same sums in another order (the keys' bias
    adds the same to all scores of a query and drops out); with many tokens and few queries a training step takes half
    the time, for no token is projected, copied or differentiated."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, tokens: Tensor, keys_values: nn.Linear) -> Tensor:
        """x [B, Q, D], tokens [B, K, V], keys_values from V to 2 D -> [B, Q, D]."""
        (batch, queries, width), seen = x.shape, tokens.shape[-1]
        keys, values = keys_values.weight.view(2, self.heads, width // self.heads, seen)
        query = self.query(x).view(batch * queries, self.heads, -1).transpose(0, 1) @ keys
        query = query.view(self.heads, batch, queries, seen).transpose(0, 1).reshape(batch, -1, seen)
        scores = query @ tokens.transpose(1, 2) * (width // self.heads) ** -0.5
        read = (scores.softmax(-1) @ tokens).view(batch, self.heads, queries, seen).transpose(0, 1)
        mixed = read.reshape(self.heads, batch * queries, seen) @ values.transpose(1, 2)
        return self.out(mixed.transpose(0, 1).reshape(batch, queries, width) + keys_values.bias[width:])


class Layer(nn.Module):
    """Words read each other, then the image, then think."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.self_keys_values = nn.Linear(width, 2 * width)
        self.self_attention = WordAttention(width, heads)
        self.image_attention = ImageAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor, tokens: Tensor, keys_values: nn.Linear, first: int = 0) -> Tensor:
        """x [B, Q, D] -> [B, Q - first, D]: words before the first are read, but not thought about any more."""
        normed = self.norms[0](x)
        keys, values = self.self_keys_values(normed).chunk(2, -1)
        x = x[:, first:] + self.self_attention(normed[:, first:], keys, values, mask)
        x = x + self.image_attention(self.norms[1](x), tokens, keys_values)
        return x + self.mlp(self.norms[2](x))


def _waves(grid: int, width: int) -> Tensor:
    """Sines and cosines of both coordinates, [grid * grid, width]: where a token is, from the first step on."""
    axis = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angles = torch.stack([x, y], -1)[..., None] * torch.pi * 2.0 ** (torch.arange(width // 4) % 4 - 1)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(2).flatten(0, 1)


class VisionEncoder(nn.Module):
    """Image -> grid of tokens, one per 4 x 4 pixels."""

    def __init__(self, width: int, image_size: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, stride=2, padding=1)
        self.down = nn.Conv2d(32, width, 4, stride=2, padding=1)
        self.mix = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.position = nn.Parameter(_waves(image_size // 4, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> [B, (H/4) (W/4), width]."""
        x = (images * 4 - 2).to(memory_format=torch.channels_last)
        x = F.relu(self.down(F.relu(self.stem(x))))
        for conv in self.mix:
            x = x + F.relu(conv(x))
        return self.norm(x.flatten(2).transpose(1, 2)) + self.position


class TinyVLM(Backbone):
    """See the module's docstring."""

    ships = "tiny"
    camera: nn.Parameter | None  # [cameras, vision_width], with several cameras
    state: nn.Linear | None  # S -> width, where it reads the state

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width, self.image_spec = config.width, ImageSpec(config.image_size)
        self.vision = VisionEncoder(config.vision_width, config.image_size)
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.word_position = nn.Parameter(torch.randn(config.words + 1, config.width) * 0.1)
        self.readout = nn.Parameter(torch.randn(config.width) * 0.1)
        # One projection of the image to keys and values serves all layers.
        self.image_keys_values = nn.Linear(config.vision_width, 2 * config.width)
        self.layers = nn.ModuleList(Layer(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.register_parameter("camera", None)
        self.register_module("state", None)

    def extend(self, cameras: Sequence[str], state: int) -> None:
        """With several cameras the tokens of all are read, each with an embedding of its camera, which begins at zero;
        the state is one more token beside the words."""
        self.camera = with_cameras(self.camera, len(cameras), self.config.vision_width, self.readout.device)
        if state and self.state is None:
            self.state = nn.Linear(state, self.width).to(self.readout.device)

    def prepare(self, seen: Seen) -> Inputs:
        """images uint8 [B, cameras, size, size, 3] or float [B, cameras, 3, size, size]; words int64 [B, L], 0 for
        padding; state float32 [B, S] where it reads it."""
        images = torch.stack([pictures(each, self.image_spec) for each in seen.images.values()], 1)
        words = tokenize(seen.texts, self.config.words, self.config.vocabulary)
        state = {} if seen.state is None else {"state": torch.from_numpy(seen.state)}
        return {"images": images, "words": words, **state}

    def encode(self, inputs: Inputs) -> Context:
        """The last layer computes the readout alone, so the context holds nothing else."""
        images = inputs["images"]
        pixels = as_pixels(images.flatten(0, 1), self.image_spec.size, self.readout.device)
        tokens = self.vision(pixels).unflatten(0, images.shape[:2])
        if self.camera is not None:
            tokens = tokens + self.camera[:, None]
        readout = self.read(tokens.flatten(1, 2), inputs["words"], inputs.get("state"))
        return Context(readout[:, None], torch.ones_like(readout[:, :1], dtype=torch.bool), readout)

    def read(self, tokens: Tensor, words: Tensor, state: Tensor | None = None) -> Tensor:
        """The vision encoder's tokens [B, K, vision_width], words int64 [B, L], state float [B, S] where it is read ->
        readout [B, width]."""
        parts = [self.embed(words) + self.word_position[: words.shape[1]]]
        if self.state is not None and state is not None:
            parts.append(self.state(state)[:, None])
        parts.append((self.readout + self.word_position[-1]).expand(len(words), 1, -1))
        x = torch.cat(parts, 1)
        mask = F.pad(words > 0, (0, x.shape[1] - words.shape[1]), value=True)
        for layer in self.layers[:-1]:
            x = layer(x, mask, tokens, self.image_keys_values)
        x = self.layers[-1](x, mask, tokens, self.image_keys_values, first=x.shape[1] - 1)  # the readout alone
        return self.norm(x[:, 0])

    def overlooked(self, texts: Sequence[str]) -> list[str]:
        """See Backbone."""
        read, said = [split(text) for text in texts], []
        if blank := sum(bool(text.strip()) and not words for text, words in zip(texts, read, strict=True)):
            said.append(f"{blank} of {len(texts)} instructions have no word that the backbone tiny reads (Latin "
                        "letters and digits); to it they are empty.")  # fmt: skip
        odd = {word for text, words in zip(texts, read, strict=True) if words for word in _in_pieces(text)}
        if odd:
            some = sum(bool(words) and bool(_in_pieces(text)) for text, words in zip(texts, read, strict=True))
            said.append(f"{some} of {len(texts)} instructions have words that the backbone tiny does not read whole "
                        f"(it reads a to z and digits), such as {', '.join(sorted(odd)[:3])}.")  # fmt: skip
        if cut := sum(len(words) > self.config.words for words in read):
            said.append(f"{cut} of {len(texts)} instructions are longer than the {self.config.words} words that the "
                        "backbone tiny reads; the rest is cut.")  # fmt: skip
        return said

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """See Backbone."""
        rest = [] if self.camera is None else [self.camera]
        rest += [] if self.state is None else list(self.state.parameters())
        return grouped(self, self.vision, rest)
