"""Figure 6: Best-of-N with sparse attention, what to spend more cost on: tokens (all samples), KV budget and N.

    kinetics demo --out demo && python experiments/figures/figure_6.py
    python experiments/figures/figure_6.py RUN... --in-sample --convention upstream --hardware b200-fp8

Within a cost every problem gets the best N and KV budget of one model; shown are the means over the problems, against
what is paid. The paper's statement: as cost grows, generate more rather than attend to more. Its fits, of Best-of-N and
8B, x in Tera-eFLOPs: tokens 91.68 x^0.80 and budget 81.77 x^0.25 - 212 (AIME24), 213.58 x^0.74 and 140.92 x^0.17 - 212
(AIME25), 22.08 x^0.92 and 161.83 x^0.19 - 212 (LiveCodeBench). Here: power laws (--offset: and a constant), over the
costs that every problem affords and at which accuracy still grows (full dots), exponents with 95 % intervals from
redrawing problems. The paper's caption was not available.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from paper_figures.common import run, trace_parser
from paper_figures.tradeoff import script


def main(argv: Sequence[str] | None = None) -> None:
    made = trace_parser(__doc__)
    made.add_argument("--model", help="default: the largest")
    made.add_argument("--sparse", metavar="KIND", default="block_topk", help="block_topk, token_topk, … (%(default)s)")
    made.add_argument("--offset", action="store_true", help="fit the paper's form, a power law and a constant")
    run(functools.partial(script, name="figure_6", best_of=True), made, argv)


if __name__ == "__main__":
    main()
