"""Figure 7: Long-CoT with sparse attention, what to spend more cost on: tokens and KV budget.

    kinetics demo --out demo && python experiments/figures/figure_7.py
    python experiments/figures/figure_7.py RUN... --in-sample --convention upstream --hardware b200-fp8

Within a cost every problem gets the best cap on tokens and KV budget of one model; shown are means over the problems,
against what is paid. The paper's statement: as cost grows, generate more rather than attend to more. Its published fits
are those of Best-of-N (figure 6); none of Long-CoT was available. Here: power laws (--offset: and a constant), over the
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
    run(functools.partial(script, name="figure_7", best_of=False), made, argv)


if __name__ == "__main__":
    main()
