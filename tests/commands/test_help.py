"""`lapa` alone, `--help`, `--version`, and what `help` and `dir` say of the package."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import lapa
from lapa import cli

ALONE = ("", "-h", "--help", "--version")


@pytest.mark.parametrize("arguments", ALONE)
def test_questions_are_answered_at_once(arguments: str) -> None:
    """Exit code 0, nothing on stderr, no torch."""
    code = f"import sys; from lapa.cli import main; main({arguments.split()}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert not done.stderr


def test_a_line_a_command_in_the_order_of_use() -> None:
    lines = cli.overview().splitlines()
    assert max(map(len, lines)) <= 80, "a terminal is 80 wide"
    named = [line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] in cli.COMMANDS]
    assert named == list(cli.COMMANDS), "every command once"
    assert named[0] == "demo"
    order = [named.index(name) for name in ("quantize", "label", "pretrain", "finetune", "evaluate")]
    assert order == sorted(order)
    assert lines[lines.index("Start here:") + 1].split()[0] == "demo"


def test_lapa_alone_says_where_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main([])
    said = capsys.readouterr().out
    assert "lapa demo" in said
    assert "lapa --help" in said


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"])
    assert capsys.readouterr().out == f"lapa {lapa.__version__}\n"


def test_the_package_lists_what_it_gives() -> None:
    assert {"LAQ", "LapaError", "Policy", "__version__"} <= set(dir(lapa))
    for name in ("from_pretrained", "act", "act_batch"):
        assert inspect.getdoc(getattr(lapa.Policy, name)), name
    for name in ("from_pretrained", "encode"):
        assert inspect.getdoc(getattr(lapa.LAQ, name)), name
