"""Labelling in shards: whoever does the work, and whoever is killed, the labels are those of one unbroken process."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lapa import stage2_label
from lapa.artefacts.folder import read_json
from lapa.contracts import LapaError
from lapa.data.labelled import MANIFEST, TABLE, read_labels
from lapa.data.pack import Packed, pack
from lapa.data.pairs import window_pairs
from lapa.recipe import Recipe
from lapa.runtime.distributed import device
from lapa.stage1_latent_actions import fit_idm, fit_laq
from lapa.stage2_label import PLAN, cut, label

DATA = "tabletop:sim,episodes=12,seed=3"
SMALL = 16  # pairs in a shard: some twenty shards


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack([DATA], 24, quiet=True)


@pytest.fixture(scope="module")
def laq(packed: Packed, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("laq") / "laq"
    fit_laq(packed, replace(tiny, quantize=replace(tiny.quantize, steps=1)), folder, 0)
    return str(folder)


@pytest.fixture(scope="module")
def whole(packed: Packed, laq: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of labels that one process made without a break."""
    out = tmp_path_factory.mktemp("whole") / "labels"
    manifest = label(packed, laq, out, shard=SMALL)
    assert len(manifest["shards"]) >= 8
    return files(out)


def files(out: Path) -> dict[str, bytes]:
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("*")) if f.is_file()}


def shards(out: Path) -> dict[str, bytes]:
    """The shards that can be seen, whether the labels are finished or not."""
    return {f"{TABLE}/{f.name}": f.read_bytes() for f in (out / TABLE).glob("part-*")}


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.skipif(device().type != "cpu", reason="forks, which a process that has a GPU cannot")
def test_killed_twenty_times(packed: Packed, laq: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Two processes run the same command into the same folder and are killed (SIGKILL) at random moments, again and
    again, until twenty have died. What is there is whole at any time, and in the end it is what one process makes."""
    rng, out = np.random.default_rng(0), tmp_path / "labels"
    started = time.monotonic()
    label(packed, laq, out, shard=SMALL)
    took, killed, finished, half_done = time.monotonic() - started, 0, 0, 0
    while killed < 20:
        if (out / MANIFEST).exists():
            assert {k: v for k, v in files(out).items() if k in whole} == whole, "missing, doubled or torn"
            shutil.rmtree(out)
            finished += 1
        for child in [forked(packed, laq, out) for _ in range(2)]:
            time.sleep(rng.uniform(0, took / 2))
            os.kill(child, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            there = shards(out) if out.exists() else {}
            assert there.items() <= whole.items(), "torn"
            half_done += 0 < len(there) < len(whole) - 1
    assert half_done > 3, "they were killed while they worked"
    if not (out / MANIFEST).exists():
        label(packed, laq, out, shard=SMALL)
        assert files(out) == whole, "and nothing else is left behind"


def forked(packed: Packed, source: str, out: Path) -> int:
    """Process id of a copy of this process that labels."""
    if child := os.fork():
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        label(packed, source, out, shard=SMALL)
    finally:
        os._exit(0)


def die(victims: set[int]) -> type[subprocess.Popen[bytes]]:
    """A Popen whose processes with these numbers are killed as they start."""
    count = iter(range(100))

    class Dying(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            if next(count) in victims:
                self.kill()

    return Dying


def test_workers_do_the_work_of_one_that_died(
    packed: Packed, laq: str, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(subprocess, "Popen", die({0}))
    label(packed, laq, tmp_path / "labels", shard=SMALL, workers=2, datasets=[DATA])
    assert files(tmp_path / "labels") == whole
    assert re.search(r"worker 0 .*\(SIGKILL\)", capfd.readouterr().err)


def test_all_workers_died(
    packed: Packed, laq: str, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", die({0, 1}))
    with pytest.raises(LapaError, match=r"worker 1 .*SIGKILL"):
        label(packed, laq, tmp_path / "labels", shard=SMALL, workers=2, datasets=[DATA])
    with pytest.raises(LapaError, match=r"manifest\.json"):
        read_labels(tmp_path / "labels")
    label(packed, laq, tmp_path / "labels", shard=SMALL)
    assert files(tmp_path / "labels") == whole


def test_a_worker_ends_with_its_parent(packed: Packed, laq: str, tmp_path: Path) -> None:
    """The parent is killed, and its workers do not stay behind."""
    slow = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from lapa import stage2_label\n"
        "stage2_label._worker.__globals__['help_with'] = lambda out, number, count, tell: [\n"
        "    (Path(out, f'alive{number}').touch(), tell(0), time.sleep(0.05)) for _ in range(1200)]\n"
        "stage2_label._worker(*sys.argv[1:])\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys, time\n"
         "worker = subprocess.Popen([sys.executable, '-c', *sys.argv[1:]])\nprint(worker.pid, flush=True)\n"
         "time.sleep(60)", slow, str(tmp_path), "0", "1"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout
    worker = int(parent.stdout.readline())
    while not (tmp_path / "alive0").exists():
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists() or "\nState:\tZ" in Path(f"/proc/{worker}/status").read_text():
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker went on for ten seconds")


# --- shards ---------------------------------------------------------------------------------------


def test_shards_hold_every_pair_once(packed: Packed, laq: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "labels" / TABLE).mkdir(parents=True)
    for name, content in whole.items():
        (tmp_path / "labels" / name).write_bytes(content)
    labels, manifest = read_labels(tmp_path / "labels")
    pairs = window_pairs(packed, manifest["window_seconds"])
    np.testing.assert_array_equal(labels.episode, pairs.episode)
    np.testing.assert_array_equal(labels.frame, pairs.frame)
    source = stage2_label.open_source(laq)
    np.testing.assert_array_equal(labels.values, source.label(pairs.batch(packed, np.arange(len(pairs)))))
    assert np.sum(manifest["code_counts"], axis=1).tolist() == [len(pairs)] * labels.values.shape[1]
    assert manifest["code_counts"][0] == np.bincount(labels.values[:, 0], minlength=8).tolist()


@pytest.mark.parametrize("size", [0, 1, 30, 10**6])
@pytest.mark.parametrize("end", ["drop", "clip"])
def test_cut(packed: Packed, size: int, end: Any) -> None:
    """Short episodes too: the window is longer than some."""
    lengths = np.diff(packed.starts)
    window = float(np.median(lengths) / packed.fps[0])
    plan = stage2_label.LabelSettings((DATA,), False, 24, "", "", "", window, end, "float32", False, size)
    made = cut(packed, plan)
    pairs = window_pairs(packed, window, end)
    inside = [np.sum((pairs.episode >= s.first) & (pairs.episode < s.last)) for s in made]
    assert inside == [s.pairs for s in made]
    assert sum(inside) == len(pairs)
    assert len({s.file for s in made}) == len(made)
    assert all(a.last <= b.first for a, b in itertools.pairwise(made))
    assert len(made) == 1 or size < 10**6


def test_walks_cover_the_list(tmp_path: Path) -> None:
    """Each process has its own part first; alone, it would do all of it."""
    made = [stage2_label.Shard(f"part-{i}", i, i + 1, 1) for i in range(7)]
    walks = [[s.first for s in stage2_label.walk(made, tmp_path, number, 3)] for number in range(3)]
    assert [set(walk) for walk in walks] == [set(range(7))] * 3
    assert [walk[:2] for walk in walks] == [[0, 1], [3, 4], [5, 6]]
    (tmp_path / "part-4").touch()
    assert 4 not in [s.first for s in stage2_label.walk(made, tmp_path, 0, 3)]


def test_a_damaged_shard(packed: Packed, laq: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    """A disk that loses what was written: found before the end it is made again, after it refused."""
    out = tmp_path / "labels"
    (out / TABLE).mkdir(parents=True)
    one, two = f"{TABLE}/part-000001.parquet", f"{TABLE}/part-000002.parquet"
    label(packed, laq, tmp_path / "other", shard=SMALL, end="clip")
    plan = json.dumps({"datasets": [DATA], "skip_bad": False, "image_size": 24, "fingerprint": packed.fingerprint,
                       "source": laq, "source_hash": stage2_label.open_source(laq).hash, "window": 0, "end": "drop",
                       "precision": "float32", "compile": False, "shard": SMALL})  # fmt: skip
    plan = plan.replace('"window": 0', f'"window": {json.loads(whole[MANIFEST])["window_seconds"]}')
    (out / PLAN).write_text(plan)
    (out / one).write_bytes(whole[one][:-20])
    (out / two).write_bytes((tmp_path / "other" / one).read_bytes())
    for damaged in (r"part-000001.*cannot be read.*removed; run", r"part-000002.* does not hold.*removed; run"):
        with pytest.raises(LapaError, match=damaged):
            label(packed, laq, out, shard=SMALL)
    label(packed, laq, out, shard=SMALL)
    assert files(out) == whole
    (out / one).write_bytes((tmp_path / "other" / one).read_bytes())
    with pytest.raises(LapaError, match=r"part-000001\.parquet"):
        read_labels(out)
    (out / one).unlink()
    with pytest.raises(LapaError, match=r"part-000001\.parquet"):
        read_labels(out)


def test_another_plan(packed: Packed, laq: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "labels"
    with monkeypatch.context() as patch:
        patch.setattr(stage2_label, "finish", lambda *_: {})
        label(packed, laq, out, shard=SMALL)
    with pytest.raises(LapaError, match=r"labels\b.*unfinished|unfinished"):
        label(packed, laq, out, "clip", shard=SMALL)
    made = label(packed, laq, out, shard=SMALL)
    assert label(packed, laq, out, shard=2 * SMALL) == made, "finished already; how it was cut does not matter"
    with pytest.raises(LapaError, match=r"\bdrop\b.*\bclip\b"):
        label(packed, laq, out, "clip", shard=SMALL)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
def test_compiled(packed: Packed, laq: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    """The same codes, whatever the length of a shard's last batch, in one compilation."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        label(packed, laq, tmp_path / "labels", shard=SMALL, compile=True)
    made = {name: content for name, content in files(tmp_path / "labels").items() if name != MANIFEST}
    assert made == {name: content for name, content in whole.items() if name != MANIFEST}
    assert read_json(tmp_path / "labels" / MANIFEST, "manifest")["compiled"]


def test_a_source_that_cannot_be_compiled(packed: Packed, tmp_path: Path) -> None:
    with pytest.raises(LapaError, match=r"--compile: .*ground_truth"):
        label(packed, "ground_truth", tmp_path / "more", compile=True)


# --- Ray ------------------------------------------------------------------------------------------


def test_ray(
    packed: Packed, laq: str, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local Ray of two processes makes the same files; one that fails is told of."""
    ray = pytest.importorskip("ray", reason="pip install 'lapa[scale]'")
    monkeypatch.setenv("PYTHONPATH", str(Path(stage2_label.__file__).parents[1]))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        label(packed, laq, tmp_path / "labels", shard=SMALL, engine="ray", datasets=[DATA])
        with pytest.raises(LapaError, match=r"not labelled\. task 0: .*nowhere"):
            label(
                packed, laq, tmp_path / "more", shard=SMALL, engine="ray", workers=1, datasets=["video_folder:nowhere"]
            )
    finally:
        ray.shutdown()
    assert files(tmp_path / "labels") == whole


def test_without_ray(packed: Packed, laq: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LapaError, match=r"pip install 'lapa\[scale\]'"):
        label(packed, laq, tmp_path / "labels", engine="ray")


def test_labels_of_an_unlabelled_dataset(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(LapaError, match="actions"):
        label(pack([f"video_folder:{clips}"], 24, quiet=True), "ground_truth", tmp_path / "labels")


def test_labels_of_a_robot_of_other_dimensions(packed: Packed, robot: Path, tiny: Recipe, tmp_path: Path) -> None:
    """They cannot be held against the video's own actions, and are not called what those are called."""
    fit_idm(packed, tiny, tmp_path / "idm", 0)
    assert packed.actions is not None
    for number, width in enumerate((1, 3)):
        actions = np.repeat(packed.actions[:, :1], width, axis=1)
        video = replace(packed, actions=actions, action_names=("a", "b", "c")[:width])
        manifest = label(video, str(tmp_path / "idm"), tmp_path / f"labels{number}")
        assert "r2_of_true_actions" not in manifest
        assert manifest["action_names"] == []
    manifest = label(packed, str(tmp_path / "idm"), tmp_path / "labels")
    assert "r2_of_true_actions" in manifest
    assert manifest["action_names"] == list(packed.action_names)


def test_inverse_dynamics_of_another_rate_is_told(
    packed: Packed, tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_idm(packed, tiny, tmp_path / "idm", 0)
    label(packed, str(tmp_path / "idm"), tmp_path / "same")
    assert "the inverse dynamics was fitted at" not in capsys.readouterr().err
    label(replace(packed, fps=packed.fps * 3), str(tmp_path / "idm"), tmp_path / "other")
    assert "the videos have 15 frames a second, and the inverse dynamics was fitted at 5." in capsys.readouterr().err
