"""A policy of your own: pages by the usual score, less a little for every page of age; it costs what it counted.

    python examples/own_policy.py

For the command line, `pip install` a folder with this file and a pyproject.toml of these lines:
    [project]
    name = "own-policy"
    version = "0.1"
    [project.entry-points."kinetics_jax.policies"]
    fading_topk = "own_policy:FadingTopK"

    kinetics sample chase-550k --task builtin --limit 8 --n 4 --attention fading_topk:budget=96,page_size=2 --out fading
    kinetics frontier fading
"""

import dataclasses

import jax.numpy as jnp

import kinetics_jax as kj


@dataclasses.dataclass(frozen=True)
class FadingTopK(kj.AttentionPolicy):
    budget: int = 32  # tokens a step, layer and KV head
    page_size: int = 4
    fade: float = 0.01
    kind, price = "fading_topk", "measured"
    cache_summary, summary_vectors = "mean", 1  # the cache keeps the mean key of every full page

    def choose(self, step):
        age = step.pages_in_use[:, None] - jnp.arange(step.max_pages)
        scores = step.score_pages() - self.fade * age[:, None]
        return step.choose_pages(scores, pages=self.budget // self.page_size, sink_pages=1, recent_pages=1)


if __name__ == "__main__":
    for policy in (kj.Dense(), FadingTopK(budget=16)):
        samples = kj.load("chase-131k").generate(["n7"], n=16, attention=policy, sampling=kj.Sampling(max_tokens=64))
        print(f"{policy}: {max(sample.attended_tokens for sample in samples)} KV tokens read by a sample, at most")
