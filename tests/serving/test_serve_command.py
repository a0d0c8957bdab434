"""`lapa serve`: options that are refused before anything is served."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from lapa import cli
from lapa.commands.serve import read_token, require_packages
from lapa.contracts import LapaError, PolicySpec


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--execute", "0"], "--execute"), (["--threads", "0"], "--threads"), (["--queue", "-1"], "--queue"),
        (["--clients", "0"], "--clients"), (["--ensemble", "-1"], "--ensemble"), (["--host", "0.0.0.0"], "0.0.0.0"),
        (["--token-file", "nowhere"], "nowhere"), ([], "no_policy"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(
    options: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAPA_SERVE_TOKEN", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "no_policy", *options])
    assert ended.value.code == 1
    assert named in capsys.readouterr().err


def test_a_policy_that_speaks_no_actions(
    artefact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = SimpleNamespace(dimensions=0, spec=PolicySpec(("main",), (), None))
    monkeypatch.setattr("lapa.policies.opened", lambda artefact: silent)
    with pytest.raises(SystemExit):
        cli.main(["serve", str(artefact)])
    assert "finetune" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--keys", "libera"], "libera"), (["--limit", "elbow=0:1"], "elbow"), (["--max-step", "fast"], "fast"),
     (["--benchmark", "gym:CartPole-v1"], "CartPole"), (["--port", "70000"], "70000"),
     (["--execute", "4"], "3 actions")],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    options: list[str], named: str, artefact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", str(artefact), *options])
    assert named in capsys.readouterr().err


def test_what_is_said_at_start(
    artefact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lapa.serving.server.run", lambda made: made.service.asked.close())
    options = [
        "--keys",
        "libero",
        "--limit",
        "dx=-1:1",
        "--max-step",
        "0.5",
        "--instruction",
        "tidy up",
        "--execute",
        "2",
    ]
    cli.main(["serve", str(artefact), *options])
    told = capsys.readouterr().err
    for word in (
        "observation/image",
        "tidy up",
        "dx",
        "5 a second",
        "2 actions",
        "dx from -1 to 1",
        "0.5",
        "thread",
        "7",
    ):
        assert word in told


def test_the_token_is_of_a_file_or_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPA_SERVE_TOKEN", "from-the-environment")
    (tmp_path / "token").write_text("  from-the-file \n")
    assert read_token(None) == "from-the-environment"
    assert read_token(tmp_path / "token") == "from-the-file"
    (tmp_path / "token").write_text("\n")
    with pytest.raises(LapaError, match="token"):
        read_token(tmp_path / "token")


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "msgpack" else find(name))
    with pytest.raises(LapaError, match=r"msgpack.*lapa\[serve\]"):
        require_packages()
