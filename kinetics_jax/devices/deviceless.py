"""The engine's programs, compiled for a device that this machine lacks: the bytes that each takes.

`memory_of` does it in this process. `python -m kinetics_jax.devices.deviceless` does it in a process of its own:
it reads a request in JSON on standard input and writes one line of JSON on standard output for every program;
`memory_plan` starts it. A process of its own, because jax and libtpu read once, before they first look for devices,
what to compile for, and the caller has often started jax already; and because a compiler that crashes then takes no
caller with it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from kinetics_kernels import targets

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.config import ModelConfig
from kinetics_jax.engine.abstract import abstract_cache, abstract_model, abstract_rows, abstract_scalar, abstract_slots
from kinetics_jax.engine.programs import decode_chunk, prefill, prefill_chunk
from kinetics_jax.padding import pool_pages, prompt_shape
from kinetics_jax.settings import EngineSettings, Sampling
from kinetics_jax.sharding.axes import AXES
from kinetics_jax.sharding.mesh import check_mesh

PROGRAMS = ("prefill", "decode")


def memory_of(
    program: str,
    target: targets.Target,
    config: ModelConfig,
    *,
    policy: AttentionPolicy,
    sampling: Sampling,
    context: int,
    batch: int,
    chips: int = 1,
    dtype: str = "bfloat16",
) -> dict[str, Any]:
    """Compiles `prefill` or `decode` as the engine calls it with `batch` slots, each for `context` tokens, on the first
    `chips` of the target's devices, tensor parallel.

    `prefill` is that of a prompt of `context` tokens, or of one chunk of a longer prompt. No array is allocated.
    Returns bytes of one device: `temp_bytes`; `argument_bytes`, of which `cache_bytes` are the KV cache with its
    summaries and `weight_bytes` the model; `alias_bytes`, of arguments whose memory the results take; `output_bytes`,
    those among them; `code_bytes`. And `seconds`, `cpu_seconds` to trace and compile it. Raises ValueError for another
    program, MeshError for chips that do not divide the model, JaxRuntimeError if the compiler refuses
    (RESOURCE_EXHAUSTED: a TPU's memory).
    """
    clocks = time.perf_counter(), _cpu_seconds()
    config, mesh = dataclasses.replace(config, name=""), _mesh(target, config, chips)
    graph, weights = abstract_model(config, dtype=jnp.dtype(dtype), mesh=mesh)
    most, num_pages = pool_pages(context, policy.page_size, batch)
    cache = abstract_cache(policy, config, num_pages=num_pages, dtype=jnp.dtype(dtype), rows=batch, mesh=mesh)
    number = abstract_scalar(mesh)
    static: dict[str, Any] = {}
    if program == "decode":
        function, rest = decode_chunk, (abstract_slots(batch, mesh), abstract_rows((batch, most), mesh), number)
        static = {"policy": policy, "sampling": sampling, "eos": config.eos_token_ids, "chunk": EngineSettings.chunk}
    elif program == "prefill":
        at_a_time, in_all = prompt_shape(context, policy.page_size)
        tokens, pages = abstract_rows((1, at_a_time), mesh), in_all // policy.page_size
        prompt = (
            (number, abstract_rows((pages,)))
            if mesh is None
            else (abstract_rows((1,), mesh), abstract_rows((1, pages), mesh))
        )
        function, rest = (
            (prefill, (tokens, *prompt)) if at_a_time == in_all else (prefill_chunk, (tokens, number, *prompt))
        )
    else:
        raise ValueError(f"program {program!r} is not one of {', '.join(PROGRAMS)}")
    memory = target.compile(function, graph, weights, cache, *rest, **static).memory_analysis()
    return {
        "temp_bytes": memory.temp_size_in_bytes,
        "cache_bytes": bytes_on_a_device(cache),
        "weight_bytes": bytes_on_a_device(weights),
        "argument_bytes": memory.argument_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "seconds": round(time.perf_counter() - clocks[0], 1),
        "cpu_seconds": round(_cpu_seconds() - clocks[1], 1),
    }


def _mesh(target: targets.Target, config: ModelConfig, chips: int) -> Mesh | None:
    if chips == 1:
        return None
    mesh = Mesh(np.array(target.devices[:chips]).reshape([1, 1, chips]), AXES)
    check_mesh(mesh, config)
    return mesh


def bytes_on_a_device(tree: Any) -> int:
    """Bytes that abstract arrays take of one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def target_of(device: str, chips: int = 1) -> targets.Target:
    """The target of that name, a GPU or a TPU generation. Raises TargetUnavailable."""
    return (targets.gpu if device in targets.GPUS else targets.tpu)(device, chips)


def answer(request: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Compiles the programs of a request; calls `say` with each one's bytes, or with the reason (`error`, `kind`)."""
    config = ModelConfig.from_hf(request["config"])
    try:
        target = target_of(request["device"], request["chips"])
        for program in request["programs"]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                memory = memory_of(
                    program,
                    target,
                    config,
                    policy=parse_policy(request["attention"]),
                    sampling=Sampling(**request["sampling"]),
                    context=request["context"],
                    batch=request["batch"],
                    chips=request["chips"],
                    dtype=request["dtype"],
                )
            messages = [str(warning.message) for warning in caught if warning.category is UserWarning]
            say({"program": program, "memory": memory, "warnings": list(dict.fromkeys(messages))})
    except targets.TargetUnavailable as reason:
        say({"error": str(reason), "kind": "unavailable"})
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        full = "RESOURCE_EXHAUSTED" in str(error)
        say({"error": str(error).strip().partition("\n")[0], "kind": "memory" if full else "compiler"})


def _cpu_seconds() -> float:
    """Of this process, its threads and the assemblers that it has started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    os.environ.update(targets.TPU_ENVIRONMENT)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what compilers print is not an answer

    def say(record: dict[str, Any]) -> None:
        print(json.dumps(record), file=answers, flush=True)

    answer(json.load(sys.stdin), say)


if __name__ == "__main__":
    main()
