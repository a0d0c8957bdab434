"""The codes that a LAQ gives to the pairs of videos, with the actions and states, which the LAQ did not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lapa.artefacts.folder import load_artefact
from lapa.contracts import Array, LapaError
from lapa.data.index import tell
from lapa.data.pack import Packed, pack
from lapa.data.pairs import PairIndex, window_pairs
from lapa.data.spec import parse
from lapa.measures.linear import LinearFit
from lapa.measures.probes import effector_columns, one_hot
from lapa.models.laq import LAQ
from lapa.models.laq_fit import encode_all
from lapa.plots.codes import Dreamer
from lapa.plugins import find
from lapa.policies import Policy

EFFECTOR = ("effector_x", "effector_y")  # names of a state that says where the effector is in the picture


@dataclass(frozen=True)
class Reading:
    """Pairs of one dataset and their codes int64 [N, s], each one of `classes`; row i is rows[i] of `pairs`."""

    name: str
    packed: Packed
    pairs: PairIndex
    rows: Array
    codes: Array
    classes: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def episode(self) -> Array:
        """int64 [N]."""
        return self.pairs.episode[self.rows]

    @property
    def features(self) -> Array:
        """The codes for a linear probe, float32 [N, s * classes]."""
        return one_hot(self.codes, self.classes)

    @property
    def moved(self) -> Array:
        """How far the effector went, float64 [N, 2], in the state's units. Raises LapaError where no state says where
        it is."""
        columns = effector_columns(self.packed.state_names)[:2]
        if self.packed.state is None or not columns:
            names = ", ".join(self.packed.state_names[:6]) or "no names"
            raise LapaError(
                f"{self.name}: nothing says how far the effector went. It takes a state with columns whose names start "
                f'with "effector"; here there {"is none" if self.packed.state is None else f"are {names}"}.'
            )
        return self._change(columns)

    @property
    def changed(self) -> Array:
        """The change of the state over the window, float64 [N, S]: of the effector's position where the names say which
        columns these are, else of all columns, each divided by its deviation. Raises LapaError without a state."""
        if self.packed.state is None:
            raise LapaError(f"{self.name} has no states, so nothing says how they changed.")
        if effector_columns(self.packed.state_names):
            return self.moved
        return self._change(list(range(self.packed.state.shape[1]))) / np.maximum(self.packed.state.std(0), 1e-9)

    def _change(self, columns: list[int]) -> Array:
        assert self.packed.state is not None
        where = self.packed.state[:, columns].astype(np.float64)
        return where[self.pairs.later[self.rows]] - where[self.pairs.now[self.rows]]

    @property
    def actions(self) -> Array:
        """What the robot's actions mean over the window (actions/spec.py), float32 [N, A], robot units.

        Raises LapaError without actions."""
        self.packed.require_actions("this analysis")
        made = self.packed.acted(self.pairs.now[self.rows], self.pairs.later[self.rows])
        assert made is not None
        return made

    def some(self, which: Array) -> Reading:
        """The pairs `which`, rows or a mask."""
        return Reading(self.name, self.packed, self.pairs, self.rows[which], self.codes[which], self.classes)

    def halves(self, seed: int) -> tuple[Reading, Reading]:
        """Half of the episodes, to fit a probe on, and the other half. Raises LapaError for fewer than two episodes."""
        episodes = np.unique(self.episode)
        if len(episodes) < 2:
            raise LapaError(
                f"{self.name} has one episode; a probe is fitted on one half of them and used on the other."
            )
        first = np.random.default_rng(seed).permutation(episodes)[: len(episodes) // 2]
        return self.some(np.isin(self.episode, first)), self.some(~np.isin(self.episode, first))


@dataclass(frozen=True)
class Source:
    """A LAQ, its window in seconds, its hash, and the videos it was trained on."""

    laq: LAQ
    window: float
    hash: str
    trained_on: str


def open_laq(path: Path) -> Source:
    """The LAQ of stage 1 at `path`. Raises LapaError if it is not one."""
    source = find("labels", "latent")(str(path)).build()
    data = load_artefact(path, "laq").config.get("provenance", {}).get("data", {})
    return Source(source.laq, source.window, source.hash, " ".join(data))


def open_policy(path: Path, source: Source) -> Dreamer:
    """The policy of stage 2 at `path`. Raises LapaError unless it predicts the codes of `source`."""
    artefact = load_artefact(path, "policy")
    if source.hash not in artefact.config.get("provenance", {}).get("parents", {}).values():
        raise LapaError(f"{path} does not predict the codes of this LAQ: give the LAQ that labelled its videos.")
    policy: Dreamer = Policy.from_pretrained(path)
    return policy


def note_if_trained_on(spec: str, trained_on: str) -> None:
    """Print a note if a LAQ was trained on the videos that judge it."""
    if f" {spec} " in f" {trained_on} ":
        other = "other episodes, such as another seed" if parse(spec).name == "tabletop" else "other clips"
        print(f"Note: this LAQ was trained on {spec}, so the figures flatter it; give {other}.")


def read(
    source: Source, spec: str, most: int = 20_000, seed: int = 0, skip_bad: bool = False, note: bool = True
) -> Reading:
    """The codes of a dataset's pairs. If there are more than `most` pairs, of `most` pairs at random.

    With `note`, prints what was read, and whether the LAQ was trained on the same videos.
    """
    if note:
        note_if_trained_on(spec, source.trained_on)
    packed = pack([spec], source.laq.config.image_size, skip_bad=skip_bad)
    if note:
        tell(packed)
    pairs = window_pairs(packed, source.window)
    rows = np.arange(len(pairs))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    codes = encode_all(source.laq, packed, pairs, rows, batch=256)
    return Reading(short(spec), packed, pairs, rows, codes, source.laq.quantizer.size)


def short(spec: str) -> str:
    """A dataset's name for tables: the domain of Tabletop, else the last part of the path."""
    found = parse(spec)
    return found.path if found.name == "tabletop" else Path(found.path).name


def names_of(specs: Sequence[str]) -> list[str]:
    """A name for each dataset: the short one, or all of it where two would have the same."""
    names = [short(spec) for spec in specs]
    return [spec if names.count(name) > 1 else name for name, spec in zip(names, specs, strict=True)]


def motion_probe(reading: Reading) -> LinearFit:
    """Codes as features -> displacement of the effector, or the change of the whole state (`Reading.changed`)."""
    return LinearFit.fit(reading.features, reading.changed)


def in_picture(packed: Packed) -> bool:
    """Does the state say where the effector is as a share of the picture, x to the right and y down?"""
    if packed.state is None or not set(EFFECTOR) <= set(packed.state_names):
        return False
    where = effector(packed)
    return bool(where.min() >= 0 and where.max() <= 1)


def effector(packed: Packed) -> Array:
    """float64 [N, 2] of every frame, as `in_picture` has it."""
    assert packed.state is not None
    return packed.state[:, [packed.state_names.index(name) for name in EFFECTOR]].astype(np.float64)


def angles(a: Array, b: Array) -> Array:
    """Degrees between vectors float [N, 2] each, float64 [N]; 180 where one of them has no length."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / np.maximum(lengths, 1e-12)
    return np.where(lengths > 1e-12, np.degrees(np.arccos(np.clip(cosine, -1, 1))), 180.0)
