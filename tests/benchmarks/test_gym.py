"""Any Gymnasium environment: where things are is told by options, and what is not there is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from lapa.benchmarks.gym import GymBenchmark
from lapa.contracts import LapaError
from lapa.evaluate import Trial, open_benchmark, roll_out


class Reach(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Bring a joint to a goal: absolute targets, two cameras one inside another dictionary, reward 1 at the goal."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (Gymnasium's interface)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(
        self, render_mode: str | None = None, goal: float = 0.5, whole: bool = False, blind: bool = False,
        missing: bool = False,
    ) -> None:  # fmt: skip
        if missing:
            raise FileNotFoundError(2, "No such file", "scene.xml")
        self.render_mode, self.goal, self.whole, self.blind = render_mode, goal, whole, blind
        self.observation_space = gymnasium.spaces.Dict(
            pixels=gymnasium.spaces.Dict(
                top=gymnasium.spaces.Box(0, 255, (6, 8, 3), np.uint8),
                wrist=gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8),
            ),
            joints=gymnasium.spaces.Box(-1, 1, (2,), np.float32),
            task=gymnasium.spaces.Text(20, charset="abcdefghijklmnopqrstuvwxyz "),
        )
        if whole:
            self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.at = self.np_random.uniform(-1, 0, 2).astype(np.float32)
        self.ticks = 0
        return self._seen(), self._info()

    def step(self, action: np.ndarray) -> Any:
        self.ticks += 1
        self.at = self.at + np.clip(action - self.at, -0.25, 0.25).astype(np.float32)
        there = bool(np.abs(self.at - self.goal).max() < 0.05)
        return self._seen(), float(there), there, self.ticks >= 12, self._info()

    def render(self) -> Any:
        if self.blind:
            raise gymnasium.error.DependencyNotInstalled("no screen")
        return np.full((6, 8, 3), 7, np.uint8)

    def _seen(self) -> Any:
        if self.whole:
            return self.at
        pixels = {"top": np.full((6, 8, 3), self.ticks, np.uint8), "wrist": np.zeros((4, 4, 3), np.uint8)}
        return {"pixels": pixels, "joints": self.at, "task": "reach the goal"}

    def _info(self) -> dict[str, Any]:
        there = bool(np.abs(self.at - self.goal).max() < 0.05)
        return {"at_goal": there, "target": np.full(2, self.goal, np.float32)}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    gymnasium.register("LapaReach-v0", Reach)
    yield
    del gymnasium.registry["LapaReach-v0"]


REACH = "gym:LapaReach-v0,state=joints,instruction=observation.task,kinds=absolute,max_steps=12,expert=info.target"
WAYS = ("success=info.at_goal", "success=reward>=1", "success=return>0.5", "success=terminated")


@pytest.mark.parametrize("success", WAYS)
def test_where_things_are(success: str) -> None:
    benchmark = open_benchmark(f"{REACH},{success},state_names=shoulder+elbow,action_names=shoulder+elbow,batch=3")
    assert isinstance(benchmark, GymBenchmark)
    spec = benchmark.spec
    assert (spec.cameras, spec.state, spec.max_steps) == (("top", "wrist"), ("shoulder", "elbow"), 12)
    assert (spec.action.names, spec.action.kinds, spec.action.hz) == (spec.state, ("absolute",) * 2, 20.0)
    (shown,) = benchmark.reset([7])
    assert shown["instruction"] == "reach the goal"
    assert shown["images"]["top"].shape == (6, 8, 3)
    assert shown["state"].dtype == np.float32
    rows = benchmark.baselines()
    expert, films = roll_out(benchmark, rows["expert"], Trial(5), record=1)
    assert all(o.success and o.steps < 12 and o.family == "LapaReach-v0" for o in expert)
    assert len({o.steps for o in expert}) > 1, "scenes differ"
    assert films[0].shape == (expert[0].steps + 1, 6, 8, 3)
    assert (films[0] == 7).all(), "of render()"
    still, _ = roll_out(benchmark, rows["no_op"], Trial(5))
    assert not any(o.success for o in still)
    assert {o.steps for o in still} == {12}


def test_no_op_holds_absolute_targets() -> None:
    benchmark = open_benchmark(f"{REACH},success=terminated")
    shown = benchmark.reset([1, 2])
    held = benchmark.baselines()["no_op"].act_batch(shown, [1])
    np.testing.assert_array_equal(held, shown[1]["state"][None, None])
    without = REACH.replace("state=joints,", "")
    assert "no_op" not in open_benchmark(f"{without},success=terminated").baselines()


def test_pictures_of_render_and_words_of_an_option() -> None:
    benchmark = open_benchmark(
        'gym:LapaReach-v0,make={"whole":true,"goal":0.25},state=observation,instruction=go, and stop,'
        "success=terminated,max_steps=12,cameras=front"
    )
    (shown,) = benchmark.reset([1])
    assert shown["instruction"] == "go, and stop"
    assert list(shown["images"]) == ["front"]
    assert (shown["images"]["front"] == 7).all()
    assert shown["state"].shape == (2,)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("images=pixels.side", ("images=pixels.side", "pixels.top, pixels.wrist, joints, task")),
        ("images=joints", ("images=joints ", "float32 [2]")),
        ("state=joint", ("state=joint ", "joints")),
        ("instruction=info.task", ("instruction=info.task", "info.at_goal, info.target")),
        ("instruction=info.target", ("info.target", "no text")),
        ("cameras=one", ("cameras=", "pixels.top, pixels.wrist")),
        ("action_names=one", ("action_names are 1", "2 numbers")),
        ("kinds=delta+delta+binary", ("kinds=",)),
        ("success=reward", ("success=reward ", "info.KEY")),
        ('make={"gaol":1}', ("gaol",)),
        ("max_steps=many", ("whole number",)),
        ("imags=top", ("imags", '"images"')),
        ("batch=0", ("batch",)),
        ("success=reward>=..", ("success=reward>=..", "info.KEY")),
        ("hz=0", ("hz is above 0",)),
        ("hz=-5", ("hz is above 0",)),
        ('make={"missing":true}', ("cannot be made", "No such file")),
        ('images=render,make={"blind":true}', ("render() draws nothing: no screen", "images=KEY")),
    ],
)
def test_what_is_not_there_is_refused(options: str, says: tuple[str, ...]) -> None:
    steps = "" if "max_steps" in options else "max_steps=12,"
    with pytest.raises(LapaError) as error:
        open_benchmark(f"gym:LapaReach-v0,{steps}{options}")
    assert all(part in str(error.value) for part in says), error.value


def test_words_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Reach._seen
    for told in (b"push", np.array("push"), np.bytes_("push")):
        monkeypatch.setattr(Reach, "_seen", lambda self, told=told: seen(self) | {"instruction": told})
        shown = open_benchmark('gym:LapaReach-v0,max_steps=12,make={"disable_env_checker":true}').reset([1])[0]
        assert shown["instruction"] == "push"


def test_what_shows_only_on_the_way_is_refused_likewise() -> None:
    benchmark = open_benchmark("gym:LapaReach-v0,max_steps=12")
    benchmark.reset([1])
    with pytest.raises(LapaError, match=r"is_success.*success.*info\.at_goal, info\.target"):
        benchmark.step(np.zeros((1, 2)))


def test_environments_that_do_not_fit() -> None:
    with pytest.raises(LapaError, match=r"LapaReach-v9"):
        open_benchmark("gym:LapaReach-v9")
    for option in ("", ",max_steps=0", ",max_steps=-3"):
        with pytest.raises(LapaError, match=r"max_steps"):
            open_benchmark(f"gym:LapaReach-v0{option}")
    with pytest.raises(LapaError, match=r"takes Discrete"):
        open_benchmark("gym:CartPole-v1,images=render,state=observation")


@pytest.mark.parametrize("domain", ["sim", "hand"])
@pytest.mark.parametrize("row", ["no_op", "expert"])
def test_tabletop_by_gymnasium_is_tabletop(domain: str, row: str) -> None:
    plain = open_benchmark(f"tabletop:{domain}")
    by_gym = open_benchmark(
        f'gym:lapa/Tabletop-v0,make={{"domain":"{domain}"}},max_steps=60,expert=info.expert_action,batch=3,'
        "action_names=dx+dy"
    )
    assert by_gym.spec.action == plain.spec.action
    assert by_gym.spec.cameras == plain.spec.cameras
    one, two = (roll_out(b, b.baselines()[row], Trial(5, seed=2))[0] for b in (plain, by_gym))
    told = [[(o.seed, o.instruction, o.success, o.steps) for o in outcomes] for outcomes in (one, two)]
    assert told[0] == told[1]
    seen = [b.reset([5, 6])[1] for b in (plain, by_gym)]
    np.testing.assert_array_equal(*(shown["images"]["image"] for shown in seen))
