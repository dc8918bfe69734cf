"""Prompts as token ids, of whatever type they came in: a list, an array, NumPy's and jax's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from kinetics_jax.settings import RequestError, is_whole

if TYPE_CHECKING:
    Prompts: TypeAlias = Iterable[str | Sequence[int] | np.ndarray | jax.Array]
    TokenRows: TypeAlias = np.ndarray | jax.Array | Sequence[Sequence[int]]
    Count: TypeAlias = SupportsIndex
else:
    Prompts = TokenRows = Count = Any  # what comes in is judged below, in words that a user can act on


def prompt_ids(where: str, prompt: Any, vocab: int) -> list[int]:
    """Token ids of one prompt as Python's own numbers. Raises RequestError, beginning with `where`, for anything else,
    for none and for ids outside the vocabulary.
    """
    if isinstance(prompt, Mapping) or isinstance(_first(prompt), Mapping):
        raise RequestError(
            f"{where}: chat messages, where a text or token ids belong; make a text of them by the checkpoint's chat "
            "template first (apply_chat_template of transformers' tokenizer, tokenize=False)"
        )
    if not _is_list(prompt):
        raise RequestError(f"{where}: {prompt!r:.40} is no prompt; give a text or a list of token ids")
    if _is_list(_first(prompt)):
        raise RequestError(f"{where}: a list within a list, where token ids belong; give each prompt a list of its own")
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


def prompt_list(prompts: Any) -> list[Any]:
    """The prompts of a call, one by one. Raises RequestError for what is no list of prompts."""
    if isinstance(prompts, str):
        raise RequestError("generate: prompts is a list of prompts, got one string; put it in a list")
    if isinstance(prompts, Mapping) or not _is_list(prompts):
        raise RequestError(f"generate: prompts is a list of texts or of lists of token ids, got {prompts!r:.40}")
    prompts = list(prompts)
    if prompts and all(map(is_whole, prompts)):
        raise RequestError("generate: prompts is a list of prompts, got one list of token ids; put it in a list")
    return prompts


def token_array(token_ids: Any, vocab: int) -> Int[Array, "batch time"]:
    """Token ids of several sequences as int32 `[batch, time]`. Raises RequestError for anything else; what is being
    traced has no values to check.
    """
    if isinstance(token_ids, Tracer):
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


def _is_list(value: Any) -> bool:
    """Whether a value has items, and is no text."""
    return hasattr(value, "__iter__") and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 1) > 0


def _first(prompt: Any) -> Any:
    """The first item of a list or array, 0 for what has none."""
    return prompt[0] if isinstance(prompt, (list, tuple, np.ndarray, jax.Array)) and len(prompt) else 0
