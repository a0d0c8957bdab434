"""`lapa convert lapa-official`: LAPA-7B, LWM-Chat-1M and models of their kind, from the released files and back.

A conversion renames weights and turns kernels from [in, out] to [out, in], one layer at a time. Nothing is skipped: a
key or a shape that is not as expected is an error. With a latent or an action head it makes a policy, without one
(LWM's own weights) a backbone, from which `lapa pretrain` starts. docs/lapa_7b.md says what is equal to the released
code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lapa.actions.meaning import Meaning
from lapa.actions.spaces import ActionSpace, CodeSpace
from lapa.artefacts.folder import file_hash, provenance, read_json, seal
from lapa.artefacts.stream import Streamed, write_streamed
from lapa.backbones import lwm
from lapa.contracts import ActionKind, ActionSpec, Array, LapaError
from lapa.heads.autoregressive import Config as HeadConfig
from lapa.interop.convert_bins import read_bins
from lapa.interop.convert_names import LAYERS, is_turned, layer_of, released_name
from lapa.interop.convert_params import BYTES, KINDS, Stored, read_index, transposed
from lapa.interop.convert_vqgan import config_of, ours_of, read_vqgan, released_vqgan_name, theirs_of
from lapa.models.lwm_prompt import Prompt
from lapa.policies.vla import VLA
from lapa.policies.vla import Config as PolicyConfig
from lapa.recipe import preset

STOP = 2  # the latent code that ends generation in the released code
INFINITE = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}  # exponents of numbers that are none


@dataclass(frozen=True)
class Choices:
    """What the weights do not tell.

    heads    attention heads; None: from settings.json beside the file, else as many as give heads of 128
    codes    latent codes that are generated
    crop     of pictures, as the released server does; None: where there is an action head
    dtype, rope    as in backbones/lwm.py
    theta    of positions; None: from settings.json, else 5e7
    hz       actions a second
    released_sampling    stop after code 2, or draw actions
    """

    heads: int | None = None
    codes: int = 4
    crop: bool | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    rope: Literal["", "float32", "bfloat16"] = ""
    theta: float | None = None
    hz: float = 5.0
    released_sampling: bool = False

    def __post_init__(self) -> None:
        if self.codes < 1 or (self.heads is not None and self.heads < 1):
            raise LapaError(f"Codes and heads are at least 1, got {self.codes} and {self.heads}.")
        if not 0 < self.hz < math.inf or (self.theta is not None and not 1 < self.theta < math.inf):
            raise LapaError(f"--hz is above 0 and --theta above 1, got {self.hz:g} and {self.theta}.")


def from_lapa(
    source: Path, out: Path, vqgan: Path, tokenizer: Path, bins: Path | None = None, choices: Choices = Choices()
) -> str:
    """Write the released files to the new folder `out`: a "policy", or a "backbone" for files without a latent or an
    action head. Returns what was made and chosen, in sentences.

    At most one tensor of the file is in memory at a time, and before that the VQGAN. Raises LapaError, having written
    nothing, for files that are damaged, lack something or do not go together.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LapaError(f"{out} exists already. Remove it or choose another path.")
    index = read_index(source)
    made = _Made.of(source, index, vqgan, tokenizer, bins, choices)
    with torch.device("meta"):
        expected = made.expected()
    tensors = _streamed(source, index, expected, made)
    write_streamed(out / "model.safetensors", tensors)
    files = {str(path): file_hash(path) for path in (source, vqgan, tokenizer, bins) if path is not None}
    about = {"recipe": made.recipe(), "results": {}, "method": "lapa",
             "provenance": provenance(0, {}, files) | {"seed": None}}  # fmt: skip
    if made.policy is None:
        seal(out, "backbone", {"model": asdict(replace(made.backbone, grounded=True)), **about})
    else:
        seal(out, "policy", {**made.policy.description(), **about})
    return made.told()


@dataclass(frozen=True)
class _Made:
    """What a conversion makes: the backbone's settings, the head's, and what the weights beside `params` are."""

    backbone: lwm.Config
    space: CodeSpace | ActionSpace | None
    choices: Choices
    pictures: dict[str, Array]
    text: bytes
    why_heads: str

    @staticmethod
    def of(
        source: Path, index: dict[str, Stored], vqgan: Path, tokenizer: Path, bins: Path | None, choices: Choices
    ) -> _Made:
        """Read the other files, and check that they go together."""
        pictures = read_vqgan(vqgan)
        seen = config_of(pictures, vqgan)
        text = _bytes_of(tokenizer)
        pieces = _pieces(text, tokenizer)
        width = _shape(source, index, "transformer/ln_f/kernel", 1)[0]
        vocabulary = _shape(source, index, "transformer/wte/embedding", 2)[0]
        if pieces != vocabulary:
            raise LapaError(
                f"{tokenizer} has {pieces:,} pieces, and {source} is of a vocabulary of {vocabulary:,}: they do not go "
                "together. Take the tokenizer.model that was published beside the weights."
            )
        depth, inner = _layers(source, index)
        beside = _settings(source)
        heads, why = _heads(width, choices, beside, source)
        space, kept = _space(source, index, bins, choices)
        crop = isinstance(space, ActionSpace) if choices.crop is None else choices.crop
        config = lwm.Config(
            grounded=False, width=width, depth=depth, heads=heads, intermediate=inner, vocabulary=vocabulary,
            theta=choices.theta or beside.get("theta", 5e7), eps=beside.get("eps", 1e-6),
            vision_vocabulary=_shape(source, index, "transformer/vte/embedding", 2)[0],
            image_size=256, vqgan_width=seen.width, vqgan_mult=seen.mult, vqgan_blocks=seen.blocks, vqgan_z=seen.z,
            vqgan_embedding=seen.embedding, vqgan_codes=seen.codes, tokenizer_bytes=len(text), crop=crop,
            dtype=choices.dtype, rope=choices.rope, kept_latent=kept,
        )  # fmt: skip
        return _Made(config, space, choices, pictures, text, why)

    @property
    def policy(self) -> VLA | None:
        """The policy without weights; None where a backbone is made."""
        if self.space is None:
            return None
        sampled = self.choices.released_sampling
        head = HeadConfig(in_backbone=True, stop=STOP if sampled and self.space.kind == "codes" else -1,
                          sample=sampled and self.space.kind == "actions")  # fmt: skip
        config = PolicyConfig(
            backbone="lwm", backbone_options=_options(self.backbone, lwm.Config()), head="autoregressive",
            head_options=_options(head, HeadConfig()), decoding="centre",
        )  # fmt: skip
        with torch.device("meta"):
            policy = config.build(pretrained=False)
            policy.grow(self.space)
        if isinstance(self.space, ActionSpace):
            kinds: tuple[ActionKind, ...] = tuple("binary" if two else "delta" for two in self.space._switches)
            policy.meaning = Meaning(ActionSpec(self.space.names, kinds, self.choices.hz), (False,) * len(kinds))
        return policy

    def expected(self) -> dict[str, torch.Tensor]:
        """Names and shapes of what is to be written."""
        policy = self.policy
        return (self.backbone.build() if policy is None else policy).state_dict()

    def recipe(self) -> dict[str, Any]:
        """The paper's, with this policy."""
        recipe, policy = preset("paper"), self.policy
        if policy is None:
            return recipe.to_json()
        its = {field.name: getattr(policy.config, field.name) for field in fields(policy.config)}
        return replace(recipe, policy=replace(recipe.policy, **its)).to_json()

    def told(self) -> str:
        """What was made and chosen."""
        model, space = self.backbone, self.space
        if space is None:
            answers = "No latent or action head: this is a backbone, to pretrain on."
        elif isinstance(space, CodeSpace):
            answers = f"It answers {space.codes} codes of {space.classes} kinds."
        else:
            answers = (f"It answers {space.dimensions} numbers ({', '.join(space.names)}) in {space.classes} classes, "
                       f"{self.choices.hz:g} a second (--hz).")  # fmt: skip
        table = model.rope or model.dtype
        note = "" if table == "bfloat16" else (" Released weights were trained with positions in bfloat16 (--rope "
                                               "bfloat16); this one has them in float32.")  # fmt: skip
        return (
            f"{model.depth} layers of width {model.width} with {model.heads} heads ({self.why_heads}); "
            f"{model.vocabulary:,} pieces of text; pictures of {model.image_size} pixels as {model.grid * model.grid} "
            f"of {model.vqgan_codes:,} codes, {'cropped' if model.crop else 'not cropped'} (--crop). {answers} It runs "
            f"in {model.dtype}.{note}"
        )


def _options(config: Any, default: Any) -> dict[str, Any]:
    """The fields in which a Config differs from the default, as options of a plug-in."""
    made = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in made.items()
            if value != getattr(default, name) and name != "grounded"}  # fmt: skip


# --- what the files are of


def _shape(source: Path, index: Mapping[str, Stored], name: str, ndim: int) -> tuple[int, ...]:
    if name not in index:
        raise LapaError(f"{source} has no {name}, so it is no LAPA-7B or LWM. It starts with {next(iter(index))}.")
    shape = index[name].shape
    if len(shape) != ndim or not all(shape):
        raise LapaError(f"{source}: {name} is {list(shape)}; {ndim} axes of at least 1 expected.")
    return shape


def _layers(source: Path, index: Mapping[str, Stored]) -> tuple[int, int]:
    """Depth and inner width, of stacked layers or of single ones."""
    if f"{LAYERS}feed_forward/w1/kernel" in index:
        depth, _, inner = _shape(source, index, f"{LAYERS}feed_forward/w1/kernel", 3)
        return depth, inner
    inner = _shape(source, index, "transformer/h/0/feed_forward/w1/kernel", 2)[1]
    numbers = {int(found[1]) for name in index if (found := re.match(r"transformer/h/(\d+)/", name))}
    return len(numbers), inner


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():
        raise LapaError(f"{path} {'is no file' if path.exists() else 'does not exist'}. Give the tokenizer.model that "
                        "came with the weights.")  # fmt: skip
    if path.stat().st_size > 1 << 26:
        raise LapaError(f"{path} has {path.stat().st_size:,} bytes; a tokenizer.model has about half a million.")
    return path.read_bytes()


def _pieces(text: bytes, where: Path) -> int:
    try:
        return Prompt(text).pieces
    except LapaError as error:
        raise LapaError(f"{where}: {error}") from None


def _settings(source: Path) -> dict[str, Any]:
    """What a settings.json beside the file, or one folder up, says of its "llama"."""
    for folder in (source.absolute().parent, source.absolute().parent.parent):
        if (path := folder / "settings.json").is_file():
            content = read_json(path, "settings of the released model")
            llama = content.get("llama") if isinstance(content, dict) else None
            if not isinstance(llama, dict):
                continue
            found: dict[str, Any] = {"where": path}
            if isinstance(count := llama.get("num_attention_heads"), int) and count > 0:
                found["heads"] = count
            if isinstance(eps := llama.get("rms_norm_eps"), float) and 0 < eps < 1:
                found["eps"] = eps
            if isinstance(theta := llama.get("theta"), int | float) and theta > 1:
                found["theta"] = float(theta)
            return found
    return {}


def _heads(width: int, choices: Choices, beside: Mapping[str, Any], source: Path) -> tuple[int, str]:
    """How many attention heads, and who says so."""
    if choices.heads is not None:
        found, why = choices.heads, "--heads"
    elif "heads" in beside:
        found, why = beside["heads"], str(beside["where"])
    elif width % 128 == 0:
        found, why = width // 128, "heads of 128, as in Llama"
    else:
        raise LapaError(f"{source} is of width {width}. The weights do not tell how many attention heads that makes: "
                        "give --heads.")  # fmt: skip
    if width % (2 * found):
        raise LapaError(f"{source} is of width {width}, which makes no {found} heads of an even size. Give --heads.")
    return found, why


def _space(
    source: Path, index: Mapping[str, Stored], bins: Path | None, choices: Choices
) -> tuple[CodeSpace | ActionSpace | None, int]:
    """What the head answers, and the number of latent codes that are kept beside an action head."""
    latent, action = ("delta_head/kernel" in index), ("action_head/kernel" in index)
    codes = _shape(source, index, "delta_head/kernel", 2)[1] if latent else 0
    if action:
        if bins is None:
            raise LapaError(f"{source} has an action head. Give --bins, the csv of action bins that belongs to it.")
        return read_bins(bins, _shape(source, index, "action_head/kernel", 2)[1]), codes
    if bins is not None:
        raise LapaError(f"{source} has no action head, so --bins {bins} means nothing. Leave it out.")
    return (CodeSpace(choices.codes, codes) if latent else None), 0


# --- weights


def _streamed(
    source: Path, index: dict[str, Stored], expected: Mapping[str, torch.Tensor], made: _Made
) -> dict[str, Streamed]:
    """How each weight is read when its turn comes. Raises LapaError unless the files have all of them, in the right
    shapes, and nothing else."""
    tensors: dict[str, Streamed] = {}
    used: set[str] = set()
    pictures, faults = made.pictures, list[str]()
    kind = made.space.kind if made.space else ""
    for name, wanted in expected.items():
        bare = name.removeprefix("backbone.")
        if bare == "tokenizer":
            tensors[name] = Streamed("U8", (len(made.text),), lambda: iter([made.text]))
        elif bare.startswith("vqgan."):
            theirs = released_vqgan_name(bare.removeprefix("vqgan."))
            used.add(theirs)
            array = pictures.get(theirs)
            if array is None or ours_of(array).shape != tuple(wanted.shape):
                faults.append(_fault(f"{theirs} (of the VQGAN)", None if array is None else array.shape,
                                     theirs_of(np.empty(wanted.shape)).shape))  # fmt: skip
                continue
            tensors[name] = Streamed("F32", tuple(wanted.shape), _of_array(made.pictures, theirs))
        else:
            theirs, layer = released_name(name, kind), layer_of(name)
            stored = _entry(index, theirs, layer, made.backbone.depth, used, faults)
            shape = tuple(wanted.shape)[::-1] if is_turned(name) else tuple(wanted.shape)
            if stored is None or stored.shape != shape:
                where = theirs if layer is None else f"{theirs} (layer {layer})"
                faults.append(_fault(where, None if stored is None else stored.shape, shape))
                continue
            tensors[name] = Streamed(
                KINDS[stored.dtype], tuple(wanted.shape), _of_file(stored, theirs, is_turned(name))
            )
    faults += [f"unexpected {name}" for name in (*index, *pictures) if name not in used]
    if faults:
        faults = list(dict.fromkeys(faults))
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise LapaError(f"{source} is not the model that its sizes say: {'; '.join(faults[:4])}{more}.")
    # The VQGAN first: it is in memory, and can go then.
    return dict(sorted(tensors.items(), key=lambda item: "vqgan." not in item[0]))


def _entry(
    index: Mapping[str, Stored], theirs: str, layer: int | None, depth: int, used: set[str], faults: list[str]
) -> Stored | None:
    """An array of the file: alone, in a stack of layers, or of a layer by itself."""
    if layer is None:
        used.add(theirs)
        return index.get(theirs)
    if theirs in index:
        used.add(theirs)
        stack = index[theirs]
        if not stack.shape or stack.shape[0] != depth:
            faults.append(f"{theirs} is {list(stack.shape)}, of {depth} layers")
            return None
        return stack.part(layer)
    alone = theirs.replace("scan_decoder", str(layer))
    used.add(alone)
    return index.get(alone)


def _fault(name: str, found: tuple[int, ...] | None, wanted: tuple[int, ...]) -> str:
    return f"missing {name}" if found is None else f"{name} is {list(found)}, expected {list(wanted)}"


def _of_array(arrays: dict[str, Array], name: str) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        array = arrays.pop(name)  # it has had its turn, and need not stay in memory
        if not np.isfinite(array).all():
            raise LapaError(f"The VQGAN's {name} holds infinite or undefined numbers.")
        yield ours_of(array).astype("<f4").tobytes()

    return pieces


def _of_file(stored: Stored, name: str, turned: bool) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        dtype = f"<u{BYTES[stored.dtype]}"
        for piece in transposed(stored) if turned else stored.pieces():
            some = np.frombuffer(piece, dtype, len(piece) // BYTES[stored.dtype])
            if ((some & INFINITE[stored.dtype]) == INFINITE[stored.dtype]).any():
                raise LapaError(
                    f"{stored.path}: {name} holds infinite or undefined numbers; the training had diverged."
                )
            yield piece

    return pieces
