"""The clients that others wrote, as far as they are installed: openpi-client (it declares numpy < 2) and vla-eval are
skipped where they are not. docs/serving.md says which versions were run by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lapa_client import Client
from serving_made import SPEC, Policy, answer, seen, served
from test_server import sent

from lapa.contracts import ActionSpec, Observation, PolicySpec


def test_openpi_client_and_its_broker() -> None:
    websocket = pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client is not installed")
    broker = pytest.importorskip("openpi_client.action_chunk_broker", reason="dm-tree is not installed")
    with served() as server:
        client = websocket.WebsocketClientPolicy("127.0.0.1", server.where.port)
        assert client.get_server_metadata()["chunk"] == 4
        acting = broker.ActionChunkBroker(client, action_horizon=4)
        for step in range(8):
            found = acting.infer(sent(seen(step)))
            np.testing.assert_array_equal(found["actions"], answer(seen(step - step % 4))[step % 4])
        with pytest.raises(RuntimeError, match="does not do that"):
            client.infer(sent(seen()) | {"prompt": "fail"})


def test_inspect_robots_on_its_mock_embodiment(tmp_path: Path) -> None:
    """Its toy world, driven by a policy behind the server that walks to the green point in the picture."""
    inspect_robots = pytest.importorskip("inspect_robots", reason="inspect-robots is not installed")
    from inspect_robots.mock.cubepick import CubePickEmbodiment
    from inspect_robots.policy import PolicyConfig, PolicyInfo
    from inspect_robots.types import Action, ActionChunk

    action = ActionSpec(("dx", "dy"), ("delta", "delta"), 10.0)

    class Walker(Policy):
        def act(self, observation: Observation, episode: int) -> Any:
            self.asked.append((observation, episode))
            picture = observation["images"]["top"].astype(int)
            cube = np.argwhere(picture[..., 1] > 100).mean(0)[::-1]
            here = np.argwhere(picture[..., 0] > 100).mean(0)[::-1]
            way = (cube - here) / 31
            return np.tile(np.clip(way, -0.05, 0.05), (2, 1)).astype(np.float32)

    world = CubePickEmbodiment()

    class Served:
        """Its policy, an openpi client."""

        def __init__(self, client: Client) -> None:
            self.client, self.words = client, ""
            self.info = PolicyInfo("lapa", world.info.action_space)
            self.config = PolicyConfig(action_horizon=2)

        def reset(self, scene: Any) -> None:
            self.words = scene.instruction
            self.client.new_episode()

        def act(self, observation: Any) -> Any:
            told = self.client.ask({"images": dict(observation.images), "prompt": self.words})
            return ActionChunk([Action(row) for row in told.actions])

    walker = Walker(PolicySpec(("top",), (), action, chunk=2, execute=2))
    with served(walker) as server, Client(f"127.0.0.1:{server.where.port}") as client:
        (log,) = inspect_robots.eval("cubepick-reach", Served(client), world, log_dir=str(tmp_path))
    assert log.status == "success"
    assert server.service.answered > 8
    assert server.service.refused == 0
    assert len({episode for _, episode in walker.asked}) == 4


def test_vla_eval_without_docker() -> None:
    connection = pytest.importorskip("vla_eval.connection", reason="vla-eval is not installed")
    import asyncio

    async def episode(port: int) -> list[Any]:
        async with connection.Connection(f"ws://127.0.0.1:{port}") as made:
            assert made.server_info["protocol_version"] == 1
            await made.start_episode({"task": {"name": "x"}})
            found = []
            for step in range(4):
                shown = seen(step)
                told = await made.act({"images": dict(shown["images"]), "states": shown["state"],
                                       "task_description": shown["instruction"]})  # fmt: skip
                found.append(told["actions"])
            await made.end_episode({})
            return found

    with served() as server:
        for step, found in enumerate(asyncio.run(episode(server.where.port))):
            np.testing.assert_array_equal(found, answer(seen(step - step % SPEC.execute))[step % SPEC.execute])
