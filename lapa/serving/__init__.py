"""A policy server that speaks the protocols that robot clients already speak: openpi, OpenVLA's /act, vla-eval.

    wire.py      bytes to values and back: msgpack and JSON, checked before anything is made of them
    keys.py      which of a client's keys is which camera, the state, the instruction
    pictures.py  a client's picture in any form -> uint8 [H, W, 3]
    answers.py   one policy, one thread, a bounded queue; chunks, ensembling, a session for each running episode
    limits.py    joint limits and largest steps
    sockets.py   openpi and vla-eval, over WebSockets
    act.py       OpenVLA's POST /act, over HTTP
    server.py    all of it in one process: start, tell, stop
    remote.py    the other side: a policy server of anybody's as an Actor

A client is told one sentence of what is wrong (`Fault`), never more; the rest goes to the server's log.
"""

from __future__ import annotations

from lapa.contracts import LapaError


class Fault(LapaError):
    """What is wrong with a request, in one sentence for the client. `status` is HTTP's: 4xx: the client can mend it,
    503: try again later."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


def shortened(text: object, most: int = 120) -> str:
    """A client's own words as they may stand in a log or an answer: quoted, on one line, not long."""
    words = repr(text)
    return words if len(words) <= most else words[: most - 3] + ".."
