"""Trains the built-in checkpoints of kinetics_jax/assets on the chase task, on the CPU, from fixed seeds.

python experiments/train_builtin.py                        # problems.jsonl and every model
python experiments/train_builtin.py --only chase-171k      # one model
python experiments/train_builtin.py --evaluate             # measure the existing checkpoints
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import load_file
from tqdm import tqdm
from training.checkpoint import write_checkpoint
from training.decoder import Params, merge, plain

from kinetics_jax.config import ModelConfig
from kinetics_jax.models.qwen3 import Qwen3
from kinetics_jax.stats.estimators import pass_at_k
from kinetics_jax.stats.intervals import accuracy_interval
from kinetics_jax.tasks import chase

ASSETS = Path(__file__).resolve().parent.parent / "kinetics_jax" / "assets"
VOCABULARY = chase.vocabulary()
IDS = {token: index for index, token in enumerate(VOCABULARY)}
EOS = IDS[chase.EOS]
HALF_THE_OUTPUT = 36  # tokens
# Share of the steps, nodes, maximum hops, operations, batch. With few operations at first, a value says much about the
# next one, so that the model learns to look it up; otherwise some seeds learn this late.
CURRICULUM = ((0.12, 8, 8, 2, 96), (0.28, 8, 8, 12, 96), (0.25, 20, 10, 12, 64), (0.35, 32, 16, 12, 48))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Shape of one model and how it is trained."""

    hidden: int
    ffn: int
    heads: int = 2
    kv_heads: int = 1
    steps: int = 700
    seed: int = 0
    learning_rate: float = 3e-3

    def config(self) -> ModelConfig:
        return ModelConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_layers=3,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=32,
            tie_word_embeddings=True,
            max_position_embeddings=512,
            eos_token_ids=(EOS,),
            dtype="float32",
        )


FAMILY = {
    "chase-131k": Recipe(40, 112),
    "chase-151k": Recipe(44, 128),
    "chase-171k": Recipe(48, 144, seed=1),
    "chase-212k": Recipe(56, 168),
    "chase-550k": Recipe(96, 320, heads=4, kv_heads=2),
}


# Model


def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """Dense causal attention, q [batch, time, heads, head_dim], k and v [batch, time, kv_heads, head_dim] float32.

    `state` is None, or (start, caches): the position of the first query, and of each layer (k, v)
    [batch, capacity, kv_heads, head_dim], which come back with the new keys and values written.
    """
    batch, time_, _, head_dim = q.shape
    start = 0
    if state is not None:
        start, caches = state
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(old, new, start, 1)
            for old, new in zip(caches[layer], (k, v), strict=True)
        )
        state = start, [*caches[:layer], (k, v), *caches[layer + 1 :]]
    grouped = q.reshape(batch, time_, k.shape[2], -1, head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k) * head_dim**-0.5
    seen = jnp.arange(k.shape[1])[None] <= start + jnp.arange(time_)[:, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(q.shape), state


def initial(recipe: Recipe) -> Params:
    """Parameters to train. A token's embedding starts as the sum of its parts', and retrieval starts as comparison:
    layer 1's keys are projected like the queries of its first heads. Without both, retrieval is learned late or never.
    """
    model = Qwen3(recipe.config(), rngs=nnx.Rngs(recipe.seed))
    params = {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model))}
    rng = np.random.default_rng([recipe.seed, 1])
    random = {token: rng.normal(size=recipe.hidden) * recipe.hidden**-0.5 for token in [*VOCABULARY, "box"]}

    def parts(token: str) -> tuple[str, ...]:
        if token.startswith("\\boxed"):
            return token[7:-1], "box"
        statement = re.fullmatch(r"(n\d+)([>:])(.+)", token)
        if statement is None:
            return (token,)
        return (f"@{statement[1]}" if statement[2] == ">" else statement[1], statement[3])

    rows = [sum(random[part] for part in parts(token)) / math.sqrt(len(parts(token))) for token in VOCABULARY]
    params["embed_tokens.weight"] = jnp.asarray(np.stack(rows), jnp.float32)
    for name, value in params.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            params[name] = 1.7 * value
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            params[name] = value * 6**-0.5
    key = params["layers.1.self_attn.k_proj.weight"]
    params["layers.1.self_attn.k_proj.weight"] = params["layers.1.self_attn.q_proj.weight"][: key.shape[0]]
    return params


# Training


def batches(recipe: Recipe, held_out: set[str]) -> Iterator[tuple[np.ndarray, int]]:
    """(tokens [batch, time] int32, prompt length) of each step; time is padded with end tokens."""
    rng = np.random.default_rng([recipe.seed, 2])
    for share, nodes, hops, operations, batch in CURRICULUM:
        prompt = 2 * nodes + 4
        shape = batch, prompt + chase.TOKENS_PER_HOP * hops + 2
        for _ in range(round(share * recipe.steps)):
            tokens = np.full(shape, EOS, np.int32)
            for row in tokens:
                problem = chase.make_problem(rng, nodes, int(rng.integers(3, hops + 1)), operations)
                assert problem.question not in held_out
                ids = [IDS[token] for token in f"{problem.question} {problem.solution}".split()]
                row[: len(ids)] = ids
            yield tokens, prompt


def loss_of(params: Params, config: ModelConfig, tokens: jax.Array, prompt: int) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy over the whole vocabulary of the solutions' tokens, and the share predicted right."""
    model = merge(config, plain(params))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1] - 1), (tokens.shape[0], tokens.shape[1] - 1))
    hidden, _ = model(tokens[:, :-1], positions, attend)
    logits = model.logits(hidden[:, prompt - 1 :])
    targets = tokens[:, prompt:]
    # A target counts up to and with the first end token.
    weights = jnp.concatenate([jnp.ones_like(targets[:, :1]), targets[:, :-1] != EOS], axis=1).astype(jnp.float32)
    weights = jnp.cumprod(weights, axis=1)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = jnp.argmax(logits, axis=-1) == targets
    return (loss * weights).sum() / weights.sum(), (right * weights).sum() / weights.sum()


def train(name: str, recipe: Recipe, held_out: set[str]) -> Params:
    """Plain parameters after all steps of the recipe."""
    config = recipe.config()
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, 60, recipe.steps, 0.03 * recipe.learning_rate)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01))
    params = initial(recipe)
    moments = optimizer.init(params)

    def step(params: Params, moments: Any, tokens: jax.Array, prompt: int):
        (loss, right), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, config, tokens, prompt)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, loss, right

    jitted = jax.jit(step, static_argnums=3, donate_argnums=(0, 1))
    bar = tqdm(batches(recipe, held_out), total=recipe.steps, desc=name, mininterval=5.0)
    for tokens, prompt in bar:
        params, moments, loss, right = jitted(params, moments, tokens, prompt)
        bar.set_postfix(loss=f"{loss:.3f}", right=f"{right:.4f}", refresh=False)
    return plain(params)


# Evaluation


def sample(params: Params, config: ModelConfig, prompts: np.ndarray, seed: int, temperature: float) -> np.ndarray:
    """Generated tokens [batch, chase.MAX_OUTPUT] int32 of prompts [batch, time], sampled from the whole vocabulary."""
    model = merge(config, params)
    batch, time_ = prompts.shape
    shape = (batch, time_ + chase.MAX_OUTPUT, config.num_kv_heads, config.head_dim)
    caches = [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(config.num_layers)]

    def draw(hidden: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.categorical(key, model.logits(hidden[:, -1]) / temperature).astype(jnp.int32)

    def step(carry, inputs):
        token, caches = carry
        start, key = inputs
        hidden, (_, caches) = model(token[:, None], jnp.full((batch, 1), start), attend, (start, caches))
        return (draw(hidden, key), caches), token

    keys = jax.random.split(jax.random.key(seed), chase.MAX_OUTPUT + 1)
    positions = jnp.broadcast_to(jnp.arange(time_), prompts.shape)
    hidden, (_, caches) = model(jnp.asarray(prompts), positions, attend, (0, caches))
    starts = time_ + jnp.arange(chase.MAX_OUTPUT)
    _, tokens = jax.lax.scan(step, (draw(hidden, keys[0]), caches), (starts, keys[1:]))
    return tokens.T


def pass_at(k: int, correct: np.ndarray) -> tuple[float, float, float]:
    """Unbiased pass@k of correct [problems, samples] bool, and both ends of its 95 % interval over problems."""
    values = pass_at_k(n=correct.shape[1], c=correct.sum(axis=1), k=k)
    low, high = accuracy_interval(values)
    return float(np.mean(values)), float(low), float(high)


def boxed_answers(
    params: Params, config: ModelConfig, problems: list[dict], temperature: float, rounds: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """What 4 * rounds samples of each problem answer, modulo chase.MODULUS (-1: nothing), and the place of that token;
    both [problems, samples]."""
    prompts = np.array([[IDS[token] for token in problem["question"].split()] for problem in problems], np.int32)
    jitted = jax.jit(sample, static_argnums=(1, 4))
    tokens = [jitted(params, config, np.repeat(prompts, 4, axis=0), seed, temperature) for seed in range(rounds)]
    tokens = np.concatenate([np.reshape(part, (len(problems), 4, -1)) for part in tokens], axis=1)
    values = np.full(len(VOCABULARY), -1)
    values[[IDS[chase.boxed(value)] for value in range(chase.MODULUS)]] = range(chase.MODULUS)
    boxed = np.where(np.cumsum(tokens == EOS, axis=-1) > 0, -1, values[tokens])
    where = np.argmax(boxed >= 0, axis=-1)
    return np.take_along_axis(boxed, where[..., None], axis=-1)[..., 0], where


def evaluate(params: Params, config: ModelConfig, problems: list[dict], temperature: float) -> dict[str, tuple]:
    """pass@1 and pass@8 from 16 samples a problem, and pass@1 with half the output tokens."""
    answers, where = boxed_answers(params, config, problems, temperature)
    correct = answers == np.array([[int(problem["answer"])] for problem in problems])
    return {
        "pass@1": pass_at(1, correct),
        "pass@8": pass_at(8, correct),
        "pass@1, half the output": pass_at(1, correct & (where < HALF_THE_OUTPUT)),
    }


# Files


def write_problems() -> None:
    lines = [
        json.dumps({"id": f"chase-{index:03d}", "question": problem.question, "answer": str(problem.answer)})
        for index, problem in enumerate(chase.held_out_problems())
    ]
    (ASSETS / "problems.jsonl").write_text("\n".join(lines) + "\n")


def replace_checkpoint(name: str, recipe: Recipe, params: Params) -> None:
    """Writes the checkpoint of a model in the place of the one that is there."""
    shutil.rmtree(ASSETS / name, ignore_errors=True)
    write_checkpoint(ASSETS / name, recipe.config(), VOCABULARY, chase.EOS, chase.UNK, params)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains and measures the built-in checkpoints.")
    parser.add_argument("--only", nargs="+", choices=FAMILY, default=list(FAMILY), help="models to work on")
    parser.add_argument("--evaluate", action="store_true", help="measure the existing checkpoints, train nothing")
    parser.add_argument("--temperatures", nargs="+", type=float, default=[1.0, 0.8])
    arguments = parser.parse_args()
    if not arguments.evaluate:
        write_problems()
    problems = [json.loads(line) for line in (ASSETS / "problems.jsonl").read_text().splitlines()]
    for name in arguments.only:
        recipe, started = FAMILY[name], time.perf_counter()
        if arguments.evaluate:
            params = {
                key.removeprefix("model."): jnp.asarray(value)
                for key, value in load_file(ASSETS / name / "model.safetensors").items()
            }
        else:
            params = train(name, recipe, {problem["question"] for problem in problems})
            replace_checkpoint(name, recipe, params)
            print(f"{name}: trained in {time.perf_counter() - started:.0f} s", flush=True)
        print(f"{name}: {sum(value.size for value in params.values())} parameters", flush=True)
        for temperature in arguments.temperatures:
            figures = evaluate(params, recipe.config(), problems, temperature)
            text = ", ".join(f"{key} {mean:.3f} [{low:.3f}, {high:.3f}]" for key, (mean, low, high) in figures.items())
            print(f"{name}: temperature {temperature}: {text}", flush=True)


if __name__ == "__main__":
    main()
