"""Every quantizer obeys the protocol; NSVQ is its formula; balanced codes do not collapse; the watcher tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lapa import plugins
from lapa.contracts import LapaError
from lapa.quantizers import fsq, nsvq, residual, vq_ema
from lapa.recipe import override, preset
from lapa.training.loop import seed_everything
from lapa.training.watcher import UNTIL, CodebookWatcher, perplexity

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in plugins.names("quantizers")},
    "nsvq, balanced": ("nsvq", {"balance": 0.03, "schedule": []}),
    "nsvq, all options": ("nsvq", {"balance": 0.03, "attract": 0.05, "warmup": 30}),
    "residual of vq_ema": ("residual", {"quantizer": "vq_ema", "levels": 3}),
}
PLACES, WIDTH, SIZE = 2, 4, 8


def build(variant: str) -> Any:
    name, options = VARIANTS[variant]
    seed_everything(1)
    return plugins.configure(
        "quantizers", name, {"dim": WIDTH, "size": SIZE, "positions": PLACES, **options}
    ).build()  # fmt: skip


def blobs(rng: np.random.Generator, batch: int) -> torch.Tensor:
    """float [batch, 2, 4]: five clouds of very unequal weight, elsewhere at each place."""
    which = rng.choice(5, (batch, PLACES), p=[0.6, 0.2, 0.1, 0.06, 0.04])
    centres = np.random.default_rng(0).normal(size=(PLACES, 5, WIDTH))
    return torch.tensor(centres[np.arange(PLACES), which] + 0.2 * rng.normal(size=(batch, PLACES, WIDTH))).float()


def train(model: Any, first: int, last: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Steps `first` to `last` (from 0), each a function of its number, as in training/loop.py."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer or (torch.optim.Adam(weights, lr=1e-2, betas=(0.0, 0.9)) if weights else None)
    model.train()
    for step in range(first, last):
        z = blobs(seed_everything(5, step), 64)
        answer = model(z)
        if optimizer:
            optimizer.zero_grad()
            ((answer.embedding - z).square().mean() + answer.loss).backward()
            optimizer.step()
        model.after_step(step + 1)


# The protocol


@pytest.mark.parametrize("variant", VARIANTS)
def test_protocol(variant: str) -> None:
    model = build(variant)
    z = blobs(np.random.default_rng(2), 16).requires_grad_()
    for mode in (True, False):
        answer = model.train(mode)(z)
        assert answer.codes.dtype == torch.int64
        assert answer.codes.shape == (16, model.positions)
        assert model.positions % PLACES == 0
        assert 0 <= answer.codes.min() <= answer.codes.max() < model.size == SIZE
        assert answer.embedding.shape == z.shape
        assert answer.embedding.dtype == answer.loss.dtype == torch.float32
        assert answer.loss.shape == ()
    assert model.lookup(answer.codes).shape == z.shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_reaches_the_encoder_and_every_weight(variant: str) -> None:
    model = build(variant)
    train(model, 0, 5)
    model.zero_grad()
    z = blobs(np.random.default_rng(2), 64).requires_grad_()
    answer = model(z)
    ((answer.embedding - 1).square().mean() + answer.loss).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert (z.grad.abs().sum(-1) > 0).float().mean() > 0.9
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_answers_what_lookup_says_and_changes_nothing(variant: str) -> None:
    model = build(variant)
    train(model, 0, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    z = blobs(np.random.default_rng(2), 64)
    one, two = model.eval()(z), model(z)
    torch.testing.assert_close(one.embedding, model.lookup(one.codes))
    assert torch.equal(one.codes, two.codes)
    assert torch.equal(one.embedding, two.embedding)
    assert float(one.loss) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_unbroken(variant: str) -> None:
    unbroken, resumed = build(variant), build(variant)
    train(unbroken, 0, 25)  # Adam without momentum's memory would differ, hence two optimizers at the same step
    resumed.load_state_dict({name: value.clone() for name, value in unbroken.state_dict().items()})
    for model in (unbroken, resumed):
        train(model, 25, 45)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_codebook_moves_after_the_step_and_not_before(variant: str) -> None:
    """Two micro-batches of a step see the same codebook, and their order does not matter to what it becomes."""
    z = blobs(np.random.default_rng(2), 64)
    twins = [build(variant), build(variant)]
    codes = []
    for model, parts in zip(twins, ([z], list(z.split(32))), strict=True):
        codes.append(torch.cat([model(part).codes for part in parts]))
        seed_everything(9)
        model.after_step(10)
    assert torch.equal(*codes)
    for name, value in twins[0].state_dict().items():
        torch.testing.assert_close(value, twins[1].state_dict()[name], msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_fits_the_codes_to_the_data(variant: str) -> None:
    model, z = build(variant), blobs(np.random.default_rng(2), 1000)
    before = (model.eval()(z).embedding - z).square().mean()
    train(model, 0, 200)
    error = (model.eval()(z).embedding - z).square().mean()
    assert error < 0.7 * before
    assert error < z.var(0).mean()


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_around_it_changes_no_code(variant: str) -> None:
    model, z = build(variant).eval(), blobs(np.random.default_rng(2), 500)
    exact = model(z).codes
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(z).codes, exact)
        assert model.lookup(exact).dtype == torch.float32


# NSVQ


def quantizer(**options: Any) -> nsvq.NSVQ:
    torch.manual_seed(0)
    model = nsvq.Config(dim=4, size=8, positions=2, **options).build()
    assert isinstance(model, nsvq.NSVQ)
    return model


def test_nsvq_is_its_formula() -> None:
    model, z = quantizer(), torch.randn(16, 2, 4)
    torch.manual_seed(7)
    answer = model(z)
    torch.manual_seed(7)
    v = torch.randn(16, 2, 4)
    for i in range(16):
        for j in range(2):
            distance = [((z[i, j] - c) ** 2).sum().item() for c in model.codebook]
            code = int(np.argmin(distance))
            assert answer.codes[i, j] == code
            expected = z[i, j] + distance[code] ** 0.5 / v[i, j].norm() * v[i, j]
            torch.testing.assert_close(answer.embedding[i, j], expected)
    assert answer.loss == 0


def test_the_noise_of_nsvq_grows_to_the_length_of_the_error() -> None:
    model, z = quantizer(warmup=10), torch.randn(16, 2, 4)
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (400, 1.0)):
        if step:
            model.after_step(step)
        answer = model(z)
        error = (z - model.lookup(answer.codes)).norm(dim=-1)
        torch.testing.assert_close((answer.embedding - z).norm(dim=-1), share * error)


def test_nsvq_answers_codebook_entries_in_evaluation() -> None:
    model, z = quantizer().eval(), torch.randn(16, 2, 4)
    answer = model(z)
    assert torch.equal(answer.embedding, model.codebook[answer.codes])
    assert torch.equal(answer.embedding, model.lookup(answer.codes))
    assert not model.step_usage.any()


def test_one_code_has_nothing_to_balance() -> None:
    with pytest.raises(LapaError, match=r"size 1\b.*\b2\b"):
        nsvq.Config(dim=2, size=1, balance=0.03).build()
    nsvq.Config(dim=2, size=1).build().train()(torch.randn(4, 1, 2))


@pytest.mark.parametrize(
    ("option", "value"), [("warmup", -1), ("balance", -0.1), ("attract", 1.5), ("noise", float("nan"))]
)
def test_nsvq_refuses_options_that_cannot_be_meant(option: str, value: float) -> None:
    with pytest.raises(LapaError, match=f"nsvq: {option} .*not {value}"):
        nsvq.Config(**{option: value})


def test_schedules_and_averages_that_cannot_be_meant() -> None:
    with pytest.raises(LapaError, match=r"nsvq: .*every at least 1; got \[\[10, 90, 0\]\]"):
        nsvq.Config(schedule=((10, 90, 0),))
    for option, value in (("decay", 1.5), ("commitment", -1.0), ("threshold", float("nan"))):
        with pytest.raises(LapaError, match=f"vq_ema: {option} .*not {value}"):
            vq_ema.Config(**{option: value})  # type: ignore[arg-type]


def test_nsvq_survives_an_exact_hit() -> None:
    model = quantizer()
    z = model.codebook[:2].detach()[None].clone().requires_grad_()
    model(z).embedding.sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def used(model: nsvq.NSVQ, counts: list[int]) -> nsvq.NSVQ:
    model.usage[0] = torch.tensor(counts)
    return model


def test_replacement_moves_idle_entries_next_to_used_ones() -> None:
    model = used(quantizer(), [50, 0, 49, 1, 0, 0, 0, 0])  # fair share 12.5, a tenth of it 1.25
    before = model.codebook.detach().clone()
    assert model.after_step(10) == {"codes_replaced": 6.0}
    assert torch.equal(model.codebook[[0, 2]], before[[0, 2]])
    nearest = torch.cdist(model.codebook, before).argmin(1)
    assert set(nearest.tolist()) == {0, 2}
    assert torch.unique(model.codebook, dim=0).shape == (8, 4)  # perturbed, hence distinct
    assert not model.usage.any()


def test_replacement_depends_on_seed_and_state_alone() -> None:
    model = quantizer()
    model(torch.randn(64, 2, 4) * 0.1)
    model.after_step(1)
    assert int(model.usage.sum()) == 128
    twin = quantizer()
    twin.load_state_dict(model.state_dict())
    for each in (model, twin):
        torch.manual_seed(3)
        each.after_step(20)
    assert torch.equal(model.codebook, twin.codebook)


@pytest.mark.parametrize("step", [1, 5, 11, 95, 150, 950, 1250, 4501, 5000])
def test_no_replacement_off_schedule(step: int) -> None:
    model = used(quantizer(), [100, 0, 0, 0, 0, 0, 0, 0])
    assert model.after_step(step) == {}
    assert int(model.usage.sum()) == 100


def test_released_schedule() -> None:
    model = quantizer()
    scheduled = [s for s in range(1, 6000) if model.after_step(s)]
    assert scheduled == [*range(10, 91, 10), *range(100, 901, 100), *range(1000, 4501, 500)]


# Balance: every entry its share


def rare_events(rng: np.random.Generator, batch: int, positions: int) -> torch.Tensor:
    """float [batch, positions, 32]: three pairs of four hardly move, one moves anywhere in three dimensions."""
    basis = np.random.default_rng(0).normal(size=(positions, 3, 32))
    moving = (rng.random((batch, positions, 1)) < 0.25) + 0.2
    z = np.einsum("bpi,pid->bpd", rng.normal(size=(batch, positions, 3)) * moving, basis)
    return torch.tensor(z + 0.05 * rng.normal(size=z.shape)).float()


def codes_after(
    steps: int, size: int, positions: int, seed: int = 0, drift: float = 0.0, **options: Any
) -> list[float]:
    """Perplexity per position as a share of |C|, on fresh data, after training NSVQ on rare events that drift away in
    the first half."""
    seed_everything(seed)
    model = nsvq.Config(size=size, positions=positions, **options).build()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.99))
    for step in range(steps):
        z = rare_events(seed_everything(seed, step), 64, positions) + drift * min(step, steps // 2)
        answer = model(z)
        optimizer.zero_grad()
        (answer.embedding - z).square().mean().backward()
        optimizer.step()
        model.after_step(step + 1)
    z = rare_events(np.random.default_rng(99), 4000, positions) + drift * (steps // 2)
    codes = model.eval()(z).codes
    return (perplexity(torch.nn.functional.one_hot(codes, size).sum(0)) / size).tolist()


BALANCED = {"balance": 0.03, "schedule": []}


@pytest.mark.parametrize(("size", "positions"), [(8, 1), (16, 1), (8, 4)])
def test_balance_uses_every_code_on_skewed_data(size: int, positions: int) -> None:
    assert min(codes_after(300, size, positions, **BALANCED)) >= 0.9
    assert min(codes_after(300, size, positions)) < 0.8  # the released schedule


def test_features_that_drift_collapse_the_released_schedule_and_no_seed_of_the_balanced_codes() -> None:
    """What users saw: the schedule ends, the encoder moves on, and one code is the nearest to everything."""
    released = [codes_after(200, 8, 1, seed, drift=0.01, schedule=((10, 90, 10),))[0] for seed in range(3)]
    balanced = [codes_after(200, 8, 1, seed, drift=0.01, **BALANCED)[0] for seed in range(8)]
    assert max(released) < 0.5
    assert min(balanced) > 0.7


def test_prices_rise_with_use_and_only_with_balance() -> None:
    model = quantizer(**BALANCED)
    model(blobs(np.random.default_rng(0), 64))
    counts = model.step_usage.clone()
    model.after_step(1)
    assert model.price.mean(1).abs().max() < 1e-5
    for price, count in zip(model.price, counts, strict=True):
        assert torch.equal(price.argsort(stable=True), count.argsort(stable=True))
    plain = quantizer()
    train(plain, 0, 20)
    assert not plain.price.any()


def test_attracted_entries_go_to_the_mean_of_what_took_them() -> None:
    model = quantizer(attract=0.05, schedule=[])
    z = blobs(np.random.default_rng(0), 256)
    for step in range(400):  # no optimizer: nothing else moves the codebook
        codes = model(z).codes
        model.after_step(step + 1)
    for code in codes.unique():
        torch.testing.assert_close(model.codebook[code], z[codes == code].mean(0), atol=0.05, rtol=0)
    before = model.codebook.detach().clone()
    model.after_step(401)  # nothing was seen since
    assert torch.equal(model.codebook, before)


# FSQ and residual codes


def test_fsq_is_a_grid() -> None:
    model = fsq.Config(dim=4, size=12, levels=(3, 4)).build().eval()
    codes = torch.arange(12)[:, None]
    cells = torch.stack([codes[:, 0] % 3, codes[:, 0] // 3], -1)
    corners = torch.stack([torch.tensor([-2 / 3, 0, 2 / 3])[cells[:, 0]], (torch.arange(4) - 1.5)[cells[:, 1]] / 2], -1)
    torch.testing.assert_close(model.lookup(codes)[:, 0], model.project_out(corners))


@given(st.integers(1, 300))
def test_fsq_levels_make_the_size(size: int) -> None:
    assert int(np.prod(fsq.factors(size))) == size
    assert fsq.factors(8) == [4, 2]
    assert fsq.factors(64) == [4, 4, 4]


def test_fsq_refuses_levels_that_do_not_make_the_size() -> None:
    with pytest.raises(LapaError, match=r"\b20 codes.* codebook_size is 8"):
        fsq.Config(size=8, levels=(4, 5))


def test_residual_levels_quantize_what_is_left() -> None:
    model = residual.Config(dim=WIDTH, size=SIZE, positions=PLACES, levels=3).build().eval()
    z = blobs(np.random.default_rng(0), 32)
    answer = model(z)
    left = z
    for i, level in enumerate(model.levels):
        codes = level(left).codes
        assert torch.equal(answer.codes.view(32, PLACES, 3)[..., i], codes)
        left = left - level.codebook[codes]
    torch.testing.assert_close(answer.embedding, z - left)


def test_residual_in_training_carries_noise_as_long_as_the_whole_error() -> None:
    model = residual.Config(dim=WIDTH, size=SIZE, positions=PLACES).build()
    z = blobs(np.random.default_rng(0), 32)
    answer = model(z)
    error = (z - model.lookup(answer.codes)).norm(dim=-1)
    torch.testing.assert_close((answer.embedding - z).norm(dim=-1), error)


def test_residual_needs_levels_with_a_codebook() -> None:
    with pytest.raises(LapaError, match="Known: nsvq, vq_ema"):
        residual.Config(quantizer="residual")
    with pytest.raises(LapaError, match="level"):
        residual.Config(levels=0)
    with pytest.raises(LapaError, match=r"\bsize\b.*\blaq\b"):
        residual.Config(options={"size": 4})


def test_dead_codes_restart() -> None:
    model = build("vq_ema")
    model.codebook[1:] = 100.0  # out of reach of everything
    for step in range(200):
        model(blobs(seed_everything(0, step), 64))
        model.after_step(step + 1)
    codes = model.eval()(blobs(np.random.default_rng(7), 2000)).codes
    assert len(codes.unique()) == SIZE


# The watcher


def watched(watcher: CodebookWatcher, codes: torch.Tensor, first: int, last: int) -> dict[str, float]:
    logs: dict[str, float] = {}
    for step in range(first, last):
        watcher.count(codes)
        logs = watcher.after_step(step + 1)
    return logs


def test_the_watcher_looks_at_each_position_over_many_batches(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = CodebookWatcher(positions=2, size=8)
    for step in range(400):  # one code a batch: every batch looks collapsed, the run is not
        watcher.count(torch.tensor([[step % 8, step % 5]] * 16))
        logs = watcher.after_step(step + 1)
    assert logs["perplexity_0"] == pytest.approx(8, abs=0.1)
    assert logs["perplexity_1"] == pytest.approx(5, abs=0.1)
    assert logs["utilisation_0"] == 1
    assert logs["utilisation_1"] == 0.625
    assert "collapsing" not in capsys.readouterr().err


def test_the_watcher_warns_once_with_advice_and_again_when_use_has_halved(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = CodebookWatcher(positions=2, size=8)
    three = torch.stack([torch.arange(24) % 8, torch.arange(24) % 3], 1)
    watched(watcher, three, 0, UNTIL - 1)
    assert not capsys.readouterr().err  # too early to judge
    watched(watcher, three, UNTIL - 1, UNTIL + 50)
    told = capsys.readouterr().err
    assert told.count("Warning") == 1
    assert f"At step {UNTIL}, position 1 uses 3.0 of its 8 codes" in told
    assert "balance" in told
    watched(watcher, torch.zeros(24, 2, dtype=torch.int64), UNTIL + 50, UNTIL + 250)
    assert 1 <= capsys.readouterr().err.count("Warning") <= 2


def test_the_watcher_resumes_with_the_same_figures() -> None:
    one, two = CodebookWatcher(1, 8), CodebookWatcher(1, 8)
    codes = torch.arange(8)[:, None]
    watched(one, codes % 3, 0, 20)
    two.load_state_dict(one.state_dict())
    assert watched(one, codes, 20, 30) == watched(two, codes, 20, 30)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=32))
def test_perplexity_is_the_effective_number_of_codes(counts: list[int]) -> None:
    value = float(perplexity(torch.tensor([counts])))
    assert 1 - 1e-4 <= value <= len(counts) + 1e-3
    if sum(counts):
        assert value <= np.count_nonzero(counts) + 1e-3


def test_perplexity_extremes() -> None:
    assert perplexity(torch.tensor([[5, 5, 5, 5], [9, 0, 0, 0], [3, 3, 0, 0]])).tolist() == pytest.approx([4, 1, 2])


# Settings


def test_choosing_another_quantizer_drops_the_options_of_the_one_before() -> None:
    laptop = preset("laptop")
    assert laptop.laq.quantizer_options["balance"] > 0
    assert override(laptop, "laq.quantizer=nsvq") == laptop
    chosen = override(laptop, "laq.quantizer=fsq")
    assert chosen.laq.quantizer_options == {}
    assert isinstance(chosen.laq.build().quantizer, fsq.FSQ)
    assert override(chosen, 'laq.quantizer_options={"levels": [2, 8]}').laq.quantizer_options == {"levels": [2, 8]}


def test_the_paper_preset_has_the_papers_quantizer() -> None:
    c = preset("paper").laq
    config = plugins.configure("quantizers", c.quantizer, c.quantizer_options)
    assert (c.quantizer, config.balance) == ("nsvq", 0.0)
    assert config.schedule == ((10, 90, 10), (100, 900, 100), (1000, 4500, 500))
