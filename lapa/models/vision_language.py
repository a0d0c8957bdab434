"""Vision-language models of transformers, from a folder or the hub, with their own image processor and tokenizer.

Each family has its own marks around a picture and around what the user says. They are in FAMILIES; the composite
processors of transformers, which know them too, mostly need torchvision. A picture is one tile: none is cut up.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lapa.artefacts.limits import uncounted
from lapa.artefacts.pretrained import Source, of_model, quietly
from lapa.contracts import LapaError
from lapa.models.language import layers_of

Count = Callable[[Any, tuple[int, ...], list[int]], int]  # (config, shape of a picture's pixels, its grid) -> tokens
EYES = ("vision_model", "vision_tower", "visual")  # names of the modules that see
FAULTS = (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError, SafetensorError)


def _patches(config: Any, shape: tuple[int, ...]) -> int:
    """Patches of a picture of pixels [3, H, W]."""
    size = config.vision_config.patch_size
    side = size if isinstance(size, int) else size[0]
    return (shape[-2] // side) * (shape[-1] // side)


@dataclass(frozen=True)
class Family:
    """How the models of a family are spoken to.

    before, picture, between, end   the prompt: before, each picture with {image} where its tokens are, between, the
                  instruction, end. {bos} is the tokenizer's token of the beginning
    count         how many tokens a picture has
    options       of the image processor: one tile a picture
    together      pictures that the image processor is given at least: some cut a single one into tiles
    first         position of the first token
    both_ways     which tokens read those behind them too: those of a "picture", or of the whole "prompt"
    grid          positions have three numbers, and each picture a grid of patches (Qwen)
    """

    before: str
    picture: str
    end: str
    count: Count
    between: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    together: int = 1
    first: int = 0
    both_ways: str = ""
    grid: bool = False


SMOLVLM = Family(
    "{bos}User:", "<fake_token_around_image><global-img>{image}<fake_token_around_image>",
    "<end_of_utterance>\nAssistant:", lambda c, shape, _: _patches(c, shape) // c.scale_factor**2,
    options={"do_image_splitting": False, "do_pad": False},
)  # fmt: skip
QWEN = Family(
    "<|im_start|>user\n", "<|vision_start|>{image}<|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n",
    lambda c, _, grid: grid[0] * grid[1] * grid[2] // c.vision_config.spatial_merge_size**2, grid=True,
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    "smolvlm": SMOLVLM,
    "idefics3": SMOLVLM,  # the first SmolVLM too
    "paligemma": Family("", "{image}", "\n", lambda c, shape, _: _patches(c, shape), between="{bos}", first=1,
                        both_ways="prompt"),
    "gemma3": Family("{bos}<start_of_turn>user\n", "\n\n<start_of_image>{image}<end_of_image>\n\n",
                     "<end_of_turn>\n<start_of_turn>model\n", lambda c, *_: int(c.mm_tokens_per_image),
                     options={"do_pan_and_scan": False}, both_ways="picture"),
    "llava_onevision": Family("<|im_start|>user ", "{image}", "<|im_end|><|im_start|>assistant\n",
                              lambda c, shape, _: _patches(c, shape) + (c.vision_feature_select_strategy == "full"),
                              between="\n", together=2),
    "internvl": Family("<|im_start|>user\n", "<img>{image}</img>\n", "<|im_end|>\n<|im_start|>assistant\n",
                       lambda c, shape, _: int(_patches(c, shape) * c.downsample_ratio**2),
                       options={"crop_to_patches": False}),
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
}  # fmt: skip


def source_of(model: str, revision: str, needs: Sequence[str] = ("transformers",)) -> Source:
    """Where a model lies: a folder, or a hub id at a commit. Raises LapaError where it or a package is not there."""
    if missing := [name for name in needs if importlib.util.find_spec(name) is None]:
        raise LapaError(
            f'The backbone hf needs {" and ".join(missing)}: pip install "lapa[hf]". Or do without: --set '
            "policy.backbone=tiny."
        )
    if not model:
        raise LapaError(
            "The backbone hf needs a model, a folder or a hub id with its revision: --set "
            """'policy.backbone_options={"model":"FOLDER"}' (docs/backbones.md)."""
        )
    return of_model(model, revision, "model")


def vision_language(source: Source, image_size: int) -> VisionLanguage:
    """One for all backbones on this model."""
    return _shared(source, image_size, source.hash)


@functools.lru_cache(4)
def _shared(source: Source, image_size: int, hash: str) -> VisionLanguage:
    return VisionLanguage(source, image_size)


class VisionLanguage:
    """What a model reads: its image processor, its tokenizer, its prompt. Methods may be called from several threads,
    and copies of it are the same one; its weights are made by `network`."""

    def __init__(self, source: Source, image_size: int) -> None:
        self.source, self.image_size = source, image_size
        self._lock = RLock()
        self._fronts: dict[int, list[int]] = {}
        if self.config.model_type not in FAMILIES:
            raise LapaError(
                f"model={source.name} is a {self.config.model_type}; the backbone hf reads {', '.join(FAMILIES)}."
            )
        self.family = FAMILIES[self.config.model_type]

    def __deepcopy__(self, memo: Any) -> VisionLanguage:
        return self

    @cached_property
    def config(self) -> Any:
        """Its configuration."""
        from transformers import AutoConfig

        with self._loading("config.json"):
            return AutoConfig.from_pretrained(self.source.path)

    @cached_property
    def processor(self) -> Any:
        """Its image processor, that of Pillow, with or without torchvision."""
        from transformers import AutoImageProcessor

        with self._loading("its image processor"):
            return AutoImageProcessor.from_pretrained(self.source.path, backend="pil")

    @cached_property
    def tokenizer(self) -> Any:
        """Words to numbers. Raises LapaError where it lacks a mark of the family's prompt."""
        from transformers import AutoTokenizer

        with self._loading("its tokenizer"):
            found = AutoTokenizer.from_pretrained(self.source.path)
        family, known = self.family, found.get_vocab()
        marks = re.findall(r"<[^<>\s]+>|</[^<>\s]+>", family.before + family.picture + family.between + family.end)
        if missing := [mark for mark in marks if mark not in known]:
            raise LapaError(
                f"model={self.source.name}: its tokenizer has no {missing[0]}, which the prompt of a "
                f"{self.config.model_type} needs."
            )
        return found

    def network(self) -> Any:
        """The model without a head for words, in float32, on the CPU; on torch's "meta" device without weights. Raises
        LapaError where weights are missing."""
        from transformers import AutoModelForImageTextToText

        how = {"dtype": torch.float32, "attn_implementation": "sdpa"}
        with uncounted(), self._loading("its weights"):
            if torch.empty(0).is_meta:
                return AutoModelForImageTextToText.from_config(self.config, **how).model
            found: Any = AutoModelForImageTextToText.from_pretrained(
                self.source.path, config=self.config, output_loading_info=True, **how
            )
        made, told = found
        if wrong := sorted(map(str, {*told["missing_keys"], *told["mismatched_keys"]})):
            raise LapaError(f"model={self.source.name}: {len(wrong)} of its weights are not in {self.source.path}, "
                            f"such as {wrong[0]}.")  # fmt: skip
        return made.model

    @contextmanager
    def _loading(self, what: str) -> Iterator[None]:
        try:
            with self._lock, quietly():
                yield
        except FAULTS as error:
            first = str(error).strip().partition("\n")[0]
            raise LapaError(
                f"model={self.source.name}: transformers cannot load {what} ({first or type(error).__name__})."
            ) from None

    # --- pictures

    def pixels(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [B, cameras, size, size, 3] -> what its image processor makes of them, float32 [B, cameras, 3, H, W] or
        [B, cameras, patches, numbers], and their grids int64 [B, cameras, 3] where there are such."""
        flat = list(pictures.flatten(0, 1).numpy())
        given = flat * self.family.together if len(flat) < self.family.together else flat
        with self._loading("pictures with its image processor"):
            found = self.processor(images=[given], return_tensors="pt", **self._one_tile)
        values, shape = found["pixel_values"], pictures.shape[:2]
        if self.family.grid:
            grids = found["image_grid_thw"]
            return values.unflatten(0, (len(flat), -1)).unflatten(0, shape), grids.unflatten(0, shape)
        return values.reshape(-1, *values.shape[-3:])[: len(flat)].unflatten(0, shape), None

    @cached_property
    def _one_tile(self) -> dict[str, Any]:
        largest = getattr(self.processor, "max_image_size", None)
        return {**self.family.options, **({"size": dict(largest)} if largest else {})}  # not by way of a large one

    @cached_property
    def tokens(self) -> int:
        """Of a picture."""
        _, grid = self._blank
        return self.family.count(self.config, self.shape, [] if grid is None else grid[0, 0].tolist())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a picture's pixels, as `pixels` gives them."""
        return tuple(self._blank[0].shape[2:])

    @property
    def grid(self) -> Tensor | None:
        """Of any picture, int64 [3]; None where pictures have none."""
        grid = self._blank[1]
        return None if grid is None else grid[0, 0]

    @property
    def parts(self) -> int:
        """Layers of the language model that get a picture's features."""
        return 1 + len(getattr(self.config.vision_config, "deepstack_visual_indexes", None) or ())

    @cached_property
    def _blank(self) -> tuple[Tensor, Tensor | None]:
        return self.pixels(torch.zeros(1, 1, self.image_size, self.image_size, 3, dtype=torch.uint8))

    # --- words

    @cached_property
    def image_id(self) -> int:
        """The token in whose place a picture's features are put."""
        return int(self.config.image_token_id)

    @cached_property
    def filler(self) -> int:
        """A token for padding and in place of the state."""
        tokenizer = self.tokenizer
        given = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0, 1)
        return int(next(token for token in given if token is not None and token != self.image_id))

    def front(self, cameras: int) -> list[int]:
        """The prompt before the instruction, with as many pictures."""
        if cameras not in self._fronts:
            name, family = self.tokenizer.convert_ids_to_tokens(self.image_id), self.family
            if name is None:
                raise LapaError(f"model={self.source.name}: its tokenizer has no token {self.image_id}, a picture's.")
            text = family.before + family.picture * cameras + family.between
            found = self._ids(text.replace("{image}", name).replace("{bos}", self.tokenizer.bos_token or ""))
            self._fronts[cameras] = [
                token for each in found for token in [each] * (self.tokens if each == self.image_id else 1)
            ]
        return self._fronts[cameras]

    @cached_property
    def end(self) -> list[int]:
        """The prompt after the instruction."""
        return self._ids(self.family.end)

    def words(self, text: str) -> list[int]:
        """Of an instruction; marks of the prompt inside it are left out."""
        return self._ids(" ".join(self._marks.sub(" ", text).split()))

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        special = {*self.tokenizer.all_special_tokens, self.tokenizer.convert_ids_to_tokens(self.image_id)}
        return re.compile("|".join(sorted(map(re.escape, filter(None, special)), key=len, reverse=True)))

    def _ids(self, text: str) -> list[int]:
        with self._lock:
            found: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def rows(self, texts: Sequence[str], cameras: int, most: int, state: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts with at most so many tokens of the instruction: ids int64 [B, L], padded on the left; known bool
        [B, L], False for padding; spot bool [B, L], where the state is put."""
        spot = [self.filler] * state
        rows = [[*self.front(cameras), *self.words(text)[:most], *spot, *self.end] for text in texts]
        longest = max(map(len, rows), default=1)
        ids = torch.tensor([[self.filler] * (longest - len(row)) + row for row in rows], dtype=torch.int64)
        known = torch.arange(longest) >= torch.tensor([[longest - len(row)] for row in rows])
        places = torch.zeros_like(known)
        if state:
            places[:, longest - len(self.end) - 1] = True
        return ids, known, places


# --- what is trained


def shortened(network: Any, layers: int) -> None:
    """Keep the first layers of its language model alone. Raises LapaError for more than it has."""
    language = text_model(network)
    every = layers_of(language)
    if layers > len(every):
        raise LapaError(f"hf: layers {layers}: the language model has {len(every)}.")
    if layers:
        del every[layers:]
        language.config.num_hidden_layers = layers
        if types := getattr(language.config, "layer_types", None):
            language.config.layer_types = types[:layers]


def text_model(network: Any) -> Any:
    """Its language model."""
    return network.get_decoder()


def with_lora(network: Any, rank: int, alpha: int) -> None:
    """Put low-rank adapters (LoRA) of peft beside all linear layers of its language model."""
    from peft import LoraConfig, inject_adapter_in_model

    language = text_model(network)
    names = {
        name.rpartition(".")[2] for name, part in layers_of(language).named_modules() if isinstance(part, nn.Linear)
    }
    with uncounted():
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=sorted(names)), language)


def trained_names(network: Any, training: str, top: int) -> set[str]:
    """The parameters that train: "full": all but the vision encoder; "lora": the adapters; "top": the last layers of
    the language model and its last norm. Raises LapaError for more layers than there are."""
    names = {name for name, _ in network.named_parameters()}
    if training == "full":
        return {name for name in names if not any(eye in name for eye in EYES)}
    if training == "lora":
        return {name for name in names if ".lora_" in name}
    language = text_model(network)
    every = layers_of(language)
    if top > len(every):
        raise LapaError(f"hf: top {top}: the language model has {len(every)} layers.")
    last = [*every[-top:], language.norm]
    wanted = {id(parameter) for part in last for parameter in part.parameters()}
    return {name for name, parameter in network.named_parameters() if id(parameter) in wanted}
