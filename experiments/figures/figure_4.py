"""Figure 4: the frontiers of Best-of-N by FLOPs and by eFLOPs, and how many samples per problem are worth their cost.

    kinetics demo --out demo && python experiments/figures/figure_4.py
    python experiments/figures/figure_4.py RUN... --in-sample --convention upstream --hardware b200-fp8

Algorithm 1: every problem gets the best N within a budget.
(a, c): every model's accuracy over FLOPs and over eFLOPs, dense attention, bands of 95 % from redrawing problems; the
bar below is the colour of the model that is best at a cost. (b, d): the N that the best model uses. The paper's
statement: by FLOPs a small model with more test-time compute looks best until it saturates, by eFLOPs a larger one does
from far lower budgets on (the page of its authors shows these four panels for Long-CoT; the caption of the paper's
figure 4 was not available).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from paper_figures.common import run, trace_parser
from paper_figures.laws import script


def main(argv: Sequence[str] | None = None) -> None:
    made = trace_parser(__doc__)
    made.add_argument("--attention", choices=("dense", "sparse"), default="dense", help="(%(default)s)")
    run(functools.partial(script, name="figure_4", best_of=True), made, argv)


if __name__ == "__main__":
    main()
