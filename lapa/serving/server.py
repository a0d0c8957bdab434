"""The server: both ports in one process, one event loop. It starts, says what it serves, stops without losing work.

Safe by default: it listens on this machine alone (loopback). Beyond, it wants a token of its clients, and says so
aloud, for what it sends is not encrypted and moves a robot.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from websockets.asyncio.server import Server as SocketServer
from websockets.asyncio.server import serve

from lapa.contracts import LapaError
from lapa.serving.act import LONGEST_HEAD, Http
from lapa.serving.service import Service
from lapa.serving.sockets import Sockets

LOOPBACK = "127.0.0.1"
SHORTEST_TOKEN = 16  # characters
PATIENCE = 10.0  # seconds for what is being answered when the server is stopped
HANDSHAKE, PING, PONG = 10.0, 20.0, 60.0  # seconds: to connect, between looks whether a client is there, for its answer


@dataclass(frozen=True)
class Where:
    """Where the server listens. A port of 0 is any that is free."""

    host: str = LOOPBACK
    port: int = 8000
    http_port: int = 8001

    def __post_init__(self) -> None:
        for option, port in (("--port", self.port), ("--http-port", self.http_port)):
            if not 0 <= port <= 65535:
                raise LapaError(f"{option} is a number from 0 to 65535, not {port}.")


def require_safe(where: Where, token: str) -> None:
    """Raise LapaError for a host beyond this machine without a token, and for a token that is easily guessed."""
    if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise LapaError(f"A token has at least {SHORTEST_TOKEN} characters of ASCII and no spaces, such as the output "
                        "of `openssl rand -hex 16`.")  # fmt: skip
    if not token and not is_loopback(where.host):
        raise LapaError(
            f"--host {where.host} lets other machines move the robot. Give a token: --token-file FILE, or the "
            "environment variable LAPA_SERVE_TOKEN. (Or leave --host out, and use ssh -L.)"
        )


def is_loopback(host: str) -> bool:
    """Is this host this machine alone?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Server:
    """A Service at its ports."""

    def __init__(self, service: Service, where: Where) -> None:
        require_safe(where, service.token)
        self.service, self.where = service, where
        self._sockets, self._http = Sockets(service), Http(service)
        self._servers: tuple[SocketServer, asyncio.Server] | None = None

    async def start(self) -> None:
        """Listen. Raises LapaError for a port that is taken, or a host that this machine does not have."""
        quiet = logging.getLogger("lapa.serving.websockets")
        quiet.setLevel(logging.CRITICAL)  # it logs a traceback for each client that does not speak WebSocket
        opened = _listening(self.where.host, self.where.port, "--port")
        try:
            other = _listening(self.where.host, self.where.http_port, "--http-port")
        except LapaError:
            opened.close()
            raise
        sockets = await serve(
            self._sockets.handle, sock=opened, process_request=self._sockets.before, compression=None,
            max_size=self.service.largest, max_queue=1, open_timeout=HANDSHAKE, ping_interval=PING, ping_timeout=PONG,
            server_header=None, logger=quiet,
        )  # fmt: skip
        http = await asyncio.start_server(self._http.handle, sock=other, limit=LONGEST_HEAD)
        self._servers = sockets, http
        self.where = Where(self.where.host, opened.getsockname()[1], other.getsockname()[1])

    async def stop(self) -> None:
        """Take no more, answer what is being asked, then close."""
        assert self._servers is not None
        sockets, http = self._servers
        self.service.draining = True
        sockets.close(close_connections=False)
        http.close()
        for connection in self._sockets.open - self._sockets.busy:
            _spawned(connection.close(1001, "the server is being stopped"))
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self._sockets.busy or self._http.busy or self._sockets.open:
                    await asyncio.sleep(0.02)
        idle = list(self._http.open)
        for task in idle:
            task.cancel()
        await asyncio.gather(*idle, return_exceptions=True)
        sockets.close()
        await sockets.wait_closed()
        self.service.readers.shutdown(wait=False)
        await asyncio.get_running_loop().run_in_executor(None, self.service.asked.close)


_TASKS: set[asyncio.Task[None]] = set()


def _spawned(work: object) -> None:
    task = asyncio.ensure_future(work)  # type: ignore[call-overload]
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)


def _listening(host: str, port: int, option: str) -> socket.socket:
    """A socket that listens. Raises LapaError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        what = "is in use; choose another" if taken else f"cannot be used ({error.strerror or error})"
        raise LapaError(f"{option} {port} of {host} {what}.") from None


def run(server: Server) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish what is being answered."""

    async def serving() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, stopped.set)
        await server.start()
        server.service.log.say("\n  ".join(["Ready.", *addresses(server)]))
        await stopped.wait()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)  # the second time it ends at once
        server.service.log.say("Stopping: no more requests are taken; what is being asked is answered.")
        await server.stop()
        service = server.service
        server.service.log.say(
            f"Stopped. {service.answered:,} observations were answered, {service.refused:,} refused."
        )

    asyncio.run(serving())


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server in a thread of its own, for as long as the with-block."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(server.start())
        except BaseException as error:  # it belongs to who waits
            failed.append(error)
            ready.set()
            return
        ready.set()
        loop.run_forever()

    thread = threading.Thread(target=work, name="lapa-server", daemon=True)
    thread.start()
    ready.wait()
    try:
        if failed:
            raise failed[0]
        yield server
    finally:
        if not failed:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(2 * PATIENCE)
            loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def addresses(server: Server) -> list[str]:
    """Where clients find it."""
    host = f"[{server.where.host}]" if ":" in server.where.host else server.where.host
    lines = [f"openpi, vla-eval   ws://{host}:{server.where.port}",
             f"OpenVLA            http://{host}:{server.where.http_port}/act"]  # fmt: skip
    if not is_loopback(server.where.host):
        lines += [
            "WARNING: other machines can reach this server. Who has the token moves the robot, and what is sent, the",
            "token too, is not encrypted: use it in a network that you trust, or through ssh -L or a VPN.",
        ]
    return lines
