"""Policy servers as actors: lapa's own, and others that are written here as theirs behave."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_made import ACTION, SPEC, Policy, answer, seen, served, unpacked
from serving_made import packed as message_of
from test_server import numpy_json, of_json
from websockets.sync.server import serve

from lapa import cli
from lapa.contracts import ActionSpec, Array, LapaError, Observation, TaskSpec
from lapa.evaluate import Trial, open_benchmark, require_fit, roll_out
from lapa.serving.remote import Address, remote

TASK = TaskSpec(ACTION, ("top", "wrist"), ("lift",), 10, state=SPEC.state)
SEVEN = ActionSpec(tuple("abcdefg"), ("delta",) * 7, 20.0)
LIBERO = TaskSpec(SEVEN, ("agentview", "eye_in_hand"), ("spatial",), 10, state=tuple(map(str, range(8))))


def shown(task: TaskSpec, size: int = 6) -> Observation:
    rng = np.random.default_rng(1)
    images = {camera: rng.integers(0, 256, (size, size, 3), np.uint8) for camera in task.cameras}
    return Observation(images=images, instruction="lift it", state=np.arange(len(task.state), dtype=np.float32))


# --- lapa's own server


def test_a_server_of_lapa_says_what_it_is() -> None:
    policy = Policy()
    with served(policy) as server:
        actor = remote(f"openpi://127.0.0.1:{server.where.port}", TASK, "anything:x")
        assert actor.spec == SPEC
        require_fit(actor, "it", TASK, "anything")
        found = actor.act_batch([seen(0), seen(1)], [7, 8])
        np.testing.assert_array_equal(found, [answer(seen(0)), answer(seen(1))])
        actor.act_batch([seen(1)], [8])
        actor.reset(None)
        actor.act_batch([seen(1)], [8])
        numbers = [number for _, number in policy.asked]
        assert numbers[1] == numbers[2] != numbers[3], "an episode is known again until a new one begins"
        with pytest.raises(LapaError, match="does not do that"):
            actor.act_batch([Observation(**{**seen(1), "instruction": "fail"})])
        actor.close()
        other = TaskSpec(ActionSpec(("x",), ("delta",), 10.0), ("top", "wrist"), ("lift",), 10)
        actor = remote(f"openpi://127.0.0.1:{server.where.port}", other, "anything")
        with pytest.raises(LapaError, match="openpi://here"):
            require_fit(actor, "openpi://here", other, "anything")
        actor.close()


@pytest.mark.parametrize("keys", ["libero", "droid"])
def test_a_server_with_keys_of_its_own(keys: str) -> None:
    from lapa.contracts import PolicySpec

    spec = PolicySpec(("image", "wrist"), tuple("abcdefgh"), ACTION, 4, 4)
    task = TaskSpec(ACTION, ("image", "wrist"), ("lift",), 10, state=spec.state)
    with served(Policy(spec), keys=keys) as server:
        server.service.about["expects"]["cameras"] = {  # type: ignore[index]
            camera: either[0] for camera, either in server.service.keys.cameras.items()
        }
        actor = remote(f"openpi://127.0.0.1:{server.where.port}", task, "any")
        np.testing.assert_array_equal(actor.act_batch([shown(task)])[0], answer(shown(task), spec))
        actor.close()


def test_episodes_of_tabletop_through_the_wire_are_those_in_process(
    artefact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["serve", str(artefact), "--benchmark", "tabletop", "--episodes", "3"])
    told = capsys.readouterr()
    assert "step for step" in told.out
    assert "ms" in told.out
    for word in ("arm", "camera", "state", "dx, dy", "5 a second", "3 actions", "thread", "instruction"):
        assert word in told.err


def test_evaluate_with_a_server_in_place_of_a_folder(artefact: Path, tmp_path: Path) -> None:
    from lapa.commands.serve import Asked, made_server, opened_policy
    from lapa.serving.server import Where, running
    from lapa.serving.service import Log

    policy = opened_policy(str(artefact))
    options = ["--benchmark", "tabletop", "--episodes", "3"]
    with running(made_server(policy, Asked(), Where("127.0.0.1", 0, 0), log=Log(lambda line: None))) as server:
        address = f"openpi://127.0.0.1:{server.where.port}"
        cli.main(["evaluate", "--policy", address, *options, "--name", "theirs", "--out", str(tmp_path / "wire")])
    cli.main(["evaluate", "--policy", str(artefact), *options, "--out", str(tmp_path / "here")])
    wire, here = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("wire", "here"))
    assert wire["method"] == "theirs"
    assert wire["policy"] == address
    assert wire["hash"] == here["hash"]
    assert wire["outcomes"] == here["outcomes"]


# --- servers of others


@contextmanager
def openpi(reply: Callable[[dict[str, Any]], Any], about: bytes | str = message_of({})) -> Iterator[str]:
    """A server as openpi's: metadata, then `reply` to each observation; a text ends the connection."""

    def handle(connection: Any) -> None:
        connection.send(about)
        for message in connection:
            told = reply(unpacked(message))
            connection.send(told if isinstance(told, str) else message_of(told))
            if isinstance(told, str):
                connection.close(1011)

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


@contextmanager
def openvla(reply: Callable[[dict[str, Any]], Any], status: int = 200) -> Iterator[str]:
    """A server as OpenVLA's: `reply` as JSON."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told = of_json(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(reply(told), default=numpy_json).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_pi0_on_libero() -> None:
    """Named as openpi's LIBERO client names things; the benchmark's own name is enough."""
    heard: list[dict[str, Any]] = []

    def reply(told: dict[str, Any]) -> dict[str, Any]:
        heard.append(told)
        return {"actions": np.arange(70.0).reshape(10, 7), "server_timing": {"infer_ms": 1.0}}

    with openpi(reply) as place:
        actor = remote(f"openpi://{place},execute=5", LIBERO, "libero:spatial")
        found = actor.act_batch([shown(LIBERO)], [0])
        actor.close()
    np.testing.assert_array_equal(found[0], np.arange(35.0).reshape(5, 7))
    assert found.dtype == np.float32
    assert set(heard[0]) == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    np.testing.assert_array_equal(heard[0]["observation/image"], shown(LIBERO)["images"]["agentview"])
    np.testing.assert_array_equal(heard[0]["observation/wrist_image"], shown(LIBERO)["images"]["eye_in_hand"])
    assert heard[0]["prompt"] == "lift it"


def test_parts_of_the_state_and_channels_first() -> None:
    heard: list[dict[str, Any]] = []

    def reply(told: dict[str, Any]) -> dict[str, Any]:
        heard.append(told)
        return {"actions": np.zeros((10, 8))}

    droid = TaskSpec(ActionSpec(tuple("abcdefgh"), ("absolute",) * 8, 15.0), ("exterior_image_1_left", "hand"), ("x",),
                     9, state=tuple("abcdefgh"))  # fmt: skip
    aloha = TaskSpec(ACTION, ("cam_high", "cam_left_wrist"), ("x",), 9, state=tuple("abcdefghijklmn"))
    with openpi(reply) as place:
        for task, keys in ((droid, "droid"), (aloha, "aloha")):
            actor = remote(f"openpi://{place},keys={keys}", task, "mine")
            actor.act_batch([shown(task)])
            actor.close()
        short = TaskSpec(droid.action, droid.cameras, ("x",), 9, state=tuple("abcdefg"))
        actor = remote(f"openpi://{place},keys=droid", short, "mine")
        with pytest.raises(LapaError, match=r"7.*8|8.*7"):
            actor.act_batch([shown(short)])
        actor.close()
    np.testing.assert_array_equal(heard[0]["observation/joint_position"], np.arange(7))
    np.testing.assert_array_equal(heard[0]["observation/gripper_position"], [7])
    assert heard[1]["images"]["cam_high"].shape == (3, 6, 6)
    np.testing.assert_array_equal(heard[1]["state"], np.arange(14))


def test_keys_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text("cameras: {top: a/rgb, wrist: a/hand}\nstate: a/q\ninstruction: say\n")
    heard: list[dict[str, Any]] = []

    def reply(told: dict[str, Any]) -> dict[str, Any]:
        heard.append(told)
        return {"actions": np.zeros((2, 3))}

    with openpi(reply) as place:
        actor = remote(f"openpi://{place},keys={tmp_path / 'k.yaml'}", TASK, "mine")
        actor.act_batch([shown(TASK)])
        actor.close()
        with pytest.raises(LapaError, match="keys="):
            remote(f"openpi://{place}", TASK, "mine")
    assert set(heard[0]) == {"a/rgb", "a/hand", "a/q", "say"}


def test_a_state_in_parts_of_unknown_lengths_is_refused(tmp_path: Path) -> None:
    """A file says which keys, not how many numbers each has."""
    (tmp_path / "k.yaml").write_text("cameras: {top: a, wrist: b}\nstate: [joints, gripper]\n")
    with openpi(lambda _: {"actions": np.zeros((2, 3))}) as place:
        with pytest.raises(LapaError, match="several keys"):
            remote(f"openpi://{place},keys={tmp_path / 'k.yaml'}", TASK, "mine")
        blind = TaskSpec(ACTION, TASK.cameras, ("lift",), 10)
        actor = remote(f"openpi://{place},keys={tmp_path / 'k.yaml'}", blind, "mine")
        assert actor.act_batch([{key: value for key, value in shown(blind).items() if key != "state"}]).shape[2] == 3  # type: ignore[list-item, typeddict-item]
        actor.close()


def test_the_keys_of_openvla(tmp_path: Path) -> None:
    """A preset has them beside openpi's; a file may give others, also for the words and the state."""
    heard: list[dict[str, Any]] = []

    def one(told: dict[str, Any]) -> Any:
        heard.append(told)
        return np.zeros(7)

    (tmp_path / "k.yaml").write_text(
        "cameras: {agentview: front, eye_in_hand: hand}\nstate: proprio\ninstruction: task\n"
    )
    with openvla(one) as place:
        for options in ("keys=libero", "keys=libero,form=oft", f"keys={tmp_path / 'k.yaml'}"):
            remote(f"openvla://{place},{options}", LIBERO, "libero").act_batch([shown(LIBERO)])
    assert [set(told) for told in heard] == [
        {"image", "instruction"}, {"full_image", "wrist_image", "state", "instruction"},
        {"front", "hand", "proprio", "task"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "told",
    ["Traceback (most recent call last):\n  File x\nKeyError: 'wrist'", {"nothing": 1},
     {"actions": np.zeros((2, 2, 2))}, {"actions": np.float32([[np.nan] * 7])}, {"actions": "text"},
     {"actions": np.zeros((0, 7))}, 3],
    ids=["traceback", "none", "shape", "nan", "text", "empty", "number"],
)  # fmt: skip
def test_a_server_that_errs(told: Any) -> None:
    with openpi(lambda _: told) as place:
        actor = remote(f"openpi://{place}", LIBERO, "libero")
        with pytest.raises(LapaError, match=place.replace(".", r"\.")) as error:
            actor.act_batch([shown(LIBERO)])
        assert "\n" not in str(error.value)
        actor.close()


def test_openvla_and_oft() -> None:
    heard: list[dict[str, Any]] = []

    def one(told: dict[str, Any]) -> Any:
        heard.append(told)
        return np.float64([1, 2, 3, 4, 5, 6, 0.996])

    with openvla(one) as place:
        actor = remote(f"openvla://{place},unnorm_key=libero_spatial,gripper=true", LIBERO, "libero")
        np.testing.assert_allclose(actor.act_batch([shown(LIBERO)]), [[[1, 2, 3, 4, 5, 6, -1]]])
    assert set(heard[0]) == {"image", "instruction", "unnorm_key"}
    np.testing.assert_array_equal(heard[0]["image"], shown(LIBERO)["images"]["agentview"])

    def several(told: dict[str, Any]) -> Any:
        heard.append(told)
        return [np.zeros(7), np.ones(7)]

    with openvla(several) as place:
        actor = remote(f"openvla://{place},form=oft", LIBERO, "libero")
        np.testing.assert_array_equal(actor.act_batch([shown(LIBERO)])[0], [[0] * 7, [1] * 7])
    assert set(heard[1]) == {"full_image", "wrist_image", "state", "instruction"}

    def twice(told: dict[str, Any]) -> Any:
        return json.dumps(np.zeros(7), default=numpy_json)

    with openvla(twice) as place:
        assert remote(f"openvla://{place}", LIBERO, "libero").act_batch([shown(LIBERO)]).shape == (1, 1, 7)


@pytest.mark.parametrize(("told", "status"), [("error", 200), ({"error": "no"}, 500), ("x", 404), ({}, 200)])
def test_an_openvla_server_that_errs(told: Any, status: int) -> None:
    with openvla(lambda _: told, status) as place:
        actor = remote(f"openvla://{place}", LIBERO, "libero")
        with pytest.raises(LapaError, match=place.replace(".", r"\.")):
            actor.act_batch([shown(LIBERO)])


def test_a_rollout_with_a_server_of_others() -> None:
    """One that pushes to the right, on Tabletop: the same as that actor in this process."""

    class Right:
        def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
            return np.stack([np.full((4, 2), 0.01 * (o["images"]["image"].mean() > 100)) for o in observations])

    world = open_benchmark("tabletop")

    def reply(told: dict[str, Any]) -> dict[str, Any]:
        seen = Observation(images={"image": told["observation/image"]}, instruction=told["prompt"])
        return {"actions": Right().act_batch([seen])[0]}

    with openpi(reply) as place:
        actor = remote(f"openpi://{place},keys=widowx", world.spec, "tabletop")
        require_fit(actor, "it", world.spec, "tabletop")
        wire = roll_out(world, actor, Trial(2))[0]
        actor.close()
    assert wire == roll_out(world, Right(), Trial(2))[0]


@pytest.mark.parametrize(
    "text",
    ["openpi:/host:8000", "openpi://host", "openpi://:8000", "grpc://host:1", "openpi://h:1,speed=3",
     "openpi://h:1,execute=0", "openpi://h:1,execute=x", "openvla://h:1,form=other", "openpi://h:123456",
     "openpi://h:65536", "openpi://h:1,wait=nan", "openpi://h:1,timeout=0", "openpi://h:1,wait=-1"],
)  # fmt: skip
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(LapaError):
        Address.parse(text)


def test_addresses() -> None:
    made = Address.parse("openvla://robot-1.lab:80,unnorm_key=bridge_orig,execute=3,form=oft,wait=0.5,gripper=true")
    assert (made.scheme, made.place, made.unnorm_key) == ("openvla", "robot-1.lab:80", "bridge_orig")
    assert (made.execute, made.form, made.wait, made.gripper) == (3, "oft", 0.5, True)
    assert Address.parse("openpi://[::1]:8000/").place == "[::1]:8000"


@pytest.mark.parametrize("scheme", ["openpi", "openvla"])
def test_nobody_is_there(scheme: str) -> None:
    for place in ("127.0.0.1:1", "a..b:80"):  # the second can be no host's name
        with pytest.raises(LapaError, match=re.escape(place)):
            remote(f"{scheme}://{place},wait=0", LIBERO, "libero").act_batch([shown(LIBERO)])


def test_the_token_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "a-token-of-sixteen-and-more"
    with served(token=token) as server:
        with pytest.raises(LapaError, match="LAPA_SERVE_TOKEN"):
            remote(f"openpi://127.0.0.1:{server.where.port}", TASK, "any")
        monkeypatch.setenv("LAPA_SERVE_TOKEN", token)
        actor = remote(f"openpi://127.0.0.1:{server.where.port}", TASK, "any")
        assert actor.act_batch([seen()]).shape == (1, 4, 3)
        actor.close()


def test_a_server_that_refuses_with_its_first_message() -> None:
    with (
        openpi(lambda told: {}, "Traceback ..\nOutOfMemory") as place,
        pytest.raises(LapaError, match="refuses: 'OutOfMemory'"),
    ):
        remote(f"openpi://{place},keys=libero", LIBERO, "libero")


@pytest.mark.parametrize("timing", [None, [1.0], {"infer_ms": "fast"}, {"infer_ms": None}])
def test_actions_count_whatever_a_server_says_of_its_time(timing: Any) -> None:
    with openpi(lambda told: {"actions": np.zeros((2, 7)), "server_timing": timing}) as place:
        actor = remote(f"openpi://{place},keys=libero", LIBERO, "libero")
        assert actor.act_batch([shown(LIBERO)]).shape == (1, 2, 7)
        actor.close()


def test_more_than_an_answer_has_cannot_be_executed() -> None:
    with openpi(lambda told: {"actions": np.zeros((2, 7))}) as place:
        actor = remote(f"openpi://{place},keys=libero,execute=3", LIBERO, "libero")
        with pytest.raises(LapaError, match=r"execute=3.* 2 actions"):
            actor.act_batch([shown(LIBERO)])
        actor.close()
