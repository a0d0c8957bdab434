"""The page in a real browser: it loads, keys and clicks do what they say, and nothing comes from elsewhere."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("nicegui", reason="nicegui is not installed: pip install 'lapa[explore]'")

from browser import Browser, chromium

from lapa.contracts import LapaError
from lapa.explorer.opened import Explored
from lapa.explorer.page import Explorer

PICTURE = "document.querySelector('img.now').src"


def one_window(run: Explored) -> int:
    """In frames."""
    after = run.later(0)
    assert after is not None
    return after


@pytest.fixture(scope="module")
def explorer(one: Explored, two: Explored) -> Iterator[Explorer]:
    made = Explorer([one, two])
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def page(explorer: Explorer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    pytest.importorskip("websockets", reason="websockets is not installed: pip install 'lapa[serve]'")
    if chromium() is None:
        pytest.skip("there is no Chromium; set CHROMIUM to its path")
    browser = Browser(tmp_path_factory.mktemp("browser") / "profile")
    browser.open(explorer.url)
    browser.wait("document.querySelector('img.now')?.naturalWidth > 0")
    yield browser
    browser.close()


def test_keys_play_codes_and_go_back(page: Browser, two: Explored) -> None:
    real = page.value(PICTURE)
    page.key("3")
    page.wait(f"{PICTURE} != '{real}'")
    first = page.value(PICTURE)
    page.key("3")
    page.wait(f"{PICTURE} != '{first}'")
    page.wait("document.querySelectorAll('.trail')[0].querySelectorAll('img').length == 6")
    page.key("Backspace")
    page.wait(f"{PICTURE} == '{first}'")
    page.key("Escape")
    page.wait(f"{PICTURE} == '{real}'")
    page.key("ArrowRight")
    page.wait("document.querySelector('.video figcaption').textContent.includes('frame 2 ')")
    assert page.value(PICTURE) != real
    page.key("Shift+ArrowRight")
    page.wait(f"document.querySelector('.video figcaption').textContent.includes('frame {2 + one_window(two)} ')")
    page.key("ArrowDown")
    page.wait("document.querySelector('.video figcaption').textContent.includes('frame 1 ')")
    page.key(" ")  # in both runs
    page.wait("[...document.querySelectorAll('.trail')].every(one => one.querySelectorAll('img').length == 4)")
    assert page.value("lapaTimes.length") >= 5


def test_clicks_and_the_other_run(page: Browser) -> None:
    page.key("Escape")
    page.click("[data-do='side:1']")
    page.wait("document.querySelectorAll('.card.run')[1].classList.contains('active')")
    second = "document.querySelectorAll('img.now')[1].src"
    page.wait("document.querySelectorAll('.trail')[1].querySelectorAll('img').length == 0")
    before = page.value(second)
    page.key(".")
    page.wait("document.querySelector('[data-do=\"at:1\"]').classList.contains('on')")
    page.click(".card.run.active [data-do='code:4']")
    page.wait(f"{second} != '{before}'")
    page.wait("document.querySelector('[data-do=\"at:1\"]').textContent == '4'")
    page.key("-")
    page.wait("document.querySelectorAll('.card.run')[0].classList.contains('active')")


def test_every_panel(page: Browser) -> None:
    lower = "document.querySelector('.lower')"
    page.click("[data-do='show:pairs']")
    page.wait(f"{lower}.querySelectorAll('.pair').length || {lower}.querySelector('.note')")
    page.click("[data-do='show:map']")
    page.wait(f"{lower}.querySelectorAll('svg.map > g').length == 8")
    page.click("svg.map > g:nth-child(2) > circle")
    page.wait("document.querySelector('.code.on').dataset.do == 'code:1'")
    page.key("PageDown")
    page.wait(f"{lower}.querySelector('[data-do=measure]')")
    page.click("[data-do='measure']")
    page.wait(f"{lower}.querySelectorAll('table tr').length > 2", seconds=60)
    page.key("PageDown")
    page.wait(f"{lower}.querySelectorAll('.keys tr').length > 15")


def test_an_instruction_in_words_of_ones_own(page: Browser) -> None:
    page.key("/")
    page.wait("document.activeElement.tagName == 'INPUT'")
    page.type("3 zyxwv <b>up</b>")
    page.wait("document.activeElement.value.startsWith('3')")
    page.key("Enter")
    page.wait("document.querySelectorAll('.lower .strip').length > 0")
    assert page.value("document.querySelector('.lower').textContent").count("<b>up</b>") == 1
    page.key("Escape")
    page.wait("document.activeElement.tagName != 'INPUT'")
    trail = "document.querySelectorAll('.trail')[0].querySelectorAll('img').length"
    before = page.value(trail)
    page.key("Enter")  # one code of the policy
    page.wait(f"{trail} != {before}")


def test_nothing_is_wrong_and_nothing_comes_from_elsewhere(page: Browser, explorer: Explorer) -> None:
    """The last of this file: after all that the other tests have done."""
    assert page.errors == []
    hosts = {urlsplit(url).netloc for url in page.requests if not url.startswith(("data:", "blob:", "about:"))}
    assert hosts == {urlsplit(explorer.url).netloc}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:9999"}, 200),  # through a tunnel
        ({"Host": "evil.example:8070"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
    ],
)
def test_pages_of_other_sites_are_refused(explorer: Explorer, headers: dict[str, str], status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", explorer.port, timeout=10)
    connection.request("GET", "/", headers=headers)
    assert connection.getresponse().status == status
    connection.close()


def test_a_port_that_is_taken(explorer: Explorer, one: Explored) -> None:
    with pytest.raises(LapaError, match=str(explorer.port)):
        Explorer([one], explorer.port)


def test_style_and_script_are_beside_the_page() -> None:
    folder = Path(__file__).parents[2] / "lapa/explorer"
    for name in ("page.css", "page.js"):
        assert "http" not in (folder / name).read_text(), "nothing is loaded from elsewhere"
