"""A research policy on top of block top-k: pages that the layer below attended to get a bonus, so that choices stick.

    python examples/research_policy.py

For commands, declare it as own_policy.py says: sticky_topk = "research_policy:StickyTopK". `stick=0` is block top-k,
whose price it inherits. Printed: how far each agrees with dense attention on its own samples.
"""

import dataclasses

import jax.numpy as jnp

import kinetics_jax as kj


@kj.register_policy
@dataclasses.dataclass(frozen=True)
class StickyTopK(kj.BlockTopK):
    stick: float = 1.0
    kind = "sticky_topk"

    def carried(self, head_dim):
        return {"tables": ((self.pages,), "int32")}  # ids of pages, plus 1: it begins with zeros

    def choose_and_carry(self, step):
        below = jnp.swapaxes(step.carried["tables"], 0, 1) - 1
        same = (step.page_table[:, None, :, None] == below[:, :, None]).any(-1)
        options = {**self.choice(step), "pages": self.pages}
        pages = step.choose_pages(step.score_pages() + self.stick * same, **options)
        return pages, {"tables": jnp.swapaxes(pages.tables + 1, 0, 1)}


if __name__ == "__main__":
    lm, prompt = kj.load("chase-131k"), "n7>n2"
    for stick in (0, 0.5, 4):
        policy = kj.parse_policy(f"sticky_topk:budget=16,page_size=4,stick={stick}")
        sample = lm.generate([prompt], attention=policy, sampling=kj.Sampling(max_tokens=48))[0]
        agreement = lm.agreement(prompt, sample.output_tokens, attention=policy).summary()
        print(f"{policy}: agreement {agreement['agreement']:.3f}, 5th percentile {agreement['agreement_p5']:.3f}")
