"""OpenVLA's protocol: POST /act with an observation in JSON, arrays as json-numpy writes them; the answer is an action.

    {"image": [H, W, 3], "instruction": "..", "unnorm_key"?}          -> the next action, [A]           (OpenVLA)
    {"full_image": .., "state": .., "instruction": ".."}              -> a list of actions, [A] each    (OpenVLA-OFT)
    {"encoded": "the same as a text of JSON"}                         -> the answer as a text of JSON

The protocol has no episodes: every request is answered by itself, and nothing is averaged. A fault is a status of 4xx
or 5xx with {"error": one sentence}. A request needs a Content-Length and must arrive within some seconds.
"""

from __future__ import annotations

import asyncio
import http
import http.client
import io
import re
from typing import Any

from lapa.serving import Fault
from lapa.serving.service import Service
from lapa.serving.sockets import HEALTH, SLOW
from lapa.serving.wire import pack_json, unpack_json

LONGEST_HEAD = 16 * 1024
IN_TIME, IDLE, LINGER = 20.0, 60.0, 1.0  # seconds: for a whole request, until the next one, to receive the answer
LINE = re.compile(rb"([A-Z]{1,10}) (/[\x21-\x7e]{0,1000}) HTTP/1\.[01]")
OFT = "full_image"


class Http:
    """Handles the HTTP connections."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.open: set[asyncio.Task[Any]] = set()
        self.busy: set[asyncio.Task[Any]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        try:
            crowded = len(self.open) > self.service.clients
            while await self._one(reader, writer, task, crowded):
                pass
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client disconnected, or sends nothing more
        except asyncio.CancelledError:
            if not self.service.draining:  # else it is Server.stop that ends a client who waits
                raise
        finally:
            self.open.discard(task)
            self.busy.discard(task)
            await _closed(reader, writer)

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[Any], crowded: bool
    ) -> bool:
        """Answer one request. Returns whether the connection stays."""
        stays = False
        try:
            async with asyncio.timeout(IDLE):
                first = await reader.readexactly(1)
            self.busy.add(task)
            async with asyncio.timeout(IN_TIME):
                method, path, headers = await _head(reader, first)
                if crowded:
                    raise Fault("Too many clients are connected; come again later.", 503)
                if method == "GET" and path in HEALTH:
                    stays = _stays(headers)
                    await _write(writer, 200, HEALTH[path].encode(), stays, "text/plain")
                    return stays
                body = await self._body(reader, writer, method, path, headers)
            stays = _stays(headers)
            answer = await self._act(body)
        except Fault as error:
            host = writer.get_extra_info("peername") or ("a client", 0)
            sentence = self.service.fault(error, f"{host[0]}:{host[1]}")
            stays = stays and error.status < 500
            await _write(writer, error.status, pack_json({"error": sentence}).encode(), stays)
        else:
            stays = stays and not self.service.draining
            await _write(writer, 200, answer.encode(), stays)
        finally:
            self.busy.discard(task)
        return stays

    async def _body(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, headers: Any
    ) -> bytes:
        """The body, read after the head has been checked."""
        if path != "/act":
            raise Fault("There is POST /act, and GET /healthz.", 404)
        if method != "POST":
            raise Fault("POST an observation to /act.", 405)
        if fault := self.service.turned_away(headers):
            raise fault
        length = headers.get("Content-Length", "")
        if headers.get("Transfer-Encoding") or not length.isascii() or not length.isdigit():
            raise Fault("Say in Content-Length how long the request is.", 411)
        if len(length) > 12 or int(length) > self.service.largest:
            raise Fault(f"A request has at most {self.service.largest:,} bytes.", 413)
        if headers.get("Expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return await reader.readexactly(int(length))

    async def _act(self, body: bytes) -> str:
        told = await self.service.read(unpack_json, body)
        if not isinstance(told, dict):
            raise Fault(f"An observation is an object of JSON; got {type(told).__name__}.")
        encoded = "encoded" in told
        if encoded:
            if len(told) != 1 or not isinstance(told["encoded"], str):
                raise Fault('"encoded" stands alone, with a text of JSON.')
            told = await self.service.read(unpack_json, told["encoded"])
            if not isinstance(told, dict):
                raise Fault(f"An observation is an object of JSON; got {type(told).__name__}.")
        told.pop("unnorm_key", None)  # whose statistics an action is scaled by; lapa's policies know their own
        session = self.service.session(follows=False)
        try:
            actions, _ = await self.service.act(told, session)
        finally:
            self.service.asked.forget([session.number])
        made = pack_json(list(actions) if OFT in told else actions[0])
        return pack_json(made) if encoded else made


async def _head(reader: asyncio.StreamReader, first: bytes) -> tuple[str, str, Any]:
    """Method, path and headers. Raises Fault."""
    try:
        head = first + await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise Fault(f"The head of a request has at most {LONGEST_HEAD:,} bytes.", 431) from None
    line, _, rest = head.partition(b"\r\n")
    found = LINE.fullmatch(line)
    if found is None:
        raise Fault("This is no request of HTTP/1.1.", 400)
    try:
        headers = http.client.parse_headers(io.BytesIO(rest))
    except http.client.HTTPException:
        raise Fault("The headers cannot be read.", 431) from None
    if any(len(headers.get_all(name, [])) > 1 for name in ("Content-Length", "Authorization", "Host")):
        raise Fault("A header is there twice.", 400)
    return found[1].decode(), found[2].decode().partition("?")[0], headers


def _stays(headers: Any) -> bool:
    return "close" not in headers.get("Connection", "").lower()


async def _closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close. A client that is still sending would lose the answer, so its data are read and dropped for a second."""
    try:
        if writer.can_write_eof():
            writer.write_eof()
        async with asyncio.timeout(LINGER):
            while await reader.read(LONGEST_HEAD):
                pass
    except (OSError, TimeoutError):
        pass  # the client disconnected, or still sends
    writer.close()


async def _write(
    writer: asyncio.StreamWriter, status: int, body: bytes, stays: bool, kind: str = "application/json"
) -> None:
    lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", f"Content-Type: {kind}",
             f"Content-Length: {len(body)}", f"Connection: {'keep-alive' if stays else 'close'}"]  # fmt: skip
    if status == 503:
        lines.append("Retry-After: 1")
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    async with asyncio.timeout(SLOW):
        await writer.drain()
