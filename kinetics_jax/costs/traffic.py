"""The `traffic` convention: sums over decode steps of what an engine computes and reads, in closed form."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.block_topk import SUMMARY_VECTORS, BlockTopK
from kinetics_jax.attention.policies.blocks import BlockPolicy
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.attention.policies.token_topk import TokenTopK
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.conventions import Components


def traffic(
    config: ModelConfig,
    prompt: np.ndarray,
    output: np.ndarray,
    policy: AttentionPolicy,
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
        page (one vector or two), multiplying it with the mean query of its group, and a comparison for each score,
        which any exact choice needs at least;
    random blocks: to as many, without a search;
    token top-k and sliding window: to `budget` tokens. The oracle's search costs nothing, by definition: that is the
        paper's idealisation, for no engine finds the largest logits without computing them;
    LiteSys block top-k: as soon as its threshold is passed, to the sink tokens, `pages` blocks, the local window and
        what no whole block covers before it, after reading the mean key of every whole block.

    What a step attends to is `dense` (in a dense layer), `forced` (in a sparse one, whatever the scores say: sink and
    recent pages or tokens, LiteSys's leftover, the oracle's own token, all of a sliding window) or `chosen` (the rest,
    also in steps that still hold no more than the budget). So each of these parts grows with the output, the number of
    trials and the budget, and with the prompt as long as that grows by whole pages: within a page, a sequence one token
    longer can find its current page emptier. The search and its top-k grow with the lengths and the number of trials,
    and fall as the budget grows, for fewer steps need them.

    With `shared_prompt`, what every trial reads of the prompt (all its KV in a step that attends to everything, all its
    summaries in a search; what a choosing step attends to, forced or chosen, is each trial's own) is read once for all.
    A larger budget can then read less: more steps attend to everything, and share.
    """
    steps = np.maximum(output - 1, 0)
    dense = prompt * steps, _triangle(steps)
    sparse, sparse_layers = _Steps(0, 0, 0, 0), 0
    if not isinstance(policy, Dense):
        sparse_layers = config.num_layers - sum(layer < config.num_layers for layer in policy.dense_layers)
        if isinstance(policy, BlockPolicy):
            sparse = _block_steps(prompt, steps, policy)
        elif isinstance(policy, LiteSysBlockTopK):
            sparse = _litesys_steps(prompt, steps, policy)
        else:
            sparse = _budget_steps(prompt, steps, policy)
    dense_layers = config.num_layers - sparse_layers
    tokens = {  # attended, summed over layers: each trial's own, and those of the prompt that all trials read
        "dense": (dense_layers * dense[1], dense_layers * dense[0]),
        "forced": (
            sparse_layers * (sparse.own - sparse.own_chosen),
            sparse_layers * (sparse.prompt - sparse.prompt_chosen),
        ),
        "chosen": (sparse_layers * sparse.own_chosen, sparse_layers * sparse.prompt_chosen),
    }
    pages = sparse_layers * sparse.own_pages, sparse_layers * sparse.prompt_pages

    elements = 2 * config.num_kv_heads * config.head_dim  # K and V of one token in one layer
    summary = elements / 2 * (SUMMARY_VECTORS[policy.summary] if isinstance(policy, BlockTopK) else 1)

    def reads(amount: float, own: Any, of_prompt: Any) -> tuple[Any, Any]:
        return (amount * own, amount * of_prompt) if shared_prompt else (amount * (own + of_prompt), 0)

    parameters, head = config.matmul_parameters, config.vocab_size * config.hidden_size
    has_prompt = np.minimum(prompt, 1)  # logits are wanted after the last prompt token only
    components: Components = {
        "prefill_linear": (0, 2 * ((parameters - head) * prompt + head * has_prompt)),
        "prefill_attention": (0, 2 * config.group * config.kv_elements_per_token * _triangle(prompt)),
        "linear": (2 * parameters * steps, 0),
        **{f"{name}_attention": (2 * config.group * elements * sum(pair), 0) for name, pair in tokens.items()},
        "search": (2 * summary * sum(pages), 0),
        "top_k": (config.num_kv_heads * sum(pages), 0),
        **{f"{name}_kv_reads": reads(kv_bytes * elements, *pair) for name, pair in tokens.items()},
        "search_reads": reads(kv_bytes * summary, *pages),
    }
    if batch is not None:
        prefill = weight_bytes * touched_parameters(config, prompt) * has_prompt
        components["prefill_weight_reads"] = 0, prefill
        components["weight_reads"] = weight_bytes * touched_parameters(config, batch) / batch * steps, 0
    return components


def touched_parameters(config: ModelConfig, tokens: Any) -> Any:
    """Matrix parameters read when `tokens` tokens are processed together: every expert that one of them uses.

    Experts are taken to be used evenly and independently; for a dense feed-forward this is `matmul_parameters`.
    """
    if not config.num_experts:
        return config.matmul_parameters
    unused = (1 - config.experts_per_token / config.num_experts) ** tokens
    more = config.num_experts * (1 - unused) - config.experts_per_token
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    return config.matmul_parameters + len(config.moe_layers) * expert * more


class _Steps(NamedTuple):
    """Sums over the decode steps of one sparse layer: tokens attended, those of them chosen, and pages scored.

    `prompt`: of the prompt, in steps that attend to everything, where trials could share them; `own`: all others.
    """

    prompt: Any
    own: Any
    prompt_chosen: Any
    own_chosen: Any
    prompt_pages: Any = 0
    own_pages: Any = 0


def _split(prompt: np.ndarray, steps: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray]:
    """How many steps find a sequence of up to `most` tokens, their own included, and how many a longer one."""
    full = np.minimum(np.maximum(most - prompt, 0), steps)
    return full, steps - full


def _budget_steps(prompt: np.ndarray, steps: np.ndarray, policy: TokenTopK | SlidingWindow) -> _Steps:
    """Steps up to `budget` tokens attend to everything, the later ones to as many."""
    full, choosing = _split(prompt, steps, policy.budget)
    shared, own = prompt * full, _triangle(full) + choosing * policy.budget
    if isinstance(policy, SlidingWindow):
        return _Steps(shared, own, 0, 0)
    return _Steps(shared, own, shared, own - steps)  # the current token is always among them


def _block_steps(prompt: np.ndarray, steps: np.ndarray, policy: BlockPolicy) -> _Steps:
    """Steps up to `budget` tokens attend to everything; the later ones to `pages` pages, block top-k after a search.

    A step at n tokens chooses among the full pages between the sink pages and the recent ones: those from token
    `sinks` on, up to a page for every full page before the current one, less the recent ones before it.
    """
    size = float(policy.page_size)
    full, choosing = _split(prompt, steps, policy.budget)
    start, end = _Cut(prompt + full, size), _Cut(prompt + steps, size)  # before and after the choosing steps
    own = _triangle(full) + choosing * (policy.budget - size) + end.tails() - start.tails()

    before, sinks, recent = _Cut(prompt, size), policy.sink_pages * size, (policy.recent_pages - 1) * size
    free = (policy.pages - policy.sink_pages - policy.recent_pages) * size
    not_own = np.maximum(prompt, sinks) + recent
    own_chosen = start.whole_beyond(not_own) - before.whole_beyond(not_own)
    prompt_chosen = start.whole_beyond(sinks + recent) - before.whole_beyond(sinks + recent) - own_chosen
    own_chosen = own_chosen + choosing * free
    if not isinstance(policy, BlockTopK):
        return _Steps(prompt * full, own, prompt_chosen, own_chosen)
    prompt_pages = before.pages * choosing
    own_pages = end.full_pages() - start.full_pages() - prompt_pages
    return _Steps(prompt * full, own, prompt_chosen, own_chosen, prompt_pages, own_pages)


def _litesys_steps(prompt: np.ndarray, steps: np.ndarray, policy: LiteSysBlockTopK) -> _Steps:
    """Steps up to the threshold attend to everything; the later ones choose among the blocks that end before the local
    window, of which `length - local - sink_tokens` tokens make whole ones.
    """
    size, outside, free = float(policy.page_size), policy.local + policy.sink_tokens, policy.pages * policy.page_size
    threshold = -(-(outside + free) // policy.page_size) * policy.page_size
    full, choosing = _split(prompt, steps, threshold)
    start, end = prompt + full - outside, prompt + steps - outside  # tokens to cut into blocks, before and after
    start_cut, end_cut = _Cut(start, size), _Cut(end, size)
    rest = end_cut.remainders() - start_cut.remainders()
    own = _triangle(full) + choosing * (outside + free) + rest

    in_prompt = np.maximum(prompt - policy.sink_tokens, 0)
    first, last = (_Cut(np.maximum(tokens, 0), size) for tokens in (prompt - outside + 1, start + 1))
    own_chosen = last.whole_beyond(in_prompt) - first.whole_beyond(in_prompt)
    prompt_chosen = last.whole_beyond(0) - first.whole_beyond(0) - own_chosen
    own_chosen = own_chosen + choosing * free

    # A trial's window may still lie in the prompt: then the blocks under it are not searched yet.
    common = np.floor(in_prompt / size)
    start_below, end_below = (_Cut(np.minimum(tokens, common * size), size) for tokens in (start, end))
    below = end_below.full_pages() - start_below.full_pages()
    above = common * (np.maximum(end, common * size) - np.maximum(start, common * size))
    own_pages = end_cut.full_pages() - start_cut.full_pages() - below - above
    return _Steps(prompt * full, own, prompt_chosen, own_chosen, below + above, own_pages)


class _Cut:
    """n tokens cut into pages of `size`: full pages and the rest, and sums over sequences of fewer tokens.

    Division and floor are exact for whole numbers below 2**52, and four times as fast as NumPy's floor division.
    """

    def __init__(self, n: np.ndarray, size: float) -> None:
        self.size = size
        self.pages = np.floor(n / size)
        self.rest = n - self.pages * size

    def tails(self) -> Any:
        """Tokens in the last page, summed over sequences of 1 … n tokens."""
        return self.pages * _triangle(self.size) + _triangle(self.rest)

    def remainders(self) -> Any:
        """Tokens that no full page holds, summed over sequences of 1 … n tokens."""
        return self.pages * _triangle(self.size - 1) + _triangle(self.rest)

    def full_pages(self) -> Any:
        """Full pages, summed over sequences of 1 … n tokens."""
        return self.size * _triangle(self.pages - 1) + self.pages * (self.rest + 1)

    def whole_beyond(self, first: Any) -> Any:
        """Tokens of full pages from token `first` on, summed over sequences of 0 … n - 1 tokens."""
        least = np.floor(first / self.size) + 1  # full pages that reach beyond it
        count = np.maximum(self.pages - least, 0)
        inside = count * (self.size * least - first) + self.size * _triangle(count - 1)
        return self.size * inside + self.rest * np.maximum(self.size * self.pages - first, 0)


def _triangle(n: Any) -> Any:
    """1 + 2 + … + n."""
    return n * (n + 1) / 2
