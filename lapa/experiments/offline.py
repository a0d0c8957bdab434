"""`lapa evaluate --policy P --dataset D`: a saved policy's offline error (measures/offline.py) on recorded episodes.

Episodes that the policy was finetuned on are left out. If there are no others, they judge it all the same, and the
result says so. The rows without a policy are fitted on the policy's labelled episodes if these are still there, else
on half of the given episodes, which then do not judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lapa import __version__
from lapa.artefacts.folder import load_artefact, read_json, write_json
from lapa.contracts import Array, LapaError, PolicySpec
from lapa.data.episode_keys import keys_of, seen_among
from lapa.data.index import counted
from lapa.data.observations import ONE, say_once
from lapa.data.pack import Packed, pack
from lapa.evaluate import differences
from lapa.measures.offline import lines as table_lines
from lapa.measures.offline import offline
from lapa.plots.offline import offline_error
from lapa.policies import opened
from lapa.runtime.alone import hold

Open = Callable[[int, Any, Sequence[str]], Packed]  # (pixels a side, fit, cameras) -> the dataset


def evaluate_offline(policy_path: Path, open_dataset: Open, out: Path, name: str | None = None) -> dict[str, Any]:
    """Write `out/results.json` and `out/offline.png`; returns what the JSON holds. Raises LapaError where the policy
    cannot act, or its actions do not fit the dataset's, and where `out` holds another evaluation or something else."""
    artefact = load_artefact(policy_path, "policy")
    hold(out)
    _require_room(out, {"hash": artefact.hash})
    policy = opened(artefact)
    if not policy.dimensions:
        raise LapaError(f"{policy_path} predicts no actions yet. Finetune it first (lapa finetune).")
    config = policy.config
    shape = (config.image_size, getattr(config, "fit", "squash"), getattr(config, "cameras", ()))
    packed = open_dataset(*shape)
    packed.require_actions("the offline error")
    _require_room(out, {"hash": artefact.hash, "dataset": packed.spec})
    _tell_of_another_robot(policy.spec, policy_path, packed)
    seen = _seen(artefact.config, packed)
    test, unseen = judged(packed, seen)
    fit, test, fitted_on = _fitted_on(policy_path, packed, test, seen, shape)
    result = offline(policy, packed, test, fit, policy.spec)
    made = {
        "kind": "offline",
        "method": name or str(artefact.config.get("method")),
        "policy": str(policy_path),
        "hash": artefact.hash,
        "dataset": packed.spec,
        "unseen": unseen,
        "left_out": packed.episodes - len(test) if unseen else 0,
        "fitted_on": fitted_on,
        "lapa": __version__,
        **result,
    }
    offline_error(made, out / "offline.png", f"Offline error of {policy_path} on {packed.spec}")
    write_json(out / "results.json", made)
    return made


def _tell_of_another_robot(spec: PolicySpec, policy_path: Path, packed: Packed) -> None:
    """Notes where recorded actions, states or the camera are not those that the policy speaks, reads and looks at."""
    found = differences(spec.action, packed.action_spec) if spec.action and packed.action_spec else []
    if spec.state and packed.state_names and spec.state != packed.state_names:
        found.append(f"it reads the state {', '.join(spec.state[:8])}, there is {', '.join(packed.state_names[:8])}")
    if len(spec.cameras) == 1 and packed.camera and spec.cameras[0] not in (ONE, packed.camera):
        say_once(f"{policy_path} has learnt from the camera {spec.cameras[0]}; {packed.spec} shows it {packed.camera}. "
                 "To choose: --camera.")  # fmt: skip
    if found:
        say_once(f"{policy_path} is not of the robot in {packed.spec}: {'; '.join(found)}. Its error may mean nothing.")


def judged(packed: Packed, seen: frozenset[str]) -> tuple[Array, bool]:
    """Episodes to judge by, int64: those that are not in `seen`; all of them where there are no others, and False."""
    new = np.flatnonzero(~seen_among(packed, seen))
    return (new, True) if len(new) else (np.arange(packed.episodes), False)


def lines(made: Mapping[str, Any]) -> list[str]:
    """The result as lines of text."""
    flatters = "" if made["unseen"] else " The policy was taught these very episodes, so its figures flatter it."
    left = f"; {made['left_out']} others are left out, which it was taught or the rows were fitted on"
    return [
        f"{made['method']} on {counted(made['episodes'], 'episode')} of {made['dataset']}, {made['frames']:,} frames, "
        f"chunks of {made['chunk']}{left if made['left_out'] else ''}. Open-loop error of actions; 1 is as far off as "
        f"the mean action.{flatters}",
        f"The rows that need no policy were fitted on {made['fitted_on']}.",
        *(f"  {line}" for line in table_lines(made)),
    ]


def _seen(config: Mapping[str, Any], packed: Packed) -> frozenset[str]:
    """Keys of the episodes whose actions a policy was taught. One of lapa 0.1 has only the names of its datasets."""
    if "labelled" in config:
        return frozenset(config["labelled"]["trained"])
    data = config.get("provenance", {}).get("data", {})
    return keys_of(packed) if packed.fingerprint in data.values() else frozenset()


def _fitted_on(
    policy_path: Path, packed: Packed, test: Array, seen: frozenset[str], shape: tuple[int, Any, Sequence[str]]
) -> tuple[tuple[Packed, Array], Array, str]:
    """The data that rows without a policy are fitted on, the episodes that remain to judge, and the former in words."""
    for data in (packed, _labelled(policy_path, packed, shape)):
        here = [] if data is None else np.flatnonzero(seen_among(data, seen)).tolist()
        if data is not None and here and not (data is packed and len(here) == packed.episodes):
            return (data, np.array(here)), test, f"the policy's {counted(len(here), 'labelled episode')}"
        if data is packed and len(here) == packed.episodes:
            break
    if len(test) < 2:
        raise LapaError(f"{packed.spec}: one episode cannot both fit the rows beside the policy and judge it.")
    half = test[::2]
    return (packed, half), test[1::2], f"half of the given episodes ({len(half)}); the other half judges"


def _labelled(policy_path: Path, packed: Packed, shape: tuple[int, Any, Sequence[str]]) -> Packed | None:
    """The dataset that the policy was finetuned on, if it is still where it was and has such actions and state."""
    about = policy_path / "run.json"
    specs = read_json(about, "settings of the run").get("dataset", ()) if about.exists() else ()
    size, fit, cameras = shape
    try:
        found = pack([specs] if isinstance(specs, str) else specs, size, quiet=True, fit=fit, cameras=cameras)
    except (LapaError, OSError):
        return None  # moved or removed since
    numbers = [[None if table is None else table.shape[1] for table in (each.actions, each.state)]
               for each in (packed, found)]  # fmt: skip
    return found if numbers[0] == numbers[1] and numbers[0][0] else None


def _require_room(out: Path, wanted: Mapping[str, str]) -> None:
    """Raise LapaError when `out` holds something else, or the evaluation of something else."""
    results = out / "results.json"
    inside = {path.name for path in out.iterdir() if path.name[0] != "."} if out.exists() else set()
    if other := sorted(inside - {results.name, "offline.png"}):
        raise LapaError(f"{out} holds more than an offline evaluation ({other[0]}). Choose another --out.")
    before = read_json(results, "evaluation") if results.exists() else wanted
    if changed := [key for key in wanted if before.get(key) != wanted[key]]:
        what = {"hash": "of another policy", "dataset": f"on {before.get('dataset')}"}[changed[0]]
        raise LapaError(f"{out} holds the evaluation {what}. Remove it or choose another --out.")
