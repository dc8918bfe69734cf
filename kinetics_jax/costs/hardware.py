"""Peak arithmetic, memory bandwidth and memory of accelerators: data sheets and measured profiles by name, and
profiles from files.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from kinetics_jax.costs.links import LINKS
from kinetics_jax.errors import UserError, shown, spelled
from kinetics_jax.files import read_json, write_atomic

DTYPES = ("bfloat16", "float8", "int8", "tf32", "float32")
# Kinds of work that a measured profile can price apart. A cost's component is of the first kind that its name ends in.
KINDS = (
    "prefill_linear",
    "prefill_attention",
    "linear",
    "attention",
    "search",
    "top_k",
    "weight_reads",
    "kv_reads",
    "search_reads",
)
Form = Literal["max", "sum"]
# Of a profile's numbers: the least and the most that any device has, their unit, and how it is taken for another.
RANGES = {
    "flops": (1e7, 1e19, "FLOP/s", "989 TFLOP/s is 9.89e14"),
    "bandwidth": (1e7, 1e17, "bytes/s", "3.35 TB/s is 3.35e12"),
    "memory": (1e7, 1e16, "bytes", "80 GB is 80e9"),
}
MAX_NUMBER = 1e300  # sums and products of a few stay finite floats
MAX_SECONDS = 1e6  # of an overhead; beyond it nothing is a step
MAX_PRICE = 1e9  # of a chip-hour
MAX_WATTS = 1e6  # of a chip
MAX_UNIT_JOULES = 1.0  # of a FLOP or a byte
ENERGY = ("watts", "joules_per_flop", "joules_per_byte")
SCHEMA = 2  # of profiles: 2 has the fields of ENERGY; 1 had no number
MEASURED_FILE = Path(__file__).with_name("measured.json")
MAX_FAULTS = 12  # that one message names


class HardwareError(UserError):
    """Hardware that is not known or cannot exist; the message names it and the cure."""


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One chip, as its data sheet has it or as it was measured.

    `flops`: FLOP/s of dense (not structured-sparse) matrix products, bf16 unless the name says otherwise;
    `bandwidth`: bytes/s of its memory; `memory`: bytes; `price_per_hour`: in any one currency, None when not given;
    `source`: where the numbers are from; `peaks`: peak operations/s by dtype (DTYPES), by default that of bfloat16;
    `link_bandwidth`: bytes/s that a chip sends to its peers, None where that is not known, and `all_reduce_seconds`,
    the latency of an all-reduce among them (`costs.links`).

    A calibrated profile holds effective rates, what a decode step takes beside them (`step_seconds`, `layer_seconds`
    for each layer, `row_seconds` for each sequence and layer, `logit_seconds` for each sequence and entry of the
    vocabulary; `prompt_seconds` to start a prompt, `start_seconds` each time that more of its samples begin later),
    and its `form`: arithmetic and reads overlap in full ("max", the roofline) or not at all ("sum"). `unit_seconds`:
    seconds of one FLOP or byte, by kind (KINDS); other kinds follow from `flops` and `bandwidth`. `padded`:
    attention takes every sequence of a step to be as long as the longest, and a search takes all pages that a sequence
    may get, as the reference path of the kernels does. Data-sheet chips have no overhead.

    Energy: a chip draws `watts` for as long as it is at it, `joules_per_flop` and `joules_per_byte` more; None, all
    three, where that was not measured. Raises HardwareError, in one line, if a number is impossible.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    price_per_hour: float | None = None
    source: str = ""
    peaks: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    step_seconds: float = 0.0
    layer_seconds: float = 0.0
    form: Form = "max"
    row_seconds: float = 0.0
    logit_seconds: float = 0.0
    prompt_seconds: float = 0.0
    start_seconds: float = 0.0
    unit_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    padded: bool = False
    watts: float | None = None
    joules_per_flop: float | None = None
    joules_per_byte: float | None = None
    link_bandwidth: float | None = None
    all_reduce_seconds: float = 0.0

    def __post_init__(self) -> None:
        wrong = [
            f"{field} must be a positive number, got {spelled(getattr(self, field))}"
            for field in ("flops", "bandwidth", "memory")
            if not _number(getattr(self, field), positive=True)
        ]
        overheads = [field.name for field in dataclasses.fields(self) if field.name.endswith("_seconds")]
        overheads.remove("unit_seconds")
        wrong += [
            f"{field} must be a number, at least 0, got {spelled(getattr(self, field))} (at most {most:g})"
            for field, most in (*((name, MAX_SECONDS) for name in overheads), ("price_per_hour", MAX_PRICE))
            if not (
                _number(getattr(self, field), most=most) or (field == "price_per_hour" and self.price_per_hour is None)
            )
        ]
        wrong += [
            f"{field} must be text, got {spelled(getattr(self, field))}"
            for field in ("name", "source")
            if not isinstance(getattr(self, field), str)
        ]
        wrong += [
            f"{field} must be a number, at least 0, got {spelled(getattr(self, field))} (at most {most:g})"
            for field, most in zip(ENERGY, (MAX_WATTS, MAX_UNIT_JOULES, MAX_UNIT_JOULES), strict=True)
            if not (getattr(self, field) is None or _number(getattr(self, field), most=most))
        ]
        if len(absent := [field for field in ENERGY if getattr(self, field) is None]) in (1, 2):
            wrong.append(f"energy takes {', '.join(ENERGY)} together; {' and '.join(absent)} is missing")
        if self.link_bandwidth is not None and not _number(self.link_bandwidth, positive=True):
            wrong.append(f"link_bandwidth must be a positive number, got {spelled(self.link_bandwidth)}")
        if not isinstance(self.padded, bool):
            wrong.append(f"padded must be true or false, got {spelled(self.padded)}")
        if not isinstance(self.unit_seconds, Mapping):
            wrong.append(f"unit_seconds must be an object of numbers by kind of work, got {spelled(self.unit_seconds)}")
        else:
            wrong += [
                f"unit_seconds.{shown(kind)} must be a number, at least 0, of one of {', '.join(KINDS)}, "
                f"got {spelled(seconds)}"
                for kind, seconds in self.unit_seconds.items()
                if kind not in KINDS or not _number(seconds, most=MAX_SECONDS)
            ]
        if not isinstance(self.form, str) or self.form not in get_args(Form):
            wrong.append(f"form must be max or sum, got {spelled(self.form)}")
        if not isinstance(self.peaks, Mapping):
            wrong.append(f"peaks must be an object of numbers by dtype, got {spelled(self.peaks)}")
        else:
            wrong += [
                f"peaks has {spelled(dtype)}, which is not one of {', '.join(DTYPES)}"
                for dtype in self.peaks
                if dtype not in DTYPES
            ]
            wrong += [
                f"peaks.{shown(dtype)} must be a positive number, got {spelled(peak)}"
                for dtype, peak in self.peaks.items()
                if not _number(peak, positive=True)
            ]
        if wrong:
            raise HardwareError(f"hardware {spelled(self.name)}: {'; '.join(wrong)}")
        object.__setattr__(self, "peaks", dict(self.peaks) or {"bfloat16": self.flops})
        object.__setattr__(self, "unit_seconds", dict(self.unit_seconds))

    @property
    def intensity(self) -> float:
        """FLOPs that fit in the time of reading one byte: I in the paper's equation (3)."""
        return self.flops / self.bandwidth

    @property
    def calibrated(self) -> bool:
        """Whether the profile was measured with a decoding engine rather than taken from a data sheet."""
        return bool(self.unit_seconds)

    def seconds(self, amounts: Mapping[str, Any]) -> Any:
        """Seconds of arithmetic and reads in the chip's form, without overheads.

        `amounts`: FLOPs, or bytes where the name ends in `_reads`, by component of a cost; scalars or arrays that
        broadcast.
        """
        work: dict[bool, Any] = {False: 0.0, True: 0.0}  # by whether it is reads
        for name, amount in amounts.items():
            reads = name.endswith("_reads")
            kind = next((kind for kind in KINDS if name.endswith(kind)), name)
            each = 1 / (self.bandwidth if reads else self.flops)
            work[reads] = work[reads] + amount * self.unit_seconds.get(kind, each)
        return work[False] + work[True] if self.form == "sum" else np.maximum(work[False], work[True])

    def overhead_seconds(self, layers: int, vocab: int, batch: Any) -> Any:
        """What a decode step of `batch` sequences takes beside arithmetic and reads."""
        rows = batch * (layers * self.row_seconds + vocab * self.logit_seconds)
        return self.step_seconds + layers * self.layer_seconds + rows

    def joules(self, amounts: Mapping[str, Any], seconds: Any) -> Any:
        """What one chip draws in `seconds` over which it does the `amounts`, as in `seconds`; None if not measured."""
        if self.watts is None or self.joules_per_flop is None or self.joules_per_byte is None:
            return None
        each = {False: self.joules_per_flop, True: self.joules_per_byte}  # by whether it is reads
        work = sum(amount * each[name.endswith("_reads")] for name, amount in amounts.items())
        return self.watts * seconds + work

    def at(self, dtype: str) -> Hardware:
        """The chip when its matrix products are of that dtype: `flops` is that peak, the name says so.

        Raises HardwareError if the data sheet gives no such peak.
        """
        if dtype not in self.peaks:
            known = ", ".join(self.peaks)
            raise HardwareError(f"hardware {self.name!r}: no peak for {dtype!r} (its data sheet has {known})")
        if self.peaks[dtype] == self.flops:
            return self
        return dataclasses.replace(self, name=f"{self.name} {dtype}", flops=self.peaks[dtype])


def hardware(spec: str | Path) -> Hardware:
    """The chip of that name in HARDWARE or MEASURED, or the one that a JSON profile describes.

    In names, case, spaces, hyphens and underscores do not matter (`H100`, `TPU v5e`). Text that ends in .json or holds
    a slash is the path of a profile: an object with the fields of Hardware (`name`, `flops`, `bandwidth` and `memory`
    are needed), as `save_hardware` writes it. Raises HardwareError, with the closest name where there is one, or with
    every bad field of the profile.
    """
    text = str(spec)
    if isinstance(spec, Path) or text.endswith(".json") or "/" in text:
        return _profile(Path(spec))
    key = _key(text)
    if (several := re.fullmatch(r"\s*(\d+)\s*x\s+(.+)", text)) and _key(several[2]) in _BY_KEY:
        name = _BY_KEY[_key(several[2])].name
        raise HardwareError(f"no hardware named {text!r}; several chips are --hardware {name} --chips {several[1]}")
    if key not in _BY_KEY:
        near = difflib.get_close_matches(key, _BY_KEY, n=1)
        hint = f"; did you mean {_BY_KEY[near[0]].name}?" if near else ""
        known = ", ".join((*HARDWARE, *MEASURED))
        raise HardwareError(f"no hardware named {text!r}{hint} (known: {known}; or give the path of a .json profile)")
    return _BY_KEY[key]


def chips_words(chips: int, name: str) -> str:
    """`2 x h100`; a name that begins like that itself stands in quotes: `1 x "2 x c6.json"`."""
    return f'{chips} x "{name}"' if re.match(r"\d+\s*x\s", name) else f"{chips} x {name}"


def measured_energy(chip: Hardware | None = None) -> list[Hardware]:
    """The chip, or all known ones by default, whose energy was measured; raises HardwareError if the chip's was not."""
    known = [each for each in (*HARDWARE.values(), *MEASURED.values()) if each.watts is not None]
    if chip is None:
        return known
    if chip.watts is None:
        names = ", ".join(each.name for each in known)
        raise HardwareError(
            f"hardware {chip.name!r}: its energy was not measured, so that there are no joules (it was of {names}; or "
            "give watts, joules_per_flop and joules_per_byte in a .json profile)"
        )
    return [chip]


def save_hardware(path: str | Path, hardware: Hardware, *, record: Mapping[str, Any] | None = None) -> None:
    """Writes a profile that `hardware(path)` reads back to an equal chip; never leaves half a file.

    `record` (anything JSON can hold) is stored beside the fields and ignored by readers: how the numbers were measured.
    """
    fields = {"schema": SCHEMA, **dataclasses.asdict(hardware)} | ({} if record is None else {"record": dict(record)})
    write_atomic(Path(path), json.dumps(fields, indent=1) + "\n")


def _profile(path: Path) -> Hardware:
    try:
        fields = read_json(path, error=HardwareError)
    except FileNotFoundError as error:
        raise HardwareError(f"{path}: no such hardware profile (a chip by name is one of {', '.join(HARDWARE)})") from (
            error
        )
    return _from_fields(fields, path)


def _from_fields(fields: dict[str, Any], path: Path) -> Hardware:
    """The chip that an object of a JSON file describes; raises HardwareError with every bad field."""
    fields.pop("record", None)
    schema = fields.pop("schema", 1)
    if not isinstance(schema, int) or isinstance(schema, bool) or not 1 <= schema <= SCHEMA:
        raise HardwareError(
            f"{path}: schema {spelled(schema)} is not one that this version reads (1 to {SCHEMA}); upgrade kinetics_jax"
        )
    known = {field.name: field.default for field in dataclasses.fields(Hardware)}
    needed = ("name", "flops", "bandwidth", "memory")
    wrong = [f"{name} is missing" for name in needed if name not in fields]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            wrong.append(f"{shown(name)} is not a field" + (f" (did you mean {near[0]}?)" if near else ""))
    placeholder: dict[str, Any] = {"name": path.stem, "flops": 1.0, "bandwidth": 1.0, "memory": 1.0}
    given = {name: value for name, value in fields.items() if name in known}
    try:
        chip = Hardware(**(placeholder | given))  # so that the fields which are there are judged, whatever is missing
    except HardwareError as error:
        wrong.append(str(error).partition(": ")[2])
        chip = None
    if wrong or chip is None:
        more = f"; and {len(wrong) - MAX_FAULTS} more" if len(wrong) > MAX_FAULTS else ""
        raise HardwareError(f"{path}: {'; '.join(wrong[:MAX_FAULTS])}{more}")
    numbers = [(name, name, getattr(chip, name)) for name in RANGES]
    numbers += [(f"peaks.{dtype}", "flops", peak) for dtype, peak in chip.peaks.items()]
    numbers += [("link_bandwidth", "bandwidth", chip.link_bandwidth)] if chip.link_bandwidth is not None else []
    if odd := list(filter(None, (_out_of_range(*number) for number in numbers))):
        raise HardwareError(f"{path}: {'; '.join(odd)}")
    return chip


def _out_of_range(field: str, like: str, value: float) -> str:
    """A clause where no device has such a number: as a rule it is in another unit."""
    low, high, unit, example = RANGES[like]
    if low <= value <= high:
        return ""
    return f"{field} = {value:g} is read as {unit}, of which devices have {low:g} … {high:g}; {example}"


def _number(value: Any, *, positive: bool = False, most: float = MAX_NUMBER) -> bool:
    """Whether a value is a number of at least 0, or above it, and at most `most`; NaN is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (value > 0 if positive else value >= 0) and value <= most


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())


def _chip(name: str, memory: float, bandwidth: float, source: str, dtype: str = "bfloat16", **tera: float) -> Hardware:
    """A data-sheet chip; peaks in 1e12 operations/s, `flops` that of `dtype`."""
    peaks = {name: round(peak * 1e12) for name, peak in tera.items()}
    chip = Hardware(name, float(peaks[dtype]), bandwidth, memory, source=source, peaks=peaks)
    if (link := LINKS.get(name)) is None:
        return chip
    return dataclasses.replace(chip, link_bandwidth=link.bandwidth, all_reduce_seconds=link.all_reduce_seconds)


def _mib(count: int) -> int:
    """Bytes of the MiB in which nvidia-smi reports memory."""
    return count * 2**20


# Peaks without structured sparsity: half of what NVIDIA's data sheets print where a footnote says "with sparsity".
# Memory of GPUs is what the driver reports where that is public, which is more than the decimal number of the data
# sheet: an "80 GB" H100 has 81,559 MiB, 85.5e9 bytes. Binary where Google's pages say GiB.
_HOPPER: dict[str, Any] = {"bfloat16": 989.5, "float8": 1979, "int8": 1979, "tf32": 494.5, "float32": 67}
_BLACKWELL: dict[str, Any] = {"bfloat16": 2250, "float8": 4500, "int8": 4500, "tf32": 1100, "float32": 75}
_CDNA3: dict[str, Any] = {"bfloat16": 1307.4, "float8": 2614.9, "int8": 2614.9, "tf32": 653.7, "float32": 163.4}
_NVML = "memory as nvidia-smi reports it"
_ROCM = "memory as rocm-smi reports it"
_B200 = f"NVIDIA HGX B200 (arithmetic) and DGX B200 (bandwidth) data sheets, one of eight GPUs; {_NVML}"
_TPU = "Google Cloud documentation, "
HARDWARE: dict[str, Hardware] = {
    chip.name: chip
    for chip in (
        _chip(
            "a100",
            _mib(81_920),
            2.039e12,
            f"NVIDIA A100 80GB SXM data sheet; {_NVML}",
            bfloat16=312,
            int8=624,
            tf32=156,
            float32=19.5,
        ),
        _chip("h100", _mib(81_559), 3.35e12, f"NVIDIA H100 SXM data sheet; {_NVML}", **_HOPPER),
        _chip(
            "h100-pcie",
            _mib(81_559),
            2e12,
            f"NVIDIA H100 PCIe data sheet; {_NVML}",
            bfloat16=756,
            float8=1513,
            int8=1513,
            tf32=378,
            float32=51,
        ),
        _chip(
            "h100-nvl",
            _mib(95_830),
            3.9e12,
            f"NVIDIA H100 NVL data sheet, one card; {_NVML}",
            bfloat16=835.5,
            float8=1670.5,
            int8=1670.5,
            tf32=417.5,
            float32=60,
        ),
        _chip("h200", _mib(143_771), 4.8e12, f"NVIDIA H200 SXM data sheet; {_NVML}", **_HOPPER),
        _chip(
            "h20",
            _mib(97_871),
            4e12,
            f"NVIDIA H20 data sheet, as resellers print it; {_NVML}",
            bfloat16=148,
            float8=296,
            int8=296,
            tf32=74,
            float32=44,
        ),
        _chip("b200", _mib(183_359), 8e12, _B200, **_BLACKWELL),
        # The paper's I = 562.5: fp8 arithmetic, which it charges on two-byte KV all the same.
        _chip("b200-fp8", _mib(183_359), 8e12, f"{_B200}; fp8 arithmetic, as the paper has it", "float8", **_BLACKWELL),
        _chip(
            "gb200",
            _mib(189_471),
            8e12,
            f"NVIDIA GB200 NVL72 data sheet, one of a superchip's two GPUs; {_NVML}",
            bfloat16=2500,
            float8=5000,
            int8=5000,
            tf32=1250,
            float32=80,
        ),
        _chip(
            "b300",
            _mib(275_040),
            8e12,
            f"NVIDIA HGX B300 data sheet, one of eight GPUs; {_NVML}",
            bfloat16=2250,
            float8=4500,
            tf32=1125,
            float32=75,
        ),
        _chip(
            "l40s",
            _mib(46_068),
            864e9,
            f"NVIDIA L40S data sheet; {_NVML}",
            bfloat16=362.05,
            float8=733,
            int8=733,
            tf32=183,
            float32=91.6,
        ),
        _chip(
            "a10",
            _mib(23_028),
            600e9,
            f"NVIDIA A10 data sheet; {_NVML}",
            bfloat16=125,
            int8=250,
            tf32=62.5,
            float32=31.2,
        ),
        # Of the two peaks that GeForce white papers give for 16 and 8 bits, the one with float32 accumulation.
        _chip(
            "rtx-4090",
            _mib(24_564),
            1.008e12,
            f"NVIDIA Ada GPU architecture white paper; {_NVML}",
            bfloat16=165.2,
            float8=330.3,
            int8=660.6,
            tf32=82.6,
            float32=82.6,
        ),
        _chip(
            "rtx-5090",
            _mib(32_607),
            1.792e12,
            f"NVIDIA RTX Blackwell GPU architecture white paper; {_NVML}",
            bfloat16=209.5,
            float8=419,
            int8=838,
            tf32=104.8,
            float32=104.8,
        ),
        _chip("mi300x", 206_141_652_992, 5.3e12, f"AMD Instinct MI300X data sheet; {_ROCM}", **_CDNA3),
        _chip("mi325x", 256e9, 6e12, "AMD Instinct MI325X data sheet, memory too", **_CDNA3),
        _chip(
            "mi355x",
            309_220_868_096,
            8e12,
            f"AMD Instinct MI355X data sheet; {_ROCM}",
            bfloat16=2516.6,
            float8=5033.2,
            int8=5033.2,
            float32=157.3,
        ),
        _chip("tpu-v4", 32 * 2**30, 1.228e12, f"{_TPU}TPU v4", bfloat16=275, int8=275),
        _chip("tpu-v5e", 16e9, 819e9, f"{_TPU}TPU v5e; int8 from its TPU v6e page", bfloat16=197, int8=393),
        _chip("tpu-v5p", 95 * 2**30, 2.765e12, f"{_TPU}TPU v5p; int8 as announced", bfloat16=459, float8=459, int8=918),
        _chip("tpu-v6e", 32 * 2**30, 1.638e12, f"{_TPU}TPU v6e", bfloat16=918, float8=918, int8=1836),
        _chip("tpu-v7x", 192 * 2**30, 7.38e12, f"{_TPU}TPU7x (Ironwood)", bfloat16=2307, float8=4614),
    )
}
# Engines on chips, fitted to public measurements by experiments/measured_hardware.py: what they are and how far off.
MEASURED: dict[str, Hardware] = {
    fields["name"]: _from_fields(fields, MEASURED_FILE)
    for fields in read_json(MEASURED_FILE, error=HardwareError)["profiles"]
}
_BY_KEY = {_key(name): chip for name, chip in (HARDWARE | MEASURED).items()}
