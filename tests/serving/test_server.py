"""The server as its clients meet it: three protocols, faults, who may ask, and what one client cannot do to others."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_made import (
    ACTION,
    ONE_CAMERA,
    SPEC,
    Policy,
    answer,
    asked,
    connected,
    packed,
    seen,
    served,
    unpacked,
)
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from lapa.contracts import LapaError, Observation, PolicySpec
from lapa.serving import sockets
from lapa.serving.server import Server, Where, is_loopback, require_safe, running

TOKEN = "0123456789abcdef-secret"


def sent(observation: Observation) -> dict[str, Any]:
    """An observation as a client of openpi sends it."""
    return {"images": dict(observation["images"]), "state": observation["state"], "prompt": observation["instruction"]}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(gate=threading.Event())


@pytest.fixture(scope="module")
def server(policy: Policy, lines: list[str]) -> Iterator[Server]:
    with served(policy, lines=lines, largest=200_000) as made:
        yield made


# --- openpi


def test_openpi(server: Server) -> None:
    with connected(server) as (connection, about):
        assert about["chunk"] == 4
        assert about["cameras"] == ["top", "wrist"]
        for number in range(3):
            found = asked(connection, sent(seen(number)))
            np.testing.assert_array_equal(found["actions"], answer(seen(number)))
            assert found["actions"].dtype == np.float32
            timing = found["server_timing"]
            assert timing["infer_ms"] >= 0
            assert ("prev_total_ms" in timing) == (number > 0)


def test_every_array_of_a_reply_has_the_chunk_first(server: Server) -> None:
    """openpi's ActionChunkBroker takes row i of each."""
    with connected(server) as (connection, _):
        found = asked(connection, sent(seen()))
        arrays = [value for value in found.values() if isinstance(value, np.ndarray)]
        assert arrays
        assert all(len(array) == 4 for array in arrays)


FAULTS: dict[str, Any] = {
    "no msgpack": b"\xc1",
    "text": "hello",
    "a list": packed([1, 2]),
    "no cameras": packed({"prompt": "x", "state": [1, 2, 3]}),
    "a pickle": b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
    "objects": packed(sent(seen())).replace(b"|u1", b"|O8"),
    "refused by the policy": packed(sent(seen()) | {"prompt": "fail"}),
    "a crash": packed(sent(seen()) | {"prompt": "crash"}),
    "not finite": packed(sent(seen()) | {"prompt": "nan"}),
    "a wrong state": packed(sent(seen()) | {"state": np.float32([1, 2])}),
    "an episode that is no number": packed(sent(seen()) | {"episode": "one"}),
    "a reset that is neither true nor false": packed(sent(seen()) | {"reset": 1}),
    "a robot that is no text": packed(sent(seen()) | {"embodiment": np.zeros(2)}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_sentence_then_1011_and_others_go_on(name: str, server: Server, lines: list[str]) -> None:
    with connected(server) as (good, _), connected(server) as (bad, _):
        bad.send(FAULTS[name])
        said = bad.recv(timeout=10)
        assert isinstance(said, str)
        assert "\n" not in said
        assert 10 < len(said) < 500
        for secret in ("Traceback", "/secret", ".py", "lapa/"):
            assert secret not in said
        with pytest.raises(ConnectionClosed) as closed:
            bad.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
        np.testing.assert_array_equal(asked(good, sent(seen(5)))["actions"], answer(seen(5)))
    assert name != "a crash" or any("ZeroDivisionError" in line for line in lines)


def test_a_message_that_is_too_large_ends_its_connection_alone(server: Server) -> None:
    with connected(server) as (good, _), connected(server) as (bad, _):
        bad.send(b"\xc6\xff\xff\xff\xff" + b"x" * 300_000)
        with pytest.raises(ConnectionClosed) as closed:
            bad.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert asked(good, sent(seen()))["actions"].shape == (4, 3)


def test_episodes_of_one_connection_and_new_ones(policy: Policy, server: Server) -> None:
    with connected(server) as (connection, _):
        for episode, reset in ((1, False), (2, False), (1, False), (2, True)):
            asked(connection, sent(seen()) | {"episode": episode} | ({"reset": True} if reset else {}))
        one, two, again, new = (number for _, number in policy.asked[-4:])
        assert one == again
        assert len({one, two, new}) == 3
        assert two in policy.forgotten
    until = time.monotonic() + 10
    while not {one, new} <= set(policy.forgotten) and time.monotonic() < until:
        time.sleep(0.01)
    assert {one, new} <= set(policy.forgotten), "forgotten when the client goes"


def test_an_episode_that_was_forgotten_does_not_go_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the policy, or ensembling, remembered of it is lost. `lapa evaluate` runs no more side by side."""
    monkeypatch.setattr(sockets, "EPISODES", 2)
    with connected(server) as (connection, _):
        for episode in (1, 2, 3):
            asked(connection, sent(seen()) | {"episode": episode})
        assert asked(connection, sent(seen()) | {"episode": 2})["actions"].shape == (4, 3)
        assert asked(connection, sent(seen()) | {"episode": 1, "reset": True})["actions"].shape == (4, 3)
        connection.send(packed(sent(seen()) | {"episode": 3}))
        assert re.search(r"Episode 3 has been forgotten.* 2 side by side", str(connection.recv(timeout=10)))


# --- vla-eval


def message(kind: Any, payload: Any, seq: int = 0) -> bytes:
    return packed({"type": kind, "payload": payload, "seq": seq, "timestamp": 0.0}, text=True)


def test_vla_eval(policy: Policy, server: Server) -> None:
    with connected(server) as (connection, about):
        connection.send(message("hello", {"harness_version": "0.8.0", "protocol_version": 1}, 1))
        assert about["type"] == "hello"
        assert about["payload"]["observation_params"] == {"send_wrist_image": True, "send_state": True}
        assert {"seq", "timestamp"} <= set(about)
        for episode in range(2):
            connection.send(message("episode_start", {"task": {"name": "x"}}, 2))
            for step in range(5):
                observation = seen(10 * episode + step)
                payload = {"images": dict(observation["images"]), "states": observation["state"],
                           "task_description": observation["instruction"]}  # fmt: skip
                connection.send(message("observation", payload, 100 + step))
                reply = unpacked(connection.recv(timeout=10))
                assert (reply["type"], reply["seq"]) == ("action", 100 + step)
                when = step - step % 2  # two actions of an answer are carried out
                np.testing.assert_array_equal(reply["payload"]["actions"], answer(seen(10 * episode + when))[step % 2])
            connection.send(message("episode_end", {}, 9))


def test_a_fault_of_vla_eval_keeps_the_connection(server: Server) -> None:
    with connected(server) as (connection, _):
        observation = seen(1)
        good = {"images": dict(observation["images"]), "state": observation["state"], "task_description": "take 1"}
        for payload in ({}, good | {"task_description": "crash"}, good | {"state": "x"}):
            connection.send(message("observation", payload, 7))
            reply = unpacked(connection.recv(timeout=10))
            assert (reply["type"], reply["seq"]) == ("error", 7)
            assert "Traceback" not in reply["payload"]["error"]
        for kind in ("dance", np.zeros(2)):
            connection.send(message(kind, {}, 8))
            assert unpacked(connection.recv(timeout=10))["type"] == "error"
        connection.send(message("observation", good, 9))
        np.testing.assert_array_equal(unpacked(connection.recv(timeout=10))["payload"]["actions"], answer(seen(1))[0])


# --- OpenVLA


def numpy_json(value: Any) -> Any:
    """As the package json-numpy writes it, written here once more."""
    if isinstance(value, np.ndarray):
        data = base64.b64encode(value.tobytes()).decode()
        return {"__numpy__": data, "dtype": value.dtype.str, "shape": list(value.shape)}
    raise TypeError(type(value))


def of_json(text: str | bytes) -> Any:
    def hook(one: dict[str, Any]) -> Any:
        if "__numpy__" not in one:
            return one
        return np.frombuffer(base64.b64decode(one["__numpy__"]), one["dtype"]).reshape(one["shape"])

    return json.loads(text, object_hook=hook)


def post(server: Server, body: Any, path: str = "/act", **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body, default=numpy_json).encode()
    address = f"http://127.0.0.1:{server.where.http_port}{path}"
    request = urllib.request.Request(address, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, of_json(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, of_json(error.read())


def test_openvla() -> None:
    with served(Policy(ONE_CAMERA)) as server:
        picture = seen(3)["images"]["top"]
        wanted = answer(Observation(images={"image": picture}, instruction="lift"), ONE_CAMERA)
        body = {"image": picture, "instruction": "lift", "unnorm_key": "bridge_orig"}
        status, action = post(server, body)
        assert status == 200
        np.testing.assert_array_equal(action, wanted[0])
        status, text = post(server, {"encoded": json.dumps(body, default=numpy_json)})
        assert status == 200
        assert isinstance(text, str)
        np.testing.assert_array_equal(of_json(text), wanted[0])
        status, action = post(server, {"image": picture.tolist(), "instruction": "lift"})
        np.testing.assert_array_equal(action, wanted[0])


def test_openvla_oft(server: Server) -> None:
    with served(Policy(), keys="libero") as server:
        shown = seen(4)
        body = {"full_image": shown["images"]["top"], "left_wrist_image": shown["images"]["wrist"],
                "state": shown["state"], "instruction": shown["instruction"]}  # fmt: skip
        status, actions = post(server, body)
        assert status == 200
        assert isinstance(actions, list)
        np.testing.assert_array_equal(np.stack(actions), answer(shown))


BODIES: dict[str, Any] = {
    "nothing": b"", "no JSON": b"{", "a list": [], "a number": b"3", "no picture": {"instruction": "x"},
    "a pickle": b"\x80\x04\x95.", "encoded and more": {"encoded": "{}", "x": 1}, "encoded wrongly": {"encoded": "{"},
    "half a letter": {"encoded": "\ud800"},
    "encoded is a list": {"encoded": "[]"}, "encoded is a number": {"encoded": 3}, "deep": b"[" * 100_000,
    "objects": {"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}, "instruction": "x"},
    "crash": sent(seen()) | {"prompt": "crash"}, "not finite": sent(seen()) | {"prompt": "nan"},
    "a state too large for a float": sent(seen()) | {"state": [10**400, 0, 0]},
    "a picture too large for a float": sent(seen()) | {"images": {"top": [[[10**400, 0, 0]]], "wrist": [[[0, 0, 0]]]}},
    "a robot that is no text": sent(seen()) | {"embodiment": np.zeros(2)},
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_fault_of_http_is_a_status_and_a_sentence(name: str, server: Server) -> None:
    status, said = post(server, BODIES[name])
    assert status == (500 if name in ("crash", "not finite") else 413 if name == "never" else 400)
    assert set(said) == {"error"}
    assert "Traceback" not in said["error"]
    assert "\n" not in said["error"]


def raw(server: Server, text: bytes, wait: float = 10) -> bytes:
    """What the HTTP port answers to these bytes."""
    with socket.create_connection(("127.0.0.1", server.where.http_port), wait) as connection:
        connection.sendall(text)
        found = b""
        try:
            while more := connection.recv(65536):
                found += more
        except (TimeoutError, ConnectionResetError):
            pass
        return found


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"\0\1\2\3\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /act HTTP/1.1\r\n\r\n", 405),
        (b"POST /act HTTP/1.1\r\n\r\n", 411),
        (b"POST /act HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 411),
        (b"POST /act HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", 411),
        (b"POST /act HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"POST /act HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /act HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"POST /act HTTP/1.1\r\nContent-Length: 300000\r\n\r\nxxx", 413),
        (b"POST /act HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"POST /act HTTP/1.1\r\n" + b"a: b\r\n" * 500 + b"\r\n", 431),
        (b"POST /act HTTP/1.1\r\nOrigin: http://evil.example\r\nContent-Length: 2\r\n\r\n{}", 403),
    ],
)  # fmt: skip
def test_requests_that_are_none(text: bytes, status: int, server: Server) -> None:
    assert raw(server, text, 5).startswith(f"HTTP/1.1 {status} ".encode())


def test_a_request_at_the_wrong_port_hears_the_right_one(server: Server) -> None:
    address = f"http://127.0.0.1:{server.where.port}/act"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(address, b"x" * 500_000), timeout=10)
    assert refused.value.code == 421
    assert str(server.where.http_port) in json.loads(refused.value.read())["error"]
    with pytest.raises(InvalidStatus) as refusal, connect(f"ws://127.0.0.1:{server.where.http_port}", proxy=None):
        pass
    assert refusal.value.response.status_code == 404


def test_two_requests_on_one_connection_and_a_client_that_asks_first(server: Server) -> None:
    body = json.dumps(sent(seen(2)), default=numpy_json).encode()
    head = b"POST /act HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n" % len(body)
    found = raw(server, head + b"\r\n" + body + head + b"Connection: close\r\n\r\n" + body)
    assert found.count(b"HTTP/1.1 100 ") == 2
    assert found.count(b"HTTP/1.1 200 ") == 2


# --- who may ask


@pytest.mark.parametrize("port", ["port", "http_port"])
def test_healthz(port: str, server: Server) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{getattr(server.where, port)}/healthz", timeout=10) as reply:
        assert (reply.status, reply.read()) == (200, b"OK\n")


def test_the_token(lines: list[str]) -> None:
    with served(token=TOKEN) as server:
        with connected(server, TOKEN) as (connection, _):
            assert asked(connection, sent(seen()))["actions"].shape == (4, 3)
        with connected(server, Authorization=f"Bearer {TOKEN}"):
            pass
        for wrong in ({}, {"Authorization": "Api-Key nope"}, {"Authorization": TOKEN}, {"Authorization": "Api-Key "},
                      {"Authorization": "Api-Key \xe4"}, {"Authorization": f"Basic {TOKEN}"}):  # fmt: skip
            with pytest.raises(InvalidStatus) as refused, connected(server, **wrong):
                pass
            assert refused.value.response.status_code == 401
        assert post(server, sent(seen()))[0] == 401
        assert post(server, sent(seen()), Authorization="Bearer nope")[0] == 401
        assert post(server, sent(seen()), Authorization=f"Api-Key {TOKEN}")[0] == 200
        with urllib.request.urlopen(f"http://127.0.0.1:{server.where.port}/healthz", timeout=10) as reply:
            assert reply.status == 200


def test_web_pages_are_not_served(server: Server) -> None:
    with pytest.raises(InvalidStatus) as refused, connected(server, Origin="http://evil.example"):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.3", "robot.example"])
def test_beyond_this_machine_only_with_a_token(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(LapaError, match=host):
        require_safe(Where(host), "")
    require_safe(Where(host), TOKEN)
    with pytest.raises(LapaError, match="16"):
        require_safe(Where(host), "short")


def test_loopback_in_all_its_forms() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        require_safe(Where(host), "")


def test_a_port_that_is_taken(server: Server) -> None:
    with (
        pytest.raises(LapaError, match=str(server.where.port)),
        running(Server(server.service, Where("127.0.0.1", server.where.port, 0))),
    ):
        pass


@pytest.mark.parametrize("host", ["192.0.2.7", "no.such.host.invalid"])
def test_an_address_that_this_machine_does_not_have(host: str, server: Server) -> None:
    service = replace(server.service, token=TOKEN)
    with pytest.raises(LapaError, match=f"--host {host}"), running(Server(service, Where(host, 0, 0))):
        pass


# --- one client and the others


def test_the_queue_is_bounded_and_the_refusal_clear() -> None:
    gate = threading.Event()
    with served(Policy(gate=gate), waiting=2) as server, ThreadPoolExecutor(2) as pool:
        blocked = sent(seen()) | {"prompt": "wait"}

        def ask() -> Any:
            with connected(server) as (connection, _):
                return asked(connection, blocked)

        futures = [pool.submit(ask) for _ in range(2)]
        until = time.monotonic() + 10
        while server.service.asked.waiting < 2 and time.monotonic() < until:
            time.sleep(0.01)
        with connected(server) as (connection, _):
            connection.send(packed(sent(seen())))
            assert isinstance(connection.recv(timeout=10), str)
        status, said = post(server, sent(seen()))
        assert status == 503
        assert "2" in said["error"]
        gate.set()
        for future in futures:
            assert future.result(10)["actions"].shape == (4, 3)


def test_no_more_clients_than_said() -> None:
    with served(clients=2) as server, connected(server), connected(server) as (second, _):
        with pytest.raises(InvalidStatus) as refused, connected(server):
            pass
        assert refused.value.response.status_code == 503
        assert asked(second, sent(seen()))["actions"].shape == (4, 3)


def test_clients_that_say_nothing_or_stop_halfway_disturb_nobody(server: Server) -> None:
    half = b"POST /act HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"
    places = [(server.where.port, b"GET / HTT"), (server.where.http_port, half), (server.where.http_port, b"")]
    silent = []
    for port, text in places * 5:
        silent.append(socket.create_connection(("127.0.0.1", port), 10))
        silent[-1].sendall(text)
    with connected(server) as (connection, _):
        np.testing.assert_array_equal(asked(connection, sent(seen(1)))["actions"], answer(seen(1)))
    for each in silent:
        each.close()


def test_a_client_that_goes_away_before_its_answer(policy: Policy, server: Server) -> None:
    assert policy.gate is not None
    policy.gate.clear()
    with connected(server) as (gone, _):
        gone.send(packed(sent(seen()) | {"prompt": "wait"}))
        time.sleep(0.05)
        gone.socket.shutdown(socket.SHUT_RDWR)
    policy.gate.set()
    with connected(server) as (connection, _):
        np.testing.assert_array_equal(asked(connection, sent(seen(1)))["actions"], answer(seen(1)))


def test_many_at_once_each_get_their_own(server: Server) -> None:
    def ask(number: int) -> bool:
        with connected(server) as (connection, _):
            return all(
                np.array_equal(asked(connection, sent(seen(i)))["actions"], answer(seen(i)))
                for i in range(number, number + 5)
            )

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(0, 60, 10)))


# --- options


def test_limits_are_kept_and_logged() -> None:
    said: list[str] = []
    with served(limits=["y=-0.5:0.5"], steps=["x=0.01"], lines=said) as server, connected(server) as (connection, _):
        observation = sent(seen(1)) | {"state": np.float32([0, 0, 0])}
        actions = asked(connection, observation)["actions"]
        assert np.abs(actions[:, 1]).max() <= 0.5
        assert np.abs(np.diff(np.concatenate([[0], actions[:, 0]]))).max() <= 0.01 + 1e-6
    assert any(line.startswith("clipped: x") for line in said)
    assert any(line.startswith("clipped: y") for line in said)


def test_a_step_is_not_sent_from_an_unknown_place() -> None:
    """Neither to a client of openpi that may execute the whole chunk, nor over /act, where nobody has a last action."""
    blind = {key: value for key, value in sent(seen(1)).items() if key != "state"}
    policy = Policy(PolicySpec(SPEC.cameras, (), ACTION, chunk=4, execute=2))
    with served(policy, steps=["x=0.01"]) as server:
        with connected(server) as (connection, _):
            connection.send(packed(blind))
            said = connection.recv(timeout=10)
            assert isinstance(said, str)
            assert "bounds x" in said
            assert "Send its state" in said
        body = {"images": blind["images"], "prompt": "lift"}
        status, told = post(server, body)
        assert status == 400
        assert "bounds x" in told["error"]
        assert not policy.asked
    with served(policy, steps=["x=0.01"], execute=2) as server, connected(server) as (connection, _):
        first = asked(connection, blind)["actions"]
        again = asked(connection, blind | {"prompt": "another"})["actions"]
        assert np.abs(np.diff(np.concatenate([first, again])[:, 0])).max() <= 0.01 + 1e-6


def test_execute_and_ensemble_through_the_wire() -> None:
    with served(execute=3) as server, connected(server) as (connection, about):
        assert about["chunk"] == about["execute"] == 3
        np.testing.assert_array_equal(asked(connection, sent(seen()))["actions"], answer(seen())[:3])
    with served(ensemble=0.0) as server, connected(server) as (connection, about):
        assert about["chunk"] == 1
        first = asked(connection, sent(seen(1)))["actions"]
        np.testing.assert_allclose(first, answer(seen(1))[:1], atol=1e-6)
        second = asked(connection, sent(seen(2)))["actions"]
        mean = (answer(seen(1))[1] + answer(seen(2))[0]) / 2
        np.testing.assert_allclose(second[0, :2], mean[:2], atol=1e-5)
        again = asked(connection, sent(seen(2)) | {"reset": True})["actions"]
        np.testing.assert_allclose(again, answer(seen(2))[:1], atol=1e-6)


def test_the_log_does_not_fill_the_disk(lines: list[str]) -> None:
    said: list[str] = []
    with served(lines=said) as server:
        for _ in range(30):
            assert post(server, b"{")[0] == 400
        assert server.service.refused == 30
    assert len(said) < 5


def test_escapes_of_a_client_do_not_reach_the_terminal(lines: list[str]) -> None:
    said: list[str] = []
    with served(Policy(ONE_CAMERA), lines=said) as server:
        status, told = post(server, {"\x1b[2J\x1b[31mimage": np.zeros((2, 2), np.uint8), "instruction": "x"})
    assert status == 400
    assert not any("\x1b" in text for text in (*said, told["error"]))


# --- the end


def test_stopping_waits_for_the_answer_that_is_being_made() -> None:
    gate, found = threading.Event(), []

    def client(server: Server) -> None:
        with connected(server) as (connection, _):
            found.append(asked(connection, sent(seen(1)) | {"prompt": "wait"})["actions"])
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=10)
            assert closed.value.rcvd is not None
            found.append(closed.value.rcvd.code)

    with ThreadPoolExecutor(1) as pool:
        with served(Policy(gate=gate)) as server:
            waits = pool.submit(client, server)
            until = time.monotonic() + 10
            while not server.service.asked.waiting and time.monotonic() < until:
                time.sleep(0.01)
            threading.Timer(0.2, gate.set).start()
        waits.result(10)
    np.testing.assert_array_equal(found[0], answer(Observation(**{**seen(1), "instruction": "wait"})))
    assert found[1] == 1001


SERVER = """
import threading
from serving_made import Policy, made
from lapa.serving.server import Where, run
run(made(Policy(gate=threading.Event()), where=Where("127.0.0.1", 0, 0), echo=True))
"""


def test_an_idle_client_does_not_fill_the_log_at_the_end() -> None:
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{folder.parents[1]}"}
    command = [sys.executable, "-c", SERVER]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(3)]
        address = lines[2].split("http://")[1].partition("/")[0]
        idle = http.client.HTTPConnection(address, timeout=20)
        idle.request("GET", "/healthz")
        assert idle.getresponse().read() == b"OK\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()
        idle.close()


def test_sigterm_ends_the_process_well() -> None:
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{folder.parents[1]}"}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert "Ready" in process.stdout.readline()
        port = int(process.stdout.readline().rpartition(":")[2])
        with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as connection:
            connection.recv(timeout=20)
            assert asked(connection, sent(seen()))["actions"].shape == (4, 3)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=20)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        assert process.wait(20) == 0
        assert "1 " in process.stdout.read()
