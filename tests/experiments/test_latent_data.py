"""`lapa study latents --dataset all`: what is found, made once, or left out with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from lapa.contracts import LapaError
from lapa.experiments import latent_data
from lapa.experiments.latent_data import DEMONSTRATIONS, EXPERTS, TABLETOP, find_all, is_all
from lapa.experiments.latents import Asked, study_latents, summary


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAPA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_recordings_are_found_and_demonstrations_made_once(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "recorded/real_g1").mkdir(parents=True)
    made = list[str]()

    def collect(benchmark: str, episodes: int, out: Path, noise: float) -> None:
        if benchmark.startswith("so101"):
            raise LapaError("so101 needs packages that are not installed")
        made.append(benchmark)
        assert episodes == DEMONSTRATIONS
        out.mkdir(parents=True)

    for _ in range(2):
        found = find_all(f"all:{tmp_path / 'recorded'}", collect)
    assert made == [name for name in EXPERTS if not name.startswith("so101")]
    assert found.datasets[0] == f"lerobot:{tmp_path / 'recorded/real_g1'}"
    assert found.datasets[-1] == TABLETOP
    assert all(str(cache) in name for name in found.datasets[1:-1])
    assert len(found.datasets) == 2 + len(made)
    assert [why.partition(":")[0] for why in found.left_out] == ["real_clips", "so101"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert is_all("all")
    assert is_all("all:data")
    assert not is_all("lerobot:all")
    with pytest.raises(LapaError, match="missing"):
        find_all(f"all:{tmp_path / 'missing'}")


def test_one_table_of_all_that_can_be_judged(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One dataset has too few episodes: it is left out, the others are judged."""
    monkeypatch.setattr(latent_data, "EXPERTS", {})
    monkeypatch.setattr(latent_data, "RECORDED", {"few": "tabletop:sim,episodes=2,seed=3"})
    monkeypatch.setattr(latent_data, "TABLETOP", "tabletop:sim,episodes=10,seed=3")
    (tmp_path / "here/few").mkdir(parents=True)
    results = study_latents(Asked((f"all:{tmp_path / 'here'}",), seeds=1, encoders=()), tmp_path / "out")
    assert list(results["tables"]) == [latent_data.TABLETOP]
    [why] = results["left_out"]
    assert "episodes=2" in why
    assert why in capsys.readouterr().out
    assert why in (tmp_path / "out/table.md").read_text()


def test_the_summary_has_a_row_for_each_dataset() -> None:
    def figure(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean, "high": mean, "seeds": 1}

    codes = {"motion": figure(0.5), "motion, mean": figure(0.3), "position": figure(0.2), "perplexity": figure(32)}
    rows = {"first picture, 24 px": {"flow": figure(0.1)}, "efficientnet: codes of the preset video": codes}
    lines = summary({"a": {"rows": rows}, "b": {"rows": {}}}).splitlines()
    assert "0.50 / 0.30" in lines[2]
    assert "flow 0.10" in lines[2]
    assert lines[2].rstrip("| ").endswith("0.50")
    assert lines[3].startswith("| b")
