"""The page: keys and clicks become actions, an action changes the state of this visitor, and panels are drawn anew.

A library (NiceGUI) brings the page to the browser and keeps it up to date through a websocket. It is served on this
machine's own address alone, and everything comes from there: no network is needed, and none is used.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import background_tasks, ui
from starlette.responses import PlainTextResponse

from lapa.contracts import LapaError
from lapa.data.pairs import window_offsets
from lapa.explorer import panels, told
from lapa.explorer.opened import Code, Explored
from lapa.explorer.play import (
    Planned,
    Play,
    back,
    begin,
    code_between,
    own_code,
    plan,
    policy_code,
    press,
    shown,
    undo,
)

HOST = "127.0.0.1"
LISTED = 2000  # videos: of more, the number is written
HERE = ("127.0.0.1", "localhost", "[::1]")  # names of this machine that a browser may use
STYLE = (Path(__file__).parent / "page.css").read_text()
SCRIPT = (Path(__file__).parent / "page.js").read_text()
ICON = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 10 10'><circle cx='5' cy='5' r='4' fill='#1f6feb'/></svg>"


@dataclass
class Side:
    """One run in the hands of one visitor: the pictures so far, and the code whose numbers are set one by one."""

    run: Explored
    play: Play
    code: Code
    position: int = 0
    plan: Planned | None = None
    trouble: str = ""
    figures: list[tuple[str, str]] | None = None
    measuring: bool = False

    def press(self, code: Code) -> None:
        """Play a code; it is the one that stands from now on."""
        self.play, self.code = press(self.run, self.play, code), code


@dataclass
class Visit:
    """A page in a browser. `do` takes an action, a word or NAME:VALUE, of panels.py or of the keyboard."""

    sides: list[Side]
    frame: int = 0
    chosen: int = 0  # the run that the keys go to
    tab: str = "plan"
    whole: bool = False  # pairs with the same codes at all positions, or at one
    page: int = 0
    at: dict[str, Any] = field(default_factory=dict)  # elements of the page by name
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def side(self) -> Side:
        """The run that the keys go to."""
        return self.sides[self.chosen]

    @property
    def episode(self) -> int:
        """The video of the frame."""
        return int(self.side.run.packed.episode_of(np.array([self.frame]))[0])

    # --- actions

    async def do(self, action: str) -> None:
        """Carry out an action and draw what has changed. What the user can mend is said on the page."""
        name, _, value = action.partition(":")
        if name == "key":
            name, value = self._of_key(value)
        acts = getattr(self, f"_do_{name}", None)
        if acts is None:
            return
        async with self.lock:
            try:
                await acts(value)
            except LapaError as error:
                ui.notify(str(error), type="warning", multi_line=True, timeout=8000)

    def _of_key(self, key: str) -> tuple[str, str]:
        """The action of a key, as browsers call it."""
        for known, _, action, _ in panels.COMMANDS:
            if key == known:
                name, _, value = action.partition(":")
                return name, value
        number = panels.CODES.find(key) if len(key) == 1 else -1
        return ("code", str(number)) if 0 <= number < self.side.run.size else ("", "")

    async def _do_code(self, value: str) -> None:
        side, number = self.side, int(value)
        if not 0 <= number < side.run.size:
            return
        code = (*side.code[: side.position], number, *side.code[side.position + 1 :])
        await asyncio.to_thread(side.press, code)
        self.page = 0
        await self._after_press([self.chosen])

    async def _do_own(self, value: str) -> None:
        moved = []
        for i, side in enumerate(self.sides):
            code = await asyncio.to_thread(own_code, side.run, side.play)
            if code is not None:
                await asyncio.to_thread(side.press, code)
                moved.append(i)
        if not moved:
            raise LapaError("The video ends here: there is no frame one window later.")
        await self._after_press(moved)

    async def _do_policy(self, value: str) -> None:
        side = self.side
        code = await asyncio.to_thread(policy_code, side.run, side.play.now, self._text())
        await asyncio.to_thread(side.press, code)
        await self._after_press([self.chosen])

    async def _do_ask(self, value: str) -> None:
        side, self.tab = self.side, "plan"
        try:
            side.plan, side.trouble = await asyncio.to_thread(plan, side.run, side.play, self._text()), ""
        except LapaError as error:
            side.plan, side.trouble = None, str(error)
        self.draw_lower()

    async def _do_undo(self, value: str) -> None:
        self.side.play = undo(self.side.play)
        self.draw_run(self.chosen)

    async def _do_back(self, value: str) -> None:
        for i, side in enumerate(self.sides):
            side.play, side.code = back(side.play), side.run.rest
            self.draw_run(i)
        self.draw_lower()

    async def _do_frame(self, value: str) -> None:
        await self._go(self.frame + int(value), within=True)

    async def _do_window(self, value: str) -> None:
        run = self.side.run
        offset = int(window_offsets(run.packed.fps[[self.episode]], run.source.window)[0])
        await self._go(self.frame + int(value) * offset, within=True)

    async def _do_video(self, value: str) -> None:
        await self._open(self.episode + int(value))

    async def _do_open(self, value: str) -> None:
        await self._open(int(value) - 1)

    async def _do_go(self, value: str) -> None:
        await self._go(int(value))

    async def _do_within(self, value: str) -> None:
        await self._go(int(self.side.run.packed.starts[self.episode]) + int(value) - 1, within=True)

    async def _do_at(self, value: str) -> None:
        self.side.position = int(value) % self.side.run.positions
        self.page = 0
        self.draw_codes(self.chosen)
        self.draw_lower()

    async def _do_position(self, value: str) -> None:
        await self._do_at(str(self.side.position + int(value)))

    async def _do_run(self, value: str) -> None:
        await self._do_side(str((self.chosen + int(value)) % len(self.sides)))

    async def _do_side(self, value: str) -> None:
        self.chosen, self.page = int(value) % len(self.sides), 0
        for i in range(len(self.sides)):
            self.draw_codes(i)
        self.draw_video(await self._code_here())
        self.draw_lower()

    async def _do_tab(self, value: str) -> None:
        names = list(panels.TABS)
        await self._do_show(names[(names.index(self.tab) + int(value)) % len(names)])

    async def _do_show(self, value: str) -> None:
        if value in panels.TABS:
            self.tab = value
            self.draw_lower()

    async def _do_page(self, value: str) -> None:
        self.tab, self.page = "pairs", max(0, self.page + int(value))
        self.draw_lower()

    async def _do_whole(self, value: str) -> None:
        self.whole, self.page = not self.whole, 0
        self.draw_lower()

    async def _do_write(self, value: str) -> None:
        ui.run_javascript("document.querySelector('.instruction input')?.focus()")

    async def _do_measure(self, value: str) -> None:
        side = self.side
        if side.measuring:
            return
        side.measuring = True
        self.draw_lower()
        background_tasks.create(self._measured(side))

    async def _measured(self, side: Side) -> None:
        """The page goes on meanwhile."""
        with self.at["page"]:
            try:
                side.figures = await asyncio.to_thread(told.of_run, side.run)
            except LapaError as error:
                side.figures = [("Not measured", str(error))]
            side.measuring = False
            self.draw_lower()

    def _text(self) -> str:
        """What is written, else the instruction of the video."""
        written = self.at["text"].value or ""
        return str(written).strip() or self.side.run.packed.instructions[self.episode]

    async def _open(self, episode: int) -> None:
        packed = self.side.run.packed
        await self._go(int(packed.starts[min(max(episode, 0), packed.episodes - 1)]))

    async def _go(self, frame: int, within: bool = False) -> None:
        """To a frame; `within` the same video."""
        starts, episode = self.side.run.packed.starts, self.episode
        low, high = (starts[episode], starts[episode + 1]) if within else (0, starts[-1])
        self.frame = int(min(max(frame, low), high - 1))
        for side in self.sides:
            side.play = await asyncio.to_thread(begin, side.run, self.frame)
            side.plan, side.trouble = None, ""
        code = await self._code_here()
        self.draw_video(code)
        for i in range(len(self.sides)):
            self.draw_run(i)
        if self.tab == "plan":
            self.draw_lower()

    async def _code_here(self) -> Code | None:
        run = self.side.run
        later = run.later(self.frame)
        return None if later is None else await asyncio.to_thread(code_between, run, self.frame, later)

    async def _after_press(self, which: Sequence[int]) -> None:
        for i in which:
            self.draw_now(i)
        await asyncio.sleep(0.02)  # the picture goes first
        for i in which:
            self.draw_about(i)
            self.draw_codes(i)
        if self.tab in ("pairs", "map"):
            self.draw_lower()

    # --- what is drawn

    def draw_run(self, i: int) -> None:
        """All of one run."""
        self.draw_now(i)
        self.draw_about(i)
        self.draw_codes(i)

    def draw_now(self, i: int) -> None:
        """The large picture."""
        side, image = self.sides[i], self.at[f"now {i}"]
        image.props["src"] = panels.picture(shown([side.play.now])[0])
        image.style(replace=panels.shape(side.run, side.play.frame))
        image.update()
        self.at[f"caption {i}"].set_content(panels.caption(side.run, side.play))

    def draw_about(self, i: int) -> None:
        """Its buttons, and the pictures so far."""
        side = self.sides[i]
        self.at[f"buttons {i}"].set_content(panels.buttons(side.run, side.play))
        self.at[f"trail {i}"].set_content(panels.trail(side.run, side.play))

    def draw_codes(self, i: int) -> None:
        """The buttons of the codes, and what the chosen one tells."""
        side = self.sides[i]
        self.at[f"codes {i}"].set_content(panels.keyboard(side.run, side.code, side.position))
        alone = side.code[side.position]
        title = f"Code {alone}" + (f" at position {side.position + 1}" if side.run.positions > 1 else "") + " in words"
        lines = told.of_code(side.run, side.code, side.position)
        made = panels.words(lines, title)
        if side.run.positions > 1:
            lines = told.of_code(side.run, side.code)
            made += panels.words(lines, f"All of {panels.code_name(side.code)}")
        self.at[f"words {i}"].set_content(made)
        if len(self.sides) > 1:
            self.at[f"card {i}"].classes(add="active" if i == self.chosen else "", remove="active")

    def draw_video(self, code: Code | None) -> None:
        """The frame of the video."""
        packed, episode = self.side.run.packed, self.episode
        start, stop = (int(packed.starts[episode + j]) for j in (0, 1))
        self.at["video"].set_content(panels.video(self.side.run, self.frame, code))
        slider = self.at["slider"]
        slider.props["max"] = stop - start
        slider.set_value(self.frame - start + 1)
        slider.set_enabled(stop - start > 1)
        self.at["list"].set_value(episode + 1)
        text = packed.instructions[episode]
        self.at["text"].props["placeholder"] = text or "such as: put the cup on the plate"
        self.at["text"].update()

    def draw_lower(self) -> None:
        """The panel below."""
        side = self.side
        run = side.run
        if self.tab == "plan":
            made = panels.plan_panel(run, side.play, side.plan, side.trouble)
        elif self.tab == "pairs":
            made, pages = panels.pairs_panel(run, side.code, self.whole, side.position, self.page)
            self.page = min(self.page, pages - 1)
        elif self.tab == "map":
            made = panels.map_panel(run, side.code, side.position)
        elif self.tab == "told":
            made = panels.told_panel(told.of_data(run), side.figures, side.measuring)
        else:
            made = panels.keys_panel(run, len(self.sides) > 1)
        whose = f"<h3>{panels.escape(run.name)}</h3>" if len(self.sides) > 1 else ""
        self.at["tabs"].set_content(panels.tabs(self.tab))
        self.at["lower"].set_content(whose + made)

    def build(self) -> None:
        """Lay out the page and draw everything once."""
        runs = [side.run for side in self.sides]
        known = ", ".join(f'"{key}"' for key in [*(k for k, *_ in panels.COMMANDS), *panels.CODES])
        ui.add_head_html(f"<style>{STYLE}</style><script>const LAPA_KEYS = new Set([{known}]);\n{SCRIPT}</script>")
        ui.on("lapa", lambda event: self.do(str(event.args)))
        with ui.element("main") as self.at["page"]:
            ui.html(panels.header(runs), sanitize=False, tag="header")
            ui.html(panels.notes(runs), sanitize=False)
            with ui.element("div").classes("columns"):
                with ui.element("section").classes("card video"):
                    self._build_video(runs[0])
                for i in range(len(runs)):
                    self._build_run(i, alone=len(runs) == 1)
            with ui.element("section").classes("card lower"):
                with ui.element("div").classes("line"):
                    self.at["tabs"] = ui.html("", sanitize=False).classes("tabs")
                    text = self.at["text"] = ui.input("instruction for the policy (key /)").classes("instruction")
                    text.props("dense outlined stack-label maxlength=400")
                    text.on("keydown.enter", lambda: self.do("ask"))
                    text.set_visibility(any(run.policy for run in runs))
                self.at["lower"] = ui.html("", sanitize=False)
            ui.html(
                'Last press: <b id="lapa-ms">-</b> until the picture was there. Keys: panel “Keys” below (Page ↓).',
                sanitize=False, tag="footer",
            )  # fmt: skip
        later = runs[0].later(self.frame)
        self.draw_video(None if later is None else code_between(runs[0], self.frame, later))
        for i in range(len(runs)):
            self.draw_run(i)
        self.draw_lower()

    def _build_video(self, run: Explored) -> None:
        packed = run.packed
        ui.html("<h2>1 Choose a frame</h2>", sanitize=False)
        label, first = "video (keys ↑ ↓)", 1
        chosen: Any
        if packed.episodes <= LISTED:
            names = {
                e + first: f"{e + first}. {name}" + (f": {text}" if text else "")
                for e, (name, text) in enumerate(zip(packed.ids, packed.instructions, strict=True))
            }
            chosen = ui.select(names, value=first, label=label).props("dense outlined options-dense")
        else:
            chosen = ui.number(label, value=first, min=first, max=packed.episodes, precision=0).props(
                "dense outlined debounce=700"
            )
        chosen.on_value_change(lambda event: self._if_new("open", event.value, self.episode + first))
        self.at["list"] = chosen
        self.at["video"] = ui.html("", sanitize=False)
        slider = self.at["slider"] = ui.slider(min=1, max=max(len(packed), 2), value=1).props("dense snap")
        slider.on(
            "update:model-value",
            lambda event: self._if_new("within", event.args, self.frame - int(packed.starts[self.episode]) + 1),
            throttle=0.1, leading_events=False,
        )  # fmt: skip
        ui.html('<p class="quiet">Keys <kbd>←</kbd> <kbd>→</kbd> go frame by frame.</p>', sanitize=False)

    async def _if_new(self, action: str, value: Any, present: int) -> None:
        """What the user has chosen, not what was shown by itself. Then the keys work again."""
        if value is not None and int(value) != present:
            ui.run_javascript("document.activeElement?.blur()")
            await self.do(f"{action}:{int(value)}")

    def _build_run(self, i: int, alone: bool) -> None:
        side = self.sides[i]
        classes = "card run alone" if alone else "card run"
        with ui.element("section").classes(classes) as self.at[f"card {i}"]:
            title = "2 Press a code" if alone else f"2 {side.run.name}, {side.run.source.window:g} s a code"
            chosen = f'<button data-do="side:{i}">keys go here <kbd>-</kbd></button>'
            ui.html(f"<h2>{panels.escape(title)} {'' if alone else chosen}</h2>", sanitize=False)
            with ui.element("div").classes("play"):
                with ui.element("div").classes("seen"):
                    self.at[f"now {i}"] = ui.element("img").classes("now").props('alt="the picture"')
                    for name in ("caption", "buttons"):
                        self.at[f"{name} {i}"] = ui.html("", sanitize=False).classes(name)
                with ui.element("div").classes("choice"):
                    for name in ("codes", "words"):
                        self.at[f"{name} {i}"] = ui.html("", sanitize=False)
                self.at[f"trail {i}"] = ui.html("", sanitize=False).classes("trail")


# --- the server


class ThisMachineOnly:
    """Refuses what pages of other sites send, however they came to know the address: the names of host and origin have
    to be this machine's."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            host, origin = headers.get(b"host", ""), headers.get(b"origin")
            own = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if own not in HERE or (origin is not None and urlsplit(origin).netloc != host):
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                else:
                    await PlainTextResponse("This page is for this machine alone.", 403)(scope, receive, send)
                return
        await self.inner(scope, receive, send)


class Explorer:
    """The server of a page, which listens from the start. `run` serves until it is interrupted; `start` and `stop` do
    in a thread. One in a process."""

    def __init__(self, runs: Sequence[Explored], port: int = 0) -> None:
        """Port 0: any that is free. Raises LapaError for one that is in use."""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((HOST, port))
            self._socket.listen()  # whoever comes before the server has started waits for it
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise LapaError(f"--port {port} cannot be used ({error}). Take another; 0 is any that is free.") from None
        self.port: int = self._socket.getsockname()[1]

        @ui.page("/", title="lapa explore", favicon=ICON)
        def page() -> None:
            Visit([Side(run, begin(run, 0), run.rest) for run in runs]).build()

        # The library looks for its server among all objects; some of torch's complain of being looked at.
        warnings.filterwarnings("ignore", category=FutureWarning, module="nicegui")
        web = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        ui.run_with(web, show_welcome_message=False, tailwind=False)
        config = uvicorn.Config(ThisMachineOnly(web), log_level="warning", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.port}"

    def run(self) -> None:
        """Serve until Ctrl-C."""
        self._server.run(sockets=[self._socket])

    def start(self) -> None:
        """Serve in a thread."""
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(10)
        self._socket.close()
        nicegui_app.storage.clear()
