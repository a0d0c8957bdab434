"""`lapa protocol`: the file, the blind order, a session that is stopped and goes on, the report, the simulator."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from lapa import cli
from lapa.contracts import LapaError, Outcome
from lapa.experiments import protocol
from lapa.experiments.protocol import Answer, Session, _Simulator, judge_all, open_session, stage_of
from lapa.experiments.protocol_file import EXAMPLE, STAGES, Task, read_protocol
from lapa.experiments.protocol_report import report
from lapa.measures.intervals import mean, wilson

ROOT = Path(__file__).parents[2]
FILE = """
seed: 3
rollouts: 2
methods: {one: , two: , three: }
tasks:
  knock: {instruction: knock it, stages: knock}
  carrot: {instruction: lift it, stages: {reach: .25, place: 1}, setup: on the plate}
types:
  seen:
  other: {setup: another table, instruction: {knock: tip it, carrot: take it}, pictures: [a.png, b.png]}
"""
ROLLOUTS = 3 * 2 * 2 * 2


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, FILE)


def written(folder: Path, text: str) -> Path:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"")
    (folder / "protocol.yaml").write_text(text)
    return folder / "protocol.yaml"


class Typed:
    """A person who types these lines and is then gone."""

    def __init__(self, *lines: str) -> None:
        self.lines, self.shown = list(lines), []

    def ask(self, question: str) -> str:
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def __call__(self, file: Path, out: Path) -> tuple[Session, bool]:
        session = open_session(read_protocol(file), out)
        return session, judge_all(session, self.ask, self.shown.append)


# --- the file


def test_the_example_is_a_protocol_and_in_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["protocol", "--example"])
    told = read_protocol(written(tmp_path, capsys.readouterr().out))
    assert len(told.poses) == 6 * len(told.tasks) * len(told.types)
    assert f"```yaml\n{EXAMPLE}```" in (ROOT / "docs/protocol.md").read_text()
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/protocol.md").read_text(), re.DOTALL):
        assert read_protocol(written(tmp_path, block)).methods
    assert told.tasks["carrot"].stages == tuple(STAGES["pick-place"].items())
    credits = {name: list(stages.values()) for name, stages in STAGES.items()}
    assert credits == {"knock": [0.5, 1], "cover": [0.33, 0.66, 1], "pick-place": [0.25, 0.5, 0.75, 1]}


def test_a_pose_has_the_words_of_its_type_else_of_its_task(file: Path) -> None:
    poses = {(p.task, p.type, p.rollout): p for p in read_protocol(file).poses}
    assert len(poses) == 8
    assert poses["carrot", "seen", 1].setup == "on the plate"
    assert poses["carrot", "seen", 2].instruction == "lift it"
    assert poses["carrot", "other", 1].setup == "another table"
    assert poses["knock", "other", 2].instruction == "tip it"
    assert [poses["knock", "other", i].picture for i in (1, 2)] == [str(file.parent / n) for n in ("a.png", "b.png")]
    assert poses["knock", "seen", 1].picture == ""


def test_names_may_be_a_list_and_pictures_a_folder(tmp_path: Path) -> None:
    told = yaml.safe_load(FILE)
    told["methods"] = ["one", {"name": "two", "run": "openpi://here:1"}, "three"]
    told["tasks"] = [{"name": name, **task} for name, task in told["tasks"].items()]
    told["types"] = [{"name": "seen", "pictures": "poses"}]
    (tmp_path / "poses").mkdir()
    for name in ("2.PNG", "1.jpg", "notes.txt"):
        (tmp_path / "poses" / name).write_bytes(b"")
    made = read_protocol(written(tmp_path, yaml.safe_dump(told, sort_keys=False)))
    assert made.methods == {"one": "", "two": "openpi://here:1", "three": ""}
    assert [Path(pose.picture).name for pose in made.poses[:2]] == ["1.jpg", "2.PNG"]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("rollouts: 2", "rolouts: 2", ("rolouts", '"rollouts"')),
        ("rollouts: 2", "rollouts: 0", ("rollouts",)),
        ("seed: 3", "seed: -1", ("seed", "-1")),
        ("seed: 3", "seed: true", ("seed", "True")),
        ("tasks:", "types:", ("twice", "types")),
        (FILE[FILE.index("tasks:") : FILE.index("types:")], "", ("tasks",)),
        ("two: ", "one: ", ("one", "twice")),
        ("methods: {one: , two: , three: }", "methods: [one, two, one]", ("methods", "one", "twice")),
        ("methods: {one: ", "methods: {no: ", ("methods", "False")),
        ("stages: knock", "stages: nock", ("tasks.knock.stages", "nock", '"knock"')),
        ("stages: knock", "stage: knock", ("tasks.knock", "stage", '"stages"')),
        (", stages: knock", "", ("tasks.knock.stages", "pick-place")),
        ("place: 1}", "place: .9}", ("tasks.carrot.stages", "0.9")),
        ("place: 1}", "place: .2, put: 1}", ("tasks.carrot.stages.place", "0.2")),
        ("place: 1}", "place: yes}", ("tasks.carrot.stages", "True")),
        ("place: 1}", "place: .nan}", ("tasks.carrot.stages.place", "nan")),
        ("instruction: knock it, ", "", ("tasks.knock.instruction",)),
        ("{knock: tip it, carrot: take it}", "{knock: tip it}", ("types.other.instruction", "carrot")),
        ("{knock: tip it, carrot: take it}", "{knok: tip it}", ("types.other.instruction", '"knock"')),
        ("setup: another", "set_up: another", ("types.other", "set_up", '"setup"')),
        ("[a.png, b.png]", "[a.png, c.png]", ("types.other.pictures", "c.png")),
        ("[a.png, b.png]", "[a.png, b.png, a.png]", ("types.other.pictures", "3")),
        ("[a.png, b.png]", "[]", ("types.other.pictures",)),
        ("setup: another", "benchmark: tabletop, setup: another", ("benchmark", "knock, seen")),
        ("seed: 3", "seed: [3", ("YAML",)),
        ("seed: 3", "seed: !!python/object/apply:os.getcwd []", ("YAML", "python")),
        ("one: ,", "one: {rum: x},", ("methods.one", "rum", '"run"')),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, before: str, after: str, words: tuple[str, ...]) -> None:
    assert before in FILE
    path = written(tmp_path, FILE.replace(before, after, 1))
    with pytest.raises(LapaError) as caught:
        read_protocol(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_a_file_that_is_not_there_and_a_command_that_is_none(file: Path, tmp_path: Path) -> None:
    with pytest.raises(LapaError, match=r"absent\.yaml"):
        read_protocol(tmp_path / "absent.yaml")
    file.write_text(FILE.replace("{one: ,", "{one: runs/polcy --now,"))
    with pytest.raises(LapaError, match="runs/polcy"):
        Typed("0")(file, tmp_path / "out")


def test_who_sees_a_command_start_must_not_know_the_method_by_it(file: Path, tmp_path: Path) -> None:
    file.write_text(FILE.replace("two: ,", f"two: {sys.executable} run.py,"))
    with pytest.raises(
        LapaError, match=r"methods.two is a command .* one is none.*Give all methods a command, or none"
    ):
        Typed("0")(file, tmp_path / "out")


# --- the session


def test_every_method_meets_every_pose_in_an_order_drawn_anew(file: Path, tmp_path: Path) -> None:
    session = open_session(read_protocol(file), tmp_path / "out")
    assert len(session.rollouts) == ROLLOUTS
    assert [r.pose for r in session.rollouts] == [i for i in range(8) for _ in range(3)]
    assert [r.letter for r in session.rollouts] == ["A", "B", "C"] * 8
    assert all(sorted(order.values()) == ["one", "three", "two"] for order in session.sealed)
    assert len({tuple(order.values()) for order in session.sealed}) > 2
    file.write_text(FILE.replace("seed: 3", "seed: 4"))
    assert open_session(read_protocol(file), tmp_path / "other").sealed != session.sealed


def test_who_judges_sees_no_method(file: Path, tmp_path: Path) -> None:
    person = Typed(*["1 slipped"] * ROLLOUTS)
    _, done = person(file, tmp_path / "out")
    assert done
    shown = "\n".join(person.shown)
    assert "Method B" in shown
    assert "tip it" in shown
    assert str(file.parent / "b.png") in shown
    assert not re.search(r"\b(one|two|three)\b", shown)
    assert not re.search(r"\b(one|two|three)\b", (tmp_path / "out/answers.json").read_text())


def test_it_goes_on_after_a_stop_and_answers_can_be_taken_back(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    session, done = Typed("u", "2", "9", "-1", "x", "1 note", "u", "0 better", "2", "q", "1")(file, out)
    assert not done
    kept = json.loads((out / "answers.json").read_text())
    assert [(a["stage"], a["note"]) for a in kept["answers"]] == [(2, ""), (0, "better"), (2, "")]
    assert [(a["stage"], a["note"]) for a in kept["undone"]] == [(1, "note")]
    again, done = Typed("u", "u", "1", *["0"] * 100)(file, out)
    assert done
    assert again.sealed == session.sealed
    assert [a["stage"] for a in again.answers] == [2, 1] + [0] * (ROLLOUTS - 2)
    assert len(again.undone) == 3
    Typed()(file, out)


def test_another_protocol_or_a_damaged_folder_is_refused(file: Path, tmp_path: Path) -> None:
    out, session = tmp_path / "out", read_protocol(file)
    Typed("1")(file, out)
    file.write_text(FILE.replace("reach: .25", "reach: .3"))
    with pytest.raises(LapaError, match="tasks"):
        open_session(read_protocol(file), out)
    file.write_text(FILE)
    first = {"pose": 0, "letter": "A", "stage": 1, "note": "", "time": ""}
    (out / "answers.json").write_text(json.dumps({"answers": [first]}))
    assert open_session(read_protocol(file), out).answers == [first]
    stages = ({"stage": stage} for stage in ("1", 1.5, None, 99))
    edited = [
        json.dumps({"answers": [first | part]}) for part in (*stages, {"note": None}, {"time": 3}, {"letter": "B"})
    ]
    for text in (*edited, '{"answers": [{}]}', '{"answers": 3}', "[]", "{"):
        (out / "answers.json").write_text(text)
        with pytest.raises(LapaError, match=r"answers\.json"):
            open_session(read_protocol(file), out)
    (out / "answers.json").write_text(json.dumps({"answers": [first]}))
    letters = json.loads((out / "sealed.json").read_text())
    (out / "sealed.json").write_text(json.dumps([{**o, "A": o["B"], "B": o["A"]} for o in letters]))
    with pytest.raises(LapaError, match=r"sealed\.json does not fit"):
        open_session(read_protocol(file), out)
    open_session(read_protocol(file), tmp_path / "new")
    file.write_text(FILE.replace("reach: .25", "reach: .3"))
    assert open_session(read_protocol(file), tmp_path / "new").protocol.tasks != session.tasks, "nothing is lost by it"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("")
    with pytest.raises(LapaError, match=r"notes\.txt"):
        open_session(read_protocol(file), tmp_path / "mine")


def test_a_command_is_run_unseen(tmp_path: Path) -> None:
    script = tmp_path / "act.py"
    script.write_text("import os, sys\nprint(sys.argv[1], os.environ['LAPA_INSTRUCTION'])\nsys.exit(4)\n")
    text = f"""
rollouts: 1
methods: {{mine: "{sys.executable} {script} {{instruction}}"}}
tasks: {{t: {{instruction: put it here, stages: {{done: 1}}}}}}
types: [seen]
"""
    person = Typed("", "r", "", "1")
    _, done = person(written(tmp_path, text), tmp_path / "out")
    assert done
    (log,) = (tmp_path / "out/logs").iterdir()
    assert log.read_text() == "put it here put it here\n" * 2
    assert any("code 4" in line and log.name in line for line in person.shown)
    assert "mine" not in log.name


def test_a_command_does_not_outlive_lapa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM ends lapa by way of SystemExit (cli.py): the robot must not go on alone."""
    text = f"""
rollouts: 1
methods: {{mine: "{sys.executable} -c 'import time; time.sleep(60)'"}}
tasks: {{t: {{instruction: put it here, stages: {{done: 1}}}}}}
types: [seen]
"""
    begun: list[subprocess.Popen[bytes]] = []
    wait = subprocess.Popen.wait

    def stopped(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is None and not begun:
            begun.append(process)
            raise SystemExit(143)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", stopped)
    with pytest.raises(SystemExit):
        Typed("", "r")(written(tmp_path, text), tmp_path / "out")
    assert begun[0].poll() is not None


def test_a_command_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PATIENCE", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        running.terminate()
        assert protocol._ended(running) == -signal.SIGKILL


# --- the report


def answered(session: Session) -> Iterator[str]:
    """`one` always succeeds, `two` reaches the first stage in seen scenes, `three` nothing."""
    for rollout in session.rollouts:
        pose = session.protocol.poses[rollout.pose]
        last = len(session.protocol.tasks[pose.task].stages)
        yield str({"one": last, "two": int(pose.type == "seen"), "three": 0}[rollout.method])


def test_the_report(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    lines = list(answered(open_session(read_protocol(file), out)))
    Typed(*lines[:4])(file, out)
    cli.main(["protocol", str(file), "--out", str(out), "--report"])
    made = json.loads((out / "results.json").read_text())
    assert made["poses"] == {"done": 1, "planned": 8}
    assert {row["pose"] for row in made["rollouts"]} == {1}
    session, _ = Typed(*lines[4:])(file, out)
    made = report(session)
    assert made == json.loads((out / "results.json").read_text())
    one, two, three = (made["methods"][name] for name in ("one", "two", "three"))
    assert (one["credit"], one["success"], three["credit"], two["success"]) == (1, 1, 0, 0)
    assert one["interval"] == list(wilson(8, 8))
    assert two["credit"] == pytest.approx((0.5 * 2 + 0.25 * 2) / 8)
    assert two["credit_interval"][0] < two["credit"] < two["credit_interval"][1]
    assert two["types"]["other"]["credit"] == 0
    assert two["tasks"]["knock"]["credit"] == pytest.approx(0.25)
    assert two["cells"]["carrot, seen"]["credit"] == pytest.approx(0.25)
    assert made["pairs"]["two - three"]["credit"] == {"win": 4, "tie": 4, "lose": 0}
    assert made["pairs"]["two - three"]["success"] == {"win": 0, "tie": 8, "lose": 0}
    assert made["pairs"]["one - two"]["success"] == {"win": 8, "tie": 0, "lose": 0}
    text = (out / "report.md").read_text()
    assert "4 / 4 / 0" in text
    assert all(f"| {name} |" in text for name in ("one", "two", "three"))
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in ("success.png", "credit.png"))


def test_nothing_to_report(file: Path, tmp_path: Path) -> None:
    session, _ = Typed("1", "1")(file, tmp_path / "out")
    with pytest.raises(LapaError, match="out"):
        report(session)


def test_the_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).choice([0, 0.25, 0.5, 0.75, 1], 60)
    low, high = mean(values)
    error = values.std(ddof=1) / np.sqrt(60)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert low < values.mean() < high
    assert mean(np.zeros(10)) == wilson(0, 10)
    assert mean(np.ones(10)) == pytest.approx(wilson(10, 10))
    assert mean(np.zeros(10), -1)[0] == -mean(np.zeros(10), -1)[1]
    with pytest.raises(LapaError):
        mean(np.zeros(0))


# --- a simulator in the person's place


def test_the_credit_of_an_outcome() -> None:
    task = Task("carrot", (("reached", 0.25), ("lifted", 0.5), ("placed", 1)))

    def stage(success: bool, *stages: str) -> int:
        return stage_of(Outcome("", 0, "", success, 1, stages), task)

    assert [stage(False), stage(False, "reached", "moved"), stage(False, "lifted"), stage(True)] == [0, 1, 2, 3]
    assert stage(False, "placed") == 0, "success is the benchmark's own"


def test_a_command_may_be_long(tmp_path: Path) -> None:
    command = f"true {'x' * 300}"
    file = written(
        tmp_path, FILE.replace("{one: , two: , three: }", f"{{one: {command}, two: {command}, three: {command}}}")
    )
    assert command in read_protocol(file).methods.values()
    Typed("q")(file, tmp_path / "out")


def test_a_policy_that_was_trained_anew_is_another_one(tmp_path: Path) -> None:
    """Its rollouts and those of the one before would be one row."""
    policy, out = tmp_path / "policy", tmp_path / "out"
    policy.mkdir()
    file = written(tmp_path, SIMULATED.replace("[no_op, expert]", f"{{mine: {policy}, no_op: }}"))
    (policy / "config.json").write_text('{"hash": "one"}')
    session = open_session(read_protocol(file), out)
    session.keep(session.rollouts[0], Answer(0))
    assert len(open_session(read_protocol(file), out).answers) == 1
    (policy / "config.json").write_text('{"hash": "two"}')
    with pytest.raises(LapaError, match="other policies"):
        open_session(read_protocol(file), out)


SIMULATED = """
rollouts: 2
benchmark: tabletop
methods: [no_op, expert]
tasks: {block2side: {stages: {reach: .5, solved: 1}}, separate: {stages: {solved: 1}}}
types: [seen, {name: unseen, benchmark: "tabletop:sim,split=unseen"}]
"""


def test_tabletop_in_the_persons_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = written(tmp_path, SIMULATED), tmp_path / "out"
    cli.main(["protocol", str(file), "--out", str(out)])
    said = capsys.readouterr()
    assert "reach" in said.err, "what the benchmark does not tell is said"
    made = json.loads((out / "results.json").read_text())
    assert made["methods"]["expert"]["success"] == 1
    assert made["methods"]["no_op"]["credit"] < 0.2
    scenes: dict[tuple[str, str], set[str]] = {}
    for row in made["rollouts"]:
        scenes.setdefault((row["task"], row["pose"]), set()).add(row["note"])
    assert all(len(same) == 1 for same in scenes.values()), "all methods meet the same scene"
    seen = [note for (_, pose), (note,) in scenes.items() if pose in (1, 2, 5, 6)]
    assert len(set(seen)) == 4, "and each pose is another one"
    assert "instructions" not in said.err
    file.write_text(SIMULATED.replace("expert", "expret"))
    with pytest.raises(SystemExit):
        cli.main(["protocol", str(file), "--out", str(tmp_path / "wrong")])
    assert '"expert"' in capsys.readouterr().err


def test_as_many_scenes_as_poses(tmp_path: Path) -> None:
    """More than are looked at for a family."""
    text = """
rollouts: 600
methods: [random]
tasks: {one: {instruction: x, stages: {done: 1}}, two: {instruction: y, stages: {done: 1}}}
types: {seen: {benchmark: tabletop}}
"""
    session = open_session(read_protocol(written(tmp_path, text)), tmp_path / "out")
    simulator = _Simulator(session)
    world = next(iter(simulator.worlds.values()))
    assert simulator._scene(1199, world) != simulator._scene(0, world)


def test_instructions_that_a_simulator_does_not_use_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A type that differs in them alone would be judged as the one without."""
    told = SIMULATED.replace("{name: unseen, benchmark", "{name: unseen, instruction: go, benchmark")
    cli.main(["protocol", str(written(tmp_path, told.replace("expert", "random"))), "--out", str(tmp_path / "out")])
    assert "those of the file are not used" in capsys.readouterr().err
