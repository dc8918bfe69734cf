"""The three conventions of `generation_cost`, component by component, in FLOPs and bytes.

Each function maps names to pairs `(own, shared)`: what every trial costs, and what all trials of a problem cost once;
arrays that broadcast over prompt_tokens, output_tokens and trials (whole numbers as float64). Names that end in
`_reads` are bytes. Every shared amount grows with output_tokens: that of several trials is the longest one's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import UserError
from kinetics_jax.policies import (
    SUMMARY_VECTORS,
    BlockPolicy,
    BlockTopK,
    Dense,
    LiteSysBlockTopK,
    Policy,
    SlidingWindow,
    TokenTopK,
)

# Parameters by published name in the paper's code; tied embeddings of the small models count twice.
UPSTREAM_PARAMETERS = {"0.6B": 0.752e9, "1.7B": 2.03e9, "4B": 4.02e9, "8B": 8.19e9, "14B": 14.77e9, "32B": 32.76e9}

Components = dict[str, tuple[Any, Any]]


class CostError(UserError):
    """A cost that cannot be computed as asked; the message says why and what to change."""


def paper(config: ModelConfig, prompt: np.ndarray, output: np.ndarray, policy: Policy, kv_bytes: float) -> Components:
    """Equations (1), (2), (8) and (9), integral in length; P counts all parameters used per token.

    Sparse attention: the budget's tokens once they are there, before that all of them (the exact sum, where equation 8
    takes the prompt to fill the budget), in every layer. The policies of block top-k add the search, in every step;
    that of a sliding window, of random blocks and of token top-k costs nothing, of the last by the paper's idealisation
    of an oracle. Dense attention reads the prompt once for all trials, sparse attention and its search do not.
    """
    kv_elements, group = config.kv_elements_per_token, config.group
    prompt_reads, own_reads = prompt * output, output**2 / 2
    components: Components = {"linear": (2 * config.active_parameters * output, 0)}
    if isinstance(policy, Dense):
        components["attention"] = 2 * group * kv_elements * (prompt_reads + own_reads), 0
        components["kv_reads"] = kv_bytes * kv_elements * own_reads, kv_bytes * kv_elements * prompt_reads
        return components
    budget = _budget(policy)
    room = np.maximum(budget - prompt, 0)
    filling = np.minimum(room, output)
    attended = budget * output - room * filling + filling**2 / 2
    components["attention"] = 2 * group * kv_elements * attended, 0
    components["kv_reads"] = kv_bytes * kv_elements * attended, 0
    if isinstance(policy, BlockTopK | LiteSysBlockTopK):
        per_page = kv_elements / (2 * policy.page_size)
        components["search"] = 2 * group * per_page * (prompt_reads + own_reads), 0
        components["search_reads"] = kv_bytes * per_page * (prompt_reads + own_reads), 0
    return components


def upstream(
    config: ModelConfig, prompt: np.ndarray, output: np.ndarray, trials: np.ndarray, policy: Policy
) -> Components:
    """The published code's formulas, floors and signs included; negative where they are.

    `pages` of block top-k is its k, the budget of token top-k its k, the window beside the sink tokens its local
    budget: sink, recent pages and dense layers are not charged, nor is the search of token top-k, an oracle. Raises
    CostError for a model whose parameters it does not list, and for random blocks, which it has no formula for.
    """
    size = config.name.removeprefix("Qwen/").removeprefix("Qwen3-")
    if size not in UPSTREAM_PARAMETERS:
        known = ", ".join(f"Qwen/Qwen3-{known}" for known in UPSTREAM_PARAMETERS)
        raise CostError(f"the upstream convention has no parameter count of {config.name!r} (it has {known})")
    heads = config.num_layers * config.num_heads * config.head_dim
    kv_heads = config.num_layers * config.num_kv_heads * config.head_dim
    components: Components = {"linear": (2 * UPSTREAM_PARAMETERS[size] * output, 0)}
    if isinstance(policy, Dense):
        components["attention"] = 2 * (2 * prompt + output) * output * heads, 0
        components["kv_reads"] = 2 * output**2 * kv_heads, 4 * prompt * output * kv_heads
        return components
    budget = _budget(policy) - (policy.sink_tokens if isinstance(policy, SlidingWindow) else 0)
    filling = np.maximum(budget - prompt, 0) ** 2 / 2
    if isinstance(policy, BlockTopK | LiteSysBlockTopK):
        attended = budget * output - filling
        components["search"] = (2 * prompt + output) // policy.page_size * output * heads, 0
        components["search_reads"] = 0, (2 * prompt + output * trials) // policy.page_size * output * kv_heads
    elif isinstance(policy, TokenTopK | SlidingWindow):
        attended = budget * output + filling  # the published sign
    else:
        raise CostError(f'the upstream convention has no formula for {policy.kind}; use "paper" or "traffic"')
    components["attention"] = 4 * attended * heads, 0
    components["kv_reads"] = 4 * attended * kv_heads, 0
    return components


def traffic(
    config: ModelConfig,
    prompt: np.ndarray,
    output: np.ndarray,
    policy: Policy,
    kv_bytes: float,
    weight_bytes: float,
    batch: int | None,
    shared_prompt: bool,
) -> Components:
    """What an engine computes and reads, token by token; P counts the matrix parameters a token is multiplied with.

    One prefill per problem computes the prompt's K and V and the first output token; each of the other
    `output_tokens - 1` comes from a decode step, in which the sequence holds its own token too. A dense layer attends
    to the whole sequence; a sparse one does so up to `budget` tokens, and beyond

    block top-k: to `pages` pages, of which the current one is filled in part, after reading the summary of every full
        page (one vector or two) and multiplying it with the mean query of its group;
    random blocks: to as many, without a search;
    token top-k and sliding window: to `budget` tokens. The oracle's search costs nothing, by definition: that is the
        paper's idealisation, for no engine finds the largest logits without computing them;
    LiteSys block top-k: as soon as its threshold is passed, to the sink tokens, `pages` blocks, the local window and
        what no whole block covers before it, after reading the mean key of every whole block.

    With `shared_prompt`, what every trial reads of the prompt (all its KV in a step that attends to everything, all its
    summaries in a search; chosen tokens and pages are each trial's own) is read once for all.
    """
    steps = np.maximum(output - 1, 0)
    dense = sparse = _Steps(prompt * steps, _triangle(steps))
    sparse_layers = 0
    if not isinstance(policy, Dense):
        sparse_layers = config.num_layers - sum(layer < config.num_layers for layer in policy.dense_layers)
        if isinstance(policy, BlockPolicy):
            sparse = _block_steps(prompt, steps, policy)
        elif isinstance(policy, LiteSysBlockTopK):
            sparse = _litesys_steps(prompt, steps, policy)
        else:
            sparse = _budget_steps(prompt, steps, float(policy.budget))
    dense_layers = config.num_layers - sparse_layers
    elements = 2 * config.num_kv_heads * config.head_dim  # K and V of one token in one layer
    prompt_kv = elements * (dense_layers * dense.prompt + sparse_layers * sparse.prompt)
    own_kv = elements * (dense_layers * dense.own + sparse_layers * sparse.own)
    vectors = SUMMARY_VECTORS[policy.summary] if isinstance(policy, BlockTopK) else 1  # of head_dim, for a page
    prompt_pages = elements / 2 * vectors * sparse_layers * sparse.prompt_pages
    own_pages = elements / 2 * vectors * sparse_layers * sparse.own_pages

    def reads(own: Any, of_prompt: Any) -> tuple[Any, Any]:
        return (kv_bytes * own, kv_bytes * of_prompt) if shared_prompt else (kv_bytes * (own + of_prompt), 0)

    parameters, head = config.matmul_parameters, config.vocab_size * config.hidden_size
    has_prompt = np.minimum(prompt, 1)  # logits are wanted after the last prompt token only
    prefill_attention = 2 * config.group * config.kv_elements_per_token * _triangle(prompt)
    components: Components = {
        "prefill_linear": (0, 2 * ((parameters - head) * prompt + head * has_prompt)),
        "prefill_attention": (0, prefill_attention),
        "linear": (2 * parameters * steps, 0),
        "attention": (2 * config.group * (own_kv + prompt_kv), 0),
        "search": (2 * (own_pages + prompt_pages), 0),
        "kv_reads": reads(own_kv, prompt_kv),
        "search_reads": reads(own_pages, prompt_pages),
    }
    if batch is not None:
        per_step = weight_bytes * touched_parameters(config, batch)
        prefill = weight_bytes * touched_parameters(config, prompt) * has_prompt
        components["weight_reads"] = per_step / batch * steps, prefill
    return components


def touched_parameters(config: ModelConfig, tokens: Any) -> Any:
    """Matrix parameters read when `tokens` tokens are processed together: every expert that one of them uses.

    Experts are taken to be used evenly and independently; for a dense feed-forward this is `matmul_parameters`.
    """
    if not config.num_experts:
        return config.matmul_parameters
    unused = (1 - config.experts_per_token / config.num_experts) ** tokens
    more = config.num_experts * (1 - unused) - config.experts_per_token
    return (
        config.matmul_parameters + len(config.moe_layers) * 3 * config.hidden_size * config.moe_intermediate_size * more
    )


def _budget(policy: BlockPolicy | TokenTopK | SlidingWindow | LiteSysBlockTopK) -> float:
    """B of the published equations; for LiteSys the tokens of its blocks and its window, as there."""
    if isinstance(policy, LiteSysBlockTopK):
        return float(policy.local + policy.pages * policy.page_size)
    return float(policy.budget)


class _Steps(NamedTuple):
    """Sums over the decode steps of one layer: tokens attended and summaries read, split where trials could share."""

    prompt: Any  # attended, and every trial's step attends to the whole prompt
    own: Any
    prompt_pages: Any = 0
    own_pages: Any = 0


def _split(prompt: np.ndarray, steps: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray]:
    """How many steps find a sequence of up to `most` tokens, their own included, and how many a longer one."""
    full = np.clip(most - prompt, 0, steps)
    return full, steps - full


def _budget_steps(prompt: np.ndarray, steps: np.ndarray, budget: float) -> _Steps:
    """Steps up to `budget` tokens attend to everything, the later ones to as many."""
    full, chosen = _split(prompt, steps, budget)
    return _Steps(prompt * full, _triangle(full) + chosen * budget)


def _block_steps(prompt: np.ndarray, steps: np.ndarray, policy: BlockPolicy) -> _Steps:
    """Steps up to `budget` tokens attend to everything; the later ones to `pages` pages, block top-k after a search."""
    budget, size = float(policy.budget), float(policy.page_size)
    full, chosen = _split(prompt, steps, budget)
    start, end = prompt + full, prompt + steps  # sequence lengths before and after the choosing steps
    tails = _tails(end, size) - _tails(start, size)
    attended = prompt * full, _triangle(full) + chosen * (budget - size) + tails
    if not isinstance(policy, BlockTopK):
        return _Steps(*attended)
    prompt_pages = prompt // size * chosen
    return _Steps(*attended, prompt_pages, _full_pages(end, size) - _full_pages(start, size) - prompt_pages)


def _litesys_steps(prompt: np.ndarray, steps: np.ndarray, policy: LiteSysBlockTopK) -> _Steps:
    """Steps up to the threshold attend to everything; the later ones choose among the blocks that end before the local
    window, of which `length - local - sink_tokens` tokens make whole ones.
    """
    size, outside = float(policy.page_size), float(policy.local + policy.sink_tokens)
    threshold = -(-(outside + policy.pages * size) // size) * size
    full, chosen = _split(prompt, steps, threshold)
    start, end = prompt + full - outside, prompt + steps - outside  # tokens to cut into blocks, before and after
    rest = _remainders(end, size) - _remainders(start, size)
    blocks = _full_pages(end, size) - _full_pages(start, size)
    # A trial's window may still lie in the prompt: then the blocks under it are not searched yet.
    common = np.maximum(prompt - policy.sink_tokens, 0) // size
    below = _full_pages(np.minimum(end, common * size), size) - _full_pages(np.minimum(start, common * size), size)
    above = common * (np.maximum(end, common * size) - np.maximum(start, common * size))
    own = _triangle(full) + chosen * (outside + policy.pages * size) + rest
    return _Steps(prompt * full, own, below + above, blocks - below - above)


def _triangle(n: Any) -> Any:
    """1 + 2 + … + n."""
    return n * (n + 1) / 2


def _tails(n: np.ndarray, size: float) -> np.ndarray:
    """Tokens in the last page, summed over sequences of 1 … n tokens."""
    return n // size * _triangle(size) + _triangle(n % size)


def _full_pages(n: np.ndarray, size: float) -> np.ndarray:
    """Full pages, summed over sequences of 1 … n tokens."""
    pages = n // size
    return size * _triangle(pages - 1) + pages * (n % size + 1)


def _remainders(n: np.ndarray, size: float) -> np.ndarray:
    """Tokens that no full page holds, summed over sequences of 1 … n tokens."""
    return n // size * _triangle(size - 1) + _triangle(n % size)
