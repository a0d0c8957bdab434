"""A policy server that speaks the protocols that robot clients already speak: openpi, OpenVLA's /act, vla-eval.

    wire.py      bytes to values and back: msgpack and JSON, checked before they are decoded
    keys.py      which of a client's keys is which camera, the state, the instruction
    pictures.py  a client's picture in any form -> uint8 [H, W, 3]
    answers.py   the policy's thread and its queue; chunks, ensembling, a session for each running episode
    limits.py    joint limits and largest steps
    service.py   what all protocols share: authorisation, the way from a message to actions, the log
    sockets.py   openpi and vla-eval, over WebSockets
    act.py       OpenVLA's POST /act, over HTTP
    server.py    starts and stops everything in one process
    remote.py    the client's side: any policy server as an Actor

Of an error a client gets one sentence (`Fault`). Everything else goes to the server's log.
"""

from __future__ import annotations

from lapa.contracts import LapaError

EPISODES = 256  # of one connection that are remembered; the one that was not asked about for longest is forgotten


class Fault(LapaError):
    """One sentence for the client about its request. `status` is the HTTP status: 4xx if the client can mend it, 503 if
    it should try again later."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


def shortened(text: object, most: int = 120) -> str:
    """Text from a client, made safe for a log or an answer: quoted, on one line, short."""
    words = repr(text)
    return words if len(words) <= most else words[: most - 3] + ".."
