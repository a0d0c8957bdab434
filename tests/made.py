"""Small data of every kind that lapa reads, made on the spot. The writers here are the tests' own: none is lapa's."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CODECS = {".webm": "libvpx-vp9", ".avi": "mpeg4", ".gif": "gif"}


def pictures(count: int, height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """uint8 [count, height, width, 3]: picture i is 20 i bright, with a white corner at the top left."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[:] = (np.arange(count) * 20 % 200 + seed)[:, None, None, None]
    frames[:, : height // 4, : width // 4] = 255
    return frames


def video(path: Path, frames: np.ndarray, fps: float = 10, times: Sequence[float] = (), turned: int = 0) -> Path:
    """A video file; `times` in seconds for a varying rate, `turned` degrees counterclockwise to be shown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            CODECS.get(path.suffix.lower(), "libx264"), rate=Fraction(fps).limit_denominator()
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb8" if path.suffix == ".gif" else "yuv420p"
        if turned:
            stream.set_display_rotation(turned)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times:
                frame.pts, frame.time_base = round(times[i] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def encoded(frame: np.ndarray, kind: str = "PNG") -> bytes:
    """An image file's bytes."""
    held = io.BytesIO()
    Image.fromarray(frame).save(held, kind)
    return held.getvalue()


# --- TFRecord, written as protobuf's documentation describes it


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(features: dict[str, Any], packed: bool = True) -> bytes:
    """tf.train.Example of lists of bytes, float arrays and integer arrays."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, list):
            listed = field(1, b"".join(field(1, item) for item in value))
        elif np.issubdtype(np.asarray(value).dtype, np.floating):
            raw = [struct.pack("<f", v) for v in np.ravel(value)]
            listed = field(2, field(1, b"".join(raw)) if packed else b"".join(b"\x0d" + r for r in raw))
        else:
            raw = [varint(int(v)) for v in np.ravel(value)]
            listed = field(3, field(1, b"".join(raw)) if packed else b"".join(b"\x08" + r for r in raw))
        entries += field(1, field(1, name.encode()) + field(2, listed))
    return field(1, entries)


def crc(data: bytes) -> bytes:
    value = google_crc32c.value(data)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def tfrecord(path: Path, examples: Iterable[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    heads = ((struct.pack("<Q", len(data)), data) for data in examples)
    path.write_bytes(b"".join(head + crc(head) + data + crc(data) for head, data in heads))
    return path


def tensor(shape: Sequence[int], dtype: str = "float32") -> dict[str, Any]:
    return {"tensor": {"shape": {"dimensions": [str(d) for d in shape]}, "dtype": dtype, "encoding": "none"}}


def image(encoding: str = "png") -> dict[str, Any]:
    return {"image": {"shape": {"dimensions": ["24", "32", "3"]}, "dtype": "uint8", "encodingFormat": encoding}}


def features_json(steps: dict[str, Any], old: bool = False) -> dict[str, Any]:
    """A features.json of TFDS, as it is written now or, `old`, with the tree as text."""

    def folded(tree: dict[str, Any]) -> dict[str, Any]:
        leaf = {"tensor", "image", "text", "sequence"} & set(tree)
        return tree if leaf else {"featuresDict": {"features": {k: folded(v) for k, v in tree.items()}}}

    tree = {"featuresDict": {"features": {"steps": {"sequence": {"feature": folded(steps), "length": "-1"}}}}}
    return {"type": "x.FeaturesDict", "content": json.dumps(tree["featuresDict"])} if old else tree


def rlds(root: Path, lengths: Sequence[int] = (4, 5), name: str = "bridge_small", shards: int = 1) -> Path:
    """Episodes with two cameras, action, state and instruction."""
    seen = {"image_1": image(), "image_0": image("jpeg"), "wrist": image(), "state": tensor([2])}
    steps = {"action": tensor([3]), "language_instruction": {"text": {}}, "is_first": tensor([], "bool")}
    steps["observation"] = seen
    examples = []
    for number, length in enumerate(lengths):
        frames = pictures(length, seed=number)
        examples.append(example({
            "steps/action": np.arange(length * 3, dtype=np.float32) + number,
            "steps/observation/state": -np.arange(length * 2, dtype=np.float32),
            "steps/observation/image_0": [encoded(f, "JPEG") for f in frames],
            "steps/observation/image_1": [encoded(f) for f in frames],
            "steps/observation/wrist": [encoded(f) for f in np.zeros_like(frames)],
            "steps/language_instruction": [b"", *[f"push block {number}".encode()] * (length - 1)],
            "steps/is_first": np.arange(length) == 0,
        }))  # fmt: skip
    held = [examples[shard::shards] for shard in range(shards)]
    for shard, some in enumerate(held):
        tfrecord(root / f"{name}-train.tfrecord-{shard:05d}-of-{shards:05d}", some)
    (root / "features.json").write_text(json.dumps(features_json(steps)))
    split = {"name": "train", "shardLengths": [str(len(some)) for some in held]}
    (root / "dataset_info.json").write_text(json.dumps({"name": name, "splits": [split]}))
    return root


def lerobot_v21(root: Path, lengths: Sequence[int] = (4, 6), chunk: int = 1000) -> Path:
    """LeRobot v2.1: a parquet and an mp4 per episode and camera."""
    cameras = ("observation.images.wrist", "observation.images.top")
    feature = {"dtype": "video", "shape": [3, 24, 32], "names": ["channels", "height", "width"], "info": {}}
    vectors = {"action": 2, "observation.state": 3}
    info = {
        "codebase_version": "v2.1", "fps": 10, "chunks_size": chunk, "robot_type": "so100", "surprise": 1,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {**{camera: feature for camera in cameras},
                     **{k: {"dtype": "float32", "shape": [d], "names": None} for k, d in vectors.items()}},
    }  # fmt: skip
    meta = root / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps(info))
    tasks = ["lift the cup", "drop it"]
    (meta / "tasks.jsonl").write_text(
        "".join(json.dumps({"task_index": i, "task": t}) + "\n" for i, t in enumerate(tasks))
    )
    rows = []
    for e, length in enumerate(lengths):
        at = {"episode_chunk": e // chunk, "episode_index": e}
        columns = {
            k: pa.array(list(np.arange(length * d, dtype=np.float32).reshape(length, d) + e))
            for k, d in vectors.items()
        }
        columns |= {"episode_index": pa.array([e] * length), "task_index": pa.array([e % 2] * length)}
        path = root / info["data_path"].format(**at)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        for c, camera in enumerate(cameras):
            video(root / info["video_path"].format(video_key=camera, **at), pictures(length, seed=30 * c))
        rows.append(json.dumps({"episode_index": e, "tasks": [tasks[e % 2]], "length": length}))
    (meta / "episodes.jsonl").write_text("\n".join(rows) + "\n")
    return root


def frame_folders(root: Path, names: Sequence[str] = ("lift_cup", "more/turn_lever"), count: int = 12) -> Path:
    """Folders of img_0.png, img_1.png, ..., img_10.png, ..."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i, frame in enumerate(pictures(count, seed=number)):
            (root / name / f"img_{i}.png").write_bytes(encoded(frame))
    return root


def something(root: Path) -> Path:
    """Three clips of Something-Something V2: two of train, one of validation."""
    rows = {
        "train": [
            {"id": "7", "label": "holding it", "template": "Holding [something] next to [something]",
             "placeholders": ["a cup", "a red box"]},
            {"id": "12", "label": "pushing a pen", "template": "Pushing [something] [somewhere]",
             "placeholders": ["a pen"]},
        ],
        "validation": [{"id": "3", "template": "Dropping [part of something]", "placeholders": ["a lid"]}],
    }  # fmt: skip
    (root / "labels").mkdir(parents=True)
    for split, clips in rows.items():
        (root / f"labels/{split}.json").write_text(json.dumps(clips))
        for clip in clips:
            video(root / f"20bn-something-something-v2/{clip['id']}.webm", pictures(6), 12)
    (root / "labels/labels.json").write_text(json.dumps({"Holding something next to something": "0"}))
    return root


def jsonl(root: Path, what: str = "raw_actions", count: int = 5) -> Path:
    """Two episodes of the released LAPA code's jsonl, rows shuffled, images beside it."""
    frame_folders(root, ("demo/episode_0", "demo/episode_1"), count)
    prompt = "<s> You are a helpful assistant. USER: What action should the robot take to `lift cup {}` ASSISTANT:"
    rows = []
    for episode in range(2):
        for i in range(count):
            value = [str(i), "0", "3", "1"] if what == "delta" else [i / 10, 0, 0, 0, 0, 0, float(episode)]
            row = {"id": f"demo/episode_{episode}/step_{i}", "image": f"demo/episode_{episode}/img_{i}.png"}
            rows.append({**row, "instruction": prompt.format(episode), what: value, "vision": [1, 2], "fields": "x"})
    np.random.default_rng(0).shuffle(rows)
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "data.jsonl"
