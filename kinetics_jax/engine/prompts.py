"""Prompts as token ids, of whatever type they came in: a list, an array, NumPy's and jax's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from kinetics_jax.settings import RequestError, is_whole


def prompt_ids(where: str, prompt: Any, vocab: int) -> list[int]:
    """Token ids of one prompt as Python's own numbers. Raises RequestError, beginning with `where`, for anything else,
    for none and for ids outside the vocabulary.
    """
    if isinstance(prompt, Mapping) or isinstance(_first(prompt), Mapping):
        raise RequestError(
            f"{where}: chat messages, where a text or token ids belong; make a text of them by the checkpoint's chat "
            "template first (apply_chat_template of transformers' tokenizer, tokenize=False)"
        )
    if isinstance(prompt, (str, bytes)) or not hasattr(prompt, "__iter__") or np.ndim(_first(prompt)) != 0:
        kind = "a nested list" if hasattr(prompt, "__iter__") and not isinstance(prompt, (str, bytes)) else "no list"
        raise RequestError(f"{where}: the prompt is {kind} ({type(prompt).__name__}); give a list of token ids")
    ids = prompt.tolist() if isinstance(prompt, (np.ndarray, jax.Array)) else list(prompt)
    if not ids:
        raise RequestError(f"{where}: the prompt holds no token")
    for place, token in enumerate(ids):
        if not is_whole(token):
            raise RequestError(f"{where}: token {place} is {token!r:.40}, not a whole number; give token ids")
    ids = [int(token) for token in ids]
    if min(ids) < 0 or max(ids) >= vocab:
        raise RequestError(f"{where}: token ids must lie in 0 … {vocab - 1}")
    return ids


def token_array(token_ids: Any, vocab: int) -> Int[Array, "batch time"]:
    """Token ids of several sequences as int32 `[batch, time]`. Raises RequestError for anything else; what is being
    traced has no values to check.
    """
    if isinstance(token_ids, jax.core.Tracer):
        tokens: Any = token_ids
    else:
        try:
            tokens = np.asarray(token_ids)
        except ValueError as error:  # rows of several lengths
            raise RequestError("logits: token_ids must be [batch, time], rows of one length") from error
    if tokens.ndim != 2 or not tokens.size:
        raise RequestError(f"logits: token_ids must be [batch, time] and not empty, got shape {tokens.shape}")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise RequestError(f"logits: token_ids must be whole numbers, got {tokens.dtype}")
    if isinstance(tokens, np.ndarray) and (int(tokens.min()) < 0 or int(tokens.max()) >= vocab):
        raise RequestError(f"logits: token ids must lie in 0 … {vocab - 1}")
    return jnp.asarray(tokens).astype(jnp.int32)


def _first(prompt: Any) -> Any:
    """The first item of a list or array, 0 for what has none."""
    return prompt[0] if isinstance(prompt, (list, tuple, np.ndarray, jax.Array)) and len(prompt) else 0
