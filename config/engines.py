"""One frozen section per engine kind. Derived numbers are returned by whoever derives them, never written back here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, SecretStr

from config.names import Names


class EngineSection(BaseModel):
    """What every engine kind has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    served_model_name: Names = Field(
        default=(),
        examples=[["my-model"]],
        description="Names that clients use for the model; the first is canonical. Default: MODEL itself.",
    )


class NativeSettings(EngineSection):
    """The native engine: our own scheduler, KV cache and kernels, on CPU or GPU."""

    kind: Literal["native"] = "native"
    model: str = Field(
        default="smollm2-135m",
        description="`smollm2-135m`, a folder with config.json and safetensors, a .gguf file, or a hub id.",
    )
    task: Literal["auto", "generate", "embed"] = Field(
        default="auto",
        description="What MODEL serves. auto: embed for encoders and for models with sentence-transformers' "
        "modules.json, else generate, and embed on the side; see docs/embeddings.md.",
    )
    tokenizer: str | None = Field(
        default=None,
        examples=["./tokenizer.json"],
        description="Folder or file of the tokenizer, if it is not MODEL's own.",
    )
    chat_template: Path | None = Field(
        default=None,
        examples=["./template.jinja"],
        description="Jinja file with the chat template, or a tokenizer_config.json with one. Default: MODEL's own.",
    )
    trust_request_chat_template: bool = Field(
        default=False,
        description="Take a chat template that a request brings (`chat_template`). It is code: a template that loops "
        "holds up others.",
    )
    revision: str | None = Field(
        default=None, examples=["main"], description="Hub revision (branch, tag or commit) of MODEL."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the model runs; auto: a GPU if any."
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, le=64, description="GPUs (on CPU: processes) that share one copy of the model."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Weights and arithmetic. auto on GPU: the checkpoint's own 16-bit type; auto on CPU: weights "
        "rounded to bfloat16, sums in float32, the fastest mix there.",
    )
    load_format: Literal["auto", "dummy"] = Field(
        default="auto", description="dummy: random weights from config.json alone, for benchmarks."
    )
    quantize: Literal["none", "fp8", "int8", "int4", "nf4", "fp4"] = Field(
        default="none", description="Keep an unquantized checkpoint's weights in fewer bits; see docs/quantization.md."
    )
    quantize_group_size: int | None = Field(
        default=None,
        ge=32,
        examples=[64],
        description="int4, nf4, fp4: weights that share a scale. Default: 32, of nf4 and fp4 64.",
    )
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        default="auto", description="fp8: keys and values in e4m3, twice the tokens. auto: as wide as the arithmetic."
    )
    max_model_len: int | None = Field(
        default=None, ge=1, examples=[4096], description="Prompt + output tokens. Default: the model's own."
    )
    max_prompt_tokens: int | None = Field(
        default=None, ge=1, examples=[3072], description="Prompt tokens. Default: whatever max_model_len leaves."
    )
    max_num_seqs: int | None = Field(
        default=None, ge=1, examples=[64], description="Sequences in one step. Default: 512 GPU, 64 CPU."
    )
    max_num_batched_tokens: int | None = Field(
        default=None, ge=1, examples=[512], description="Token budget of one step. Default: 8192 on GPU, 512 on CPU."
    )
    prefill_target_ms: float | None = Field(
        default=None,
        ge=0,
        examples=[50.0],
        description="Milliseconds that prompts may add to a step with running decodes: longer ones are cut to fit, so "
        "that streams go on. 0: no limit. Default: on GPU 50, or what ten tokens take if that is more; 0 on CPU.",
    )
    scheduling_policy: Literal["fcfs", "priority"] = Field(
        default="fcfs",
        description="priority: requests with a lower `priority` go first; who may send requests may then go before "
        "others. fcfs: in order of arrival; another priority than 0 is refused.",
    )
    max_waiting: int = Field(default=4096, ge=1, description="Queued requests beyond which new ones are refused (503).")
    block_size: int | None = Field(
        default=None, ge=1, examples=[16], description="Tokens per KV block. Default: by attention backend."
    )
    kv_cache_memory: str = Field(
        default="auto",
        description="KV cache size, such as `2GiB`. auto: what gpu_memory_utilization leaves, on CPU 2GiB or less.",
    )
    gpu_memory_utilization: float = Field(
        default=0.95, gt=0, le=1, description="Share of GPU memory the engine may use, everything included."
    )
    prefix_caching: bool = Field(default=True, description="Reuse KV blocks between requests with a common prefix.")
    attention_backend: Literal["auto", "torch", "numba", "triton", "flash-attn"] = Field(
        default="auto",
        description="Attention kernels; auto: numba on CPU, triton on GPU. flash-attn is faster for long prompts on "
        "Hopper GPUs, needs the package flash-attn-4, and takes longer to start.",
    )
    batch_invariant: bool = Field(
        default=False,
        description="A request's tokens do not depend, to the bit, on what runs beside it, nor on preemption or the "
        "prefix cache: one kernel for every batch size and for decodes and prompts alike, at some speed.",
    )
    generation_defaults: Literal["model", "openai"] = Field(
        default="model",
        description="Sampling fields that a request leaves out: the model's generation_config, or OpenAI's (1.0, 1.0).",
    )
    tool_parser: Literal["auto", "hermes", "llama3_json", "mistral", "mistral_named", "pythonic", "json"] = Field(
        default="auto", description="How the model writes tool calls; auto reads it off the chat template."
    )
    reasoning_parser: Literal["auto", "think", "none"] = Field(
        default="auto",
        description="Whether answers begin with <think>...</think>; auto: if the chat template mentions such tags.",
    )
    cpu_threads: int | None = Field(
        default=None, ge=1, examples=[2], description="Compute threads on CPU. Default: physical cores."
    )
    seed: int = Field(default=0, description="Seed of dummy weights.")
    watermark: bool = Field(default=False, description="Mark the text of requests that do not say whether to.")
    watermark_scheme: Literal["green_list", "gumbel", "synthid"] = Field(
        default="green_list", description="The mark, where a request names none; see docs/watermark.md."
    )
    watermark_key: SecretStr | None = Field(
        default=None,
        examples=["a long secret"],
        description="Secret that marks are made and found with. Default: TGI's key, which everyone knows.",
    )
    watermark_gamma: float = Field(default=0.5, gt=0, lt=1, description="green_list: share of the vocabulary.")
    watermark_delta: float = Field(default=2.0, gt=0, le=100, description="green_list: added to green logits.")
    watermark_context_width: int | None = Field(
        default=None,
        ge=1,
        le=16,
        examples=[4],
        description="Tokens that a mark depends on. Default: 1 for green_list, 4 for the others.",
    )
    watermark_self_hash: bool = Field(
        default=False, description="green_list: colours depend on the marked token as well."
    )
    watermark_depth: int = Field(default=30, ge=1, le=32, description="synthid: layers of the tournament.")
    cache_dir: Path | None = Field(
        default=None,
        examples=["/var/cache/headrace"],
        description="Folder for fetched models. Default: headrace in the user's cache folder.",
    )


class RemoteSettings(EngineSection):
    """An OpenAI-compatible upstream."""

    kind: Literal["remote"] = "remote"
    upstream: HttpUrl = Field(
        examples=["https://example.com/v1"], description="Base URL of the upstream, such as https://example.com/v1."
    )
    upstream_model: str | None = Field(
        default=None,
        examples=["my-model"],
        description="The upstream's name for the model. Default: the name the client used.",
    )
    upstream_api_key: SecretStr | None = Field(
        default=None,
        examples=["secret"],
        description="Bearer token for the upstream; process lists show flags, so prefer the environment.",
    )
    upstream_max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens",
        description="What the upstream's chat route calls the output limit; OpenAI's own newer models want the latter.",
    )
    connect_timeout_s: float = Field(default=5.0, gt=0, description="Seconds to connect.")
    first_byte_timeout_s: float = Field(default=300.0, gt=0, description="Seconds until the upstream's first event.")
    idle_timeout_s: float = Field(default=60.0, gt=0, description="Seconds between two pieces of a stream.")
    max_connections: int = Field(default=1024, ge=1, description="Pooled connections to the upstream.")


class EchoSettings(EngineSection):
    """Deterministic and model-free: repeats the prompt. For demos, tests and load tests of the gateway alone."""

    kind: Literal["echo"] = "echo"
    token_delay_s: float = Field(default=0.0, ge=0, description="Seconds between two generated tokens.")
    max_model_len: int = Field(default=8192, ge=1, description="Prompt + output tokens.")


EngineSettings = Annotated[NativeSettings | RemoteSettings | EchoSettings, Field(discriminator="kind")]
