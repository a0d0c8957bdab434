"""The protocols openpi and vla-eval: msgpack over WebSockets, both on one port.

openpi: the server sends its metadata first. Then it answers each observation with {"actions": [n, A], "server_timing":
..}. A fault is one sentence in a TEXT frame; then the server closes with code 1011. The protocol has no message for a
new episode: the client connects again or sends "reset": true. A client that runs several episodes over one connection
sends their numbers as "episode".

vla-eval: messages are {"type", "payload", "seq", "timestamp"}. The client sends "hello", then an observation for every
step; each is answered with one action. A fault is a message "error", and the connection stays open. An openpi client
waits for the server's first message, and a vla-eval client for the answer to its "hello". So one first message serves
both: the metadata also has the keys of a "hello".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from lapa.serving import EPISODES, Fault, shortened
from lapa.serving.answers import Session
from lapa.serving.service import Service
from lapa.serving.wire import pack, pack_json, unpack

SLOW = 20.0  # seconds that a client may take to receive an answer
FORGOTTEN = 10_000  # numbers of forgotten episodes of a connection that are remembered
HEALTH = {"/healthz": "OK\n", "/health": '{"status": "ok"}\n'}
TYPES = ("hello", "observation", "episode_start", "episode_end", "error")


def connection_that_points_to(http_port: int) -> type[ServerConnection]:
    """The class of connections. It names the right port to an OpenVLA client that posts to this one; websockets alone
    would close the connection without an answer."""

    class Pointing(ServerConnection):
        begun = misdirected = False

        def data_received(self, data: bytes) -> None:
            """See asyncio.Protocol."""
            if not self.begun:
                self.begun, self.misdirected = True, data.startswith(b"POST ")
                if self.misdirected:
                    body = pack_json({"error": f"This port speaks WebSocket. POST to port {http_port}."}).encode()
                    head = f"HTTP/1.1 421 Misdirected Request\r\nContent-Length: {len(body)}\r\n"
                    kind = "Content-Type: application/json\r\nConnection: close\r\n\r\n"
                    self.transport.write((head + kind).encode() + body)
                    self.transport.write_eof()
            if not self.misdirected:
                super().data_received(data)

    return Pointing


class Sockets:
    """Handles the connections."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.open: set[ServerConnection] = set()
        self.busy: set[ServerConnection] = set()

    def before(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer health checks and refuse clients, before the WebSocket handshake."""
        path = request.path.partition("?")[0]
        if path in HEALTH:
            return connection.respond(503 if self.service.draining else 200, HEALTH[path])
        fault = self.service.turned_away(_single(request))
        if fault is None and (self.service.draining or len(self.open) >= self.service.clients):
            fault = Fault(f"{self.service.clients} clients are connected already; come again later.", 503)
        if fault is None:
            return None
        return connection.respond(fault.status, self.service.fault(fault, _peer(connection)) + "\n")

    async def handle(self, connection: ServerConnection) -> None:
        """Serve one client until it disconnects."""
        self.open.add(connection)
        talk = _Talk(self.service)
        peer = _peer(connection)
        try:
            await _send(connection, pack(dict(self.service.about)))
            async for message in connection:
                self.busy.add(connection)
                try:
                    reply = await talk.answer(message)
                except Fault as error:
                    sentence = self.service.fault(error, peer)
                    await _send(connection, sentence)
                    await connection.close(1011, sentence.encode()[:100].decode("utf-8", "ignore"))
                    return
                finally:
                    self.busy.discard(connection)
                if reply is not None:
                    await _send(connection, reply)
                if self.service.draining:
                    await connection.close(1001, "the server is being stopped")
                    return
        except (ConnectionClosed, TimeoutError):
            pass  # the client disconnected, or does not receive
        finally:
            self.open.discard(connection)
            talk.end()


class _Talk:
    """The state of one connection."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.sessions: dict[Any, Session] = {}
        self.forgotten: dict[Any, None] = {}
        self.previous: float | None = None  # milliseconds from the last message to its answer

    async def answer(self, message: bytes | str) -> bytes | None:
        """The reply to a message. Raises Fault where the connection must end."""
        start = time.perf_counter()
        if isinstance(message, str):
            raise Fault("Messages are binary (msgpack); this one is text.")
        told = await self.service.read(unpack, message)
        if not isinstance(told, dict):
            raise Fault(f"A message is a dictionary; got {type(told).__name__}.")
        if "type" in told and "payload" in told:
            return await self._vla_eval(told)
        reply = pack(await self._openpi(told, start))
        self.previous = 1000 * (time.perf_counter() - start)
        return reply

    def end(self) -> None:
        """The client has disconnected."""
        self.service.asked.forget([session.number for session in self.sessions.values()])

    async def _openpi(self, told: dict[str, Any], start: float) -> dict[str, Any]:
        episode = told.pop("episode", None)
        if episode is not None and type(episode) is not int:
            raise Fault(f"The episode is a whole number; got {shortened(episode, 40)}.")
        reset = told.pop("reset", False)
        if type(reset) is not bool:
            raise Fault(f'"reset" is true or false; got {shortened(reset, 40)}.')
        manner = self.service.manner  # who gets more actions than it should execute may execute all of them
        session = self._session(episode, manner.sent == manner.executed, new=reset)
        actions, ms = await self.service.act(told, session)
        timing = {"infer_ms": ms} | ({} if self.previous is None else {"prev_total_ms": self.previous})
        return {"actions": actions, "server_timing": timing}

    async def _vla_eval(self, told: dict[str, Any]) -> bytes | None:
        kind, payload, seq = told["type"], told["payload"], told.get("seq", 0)
        if not isinstance(kind, str) or kind not in TYPES or not isinstance(payload, dict):
            return _message("error", {"error": f"A message is one of {', '.join(TYPES)}, with a payload."}, seq)
        if kind in ("episode_start", "episode_end"):
            self._session(None, True, new=True)
        if kind != "observation":
            return None
        session = self._session(None, True)
        try:
            action = session.next()
            if action is None:
                action = session.keep((await self.service.act(payload, session))[0])
        except Fault as error:
            return _message("error", {"error": self.service.fault(error, "vla-eval")}, seq)
        return _message("action", {"actions": action}, seq)

    def _session(self, episode: int | None, follows: bool, new: bool = False) -> Session:
        """The session of an episode, begun where there is none or a `new` one is asked for. follows: see Session.
        Raises Fault for one that has been forgotten and is to go on."""
        found = self.sessions.pop(episode, None)
        if found is not None and new:
            self.service.asked.forget([found.number])
            found = None
        if found is None:
            if episode in self.forgotten and not new:
                raise Fault(f"Episode {episode} has been forgotten: one connection runs {EPISODES} side by side at "
                            "most. Open another one, or begin it anew (reset).")  # fmt: skip
            self.forgotten.pop(episode, None)
            found = self.service.session(follows)
            if len(self.sessions) >= EPISODES:
                oldest = next(iter(self.sessions))
                self.service.asked.forget([self.sessions.pop(oldest).number])
                self.forgotten[oldest] = None
                if len(self.forgotten) > FORGOTTEN:
                    del self.forgotten[next(iter(self.forgotten))]
        self.sessions[episode] = found  # the last one used comes last
        return found


def hello(about: Mapping[str, Any], cameras: int, state: bool) -> dict[str, Any]:
    """The metadata with the keys of vla-eval's "hello" (see above)."""
    wanted = {name: True for name, wish in (("send_wrist_image", cameras > 1), ("send_state", state)) if wish}
    payload = {"harness_version": "", "protocol_version": 1, "model_server": "lapa", "capabilities": {},
               "observation_params": wanted}  # fmt: skip
    return {**about, "type": "hello", "payload": payload, "seq": 1, "timestamp": time.time()}


def _message(kind: str, payload: dict[str, Any], seq: Any) -> bytes:
    number = seq if type(seq) is int else 0
    return pack({"type": kind, "payload": payload, "seq": number, "timestamp": time.time()}, "vla-eval")


async def _send(connection: ServerConnection, message: bytes | str) -> None:
    """Send a message. Raises TimeoutError if the client does not receive it."""
    async with asyncio.timeout(SLOW):
        await connection.send(message)


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) and len(address) >= 2 else "a client"


def _single(request: Request) -> dict[str, str]:
    """The headers that are looked at; one that comes twice counts as wrong."""
    return {name: ", ".join(found) for name in ("Origin", "Authorization") if (found := request.headers.get_all(name))}
