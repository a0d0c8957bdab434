"""Tiny files in the form of the released LAPA-7B: `params`, `vqgan`, tokenizer.model and bins.csv, with random weights.

The writer of `params` here shares no code with lapa: msgpack by hand, of the few kinds that the form has.
"""

from __future__ import annotations

import functools
import io
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

WORDS = (
    "put the red cup near the green block take pot you are a helpful assistant user what action should robot vision "
    "delta move left right up down open close drawer banana spoon towel"
)


MULT = (1, 1, 1, 1, 1, 1, 2)  # of the VQGAN's levels


@dataclass(frozen=True)
class Released:
    """Files in a folder."""

    folder: Path
    weights: dict[str, np.ndarray] = field(default_factory=dict)  # float32, of which `params` has the upper halves
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        """Of `lapa convert lapa-official`, without OUT."""
        bins = ["--bins", str(self.folder / "bins.csv")] if (self.folder / "bins.csv").exists() else []
        return ["--vqgan", str(self.folder / "vqgan"), "--tokenizer", str(self.folder / "tokenizer.model"), *bins]


def half(array: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 as uint16, the rest cut off."""
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype("<u2")


def packed(value: Any) -> bytes:
    """msgpack of lists, texts, numbers, bytes, True and dicts, all in their long forms."""
    if value is True:
        return b"\xc3"
    if isinstance(value, int):
        return b"\xce" + struct.pack(">I", value)
    if isinstance(value, str):
        return b"\xdb" + struct.pack(">I", len(value)) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, dict):
        inside = b"".join(packed(k) + (v if isinstance(v, Ready) else packed(v)) for k, v in value.items())
        return b"\xdf" + struct.pack(">I", len(value)) + inside
    return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(packed, value))


class Ready(bytes):
    """Bytes that are msgpack already."""


def array_bytes(array: np.ndarray, chunk: int | None, dtype: str = "bfloat16") -> bytes:
    """What flax makes of an array, whole or in pieces of `chunk` numbers."""

    def one(part: np.ndarray) -> Ready:
        raw = half(part).tobytes() if dtype == "bfloat16" else part.astype("<f4").tobytes()
        inside = packed([list(part.shape), dtype, raw])
        return Ready(b"\xc9" + struct.pack(">I", len(inside)) + b"\x01" + inside)

    if chunk is None or array.size <= chunk:
        return one(array)
    flat = array.reshape(-1)
    parts = [one(flat[start : start + chunk]) for start in range(0, flat.size, chunk)]
    shape = {str(i): n for i, n in enumerate(array.shape)}
    chunks = Ready(packed({str(i): part for i, part in enumerate(parts)}))
    return packed({"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks})


def params_bytes(weights: Mapping[str, np.ndarray], chunk: int | None = None, dtype: str = "bfloat16") -> bytes:
    """A `params` file."""
    return b"".join(packed([key.split("/"), array_bytes(array, chunk, dtype)]) for key, array in weights.items())


def random_weights(
    seed: int = 0, width: int = 16, depth: int = 2, inner: int = 24, vocabulary: int = 320, **tables: int
) -> dict[str, np.ndarray]:
    """Weights of a language model; tables: rows of dte and ate, latent=.., action=.."""
    rng = np.random.default_rng(seed)

    def some(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(shape[-2] if len(shape) > 1 else 1)).astype(np.float32)

    layers = "transformer/h/scan_decoder"
    made = {f"{layers}/attention/{w}/kernel": some(depth, width, width) for w in ("wq", "wk", "wv", "wo")}
    made |= {f"{layers}/feed_forward/{w}/kernel": some(depth, width, inner) for w in ("w1", "w3")}
    made[f"{layers}/feed_forward/w2/kernel"] = some(depth, inner, width)
    made |= {f"{layers}/{n}/kernel": 1 + 0.1 * some(depth, width) for n in ("attention_norm", "ffn_norm")}
    made["transformer/ln_f/kernel"] = 1 + 0.1 * some(width)
    sizes = {"wte": ("lm_head", vocabulary), "vte": ("vision_head", 8448)}
    sizes |= {"dte": ("delta_head", tables["latent"])} if "latent" in tables else {}
    sizes |= {"ate": ("action_head", tables["action"])} if "action" in tables else {}
    for table, (head, rows) in sizes.items():
        made[f"transformer/{table}/embedding"] = rng.normal(size=(rows, width)).astype(np.float32)
        made[f"{head}/kernel"] = 3 * some(width, rows)
    return {name: (half(array).astype(np.uint32) << 16).view(np.float32) for name, array in made.items()}


def random_pictures(seed: int = 0, mult: tuple[int, ...] = MULT, codes: int = 64) -> dict[str, np.ndarray]:
    """Weights of a VQGAN of 32 channels with one block a level: 4 x 4 codes of a picture."""
    rng, z = np.random.default_rng(seed), 8
    found: dict[str, np.ndarray] = {}

    def conv(name: str, size: int, inputs: int, outputs: int) -> None:
        scale = (size * size * inputs) ** -0.5
        found[f"{name}/kernel"] = (rng.normal(size=(size, size, inputs, outputs)) * scale).astype(np.float32)
        found[f"{name}/bias"] = (rng.normal(size=outputs) * 0.1).astype(np.float32)

    def norm(name: str, channels: int) -> None:
        found[f"{name}/scale"] = (1 + 0.1 * rng.normal(size=channels)).astype(np.float32)
        found[f"{name}/bias"] = (rng.normal(size=channels) * 0.1).astype(np.float32)

    def block(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}/GroupNorm_0", inputs)
        conv(f"{name}/Conv_0", 3, inputs, outputs)
        norm(f"{name}/GroupNorm_1", outputs)
        conv(f"{name}/Conv_1", 3, outputs, outputs)
        if inputs != outputs:
            conv(f"{name}/Conv_2", 1, inputs, outputs)

    widths, last = [32 * m for m in mult], len(mult) - 1
    conv("encoder/Conv_0", 3, 3, 32)
    for i, width in enumerate(widths):
        block(f"encoder/DownsamplingBlock_{i}/ResnetBlock_0", 32 if i == 0 else widths[i - 1], width)
        if i < last:
            conv(f"encoder/DownsamplingBlock_{i}/Downsample_0/Conv_0", 3, width, width)
    conv("decoder/Conv_0", 3, z, widths[-1])
    for i, width in enumerate(widths[::-1]):
        for j in range(2):
            block(f"decoder/UpsamplingBlock_{i}/ResnetBlock_{j}", widths[-i] if i and not j else width, width)
        if i < last:
            conv(f"decoder/UpsamplingBlock_{i}/Upsample_0/Conv_0", 3, width, width)
    for half_, end in (("encoder", widths[-1]), ("decoder", widths[0])):
        for j in range(2):
            block(f"{half_}/MidBlock_0/ResnetBlock_{j}", widths[-1], widths[-1])
        norm(f"{half_}/GroupNorm_0", end)
        conv(f"{half_}/Conv_1", 3, end, z if half_ == "encoder" else 3)
    conv("quant_conv", 1, z, 4)
    conv("post_quant_conv", 1, 4, z)
    found["quantize/embeddings"] = rng.normal(size=(codes, 4)).astype(np.float32)
    return found


def pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Nested dicts in a pickle, under the names that numpy 1 wrote."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        functools.reduce(lambda node, folder: node.setdefault(folder, {}), folders, tree)[last] = array
    return pickle.dumps(tree, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@functools.cache
def tokenizer(pieces: int = 320) -> bytes:
    """A sentencepiece model like Llama's."""
    from sentencepiece import SentencePieceTrainer

    made = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS, WORDS.upper(), WORDS.title()] * 3), model_writer=made, vocab_size=pieces,
        model_type="bpe", byte_fallback=True, split_digits=True, pad_id=-1, unk_id=0, bos_id=1, eos_id=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return made.getvalue()


BINS = "0,1,2,3,4\n-1.0,-0.5,0.0,0.5,1.0\n-0.3,-0.1,0.2,,\n-0.5,0.5,1.5,,\n"


def written(folder: Path, seed: int = 0, chunk: int | None = None, **tables: int) -> Released:
    """Files of a new model in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Released(folder, random_weights(seed, **tables), random_pictures(seed))
    (folder / "params").write_bytes(params_bytes(found.weights, chunk))
    (folder / "vqgan").write_bytes(pickled(found.pictures))
    (folder / "tokenizer.model").write_bytes(tokenizer())
    if "action" in tables:
        (folder / "bins.csv").write_text(BINS)
    return found


def backbone_options(folder: Path) -> dict[str, Any]:
    """Options of the backbone lwm for weights without a head, converted into `folder`: as LWM's own, but tiny."""
    from lapa.artefacts.folder import read_json
    from lapa.interop.convert_lapa import Choices, from_lapa

    made = written(folder / "released").folder
    from_lapa(*(made / name for name in ("params", "../weights", "vqgan", "tokenizer.model")), choices=Choices(heads=2))
    model = read_json(folder / "weights/config.json", "backbone")["model"]
    return {**model, "weights": str(folder / "weights")}
