"""What codes tell in words, on codes made by hand; and the panels."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hand_coded import SECTORS, sectors

from lapa.explorer import panels
from lapa.explorer.opened import Explored, Moved
from lapa.explorer.play import begin, press
from lapa.explorer.told import COMPASS, direction, of_code, of_data, of_run, sense


@pytest.fixture
def perfect(one: Explored) -> Explored:
    """Codes that are the direction of the motion."""
    reading = replace(one.reading, codes=sectors(one.reading.moved), classes=SECTORS + 1)
    return replace(one, reading=reading, moved=Moved(np.arange(len(reading)), reading.moved, "the effector"))


def test_the_eight_directions() -> None:
    for i, name in enumerate(COMPASS):
        angle = i * np.pi / 4
        assert direction(np.array([np.cos(angle), np.sin(angle)])) == name  # y is down
        assert direction(np.array([np.cos(angle + 0.3), np.sin(angle + 0.3)])) == name


def test_what_pairs_with_a_code_have_in_common(perfect: Explored) -> None:
    codes = perfect.reading.codes[:, 0]
    seen = [code for code in np.unique(codes) if code != SECTORS and (codes == code).sum() > 1]
    for code in seen:
        found, middle = sense(perfect, (int(code),)), 2 * np.pi * (code + 0.5) / SECTORS
        assert found.pairs == (codes == code).sum()
        assert found.motion is not None
        off = np.arctan2(found.motion[1], found.motion[0]) - middle
        assert abs(np.degrees(np.angle(np.exp(1j * off)))) < 15
        assert found.alike == 1
        assert direction(found.motion) in " ".join(of_code(perfect, (int(code),)))
    unseen = next(code for code in range(SECTORS) if code not in codes)
    assert sense(perfect, (unseen,)).pairs == 0
    assert of_code(perfect, (unseen,))


def test_random_codes_have_no_common_way(perfect: Explored) -> None:
    dealt = np.random.default_rng(0).integers(0, 2, perfect.reading.codes.shape)
    found = sense(replace(perfect, reading=replace(perfect.reading, codes=dealt)), (1,))
    assert found.alike is None or found.alike < 0.6


def test_what_the_robot_did(perfect: Explored) -> None:
    assert perfect.did is not None
    row = int(np.abs(perfect.did.values[:, 0]).argmax())
    code = tuple(perfect.reading.codes[row].tolist())
    assert perfect.did.names[0] in " ".join(of_code(perfect, code))


def test_a_position_or_the_whole_code(two: Explored) -> None:
    code = tuple(two.reading.codes[0].tolist())
    alone, whole = sense(two, code, 1), sense(two, code)
    assert alone.pairs == (two.reading.codes[:, 1] == code[1]).sum() >= whole.pairs >= 1
    shown, pages = panels.pairs_panel(two, code, True, 0, 99)
    assert shown.count('class="pair"') == min(whole.pairs - (pages - 1) * panels.PAGE, panels.PAGE)
    assert panels.positions(two, code, 0).count("data-do") == 2


def test_figures_of_a_run(one: Explored) -> None:
    told = dict(of_run(one))
    assert any("action" in name for name in told)
    assert all(told.values())
    assert any(str(one.size) in line for line in of_data(one))


def test_all_pages_of_pairs_are_all_pairs(one: Explored) -> None:
    code = (int(np.bincount(one.reading.codes[:, 0]).argmax()),)
    _, pages = panels.pairs_panel(one, code, False, 0, 0)
    shown = [panels.pairs_panel(one, code, False, 0, page)[0] for page in range(pages)]
    frames = [int(frame) for text in shown for frame in re.findall(r'data-do="go:(\d+)"', text)]
    rows = one.reading.rows[one.having(code)]
    assert frames == one.reading.pairs.now[rows].tolist()


def test_a_button_for_each_code_and_a_key_for_most(two: Explored) -> None:
    text = panels.keyboard(two, (1, 4), 1)
    assert [int(code) for code in re.findall(r'data-do="code:(\d+)"', text)] == list(range(5))
    assert re.findall(r'class="code on" data-do="code:(\d)"', text) == ["4"]
    assert len(set(panels.CODES)) == len(panels.CODES) == 62
    keys = [key for key, *_ in panels.COMMANDS]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & set(panels.CODES)


def test_words_of_others_are_escaped(one: Explored) -> None:
    named = replace(one.packed, instructions=("<script>x</script>",) * one.packed.episodes)
    run = replace(one, reading=replace(one.reading, packed=named))
    assert "<script>" not in panels.video(run, 0, (1,))
    assert "<script>" not in panels.words(["<script>"])


def test_the_map_keeps_distances(one: Explored) -> None:
    places = panels.map_places(one, 0)
    assert places.shape == (8, 2)
    assert ((places >= 0) & (places <= [900, 420])).all()
    entries = one.source.laq.code_embeddings()[:8]
    if entries.shape[1] <= 2:
        apart = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (places, entries)]
        ratio = apart[0][apart[1] > 1e-6] / apart[1][apart[1] > 1e-6]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_pictures_keep_the_shape_of_the_video(one: Explored) -> None:
    sizes = np.array([[240, 320]] * one.packed.episodes)
    run = replace(one, reading=replace(one.reading, packed=replace(one.packed, sizes=sizes)))
    assert panels.shape(run, 0).startswith("aspect-ratio:1.333")
    play = press(one, begin(one, 0), (1,))
    assert panels.trail(one, play).count("<img") == 4
    assert panels.picture(np.zeros((8, 8, 3), np.uint8)).startswith("data:image/png")
    assert panels.picture(np.zeros((96, 96, 3), np.uint8)).startswith("data:image/jpeg")
