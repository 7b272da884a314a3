"""Tiny models of Hugging Face with random weights, written to folders as ``save_pretrained`` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from distill.huggingface.source import transformers

DISTILBERT = {
    "model_type": "distilbert",
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 64,
    "initializer_range": 0.2,
}
ROBERTA = {
    "model_type": "roberta",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "type_vocab_size": 1,
    "max_position_embeddings": 66,
    "initializer_range": 0.2,
}
_TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
VIT = {"model_type": "vit", **_TINY, "num_hidden_layers": 2, "patch_size": 8, "image_size": 32}
MOBILEVIT = {
    "model_type": "mobilevit",
    "hidden_sizes": [16, 24, 32],
    "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
    "image_size": 32,
    "output_stride": 8,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "layer_type": "basic",
}
MOBILENET_V2 = {"model_type": "mobilenet_v2", "depth_multiplier": 0.1, "image_size": 32, "finegrained_output": False}
WAV2VEC2 = {
    "model_type": "wav2vec2",
    **_TINY,
    "conv_dim": [16, 16, 32],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 4, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
_SEES = {**_TINY, "projection_dim": 24, "image_size": 32, "patch_size": 8}
_SAYS = {**_TINY, "projection_dim": 24, "max_position_embeddings": 40}
CLIP = {"model_type": "clip", "projection_dim": 24, "text_config": _SAYS, "vision_config": _SEES}
XCLIP = {
    "model_type": "xclip",
    "projection_dim": 24,
    "prompt_num_attention_heads": 2,
    "prompt_layers": 1,
    "text_config": _SAYS,
    "vision_config": {
        **_SEES,
        "num_frames": 4,
        "mit_hidden_size": 24,
        "mit_intermediate_size": 32,
        "mit_num_hidden_layers": 1,
        "mit_num_attention_heads": 2,
    },
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# As ``save_pretrained`` of the library's image processors writes them.
PICTURES = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    **IMAGENET,
    "size": {"height": 32, "width": 32},
}
REVERSED = {  # MobileViT's
    **{key: value for key, value in PICTURES.items() if not key.startswith("image_")},
    "do_normalize": None,
    "do_center_crop": True,
    "size": {"shortest_edge": 36},
    "crop_size": {"height": 32, "width": 32},
    "do_flip_channel_order": True,
}
SOUNDS = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}


def write_model(
    folder: Path,
    config: dict[str, Any],
    tokenizer: Tokenizer | None = None,
    pad: str = "[PAD]",
    processor: dict[str, Any] | None = None,
) -> Path:
    """A folder with config, weights and, as the model reads, its tokenizer or its processor."""
    folder.mkdir(parents=True)
    said = dict(config)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
        ids = {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": tokenizer.token_to_id(pad)}
        if "text_config" in said:
            said["text_config"] = {**ids, "eos_token_id": tokenizer.token_to_id(pad), **said["text_config"]}
        else:
            said = {**ids, **said}
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    library = transformers()
    torch.manual_seed(0)
    library.AutoModel.from_config(library.AutoConfig.for_model(**said)).save_pretrained(folder)
    return folder
