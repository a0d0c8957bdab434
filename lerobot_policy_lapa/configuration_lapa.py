"""The configuration of a policy of lapa in LeRobot: config.json of a checkpoint, and the options --policy.NAME."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig

from lapa.interop.lerobot_policy import recipe_of
from lapa.recipe import Recipe

LONG = 100_000  # steps; LeRobot makes a schedule shorter for shorter training


@PreTrainedConfig.register_subclass("lapa")
@dataclass
class LapaConfig(PreTrainedConfig):
    """A policy that was trained by lapa, or begins from one.

    cameras         camera of the policy -> LeRobot's feature; {}: chosen as lapa chooses the camera of a dataset
    chunk_size      actions predicted at once; 0: as the recipe says
    n_action_steps  how many of them are executed before the policy is asked again; 0: as the policy says
    embodiment      of a policy of several robots, the one whose actions are wanted
    start           for training without --policy.path: folder of `lapa pretrain`, which gets a new head for the actions
                    of the dataset; "": the backbone of the preset, without pretraining
    preset, set     for the same: lapa's preset, and settings NAME=VALUE as `lapa finetune --set` takes them
    trainable       "head", or "all" but the vision encoder
    kept_head_rate  with --policy.path the policy keeps its head, and learns at so much of optimizer_lr; -1: as the
                    recipe says
    """

    cameras: dict[str, str] = field(default_factory=dict)
    chunk_size: int = 0
    n_action_steps: int = 0
    embodiment: str = ""

    start: str = ""
    preset: str = "video"
    set: list[str] = field(default_factory=list)
    trainable: str = ""
    kept_head_rate: float = -1.0

    # The policy reads and answers in the robot's units, and knows the statistics that it needs.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {kind: NormalizationMode.IDENTITY for kind in ("VISUAL", "STATE", "ACTION")}
    )

    optimizer_lr: float = 0.0  # 0: as the recipe says, and the three below with it
    optimizer_betas: tuple[float, float] = (0.9, 0.99)
    optimizer_weight_decay: float = 0.0
    optimizer_grad_clip_norm: float = 1.0
    drop_n_last_frames: int = 1  # no action leads on from the last frame of an episode

    push_to_hub: bool = False  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_obs_steps != 1:
            raise ValueError(f"A policy of lapa reads one observation; got n_obs_steps={self.n_obs_steps}.")
        recipe = self.recipe
        how = recipe.finetune
        self.trainable = self.trainable or recipe.trainable
        if self.trainable not in ("head", "all"):
            raise ValueError(f'policy.trainable is "head" or "all", not "{self.trainable}".')
        self.chunk_size = self.chunk_size or recipe.chunk
        if self.kept_head_rate < 0:
            self.kept_head_rate = recipe.kept_head_rate
        if not self.optimizer_lr:
            self.optimizer_lr, self.optimizer_betas = how.learning_rate, how.betas
            self.optimizer_weight_decay, self.optimizer_grad_clip_norm = how.weight_decay, how.clip

    @property
    def options(self) -> list[str]:
        """Settings of the recipe that were chosen here: `set`, chunk_size, and several cameras by name."""
        chosen = [f"chunk={self.chunk_size}"] if self.chunk_size else []
        if len(self.cameras) > 1:
            chosen.append(f"policy.cameras={json.dumps(list(self.cameras))}")
        return [*self.set, *chosen]

    @property
    def recipe(self) -> Recipe:
        """The recipe of a policy that begins here. Raises LapaError for unknown settings."""
        return recipe_of(self.preset, self.options)

    @property
    def learning_rate(self) -> float:
        """At its peak: as much gentler as stage 3 is, where a head is kept."""
        return self.optimizer_lr * (self.kept_head_rate if self.pretrained_path else 1)

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW, as stage 3 has it."""
        return AdamWConfig(
            lr=self.learning_rate,
            betas=self.optimizer_betas,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Warm-up over a hundredth of the steps, then cosine to a twentieth."""
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=LONG // 100,
            num_decay_steps=LONG,
            peak_lr=self.learning_rate,
            decay_lr=self.learning_rate / 20,
        )

    def validate_features(self) -> None:
        """LeRobot calls this; `LapaPolicy` checks cameras, state and actions by name."""

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None
