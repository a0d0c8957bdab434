"""Which of a source's cameras is read where nobody says: one that films the scene in colour.

Passed over, in this order of dislike: depth maps and other pictures that are no colour film (infrared, segmentation,
touch), then cameras on a wrist, a hand or a gripper, whose picture moves with the robot. One list of words for all
readers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lapa.contracts import LapaError
from lapa.plugins import choose

# A word of a name is what stands between other characters than letters: "robot0_eye_in_hand" has eye, in and hand.
DEPTH = re.compile(
    r"(raw|aligned|head|wrist|hand|left|right|front|top|[lr])?(depth|depths|disparity|depthmap|depthimage|depthcam)"
    r"(map|image|img|camera|cam|raw|[lr])?|zdepth|rangemap"
)
NO_COLOUR = re.compile(
    r"(infra|infrared|ir|thermal|lwir|fir|tactile|touch|gelsight|mask|masks|seg|segmentation|semantic|semantics"
    r"|instance|panoptic|normals|flow|opticalflow|pointcloud|pcd|lidar|heatmap|saliency|dvs)(image|img|camera|cam)?"
)
COLOUR = re.compile(r"(rgb|rgbd|bgr|colou?r)(image|img|camera|cam)?")
ON_HAND = re.compile(
    r"(left|right|l|r|in|eyein|eyeon|on|robot|arm|cam|camera|image|img|rgb)?"
    r"(wrists?|hands?|grippers?|palms?|fingers?|fingertips?|eef|ee|tcp|endeffector|effector|flange)"
    r"(left|right|l|r|cam|camera|cams|eye|view|image|img|rgb|mounted|tip|tips|vision|realsense|zed|fisheye)?"
)
GREY_FORMATS = re.compile(r"gray|grey|y8|y16|mono|ya8|ya16")
DEEP_FORMATS = re.compile(r"(gray|grey|y|mono|ya)_?(9|1[0-6]|32|f)")


@dataclass(frozen=True)
class Camera:
    """A camera of a source. `fault` says why it is no colour film ("" where it is one), `grey` that it has one channel,
    `on_hand` that it moves with the robot's hand."""

    name: str
    fault: str = ""
    grey: bool = False
    on_hand: bool = False

    @property
    def rank(self) -> int:
        """0 for the best."""
        return 3 if self.fault else 2 if self.grey else int(self.on_hand)


def camera(
    name: str,
    *,
    flags: Mapping[str, Any] | None = None,
    channels: int | None = None,
    bits: int | None = None,
    pixels: str | None = None,
) -> Camera:
    """What is known of a camera called `name`: `flags` are what the source says of it, such as {"is_depth_map": true,
    "video.pix_fmt": "gray12le"}; `channels` and `bits` (of one channel) of its pictures; `pixels` the format of its
    video, as ffmpeg calls it. What is not known is None."""
    told = {str(key).rpartition(".")[2].lower(): value for key, value in (flags or {}).items()}
    pixels = str(pixels or told.get("pix_fmt") or "").lower()
    if channels is None and isinstance(told.get("channels"), int):
        channels = told["channels"]
    if bits is None:
        bits = next((told[key] for key in ("bit_depth", "bits") if isinstance(told.get(key), int)), None)
    grey = channels == 1 or bool(GREY_FORMATS.match(pixels))
    return Camera(name, _fault(name, told, channels, bits, pixels), grey, is_on_hand(name))


def _fault(name: str, told: Mapping[str, Any], channels: int | None, bits: int | None, pixels: str) -> str:
    flagged = [key for key in ("is_depth_map", "is_depth", "depth") if _true(told.get(key))]
    if flagged or "depth_unit" in told:
        return "a depth map"
    if DEEP_FORMATS.match(pixels):
        return f"a depth map ({pixels})"
    if (bits or 8) > 8 and channels in (None, 1):
        return f"a depth map ({bits} bits)"
    return fault_by_name(name)


def fault_by_name(name: str) -> str:
    """Why a camera of this name is no colour film, "" where the name does not say so."""
    if any(NO_COLOUR.fullmatch(word) for word in _words(name)):
        return "no colour film"
    for word in _words(name):
        if COLOUR.fullmatch(word):  # "color_aligned_to_depth" is in colour, "aligned_depth_to_color" is not
            return ""
        if DEPTH.fullmatch(word):
            return "a depth map"
    return ""


def is_on_hand(name: str) -> bool:
    """Does its name say that a camera is on a wrist, a hand or a gripper?"""
    words = _words(name)
    return any(ON_HAND.fullmatch(word) for word in words) or {"end", "effector"} <= set(words)


def best(cameras: Sequence[Camera], source: str) -> tuple[str, str]:
    """The name of the camera to read, and why, such as "the first that is not on a hand"; "" where there is one only.

    Of equals the first one. Raises LapaError, which names `source`, where none is a colour film: to read such a camera
    all the same, it has to be named.
    """
    chosen = min(cameras, key=lambda one: one.rank)
    if chosen.fault:
        what = "; ".join(f"{one.name} is {_fault_of(one)}" for one in cameras)
        raise LapaError(
            f"{source}: has no colour camera: {what}. lapa reads pictures in colour; to try one all the same, name it: "
            "camera=NAME."
        )
    if len(cameras) == 1:
        return chosen.name, ""
    passed = [f"{one.name} ({_fault_of(one)})" for one in cameras if one.rank > chosen.rank]
    return chosen.name, "the first" + (f" but for {', '.join(passed)}" if passed else "")


def named(wanted: str, names: Sequence[str], where: str) -> str:
    """The one of `names` that is called `wanted`: whole, or by the end of it from a dot or a slash on. Raises LapaError
    with the names where there is none, or several."""
    words = re.split(r"[./]", wanted)
    ends = [name for name in names if re.split(r"[./]", name)[-len(words) :] == words]
    return ends[0] if len(ends) == 1 and wanted not in names else choose(wanted, names, "camera", where)


def _fault_of(one: Camera) -> str:
    return one.fault or ("of one channel" if one.grey else "on the hand")


def _words(name: str) -> list[str]:
    """Lower-case words of letters: "leftWrist_cam2" -> left, wrist, cam."""
    return re.findall(r"[a-z]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower())


def _true(value: Any) -> bool:
    return value is True or value == 1 or str(value).lower() == "true"
