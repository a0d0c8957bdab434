"""What becomes of chunks: shortened, averaged, limited; a session for each episode; a bounded queue."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from serving_made import ACTION, SPEC, Policy, answer, seen

from lapa.contracts import ActionSpec, Array, LapaError, PolicySpec
from lapa.serving import Fault
from lapa.serving.answers import Answer, Asked, Manner, Session
from lapa.serving.limits import Limits, limits_of


def manner(limits: Any = (), steps: Any = (), execute: int | None = None, ensemble: float | None = None) -> Manner:
    return Manner(ACTION, limits_of(SPEC, ACTION, limits, steps), 4, 2, execute, ensemble)


def chunk(first: float = 0.0) -> Array:
    return np.float32([[first + i / 10, i, i % 2] for i in range(4)])


def test_whole_chunks_and_shortened_ones() -> None:
    assert manner().sent == 4
    assert manner().executed == 2, "what the policy says"
    assert manner(execute=3).sent == manner(execute=3).executed == 3
    assert manner(execute=9).sent == 4
    assert manner(ensemble=0.1).sent == manner(ensemble=0.1).executed == 1
    np.testing.assert_array_equal(Session(manner()).actions(Answer(chunk(), 1), None), chunk())


def test_a_step_at_a_time() -> None:
    session = Session(manner())
    assert session.next() is None
    first = session.keep(session.actions(Answer(chunk(), 1), None))
    np.testing.assert_array_equal(first, chunk()[0])
    np.testing.assert_array_equal(session.next(), chunk()[1])
    assert session.next() is None, "two of four are carried out"


@pytest.mark.parametrize("execute", [1, 2])
def test_ensembling_averages_all_that_was_said_of_a_moment(execute: int) -> None:
    session = Session(manner(execute=execute, ensemble=0.5))
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(6, 4, 3)).astype(np.float32)
    for number, said in enumerate(chunks):
        found = session.actions(Answer(said, 1), None)
        for k in range(execute):
            moment = number * execute + k
            pairs = [(i, moment - i * execute) for i in range(number + 1) if 0 <= moment - i * execute < 4]
            weights = np.exp(-0.5 * np.arange(len(pairs)))
            mean = sum(w * chunks[i, at] for w, (i, at) in zip(weights, pairs, strict=True)) / weights.sum()
            np.testing.assert_allclose(found[k, :2], mean[:2], atol=1e-6)
            assert found[k, 2] == said[k, 2], "a gripper is not averaged"
    session.restart()
    np.testing.assert_allclose(session.actions(Answer(chunks[0], 1), None), chunks[0, :execute], atol=1e-6)


# --- limits


def test_limits_and_steps() -> None:
    told: list[str] = []
    session = Session(manner(["x=0:0.15", "grip=0:1"], ["x=0.1", "y=1.5"]), told.append)
    state = np.float32([0.05, 0, 0])
    found = session.actions(Answer(np.float32([[0.5, 2, 1], [0.5, -9, 7], [-3, 1, 0]]), 1), state)
    np.testing.assert_allclose(found, [[0.15, 1.5, 1], [0.15, -1.5, 1], [0.05, 1, 0]], atol=1e-6)
    assert [line.split()[0] for line in told] == ["x", "y", "grip"]
    assert "0.5" in told[0] or "-3" in told[0]
    # without a state, from the last action that was carried out: the second of three
    again = session.actions(Answer(np.float32([[9, 0, 0]]), 1), None)
    np.testing.assert_allclose(again[0, 0], 0.15, atol=1e-6)
    slow = Session(manner(steps=["0.1"]))
    slow.actions(Answer(np.float32([[5, 0, 0], [5.05, 0, 0]]), 1), None)
    np.testing.assert_allclose(slow.actions(Answer(np.float32([[9, 0, 1]]), 1), None), [[5.15, 0, 1]], atol=1e-6)


def test_a_step_needs_to_know_from_where() -> None:
    """x is absolute, y a delta. Who may execute the whole chunk, or is answered once, must send the state."""
    blind = Session(manner(steps=["x=0.1", "y=1"]), follows=False)
    with pytest.raises(Fault, match=r"bounds x, .* Send its state; .*--execute"):
        blind.require_place(None)
    with pytest.raises(Fault, match="bounds x"):
        blind.require_place(np.float32([1, 2]))  # of another robot
    blind.require_place(np.float32([0, 0, 0]))
    Session(manner(steps=["y=1"]), follows=False).require_place(None)
    Session(manner(limits=["x=0:1"]), follows=False).require_place(None)
    Session(manner(steps=["x=0.1"])).require_place(None)


def test_nothing_is_changed_where_nothing_is_wrong() -> None:
    told: list[str] = []
    session = Session(manner(["every=-10:10"], ["5"]), told.append)
    np.testing.assert_array_equal(session.actions(Answer(chunk(), 1), np.zeros(3, np.float32)), chunk())
    assert not told


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_sent(bad: float) -> None:
    said = chunk()
    said[1, 1] = bad
    with pytest.raises(Fault):
        Session(manner()).actions(Answer(said, 1), None)


@pytest.mark.parametrize(
    ("limits", "steps"),
    [(["elbow=0:1"], []), (["x=1:0"], []), (["x=1"], []), (["x=a:b"], []), (["x=nan:1"], []), ([], ["x=-1"]),
     ([], ["elbow=1"]), ([], ["fast"]), ([], ["x=0"]), (["y=0.5:1"], ["y=0.1"]), (["y=-1:-0.5"], ["0.1"])],
)  # fmt: skip
def test_wrong_limits_name_themselves(limits: Any, steps: Any) -> None:
    with pytest.raises(LapaError, match=(limits or steps)[0].partition("=")[0]):
        limits_of(SPEC, ACTION, limits, steps)


def test_where_the_state_has_an_action() -> None:
    names = ActionSpec(("b", "c"), ("absolute", "absolute"), 5.0)
    by_name = limits_of(PolicySpec(("i",), ("a", "b"), names), names, (), ["1"])
    found, _ = by_name.apply(np.float32([[9, 9]]), np.float32([100, 3]), np.float32([0, 0]))
    np.testing.assert_allclose(found, [[4, 1]])
    other = limits_of(PolicySpec(("i",), ("p", "q", "r"), names), names, (), ["1"])
    found, _ = other.apply(np.float32([[9, 9]]), np.float32([1, 2, 3]), None)
    np.testing.assert_allclose(found, [[9, 9]], err_msg="nobody knows where it is")
    assert isinstance(by_name, Limits)
    assert len(by_name.lines()) == 2


# --- the queue


def test_answers_in_the_order_of_coming_and_one_too_many_refused() -> None:
    gate = threading.Event()
    policy = Policy(gate=gate)
    asked = Asked(policy.act, 3, policy.forget)
    first = asked.ask(seen(0) | {"instruction": "wait"}, 0)  # type: ignore[arg-type]
    others = [asked.ask(seen(i), i) for i in (1, 2)]
    with pytest.raises(Fault) as refused:
        asked.ask(seen(9), 9)
    assert refused.value.status == 503
    gate.set()
    assert first.result(10).ms >= 0
    for i, other in enumerate(others, 1):
        np.testing.assert_array_equal(other.result(10).chunk, answer(seen(i)))
    assert [number for _, number in policy.asked] == [0, 1, 2]
    assert asked.ask(seen(3), 3).result(10)
    asked.forget([0, 1])
    asked.close()
    assert policy.forgotten == [0, 1]
    assert asked.waiting == 0


def test_what_a_policy_raises() -> None:
    troubles: list[BaseException] = []
    asked = Asked(Policy().act, 3, trouble=troubles.append)
    with pytest.raises(Fault, match="does not do that"):
        asked.ask(seen() | {"instruction": "fail"}, 0).result(10)  # type: ignore[arg-type]
    with pytest.raises(Fault) as crashed:
        asked.ask(seen() | {"instruction": "crash"}, 0).result(10)  # type: ignore[arg-type]
    assert "secret" not in str(crashed.value)
    assert crashed.value.status == 500
    assert isinstance(troubles[0], ZeroDivisionError)
    assert asked.ask(seen(), 0).result(10), "and it goes on"
    asked.close()
