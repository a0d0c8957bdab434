"""Labels handed back: as a LeRobot dataset, frame for frame; as the released code's jsonl; models through the hub."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from made import lerobot_v21
from PIL import Image
from robot_rows import features, numbered, rows, shown
from robot_rows import robot as robot_of_rows

from lapa import cli
from lapa.artefacts.folder import provenance, save_artefact
from lapa.artefacts.hub import model_card, push_to_hub
from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data.labelled import read_labels
from lapa.data.lerobot_format import CAMERA, LeRobotWriter
from lapa.data.spec import open_dataset
from lapa.data.video import VideoFile
from lapa.interop.export import NO_LABEL, export_jsonl, export_lerobot, open_labelled
from lapa.models.laq import LAQ
from lapa.recipe import Recipe


def save_laq(path: Path, recipe: Recipe) -> LAQ:
    """An untrained LAQ of the given recipe as an artefact."""
    torch.manual_seed(0)
    laq = recipe.laq.build().eval()
    config = {"model": recipe.to_json()["laq"], "recipe": recipe.to_json(), "results": {"perplexity": [5.25, 1.0]},
              "provenance": provenance(7, {"video_folder:kitchen": "0123abcd"}, {})}  # fmt: skip
    save_artefact(path, "laq", config, laq.state_dict())
    return laq


@pytest.fixture(scope="module")
def laq(tmp_path_factory: pytest.TempPathFactory, tiny: Recipe) -> Path:
    path = tmp_path_factory.mktemp("laq") / "laq"
    save_laq(path, tiny)
    return path


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, laq: Path, robot: Path) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels"
    cli.main(["label", "--dataset", f"lerobot:{robot}", "--source", str(laq), "--out", str(path)])
    return path


def episodes_of(spec: str) -> list[Episode]:
    found = list(open_dataset(spec).episodes())
    assert not any(isinstance(episode, BadVideo) for episode in found)
    return found  # type: ignore[return-value]


# --- lerobot --------------------------------------------------------------------------------------


def test_a_lerobot_dataset_has_every_frame_and_its_code(
    labels: Path, robot: Path, laq: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    cli.main(["export", "lerobot", str(labels), str(out), "--quality", "exact"])
    assert "12 episodes" in capsys.readouterr().out
    before, after = episodes_of(f"lerobot:{robot}"), episodes_of(f"lerobot:{out}")
    assert len(before) == len(after) == 12
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.frames, two.frames)
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(one.state, two.state)
        assert (one.instruction, one.fps, one.action_names) == (two.instruction, two.fps, two.action_names)

    found, manifest = read_labels(labels)
    rows = pq.read_table(out / "data/chunk-000/file-000.parquet")
    episode, frame, code = (rows[k].to_numpy() for k in ("episode_index", "frame_index", "latent_action"))
    labelled = code != NO_LABEL
    assert labelled.sum() == len(found.values) < len(rows)
    np.testing.assert_array_equal(episode[labelled], found.episode)
    np.testing.assert_array_equal(frame[labelled], found.frame)
    np.testing.assert_array_equal(code[labelled], found.values[:, 0])
    ends = np.cumsum([len(e.frames) for e in before]) - 1
    assert not labelled[ends].any(), "the last frame has no later one"

    info = json.loads((out / "meta/info.json").read_text())
    feature = info["features"]["latent_action"]
    assert (feature["dtype"], feature["shape"], feature["names"]) == ("int64", [1], ["code_0"])
    assert feature["info"]["codebook_size"] == 8
    assert feature["info"]["laq_hash"] == json.loads((laq / "config.json").read_text())["hash"]
    assert feature["info"]["window_seconds"] == manifest["window_seconds"]
    stats = json.loads((out / "meta/stats.json").read_text())["latent_action"]
    assert stats["min"] == [code[labelled].min()], "-1 is no code, so the statistics leave it out"
    assert stats["count"] == [labelled.sum()]


def two_looks(folder: Path) -> Path:
    """Videos of two sizes and two rates, neither square."""
    rng = np.random.default_rng(0)
    for name, fps, size in (("a.mp4", 10, (24, 40)), ("b.mp4", 20, (32, 24))):
        video = VideoFile(folder / name, fps, *size)
        video.add(rng.integers(0, 256, (12, *size, 3), np.uint8))
        video.close()
    return folder


def test_oblong_frames_of_real_codes(tmp_path: Path, tiny: Recipe) -> None:
    """Several codes a frame and pictures that are not square; then several sizes and rates, which LeRobot has not."""
    from dataclasses import replace

    recipe = replace(tiny, laq=replace(tiny.laq, codes=4))
    save_laq(tmp_path / "laq", recipe)
    clips = two_looks(tmp_path / "some clips")
    (clips / "b.mp4").rename(tmp_path / "b.mp4")
    for name in ("one", "two"):
        cli.main(["label", "--dataset", f"video_folder:{clips}", "--source", f"{tmp_path}/laq",
                  "--out", f"{tmp_path}/{name}"])  # fmt: skip
        if name == "one":
            (tmp_path / "b.mp4").rename(clips / "b.mp4")
    with pytest.raises(LapaError, match=r"clips"):
        open_labelled(tmp_path / "one")

    both = open_labelled(tmp_path / "two")
    with pytest.raises(LapaError, match=r"2 sizes.*--image-size"):
        export_lerobot(both, tmp_path / "ds")
    with pytest.raises(LapaError, match=r"2 frame rates \(from 10 to 20 fps\).*--fps"):
        export_lerobot(both, tmp_path / "ds", image_size=32)
    with pytest.raises(LapaError, match="at most 10"):
        export_lerobot(both, tmp_path / "ds", image_size=32, fps=15)
    assert not (tmp_path / "ds").exists()
    export_lerobot(both, tmp_path / "ds", image_size=32, fps=10, quality=None)
    slow, fast = episodes_of(f"lerobot:{tmp_path}/ds")
    originals = list(open_dataset(f"video_folder:{clips}").episodes(32))
    np.testing.assert_array_equal(slow.frames, originals[0].frames)
    np.testing.assert_array_equal(fast.frames, originals[1].frames[::2])
    table = pq.read_table(tmp_path / "ds/data/chunk-000/file-000.parquet")
    codes = np.array(table["latent_action"].to_pylist())
    assert codes.shape == (18, 4)
    np.testing.assert_array_equal(codes[12:], both.codes[12::2])

    (clips / "b.mp4").rename(tmp_path / "b.mp4")
    clips.rename(tmp_path / "moved")
    moved = open_labelled(tmp_path / "one", [f"video_folder:{tmp_path}/moved"])
    export_lerobot(moved, tmp_path / "oblong", quality=None)
    (oblong,) = episodes_of(f"lerobot:{tmp_path}/oblong")
    np.testing.assert_array_equal(oblong.frames, next(
        open_dataset(f"video_folder:{tmp_path}/moved").episodes()).frames)  # fmt: skip
    assert oblong.frames.shape == (12, 24, 40, 3)


def test_a_robot_s_dataset_stays_what_it_is(tmp_path: Path, tiny: Recipe) -> None:
    """Nested names of joints, the camera, the robot and the kinds go into the export; pictures in less room."""
    save_laq(tmp_path / "laq", tiny)
    root = lerobot_v21(tmp_path / "ds")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["names"] = [["elbow", "wrist"]]
    (root / "meta/info.json").write_text(json.dumps(info))
    cli.main(["label", "--dataset", f"lerobot:{root},camera=top,kinds=absolute+binary", "--source", f"{tmp_path}/laq",
              "--out", f"{tmp_path}/labels"])  # fmt: skip
    for quality in (None, 20):
        out = tmp_path / f"out{quality}"
        export_lerobot(open_labelled(tmp_path / "labels"), out, quality=quality)
        told = json.loads((out / "meta/info.json").read_text())
        assert told["robot_type"] == "so100"
        assert told["features"]["action"]["names"] == ["elbow", "wrist"]
        assert told["features"]["observation.images.top"]["shape"] == [24, 32, 3]
        before, after = episodes_of(f"lerobot:{root},camera=top"), episodes_of(f"lerobot:{out}")
        for one, two in zip(before, after, strict=True):
            np.testing.assert_array_equal(one.actions, two.actions)
            np.testing.assert_array_equal(one.state, two.state)
            assert two.action_kinds == ("absolute", "binary")
            assert two.camera == "top"
            assert np.array_equal(one.frames, two.frames) == (quality is None)
            assert np.abs(one.frames.astype(int) - two.frames).mean() < 12  # of 255; pixels of noise are hard to code


def test_actions_at_another_rate_add_up(
    labels: Path, robot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tabletop has deltas: what is kept leads as far as what is left out would have."""
    found = open_labelled(labels)
    export_lerobot(found, tmp_path / "ds", fps=1)
    said = capsys.readouterr().err
    assert all(word in said for word in ("5", "1", "delta"))
    codes = pq.read_table(tmp_path / "ds/data/chunk-000/file-000.parquet")["latent_action"].to_numpy()
    kept = []
    for episode, slow in zip(episodes_of(f"lerobot:{robot}"), episodes_of(f"lerobot:{tmp_path}/ds"), strict=True):
        rows = np.arange(0, len(episode.frames), 5)
        assert slow.fps == 1
        assert len(slow.frames) == len(rows)
        np.testing.assert_array_equal(slow.state, episode.state[rows])
        for t, row in enumerate(rows):
            np.testing.assert_allclose(slow.actions[t], episode.actions[row : row + 5].sum(0), atol=1e-6)
        kept.append(rows)
    starts = found.packed.starts[:-1]
    np.testing.assert_array_equal(
        codes, np.concatenate([found.codes[s + r, 0] for s, r in zip(starts, kept, strict=True)])
    )


def test_absolute_targets_and_grippers_at_another_rate(tmp_path: Path, tiny: Recipe) -> None:
    """The last target of the frames that are left out, and the last value of a gripper."""
    save_laq(tmp_path / "laq", tiny)
    root = lerobot_v21(tmp_path / "ds", lengths=(6, 9))
    spec = f"lerobot:{root},camera=top,kinds=absolute+binary"
    cli.main(["label", "--dataset", spec, "--source", f"{tmp_path}/laq", "--out", f"{tmp_path}/labels"])
    export_lerobot(open_labelled(tmp_path / "labels"), tmp_path / "out", fps=5)
    for one, two in zip(episodes_of(spec), episodes_of(f"lerobot:{tmp_path}/out"), strict=True):
        ends = np.minimum(np.arange(0, len(one.frames), 2) + 1, len(one.frames) - 1)
        np.testing.assert_array_equal(two.actions, one.actions[ends])
        assert two.action_kinds == ("absolute", "binary")


def test_datasets_with_the_same_ids(laq: Path, tmp_path: Path) -> None:
    """What was skipped of one is not taken for an episode of the other that is called the same."""
    torn = rows(8, 0, 1)
    torn["action"][3] = np.nan
    robot_of_rows(tmp_path / "a", [rows(8), torn])
    robot_of_rows(tmp_path / "b", [rows(8), rows(8, 10, 1)], [numbered(8), numbered(8, 10)])
    (film,) = (tmp_path / "b").rglob("episode_000000.mp4")
    film.write_bytes(b"nothing")
    data = [part for name in "ab" for part in ("--dataset", f"lerobot:{tmp_path / name}")]
    cli.main(["label", *data, "--source", str(laq), "--out", str(tmp_path / "labels"), "--skip-bad"])
    export_lerobot(open_labelled(tmp_path / "labels"), tmp_path / "out", quality=None)
    assert [shown(e.frames)[0] for e in episodes_of(f"lerobot:{tmp_path}/out")] == [0, 10]


def test_pictures_of_another_size_than_the_dataset_says(laq: Path, tmp_path: Path) -> None:
    about = features(observation__images__top={"dtype": "video", "shape": [48, 64, 3]})
    robot_of_rows(tmp_path / "a", [rows(8)], about=about)
    cli.main(["label", "--dataset", f"lerobot:{tmp_path}/a", "--source", str(laq), "--out", str(tmp_path / "labels")])
    export_lerobot(open_labelled(tmp_path / "labels"), tmp_path / "out", quality=None)
    assert episodes_of(f"lerobot:{tmp_path}/out")[0].frames.shape == (8, 24, 32, 3)


def test_labels_that_are_no_codes_are_refused(robot: Path, tmp_path: Path) -> None:
    cli.main(["label", "--dataset", f"lerobot:{robot}", "--source", "ground_truth", "--out", f"{tmp_path}/true"])
    with pytest.raises(LapaError, match=r"true.*actions"):
        open_labelled(tmp_path / "true")


def test_the_writer_checks_what_it_is_given(tmp_path: Path) -> None:
    feature = {"latent_action": {"shape": [2], "names": ["a", "b"]}}
    episode = Episode("e", np.zeros((3, 8, 16, 3), np.uint8), 5.0)
    with LeRobotWriter(tmp_path / "ds", 5, (8, 16), extra=feature) as writer:
        with pytest.raises(LapaError, match=r"latent_action.*\(3, 2\).*\(3, 1\)"):
            writer.add(episode, latent_action=np.zeros((3, 1)))
        with pytest.raises(LapaError, match=r"latent_action.*\(3, 2\)"):
            writer.add(episode)
        writer.add(episode, latent_action=np.full((3, 2), 5))
    info = json.loads((tmp_path / "ds/meta/info.json").read_text())
    assert info["features"][CAMERA]["shape"] == [8, 16, 3]


# --- jsonl ----------------------------------------------------------------------------------------


def test_a_jsonl_as_the_released_code_takes_it(labels: Path, robot: Path, tmp_path: Path) -> None:
    count = export_jsonl(open_labelled(labels), tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/data.jsonl").read_text().splitlines()]
    found, _ = read_labels(labels)
    assert len(rows) == count == len(found.values)
    assert all(set(row) == {"id", "image", "instruction", "delta", "fields"} for row in rows)
    assert [row["delta"] for row in rows] == [[str(c) for c in code] for code in found.values]
    assert {row["fields"] for row in rows} == {"[instruction],[vision],delta"}

    before = episodes_of(f"lerobot:{robot}")
    assert rows[0]["instruction"] == (
        f"<s> You are a helpful assistant. USER: What action should the robot take to `{before[0].instruction}` "
        "ASSISTANT:"
    )
    # The released labelling counts the files of a folder and names the later image itself: all frames are there.
    for row in (rows[0], rows[-1]):
        folder, step = row["image"].split("/img_")[0], int(row["id"].split("_")[-1])
        number = int(folder.rpartition("_")[2])
        assert row["image"] == f"{folder}/img_{step:05d}.jpg"
        assert len(list((tmp_path / "out" / folder).iterdir())) == len(before[number].frames)
    with Image.open(tmp_path / "out" / rows[0]["image"]) as image:
        error = np.abs(np.asarray(image).astype(int) - before[0].frames[0])
    assert error.mean() < 3, "a JPEG of the same picture"

    again = episodes_of(f"lapa_jsonl:{tmp_path}/out/data.jsonl,fps={before[0].fps:g}")
    assert [e.instruction for e in again] == [e.instruction for e in before]


# --- the hub --------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub's HTTP API: makes repositories, takes weights by git's large file storage and commits,
    serves files. Nothing of huggingface_hub is replaced: its own client speaks to this."""

    protocol_version = "HTTP/1.1"
    repos: dict[str, dict[str, bytes]]
    stored: dict[str, bytes]  # large files by their sha256

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, content: Any = b"", status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _sha(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(unquote(self.path)).path
        if self.headers.get("Authorization") != "Bearer hf_right":
            self._answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization', 'me')}/{asked['name']}"
            self.repos.setdefault(repo, {})
            self._answer({"url": f"http://{self.headers['Host']}/{repo}", "id": repo, "name": repo})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            asked = json.loads(body)["files"]
            modes = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in asked}
            files = [{"path": p, "uploadMode": m, "shouldIgnore": False, "oid": None} for p, m in modes.items()]
            self._answer({"files": files})
        elif found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            wanted = [o for o in json.loads(body)["objects"] if o["oid"] not in self.stored]
            hrefs = {o["oid"]: f"http://{self.headers['Host']}/store/{o['oid']}" for o in wanted}
            objects = [{**o, "actions": {"upload": {"href": hrefs[o["oid"]]}}} for o in wanted]
            self._answer({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            for line in map(json.loads, body.decode().splitlines()):
                value, files = line["value"], self.repos[found[1]]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.stored[value["oid"]]
            sha = self._sha(found[1])
            url = f"http://{self.headers['Host']}/{found[1]}/commit/{sha}"
            self._answer({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})
        else:
            self._answer({"error": f"POST {path}"}, 404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = self.path.removeprefix("/store/")
        if hashlib.sha256(content).hexdigest() == name:
            self.stored[name] = content
            self._answer()
        else:
            self._answer({"error": f"PUT {self.path}"}, 422)

    def do_GET(self) -> None:
        path = urlsplit(unquote(self.path)).path
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(/revision/\w+|/tree/\w+)?", path):
            if found[1] not in self.repos:
                self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
                return
            files = self.repos[found[1]]
            if "/tree/" in path:
                self._answer([{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()])
                return
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            self._answer({"id": found[1], "sha": self._sha(found[1]), "siblings": siblings, "private": False})
        elif (found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/\w+/(.+)", path)) and found[1] in self.repos:
            content = self.repos[found[1]][found[2]]
            etag = hashlib.sha1(content).hexdigest()
            self._answer(content, ETag=f'"{etag}"', X_Repo_Commit=self._sha(found[1]))
        else:
            self._answer({"error": f"GET {path}"}, 404)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    repos: dict[str, dict[str, bytes]] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ThisHub", (Hub,), {"repos": repos, "stored": {}}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", repos
    server.shutdown()
    server.server_close()
    thread.join()


def in_a_process(script: str, cwd: Path, address: str, *arguments: object) -> list[str]:
    """The lines that `script` prints, in a new process: huggingface_hub reads where the hub is when it is imported.

    Xet, the hub's own storage, has a service of its own that is not stood in for: large files go by LFS."""
    start = """
import os, sys, lapa
from lapa.artefacts.hub import push_to_hub
def told(do, *arguments):
    try:
        print(do(*arguments))
    except lapa.LapaError as error:
        print("LapaError", error)
"""
    env = {**os.environ, "HF_HOME": str(cwd / "hf"), "HF_TOKEN": "hf_right", "HF_ENDPOINT": address,
           "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
    command = [sys.executable, "-c", start + script, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_up_to_the_hub_and_back(hub: tuple[str, dict[str, dict[str, bytes]]], laq: Path, tmp_path: Path) -> None:
    address, repos = hub
    script = """
from lapa import cli
cli.main(["export", "hub", sys.argv[1], "me/kitchen-laq", "--license", "cc-by-4.0"])
told(lambda: lapa.LAQ.from_pretrained("me/kitchen-laq").config.codebook_size)
told(lapa.Policy.from_pretrained, "me/kitchen-laq")
told(lapa.LAQ.from_pretrained, "me/another")
os.environ["HF_TOKEN"] = "hf_wrong"
told(push_to_hub, sys.argv[1], "me/kitchen-laq", "mit")
"""
    said, following, classes, kind, unknown, refused = in_a_process(script, tmp_path, address, laq)
    assert said == f"{laq} is at {address}/me/kitchen-laq"
    assert 'lapa.LAQ.from_pretrained("me/kitchen-laq")' in following
    assert set(repos["me/kitchen-laq"]) == {"config.json", "model.safetensors", "README.md"}
    for name in ("config.json", "model.safetensors"):
        assert repos["me/kitchen-laq"][name] == (laq / name).read_bytes()
    assert classes == "8"
    (fetched,) = (tmp_path / "hf").rglob("model.safetensors")
    assert fetched.read_bytes() == (laq / "model.safetensors").read_bytes()
    assert re.search('"laq".*"policy"', kind)
    assert unknown.startswith("LapaError me/another ")
    assert re.match(rf"LapaError {laq} .* me/kitchen-laq \(", refused)
    assert "hf auth login" in refused


def test_offline_is_one_line_each(laq: Path, tmp_path: Path) -> None:
    script = """
told(push_to_hub, sys.argv[1], "me/laq", "mit")
told(lapa.Policy.from_pretrained, "me/policy")
"""
    up, down = in_a_process(script, tmp_path, "http://127.0.0.1:9", laq)
    assert re.match(rf"LapaError {laq} .* me/laq \(", up)
    assert down.startswith("LapaError me/policy ")
    assert "onnection" in up


def test_the_card_says_what_config_json_says(laq: Path) -> None:
    config = json.loads((laq / "config.json").read_text())
    card = model_card(config, "me/kitchen-laq", "cc-by-4.0")
    head = card.split("---")[1]
    assert "license: cc-by-4.0" in head
    assert "library_name: lapa" in head
    for fact in ("`video_folder:kitchen` (fingerprint `0123abcd`)", "| perplexity | 5.25, 1 |", "Seed 7;",
                 config["hash"], '"codebook_size": 8', 'lapa.LAQ.from_pretrained("me/kitchen-laq")'):  # fmt: skip
        assert fact in card


def test_what_cannot_go_up(laq: Path, tmp_path: Path) -> None:
    with pytest.raises(LapaError, match="write user/name"):
        push_to_hub(laq, "kitchen", "mit")
    with pytest.raises(LapaError, match=r"config\.json, model\.safetensors"):
        push_to_hub(tmp_path, "me/kitchen", "mit")
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "hub", str(laq), "me/kitchen"])
    assert ended.value.code == 1


@pytest.mark.parametrize(("form", "words", "told"), [
    ("hub", ["--license", "mit", "--fps", "10"], "--fps belongs to `lapa export` lerobot, not to hub"),
    ("lerobot-policy", ["--private"], "--private belongs to `lapa export` hub, not to lerobot-policy"),
    ("jsonl", ["--quality", "0"], "--quality belongs to `lapa export` lerobot, not to jsonl"),
    ("lerobot", ["--feature", "top=a"], "--feature belongs to `lapa export` lerobot-policy, not to lerobot"),
])  # fmt: skip
def test_an_option_of_another_form_is_refused(
    form: str, words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", form, str(tmp_path), "me/kitchen", *words])
    assert ended.value.code == 1
    assert told in " ".join(capsys.readouterr().err.split())
