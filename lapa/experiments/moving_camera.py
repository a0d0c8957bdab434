"""`lapa study camera`: do codes tell the motion of the camera apart from that of what moves before it?

A test set is made from the dataset's own frames: of each pair a crop of SIDE of the picture is cut, and on its way from
the first frame to the later one the crop moves by up to REACH, in a straight line that is drawn at random. So the
camera's motion is known, and has nothing to do with the robot's. Beside stands the same pair with a crop that is still.

    arm      what the robot did (measures/motion.py), or where nothing says it the optical flow of the still crop
    camera   how far the crop moved, in sides of the picture
    aligned  a remedy that needs no labels: before the frames are encoded, the later one is moved back by what phase
             correlation finds between the two (`shift`); what that leaves empty is filled from the first frame
    less     another: what that same shift tells of each direction (a linear fit) is taken out of the difference

Directions and codes are fitted to each kind of crop by itself, as `lapa quantize` would with such videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lapa.artefacts.folder import replacing, write_json
from lapa.contracts import Array, LapaError
from lapa.data.images import resized
from lapa.data.pack import Packed, pack
from lapa.data.pairs import PairIndex, window_pairs
from lapa.data.pixels import as_pixels
from lapa.experiments.sweep import markdown
from lapa.measures.flow import flow_between, installed
from lapa.measures.linear import LinearFit
from lapa.measures.motion import CLUSTERS, clustered, motion, told
from lapa.measures.probes import EVERY, one_hot
from lapa.models.directions import Directions, persistent
from lapa.models.kmeans import KMeans
from lapa.recipe import preset
from lapa.training.held_out import is_held_out

SIDE, REACH = 0.75, 0.125  # of the picture: the crop, and how far it moves in the window at most
PAIRS = 1500  # at most
SMALL = 24  # pixels a side of the pictures that codes are compared with
BATCH = 64

Triple = tuple[Array, Array, Array]  # frames uint8 [N, S, S, 3] at the start, middle and end of the windows


@dataclass(frozen=True)
class Crops:
    """The test set: the same windows seen by a still and by a moving crop.

    camera float64 [N, 2]: how far the crop moves to the right and down over the window, in sides of the picture
    """

    still: Triple
    moving: Triple
    camera: Array

    @staticmethod
    def of(packed: Packed, pairs: PairIndex, rows: Array, seed: int) -> Crops:
        """Of the pairs `rows` int64 [N]."""
        frames = _windows(packed, pairs, rows)
        full = packed.image_size
        side = round(SIDE * full)
        random = np.random.default_rng(seed)
        way = np.round(random.uniform(-REACH, REACH, (len(rows), 2)) * full).astype(int)
        low, high = np.maximum(0, -way), np.minimum(full - side, full - side - way)
        start = low + np.floor(random.random((len(rows), 2)) * (high - low + 1)).astype(int)
        corners = [start, start + np.round(way / 2).astype(int), start + way]
        still = tuple(_cut(film, start, side) for film in frames)
        moving = tuple(_cut(film, corner, side) for film, corner in zip(frames, corners, strict=True))
        return Crops(still, moving, way / full)  # type: ignore[arg-type]


def _windows(packed: Packed, pairs: PairIndex, rows: Array) -> Triple:
    now, later = pairs.now[rows], pairs.later[rows]
    first, middle, last = (packed.gather(frames) for frames in (now, (now + later) // 2, later))
    return first, middle, last


def _cut(film: Array, corner: Array, side: int) -> Array:
    """uint8 [N, S, S, 3], corners int [N, 2] (x, y) -> [N, side, side, 3]."""
    return np.stack([frame[y : y + side, x : x + side] for frame, (x, y) in zip(film, corner, strict=True)])


def shift(now: Array, later: Array) -> Array:
    """uint8 [S, S, 3] each -> int64 [2]: how many pixels the camera went to the right and down, by phase correlation of
    the grey pictures (the strongest translation that they have in common)."""
    grey = [frame.mean(2) - frame.mean() for frame in (now.astype(np.float32), later.astype(np.float32))]
    window = np.hanning(len(now))[:, None] * np.hanning(len(now))
    first, last = (np.fft.rfft2(frame * window) for frame in grey)
    cross = first * last.conj()
    peak = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), s=now.shape[:2]).argmax()
    y, x = np.unravel_index(peak, now.shape[:2])
    half = len(now) // 2
    return np.array([(int(x) + half) % len(now) - half, (int(y) + half) % len(now) - half])


def moved_back(now: Array, later: Array, way: Array) -> Array:
    """The later frame uint8 [S, S, 3] as the camera would have seen it, had it not gone `way` int [2]; what it did not
    see is taken from the first frame."""
    made, size = now.copy(), len(now)
    (x, y), seen = way, [slice(max(0, -w), size - max(0, w)) for w in way]
    to = [slice(part.start + w, part.stop + w) for part, w in zip(seen, (x, y), strict=True)]
    made[to[1], to[0]] = later[seen[1], seen[0]]
    return made


def study_camera(datasets: tuple[str, ...], out: Path, seeds: int = 3) -> dict[str, Any]:
    """Make the table and write it to out/table.md and out/results.json. Raises LapaError where the data allow none."""
    recipe = preset("video")
    packed = pack(list(datasets), recipe.laq.image_size)
    pairs = window_pairs(packed, recipe.window)
    rows = np.arange(0, len(pairs), -(-len(pairs) // PAIRS))
    episode = pairs.episode[rows]
    test = is_held_out(episode, EVERY)
    if test.all() or not test.any():
        raise LapaError(f"{packed.spec}: a table needs {EVERY} episodes or more.")
    crops, did = Crops.of(packed, pairs, rows, seed=0), motion(packed, pairs, rows)
    if did is None and not installed():
        raise LapaError(f'{packed.spec} has no actions and no state; its optical flow needs pip install "lapa[flow]".')
    arm = _flow(crops.still) if did is None else did.values
    targets = {"arm": arm, "camera": crops.camera}
    found: dict[str, Any] = {}
    for name, features in _rows(crops, test, episode, seeds):
        each = [{key: told(one, target, episode, test).weighted for key, target in targets.items()} for one in features]
        found[name] = {key: [one[key] for one in each] for key in targets}
        print(f"{name}: {_words(found[name])}", flush=True)
    made = {"datasets": list(datasets), "arm": "optical flow of the still crop" if did is None else did.what,
            "pairs": len(rows), "held_out": int(test.sum()), "rows": found}  # fmt: skip
    write_json(out / "results.json", made)
    with replacing(out / "table.md") as file:
        file.write_text(table(made))
    return made


def _rows(crops: Crops, test: Array, episode: Array, seeds: int) -> Iterator[tuple[str, list[Array]]]:
    """Each row's name and its features, one for each seed."""
    still, moving = crops.still, crops.moving
    found = [np.stack([shift(*pair) for pair in zip(moving[0], film, strict=True)]) for film in moving[1:]]
    yield "moving crop: shift by phase correlation", [found[1].astype(np.float64)]
    back = [np.stack([moved_back(*one) for one in zip(moving[0], film, way, strict=True)])
            for film, way in zip(moving[1:], found, strict=True)]  # fmt: skip
    seen = _seen()
    first = seen(still[0])  # all begin with the same frame
    for name, films in (("still crop", still), ("moving crop", moving), ("aligned", (moving[0], *back))):
        yield f"{name}: difference picture", [_small(films[2]) - _small(films[0])]
        features = [first, *(seen(film) for film in films[1:])]
        change = features[2] - features[0]
        yield f"{name}: difference of the features", [change]
        yield f"{name}: k-means of {CLUSTERS} on it", [clustered(change, ~test, min(CLUSTERS, (~test).sum() // 4))]
        start, middle, end = (part[~test] for part in features)
        axes, _ = persistent(start, middle, end, preset("video").laq.quant_dim)
        places = change @ axes
        yield f"{name}: directions that persist", [places]
        yield f"{name}: codes", [_codes(places, test, seed) for seed in range(seeds)]
        if name == "moving crop":
            way = found[1].astype(np.float64)
            less = places - LinearFit.fit(way[~test], places[~test], episode[~test])(way)
            yield f"{name}, less what the shift tells: codes", [_codes(less, test, seed) for seed in range(seeds)]


def _seen() -> Callable[[Array], Array]:
    """The frozen encoder of the preset: frames uint8 [N, s, s, 3] -> float32 [N, F]."""
    config = preset("video").laq
    directions = Directions(config.encoder, config.encoder_options, config.image_size, config.quant_dim)

    def features(film: Array) -> Array:
        parts = []
        for start in range(0, len(film), BATCH):
            some = np.stack([resized(frame, config.image_size) for frame in film[start : start + BATCH]])
            parts.append(directions.features(as_pixels(some, config.image_size, directions.axes.device)).cpu().numpy())
        return np.concatenate(parts)

    return features


def _small(film: Array) -> Array:
    return np.stack([resized(frame, SMALL) for frame in film]).reshape(len(film), -1).astype(np.float32) / 255


def _codes(places: Array, test: Array, seed: int) -> Array:
    """The preset's codes of float [N, dim], fitted to training pairs: one-hot."""
    config = preset("video").laq
    size = min(config.codebook_size, int((~test).sum()))
    quantizer = KMeans(places.shape[1], size, config.codes, config.root_length)
    quantizer.fit(places[~test], seed)
    codes = quantizer(torch.from_numpy(places.astype(np.float32))[:, None]).codes.numpy()
    return one_hot(codes, size)


def _flow(films: Triple) -> Array:
    each = [flow_between(now, later).ravel() for now, later in zip(films[0], films[2], strict=True)]
    return np.stack(each).astype(np.float64)


def _words(row: Mapping[str, list[float]]) -> str:
    return ", ".join(f"{name} {_cell(values)}" for name, values in row.items())


def _cell(values: list[float]) -> str:
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def table(made: Mapping[str, Any]) -> str:
    """Markdown."""
    said = (f"{', '.join(made['datasets'])}: {made['pairs']:,} pairs, {made['held_out']:,} held out; arm: "
            f"{made['arm']}; camera: a crop of {SIDE:.0%} that moves by up to {REACH:.0%}.")  # fmt: skip
    lines = [[name, _cell(row["arm"]), _cell(row["camera"])] for name, row in made["rows"].items()]
    return f"{said}\n\n{markdown(['R^2 on held-out episodes', 'arm', 'camera'], lines)}\n"
