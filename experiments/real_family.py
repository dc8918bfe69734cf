"""What the scaling law says of real models: samples that others published, priced and chosen from by both laws.

    python experiments/real_family.py PUBLIC [--json] [--out DIR]

PUBLIC is a folder of counts and verdicts that were extracted from published runs; docs/real_models.md says where they
come from. Read are:

    s1_mgsm/samples.csv                                s1.1 3B to 32B on MGSM, one greedy text per question and language
    r1distill_llama8b_math500x16/                      R1-Distill-Llama-8B on MATH-500, cache whole and pruned
    r1distill_trace_topology/samples.csv               R1-Distill-Qwen-7B and -Llama-8B, tokens on four tasks
    qwen3_1p7b_lcb/lcb_v6_single_sample_tokens.csv     Qwen3-1.7B on LiveCodeBench, tokens and how a text ended

Writes real_models.json and the figures of docs/real_models.md into --out. The same files give the same numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from real_models.data import DataError, read_family
from real_models.drawing import FIGURES
from real_models.family import family_summary
from real_models.loops import loops_summary, read_loops
from real_models.page import fragments
from real_models.pair import pair_summary, read_pair
from real_models.pruned import pruned_summary, read_pruned

from kinetics_jax.errors import UserError
from kinetics_jax.files import write_atomic
from kinetics_jax.report.figure_style import save_figure

RESULTS = Path(__file__).parent / "results" / "real_models.json"
DIGITS = 5  # significant ones of a number in the JSON


def summarize(public: Path) -> dict[str, Any]:
    """Everything that docs/real_models.md says, as JSON."""
    summary = {
        "family": family_summary(*read_family(public / "s1_mgsm" / "samples.csv")),
        "pruned": pruned_summary(read_pruned(public / "r1distill_llama8b_math500x16")),
        "pair": pair_summary(read_pair(public / "r1distill_trace_topology" / "samples.csv")),
        "loops": loops_summary(read_loops(public / "qwen3_1p7b_lcb" / "lcb_v6_single_sample_tokens.csv")),
    }
    return rounded(summary)


def rounded(value: Any) -> Any:
    """The value with every float to DIGITS significant digits."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def spelled_out(value: Any, indent: str = "") -> str:
    """JSON with a line for every entry of an object, and for every list of numbers or of texts."""
    if isinstance(value, dict) and value:
        inner = (f"{indent} {json.dumps(name)}: {spelled_out(each, indent + ' ')}" for name, each in value.items())
        return "{\n" + ",\n".join(inner) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return "[\n" + ",\n".join(f"{indent} {json.dumps(each)}" for each in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("public", type=Path, metavar="PUBLIC", help="the folder that holds the files above")
    parser.add_argument(
        "--out", type=Path, default=Path("real_models"), help="folder of JSON and figures (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON, not the page's tables")
    options = parser.parse_args(arguments)
    try:
        if options.out.exists() and not options.out.is_dir():
            raise DataError(f"{options.out}: is a file; --out takes a folder, which is made if it is not there")
        summary = summarize(options.public)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    options.out.mkdir(parents=True, exist_ok=True)
    text = spelled_out(summary) + "\n"
    write_atomic(options.out / "real_models.json", text)
    for name, draw in FIGURES.items():
        save_figure(draw(summary), options.out / f"{name}.png")
    print(text if options.json else "\n\n".join(fragments(summary).values()), end="" if options.json else "\n")


if __name__ == "__main__":
    main()
