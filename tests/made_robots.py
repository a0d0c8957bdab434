"""Small robot data in HDF5, zarr, MCAP and tar files, made with those formats' own writers after the layouts that the
projects document. Beside made.py, whose pictures they show."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import made
import numpy as np

from lapa.contracts import Episode
from lapa.data.spec import open_dataset

ROBOSUITE = {
    "env_name": "Lift",
    "type": 1,
    "env_kwargs": {
        "robots": ["Panda"], "control_freq": 20, "controller_configs": {"type": "OSC_POSE", "control_delta": True},
    },
}  # fmt: skip


def read(spec: str, size: int | None = None) -> list[Any]:
    """What a dataset gives: episodes and BadVideo."""
    return list(open_dataset(spec).episodes(size))


def good(spec: str, size: int | None = None) -> list[Episode]:
    """The same, where nothing is bad."""
    episodes = read(spec, size)
    assert [e for e in episodes if not isinstance(e, Episode)] == []
    return episodes


def vectors(length: int, width: int, seed: int = 0) -> np.ndarray:
    """float64 [length, width]: row i is i + seed, i + seed + .1, .."""
    return np.arange(length)[:, None] + np.arange(width) / 10 + seed


def robomimic(file: Path, lengths: Sequence[int] = (4, 5, 6), **more: Any) -> Path:
    """As dataset_states_to_obs.py of robomimic writes it; `more` are attributes of data."""
    import h5py

    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as out:
        data = out.create_group("data")
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            actions = vectors(length, 7, number)
            actions[:, 6] = np.where(np.arange(length) > length // 2, 1, -1)
            demo["actions"], demo["states"] = actions, vectors(length, 3)
            demo["rewards"] = demo["dones"] = np.zeros(length)
            for group in ("obs", "next_obs"):
                for camera, seed in (("agentview_image", 0), ("robot0_eye_in_hand_image", 30)):
                    pictures = made.pictures(length, seed=seed + number)
                    demo.create_dataset(f"{group}/{camera}", data=pictures, compression="gzip")
                demo[f"{group}/agentview_depth"] = np.zeros((length, 24, 32, 1), np.float32)
                for name, width in (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("robot0_gripper_qpos", 2)):
                    demo[f"{group}/{name}"] = vectors(length, width, number)
            demo.attrs["num_samples"] = length
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps(ROBOSUITE)
        for name, value in more.items():
            data.attrs[name] = value
        names = [f"demo_{number}".encode() for number in range(len(lengths))]
        out["mask/train"], out["mask/valid"] = np.array(names[1:]), np.array(names[:1])
    return file


def libero(file: Path, lengths: Sequence[int] = (4, 5), language: str | None = "put the bowl on the plate") -> Path:
    """As create_dataset.py of LIBERO writes it: pictures with the lowest row first, and the attribute that says so."""
    import h5py

    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as out:
        data = out.create_group("data")
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo["actions"], demo["states"] = vectors(length, 7, number), vectors(length, 5)
            demo["robot_states"] = vectors(length, 9)
            for camera, seed in (("agentview_rgb", 0), ("eye_in_hand_rgb", 30)):
                demo[f"obs/{camera}"] = made.pictures(length, seed=seed + number)[:, ::-1]
            for name, width in (("ee_states", 6), ("ee_pos", 3), ("gripper_states", 2), ("joint_states", 7)):
                demo[f"obs/{name}"] = vectors(length, width, number)
            demo.attrs["num_samples"], demo.attrs["init_state"] = length, np.zeros(5)
        problem = {"problem_name": "libero_kitchen", "domain_name": "robosuite"}
        if language:
            problem["language_instruction"] = language
        data.attrs["problem_info"] = json.dumps(problem)
        data.attrs["bddl_file_name"] = "bddl_files/libero_90/x.bddl"
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["env_args"] = json.dumps(ROBOSUITE)
    return file


def aloha(root: Path, lengths: Sequence[int] = (4, 5), coded: bool = False) -> Path:
    """As record_sim_episodes.py of ACT writes it, an episode a file; `coded` as JPEG filled up with zeros."""
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    for number, length in enumerate(lengths):
        with h5py.File(root / f"episode_{number}.hdf5", "w") as out:
            out.attrs["sim"] = not coded
            for camera, seed in (("cam_high", 0), ("cam_left_wrist", 30)):
                pictures = made.pictures(length, seed=seed + number)
                path = f"observations/images/{camera}"
                if coded:
                    rows = [made.encoded(picture, "JPEG") for picture in pictures]
                    filled = max(map(len, rows)) + 100
                    out[path] = np.stack([np.frombuffer(row.ljust(filled, b"\0"), np.uint8) for row in rows])
                else:
                    out.create_dataset(path, data=pictures, chunks=(1, *pictures.shape[1:]))
            if coded:
                out.attrs["compress"] = True
                out["compress_len"] = np.ones((2, length))
            qpos = vectors(length, 14, number)
            out["observations/qpos"], out["observations/qvel"], out["action"] = qpos, qpos * 0, qpos + 0.01
    return root


def diffusion_policy(path: Path, lengths: Sequence[int] = (4, 5, 6), form: int = 2, **arrays: np.ndarray) -> Path:
    """As ReplayBuffer.save_to_path writes it, in zarr's format 2 or 3; `arrays` instead of those of PushT."""
    import numcodecs
    import zarr

    total = sum(lengths)
    pictures = np.concatenate([made.pictures(length, seed=n) for n, length in enumerate(lengths)])
    kept = arrays or {
        "img": pictures.astype(np.float32), "state": vectors(total, 5), "action": vectors(total, 2) + 0.5,
        "keypoint": np.zeros((total, 9, 2)) + 1, "n_contacts": np.ones((total, 1)),
    }  # fmt: skip
    root = zarr.open_group(str(path), mode="w", zarr_format=form)
    for name, array in {**{f"data/{n}": a for n, a in kept.items()}, "meta/episode_ends": np.cumsum(lengths)}.items():
        how: dict[str, Any] = {"compressors": [numcodecs.Blosc("zstd", 5)]} if form == 2 else {}
        chunk = (3, *array.shape[1:]) if array.ndim > 1 else array.shape
        made_array = root.create_array(name, shape=array.shape, chunks=chunk, dtype=array.dtype, **how)
        made_array[:] = array
    return path


def umi(path: Path, lengths: Sequence[int] = (4, 5)) -> Path:
    """As 07_generate_replay_buffer.py of UMI writes it: a zip, a picture a chunk, coded as JPEG XL. Written by hand,
    for its codec is a class of its own; without loss, for the pixels to be compared."""
    import zipfile

    import imagecodecs

    total = sum(lengths)
    pictures = np.concatenate([made.pictures(length, seed=n) for n, length in enumerate(lengths)])
    codec = {
        "id": "imagecodecs_jpegxl", "level": 99, "numthreads": 1, "distance": None, "decodingspeed": None,
        "effort": None, "lossless": None, "index": None, "keeporientation": None, "photometric": None, "planar": None,
        "usecontainer": None,
    }  # fmt: skip
    plain = {
        "robot0_eef_pos": vectors(total, 3), "robot0_eef_rot_axis_angle": vectors(total, 3, 50),
        "robot0_gripper_width": vectors(total, 1, 90), "robot0_demo_start_pose": np.zeros((total, 6)),
    }  # fmt: skip

    def described(array: np.ndarray, chunk: Sequence[int], compressor: Any) -> str:
        return json.dumps({
            "zarr_format": 2, "shape": array.shape, "chunks": chunk, "dtype": array.dtype.str, "order": "C",
            "compressor": compressor, "fill_value": 0, "filters": None,
        })  # fmt: skip

    with zipfile.ZipFile(path, "w") as out:
        for group in ("", "data/", "meta/"):
            out.writestr(f"{group}.zgroup", json.dumps({"zarr_format": 2}))
        out.writestr("data/camera0_rgb/.zarray", described(pictures, (1, *pictures.shape[1:]), codec))
        for number, picture in enumerate(pictures):
            out.writestr(f"data/camera0_rgb/{number}.0.0.0", imagecodecs.jpegxl_encode(picture, lossless=True))
        ends = np.cumsum(lengths).astype(np.int64)
        for name, array in {**{f"data/{n}": a.astype(np.float32) for n, a in plain.items()},
                            "meta/episode_ends": ends}.items():  # fmt: skip
            out.writestr(f"{name}/.zarray", described(array, array.shape, None))
            out.writestr(f"{name}/" + ".".join("0" * array.ndim), array.tobytes())
    return path


# --- ROS

TIME = """================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
HEADER = (
    """================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
"""
    + TIME
)
ROS2 = {
    "sensor_msgs/msg/JointState": "std_msgs/Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\n"
    "float64[] effort\n" + HEADER,
    "sensor_msgs/msg/CompressedImage": "std_msgs/Header header\nstring format\nuint8[] data\n" + HEADER,
    "sensor_msgs/msg/Image": "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\n"
    "uint8 is_bigendian\nuint32 step\nuint8[] data\n" + HEADER,
    "std_msgs/msg/String": "string data\n",
    "std_msgs/msg/Float32MultiArray": "MultiArrayLayout layout\nfloat32[] data\n" + "=" * 80 +
    "\nMSG: std_msgs/MultiArrayLayout\nMultiArrayDimension[] dim\nuint32 data_offset\n" + "=" * 80 +
    "\nMSG: std_msgs/MultiArrayDimension\nstring label\nuint32 size\nuint32 stride\n",
    "geometry_msgs/msg/Twist": "# a comment\nVector3 linear\nVector3 angular\n" + "=" * 80 +
    "\nMSG: geometry_msgs/Vector3\nfloat64 x 1.5\nfloat64 y\nfloat64 z\nint32 K=3 # no field\n",
}  # fmt: skip


def stamp(seconds: float) -> dict[str, Any]:
    return {"stamp": {"sec": int(seconds), "nanosec": round(seconds % 1 * 1e9)}, "frame_id": "base"}


def raw_picture(picture: np.ndarray, seconds: float, encoding: str = "rgb8", pad: int = 0) -> dict[str, Any]:
    """sensor_msgs/Image, its rows filled up by `pad` bytes."""
    rows = picture.reshape(len(picture), -1)
    step = rows.shape[1] * rows.itemsize + pad
    data = np.pad(rows, ((0, 0), (0, pad))).tobytes() if pad else rows.tobytes()
    return {"header": stamp(seconds), "height": len(picture), "width": picture.shape[1], "encoding": encoding,
            "is_bigendian": 0, "step": step, "data": data}  # fmt: skip


Messages = Sequence[tuple[float, str, str, dict[str, Any]]]


def ros2(file: Path, messages: Messages, late: float = 0.0) -> Path:
    """A recording of ROS 2 by MCAP's own writer; messages are (seconds, topic, type, message), recorded `late` seconds
    after."""
    from mcap_ros2.writer import Writer

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        writer = Writer(out, chunk_size=4000)
        schemas = {kind: writer.register_msgdef(kind, ROS2[kind]) for kind in dict.fromkeys(m[2] for m in messages)}
        for number, (seconds, topic, kind, message) in enumerate(messages):
            writer.write_message(topic, schemas[kind], message, round((seconds + late) * 1e9), sequence=number)
        writer.finish()
    return file


def arm(frames: int = 6, begin: float = 1000.0, seed: int = 0) -> list[tuple[float, str, str, dict[str, Any]]]:
    """A camera of 10 fps, joints at 100 Hz whose positions are the seconds since `begin`, and their commands, a second
    ahead; and a depth camera and a wrist's."""
    found: list[tuple[float, str, str, dict[str, Any]]] = []
    for t, (picture, other) in enumerate(zip(made.pictures(frames, seed=seed), made.pictures(frames, seed=30))):  # noqa: B905
        at = begin + t / 10
        coded = {"header": stamp(at), "format": "png", "data": made.encoded(picture)}
        found.append((at, "/camera/image_raw/compressed", "sensor_msgs/msg/CompressedImage", coded))
        found.append(
            (at, "/wrist_camera/image_raw", "sensor_msgs/msg/Image", raw_picture(other[..., ::-1], at, "bgr8", 5))
        )
        deep = raw_picture(np.zeros((24, 32), np.uint16), at, "16UC1")
        found.append((at, "/aligned/image", "sensor_msgs/msg/Image", deep))
    for t in range(frames * 10):
        at = begin + t / 100
        for topic, ahead in (("/joint_states", 0.0), ("/leader/joint_states", 1.0)):
            where = t / 100 + ahead
            joints = {"header": stamp(at), "name": ["shoulder", "elbow"], "position": [where, -where],
                      "velocity": [1.0, -1.0], "effort": []}  # fmt: skip
            found.append((at, topic, "sensor_msgs/msg/JointState", joints))
    return sorted(found, key=lambda message: message[0])


# --- tars


def tar(path: Path, files: dict[str, bytes]) -> Path:
    """A tar of files, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def clips_in_tars(root: Path) -> Path:
    """Two tars: films with texts, and pictures with JSON."""
    films = {}
    for i in range(3):
        films[f"clip_{i}.mp4"] = made.video(root.parent / "film.mp4", made.pictures(6, seed=i)).read_bytes()
        films[f"clip_{i}.txt"] = f"lift cup {i}".encode()
        held = io.BytesIO()
        np.save(held, vectors(6, 2, i))
        films[f"clip_{i}.actions.npy"] = held.getvalue()
    tar(root / "films-0.tar", films)
    about = {"fps": 5, "caption": "push it", "actions": vectors(5, 2).tolist()}
    pictures = {f"p/{i}.png": made.encoded(picture) for i, picture in enumerate(made.pictures(5))}
    tar(root / "pictures-0.tar", {"p.json": json.dumps(about).encode(), **pictures})
    return root
