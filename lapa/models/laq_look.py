"""What a LAQ is judged by: the pairs that are looked at, and the figures of its codes on those."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lapa.contracts import Array
from lapa.data.observations import say_once
from lapa.data.pack import Packed
from lapa.data.pairs import PairIndex
from lapa.data.pixels import as_pixels
from lapa.measures.flow import coarse_flow, flow_motion, installed, main_motion
from lapa.measures.motion import Motion, Told, baselines, motion, told, verdict
from lapa.measures.probes import LEAST, effector_columns, of_each_fifth, one_hot, perplexity, probe
from lapa.models.laq import LAQ
from lapa.models.laq_fit import encode_all
from lapa.runtime.distributed import device

FLOWED = 1000  # pairs whose optical flow is drawn by code, at most
CHOICE, WATCHED, FITTED = 1024, 3000, 2500  # pairs, fixed for the run: see Look


@dataclass(frozen=True)
class Look:
    """What a LAQ is judged by: rows of the pairs of a pack, int64 each.

    rows    what figures are reported of; choice: what starts and checkpoints are chosen by, of other episodes
    fit     what the probes are fitted on, of other episodes than `rows`
    episode int64 [P], of every pair of the pack (segments of a stream count as their episode)
    held_out  whether `rows` are of episodes that the LAQ was not trained on; where: what these are, in words
    unseen  bool [P], pairs of episodes that are held out
    excerpt whether the pack is an excerpt of a stream: training then has other pairs
    """

    packed: Packed
    pairs: PairIndex
    choice: Array
    rows: Array
    fit: Array
    episode: Array
    held_out: bool
    where: str
    unseen: Array
    excerpt: bool = False

    @cached_property
    def probed(self) -> tuple[Array, Array]:
        """Rows of `fit` and `rows` one behind the other, and which of them are the latter, bool: none where the probes
        cannot be judged by other episodes than they are fitted on."""
        apart = not len(np.intersect1d(self.episode[self.fit], self.episode[self.rows]))
        test = np.repeat([False, True], [len(self.fit), len(self.rows)])
        return np.concatenate([self.fit, self.rows]), test & apart

    def comparison(self, codes: int) -> tuple[Motion, dict[str, Told]] | None:
        """What the robot did in the rows of `probed`, or the optical flow where nothing says it, and what features that
        need no training tell of it, with as many clusters as there are codes. None where there are too few pairs, or
        no library for the flow, which is said. Made once: it is the same at every step."""
        if codes not in self._made:
            rows, test = self.probed
            did = motion(self.packed, self.pairs, rows)
            if did is None and min(test.sum(), (~test).sum()) >= LEAST:
                did = _flow(self.packed, self.pairs, rows)
            enough = did is not None and min(test.sum(), (~test).sum()) >= LEAST
            self._made[codes] = (
                (did, baselines(self.packed, self.pairs, rows, did.values, self.episode[rows], test, codes))
                if did is not None and enough
                else None
            )
        return self._made[codes]

    @cached_property
    def _made(self) -> dict[int, tuple[Motion, dict[str, Told]] | None]:
        return {}

    @property
    def judged(self) -> int:
        """Episodes that figures are reported of."""
        return len(np.unique(self.episode[self.rows]))


def _flow(packed: Packed, pairs: PairIndex, rows: Array) -> Motion | None:
    """The optical flow of the pairs; None, and a word, where the library is missing."""
    if installed():
        return flow_motion(packed, pairs, rows)
    say_once(
        "What the codes tell cannot be measured: the videos say nothing of what the robot did, and the library for "
        'optical flow is missing: pip install "lapa[flow]".'
    )
    return None


def look_at(
    packed: Packed,
    pairs: PairIndex,
    held_out: Array,
    seed: int,
    episode: Array | None = None,
    trained_on: bool = True,
) -> Look:
    """Draw what a LAQ is judged by. held_out bool [P]: pairs of episodes that it was not trained on.

    Half of the held-out episodes choose and the other half reports; probes are fitted on the rest. With a single one
    it does both. With none, each fifth episode reports and the others choose and fit. `where` says which it was.
    """
    episode = pairs.episode if episode is None else episode
    rng = np.random.default_rng(seed)
    some = np.unique(episode[held_out])
    if len(some):
        report = np.isin(episode, some[::2])
        choice, fit = np.isin(episode, some[1::2]) if len(some) > 1 else report, ~held_out
        of = f"{len(some[::2])} held-out episode{'s' * (len(some) > 2)}"
        where = f"pairs of {of}" + ("" if len(some) > 1 else ", too few for a choice on others")
    else:
        report = of_each_fifth(episode)
        choice = fit = ~report
        apart = bool(report.any())
        report = report if apart else fit
        where = f"pairs of {'training, of ' * trained_on}each fifth episode"
        if not apart:
            where = "pairs of training" if trained_on else "pairs of the only episode"

    def drawn(which: Array, most: int) -> Array:
        pool = np.flatnonzero(which)
        return rng.choice(pool, min(most, len(pool)), replace=False)

    rows = drawn(report, WATCHED)
    return Look(
        packed,
        pairs,
        drawn(choice, CHOICE),
        rows,
        drawn(fit, FITTED),
        episode,
        bool(len(some)) or not trained_on,
        where,
        held_out,
    )


def error_over_copy(laq: LAQ, look: Look, rows: Array) -> float:
    """Squared error of the later frames, decoded from their codes, over that of showing the present frame again. Of
    frames that all stand still it is 1: there is nothing to be better at."""
    error = copy = 0.0
    for start in range(0, min(len(rows), CHOICE), 256):
        some = look.pairs.batch(look.packed, rows[start : start + 256])
        now, later = (as_pixels(x, laq.config.image_size, device()) for x in (some.now, some.later))
        future = laq.decode(now, laq.encode(some.now, some.later).cpu().numpy())
        error += float((future - later).square().sum())
        copy += float((now - later).square().sum())
    return error / copy if copy > 1e-9 else max(1.0, error / 1e-9)


def watch(laq: LAQ, look: Look) -> dict[str, Any]:
    """error_over_copy, perplexity per position and, where the data allow, the probes: numbers alone."""
    rows, test = look.probed
    codes, size = encode_all(laq, look.packed, look.pairs, rows), laq.config.codebook_size
    results: dict[str, Any] = {"error_over_copy": error_over_copy(laq, look, look.rows)}
    results |= probe(codes, size, look.packed, look.pairs, rows, look.episode[rows], test)
    return results | {"perplexity": perplexity(codes[len(look.fit) :], size)}


def judge(laq: LAQ, look: Look) -> dict[str, Any]:
    """What `watch` gives, what it was watched on, and the headline: "motion", the codes beside features that need no
    training on the same pairs (measures/motion.py; of videos without actions or state measures/flow.py), with a verdict
    in words."""
    results = watch(laq, look)
    results["watched_on"] = f"{len(look.rows):,} {look.where}"
    compared = look.comparison(full_codes(laq))
    if compared is None:
        return results
    rows, test = look.probed
    did, others = compared
    features = one_hot(encode_all(laq, look.packed, look.pairs, rows), laq.config.codebook_size)
    codes = told(features, did.values, look.episode[rows], test)
    results["motion"] = {
        "what": did.what,
        "names": list(did.names),
        "episodes": look.judged,
        "rows": {name: row.to_json() for name, row in {"codes": codes, **others}.items()},
        "held_out": look.held_out,
        "verdict": verdict(codes.weighted, others, did.what, look.judged, look.held_out),
    }
    return results


def full_codes(laq: LAQ) -> int:
    """How many different codes a pair may have."""
    return int(laq.quantizer.size**laq.quantizer.positions)


@dataclass(frozen=True)
class CodeTable:
    """The most used full codes, and what moves when they occur. NaN where a code never occurs.

    codes   int64 [K, s]
    motion  float [K, datasets, 2], to the right and down: how the effector moves on average, where the state says where
            it is; else how the picture does, by its optical flow; None where neither is known
    first   the same of each code of the first position, float [|C|, datasets, 2]
    flow    float [K, 2, rows, columns]: the mean optical flow, where it is what tells the motion
    """

    codes: Array
    motion: Array | None
    first: Array | None
    flow: Array | None = None


def code_table(laq: LAQ, packed: Packed, pairs: PairIndex, rows: Array, most: int = 16) -> CodeTable:
    """Of the pairs `rows`; `most` full codes at most."""
    codes = encode_all(laq, packed, pairs, rows)
    kinds, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts)[:most]
    place = np.full(len(kinds), -1)
    place[order] = np.arange(len(order))
    row, flow = place[inverse.ravel()], None
    columns = effector_columns(packed.state_names)[:2]
    if packed.state is not None and len(columns) == 2:
        where = packed.state[:, columns]
        moved = where[pairs.later[rows]] - where[pairs.now[rows]]
    elif installed():
        some = np.sort(np.random.default_rng(0).permutation(len(rows))[:FLOWED])
        row, codes, rows = row[some], codes[some], rows[some]
        each = coarse_flow(packed, pairs, rows)
        moved, flow = main_motion(each), _means(each, row, len(order))
    else:
        return CodeTable(kinds[order], None, None)
    source, sources = packed.source[pairs.episode[rows]], int(packed.source.max()) + 1
    motion, first = (
        np.stack([_means(moved[source == j], group[source == j], count) for j in range(sources)], 1)
        for group, count in ((row, len(order)), (codes[:, 0], laq.config.codebook_size))
    )
    return CodeTable(kinds[order], motion, first, flow)


def over_datasets(motion: Array | None) -> Array | None:
    """Motion [K, datasets, 2] -> [K, 2], the mean of the datasets where it is known."""
    if motion is None:
        return None
    known = np.isfinite(motion)
    total = np.where(known, motion, 0).sum(1)
    return np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan)


def _means(values: Array, group: Array, count: int) -> Array:
    """The mean of the rows of each group 0 .. count - 1, float [count, ...]; NaN for one without rows. Rows of group -1
    are passed over."""
    made = np.full((count, *values.shape[1:]), np.nan, values.dtype)
    for g in np.unique(group[group >= 0]):
        made[g] = values[group == g].mean(0)
    return made
