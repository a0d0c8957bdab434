"""The training loop: the same result however a batch is split and a run is broken up; nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader

from lapa import cli
from lapa.artefacts.folder import load_artefact, write_tensors
from lapa.contracts import LapaError, Logs
from lapa.measures import probes
from lapa.runtime import distributed
from lapa.training import loop
from lapa.training.batches import AHEAD, batches
from lapa.training.ema import EMA
from lapa.training.loop import Optimisation, Sampler
from lapa.training.resume import Checkpoints

HOW = Optimisation(steps=6, batch_size=8, learning_rate=1e-2, warmup=1, precision="float32", schedule="constant")


class Line(nn.Module):
    """Two layers with noise, as small as a model can be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.seen: list[int] = []

    def loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, Logs]:
        self.seen.append(len(batch))
        x = batch + distributed.noise_like(batch)
        for layer in self.layers:
            x = layer(x)
        return (x - batch).square().mean(), {}


def draw(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(100, size=8)


def load(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows)[:, None].expand(-1, 4) / 100.0


def fit(out: Path, how: Optimisation = HOW, model: nn.Module | None = None, **options: Any) -> nn.Module:
    model = model or Line()
    loop.fit(model, options.pop("sampler", Sampler(draw, load)), how, out, seed=options.pop("seed", 3), title="line",
             **options)  # fmt: skip
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# --- the step -------------------------------------------------------------------------------------


def test_accumulation_takes_the_same_steps(tmp_path: Path) -> None:
    whole, split = fit(tmp_path / "whole"), fit(tmp_path / "split", replace(HOW, accumulate=4))
    assert split.seen == [2] * 4 * 6
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], value, atol=1e-6, rtol=1e-5)
    assert not same(whole, Line())


def test_ema_is_its_formula_and_what_is_saved(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Watched(Line):
        def after_step(self, step: int) -> Logs:
            seen.append(self.layers[0].weight.detach().clone())
            return {}

    start = Line().layers[0].weight.detach().clone()
    model = fit(tmp_path, replace(HOW, ema=0.5), Watched())
    average = start
    for step, weight in enumerate(seen, 1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(model.layers[0].weight.detach(), average)
    assert not torch.equal(seen[-1], average)


def test_the_monitor_sees_the_averaged_weights_and_training_goes_on_with_the_others(tmp_path: Path) -> None:
    seen = []
    model = Line()

    def monitor(step: int, book: Any) -> Logs:
        assert not model.training
        seen.append(model.layers[0].weight.detach().clone())
        return {"figure": float(step)}

    how = replace(HOW, ema=0.5)
    fit(tmp_path / "watched", how, model, monitor=monitor, monitor_every=1)
    assert torch.equal(seen[-1], model.layers[0].weight)
    assert same(model, fit(tmp_path / "alone", how))


def test_ema_swaps_there_and_back() -> None:
    model = Line()
    ema = EMA(dict(model.named_parameters()), 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    before = [p.clone() for p in model.parameters()]
    with ema.in_place():
        assert same(model, Line())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_learning_rate_warms_up_and_falls() -> None:
    how = Optimisation(steps=100, learning_rate=2.0, warmup=10)
    rates = [how.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0, rel=0.03)
    assert rates[99] == pytest.approx(0.1, rel=0.02), "a twentieth"
    assert rates[55] == pytest.approx(2.0 * (0.05 + 0.475 * (1 + np.cos(0.55 * np.pi))))
    assert replace(how, schedule="constant").rate(99) == 2.0


def test_schedules() -> None:
    how = Optimisation(steps=100, learning_rate=2.0, warmup=10, schedule="linear")
    rates = [how.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[50] == pytest.approx(2 * (0.05 + 0.95 * 0.5))
    assert rates[99] == pytest.approx(0.1, rel=0.2)
    assert np.diff(rates[10:]).std() < 1e-12, "a straight line"


def test_clipping_is_torchs() -> None:
    models = [Line() for _ in range(2)]
    for model in models:
        model.loss(torch.ones(2, 4))[0].mul(100).backward()
        model.layers[0].bias.grad = None  # a parameter that the loss left out
    torch.manual_seed(0)
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        other.grad = None if one.grad is None else one.grad.clone()
    before = [p.grad for p in models[1].parameters()]
    kept = [g if g is None else g.clone() for g in before]
    distributed.clip_gradients(list(models[1].parameters()), 0.0)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(before, kept, strict=True)), "0 is off"
    norm = nn.utils.clip_grad_norm_(models[0].parameters(), 0.5)
    assert distributed.clip_gradients(list(models[1].parameters()), 0.5) == norm
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (replace(HOW, accumulate=3), " 3 accumulated"),
        (replace(HOW, recompute=True), "recompute"),
    ],
)
def test_settings_refused(how: Optimisation, message: str, tmp_path: Path) -> None:
    with pytest.raises(LapaError, match=message):
        fit(tmp_path, how)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps .* 1 .* 0"),
        ({"batch_size": 0}, "batch_size .* 1 .* 0"),
        ({"batch_size": 8.0}, r"batch_size .* 8\.0"),
        ({"batch_size": True}, "batch_size .* True"),
        ({"accumulate": 0}, "accumulate .* 1 .* 0"),
        ({"keep": 0}, "keep .* 1 .* 0"),
        ({"warmup": -1}, "warmup .* 0 .* -1"),
        ({"learning_rate": -1e-3}, r"learning_rate .* 0 .* -0\.001"),
        ({"learning_rate": "1e-3"}, "learning_rate .* 0 .* '1e-3'"),
        ({"weight_decay": float("nan")}, "weight_decay .* nan"),
        ({"clip": -1.0}, r"clip .* 0 .* -1\.0"),
        ({"ema": 1.0}, r"ema .* 0 .* 1; .*1\.0"),
        ({"betas": (0.9,)}, r"betas .*\(0\.9,\)"),
        ({"betas": (0.9, 1.0)}, r"betas .*\(0\.9, 1\.0\)"),
        ({"betas": (0.9, "0.99")}, r"betas .*\(0\.9, '0\.99'\)"),
        ({"betas": 0.9}, r"betas .*0\.9"),
        ({"schedule": "cosin"}, r'schedule "cosin".* "cosine"\?'),
        ({"precision": None}, "precision .*None"),
        ({"compile": 1}, "compile .* 1"),
    ],
)
def test_values_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LapaError, match=message):
        replace(HOW, **change)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    class Broken(nn.Linear):
        def loss(self, batch: Any) -> tuple[torch.Tensor, Logs]:
            return self.weight.sum() * float("nan"), {}

    nothing = Sampler(lambda rng: np.arange(8), lambda rows: None)
    with pytest.raises(LapaError, match=r"broken.*nan.*step 1\b"):
        loop.fit(Broken(1, 1), nothing, HOW, tmp_path, seed=0, title="broken")


def test_no_clipping(tmp_path: Path) -> None:
    assert same(fit(tmp_path / "off", replace(HOW, clip=0.0)), fit(tmp_path / "high", replace(HOW, clip=1e9)))


def test_compile_compiles_the_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append(self))
    model = fit(tmp_path, replace(HOW, compile=True))
    assert compiled == list(model.layers)


# --- batches --------------------------------------------------------------------------------------


def test_batches_are_loaded_while_the_model_works(tmp_path: Path) -> None:
    """In step 1 the model waits for the loading of batch 2, which would never come if it were not ahead."""
    second = threading.Event()
    loads: list[int] = []

    def loaded(rows: np.ndarray) -> torch.Tensor:
        loads.append(threading.get_ident())
        if len(loads) == 2:
            second.set()
        return load(rows)

    class Waits(Line):
        def loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, Logs]:
            assert second.wait(20)
            return super().loss(batch)

    fit(tmp_path, model=Waits(), sampler=Sampler(draw, loaded))
    assert len(loads) == 6
    assert threading.get_ident() not in loads
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_batches_are_a_function_of_seed_and_step() -> None:
    shares = distributed.shares(8, 2)
    everything = list(batches(Sampler(draw, load), shares, 5, range(6)))
    later = list(batches(Sampler(draw, load), shares, 5, range(4, 6)))
    assert [len(step) for step in everything] == [2] * 6
    for one, other in zip(everything[4:], later, strict=True):
        assert all(torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))
    expected = load(draw(loop.seed_everything(5, 2)))
    assert torch.equal(torch.cat([batch for _, batch in everything[2]]), expected)


def test_an_error_of_the_sampler_arrives_at_its_step(tmp_path: Path) -> None:
    def failing(rows: np.ndarray) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise LapaError("the disk went away")
        return load(rows)

    calls: list[int] = []
    model = Line()
    with pytest.raises(LapaError, match="went away"):
        fit(tmp_path, model=model, sampler=Sampler(draw, failing))
    assert 3 - AHEAD <= len(model.seen) <= 3


# --- checkpoints ----------------------------------------------------------------------------------


def broken_off(out: Path, steps: int, how: Optimisation = HOW) -> None:
    """A run that ended without a word after `steps` steps, with a checkpoint at each."""

    class Breaks(Line):
        def after_step(self, step: int) -> Logs:
            if step > steps:
                raise EOFError
            return {}

    with pytest.raises(EOFError):
        fit(out, how, Breaks(), save_every=-1.0)


@pytest.mark.parametrize("how", [replace(HOW, ema=0.9), replace(HOW, accumulate=2), replace(HOW, schedule="cosine")])
def test_resumed_equals_unbroken(how: Optimisation, tmp_path: Path) -> None:
    unbroken = fit(tmp_path / "unbroken", how)
    broken_off(tmp_path / "broken", 3, how)
    assert same(fit(tmp_path / "broken", how), unbroken)
    last = [(tmp_path / run / "checkpoints/step_000006/shard-00001.safetensors") for run in ("unbroken", "broken")]
    assert last[0].read_bytes() == last[1].read_bytes(), "optimizer and all"


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    figures = {1: 5.0, 2: 1.0, 3: 4.0, 4: 2.0, 5: 3.0, 6: 6.0}
    options: dict[str, Any] = {"monitor": lambda step, book: {"error": figures[step]}, "monitor_every": 1}
    fit(tmp_path, **options, best="error")
    folder = tmp_path / "checkpoints"
    assert sorted(found.name for found in folder.iterdir()) == ["best", "step_000002", "step_000005", "step_000006"]
    assert json.loads((folder / "best/state.json").read_text())["step"] == 2
    fit(tmp_path / "three", replace(HOW, keep=3), **options)
    assert Checkpoints(tmp_path / "three", 3, 3).steps() == [4, 5, 6], "nothing is best where no figure is named"


def test_slow_saves_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model on a slow disk: saving takes a twentieth of the time, not half of it."""

    def slow(self: Checkpoints, state: Any, step: int, *rest: Any, **more: Any) -> None:
        steps.append(step)
        time.sleep(0.3)

    class Slow(Line):
        def loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, Logs]:
            time.sleep(0.05)
            return super().loss(batch)

    steps: list[int] = []
    monkeypatch.setattr(Checkpoints, "save", slow)
    fit(tmp_path, replace(HOW, steps=30), Slow(), save_every=0.01)
    assert steps == [1, 30], "the second is due six seconds after the first"


def watched_as(*figures: float) -> Callable[[int, Any], Logs]:
    """A monitor that gives these figures, one at every second step; the last one goes on."""
    return lambda step, book: {"figure": (*figures, *figures[-1:] * 9)[step // 2 - 1]}


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_step_is_kept_and_training_ends_once_it_has_passed(ema: float, tmp_path: Path) -> None:
    how = replace(HOW, steps=12, ema=ema)
    options: dict[str, Any] = {"monitor_every": 2, "best": "figure", "patience": 2}
    monitor = watched_as(3.0, 1.0, 2.0, 1.0, 0.5)  # as good once more is not better
    kept = fit(tmp_path / "kept", how, monitor=monitor, **options)
    alone = fit(tmp_path / "alone", replace(how, steps=4))
    assert same(kept, alone), "the weights of step 4"
    lines = [json.loads(line) for line in (tmp_path / "kept/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 8, "two looks later"
    assert same(kept, fit(tmp_path / "kept", how, monitor=monitor, **options)), "as it was left"
    to_the_end = fit(tmp_path / "end", how, monitor=watched_as(3, 2, 1, 0.9, 0.8, 0.7), **options)
    assert same(to_the_end, fit(tmp_path / "all", how))
    logs = loop.fit(
        Line(), Sampler(draw, load), how, tmp_path / "kept", seed=3, title="line", monitor=monitor, **options
    )
    assert (logs["best_step"], logs["figure"]) == (4, 1.0)


def test_a_later_step_that_is_nearly_as_good_is_kept(tmp_path: Path) -> None:
    how = replace(HOW, steps=20, keep=1)
    options: dict[str, Any] = {"monitor_every": 2, "best": "figure", "patience": 2, "slack": 0.1, "save_every": 0}
    # 1.05 and 1.09 are near the lowest, 1.15 is not, though it is near 1.09: the lowest is remembered.
    monitor = watched_as(2.0, 1.0, 1.05, 1.09, 1.15, 1.15)
    kept = fit(tmp_path / "kept", how, monitor=monitor, **options)
    assert same(kept, fit(tmp_path / "alone", replace(how, steps=8)))
    lines = [json.loads(line) for line in (tmp_path / "kept/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 12
    fit(tmp_path / "parts", how, monitor=monitor, until=10, **options)
    assert same(kept, fit(tmp_path / "parts", how, monitor=monitor, **options))


@pytest.mark.parametrize("broken", [3, 4, 5, 7, 8])
def test_resumed_with_patience_equals_unbroken(broken: int, tmp_path: Path) -> None:
    how = replace(HOW, steps=12)
    options: dict[str, Any] = {"monitor_every": 2, "best": "figure", "patience": 2, "save_every": 0}
    monitor = watched_as(3.0, 1.0, 2.0, 1.5, 0.5)
    whole = fit(tmp_path / "whole", how, monitor=monitor, **options)
    fit(tmp_path / "parts", how, monitor=monitor, until=broken, **options)
    resumed = fit(tmp_path / "parts", how, monitor=monitor, **options)
    assert same(whole, resumed)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    # Where a part ends, the monitor runs as well, and says what it says there.
    assert [line for line in lines[1] if json.loads(line)["step"] != broken or broken % 2 == 0] == [
        line for line in lines[0] if json.loads(line)["step"] != broken or broken % 2 == 0
    ]


def test_a_look_that_was_broken_off_is_made_up_for(tmp_path: Path) -> None:
    how = replace(HOW, steps=8)
    options: dict[str, Any] = {"monitor_every": 2, "best": "figure", "patience": 3}
    figures = watched_as(3.0, 1.0, 2.0, 1.5)
    whole = fit(tmp_path / "whole", how, monitor=figures, **options)

    def asked_to_stop(step: int, book: Any) -> Logs:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return figures(step, book)

    with pytest.raises(SystemExit):
        fit(tmp_path / "parts", how, monitor=asked_to_stop, **options)
    assert not Checkpoints(tmp_path / "parts", 3, 2).watched(4)
    assert same(whole, fit(tmp_path / "parts", how, monitor=figures, **options)), "step 4 is the best of both"
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "parts/metrics.jsonl").read_text()


def test_a_finished_run_answers_what_it_did(tmp_path: Path) -> None:
    """As when it is killed after the last step, before the artefact is written."""
    first = loop.fit(Line(), Sampler(draw, load), HOW, tmp_path, seed=3, title="line")
    assert first["loss"] > 0
    assert loop.fit(Line(), Sampler(draw, load), HOW, tmp_path, seed=3, title="line") == first


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def without_offsets(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"saved_offsets", b"saved-offsets"))


def bare(path: Path) -> None:
    write_tensors(path, {"model.layers.0.weight": torch.zeros(4, 5)})


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "damaged"),
        (without_offsets, "is damaged.*saved_offsets"),
        (bare, r"missing .*layers"),
        (Path.unlink, "missing"),
        (flipped, "damaged"),
    ],
)
def test_a_damaged_checkpoint(damage: Callable[[Path], None], message: str, older: bool, tmp_path: Path) -> None:
    """An older lapa has written no sums; then what does not fit is noticed, and a number that is another one is not."""
    broken_off(tmp_path, 3)
    newest = tmp_path / "checkpoints/step_000003"
    if older:
        told = json.loads((newest / "state.json").read_text())
        (newest / "state.json").write_text(json.dumps({k: v for k, v in told.items() if k not in ("sums", "shards")}))
    damage(newest / "shard-00001.safetensors")
    if older and damage is flipped:
        fit(tmp_path)
        return
    with pytest.raises(LapaError, match=message if older else "step_000003 is damaged .shard-00001") as error:
        fit(tmp_path)
    assert "step_000003" in str(error.value)
    newest.rename(tmp_path / "away")
    assert same(fit(tmp_path), fit(tmp_path / "unbroken"))


@pytest.mark.parametrize(
    "text",
    ["[]", "null", "{", '{"step": 3, "seed": 3, "logs": 3, "watched": {}}', '{"step": 1, "logs": {}, "watched": {}}'],
)
def test_a_state_that_lapa_has_not_written(text: str, tmp_path: Path) -> None:
    broken_off(tmp_path, 3)
    (tmp_path / "checkpoints/step_abc").mkdir()
    (tmp_path / "checkpoints/step_abc/state.json").touch()  # somebody's own
    state = tmp_path / "checkpoints/step_000003/state.json"
    edited = json.loads(state.read_text())
    for content in (text, json.dumps({**edited, "step": 2})):
        state.write_text(content)
        with pytest.raises(LapaError, match=r"step_000003 is damaged \(.*state\.json.*Remove that folder"):
            fit(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"), PermissionError(13, "Permission denied"), OSError(5, "I/O error"),
        RuntimeError("Connection closed by peer"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("inside", [True, False])
def test_a_good_checkpoint_is_not_called_damaged(
    error: Exception, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the user would remove it. torch wraps what is raised while it reads the tensors."""

    def fails(*arguments: Any) -> None:
        raise error

    broken_off(tmp_path, 3)
    monkeypatch.setattr(HuggingFaceStorageReader, "read_data" if inside else "read_metadata", fails)
    with pytest.raises(type(error), match=str(error.args[-1])):
        fit(tmp_path)


def test_a_checkpoint_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(tmp_path, 3)
    shard = tmp_path / "checkpoints/step_000003/shard-00001.safetensors"
    shard.unlink()
    shard.symlink_to(shard.name)  # leads to itself; root may read a file of any mode
    with pytest.raises(OSError, match=r"symbolic links.*shard-00001"):
        fit(tmp_path)


def test_another_seed_cannot_go_on(tmp_path: Path) -> None:
    broken_off(tmp_path, 3)
    with pytest.raises(LapaError, match="written with --seed 3, not 4"):
        fit(tmp_path, seed=4)


def test_what_a_kill_leaves_is_no_checkpoint(tmp_path: Path) -> None:
    broken_off(tmp_path, 3)
    folder = tmp_path / "checkpoints"
    (folder / "step_000003").rename(folder / ".step_000003.tmp")  # killed before the last rename
    (folder / "step_000004").mkdir()
    (folder / ".best.1-2.tmp").symlink_to("step_000003")  # killed before the link was renamed
    (folder / ".best.1-3.tmp").symlink_to("step_000001")  # whose checkpoint is gone
    assert Checkpoints(tmp_path, 3, 2).steps() == [2]
    assert same(fit(tmp_path), fit(tmp_path / "unbroken"))
    assert not list(folder.glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("only root may mount a disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_during_a_save_keeps_the_last_good_checkpoint(small_disk: Path, tmp_path: Path) -> None:
    class Fills(Line):
        def __init__(self) -> None:
            super().__init__()
            self.layers.append(nn.Linear(4, 2000))  # 120 kB a checkpoint

        def loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, Logs]:
            if len(self.seen) == 3:
                (small_disk / "something else").write_bytes(bytes(room(small_disk) - 60_000))
            self.seen.append(0)
            return self.layers[2](batch).square().mean(), {}

    out = small_disk / "out"
    with pytest.raises(OSError, match="No space left"):
        fit(out, model=Fills(), save_every=-1.0)
    assert Checkpoints(out, 3, 2).steps() == [2, 3]
    assert not list((out / "checkpoints").glob(".*")), "what came of it is gone"
    (small_disk / "something else").unlink()
    resumed, unbroken = Fills(), Fills()
    resumed.seen, unbroken.seen = [0] * 4, [0] * 4
    assert same(fit(out, model=resumed), fit(tmp_path / "unbroken", model=unbroken))


def room(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


# --- asked to stop --------------------------------------------------------------------------------


class Asks(Line):
    """Sends its own process a signal in step 4."""

    number = signal.SIGTERM

    def loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, Logs]:
        if len(self.seen) == 3:
            os.kill(os.getpid(), self.number)
        return super().loss(batch)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_asked_to_stop_it_saves_and_leaves(
    number: signal.Signals, raised: type[BaseException], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Asks()
    model.number = number
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    outer = signal.signal(number, usual)  # a shell has its background jobs ignore Ctrl-C
    try:
        with pytest.raises(raised) as end:
            fit(tmp_path / "out", model=model)
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, outer)
    if raised is SystemExit:
        assert end.value.code == 143
    assert len(model.seen) == 4, "the step is finished"
    assert Checkpoints(tmp_path / "out", 3, 2).steps() == [4]
    said = capsys.readouterr().err
    assert all(fact in said for fact in ("line", number.name, "step 4 of 6", str(tmp_path / "out")))
    assert same(fit(tmp_path / "out"), fit(tmp_path / "unbroken"))


def test_a_long_look_is_broken_off(tmp_path: Path) -> None:
    """The monitor may take minutes; who stops the run does not wait for it."""

    def monitor(step: int, book: Any) -> Logs:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return {"figure": 1.0}

    began = time.monotonic()
    with pytest.raises(SystemExit):
        fit(tmp_path / "out", monitor=monitor, monitor_every=2)
    assert time.monotonic() - began < 30
    assert Checkpoints(tmp_path / "out", 3, 2).steps() == [2]
    assert same(fit(tmp_path / "out"), fit(tmp_path / "unbroken"))


def test_a_second_signal_kills() -> None:
    """In a process of its own: the first signal comes in a step that never ends."""
    code = (
        "import time\n"
        "from lapa.training import stop\n"
        "with stop.Stop() as asked:\n"
        "    print('ready', flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.05)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        process.terminate()  # at once: torchrun passes on what the terminal has sent already
        time.sleep(1.3)
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_random_moments(robot: Path, small: list[str], tmp_path: Path) -> None:
    """kill -9 twice in `lapa quantize`, which saves after every step; the result is that of an unbroken run."""
    rng = random.Random(0)
    command = ["quantize", "--dataset", f"lerobot:{robot}", "--steps", "24", *small, "--set", "quantize.ema=0.9"]
    code = (
        "from lapa.training import loop; loop.fit.__kwdefaults__['save_every'] = -1.0\n"
        f"from lapa.measures import probes; probes.MLP_STEPS = {probes.MLP_STEPS}\n"  # as in this process
        "from lapa.cli import main; main()"
    )
    broken, reached = tmp_path / "broken", 0
    for _ in range(2):
        arguments = [sys.executable, "-c", code, *command, "--out", str(broken), "--resume"]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = reached + rng.randint(1, 4)
        while (reached := max(Checkpoints(broken, 0, 2).steps(), default=0)) < wanted:
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (broken / "config.json").exists()
    cli.main([*command, "--out", str(broken), "--resume"])
    cli.main([*command, "--out", str(tmp_path / "unbroken")])
    assert load_artefact(broken, "laq").hash == load_artefact(tmp_path / "unbroken", "laq").hash
    lines = [(folder / "metrics.jsonl").read_text() for folder in (broken, tmp_path / "unbroken")]
    assert lines[0] == lines[1], "every step is logged once"


def test_steps_of_a_plan_end_with_it(tmp_path: Path) -> None:
    """kill -9 the process that runs a plan: its step is asked to stop, by the kernel."""
    code = (
        "import pathlib, subprocess, sys, time\n"
        "from lapa.experiments import schedule\n"
        "step = ('import os, pathlib, time; from lapa.runtime.workers import end_with_parent; end_with_parent()\\n'\n"
        "        'pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)')\n"
        "command = [sys.executable, '-c', 'import sys\\n' + step, sys.argv[1]]\n"
        "real = subprocess.Popen\n"
        "subprocess.Popen = lambda arguments, **options: real(command, **options)\n"
        "out = pathlib.Path(sys.argv[1] + '.out')\n"
        "schedule.run([schedule.PlanStep('step', (), out, out)], out)\n"
    )
    told = tmp_path / "pid"
    plan = subprocess.Popen([sys.executable, "-c", code, str(told)], stderr=subprocess.DEVNULL)
    while not (told.exists() and told.read_text()):
        assert plan.poll() is None
        time.sleep(0.02)
    plan.kill()
    plan.wait()
    until = time.monotonic() + 20
    while running(int(told.read_text())) and time.monotonic() < until:
        time.sleep(0.02)
    assert not running(int(told.read_text()))


def running(process: int) -> bool:
    """Whether it runs; a zombie that nobody has buried does not."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
