"""PyTorch's scaled_dot_product_attention and FlashInfer's paged decode, where they import, over the same K and V.

Calls are enqueued without waiting, and the last is waited for. They read one set: at most sizes a call reads several
times what any cache holds, and the row says how many bytes it reads.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from kernel_bench.byte_model import Workload, floor_bytes
from kernel_bench.measure import CHECKED_SEQUENCES, Bench, against_floor
from kernel_bench.peers import check_dense_output
from kernel_bench.states import DeviceState, contiguous
from kernel_bench.timing import time_queue

NAMES = (
    "torch SDPA FLASH_ATTENTION",
    "torch SDPA CUDNN_ATTENTION",
    "torch SDPA EFFICIENT_ATTENTION",
    "torch SDPA default",
    "FlashInfer paged decode",
    "FlashInfer paged decode, tensor cores",
)


def measure_torch_peer(bench: Bench, name: str, load: Workload) -> dict:
    """The row of one peer. Raises ImportError if its package is not installed."""
    torch = importlib.import_module("torch")
    state = bench.state("dense", load)
    if name.startswith("torch"):
        call = _sdpa(torch, state, name.removeprefix("torch SDPA "))
    else:
        call = _flashinfer(torch, state, tensor_cores=name.endswith("tensor cores"))
    out = call()[:CHECKED_SEQUENCES].reshape(-1, load.q_heads, load.head_dim).float().cpu().numpy()
    error, why = check_dense_output(bench, state, np.asarray(out))
    if why:
        return {"status": "wrong", "error": error, "why": why}
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    with torch.no_grad():
        timing = time_queue(call, wait, seconds=bench.seconds)
    row = {"status": "ok", "error": error, "sets": 1, "version": torch.__version__}
    return row | against_floor(floor_bytes("dense", load), timing, bench.bandwidth)


def _sdpa(torch: Any, state: DeviceState, backend: str) -> Callable[[], Any]:
    load = state.load
    pools = [
        torch.from_dlpack(
            contiguous(pool, state.tables[0], page_size=load.page_size, heads_first=True).block_until_ready()
        )
        for pool in (state.keys, state.values)
    ]
    q = torch.from_dlpack(state.q.block_until_ready())[:, :, None]
    attend, kinds = torch.nn.functional.scaled_dot_product_attention, importlib.import_module("torch.nn.attention")

    def call() -> Any:
        if backend == "default":
            return attend(q, *pools, enable_gqa=load.group > 1)
        with kinds.sdpa_kernel(getattr(kinds.SDPBackend, backend)):
            return attend(q, *pools, enable_gqa=load.group > 1)

    return call


def _flashinfer(torch: Any, state: DeviceState, *, tensor_cores: bool) -> Callable[[], Any]:
    flashinfer = importlib.import_module("flashinfer")
    load = state.load
    # "NHD" pages are [pages, page_size, kv_heads, head_dim]; the batch's tokens are first laid out in order.
    pools = []
    for pool in (state.keys, state.values):
        dense = contiguous(pool, state.tables[0], page_size=load.page_size, heads_first=False).block_until_ready()
        shape = (-1, load.page_size, load.kv_heads, load.head_dim)
        pools.append(torch.from_dlpack(dense).reshape(shape))
    q = torch.from_dlpack(state.q.block_until_ready())
    order = torch.randperm(load.batch * load.table_pages, device=q.device)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=q.device)
    for index, pool in enumerate(pools):
        pools[index] = pool[order]
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=tensor_cores)
    counts = torch.arange(load.batch + 1, dtype=torch.int32, device=q.device) * load.table_pages
    last = torch.full((load.batch,), load.page_size, dtype=torch.int32, device=q.device)
    wrapper.plan(
        counts,
        places.to(torch.int32),
        last,
        load.q_heads,
        load.kv_heads,
        load.head_dim,
        load.page_size,
        q_data_type=q.dtype,
        kv_data_type=q.dtype,
    )
    return lambda: wrapper.run(q, tuple(pools))
