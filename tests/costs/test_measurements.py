"""Files of measurements: one's own columns, the public layouts, and everything that is refused in one line."""

import json

import pytest

from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.measurements import Measured, MeasurementError
from kinetics_jax.costs.public_measurements import read_measurements

HEADER = "model,gpu,batch,context,seconds_per_token,weight_dtype,watts"
ROW = "8B,H100,16,4000,0.0125,bfloat16,500"


def written(tmp_path, *lines, name="mine.csv"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_own_columns(tmp_path):
    path = written(tmp_path, HEADER, ROW, "Qwen/Qwen3-8B,h100,1,1,1e-3,float8,")
    rows, left_out = read_measurements(path)
    assert not left_out
    first, second = rows
    assert first == Measured(
        "8B", ModelConfig.named("8B"), "h100", 16, 4000, 0.0125, weights="bfloat16", joules=500 * 0.0125 / 16
    )
    assert (second.weights, second.joules, second.chips, second.prompt_tokens) == ("float8", None, 1, 0)
    assert first.geometry == second.geometry
    other = written(
        tmp_path,
        "engine,gpu,model,tokens_per_second,batch,context,chips,joules_per_token,kv_dtype,prompt_tokens,output_tokens",
        "mine, h20 ,8B,800,4,3000,2,0.5,float8,2000,500",
    )
    (row,) = read_measurements(other).rows
    assert (row.seconds, row.chips, row.joules, row.kv_bytes, row.engine) == (4 / 800, 2, 0.5, 1.0, "mine")
    assert (row.prompt_tokens, row.output_tokens) == (2000, 500)


def test_the_output_matrix_of_quantised_weights_has_sixteen_bits(tmp_path):
    path = written(tmp_path, HEADER, ROW, ROW.replace("bfloat16", "float8"), ROW.replace("bfloat16", "int4"))
    full, half, quarter = (row.weight_bytes for row in read_measurements(path).rows)
    config = ModelConfig.named("8B")
    head = 151_936 * 4096 / config.matmul_parameters
    assert full == 2
    assert half == pytest.approx(1 + head)
    assert quarter == pytest.approx((0.5 + 2.5 / 128) * (1 - head) + 2 * head)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([HEADER], "holds no measurement"),
        ([HEADER, ROW + ",7"], "line 2: has another number of values than the 7 columns"),
        ([HEADER, "8B,h100"], "line 2: has another number of values"),
        ([HEADER + ",batch", ROW + ",1"], "must name every column once"),
        (["model,gpu,batch,contxt,seconds_per_token", "8B,h100,1,1,1"], r"contxt is not .* \(did you mean context\?\)"),
        (["model,gpu,batch,seconds_per_token", "8B,h100,1,1"], "column context is missing"),
        (["model,gpu,batch,context", "8B,h100,1,1"], "one of the columns seconds_per_token and tokens_per_second"),
        ([HEADER, ROW.replace("0.0125", "")], "line 2: seconds_per_token or tokens_per_second is needed"),
        ([HEADER, ROW.replace("0.0125", "-1")], "line 2: seconds_per_token must be a number above 0 .*, got '-1'"),
        ([HEADER, ROW.replace("0.0125", "nan")], "seconds_per_token must be a number above 0"),
        ([HEADER, ROW, ROW.replace("16", "7.5")], r"line 3: batch must be a whole number in 1 … 65536, got '7.5'"),
        ([HEADER, ROW.replace("4000", "many" * 999)], "context must be a whole number in 1 … 2147483648, got 'many"),
        ([HEADER, ROW.replace("bfloat16", "int2")], "weight_dtype must be one of bfloat16, .*, got 'int2'"),
        ([HEADER + ",joules_per_token", ROW + ",1.0"], "watts contradict each other; keep the right one"),
        ([HEADER + ",prompt_tokens,output_tokens", ROW + ",100,"], "prompt_tokens and output_tokens go together"),
    ],
)
def test_what_is_refused(tmp_path, lines, says):
    path = written(tmp_path, *lines)
    with pytest.raises(MeasurementError, match=says) as raised:
        read_measurements(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600


def test_names_that_are_not_known(tmp_path):
    with pytest.raises(MeasurementError, match="line 2: no hardware named 'h1000'; did you mean h100"):
        read_measurements(written(tmp_path, HEADER, ROW.replace("H100", "h1000")))
    with pytest.raises(MeasurementError, match="line 2: gpu h100-vllm is a measured profile; name the chip"):
        read_measurements(written(tmp_path, HEADER, ROW.replace("H100", "h100-vllm")))
    with pytest.raises(MeasurementError, match="line 2: no published model named '9B'"):
        read_measurements(written(tmp_path, HEADER, ROW.replace("8B", "9B")))
    with pytest.raises(MeasurementError, match="no such file of measurements"):
        read_measurements(tmp_path / "none.csv")
    with pytest.raises(MeasurementError, match="is a directory"):
        read_measurements(tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"model,\xff\xfe\n")
    with pytest.raises(MeasurementError, match="is not UTF-8 text"):
        read_measurements(tmp_path / "bytes.csv")


ENERGY = (
    "task,model_id,weight_precision,gpu_model,num_gpus,avg_batch_size,avg_output_len,median_itl_ms,"
    "output_throughput_tokens_per_sec,energy_per_token_joules"
)


def test_the_layout_of_ml_energy(tmp_path):
    lengths = {"Qwen/Qwen3-8B": {"bins": [0, 2000, 4000], "counts": [1, 1]}}  # 1000 and 3000 tokens, as often
    (tmp_path / "gpqa_output_length_histograms.json").write_text(json.dumps(lengths))
    path = written(
        tmp_path,
        ENERGY,
        "gpqa,Qwen/Qwen3-8B,bfloat16,H100,1,15.98,2000,12.5,1280,0.4",
        "lm-arena-chat,meta-llama/Llama-3.1-405B-Instruct-FP8,fp8,B200,4,64,1000,40,1500,3",
        "lm-arena-chat,Qwen/Qwen3-30B-A3B-Instruct-2507,bfloat16,H100,2,4000,900,60,20000,0.2",
        "gpqa,openai/gpt-oss-20b,mxfp4,H100,1,8,1000,5,1600,0.3",
    )
    rows, left_out = read_measurements(path)
    one, many = rows
    resident = (1000**2 + 3000**2) / (2 * 4000)  # a longer output is met more often, on average in its middle
    assert (one.context, one.batch, one.seconds, one.joules) == (250 + resident, 16, 0.0125, 0.4)
    assert (many.context, many.chips, many.weights, many.gpu) == (100 + 950, 4, "float8", "b200")
    assert many.config == ModelConfig.named("meta-llama/Llama-3.1-405B-Instruct")
    assert left_out == {
        "Qwen/Qwen3-30B-A3B-Instruct-2507: mean time of a step above 1.5 times the median": 1,
        "openai/gpt-oss-20b: other layers than full attention, not fitted": 1,
    }


def test_ml_energy_needs_its_histograms(tmp_path):
    row = "gpqa,Qwen/Qwen3-8B,bfloat16,H100,1,16,2000,12.5,1280,0.4"
    path = written(tmp_path, ENERGY, row)
    with pytest.raises(MeasurementError, match=r"is needed beside ML\.ENERGY's measurements"):
        read_measurements(path)
    beside = tmp_path / "gpqa_output_length_histograms.json"
    beside.write_text(json.dumps({"Qwen/Qwen3-14B": {"bins": [0, 9], "counts": [1]}}))
    with pytest.raises(MeasurementError, match=r"line 2: .* has no output lengths of Qwen/Qwen3-8B"):
        read_measurements(path)
    for broken in ({"bins": [0, 9], "counts": []}, {"bins": [9, 0], "counts": [1]}, {"bins": "x"}, 3):
        beside.write_text(json.dumps({"Qwen/Qwen3-8B": broken}))
        with pytest.raises(MeasurementError, match="must hold bins, rising and one more than counts"):
            read_measurements(path)
    beside.write_text("{}")
    with pytest.raises(MeasurementError, match=r"line 2: contradicts itself: model_id is .*-FP8, and weight_precision"):
        read_measurements(written(tmp_path, ENERGY, row.replace("8B", "235B-A22B-Thinking-2507-FP8")))
    with pytest.raises(MeasurementError, match="column num_gpus is missing"):
        read_measurements(written(tmp_path, ENERGY.replace(",num_gpus", ""), row.replace(",1,", ",")))


def test_the_layout_of_qwen(tmp_path):
    path = written(
        tmp_path,
        "model,engine,input_length,quantization,gpus,speed_tokens_per_s_incl_prompt,note_or_memory_mb",
        "Qwen3-8B,SGLang,6144,AWQ-INT4,1,512.0,",
        "Qwen3-30B-A3B,Transformers,1,GPTQ-INT4,-,-,-",
    )
    rows, left_out = read_measurements(path)
    (row,) = rows
    assert (row.gpu, row.batch, row.context, row.weights) == ("h20", 1, 6144 + 1024, "int4")
    assert (row.prompt_tokens, row.output_tokens) == (6144, 2048)
    assert row.seconds == (6144 + 2048) / 512 / 2048  # prompt and output in the time of both
    assert sum(left_out.values()) == 1
