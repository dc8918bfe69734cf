"""Commands under odd streams, terminals and environments: one line, or the result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kinetics_jax.cli.arguments import config_of

pytestmark = pytest.mark.slow
COST = "cost --model 0.6B --output 9"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A table, and a problem whose name a terminal would obey."""
    path = tmp_path_factory.mktemp("samples") / "t.csv"
    rows = [f"{problem},{sample},9,1,9,0.6B" for problem in ("a", "\x1b[31mred") for sample in range(2)]
    path.write_text("problem,sample,tokens,correct,prompt_tokens,model\n" + "\n".join(rows) + "\n")
    return path


def shell(command: str, code: int, **environment) -> subprocess.CompletedProcess:
    """`kinetics` stands for the command. No traceback, in time."""
    line = command.replace("kinetics", f"{sys.executable} -m kinetics_jax", 1)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(["sh", "-c", line], capture_output=True, env=environment, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("columns", ["1", "20", "0", "-3", "x", "1000000000000"])
def test_help_ends_at_any_width(columns):
    assert b"frontier" in shell("ulimit -v 4000000; kinetics --help", 0, COLUMNS=columns).stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_terminals_without_unicode(samples, encoding):
    plan = shell(f"kinetics plan {samples} --seconds 100", 0, PYTHONIOENCODING=encoding)
    assert b"Accuracy 1.000 as measured" in plan.stdout
    assert ("..." if encoding != "cp1252" else "…").encode(encoding) in plan.stdout
    assert b"usage: kinetics plan" in shell("kinetics plan --help", 0, PYTHONIOENCODING=encoding).stdout


def test_closed_streams(samples, tmp_path):
    done = shell(f"kinetics {COST} >&-", 2)
    assert done.stderr.splitlines() == [
        b"kinetics: standard output is closed; give it a place (> file, or > /dev/null)"
    ]
    assert b"compute" in shell(f"kinetics {COST} 2>&- <&-", 0).stdout
    shell(f"kinetics {COST} >&- 2>&- <&-", 2)
    table = tmp_path / "out.csv"
    shell(f"kinetics frontier {samples} --csv {table} 2>&-", 0)  # warnings do not land in the table
    assert len(table.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("command", "environment", "says"),
    [
        ("doctor", {"JAX_PLATFORMS": "nonsense"}, "JAX_PLATFORMS is nonsense: unset it, or name cpu"),
        ("generate chase-131k --prompt 1", {"JAX_PLATFORMS": "rocm"}, "JAX_PLATFORMS is rocm: unset it, or name cpu"),
        ("frontier T --figure f.png", {"MPLBACKEND": "nonsense"}, "MPLBACKEND=nonsense; unset it"),
        ("frontier T --csv ''", {}, "is a directory; name a file to write"),
        ("frontier T --csv .", {}, "is a directory; name a file to write"),
        ("frontier T --figure ''", {}, "'': the figure must end in .png"),
        ("frontier T --report ''", {}, "'': the report must end in .html"),
        ("calibrate --quick --out no/where.json", {}, "there is no folder"),
        ("demo --quick --out /dev/null", {}, "/dev/null: is a file; name a folder"),
        ("frontier T --trials 9223372036854775808", {}, "--trials must be at least 1 and at most"),
        (
            "frontier T --allocate best-of-n --honest --splits 9223372036854775808",
            {},
            "--splits must be at least 1 and",
        ),
        ("plan T --seconds 9 --problems 9223372036854775808", {}, "--problems must be in 1"),
        ("plan T --seconds 9 --problems 1000000", {}, "more than the 200,000 that a plan plays through"),
        ("plan T --seconds 9 --batches 9223372036854775808", {}, "--batches must be at least 1 and at most"),
        ("cost --model 0.6B --output 9 --batch 9223372036854775808", {}, "--batch must be fit, none, or a number in 1"),
        ("sample chase-131k --out r --n 9223372036854775808", {}, "--n must be at least 1 and at most"),
        ("frontier T --prompt-tokens 9223372036854775808", {}, "--prompt-tokens must be at least 1"),
    ],
)
def test_one_line_says_what_is_wrong(samples, tmp_path, command, environment, says):
    done = shell(f"cd {tmp_path}; kinetics {command.replace(' T', f' {samples}')}", 2, **environment)
    assert says in done.stderr.decode()
    assert done.stderr.decode().count("kinetics: ") == 1
    assert list(tmp_path.iterdir()) == []


def test_names_do_not_reach_the_terminal_as_they_are(samples, tmp_path):
    strange = tmp_path / "\x1b[31mred\r.csv"
    done = shell(f"kinetics frontier '{strange}'", 2)
    assert b"\\x1b[31mred\\r.csv: not a run folder" in done.stderr
    samples = samples.read_text().replace("0.6B", "\x1b]0;mine\x07")
    (tmp_path / "named.csv").write_text(samples)
    done = shell(f"kinetics frontier {tmp_path}/named.csv --against tokens", 0)
    assert b"\x1b" not in done.stdout + done.stderr
    assert json.loads(shell(f"kinetics frontier {tmp_path}/named.csv --against tokens --json", 0).stdout)


def test_an_output_that_is_a_pipe_stays_one(samples, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        shell(f"kinetics frontier {samples} --csv {pipe}", 0)
        read = reader.communicate(timeout=60)[0]
    assert read.startswith(b"model,")
    assert pipe.is_fifo()
    for command in ("--csv /dev/stdout", f"--csv /dev/stdout > {tmp_path}/both; cat {tmp_path}/both"):
        out = shell(f"kinetics frontier {samples} {command}", 0).stdout
        assert out.startswith(b"model,parameters")  # the table, and behind it what is printed
        assert b" on_frontier" in out


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.3, 0.5])
def test_ctrl_c_at_the_start_is_one_line(seconds):
    """Whenever it comes once Python itself is up; before that there is nobody to ask."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kinetics_jax", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    imported, end = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 20
    while "_json" not in imported.read_text() and time.monotonic() < end:  # an extension that the package imports
        time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    # Python itself ends with the signal, which shells call 130, where it had to leave code that it was compiling.
    assert process.returncode in (130, -signal.SIGINT, 0), err
    assert b"Traceback" not in err


def test_a_config_file_names_its_model(tmp_path):
    fields = config_of("Qwen/Qwen3-8B").to_hf()
    for path in (tmp_path / "configs" / "Qwen3-8B.json", tmp_path / "Qwen3-8B" / "config.json"):
        path.parent.mkdir()
        path.write_text(json.dumps(fields))
        assert config_of(str(path)).name == "Qwen3-8B"
    assert config_of(str(tmp_path / "Qwen3-8B")).name == "Qwen3-8B"
