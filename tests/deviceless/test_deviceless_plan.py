"""Memory plans: what the engine's decode step takes of an H100 and a TPU v5e, one of them and several."""

import json
import subprocess
import sys

import pytest
from kinetics_kernels import targets

from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.config import ModelConfig
from kinetics_jax.devices.deviceless import memory_of, target_of
from kinetics_jax.devices.memory_plan import SAMPLING

pytestmark = pytest.mark.slow

CONTEXT = 32_768
SPARSE = BlockTopK(budget=1024, page_size=64)
# The 0.6B on one chip is test_deviceless_engine's; here it goes through the command.
CASES = [("8B", "h100", 1, 8), ("8B", "v5e", 4, 8), ("32B", "h100", 4, 24), ("30B-A3B", "h100", 4, 64)]


@pytest.mark.parametrize(("size", "device", "chips", "batch"), CASES, ids=[f"{c[0]}-{c[2]}x{c[1]}" for c in CASES])
def test_a_decode_step_copies_no_cache(size, device, chips, batch):
    try:
        target = target_of(device, chips)
    except targets.TargetUnavailable as reason:
        pytest.skip(str(reason))
    config = ModelConfig.named(size)
    sizes = {"context": CONTEXT, "batch": batch, "chips": chips}
    memory = memory_of("decode", target, config, policy=SPARSE, sampling=SAMPLING, **sizes)
    print(f"{size} on {chips} x {device}: {memory}")
    per_token = config.kv_elements_per_token * 2 / chips
    assert memory["cache_bytes"] >= batch * CONTEXT * per_token
    assert memory["argument_bytes"] >= memory["weight_bytes"] + memory["cache_bytes"]
    assert memory["alias_bytes"] >= memory["cache_bytes"]
    assert memory["temp_bytes"] <= 0.05 * memory["cache_bytes"]


def test_the_command_prints_the_plan_of_a_gpu():
    """As a user runs it, with nothing in the environment that says what to compile for."""
    try:
        target_of("h100")
    except targets.TargetUnavailable as reason:
        pytest.skip(str(reason))
    line = f"doctor --model 0.6B --device h100 --context {CONTEXT} --batch 32 --json --attention {SPARSE}"
    done = subprocess.run(
        [sys.executable, "-m", "kinetics_jax", *line.split()], capture_output=True, text=True, check=True
    )
    plan = json.loads(done.stdout)
    assert plan["decode"]["temp_bytes"] <= 0.05 * plan["decode"]["cache_bytes"] <= 0.05 * plan["decode"]["alias_bytes"]
    # Of a prompt of 16 chunks over 28 layers: attention's buffers are those of one layer.
    assert plan["prefill"]["temp_bytes"] < 2**27
    assert plan["fits"]["sequences"] == 20
    assert not plan["fits"]["batch_fits"]
    assert "lower --batch to 20 or give --chips 2" in done.stderr
