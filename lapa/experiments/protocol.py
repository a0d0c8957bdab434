"""`lapa protocol`: several policies on a real robot, judged by a person, fairly (paper, section 4.4; docs/protocol.md).

    same scenes   every method meets the same initial poses, one method after another before the pose changes
    blind         the methods of a pose are called A, B, ..; which is which is drawn anew for each pose
    at once       every answer is written before the next question; the same command goes on after a stop

The folder holds plan.json (what is asked), sealed.json (which letter is which method: not for the person who judges),
answers.json (letters only), logs/ (what the commands printed), and after the report results.json, report.md and two
pictures. Where the file names a benchmark, a simulator stands in the person's place.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lapa.artefacts.folder import read_config, read_json, write_json
from lapa.contracts import Benchmark, LapaError, Outcome
from lapa.evaluate import Trial, open_benchmark, roll_out
from lapa.experiments.players import Player, of_policy, of_row
from lapa.experiments.protocol_file import Protocol, Task

OWN = ("plan.json", "sealed.json", "answers.json", "logs", "results.json", "report.md", "success.png", "credit.png")
PATIENCE = 10  # seconds that a command has to end after Ctrl-C
SEARCHED, EACH = 1000, 20  # scenes at most that are looked at for those of a family: in all, or for each pose if more


@dataclass(frozen=True)
class Rollout:
    """One question: the method `letter` at the pose number `pose`. `number` counts from 1 over all."""

    number: int
    pose: int
    letter: str
    method: str


@dataclass(frozen=True)
class Answer:
    """The number of stages that were reached, 0: none."""

    stage: int
    note: str = ""


@dataclass(frozen=True)
class Session:
    """A protocol in its folder."""

    protocol: Protocol
    out: Path
    sealed: tuple[dict[str, str], ...]  # of each pose: letter -> method
    answers: list[dict[str, Any]] = field(default_factory=list)
    undone: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def rollouts(self) -> list[Rollout]:
        """All questions, in the order in which they are asked."""
        pairs = [(i, letter, method) for i, order in enumerate(self.sealed) for letter, method in order.items()]
        return [Rollout(number, *each) for number, each in enumerate(pairs, 1)]

    def task(self, rollout: Rollout) -> Task:
        """The task of a rollout."""
        return self.protocol.tasks[self.protocol.poses[rollout.pose].task]

    def keep(self, rollout: Rollout, answer: Answer) -> None:
        """Write an answer."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.answers.append({"pose": rollout.pose, "letter": rollout.letter, "stage": answer.stage,
                             "note": answer.note, "time": now})  # fmt: skip
        self._write()

    def undo(self) -> None:
        """Take the last answer back; the file keeps it apart."""
        self.undone.append(self.answers.pop())
        self._write()

    def _write(self) -> None:
        write_json(self.out / "answers.json", {"answers": self.answers, "undone": self.undone})


def open_session(protocol: Protocol, out: Path) -> Session:
    """Begin in an empty folder, or go on with what was answered there. Raises LapaError where the folder holds
    something else, or another protocol."""
    inside = {path.name for path in out.iterdir() if path.name[0] != "."} if out.exists() else set()
    if other := sorted(inside - set(OWN)):
        raise LapaError(f"{out} holds more than a protocol ({other[0]}). Choose another --out.")
    plan = _plan(protocol)
    if not inside - {"plan.json", "sealed.json"}:  # nothing has been run or answered yet
        sealed = _shuffled(protocol)
        write_json(out / "sealed.json", sealed)
        write_json(out / "plan.json", {**plan, "order": _hash(sealed)})
        return Session(protocol, out, tuple(sealed))
    if "plan.json" not in inside:
        raise LapaError(f"{out} holds {min(inside)} but no plan.json. Choose another --out.")
    before = read_json(out / "plan.json", "protocol")
    before = {"policies": plan["policies"]} | (before if isinstance(before, dict) else {})  # once they were not kept
    if changed := [key for key in plan if before.get(key) != plan[key]]:
        raise LapaError(f"{out} holds a protocol with other {changed[0]}. Choose another --out, or undo the change.")
    sealed = read_json(out / "sealed.json", "order of a protocol")
    fits = isinstance(sealed, list) and len(sealed) == len(protocol.poses)
    fits = fits and all(isinstance(o, dict) and sorted(o.values()) == sorted(protocol.methods) for o in sealed)
    if not fits or before.get("order", _hash(sealed)) != _hash(sealed):  # once its hash was not kept
        raise LapaError(f"{out / 'sealed.json'} does not fit plan.json: it says which method a letter stands for, and "
                        "is not as lapa wrote it. Restore it, or choose another --out.")  # fmt: skip
    session = Session(protocol, out, tuple(sealed))
    if "answers.json" in inside:
        _read_answers(session)
    return session


def _read_answers(session: Session) -> None:
    path = session.out / "answers.json"
    told = read_json(path, "answers of a protocol")
    try:
        if (count := len(told["answers"])) > len(session.rollouts):
            raise LapaError(f"{path}: {count} answers to {len(session.rollouts)} questions.")
        for rollout, answer in zip(session.rollouts[:count], told["answers"], strict=True):
            right = (answer["pose"], answer["letter"]) == (rollout.pose, rollout.letter)
            if not right or not 0 <= answer["stage"] <= len(session.task(rollout).stages):
                raise LapaError(f"{path}: the answer {rollout.number} is not that of sealed.json's order.")
            if type(answer["stage"]) is not int or {type(answer[name]) for name in ("note", "time")} != {str}:
                raise LapaError(f"{path}: the answer {rollout.number} has no stage, note and time as lapa writes them.")
        session.answers.extend(told["answers"])
        session.undone.extend(told.get("undone", []))
    except (KeyError, TypeError, ValueError) as error:
        raise LapaError(f"{path} holds no answers of a protocol ({error!r}).") from None


def _plan(protocol: Protocol) -> dict[str, Any]:
    """As JSON has it. policies: hashes of those in folders, which may be trained anew before the session goes on."""
    tasks = {task.name: dict(task.stages) for task in protocol.tasks.values()}
    policies = {name: read_config(Path(run)).get("hash") for name, run in protocol.methods.items()
                if run and os.path.isfile(f"{run}/config.json")}  # fmt: skip
    return {"seed": protocol.seed, "methods": dict(protocol.methods), "policies": policies, "tasks": tasks,
            "types": list(protocol.types), "poses": [asdict(pose) for pose in protocol.poses]}  # fmt: skip


def _shuffled(protocol: Protocol) -> list[dict[str, str]]:
    """Of each pose: letter -> method."""
    names = list(protocol.methods)
    orders = [np.random.default_rng([protocol.seed, 11, i]).permutation(len(names)) for i in range(len(protocol.poses))]
    return [{string.ascii_uppercase[k]: names[j] for k, j in enumerate(order)} for order in orders]


def _hash(sealed: Any) -> str:
    """Of JSON values."""
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


# --- asking


def judge_all(session: Session, ask: Callable[[str], str], say: Callable[[str], None]) -> bool:
    """Ask for every rollout that has no answer. False where the person stops before the end.

    ask: a question -> the line that is typed; it may raise EOFError, which stops. say: shows a line.
    """
    if session.protocol.simulated:
        simulator = _Simulator(session)
        while len(session.answers) < len(session.rollouts):
            rollout = session.rollouts[len(session.answers)]
            session.keep(rollout, answer := simulator.judge(rollout))
            task = session.task(rollout)
            say(f"{rollout.number:>4} of {len(session.rollouts)}: {task.name}, method {rollout.letter}: "
                f"{_reached(task, answer.stage)}")  # fmt: skip
        return True
    _require_commands(session.protocol)
    return _Person(session, ask, say).judge_all()


def _reached(task: Task, stage: int) -> str:
    return f"{task.stages[stage - 1][0]} ({task.credit(stage):g})" if stage else "nothing (0)"


class _Person:
    """Questions on a terminal."""

    def __init__(self, session: Session, ask: Callable[[str], str], say: Callable[[str], None]) -> None:
        self.session, self.ask, self.say = session, ask, say
        self.ran: set[int] = set()  # rollouts whose command need not run again to be judged

    def judge_all(self) -> bool:
        session = self.session
        while len(session.answers) < len(session.rollouts):
            rollout = session.rollouts[len(session.answers)]
            self._show(rollout)
            answer = self._question(rollout)
            if answer == "stop":
                self.say(f"{len(session.answers)} of {len(session.rollouts)} answers are in {session.out}. "
                         "The same command goes on.")  # fmt: skip
                return False
            if isinstance(answer, Answer):
                session.keep(rollout, answer)
            elif session.answers:
                session.undo()
                self.ran.add(len(session.answers) + 1)
            else:
                self.say("  There is no answer yet to take back.")
        return True

    def _show(self, rollout: Rollout) -> None:
        pose, task = self.session.protocol.poses[rollout.pose], self.session.task(rollout)
        self.say(f"\nRollout {rollout.number} of {len(self.session.rollouts)}: {pose.task}, {pose.type}, initial pose "
                 f"{pose.rollout}")  # fmt: skip
        for name, text in (("Set-up", pose.setup), ("Picture", pose.picture), ("Instruction", pose.instruction)):
            if text:
                self.say(f"  {name + ':':<13}{text}")
        self.say(f"  Method {rollout.letter}")
        self.say("  0 nothing" + "".join(f", {i} {name} ({c:g})" for i, (name, c) in enumerate(task.stages, 1)))

    def _question(self, rollout: Rollout) -> Any:
        """An Answer, "undo" or "stop"."""
        command, last = self.session.protocol.methods[rollout.method], len(self.session.task(rollout).stages)
        command = command if _is_command(command) else ""
        while True:
            if command and rollout.number not in self.ran:
                typed = self._typed("  Scene ready? Enter: start, u: undo the last answer, q: stop: ")
                if typed in ("u", "q"):
                    return "undo" if typed == "u" else "stop"
                self._run(rollout, command)
                self.ran.add(rollout.number)
            more = ", r: run it again" if command else ""
            typed, _, note = self._typed(f"  Stage 0-{last} [and a note]{more}, u: undo, q: stop: ").partition(" ")
            if typed in ("u", "q"):
                return "undo" if typed == "u" else "stop"
            if typed == "r" and command:
                self.ran.discard(rollout.number)
            elif typed.isdecimal() and int(typed) <= last:
                return Answer(int(typed), note.strip())
            else:
                self.say(f'  "{typed}" is no stage from 0 to {last}.')

    def _typed(self, question: str) -> str:
        try:
            return self.ask(question).strip()
        except EOFError:
            return "q"

    def _run(self, rollout: Rollout, command: str) -> None:
        """Run a method's command until it ends or Ctrl-C ends it. What it prints goes to a file, unseen."""
        pose = self.session.protocol.poses[rollout.pose]
        words = [word.replace("{instruction}", pose.instruction) for word in shlex.split(command)]
        log = self.session.out / "logs" / f"pose_{rollout.pose + 1}_{rollout.letter}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.say("  It runs; Ctrl-C ends it.")
        with log.open("ab") as printed:
            running = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT,
                                       env={**os.environ, "LAPA_INSTRUCTION": pose.instruction})  # fmt: skip
            try:
                code = running.wait()
            except KeyboardInterrupt:  # the terminal has sent it to the command too
                code = _ended(running)
            finally:
                if running.poll() is None:  # lapa ends (SIGTERM): the robot must not go on alone
                    running.terminate()
                    _ended(running)
        self.say("  It has ended." if not code else f"  It ended with code {code}; {log} has what it printed.")


def _ended(running: subprocess.Popen[bytes]) -> int:
    try:
        return running.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        running.kill()
        return running.wait()
    finally:  # a second Ctrl-C
        if running.poll() is None:
            running.kill()
            running.wait()


def _is_command(run: str) -> bool:
    return bool(run) and "://" not in run and not os.path.isdir(run)


def _require_commands(protocol: Protocol) -> None:
    """Raises LapaError for what is no command; and where some methods have one and others not, as who sees a command
    start knows then which methods it can be."""
    for name, run in protocol.methods.items():
        if not _is_command(run):
            continue
        try:
            words = shlex.split(run)
        except ValueError as error:
            raise LapaError(f"methods.{name}: {run}: is no command ({error}).") from None
        if shutil.which(words[0]) is None:
            raise LapaError(f"methods.{name}: {run}: {words[0]} is neither a folder, a policy server nor a command.")
    with_command = [name for name, run in protocol.methods.items() if _is_command(run)]
    if with_command and (without := [name for name in protocol.methods if name not in with_command]):
        raise LapaError(f"methods.{with_command[0]} is a command that lapa starts, and {without[0]} is none, so the "
                        "person could tell them apart. Give all methods a command, or none.")  # fmt: skip


# --- a simulator in the person's place


@dataclass(frozen=True)
class _One(Trial):
    """A single scene, of a given seed."""

    scene: int = 0

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the scene."""
        return (self.scene,)


class _Simulator:
    """Rolls policies out in the benchmark that a pose names, in the scene that belongs to the pose.

    Where a task has the name of a family of the benchmark, its scenes are of this family.
    """

    def __init__(self, session: Session) -> None:
        self.session, protocol = session, session.protocol
        self.worlds = {text: open_benchmark(text) for text in dict.fromkeys(pose.benchmark for pose in protocol.poses)}
        self.actors = {(text, name): _player(run or name, world, text).actor for text, world in self.worlds.items()
                       for name, run in protocol.methods.items()}  # fmt: skip
        for pose in {(pose.task, pose.benchmark): pose for pose in protocol.poses}.values():
            told, task = self.worlds[pose.benchmark].spec.stages, protocol.tasks[pose.task]
            lost = [name for name, _ in task.stages[:-1] if name not in told]
            if lost:
                print(f"Note: {pose.benchmark} does not tell the stages {', '.join(lost)} of {task.name}; it tells "
                      f"{', '.join(told) or 'success only'}.", file=sys.stderr)  # fmt: skip
        if any(pose.instruction for pose in protocol.poses):
            print("Note: a simulator's scenes have their own instructions, which the policies are told; those of the "
                  "file are not used.", file=sys.stderr)  # fmt: skip
        self.scenes: dict[int, int] = {}

    def judge(self, rollout: Rollout) -> Answer:
        pose = self.session.protocol.poses[rollout.pose]
        world = self.worlds[pose.benchmark]
        if rollout.pose not in self.scenes:
            self.scenes[rollout.pose] = self._scene(rollout.pose, world)
        trial = _One(1, scene=self.scenes[rollout.pose])
        (outcome,), _ = roll_out(world, self.actors[pose.benchmark, rollout.method], trial)
        return Answer(stage_of(outcome, self.session.task(rollout)), f"scene {trial.scene}")

    def _scene(self, i: int, world: Benchmark) -> int:
        """Of pose i: the same for all methods and at every try, and another one for each pose of a benchmark."""
        poses, families = self.session.protocol.poses, world.spec.families
        pose, some = poses[i], Trial(max(SEARCHED, EACH * len(poses)), self.session.protocol.seed).seeds
        earlier = [other for other in poses[:i] if other.benchmark == pose.benchmark]
        if pose.task not in families or len(families) == 1:
            left, fits = len(earlier), list(some)
        else:
            left, fits = sum(other.task == pose.task for other in earlier), []
            family = getattr(world, "family", None)
            for seed in some:
                if family is None:
                    world.reset([seed])
                if (family(seed) if family else world.tasks()[0]) == pose.task:
                    fits.append(seed)
                if len(fits) > left:
                    break
        if len(fits) <= left:
            raise LapaError(
                f"{pose.benchmark}: of {len(some)} scenes {len(fits)} are for {pose.task}; more are needed."
            )
        return fits[left]


def _player(run: str, world: Benchmark, benchmark: str) -> Player:
    if "://" in run or os.path.isdir(run):
        return of_policy(run, world, benchmark)
    return of_row(run, world, benchmark, "policy folder, policy server or row")


def stage_of(outcome: Outcome, task: Task) -> int:
    """The number of stages that an outcome reached. The last is the benchmark's success, and nothing else is."""
    if outcome.success:
        return len(task.stages)
    return max((i for i, (name, _) in enumerate(task.stages[:-1], 1) if name in outcome.stages), default=0)
