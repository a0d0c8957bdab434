"""A served policy of the tests' own: what it answers can be computed by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgpack
import numpy as np
from websockets.sync.client import ClientConnection, connect

from lapa.contracts import ActionSpec, Array, LapaError, Observation, PolicySpec
from lapa.serving.answers import Asked, Manner
from lapa.serving.keys import Keys, keys_of
from lapa.serving.limits import limits_of
from lapa.serving.server import Server, Where, running
from lapa.serving.service import Log, Service
from lapa.serving.sockets import hello

ACTION = ActionSpec(("x", "y", "grip"), ("absolute", "delta", "binary"), 10.0)
SPEC = PolicySpec(("top", "wrist"), ("x", "y", "grip"), ACTION, chunk=4, execute=2)
ANY = Where("127.0.0.1", 0, 0)
ONE_CAMERA = PolicySpec(("image",), (), ACTION, chunk=4, execute=2)


def answer(observation: Observation, spec: PolicySpec = SPEC) -> Array:
    """A chunk [4, 3] that depends on every picture, the state and the words, and on where in the chunk it is."""
    bright = sum((i + 1) * float(observation["images"][camera].mean()) for i, camera in enumerate(spec.cameras))
    state = float(np.sum(observation.get("state", 0)))
    first = np.array([bright / 1000, state + len(observation["instruction"]) / 100, bright > 100])
    return np.stack([first + np.array([i / 10, i, 0]) for i in range(spec.chunk)]).astype(np.float32)


class Policy:
    """Answers by `answer`; fails on the words "fail" and "crash", waits for `gate` on "wait"."""

    def __init__(self, spec: PolicySpec = SPEC, gate: Any = None) -> None:
        self.spec, self.gate = spec, gate
        self.asked: list[tuple[Observation, int]] = []
        self.forgotten: list[int] = []

    def act(self, observation: Observation, episode: int) -> Array:
        self.asked.append((observation, episode))
        if observation["instruction"] == "fail":
            raise LapaError("This policy does not do that.")
        if observation["instruction"] == "crash":
            raise ZeroDivisionError("/secret/path.py")
        if observation["instruction"] == "nan":
            return np.full((4, 3), np.nan, np.float32)
        if observation["instruction"] == "wait":
            self.gate.wait(20)
        return answer(observation, self.spec)

    def forget(self, ids: Sequence[int]) -> None:
        self.forgotten += ids


def made(
    policy: Policy | None = None, keys: Keys | str = "", token: str = "", limits: Sequence[str] = (),
    steps: Sequence[str] = (), execute: int | None = None, ensemble: float | None = None, waiting: int = 8,
    lines: list[str] | None = None, where: Where = ANY, echo: bool = False, **more: Any,
) -> Server:  # fmt: skip
    """A server of the policy; `lines` are given what it logs, stdout as well with `echo`."""
    policy = policy or Policy()
    spec, said = policy.spec, [] if lines is None else lines
    assert spec.action is not None
    log = Log(partial(print, flush=True) if echo else said.append)
    known = keys_of(spec, keys, say=log.once) if isinstance(keys, str) else keys
    how = Manner(spec.action, limits_of(spec, spec.action, limits, steps), spec.chunk, spec.execute, execute, ensemble)
    expects = {
        "cameras": {name: f"images/{name}" for name in spec.cameras},
        "state": ["state"],
        "instruction": "prompt",
    }
    action = {"names": spec.action.names, "kinds": spec.action.kinds, "hz": spec.action.hz}
    about = {"lapa": "0", "cameras": spec.cameras, "state": spec.state, "action": action, "chunk": how.sent,
             "execute": how.executed, "expects": expects}  # fmt: skip
    asks = Asked(policy.act, waiting, policy.forget, lambda error: said.append(f"trouble: {error!r}"))
    service = Service(known, asks, how, hello(about, len(spec.cameras), True), log, token, **more)
    return Server(service, where)


@contextmanager
def served(policy: Policy | None = None, **more: Any) -> Iterator[Server]:
    """The server of `made`, running on free ports of this machine."""
    with running(made(policy, **more)) as server:
        yield server


def packed(value: Any, text: bool = False) -> bytes:
    """msgpack as openpi's client writes it (`text`: as vla-eval's does), written here once more."""

    def default(one: Any) -> Any:
        if isinstance(one, np.ndarray):
            parts = {"__ndarray__": True, "data": one.tobytes(), "dtype": one.dtype.str, "shape": one.shape}
        elif isinstance(one, np.generic):
            parts = {"__npgeneric__": True, "data": one.item(), "dtype": one.dtype.str}
        else:
            raise TypeError(type(one))
        return parts if text else {key.encode(): part for key, part in parts.items()}

    return msgpack.packb(value, default=default)


def unpacked(message: bytes | str) -> Any:
    """The inverse, as openpi's client reads it."""
    assert isinstance(message, bytes), message

    def hook(one: dict[Any, Any]) -> Any:
        for keys in (("__ndarray__", "data", "dtype", "shape"), (b"__ndarray__", b"data", b"dtype", b"shape")):
            if keys[0] in one:
                return np.ndarray(buffer=one[keys[1]], dtype=np.dtype(one[keys[2]]), shape=one[keys[3]])
        return one

    return msgpack.unpackb(message, object_hook=hook)


@contextmanager
def connected(server: Server, token: str = "", **more: Any) -> Iterator[tuple[ClientConnection, dict[str, Any]]]:
    """A client as openpi's: no compression, the metadata read."""
    headers = {"Authorization": f"Api-Key {token}"} if token else {}
    address = f"ws://127.0.0.1:{server.where.port}"
    with connect(address, compression=None, max_size=None, additional_headers=headers | more, proxy=None) as made:
        yield made, unpacked(made.recv(timeout=10))


def asked(connection: ClientConnection, observation: dict[str, Any]) -> dict[str, Any]:
    """One question and its answer."""
    connection.send(packed(observation))
    found: dict[str, Any] = unpacked(connection.recv(timeout=10))
    return found


def seen(number: int = 0, size: int = 8) -> Observation:
    """An observation as the policy gets it."""
    rng = np.random.default_rng(number)
    images = {camera: rng.integers(0, 256, (size, size + 2, 3), np.uint8) for camera in SPEC.cameras}
    state = rng.normal(size=3).astype(np.float32)
    return Observation(images=images, instruction=f"take {number}", state=state)
