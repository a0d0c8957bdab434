"""One connection to a policy server of the openpi protocol: binary WebSocket, msgpack, arrays of NumPy within."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import InvalidHandshake, WebSocketException
from websockets.sync.client import connect

TOKEN = "LAPA_SERVE_TOKEN"
PARTS = ("__ndarray__", "data", "dtype", "shape")
KINDS = "biuf"  # of arrays that are taken: bool, whole numbers, floats


class Refused(RuntimeError):
    """The server refuses an observation; the message is its sentence. The connection is closed."""


class Gone(ConnectionError):
    """No server answers, or it has gone, or it did not answer in time."""


@dataclass(frozen=True)
class Answer:
    """A chunk of actions float32 [n, A]; milliseconds of the whole way, and of the policy as the server says."""

    actions: np.ndarray
    ms: float
    policy_ms: float


class Client:
    """A server at ws://HOST:PORT. `about` is what it says of itself: of lapa cameras, state, chunk, rate; of others {}.

    token    None: from the environment variable LAPA_SERVE_TOKEN, if it is set
    timeout  seconds that an answer may take
    wait     seconds that the server may take to be there
    """

    def __init__(self, address: str, token: str | None = None, timeout: float = 5.0, wait: float = 10.0) -> None:
        self.address = address if "://" in address else f"ws://{address}"
        self.timeout, self.wait = timeout, wait
        self._token = os.environ.get(TOKEN, "") if token is None else token
        self._open = contextlib.ExitStack()
        self._new = True
        self.about: dict[str, Any] = {}
        self.connect()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connect, again after `Gone` or `Refused`: a new episode for the server."""
        self.close()
        headers = {"Authorization": f"Api-Key {self._token}"} if self._token else {}
        until = time.monotonic() + self.wait
        while True:
            try:
                self._connection = self._open.enter_context(
                    connect(self.address, compression=None, max_size=None, additional_headers=headers, proxy=None)
                )
                told = unpack(self._connection.recv(timeout=self.timeout))
                self.about = told if isinstance(told, dict) else {}
                return
            except InvalidHandshake as error:
                raise Gone(f"{self.address} does not take us ({error}). Does it want a token ({TOKEN})?") from None
            except (OSError, WebSocketException) as error:
                if time.monotonic() >= until:
                    raise Gone(
                        f"No policy server answers at {self.address} ({error or type(error).__name__})."
                    ) from None
                time.sleep(0.2)

    def close(self) -> None:
        """End the connection."""
        self._open.close()

    def new_episode(self) -> None:
        """The next observation begins a new episode (a server of lapa forgets what it averaged)."""
        self._new = True

    def ask(self, observation: dict[str, Any]) -> Answer:
        """What to do now. Raises Refused and Gone."""
        sent = {**observation, "reset": True} if self._new and "lapa" in self.about else observation
        start = time.perf_counter()
        try:
            self._connection.send(pack(sent))
            reply = self._connection.recv(timeout=self.timeout)
        except TimeoutError:
            self.close()  # its answer would be taken for that to the next question
            raise Gone(f"{self.address} did not answer in {self.timeout:g} s.") from None
        except (OSError, WebSocketException) as error:
            raise Gone(f"{self.address} has gone ({error}).") from None
        ms = 1000 * (time.perf_counter() - start)
        if isinstance(reply, str):
            raise Refused((reply.strip().splitlines() or [""])[-1])
        told = unpack(reply)
        if not isinstance(told, dict) or np.ndim(told.get("actions")) != 2 or not np.isfinite(told["actions"]).all():
            raise Refused("The server has answered no actions [n, A] of finite numbers.")
        self._new = False
        timing = told.get("server_timing") or {}
        return Answer(np.asarray(told["actions"], np.float32), ms, float(timing.get("infer_ms", np.nan)))


def pack(value: Any) -> bytes:
    """msgpack, arrays as openpi's servers read them."""

    def arrays(one: Any) -> Any:
        if isinstance(one, np.ndarray) and one.dtype.kind in KINDS:
            values = (True, one.tobytes(), one.dtype.str, one.shape)
            return {part.encode(): value for part, value in zip(PARTS, values, strict=True)}
        if isinstance(one, np.generic) and one.dtype.kind in KINDS:
            return one.item()
        raise TypeError(f"{type(one).__name__} {getattr(one, 'dtype', '')} cannot be sent")

    return msgpack.packb(value, default=arrays)


def unpack(message: bytes | str) -> Any:
    """The inverse of `pack`. Raises Gone for what is no msgpack."""

    def made(one: dict[Any, Any]) -> Any:
        told = {key.decode() if isinstance(key, bytes) else key: value for key, value in one.items()}
        if "__ndarray__" not in told:
            return told
        kind = np.dtype(told["dtype"])
        if kind.kind not in KINDS:
            raise ValueError(f"an array of {kind}")
        return np.frombuffer(told["data"], kind).reshape(told["shape"]).copy()

    try:
        return msgpack.unpackb(message, object_hook=made)
    except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException) as error:
        raise Gone(f"What the server has sent cannot be read ({error}).") from None
