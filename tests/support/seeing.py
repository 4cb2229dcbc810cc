"""A small random checkpoint of a model that sees, whose rotary positions have three numbers (M-RoPE).

Its processor of images, and vLLM's form of it, need torchvision, which machines of this project do not have.
"""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig
from transformers.utils import logging

from tests.support.tiny_models import SIZES, byte_tokenizer, peaked

IDS = {"vision_start_token_id": 400, "vision_end_token_id": 401, "image_token_id": 402, "video_token_id": 403}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]}
VISION = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 4,
    "out_hidden_size": SIZES["hidden_size"],
    "fullatt_block_indexes": [1],
    "window_size": 56,
}


def build_seeing(directory: Path) -> Path:
    """Writes a random Qwen2.5-VL with a tokenizer; returns ``directory``."""
    text = {name: value for name, value in SIZES.items() if name != "head_dim"}
    config = Qwen2_5_VLConfig(text_config=text | {"rope_parameters": MROPE}, vision_config=VISION, **IDS)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    peaked(model)
    logging.disable_progress_bar()
    model.save_pretrained(directory)
    byte_tokenizer(SIZES["vocab_size"]).save_pretrained(directory)
    return directory
