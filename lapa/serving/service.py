"""What all protocols share: authorisation, the way from a client's message to actions, and the log."""

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

READERS = 2  # threads that decode large messages, so that these do not delay other clients
SMALL = 2**20  # bytes, or numbers in arrays; up to this size decoding is quicker than a change of thread
QUIET = 10.0  # seconds in which a line is not repeated
KINDS = 1000  # number of different lines that are remembered


class Log:
    """Lines on stderr. Lines of one kind are written once in QUIET seconds, with the number of those left out: a faulty
    client cannot fill the disk."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        self._write = write or _to_stderr
        self._last: dict[str, tuple[float, int]] = {}
        self._said: set[str] = set()

    def say(self, sentence: str, kind: str = "") -> None:
        """Log a sentence. `kind` names lines that count as the same ("": the sentence itself)."""
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
        """Log a sentence once and never again."""
        if sentence not in self._said and len(self._said) < KINDS:
            self._said.add(sentence)
            self._write(sentence)


def _to_stderr(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


@dataclass
class Service:
    """A policy with everything that is needed to serve it.

    about     the openpi metadata
    token     that clients must send; "": none
    clients   maximum number of connections, for each protocol
    largest   maximum number of bytes of a message
    draining  the server is stopping; new requests are refused
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

    def session(self, follows: bool) -> Session:
        """A new episode of a client. follows: see Session."""
        return Session(self.manner, lambda told: self.log.say(f"clipped: {told}", f"clipped {told.partition(' ')[0]}"),
                       follows)  # fmt: skip

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
        session.require_place(state)
        answer = await asyncio.wrap_future(self.asked.ask(observation, session.number))
        actions = session.actions(answer, state)
        self.answered += 1
        return actions, answer.ms

    def fault(self, error: Fault, peer: str) -> str:
        """Log a fault. Returns the sentence for the client."""
        self.refused += 1
        words = " ".join(str(error).split())[:500]
        sentence = "".join(each if each.isprintable() else "?" for each in words)  # no escapes of a client's
        self.log.say(f"{peer}: {sentence}", sentence[:40])
        return sentence

    def turned_away(self, headers: Mapping[str, str]) -> Fault | None:
        """The reason to refuse a client, or None. Web pages are refused, and clients without the token."""
        if headers.get("Origin") is not None:
            return Fault("Requests of web pages (with the header Origin) are refused.", 403)
        if self.token and not _has(headers.get("Authorization") or "", self.token):
            return Fault("The token is missing or wrong. Send the header Authorization: Api-Key TOKEN.", 401)
        return None


def _numbers(sent: Any) -> int:
    """How many numbers are in the arrays of an observation."""
    if isinstance(sent, Mapping):
        return sum(map(_numbers, sent.values()))
    return sent.size if isinstance(sent, np.ndarray) else 0


def _has(header: str, token: str) -> bool:
    """Does the header have the token? The comparison takes constant time."""
    scheme, _, shown = header.strip().partition(" ")
    same = hmac.compare_digest(shown.strip().encode(), token.encode())
    return same and scheme.lower() in ("api-key", "bearer")
