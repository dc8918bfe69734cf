"""A trained decoder as a Hugging Face directory, with a tokenizer whose tokens are words between spaces."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from kinetics_jax.config import ModelConfig
from kinetics_jax.files import atomic_directory

Tensors = Mapping[str, Any]


def write_checkpoint(folder: Path, config: ModelConfig, vocabulary: Sequence[str], eos: str, unk: str, params: Tensors):
    """Writes config.json, the tokenizer and model.safetensors (float32) of plain parameters, as a whole or not at all.

    `vocabulary` holds the tokens in the order of their ids. Raises FileExistsError if the folder exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder}: exists; remove it to write it anew")
    ids = {token: index for index, token in enumerate(vocabulary)}
    added = [
        {"id": ids[token], "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token in (eos, unk)
    ]
    documents: dict[str, dict[str, Any]] = {
        "config.json": {**config.to_hf(), "bos_token_id": None},
        "generation_config.json": {
            "do_sample": True,
            "temperature": 1.0,
            "eos_token_id": ids[eos],
            "pad_token_id": ids[eos],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": eos,
            "pad_token": eos,
            "unk_token": unk,
            "bos_token": None,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.max_position_embeddings,
        },
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": ids, "unk_token": unk},
        },
    }
    tensors = {f"model.{key}": np.ascontiguousarray(value, np.float32) for key, value in params.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(folder) as draft:
        for file, document in documents.items():
            (draft / file).write_text(json.dumps(document, indent=1) + "\n")
        (draft / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
