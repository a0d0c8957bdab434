"""One frozen Recipe describes a run of all three stages; it is saved inside every artefact that the run makes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple, get_type_hints

from lapa.actions.meaning import Given
from lapa.actions.tables import Decoding
from lapa.contracts import LapaError
from lapa.models.idm import IDMConfig
from lapa.models.laq import LAQConfig
from lapa.models.objectives import Objectives
from lapa.models.points import PointsConfig
from lapa.models.video_diffusion import VideoDiffusionConfig
from lapa.plugins import choose, configure, typed
from lapa.training.loop import Optimisation


@dataclass(frozen=True)
class PolicySettings:
    """The policy of stages 2 and 3, and the parts that policies are made of."""

    name: str = ""
    """a plug-in of lapa/policies; "": the method's own (methods.py)"""
    options: dict[str, Any] = field(default_factory=dict)
    """options of that plug-in, where it is one of your own"""
    backbone: str = "tiny"
    """a plug-in of lapa/backbones; tiny was taught by Tabletop and is for it"""
    backbone_options: dict[str, Any] = field(default_factory=dict)
    """its options"""
    head: str = "parallel"
    """a plug-in of lapa/heads"""
    head_options: dict[str, Any] = field(default_factory=dict)
    """its options"""
    code_head: str = ""
    """the head of latent codes in stage 2, such as nearest, where it is another than that of the actions; "": `head`"""
    decoding: Decoding = "expectation"
    """classes to robot units: the expected action, the same at full length, or what the likeliest class means"""
    cameras: tuple[str, ...] = ()
    """the cameras that it looks at, by name; []: the one that the dataset gives"""
    state: bool = False
    """read the state of the robot as well; the dataset must have one"""
    execute: int = 0
    """how many actions of an answer are carried out before the policy is asked again; 0: all, or what the head says"""


@dataclass(frozen=True)
class Recipe:
    """All settings. The defaults are the `laptop` preset, tuned on Tabletop (docs/experiments.md)."""

    window: float = 0.2
    """seconds between x_t and x_{t+H}; each episode's fps turns them into frames (at least one)"""
    end: Literal["drop", "clip"] = "drop"
    """pairs that reach past the end of an episode: drop them, or clip the later frame to the last one"""
    hold_out: int = 20
    """every so many episodes one is kept from training LAQ and the policy of stage 2, which are watched on it instead;
    with fewer episodes none is"""
    patience: int = 3
    """stage 2 is evaluated ten times on held-out episodes. It ends after so many evaluations without a better one, and
    keeps the weights of the best; 0: neither"""
    laq: LAQConfig = field(
        default_factory=lambda: LAQConfig(
            image_size=48, patch_size=8, dim=64, spatial_depth=1, temporal_depth=1, heads=4, dim_head=16,
            codes=1, codebook_size=16, quant_dim=32, normalise=True, decoder="unet", unet_width=24,
            quantizer_options={"threshold": 0.4, "balance": 0.03, "attract": 0.05},
        )
    )  # fmt: skip
    """latent action quantization (stage 1)"""
    starts: tuple[dict[str, Any], ...] = ({}, {"warmup": 900})
    """further options of LAQ's quantizer, each tried for a quarter of the steps; the start with the lowest held-out
    error continues. [] or one: no trial. There is none either where another quantizer or its options are chosen"""
    objectives: Objectives = Objectives()
    """further losses of LAQ beside the reconstruction (stage 1)"""
    quantize: Optimisation = Optimisation(steps=1300, batch_size=64, learning_rate=2e-3, clip=10.0, warmup=50)
    """optimisation of LAQ"""
    idm: IDMConfig = IDMConfig()
    """inverse dynamics model of the VPT baseline (stage 1)"""
    fit_idm: Optimisation = Optimisation(steps=1500, batch_size=64, learning_rate=2e-3)
    """optimisation of the inverse dynamics model"""
    points: PointsConfig = PointsConfig()
    """what `lapa track` follows (stages 1 and 2a in one)"""
    fit_points: Optimisation = Optimisation(
        steps=600, batch_size=32, learning_rate=3e-3, weight_decay=1e-2, precision="float32"
    )
    """optimisation of it"""
    policy: PolicySettings = PolicySettings(decoding="norm_preserving")
    """the policy (stages 2 and 3)"""
    pretrain: Optimisation = Optimisation(steps=2000, batch_size=128, learning_rate=1e-3)
    """optimisation of stage 2"""
    finetune: Optimisation = Optimisation(steps=150, batch_size=64, learning_rate=2e-3)
    """optimisation of stage 3"""
    trainable: Literal["head", "all"] = "head"
    """what stage 3 trains: the new head alone (best on Tabletop with few labels), or all but the vision encoder"""
    head: Literal["linear", "own", "new"] = "linear"
    """stage 3. "linear": keep the head; labels tell what its classes mean; nothing is trained. "own": as in the paper,
    replace a latent head, but keep a head that predicts actions (VPT, ActionVLA). "new": always a new head"""
    kept_head_rate: float = 1.0
    """stage 3: a policy that keeps its head of actions learns at so much of finetune.learning_rate; below 1 it forgets
    less of what it can do already (docs/world_table.md)"""
    replay: float = 0.5
    """stage 3 with `head` "own", given the videos and labels of stage 2 (`lapa finetune --videos --labels`): the share
    of the steps that learns these again, so that few trajectories do not wipe out what they taught"""
    choose_decoding: bool = False
    """stage 3: choose policy.decoding by the error and the step length on labelled episodes that are held out, unless
    it is set; for robots on which nobody has tried which is best"""
    clusters: int = 16
    """number of classes of robot actions, each a whole action (k-means); 0: bins of each dimension (the paper)"""
    bins: int = 32
    """equal-mass bins per action dimension, without clusters"""
    chunk: int = 1
    """actions predicted at once"""
    latent_chunk: int = 1
    """windows whose codes stage 2 predicts at once, one behind the other: a chunk of latent actions"""
    actions: Given = "auto"
    """absolute actions: learnt relative to the present state where there is a state of as many numbers ("auto"), always
    ("relative"), or as they are ("given")"""
    scale: Literal["joint", "each"] = "joint"
    """actions of several datasets: as they are, in one space, or each dataset's brought to -1..1 by its own 1st and
    99th percentile first, for robots of different units or speeds"""
    planner: VideoDiffusionConfig = VideoDiffusionConfig()
    """video diffusion of the UniPi baseline, on the policy's backbone (stages 2 and 3)"""
    pretrain_planner: Optimisation = Optimisation(steps=1800, batch_size=64, learning_rate=2e-3, warmup=50)
    """optimisation of UniPi's stage 2"""
    finetune_planner: Optimisation = Optimisation(steps=150, batch_size=64, learning_rate=2e-3)
    """optimisation of UniPi's stage 3"""

    def __post_init__(self) -> None:
        if not all(isinstance(options, dict) for options in self.starts):
            raise LapaError(
                f'starts are options of the quantizer, such as {{}} and {{"warmup": 900}}; got {self.starts}.'
            )
        if not 0 <= self.replay < 1:
            raise LapaError(f"replay is a share of the steps of stage 3, from 0 to below 1, not {self.replay:g}.")

    def start(self, number: int) -> Recipe:
        """The recipe with the options of one of its starts."""
        options = {**self.laq.quantizer_options, **self.starts[number]}
        return replace(self, laq=replace(self.laq, quantizer_options=options))

    @property
    def policy_image_size(self) -> int:
        """Pixels a side that the policy's backbone sees."""
        size: int = configure("backbones", self.policy.backbone, self.policy.backbone_options).image_size
        return size

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content


# Of the whole numbers; all the others count something that there must be.
ZERO_IS_FINE = ("warmup", "clusters", "patience", "execute", "pixels")

OWN_OPTIONS = ("laq", "quantizer_options")

PRESETS: dict[str, Recipe] = {
    "laptop": Recipe(),
    # Real clips: the paper's window for robot video; codes of frozen features, judged on real_g1 (docs/latents.md).
    "video": Recipe(
        window=0.6,
        hold_out=10,
        laq=LAQConfig(
            image_size=96, patch_size=12, dim=96, spatial_depth=2, temporal_depth=2, heads=6, dim_head=16,
            encoder="efficientnet", quant_dim=48, flow=0.5, root_length=True,
            codes=2, codebook_size=64, decoder="unet", unet_width=32,
        ),
        starts=(),
        quantize=Optimisation(steps=1500, batch_size=32, learning_rate=2e-3, clip=10.0, warmup=50),
        # Chunks of numbers, all layers, gently: what the G1 and Meta-World wanted (docs/latents.md, world_table.md).
        policy=PolicySettings(backbone="pieces", head="regression", code_head="nearest"),
        finetune=Optimisation(steps=400, batch_size=64, learning_rate=5e-4),
        trainable="all",
        head="own",
        kept_head_rate=0.1,
        choose_decoding=True,
        clusters=0,
        chunk=8,
        latent_chunk=2,
    ),
    # The released settings (paper.md section 1): 343.8M parameters; shape-tested here, trained on GPUs.
    "paper": Recipe(
        window=0.6,
        laq=LAQConfig(),
        starts=(),
        quantize=Optimisation(
            steps=100_005, batch_size=64, learning_rate=1e-4, clip=0.5, warmup=1, schedule="constant"
        ),
        policy=PolicySettings(
            backbone="lwm", head="autoregressive", head_options={"in_backbone": True}, decoding="centre"
        ),
        pretrain=Optimisation(
            steps=70_000, batch_size=128, learning_rate=2e-5, betas=(0.9, 0.999), warmup=1, schedule="constant"
        ),
        finetune=Optimisation(
            steps=2000, batch_size=128, learning_rate=2e-5, betas=(0.9, 0.999), warmup=1, schedule="constant"
        ),
        trainable="all",
        head="own",
        clusters=0,
        bins=256,
    ),
}  # fmt: skip

ABOUT = {
    "laptop": "tuned on Tabletop, 48 pixels: minutes on two cores",
    "video": "real clips and robots, 96 pixels: 2 codes of 64 kinds, 0.6 s apart, of what a frozen EfficientNet sees",
    "paper": "the released settings: 343.8M weights in LAQ, a policy of 7B on LWM-Chat-1M (docs/lapa_7b.md): for GPUs",
}

THE_PAPERS = (
    "The paper's policy is LWM-Chat-1M, 7B weights, in which codes and actions are generated one after another; "
    "convert its weights first (docs/lapa_7b.md). The published files were never seen by those who tested this. "
    "Here the backbone is {backbone} ({pixels} pixels)."
)
NOTES = {"paper": THE_PAPERS}  # preset -> what must be known of its policy


def preset(name: str) -> Recipe:
    """A named recipe. Raises LapaError with a suggestion for an unknown name."""
    return PRESETS[choose(name, PRESETS, "preset")]


def nearest_preset(saved: Mapping[str, Any]) -> str:
    """The preset that a recipe as `to_json` gives it, of whatever version of lapa, has most settings in common with."""
    wanted = _flat(saved)

    def others(name: str) -> int:
        has = _flat(PRESETS[name].to_json())
        return sum(has.get(path) != value for path, value in wanted.items())

    return min(PRESETS, key=others)


def _flat(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings as {"laq.dim": 64}."""
    made: dict[str, Any] = {}
    for key, value in node.items():
        made |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return made


def override(recipe: Recipe, option: str) -> Recipe:
    """The recipe with one setting changed, given as "laq.codebook_size=32". See `overridden`."""
    return overridden(recipe, [option])


def overridden(recipe: Recipe, options: Sequence[str]) -> Recipe:
    """The recipe with several settings changed, in any order; of two of one name the last counts. Choosing another
    plug-in, such as "laq.quantizer=fsq", drops the options of the one before, and its starts; so does choosing the
    options of the quantizer. Options and starts that are given beside it stay.

    Raises LapaError for an unknown name (with a suggestion), for a value of another type, and for settings that do not
    go together.
    """
    told = []
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise LapaError(f'"{option}" is not NAME=VALUE; write for example laq.codebook_size=32.')
        told.append(_Told(tuple(name.strip().replace("-", "_").split(".")), value.strip(), option))
    changed: Recipe = _changed(recipe, told)
    own = changed.laq.quantizer != recipe.laq.quantizer or any(each.path == OWN_OPTIONS for each in told)
    return replace(changed, starts=()) if own and all(each.path != ("starts",) for each in told) else changed


class _Told(NamedTuple):
    """An option: the setting below a group, its value as text, and the whole."""

    path: tuple[str, ...]
    text: str
    option: str


def _options_of(plugin: str) -> str:
    """The setting that holds the options of the plug-in that another setting names."""
    return "options" if plugin == "name" else f"{plugin}_options"


def _changed(node: Any, told: Sequence[_Told]) -> Any:
    """A copy of a group of settings in which those that are told, all below it, are what their texts say."""
    types = get_type_hints(type(node))
    groups = {key: [f.name for f in fields(kind)] for key, kind in types.items() if is_dataclass(kind)}
    values: dict[str, Any] = {}
    below: dict[str, list[_Told]] = {}
    for path, text, option in told:
        name = path[0]
        inside = [f"{group}.{name}" for group, settings in groups.items() if name in settings]
        if name not in types and inside:
            raise LapaError(f'There is no setting "{name}". Did you mean {" or ".join(inside)}?')
        choose(name, types, "setting")
        if name in groups:
            if not path[1:]:
                raise LapaError(f'"{option}": {name} is a group; name one of {", ".join(groups[name])}.')
            below.setdefault(name, []).append(_Told(path[1:], text, option))
            continue
        if path[1:]:
            raise LapaError(f'"{option}": {name} has no settings below it.')
        values[name] = typed(text, types[name], name, f'"{option}"', getattr(node, name))
        least = 0 if types[name] is float or name in ZERO_IS_FINE else 1
        if types[name] in (int, float) and not least <= values[name] < float("inf"):
            raise LapaError(f'"{option}": {name} is at least {least}.')
    # Another plug-in has other options: those of the one before mean nothing to it.
    others: dict[str, Any] = {_options_of(name): {} for name, value in values.items()
                              if value != getattr(node, name) and _options_of(name) in types}  # fmt: skip
    values |= {name: _changed(getattr(node, name), parts) for name, parts in below.items()}
    try:
        return replace(node, **{**others, **values})
    except LapaError as error:
        given = " ".join(each.option for each in told if each.path[0] not in groups)
        raise LapaError(f'"{given}": {error}') from None
