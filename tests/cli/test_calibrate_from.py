"""`kinetics calibrate --from`: a profile from a file of measurements, and the mistakes that it refuses in one line."""

import json

import pytest

from kinetics_jax.cli.calibrate import calibrate
from kinetics_jax.costs.hardware import hardware
from kinetics_jax.errors import UserError

MODELS = {"1.7B": 3.0, "4B": 5.0, "8B": 8.0}  # milliseconds, about


@pytest.fixture
def measurements(tmp_path):
    """Three models on one H100 and one on a B200, with watts."""
    lines = ["model,gpu,batch,context,seconds_per_token,watts,workload"]
    for model, milliseconds in MODELS.items():
        for batch in (1, 8, 64):
            seconds = (milliseconds + 0.03 * batch) / 1e3
            lines.append(f"{model},h100,{batch},2000,{seconds},{400 + batch},{'chat' if batch > 1 else 'lone'}")
    lines.append("8B,b200,8,2000,0.004,600,chat")
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_profile_and_its_error(measurements, tmp_path, capsys):
    out = tmp_path / "profile.json"
    calibrate(measurements=measurements, where=("gpu=h100",), out=out, price_per_hour=2.0)
    said = capsys.readouterr().out
    assert "h100-measured: 9 measurements; 1 others and 0 that are not priced" in said
    assert "of the data sheet's rate" in said
    assert "energy:" in said
    assert "median_error" in said
    profile = hardware(out)
    assert (profile.name, profile.price_per_hour, profile.form) == ("h100-measured", 2.0, "sum")
    assert profile.watts > 0
    assert "9 measurements of mine.csv" in profile.source
    record = json.loads(out.read_text())["record"]
    assert record["held_out"]["all"]["models"] == 3
    assert {stratum["workload"] for stratum in record["held_out"]["strata"]} == {"chat", "lone"}


def test_what_the_data_sheet_forbids_is_named(measurements, tmp_path, capsys):
    slow = measurements.read_text()
    for milliseconds, batch in ((3.0, 64), (5.0, 64), (8.0, 64)):  # which no H100 reads 64 sequences in
        slow = slow.replace(f"{(milliseconds + 0.03 * batch) / 1e3},", f"{3 * (milliseconds + 0.03 * batch) / 1e3},")
    measurements.write_text(slow)
    calibrate(measurements=measurements, where=("gpu=h100",), out=tmp_path / "p.json")
    said = capsys.readouterr()
    assert "error over these measurements: seconds " in said.out
    assert "quicker" not in said.err
    record = json.loads((tmp_path / "p.json").read_text())["record"]
    assert record["in_sample"]["median_error"] <= record["held_out"]["all"]["median_error"]
    assert record["below_data_sheet"] == 0
    source = hardware(tmp_path / "p.json").source
    assert f"{record['in_sample']['median_error']:.1%} off in the median over these, " in source
    measurements.write_text(slow.replace(f"1.7B,h100,1,2000,{3.03 / 1e3}", "1.7B,h100,1,2000,0.0002"))
    calibrate(measurements=measurements, where=("gpu=h100",), out=tmp_path / "p.json")
    said = capsys.readouterr()
    assert (
        "1 of 9 measurements are quicker than the data sheet's peak rates allow (such as 1.7B at batch 1 " in said.err
    )
    assert json.loads((tmp_path / "p.json").read_text())["record"]["below_data_sheet"] == 1


def test_json_and_conditions(measurements, tmp_path, capsys):
    out = tmp_path / "profile.json"
    calibrate(measurements=measurements, where=("gpu=H100", "batch=8", "batch=64"), out=out, name="mine", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["hardware"]["name"] == "mine"
    assert printed["measurements"] == printed["held_out"]["all"]["rows"] == 6
    assert printed["energy"]["watts"] >= 0


def test_a_chip_of_one_s_own(measurements, tmp_path):
    """Its data sheet is a file; the profile that is fitted keeps its peaks and its memory."""
    chip, out = tmp_path / "mine.json", tmp_path / "profile.json"
    chip.write_text(json.dumps({"name": "mine", "flops": 9e14, "bandwidth": 3e12, "memory": 9e10}))
    measurements.write_text(measurements.read_text().replace("h100", str(chip)))
    calibrate(measurements=measurements, where=(f"gpu={chip}",), out=out)
    profile = hardware(out)
    assert (profile.name, profile.memory, profile.flops) == ("mine-measured", 9e10, 9e14)
    assert profile.unit_seconds["weight_reads"] >= 1 / 3e12


def test_too_few_models_for_an_error(measurements, tmp_path, capsys):
    calibrate(measurements=measurements, where=("gpu=h100", "model=8b"), out=tmp_path / "profile.json")
    assert "no error on unseen models: to leave a model out, measurements of 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "a profile is of one gpu, and there are b200, h100; choose with --where gpu=b200"),
        ({"where": ("gpu=a100",)}, r"no measurement that can be priced meets the conditions \(gpu: b200, h100\)"),
        ({"where": ("card=h100",)}, "--where takes COLUMN=VALUE, with a column of model, gpu, .*; got card=h100"),
        ({"where": ("gpu",)}, "--where takes COLUMN=VALUE"),
        ({"quick": True}, "--from fits what others measured; leave out --model"),
    ],
)
def test_mistakes(measurements, tmp_path, given, says):
    out = tmp_path / "profile.json"
    with pytest.raises(UserError, match=says) as raised:
        calibrate(measurements=measurements, out=out, **given)
    assert "\n" not in str(raised.value)
    assert not out.exists()


def test_conditions_need_a_file(tmp_path):
    with pytest.raises(UserError, match="--where goes with --from"):
        calibrate(where=("gpu=h100",), out=tmp_path / "profile.json")
