"""Many processes as one: gradients, codebook, checkpoints and labels do not depend on how many there are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lapa.contracts import LapaError
from lapa.data.labelled import read_labels
from lapa.data.pack import Packed, pack
from lapa.data.pairs import PairIndex, window_pairs
from lapa.data.pixels import as_pixels
from lapa.measures import probes
from lapa.models.laq import LAQ, LAQConfig
from lapa.recipe import Recipe
from lapa.runtime import distributed
from lapa.stage1_latent_actions import fit_laq
from lapa.stage2_label import label
from lapa.stage2_pretrain import pretrain
from lapa.training import loop
from lapa.training.batches import batches
from lapa.training.resume import Checkpoints

DATA = "tabletop:sim,episodes=4,seed=3"
SMALL = LAQConfig(
    image_size=24, patch_size=6, dim=16, spatial_depth=2, temporal_depth=1, heads=2, dim_head=8,
    codes=4, codebook_size=8, quant_dim=4, unet_width=8, quantizer_options={"schedule": [[1, 4, 1]], "threshold": 0.9},
)  # fmt: skip
PAPERS = SMALL
UNET = replace(SMALL, decoder="unet", normalise=True, quantizer_options={**SMALL.quantizer_options, "balance": 0.03})
HOW = loop.Optimisation(steps=4, batch_size=8, learning_rate=1e-3, warmup=2, precision="float32")

# name -> the model, how it is optimised, and how many processes
CASES: dict[str, tuple[LAQConfig, loop.Optimisation, int]] = {
    "ddp": (PAPERS, HOW, 2),
    "ddp, statistics of the batch": (UNET, HOW, 2),
    "ddp, accumulating": (PAPERS, replace(HOW, accumulate=2), 2),
    "fsdp": (PAPERS, replace(HOW, parallel="fsdp"), 2),
    "fsdp, statistics of the batch": (UNET, replace(HOW, parallel="fsdp"), 2),
    "fsdp, accumulating": (PAPERS, replace(HOW, parallel="fsdp", accumulate=2), 2),
    "accumulating": (PAPERS, replace(HOW, accumulate=4), 1),
}


def gradients(config: LAQConfig, how: loop.Optimisation) -> dict[str, torch.Tensor]:
    """Whole gradients of the first step, and the counts and the codebook after its upkeep."""
    packed = pack([DATA], 24, quiet=True)
    pairs = window_pairs(packed, 0.2)
    loop.seed_everything(0)
    model = config.build().train()
    if config.decoder == "unet":  # its last layer starts at zero, and so does everyone's gradient
        nn.init.normal_(model.decoder.out.weight)
    spread = distributed.ParallelModel(model, how.parallel)
    micro_batches = next(batches(sampler(packed, pairs), distributed.shares(8, how.accumulate), 5, range(1)))
    logs = loop._backward(spread, micro_batches, how, 5, 0)
    found = {
        name: whole(p.grad) for name, p in spread.model.named_parameters() if p.grad is not None and p.grad.numel()
    }
    found |= {name: torch.tensor(logs[name]) for name in ("loss", "mse")}
    quantizer = spread.model.quantizer
    counted = {"usage": distributed.sum_over_ranks(quantizer.step_usage)}
    spread.model.after_step(1)
    return found | counted | {"codebook": quantizer.codebook.detach().clone(), "price": quantizer.price}


def sampler(packed: Packed, pairs: PairIndex) -> loop.Sampler:
    return loop.Sampler(lambda rng: rng.integers(len(pairs), size=8), lambda rows: pairs.batch(packed, rows))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def worker(out: Path) -> None:
    """What two processes do (this file is run by torchrun): every case, and the stages from start to end."""
    with distributed.processes():
        me = distributed.rank()
        for number, (config, how, processes) in enumerate(CASES.values()):
            if processes == 2:
                save_file(gradients(config, how), out / f"case_{number}_{me}.safetensors")
        for parallel in PARALLEL:
            save(train(parallel, out / parallel), out / f"{parallel}_{me}.safetensors")
            first_half(parallel, out / f"half_{parallel}")
            distributed.on_first_rank(partial(copied, out / f"half_{parallel}", out / f"broken_{parallel}"))
            save(train(parallel, out / f"broken_{parallel}"), out / f"{parallel}_{me}_resumed.safetensors")
        packed, starts = pack([DATA], 24, quiet=True), ({}, {"warmup": 2})
        recipe = Recipe(laq=UNET, starts=starts, quantize=replace(HOW, steps=2), pretrain=HOW)
        probes.MLP_STEPS = 20  # as short as in conftest.py, which this process has not seen
        fit_laq(packed, recipe, out / "laq", 7)
        manifest = label(packed, str(out / "laq"), out / "labels", shard=16)
        found, _ = read_labels(out / "labels")
        pretrain(packed, found, manifest, recipe, out / "policy", 7)
        try:
            distributed.on_first_rank(lambda: 1 // 0)
        except ZeroDivisionError:
            (out / f"all_fail_{me}").touch()


PARALLEL: tuple[distributed.Parallel, ...] = ("ddp", "fsdp")


def train(parallel: distributed.Parallel, out: Path) -> LAQ:
    """Four steps with a moving average, watched at every one."""
    packed = pack([DATA], 24, quiet=True)
    pairs = window_pairs(packed, 0.2)
    how = replace(HOW, parallel=parallel, ema=0.9)
    some = pairs.batch(packed, np.arange(16))
    loop.seed_everything(7)
    model = UNET.build()

    def monitor(step: int, book: object) -> dict[str, float]:
        future = model.reconstruct(some.now, some.later)
        return {"error": float((future - as_pixels(some.later, 24, future.device)).square().mean())}

    loop.fit(model, sampler(packed, pairs), how, out, seed=7, title="LAQ",
             monitor=monitor, monitor_every=1, best="error")  # fmt: skip
    return model


def save(model: nn.Module, path: Path) -> None:
    save_file({name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}, path)


def first_half(parallel: distributed.Parallel, out: Path) -> None:
    """Two steps of four, as if stopped in the third."""

    def seed(seed: int, step: int = 0) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return before(seed, step)

    before = loop.seed_everything
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "seed_everything", seed)
        patch.setitem(loop.fit.__kwdefaults__, "save_every", -1.0)
        with pytest.raises(KeyboardInterrupt):
            train(parallel, out)


def copied(folder: Path, to: Path) -> None:
    shutil.copytree(folder, to, symlinks=True)


def torchrun(*arguments: str, count: int = 2, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **more)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo processes have left."""
    out = tmp_path_factory.mktemp("two")
    done = torchrun(__file__, str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return out


# --- the batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_process(name: str, two: Path) -> None:
    """To within the order of the sums: 1e-5 of a tensor's largest entry is some 100 roundings of float32."""
    config, how, processes = CASES[name]
    expected = gradients(config, replace(how, accumulate=1, parallel="ddp"))
    assert sum(bool(g.any()) for g in expected.values()) > 20, "there is something to compare"
    for rank in range(processes):
        file = two / f"case_{list(CASES).index(name)}_{rank}.safetensors"
        found = load_file(file) if processes == 2 else gradients(config, how)
        assert found.keys() == expected.keys()
        for key in found:
            most = float(expected[SCALE.get(key, key)].float().abs().max())
            torch.testing.assert_close(
                found[key], expected[key], atol=1e-5 * most + 1e-6, rtol=0, msg=f"{key}, rank {rank}"
            )


# The last bias before the difference of two frames cancels in it. Its gradient is zero except for rounding, which is
# different on every processor. The terms of its sum have the size of the gradient of the same layer's weight.
SCALE = {"cnn.0.bias": "cnn.0.weight"}


@pytest.mark.parametrize("config", [PAPERS, UNET], ids=["paper's", "unet"])
def test_a_bias_that_cancels_has_no_gradient(config: LAQConfig) -> None:
    """The difference stays as it was when the bias is moved, to within rounding; with the weight it does not."""
    model = config.build().eval()
    now, later = torch.rand(2, 8, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    before = model.difference(now, later)
    parameters = dict(model.named_parameters())
    for name, changes in [(bias, False) for bias in SCALE] + [(weight, True) for weight in SCALE.values()]:
        kept = parameters[name].data.clone()
        parameters[name].data += 1.0
        moved = float((model.difference(now, later) - before).detach().abs().max() / before.detach().abs().max())
        parameters[name].data = kept
        assert (moved > 1e-2) if changes else (moved < 1e-4), f"{name} moves the difference by {moved:.1e}"


def test_usage_and_replacement_agree_on_all_ranks(two: Path) -> None:
    for number, (_, _, processes) in enumerate(CASES.values()):
        if processes == 2:
            one, other = (load_file(two / f"case_{number}_{rank}.safetensors") for rank in range(2))
            assert int(one["usage"].sum()) == 8 * 4, "every code of the global batch is counted once"
            assert all(torch.equal(one[key], other[key]) for key in ("usage", "codebook", "price"))


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(LapaError, match=r"batch of 8\b.*\b1 processes x 3\b.* 3\b"):
        distributed.shares(8, 3)


def test_one_row_cannot_be_normalised() -> None:
    norm = distributed.BatchNorm(4)
    with pytest.raises(LapaError, match=r"\btwo\b"):
        norm(torch.ones(1, 4))
    assert norm.eval()(torch.ones(1, 4)).shape == (1, 4)


def test_noise_and_dropout_do_not_depend_on_the_split() -> None:
    x, dropout = torch.ones(8, 3, 2), distributed.Dropout(0.5)
    for draw in (distributed.noise_like, dropout):
        torch.manual_seed(1)
        everything = draw(x)
        parts = []
        for start in (0, 2, 4, 6):
            torch.manual_seed(1)
            with distributed.working_on(distributed.Share(start, 2, 8)):
                parts.append(draw(x[:2]))
        assert torch.equal(torch.cat(parts), everything)
        assert everything.unique().numel() > 1


# --- the stages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", PARALLEL)
def test_two_processes_train_what_one_does(parallel: distributed.Parallel, two: Path, tmp_path: Path) -> None:
    """And a run that two processes began goes on, to the same end, on one; and on two, to the same bits."""
    expected = train(parallel, tmp_path / "one").state_dict()
    half = two / f"half_{parallel}"
    assert Checkpoints(half, 7, 2).steps() == [1, 2]
    assert len(list((half / "checkpoints/step_000002").glob("*.safetensors"))) == 2, "each process wrote its part"
    finished = [train(parallel, half).state_dict(), *(load_file(two / f"{parallel}_{i}.safetensors") for i in (0, 1))]
    for found in finished:
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=2e-5, rtol=1e-3, msg=key)
    for rank in (0, 1):
        unbroken, resumed = (load_file(two / f"{parallel}_{rank}{x}.safetensors") for x in ("", "_resumed"))
        assert all(torch.equal(unbroken[key], resumed[key]) for key in expected)
    for folder in (two / parallel, half, two / f"broken_{parallel}"):
        logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in logged] == [1, 2, 3, 4], "one process writes"


def test_labels_of_two_processes_are_those_of_one(two: Path, tmp_path: Path) -> None:
    tried = json.loads((two / "laq/config.json").read_text())["starts"]["error_over_copy"]
    assert len(tried) == 2, "LAQ of two processes starts twice as that of one does"
    label(pack([DATA], 24, quiet=True), str(two / "laq"), tmp_path / "labels", shard=16)
    assert len(list((two / "labels/labels.parquet").iterdir())) > 1, "each had something to do"
    assert (two / "labels/manifest.json").read_bytes() == (tmp_path / "labels/manifest.json").read_bytes()


def test_a_policy_of_two_processes(two: Path, tmp_path: Path) -> None:
    labels, manifest = read_labels(two / "labels")
    pretrain(pack([DATA], 24, quiet=True), labels, manifest, Recipe(pretrain=HOW), tmp_path / "policy", 7)
    expected, found = (load_file(folder / "policy/model.safetensors") for folder in (tmp_path, two))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=2e-5, rtol=1e-3, msg=key)


def test_an_error_of_the_first_rank_is_everybodys(two: Path) -> None:
    assert (two / "all_fail_0").exists()
    assert (two / "all_fail_1").exists()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
