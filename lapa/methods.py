"""LAPA and its baselines as a table of rows (paper section 4.1). A method is a value, not a script.

source    what stage 2 predicts: a plug-in of lapa/labels, READ where a few labels say what a plug-in's labels mean as
          actions, STAGE_1 where stage 1 labels the video itself, or None for no pretraining
fits      what stage 1 trains for it: "laq" on video, "idm" (inverse dynamics) on the few labelled trajectories,
          "points" on both, or nothing
read_by   who uses what stage 1 has trained: "labels", the label source; "policy", stage 3's policy (--idm); or nobody
policy    a plug-in of lapa/policies; `policy.name` of the recipe chooses another
note      one line for tables and `lapa list`

VPT and UniPi share one inverse dynamics model: VPT labels video with it, UniPi reads actions off the frames that it
imagines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STAGE_1, READ = "stage 1", "read"


@dataclass(frozen=True)
class Method:
    """One row of the paper's table."""

    name: str
    source: str | None
    fits: Literal["laq", "idm", "points"] | None
    read_by: Literal["labels", "policy"] | None
    policy: str
    note: str

    @property
    def replays(self) -> bool:
        """Whether stage 3 goes on learning stage 2's labels where it can (stage3_finetune.can_replay)."""
        return self.policy == "vla" and self.source is not None


METHODS = {
    row.name: row
    for row in (
        Method("scratch", None, None, None, "vla", "the backbone alone, finetuned on the few labels"),
        Method(
            "vpt", "inverse_dynamics", "idm", "labels", "vla",
            "inverse dynamics fitted on the few labels pseudo-labels all video",
        ),
        Method("lapa", "latent", "laq", "labels", "vla", "latent actions learnt from video without actions"),
        Method(
            "read", READ, "laq", "labels", "vla",
            "few labels say what latent actions mean, which label all video with actions; not the paper's",
        ),
        Method(
            "track", STAGE_1, "points", None, "vla",
            "points that go with the hand label all video with actions; ours, not the paper's",
        ),
        Method("actionvla", "ground_truth", None, None, "vla", "true actions of all video: the upper bound"),
        Method(
            "unipi", "future_frames", "idm", "policy", "video_planner",
            "imagines the next frames; inverse dynamics reads actions",
        ),
    )
}  # fmt: skip


def fitted_for(fits: str) -> str:
    """The method whose labels come from what stage 1 fits: "laq" -> "lapa", "idm" -> "vpt"."""
    return next(row.name for row in METHODS.values() if row.fits == fits and row.read_by == "labels")


def of_source(source: str) -> str:
    """The method that a plug-in of lapa/labels belongs to; a label source of a user is a method of its own name."""
    return next((row.name for row in METHODS.values() if row.source == source), source)


def policy_of(method: str) -> str:
    """The plug-in of lapa/policies that learns a method's labels, where the recipe does not name one."""
    return METHODS[method].policy if method in METHODS else METHODS["scratch"].policy
