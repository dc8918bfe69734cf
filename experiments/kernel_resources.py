"""Registers, spills and shared memory of every Triton kernel at Qwen3 shapes, compiled for an H100 without one.

    python experiments/kernel_resources.py [--out FOLDER]

Needs jax >= 0.11 with jax-cuda13-plugin and jax-cuda13-pjrt, and ptxas on the path. Prints a table and writes
kernel_resources.json (default experiments/results/h100_deviceless).
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

CONTEXT, BUDGET, HEAD_DIM = 32_768, 1024, 128
MODELS = {"0.6B": (16, 8), "8B": (32, 8), "14B": (40, 8), "32B": (64, 8), "30B-A3B": (32, 4)}  # query heads, KV heads


def compile_for_h100(op, *shapes, donate=()):
    """Compiles a function of abstract arrays; XLA writes the PTX where XLA_FLAGS says."""
    import jax
    import numpy as np
    from jax.experimental import topologies
    from kinetics_kernels.targets import description

    topology = topologies.get_topology_desc(platform="cuda", target_config=description("h100"), topology="1x1x1")
    mesh = jax.sharding.Mesh(np.array(topology.devices), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = [jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding) for shape in shapes]
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        traced = jax.jit(op, donate_argnums=donate).trace(*placed)
        return traced.lower(lowering_platforms=("cuda",)).compile()


def resources(ptx: pathlib.Path) -> dict:
    """What ptxas says of one kernel, and what its PTX holds."""
    text = ptx.read_text()
    command = ["ptxas", "-v", "-arch=sm_90a", str(ptx), "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "kernel": re.findall(r"\.entry (\w+)", text)[0],
        "threads": int(re.findall(r"\.reqntid (\d+)", text)[0]),
        "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
        "spill_bytes": sum(int(size) for size in re.findall(r"(\d+) bytes spill", said)),
        "tensor_core_products": len(re.findall(r"mma\.sync", text)),
        "copies_of_16_bytes": len(re.findall(r"cp\.async\.cg\.shared\.global", text)),
        "loads_of_16_bytes": len(re.findall(r"ld\.global\S*\.v4\.b32", text)),
    }


def cases():
    """Name and compilation of every op at every shape."""
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
                attend = functools.partial(kernels.block_topk_decode, pages=BUDGET // page_size, backend="triton")
                append = functools.partial(kernels.append_kv, backend="triton")
                yield setting, lambda a=(attend, q, pool, pool, summaries, *tables): compile_for_h100(*a)
                yield (
                    setting,
                    lambda a=(append, pool, pool, summaries, new, new, *tables): compile_for_h100(*a, donate=(0, 1, 2)),
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = pathlib.Path(__file__).parent / "results" / "h100_deviceless"
    parser.add_argument("--out", type=pathlib.Path, default=default)
    out = parser.parse_args().out
    if shutil.which("ptxas") is None:
        sys.exit("kernel_resources: ptxas is not on the path; pip install nvidia-cuda-nvcc, or add CUDA's bin folder")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        dump = pathlib.Path(folder)
        # Read when jax and XLA start, so before they are imported.
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump} --xla_dump_emitter_re=ptx"
        for setting, compiled in cases():
            memory = compiled().memory_analysis()
            assert memory is not None
            thunks = "".join(path.read_text() for path in sorted(dump.glob("*thunk_sequence*")))
            shared = dict(re.findall(r"(\w+) grid: .*?shared_memory: (\d+)", thunks))
            for ptx in sorted(dump.glob("*.ptx")):
                found = resources(ptx)
                found |= {"shared_bytes": int(shared.get(found["kernel"], 0)), "temp_bytes": memory.temp_size_in_bytes}
                rows.append(setting | found)
            for path in dump.iterdir():
                path.unlink()
    widths = {name: max(len(str(value)) for value in (name, *(row[name] for row in rows))) for name in rows[0]}
    for row in (dict(zip(widths, widths, strict=True)), *rows):
        print("  ".join(str(row[name]).rjust(width) for name, width in widths.items()))
    out.mkdir(parents=True, exist_ok=True)
    (out / "kernel_resources.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
