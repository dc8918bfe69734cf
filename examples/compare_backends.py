"""Two backends of one op, compared: a kernel of your own, in a file that is found by its name, and the reference.

    python examples/compare_backends.py

A backend is a file `<package>/<op>/<backend>.py` with a function of the op's name. Here one is written into a folder,
registered, and run three ways: called by name; chosen for its op alone while a model decodes, the others staying on
the reference; and recorded beside the reference on a fixed set of cases, with a table that says how far apart they are.
This one sums in another order than the reference does: half the pages at a time, merged by their log-sum-exps.
"""

import importlib
import pathlib
import sys
import tempfile

import kinetics_kernels as kernels

import kinetics_jax as kj

HALVES = '''
"""paged_decode as two halves of the page table, merged: on any device, for it is jnp."""

import jax.numpy as jnp
from kinetics_kernels import reference


def paged_decode(q, k_pages, v_pages, page_table, lengths, *, scale=None):
    half = -(-page_table.shape[-1] // 2)
    first = jnp.minimum(lengths, half * k_pages.shape[2])
    parts = [(page_table[..., :half], first), (page_table[..., half:], lengths - first)]
    outs, lses = zip(*[reference.paged_decode(q, k_pages, v_pages, *part, scale=scale) for part in parts])
    return reference.merge_partials(jnp.stack(outs), jnp.stack(lses))
'''
BENCHMARKS = pathlib.Path(__file__).parents[1] / "experiments" / "benchmarks"


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "my_kernels", "paged_decode", "halves.py")
        path.parent.mkdir(parents=True)
        path.write_text(HALVES)
        sys.path[:0] = [folder, str(BENCHMARKS)]
        print("found:", *kernels.register_backends("my_kernels"))

        for backend in ("xla", "paged_decode=halves"):
            lm = kj.load("chase-131k", backend=backend)
            print(f"{backend}: {lm.generate(['n7>n2'], sampling=kj.Sampling(temperature=0, max_tokens=24))[0].text!r}")

        compare = importlib.import_module("compare_backends").main  # the script of experiments/benchmarks
        cases = ["--model", "none", "--only", "page8-group4", "--kernels", "my_kernels"]
        for out, backend in (("xla", "xla"), ("halves", "paged_decode=halves")):
            compare(["record", f"{folder}/{out}", "--backend", backend, *cases])
        compare(["compare", f"{folder}/xla", f"{folder}/halves", "--format", "markdown"])


if __name__ == "__main__":
    main()
