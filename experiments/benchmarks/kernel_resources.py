"""Registers, spills and shared memory of every GPU kernel at Qwen3 shapes, compiled without a GPU.

    python experiments/benchmarks/kernel_resources.py [--gpu h100] [--out FOLDER]
    python experiments/benchmarks/kernel_resources.py --backend triton --option tokens=32 --out FOLDER

Needs jax >= 0.11 with jax-cuda13-plugin and jax-cuda13-pjrt, and ptxas on the path. Prints a table and writes
kernel_resources.json, by default into results/<gpu>_deviceless beside this script. Mosaic's warning that nvdisasm is
missing does not matter here.
"""

import argparse
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

CONTEXT, BUDGET, HEAD_DIM = 32_768, 1024, 128
MODELS = {"0.6B": (16, 8), "8B": (32, 8), "14B": (40, 8), "32B": (64, 8), "30B-A3B": (32, 4)}  # query heads, KV heads
BACKENDS = ("triton", "mosaic_gpu")
ARCHITECTURES = {"a100": "sm_80", "h100": "sm_90a", "h200": "sm_90a"}
# What to count in their PTX: products on tensor cores; K, V and summaries moved 16 bytes or a tile at a time.
SIGNS = {
    "tensor_core_products": r"\b(?:mma\.sync|wgmma\.mma_async)",
    "copies_of_16_bytes": r"cp\.async\.cg\.shared\.global",
    "tile_copies": r"cp\.async\.bulk\.tensor",
    "loads_of_16_bytes": r"ld\.global\S*\.v4\.b32",
}


def resources(text: str, architecture: str) -> dict:
    """What ptxas reports on one kernel, and counts of SIGNS in its PTX."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(text)
        file.flush()
        command = ["ptxas", "-v", f"-arch={architecture}", file.name, "-o", os.devnull]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    name = re.findall(r"\.entry (\w+)", text)[0]
    return {
        "kernel": name.removesuffix("_mosaic_gpu_kernel"),
        "threads": int(re.findall(r"\.(?:reqntid|maxntid) (\d+)", text)[0]),
        "registers": int(re.findall(r"Used (\d+) registers", report)[0]),
        "spill_bytes": sum(int(size) for size in re.findall(r"(\d+) bytes spill", report)),
        **{sign: len(re.findall(pattern, text)) for sign, pattern in SIGNS.items()},
    }


def cases():
    """Yields setting, op, arguments and donated arguments of every op at every shape."""
    import jax
    import jax.numpy as jnp
    import kinetics_kernels as kernels

    for model, (q_heads, kv_heads) in MODELS.items():
        for page_size in (16, 64):
            for batch in (1, 64):
                pages = CONTEXT // page_size
                pool = jax.ShapeDtypeStruct((kv_heads, batch * pages, page_size, HEAD_DIM), jnp.bfloat16)
                summaries = jax.ShapeDtypeStruct((kv_heads, batch * pages, HEAD_DIM), jnp.bfloat16)
                q = jax.ShapeDtypeStruct((batch, q_heads, HEAD_DIM), jnp.bfloat16)
                new = jax.ShapeDtypeStruct((batch, kv_heads, HEAD_DIM), jnp.bfloat16)
                tables = jax.ShapeDtypeStruct((batch, pages), jnp.int32), jax.ShapeDtypeStruct((batch,), jnp.int32)
                setting = {"model": model, "page_size": page_size, "batch": batch}
                attend = functools.partial(kernels.block_topk_decode, pages=BUDGET // page_size)
                yield setting, attend, (q, pool, pool, summaries, *tables), ()
                yield setting, kernels.append_kv, (pool, pool, summaries, new, new, *tables), (0, 1, 2)


def spellings(backends: Sequence[str], options: Sequence[str]) -> dict[str, str]:
    """The choice of backends to compile for each backend, with `options` (kernel_options.py).

    Raises ValueError for an option that the kernels of one of them do not take.
    """
    from kernel_options import with_options

    return {backend: with_options(backend, options) or backend for backend in backends}


def measured(target, backend: str, spelling: str, dump: pathlib.Path, case) -> list[dict]:
    """Compiles an op; one row per kernel, read from the folder `dump` that XLA and Mosaic write to.

    `spelling` is the choice of backends that it is compiled for: `backend`, with options if any.
    """
    import jax

    setting, op, arguments, donated = case
    function = jax.jit(functools.partial(op, backend=spelling), donate_argnums=donated)
    temp_bytes = target.compile(function, *arguments).memory_analysis().temp_size_in_bytes
    thunks = "".join(path.read_text() for path in sorted(dump.glob("*thunk_sequence*")))
    shared = {name: int(size) for name, size in re.findall(r"(\w+) grid: .*?shared_memory: (\d+)", thunks)}
    rows = []
    for path in sorted(dump.glob("*.ptx")):
        row = resources(path.read_text(), ARCHITECTURES[target.name])
        passes = path.with_suffix(".mlir-passes.log")  # Mosaic's kernels are launched by Mosaic, not by XLA
        dynamic = re.findall(r"dynamic_shared_memory_size %c(\d+)", passes.read_text()) if passes.exists() else []
        row["shared_bytes"] = int(dynamic[-1]) if dynamic else shared.get(row["kernel"], 0)
        chosen = {"backend": backend} if spelling == backend else {"backend": backend, "choice": spelling}
        rows.append({**chosen, **setting, **row, "temp_bytes": temp_bytes})
    for path in dump.iterdir():
        path.unlink()
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=list(ARCHITECTURES), default="h100")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--backend", choices=BACKENDS, help="this one alone")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the kernels, as tokens=32"
    )
    arguments = parser.parse_args(argv)
    if (arguments.backend or arguments.option) and arguments.out is None:
        sys.exit("kernel_resources: name a folder with --out: the default one holds every kernel as it runs by default")
    if shutil.which("ptxas") is None:
        sys.exit("kernel_resources: ptxas is not on the path; pip install nvidia-cuda-nvcc, or add CUDA's bin folder")
    out = arguments.out or pathlib.Path(__file__).parent / "results" / f"{arguments.gpu}_deviceless"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        # jax and XLA read these when they are imported.
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder} --xla_dump_emitter_re=ptx"
        os.environ["MOSAIC_GPU_DUMP_TO"] = folder
        import kernel_bench  # noqa: F401, finds the kernels of this checkout
        from kinetics_kernels import targets

        # Mosaic's kernels need Hopper.
        backends = [arguments.backend] if arguments.backend else BACKENDS if arguments.gpu != "a100" else BACKENDS[:1]
        try:
            chosen = spellings(backends, arguments.option)
        except ValueError as error:
            sys.exit(f"kernel_resources: {error}")
        target = targets.gpu(arguments.gpu)
        for backend, spelling in chosen.items():
            for case in cases():
                rows += measured(target, backend, spelling, pathlib.Path(folder), case)
    widths = {name: max(len(str(value)) for value in (name, *(row[name] for row in rows))) for name in rows[0]}
    for row in (dict(zip(widths, widths, strict=True)), *rows):
        print("  ".join(str(row[name]).rjust(width) for name, width in widths.items()))
    out.mkdir(parents=True, exist_ok=True)
    (out / "kernel_resources.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
