"""LAQ, Latent Action Quantization (paper section 3.1): what happened between two frames, as s codes.

    x_t, x_{t+H} --patches, spatial and temporal transformer--> e_t, e_{t+H}
                 --projection, small CNN--> d = e_{t+H} - e_t
    (or, with a frozen encoder, d = place of x_{t+H} - place of x_t, models/directions.py)
    d            --quantizer--> z_t, one of |C| codes at each of s positions
    x_t, z_t     --decoder--> x_{t+H}

The encoder is an inverse dynamics model learnt without actions (it labels video in stage 2); the decoder,
given a frame and a code, is a one-step world model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from lapa import plugins
from lapa.artefacts.folder import load_artefact
from lapa.contracts import Array, FramePairs, LapaError, Logs, Quantized
from lapa.data.pixels import Images, as_pixels, dtype_name
from lapa.measures.flow import installed
from lapa.models import released_layout
from lapa.models.directions import Directions
from lapa.models.kmeans import KMeans
from lapa.models.transformer import PEG, PositionBias, Transformer
from lapa.runtime.distributed import BatchNorm, device
from lapa.training.watcher import CodebookWatcher

FLAT = 0.02  # of the codebook's largest extent: a direction in which it extends less is none
LARGEST_SETTING = 1_000_000
SIZES = ("image_size", "patch_size", "dim", "spatial_depth", "temporal_depth", "heads", "dim_head", "codes",
         "codebook_size", "quant_dim", "unet_width")  # fmt: skip
GIVEN = {"dim": "quant_dim", "size": "codebook_size", "positions": "codes"}  # field of a quantizer -> ours


@dataclass(frozen=True)
class LAQConfig:
    """The paper's settings by default (343.8M parameters). Every field is a JSON value.

    codes, codebook_size  s and |C|; the codes lie in a grid (`code_grid`).
    quant_dim             width of the quantised difference.
    normalise             centre and scale the difference over the batch (BatchNorm without parameters) before
                          the quantizer. Not in the paper; what all pairs share, such as the temporal layers'
                          first-or-second-frame offset, then cannot drown what tells them apart.
    encoder_input         what the encoder compares, "pixels" or "contrast": how far each pixel stands out from its
                          neighbourhood, in whatever colour (`contrast`). What robots, lights and tables look like can
                          then hardly enter the codes.
    symmetric             a pair turned round gives the opposite difference exactly: what frames share, such as the
                          look of the scene, cancels.
    decoder               "transformer": the paper's. "unet": convolutions that change x_t in place; learns motion on a
                          small budget, where the paper's decoder blurs whatever moves.
    unet_width            channels of the "unet" at half resolution.
    released_layout       compute with the memory-layout quirks of the released code, which its checkpoints need
                          (models/released_layout.py).
    encoder               "": the paper's, trained. Else a plug-in of lapa/encoders, frozen, with `encoder_options`:
                          the difference is then quant_dim directions of its features, which are fitted in closed form
                          (models/directions.py); k-means gives `codes` codes, each of what those before it left over
                          (models/kmeans.py); only the decoder is trained.
    root_length           with a frozen encoder: a difference is quantised with the square root of its length, so that
                          codes are in even use where few pairs move far.
    flow                  with a frozen encoder: how much the main optical flow, two numbers, counts beside the
                          directions (1: as much as all of them together; 0: not at all). OpenCV computes it.
    quantizer             a plug-in of lapa/quantizers; `quantizer_options` are further fields of its Config, beside
                          those that the settings here give it (GIVEN).
    """

    image_size: int = 256
    patch_size: int = 32
    dim: int = 1024
    spatial_depth: int = 8
    temporal_depth: int = 8
    heads: int = 16
    dim_head: int = 64
    codes: int = 4
    codebook_size: int = 8
    quant_dim: int = 32
    normalise: bool = False
    encoder_input: Literal["pixels", "contrast"] = "pixels"
    symmetric: bool = False
    encoder: str = ""
    encoder_options: dict[str, Any] = field(default_factory=dict)
    root_length: bool = False
    flow: float = 0.0
    quantizer: str = "nsvq"
    quantizer_options: dict[str, Any] = field(default_factory=dict)
    decoder: Literal["transformer", "unet"] = "transformer"
    unet_width: int = 32
    released_layout: bool = False

    def __post_init__(self) -> None:
        for name in SIZES:
            if not 1 <= getattr(self, name) <= LARGEST_SETTING:
                raise LapaError(
                    f"LAQ: {name} is at least 1 and at most {LARGEST_SETTING:,}, not {getattr(self, name)}."
                )
        plugins.choose(self.decoder, ("transformer", "unet"), "LAQ decoder")
        plugins.choose(self.encoder_input, ("pixels", "contrast"), "input of the LAQ encoder")
        for name in set(GIVEN) & set(self.quantizer_options):
            raise LapaError(f'LAQ: the quantizer option "{name}" is the setting {GIVEN[name]}; set laq.{GIVEN[name]}.')
        if self.image_size % self.patch_size:
            raise LapaError(f"LAQ: patch_size {self.patch_size} does not divide image_size {self.image_size}.")
        grid, (rows, cols) = self.image_size // self.patch_size, self.code_grid
        if rows > grid:
            raise LapaError(
                f"LAQ: codes {self.codes} lie in a grid of {rows}x{cols}, which does not fit the {grid}x{grid} patches "
                f"of an image. Choose fewer, a number with nearer factors, or more patches."
            )
        if self.encoder_input == "contrast" and self.decoder == "transformer":
            raise LapaError(
                "LAQ: the transformer decoder draws with the encoder's patch embedding, which must see pixels for "
                "that; with laq.encoder_input=contrast take laq.decoder=unet."
            )
        if self.encoder:
            plugins.configure("encoders", self.encoder, self.encoder_options).features(self.image_size)
        if self.decoder == "unet" and self.image_size % 4:
            raise LapaError(f"LAQ: the unet decoder needs image_size divisible by 4, not {self.image_size}.")

    @property
    def numbers(self) -> int:
        """Of a difference: quant_dim, and two of the flow where it counts."""
        return self.quant_dim + (2 if self.flow else 0)

    @property
    def code_grid(self) -> tuple[int, int]:
        """The s codes as rows and columns, as square as s allows: 1 is 1x1, 2 is 2x1, 4 is 2x2, 6 is 3x2."""
        if self.codes < 1:
            raise LapaError(f"LAQ: codes must be at least 1, not {self.codes}.")
        cols = max(n for n in range(1, math.isqrt(self.codes) + 1) if self.codes % n == 0)
        return self.codes // cols, cols

    def build(self) -> LAQ:
        """Raises LapaError for settings that do not go together with a frozen encoder: they are set one by one."""
        if self.encoder and (self.quantizer != "nsvq" or self.quantizer_options):
            raise LapaError(
                f"LAQ: with a frozen encoder the codebooks are fitted by k-means; leave laq.quantizer="
                f"{self.quantizer} and laq.quantizer_options out, or choose the trained encoder with laq.encoder=."
            )
        if self.encoder and (self.decoder != "unet" or self.normalise or self.symmetric or self.released_layout):
            raise LapaError(
                f"LAQ: laq.encoder={self.encoder} takes laq.decoder=unet, and laq.normalise, laq.symmetric and "
                "laq.released_layout off: its differences are fitted, centred and turn round by themselves."
            )
        if self.flow and not self.encoder:
            raise LapaError(
                "LAQ: laq.flow goes beside the directions of a frozen encoder; with laq.encoder= set laq.flow=0."
            )
        if self.flow and not installed():
            raise LapaError(
                f'LAQ: laq.flow={self.flow:g} needs OpenCV: pip install "lapa[flow]". Or do without it, for codes that '
                "tell a little less: --set laq.flow=0."
            )
        return LAQ(self)


class LAQ(nn.Module):
    """The model, in the order of the paper. Images are anything `as_pixels` reads."""

    in_float32 = ("quantizer",)  # rounding decides codes (runtime/precision.py)

    def __init__(self, config: LAQConfig) -> None:
        super().__init__()
        c = self.config = config
        # Encoder
        self.directions = None
        if c.encoder:
            self.directions = Directions(c.encoder, c.encoder_options, c.image_size, c.quant_dim, c.flow)
        else:
            self._paper_encoder()
        # Bottleneck
        self.norm = BatchNorm(c.quant_dim) if c.normalise else nn.Identity()
        options = {**{name: getattr(c, ours) for name, ours in GIVEN.items()}, **c.quantizer_options}
        self.quantizer = (
            KMeans(c.numbers, c.codebook_size, c.codes, c.root_length)
            if c.encoder
            else plugins.configure("quantizers", c.quantizer, options).build()
        )
        self.watcher = CodebookWatcher(self.quantizer.positions, self.quantizer.size, trained=not c.encoder)
        self.project_out = nn.Linear(c.numbers, c.dim)
        # Decoder
        self.decoder = UNetDecoder(replace(c, codes=1) if c.encoder else c) if c.decoder == "unet" else PatchDecoder(c)

    def _paper_encoder(self) -> None:
        """Patches, spatial and temporal transformer, projection, small CNN."""
        c = self.config
        grid, pixels = c.image_size // c.patch_size, 3 * c.patch_size**2
        self.patch_embedding = nn.Sequential(nn.LayerNorm(pixels), nn.Linear(pixels, c.dim), nn.LayerNorm(c.dim))
        self.position_bias = PositionBias(c.dim, c.heads)  # the decoder, when a transformer, shares it
        self.spatial = Transformer(c.dim, c.spatial_depth, c.heads, c.dim_head, over="space")
        peg = released_layout.MixedPEG if c.released_layout else PEG
        self.temporal = Transformer(c.dim, c.temporal_depth, c.heads, c.dim_head, over="time", peg=peg)
        self.project_in = nn.Linear(c.dim, c.quant_dim)
        self.cnn = shrink(c.quant_dim, grid, *c.code_grid)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.project_out.weight.device

    @staticmethod
    def from_pretrained(path: str | Path) -> LAQ:
        """The LAQ saved at `path` by stage 1, loaded strictly. Raises LapaError if it is not one."""
        artefact = load_artefact(path, "laq")
        artefact.require_known(("starts",))
        config = artefact.settings(LAQConfig)
        own = plugins.source_hash("quantizers", config.quantizer) is not None
        return artefact.build(config.build, own).to(device()).eval()

    def encode(self, now: Images, later: Images) -> torch.Tensor:
        """Two batches of frames -> codes int64 [B, s] (residual codes: [B, s * levels]). The inverse dynamics model of
        stage 2."""
        with _evaluating(self):
            d = self.difference(*self.pixels(now, later))
            return self.quantizer(self.normalise(d)).codes

    def places(self, images: Images) -> torch.Tensor:
        """With a frozen encoder: where frames lie, float32 [B, quant_dim]; their differences are what is quantised."""
        assert self.directions is not None
        with _evaluating(self):
            places: torch.Tensor = self.directions(as_pixels(images, self.config.image_size, self.device))
            return places

    def ways(self, now: Images, later: Images) -> torch.Tensor:
        """With a frozen encoder: the main flow of pairs, float32 [B, 2] ([B, 0] without `flow`)."""
        assert self.directions is not None
        with _evaluating(self):
            return self.directions.way(*self.pixels(now, later))

    def codes_between(self, now: torch.Tensor, later: torch.Tensor, ways: torch.Tensor) -> torch.Tensor:
        """Places of frames, float32 [B, quant_dim] each, and ways of the pairs -> codes int64 [B, s]."""
        with _evaluating(self):
            return self.quantizer(torch.cat([later - now, ways], 1)[:, None]).codes

    def decode(self, now: Images, codes: Images, clamp: bool = True) -> torch.Tensor:
        """Frames and codes int64 [B, s] -> predicted frames float32 [B, 3, H, W], in [0, 1] if `clamp`."""
        with _evaluating(self):
            frames = as_pixels(now, self.config.image_size, self.device, "now")
            future = self.predict(frames, self.quantizer.lookup(self._codes(codes, len(frames)))).float()
            return future.clamp(0, 1) if clamp else future

    @torch.no_grad()
    def code_embeddings(self) -> Array:
        """Where each code lies among the others: what it adds to the embedding that the decoder gets, in principal
        coordinates, float32 [positions * |C|, k]; k is what the codes take up, 2 where they lie in a plane."""
        positions, size = self.quantizer.positions, self.quantizer.size
        codes = torch.zeros(positions, size, positions, dtype=torch.int64, device=self.device)
        each = torch.arange(positions)
        codes[each, :, each] = torch.arange(size, device=codes.device)
        embedding = self.quantizer.lookup(codes.flatten(0, 1)).float().flatten(1).unflatten(0, (positions, size))
        centred = (embedding - embedding.mean(1, keepdim=True)).flatten(0, 1).double()
        left, spread, _ = torch.linalg.svd(centred, full_matrices=False)
        taken = spread > FLAT * spread[0]
        return (left * spread)[:, taken].float().cpu().numpy()

    def reconstruct(self, now: Images, later: Images) -> torch.Tensor:
        """The later frame through the codes of `encode` alone: float32 [B, 3, H, W] in [0, 1]."""
        return self.decode(now, self.encode(now, later))

    def loss(self, batch: FramePairs) -> tuple[torch.Tensor, Logs]:
        """Mean squared error of the later frame, plus the quantizer's own loss (zero for NSVQ).

        Logs: mse; error_over_copy, the error relative to copying x_t (below 1: the codes carry something)."""
        now, later = self.pixels(batch.now, batch.later)
        if batch.codes is None:
            return self.score(now, later, *self(now, later))
        codes = torch.as_tensor(batch.codes, device=self.device)
        quantized = Quantized(self.quantizer.lookup(codes), codes, torch.zeros((), device=self.device))
        return self.score(now, later, self.predict(now, quantized.embedding), quantized)

    def score(
        self, now: torch.Tensor, later: torch.Tensor, future: torch.Tensor, quantized: Quantized
    ) -> tuple[torch.Tensor, Logs]:
        """`loss`, given pixels and what `forward` made of them."""
        if self.training:
            self.watcher.count(quantized.codes)
        mse = F.mse_loss(future.float(), later)
        copy = F.mse_loss(now, later).clamp_min(1e-8)  # a batch of still frames has nothing to predict
        logs = {"mse": float(mse.detach()), "error_over_copy": float(mse.detach() / copy), **quantized.logs}
        return mse + quantized.loss, logs

    def forward(self, now: torch.Tensor, later: torch.Tensor) -> tuple[torch.Tensor, Quantized]:
        """Pixels of x_t and x_{t+H}, float [B, 3, H, W] in [0, 1] -> predicted x_{t+H}, Quantized."""
        d = self.difference(now, later)
        quantized = self.quantizer(self.normalise(d))
        return self.predict(now, quantized.embedding), quantized

    def difference(self, now: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """Pixels of x_t and x_{t+H} -> d = e_{t+H} - e_t, float [B, s, quant_dim]."""
        if self.directions is not None:
            return self.directions.between(now, later)[:, None]
        frames = [contrast(x) if self.config.encoder_input == "contrast" else x for x in (now, later)]
        video = torch.stack(frames, dim=1)
        if self.config.symmetric:
            video = torch.cat([video, video.flip(1)])
        tokens = self._embed(video)
        tokens = self.spatial(tokens, bias=self.position_bias(*tokens.shape[2:4]))
        maps = rearrange(self.project_in(self.temporal(tokens)), "b t h w d -> (b t) d h w")
        e = rearrange(self.cnn(maps), "(b t) d h w -> t b (h w) d", t=2)
        d = e[1] - e[0]
        if self.config.symmetric:
            forwards, backwards = d.chunk(2)
            d = (forwards - backwards) / 2
        return d

    def normalise(self, d: torch.Tensor) -> torch.Tensor:
        """Differences [B, s, quant_dim] -> what the quantizer takes, float32: centred and scaled over the batch if the
        settings say so."""
        return self.norm(d.float().flatten(0, 1)).view_as(d)

    def denormalise(self, d: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalise` in evaluation mode."""
        if not isinstance(self.norm, BatchNorm):
            return d
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        return d * (self.norm.running_var + self.norm.eps).sqrt() + self.norm.running_mean

    def predict(self, now: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Pixels of x_t and quantised differences [B, s, quant_dim] -> pixels of x_{t+H}, not clamped."""
        if self.config.released_layout:
            embedding = released_layout.mixed_codes(embedding)
        codes = self.project_out(embedding)
        if isinstance(self.decoder, UNetDecoder):
            return self.decoder(now, codes)
        # Stop-gradient (paper): the decoder must not bend the embedding that the encoder compares frames in.
        tokens = self._embed(now[:, None]).detach()
        return self.decoder(tokens, codes, self.position_bias(*tokens.shape[2:4]))

    def after_step(self, step: int) -> Logs:
        """Codebook upkeep after optimizer step number `step`, from 1; logs how the codes are used."""
        return self.quantizer.after_step(step) | self.watcher.after_step(step)

    def _embed(self, video: torch.Tensor) -> torch.Tensor:
        p = self.config.patch_size
        patches = rearrange(video, "b t c (h p) (w q) -> b t h w (c p q)", p=p, q=p)
        return self.patch_embedding(patches)

    def pixels(self, now: Images, later: Images) -> tuple[torch.Tensor, torch.Tensor]:
        """The frames of pairs, float [B, 3, H, W] in [0, 1] each. Raises LapaError where they are no pairs."""
        size, where = self.config.image_size, self.device
        x, y = as_pixels(now, size, where, "now"), as_pixels(later, size, where, "later")
        if not len(x) or len(x) != len(y):
            raise LapaError(f"LAQ: now and later are the frames of one pair or more; got {len(x)} and {len(y)} frames.")
        return x, y

    def _codes(self, codes: Images, batch: int) -> torch.Tensor:
        codes = torch.as_tensor(codes, device=self.device)
        shape, expected = list(codes.shape), [batch, self.quantizer.positions]
        if shape != expected or codes.is_floating_point():
            raise LapaError(f"LAQ: codes must be integers {expected}, not {dtype_name(codes.dtype)} {shape}.")
        low, high = codes.aminmax() if codes.numel() else (0, 0)
        if not 0 <= int(low) <= int(high) < self.quantizer.size:
            raise LapaError(f"LAQ: codes run from 0 to {self.quantizer.size - 1}; got {low} to {high}.")
        return codes.long()


def contrast(pixels: torch.Tensor, around: int = 9) -> torch.Tensor:
    """How far each pixel stands out from the mean of the `around` x `around` pixels about it: squared, which leaves
    little of texture, and the strongest of each image 1. float [B, 3, H, W] -> the same shape in [0, 1], gray."""
    edge = around // 2
    local = F.pad(pixels, (edge,) * 4, mode="replicate")
    for _ in range(2):  # rows, then columns: sums up to here less sums up to there, faster than pooling
        sums = F.pad(local.cumsum(-1), (1, 0))
        local = ((sums[..., around:] - sums[..., :-around]) / around).mT
    stands_out = (pixels - local).abs().mean(1, keepdim=True)
    strongest = stands_out.amax((2, 3), keepdim=True).clamp_min(1e-3)  # an empty image stays empty
    return (stands_out / strongest).square().expand_as(pixels)


def shrink(channels: int, grid: int, rows: int, cols: int) -> nn.Sequential:
    """The small CNN whose strides set s: [B, channels, grid, grid] -> [B, channels, rows, cols], rows >= cols.

    3x3 convolutions halve the grid until one window of at most 4x4 slides over it to the target, as in the
    released model: 8 -> 4 -> 1 (4x4 window), 8 -> 4 -> 2x1 (3x4 window), 8 -> 4 -> 2 (3x3 window). Where one more
    halving ends on the target and spares a 4x4 window, it does: 16 -> 8 -> 4 and 14 -> 7 -> 4."""
    layers: list[nn.Module] = []
    while (half := (grid + 1) // 2) >= rows:
        window = grid - cols + 1
        if layers and (window < 4 or (window == 4 and not half == rows == cols)):
            break
        layers += [nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.ReLU()]
        grid = half
    if layers and grid == rows == cols:
        return nn.Sequential(*layers[:-1])
    return nn.Sequential(*layers, nn.Conv2d(channels, channels, (grid - rows + 1, grid - cols + 1)))


class PatchDecoder(nn.Module):
    """The paper's decoder: the patches of x_t attend to each other and, by cross-attention, to the codes; a linear
    layer turns each into the pixels of x_{t+H}."""

    def __init__(self, c: LAQConfig) -> None:
        super().__init__()
        self.patch_size = c.patch_size
        self.transformer = Transformer(c.dim, c.spatial_depth, c.heads, c.dim_head, over="space", cross=True)
        self.to_pixels = nn.Linear(c.dim, 3 * c.patch_size**2)

    def forward(self, tokens: torch.Tensor, codes: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """x_t as tokens [B, 1, h, w, dim], codes [B, s, dim] -> pixels [B, 3, H, W]."""
        patches = self.to_pixels(self.transformer(tokens, bias=bias, context=codes))
        p = self.patch_size
        return rearrange(patches, "b 1 h w (c p q) -> b c (h p) (w q)", p=p, q=p)


class UNetDecoder(nn.Module):
    """x_t plus a residual: convolutions at two resolutions with a skip, whose channels the codes scale and shift
    (FiLM). The last layer starts at zero, hence training starts from copying x_t."""

    def __init__(self, c: LAQConfig) -> None:
        super().__init__()
        w = c.unet_width
        self.fine = nn.Conv2d(12, w, 3, padding=1)  # at half resolution: 2x2 pixels are 12 channels
        self.down = nn.Conv2d(w, 2 * w, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(2 * w, 2 * w, 3, padding=1)
        self.up = nn.Conv2d(2 * w, 4 * w, 1)
        self.merge = nn.Conv2d(w, w, 3, padding=1)
        self.out = nn.Conv2d(w, 12, 3, padding=1)
        self.film = nn.Linear(c.codes * c.dim, 2 * (2 * w + 2 * w + w))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, now: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W] and codes [B, s, dim] -> pixels [B, 3, H, W]."""
        w = self.fine.out_channels
        a, b, c = self.film(codes.flatten(1))[:, :, None, None].split([4 * w, 4 * w, 2 * w], dim=1)
        # Channels last: the layout the CPU and GPU convolutions are fastest in.
        x = F.pixel_unshuffle(now, 2).contiguous(memory_format=torch.channels_last)
        skip = F.relu(self.fine(x))
        h = F.relu(_film(self.down(skip), a))
        h = F.relu(_film(self.coarse(h), b))
        h = skip + F.pixel_shuffle(self.up(h), 2)
        h = F.relu(_film(self.merge(h), c))
        return now + F.pixel_shuffle(self.out(h), 2)


def _film(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    scale, shift = by.chunk(2, dim=1)
    return x * (1 + scale) + shift


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, for the length of a with-block."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)
