"""What a code tells, and what a run's codes tell, in words and figures. No sentence says more than the pairs do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lapa.actions.meaning import Meaning
from lapa.analysis.inspect import judged_by
from lapa.analysis.reading import angles
from lapa.contracts import Array, LapaError
from lapa.data.index import counted
from lapa.explorer.opened import Code, Explored
from lapa.measures.probes import MEANING
from lapa.stage1_latent_actions import judge

STILL = 0.005  # of the picture's side: a mean motion below it is none
ALIKE = 45  # degrees within which two motions go the same way
FEW = 5  # pairs, fewer than which say little
COMMON = 0.5  # of the pairs: fewer have no way in common
UNUSUAL = 0.3  # of the deviation: what the robot did is told where its mean is so far from the usual
LISTED = 4  # numbers of the action in a sentence
COMPASS = ("right", "right and down", "down", "left and down", "left", "left and up", "up", "right and up")


@dataclass(frozen=True)
class Sense:
    """What the pairs with a code have in common: their number; the mean motion [2] in shares of the picture and the
    share of them that go within ALIKE degrees of it, None where it is not known or none; what the robot did, float [D]
    each: mean, and how far that is from the mean of all pairs, in deviations."""

    pairs: int
    motion: Array | None
    alike: float | None
    did: Array | None
    unusual: Array | None


def sense(run: Explored, code: Code, position: int | None = None) -> Sense:
    """Of the pairs that have the code, or, with `position`, this code there."""
    rows = run.having(code, position)
    moved = alike = did = unusual = None
    if run.moved is not None and len(some := np.isin(run.moved.rows, rows).nonzero()[0]):
        each = run.moved.each[some]
        moved = each.mean(0)
        if np.linalg.norm(moved) >= STILL:
            going = each[np.linalg.norm(each, axis=1) >= STILL]
            alike = float((angles(going, np.broadcast_to(moved, going.shape)) <= ALIKE).sum() / len(each))
    if run.did is not None and len(rows):
        values = run.did.values
        did = values[rows].mean(0)
        unusual = (did - values.mean(0)) / np.maximum(values.std(0), 1e-9)
    return Sense(len(rows), moved, alike, did, unusual)


def direction(motion: Array) -> str:
    """A motion [2], x to the right and y down, in words: one of eight."""
    eighth = np.arctan2(motion[1], motion[0]) / (np.pi / 4)
    return COMPASS[round(float(eighth)) % 8]


def of_code(run: Explored, code: Code, position: int | None = None) -> list[str]:
    """Sentences about a code; with `position`, about its number there, whatever the other numbers are."""
    found, total = sense(run, code, position), len(run.reading)
    if not total:
        return ["There are no pairs of frames to say what it means."]
    if not found.pairs:
        return [f"None of the {total:,} pairs has it: what the decoder draws is a guess."]
    lines = [f"{counted(found.pairs, 'pair')} of {total:,} ({found.pairs / total:.1%})."]
    if run.moved is not None and found.motion is None:
        lines.append("How things moved was not looked at in any of them.")
    elif run.moved is not None and found.motion is not None:
        if found.alike is None:
            lines.append(f"On average {run.moved.what} stays where it is.")
        else:
            length, way = np.linalg.norm(found.motion), direction(found.motion)
            lines.append(
                f"On average {run.moved.what} goes {way}, {length:.1%} of the picture in {run.source.window:g} s; "
                + ("" if found.alike >= COMMON else "but only ")
                + f"{found.alike:.0%} of the pairs go that way."
            )
    if run.did is not None and found.did is not None and found.unusual is not None:
        far = [int(i) for i in np.argsort(-np.abs(found.unusual)) if abs(found.unusual[i]) >= UNUSUAL][:LISTED]
        usual = run.did.values.mean(0)
        told = ", ".join(f"{run.did.names[i]} {found.did[i]:+.3g} (usually {usual[i]:+.3g})" for i in far)
        lines.append(
            f"Robot: {told} ({run.did.what})." if told else f"Robot: nothing out of the usual ({run.did.what})."
        )
    if found.pairs < FEW:
        lines.append("So few pairs say little.")
    return lines


def of_data(run: Explored) -> list[str]:
    """Sentences about the videos and the codes that they have."""
    packed, size = run.packed, run.size
    many = f"{run.positions} codes, each one of {size}" if run.positions > 1 else f"one of {size} codes"
    lines = [
        f"{counted(packed.episodes, 'video')}, {counted(len(packed), 'frame')}. "
        f"A pair of frames {run.source.window:g} s apart gets {many}.",
    ]
    if len(run.reading):
        used = (run.shares > 0).sum(1).tolist()
        lines.append(
            f"{counted(len(run.reading), 'pair')} read; in use: {' and '.join(map(str, used))} of {size} codes."
        )
        if max(used) == 1:
            lines.append("All pairs have the same code: this LAQ has collapsed.")
    meaning = Meaning.of(packed)
    if meaning is not None:
        spec = meaning.spec
        named = ", ".join(f"{name} ({kind})" for name, kind in zip(spec.names, spec.kinds, strict=True))
        lines.append(f"The videos have actions, which the LAQ has not seen: {named}, {spec.hz:g} a second.")
    return lines


def of_run(run: Explored, seed: int = 0) -> list[tuple[str, str]]:
    """How much the codes tell: figures with what each means. Takes seconds."""
    reading = run.reading
    if not len(reading):
        raise LapaError("There are no pairs of frames to judge the codes by.")
    results = judge(run.source.laq, judged_by(run.run, reading.packed, reading.pairs, seed))
    lines = [("Judged on", str(results["watched_on"]))]
    lines += [("Error / copy", f"{results['error_over_copy']:.2f}: {MEANING['error_over_copy']}")]
    effective = ", ".join(f"{value:.1f}" for value in results["perplexity"])
    lines += [("Perplexity", f"{effective} of {run.size}: {MEANING['perplexity']}")]
    for name in ("action", "state", "displacement", "position", "dataset"):
        if f"{name}_r2" in results:
            lines.append((f"R² of the {name}", f"{results[f'{name}_r2']:.2f}: {MEANING[f'{name}_r2']}"))
    if "motion" in results:
        lines.append(("In words", results["motion"]["verdict"]))
    return lines
