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
    """The server refuses an observation; the message is the server's. The connection is closed."""


class Gone(ConnectionError):
    """There is no server, the connection is lost, or the answer did not come in time."""


@dataclass(frozen=True)
class Answer:
    """A chunk of actions float32 [n, A]; milliseconds from request to answer, and those of the policy alone."""

    actions: np.ndarray
    ms: float
    policy_ms: float


class Client:
    """A connection to ws://HOST:PORT. `about`: the server's metadata; for lapa cameras, state, chunk, rate.

    token    None: the environment variable LAPA_SERVE_TOKEN, if it is set
    timeout  maximum time of an answer, in seconds
    wait     seconds to wait for a server that is not up yet
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
        """Connect, also again after `Gone` or `Refused`. For the server a new episode begins."""
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
        """Close the connection."""
        self._open.close()

    def new_episode(self) -> None:
        """The next observation begins a new episode; a server of lapa then drops the predictions that it averages."""
        self._new = True

    def ask(self, observation: dict[str, Any]) -> Answer:
        """The actions for an observation. Raises Refused and Gone."""
        sent = {**observation, "reset": True} if self._new and "lapa" in self.about else observation
        start = time.perf_counter()
        try:
            self._connection.send(pack(sent))
            reply = self._connection.recv(timeout=self.timeout)
        except TimeoutError:
            self.close()  # a late answer must not be read as the next one
            raise Gone(f"{self.address} did not answer in {self.timeout:g} s.") from None
        except (OSError, WebSocketException) as error:
            raise Gone(f"{self.address} closed the connection ({error}).") from None
        ms = 1000 * (time.perf_counter() - start)
        if isinstance(reply, str):
            raise Refused((reply.strip().splitlines() or [""])[-1])
        told = unpack(reply)
        told = told if isinstance(told, dict) else {}
        try:
            actions = np.asarray(told.get("actions"), np.float32)
        except (ValueError, TypeError, OverflowError):
            actions = np.empty(0, np.float32)
        if actions.ndim != 2 or not actions.size or not np.isfinite(actions).all():
            raise Refused("The server answered without actions [n, A] of finite numbers.")
        self._new = False
        timing = told.get("server_timing")
        policy = timing.get("infer_ms") if isinstance(timing, dict) else None
        return Answer(actions, ms, float(policy) if isinstance(policy, int | float) else np.nan)


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
        raise Gone(f"The server's answer cannot be read ({error}).") from None
