"""TGI's flags and variables: what each becomes, and what is refused."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import pytest

from config.engines import NativeSettings
from config.server import ServerSection
from config.settings import SettingsError, load_settings
from config.sources import ENV_PREFIX
from gateway.cli.gpus import visible_gpus
from gateway.cli.launch import Translation, add_flags, translate
from gateway.cli.tgi_flags import FLAGS, VARIABLES, NoEffect, Refusal, Setting


def translated(*argv: str, **environment: str) -> Translation:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    given = {key: value for key, value in vars(parser.parse_args(argv)).items() if key != "env"}
    return translate(given, {"CUDA_VISIBLE_DEVICES": "0", **environment})


def setting(name: str, *argv: str, **environment: str) -> Any:
    return translated(*argv, **environment).settings[name]


def test_every_flag_leads_to_a_setting_that_there_is():
    known = {*ServerSection.model_fields, *NativeSettings.model_fields, "HF_HUB_CACHE"}
    for flag in (*FLAGS, *VARIABLES):
        if isinstance(flag.becomes, Setting):
            assert flag.becomes.name in known, flag.name


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--model-id", "a/b"], "model", "a/b"),
        (["--max-total-tokens=4096"], "max_model_len", 4096),
        (["--max-input-length", "1024"], "max_prompt_tokens", 1024),
        (["--max-batch-prefill-tokens", "2048"], "max_num_batched_tokens", 2048),
        (["--max-batch-size", "16"], "max_num_seqs", 16),
        (["-p", "80"], "port", 80),
        (["--payload-limit", "5000"], "max_body_bytes", 5000),
        (["--quantize", "bitsandbytes-nf4"], "quantize", "nf4"),
        (["--quantize", "eetq"], "quantize", "int8"),
        (["--quantize", "gptq"], "quantize", "none"),
        (["--kv-cache-dtype", "fp8_e5m2"], "kv_cache_dtype", "fp8"),
        (["--cuda-memory-fraction", "0.5"], "gpu_memory_utilization", 0.45),
        (["-g", "5"], "shutdown_timeout_s", 5.0),
        (["--watermark-delta", "1.5"], "watermark_delta", 1.5),
        (["--cors-allow-origin", "https://a", "--cors-allow-origin", "https://b"], "cors_allow_origin", None),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_flag_becomes_our_setting_and_passes_its_checks(argv: list[str], name: str, value: Any):
    loaded = load_settings(translated(*argv).settings)
    section = loaded.server if name in ServerSection.model_fields else loaded.engines[0]
    expected = ("https://a", "https://b") if value is None else value
    assert getattr(section, name) == expected


def test_defaults_are_those_of_the_original():
    loaded = load_settings(translated().settings)
    server = loaded.server
    assert (server.host, server.port, server.max_concurrent_requests) == ("0.0.0.0", 3000, 128)
    assert (server.max_body_bytes, server.shutdown_timeout_s) == (2_000_000, 90.0)
    assert (server.cors_allow_origin, server.any_model, server.tgi_dialect) == (("*",), True, True)
    assert (server.max_best_of, server.max_stop_sequences, server.max_top_n_tokens) == (2, 4, 5)


def test_our_own_variable_replaces_a_default(monkeypatch: pytest.MonkeyPatch):
    name = f"{ENV_PREFIX}PORT"
    monkeypatch.setenv(name, "9000")
    assert load_settings(translated(**{name: "9000"}).settings).server.port == 9000


def test_variable_says_what_its_flag_says_and_the_flag_wins():
    assert setting("max_model_len", MAX_TOTAL_TOKENS="8") == "8"
    assert setting("max_model_len", "--max-total-tokens", "9", MAX_TOTAL_TOKENS="8") == "9"
    assert setting("max_prompt_tokens", "--max-input-length", "9", MAX_INPUT_TOKENS="8") == "9"


@pytest.mark.parametrize(("given", "bound"), [("8f3a91b2c4d5", "0.0.0.0"), ("127.0.0.1", "127.0.0.1"), ("::", "::")])
def test_hostname_that_is_a_containers_name_means_every_interface(given: str, bound: str):
    assert setting("host", HOSTNAME=given) == bound


@pytest.mark.parametrize(
    ("value", "level"), [("debug", "debug"), ("info,text_generation_router=trace", "info"), ("WARN", "warning")]
)
def test_log_filter_comes_down_to_a_level(value: str, level: str):
    assert setting("log_level", LOG_LEVEL=value) == level


def test_hub_cache_and_token_go_where_the_hubs_library_looks():
    assert translated("--huggingface-hub-cache", "/data").environment == {"HF_HUB_CACHE": "/data"}
    assert translated(HF_API_TOKEN="t").environment == {"HF_TOKEN": "t"}
    assert translated(HF_API_TOKEN="t", HF_TOKEN="u").environment == {"HF_TOKEN": "u"}


def test_sagemakers_names_are_understood_and_its_port_taken():
    settings = translated(HF_MODEL_ID="a/b", SM_NUM_GPUS="1", HF_MODEL_QUANTIZE="fp8", PORT="80").settings
    assert (settings["model"], settings["quantize"], settings["port"]) == ("a/b", "fp8", "8080")


def test_vertex_port_replaces_the_images():
    assert setting("port", PORT="80", AIP_HTTP_PORT="8081") == "8081"


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if isinstance(flag.becomes, Refusal)], ids=lambda f: f.name)
def test_what_cannot_be_honoured_is_refused_by_name_with_the_reason(flag: Any):
    words = [f"--{flag.name}"] if flag.kind == "switch" else [f"--{flag.name}", "x"]
    with pytest.raises(SettingsError) as refusal:
        translated(*words)
    assert refusal.value.problems == (f"--{flag.name}: cannot be honoured: {flag.becomes.why}.",)


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if isinstance(flag.becomes, NoEffect)], ids=lambda f: f.name)
def test_what_has_no_effect_is_taken_and_said(flag: Any):
    words = [f"--{flag.name}"] if flag.kind == "switch" else [f"--{flag.name}", "1"]
    (note,) = translated(*words).notes
    assert note.startswith(f"--{flag.name}: no effect: ")
    assert translated(*words).settings == translated().settings


@pytest.mark.parametrize("flag", [v for v in VARIABLES if isinstance(v.becomes, NoEffect)], ids=lambda f: f.name)
def test_variable_without_effect_is_said_too(flag: Any):
    (note,) = translated(**{flag.variable: "1"}).notes
    assert note.startswith(f"{flag.variable}: no effect: ")


def test_version_is_told_under_the_old_name():
    run = subprocess.run([sys.executable, "-m", "gateway", "launch", "-V"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout[:34]) == (0, "text-generation-launcher (headrace")


@pytest.mark.parametrize(
    "argv",
    [
        ["--quantize", "exl2"],
        ["--quantize", "int3"],
        ["--cuda-memory-fraction", "2"],
        ["--max-input-tokens", "5", "--max-input-length", "5"],
        ["--max-input-tokens", "10", "--max-total-tokens", "10"],
    ],
    ids=str,
)
def test_contradictions_and_bad_values_are_named(argv: list[str]):
    with pytest.raises(SettingsError, match=argv[0]):
        translated(*argv)


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_shards_are_ranks_of_tensor_parallelism(shards: int):
    (engine,) = load_settings(translated("--num-shard", str(shards)).settings).engines
    assert engine.kind == "native"
    assert engine.tensor_parallel_size == shards


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "0,1,2,3"}, 4),
        ({"CUDA_VISIBLE_DEVICES": "1", "NVIDIA_VISIBLE_DEVICES": "all"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
    ],
    ids=str,
)
def test_gpus_are_counted_by_what_the_environment_shows(environment: dict[str, str], count: int):
    assert visible_gpus(environment) == count


def test_mistake_that_a_setting_finds_is_told_by_the_flags_name():
    command = [sys.executable, "-m", "gateway", "launch", "--max-total-tokens", "many"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("headrace: error: --max-total-tokens:")
