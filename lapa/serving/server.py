"""The server: two ports in one process and one event loop; start and stop.

By default it listens on this machine only (loopback). For any other address it needs a token and prints a warning,
because the connection is not encrypted and its actions move a robot.
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
from lapa.serving.sockets import Sockets, connection_that_points_to

LOOPBACK = "127.0.0.1"
SHORTEST_TOKEN = 16  # characters
PATIENCE = 10.0  # seconds for open requests when the server stops
HANDSHAKE, PING, PONG = 10.0, 20.0, 60.0  # seconds: for the handshake, between pings, for the answer to one


@dataclass(frozen=True)
class Where:
    """Where the server listens. Port 0 stands for any free port."""

    host: str = LOOPBACK
    port: int = 8000
    http_port: int = 8001

    def __post_init__(self) -> None:
        for option, port in (("--port", self.port), ("--http-port", self.http_port)):
            if not 0 <= port <= 65535:
                raise LapaError(f"{option} is a number from 0 to 65535, not {port}.")


def require_safe(where: Where, token: str) -> None:
    """Raise LapaError for an address other than loopback without a token, and for a token that is easily guessed."""
    if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise LapaError(f"A token has at least {SHORTEST_TOKEN} characters of ASCII and no spaces, such as the output "
                        "of `openssl rand -hex 16`.")  # fmt: skip
    if not token and not is_loopback(where.host):
        raise LapaError(
            f"--host {where.host} lets other machines move the robot. Give a token: --token-file FILE, or the "
            "environment variable LAPA_SERVE_TOKEN. (Or leave --host out, and use ssh -L.)"
        )


def is_loopback(host: str) -> bool:
    """Can only this machine reach this address?"""
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
        quiet.setLevel(logging.CRITICAL)  # it logs a traceback for every failed handshake
        opened = _listening(self.where.host, self.where.port, "--port")
        try:
            other = _listening(self.where.host, self.where.http_port, "--http-port")
        except LapaError:
            opened.close()
            raise
        sockets = await serve(
            self._sockets.handle, sock=opened, process_request=self._sockets.before, compression=None,
            max_size=self.service.largest, max_queue=1, open_timeout=HANDSHAKE, ping_interval=PING, ping_timeout=PONG,
            server_header=None, logger=quiet, create_connection=connection_that_points_to(other.getsockname()[1]),
        )  # fmt: skip
        http = await asyncio.start_server(self._http.handle, sock=other, limit=LONGEST_HEAD)
        self._servers = sockets, http
        self.where = Where(self.where.host, opened.getsockname()[1], other.getsockname()[1])

    async def stop(self) -> None:
        """Refuse new requests, answer the open ones, then close."""
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
        if error.errno == errno.EADDRINUSE:
            raise LapaError(f"{option} {port} of {host} is in use; choose another.") from None
        wrong = f"{option} {port}" if error.errno in (errno.EACCES, errno.EPERM) else f"--host {host}"
        raise LapaError(f"{wrong} cannot be used ({(error.strerror or str(error)).partition(' (')[0]}).") from None


def run(server: Server) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer the open requests and stop."""

    async def serving() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, stopped.set)
        await server.start()
        server.service.log.say("\n  ".join(["Ready.", *addresses(server)]))
        await stopped.wait()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)  # a second signal ends the process at once
        server.service.log.say("Stopping. New requests are refused, open ones are answered.")
        await server.stop()
        service = server.service
        server.service.log.say(
            f"Stopped. {service.answered:,} observations were answered, {service.refused:,} refused."
        )

    asyncio.run(serving())


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server in a thread of its own, until the with-block ends."""
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
            "WARNING: other machines can reach this server. Anyone with the token can move the robot. Nothing is",
            "encrypted, not even the token: use a network that you trust, ssh -L or a VPN.",
        ]
    return lines
