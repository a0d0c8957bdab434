"""The house: imports go one way, and a few rules that keep the tree readable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lapa
from lapa.plugins import KINDS

ROOT = Path(lapa.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# A file may import its own entry and earlier lines. A folder stands for all its files.
LINES = [line.split() for line in """
    contracts methods
    plugins
    artefacts
    runtime
    tabletop
    actions
    data
    measures
    training
    datasets benchmarks encoders quantizers serving
    models
    backbones heads labels
    recipe plots
    policies run_folder
    tabletop.grounding stage1_latent_actions stage1_points stage2_label stage2_pretrain
    stage3_finetune
    evaluate
    analysis interop
    analysis.tabletop
    analysis.inspect analysis.command
    experiments explorer
    commands
    cli
    __main__
""".strip().splitlines()]  # fmt: skip


def name(file: Path) -> str:
    """lapa/data/pack.py -> "data.pack"; a folder's __init__.py -> the folder."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name(file) for file in FILES}


def imports(file: Path) -> Iterator[str]:
    """Modules of lapa that a file imports, those inside functions and TYPE_CHECKING blocks too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where things come from"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in found:
            top, _, rest = full.partition(".")
            if top == "lapa" and rest:
                yield rest if rest in NAMES else rest.rpartition(".")[0]


def line_of(module: str) -> tuple[int, str]:
    """Number of the line and the entry that a module belongs to."""
    found = [(i, e) for i, line in enumerate(LINES) for e in line if f"{module}.".startswith(f"{e}.")]
    assert found, f"lapa.{module} has no place in the table of this test; give it one"
    return max(found, key=lambda place: len(place[1]))


MODULES = [file for file in FILES if name(file) not in ("", "training")]  # the package's own face is lazy


@pytest.mark.parametrize("file", MODULES, ids=name)
def test_imports_go_one_way(file: Path) -> None:
    line, entry = line_of(name(file))
    for target in imports(file):
        if target:  # "" is `from lapa import __version__`
            other, its = line_of(target)
            assert other < line or its == entry, f"lapa.{name(file)} must not import lapa.{target}"


def test_the_table_names_what_is_there() -> None:
    entries = {entry for line in LINES for entry in line}
    assert entries <= NAMES, f"not there: {entries - NAMES}"


def test_the_root_of_the_package_is_small() -> None:
    """Folders hold the ideas; the root has the three stages, the contracts and what joins them."""
    modules = sorted(file.stem for file in FILES if file.parent == ROOT)
    assert len(modules) <= 14, modules


def test_every_kind_of_plugin_has_its_folder() -> None:
    assert set(KINDS) <= {module for module in NAMES if "." not in module}


def test_one_name_for_one_thing() -> None:
    """Classes and functions of different files that are called alike are easily taken for each other."""
    found: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.setdefault(node.name, []).append(name(file))
    for once in ("Setting", "Row", "Cell", "Plan", "Step", "Panel", "read_json", "start", "Batch", "Block", "Linear"):
        assert len(found.get(once, [])) <= 1, f"{once}: {found[once]}"


def test_no_cycles() -> None:
    """Not even inside a folder, where the table allows every import."""
    graph = {name(file): {t for t in imports(file) if t and t != name(file)} for file in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_the_face_of_the_package_imports_little() -> None:
    body = ast.parse((ROOT / "__init__.py").read_text()).body
    found = {f"{n.module}" for n in body if isinstance(n, ast.ImportFrom)}
    assert found <= {"__future__", "typing", "lapa.runtime.threads", "lapa.tabletop"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: name(f) or "lapa")
def test_every_file_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text())), f"{file} has no docstring"


def test_no_junk_drawer_and_no_torchvision() -> None:
    for file in FILES:
        assert file.stem not in ("utils", "helpers", "misc", "common"), f"{file}: name it after what is in it"
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] == "torchvision" for n in names), f"{file} imports torchvision"


def test_test_files_have_names_of_their_own() -> None:
    """Tests mirror the tree, and pytest tells their files apart by name alone."""
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    found = [file.name for file in files]
    assert len(set(found)) == len(found), [str(file) for file in files if found.count(file.name) > 1]
