"""The four settings of the paper's table on Tabletop, as values (paper section 4.1, Table 2).

A setting says which videos stages 1 and 2 watch and which labelled trajectories stage 3 gets; it is always judged in
`sim`, on seen and on unseen instructions and objects. Beside the paper's cross-environment column (here: videos in the
look `real`, whose robot has another frame) stands one with videos of a `hand`.
"""

from __future__ import annotations

from dataclasses import dataclass

BUDGETS = (5, 10, 20, 50, 100)
SPLITS = ("seen", "unseen")
HOME = "sim"  # the look of all labels and all tests
VIDEO_SEED, LABEL_SEED = 1, 2  # of the data, added to 10 times the training seed, as `lapa demo` does


@dataclass(frozen=True)
class Setting:
    """One pair of columns (seen, unseen) of the table.

    videos: the look of the videos; family: the one task family of the labels ("" for all); budgets: how many labelled
    trajectories; main: the budget that the table shows.
    """

    name: str
    videos: str
    note: str
    family: str = ""
    budgets: tuple[int, ...] = BUDGETS
    main: int = 100

    def video_spec(self, episodes: int, seed: int) -> str:
        """The dataset that stages 1 and 2 watch for a training seed."""
        return f"tabletop:{self.videos},episodes={episodes},seed={10 * seed + VIDEO_SEED}"

    def label_spec(self, budget: int, seed: int) -> str:
        """The labelled trajectories of stage 3 for a training seed; a smaller budget is the start of a larger one."""
        family = f",family={self.family}" if self.family else ""
        return f"tabletop:{HOME},episodes={budget},seed={10 * seed + LABEL_SEED}{family}"


SETTINGS = {
    each.name: each
    for each in (
        Setting("in-domain", "sim", "videos and labels of the robot, all families", main=20),
        Setting("cross-task", "sim", "labels of one family only", family="separate", budgets=(100,)),
        Setting("cross-env", "real", "videos of another environment and robot frame"),
        Setting("cross-embodiment", "hand", "videos of a hand"),
    )
}
