"""The benchmark `language_table` on a small repository of the same interface, which the test writes.
The real one is in tests/worlds/test_language_table.py."""

from __future__ import annotations

import json
import math
import sys
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from here import here

from lapa import cli, plugins
from lapa.benchmarks._language_table import MIDDLE, REWARDS, TURNED, _apart, combination, held_out, quick
from lapa.contracts import LapaError
from lapa.evaluate import Trial, open_benchmark, roll_out
from lapa.interop.demonstrations import demonstrations

TABLE = """
import cv2
import gym
from gym import spaces
import six
import tensorflow as tf
import numpy as np
from absl import logging
from language_table.environments import blocks as blocks_module

class Client:
  def __init__(self):
    self.mass, self.where, self.told, self.done, self.colours, self.lit = {}, {}, {}, [], {}, []
  def changeDynamics(self, body, link, mass):
    self.mass[body] = mass
    self.done.append('mass')
  def resetBasePositionAndOrientation(self, body, where, turned):
    self.where[body] = np.array(where)
    self.done.append('place')
  def setPhysicsEngineParameter(self, **told):
    self.told.update(told)
  def changeVisualShape(self, body, link, rgbaColor):
    self.colours[body] = rgbaColor
  def getCameraImage(self, **told):
    self.lit.append(told)

class Robot:
  initial_joint_positions = (0.0,)
  def set_target_joint_positions(self, positions):
    self.positions = positions

class LanguageTable(gym.Env):
  def __init__(self, block_mode, training=True, reward_factory=None, render_text_in_image=True, seed=None,
               font=cv2.FONT_HERSHEY_DUPLEX):
    self._mode, self._training, self._image_size = block_mode, training, (180, 320)
    self._rng = np.random.RandomState(seed)
    self._pybullet_client, self._robot = Client(), Robot()
    self._block_to_pybullet_id = {name: i for i, name in enumerate(blocks_module.ALL)}
    self._reward_calculator, self._start_block, self._hand = None, None, np.zeros(2)
    self._camera_pose, self._camera_orientation = (.75, 0, .5), (np.pi / 5, np.pi, -np.pi / 2)
    self._workspace_uid = 1
    self.action_space = spaces.Box(low=-0.1, high=0.1, shape=(2,))
    self._save_state()
    self.saved = dict(self._pybullet_client.mass)
    self.reset()
  def _save_state(self):
    pass
  def seed(self, seed):
    self._rng = np.random.RandomState(seed)
    self._reward_calculator.seed(self._rng)
  def reset(self):
    subsets = blocks_module.get_all_block_subsets(self._mode, self._training)
    self.on = subsets[self._rng.choice(range(len(subsets)))]
    for tries in range(20):
      for name, body in self._block_to_pybullet_id.items():
        self._pybullet_client.resetBasePositionAndOrientation(body, [5.0, 5.0, 0.0], [0, 0, 0, 1])
      for name in self.on:
        self._pybullet_client.where[self._block_to_pybullet_id[name]] = self._rng.uniform([.2, -.2, 0], [.5, .2, 0])
      self._hand = self._rng.uniform([.2, -.2], [.5, .2])
      if self._reward_calculator is None:
        return
      info = self._reward_calculator.reset(self.compute_state(), self.on)
      if info != 'failure':
        self._start_block, self._target, self._instruction_str = info.start, info.target, info.instruction
        return
    raise ValueError('no room')
  def compute_state(self, request_task_update=True):
    self.looks = getattr(self, 'looks', 0) + 1
    self._render_camera(self._image_size)
    where = self._pybullet_client.where
    told = {f'block_{name}_translation': where[body][:2].astype(np.float32)
            for name, body in self._block_to_pybullet_id.items()}
    return {**told, 'effector_translation': self._hand.astype(np.float32)}
  def step(self, action):
    action = np.asarray(action)
    assert (np.abs(action) <= .1).all()
    block = self._pybullet_client.where[self._block_to_pybullet_id[self._start_block]]
    if np.linalg.norm(block[:2] - self._hand) < .03 and self._pybullet_client.mass.get(0) != 0:
      block[:2] += action
    self._hand = self._hand + action
    reward, done = self._reward_calculator.reward(self.compute_state())
    return {}, reward, done, {}
  def _render_camera(self, image_size, return_seg_mask=False):
    picture = np.full((*image_size, 3), 200, np.uint8)
    self.drawn = getattr(self, 'drawn', 0) + 1
    self._pybullet_client.getCameraImage(width=image_size[1])
    for (x, y), value in ((self._hand, 0), (self._pybullet_client.where[0][:2], 90)):
      if x < 1:
        row, column = int((x - .1) / .5 * 160), int((y + .3) / .6 * 300)
        picture[max(row, 0):row + 16, max(column, 0):column + 16] = value
    return picture
"""
BLOCKS = """
import enum
ALL = ['red_moon', 'blue_cube', 'green_star', 'yellow_pentagon', 'red_star']
class LanguageTableBlockVariants(enum.Enum):
  BLOCK_4 = 'BLOCK_4'
  BLOCK_8 = 'BLOCK_8'
  N_CHOOSE_K = 'N_CHOOSE_K'
def get_all_block_subsets(mode, training):
  if mode == LanguageTableBlockVariants.N_CHOOSE_K:
    return [ALL[:3], ALL[1:4]] if training else [ALL[2:]]
  return [ALL[:4]]
"""
REWARD = """
import dataclasses
import numpy as np
from language_table.environments.rewards import task_info
@dataclasses.dataclass
class Info:
  instruction: str
  block1: str
  block2: str
  start: str
  target: np.ndarray
EASY = .01
class {name}:
  def __init__(self, goal_reward, rng, delay_reward_steps, block_mode):
    self._goal = goal_reward
  def seed(self, rng):
    self._rng = rng
  def reset(self, state, blocks_on_table):
    one, other = self._rng.choice(blocks_on_table, 2, replace=False)
    word = np.random.choice(['push', 'move', 'slide', 'put', 'bring', 'shove', 'drag', 'take'])
    self._one, self._other = str(one), str(other)
    target = state['block_' + other + '_translation']
    if np.linalg.norm(target - state['block_' + one + '_translation']) < EASY:
      return task_info.FAILURE
    return Info(word + ' the ' + one + ' to the ' + other, self._one, self._other, self._one, target)
  def reward(self, state):
    one, other = (state['block_' + name + '_translation'] for name in (self._one, self._other))
    done = np.linalg.norm(one - other) < .03
    return self._goal * done, done
"""
ORACLE = """
import numpy as np
from tf_agents.policies import py_policy
from tf_agents.trajectories import policy_step
from tf_agents.trajectories import time_step as ts
from language_table.environments.oracles import rrt_star
class ObstacleOrientedPushOracleBoard2dRRT(py_policy.PyPolicy):
  def __init__(self, env, use_ee_planner):
    super().__init__(env.time_step_spec(), env.action_spec())
    self._env = env
  def get_plan(self, state):
    np.random.random()
    return self._env._hand[0] > .25
  def _get_action_for_block_target(self, state, block='block', target='target'):
    most = .35 / self._env.get_control_frequency()
    place = state[f'block_{self._env._start_block}_translation']
    hand = state['effector_translation']
    near = np.linalg.norm(place - hand) < .03
    way = (self._env._target - place) if near else place - hand
    return way * min(1, most / max(np.linalg.norm(way), 1e-9)) + np.random.uniform(-1e-4, 1e-4, 2)
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository, and a PyBullet where there is none."""
    root = tmp_path / "clone"
    part = root / "language_table/environments"
    files = {
        "language_table.py": TABLE,
        "blocks.py": BLOCKS,
        "rewards/task_info.py": "FAILURE = 'failure'\n",
        "oracles/rrt_star.py": "import imageio\nclass RRTStar:\n  pass\n",
        "oracles/push_oracle_rrt_slowdown.py": ORACLE,
        **{f"rewards/{module}.py": REWARD.format(name=name) for module, name in REWARDS.values()},
    }
    for name, text in files.items():
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_text(text)
    for folder in (root / "language_table", part, part / "rewards", part / "oracles"):
        (folder / "__init__.py").write_text("")
    monkeypatch.delenv("LANGUAGE_TABLE", raising=False)
    if plugins.missing("benchmarks", "language_table", given=("$LANGUAGE_TABLE",)):
        extra = tmp_path / "extra"
        (extra / "pybullet_utils").mkdir(parents=True)
        for name in (
            "pybullet.py",
            "pybullet_data.py",
            "pybullet_utils/__init__.py",
            "pybullet_utils/bullet_client.py",
        ):
            (extra / name).write_text("")
        monkeypatch.syspath_prepend(str(extra))
    return root


def opened(clone: Path, options: str = "", path: str = "all") -> Any:
    return open_benchmark(f"language_table:{path},clone={clone}{options}")


def test_a_seed_gives_a_scene_whatever_was_before_and_whatever_numpy_draws(clone: Path) -> None:
    bench = opened(clone, ",size=32")
    first = bench.reset([4, 5, 6])
    pictures = [shown["images"]["front"] for shown in first]
    np.random.seed(2)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for _ in range(5):
        bench.step(np.stack([row for row in bench.baselines()["expert"].act_batch(first)[:, 0]]))
    again = bench.reset([6, 9, 4])
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    for i, j in ((0, 2), (2, 0)):
        np.testing.assert_array_equal(first[i]["state"], again[j]["state"])
        np.testing.assert_array_equal(pictures[i], again[j]["images"]["front"])
        assert first[i]["instruction"] == again[j]["instruction"]
    assert not np.array_equal(first[0]["state"], first[1]["state"])
    assert bench.tasks() == tuple(bench.spec.families[seed % 5] for seed in (6, 9, 4))


def test_every_row_and_the_stages(clone: Path) -> None:
    bench = opened(clone, ",size=16,max_steps=60,batch=3", "block2block+separate")
    rows = bench.baselines()
    outcomes, films = roll_out(bench, rows["expert"], Trial(6), record=1)
    assert [(o.success, o.stages) for o in outcomes] == 6 * [(True, ("reached", "moved"))]
    assert {o.family for o in outcomes} == {"block2block", "separate"}
    assert films[0].shape[1:] == (108, 192, 3), "films have the shape of the camera"
    assert outcomes == roll_out(bench, rows["expert"], Trial(6))[0]
    still, _ = roll_out(bench, rows["no_op"], Trial(3))
    assert not any(o.success or o.stages for o in still)
    drawn, _ = roll_out(bench, rows["random"], Trial(3))
    assert drawn == roll_out(bench, rows["random"], Trial(3))[0]


def test_no_scene_is_solved_before_anything_moves(clone: Path) -> None:
    """The rewards that the test writes ask for one centimetre at least, and give success from three on."""
    bench = opened(clone, ",batch=50")
    bench.reset(range(50))
    assert not any(step.success for step in bench.step(np.zeros((50, 2))))


def test_actions_are_metres_in_parts_within_the_limits(clone: Path) -> None:
    bench = opened(clone, ",repeat=4")
    assert (bench.spec.action.hz, bench.spec.max_steps) == (2.5, 50)
    np.testing.assert_allclose(bench.spec.limits, [(-0.4, 0.4)] * 2)
    (shown,) = bench.reset([1])
    (step,) = bench.step(np.array([[0.2, -9.0]]))
    np.testing.assert_allclose(step.observation["state"] - shown["state"], [0.2, -0.4], atol=1e-6)
    assert np.abs(bench.baselines()["random"].act_batch([shown])).max() <= 0.035 * 4
    assert bench._worlds[0].env.get_control_frequency() == 2.5


def test_what_is_drawn_and_when(clone: Path) -> None:
    bench = opened(clone)
    (shown,) = bench.reset([0])
    env = bench._worlds[0].env
    assert not hasattr(env, "drawn"), "looking at the state draws nothing"
    assert shown["images"]["front"].shape == (128, 128, 3)
    assert env.drawn == 1
    assert opened(clone, ",size=0").reset([0])[0]["images"]["front"].shape == (180, 320, 3)
    bench.step(np.zeros((1, 2)))
    with pytest.raises(RuntimeError, match="front"):
        bench.reset([0]) and bench.step(np.zeros((1, 2))) and shown["images"].__class__(
            ("front",), lambda camera: None, iter(range(9)).__next__
        )["front"]


def test_another_look_changes_table_floor_and_light_and_no_block(clone: Path) -> None:
    shown = {}
    for look in ("own", "other"):
        bench = opened(clone, f",look={look}")
        (shown[look],) = bench.reset([3])
        assert shown[look]["images"]["front"].shape == (128, 128, 3)
        client = bench._worlds[0].env._pybullet_client
        assert set(client.colours) == ({0, 1} if look == "other" else set()), "the floor and the table"
        assert ("lightColor" in client.lit[-1]) == (look == "other")
        assert client.lit[-1]["width"] == 320
    np.testing.assert_array_equal(shown["own"]["state"], shown["other"]["state"])
    assert shown["own"]["instruction"] == shown["other"]["instruction"]


def test_the_camera_is_turned_about_the_middle_and_looks_at_it(clone: Path) -> None:
    bench = opened(clone, ",camera=corner")
    (shown,) = bench.reset([3])
    assert bench.spec.cameras == tuple(shown["images"]) == ("corner",)
    assert shown["images"]["corner"].shape == (128, 128, 3)
    env = bench._worlds[0].env
    away = np.array(env._camera_pose[:2]) - MIDDLE
    assert math.dist((0, 0), away) == pytest.approx(0.75 - MIDDLE[0])
    assert math.atan2(away[1], away[0]) == pytest.approx(TURNED["corner"])
    assert env._camera_pose[2] == 0.5
    roll, pitch, yaw = env._camera_orientation
    assert (roll, pitch) == (math.pi / 5, math.pi)
    along = np.array(
        [math.sin(roll) * math.sin(yaw), -math.sin(roll) * math.cos(yaw)]
    )  # where it looks, seen from above
    np.testing.assert_allclose(along / np.linalg.norm(along), -away / np.linalg.norm(away), atol=1e-9)


@pytest.mark.parametrize("blocks", ["BLOCK_4", "N_CHOOSE_K"])
def test_a_split_has_its_combinations(clone: Path, blocks: str) -> None:
    asked: dict[str, set[tuple[str, ...]]] = {}
    for split in ("seen", "unseen"):
        bench = opened(clone, f",blocks={blocks},split={split}", "block2block+separate")
        said = [(o["instruction"].split(" the ", 1)[1], f) for seed in range(0, 40, 10) for o, f in zip(
            bench.reset(range(seed, seed + 10)), bench.tasks(), strict=True)]  # fmt: skip
        asked[split] = {(family, *words.split(" to the ")) for words, family in said}
        assert all(held_out(family, tuple(two)) == (split == "unseen") for family, *two in asked[split])
    assert not asked["seen"] & asked["unseen"]


FOUR = ("red_moon", "blue_cube", "green_star", "yellow_pentagon")
SIDES = ("up", "down", "left", "right")


@pytest.mark.parametrize(
    ("family", "asked"),
    [
        ("block2block", list(permutations(FOUR, 2))),
        ("block2absolute", list(product(FOUR, ("top", "top_left", "center", "bottom", "bottom_right")))),
        ("block2relative", list(product(FOUR, SIDES))),
        ("block2block_relative", [(*pair, side) for pair in permutations(FOUR, 2) for side in SIDES]),
        ("separate", list(permutations(FOUR, 2))),
    ],
)
def test_what_is_unseen_is_a_combination_of_what_is_seen(family: str, asked: list[tuple[str, ...]]) -> None:
    unseen = [each for each in asked if held_out(family, each)]
    seen = [each for each in asked if each not in unseen]
    assert 0 < len(unseen) < len(asked) / 2
    for part in (0, -1):
        assert {each[part] for each in unseen} <= {each[part] for each in seen}


def test_what_a_task_is_about() -> None:
    assert combination(SimpleNamespace(block1="a", block2="b")) == ("a", "b")
    assert combination(SimpleNamespace(block="a", location="top", target_translation=None)) == ("a", "top")
    assert combination(SimpleNamespace(block="a", target_block="b", direction="up")) == ("a", "b", "up")
    assert combination(SimpleNamespace(block="a", avoid_blocks=["c", "b"])) == ("a", "b", "c")


def test_unused_blocks_lie_still_and_apart_before_the_state_is_saved(clone: Path) -> None:
    bench = opened(clone, ",blocks=BLOCK_4")
    bench.reset([0])
    env = bench._worlds[0].env
    assert env.saved == {4: 0}, "the fifth block is not on this table"
    assert env._pybullet_client.where[4][0] > 1
    assert list(env._pybullet_client.done[:2]) == ["place", "mass"], "else it holds the arm fast where it lies"
    assert env._pybullet_client.told == {"deterministicOverlappingPairs": 1}
    many = opened(clone, ",blocks=N_CHOOSE_K")
    many.reset([0])
    assert many._worlds[0].env.saved == {0: 0, 1: 0, 2: 0, 3: 0, 4: 0} or many._worlds[0].env.saved == {4: 0}
    placed: dict[int, list[float]] = {}
    put = _apart(lambda body, where, turned: placed.update({body: where}))
    for body in (3, 7):
        put(body, [5.0, 5.0, 0.0], None)
    put(9, [0.3, 0.1, 0.0], None)
    assert placed[9] == [0.3, 0.1, 0.0]
    assert math.dist(placed[3], placed[7]) > 0.1


def test_the_process_is_left_as_it_was(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the clone imports for trivia is neither needed nor seen by others, and two clones do not mix."""
    theirs = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "tensorflow", theirs)
    path, before = list(sys.path), set(sys.modules)
    one = opened(clone)
    assert sys.modules["tensorflow"] is theirs
    assert sys.path == path
    grown = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not grown & {"language_table", "tf_agents", "gym", "imageio", "six", "cv2", "absl"}
    copy = clone.parent / "second"
    clone.rename(copy)
    other = opened(copy)
    assert one._package.table is not other._package.table


def test_what_is_missing_is_one_line(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lapa.commands.look import show_list

    with pytest.raises(LapaError, match="LANGUAGE_TABLE") as told:
        open_benchmark("language_table")
    assert "\n" not in str(told.value)
    show_list()
    assert any("language_table" in line and "LANGUAGE_TABLE" in line for line in capsys.readouterr().out.splitlines())
    with pytest.raises(LapaError, match=r"nothing_here.*language_table\.py"):
        opened(tmp_path / "nothing_here")
    monkeypatch.setenv("LANGUAGE_TABLE", str(clone))
    assert open_benchmark("language_table:separate").spec.families == ("separate",)


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [
        ("block2blok", "", "block2block"),
        ("separate+separate", "", "separate"),
        ("all", ",blocks=BLOCK_4_WPOLE", "BLOCK_4"),
        ("all", ",split=test", "unseen"),
        ("all", ",camera=cornr", "corner"),
        ("all", ",look=othr", "other"),
        ("all", ",size=-1", "size"),
        ("all", ",repeat=0", "repeat"),
        ("all", ",max_steps=0", "max_steps"),
        ("all", ",batch=0", "batch"),
    ],
)
def test_what_is_refused(clone: Path, path: str, options: str, says: str) -> None:
    with pytest.raises(LapaError, match=says):
        opened(clone, options, path)
    with pytest.raises(LapaError, match="10"):
        opened(clone).reset(range(11))


def test_a_split_without_a_scene_is_said(clone: Path) -> None:
    oracle = clone / "language_table/environments/oracles/push_oracle_rrt_slowdown.py"
    oracle.write_text(oracle.read_text().replace("> .25", "> 9"))
    with pytest.raises(LapaError, match=r"separate.*seed 3"):
        opened(clone, path="separate").reset([3])


def test_demonstrations(clone: Path) -> None:
    bench = opened(clone, ",size=24,batch=2", "block2block+separate")
    episodes = [take[0] for take in demonstrations(bench, 4, noise=0.2)]
    assert len(episodes) == 4
    for episode in episodes:
        assert (episode.fps, episode.camera, episode.action_names) == (10.0, "front", ("dx", "dy"))
        assert episode.frames.shape[1:] == (24, 24, 3)
        moved = np.diff(episode.state, axis=0)
        np.testing.assert_allclose(moved, episode.actions[:-1], atol=1e-5)


@pytest.mark.slow
def test_the_papers_table_from_nothing(
    clone: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tests of seen and of unseen combinations, videos of another look, as `lapa compare` makes it."""
    monkeypatch.setenv("LANGUAGE_TABLE", str(clone))
    started, out = here(monkeypatch).started, tmp_path / "table"
    part = ["--settings", "cross-env", "--methods", "random,lapa", "--budgets", "1", "--seeds", "1"]
    few = ["--videos", "2", "--episodes", "2", "--quick", "--preset", "laptop", *small]
    where = ["--benchmark", "language_table:block2relative,size=32,max_steps=30"]
    cli.main(["compare", *where, *part, *few, "--out", str(out)])
    assert (out / "table.md").read_text() in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert list(results["table"]["cross-env"]) == ["seen", "unseen"]
    tried = results["cells"]["seed0/lapa/elsewhere+1/unseen"]
    assert (tried["episodes"], list(tried["stages"]["block2relative"])) == (2, ["reached", "moved"])
    assert [name for name in started if "/data/" in name] == [
        "seed0/data/labels10/block2relative", "seed0/data/elsewhere",
    ]  # fmt: skip


# --- the planner


def test_distances_at_once_find_what_one_by_one_finds() -> None:
    rng = np.random.default_rng(0)

    class Slow:
        def __init__(self) -> None:
            node = lambda place: SimpleNamespace(x=place[0], y=place[1], parent=None)  # noqa: E731
            self.vertex = [node(place) for place in rng.uniform(0, 1, (60, 2))]
            self.vertex[7] = self.vertex[3]
            self.obstacles = [(x, y, 0.03) for x, y in rng.uniform(0, 1, (8, 2))]
            self.boundary = [[0, 0, 0.01, 1], [1, 0, 0.01, 1], [0, 0, 1, 0.01], [0, 1, 1, 0.01]]
            self.delta, self.step_len, self.search_radius, self.iter_max = 0.02, 0.3, 2.0, 100

    planner = quick(Slow)()
    for k in range(20):
        one = planner.vertex[k]
        place = np.array([one.x, one.y])
        away = [math.dist(place, (node.x, node.y)) for node in planner.vertex]
        new = SimpleNamespace(x=one.x + 1e-3, y=one.y)
        assert planner.nearest_neighbor(planner.vertex, new) is one or k == 7
        near = [i for i, node in enumerate(planner.vertex) if away[i] <= 0.3 and not _hits(planner, one, node)]
        assert planner.find_nearest_neighbors(one) == near
    assert any(math.dist((n.x, n.y), (0.5, 0.5)) > 0 for n in planner.vertex)
    a, b, c = planner.vertex[:3]
    b.parent, c.parent = a, b
    assert planner.cost(c) == pytest.approx(math.dist((a.x, a.y), (b.x, b.y)) + math.dist((b.x, b.y), (c.x, c.y)))


def _hits(planner: Any, start: Any, end: Any) -> bool:
    """Does the straight way touch an obstacle or the border? By small steps, but for its ends."""
    grown = planner.delta
    for node in (start, end):
        for x, y, wide, high in planner.boundary:
            if x - grown <= node.x <= x + wide + grown and y - grown <= node.y <= y + high + grown:
                return True
    way = np.linspace([start.x, start.y], [end.x, end.y], 20_001)
    return any((np.hypot(*(way - (x, y)).T) <= radius + grown).any() for x, y, radius in planner.obstacles)
