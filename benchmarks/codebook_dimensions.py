"""Does it show in a codebook, without any action label, whether its LAQ tells the action?

    python benchmarks/codebook_dimensions.py runs/*/laq

For finished LAQ runs whose videos had actions to judge them by: how many dimensions the codes take up, the error on
held-out episodes as a share of that of showing the present frame again, and what a linear probe reads of the action.
Prints a Markdown table, and how the runs' order by either of the first two goes with their order by the last.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from lapa.artefacts.folder import load_artefact
from lapa.models.laq import LAQ


def main(*folders: str) -> None:
    found: dict[str, tuple[int, float, float]] = {}
    for folder in folders:
        artefact = load_artefact(Path(folder), "laq")
        results = artefact.config["results"]
        if "action_r2" not in results:
            sys.exit(f"{folder}: its videos had no actions to judge it by.")
        dimensions = LAQ.from_pretrained(Path(folder)).places().shape[1]
        found[artefact.hash] = (dimensions, results["error_over_copy"], results["action_r2"])
    rows = sorted(found.values())
    print(f"{len(rows)} LAQs\n\n| dimensions | LAQs | error / copy | action R^2 |\n|---|---|---|---|")
    for dimensions, group in groupby(rows, lambda row: row[0]):
        _, errors, told = map(np.array, zip(*group, strict=True))
        spread = [f"{x.min():.2f} to {x.max():.2f}, median {np.median(x):.2f}" for x in (errors, told)]
        print(f"| {dimensions} | {len(told)} | {' | '.join(spread)} |")
    columns = list(zip(*rows, strict=True))
    for i, name in enumerate(("dimensions", "error / copy")):
        print(f"\nrank correlation of {name} with R^2: {spearmanr(columns[i], columns[2]).statistic:.2f}", end="")
    print()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
