"""Options that every dataset has, on real formats: episodes, rates, kinds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from made import pictures, video
from numpy.testing import assert_array_equal

from lapa.contracts import BadVideo, Episode, LapaError
from lapa.data.cache import estimate, make
from lapa.data.lerobot_format import LeRobotWriter
from lapa.data.pack import pack
from lapa.data.select import Choice, Chosen, even_steps, spans
from lapa.data.spec import open_dataset, parse
from lapa.data.stream import stream

NAMES = ("dx", "y", "grip")


def an_episode(number: int, length: int = 13) -> Episode:
    rng = np.random.default_rng(number)
    state = np.cumsum(rng.normal(size=(length, 3)), 0).astype(np.float32)
    actions = np.column_stack([
        rng.normal(size=length), state[:, 1] + 0.01 * rng.normal(size=length), np.arange(length) % 6 > 2
    ]).astype(np.float32)  # fmt: skip
    frames = rng.integers(0, 256, (length, 16, 16, 3), np.uint8)
    return Episode(f"e{number}", frames, 30.0, f"task {number % 3}", actions, state, NAMES, NAMES)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight episodes at 30 fps: a delta, an absolute target, a gripper."""
    path = tmp_path_factory.mktemp("select") / "ds"
    with LeRobotWriter(path, 30.0, 16, NAMES, NAMES) as writer:
        for number in range(8):
            writer.add(an_episode(number))
    return f"lerobot:{path}"


def same_both_ways(spec: str) -> tuple[object, object]:
    """A pack, checked to be what a stream of the same gives."""
    packed, streamed = pack([spec], 16, quiet=True), stream([spec], 16, quiet=True)
    for name in ("ids", "instructions", "action_spec", "kinds_from", "camera", "cameras", "embodiments"):
        assert getattr(packed, name) == getattr(streamed, name), name
    for name in ("starts", "fps", "actions", "state"):
        assert_array_equal(getattr(packed, name), getattr(streamed, name))
    for episode in range(packed.episodes):
        here = np.arange(packed.starts[episode], packed.starts[episode + 1])
        assert_array_equal(np.stack(list(streamed.frames(episode))), packed.gather(here))
        if len(here) > 2:
            assert_array_equal(np.stack(list(streamed.frames(episode, 2))), packed.gather(here[2:]))
    return packed


def test_ten_labelled_and_the_rest_as_video(root: str) -> None:
    some, rest, whole = (same_both_ways(f"{root}{option}") for option in (",episodes=0-2", ",without=0-2", ""))
    assert some.ids + rest.ids == whole.ids
    assert_array_equal(np.concatenate([some.actions, rest.actions]), whole.actions)
    assert_array_equal(some.gather(np.arange(len(some))), whole.gather(np.arange(len(some))))
    assert same_both_ways(f"{root},episodes=1-2+5+7").ids == tuple(whole.ids[i] for i in (1, 2, 5, 7))


@pytest.mark.parametrize("option", ["", ",fps=10"])
def test_deltas_that_are_assumed_are_said_to_be(root: str, option: str) -> None:
    """Without a state nothing tells y, a target, from a change."""

    def notes(spec: str) -> list[str]:
        return [note for note in same_both_ways(spec).notes if "assumed" in note]

    (note,) = notes(f"{root},state=none{option}")
    assert note.startswith("action: delta is assumed, without a state to tell by")
    assert not notes(f"{root}{option}")
    assert not notes(f"{root},state=none,kinds=delta+absolute+binary{option}")


def test_splits_are_those_of_info(root: str) -> None:
    assert same_both_ways(f"{root},split=train").episodes == 8
    with pytest.raises(LapaError, match=r'no split "tran".*train'):
        open_dataset(f"{root},split=tran")


@pytest.mark.parametrize("option", ["stride=3", "fps=10"])
def test_actions_over_skipped_frames(root: str, option: str) -> None:
    packed = same_both_ways(f"{root},kinds=delta+absolute+binary,{option}")
    whole = an_episode(0)
    rows = np.arange(0, 13, 3)
    assert_array_equal(packed.gather(np.arange(5)), whole.frames[rows])
    assert_array_equal(packed.state[:5], whole.state[rows])
    assert_array_equal(np.diff(packed.starts), 5)
    np.testing.assert_allclose(packed.fps, 10)
    made, acted = packed.actions[:5], whole.actions
    for i, row in enumerate(rows):
        np.testing.assert_allclose(made[i, 0], acted[row : row + 3, 0].sum(), rtol=1e-6)  # float32 sums of three
        assert_array_equal(made[i, 1:], acted[min(row + 2, 12), 1:])
    assert packed.action_spec.hz == 10
    assert packed.action_spec.kinds == ("delta", "absolute", "binary")


def test_kinds_are_told_by_the_data_and_overridden(root: str) -> None:
    packed = same_both_ways(root)
    assert packed.action_spec.kinds == ("delta", "absolute", "binary")
    assert packed.kinds_from == "the data"
    assert (
        "3 numbers at 30 Hz: 1 delta (dx), 1 absolute (y), 1 binary (grip); kinds told by the data" in packed.told()[0]
    )
    other = same_both_ways(f"{root},kinds=absolute")
    assert other.action_spec.kinds == ("absolute",) * 3
    assert other.kinds_from == "the option kinds"
    assert other.fingerprint != packed.fingerprint, "labels of other actions are other labels"
    with pytest.raises(LapaError, match=r"\b2 dimensions.*\b3"):
        pack([f"{root},kinds=delta+binary"], 16, quiet=True)


def test_kinds_over_a_window_go_into_pairs(root: str) -> None:
    packed = pack([root], 16, quiet=True)
    made = packed.acted(np.array([1]), np.array([5]))
    whole = an_episode(0)
    np.testing.assert_allclose(made[0, 0], whole.actions[1:5, 0].sum(), rtol=1e-6)  # float32 sums of four
    np.testing.assert_allclose(made[0, 1], whole.state[5, 1] - whole.state[1, 1], rtol=1e-6)  # one rounding
    assert made[0, 2] == whole.actions[4, 2]


def test_datasets_of_other_kinds_are_not_mixed(root: str) -> None:
    both = pack([root, f"{root},kinds=absolute"], 16, quiet=True)
    assert both.actions is None
    assert both.action_spec is None
    with pytest.raises(LapaError, match=r"different kinds.*kinds="):
        both.require_actions("finetuning")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("episodes=5-9", "episode 9; .*8"),
        ("without=20", "episode 20"),
        ("episodes=9-5", "9-5"),
        ("episodes=all", "all"),
        ("episodes=1,without=2", "not both"),
        ("stride=2,fps=5", "not both"),
        ("stride=0", "at least 1"),
        ("episodes=0-1,episodes=3", "twice"),
        ("stride=2.5", "2.5"),
        ("fps=60", "30 fps"),
        ("fps=-1", "above 0"),
        ("epsodes=1", "episodes"),
    ],
)
def test_what_cannot_be(root: str, option: str, says: str) -> None:
    with pytest.raises(LapaError, match=says):
        pack([f"{root},{option}"], 16, quiet=True)


def test_options_of_its_own_go_first() -> None:
    spec = parse("tabletop:sim,episodes=4,without=1,stride=2")
    assert spec.options == {"episodes": 4}
    assert spec.choice == Choice(without="1", stride=2)
    found = list(spec.build().episodes())
    whole = list(open_dataset("tabletop:sim,episodes=4").episodes())
    assert [e.id for e in found] == [whole[i].id for i in (0, 2, 3)]
    assert_array_equal(found[0].frames, whole[0].frames[::2])
    np.testing.assert_allclose(found[0].actions.sum(0), whole[0].actions.sum(0), atol=1e-5)  # float32 sums
    assert found[0].fps == whole[0].fps / 2


class FrontToBack:
    """A dataset that opens no single episode, with a bad one in it."""

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        for number in range(5):
            yield BadVideo("three is bad") if number == 3 else an_episode(number)

    def signature(self) -> str:
        return "x"


def test_bad_episodes_keep_their_number() -> None:
    found = list(Choice(episodes="2-4").of(FrontToBack(), "x:y").episodes())
    assert [e.id if isinstance(e, Episode) else str(e) for e in found] == ["e2", "three is bad", "e4"]
    found = list(Chosen(FrontToBack(), Choice(without="3"), "x:y", "squash").episodes())
    assert [e.id for e in found] == ["e0", "e1", "e2", "e4"]


def test_numbers_are_the_dataset_s_own() -> None:
    class Sparse(FrontToBack):
        episode_indices = (10, 12, 14, 16, 18)

    found = list(Choice(episodes="11-15").of(Sparse(), "x:y").episodes())
    assert [e.id for e in found] == ["e1", "e2"]
    with pytest.raises(LapaError, match="no episode 19; it has 5, numbers 10 to 18"):
        list(Choice(episodes="11-19").of(Sparse(), "x:y").episodes())


def test_spans_and_steps() -> None:
    assert spans("0-9+20") == [(0, 9), (20, 20)]
    assert_array_equal(even_steps(10, 30.0, 12.0), [0, 2, 5, 8])


def test_a_list_longer_than_the_name_of_a_file_may_be(root: str, tmp_path: Path) -> None:
    """A spec is tried as a path first, as paths may have commas; the system refuses names of more than 255 bytes."""
    long = "+".join(["0", "2", *["5"] * 200])
    assert len(pack([f"{root},camera=main,episodes={long}"], 16, quiet=True, cache=tmp_path).ids) == 3


def test_a_cache_entry_for_each_choice(root: str, tmp_path: Path) -> None:
    for option in ("", ",stride=2", ",episodes=0", ",kinds=delta"):
        pack([f"{root}{option}"], 16, quiet=True, cache=tmp_path)
    assert len(list(tmp_path.glob("lerobot-16-*"))) == 4


@pytest.mark.parametrize("option", [",episodes=1-3+6", ",stride=2", ",without=0,fps=12,kinds=2absolute+binary", ""])
def test_lapa_cache_makes_the_same_pack(
    root: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, fingerprints and kinds included."""
    made = {}
    for name in ("ahead", "now"):
        monkeypatch.setenv("LAPA_CACHE", str(tmp_path / name))
        if name == "ahead":
            wanted = estimate(f"{root}{option}", 16)
            make(wanted, 1)
            assert wanted.entry.exists()
        pack([f"{root}{option}"], 16, quiet=True)
        (entry,) = (tmp_path / name).glob("lerobot-16-*")
        made[name] = {file.name: file.read_bytes() for file in entry.iterdir()}
    assert made["ahead"] == made["now"]


@dataclass(frozen=True)
class Listed:
    """A dataset of the episodes that it is given."""

    of: tuple[Episode | BadVideo, ...]

    def episodes(self, size: int | None = None) -> Iterator[Episode | BadVideo]:
        yield from self.of

    def signature(self) -> str:
        return "listed"


def test_kinds_are_told_by_what_can_be_used() -> None:
    """Skipped rows join by the kinds, which are those of the first episodes: of those that can be read, have as many
    numbers and are finite."""
    bad = BadVideo("no film")
    plain = replace(an_episode(0), action_kinds=())
    odd = replace(plain, id="odd", actions=np.ones((13, 2), np.float32))
    torn = replace(plain, id="torn", actions=np.full((13, 3), np.nan, np.float32))
    for before in ((bad,) * 30, (torn,), (bad, torn)):
        *_, known, left = Chosen(Listed((*before, plain, odd)), Choice(stride=2), "set", "squash").episodes()
        assert isinstance(known, Episode)
        assert known.action_kinds == ("delta", "absolute", "binary")
        assert isinstance(left, BadVideo)
        assert "2 dimensions" in str(left)
    (alone,) = Chosen(Listed((torn,)), Choice(stride=2), "set", "squash").episodes()
    assert isinstance(alone, Episode), "what reads it says that it is not finite"


def test_paths_that_look_like_options(tmp_path: Path) -> None:
    """A path may hold NAME=; what follows the longest path that is there are options."""
    odd = tmp_path / "clips, v=2,stride=3"
    odd.mkdir()
    for options, stride in (("", None), (",stride=2", 2), (",stride=2,episodes=0-1", 2)):
        found = parse(f"video_folder:{odd}{options}")
        assert (found.path, found.choice.stride) == (str(odd), stride)
    assert parse(f"video_folder:{tmp_path},stride=3").choice.stride == 3


def test_what_is_said_beside_the_episodes_is_none(tmp_path: Path) -> None:
    """A row of the captions about a clip that is not there has no number."""
    for name in "ab":
        video(tmp_path / f"v/{name}.mp4", pictures(4))
    (tmp_path / "v/captions.csv").write_text("file,instruction\na.mp4,lift\nb.mp4,push\nc.mp4,pull\n")
    faults = [e for e in open_dataset(f"video_folder:{tmp_path}/v,without=0").episodes() if isinstance(e, BadVideo)]
    assert len(faults) == 1
    with pytest.raises(LapaError, match="no episode 2; it has 2"):
        list(open_dataset(f"video_folder:{tmp_path}/v,episodes=2").episodes())


def test_a_path_that_is_no_text(tmp_path: Path) -> None:
    """Runs, labels and datasets say what they are of, and could not."""
    with pytest.raises(LapaError, match=r"vid\\xe9os: .*ln -s"):
        parse(f"video_folder:{tmp_path}/{os.fsdecode(b'vid' + bytes([233]) + b'os')}")


def test_a_state_with_the_names_of_the_actions(tmp_path: Path) -> None:
    """With more numbers it tells by their names that the actions are targets; in another order it is refused, as
    actions are compared with it number by number."""
    joints = ("a", "b", "c")
    place = (20 + np.cumsum(np.random.default_rng(0).normal(size=(31, 3)), 0)).astype(np.float32)
    film, more = np.zeros((30, 8, 8, 3), np.uint8), np.diff(place, axis=0)
    for name, names, state in (
        ("more", ("va", "vb", "vc", *joints), np.hstack([more, place[:-1]])),
        ("mixed", joints[::-1], place[:-1, ::-1]),
    ):
        with LeRobotWriter(tmp_path / name, 10, (8, 8), joints, names, {}, quality=None) as writer:
            writer.add(Episode("e", film, 10.0, "go", place[1:], state, state_names=names, action_names=joints), {})
    found = pack([f"lerobot:{tmp_path / 'more'}"], 8, quiet=True)
    assert found.action_spec is not None
    assert found.action_spec.kinds == ("absolute",) * 3
    assert_array_equal(found.acted(np.array([0]), np.array([3])), place[None, 3])
    for options in ("", ",stride=2", ",kinds=absolute"):
        with pytest.raises(LapaError, match=r"another order: a, b, c; c, b, a\. .*state=none"):
            pack([f"lerobot:{tmp_path / 'mixed'}{options}"], 8, quiet=True)
    assert pack([f"lerobot:{tmp_path / 'mixed'},state=none"], 8, quiet=True).action_spec is not None
