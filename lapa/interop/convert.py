"""`lapa convert`: LAQ checkpoints of the authors' released code become lapa artefacts, and the other way round.

Both models have the same weights in the same shapes; a conversion renames them (NAMES) and notes that this model
computes with the released layout (models/released_layout.py). Nothing is skipped: a key or a shape that is not as
expected is an error, where the released code loads whatever fits.
"""

from __future__ import annotations

import argparse
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from lapa.artefacts.folder import (
    file_hash,
    load_artefact,
    provenance,
    read_tensors,
    replacing,
    require_fit,
    save_artefact,
)
from lapa.contracts import LapaError
from lapa.models.laq import LAQ, LAQConfig
from lapa.recipe import preset

NAMES = {  # ours: theirs
    "position_bias.mlp.0": "spatial_rel_pos_bias.net.0.0",
    "position_bias.mlp.2": "spatial_rel_pos_bias.net.1.0",
    "position_bias.mlp.4": "spatial_rel_pos_bias.net.2",
    "patch_embedding.0": "to_patch_emb_first_frame.1",
    "patch_embedding.1": "to_patch_emb_first_frame.2",
    "patch_embedding.2": "to_patch_emb_first_frame.3",
    "spatial": "enc_spatial_transformer",
    "temporal": "enc_temporal_transformer",
    "project_in": "vq.project_in",
    "cnn": "vq.cnn_encoder",
    "quantizer.codebook": "vq.codebooks",
    "project_out": "vq.project_out",
    "decoder.transformer": "dec_spatial_transformer",
    "decoder.to_pixels": "to_pixels_first_frame.0",
}
IN_BLOCKS = {
    "blocks": "layers",
    "peg.conv": "0.dsconv",
    "attention": "1",
    "cross": "2",
    "feed_forward.norm": "3.0",
    "feed_forward.up": "3.1",
    "feed_forward.down": "3.4",
}

# s -> the patches a side on which the released code gets s codes, and the kernels of its small CNN. What else its
# constructor accepts ends with an error in its first training step.
CODES: dict[int, tuple[range, list[tuple[int, ...]]]] = {
    1: (range(7, 9), [(3, 3), (4, 4)]),
    2: (range(7, 9), [(3, 3), (3, 4)]),
    4: (range(7, 9), [(3, 3), (3, 3)]),
    16: (range(13, 17), [(3, 3), (3, 3)]),
    64: (range(15, 17), [(3, 3)]),
    256: (range(31, 33), [(3, 3)]),
}

# What can differ between two models that the released code can run; it has one way for all the rest.
FREE = {"image_size", "patch_size", "dim", "spatial_depth", "temporal_depth", "heads", "dim_head", "codes",
        "codebook_size", "quant_dim", "quantizer_options", "unet_width"}  # fmt: skip

CONTAINERS = ("model", "state_dict", "model_state_dict")
CODEBOOK = "vq.codebooks"  # a weight that every released LAQ has
EMA = "ema_model"
LFS = b"version https://git-lfs"

Weights = Mapping[str, torch.Tensor]


def from_released(
    source: Path,
    out: Path,
    image_size: int,
    patch_size: int | None = None,
    heads: int | None = None,
    dim_head: int | None = None,
    codes: int | None = None,
    window: float | None = None,
) -> LAQConfig:
    """Write the released checkpoint `source` to the new folder `out` as a "laq" artefact. Returns what the model is.

    The image size is not in the weights. The other sizes are: those given are checked. (The number of codes is told
    from the CNN and the image size together: 4 and 16 codes look alike but for that, and so do 64 and 256.) `window`
    is the seconds between the two frames that it was trained on (None: the paper preset's).

    Raises LapaError when `source` is not such a checkpoint or contradicts a size; nothing is written then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LapaError(f"{out} exists already. Remove it or choose another path.")
    theirs = read_released(source)
    config = read_config(theirs, image_size, source)
    for name, given in {"patch_size": patch_size, "heads": heads, "dim_head": dim_head, "codes": codes}.items():
        if given is not None and given != getattr(config, name):
            raise LapaError(f"{source}, with images of {image_size}, has {name} {getattr(config, name)}, not {given}.")
    recipe = preset("paper")
    recipe = replace(recipe, laq=config, window=recipe.window if window is None else window)
    if not 0 < recipe.window < math.inf:
        raise LapaError(f"The window is a positive number of seconds, not {recipe.window:g}.")
    with torch.device("meta"):
        model = config.build()
    ours = model.state_dict()
    names = released_names(model)
    require_fit({old: ours[name] for name, old in names.items()}, theirs, source)
    for old in names.values():
        if theirs[old].dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise LapaError(f"{source}: {old} is {theirs[old].dtype}; float32 expected, or a half of it.")
        if not theirs[old].isfinite().all():
            raise LapaError(f"{source}: {old} holds infinite or undefined numbers; the training had diverged.")
    tensors = {name: theirs[old].float() for name, old in names.items()}
    # Counters and prices of codes, which the released code does not save or know: they start at zero.
    counters = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in ours.items() if name not in names}
    made = {"model": asdict(config), "recipe": recipe.to_json(), "results": {},
            "provenance": provenance(0, {}, {str(source): file_hash(source)}) | {"seed": None}}  # fmt: skip
    save_artefact(out, "laq", made, counters | tensors)
    return config


def to_released(source: Path, out: Path) -> LAQConfig:
    """Write the LAQ artefact in folder `source` as a state dict that the released code loads, to the new file `out`.

    Returns what the model is. Raises LapaError when the released code has no such model.
    """
    if out.exists():
        raise LapaError(f"{out} exists already. Remove it or choose another path.")
    artefact = load_artefact(source, "laq")
    config = artefact.settings(LAQConfig)
    released = released_config(config)
    differ = [f.name for f in fields(config) if getattr(config, f.name) != getattr(released, f.name)]
    if differ:
        told = ", ".join(f"{n}={getattr(config, n)} (released: {getattr(released, n)})" for n in differ)
        raise LapaError(f"{source} is not a model of the released code, which would compute something else: {told}.")
    grids, _ = CODES.get(config.codes, (range(0), []))
    if (grid := config.image_size // config.patch_size) not in grids:
        raise LapaError(f"{source}: the released code has no {config.codes} codes from {grid}x{grid} patches.")
    model = artefact.fitting(config.build)
    if artefact.tensors["quantizer.price"].any():
        raise LapaError(f"{source} was trained with balanced codes (quantizer_options: balance), which are not the "
                        "nearest ones; the released code would compute others.")  # fmt: skip
    with replacing(out) as temporary:
        torch.save({theirs: artefact.tensors[name] for name, theirs in released_names(model).items()}, temporary)
    return config


def read_released(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint as a trainer wrote it, by their bare names. No code in the file is run.

    Taken out of what may be around them: {"model": ...} or {"state_dict": ...} (CONTAINERS), the averaged half of an
    EMA checkpoint, and what training on several GPUs, torch.compile or a wrapper put before every name ("module.",
    "_orig_mod.", "model."). A .safetensors file is one too. Raises LapaError for anything else.
    """
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise LapaError(
            f"{path} {problem}. Give the checkpoint file that the released code wrote, such as vae.100000.pt."
        )
    content = read_tensors(path)[0] if path.suffix.lower() == ".safetensors" else _loaded(path)
    while isinstance(content, Mapping) and (inside := _inside(content)) is not None:
        content = inside
    if not isinstance(content, Mapping) or not content:
        raise LapaError(f"{path} holds a {type(content).__name__}, not the weights of a LAQ by name.")
    weights = _bare({str(name): value for name, value in content.items()})
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor):
            raise LapaError(
                f"{path}: {name} is of type {type(value).__name__}; the weights of a LAQ are tensors alone."
            )
    return weights


def _loaded(path: Path) -> Any:
    """What a PyTorch file holds: tensors, numbers, texts, and the options of a command line beside them."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise LapaError(f"{path} is a pointer of Git LFS and no checkpoint. Fetch the file itself: git lfs pull.")
        mappable = zipfile.is_zipfile(file)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except Exception as error:  # whatever reading arbitrary bytes comes to
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds {found[1]}, which is code" if found else type(error).__name__
        raise LapaError(
            f"{path} is not a PyTorch checkpoint of tensors alone, or it is damaged ({what}). Nothing in it was run. "
            "Save its state_dict() where you trained it, and convert that."
        ) from error


def _inside(content: Mapping[Any, Any]) -> Any:
    """What a container of weights and other things holds of weights; None for one that is no container."""
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        return None
    return next((content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)


def _bare(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights without what stands before every name; of an EMA checkpoint the averaged ones."""
    before = [name.removesuffix(CODEBOOK) for name in weights if name.endswith(CODEBOOK)]
    averaged = [prefix for prefix in before if EMA in prefix.split(".")]
    if averaged:
        weights = {name: value for name, value in weights.items() if name.startswith(averaged[0])}
        before = averaged[:1]
    if len(before) != 1 or not all(name.startswith(before[0]) for name in weights):
        return weights
    return {name.removeprefix(before[0]): value for name, value in weights.items()}


def read_config(weights: Weights, image_size: int, where: Path) -> LAQConfig:
    """What model the weights are of. Raises LapaError when they are of none, or not for images of this size."""

    def shape(name: str, ndim: int) -> torch.Size:
        if name not in weights:
            raise LapaError(f"{where} is not a released LAQ: it has no {name}. It starts with {next(iter(weights))}.")
        if weights[name].ndim != ndim:
            raise LapaError(f"{where}: {name} is {tuple(weights[name].shape)}; {ndim} dimensions expected.")
        return weights[name].shape

    dim, pixels = shape("to_patch_emb_first_frame.2.weight", 2)
    patch_size = max(1, math.isqrt(pixels // 3))
    if image_size < 1 or image_size % patch_size:
        raise LapaError(
            f"{where} has patches of {patch_size} pixels, which do not divide an image_size of {image_size}."
        )
    grid = image_size // patch_size
    layers = [name for name in sorted(weights) if name.startswith("vq.cnn_encoder.") and name.endswith(".weight")]
    kernels = [tuple(shape(name, 4)[2:]) for name in layers]
    fitting = {codes: grids for codes, (grids, expected) in CODES.items() if kernels == expected}
    found = [codes for codes, grids in fitting.items() if grid in grids]
    if not found:
        shapes = ", ".join("x".join(map(str, kernel)) for kernel in kernels)
        sizes = "; ".join(
            f"{' or '.join(str(g * patch_size) for g in grids)} pixels ({codes} codes)"
            for codes, grids in fitting.items()
        )
        raise LapaError(
            f"{where} was not trained on images of {image_size} pixels: with patches of {patch_size} and a CNN with "
            f"kernels {shapes}, the released code takes {sizes or 'no size at all'}."
        )
    return replace(
        released_config(preset("paper").laq),
        image_size=image_size,
        patch_size=patch_size,
        dim=dim,
        spatial_depth=_depth(weights, "enc_spatial_transformer"),
        temporal_depth=_depth(weights, "enc_temporal_transformer"),
        heads=shape("spatial_rel_pos_bias.net.2.weight", 2)[0],
        dim_head=shape("dec_spatial_transformer.layers.0.2.q_scale", 1)[0],
        codes=found[0],
        codebook_size=shape("vq.codebooks", 2)[0],
        quant_dim=shape("vq.project_in.weight", 2)[0],
    )


def released_config(like: LAQConfig) -> LAQConfig:
    """The model of the released code that has the size of `like`."""
    return replace(preset("paper").laq, released_layout=True, **{name: getattr(like, name) for name in sorted(FREE)})


def released_names(model: LAQ) -> dict[str, str]:
    """Our name of every weight -> its name in the released code. Counters have none."""
    names = {}
    for name in model.state_dict():
        ours = next((o for o in NAMES if f"{name}.".startswith(f"{o}.")), None)
        if ours is None:
            continue
        names[name] = NAMES[ours] + name.removeprefix(ours)
        for part, theirs in IN_BLOCKS.items():
            names[name] = names[name].replace(f".{part}.", f".{theirs}.")
    return names


def _depth(weights: Weights, transformer: str) -> int:
    """How many blocks there are weights of."""
    return len({name.split(".")[2] for name in weights if name.startswith(f"{transformer}.layers.")})
