"""Builds an engine core from its settings: device, arithmetic, kernels, weights, cache, scheduler. Returns derived
numbers.

Runs in the core's process, once. Every choice that `auto` leaves open is made here and told in `Ready`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.block_pool import BlockPool
from engines.native.build_runner import build_runner
from engines.native.chunking import ChunkSizer
from engines.native.core import EngineCore
from engines.native.device import device_name, prepare_device
from engines.native.distributed.member import Member
from engines.native.embedding_config import load_embedding_config, task_of
from engines.native.generation_config import load_generation_config
from engines.native.grammar.compiler import GrammarCompiler
from engines.native.kernels import KernelChoice, choose_kernels
from engines.native.launch import OnProgress
from engines.native.model_runner import ModelRunner
from engines.native.models import CausalLM, load_config
from engines.native.models.model_config import ModelConfig
from engines.native.quantization import choose_quantizer
from engines.native.quantization.weight import Quantizer
from engines.native.scheduler import Scheduler, SchedulerLimits
from engines.native.tokenizer import Tokenizer
from engines.native.types import Ready
from engines.native.weights.loader import load_model
from engines.native.weights.resolve import ModelFiles, resolve_model

if TYPE_CHECKING:
    from engines.native.distributed.group import RankGroup

_GPU_PREFILL_TARGET_S = 0.05
_PREFILL_TARGET_TOKENS = 10  # steps of one token that prompts may add to a step in any case: 50 ms bring a large model
# so few prompt tokens that they would wait for each other


@dataclass(frozen=True, slots=True)
class BuiltCore:
    """A core that can answer, and what it tells its clients."""

    core: EngineCore
    runner: ModelRunner  # what a rank that only follows needs
    ready: Ready
    device: str  # "cpu" or "cuda"
    overlapped: bool  # whether stepping ahead of the host's bookkeeping pays on this device
    config: ModelConfig
    kv_token_bytes: int  # keys and values of one token, all layers
    step_weight_bytes: int  # what every step reads: all weights, but of an embedding table of its own only rows


def build_core(
    section: NativeSettings, on_progress: OnProgress, member: Member | None = None, files: ModelFiles | None = None
) -> BuiltCore:
    """Of several ranks each builds its own with its `member`, side by side: they meet in here. `files`: the model's,
    where they are found already.

    Raises EngineUnavailable, in words for an operator, when these settings cannot become a running core.
    """
    started = time.monotonic()
    device = prepare_device(section, 0 if member is None else member.rank)
    files = files or resolve_model(section, on_progress)
    config = load_config(files.path)
    section, config = _for_task(section, files.path, config)
    group = None
    if member is not None:
        from engines.native.distributed.group import RankGroup  # much of torch that one rank does without

        group = RankGroup(member, device, batch_invariant=section.batch_invariant)
    on_triton = device.type == "cuda" and section.attention_backend in ("auto", "triton")
    quantizer = choose_quantizer(section, config.quantization, keeps_gguf=on_triton and files.path.is_file())
    kernels = choose_kernels(section, config, device, quantizer)
    num_threads = torch.get_num_threads()
    if kernels.attention_backend == "numba":
        torch.set_num_threads(
            1
        )  # the kernels' own threads do the work; torch's would spin on their cores after each use
    limits = _limits(section, device)
    model = _load(section, config, files.path, device, kernels, quantizer, on_progress, group)
    runner, cache, rows = build_runner(section, config, device, kernels, limits, model, group)
    max_model_len = rows.max_model_len
    pool = BlockPool(cache.num_blocks, kernels.block_size, caching=section.prefix_caching)
    largest_chunk = min(runner.largest_chunk or limits.max_num_batched_tokens, limits.max_num_batched_tokens)
    on_gpu = device.type == "cuda"
    target_s = prefill_target_s(section.prefill_target_ms, on_gpu=on_gpu, token_s=runner.token_s)
    sizer = ChunkSizer(target_s, largest=largest_chunk, sizes=runner.step_sizes)
    scheduler = Scheduler(pool, replace(limits, max_prefill_tokens=largest_chunk), sizer)
    ready = Ready(
        model=files.name,
        architecture=config.architecture,
        device=device_name(device, num_threads),
        dtype=kernels.dtype_name,
        attention_backend=kernels.attention_backend,
        vocab_size=config.vocab_size,
        max_model_len=max_model_len,
        block_size=kernels.block_size,
        num_blocks=cache.num_blocks,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        weight_bytes=model.weight_bytes,
        load_s=time.monotonic() - started,
        quantization=kernels.quantization,
        tensor_parallel_size=section.tensor_parallel_size,
        all_reduce="" if group is None else group.all_reduce_name,
        generates=not config.headless,
        embedding_size=config.hidden_size,
    )
    core = EngineCore(
        scheduler,
        runner if member is None else member.lead(runner),
        sizer,
        constraints=_grammars(section, files.path, config),
    )
    return BuiltCore(
        core,
        runner,
        ready,
        device.type,
        overlapped=on_gpu,
        config=config,
        kv_token_bytes=cache.shape.block_bytes // cache.shape.block_size,
        step_weight_bytes=model.weight_bytes
        - (0 if config.tie_word_embeddings else _table_bytes(config, kernels) // section.tensor_parallel_size),
    )


def _for_task(section: NativeSettings, path: Path, config: ModelConfig) -> tuple[NativeSettings, ModelConfig]:
    """For a model that embeds: without its head, and with the longest input that its files name."""
    if task_of(section, path) == "generate":
        if config.headless and section.task == "generate":
            raise EngineUnavailable("task is 'generate', but the checkpoint has no LM head.", field="task")
        return section, config
    if section.max_model_len is None:
        length = load_embedding_config(path).max_length
        section = section.model_copy(update={"max_model_len": length and min(length, config.context_length)})
    return section, replace(config, headless=True)


def _grammars(section: NativeSettings, path: Path, config: ModelConfig) -> GrammarCompiler:
    """Costs nothing until the first grammar is asked for."""

    def load() -> tuple[Tokenizer, frozenset[int]]:
        return Tokenizer.load(section.tokenizer or path), frozenset(load_generation_config(path).eos_token_ids)

    return GrammarCompiler(load, config.vocab_size)


def _table_bytes(config: ModelConfig, kernels: KernelChoice) -> int:
    return config.vocab_size * config.hidden_size * kernels.weight_dtype.itemsize


def _load(
    section: NativeSettings,
    config: ModelConfig,
    path: Path,
    device: torch.device,
    kernels: KernelChoice,
    quantizer: Quantizer | None,
    on_progress: OnProgress,
    group: RankGroup | None,
) -> CausalLM:
    return load_model(
        config,
        path,
        device=device,
        dtype=kernels.dtype,
        ops=kernels.ops,
        weight_dtype=kernels.weight_dtype,
        max_model_len=section.max_model_len,
        load_format=section.load_format,
        seed=section.seed,
        on_progress=on_progress,
        quantizer=quantizer,
        group=group,
        tokenizer=None if section.load_format == "dummy" else section.tokenizer or path,
    )


def prefill_target_s(asked_ms: float | None, *, on_gpu: bool, token_s: float) -> float:
    """What prompts may add to a step with decodes, in seconds, 0 for no limit; token_s: a step of one token's time."""
    if asked_ms is not None:
        return asked_ms / 1000
    return max(_GPU_PREFILL_TARGET_S, _PREFILL_TARGET_TOKENS * token_s) if on_gpu else 0.0


def _limits(section: NativeSettings, device: torch.device) -> SchedulerLimits:
    on_gpu = device.type == "cuda"
    max_num_seqs = section.max_num_seqs or (512 if on_gpu else 64)
    budget = section.max_num_batched_tokens or max(8192 if on_gpu else 512, max_num_seqs)
    if budget < max_num_seqs:
        raise EngineUnavailable(
            f"max_num_batched_tokens ({budget}) must be at least max_num_seqs ({max_num_seqs}), or a step could not "
            "serve every running sequence."
        )
    return SchedulerLimits(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)
