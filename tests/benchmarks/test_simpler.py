"""The benchmark `simpler` on a small stand-in of ManiSkill's interface, which the test writes: it needs no Vulkan."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lapa import plugins
from lapa.benchmarks.simpler import CAMERA, STATE, TASKS
from lapa.contracts import LapaError
from lapa.evaluate import Trial, open_benchmark, roll_out

ENVS = '''
import os
from types import SimpleNamespace
import gymnasium
import numpy as np
import torch

class Put(gymnasium.Env):
  """The hand carries the object while the gripper is closed; success: it is within 5 cm of the middle, now."""
  def __init__(self, obs_mode, num_envs, sim_backend, render_backend):
    if os.environ.get("NO_VULKAN"):
      raise RuntimeError("failed to find a rendering device\\nmore of it")
    assert (obs_mode, num_envs) == ("rgb+segmentation", 1)
    self.objs = {"thing": SimpleNamespace(pose=SimpleNamespace(p=torch.zeros(1, 3)))}
    self.source_obj_name, self.num_envs = "thing", 1
    self.observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    self.action_space = gymnasium.spaces.Box(-1, 1, (7,))
  def reset(self, seed=None, options=None):
    self.steps, self.target = 0, np.zeros(3)
    where = (options["episode_id"] % 24).item()
    self.objs["thing"].pose.p[0] = torch.tensor([.1 + .01 * where, 0, 0])
    return self.seen(), {}
  def step(self, action):
    assert action.shape == (7,) and action.dtype == np.float32
    self.steps += 1
    self.target += action[:3]
    held = action[6] < 0
    thing = self.objs["thing"].pose.p
    if held:
      thing[0] += torch.tensor(action[:3])
    success = torch.linalg.norm(thing, dim=1) < .05
    return self.seen(), torch.zeros(1), success.clone(), torch.tensor([False]), {
        "success": success, "is_src_obj_grasped": torch.tensor([bool(held)])}
  def seen(self):
    rgb = torch.zeros(1, 480, 640, 3, dtype=torch.uint8)
    rgb[0, :, : int(100 + 1000 * self.objs["thing"].pose.p[0, 0])] = 200
    return {"sensor_data": {"3rd_view_camera": {"rgb": rgb}}, "agent": {"qpos": torch.zeros(1, 8)}}
  def get_language_instruction(self):
    return ["put the thing in the middle"]

for name in NAMES:
  gymnasium.register(name, entry_point=Put, disable_env_checker=True)
'''


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A ManiSkill with its assets, in place of any other."""
    import gymnasium

    names = tuple(name for name, _ in TASKS.values())
    for file, text in {
        "mani_skill/__init__.py": "import os\nASSET_DIR = os.path.join(os.environ['MS_ASSET_DIR'], 'data')\n",
        "mani_skill/envs/__init__.py": ENVS.replace("NAMES", repr(names)),
        "sapien.py": "",
        "assets/data/tasks/bridge_v2_real2sim_dataset/x": "",
        "assets/data/robots/widowx/x": "",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path / "assets"))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "mani_skill"}
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mani_skill"]:
        del sys.modules[name]
    sys.modules.update(before)
    for name in names:
        gymnasium.registry.pop(name, None)


def carried(dx: float) -> np.ndarray:
    return np.array([[dx, 0, 0, 0, 0, 0, -1.0]])


def test_both_rules_of_success(there: Path) -> None:
    """Placed at some step and taken away again: success at any step, none at the last."""
    for rule, wanted in (("last", False), ("any", True)):
        bench = open_benchmark(f"simpler:carrot,success={rule}")
        bench.reset([0])
        (near,) = bench.step(carried(-0.1))
        assert (near.success, near.done) == (wanted, wanted)
        assert near.stages == ("moved", "grasped", "placed")
        if rule == "last":
            (far,) = bench.step(carried(0.2))
            assert "placed" not in far.stages
            for _ in range(58):
                (far,) = bench.step(carried(0.0))
            assert (far.success, far.done) == (False, True)
            (after,) = bench.step(carried(-0.2))
            assert after is far, "an episode that is over stays as it is"


def test_success_at_the_last_step_and_each_tasks_own_limit(there: Path) -> None:
    bench = open_benchmark("simpler:carrot+eggplant,batch=2")
    assert bench.spec.max_steps == 120
    assert (bench.spec.action.hz, len(bench.spec.action), bench.spec.action.kinds[-1]) == (5.0, 7, "binary")
    bench.reset([0, 1])
    assert bench.tasks() == ("carrot", "eggplant")
    for count in range(1, 121):
        made = bench.step(np.concatenate([carried(-0.1 if count == 1 else 0.0)] * 2))
        assert [step.done for step in made] == [count >= 60, count >= 120]
        assert [step.success for step in made] == [count >= 60, count >= 120]


def test_scenes_follow_each_other_and_are_seen(there: Path) -> None:
    bench = open_benchmark("simpler:stack+spoon,batch=8,size=64")
    first = bench.reset(range(1_000_000_000, 1_000_000_008))
    pictures = [shown["images"][CAMERA].tobytes() for shown in first]
    assert first[0]["images"][CAMERA].shape == (64, 64, 3)
    assert first[0]["state"].shape == (len(STATE),)
    assert len(set(pictures[::2])) == len(set(pictures[1::2])) == 4
    bench.step(np.concatenate([carried(0.1)] * 8))
    assert bench.reset([1_000_000_003])[0]["images"][CAMERA].tobytes() == pictures[3]
    assert open_benchmark("simpler,size=0").reset([0])[0]["images"][CAMERA].shape == (480, 640, 3)


def test_its_rows(there: Path) -> None:
    bench = open_benchmark("simpler:carrot,size=16")
    rows = bench.baselines()
    still, films = roll_out(bench, rows["no_op"], Trial(3), record=1)
    assert not any(o.success or o.stages for o in still)
    assert films[0].shape == (61, 144, 192, 3)
    drawn, _ = roll_out(bench, rows["random"], Trial(3))
    assert drawn == roll_out(bench, rows["random"], Trial(3))[0]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("simpler:carot", "carrot"),
        ("simpler:carrot+carrot", "carrot"),
        ("simpler,success=first", "last"),
        ("simpler,size=-1", "size"),
        ("simpler,batch=0", "batch"),
    ],
)
def test_what_is_refused(there: Path, spec: str, says: str) -> None:
    with pytest.raises(LapaError, match=says):
        open_benchmark(spec)


def test_what_is_missing_is_one_line(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LapaError, match="batch"):
        open_benchmark("simpler:carrot").reset(range(5))
    monkeypatch.setenv("NO_VULKAN", "1")
    with pytest.raises(LapaError, match=r"rendering device.*Vulkan") as told:
        open_benchmark("simpler:carrot")
    assert "\n" not in str(told.value)
    os.remove(there / "assets/data/robots/widowx/x")
    (there / "assets/data/robots/widowx").rmdir()
    with pytest.raises(LapaError, match=r"download_asset widowx250s$"):
        open_benchmark("simpler:carrot")


@pytest.mark.skipif(not plugins.missing("benchmarks", "simpler"), reason="ManiSkill is installed")
def test_without_the_package() -> None:
    with pytest.raises(LapaError, match=r"lapa\[simpler\]"):
        open_benchmark("simpler")
