"""The released code's `vqgan` file: a pickle of nested dicts of arrays, read without running anything in it.

Six names may stand in the file, those that dicts of numpy or jax arrays need. None of them is called: each has a
stand-in here that only takes down what it is given. Any other name is refused.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import Array, LapaError
from lapa.models.vqgan import VQGANConfig

LARGEST = 1 << 33  # bytes: the real file has 585 MB
ORDERS = ("<", ">", "=", "|")


class _DType:
    """numpy.dtype: the code of a kind of number, and the order of bytes."""

    def __init__(self, code: str, *_: bool) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ORDERS:
            raise ValueError(f"bytes in the order {state[1]!r}")
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        """The real one. Raises ValueError for all but float32."""
        if self.code != "f4":
            raise ValueError(f"an array of {self.code!r}; float32 expected")
        return np.dtype(self.order.replace("|", "=") + "f4")


class _NDArray:
    """numpy.ndarray: shape, kind and bytes."""

    def __init__(self) -> None:
        self.array: Array | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray | memoryview):
            raise ValueError("an array of objects")
        flat = np.frombuffer(data, dtype.numpy())
        if not all(isinstance(n, int) and n >= 0 for n in shape) or prod(shape) != flat.size:
            raise ValueError(f"an array of {shape} with {flat.size} numbers")
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: Any, *_: Any) -> _NDArray:
    """numpy.core.multiarray._reconstruct."""
    if kind is not _NDArray:
        raise ValueError("an array of a kind of its own")
    return _NDArray()


def _reconstruct_array(make: Any, arguments: Any, state: Any, *_: Any) -> _NDArray:
    """jax._src.array._reconstruct_array: a numpy array, and what jax adds to it."""
    if make is not _reconstruct:
        raise ValueError("a jax array that is not made of numpy's")
    made = _reconstruct(*arguments)
    made.__setstate__(state)
    return made


def _frozen_dict(content: Any = (), **_: Any) -> dict[Any, Any]:
    """flax.core.frozen_dict.FrozenDict."""
    if not isinstance(content, dict):
        raise ValueError(f"a FrozenDict of a {type(content).__name__}")
    return content


ALLOWED: dict[tuple[str, str], Any] = {
    ("flax.core.frozen_dict", "FrozenDict"): _frozen_dict,
    ("jax._src.array", "_reconstruct_array"): _reconstruct_array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # since numpy 2
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _DType,
}


class Unpickler(pickle.Unpickler):
    """Finds the allowed names, as their stand-ins, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in. Raises LapaError naming what is refused."""
        if (module, name) not in ALLOWED:
            raise LapaError(f"it holds {module}.{name}, which is code")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Raises LapaError: there is nothing outside the file."""
        raise LapaError("it refers to something outside the file")


def read_vqgan(path: Path) -> dict[str, Array]:
    """The arrays of a `vqgan` file, float32, by their names joined with "/". Raises LapaError for a file that is
    missing or damaged, and for one that holds anything else, which is not run."""
    if not path.is_file():
        raise LapaError(
            f"{path} {'is no file' if path.exists() else 'does not exist'}. Give the released `vqgan` file."
        )
    if path.stat().st_size > LARGEST:
        raise LapaError(f"{path} has {path.stat().st_size:,} bytes; the released `vqgan` file has 585 MB.")
    try:
        with path.open("rb") as file:
            content = Unpickler(file).load()
        found = dict(_flat(content))
    except Exception as error:  # whatever reading arbitrary bytes comes to
        told = str(error).rstrip(".") or type(error).__name__
        raise LapaError(
            f"{path} is no `vqgan` file of the released code, a pickle of nested dicts of arrays, or it is damaged "
            f"({told}). Nothing in it was run. Fetch it again."
        ) from None
    while found and all(name.startswith("params/") for name in found):
        found = {name.removeprefix("params/"): array for name, array in found.items()}
    return found


def _flat(node: Any, before: str = "", depth: int = 0) -> Iterator[tuple[str, Array]]:
    if isinstance(node, _NDArray) and node.array is not None:
        yield before, node.array.astype(np.float32, copy=False)
    elif isinstance(node, dict) and depth < 20:
        for name, part in node.items():
            if not isinstance(name, str):
                raise ValueError(f"a dict with {type(name).__name__} as a name")
            yield from _flat(part, f"{before}/{name}" if before else name, depth + 1)
    else:
        raise ValueError(f"{before or 'it'} is a {type(node).__name__}, no array")


def write_vqgan(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a pickle of nested dicts of numpy arrays, as the released code loads it, under the names that numpy had
    then."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = np.ascontiguousarray(array)
    # Since numpy 2 the module has another name, which the released code's numpy does not know.
    written = pickle.dumps(tree, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    path.write_bytes(written)


# --- names and sizes


def config_of(arrays: Mapping[str, Array], where: Path) -> VQGANConfig:
    """The sizes that the arrays tell. Raises LapaError where they are of no such model."""

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in arrays:
            raise LapaError(f"{where} is no VQGAN of the released code: {name} is missing.")
        if arrays[name].ndim != ndim:
            raise LapaError(f"{where}: {name} is {list(arrays[name].shape)}; {ndim} axes expected.")
        return arrays[name].shape

    levels = _count(arrays, r"encoder/DownsamplingBlock_(\d+)/")
    width = shape("encoder/Conv_0/kernel", 4)[3]
    widths = [shape(f"encoder/DownsamplingBlock_{i}/ResnetBlock_0/Conv_0/kernel", 4)[3] for i in range(max(levels, 1))]
    if any(each % max(width, 1) for each in widths):
        raise LapaError(f"{where}: levels of {widths} channels are no multiples of the first {width}.")
    codes, embedding = shape("quantize/embeddings", 2)
    return VQGANConfig(
        width=width,
        mult=tuple(each // width for each in widths),
        blocks=_count(arrays, r"encoder/DownsamplingBlock_0/ResnetBlock_(\d+)/"),
        z=shape("encoder/Conv_1/kernel", 4)[3],
        embedding=embedding,
        codes=codes,
    )


def _count(arrays: Mapping[str, Array], pattern: str) -> int:
    return len({match[1] for name in arrays if (match := re.match(pattern, name))})


RENAMED = (  # ours -> theirs, in this order
    (r"^codebook$", "quantize/embeddings"),
    (r"^before\.", "quant_conv/"),
    (r"^after\.", "post_quant_conv/"),
    (r"^encoder\.levels\.(\d+)\.", r"encoder/DownsamplingBlock_\1/"),
    (r"^decoder\.levels\.(\d+)\.", r"decoder/UpsamplingBlock_\1/"),
    (r"^(\w+)\.middle\.", r"\1/MidBlock_0/blocks."),
    (r"^encoder(.*)resample\.", r"encoder\1Downsample_0/Conv_0/"),
    (r"^decoder(.*)resample\.", r"decoder\1Upsample_0/Conv_0/"),
    (r"blocks\.(\d+)\.", r"ResnetBlock_\1/"),
    (r"norm1\.", "GroupNorm_0/"), (r"norm2\.", "GroupNorm_1/"), (r"\.norm\.", "/GroupNorm_0/"),
    (r"conv1\.", "Conv_0/"), (r"conv2\.", "Conv_1/"), (r"skip\.", "Conv_2/"),
    (r"\.conv_in\.", "/Conv_0/"), (r"\.conv_out\.", "/Conv_1/"),
)  # fmt: skip


def released_vqgan_name(ours: str) -> str:
    """The name in the released file of a weight of models/vqgan.py."""
    theirs = ours
    for pattern, replacement in RENAMED:
        theirs = re.sub(pattern, replacement, theirs)
    return re.sub(r"weight$", "scale" if "GroupNorm" in theirs else "kernel", theirs)


def ours_of(array: Array) -> Array:
    """An array of the released file in the order of axes that torch has: kernels HWIO -> OIHW."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def theirs_of(array: Array) -> Array:
    """The inverse of `ours_of`."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
