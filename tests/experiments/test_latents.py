"""`lapa study latents`: a table for each dataset, made once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lapa.artefacts.folder import read_json
from lapa.contracts import LapaError
from lapa.data.pack import pack
from lapa.experiments.latents import Asked, Judge, ranks_alike, study_latents
from lapa.training.held_out import is_held_out

DATA = "tabletop:sim,episodes=15,seed=3"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latents")
    study_latents(Asked((DATA,), seeds=2, encoders=("pixels",)), out)
    return out


def test_codes_stand_beside_what_needs_no_training(made: Path) -> None:
    table = read_json(made / "results.json", "study")["tables"][DATA]
    rows = table["rows"]
    assert 0 < table["held_out"] < table["pairs"]
    assert rows["difference picture, 24 px"]["motion"]["mean"] > rows["first picture, 24 px"]["motion"]["mean"]
    [codes] = [row for name, row in rows.items() if "preset" in name and "labelled" not in name]
    assert codes["motion"]["seeds"] == rows["first picture, 24 px"]["motion"]["seeds"] == 2
    assert codes["motion"]["low"] <= codes["motion"]["mean"] <= codes["motion"]["high"]
    assert 1 <= codes["perplexity"]["mean"] <= 64
    assert sum("labelled" in name for name in rows) == 2
    assert -1 <= table["flow_ranks_as_motion"] <= 1
    text = (made / "table.md").read_text()
    assert all(name in text for name in rows)


def test_what_is_made_is_not_made_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (made / "results.json").read_text()
    monkeypatch.setattr("lapa.experiments.latents.Judge", None)
    study_latents(Asked((DATA,), seeds=2, encoders=("pixels",)), made)
    assert (made / "results.json").read_text() == before


def test_tables_of_other_datasets_stay(made: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "study")
    other, asked = "tabletop:sim,episodes=6,seed=4", Asked((), seeds=2, encoders=("pixels",), only=("first picture",))
    before = read_json(out / "results.json", "study")["tables"]
    after = study_latents(replace(asked, datasets=(other,)), out)["tables"]
    assert after[DATA] == before[DATA]
    assert set(after) == {DATA, other}
    of_one_seed = study_latents(replace(asked, datasets=(other,), seeds=1), out)["tables"]
    assert set(of_one_seed) == {other}  # DATA's has two


def test_five_seeds_hold_out_each_episode_once() -> None:
    judge = Judge.of(pack([DATA], 24, quiet=True), 0.6)
    assert (judge.test == is_held_out(judge.episode, 5)).all()
    held = np.stack([replace(judge, seed=seed).test for seed in range(5)])
    assert (held.sum(0) == 1).all()
    for row, seed in zip(held, range(5), strict=True):
        fitted = judge.pairs.episode[replace(judge, seed=seed).fitting]
        assert not np.intersect1d(fitted, judge.episode[row]).size


def test_some_rows_now_and_the_others_later(tmp_path: Path) -> None:
    asked = Asked((DATA,), seeds=1, encoders=())
    for only, wanted in (
        (("first",), {"first picture, 24 px"}),
        ((), {"first picture, 24 px", "difference picture, 24 px"}),
    ):
        table = study_latents(replace(asked, only=only), tmp_path)["tables"][DATA]
        assert {name for name in table["rows"] if "k-means" not in name} == wanted
    assert table["complete"]


def test_a_killed_study_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lapa.experiments.latents.clustered", killed)
    with pytest.raises(KeyboardInterrupt):
        study_latents(Asked((DATA,), seeds=1, encoders=()), tmp_path)
    table = read_json(tmp_path / "results.json", "study")["tables"][DATA]
    assert list(table["rows"]) == ["first picture, 24 px", "difference picture, 24 px"]
    assert not table["complete"]


def test_rows_that_flow_ranks_the_other_way_round() -> None:
    rows = {str(i): {"flow": {"mean": i}, "motion": {"mean": -i}} for i in range(4)}
    assert ranks_alike(rows) == pytest.approx(-1)
    assert ranks_alike({"a": {"flow": {"mean": 1}}}) is None


def test_too_few_episodes_to_hold_one_out(tmp_path: Path) -> None:
    with pytest.raises(LapaError, match="episodes=1"):
        study_latents(Asked(("tabletop:sim,episodes=1,seed=3",), encoders=()), tmp_path)
