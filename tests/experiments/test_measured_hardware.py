"""What public measurements say of the profiles that ship: recorded, quoted, and, with the data, fitted again."""

import json
import re

import pytest
from measured_hardware import FITS, main, table
from paths import ROOT, SHARED

from kinetics_jax.costs.hardware import MEASURED

RECORD = json.loads((ROOT / "experiments/results/measured_hardware.json").read_text("utf-8"))
PAGE = (ROOT / "docs/results/hardware.md").read_text("utf-8")
DATA = SHARED / "public"


def stratum(fit, **of):
    (found,) = (s for s in RECORD["fits"][fit]["strata"] if all(s[name] == value for name, value in of.items()))
    return found


def test_a_model_left_out_is_predicted_on_one_h100():
    gpqa = stratum("h100-vllm", chips=1, workload="gpqa")
    assert (gpqa["rows"], gpqa["models"]) == (11, 3)
    assert gpqa["median_error"] <= 0.10
    assert gpqa["worst_error"] <= 0.25


def test_every_measurement_is_in_a_stratum_or_named_as_left_out():
    used, left = RECORD["measurements"]["used"], RECORD["measurements"]["left_out"]
    assert used["ml_energy"] + left["ml_energy"] == 515
    assert used["qwen"] + left["qwen"] == 216
    assert sum(RECORD["measurements"]["why"].values()) == sum(left.values())
    assert sum(RECORD["measurements"]["by_model"].values()) == sum(used.values())
    qwen3 = sum(count for model, count in RECORD["measurements"]["by_model"].items() if model.startswith("Qwen/"))
    mixed = sum(count for why, count in RECORD["measurements"]["why"].items() if re.match(r"Qwen/.*median", why))
    assert qwen3 + mixed == 226
    shown = sum(s["rows"] for fit in RECORD["fits"].values() for s in fit.get("strata", ()))
    alone = sum(fit["rows"] for fit in RECORD["fits"].values() if "strata" not in fit)
    assert shown + alone == sum(used.values())


def test_the_profiles_that_ship_are_the_recorded_fits():
    assert set(MEASURED) == {fit.name for fit in FITS if fit.ships}
    for name, profile in MEASURED.items():
        fit = RECORD["fits"][name]
        assert profile.layer_seconds == pytest.approx(fit["times"]["layer_seconds"], rel=1e-3)
        assert profile.unit_seconds["weight_reads"] * profile.bandwidth == pytest.approx(
            fit["times"]["weight_reads"], rel=1e-3
        )
        if fit["energy"] is not None:
            assert profile.watts == pytest.approx(fit["energy"]["watts"], rel=1e-3)
        assert f"{fit['held_out']['median_error']:.1%} off in the median" in profile.source


def test_the_page_has_the_recorded_tables():
    for line in table(RECORD):
        assert line in PAGE


def test_the_page_quotes_the_record():
    sheet, floor = RECORD["data_sheet"], RECORD["floor"]
    h100 = RECORD["fits"]["h100-vllm"]
    gpqa = stratum("h100-vllm", chips=1, workload="gpqa")
    small = floor["seconds_at_batch_8"].values()
    quoted = [
        f"{sheet['one H100, bfloat16, GPQA']['times']:.1f} times",
        f"{sheet['H100 and B200']['times']:.1f} times",
        f"{sheet['H20, batch 1, SGLang, 16 bits']['times']:.1f} times",
        f"{gpqa['median_error']:.1%} in the median and {gpqa['worst_error']:.1%} at worst",
        f"{gpqa['median_joules_error']:.1%} and {gpqa['worst_joules_error']:.1%}",
        f"{1e6 * h100['times']['layer_seconds']:.0f} µs a layer",
        f"{1e6 * h100['times']['all_reduce_seconds']:.0f} µs an all-reduce",
        f"{h100['energy']['watts']:.0f} W",
        f"{1e12 * h100['energy']['flop']:.1f} pJ a FLOP",
        f"{1e12 * h100['energy']['byte']:.0f} pJ a byte",
        f"{1e3 * floor['seconds_more_than_fitted']:.0f} ms",
        f"{1e3 * min(small):.1f} to {1e3 * max(small):.0f} ms",
        *(f"{count:,}" for count in RECORD["contexts"]["gpqa"].values()),
        f"{RECORD['measurements']['used']['ml_energy']} + {RECORD['measurements']['used']['qwen']} are used",
        f"{floor['watts_meanwhile_up_to_batch_32']:.0f} W",
        f"{floor['watts_of_steps']:.0f} W",
    ]
    line = RECORD["straight_line"]
    alone = line["fitted to GPQA, gpqa"]
    quoted.append(f"{alone['median_error']:.1%} in the median, {alone['worst_error']:.1%} at worst")
    for name in ("fitted to GPQA, lm-arena-chat", "fitted to both, gpqa"):
        quoted.append(f"{line[name]['median_error']:.1%} and {line[name]['worst_error']:.1%} off")
    for scale, errors in RECORD["if_contexts_were"].items():
        assert scale.endswith("of what is assumed")
        quoted.append(f"{errors['median_error']:.1%} and {errors['worst_error']:.1%}")
    missing = [text for text in quoted if text not in " ".join(PAGE.split())]
    assert not missing


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="../shared/data/public does not exist")
def test_the_record_is_what_the_data_give(tmp_path, monkeypatch):
    out, profiles, figure = tmp_path / "record.json", tmp_path / "profiles.json", tmp_path / "figure.png"
    given = ["measured_hardware.py", str(DATA), "--json", str(out), "--profiles", str(profiles)]
    monkeypatch.setattr("sys.argv", [*given, "--figure", str(figure)])
    main()
    found = json.loads(out.read_text("utf-8"))
    assert found["measurements"] == RECORD["measurements"]
    assert found["contexts"] == RECORD["contexts"]
    for name, fit in RECORD["fits"].items():
        for mine, recorded in zip(found["fits"][name].get("strata", ()), fit.get("strata", ()), strict=True):
            assert mine["median_error"] == pytest.approx(recorded["median_error"], abs=2e-3)
            assert mine["worst_error"] == pytest.approx(recorded["worst_error"], abs=2e-3)
    assert [profile["name"] for profile in json.loads(profiles.read_text("utf-8"))["profiles"]] == list(MEASURED)
    assert figure.stat().st_size > 20_000
