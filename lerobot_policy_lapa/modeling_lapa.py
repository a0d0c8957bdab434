"""A policy of lapa as a policy of LeRobot: the same weights, the same actions."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor

from lapa.contracts import Observation
from lapa.data.observations import Seen
from lapa.interop.lerobot_policy import (
    ANEW,
    STATE,
    TASK,
    Opened,
    begin,
    executed,
    features_of,
    mapping,
    open_policy,
    require_fit,
    save_policy,
    trains,
)
from lerobot_policy_lapa.configuration_lapa import LapaConfig
from lerobot_policy_lapa.pictures import as_pictures

FILES = ("config.json", "model.safetensors", "lapa_artefact/config.json")
PAD = "action_is_pad"


class LapaPolicy(PreTrainedPolicy):
    """Wraps a lapa.Policy. `made`: one that was opened before (`from_pretrained`); without it a policy begins from
    `config.start`, with a head for the actions of the dataset that LeRobot gives as `dataset_meta`."""

    config_class = LapaConfig
    name = "lapa"

    def __init__(self, config: LapaConfig, made: Opened | None = None, dataset_meta: Any = None, **_: Any) -> None:
        super().__init__(config)
        self.made = made or _begun(config, dataset_meta)
        self.policy = self.made.policy
        self._take_features(dataset_meta)
        config.trainable = trains(self.made, config.trainable)
        parameters = list(self.policy.trainable(config.trainable))
        count = sum(parameter.numel() for parameter in parameters)
        for line in [*mapping(self.policy.spec, config.cameras), f"trainable ({config.trainable}): {count:,} weights"]:
            logging.info("lapa: %s", line)
        self._told_of_no_task = False
        self.reset()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        dataset_meta: Any = None,
        **_: Any,
    ) -> LapaPolicy:
        """A checkpoint: a folder, or user/name on the hub. Weights are checked by name, shape and hash."""
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(
                snapshot_download(
                    str(pretrained_name_or_path),
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    force_download=force_download,
                    allow_patterns=list(FILES),
                )
            )
        config = config or PreTrainedConfig.from_pretrained(folder)
        policy = cls(config, made=open_policy(folder), dataset_meta=dataset_meta)
        return policy.to(config.device).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        self.config._save_pretrained(save_directory)
        own = "policy."
        tensors = self.policy.state_dict() if state_dict is None else {
            name.removeprefix(own): tensor for name, tensor in state_dict.items() if name.startswith(own)
        }  # fmt: skip
        save_policy(self.made, save_directory, tensors)

    # --- learning

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """What `config.trainable` says."""
        return [parameter for parameter in self.policy.parameters() if parameter.requires_grad]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of lapa's stage 3: action float [B, chunk, A] in the robot's units."""
        observations = self._observations(batch)
        seen = Seen(
            {camera: np.stack([one["images"][camera] for one in observations]) for camera in self.config.cameras},
            [one["instruction"] for one in observations],
            np.stack([one["state"] for one in observations]) if self.policy.spec.state else None,
            tuple(one.get("embodiment", "") for one in observations),
        )
        actions = batch[ACTION].detach().float().cpu().numpy()
        pad = batch[PAD].cpu().numpy() if PAD in batch else np.zeros(actions.shape[:2], bool)
        loss, logs = self.policy.loss(self.policy.robot_batch(seen, actions, pad))
        return loss, {name: float(value) for name, value in logs.items()}

    # --- acting

    def reset(self) -> None:
        """An episode begins."""
        self._queue: deque[Tensor] = deque()
        self.policy.reset()

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """float32 [B, chunk, A] in the robot's units."""
        self.eval()
        # What a backbone keeps of an instruction may be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            observations = self._observations(batch)
            actions = self.policy.act_batch(observations, range(len(observations)))
        return torch.from_numpy(np.ascontiguousarray(actions, np.float32)).to(self.config.device)

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """float32 [B, A]: the next action; the policy is asked once in `n_action_steps`."""
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch).transpose(0, 1)[: self.config.n_action_steps])
        return self._queue.popleft()

    def _observations(self, batch: Mapping[str, Any]) -> list[Observation]:
        spec, cameras = self.policy.spec, self.config.cameras
        wanted = [*cameras.values(), *([STATE] if spec.state else [])]
        if missing := [name for name in wanted if name not in batch]:
            there = ", ".join(name for name in batch if name.startswith("observation."))
            raise ValueError(f"The policy reads {missing[0]}, which is not there. There is {there}. See --rename_map.")
        images = {camera: as_pictures(batch[feature], feature) for camera, feature in cameras.items()}
        count = len(next(iter(images.values())))
        tasks = batch.get(TASK) or [""] * count
        tasks = [tasks] * count if isinstance(tasks, str) else list(tasks)
        if not all(tasks) and not self._told_of_no_task:
            self._told_of_no_task = True
            logging.warning("lapa: an observation has no task; the policy is given an empty instruction.")
        state = batch[STATE].detach().float().cpu().numpy() if spec.state else None
        observations = []
        for i in range(count):
            one = Observation(images={camera: films[i] for camera, films in images.items()}, instruction=tasks[i])
            if state is not None:
                one["state"] = state[i]
            if self.config.embodiment:
                one["embodiment"] = self.config.embodiment
            observations.append(one)
        return observations

    # --- what the dataset or the environment has

    def _take_features(self, meta: Any) -> None:
        """Settle which feature is which camera, and let the configuration say what is read. Raises ValueError or
        LapaError where actions or state do not fit."""
        config, spec = self.config, self.policy.spec
        cameras = dict(config.cameras) or features_of(spec.cameras)
        if set(cameras) != set(spec.cameras):
            if len(cameras) != 1 or len(spec.cameras) != 1:
                raise ValueError(
                    f"policy.cameras names {', '.join(cameras)}; the policy looks at {', '.join(spec.cameras)}."
                )
            cameras = dict(zip(spec.cameras, cameras.values(), strict=True))
        config.cameras = {camera: cameras[camera] for camera in spec.cameras}
        action = config.output_features.get(ACTION) if config.output_features else None
        numbers = self.policy.dimensions
        if action is not None and action.shape[0] != numbers:
            raise ValueError(f"The policy answers with {numbers} numbers; an action here has {action.shape[0]}; {ANEW}")
        if meta is not None:
            for told in require_fit(spec, meta.features, meta.fps):
                logging.warning("lapa: %s", told)
        config.n_action_steps = executed(spec, config.chunk_size, config.n_action_steps)
        size = self.policy.config.image_size
        before = config.input_features or {}
        config.input_features = {
            feature: before.get(feature) or PolicyFeature(FeatureType.VISUAL, (3, size, size))
            for feature in config.cameras.values()
        }
        if spec.state:
            config.input_features[STATE] = PolicyFeature(FeatureType.STATE, (len(spec.state),))
        config.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, (numbers,))}


def _begun(config: LapaConfig, meta: Any) -> Opened:
    if meta is None:
        raise ValueError(
            "A policy of lapa begins with a dataset (lerobot-train --policy.type=lapa --policy.start=FOLDER), or from "
            "a checkpoint (--policy.path=FOLDER, made by `lapa export lerobot-policy`)."
        )
    chosen = next(iter(config.cameras.values()), "")
    dataset = f"{meta.root},camera={chosen}" if len(config.cameras) == 1 else str(meta.root)
    return begin(dataset, config.recipe, config.start, config.options)
