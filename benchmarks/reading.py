"""How fast frames are read: random training pairs with and without a cache, and labelling, against plain decoding.

    python benchmarks/reading.py
    python benchmarks/reading.py --watch 180           # resident memory of training from a stream, over time

Makes its own clips (a textured scene that pans, things that move in it, noise of a sensor) as h264 with long groups of
pictures, VP9, AV1 with a key frame every second frame, and JPEG shards (RLDS). In each round all are timed in turn:

    plain     PyAV decodes every clip from front to back and does nothing with the frames; JPEG shards: Pillow decodes
              the images in order. One thread.
    read      the same, made RGB and resized, as every reader of pixels has to
    pairs     training batches of random pairs from the shuffle buffer (data/buffer.py), as many threads as --threads
    cached    the same from a pack
    model     the labels of a LAQ (random weights: they do not change the time) of frames that are in memory
    label     the labels of a stream, from the files

and the table has frames a second (two for each pair), by the clock and by the CPU time of all threads, which a busy
machine disturbs less, and the median and range of ratios within rounds. The page cache is warm throughout: what is
measured is decoding and not the disk.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import google_crc32c
import numpy as np
from PIL import Image

from lapa.contracts import Array
from lapa.data.buffer import Buffer
from lapa.data.mixture import Mixture
from lapa.data.pack import Packed, pack
from lapa.data.pairs import PairIndex, pair_counts, window_offsets, window_pairs
from lapa.data.stream import Stream, forward, stream
from lapa.models.laq import LAQ
from lapa.recipe import preset

FPS, WINDOW, BATCH = 30, 0.6, 64
CODECS = {
    "h264": ("mp4", "libx264", {"crf": "23", "g": "250", "keyint_min": "250", "sc_threshold": "0"}),
    "vp9": ("webm", "libvpx-vp9", {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "6"}),
    "av1": ("mp4", "libsvtav1", {"crf": "32", "g": "2", "preset": "10"}),
}


# --- clips ----------------------------------------------------------------------------------------


def scene(frames: int, pixels: int, seed: int) -> Iterator[Array]:
    """Frames uint8 [pixels, pixels, 3] of a pan over a texture, with five textured squares that move."""
    rng = np.random.default_rng(seed)
    wide = _texture(rng, 3 * pixels)
    squares = [_texture(rng, pixels // 6) for _ in range(5)]
    place, speed = rng.uniform(0.2, 0.6, (5, 2)) * pixels, rng.normal(0, 1.5, (5, 2))
    for t in range(frames):
        x, y = (int(pixels * (1 + 0.9 * np.sin(t / period))) for period in (97, 143))
        frame = wide[y : y + pixels, x : x + pixels].astype(np.float32)
        for square, (at_y, at_x) in zip(squares, place, strict=True):
            side = len(square)
            frame[int(at_y) : int(at_y) + side, int(at_x) : int(at_x) + side] = square
        place += speed
        speed *= np.where((place < 0) | (place > pixels * 5 // 6 - 1), -1, 1)
        place = np.clip(place, 0, pixels * 5 // 6 - 1)
        yield np.clip(frame + rng.normal(0, 2, frame.shape), 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, pixels: int) -> Array:
    """Noise of several scales."""
    total = np.zeros((pixels, pixels, 3), np.float32)
    for cells in (4, 12, 40, 120):
        small = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), np.uint8))
        total += np.asarray(small.resize((pixels, pixels), Image.Resampling.BICUBIC), np.float32)
    return (total / 4).astype(np.uint8)


def make(folder: Path, kind: str, clips: int, frames: int, pixels: int) -> str:
    """Write the clips; returns the dataset's name."""
    folder.mkdir()
    if kind == "jpeg":
        return _shards(folder, clips, frames, pixels)
    suffix, codec, options = CODECS[kind]
    for clip in range(clips):
        with av.open(str(folder / f"{clip}.{suffix}"), "w") as container:
            track = container.add_stream(codec, rate=Fraction(FPS), options=options)
            track.width = track.height = pixels
            track.pix_fmt = "yuv420p"
            for picture in scene(frames, pixels, clip):
                container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(track.encode(None))
    return f"video_folder:{folder}"


def _shards(folder: Path, clips: int, frames: int, pixels: int) -> str:
    """Each clip as one record of JPEGs of quality 90."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            size, length = size >> 7, length + bytes([size & 127 | 128])
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    def checksum(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    with (folder / "made-train.tfrecord-00000-of-00001").open("wb") as file:
        for clip in range(clips):
            images = b"".join(field(1, _jpeg(picture)) for picture in scene(frames, pixels, clip))
            data = field(1, field(1, field(1, b"steps/observation/image") + field(2, field(1, images))))
            head = struct.pack("<Q", len(data))
            file.write(head + checksum(head) + data + checksum(data))
    shape = {"dimensions": [str(pixels), str(pixels), "3"]}
    image = {"image": {"shape": shape, "dtype": "uint8", "encodingFormat": "jpeg"}}
    step = {"featuresDict": {"features": {"observation": {"featuresDict": {"features": {"image": image}}}}}}
    tree = {"featuresDict": {"features": {"steps": {"sequence": {"feature": step}}}}}
    (folder / "features.json").write_text(json.dumps(tree))
    return f"rlds:{folder},fps={FPS}"


def _jpeg(picture: Array) -> bytes:
    held = io.BytesIO()
    Image.fromarray(picture).save(held, "JPEG", quality=90)
    return held.getvalue()


# --- what is timed --------------------------------------------------------------------------------


class Bench:
    """Everything that is timed of one kind of clips; each method returns how many frames it has read."""

    def __init__(self, spec: str, folder: Path, laq: LAQ, megabytes: int, threads: int) -> None:
        self.folder, self.laq, self.threads = folder, laq, threads
        size = laq.config.image_size
        self.stream: Stream = stream([spec], size, quiet=True)
        self.packed: Packed = pack([spec], size, quiet=True)
        self.pairs: PairIndex = window_pairs(self.packed, WINDOW)
        counts, reach = pair_counts(self.stream, WINDOW), window_offsets(self.stream.fps, WINDOW)
        self.buffer = Buffer(self.stream, counts, reach, seed=0, batch=BATCH, megabytes=megabytes, threads=threads)
        self.mixture, self.rng, self.step = Mixture(self.packed, self.pairs.episode), np.random.default_rng(0), 0
        self._held = [self.pairs.batch(self.packed, rows) for rows in self._batches()[:3]]
        self.settle()

    def settle(self) -> None:
        """Wait until nothing is decoded in the background."""
        self.buffer.begin(self.step)
        for future in list(self.buffer._held.values()):
            future.result()

    def plain(self) -> int:
        frames = 0
        if self.folder.name == "jpeg":
            for images in self._images():
                for image in images:
                    Image.open(io.BytesIO(image)).load()
                    frames += 1
        else:
            for path in sorted(self.folder.iterdir()):
                with av.open(str(path)) as container:
                    container.streams.video[0].codec_context.thread_count = 1
                    frames += sum(1 for _ in container.decode(video=0))
        return frames

    def _images(self) -> Iterator[list[bytes]]:
        from lapa.data.tfrecord import example, records

        for path in sorted(self.folder.glob("*.tfrecord*")):
            for record in records(path):
                assert isinstance(record, bytes)
                found = example(record)["steps/observation/image"]
                assert isinstance(found, list)
                yield found

    def read(self) -> int:
        return sum(1 for episode in range(self.stream.episodes) for _ in self.stream.frames(episode))

    def random_pairs(self, steps: int = 24) -> int:
        for _ in range(steps):
            self.step += 1
            self.buffer.begin(self.step)
            self.buffer.pairs(self.buffer.draw(self.rng, BATCH))
        self.settle()  # what was decoded ahead at the beginning is made up for
        return 2 * BATCH * steps

    def cached(self, steps: int = 100) -> int:
        for _ in range(steps):
            self.pairs.batch(self.packed, self.mixture.draw(self.rng, BATCH))
        return 2 * BATCH * steps

    def model(self) -> int:
        for pairs in self._held:
            self.laq.encode(pairs.now, pairs.later)
        return sum(len(pairs.frame) for pairs in self._held)

    def label(self) -> int:
        for _, pairs in forward(self.stream, self.pairs, self._batches(), self.threads, {}):
            self.laq.encode(pairs.now, pairs.later)
        return len(self.stream)

    def _batches(self) -> list[Array]:
        rows = np.arange(len(self.pairs))
        return np.split(rows, range(BATCH, len(rows), BATCH))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", default=[*CODECS, "jpeg"], choices=[*CODECS, "jpeg"])
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--frames", type=int, default=600, help="frames of a clip")
    parser.add_argument("--pixels", type=int, default=256, help="pixels a side of the clips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, default=512, help="MB of the shuffle buffer")
    parser.add_argument("--threads", type=int, default=1, help="that decode, in pairs and label")
    parser.add_argument("--watch", type=float, default=0, metavar="SECONDS", help="print resident memory instead")
    options = parser.parse_args()
    laq = LAQ(preset("video").laq).eval()
    with tempfile.TemporaryDirectory() as place:
        os.environ["LAPA_CACHE"] = str(Path(place, "cache"))
        for kind in options.kinds:
            folder = Path(place, kind)
            spec = make(folder, kind, options.clips, options.frames, options.pixels)
            size = sum(f.stat().st_size for f in folder.iterdir()) / options.clips / options.frames
            print(f"{kind}: {options.clips} clips of {options.frames} frames, {options.pixels} pixels, "
                  f"{size / 1000:.1f} kB a frame; read at {laq.config.image_size} pixels", flush=True)  # fmt: skip
            bench = Bench(spec, folder, laq, options.memory, options.threads)
            watch(bench, options.watch) if options.watch else table(bench, options.rounds)
            bench.buffer.close()


def table(bench: Bench, rounds: int) -> None:
    """All sides in turn, several rounds."""
    sides: dict[str, Callable[[], int]] = {
        "plain": bench.plain, "read": bench.read, "pairs": bench.random_pairs, "cached": bench.cached,
        "model": bench.model, "label": bench.label,
    }  # fmt: skip
    found = [{name: timed(side) for name, side in sides.items()} for _ in range(rounds)]
    print(f"  {'':<36}{'frames/s by the clock':<36}frames/s of CPU time")
    for name in sides:
        clock, cpu = (_spread([r[name][i] for r in found], ",.0f") for i in (0, 1))
        print(f"  {name:<36}{clock:<36}{cpu}", flush=True)
    ratios: dict[str, Callable[[dict[str, float]], float]] = {
        "pairs / plain": lambda r: r["pairs"] / r["plain"],
        "cached / plain": lambda r: r["cached"] / r["plain"],
        "label / slower of plain and model": lambda r: r["label"] / min(r["plain"], r["model"]),
        "label / both, one after the other": lambda r: r["label"] * (1 / r["read"] + 1 / r["model"]),
    }
    for name, ratio in ratios.items():
        both = (_spread([ratio({side: r[side][i] for side in sides}) for r in found], ".2f") for i in (0, 1))
        clock, cpu = both
        print(f"  {name:<36}{clock:<36}{cpu}", flush=True)


def timed(side: Callable[[], int]) -> tuple[float, float]:
    """Frames a second by the clock, and of the CPU time of all threads."""
    clock, cpu = time.perf_counter(), time.process_time()
    frames = side()
    return frames / (time.perf_counter() - clock), frames / (time.process_time() - cpu)


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def watch(bench: Bench, seconds: float) -> None:
    """Resident memory while batches are drawn, twenty times."""
    begin, told = time.monotonic(), 0
    while (passed := time.monotonic() - begin) < seconds:
        bench.random_pairs(4)
        if passed >= told * seconds / 20:
            status = Path("/proc/self/status").read_text()
            resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
            print(f"  {passed:6.0f} s  {bench.step:6} steps  {resident:7.0f} MB resident, {threading.active_count()} "
                  f"threads, {bench.buffer.frames_held} frames held", flush=True)  # fmt: skip
            told += 1


if __name__ == "__main__":
    main()
