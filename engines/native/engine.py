"""NativeEngine: the engine contract in front of our own core. Owns text; the core, in another process, owns tokens.

A request comes in as words and goes out as words: the chat template and the tokenizer on the way in, the detokenizer
and the stop matcher on the way out, and the core's socket between them. Never imports torch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor

from config.engines import NativeSettings
from engines.api import (
    ChatPrompt,
    Done,
    EmbeddingRequest,
    Embeddings,
    EngineStats,
    GenerationEvent,
    GenerationRequest,
    Health,
    MarkedToken,
    ModelCard,
    Prompt,
    TextPrompt,
    Tokenized,
    TokensPrompt,
    WatermarkParams,
    WatermarkReport,
)
from engines.errors import EngineUnavailable, InvalidRequest, UnsupportedByEngine
from engines.native.answer import Answer, ChoiceSink
from engines.native.core_client import CoreClient
from engines.native.detokenizer import texts_of_tokens
from engines.native.embedding import Embedder
from engines.native.embedding_config import EmbeddingConfig, load_embedding_config, task_of
from engines.native.generation_config import GenerationConfig, load_generation_config
from engines.native.launch import CoreProcess, OnProgress
from engines.native.prompt_encoder import PromptEncoder
from engines.native.request_params import check_prompt, check_token_ids, token_params, truncated
from engines.native.tokenizer import Tokenizer
from engines.native.types import AddSequence, Ready
from engines.native.watermark.resolve import detector, requested, scheme_of
from engines.native.weights import no_progress
from engines.native.weights.resolve import resolve_model

_TOKENIZER_THREADS = 4
_RESTART_DELAYS_S = (0.5, 1, 2, 5, 10, 30)


class NativeEngine:
    """One model on our own core. Starts the core's process itself, unless `address` names a running one."""

    def __init__(
        self, section: NativeSettings, *, address: str | None = None, on_progress: OnProgress | None = None
    ) -> None:
        self._section = section
        self._on_progress = on_progress
        self._core = None if address is not None else CoreProcess(section)
        self._client = CoreClient(address or self._core.address, on_progress)  # type: ignore[union-attr]
        self._threads = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        self._supervisor: asyncio.Task[None] | None = None
        self._created = int(time.time())
        self._model = section.model
        self._tokenizer: Tokenizer
        self._prompts: PromptEncoder
        self._embedder: Embedder
        self._defaults: GenerationConfig

    # --- the contract: life -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        if self._core is not None:
            self._core.spawn()
        self._client.open()
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._load_text_half)
            ready = await self._client.wait_ready(self._core_alive)
        except BaseException:
            await self.aclose()
            raise
        self._model = ready.model
        if self._core is not None:
            self._supervisor = asyncio.create_task(self._supervise(self._core), name="core-supervisor")

    def _load_text_half(self) -> None:
        files = resolve_model(self._section, self._on_progress or no_progress)
        self._prompts = PromptEncoder(self._section, files.path, self._threads)
        self._tokenizer = self._prompts.tokenizer
        embeds = task_of(self._section, files.path) == "embed"
        embedding = load_embedding_config(files.path) if embeds else EmbeddingConfig()
        self._embedder = Embedder(embedding, self._tokenizer, self._client, self._section.max_prompt_tokens)
        models_own = self._section.generation_defaults == "model"
        self._defaults = load_generation_config(files.path) if models_own else GenerationConfig()

    def _core_alive(self) -> bool:
        return self._core is None or self._core.alive

    async def _supervise(self, core: CoreProcess) -> None:
        """Start the core again whenever its process ends; its clients reconnect by themselves."""
        failures = 0
        while True:
            await asyncio.sleep(0.2)
            if core.alive:
                if self._client.ready is not None:
                    failures = 0
                continue
            await asyncio.sleep(_RESTART_DELAYS_S[min(failures, len(_RESTART_DELAYS_S) - 1)])
            failures += 1
            core.spawn()

    async def aclose(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
        await self._client.close()
        if self._core is not None:
            await asyncio.to_thread(self._core.stop)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def health(self) -> Health:
        if self._client.ready is not None:
            return Health(True)
        return Health(False, self._client.failure or "The engine core is starting.")

    # --- the contract: what it tells about itself ---------------------------------------------------------------------

    @property
    def ready(self) -> Ready | None:
        """What the core said when it became able to answer; None while it is not."""
        return self._client.ready

    @property
    def models(self) -> Sequence[ModelCard]:
        name, *aliases = self._section.served_model_name or (self._model,)
        ready = self._client.ready
        max_model_len = None if ready is None else ready.max_model_len
        return (
            ModelCard(
                name=name,
                aliases=tuple(aliases),
                max_model_len=max_model_len,
                max_prompt_tokens=self._section.max_prompt_tokens,
                created=self._created,
            ),
        )

    def stats(self) -> EngineStats:
        stats = self._client.stats
        ready = self._client.ready
        return EngineStats(
            **{field: getattr(stats, field) for field in stats.__struct_fields__},
            kv_block_size=0 if ready is None else ready.block_size,
            steps=self._client.steps,
        )

    # --- the contract: text -------------------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        ready = self._require_ready()
        if not ready.generates:
            raise UnsupportedByEngine("This model embeds texts and generates none: use /v1/embeddings.", field="model")
        token_ids, text = await self._prompts.encode(request.prompt)
        token_ids = truncated(token_ids, request, ready)
        field = "messages" if isinstance(request.prompt, ChatPrompt) else "prompt"
        self._check_priority(request)
        check_prompt(token_ids, ready, field, self._section.max_prompt_tokens)
        params = token_params(
            request,
            len(token_ids),
            ready=ready,
            tokenizer=self._tokenizer,
            defaults=self._defaults,
            watermark=requested(request.sampling.watermark, self._section),
        )
        plan = self._prompts.dialect_for(request.prompt).plan(request, text)
        answer = Answer(request, token_ids, self._tokenizer, plan)
        seq_ids = [self._client.new_seq_id() for _ in params]
        try:
            for seq_id, choice_params, choice in zip(seq_ids, params, answer.choices, strict=True):
                message = AddSequence(
                    seq_id,
                    tuple(token_ids),
                    choice_params,
                    request.cache_salt,
                    plan.grammar,
                    plan.thinking,
                    request.priority,
                )
                self._client.submit(message, ChoiceSink(answer, choice, seq_id, self._client))
            while True:
                for event in await answer.next_events():
                    yield event
                    if isinstance(event, Done):
                        return
        finally:
            self._client.abort(seq_ids)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        ready = self._require_ready()
        pooling = self._embedder.pooling(request, ready)
        num_chars = sum(len(one.text) for one in request.inputs if isinstance(one, TextPrompt))
        inputs = await self._prompts.off_loop(num_chars, self._embedder.encode, request, ready)
        return await self._embedder.run(inputs, pooling, request.cache_salt)

    async def tokenize(self, model: str, prompt: Prompt, *, with_texts: bool = False) -> Tokenized:  # noqa: ARG002
        ready = self._require_ready()
        if not with_texts:
            return Tokenized(tuple((await self._prompts.encode(prompt))[0]), ready.max_model_len)
        text, ids, offsets = await self._prompts.encode_with_offsets(prompt)
        texts = tuple(self._tokenizer.token_text(token_id) for token_id in ids)
        return Tokenized(tuple(ids), ready.max_model_len, texts, text, tuple(offsets))

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:  # noqa: ARG002
        ready = self._require_ready()
        if any(not 0 <= token_id < ready.vocab_size for token_id in token_ids):
            raise InvalidRequest(f"tokens: token ids must be in [0, {ready.vocab_size}).", field="tokens")
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    async def detect_watermark(
        self,
        model: str,  # noqa: ARG002
        content: TextPrompt | TokensPrompt,
        watermark: WatermarkParams,
    ) -> WatermarkReport:
        ready = self._require_ready()
        test = detector(watermark, self._section, ready.vocab_size)
        token_ids, _ = await self._prompts.encode(content)
        field = "text" if isinstance(content, TextPrompt) else "tokens"
        if len(token_ids) > test.max_tokens:
            raise InvalidRequest(
                f"{field}: at most {test.max_tokens} tokens can be tested at once, and it has {len(token_ids)}.",
                field=field,
            )
        check_token_ids(token_ids, ready, field)
        in_thread = asyncio.get_running_loop().run_in_executor
        found = await in_thread(self._threads, test.run, token_ids)
        return WatermarkReport(
            scheme=scheme_of(watermark, self._section),
            num_tokens_scored=found.num_tokens_scored,
            statistic=found.statistic,
            z_score=found.z_score,
            p_value=found.p_value,
            tokens=tuple(map(MarkedToken, token_ids, texts_of_tokens(self._tokenizer, token_ids), found.marks)),
        )

    def _check_priority(self, request: GenerationRequest) -> None:
        if request.priority and self._section.scheduling_policy != "priority":
            raise InvalidRequest(
                "priority: requests are served here in the order in which they come; --scheduling-policy priority "
                "would look at it.",
                field="priority",
            )

    def _require_ready(self) -> Ready:
        ready = self._client.ready
        if ready is None:
            raise EngineUnavailable(self._client.failure or "The engine is starting; try again shortly.")
        return ready
