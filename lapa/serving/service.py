"""What all protocols share: who may ask, and the way from a client's message to actions. And the log."""

from __future__ import annotations

import asyncio
import hmac
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lapa.contracts import Array
from lapa.serving import Fault
from lapa.serving.answers import Asked, Manner, Session
from lapa.serving.keys import Keys

READERS = 2  # threads that read large messages, so that one client's does not stop the others
SMALL = 2**20  # bytes, or numbers in arrays, that are read at once: handing them over would take longer
QUIET = 10.0  # seconds in which the same is not logged again
KINDS = 1000  # different lines that are remembered for that


class Log:
    """Lines on stderr. The same kind of line comes once in QUIET seconds, with how often it was left out: a client that
    errs a thousand times a second must not fill the disk."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        self._write = write or _to_stderr
        self._last: dict[str, tuple[float, int]] = {}
        self._said: set[str] = set()

    def say(self, sentence: str, kind: str = "") -> None:
        """Log a sentence; lines of one `kind` ("": the sentence itself) are alike."""
        kind, now = kind or sentence, time.monotonic()
        last, left_out = self._last.get(kind, (-QUIET, 0))
        if now - last < QUIET:
            self._last[kind] = (last, left_out + 1)
            return
        if len(self._last) >= KINDS:
            self._last.clear()
        self._last[kind] = (now, 0)
        self._write(sentence + (f" ({left_out} more like this)" if left_out else ""))

    def once(self, sentence: str) -> None:
        """Log a sentence the first time that it is said."""
        if sentence not in self._said and len(self._said) < KINDS:
            self._said.add(sentence)
            self._write(sentence)


def _to_stderr(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


@dataclass
class Service:
    """A policy as clients meet it.

    about     what it is: the openpi metadata
    token     what a client must show; "": nothing
    clients   connections at once, of each protocol
    largest   bytes of a message at most
    draining  no new request is taken; set when the server stops
    """

    keys: Keys
    asked: Asked
    manner: Manner
    about: Mapping[str, Any]
    log: Log
    token: str = ""
    clients: int = 64
    largest: int = 32 * 2**20
    draining: bool = False
    answered: int = 0
    refused: int = 0
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READERS, "lapa-reader"))

    def session(self) -> Session:
        """A new episode of a client."""
        return Session(self.manner, lambda told: self.log.say(f"clipped: {told}", f"clipped {told.partition(' ')[0]}"))

    async def read(self, unpack: Callable[[Any], Any], message: bytes | str) -> Any:
        """The message as values. Raises Fault."""
        files = b"__image__" if isinstance(message, bytes) else "__image__"
        if len(message) <= SMALL and files not in message:  # type: ignore[operator]
            return unpack(message)
        return await asyncio.get_running_loop().run_in_executor(self.readers, unpack, message)

    async def act(self, sent: Any, session: Session) -> tuple[Array, float]:
        """Actions float32 [n, A] for a client's observation, and the policy's milliseconds. Raises Fault."""
        if self.draining:
            raise Fault("The server is being stopped.", 503)
        if _numbers(sent) <= SMALL:
            observation, state = self.keys.observation(sent)
        else:
            work = asyncio.get_running_loop().run_in_executor(self.readers, self.keys.observation, sent)
            observation, state = await work
        answer = await asyncio.wrap_future(self.asked.ask(observation, session.number))
        actions = session.actions(answer, state)
        self.answered += 1
        return actions, answer.ms

    def fault(self, error: Fault, peer: str) -> str:
        """Log a fault, and the sentence for the client."""
        self.refused += 1
        sentence = " ".join(str(error).split())[:500]
        self.log.say(f"{peer}: {sentence}", sentence[:40])
        return sentence

    def turned_away(self, headers: Mapping[str, str]) -> Fault | None:
        """Why a client may not ask, if it may not: a web page never, and others not without the token."""
        if headers.get("Origin") is not None:
            return Fault("Web pages are not served.", 403)
        if self.token and not _shows(headers.get("Authorization") or "", self.token):
            return Fault("The token is missing or wrong. Send the header Authorization: Api-Key TOKEN.", 401)
        return None


def _numbers(sent: Any) -> int:
    """How many numbers are in the arrays of an observation."""
    if isinstance(sent, Mapping):
        return sum(map(_numbers, sent.values()))
    return sent.size if isinstance(sent, np.ndarray) else 0


def _shows(header: str, token: str) -> bool:
    """Does the header hold the token? Compared in constant time."""
    scheme, _, shown = header.strip().partition(" ")
    same = hmac.compare_digest(shown.strip().encode(), token.encode())
    return same and scheme.lower() in ("api-key", "bearer")
