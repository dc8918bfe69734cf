"""docs/results/figures.md states what experiments/results/figure_headlines.json records, which headlines.py makes."""

import json

import headlines
import pandas as pd
import pytest
from paths import ROOT

PAGE = (ROOT / "docs" / "results" / "figures.md").read_text(encoding="utf-8")
RECORD = json.loads(headlines.RESULTS.read_text(encoding="utf-8"))


def test_the_page_has_the_recorded_table():
    assert next(iter(RECORD)) == "weights free"
    assert headlines.markdown(RECORD) in PAGE


def test_the_page_has_the_recorded_numbers():
    text, free = " ".join(PAGE.split()), RECORD["weights free"]

    def points(of):
        return f"{100 * of['gain']:.0f} points", f"[{100 * of['gain_low']:.0f}, {100 * of['gain_high']:.0f}]"

    law = free["1a"]
    assert f"at most {law['ratio']:.1f} times as much [{law['low']:.1f}, {law['high']:.1f}]" in text
    assert law["excluding_1"] == 0
    assert f"of {law['accuracies']} accuracies none has a ratio whose interval excludes 1" in text
    oracle, block = free["1b oracle"], free["1b block top-k"]
    gain, interval = points(oracle)
    ends = f"{100 * oracle['gain_dense']:.0f} → {100 * oracle['gain_sparse']:.0f} %"
    assert f"With the oracle: {gain} more at equal cost {interval}, {ends}" in text
    saving = f"{oracle['saving']:.1f} times cheaper [{oracle['saving_low']:.1f}, {oracle['saving_high']:.1f}]"
    assert f"{100 * oracle['saving_accuracy']:.0f} % solved {saving}" in text
    assert "gains {} {}".format(*points(block)) in text
    assert (
        f"ends at {100 * block['most_sparse']:.1f} % where dense attention ends at {100 * block['most_dense']:.1f} %"
        in text
    )
    for figure, shown in (("6", ("kv_budget", "tokens")), ("7", ("tokens", "kv_budget"))):
        one, other = (free[figure][name] for name in shown)
        words = [f"{law['exponent']:.2f} [{law['low']:.2f}, {law['high']:.2f}]" for law in (one, other)]
        assert f"({words[0]} against {words[1]})" in text
    best, long = (free["14"][f"{strategy} max"] for strategy in ("Best-of-N", "Long-CoT"))
    more, interval = points(best)
    assert (
        f"the oracle gains {more} {interval} (Best-of-N) and {100 * long['gain']:.0f} {points(long)[1]} (Long-CoT)"
        in text
    )
    assert f"saves {best['saving']:.1f} and {long['saving']:.1f} times" in text


def test_fits_of_the_paper_are_named_as_those_of_best_of_n():
    import figure_6
    import figure_7

    assert "gives fits of Best-of-N" in " ".join(PAGE.split())
    assert "91.68 x^0.80" in figure_6.__doc__
    assert "91.68" not in figure_7.__doc__


def test_headlines_are_read_from_the_tables(tmp_path, capsys):
    folder = tmp_path / "made"
    (folder / "block").mkdir(parents=True)
    ratio = {
        "accuracy": [0.1, 0.2],
        "ratio": [1.1, 2.0],
        "low": [0.9, 1.5],
        "high": [1.2, 3.0],
        "weights": "weights free",
    }
    pd.DataFrame(ratio).to_csv(folder / "figure_1a_ratio.csv", index=False)
    gain = {"gain": 0.2, "gain_low": 0.1, "gain_high": 0.3, "gain_dense": 0.5, "gain_sparse": 0.7}
    gain |= {"saving": 3.0, "saving_low": 2.0, "saving_high": 4.0, "saving_accuracy": 0.6, "weights": "weights free"}
    frontier = {"kind": ["dense", "dense", "sparse"], "accuracy": [0.4, 0.8, 0.7], "chosen": [True, False, True]}
    for where in (folder, folder / "block"):
        pd.DataFrame([gain]).to_csv(where / "figure_1b_gain.csv", index=False)
        pd.DataFrame(frontier).to_csv(where / "figure_1b_frontier.csv", index=False)
    laws = [{"strategy": "Best-of-N", "law": "max", **gain}]
    pd.DataFrame(laws).to_csv(folder / "figure_14_gain.csv", index=False)
    headlines.main([f"here={folder}", "--out", str(tmp_path / "h.json")])
    assert "| 1b, oracle: points more at equal cost | 20 [10, 30], 50 → 70 % |" in capsys.readouterr().out
    record = json.loads((tmp_path / "h.json").read_text())["here"]
    assert record["1a"] == {"accuracy": 0.2, "ratio": 2.0, "low": 1.5, "high": 3.0, "accuracies": 2, "excluding_1": 1}
    assert (record["1b oracle"]["most_dense"], record["1b oracle"]["most_sparse"]) == (0.4, 0.7)
    for folders, says in ((["here"], "NAME=FOLDER"), ([f"here={tmp_path}/none"], "not there")):
        with pytest.raises(SystemExit):
            headlines.main([*folders, "--out", str(tmp_path / "h.json")])
        assert says in capsys.readouterr().err
