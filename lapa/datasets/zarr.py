"""Zarr stores of Diffusion Policy and UMI: arrays of all episodes, one behind the other, and where each ends.

    data/img or data/camera0_rgb, data/action, data/state ..    a row for each frame
    meta/episode_ends                                            int [episodes]: the row after the last of each

A store is a folder or a zip (UMI's .zarr.zip, whose pictures are JPEG XL: they need the package imagecodecs). Stores
of zarr's formats 2 and 3 are read. An array whose values would have to be unpickled is not.
"""

from __future__ import annotations

import math
import os
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lapa.contracts import ActionKind, BadVideo, Episode, LapaError
from lapa.data.arrays import CHUNK, Array, Recording, Rows, guarded, spans_of
from lapa.data.folders import listing_hash, no_files, printable, readable
from lapa.data.groups import beside_note, episodes_among, refuse_unclear
from lapa.data.images import number_of
from lapa.data.installed import needed
from lapa.data.json_files import parsed
from lapa.data.recordings import PUSHT, READ, ArrayOptions, Place, Recordings, rate_in

ENDS, BESIDE = "meta/episode_ends", "episode_ends"  # where episodes end; the second where the first is not there
NODES = (".zarray", ".zgroup", "zarr.json")  # what describes an array or a group; its attributes lie in .zattrs too
CODECS = {  # what does not run code of the file's
    *("blosc", "zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "delta", "shuffle", "fixedscaleoffset", "quantize"),
    *("packbits", "astype", "bitround", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "vlen-bytes"),
    *("vlen-array", "vlen-utf8", "bytes", "transpose", "sharding_indexed", "endian"),
}
PICTURES = "imagecodecs_"  # codecs of the package imagecodecs begin so
RATES = ("fps", "control_freq", "frequency", "hz")
UMI = 59.94  # Hz: the GoPro's, as UMI's config/task/umi.yaml has it
DESCRIBED = 1 << 20  # bytes of a description; more is taken for damage


@dataclass(frozen=True)
class Config(ArrayOptions):
    """`path` is a store (a folder, .zarr or .zarr.zip) or a folder of stores; `camera` an array of pictures; `action`
    and `state` other arrays than the usual ones, several joined with "+" (none: leave it out; action=next_state: the
    next state is the action, as where there is no action); `instruction` an attribute; `fps` the rate, where the store
    does not say it; `ends` the array of where episodes end; `rotate` (degrees clockwise), `flip` (rows, columns, none)
    and `colours` (rgb, bgr) where pictures are not upright or not RGB."""

    ends: str = ENDS

    def build(self) -> Zarr:
        """List the episodes of every store. Raises LapaError when there are none, or zarr is not installed."""
        needed("zarr", "zarr")
        root = Path(self.path).expanduser()
        if not root.exists():
            raise LapaError(f"Zarr data: {root} does not exist. Check the path.")
        stores = [root] if _is_store(root) else _stores_below(root)
        if not stores:
            raise LapaError(f"{root}: is no zarr store and holds none. A store has .zgroup or zarr.json in it, or is a "
                            "zip of such a folder.")  # fmt: skip
        return Zarr(root, stores, self)


class OtherArray(BadVideo):
    """An array that is not read, beside others that are."""


class Zarr(Recordings):
    """Store after store, episodes in the order of their rows."""

    def __init__(self, root: Path, stores: list[Path], config: Config) -> None:
        self.root, self.stores, self._config = root, stores, config
        self._lock, self._open = threading.Lock(), dict[Path, tuple[Store, dict[str, Rows]]]()
        self._unread: dict[str, str] = {}
        self._rest: dict[Path, str] = {}  # a note on rows and arrays of no episode
        places: list[Place | BadVideo] = []
        for store in stores:
            try:
                places += self._listed(store)
            except BadVideo as bad:
                places.append(bad)
        super().__init__(f"zarr:{config.path}", places, config)

    def signature(self) -> str:
        """A hash of the names, sizes and times of all files."""
        files = [file for store in self.stores for file in _files_of(store)]
        return f"{listing_hash(self.root.parent, files)}{self.camera} {READ}"

    def _listed(self, path: Path) -> list[Place | BadVideo]:
        name = printable(path)
        own = path.relative_to(self.root).as_posix() if len(self.stores) > 1 else path.name
        own = own.removesuffix(".zip").removesuffix(".zarr")
        store, arrays = self._held(path)
        said = self._ends(store)
        if said not in store.arrays:
            if said != ENDS:
                raise LapaError(f"{name}: has no array {said}. It has {', '.join(store.arrays)}.")
            return self._of_groups(own, path)
        ends = store.array(said)
        with guarded(f"{name}, {said}"):
            if math.prod(ends.shape) > 1 << 24:
                raise BadVideo(f"{name}, {said}: says that it has {ends.shape} entries.")
            ends.require(0, ends.shape[0] if ends.shape else 0)
            spans = spans_of(np.asarray(ends[:]), f"{name}, {said}")
            stop = max((span[0] + span[1] for span in spans if not isinstance(span, BadVideo)), default=0)
            if (rest := max((array.shape[0] for array in arrays.values() if array.shape), default=0) - stop) > 0:
                self._rest[path] = f"not read: {rest} rows of {name} behind the end of the last episode"
        return [
            span if isinstance(span, BadVideo) else Place(self._id(own, f"episode_{i}"), path, "", span[0], span[1])
            for i, span in enumerate(spans)
        ]

    def _ends(self, store: Store) -> str:
        """The array of where episodes end."""
        usual = self._config.ends == ENDS and ENDS not in store.arrays and BESIDE in store.arrays
        return BESIDE if usual else self._config.ends

    def _of_groups(self, own: str, path: Path) -> list[Place | BadVideo]:
        """The episodes of a store that does not say where they end: its groups, or one."""
        name = printable(path)
        store, arrays = self._held(path)
        groups, beside = ([], []) if self._config.camera in arrays else episodes_among(arrays, name)
        if groups:
            self._rest[path] = beside_note(beside)
            last = [group.rpartition("/")[2] for group in groups]
            ids = last if len(set(last)) == len(last) else groups
            return [Place(self._id(own, one), path, group) for one, group in zip(ids, groups, strict=True)]
        if store.has_data and store.has_meta:
            raise BadVideo(f"{name}: lacks {ENDS}, where episodes end. Copy the store again, or say it with ends=.")
        if self._config.camera not in arrays:
            refuse_unclear(arrays, name, "Give each as a dataset of its own if they are episodes")
        return [Place(own, path)]

    def _id(self, store: str, episode: str) -> str:
        return episode if self.stores == [self.root] else f"{store}/{episode}"

    def _problems(self) -> Iterator[BadVideo]:
        yield from [] if self.stores == [self.root] else no_files(self.root, (".zarr.zip",))

    @contextmanager
    def _opened(self, place: Place) -> Iterator[Recording]:
        where = f"{printable(place.file)}, {place.group or place.id.rpartition('/')[2]}"
        store, arrays = self._held(place.file)
        inside = "/".join(filter(None, ["data" if store.has_data else "", place.group]))
        if place.group:
            start = f"{place.group}/"
            arrays = {name.removeprefix(start): rows for name, rows in arrays.items() if name.startswith(start)}
        notes = tuple(f"not read: {why}" for why in list(self._unread.values())[:1])
        notes += (self._rest[place.file],) if self._rest.get(place.file) else ()
        yield Recording(place.id, where, arrays, place.first, place.length, store.attributes(inside), notes)

    def _episode(self, place: Place, recording: Recording) -> Episode:
        episode = super()._episode(place, recording)
        last = place.first + len(episode.frames)
        arrays = {name: recording.arrays[name] for name in self._fields(recording)[1:]}
        filled = [
            name
            for name, array in arrays.items()
            if isinstance(array, StoredRows) and any(array.absent(place.first, last))
        ]
        note = f"chunks that are not stored are read as the fill value: {', '.join(filled)} (as zarr has it; if files "
        note += "were lost, copy the store again)"
        return replace(episode, notes=(*episode.notes, note)) if filled else episode

    def _held(self, path: Path) -> tuple[Store, dict[str, Rows]]:
        """A store, opened once, and its arrays of frames."""
        with self._lock:
            if path not in self._open:
                store, arrays = _opened(path), dict[str, Rows]()
                for name in store.arrays:
                    of_frames = not name.startswith("meta/") and name != self._ends(store)
                    if of_frames and name.startswith("data/" if store.has_data else ""):
                        try:
                            arrays[name.removeprefix("data/")] = store.array(name)
                        except OtherArray as why:
                            self._unread.setdefault(name, str(why))
                self._open[path] = store, arrays
            return self._open[path]

    # --- what stores say of themselves

    def _told_rate(self, recording: Recording) -> tuple[float, str] | None:
        for name in RATES:
            if rate := rate_in(recording.about.get(name)):
                return rate, f"as the attribute {name} says"
        return None

    def _usual_rate(self, recording: Recording) -> tuple[float, str] | None:
        if {"camera0_rgb", "robot0_eef_pos"} <= recording.arrays.keys():
            return UMI, "that of UMI's cameras, which the store does not say; fps= says another"
        if recording.arrays.keys() >= PUSHT:
            return 10.0, "that of PushT, which the store does not say; fps= says another"
        return None

    def _told_kinds(self, recording: Recording, action: Sequence[str], width: int) -> tuple[ActionKind, ...]:
        """Those of PushT: where on the picture to go."""
        absolute: ActionKind = "absolute"
        return (absolute,) * width if recording.arrays.keys() >= PUSHT and list(action) == ["action"] else ()

    def _told_instruction(self, place: Place, recording: Recording) -> tuple[list[str], str]:
        wanted, about = self._config.instruction, recording.about
        for name in [wanted] if wanted else ["language_instruction", "instruction", "task", "prompt"]:
            told = about.get(name)
            several = told if isinstance(told, list) else [told]  # that say the same in other words
            if said := next((text for text in several if isinstance(text, str) and text), ""):
                return [said], f"the attribute {name}"
        if wanted:
            raise BadVideo(f"{recording.where}: the store has no attribute {wanted} with text.")
        return [], ""

    def _told_robot(self, about: Mapping[str, Any]) -> str:
        return next((about[key] for key in ("robot_type", "robot") if isinstance(about.get(key), str)), "")

    def _advice(self) -> str:
        return next((f"Not read: {why}" for why in self._unread.values()), "")


# --- stores


class Store:
    """An open store: its arrays by path. Names are those of its files, read once."""

    def __init__(self, path: Path, held: Any, files: Iterable[str], read: Any) -> None:
        self._path, self._held, self._read = path, held, read
        names = sorted(files)
        if odd := [name for name in names if not name.isprintable()]:
            raise BadVideo(f"{printable(path)}: is damaged, a name in it is {odd[0]!r:.80}.")
        tops = {name.partition("/")[0] for name in names}
        roots = [""] if tops & set(NODES) else [f"{top}/" for top in tops if any(f"{top}/{n}" in names for n in NODES)]
        self._root = roots[0] if len(roots) == 1 else ""  # a zip of a folder has its name before all others
        self._files = {name.removeprefix(self._root) for name in names if name.startswith(self._root)}
        described = [name for name in self._files if name.rpartition("/")[2] in (".zarray", "zarr.json")]
        self._told = {name.rpartition("/")[0]: name for name in described}
        self.has_meta = any(name.startswith("meta/") for name in self._files)
        self.has_data = any(name.startswith("data/") for name in self._told)
        for name in self._files:
            if name.rpartition("/")[2] in (".zgroup", ".zattrs", "zarr.json"):
                self._json(name)
        self.arrays = sorted((name for name in self._told if name and self._is_array(name)), key=_by_numbers)

    def described(self, name: str) -> dict[str, Any]:
        """The description of an array. Raises BadVideo."""
        return self._json(self._told[name])

    def attributes(self, group: str) -> dict[str, Any]:
        """Those of the store, and of a group in it and those above, the group's own before the others."""
        found: dict[str, Any] = {}
        words = group.split("/")
        for holder in dict.fromkeys(("", *("/".join(words[: n + 1]) for n in range(len(words))))):
            start = f"{holder}/" if holder else ""
            if f"{start}.zattrs" in self._files:
                found |= self._json(f"{start}.zattrs")
            if f"{start}zarr.json" in self._files:
                inside = self._json(f"{start}zarr.json").get("attributes")
                found |= inside if isinstance(inside, dict) else {}
        return found

    def array(self, name: str) -> StoredRows:
        """An array, to be read by rows. Raises BadVideo for one that is not what it says, and for one that is
        pickled."""
        import zarr

        where = f"{printable(self._path)}, {name}"
        about = self.described(name)
        if f"{name}/.zattrs" in self._files:
            self._json(f"{name}/.zattrs")
        codecs = list(_codecs(about))
        for codec in codecs:
            if codec.startswith(PICTURES):
                _register(where)
            elif codec not in CODECS:
                what = (
                    "pickled, and lapa unpickles nothing" if codec == "pickle" else f"kept with the codec {codec:.40}"
                )
                raise OtherArray(f"{where}: is {what}.")
        with guarded(where):
            shape, chunk = _shapes(about)
            held = zarr.open_array(store=self._held, path=f"{self._root}{name}", mode="r")
            if held.dtype.kind == "O" and not set(codecs) & {"vlen-bytes", "vlen-utf8", "vlen-array"}:
                raise OtherArray(f"{where}: is of objects, which are not read.")
            if tuple(held.shape) != shape or math.prod(chunk) * held.dtype.itemsize > CHUNK:
                raise BadVideo(f"{where}: says that it has chunks of {list(chunk)}.")
        return StoredRows(held, chunk, frozenset(self._files), name, about, where)

    def _is_array(self, name: str) -> bool:
        if self._told[name].endswith(".zarray"):
            return True
        with suppress(BadVideo):
            return self._json(self._told[name]).get("node_type") == "array"
        return True  # damaged: whoever wants it is told

    def _json(self, name: str) -> dict[str, Any]:
        where = f"{printable(self._path)}, {name}"
        with guarded(where):
            found = parsed(self._read(f"{self._root}{name}"), where)
        if not isinstance(found, dict):
            raise BadVideo(f"{where}: is no JSON object.")
        return found


@dataclass(frozen=True)
class StoredRows:
    """An array of a store. A chunk that is not there is read as the fill value, as still joints may give; pictures
    are never that, so such are refused: most probably the store was not copied whole."""

    held: Any
    chunk: tuple[int, ...]
    files: frozenset[str]
    name: str
    about: Mapping[str, Any]
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.held.shape)

    @property
    def dtype(self) -> Any:
        return self.held.dtype

    def __getitem__(self, rows: slice) -> Array:
        first, last, _ = rows.indices(self.shape[0] if self.shape else 0)
        if len(self.shape) == 4:
            self.require(first, last)
        try:
            return np.asarray(self.held[first:last])
        except Exception:  # whatever a codec raises: it is raised again, by the chunk's name if one is to blame
            for at in range(first // self.chunk[0] * self.chunk[0], last, self.chunk[0]):  # which of them is it?
                with guarded(
                    f"{self.where}: the file {self._key([at // self.chunk[0], *[0] * (len(self.chunk) - 1)])}"
                ):
                    self.held[at : at + 1]
            raise

    def require(self, first: int, last: int) -> None:
        """Raises BadVideo where a chunk of rows first : last is not there."""
        if absent := next(self.absent(first, last), None):
            raise BadVideo(f"{self.where}: the file {absent} is missing. Copy the store again; if it was written "
                           "without empty chunks, write it with them.")  # fmt: skip

    def absent(self, first: int, last: int) -> Iterator[str]:
        """Files of the chunks of rows first : last that are not there."""
        if last <= first:
            return
        counts = [math.ceil(length / step) for length, step in zip(self.shape, self.chunk, strict=True)]
        for place in product(range(first // self.chunk[0], (last - 1) // self.chunk[0] + 1), *map(range, counts[1:])):
            key = self._key(place)
            if key not in self.files:
                yield key

    def _key(self, place: Sequence[int]) -> str:
        coding = self.about.get("chunk_key_encoding")
        if not isinstance(coding, dict):
            return f"{self.name}/" + str(self.about.get("dimension_separator") or ".").join(map(str, place))
        inside = coding.get("configuration")
        usual = "/" if coding.get("name") == "default" else "."
        between = str((inside if isinstance(inside, dict) else {}).get("separator", usual))
        start = ["c"] if coding.get("name") == "default" else []
        return f"{self.name}/" + between.join([*start, *map(str, place)])


def _opened(path: Path) -> Store:
    """Open a folder or a zip as a store, until the end of the process. Raises BadVideo."""
    import zarr.storage

    where = printable(path)
    if path.is_dir():
        if odd := [
            Path(here, name) for here, names, _ in os.walk(path) for name in names if name in (*NODES, ".zattrs")
        ]:
            raise BadVideo(f"{printable(odd[0])}: is a folder and no description.")
        named = {file.relative_to(path).as_posix(): readable(file) for file in _files_of(path)}
        if lost := [file for file in named.values() if not file.exists()]:
            raise BadVideo(f"{printable(lost[0])}: is a link to nowhere.")
        with guarded(where, "cannot be opened as zarr"):
            return Store(path, str(path), named, lambda name: _bytes(named[name]))
    with guarded(where, "cannot be opened as a zip"):
        archive = zipfile.ZipFile(readable(path))
        for info in archive.infolist():
            if info.file_size > CHUNK:
                member = "".join(filter(str.isprintable, info.filename))[:80]
                raise BadVideo(f"{where}: {member} says that it has {info.file_size} bytes.")
        store = zarr.storage.ZipStore(str(path), mode="r")
        return Store(path, store, archive.namelist(), lambda name: _unzipped(archive, name))


def _bytes(file: Path) -> bytes:
    if file.stat().st_size > DESCRIBED:
        raise ValueError(f"a description of {file.stat().st_size} bytes")
    return file.read_bytes()


def _unzipped(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > DESCRIBED:
        raise ValueError(f"a description of {archive.getinfo(name).file_size} bytes")
    return archive.read(name)


def _codecs(about: Mapping[str, Any]) -> Iterator[str]:
    """The codecs that a description names, those inside of others too."""
    todo: list[Any] = [about.get("compressor"), about.get("filters"), about.get("codecs")]
    while todo:
        one = todo.pop()
        if isinstance(one, list):
            todo += one
        elif isinstance(one, dict):
            name = one.get("id", one.get("name"))
            yield str(name).removeprefix("numcodecs.")
            inside = one.get("configuration")
            todo += [inside.get("codecs"), inside.get("index_codecs")] if isinstance(inside, dict) else []
        elif isinstance(one, str):
            yield one.removeprefix("numcodecs.")


def _shapes(about: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of an array and of its chunks. Raises ValueError for what is none."""
    grid = about.get("chunk_grid")
    chunk = grid["configuration"]["chunk_shape"] if isinstance(grid, dict) else about["chunks"]
    shape = about["shape"]
    for lengths in (shape, chunk):
        if not isinstance(lengths, list) or not all(type(n) is int and 0 <= n < 1 << 48 for n in lengths):
            raise ValueError(f"a shape of {lengths!r:.60}")
    if len(shape) != len(chunk) or 0 in chunk:
        raise ValueError(f"chunks of {chunk} of an array of {shape}")
    return tuple(shape), tuple(chunk)


def _register(where: str) -> None:
    """The codecs of imagecodecs. Raises BadVideo where it is not installed."""
    try:
        from imagecodecs.numcodecs import register_codecs
    except ImportError:
        raise OtherArray(f'{where}: its pictures need the package imagecodecs: pip install "lapa[zarr]"') from None
    register_codecs(verbose=False)


def _by_numbers(name: str) -> tuple[Any, ...]:
    return (name.rpartition("/")[0], number_of(name))


def _is_store(path: Path) -> bool:
    return path.is_file() or any((path / node).exists() for node in NODES)


def _stores_below(root: Path) -> list[Path]:
    """Folders and zips of stores in a folder, to any depth."""
    found = []
    for here, folders, files in os.walk(root):
        stores = [name for name in folders if _is_store(Path(here, name))]
        found += [Path(here, name) for name in stores]
        found += [Path(here, name) for name in files if name.endswith((".zarr.zip", ".zarr"))]
        folders[:] = [name for name in folders if name not in stores and not name.startswith(".")]
    return sorted(found, key=lambda path: (path.parent, number_of(path)))


def _files_of(store: Path) -> list[Path]:
    if store.is_file():
        return [store]
    return sorted(Path(here, name) for here, _, names in os.walk(store) for name in names)
