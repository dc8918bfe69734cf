"""Runs the op cases on one backend. Needs only jax, NumPy and kinetics_kernels."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
from kinetics_kernels.backends import ATTENTION_OPS, PARTS, backend_error, chosen_backend, implementation, used_backend
from kinetics_kernels.choices import choice_for, parsed

from .cases import Case, State, cases_of, inputs_of
from .recording import ComparisonError, arrays_sha256, failure_line

OUTPUTS = {
    "append_kv": ("k_pages", "v_pages", "summaries"),
    "select_pages": ("selected", "covered"),
    "paged_decode": ("out", "lse"),
    "block_topk_decode": ("out", "lse"),
}


def check_backend(backend: str | None, interpret: bool) -> None:
    """Raises ComparisonError if a choice of backends is none, or runs on this machine only by an interpreter."""
    try:
        chosen = {} if backend is None else parsed(backend)
        for op in ATTENTION_OPS:
            if op in chosen:
                implementation(op, backend)
    except (ValueError, NotImplementedError) as error:
        raise ComparisonError(str(error)) from error
    if interpret and not {choice.backend for choice in chosen.values()} - {"xla"}:
        raise ComparisonError("--interpret is for a kernel: name it with --backend")
    wrong = None if backend is None else backend_error(backend, ops=ATTENTION_OPS)
    if wrong and not (interpret and "does not run on a" in wrong):
        raise ComparisonError(f"{wrong}; --interpret simulates it" if "does not run on a" in wrong else wrong)


def interpreter(backend: str, op: str, dtype: str) -> tuple[str, Any]:
    """The interpreter of a backend's kernel: its name, and the value of the kernel's `interpret` argument.

    That of a backend which is none of this package's is called with True. Raises ComparisonError if this jax has none.
    """
    if backend == "mosaic_tpu":
        if (op, dtype) == ("select_pages", "bfloat16"):
            return "Pallas' interpreter: the TPU one has no ref.bitcast", True
        from jax.experimental.pallas import tpu

        return "the TPU interpreter", tpu.InterpretParams()
    if backend != "mosaic_gpu":
        return "Pallas' interpreter" if backend == "triton" else f"interpreted by {backend}", True
    from jax.experimental.pallas import mosaic_gpu

    params = getattr(mosaic_gpu, "InterpretGPUParams", None)
    if params is None:
        raise ComparisonError(f"jax {jax.__version__} has no interpreter for {backend}")
    return "the Mosaic GPU interpreter", params()


def interpreted_op(op: str, backend: str, dtype: str) -> tuple[str, Callable[..., Any]]:
    """The interpreter's name, and the op under it; the reference, and what suits the device, run as they are.

    Raises NotImplementedError if the backend does not have the op.
    """
    if op == "block_topk_decode":
        (first, select), (second, decode) = (interpreted_op(part, backend, dtype) for part in PARTS[op])

        def both(q, k_pages, v_pages, summaries, page_table, lengths, **choice):
            chosen = select(q, summaries, page_table, lengths, page_size=k_pages.shape[2], **choice)
            return decode(q, k_pages, v_pages, *chosen)

        return first if first == second else f"{first}; {second}", both
    function, choice = implementation(op, backend), choice_for(op, backend)
    if choice is None or choice.backend == "xla":
        return "compiled", function
    if "interpret" not in inspect.signature(function).parameters:
        raise NotImplementedError(f"{op}: the {choice.backend} kernel cannot be interpreted")
    how, value = interpreter(choice.backend, op, dtype)
    return how, functools.partial(function, interpret=value)


def run_case(
    case: Case, inputs: dict[str, np.ndarray], backend: str | None, interpret: bool
) -> tuple[str, dict[str, np.ndarray]]:
    """Runs one case: how (compiled, or by which interpreter), and its outputs by name."""
    if interpret:
        assert backend is not None
        how, function = interpreted_op(case.op, backend, case.state.dtype)
    else:
        how, function = "compiled", functools.partial(getattr(kernels, case.op), backend=backend)
    compiled = jax.jit(functools.partial(function, **case.options))
    results = jax.device_get(compiled(*[jnp.asarray(inputs[name]) for name in case.arrays]))
    return how, dict(zip(OUTPUTS[case.op], map(np.asarray, results), strict=True))


def record_ops(
    states: list[State], *, seed: int, backend: str | None, interpret: bool, report: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Runs every case of the states: what goes into a recording's index under `ops`, and its arrays.

    A case that the backend refuses is recorded as `refused` with the reason; one that fails otherwise as `failed`, and
    the next ones still run.
    """
    check_backend(backend, interpret)
    arrays: dict[str, np.ndarray] = {}
    records = []
    for state in states:
        inputs = inputs_of(state, seed)
        arrays |= {f"inputs/{state.name}/{name}": array for name, array in inputs.items()}
        for case in cases_of(state):
            status, reason, how = "ok", "", ""
            try:
                how, outputs = run_case(case, inputs, backend, interpret)
                arrays |= {f"outputs/{case.name}/{name}": array for name, array in outputs.items()}
            except NotImplementedError as error:
                status, reason = "refused", str(error)
            except ComparisonError:
                raise
            except Exception as error:  # of a compiler or driver: one case must not lose hours on a device
                status, reason = "failed", failure_line(error)
            records.append({"case": case.name, "status": status, "reason": reason, "how": how})
            if status != "ok":
                report(f"{case.name} {status}: {reason}")
        report(f"{state.name}: done")

    def chosen(op: str) -> dict[str, str]:
        parts = [choice_for(part, backend) for part in PARTS.get(op, (op,))]
        if None in parts:
            name, why = chosen_backend(op) if parts == [None] * len(parts) else (used_backend(op, backend), "in part")
            return {"backend": name, "why": why}
        forced = dict.fromkeys(str(part) for part in parts)
        interpreted = interpret and any(part.backend != "xla" for part in parts if part)
        return {"backend": "+".join(forced), "why": f"forced{', interpreted' if interpreted else ''}"}

    return {
        "seed": seed,
        "states": [state.name for state in states],
        "inputs_sha256": arrays_sha256({name: array for name, array in arrays.items() if name.startswith("inputs/")}),
        "backends": {op: chosen(op) for op in OUTPUTS},
        "cases": records,
    }, arrays
