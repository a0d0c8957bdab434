"""Pressing codes: the decoder's picture is the next input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lapa.analysis.reading import effector
from lapa.contracts import LapaError
from lapa.explorer.opened import Explored
from lapa.explorer.play import back, begin, code_between, own_code, plan, policy_code, press, really, shown, undo


def test_a_press_decodes_and_the_next_goes_on_from_there(one: Explored) -> None:
    laq, play = one.source.laq, begin(one, 3)
    np.testing.assert_array_equal(shown(play.pictures)[0], one.packed.gather(np.array([3]))[0])
    first = press(one, play, (2,))
    second = press(one, first, (5,))
    assert torch.equal(first.now, laq.decode(play.now, np.array([[2]])))
    assert torch.equal(second.now, laq.decode(first.now, np.array([[5]])))
    assert not torch.equal(first.now, play.now)
    assert second.codes == ((2,), (5,))
    assert len(shown(second.pictures)) == 3
    assert undo(second) == first
    assert back(second) == play
    assert undo(play) == play
    assert play.codes == ()


def test_the_code_of_the_video_itself(one: Explored) -> None:
    """Step by step, as far as the video goes."""
    play, frame, codes = begin(one, 0), 0, []
    while (code := own_code(one, play)) is not None:
        after = one.later(frame)
        assert after is not None
        assert code == code_between(one, frame, after)
        frame, play = after, press(one, play, code)
        codes.append(code)
    stop = int(one.packed.starts[1])
    assert codes == [tuple(c) for c in one.reading.codes[: len(codes)].tolist()]
    assert one.later(frame) is None
    assert frame < stop
    assert really(one, play)[-1] == frame
    beyond = press(one, play, codes[0])
    assert len(really(one, beyond)) == len(beyond.pictures) - 1
    assert own_code(one, beyond) is None


def test_a_plan_is_the_policy_and_the_decoder_in_closed_loop(one: Explored) -> None:
    play = press(one, begin(one, 0), (1,))
    made = plan(one, play, "push the red disc left", steps=3)
    now, laq = play.now, one.source.laq
    for code in made.codes:
        assert code == policy_code(one, now, "push the red disc left")
        now = laq.decode(now, np.array([code]))
    np.testing.assert_array_equal(shown([now])[0], made.pictures[-1])
    assert made.pictures.shape[0] == 4
    assert made.way is not None
    assert made.way.shape == (4, 2)
    assert ((made.way >= 0) & (made.way <= 1)).all()


def test_the_way_starts_where_the_effector_is(one: Explored) -> None:
    made = plan(one, begin(one, 7), "push", steps=1)
    assert made.way is not None
    np.testing.assert_allclose(made.way[0], np.clip(effector(one.packed)[7], 0, 1))
    assert one.way is not None
    from lapa.measures.probes import one_hot

    step = one.way.step(one_hot(np.array(made.codes), one.size), made.way[:1])[0]
    np.testing.assert_allclose(made.way[1], np.clip(effector(one.packed)[7] + step, 0, 1))


def test_without_a_policy(two: Explored) -> None:
    with pytest.raises(LapaError, match="--policy"):
        policy_code(two, begin(two, 0).now, "push")
    assert press(two, begin(two, 0), (1, 4)).codes == ((1, 4),)


def test_a_policy_that_reads_more_than_a_picture(one: Explored, monkeypatch: pytest.MonkeyPatch) -> None:
    from lapa.policies import vla
    from lapa.policies._reads import Reads

    assert isinstance(one.policy, vla.VLA)
    monkeypatch.setattr(one.policy, "reads", Reads(("top", "wrist"), ("x",), (0.0,), (1.0,)))
    with pytest.raises(LapaError, match="wrist"):
        plan(one, begin(one, 0), "push")
