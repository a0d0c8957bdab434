"""For how long are drawn futures right? Policy and decoder in closed loop, compared with what happened.

The loop starts from a real frame. A code is chosen, the decoder draws the next frame from it, the next code is chosen
for that frame, and so on. Codes come from the policy, from the video itself ("true": the codes that LAQ gives to the
real frames), or from another episode. "Copy" shows the first frame at every step. In "true, real frames" the decoder
starts from the real frame at every step: this is its error of one step.

The policy does not see the future. Where two ways are right, it may take the other one; that counts as error here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lapa.analysis.reading import Source
from lapa.contracts import Array, LapaError
from lapa.data.index import tell
from lapa.data.pack import pack
from lapa.data.pairs import window_offsets
from lapa.data.pixels import as_pixels
from lapa.measures.intervals import EPISODE_DRAWS
from lapa.models.laq import LAQ
from lapa.plots.codes import Dreamer
from lapa.plots.figure import COLOURS, MISS, figure, plain, save

EPISODES = 128
HORIZON = 12  # windows
NAMES = {
    "copy": "copying the first frame",
    "other": "codes of another episode",
    "policy": "codes of the policy",
    "true": "true codes",
    "one_step": "true codes, real frames: one step",
}
STYLE = {"copy": MISS, "other": COLOURS[1], "policy": COLOURS[0], "true": COLOURS[2], "one_step": COLOURS[3]}


def rollout(source: Source, policy: Dreamer, specs: Sequence[str], out: Path, seed: int = 0) -> dict[str, Any]:
    """Errors over the horizon on up to EPISODES episodes that are long enough, and `out/rollout.png`."""
    packed = pack(specs, source.laq.config.image_size)
    tell(packed)
    stride = window_offsets(packed.fps, source.window)
    long = np.flatnonzero((np.diff(packed.starts) - 1) // stride >= HORIZON)
    if len(long) < 2:
        raise LapaError(f"{packed.spec}: fewer than two episodes are {HORIZON} windows of {source.window:g} s long.")
    chosen = np.sort(np.random.default_rng(seed).permutation(long)[:EPISODES])
    frames = packed.starts[chosen, None] + stride[chosen, None] * np.arange(HORIZON + 1)
    real = packed.gather(frames.ravel()).reshape(*frames.shape, packed.image_size, packed.image_size, 3)
    if (real == real[:, :1]).all():
        raise LapaError(f"{packed.spec}: nothing moves within {HORIZON} windows of {source.window:g} s, so there is no "
                        "future to draw.")  # fmt: skip
    errors = over_horizon(source.laq, policy, real, [packed.instructions[e] for e in chosen])
    moved = np.maximum(errors["copy"].mean(0), 1e-12)  # nothing, where the videos begin with a pause
    results = {
        "episodes": len(chosen), "horizon": HORIZON, "window": source.window, "too_short": packed.episodes - len(long),
        "mse": {name: error.mean(0).tolist() for name, error in errors.items()},
        "over_copy": {name: (error.mean(0) / moved).tolist() for name, error in errors.items()},
        "interval": {name: _spread(error, seed) for name, error in errors.items()},
    }  # fmt: skip
    _picture(results, errors, out / "rollout.png")
    return results


def over_horizon(laq: LAQ, policy: Dreamer, real: Array, texts: Sequence[str]) -> dict[str, Array]:
    """Squared errors per pixel float64 [B, H] of each way to go on, for real frames uint8 [B, H + 1, S, S, 3]."""
    where, size = next(laq.parameters()).device, laq.config.image_size
    video = [as_pixels(real[:, t], size, where) for t in range(real.shape[1])]
    drawn = {name: video[0] for name in ("other", "policy", "true")}
    errors: dict[str, list[torch.Tensor]] = {name: [] for name in NAMES}
    for now, later in itertools.pairwise(video):
        codes = laq.encode(now, later)
        named = {"true": codes, "other": codes.roll(1, 0), "policy": policy.predict_codes(drawn["policy"], texts)}
        drawn = {name: laq.decode(drawn[name], named[name]) for name in drawn}
        shown = {**drawn, "copy": video[0], "one_step": laq.decode(now, codes)}
        for name, picture in shown.items():
            errors[name].append((picture - later).square().mean((1, 2, 3)))
    return {name: torch.stack(error, 1).double().cpu().numpy() for name, error in errors.items()}


def _spread(error: Array, seed: int) -> list[list[float]]:
    """95% intervals of the mean over episodes: [low [H], high [H]]."""
    rng = np.random.default_rng(seed)
    means = np.stack([error[rng.integers(len(error), size=len(error))].mean(0) for _ in range(EPISODE_DRAWS)])
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return [low.tolist(), high.tolist()]


def _picture(results: dict[str, Any], errors: dict[str, Array], path: Path) -> None:
    title = f"How long a drawn future stays true: {results['episodes']} episodes, windows of {results['window']:g} s"
    made = figure(9.2, 3.9, title)
    mean, ratio = made.subplots(1, 2)
    steps = np.arange(1, results["horizon"] + 1)
    for name, words in NAMES.items():
        low, high = results["interval"][name]
        mean.plot(steps, results["mse"][name], color=STYLE[name], label=words, linewidth=1.7)
        mean.fill_between(steps, low, high, color=STYLE[name], alpha=0.15, linewidth=0)
        if name != "copy":
            each = errors[name] / np.maximum(errors["copy"], 1e-9)
            quarter, half, three = np.quantile(each, (0.25, 0.5, 0.75), axis=0)
            ratio.plot(steps, half, color=STYLE[name], linewidth=1.7)
            ratio.fill_between(steps, quarter, three, color=STYLE[name], alpha=0.15, linewidth=0)
    plain(mean, "Squared error: mean, 95% interval over episodes", "windows ahead", "per pixel, pixels in 0 to 1")
    plain(ratio, "Over copying, episode by episode: median, middle half", "windows ahead", "error / error of copying")
    ratio.axhline(1, color=MISS, linewidth=0.9, linestyle=(0, (4, 3)))
    for axes in (mean, ratio):
        axes.set_xlim(1, results["horizon"])
        axes.set_ylim(bottom=0)
    made.legend(fontsize=8.5, frameon=False, loc="outside lower left", ncols=3)
    save(made, path)
