"""The prompt of LWM and LAPA-7B as token ids, by the sentencepiece model that came with the weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lapa.contracts import Array, LapaError

SPECIAL = re.compile(r"\s*(<s>|</s>|<unk>)\s*")  # tokens of their own, wherever they stand; spaces beside them go
BEFORE = "<s> <s> You are a helpful assistant. USER: What action should the robot take to `{}` ASSISTANT: <vision>"
AFTER = {"codes": "</vision> <delta>", "actions": "</vision> <action>"}  # by the kind of space; others act, too
END_OF_VISION = 8193  # beside the codes of a picture, 0 to 8191; 8192 would end a frame of several
VISION_IDS = END_OF_VISION + 1
PAD = 0


@dataclass(frozen=True)
class Prompt:
    """A tokenizer, `model` being the bytes of its file."""

    model: bytes

    @property
    def pieces(self) -> int:
        """How many there are. Raises LapaError where the bytes are no sentencepiece model."""
        return int(_processor(self.model).get_piece_size())

    def ids(self, text: str) -> list[int]:
        """A text as ids, without marks of its beginning and end. Special tokens in it are taken as such; each text
        between them is encoded by itself."""
        processor, found = _processor(self.model), list[int]()
        special = {"<s>": processor.bos_id(), "</s>": processor.eos_id(), "<unk>": processor.unk_id()}
        for part in SPECIAL.split(text):
            found += [special[part]] if part in special else processor.encode(part) if part else []
        return found

    def rows(self, instructions: Sequence[str], words: int) -> tuple[Array, Array]:
        """Prompts up to the picture, int64 [B, words], padded on the left; longer ones lose their left end. And bool
        [B, words]: False for padding."""
        ids = np.full((len(instructions), words), PAD, np.int64)
        present = np.zeros(ids.shape, bool)
        for i, instruction in enumerate(instructions):
            row = self.ids(BEFORE.format(instruction))[-words:]
            ids[i, words - len(row) :], present[i, words - len(row) :] = row, True
        return ids, present

    def after(self, kind: str) -> Array:
        """What follows the picture and asks for this kind of answer, int64 [n]."""
        return np.array(self.ids(AFTER.get(kind, AFTER["actions"])), np.int64)

    def overlong(self, instructions: Sequence[str], words: int) -> int:
        """How many prompts are longer than `words`."""
        return sum(len(self.ids(BEFORE.format(text))) > words for text in instructions)


@lru_cache(maxsize=4)
def _processor(model: bytes) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise LapaError("LWM and LAPA-7B need the package sentencepiece: pip install 'lapa[lwm]'.") from None
    try:
        return SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise LapaError(f"The tokenizer is no sentencepiece model ({error}).") from None
