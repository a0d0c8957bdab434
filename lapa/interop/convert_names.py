"""Weights of a policy on LWM, and what they are called in the released code's `params` files."""

from __future__ import annotations

import re

LAYERS = "transformer/h/scan_decoder/"
TURNED = re.compile(r"\.w(\d|q|k|v|o)\.weight$|^kept\.\w+\.weight$|^head\.output\.weight$")
NAMES = {  # ours: theirs
    "text.weight": "transformer/wte/embedding",
    "vision.weight": "transformer/vte/embedding",
    "llama.norm.weight": "transformer/ln_f/kernel",
    "kept.text.weight": "lm_head/kernel",
    "kept.vision.weight": "vision_head/kernel",
    "kept.latent.weight": "delta_head/kernel",
    "kept_table.weight": "transformer/dte/embedding",
}
HEADS = {"codes": ("dte", "delta_head"), "actions": ("ate", "action_head")}
IN_LAYERS = {
    "attention_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
    **{w: f"attention/{w}" for w in ("wq", "wk", "wv", "wo")},
    **{w: f"feed_forward/{w}" for w in ("w1", "w2", "w3")},
}


def released_name(ours: str, kind: str) -> str:
    """The name of a weight in a `params` file, of layers as they are stacked; kind: of the head's space."""
    bare = ours.removeprefix("backbone.")
    if found := re.fullmatch(r"llama\.layers\.\d+\.(\w+)\.weight", bare):
        return f"{LAYERS}{IN_LAYERS[found[1]]}/kernel"
    if found := re.fullmatch(r"head\.(embedding|output)\.weight", bare):
        table, head = HEADS[kind]
        return f"transformer/{table}/embedding" if found[1] == "embedding" else f"{head}/kernel"
    return NAMES[bare]


def layer_of(name: str) -> int | None:
    found = re.search(r"llama\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def is_turned(name: str) -> bool:
    return TURNED.search(name.removeprefix("backbone.")) is not None
