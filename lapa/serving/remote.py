"""Any policy server as an Actor, so that policies of others can be compared with lapa's in one table.

    openpi://HOST:PORT[,option=value..]     openpi, such as pi0, or `lapa serve`
    openvla://HOST:PORT[,option=value..]    POST /act of OpenVLA or OpenVLA-OFT

    keys        the server's names for cameras and state: a preset or a file (keys.py). Not needed for a server of lapa,
                which sends its names, nor for a benchmark that has the name of a preset
    execute     number of actions of an answer that are executed (all)
    timeout     maximum time of an answer in seconds (60)
    wait        seconds to wait for a server that is not up yet (10)
    unnorm_key  openvla: the dataset whose statistics the server uses to scale its actions
    form        openvla: openvla or oft
    gripper     openvla: the last number of an action, 1 for open and 0 for closed, is changed to LIBERO's -1 for open
                and 1 for closed

A token is read from the environment variable LAPA_SERVE_TOKEN.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import numpy as np
from websockets.exceptions import InvalidHandshake, WebSocketException
from websockets.sync.client import ClientConnection, connect

from lapa.contracts import ActionSpec, Array, LapaError, Observation, PolicySpec, TaskSpec
from lapa.data.cameras import is_on_hand
from lapa.plugins import choose, typed
from lapa.serving import EPISODES, Fault, shortened
from lapa.serving.keys import INSTRUCTION, PRESETS, Keys, keys_of
from lapa.serving.wire import pack, pack_json, unpack, unpack_json

TOKEN = "LAPA_SERVE_TOKEN"
SCHEMES = ("openpi", "openvla")
OPENVLA = {  # what servers call their pictures, by form
    "openvla": ("image",),
    "oft": ("full_image", "wrist_image", "left_wrist_image", "right_wrist_image"),
}


@dataclass(frozen=True)
class Address:
    """A policy server with its options; see the module's docstring."""

    scheme: str
    place: str
    keys: str = ""
    execute: int | None = None
    timeout: float = 60.0
    wait: float = 10.0
    unnorm_key: str = ""
    form: Literal["openvla", "oft"] = "openvla"
    gripper: bool = False

    @staticmethod
    def parse(text: str) -> Address:
        """From SCHEME://HOST:PORT[,option=value..]. Raises LapaError."""
        first, *pairs = re.split(r",(?=[A-Za-z_]\w*=)", text)
        found = re.fullmatch(r"(\w+)://((?:\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5})/?", first)
        if found is None or int(found[2].rpartition(":")[2]) > 65535:
            raise LapaError(f"{text}: a policy server is openpi://HOST:PORT or openvla://HOST:PORT.")
        scheme = choose(found[1], SCHEMES, "kind of policy server")
        hints = {name: hint for name, hint in get_type_hints(Address).items() if name not in ("scheme", "place")}
        options = {}
        for pair in pairs:
            name, _, value = pair.partition("=")
            choose(name, hints, "option of a policy server")
            options[name] = typed(value, hints[name], name, text)
        made = Address(scheme, found[2], **options)
        if made.execute is not None and made.execute < 1:
            raise LapaError(f"{text}: execute is at least 1.")
        if not 0 < made.timeout < math.inf or not 0 <= made.wait < math.inf:
            raise LapaError(f"{text}: timeout and wait are seconds, timeout above 0.")
        return made


def remote(text: str, task: TaskSpec, benchmark: str) -> OpenpiActor | OpenvlaActor:
    """The actor at an address, for a benchmark called `benchmark`, NAME[:..]. Raises LapaError if no server answers, or
    if its names for the benchmark's cameras are not known."""
    address = Address.parse(text)
    kind = OpenpiActor if address.scheme == "openpi" else OpenvlaActor
    return kind(address, task, re.split(r"[:,]", benchmark)[0])


class OpenpiActor:
    """A server with the openpi protocol, over one connection. `spec`: of its policy, if it is a server of lapa."""

    def __init__(self, address: Address, task: TaskSpec, benchmark: str) -> None:
        self.address = address
        self._open = contextlib.ExitStack()
        self._connection, self.about = self._connect()
        told = self.about.get("expects") if "lapa" in self.about else None
        self.spec = _spec(self.about) if told else None
        self.dimensions = len(self.spec.action) if self.spec and self.spec.action else 0
        self.most = EPISODES if self.spec else 0  # others know no episodes
        self._names = _told_by_server(told, task) if isinstance(told, dict) else _by_preset(address, task, benchmark)
        self._begun: set[int] = set()
        self.timings: list[tuple[float, float]] = []  # milliseconds: the whole way, the policy's own

    @property
    def hash(self) -> str:
        """Of the policy's artefact; "" if the server does not send it."""
        return str(self.about.get("hash", ""))

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        """B observations -> float32 [B, n, A]: one after another. Raises LapaError for what the server refuses."""
        episodes = range(len(observations)) if ids is None else ids
        chunks = [self._ask(observation, int(i)) for observation, i in zip(observations, episodes, strict=True)]
        return _stacked(chunks, self.address)

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """New episodes begin."""
        self._begun = set() if ids is None else self._begun - set(ids)

    def close(self) -> None:
        """End the connection."""
        self._open.close()

    def _ask(self, observation: Observation, episode: int) -> Array:
        sent = self._names.sent(observation)
        if self.spec is not None:  # other servers know no episodes
            sent |= {"episode": episode} | ({} if episode in self._begun else {"reset": True})
            self._begun.add(episode)
        start = time.perf_counter()
        try:
            self._connection.send(pack(sent))
            reply = self._connection.recv(timeout=self.address.timeout)
        except TimeoutError:
            raise LapaError(
                f"{self.address.place} has not answered in {self.address.timeout:g} s (timeout=)."
            ) from None
        except WebSocketException as error:
            raise LapaError(f"{self.address.place} closed the connection ({error}).") from None
        told = self._values(reply)
        if not isinstance(told, dict) or "actions" not in told:
            raise LapaError(f"{self.address.place} answered without actions.")
        timing = told.get("server_timing")
        ms = timing.get("infer_ms") if isinstance(timing, dict) else None
        self.timings.append((1000 * (time.perf_counter() - start), float(ms) if isinstance(ms, int | float) else 0.0))
        return _chunk(told["actions"], self.address)

    def _values(self, message: bytes | str) -> Any:
        """What a message holds. Raises LapaError for a text, with the last line of what may be a traceback."""
        if isinstance(message, str):
            last = (message.strip().splitlines() or [""])[-1]
            raise LapaError(f"{self.address.place} refuses: {shortened(last, 300)}.")
        return _read(unpack, message, self.address)

    def _connect(self) -> tuple[ClientConnection, dict[str, Any]]:
        token, until = os.environ.get(TOKEN), time.monotonic() + self.address.wait
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        while True:
            try:
                made = self._open.enter_context(connect(
                    f"ws://{self.address.place}", compression=None, max_size=None, open_timeout=10,
                    additional_headers=headers, proxy=None,
                ))  # fmt: skip
                about = self._values(made.recv(timeout=self.address.timeout))
                return made, about if isinstance(about, dict) else {}
            except InvalidHandshake as error:
                raise LapaError(f"{self.address.place} does not take us: {error}. {TOKEN} holds a token.") from None
            except (OSError, WebSocketException, UnicodeError) as error:
                if time.monotonic() > until:
                    raise LapaError(f"No openpi server answers at {self.address.place} ({error or type(error).__name__}"
                                    "). Is it up? wait=SECONDS waits longer.") from None  # fmt: skip
                time.sleep(0.2)


class OpenvlaActor:
    """A server with OpenVLA's protocol: every request is independent."""

    spec = None
    dimensions = 0
    hash = ""

    def __init__(self, address: Address, task: TaskSpec, benchmark: str) -> None:
        self.address = address
        self._names = _of_openvla(address, task)

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        """B observations -> float32 [B, n, A]. Raises LapaError for what the server refuses."""
        return _stacked([self._ask(observation) for observation in observations], self.address)

    def _ask(self, observation: Observation) -> Array:
        sent = self._names.sent(observation)
        if self.address.unnorm_key:
            sent["unnorm_key"] = self.address.unnorm_key
        told = _read(unpack_json, self._post(pack_json(sent).encode()), self.address)
        if isinstance(told, str):  # encoded twice, or "error"
            if told.strip()[:1] not in "[{":
                raise LapaError(f"{self.address.place} refuses: {shortened(told, 300)}. Its log says more.")
            told = _read(unpack_json, told, self.address)
        if isinstance(told, list) and told and isinstance(told[0], np.ndarray):
            told = np.stack(told)
        chunk = _chunk(told, self.address)
        if self.address.gripper:
            chunk[:, -1] = np.where(chunk[:, -1] > 0.5, -1.0, 1.0)
        return chunk

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(TOKEN):
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(f"http://{self.address.place}/act", body, headers)
        until = time.monotonic() + self.address.wait
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                with direct.open(request, timeout=self.address.timeout) as answer:
                    found: bytes = answer.read()
                    return found
            except urllib.error.HTTPError as error:
                said = error.read(2000).decode("utf-8", "replace")
                raise LapaError(f"{self.address.place} refuses ({error.code}): {shortened(said, 300)}.") from None
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                if time.monotonic() > until or isinstance(error, TimeoutError):
                    raise LapaError(f"No OpenVLA server answers at {self.address.place} ({error}). Is it up?") from None
                time.sleep(0.2)


@dataclass(frozen=True)
class Names:
    """A server's names for the cameras, the parts of the state, and the instruction; (): the state is not sent."""

    cameras: Mapping[str, str]
    state: tuple[tuple[str, int | None], ...]
    instruction: str
    channels_first: bool = False

    def sent(self, observation: Observation) -> dict[str, Any]:
        """An observation in these names; "images/top" is {"images": {"top": ..}}. Raises LapaError for a state that has
        another length than its parts."""
        flat: dict[str, Any] = {self.instruction: observation["instruction"]}
        for camera, key in self.cameras.items():
            picture = observation["images"][camera]
            flat[key] = np.ascontiguousarray(picture.transpose(2, 0, 1)) if self.channels_first else picture
        if self.state and "state" in observation:
            state = np.asarray(observation["state"], np.float32)
            ends = np.cumsum([count or len(state) for _, count in self.state])
            if ends[-1] != len(state):
                parts = ", ".join(f"{key} {count}" for key, count in self.state)
                raise LapaError(
                    f"The server takes a state of {ends[-1]} numbers ({parts}); the benchmark shows {len(state)}."
                )
            for (key, _), part in zip(self.state, np.split(state, ends[:-1]), strict=True):
                flat[key] = part
        made: dict[str, Any] = {}
        for key, value in flat.items():
            group, _, name = key.partition("/")
            if group == "images" and name:
                made.setdefault(group, {})[name] = value
            else:
                made[key] = value
        return made


def _told_by_server(told: Mapping[str, Any], task: TaskSpec) -> Names:
    """From the metadata of a server of lapa."""
    cameras = {str(camera): str(key) for camera, key in dict(told.get("cameras") or {}).items()}
    if len(cameras) == len(task.cameras) == 1:  # a policy of one camera looks at the one there is
        cameras = dict(zip(task.cameras, cameras.values(), strict=True))
    return Names({camera: key for camera, key in cameras.items() if camera in task.cameras}, (("state", None),),
                 str(told.get("instruction") or "prompt"))  # fmt: skip


def _by_preset(address: Address, task: TaskSpec, benchmark: str) -> Names:
    told = address.keys or (benchmark if benchmark in PRESETS else "")
    if not told:
        raise LapaError(
            f"{address.place} does not say what it calls the cameras {', '.join(task.cameras)} of {benchmark}. Add "
            f",keys=NAME ({', '.join(PRESETS)}) or ,keys=FILE (docs/serving.md)."
        )
    keys = _keys(task, told)
    cameras = {camera: either[0] for camera, either in keys.cameras.items()}
    print(f"{address.place} is sent {', '.join(f'{camera} as {key}' for camera, key in cameras.items())}.")
    preset = PRESETS.get(told)
    if preset is None:
        return Names(cameras, _whole(keys, task, told), keys.instruction[0])
    state = tuple((part[0], count if len(preset.state) > 1 else None) for part, count in preset.state)
    return Names(cameras, state, "prompt", preset.channels_first)


def _of_openvla(address: Address, task: TaskSpec) -> Names:
    """OpenVLA looks at one camera that is on no hand; OFT at those on hands and at the state as well. Raises LapaError
    where there are several of the scene, or more than two on hands."""
    if address.keys:
        keys = _keys(task, address.keys)
        cameras = {camera: next((key for key in either if key in OPENVLA[address.form]), either[0])
                   for camera, either in keys.cameras.items()}  # fmt: skip
        if address.keys in PRESETS:
            if address.form == "openvla":  # it looks at one
                cameras = {camera: key for camera, key in cameras.items() if key == "image"} or cameras
            return Names(cameras, (("state", None),) if address.form == "oft" else (), "instruction")
        state = _whole(keys, task, address.keys) or ((("state", None),) if address.form == "oft" else ())
        return Names(cameras, state, keys.instruction[0] if keys.instruction != INSTRUCTION else "instruction")
    hands = [camera for camera in task.cameras if is_on_hand(camera)]
    scene = [camera for camera in task.cameras if camera not in hands] or hands[:1]
    if len(scene) > 1 or len(hands) > 2:
        raise LapaError(f"The benchmark has the cameras {', '.join(task.cameras)}; say in a file which of them the "
                        "server is shown as image or full_image: ,keys=FILE (docs/serving.md).")  # fmt: skip
    if address.form == "openvla":
        return Names({scene[0]: "image"}, (), "instruction")
    sides = ["wrist_image"] if len(hands) == 1 else ["left_wrist_image", "right_wrist_image"][: len(hands)]
    hands.sort(key=lambda camera: "right" in camera.lower())
    return Names({scene[0]: "full_image", **dict(zip(hands, sides, strict=True))}, (("state", None),), "instruction")


def _whole(keys: Keys, task: TaskSpec, told: str) -> tuple[tuple[str, None], ...]:
    """The key of the whole state that a file names; (): it names none. Raises LapaError for several."""
    if len(keys.state) > 1 and task.state:
        raise LapaError(f"keys={told}: the state has several keys there, and how many of its {len(task.state)} numbers "
                        "go to which is not known. Name one, or a preset.")  # fmt: skip
    return tuple((part[0], None) for part in keys.state[:1])


def _keys(task: TaskSpec, told: str) -> Keys:
    return keys_of(PolicySpec(task.cameras, task.state, task.action), told)


def _spec(about: Mapping[str, Any]) -> PolicySpec:
    """The PolicySpec in the metadata of a server of lapa. Raises LapaError if something is missing."""
    try:
        action = about["action"]
        spec = ActionSpec(tuple(action["names"]), tuple(action["kinds"]), float(action["hz"]))
        return PolicySpec(
            tuple(about["cameras"]), tuple(about["state"]), spec, int(about["chunk"]), int(about["execute"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LapaError(f"The server's metadata are not whole ({error}).") from None


def _read(unpack: Any, message: Any, address: Address) -> Any:
    try:
        return unpack(message)
    except Fault as error:
        raise LapaError(f"{address.place} sent an answer that cannot be read: {error}") from None


def _chunk(told: Any, address: Address) -> Array:
    """float32 [n, A], as far as it is carried out. Raises LapaError."""
    with contextlib.suppress(ValueError, TypeError):
        found = np.array(told, np.float32)
        found = found[None] if found.ndim == 1 else found
        if found.ndim == 2 and found.size and np.isfinite(found).all():
            if address.execute is not None and address.execute > len(found):
                raise LapaError(f"execute={address.execute}: {address.place} answers with {len(found)} actions.")
            return found[: address.execute]
    raise LapaError(f"{address.place} answered without actions [n, A] of finite numbers.")


def _stacked(chunks: Sequence[Array], address: Address) -> Array:
    if len({chunk.shape for chunk in chunks}) > 1:
        raise LapaError(f"{address.place} answers with chunks of several lengths. Add ,execute=1.")
    return np.stack(chunks)
