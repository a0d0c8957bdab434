"""The pipelines around the policy: names, a batch axis, the device. Nothing is normalised (configuration_lapa.py)."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from lerobot_policy_lapa.configuration_lapa import LapaConfig

Before = PolicyProcessorPipeline[dict[str, Any], dict[str, Any]]
After = PolicyProcessorPipeline[PolicyAction, PolicyAction]


def make_lapa_pre_post_processors(config: LapaConfig, dataset_stats: Any = None) -> tuple[Before, After]:
    """The two pipelines. The steps that could normalise are there because lerobot-train sets their options; statistics
    are not used."""
    kinds = config.normalization_mapping
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device),
        NormalizerProcessorStep(features={**config.input_features, **config.output_features}, norm_map=kinds),
    ]
    after = [
        UnnormalizerProcessorStep(features=config.output_features, norm_map=kinds),
        DeviceProcessorStep(device="cpu"),
    ]
    return (
        Before(steps=before, name=POLICY_PREPROCESSOR_DEFAULT_NAME),
        After(
            steps=after,
            name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )
