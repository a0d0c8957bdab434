"""Draws docs/pictures/architecture.png: how data flow through the stages, and which folder may import which.

python docs/pictures/architecture.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lapa.plots.figure import COLOURS, FAINT, INK, MUTED, save

STAGES = (  # what it is called, the file, what it needs, what comes out
    ("Stage 1", "stage1_latent_actions.py\nlapa quantize", "videos", "LAQ"),
    ("Stage 2a", "stage2_label.py\nlapa label", "videos", "labels: a code\nfor each frame"),
    ("Stage 2b", "stage2_pretrain.py\nlapa pretrain", "videos,\ninstructions", "policy that\npredicts codes"),
    ("Stage 3", "stage3_finetune.py\nlapa finetune", "a few labelled\ntrajectories", "policy that\npredicts actions"),
    ("Evaluation", "evaluate.py\nlapa evaluate", "benchmark, or\nheld-out episodes", "success, or\nerror of actions"),
)
BANDS = (  # from the top: a folder or file may import those below it; (title, names, what they do)
    ("what you type", "cli commands", "one function for each command"),
    ("many runs", "experiments analysis explorer interop", "comparisons, questions, a page for codes, other formats"),
    (
        "one run",
        "stage1_latent_actions stage1_points stage2_label stage2_pretrain stage3_finetune evaluate recipe run_folder "
        "plots",
        "the stages, their settings, their pictures",
    ),
    (
        "plug-ins and models",
        "policies heads backbones labels encoders quantizers datasets benchmarks models serving",
        "one file for each thing that you can choose by name; the policy server",
    ),
    ("what they share", "training measures data actions tabletop", "training loop, probes, packs, actions, toy world"),
    ("foundation", "contracts methods plugins artefacts runtime", "types, the table of methods, files, processes"),
)  # fmt: skip


def box(axes: Any, x: float, y: float, width: float, height: float, face: str, edge: str) -> None:
    """A box with round corners; x and y are those of its lower left corner."""
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=1.1))


def stages(axes: Any) -> None:
    """The upper half: five boxes from left to right, inputs above, results on the arrows."""
    wide, gap = 2.0, 1.1
    for i, (name, file, needs, gives) in enumerate(STAGES):
        x = i * (wide + gap)
        box(axes, x, 0, wide, 1.1, "white", COLOURS[0])
        axes.text(x + wide / 2, 0.85, name, ha="center", va="center", fontsize=10, fontweight="bold", color=INK)
        axes.text(x + wide / 2, 0.36, file, ha="center", va="center", fontsize=8, color=INK, linespacing=1.5)
        axes.text(x + wide / 2, 2.0, needs, ha="center", va="center", fontsize=8.5, color=COLOURS[1])
        axes.annotate(
            "", (x + wide / 2, 1.13), (x + wide / 2, 1.72), arrowprops={"arrowstyle": "->", "color": COLOURS[1]}
        )
        axes.text(x + wide + gap / 2, -0.22, gives, ha="center", va="top", fontsize=8.5, color=COLOURS[2])
        axes.annotate("", (x + wide + gap - 0.03, 0.5), (x + wide + 0.03, 0.5),
                      arrowprops={"arrowstyle": "->", "color": COLOURS[2], "linewidth": 1.4})  # fmt: skip
    axes.set_xlim(-0.1, 5 * (wide + gap) + 0.15)
    axes.set_ylim(-1.0, 2.4)


def folders(axes: Any) -> None:
    """The lower half: a band for each layer of the tree."""
    for i, (title, names, what) in enumerate(BANDS):
        y = len(BANDS) - 1 - i
        box(axes, 2.3, y + 0.08, 13.4, 0.84, FAINT, FAINT)
        axes.text(2.1, y + 0.5, title, ha="right", va="center", fontsize=9.5, fontweight="bold", color=INK)
        axes.text(2.5, y + 0.66, "  ".join(names.split()), va="center", fontsize=8.8, color=INK, family="monospace")
        axes.text(2.5, y + 0.3, what, va="center", fontsize=8.3, color=MUTED)
    axes.annotate("", (15.95, 0.1), (15.95, len(BANDS) - 0.1), arrowprops={"arrowstyle": "->", "color": MUTED})
    axes.text(16.1, len(BANDS) / 2, "may import", rotation=270, va="center", fontsize=8.5, color=MUTED)
    axes.set_xlim(-0.1, 16.5)
    axes.set_ylim(-0.1, len(BANDS))


def main() -> None:
    """Both halves in one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(12.6, 7.4), dpi=120)
    FigureCanvasAgg(made)
    made.set_layout_engine("constrained")
    above, below = made.subplots(2, 1, height_ratios=(3.2, 5.2))
    for axes, draw, title in (
        (above, stages, "How data flow"),
        (below, folders, "The folders and files of lapa/"),
    ):
        axes.set_axis_off()
        axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold")
        draw(axes)
    save(made, Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
