"""What the tests share: a cache of their own, and small data that are made once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the same order of sums, however many cores
os.environ["MPLBACKEND"] = "agg"

import pytest

if find_spec("hypothesis"):  # LeRobot's environment does without
    import hypothesis

    # How long a busy machine takes for an example is no fault of the code.
    hypothesis.settings.register_profile(
        "any-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("any-machine")

if TYPE_CHECKING:  # they import torch, which the process of xdist that hands out the tests does without
    from lapa.data.pack import Packed
    from lapa.recipe import Recipe

# Files that take longest, in this order. A worker of xdist takes a whole file: with these first, no core is left with a
# long one when the others are done.
LONGEST = (
    *("test_distributed.py", "test_another_world.py", "test_hf.py", "test_methods.py", "test_reading.py"),
    *("test_cli.py", "test_precision.py", "test_loop.py", "test_run_folder.py", "test_stage3_finetune.py"),
    *("test_schedule.py", "test_compare.py", "test_stage2_label.py", "test_plugins.py", "test_docs.py"),
    *("test_export.py", "test_questions.py", "test_inspect.py", "test_ablation.py", "test_study.py"),
    *("test_tune.py", "test_video_planner.py", "test_quantizers.py", "test_convert.py", "test_damage.py"),
    *("test_stage2_pretrain.py", "test_older.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first (the Makefile asks xdist not to reorder them)."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or left in the user's cache, not even by commands that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("COLUMNS", "120")
        patch.delenv("LAPA_PLUGINS", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_probes() -> Iterator[int]:
    """The small networks that judge codes learn for a few steps. Gives the full length, as tests/measures needs it."""
    from lapa.measures import probes

    whole = probes.MLP_STEPS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "MLP_STEPS", 10)
        yield whole


@pytest.fixture(scope="session")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot dataset with actions: twelve Tabletop demonstrations."""
    from lapa.interop.collect import collect

    path = tmp_path_factory.mktemp("data") / "robot"
    collect(["tabletop:sim,episodes=12,seed=3"], path)
    return path


@pytest.fixture(scope="session")
def packed(robot: Path) -> Packed:
    """The same at 24 x 24 pixels."""
    from lapa.data.pack import pack

    return pack([f"lerobot:{robot}"], 24, quiet=True)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six small videos with captions.csv, and no actions."""
    from lapa.data.spec import open_dataset
    from lapa.data.video import VideoFile

    folder = tmp_path_factory.mktemp("data") / "clips"
    rows = ["file,instruction"]
    for i, episode in enumerate(open_dataset("tabletop:sim,episodes=6,seed=4").episodes()):
        video = VideoFile(folder / f"clip_{i}.mp4", episode.fps, 48, 48)
        video.add(episode.frames)
        video.close()
        rows.append(f"clip_{i}.mp4,{episode.instruction}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


TINY_OPTIONS = (
    *("laq.image_size=24", "laq.patch_size=6", "laq.dim=16", "laq.spatial_depth=1", "laq.temporal_depth=1"),
    *("laq.heads=2", "laq.dim_head=8", "laq.codebook_size=8", "laq.quant_dim=4", "laq.unet_width=8"),
    "starts=[]",
    *("idm.image_size=24", "idm.width=8", "idm.blocks=2", 'policy.head_options={"width":16}'),
    *("quantize.batch_size=8", "fit_idm.batch_size=8", "pretrain.batch_size=8", "finetune.batch_size=8"),
    *("planner.width=8", "planner.blocks=1", "pretrain_planner.batch_size=8", "finetune_planner.batch_size=8"),
    'policy.backbone_options={"image_size":24,"width":32,"depth":1,"heads":2,"vision_width":16,"grounded":false}',
)


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Options of the training commands that make every model as small as `tiny`."""
    return [part for option in TINY_OPTIONS for part in ("--set", option)]


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """All three stages at the smallest size that still has every part, four steps each."""
    from lapa.models.idm import IDMConfig
    from lapa.models.laq import LAQConfig
    from lapa.models.video_diffusion import VideoDiffusionConfig
    from lapa.recipe import PolicySettings, Recipe
    from lapa.training.loop import Optimisation

    how = Optimisation(steps=4, batch_size=8, learning_rate=1e-3, warmup=2, precision="float32")
    return Recipe(
        laq=LAQConfig(
            image_size=24, patch_size=6, dim=16, spatial_depth=1, temporal_depth=1, heads=2, dim_head=8,
            codes=1, codebook_size=8, quant_dim=4, normalise=True, decoder="unet", unet_width=8,
            quantizer_options={"schedule": [[1, 4, 1]]},
        ),
        idm=IDMConfig(image_size=24, width=8, blocks=2),
        policy=PolicySettings(
            backbone_options={"image_size": 24, "width": 32, "depth": 1, "heads": 2, "vision_width": 16,
                              "grounded": False},
            head_options={"width": 16},
        ),
        planner=VideoDiffusionConfig(width=8, blocks=1, steps=2), starts=(),
        quantize=how, fit_idm=how, pretrain=how, finetune=how, pretrain_planner=how, finetune_planner=how, bins=8,
    )  # fmt: skip


@pytest.fixture(scope="session")
def chain(packed: Packed, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """laq, labels, latent, policy: LAPA's chain after four steps a stage. The policy has chunks of three actions."""
    from lapa.data.labelled import read_labels
    from lapa.stage1_latent_actions import fit_laq
    from lapa.stage2_label import label
    from lapa.stage2_pretrain import pretrain
    from lapa.stage3_finetune import finetune

    folder = tmp_path_factory.mktemp("chain")
    fit_laq(packed, tiny, folder / "laq", 0)
    manifest = label(packed, str(folder / "laq"), folder / "labels")
    pretrain(packed, read_labels(folder / "labels")[0], manifest, tiny, folder / "latent", 0)
    finetune(packed, folder / "latent", replace(tiny, chunk=3), folder / "policy", 0)
    return folder
