"""A policy server under load and under attack: clients that ask at an even rate, and requests that no client sends.

    python benchmarks/serve_load.py [--clients 50] [--minutes 10] [--hostile 100000] [--rate 1] [--policy runs/policy]

The server is a process of its own. First one client asks alone: what the wire adds to the policy's own time. Then all
clients ask, each `--rate` times a second, and every answer is compared with what the policy says in this process, bit
for bit; at the same time malformed and hostile requests come in, spread over the time. It fails (exit code 1) where a
good client gets a wrong answer or none, where the server's memory grows by more than 5% from the first quarter of the
time to the last, or where the server does not end well. Without --policy it is a policy of the laptop preset that was
not trained, which takes as long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from websockets.asyncio.client import connect

HERE = "127.0.0.1"
SIDE, DIFFERENT, ALONE = 224, 20, 100  # pixels; observations; questions of the client that is alone
GROWTH = 0.05


def served(path: str | None) -> Any:
    """The policy, the same in both processes."""
    import torch

    from lapa.actions.spaces import ActionSpace
    from lapa.commands.serve import Served, opened_policy
    from lapa.contracts import ActionSpec
    from lapa.policies import configured
    from lapa.recipe import preset

    if path:
        return opened_policy(path)
    torch.manual_seed(0)
    policy = configured(preset("laptop")).build().eval()
    policy.grow(ActionSpace.fit(np.random.default_rng(0).normal(size=(500, 7)).astype(np.float32), 16, 1))
    action = ActionSpec(tuple(f"action_{i}" for i in range(7)), ("delta",) * 7, 5.0)
    return Served(policy, policy.spec, action, "laptop", "")


def serve(path: str | None) -> None:
    """The server's process: says its ports on stdout, and goes on until SIGTERM."""
    from lapa.commands.serve import Asked, made_server
    from lapa.serving.server import Where, run

    run(made_server(served(path), Asked(clients=256, queue=256), Where(HERE, 0, 0)))


def observation(number: int) -> dict[str, Any]:
    """One of a few observations, different in all that is looked at."""
    rng = np.random.default_rng(number)
    words = ("push", "lift", "turn")[number % 3], ("red", "blue", "green", "yellow")[number % 4]
    return {
        "observation/image": rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
        "prompt": f"{words[0]} the {words[1]} block",
    }


def packed(value: Any) -> bytes:
    """As openpi's client writes it."""

    def arrays(one: Any) -> Any:
        return {b"__ndarray__": True, b"data": one.tobytes(), b"dtype": one.dtype.str, b"shape": one.shape}

    return msgpack.packb(value, default=arrays)


def actions_of(reply: Any) -> np.ndarray:
    """[n, A] of a reply."""
    told = msgpack.unpackb(reply)["actions"]
    return np.frombuffer(told[b"data"], told[b"dtype"]).reshape(told[b"shape"])


class Load:
    """What is sent, and what comes of it."""

    def __init__(self, ports: tuple[int, int], wanted: list[np.ndarray]) -> None:
        self.ports, self.wanted = ports, wanted
        self.messages = [packed(observation(i)) for i in range(DIFFERENT)]
        self.times: list[tuple[float, float]] = []
        self.wrong: list[str] = []
        self.refusals: Counter[str] = Counter()

    # --- good clients

    async def client(self, until: float, pause: float, count: int | None = None) -> None:
        """A robot: asks, compares, waits."""
        await asyncio.sleep(random.random() * pause)
        try:
            async with connect(f"ws://{HERE}:{self.ports[0]}", compression=None, max_size=None, proxy=None) as wire:
                await wire.recv()
                while time.monotonic() < until and (count is None or count > 0):
                    number = random.randrange(DIFFERENT)
                    start = time.perf_counter()
                    await wire.send(self.messages[number])
                    reply = await asyncio.wait_for(wire.recv(), 60)
                    ms = 1000 * (time.perf_counter() - start)
                    if isinstance(reply, str):
                        self.wrong.append(f"refused: {reply}")
                        return
                    if not np.array_equal(actions_of(reply), self.wanted[number]):
                        self.wrong.append("a wrong answer")
                    self.times.append((ms, msgpack.unpackb(reply)["server_timing"]["infer_ms"]))
                    count = None if count is None else count - 1
                    await asyncio.sleep(max(0.0, pause - ms / 1000))
        except Exception as error:  # a good client that loses its connection is what is looked for
            self.wrong.append(f"{type(error).__name__}: {error}")

    # --- bad ones

    async def attacker(self, counts: list[int], until: float, total: int) -> None:
        """Sends one bad request after another, spread over the time."""
        begun = time.monotonic()
        while counts[0] < total:
            due = total * (time.monotonic() - begun) / max(1e-6, until - begun)
            if counts[0] >= due:
                await asyncio.sleep(0.005)
                continue
            counts[0] += 1
            name, bad = random.choice(BAD)
            try:
                self.refusals[f"{name}: {await asyncio.wait_for(bad(self), 30)}"] += 1
            except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError) as error:
                self.refusals[f"{name}: {type(error).__name__}"] += 1
                if isinstance(error, TimeoutError):
                    self.wrong.append(f"{name}: no answer in 30 s")

    async def socket_says(self, message: bytes | str) -> str:
        """What becomes of a message over a WebSocket."""
        from websockets.exceptions import ConnectionClosed

        try:
            async with connect(f"ws://{HERE}:{self.ports[0]}", compression=None, max_size=None, proxy=None) as wire:
                await wire.recv()
                await wire.send(message)
                reply = await wire.recv()
                if not isinstance(reply, str) and msgpack.unpackb(reply).get("type") != "error":
                    self.wrong.append(f"taken: {message[:60]!r}")
                return "one sentence"
        except ConnectionClosed as closed:
            return f"closed {closed.rcvd.code if closed.rcvd else ''}"

    async def raw_says(self, text: bytes, port: int = 1, leave: bool = False) -> str:
        """What is answered to these bytes; `leave`: go away at once."""
        reader, writer = await asyncio.open_connection(HERE, self.ports[port])
        try:
            writer.write(text)
            await writer.drain()
            if leave:
                return "left"
            line = (await reader.readline()).decode("latin-1").strip()
            if " 200 " in line:
                self.wrong.append(f"taken: {text[:60]!r}")
            return line or "closed"
        finally:
            writer.close()


def post(body: bytes, more: bytes = b"") -> bytes:
    """A request to /act."""
    return b"POST /act HTTP/1.1\r\n" + more + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body


def array(dtype: str, shape: list[int], data: bytes = b"\0" * 12) -> bytes:
    """An observation whose picture says this."""
    told = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return msgpack.packb({"image": told, "prompt": "x"})


def socketed(message: bytes | str) -> Callable[[Load], Awaitable[str]]:
    return lambda load: load.socket_says(message)


def raw(text: bytes, port: int = 1, leave: bool = False) -> Callable[[Load], Awaitable[str]]:
    return lambda load: load.raw_says(text, port, leave)


PICKLE = b"\x80\x04\x95\x17\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R."
BAD: list[tuple[str, Callable[[Load], Awaitable[str]]]] = [
    ("no msgpack", socketed(b"\xc1\xc1")),
    ("random bytes", lambda load: load.socket_says(b"\xc1" + random.randbytes(random.randrange(5000)))),
    ("text", socketed("hello")),
    ("half a message", socketed(packed(observation(0))[:-100])),
    ("a pickle", socketed(PICKLE)),
    ("objects", socketed(array("|O", [1]))),
    ("a huge shape", socketed(array("<f4", [2**31 - 1] * 4))),
    ("a shape that does not fit", socketed(array("|u1", [3, 3, 3]))),
    ("deep", socketed(b"\x91" * 100_000)),
    ("a map that says it is long", socketed(b"\xdf\xff\xff\xff\xff\x00")),
    ("empty maps", socketed(b"\xdc\xff\xff" + b"\x80" * 65535)),
    ("a state of text", socketed(msgpack.packb({"prompt": "x", "state": "y"}))),
    ("a long instruction", socketed(msgpack.packb({"prompt": "x" * 60_000}))),
    ("vla-eval without pictures", socketed(msgpack.packb({"type": "observation", "payload": {}, "seq": 1}))),
    ("a grey picture", socketed(array("|u1", [3, 4], b"\0" * 12))),
    ("no JSON", raw(post(b"{"))),
    ("a pickle in HTTP", raw(post(PICKLE))),
    ("deep JSON", raw(post(b"[" * 50_000))),
    ("objects in JSON", raw(post(b'{"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}}'))),
    ("no length", raw(b"POST /act HTTP/1.1\r\n\r\n")),
    ("a huge length", raw(b"POST /act HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")),
    ("a web page", raw(post(b"{}", b"Origin: http://evil.example\r\n"))),
    ("another path", raw(b"GET /../../etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n")),
    ("no HTTP", raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")),
    ("leaves at once", raw(b"", leave=True)),
    ("leaves in the middle", raw(b"POST /act HTTP/1.1\r\nContent-Length: 900\r\n\r\n{", leave=True)),
    ("leaves the handshake", raw(b"GET / HTTP/1.1\r\nUpgra", port=0, leave=True)),
    ("no HTTP to WebSocket", raw(b"\0\1\2\3\r\n\r\n", port=0)),
]  # fmt: skip


def memory(process: int) -> float:
    """MB that a process has in memory."""
    (line,) = (one for one in Path(f"/proc/{process}/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def measured(load: Load, process: int, told: argparse.Namespace) -> list[float]:
    """Run it all; the server's memory, once a second."""
    await load.client(time.monotonic() + 600, 0.0, ALONE)
    alone = np.array(load.times[10:])
    extra = alone[:, 0] - alone[:, 1]
    print(f"One client, {SIDE} px: an answer in {spread(alone[:, 0])} ms; the policy {spread(alone[:, 1])} ms; "
          f"the wire adds {spread(extra)} ms.", flush=True)  # fmt: skip
    load.times.clear()
    until, counts, seen = time.monotonic() + 60 * told.minutes, [0], list[float]()

    async def watch() -> None:
        while time.monotonic() < until:
            seen.append(memory(process))
            await asyncio.sleep(1)

    good = [load.client(until, 1 / told.rate) for _ in range(told.clients)]
    bad = [load.attacker(counts, until, told.hostile) for _ in range(16)]
    await asyncio.gather(*good, *bad, watch())
    return seen


def spread(values: np.ndarray) -> str:
    """Median and 99th percentile."""
    return "{:.1f} (p99 {:.1f})".format(*np.percentile(values, (50, 99)))


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--hostile", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=1.0, help="questions a second of each client")
    parser.add_argument("--policy")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.serve:
        serve(told.policy)
        return 0
    policy = served(told.policy)
    camera = policy.spec.cameras[0]
    shown = [observation(i) for i in range(DIFFERENT)]
    wanted = [
        policy.act({"images": {camera: one["observation/image"]}, "instruction": one["prompt"]}, 0) for one in shown
    ]
    command = [sys.executable, __file__, "--serve", *(("--policy", told.policy) if told.policy else ())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ports: list[int] = []
        while len(ports) < 2:
            line = process.stderr.readline()
            if not line:
                print("The server did not start.")
                return 1
            if "://" in line:
                ports.append(int(line.rpartition(":")[2].partition("/")[0]))
        os.set_blocking(process.stderr.fileno(), False)
        load = Load((ports[0], ports[1]), wanted)
        try:
            used = asyncio.run(drained(measured(load, process.pid, told), process))
        finally:
            process.send_signal(signal.SIGTERM)
        ended = process.wait(30)
    return judged(load, used, ended, told)


async def drained(work: Awaitable[list[float]], process: subprocess.Popen[str]) -> list[float]:
    """Do the work; read what the server logs, so that it never waits for us."""
    assert process.stderr is not None
    task, lines = asyncio.ensure_future(work), 0
    while not task.done():
        while process.stderr.readline():
            lines += 1
        await asyncio.wait([task], timeout=0.2)
    print(f"The server has logged {lines} lines.")
    return await task


def judged(load: Load, seen: list[float], ended: int, told: argparse.Namespace) -> int:
    """Print the figures; 1 where something was wrong."""
    times = np.array(load.times)
    quarter = max(1, len(seen) // 4)
    first, last = float(np.median(seen[:quarter])), float(np.median(seen[-quarter:]))
    print(f"{told.clients} clients, {60 * told.minutes:g} s: {len(times):,} answers in {spread(times[:, 0])} ms; the "
          f"policy {spread(times[:, 1])} ms. Wrong or none: {len(load.wrong)}.")  # fmt: skip
    print(f"{sum(load.refusals.values()):,} bad requests of {len(BAD)} kinds. Memory {first:.0f} MB, at the end "
          f"{last:.0f} ({last / first - 1:+.1%}). Exit code {ended}.")  # fmt: skip
    for name, count in sorted(load.refusals.items()):
        print(f"  {name:<70} {count:>7,}")
    for sentence, count in Counter(load.wrong).most_common(10):
        print(f"  WRONG {count} times: {sentence}")
    print(json.dumps({"answers": len(times), "wrong": len(load.wrong), "hostile": sum(load.refusals.values()),
                      "memory_mb": [first, last], "exit": ended, "ms": np.percentile(times[:, 0], (50, 99)).tolist(),
                      "policy_ms": np.percentile(times[:, 1], (50, 99)).tolist(),
                      "cores": os.cpu_count(), "host": socket.gethostname()}))  # fmt: skip
    return int(bool(load.wrong) or last > first * (1 + GROWTH) or ended != 0)


if __name__ == "__main__":
    sys.exit(main())
