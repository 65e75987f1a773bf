"""NativeEngine: the engine contract in front of our own core. Owns text; the core, in another process, owns tokens.

A request comes in as words and goes out as words: the chat template and the tokenizer on the way in, the detokenizer
and the stop matcher on the way out, and the core's socket between them. Never imports torch.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor

from config.engines import NativeSettings
from engines.api import (
    ChatPrompt,
    Done,
    EngineStats,
    GenerationEvent,
    GenerationRequest,
    Health,
    ModelCard,
    Prompt,
    PromptDetails,
    Started,
    TextPrompt,
    Tokenized,
    TokensPrompt,
    Usage,
)
from engines.errors import EngineUnavailable, GenerationFailed, HeadraceError, InvalidRequest, Overloaded
from engines.native.chat_template import TemplateError
from engines.native.choice import Choice, token_logprob
from engines.native.core_client import CoreClient
from engines.native.generation_config import GenerationConfig, load_generation_config
from engines.native.launch import CoreProcess, OnProgress
from engines.native.request_params import check_prompt, token_params
from engines.native.tokenizer import Tokenizer
from engines.native.types import FINISH_ERROR, AddSequence, Ready, TokenOutput
from engines.native.weights.resolve import resolve_model

_INLINE_CHARS = 4096  # shorter prompts are tokenized on the event loop: a thread's hand-over costs more
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
        files = resolve_model(self._section, self._on_progress)
        self._tokenizer = Tokenizer.load(self._section.tokenizer or files.path)
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
        return (ModelCard(name=name, aliases=tuple(aliases), max_model_len=max_model_len, created=self._created),)

    def stats(self) -> EngineStats:
        stats = self._client.stats
        return EngineStats(**{field: getattr(stats, field) for field in stats.__struct_fields__})

    # --- the contract: text -------------------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        ready = self._require_ready()
        token_ids = await self._encode(request.prompt)
        if request.truncate_prompt_tokens is not None:
            token_ids = token_ids[-request.truncate_prompt_tokens :]
        check_prompt(token_ids, ready)
        params = token_params(request, len(token_ids), ready=ready, tokenizer=self._tokenizer, defaults=self._defaults)
        answer = _Answer(request, token_ids, self._tokenizer)
        seq_ids = [self._client.new_seq_id() for _ in params]
        try:
            for seq_id, choice_params, choice in zip(seq_ids, params, answer.choices, strict=True):
                message = AddSequence(seq_id, tuple(token_ids), choice_params, request.cache_salt)
                self._client.submit(message, _ChoiceSink(answer, choice, seq_id, self._client))
            while True:
                for event in await answer.next_events():
                    yield event
                    if isinstance(event, Done):
                        return
        finally:
            self._client.abort(seq_ids)

    async def tokenize(self, model: str, prompt: Prompt, *, with_texts: bool = False) -> Tokenized:  # noqa: ARG002
        ready = self._require_ready()
        token_ids = await self._encode(prompt)
        texts = tuple(self._tokenizer.token_text(token_id) for token_id in token_ids) if with_texts else ()
        return Tokenized(tuple(token_ids), ready.max_model_len, texts)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:  # noqa: ARG002
        ready = self._require_ready()
        if any(not 0 <= token_id < ready.vocab_size for token_id in token_ids):
            raise InvalidRequest(f"tokens: token ids must be in [0, {ready.vocab_size}).", field="tokens")
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def _require_ready(self) -> Ready:
        ready = self._client.ready
        if ready is None:
            raise EngineUnavailable(self._client.failure or "The engine is starting; try again shortly.")
        return ready

    async def _encode(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids; long ones are worked on in a thread, off the event loop."""
        if isinstance(prompt, TokensPrompt):
            return list(prompt.token_ids)
        if _size(prompt) <= _INLINE_CHARS:
            return self._encode_now(prompt)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._encode_now, prompt)

    def _encode_now(self, prompt: TextPrompt | ChatPrompt) -> list[int]:
        if isinstance(prompt, TextPrompt):
            return self._tokenizer.encode(prompt.text, add_special_tokens=prompt.add_special_tokens)
        try:
            text = self._tokenizer.apply_chat_template(
                prompt.messages,
                tools=prompt.tools,
                add_generation_prompt=prompt.add_generation_prompt,
                continue_final_message=prompt.continue_final_message,
                **prompt.template_kwargs,
            )
        except TemplateError as error:
            raise InvalidRequest(f"messages: {error}", field="messages") from error
        return self._tokenizer.encode(text, add_special_tokens=prompt.add_special_tokens)


def _size(prompt: TextPrompt | ChatPrompt) -> int:
    """Characters, roughly: enough to tell a short prompt from a long one."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    return sum(len(str(message.get("content"))) for message in prompt.messages)


class _Answer:
    """The events of one request on their way from the socket's reader to the request's generator."""

    def __init__(self, request: GenerationRequest, token_ids: list[int], tokenizer: Tokenizer) -> None:
        self.choices = [Choice(index, request.sampling, tokenizer, stream=request.stream) for index in range(request.n)]
        self._request = request
        self._prompt_ids = token_ids
        self._tokenizer = tokenizer
        self._events: deque[GenerationEvent] = deque()
        self._error: HeadraceError | None = None
        self._wakeup: asyncio.Future[None] | None = None
        self._num_open = request.n
        self._cached_tokens = -1

    async def next_events(self) -> list[GenerationEvent]:
        """Everything there is now, at least one. Raises what ended the request early."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._wakeup = asyncio.get_running_loop().create_future()
            await self._wakeup
        events = list(self._events)
        self._events.clear()
        return events

    def push(self, choice: Choice, output: TokenOutput) -> None:
        if self._cached_tokens < 0:
            self._start(output)
        delta = choice.push(output)
        if delta is None:
            return
        self._events.append(delta)
        if delta.finish is not None:
            self._num_open -= 1
            if self._num_open == 0:
                self._events.append(Done(self._usage()))
        self._wake()

    def fail(self, error: HeadraceError) -> None:
        self._error = error
        self._wake()

    def _start(self, output: TokenOutput) -> None:
        self._cached_tokens = max(output.cached_tokens, 0)
        details = None
        if self._request.echo or output.prompt_logprobs:
            rows = tuple(row and token_logprob(row, self._tokenizer) for row in output.prompt_logprobs)
            text = self._tokenizer.decode(self._prompt_ids, skip_special_tokens=False)
            details = PromptDetails(text=text, token_ids=tuple(self._prompt_ids), logprobs=rows or None)
        self._events.append(
            Started(prompt_tokens=len(self._prompt_ids), cached_tokens=self._cached_tokens, prompt=details)
        )
        self._wake()

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self._prompt_ids),
            completion_tokens=sum(choice.num_tokens for choice in self.choices),
            cached_tokens=self._cached_tokens,
        )

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


class _ChoiceSink:
    """Stands between the core's client and one choice."""

    __slots__ = ("_answer", "_choice", "_client", "_seq_id")

    def __init__(self, answer: _Answer, choice: Choice, seq_id: int, client: CoreClient) -> None:
        self._answer = answer
        self._choice = choice
        self._seq_id = seq_id
        self._client = client

    def push(self, output: TokenOutput) -> None:
        if output.finish == FINISH_ERROR:
            self._answer.fail(_error(output.error))
            return
        self._answer.push(self._choice, output)
        if self._choice.finished:
            self._client.abort((self._seq_id,))  # a stop string ended it; the core does not know

    def fail(self, error: HeadraceError) -> None:
        self._answer.fail(error)


def _error(reason: str) -> HeadraceError:
    if reason == "overloaded":
        return Overloaded("The engine's queue is full; try again shortly.")
    return GenerationFailed(reason)
