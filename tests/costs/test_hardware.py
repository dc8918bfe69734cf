"""Chips by name, profiles from files, and what is refused."""

import dataclasses
import json

import pytest

from kinetics_jax.costs.hardware import (
    DTYPES,
    HARDWARE,
    MEASURED,
    SCHEMA,
    Hardware,
    HardwareError,
    hardware,
    measured_energy,
    save_hardware,
)


def test_data_sheets():
    nvidia = ("a100", "h100", "h100-pcie", "h100-nvl", "h200", "h20", "b200", "b200-fp8", "gb200", "b300")
    nvidia += ("l40s", "a10", "rtx-4090", "rtx-5090")
    tpus = ("tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-v7x")
    assert tuple(HARDWARE) == (*nvidia, "mi300x", "mi325x", "mi355x", *tpus)
    for name, chip in HARDWARE.items():
        assert chip.name == name
        assert chip.source
        assert chip.price_per_hour is None
        assert set(chip.peaks) <= set(DTYPES)
        assert chip.flops == chip.peaks["float8" if name == "b200-fp8" else "bfloat16"]
    intensity = {name: round(hardware(name).intensity, 1) for name in ("h100", "h200", "b200", "b200-fp8", "h20")}
    assert intensity == {"h100": 295.4, "h200": 206.1, "b200": 281.2, "b200-fp8": 562.5, "h20": 37.0}
    with pytest.raises(HardwareError, match=r"no peak for 'float8' \(its data sheet has bfloat16, int8"):
        hardware("a100").at("float8")
    assert hardware("b200").at("float8").intensity == hardware("b200-fp8").intensity
    assert hardware("h100").at("bfloat16") is hardware("h100")
    assert hardware("h100").at("float8").name == "h100 float8"


def test_memory_is_what_the_device_reports():
    """nvidia-smi's MiB and rocm-smi's bytes, from public listings of both; decimal gigabytes are 6 to 7 % less."""
    mib = {"a100": 81_920, "h100": 81_559, "h100-pcie": 81_559, "h100-nvl": 95_830, "h200": 143_771, "h20": 97_871}
    mib |= {"b200": 183_359, "b200-fp8": 183_359, "gb200": 189_471, "b300": 275_040, "l40s": 46_068, "a10": 23_028}
    mib |= {"rtx-4090": 24_564, "rtx-5090": 32_607}
    for name, count in mib.items():
        assert hardware(name).memory == count * 2**20
        assert "memory as nvidia-smi reports it" in hardware(name).source
    assert round(hardware("h100").memory / 1e9, 1) == 85.5
    assert round(hardware("h200").memory / 1e9, 1) == 150.8
    assert hardware("mi300x").memory == 206_141_652_992
    assert hardware("mi325x").memory == 256e9  # no listing was found: its data sheet, which says so
    assert "data sheet, memory too" in hardware("mi325x").source


def test_measured_profiles_are_hardware_by_name():
    assert set(MEASURED) == {"h100-vllm", "b200-vllm", "h20-sglang"}
    for name, profile in MEASURED.items():
        chip = hardware(name.partition("-")[0])
        assert hardware(name.upper()) is profile
        assert profile.calibrated
        assert (profile.memory, profile.intensity, profile.peaks) == (chip.memory, chip.intensity, chip.peaks)
        assert "fitted to" in profile.source
        assert "left out" in profile.source
        assert profile.layer_seconds > 0
        work = {"weight_reads": 1e10, "dense_kv_reads": 1e10, "linear": 1e12, "prefill_linear": 1e12}
        assert profile.seconds(work) >= dataclasses.replace(chip, form="sum").seconds(work) * (1 - 1e-4)
    assert [chip.name for chip in measured_energy()] == ["h100-vllm", "b200-vllm"]


def test_energy_of_a_chip():
    chip = dataclasses.replace(hardware("h100"), watts=300.0, joules_per_flop=2e-12, joules_per_byte=5e-11)
    assert chip.joules({"linear": 1e12, "kv_reads": 1e11, "chosen_kv_reads": 1e11}, 0.5) == pytest.approx(150 + 2 + 10)
    assert hardware("h100").joules({"linear": 1e12}, 0.5) is None
    assert measured_energy(chip) == [chip]
    with pytest.raises(HardwareError, match=r"'h100': its energy was not measured.*h100-vllm, b200-vllm"):
        measured_energy(hardware("h100"))
    with pytest.raises(HardwareError, match=r"energy takes watts, .* together; joules_per_flop and .* is missing"):
        dataclasses.replace(hardware("h100"), watts=300.0)
    with pytest.raises(HardwareError, match=r"watts must be a number, at least 0, got -1 \(at most 1e\+06\)"):
        dataclasses.replace(chip, watts=-1)


def test_profiles_of_the_schemas(tmp_path):
    path = tmp_path / "mine.json"
    old = {"name": "old", "flops": 4e12, "bandwidth": 1e11, "memory": 8e9, "step_seconds": 1e-3}
    path.write_text(json.dumps(old))  # as the first schema had it, without a number
    assert hardware(path) == Hardware("old", 4e12, 1e11, 8e9, step_seconds=1e-3)
    measured = dataclasses.replace(hardware(path), watts=90.0, joules_per_flop=0.0, joules_per_byte=1e-10)
    save_hardware(path, measured)
    assert json.loads(path.read_text())["schema"] == SCHEMA == 2
    assert hardware(path) == measured
    for wrong in (3, 0, "2", True):
        path.write_text(json.dumps(old | {"schema": wrong}))
        with pytest.raises(HardwareError, match=r"schema .* is not one that this version reads \(1 to 2\)"):
            hardware(path)


@pytest.mark.parametrize("spelling", ["TPU v5e", " tpu_v5e ", "tpuv5e", "TPU-V5E"])
def test_spellings_of_a_name(spelling):
    assert hardware(spelling) is HARDWARE["tpu-v5e"]


def test_a_profile_is_read_back_equal(tmp_path):
    chip = dataclasses.replace(
        hardware("l40s"), name="mine", price_per_hour=1.25, step_seconds=3e-4, layer_seconds=2e-6, form="sum"
    )
    path = tmp_path / "mine.json"
    save_hardware(path, chip, record={"held-out error": 0.04})
    assert hardware(path) == hardware(str(path)) == chip
    assert {chip, hardware(path)} == {chip}  # hashable
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.json"]
    path.write_text(json.dumps({"name": "tiny", "flops": 4e12, "bandwidth": 1e11, "memory": 8e9}))
    assert hardware(path) == Hardware("tiny", 4e12, 1e11, 8e9)
    assert hardware(path).peaks == {"bfloat16": 4e12}


def test_every_bad_field_of_a_profile_is_told_in_one_line(tmp_path):
    path = tmp_path / "bad.json"
    fields = {"flops": -1, "bandwidth": "fast", "memorry": 3, "peaks": {"fp8": 1, "int8": 0}, "form": "mean"}
    path.write_text(json.dumps(fields | {"step_seconds": -1, "price_per_hour": True}))
    with pytest.raises(HardwareError) as raised:
        hardware(path)
    message = str(raised.value)
    assert "\n" not in message
    for part in (
        f"{path}: name is missing; memory is missing",
        "memorry is not a field (did you mean memory?)",
        "flops must be a positive number, got -1",
        "bandwidth must be a positive number, got 'fast'",
        "step_seconds must be a number, at least 0, got -1",
        "price_per_hour must be a number, at least 0, got True",
        "form must be max or sum, got 'mean'",
        "peaks has 'fp8', which is not one of bfloat16",
        "peaks.int8 must be a positive number, got 0",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "holds list"), ("\x00", "not valid JSON"), ("[" * 10**5, "nests too deeply")],
)
def test_files_that_are_no_profiles(tmp_path, text, message):
    path = tmp_path / "chip.json"
    path.write_text(text)
    with pytest.raises(HardwareError, match=message):
        hardware(path)
    with pytest.raises(HardwareError, match="no such hardware profile"):
        hardware(tmp_path / "none.json")
    with pytest.raises(HardwareError, match="is a directory, not a regular file"):
        hardware(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bandwidth": 3.35}, r"bandwidth = 3.35 is read as bytes/s, .*; 3.35 TB/s is 3.35e12"),
        ({"bandwidth": 3350}, "bandwidth = 3350 is read as bytes/s"),
        ({"memory": 80}, r"memory = 80 is read as bytes, .*; 80 GB is 80e9"),
        ({"memory": 81920}, "memory = 81920 is read as bytes"),
        ({"flops": 989.5}, r"flops = 989.5 is read as FLOP/s, .*; 989 TFLOP/s is 9.89e14"),
        ({"peaks": {"bfloat16": 989.5e12, "int8": 1979}}, "peaks.int8 = 1979 is read as FLOP/s"),
        ({"flops": 10**30}, r"flops = 1e\+30 is read as"),
        ({"flops": 10**400}, "flops must be a positive number, got 1000"),
        ({"step_seconds": 1e30}, r"step_seconds must be a number, at least 0, got 1e\+30 \(at most 1e\+06\)"),
        ({"peaks": {"x" * 5000: 1.0}}, "peaks has 'x+…x+'"),
    ],
)
def test_a_profile_in_another_unit_is_refused(tmp_path, change, says):
    path = tmp_path / "mine.json"
    fields = {"name": "mine", "flops": 989.5e12, "bandwidth": 3.35e12, "memory": 80e9}
    path.write_text(json.dumps(fields))
    assert hardware(path).memory == 80e9
    path.write_text(json.dumps(fields | change))
    with pytest.raises(HardwareError, match=says) as raised:
        hardware(path)
    assert len(str(raised.value)) < 1000


def test_unknown_names_and_impossible_chips():
    with pytest.raises(HardwareError, match="did you mean h200"):
        hardware("h2000")
    with pytest.raises(HardwareError, match=r"no hardware named 'abacus' \(known: a100"):
        hardware("abacus")
    with pytest.raises(HardwareError, match="bandwidth must be a positive number, got 0"):
        Hardware("x", 1.0, 0.0, 1.0)
    with pytest.raises(HardwareError, match="price_per_hour must be a number, at least 0, got -1"):
        dataclasses.replace(hardware("h100"), price_per_hour=-1.0)
    with pytest.raises(HardwareError, match="flops must be a positive number, got nan"):
        Hardware("x", float("nan"), 1.0, 1.0)
