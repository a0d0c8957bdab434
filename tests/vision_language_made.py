"""Tiny vision-language models of random weights, saved with a tokenizer and an image processor, as hubs have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

WORDS = ["push", "the", "red", "block", "to", "blue", "circle", "then", "stop", "left", "of", "it", "move", "User:",
         "Assistant:", "user", "model", "assistant",
         "disc", "star", "green", "Push", "gently", ",", "!", "gently!", "it,"]  # fmt: skip
MARKS = ["<pad>", "<unk>", "<bos>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
         "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<|im_start|>", "<|im_end|>",
         "<|vision_start|>", "<|vision_end|>", "<img>", "</img>"]  # fmt: skip
VOCABULARY = 64
IMAGE = MARKS.index("<image>")
SIZE = 28  # pixels that the vision encoders take
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 2,
        "eos_token_id": MARKS.index("<|im_end|>"), "max_position_embeddings": 512}  # fmt: skip
EYES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIZE, "patch_size": 7}  # fmt: skip
QWEN = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 7,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32}  # fmt: skip
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}

FORMS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str, dict[str, Any]]] = {
    # name: config, text, vision, more, image processor, its settings
    "smolvlm": ("SmolVLM", {**TEXT, "model_type": "llama"}, EYES, {"scale_factor": 2}, "SmolVLM",
                {"size": {"longest_edge": 4 * SIZE}, "max_image_size": {"longest_edge": SIZE}}),
    "idefics3": ("Idefics3", {**TEXT, "model_type": "llama"}, EYES, {"scale_factor": 2}, "Idefics3",
                 {"size": {"longest_edge": 4 * SIZE}, "max_image_size": {"longest_edge": SIZE}}),
    "paligemma": ("PaliGemma", {**TEXT, "model_type": "gemma", "head_dim": 8},
                  {**EYES, "model_type": "siglip_vision_model", "projection_dim": 32},
                  {"projection_dim": 32, "hidden_size": 32}, "Siglip", {"size": {"height": SIZE, "width": SIZE}}),
    "gemma3": ("Gemma3", {**TEXT, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8,
                          "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
               EYES, {"mm_tokens_per_image": 4}, "Gemma3", {"size": {"height": SIZE, "width": SIZE}}),
    "llava_onevision": ("LlavaOnevision", {**TEXT, "model_type": "qwen2"},
                        {**EYES, "model_type": "siglip_vision_model"},
                        {"image_grid_pinpoints": [[SIZE, SIZE], [2 * SIZE, 2 * SIZE]]}, "LlavaOnevision",
                        {"size": {"height": SIZE, "width": SIZE},
                         "image_grid_pinpoints": [[SIZE, SIZE], [2 * SIZE, 2 * SIZE]]}),
    "internvl": ("InternVL", {**TEXT, "model_type": "qwen2"},
                 {**EYES, "image_size": [SIZE, SIZE], "patch_size": [7, 7]}, {"downsample_ratio": 0.5}, "GotOcr2",
                 {"size": {"height": SIZE, "width": SIZE}}),
    "qwen2_5_vl": ("Qwen2_5_VL", {**TEXT, "rope_parameters": ROPE},
                   {**QWEN, "window_size": 28, "fullatt_block_indexes": [1]}, {}, "Qwen2VL", {}),
    "qwen3_vl": ("Qwen3VL", {**TEXT, "head_dim": 8, "rope_parameters": ROPE},
                 {**QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}, {}, "Qwen2VL", {}),
}  # fmt: skip


def made(name: str, folder: Path) -> Path:
    """A model of this family in `folder`."""
    kind, text, eyes, more, processor, settings = FORMS[name]
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=eyes, image_token_id=IMAGE, video_token_id=VOCABULARY - 1,
        tie_word_embeddings=True, **more,
    )  # fmt: skip
    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1 or "projector" in key:  # so that what is read makes a difference
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    if processor == "Qwen2VL":
        sizes = {"patch_size": 7, "merge_size": 2, "temporal_patch_size": 2, "size": {"shortest_edge": 196,
                 "longest_edge": 784}}  # fmt: skip
        settings = {**settings, **sizes}
    getattr(transformers, f"{processor}ImageProcessorPil")(**settings).save_pretrained(folder)
    known = {word: i for i, word in enumerate([*MARKS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<bos>",
        additional_special_tokens=MARKS[3:],
    ).save_pretrained(folder)  # fmt: skip
    return folder
