"""Chips by name, profiles from files, and what is refused."""

import dataclasses
import json

import pytest

from kinetics_jax.costs.hardware import DTYPES, HARDWARE, Hardware, HardwareError, hardware, save_hardware


def test_data_sheets():
    chips = ("a100", "h100", "h200", "b200", "b200-fp8", "l40s", "mi300x")
    assert tuple(HARDWARE) == (*chips, "tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-v7x")
    for name, chip in HARDWARE.items():
        assert chip.name == name
        assert chip.source
        assert chip.price_per_hour is None
        assert set(chip.peaks) <= set(DTYPES)
        assert chip.flops == chip.peaks["float8" if name == "b200-fp8" else "bfloat16"]
    intensity = {name: round(hardware(name).intensity, 1) for name in ("h100", "h200", "b200", "b200-fp8")}
    assert intensity == {"h100": 295.4, "h200": 206.1, "b200": 281.2, "b200-fp8": 562.5}
    with pytest.raises(HardwareError, match=r"no peak for 'float8' \(its data sheet has bfloat16, int8"):
        hardware("a100").at("float8")
    assert hardware("b200").at("float8").intensity == hardware("b200-fp8").intensity
    assert hardware("h100").at("bfloat16") is hardware("h100")
    assert hardware("h100").at("float8").name == "h100 float8"


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
        hardware("h20")
    with pytest.raises(HardwareError, match=r"no hardware named 'abacus' \(known: a100"):
        hardware("abacus")
    with pytest.raises(HardwareError, match="bandwidth must be a positive number, got 0"):
        Hardware("x", 1.0, 0.0, 1.0)
    with pytest.raises(HardwareError, match="price_per_hour must be a number, at least 0, got -1"):
        dataclasses.replace(hardware("h100"), price_per_hour=-1.0)
    with pytest.raises(HardwareError, match="flops must be a positive number, got nan"):
        Hardware("x", float("nan"), 1.0, 1.0)
