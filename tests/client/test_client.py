"""The light client: its queue, its loop at an even rate, its dry run; it needs nothing of lapa."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lapa_client
import numpy as np
import pytest
from lapa_client import Answer, Client, Gone, Loop, Queue, Refused, compare, read_episodes
from lapa_client.__main__ import main
from lapa_client.client import pack

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from serving_made import SPEC, Policy, answer, seen, served

from lapa.contracts import Array, Observation
from lapa.serving.server import Server

ROOT = Path(__file__).parents[2]


class Slow(Policy):
    """Takes its time."""

    seconds = 0.0

    def act(self, observation: Observation, episode: int) -> Array:
        time.sleep(self.seconds)
        return super().act(observation, episode)


@pytest.fixture
def policy() -> Slow:
    return Slow()


@pytest.fixture
def server(policy: Slow) -> Iterator[Server]:
    with served(policy) as made:
        yield made


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.where.port}") as made:
        yield made


def sent(number: int) -> dict[str, Any]:
    shown = seen(number)
    return {"images": dict(shown["images"]), "state": shown["state"], "prompt": shown["instruction"]}


# --- the queue


def chunk(first: float, count: int = 4) -> np.ndarray:
    return np.float32([[first + i, i] for i in range(count)])


def test_actions_of_the_past_are_dropped() -> None:
    queue = Queue()
    queue.put(chunk(0), asked=0, now=0)
    assert queue.left(0) == 4
    np.testing.assert_array_equal(queue.get(0), [0, 0])
    assert queue.get(0) is None, "once"
    queue.put(chunk(10), asked=1, now=3)
    assert queue.dropped == 2
    assert queue.get(2) is None
    np.testing.assert_array_equal(queue.get(3), [12, 2])
    np.testing.assert_array_equal(queue.get(4), [13, 3])
    assert queue.left(5) == 0
    queue.put(chunk(20), asked=5, now=50)
    assert queue.dropped == 6
    assert queue.get(50) is None


def test_an_old_answer_passes_into_a_new_one() -> None:
    queue = Queue(smooth=3, binary=[False, True])
    queue.put(np.zeros((6, 2), np.float32), 0, 0)
    queue.put(np.ones((6, 2), np.float32), 1, 2)
    found = np.stack([queue.get(step) for step in range(2, 7)])
    np.testing.assert_allclose(found[:, 0], [0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_array_equal(found[:, 1], 1, err_msg="a gripper changes at once")


def test_without_an_old_answer_there_is_nothing_to_pass_from() -> None:
    queue = Queue(smooth=3)
    queue.put(chunk(5), 0, 0)
    np.testing.assert_array_equal(queue.get(0), [5, 0])


# --- a connection


def test_ask(client: Client) -> None:
    for number in range(3):
        found = client.ask(sent(number))
        np.testing.assert_array_equal(found.actions, answer(seen(number)))
        assert found.ms >= found.policy_ms >= 0


def test_new_episodes_are_told(client: Client, policy: Slow) -> None:
    for _ in range(2):
        client.new_episode()
        client.ask(sent(0))
        client.ask(sent(1))
    numbers = [number for _, number in policy.asked]
    assert numbers[0] == numbers[1] != numbers[2] == numbers[3]


def test_refused_and_again(client: Client) -> None:
    with pytest.raises(Refused, match="does not do that"):
        client.ask(sent(0) | {"prompt": "fail"})
    with pytest.raises(Gone):
        client.ask(sent(0))
    client.connect()
    assert client.ask(sent(0)).actions.shape == (4, 3)


def test_too_slow(server: Server, policy: Slow) -> None:
    policy.seconds = 0.5
    with Client(f"127.0.0.1:{server.where.port}", timeout=0.1) as client, pytest.raises(Gone, match=r"0\.1 s"):
        client.ask(sent(0))


def test_nobody_there() -> None:
    with pytest.raises(Gone, match=":1"):
        Client("127.0.0.1:1", wait=0)


def test_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(token="sixteen-characters") as server:
        address = f"127.0.0.1:{server.where.port}"
        with pytest.raises(Gone, match="token"):
            Client(address)
        with Client(address, token="sixteen-characters") as client:
            assert client.ask(sent(0)).actions.shape == (4, 3)
        monkeypatch.setenv("LAPA_SERVE_TOKEN", "sixteen-characters")
        with Client(address) as client:
            assert client.about["chunk"] == 4


# --- the loop


class Fake:
    """A client that answers after some seconds: n actions that say which step they are for, as the robot sees it."""

    def __init__(self, seconds: float, count: int) -> None:
        self.seconds, self.count, self.about = seconds, count, {"action": {"hz": 50.0, "kinds": ["absolute"]}}
        self.asked = 0

    def new_episode(self) -> None:
        pass

    def ask(self, observation: dict[str, Any]) -> Answer:
        self.asked += 1
        time.sleep(self.seconds)
        return Answer(np.float32([[observation["step"] + i] for i in range(self.count)]), 1000 * self.seconds, 0.0)


def run(fake: Fake, steps: int, **more: Any) -> tuple[list[tuple[int, float]], Any]:
    """A robot that counts its steps: (the step in which an action was sent, the step for which it was meant)."""
    moved: list[tuple[int, float]] = []
    now = [0]
    loop = Loop(fake, lambda: {"step": now[0]}, lambda action: moved.append((now[0] - 1, float(action[0]))), **more)  # type: ignore[arg-type]
    get = loop.queue.get

    def counted(step: int) -> Any:
        now[0] = step + 1
        return get(step)

    loop.queue.get = counted  # type: ignore[method-assign]
    return moved, loop.run(steps / 50)


def test_each_action_is_sent_in_the_step_that_it_is_for() -> None:
    fake = Fake(0.03, 12)
    start = time.perf_counter()
    moved, report = run(fake, 30, execute=6)
    assert time.perf_counter() - start > 0.55, "not faster than the robot's rate"
    assert report.sent + report.missed == 30
    assert report.sent == len(moved)
    assert all(step == meant for step, meant in moved)
    assert len(moved) >= 12, "the first answer at least"
    assert fake.asked > 1, "asked again while it went on"
    assert report.ms[0] == pytest.approx(30)
    assert "actions sent" in str(report)


def test_one_action_an_answer_is_waited_for() -> None:
    moved, report = run(Fake(0.0, 1), 15)
    assert report.sent == len(moved) > 1
    assert all(step == meant for step, meant in moved)


def test_nothing_is_sent_twice_when_answers_are_late() -> None:
    moved, report = run(Fake(0.2, 3), 25)
    assert [step for step, _ in moved] == [0, 1, 2], "each answer but the first is too late as a whole"
    assert report.missed == 22
    assert report.dropped > 0


def test_the_loop_ends_where_the_server_refuses(client: Client) -> None:
    moved: list[Any] = []
    shown = iter([sent(0), *[sent(0) | {"prompt": "fail"}] * 10])
    with pytest.raises(Refused):
        Loop(client, lambda: next(shown), moved.append, hz=50).run(seconds=2)
    assert len(moved) <= 4


def test_the_loop_on_a_server(client: Client) -> None:
    moved: list[np.ndarray] = []
    loop = Loop(client, lambda: sent(1), moved.append, hz=100)
    assert loop.execute == SPEC.execute
    report = loop.run(seconds=0.3)
    assert report.sent + report.missed == 30
    assert all(action.shape == (3,) for action in moved)
    stopped = loop.run(stop=lambda: len(moved) > report.sent + 2)
    assert stopped.sent >= 3
    assert client.ask(sent(0)).actions.shape == (4, 3), "the connection is free again"


def test_a_second_run_knows_nothing_of_the_first() -> None:
    """Its steps count from 0 again: actions that were left would be blended into the new ones."""
    fake = Fake(0.0, 12)
    loop = Loop(fake, lambda: {"step": 0.0}, lambda action: None, execute=100, smooth=8)  # type: ignore[arg-type]
    loop.run(3 / 50)
    fake.ask = lambda observation: Answer(np.full((12, 1), 100, np.float32), 0.0, 0.0)  # type: ignore[method-assign]
    moved: list[float] = []
    loop.send = lambda action: moved.append(float(action[0]))
    loop.run(6 / 50)
    assert moved == [100.0] * 6


class Answers:
    """A connection that answers with the same message."""

    def __init__(self, told: Any) -> None:
        self.told = told

    def send(self, message: bytes) -> None:
        pass

    def recv(self, timeout: float) -> bytes:
        return pack(self.told)


@pytest.mark.parametrize(
    "told", [[1], {}, {"actions": [[1.0], [2.0, 3.0]]}, {"actions": [["a"]]}, {"actions": np.zeros((0, 3))},
             {"actions": [[float("nan")]]}, {"actions": None}],
)  # fmt: skip
def test_answers_without_actions(told: Any, client: Client) -> None:
    client._connection = Answers(told)  # type: ignore[assignment]
    with pytest.raises(Refused, match="without actions"):
        client.ask(sent(0))


@pytest.mark.parametrize("timing", [None, [1.0], {"infer_ms": "fast"}])
def test_actions_count_whatever_a_server_says_of_its_time(timing: Any, client: Client) -> None:
    client._connection = Answers({"actions": [[1, 2]], "server_timing": timing})  # type: ignore[assignment]
    assert np.isnan(client.ask(sent(0)).policy_ms)


def test_the_rate_must_be_known() -> None:
    fake = Fake(0, 1)
    fake.about = {}
    with pytest.raises(ValueError, match="hz"):
        Loop(fake, dict, print)  # type: ignore[arg-type]


# --- the dry run


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Two episodes in which the policy of the tests has acted, and a little noise."""
    for number in range(2):
        shown = [seen(10 * number + t) for t in range(7)]
        actions = np.concatenate([answer(o | {"instruction": "go"})[:2] for o in shown[::2]])[:7]  # type: ignore[operator]
        images = {f"images/{name}": np.stack([o["images"][name] for o in shown]) for name in SPEC.cameras}
        np.savez(tmp_path / f"take_{number}.npz", actions=actions + np.array([0, 0.25, 0]), instruction="go", fps=10.0,
                 state=np.stack([o["state"] for o in shown]), **images)  # fmt: skip
    return tmp_path


def test_a_dry_run(recorded: Path, client: Client) -> None:
    found = compare(client, read_episodes(str(recorded)))
    assert (found["episodes"], found["steps"], len(found["ms"])) == (2, 14, 8)
    np.testing.assert_allclose(found["error"], [0, 0.25, 0], atol=1e-5)
    assert found["jump"][1] > 0
    assert 0 <= found["late"] <= 1


def test_the_command(recorded: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"ws://127.0.0.1:{server.where.port}"
    main([address, "about"])
    assert '"cameras"' in capsys.readouterr().out
    main([address, "dry-run", str(recorded), "--execute", "2"])
    told = capsys.readouterr().out
    assert "2 episodes" in told
    assert "grip" in told
    for episodes, execute, says in ((recorded, "9", "answers with 4"), (recorded, "0", "at least 1"),
                                    (recorded, "-1", "at least 1"), ("lerobot:nowhere", "2", "nowhere")):  # fmt: skip
        with pytest.raises(SystemExit, match=says):
            main([address, "dry-run", str(episodes), "--execute", execute])


def test_episodes_of_lapa(client: Client) -> None:
    episodes = list(read_episodes("tabletop:sim,episodes=2,seed=3"))
    assert len(episodes) == 2
    (frames,) = episodes[0].images.values()
    shown = replace(episodes[0], images=dict.fromkeys(SPEC.cameras, frames), state=np.zeros((len(frames), 3)))
    with pytest.raises(ValueError, match="2 numbers"):
        compare(client, [shown])


def test_files_that_are_no_episodes(tmp_path: Path) -> None:
    (tmp_path / "torn.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"torn\.npz"):
        list(read_episodes(str(tmp_path)))
    np.savez(tmp_path / "torn.npz", actions=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"torn\.npz"):
        list(read_episodes(str(tmp_path / "torn.npz")))
    np.savez(tmp_path / "torn.npz", **{"actions": np.zeros((3, 2)), "images/top": np.zeros((2, 4, 4, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"torn\.npz"):
        list(read_episodes(str(tmp_path / "torn.npz")))


def test_files_that_are_cut_or_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "torn.npz"
    whole = {"actions": np.zeros((3, 2)), "images/top": np.zeros((3, 40, 40, 3), np.uint8)}
    np.savez_compressed(file, **whole)
    data = file.read_bytes()
    spoilt = (b"", data[: len(data) // 2], data[:60] + b"\xff" * 20 + data[80:])
    for content in spoilt:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"torn\.npz: cannot be read"):
            list(read_episodes(str(file)))
    with file.open("wb") as out:
        np.save(out, np.zeros(3))
    with pytest.raises(ValueError, match="single array"):
        list(read_episodes(str(file)))
    for wrong, says in (({"instruction": ["go", "stop"]}, "instruction"), ({"fps": [1, 2]}, "fps"),
                        ({"fps": "x"}, "fps"), ({"actions": np.full((3, 2), np.nan)}, "finite")):  # fmt: skip
        np.savez(file, **(whole | wrong))
        with pytest.raises(ValueError, match=says):
            list(read_episodes(str(file)))
    for given in (b"go", ["go", "go", "go"], np.array(["go"])):
        np.savez(file, instruction=given, **whole)
        assert next(read_episodes(str(file))).instruction == "go"


def test_datasets_of_lapa_need_lapa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lapa.data.spec", None)
    with pytest.raises(ValueError, match="install lapa"):
        list(read_episodes(f"lerobot:{tmp_path}"))


# --- a distribution of its own


def test_it_needs_nothing_of_lapa() -> None:
    code = "import lapa_client, sys; print({m.partition('.')[0] for m in sys.modules} & {'lapa', 'torch', 'PIL'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(ROOT / "client")})  # fmt: skip
    assert done.stdout.strip() == "set()"


def test_what_it_declares() -> None:
    told = tomllib.loads((ROOT / "client/pyproject.toml").read_text())["project"]
    assert told["name"] == "lapa-client"
    names = {line.partition(">")[0] for line in told["dependencies"]}
    assert names == {"numpy", "msgpack", "websockets"}
    assert set(lapa_client.__all__) <= set(dir(lapa_client))
