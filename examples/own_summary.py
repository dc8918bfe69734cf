"""A page summary of your own: what stands for a page of keys when a decode step chooses the pages it attends to.

    python examples/own_summary.py

A page is chosen by a score of its summary for the step's query. Here the summary is two vectors, the mean key and the
key that lies farthest from it, and a page scores by whichever of them the query likes better. Registered, the kind has
a name that every policy, op and command takes: `summary=mean_farthest`. It is written in jax.numpy and runs on the
reference path; kernels would need code of their own, which `kernels/README.md` tells how to give. What is printed:
which kernels take the kind, then tokens attended to and summary vectors read for each token drawn, beside the share of
problems answered right, of which eight are too few to rank the kinds.
"""

import jax.numpy as jnp
import kinetics_kernels as kernels
from kinetics_kernels.backends import chosen_backend

import kinetics_jax as kj
from kinetics_jax.tasks.problems import load_problems


def make(keys):
    """`[..., page_size, head_dim]` float32 → two vectors `[..., head_dim]`."""
    mean = jnp.mean(keys, axis=-2)
    distance = jnp.sum(jnp.square(keys - mean[..., None, :]), axis=-1)
    farthest = jnp.take_along_axis(keys, jnp.argmax(distance, axis=-1)[..., None, None], axis=-2)
    return mean, farthest[..., 0, :]


def score(query, vectors, scale, dot):
    """The larger of the two logits. `dot` multiplies and sums over head_dim, whatever the arrays' layout."""
    mean, farthest = vectors
    return jnp.maximum(dot(query * scale, mean), dot(query * scale, farthest))


def main():
    kernels.register_summary(kernels.SummaryKind("mean_farthest", vectors=2, make=make, score=score))
    for kind in ("mean", "mean_farthest"):
        print(f"{kind} on an NVIDIA GPU: select_pages runs on {chosen_backend('select_pages', 'gpu', kind)[0]}")
    lm = kj.load("chase-131k")
    problems = load_problems("builtin", limit=8)
    for kind in ("mean", "mean_farthest"):
        policy = kj.BlockTopK(budget=96, page_size=4, summary=kind)
        greedy = kj.Sampling(temperature=0.0, max_tokens=72)
        samples = lm.generate([problem.question for problem in problems], attention=policy, sampling=greedy)
        drawn = sum(len(sample.output_tokens) for sample in samples)
        tokens = sum(sample.attended_tokens for sample in samples) / drawn
        vectors = sum(sample.summary_vectors for sample in samples) / drawn
        answers = zip(samples, problems, strict=True)
        right = sum((sample.text or "").endswith(f"{{{problem.answer}}}") for sample, problem in answers)
        print(f"{policy}: {tokens:.0f} tokens, {vectors:.0f} vectors for one drawn; {right} of {len(problems)} right")


if __name__ == "__main__":
    main()
