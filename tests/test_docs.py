"""The documents are run: the README's commands in quick form, the worked examples, Python, links."""

from __future__ import annotations

import functools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lapa import cli, plugins
from lapa.data.spec import parse
from lapa.experiments.paper_cells import ROWS, SETTINGS, Asked
from lapa.experiments.paper_markdown import NAMES, markdown
from lapa.experiments.paper_scores import build
from lapa.methods import METHODS
from lapa.recipe import PRESETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUICK = {name: ["--steps", "2"] for name in ("quantize", "pretrain", "finetune")}
CHAIN = ["quantize", "label", "pretrain", "finetune", "evaluate"]


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands(program: str, page: str = README) -> list[list[str]]:
    """Commands of a page's shell blocks, in order, continued lines joined; those of torchrun too."""
    lines = "".join(blocks("bash", page)).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    words = [line[line.index("-m") + 1 :] if line[:1] == ["torchrun"] else line for line in words]
    return [line[1:] for line in words if line and line[0] == program]


@pytest.fixture(scope="module")
def workplace(robot: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README assumes it: clips/ with captions.csv, and robot/, a LeRobot dataset."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(clips, folder / "clips")
    shutil.copytree(robot, folder / "robot")
    return folder


@pytest.fixture(scope="module")
def done(workplace: Path) -> Path:
    """The folder after every `lapa` command of the README, in order, on little data."""
    assert commands("lapa"), "the README has no `lapa` commands"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        for command in commands("lapa"):
            cli.main([*command, *QUICK.get(command[0], [])])
    return workplace


def test_the_chain_is_there() -> None:
    used = [command[0] for command in commands("lapa")]
    assert used == CHAIN
    assert ["demo"] in commands("make")
    assert ["test"] in commands("make")


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(len(line) for line in lines if line[:1] != "|") <= 170


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "lint", "help"} <= targets
    for arguments in commands("make"):
        assert set(arguments) <= targets, arguments


@pytest.mark.slow
def test_lapa_commands_run(done: Path) -> None:
    for command in commands("lapa"):
        if "--out" in command:
            assert any((done / command[command.index("--out") + 1]).iterdir()), command
    chain = [done / "runs" / name for name in ("laq", "labels", "latent", "policy", "eval")]
    for path in chain:
        assert path.is_dir(), f"the README writes runs/{path.name}"


@pytest.mark.slow
def test_python_runs(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done)
    found = blocks("python")
    assert found, "the README shows the Python interface"
    space = {"frame": np.zeros((48, 48, 3), np.uint8)}
    for block in found:
        exec(compile(block, "README.md", "exec"), space)
    assert space["actions"].dtype == np.float32
    assert space["actions"].shape == (8, 2)  # the robot of the tests


def test_inline_commands_name_what_exists() -> None:
    for command in re.findall(r"`lapa ([a-z]+)", README):
        assert command in cli.COMMANDS, f"lapa {command}"
    for target in re.findall(r"`make ([a-z]+)", README):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"make {target}"
    for name in re.findall(r"--preset (\w+)", README):
        assert name in PRESETS, name


def test_the_table_of_methods_is_the_code() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert rows == set(METHODS)


def test_the_published_table_is_what_its_outcomes_say() -> None:
    """From the outcomes of the cells to every figure in paper.json, from those to paper.md."""
    folder = ROOT / "docs/results"
    results = json.loads((folder / "paper.json").read_text())
    found = build(results["cells"], Asked(tuple(SETTINGS), tuple(ROWS)))
    assert found["table"] == results["table"]
    assert found["paired"] == results["paired"]
    assert markdown(results) == (folder / "paper.md").read_text()


def test_the_table_of_the_readme_is_what_its_outcomes_say() -> None:
    """Every figure, from the JSON of its column."""
    folder = ROOT / "docs/results"
    toy, meta, libero = (json.loads((folder / f"{name}.json").read_text())
                         for name in ("paper", "metaworld_rest_3", "libero_object"))  # fmt: skip
    names = {name: key for key, name in NAMES.items()} | {"read": "read", "track": "track"}
    table = re.search(r"(^\| success \|.*?)\n\n", README, re.MULTILINE | re.DOTALL)
    assert table

    def seeds(key: str) -> list[list[float]]:
        """Success in each seed, of the three columns."""
        name = {"lapa": "LAPA"}.get(key, shown)
        found = [one["success"] for title, one in libero.items()
                 if title.startswith("without the state") and title.endswith(f": {name}, 1 labels")]  # fmt: skip
        in_toy = toy["table"]["in-domain"]["seen"]["20"].get(key)
        return [[one["success"] for one in meta["methods"].get(key, {}).values()], found,
                [in_toy["success"]] if in_toy else []]  # fmt: skip

    means: dict[str, list[float | None]] = {}
    for row in table[1].splitlines()[2:-1]:
        shown, *cells = (cell.strip() for cell in row[1:-1].split("|"))
        shown = re.sub(r"[*`]|,.*| \(.*", "", shown)
        means[names[shown]] = []
        for cell, figures in zip(cells, seeds(names[shown]), strict=True):
            assert len(figures) in (0, 1, 3)
            mean = sum(figures) / len(figures) if figures else None
            assert cell == ("" if mean is None else f"{100 * mean:.0f}%"), (row, figures)
            means[names[shown]].append(mean)
    shares = re.findall(r"\d+%", table[1].splitlines()[-1])

    def share(key: str, column: int) -> str:
        low, high, its = (means[name][column] or 0 for name in ("scratch", "actionvla", key))
        return f"{100 * (its - low) / (high - low):.0f}%"

    assert shares == [share("lapa", 0), share("track", 0), share("lapa", 1), share("lapa", 2)]


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (path.parent / target).exists(), f"{document} links to {target}, which is not there"


DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_page_names_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    for name in re.findall(r"(?<![\w/.])((?:lapa|tests|benchmarks|docs|client)/[\w/]+\.py)\b", text):
        assert (ROOT / name).is_file(), name
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"make {target}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_of_a_page_is_python(document: str) -> None:
    for block in blocks("python", (ROOT / document).read_text()):
        compile(block, document, "exec")


PAGES = [p.name for p in sorted((ROOT / "docs").glob("*.md")) if commands("lapa", p.read_text())]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_every_page_are_understood(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real parser, the datasets' names and options too; what they do is not done."""
    seen: list[dict[str, Any]] = []

    def only_parsed(command: Callable[..., None]) -> Callable[..., None]:
        return functools.wraps(command)(lambda **given: seen.append(given))

    monkeypatch.setattr(cli, "COMMANDS", {name: only_parsed(command) for name, command in cli.COMMANDS.items()})
    written = commands("lapa", (ROOT / "docs" / page).read_text())
    for command in written:
        cli.main(command)
    assert len(seen) == len(written)
    named = [spec for given in seen for key in ("dataset", "labelled", "runs") for spec in given.get(key) or ()]
    for spec in named:
        if ":" in str(spec) and not spec.startswith("npz_trials:"):  # the worked example's own
            parse(spec)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, with plug-ins of one's own below plugins/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAPA_PLUGINS", "plugins")
    for cached in (plugins._files, plugins._loaded):  # as in a new process
        cached.cache_clear()
    yield tmp_path
    for cached in (plugins._files, plugins._loaded):
        cached.cache_clear()


def test_the_worked_example_of_a_dataset(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file of docs/add_a_dataset.md in a folder of one's own, and the commands below it."""
    page = (ROOT / "docs/add_a_dataset.md").read_text()
    (source,) = blocks("python", page)
    name = re.search(r"plugins/datasets/(\w+)\.py", page)[1]
    (own / "plugins/datasets").mkdir(parents=True)
    (own / f"plugins/datasets/{name}.py").write_text(source)
    (own / "trials").mkdir()
    random, actions = np.random.default_rng(0), np.ones((8, 2))
    for word in ("push", "lift", "turn"):
        frames = random.integers(0, 255, (8, 64, 48, 3), np.uint8)
        np.savez(own / f"trials/{word}_1.npz", frames=frames, actions=actions)
    (own / "trials/torn.npz").write_bytes((own / "trials/lift_1.npz").read_bytes()[:1000])
    assert "export LAPA_PLUGINS=plugins" in page
    for command in commands("lapa", page):
        cli.main(command)
    shown = capsys.readouterr().out
    assert re.search(rf"^ *{name} +\w", shown, re.M)
    assert "action: 2 numbers at 10 Hz: " in shown
    told = json.loads((own / "runs/inspect/inspect.json").read_text())["dataset"]
    assert (told["episodes"], told["fps"], told["instructions"]["distinct"]) == (3, {"10": 3}, 3)
    assert "torn.npz: " in told["bad"][0]
    assert len(told["actions"]) == 2
    assert (own / "runs/inspect/contact_sheet.png").exists()
    before = len(told["bad"])
    changed = source.replace('split("_")[0]', 'replace("_", " ")')
    (own / f"plugins/datasets/{name}.py").write_text(changed)
    plugins._loaded.cache_clear()  # as in a new process
    cli.main(commands("lapa", page)[-1])
    told = json.loads((own / "runs/inspect/inspect.json").read_text())["dataset"]
    assert (told["instructions"]["longest"][-2:], len(told["bad"])) == (" 1", before), "read anew when the file changes"


@pytest.mark.parametrize("kind", ["benchmark", "head", "backbone", "policy"])
def test_the_worked_examples(kind: str, own: Path) -> None:
    """The file of docs/add_a_KIND.md in a folder of one's own, and the commands below it."""
    page = (ROOT / f"docs/add_a_{kind}.md").read_text()
    (source,) = blocks("python", page)
    place = own / re.search(r"`(plugins/\w+/\w+\.py)`", page)[1]  # type: ignore[index]
    place.parent.mkdir(parents=True)
    place.write_text(source)
    assert "export LAPA_PLUGINS=plugins" in page
    written = commands("lapa", page)
    for command in written:
        cli.main(command)
    assert written[-1][0] == "evaluate"
    results = json.loads((own / "runs/eval/results.json").read_text())
    asked = int(written[-1][written[-1].index("--episodes") + 1])
    assert results["episodes"] == len(results["outcomes"]) == asked
    if kind == "benchmark":
        rows = {name: json.loads((own / f"runs/{name}/results.json").read_text()) for name in ("no_op", "expert")}
        assert rows["no_op"]["success"] < 0.2
        assert rows["expert"]["success"] == 1
    else:
        saved = json.loads((own / "runs/policy/config.json").read_text())
        assert place.stem in (saved["policy"], saved["model"].get("head"), saved["model"].get("backbone"))


@pytest.mark.slow
def test_the_control_loop(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of docs/my_robot.md, on the policy that the README's commands have made."""
    (loop,) = blocks("python", (ROOT / "docs/my_robot.md").read_text())
    sent: list[Any] = []
    monkeypatch.chdir(done)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    space = {
        "read_camera": lambda: np.zeros((60, 80, 3), np.uint8),
        "read_state": lambda: np.zeros(len(space["policy"].spec.state), np.float32),  # type: ignore[attr-defined]
        "send": sent.append,
    }
    exec(compile(loop.replace("range(300)", "range(3)"), "my_robot.md", "exec"), space)
    policy: Any = space["policy"]
    assert len(sent) == 3 * policy.spec.execute
    assert all(action.shape == (len(policy.spec.action),) and np.isfinite(action).all() for action in sent)


def test_the_picture_of_the_tree_shows_the_tree() -> None:
    drawn = runpy.run_path(str(ROOT / "docs/pictures/architecture.py"))["BANDS"]
    shown = [name for _, names, _ in drawn for name in names.split()]
    there = {p.stem for p in (ROOT / "lapa").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert len(shown) == len(set(shown))
    assert set(shown) == {name for name in there if not name.startswith("__")}


def test_no_document_leads_out_of_a_clone() -> None:
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        assert "shared/" not in path.read_text(), path.name


# --- the site


def pages_of_the_site() -> list[str]:
    """The pages that its navigation names."""
    config = tomllib.loads((ROOT / "docs/zensical.toml").read_text())
    return [page for section in config["project"]["nav"] for part in section.values() for one in part
            for page in one.values() if page != "api"]  # fmt: skip


def test_the_navigation_of_the_site() -> None:
    """It names pages that there are, each once; docs/site.py adds those that it does not name."""
    also = set(runpy.run_path(str(ROOT / "docs/site.py"))["ALSO"].values())
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} | also
    named = pages_of_the_site()
    assert len(named) == len(set(named))
    assert set(named) <= there
    assert len(there - set(named)) < 4, "new pages have their place in docs/zensical.toml"


def test_links_of_the_site() -> None:
    """On the site a link leads to a page, a file that is copied or the reference of a module; else it is plain text."""
    site = runpy.run_path(str(ROOT / "docs/site.py"))
    api = site["references"]()
    assert {"contracts", "policies", "stage2_label"} <= set(api)
    sources = {page: ROOT / "docs" / page for page in pages_of_the_site()}
    sources |= {name: ROOT / place for place, name in site["ALSO"].items() if name != "index.md"}
    known = {*sources, *(f"api/{name}.md" for name in api)}
    for name, source in sources.items():
        for _, _, target, _ in site["LINK"].findall(site["relinked"](source.read_text(), source, name, api)):
            if not re.match(r"[a-z]+:", target):
                there = os.path.normpath(Path(name).parent / target)
                assert there in known or (ROOT / "docs" / there).is_file(), f"{name} leads to {target}"


def test_introductions_say_the_same() -> None:
    """In three languages: the same pages, commands, code and figures."""
    texts = [(ROOT / f"docs/index{language}.md").read_text() for language in ("", ".ko", ".zh")]
    links = [sorted(re.findall(r"\]\((\w[^)]*)\)", text)) for text in texts]
    own = {"index.md", "index.ko.md", "index.zh.md"}
    assert len({tuple(link for link in each if link not in own) for each in links}) == 1
    code = [[line.partition("#")[0].strip() for line in blocks("python", text)[0].splitlines()] for text in texts]
    assert code[0] == code[1] == code[2]
    assert {tuple(re.findall(r"^(#+) ", text, re.MULTILINE)) for text in texts} == {("#", "##", "##", "##")}
    for fact in ("3.11", "20", "10", "17", "48", "2410.11758", "make demo"):
        assert all(fact in text for text in texts), fact
    assert all(sentence in README for sentence in re.findall(r"^\d\. (.+)$", texts[0], re.MULTILINE))


def test_docstrings_in_columns_become_lists() -> None:
    pytest.importorskip("griffe", reason="the site's packages are not installed: make docs")
    shown = runpy.run_path(str(ROOT / "docs/docstrings.py"))["shown"]
    made = shown("One.\n\nframes   int64 [N]\nlow, high [D]  [D][A], in\n         units\n\nArgs:\n    x: of `[A][B]`")
    assert (
        made == "One.\n\n* `frames`: int64 [N]\n* `low, high [D]`: [D]\\[A], in\n    units\n\nArgs:\n    x: of `[A][B]`"
    )


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    """With the packages of `make docs`; every link and every reference is checked by the builder (--strict)."""
    pytest.importorskip("zensical", reason="the site's packages are not installed: make docs")
    done = subprocess.run([sys.executable, ROOT / "docs/site.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    site = ROOT / "build/docs/site"
    for page in pages_of_the_site():
        assert (site / page).with_suffix(".html").is_file(), page
    assert "float32 [chunk, A]" in (site / "api/policies.html").read_text()
    found = json.loads((site / "search.json").read_text())
    assert "latent_action" in json.dumps(found)
