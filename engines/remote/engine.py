"""The remote engine: an OpenAI-compatible upstream behind the contract of `engines.api`.

Owns the order of events and what is known of the upstream's models. How a request is written, an answer read and an
error translated stands in the modules beside this one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from typing import Any, TypeVar

import httpx
import msgspec

from config.engines import RemoteSettings
from engines.api import (
    ChatPrompt,
    EmbeddingRequest,
    Embeddings,
    EngineStats,
    GenerationEvent,
    GenerationRequest,
    Health,
    ModelCard,
    Prompt,
    PromptDetails,
    TextPrompt,
    Tokenized,
    TokensPrompt,
    WatermarkParams,
    WatermarkReport,
)
from engines.errors import EngineUnavailable, HeadraceError, UnsupportedByEngine, UpstreamError
from engines.remote.body import chat_fields, encode_body, path_of
from engines.remote.embeddings import EMBEDDINGS_PATH, embedding_fields, read_embeddings
from engines.remote.events import DONE, AnswerReader
from engines.remote.sse import EventStreamParser, EventTooLong
from engines.remote.upstream import Upstream, drain
from engines.remote.wire import DetokenizeAnswer, EmbeddingsAnswer, ModelList, TokenizeAnswer

_HEALTH_CACHE_S = 5.0
_Shape = TypeVar("_Shape")


class RemoteEngine:
    """`transport` stands in for the network in tests."""

    def __init__(self, settings: RemoteSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings = settings
        self._transport = transport
        self._upstream: Upstream | None = None
        self._models: tuple[ModelCard, ...] = self._configured_models()
        self._health = Health(False, "not started")
        self._health_until = 0.0
        self._running = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0

    def _configured_models(self) -> tuple[ModelCard, ...]:
        names = self._settings.served_model_name or tuple(filter(None, (self._settings.upstream_model,)))
        return (ModelCard(name=names[0], aliases=names[1:], created=int(time.time())),) if names else ()

    @property
    def models(self) -> Sequence[ModelCard]:
        return self._models

    async def start(self) -> None:
        """With names configured the upstream may still be down; without, it is asked which models it has."""
        self._upstream = Upstream(self._settings, self._transport)
        if self._models:
            return
        try:
            self._models = await self._listed_models(self._upstream)
        except HeadraceError as error:
            raise EngineUnavailable(
                f"{self._settings.upstream} does not tell its models: {error.message} "
                "Name them with served_model_name to start without asking."
            ) from error

    async def _listed_models(self, upstream: Upstream) -> tuple[ModelCard, ...]:
        listed = _decoded(await upstream.get(upstream.base_url + "/models"), ModelList, upstream).data
        if not listed:
            raise UpstreamError("It lists none.")
        return tuple(
            ModelCard(name=m.id, max_model_len=m.max_model_len, created=m.created, owned_by=m.owned_by) for m in listed
        )

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        return self._streamed(request) if request.stream else self._whole(request)

    async def _streamed(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        reader = AnswerReader(request)
        started = False
        with self._counted(reader):
            prompt = await self._prompt_details(request)
            async with self._answer(request) as pieces, aclosing(_event_batches(pieces)) as batches:
                async for batch in batches:
                    for data in batch:
                        if data == DONE:
                            await drain(batches)
                            break
                        answer = reader.decode(data)
                        if not started:  # only now is it sure that the upstream did not answer with an error
                            started = True
                            yield reader.started(prompt)
                        for delta in reader.deltas(answer):
                            yield delta
            done = reader.done()  # also refuses an empty stream
            yield done

    async def _whole(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        reader = AnswerReader(request)
        with self._counted(reader):
            prompt = await self._prompt_details(request)
            async with self._answer(request) as pieces:
                answer = reader.decode(b"".join([piece async for piece in pieces]))
            deltas = list(reader.deltas(answer))
            done = reader.done()  # before the first event, so that an incomplete answer is still an ordinary error
            yield reader.started(prompt)
            for delta in deltas:
                yield delta
            yield done

    def _answer(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncGenerator[bytes, None]]:
        body = encode_body(
            request,
            model=self._settings.upstream_model or request.model,
            chat_max_tokens_field=self._settings.upstream_max_tokens_field,
        )
        return self._started().post(path_of(request), body)

    @contextmanager
    def _counted(self, reader: AnswerReader) -> Generator[None, None, None]:
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._prompt_tokens += reader.prompt_tokens
            self._generated_tokens += reader.completion_tokens

    async def _prompt_details(self, request: GenerationRequest) -> PromptDetails | None:
        """For `echo`. The text of a prompt given as tokens is asked from the upstream; ids of a text are not needed."""
        if not request.echo:
            return None
        match request.prompt:
            case TextPrompt(text):
                return PromptDetails(text=text, token_ids=())
            case TokensPrompt(token_ids):
                return PromptDetails(text=await self.detokenize(request.model, token_ids), token_ids=token_ids)
            case ChatPrompt():
                raise UnsupportedByEngine("A remote engine does not see the text that a chat becomes.", field="echo")

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        upstream = self._started()
        fields = embedding_fields(request, model=self._settings.upstream_model or request.model)
        self._running += 1
        try:
            response = await upstream.post_json(upstream.base_url + EMBEDDINGS_PATH, fields)
        finally:
            self._running -= 1
        embeddings = read_embeddings(
            _decoded(_supported(response, "embeddings route, or no such model"), EmbeddingsAnswer, upstream), request
        )
        self._prompt_tokens += embeddings.prompt_tokens
        return embeddings

    async def tokenize(self, model: str, prompt: Prompt, *, with_texts: bool = False) -> Tokenized:
        upstream = self._started()
        body: dict[str, Any] = {"model": self._settings.upstream_model or model}
        match prompt:
            case TextPrompt(text, add_special_tokens):
                body |= {"prompt": text, "add_special_tokens": add_special_tokens}
            case ChatPrompt():
                body |= chat_fields(prompt) | ({"tools": prompt.tools} if prompt.tools else {})
            case TokensPrompt(token_ids):
                return Tokenized(token_ids)
        if with_texts:
            body["return_token_strs"] = True
        response = await upstream.post_json(upstream.root_url + "/tokenize", body)
        answer = _decoded(_supported(response), TokenizeAnswer, upstream)
        return Tokenized(answer.tokens, answer.max_model_len, answer.token_strs or ())

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        upstream = self._started()
        body = {"model": self._settings.upstream_model or model, "tokens": list(token_ids)}
        response = await upstream.post_json(upstream.root_url + "/detokenize", body)
        return _decoded(_supported(response), DetokenizeAnswer, upstream).prompt

    async def detect_watermark(
        self,
        model: str,  # noqa: ARG002
        content: TextPrompt | TokensPrompt,  # noqa: ARG002
        watermark: WatermarkParams,  # noqa: ARG002
    ) -> WatermarkReport:
        raise UnsupportedByEngine("A remote engine's text is tested by the server that made it, which has the key.")

    async def health(self) -> Health:
        """A GET of the upstream's model list, remembered for a few seconds so that probes cost it nothing."""
        if self._upstream is not None and time.monotonic() >= self._health_until:
            self._health = await _probe(self._upstream)
            self._health_until = time.monotonic() + _HEALTH_CACHE_S
        return self._health

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self._running, prompt_tokens=self._prompt_tokens, generated_tokens=self._generated_tokens
        )

    async def aclose(self) -> None:
        upstream, self._upstream = self._upstream, None
        self._health = Health(False, "stopped")
        if upstream is not None:
            await upstream.aclose()

    def _started(self) -> Upstream:
        if self._upstream is None:
            raise EngineUnavailable("The engine is not running.")
        return self._upstream


async def _event_batches(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[list[bytes], None]:
    """The data of the events that each read completed."""
    parser = EventStreamParser()
    try:
        async for piece in pieces:
            yield parser.feed(piece)
    except EventTooLong as error:
        raise UpstreamError(str(error)) from error
    yield parser.flush()


async def _probe(upstream: Upstream) -> Health:
    try:
        response = await upstream.get(upstream.base_url + "/models")
    except HeadraceError as error:
        return Health(False, error.message)
    if response.status_code in (401, 403) or response.status_code >= 500:
        return Health(False, upstream.error(response.status_code, response.content).message)
    return Health(True)  # 404 and the like: it answers, and not every upstream lists its models


def _supported(response: httpx.Response, what: str = "tokenizer route") -> httpx.Response:
    if response.status_code in (404, 405, 501):
        raise UnsupportedByEngine(f"The upstream has no {what}.")
    return response


def _decoded(response: httpx.Response, shape: type[_Shape], upstream: Upstream) -> _Shape:
    if response.is_error:
        raise upstream.error(response.status_code, response.content)
    try:
        return msgspec.json.decode(response.content, type=shape)
    except msgspec.MsgspecError as error:
        raise UpstreamError(f"The upstream's answer is not what was asked for: {error}") from error
