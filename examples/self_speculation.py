"""Lossless self-speculation: sparse attention drafts a few tokens, one dense pass verifies them, and the samples are
those of dense attention. How many drafts are kept is what the policy's agreement with dense attention says.

    python examples/self_speculation.py [MODEL]

Under a minute on two CPU cores. The same in a run folder: `kinetics sample chase-550k --attention
block_topk:budget=16,page_size=2 --speculate 3 --out speculated`.
"""

import sys

import numpy as np

import kinetics_jax as kj
from kinetics_jax.costs.speculation import speculation_cost
from kinetics_jax.tasks.problems import load_problems
from kinetics_jax.tasks.prompts import render_prompts

DRAFTS = 3  # a round

lm = kj.load(sys.argv[1] if len(sys.argv) > 1 else "chase-550k")
prompts = list(render_prompts(load_problems("builtin", limit=8), lm.directory, task="builtin").values())
policy, settings = kj.BlockTopK(budget=16, page_size=2), kj.EngineSettings(slots=8, speculate=DRAFTS)

greedy = kj.Sampling(temperature=0, max_tokens=48)
dense = lm.generate(prompts, sampling=greedy)
speculated = lm.generate(prompts, sampling=greedy, attention=policy, settings=settings)
same = sum(ours.output_tokens == theirs.output_tokens for ours, theirs in zip(speculated, dense, strict=True))
print(f"greedy: the same tokens as dense attention's in {same} of {len(dense)} samples")

warm = kj.Sampling(temperature=0.8, top_p=0.95, max_tokens=48)
samples = lm.generate(prompts, sampling=warm, attention=policy, settings=settings, agreement=True)
rounds = np.concatenate([sample.rounds for sample in samples])
print(f"warm: a round of {DRAFTS} drafts gives {rounds.mean():.2f} tokens")

told = kj.Agreement.joined([sample.agreement for sample in samples]).summary()
print(f"agreement of {policy} on them: {told['agreement']:.3f}, 5th percentile {told['agreement_p5']:.3f}")

config = kj.ModelConfig.named("Qwen/Qwen3-8B")  # long answers of a larger model, if as many drafts were kept there
there = kj.BlockTopK(budget=1024, page_size=16)
spent = speculation_cost(config, prompt_tokens=256, rounds=[rounds.mean()] * 6000, drafts=DRAFTS, draft=there)
instead = kj.generation_cost(config, prompt_tokens=256, output_tokens=1 + round(6000 * rounds.mean()))
print(f"{config.name}, {there}: {spent.total / instead.total:.0%} of the cost of dense decoding")
