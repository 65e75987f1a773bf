"""Every flag of `text-generation-launcher` and what becomes of it: a setting of ours, nothing (and why), or a refusal.

A table. How it is applied to a command line and an environment is launch.py's. A flag's variable is its name in upper
case with underscores, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Setting:
    """It becomes the setting `name`. `default`: what TGI does where it is not given, None where ours does the same."""

    name: str
    convert: Callable[[str], Any] = str
    default: Any = None


@dataclass(frozen=True, slots=True)
class NoEffect:
    """It is taken, and said to change nothing."""

    why: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """It asks for something that would be missed: the launch ends with these words."""

    why: str


@dataclass(frozen=True, slots=True)
class Flag:
    """`kind`: "value" takes one; "switch" takes none; "list" may be repeated. `short` is a letter."""

    name: str
    becomes: Setting | NoEffect | Refusal
    kind: Literal["value", "switch", "list"] = "value"
    short: str = ""

    @property
    def variable(self) -> str:
        return self.name.upper().replace("-", "_")

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")


class BadValue(ValueError):
    """A value that a flag cannot take; the message goes after the flag's name."""


# --- values -----------------------------------------------------------------------------------------------------------


def host(value: str) -> str:
    """HOSTNAME is a container's own name wherever nobody set it, so what is no address means every interface."""
    from ipaddress import ip_address

    try:
        return str(ip_address(value))
    except ValueError:
        return "0.0.0.0"


def seconds(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise BadValue(f"{value!r} is no number of seconds") from None


def memory_share(value: str) -> float:
    """TGI takes this share of what it leaves itself, nine tenths of the memory."""
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise BadValue(f"{value!r} is no share of the memory above 0 and up to 1")
    return round(share * 0.9, 4)


_QUANTIZE = {
    "eetq": "int8",
    "bitsandbytes": "int8",
    "bitsandbytes-nf4": "nf4",
    "bitsandbytes-fp4": "fp4",
    "fp8": "fp8",
    # How such a checkpoint is quantized stands in its own config.json.
    "awq": "none",
    "gptq": "none",
    "marlin": "none",
    "compressed-tensors": "none",
}


def quantize(value: str) -> str:
    if value == "exl2":
        raise BadValue("exl2 checkpoints cannot be read; use the model's GPTQ or AWQ version, or fp8 on the original")
    if value not in _QUANTIZE:
        raise BadValue(f"{value!r} is not one of {', '.join(sorted(_QUANTIZE))}")
    return _QUANTIZE[value]


def kv_cache_dtype(value: str) -> str:
    if value not in ("fp8_e4m3fn", "fp8_e5m2"):
        raise BadValue(f"{value!r} is not one of fp8_e4m3fn, fp8_e5m2")
    return "fp8"  # e4m3 for both: as small, and with the more exact mantissa


def log_level(value: str) -> str:
    """The first level in a filter such as "info,text_generation_router=debug"."""
    levels = {"trace": "debug", "warn": "warning", "off": "error"}
    word = next((part for part in value.lower().split(",") if part and "=" not in part), "info")
    return levels.get(word, word)


def truth(value: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if value.lower() not in words:
        raise BadValue(f"{value!r} is neither true nor false")
    return words[value.lower()]


# --- the table --------------------------------------------------------------------------------------------------------

_BY_ITSELF = "the scheduler weighs prefill against decoding by itself, step by step"
_NO_TRACING = "traces are not exported; see /metrics and the access log"
_KERNELS = "the kernels that measure fastest are taken"
_FRACTION = "cuda-memory-fraction says how much of the memory is taken"
_TUNNEL = "a tunnel to ngrok is not part of this server; run its own client beside it"

FLAGS: tuple[Flag, ...] = (
    # model
    Flag("model-id", Setting("model")),
    Flag("revision", Setting("revision")),
    Flag("dtype", Setting("dtype")),
    Flag("kv-cache-dtype", Setting("kv_cache_dtype", kv_cache_dtype)),
    Flag("quantize", Setting("quantize", quantize)),
    Flag("speculate", NoEffect("it changes speed alone, and tokens are not speculated here")),
    Flag("trust-remote-code", NoEffect("no code of a model's authors is ever run"), "switch"),
    Flag("tokenizer-config-path", Setting("chat_template")),
    Flag("lora-adapters", Refusal("adapters cannot be served yet; merge the adapter into its model")),
    Flag("rope-scaling", Refusal("positions are scaled as the model's config.json says; write rope_scaling there")),
    Flag("rope-factor", Refusal("positions are scaled as the model's config.json says; write rope_scaling there")),
    Flag("disable-custom-kernels", NoEffect("it named kernels of models that are not served here"), "switch"),
    Flag("cuda-graphs", NoEffect("graphs of all batch sizes are captured at start-up")),
    Flag("cuda-memory-fraction", Setting("gpu_memory_utilization", memory_share)),
    # sharding
    Flag("sharded", NoEffect("num-shard alone says over how many GPUs a model is split")),
    Flag("num-shard", Setting("tensor_parallel_size")),
    Flag("shard-uds-path", NoEffect("processes of one model find each other without it")),
    Flag("master-addr", NoEffect("processes of one model find each other without it")),
    Flag("master-port", NoEffect("processes of one model find each other without it")),
    # limits
    Flag("max-concurrent-requests", Setting("max_concurrent_requests", default=128)),
    Flag("max-best-of", Setting("max_best_of")),
    Flag("max-stop-sequences", Setting("max_stop_sequences")),
    Flag("max-top-n-tokens", Setting("max_top_n_tokens")),
    Flag("max-input-tokens", Setting("max_prompt_tokens")),
    Flag("max-input-length", Setting("max_prompt_tokens")),
    Flag("max-total-tokens", Setting("max_model_len")),
    Flag("max-client-batch-size", Setting("max_client_batch_size")),
    Flag("payload-limit", Setting("max_body_bytes", default=2_000_000)),
    Flag("validation-workers", NoEffect("long prompts are tokenized by threads of their own")),
    # batching
    Flag("waiting-served-ratio", NoEffect(_BY_ITSELF)),
    Flag("max-waiting-tokens", NoEffect(_BY_ITSELF)),
    Flag("max-batch-prefill-tokens", Setting("max_num_batched_tokens")),
    Flag("max-batch-total-tokens", NoEffect("the KV cache takes the memory that is free; see cuda-memory-fraction")),
    Flag("max-batch-size", Setting("max_num_seqs")),
    # features
    Flag("watermark-gamma", Setting("watermark_gamma")),
    Flag("watermark-delta", Setting("watermark_delta")),
    Flag("disable-grammar-support", NoEffect("a grammar costs only the request that brings it"), "switch"),
    Flag("enable-prefill-logprobs", NoEffect("every request may ask for them"), "switch"),
    # network
    Flag("hostname", Setting("host", host, default="0.0.0.0")),
    Flag("port", Setting("port", default=3000), short="p"),
    Flag("prometheus-port", NoEffect("metrics are at /metrics on the one port")),
    Flag("cors-allow-origin", Setting("cors_allow_origin", default=("*",)), "list"),
    Flag("api-key", Setting("api_key")),
    Flag("ngrok", Refusal(_TUNNEL), "switch"),
    Flag("ngrok-authtoken", Refusal(_TUNNEL)),
    Flag("ngrok-edge", Refusal(_TUNNEL)),
    # storage
    Flag("huggingface-hub-cache", Setting("HF_HUB_CACHE")),
    Flag("weights-cache-override", Setting("HF_HUB_CACHE")),
    # operation
    Flag("json-output", NoEffect("the access log is JSON, a line a request, as it is"), "switch"),
    Flag("otlp-endpoint", NoEffect(_NO_TRACING)),
    Flag("otlp-service-name", NoEffect(_NO_TRACING)),
    Flag("usage-stats", NoEffect("nothing is ever reported to anyone")),
    Flag("graceful-termination-timeout", Setting("shutdown_timeout_s", seconds, default=90.0), short="g"),
)
"""`HF_HUB_CACHE` is a variable and no setting: the hub's own library reads it."""

VARIABLES: tuple[Flag, ...] = (
    Flag("log-level", Setting("log_level", log_level)),
    Flag("compute-type", Setting("compute_type")),
    Flag("prefix-caching", Setting("prefix_caching", truth)),
    Flag("attention", NoEffect("the fastest attention kernels for the device are taken; see attention_backend")),
    Flag("use-flash-attention", NoEffect("the fastest attention kernels for the device are taken")),
    Flag("prefill-chunking", NoEffect("long prompts are always cut into chunks")),
    Flag("aip-predict-route", NoEffect("Vertex AI's requests are answered at /vertex; name that as the route")),
    Flag("aip-health-route", NoEffect("Vertex AI's probes are answered at /health; name that as the route")),
    Flag("aip-http-port", Setting("port")),
    Flag("log-format", NoEffect("the access log is JSON, a line a request, as it is")),
    Flag("log-colorize", NoEffect("log lines have no colours")),
    Flag("debug", NoEffect("LOG_LEVEL=debug says more")),
    Flag("tgi-wiggle-room", NoEffect(_FRACTION)),
    Flag("xpu-memory-fraction", NoEffect(_FRACTION)),
    Flag("exllama-version", NoEffect(_KERNELS)),
    Flag("disable-exllama", NoEffect(_KERNELS)),
    Flag("use-cutlass-w8a8", NoEffect(_KERNELS)),
    Flag("rocm-use-flash-attn-v2-triton", NoEffect(_KERNELS)),
    Flag("rocm-use-custom-paged-attn", NoEffect(_KERNELS)),
    Flag("rocm-use-skinny-gemm", NoEffect(_KERNELS)),
    Flag("max-image-fetch-size", NoEffect("no images are fetched: models here read text")),
    Flag("hf-hub-enable-hf-transfer", NoEffect("the hub's library downloads in parallel by itself")),
)
"""What TGI reads from the environment alone."""

SAGEMAKER = {
    "HF_MODEL_ID": "MODEL_ID",
    "HF_MODEL_REVISION": "REVISION",
    "SM_NUM_GPUS": "NUM_SHARD",
    "HF_MODEL_QUANTIZE": "QUANTIZE",
    "HF_MODEL_TRUST_REMOTE_CODE": "TRUST_REMOTE_CODE",
}
"""The names that SageMaker gives, and what TGI's image makes of them."""
SAGEMAKER_PORT = 8080
