"""LAPA and its baselines as a table of rows (paper section 4.1). A method is a value, not a script.

source    what stage 1 fits and stage 2 predicts: a plug-in of lapa/labels, or None for no pretraining
fits      what stage 1 trains for it: "laq" on video, "idm" on the few labelled trajectories (vpt and unipi share it:
          vpt labels video with it, unipi reads actions off the frames it imagines), or nothing
policy    a plug-in of lapa/policies
note      one line for tables and `lapa list`
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One row of the paper's table."""

    name: str
    source: str | None
    fits: str | None
    policy: str
    note: str


METHODS = {
    row.name: row
    for row in (
        Method("scratch", None, None, "vla", "the backbone alone, finetuned on the few labels"),
        Method(
            "vpt", "inverse_dynamics", "idm", "vla", "inverse dynamics fitted on the few labels pseudo-labels all video"
        ),
        Method("lapa", "latent", "laq", "vla", "latent actions learnt from video without actions"),
        Method("actionvla", "ground_truth", None, "vla", "true actions of all video: the upper bound"),
        Method(
            "unipi", "future_frames", "idm", "video_planner", "imagines the next frames; inverse dynamics reads actions"
        ),
    )
}
