"""`lapa serve`: the policy server."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lapa.contracts import LapaError, Observation, PolicySpec
from lapa.serving import EPISODES

if TYPE_CHECKING:
    from lapa.contracts import ActionSpec, Array
    from lapa.policies import Policy
    from lapa.serving.server import Server

TRIED = 224  # pixels a side of the picture that a policy is tried with before it is served
Several = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


def serve(
    policy: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="POLICY")],
    keys: str = "",
    instruction: str | None = None,
    embodiment: str = "",
    execute: int | None = None,
    ensemble: float | None = None,
    limit: Annotated[Several, tyro.conf.arg(metavar="NAME=LOW:HIGH")] = (),
    max_step: Annotated[Several, tyro.conf.arg(metavar="[NAME=]STEP")] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    http_port: int = 8001,
    token_file: Path | None = None,
    threads: int | None = None,
    clients: int = 64,
    queue: int = 64,
    largest: int = 32,
    benchmark: str | None = None,
    episodes: int = 20,
) -> None:
    """Serve a policy to robot clients: openpi, OpenVLA, vla-eval.

    Clients of openpi and vla-eval connect to ws://HOST:PORT, clients of OpenVLA post to http://HOST:HTTP_PORT/act.
    Ctrl-C stops the server. With --benchmark the server runs for one test: the same episodes are run through the
    network and in this process, and all actions are compared. More: docs/serving.md.

    Args:
        policy: folder made by `lapa finetune`, or user/name on the hub
        keys: the clients' names for cameras, state and instruction: libero, droid, aloha, widowx, or a JSON or YAML
            file ("": names are compared)
        instruction: the instruction for clients that send none
        embodiment: for a policy of several robots, the robot of clients that do not name one
        execute: number of actions of each answer that are sent (None: the whole chunk, or 1 with --ensemble)
        ensemble: send the mean of all predictions for the same moment, with weights exp(-m i) and i = 0 for the oldest;
            a usual m is 0.01 (None: send the newest prediction)
        limit: keep a number of the action between two values; NAME "every" stands for all; repeatable
        max_step: limit the change of a number of the action in one step, of all numbers without NAME; repeatable
        host: address to listen on; all but this machine's own (loopback) need a token
        port: port for openpi and vla-eval (0: any free port)
        http_port: port for OpenVLA (0: any free port)
        token_file: file with the token that clients must send; also the environment variable LAPA_SERVE_TOKEN
        threads: CPU threads of the policy (None: torch's number)
        clients: maximum number of connections
        queue: maximum number of waiting requests; further ones are refused
        largest: maximum size of a message in MB
        benchmark: NAME[:PATH][,OPTION=VALUE]: test the server on it
        episodes: number of episodes of that test
    """
    require_packages()
    for name, value in {"execute": execute, "threads": threads, "clients": clients, "queue": queue, "largest": largest,
                        "episodes": episodes}.items():  # fmt: skip
        if value is not None and value < 1:
            raise LapaError(f"--{name} must be at least 1, got {value}.")
    if ensemble is not None and not 0 <= ensemble < 100:
        raise LapaError(f"--ensemble is a number from 0 on, such as 0.01, not {ensemble}.")
    from lapa.serving.server import Where, require_safe, run

    token, where = read_token(token_file), Where(host, port, http_port)
    require_safe(where, token)
    served = opened_policy(policy, threads)
    asked = Asked(keys, instruction, embodiment, execute, ensemble, limit, max_step, clients, queue, largest * 2**20)
    if benchmark is not None:
        _try(served, asked, benchmark, episodes)
        return
    run(made_server(served, asked, where, token))


@dataclass(frozen=True)
class Asked:
    """The options of a served policy."""

    keys: str = ""
    instruction: str | None = None
    embodiment: str = ""
    execute: int | None = None
    ensemble: float | None = None
    limit: tuple[str, ...] = ()
    max_step: tuple[str, ...] = ()
    clients: int = 64
    queue: int = 64
    largest: int = 32 * 2**20


@dataclass(frozen=True)
class Served:
    """An opened policy with its spec, the meaning of its actions, its name and its hash."""

    policy: Policy
    spec: PolicySpec
    action: ActionSpec
    name: str
    hash: str

    def act(self, observation: Observation, episode: int) -> Array:
        """float32 [chunk, A]."""
        from lapa.runtime.threads import acting

        with acting(self.policy):
            found: Array = self.policy.act_batch([observation], [episode])[0]
        return found


def is_remote(policy: str) -> bool:
    """Does it name a policy server, SCHEME://..?"""
    return "://" in policy


def require_packages() -> None:
    """Raise LapaError where the packages of lapa[serve] are not installed."""
    for name in ("msgpack", "websockets"):
        if importlib.util.find_spec(name) is None:
            raise LapaError(f'A policy server needs the package {name}: pip install "lapa[serve]".')


def read_token(file: Path | None) -> str:
    """The token that clients must send; "": none. Raises LapaError."""
    from lapa.serving.remote import TOKEN

    if file is None:
        return os.environ.get(TOKEN, "").strip()
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LapaError(f"--token-file {file}: cannot be read ({error}).") from None
    if not token:
        raise LapaError(f"--token-file {file}: is empty.")
    return token


def opened_policy(path: str, threads: int | None = None) -> Served:
    """Open a policy. Raises LapaError for one that does not speak a robot's actions."""
    from lapa.artefacts.folder import load_artefact
    from lapa.contracts import ActionKind, ActionSpec
    from lapa.policies import opened

    artefact = load_artefact(path, "policy")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    policy = opened(artefact)
    spec = policy.spec
    if not policy.dimensions:
        raise LapaError(f"{path} does not speak a robot's actions yet. Finetune it first (lapa finetune).")
    names = tuple(f"action_{i}" for i in range(policy.dimensions))
    kinds: tuple[ActionKind, ...] = tuple("delta" for _ in names)
    unknown = ActionSpec(names, kinds, 0.0)  # artefacts of lapa 0.1 do not say
    return Served(policy, spec, spec.action or unknown, Path(path).name, artefact.hash)


def made_server(served: Served, asked: Asked, where: Any, token: str = "", log: Any = None) -> Server:
    """The server of a policy, not started yet. Prints what it serves. Raises LapaError if an option does not fit the
    policy, and the errors of the policy on a black picture."""
    from lapa import __version__
    from lapa.serving.answers import Asked as Policies
    from lapa.serving.answers import Manner
    from lapa.serving.keys import keys_of, notes_on
    from lapa.serving.limits import limits_of
    from lapa.serving.server import Server
    from lapa.serving.service import Log, Service
    from lapa.serving.sockets import hello

    log, spec, action = log or Log(), served.spec, served.action
    if asked.execute is not None and asked.execute > spec.chunk:
        raise LapaError(f"--execute {asked.execute}: an answer of {served.name} has {spec.chunk} actions.")
    keys = keys_of(spec, asked.keys, usual=asked.instruction, embodiment=asked.embodiment, say=log.once)
    limits = limits_of(spec, action, asked.limit, asked.max_step)
    manner = Manner(action, limits, spec.chunk, spec.execute, asked.execute, asked.ensemble)
    about = {
        "lapa": __version__, "policy": served.name, "hash": served.hash, "cameras": list(spec.cameras),
        "state": list(spec.state), "chunk": manner.sent, "execute": manner.executed,
        "action": {"names": list(action.names), "kinds": list(action.kinds), "hz": action.hz},
        "expects": {
            "cameras": {name: keys.cameras[name][0] if keys.cameras else f"images/{name}" for name in spec.cameras},
            "state": [part[0] for part in keys.state] or ["state"], "instruction": keys.instruction[0],
        },
    }  # fmt: skip
    ms = _tried(served, asked)
    forget = served.policy.reset
    policies = Policies(served.act, asked.queue, forget, lambda error: _tell_of(error, log))
    about = hello(about, len(spec.cameras), bool(spec.state))
    service = Service(keys, policies, manner, about, log, token, asked.clients, asked.largest)
    said = [f"{served.name} ({served.hash[:12]})", *keys.lines(), *_lines(served, manner, asked)]
    said.append(f"policy       {ms:.1f} ms an answer, {_threads()}")
    said += [f"limits       {told}" for told in limits.lines()]
    said += [f"NOTE: {told}." for told in notes_on(asked.keys, spec)]
    log.say("\n  ".join(said))
    return Server(service, where)


def _lines(served: Served, manner: Any, asked: Asked) -> list[str]:
    from lapa.actions.spec import described

    rate = f"{served.action.hz:g} a second" if served.action.hz else "at a rate that the policy does not say"
    how = f"of which {manner.executed} are executed" if manner.executed < manner.sent else "all executed"
    if asked.ensemble is not None:
        how += f", averaged over answers (m = {asked.ensemble:g})"
    return [
        f"actions      {described(served.action)}, {rate}",
        f"names        {', '.join(served.action.names)}",
        f"an answer    {manner.sent} actions, {how}",
    ]


def _tried(served: Served, asked: Asked) -> float:
    """Ask the policy about a black picture twice; milliseconds of the second time."""
    import time

    import numpy as np

    black = np.zeros((TRIED, TRIED, 3), np.uint8)
    observation = Observation(
        images={camera: black for camera in served.spec.cameras}, instruction=asked.instruction or ""
    )
    if served.spec.state:
        observation["state"] = np.zeros(len(served.spec.state), np.float32)
    if asked.embodiment:
        observation["embodiment"] = asked.embodiment
    for _ in range(2):
        start = time.perf_counter()
        served.act(observation, -1)
    served.policy.reset([-1])
    return 1000 * (time.perf_counter() - start)


def _threads() -> str:
    import torch

    from lapa.runtime.distributed import device

    where = device().type
    count = torch.get_num_threads()
    return f"on {where}, {count} CPU thread{'s' if count > 1 else ''}"


def _tell_of(error: BaseException, log: Any) -> None:
    import traceback

    log.say("".join(traceback.format_exception(error)), f"the policy: {type(error).__name__}")


# --- the loop on this machine


def _try(served: Served, asked: Asked, benchmark: str, episodes: int) -> None:
    """Run episodes through the network and in this process, one observation at a time, and compare all actions."""
    import numpy as np

    from lapa.evaluate import Trial, open_benchmark, require_fit, roll_out, share
    from lapa.serving.remote import Address, OpenpiActor
    from lapa.serving.server import LOOPBACK, Where, running

    world = open_benchmark(benchmark)
    require_fit(served.policy, served.name, world.spec, benchmark)
    trial = Trial(episodes, execute=asked.execute)
    with running(made_server(served, asked, Where(LOOPBACK, 0, 0))) as server:
        actor = OpenpiActor(Address.parse(f"openpi://{LOOPBACK}:{server.where.port}"), world.spec, benchmark)
        wire = _Written(actor.act_batch, actor.reset, served.spec)
        through, _ = roll_out(world, wire, trial)
        actor.close()
    ways, own = np.array(actor.timings).T
    print(f"Through the network: {share(through)['success']:.1%} of {episodes} episodes of {benchmark}.")
    print(f"An answer took {np.percentile(ways, 50):.1f} ms (p99 {np.percentile(ways, 99):.1f}), of which the policy "
          f"{np.percentile(own, 50):.1f} (p99 {np.percentile(own, 99):.1f}).")  # fmt: skip
    if asked.ensemble is not None or asked.limit or asked.max_step:
        print("With --ensemble, --limit or --max-step there is nothing to compare in this process.")
        return

    def alone(observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        numbers = range(len(observations)) if ids is None else ids
        return np.stack([served.act(one, int(i)) for one, i in zip(observations, numbers, strict=True)])

    here = _Written(alone, served.policy.reset, served.spec)
    inside, _ = roll_out(world, here, trial)
    print(f"In this process:     {share(inside)['success']:.1%}.")
    steps = min(len(wire.said), len(here.said))
    wrong = next((i for i in range(steps) if not np.array_equal(wire.said[i], here.said[i])), None)
    if wrong is not None or inside != through or len(wire.said) != len(here.said):
        raise LapaError(f"The episodes differ from answer {steps if wrong is None else wrong} on. Please report this.")
    print(f"The same, step for step: {len(here.said)} rounds of answers.")


class _Written:
    """An actor that keeps its answers."""

    most = EPISODES

    def __init__(self, act: Callable[..., Array], reset: Callable[..., None], spec: PolicySpec) -> None:
        self._act, self.reset, self.spec = act, reset, spec
        self.said: list[Array] = []

    def act_batch(self, observations: Sequence[Observation], ids: Sequence[int] | None = None) -> Array:
        """float32 [B, chunk, A]."""
        self.said.append(self._act(observations, ids))
        return self.said[-1]
