"""Runs that are killed, interrupted or starved, as users meet it: in processes of their own."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from kinetics_jax.assets import builtin_models
from kinetics_jax.runs.folder import read_run

pytestmark = [pytest.mark.filterwarnings("ignore:.*torn last line"), pytest.mark.slow]

KINETICS = [sys.executable, "-m", "kinetics_jax"]
SAMPLES = 4 * 12  # three kills, each within the next fifth of them, leave more than a third
SIZE = ("--n", "4", "--limit", "12", "--slots", "4", "--chunk", "8", "--max-tokens", "72")
ARGUMENTS = ["sample", builtin_models()[0], *SIZE, "--out"]


def start(folder, arguments=ARGUMENTS) -> subprocess.Popen:
    """As a terminal starts it: a shell's background jobs, which a suite may be one of, are made deaf to Ctrl-C."""
    return subprocess.Popen(
        [*KINETICS, *arguments, str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finish(folder, arguments=ARGUMENTS) -> str:
    """Runs the command to its end; what it said."""
    process = start(folder, arguments)
    _, says = process.communicate(timeout=120)
    assert process.returncode == 0, says
    return says


def wait_for(folder, records: int, process: subprocess.Popen) -> None:
    """Until samples.jsonl holds so many whole records."""
    samples, deadline = folder / "samples.jsonl", time.monotonic() + 100
    while not samples.exists() or samples.read_bytes().count(b"\n") < records:
        assert process.poll() is None, "the run ended before it was to be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def by_sample(folder) -> dict:
    """Records by problem and sample, each once, without their wall times."""
    records = read_run(folder).samples
    found = {(each["problem"], each["sample"]): {**each, "seconds": None} for each in records}
    assert len(found) == len(records)
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(folder)
    assert len(by_sample(folder)) == SAMPLES
    return folder


def test_killed_thrice_a_run_ends_like_one_that_was_not(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    seed = time.time_ns()  # another place each time
    print(f"seed {seed}")
    rng = random.Random(seed)
    finished = b""
    for part in range(3):
        process = start(folder)
        least = finished.count(b"\n") + 1
        wait_for(folder, rng.randint(least, least + SAMPLES // 5), process)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate()
        data = (folder / "samples.jsonl").read_bytes()
        assert data.startswith(finished), f"kill {part}: what was finished has changed"
        finished = data[: data.rfind(b"\n") + 1]
        with open(folder / "samples.jsonl", "ab") as file:  # as if the kill had hit the middle of a write
            file.write(b'{"problem": "torn')
    says = finish(folder)
    assert "dropped the torn last line" in says
    assert (folder / "samples.jsonl").read_bytes().startswith(finished)
    assert by_sample(folder) == by_sample(uninterrupted)


def test_ctrl_c_ends_after_the_chunk_and_the_same_command_continues(tmp_path, uninterrupted):
    """Four times the samples of the others: on a busy machine the interrupt may come late, but not after them all."""
    folder = tmp_path / "run"
    more = [*ARGUMENTS[:3], "16", *ARGUMENTS[4:]]
    process = start(folder, more)
    wait_for(folder, 5, process)
    process.send_signal(signal.SIGINT)
    _, says = process.communicate(timeout=60)
    assert process.returncode == 130, says
    assert "stopping after this chunk" in says
    assert "the same command continues it" in says
    assert "Traceback" not in says
    data = (folder / "samples.jsonl").read_bytes()
    assert data.endswith(b"\n")
    assert 5 <= data.count(b"\n") < 4 * SAMPLES
    finish(folder, more)
    assert (folder / "samples.jsonl").read_bytes().startswith(data)
    whole, four = by_sample(folder), by_sample(uninterrupted)
    assert len(whole) == 4 * SAMPLES
    assert {key: whole[key] for key in four} == four


def test_a_full_disk_is_one_line_and_the_same_command_continues(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    size = (uninterrupted / "samples.jsonl").stat().st_size
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, -1))"
    limited = f"{limit}; import kinetics_jax.__main__"
    done = subprocess.run(
        [sys.executable, "-c", limited, *ARGUMENTS, str(folder)], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "samples.jsonl: cannot be written" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    finish(folder)
    assert by_sample(folder) == by_sample(uninterrupted)
    assert json.loads((folder / "run.json").read_text())["n"] == 4
