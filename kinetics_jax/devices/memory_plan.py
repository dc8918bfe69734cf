"""The memory plan of a model on a device that this machine need not have: the engine's real programs compiled for it,
what they take of each chip, how long a step should take, and what fits.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.dense import DENSE
from kinetics_jax.config import DTYPE_BYTES, ModelConfig
from kinetics_jax.costs.hardware import HARDWARE, Hardware
from kinetics_jax.costs.memory import RESERVE, Capacity, fits
from kinetics_jax.costs.step_time import prefill_seconds, step_seconds
from kinetics_jax.errors import UserError
from kinetics_jax.settings import Sampling
from kinetics_jax.sharding.axes import tensor_misfit

# What there are compilers for, and the chip of the cost model that it is.
DEVICES = {"a100": "a100", "h100": "h100", "h200": "h200", "v5e": "tpu-v5e", "v5p": "tpu-v5p", "v6e": "tpu-v6e"}
CHIPS = (1, 2, 4, 8)  # of one host, or the smallest slices
PROGRAMS = ("prefill", "decode")
LIMITS = {"context": 1 << 24, "batch": 1 << 16}  # beyond these a number is surely a typo
# As Qwen3's generation_config.json has it, without top_k = 20: for more than 16, XLA needs a GPU on this machine. A
# search over the whole vocabulary takes as much memory.
SAMPLING = Sampling(temperature=0.6, top_p=0.95, max_tokens=1)


class MemoryPlanError(UserError):
    """A plan that cannot be made; the message names what stands in the way and the cure."""


def memory_plan(
    config: ModelConfig,
    device: str,
    *,
    context: int,
    chips: int = 1,
    batch: int | None = None,
    attention: AttentionPolicy = DENSE,
    dtype: str = "bfloat16",
    programs: Sequence[str] = PROGRAMS,
    on_program: Callable[[str], object] = lambda program: None,
) -> dict[str, Any]:
    """What `programs` take of each of `chips` devices (DEVICES), tensor parallel, compiled here without them.

    The engine has `batch` slots (by default as many as fit) for sequences of up to `context` tokens; weights and KV
    cache are of `dtype`. `on_program` is called with each program once it is compiled. Returns what was asked, and:

    - `prefill`, `decode`: bytes of a device (`deviceless.memory_of`), `peak_bytes` of them together, `temp_share` of
      the cache's; `seconds` and `cpu_seconds` of compilation as `compile_seconds`, `compile_cpu_seconds`;
      `expected_seconds`, the cost model's for a prompt of `context` tokens, or a decode step of `batch` sequences that
      all hold `context`, at the data sheet's rates (`costs.step_time`).
    - `fits`: `sequences` of `context` tokens beside the weights (`costs.memory.fits`), whether that is the batch,
      the device's `memory_bytes`, and the fewest chips that hold the batch, None where 8 do not.
    - `warnings`: of kernels that do not take a call.

    A GPU's programs are compiled for a batch that does not fit too; those of a TPU are not, by its compiler. Raises
    MemoryPlanError, in one line with the cure, if a program cannot be compiled or no sequence fits.
    """
    device, chip = _device(device)
    _check(chips=chips, context=context, batch=batch, dtype=dtype, attention=attention, config=config)
    size = DTYPE_BYTES[dtype]
    options = {"tokens": context, "attention": attention, "kv_bytes": size, "weight_bytes": size}
    if misfit := tensor_misfit(config, chips):
        raise MemoryPlanError(f"--chips {chips} {misfit}; give {', '.join(map(str, _splitting(config)))}")
    room = fits(config, chip, chips=chips, **options)
    holds = {count: fits(config, chip, chips=count, **options).sequences for count in _splitting(config)}
    asked = f"{config.name or 'the model'}, {{}} of {context} tokens, {attention}, {dtype}, on {chips} x {device}"
    if not room.sequences:
        fewest = next((count for count, sequences in holds.items() if sequences), None)
        cure = f"give --chips {fewest}" if fewest else f"not even {max(holds)} chips do: shorten --context"
        raise MemoryPlanError(f"{asked.format('one sequence')}: does not fit; {_taken(room, chip)}; {cure}")
    batch = room.sequences if batch is None else batch
    least = [count for count, sequences in holds.items() if sequences >= batch]
    too_many = (
        f"{asked.format(f'{batch} sequences')}: {room.sequences} fit; {_taken(room, chip)}; lower --batch to "
        f"{room.sequences}" + (f" or give --chips {least[0]}" if least else "")
    )
    beside = f"{asked.format(f'{batch} sequences')}: the programs need more beside weights and KV cache; lower --batch"
    if _is_tpu(device) and room.weights + room.shared + batch * room.sequence > chip.memory:
        raise MemoryPlanError(too_many)
    answers = _compiled(
        {
            "config": config.to_hf(),
            "device": device,
            "chips": chips,
            "context": context,
            "batch": batch,
            "attention": str(attention),
            "dtype": dtype,
            "sampling": dataclasses.asdict(SAMPLING),
            "programs": list(programs),
        },
        on_program,
        full=too_many if batch > room.sequences else beside,
    )
    priced: dict[str, Any] = {"chips": chips, "weight_bytes": size}
    step = step_seconds(config, attention, chip, contexts=np.full(batch, context), kv_bytes=size, **priced)
    prompt = prefill_seconds(config, chip, prompt_tokens=context, page_size=attention.page_size, **priced)
    expected = {"prefill": float(prompt), "decode": float(step)}
    plans = {name: _with_sums(answers[name]["memory"]) | {"expected_seconds": expected[name]} for name in programs}
    batch_fits = batch <= room.sequences
    return {
        "model": config.name,
        "device": device,
        "chips": chips,
        "context": context,
        "batch": batch,
        "attention": str(attention),
        "page_size": attention.page_size,
        "dtype": dtype,
        "sampling": {name: getattr(SAMPLING, name) for name in ("temperature", "top_p")},
        **plans,
        "fits": {
            "sequences": room.sequences,
            "batch_fits": batch_fits,
            "least_chips": least[0] if least else None,
            "memory_bytes": chip.memory,
            "reserve": RESERVE,
            "weight_bytes": room.weights,
            "sequence_bytes": room.sequence,
        },
        "warnings": ([] if batch_fits else [too_many])
        + list(dict.fromkeys(text for name in programs for text in answers[name]["warnings"])),
    }


def _device(name: str) -> tuple[str, Hardware]:
    key = name.lower().removeprefix("tpu-").removeprefix("tpu")
    if key not in DEVICES:
        near = difflib.get_close_matches(key, DEVICES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise MemoryPlanError(f"no device {name!r} to compile for{hint} (there are {', '.join(DEVICES)})")
    return key, HARDWARE[DEVICES[key]]


def _splitting(config: ModelConfig) -> list[int]:
    """The numbers of chips that split the model."""
    return [count for count in CHIPS if not tensor_misfit(config, count)]


def _is_tpu(device: str) -> bool:
    return DEVICES[device].startswith("tpu")


def _check(
    *, chips: int, context: int, batch: int | None, dtype: str, attention: AttentionPolicy, config: ModelConfig
) -> None:
    if chips not in CHIPS:
        raise MemoryPlanError(f"--chips must be one of {', '.join(map(str, CHIPS))}, got {chips}")
    for name, value in {"context": context, "batch": batch}.items():
        if value is not None and not 1 <= value <= LIMITS[name]:
            raise MemoryPlanError(f"--{name} must be in 1 … {LIMITS[name]}, got {value}")
    if dtype not in DTYPE_BYTES:
        raise MemoryPlanError(f"--dtype must be one of {', '.join(DTYPE_BYTES)}, got {dtype!r}")
    if context > config.max_position_embeddings:
        raise MemoryPlanError(f"--context {context} exceeds the model's {config.max_position_embeddings} positions")
    if (layer := attention.missing_layer(config.num_layers)) is not None:
        raise MemoryPlanError(f"{attention}: there is no layer {layer}; the model has {config.num_layers}")


def _taken(room: Capacity, chip: Hardware) -> str:
    return (
        f"of a chip's {chip.memory / 1e9:.0f} GB, {RESERVE:.0%} in reserve, the weights take {room.weights / 1e9:.1f} "
        f"and a sequence {room.sequence / 1e9:.2f}"
    )


def _with_sums(memory: Mapping[str, Any]) -> dict[str, Any]:
    memory = dict(memory)
    timed = {f"compile_{clock}": memory.pop(clock) for clock in ("seconds", "cpu_seconds")}
    peak = memory["argument_bytes"] + memory["temp_bytes"] + memory["output_bytes"] - memory["alias_bytes"]
    return {**memory, "peak_bytes": peak, "temp_share": memory["temp_bytes"] / memory["cache_bytes"], **timed}


def _compiled(request: dict[str, Any], on_program: Callable[[str], object], full: str) -> dict[str, dict[str, Any]]:
    """What a process of its own says of each program (see deviceless.py); `full`: the error where memory runs out."""
    device, answers = request["device"], {}
    command = [sys.executable, "-m", "kinetics_jax.devices.deviceless"]
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, text=True, stderr=errors, **pipes) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as requests:
                json.dump(request, requests)
            for line in process.stdout:
                answer = json.loads(line)
                if "error" in answer:
                    raise MemoryPlanError(_why(answer, device, full))
                answers[answer["program"]] = answer
                on_program(answer["program"])
        finally:
            process.kill()  # by now it has ended, or nobody waits for it any more
        missing = [name for name in request["programs"] if name not in answers]
        if missing:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise MemoryPlanError(f"the compiler for {device} crashed while compiling {missing[0]}: {last}")
    return answers


def _why(answer: Mapping[str, str], device: str, full: str) -> str:
    if answer["kind"] == "memory":
        return f"{full} (the compiler: {answer['error'].removeprefix('RESOURCE_EXHAUSTED: ').rstrip('.')})"
    if answer["kind"] == "unavailable":
        version = importlib.metadata.version("jax")
        packages = f'"jax-cuda13-plugin=={version}" "jax-cuda13-pjrt=={version}" nvidia-cuda-nvcc'
        needs = f'"jax[tpu]=={version}"' if _is_tpu(device) else packages
        newer = 'take Python 3.12 and pip install "jax>=0.11"'
        cure = newer if "jax 0.11" in answer["error"] else f"pip install {needs}"
        return f"no compiler for {device}: {answer['error']}; {cure}"
    return f"the compiler for {device} refuses: {answer['error']}"
