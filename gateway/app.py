"""The gateway as a value: `create_app(engines)` is a Starlette application made of routes, middleware and handlers.

Its lifespan starts and stops the engines. Who makes the engines and who serves the application is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from adapters.adapter import Adapter
from adapters.anthropic_messages import MessagesAdapter
from adapters.openai_chat import ChatAdapter
from adapters.openai_chat_types import ChatCompletionRequest
from adapters.openai_completion_types import CompletionRequest
from adapters.openai_completions import CompletionsAdapter
from adapters.openai_responses import ResponsesAdapter
from adapters.openai_responses_store import ResponseStore
from adapters.tgi import NativeAdapter
from adapters.tgi_dialect import Dialect
from adapters.tgi_types import NativeLimits
from adapters.tgi_vertex import InvocationsAdapter, ModelOptional, VertexAdapter
from engines.api import Engine
from engines.errors import HeadraceError
from gateway import endpoints, native, responses
from gateway.admission import Admission
from gateway.catalog import Catalog
from gateway.embeddings import Embed
from gateway.errors import on_headrace_error, on_http_exception
from gateway.metrics import Metrics
from gateway.native import GenerateNative
from gateway.permits import Permits
from gateway.response_store import MemoryStore, SqliteStore, open_store
from gateway.telemetry import Telemetry

logger = logging.getLogger("headrace.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """What the gateway itself can be told; engines have their own settings."""

    max_body_bytes: int = 32 * 2**20
    api_key: str | None = None  # what every request that is not public must bring
    cors_allow_origin: tuple[str, ...] = ()
    max_concurrent_requests: int | None = None
    any_model: bool = False  # see Catalog
    limits: NativeLimits = field(default_factory=NativeLimits)
    tgi_dialect: bool = False  # see adapters/tgi_dialect.py
    compute_type: str = "headrace"
    responses_path: Path | None = None  # SQLite file for the answers of /v1/responses; None: in memory
    responses_max_bytes: int = 256 * 2**20
    metrics_dir: Path | None = None  # where gateway processes of one socket share their metrics, see gateway/metrics.py


def create_app(engines: Sequence[Engine], *, options: GatewayOptions | None = None) -> Starlette:
    """Raises ValueError when two models claim one name or `responses_path` cannot be opened."""
    options = options or GatewayOptions()
    catalog = Catalog(engines, any_model=options.any_model)
    metrics = Metrics(engines, options.metrics_dir)
    store = open_store(options.responses_path, options.responses_max_bytes)
    routes = _routes(catalog, metrics, store, options)
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Telemetry, metrics=metrics, routes={route.endpoint: route.path for route in routes}),
            *_cors(options.cors_allow_origin),
        ],
        exception_handlers={HTTPException: on_http_exception, HeadraceError: on_headrace_error},
        lifespan=_lifespan(catalog, store),
    )
    app.router.redirect_slashes = False  # an unknown path is a 404 in JSON, not a redirect to what the Host header says
    return app


def _routes(catalog: Catalog, metrics: Metrics, store: ResponseStore, options: GatewayOptions) -> list[Route]:
    admission = [Middleware(Admission, max_body_bytes=options.max_body_bytes, api_key=options.api_key)]
    version = _installed_version()
    permits = Permits(options.max_concurrent_requests)
    compute_type = options.compute_type if options.tgi_dialect else None
    adapters = _openai_adapters(catalog, options)
    chat = endpoints.Generate(adapters.chat, catalog, permits, compute_type=compute_type)
    completions = endpoints.Generate(adapters.completions, catalog, permits, compute_type=compute_type)
    messages = endpoints.Generate(MessagesAdapter(), catalog, permits)
    return [
        *_native_routes(catalog, permits, options, adapters, version, admission),
        *_responses_routes(catalog, permits, options, store, admission),
        Route("/v1/chat/completions", chat, methods=["POST"], middleware=admission),
        Route("/v1/completions", completions, methods=["POST"], middleware=admission),
        Route("/v1/messages", messages, methods=["POST"], middleware=admission),
        Route("/v1/messages/count_tokens", endpoints.count_tokens(catalog), methods=["POST"], middleware=admission),
        Route("/v1/embeddings", Embed(catalog, permits), methods=["POST"], middleware=admission),
        Route("/v1/models", endpoints.list_models(catalog)),
        Route("/v1/models/{model:path}", endpoints.retrieve_model(catalog)),
        Route("/tokenize", native.tokenize(catalog), methods=["POST"], middleware=admission),
        Route("/detokenize", endpoints.detokenize(catalog), methods=["POST"], middleware=admission),
        Route("/v1/watermark/detect", endpoints.detect_watermark(catalog), methods=["POST"], middleware=admission),
        Route("/health", endpoints.health(catalog)),
        Route("/health/live", endpoints.live()),
        Route("/health/ready", endpoints.ready(catalog)),
        Route("/version", endpoints.version(version)),
        Route("/metrics", endpoints.prometheus(metrics)),
        Route("/docs", endpoints.docs(version)),
        *(Route(path, endpoints.openapi(version)) for path in ("/openapi.json", "/api-doc/openapi.json")),
    ]


class _OpenAIAdapters(NamedTuple):
    chat: Adapter
    completions: Adapter


def _openai_adapters(catalog: Catalog, options: GatewayOptions) -> _OpenAIAdapters:
    if not options.tgi_dialect:
        return _OpenAIAdapters(_model_optional(ChatAdapter(), catalog), _model_optional(CompletionsAdapter(), catalog))
    name, max_prompts = catalog.default_name, options.limits.max_client_batch_size
    return _OpenAIAdapters(
        Dialect(ChatAdapter(tolerant=True), ChatCompletionRequest, name, max_prompts),
        Dialect(CompletionsAdapter(tolerant=True, max_tokens=None), CompletionRequest, name, max_prompts),
    )


def _model_optional(adapter: Adapter, catalog: Catalog) -> Adapter:
    return ModelOptional(adapter, catalog.default_name) if catalog.any_model else adapter


def _responses_routes(
    catalog: Catalog,
    permits: Permits,
    options: GatewayOptions,
    store: ResponseStore,
    admission: Sequence[Middleware],
) -> list[Route]:
    """OpenAI's Responses API. What is kept of an answer is shown to whoever has the key."""
    keyed = [Middleware(Admission, max_body_bytes=0, api_key=options.api_key, has_body=False)]
    create = endpoints.Generate(_model_optional(ResponsesAdapter(store), catalog), catalog, permits)
    path = "/v1/responses/{response_id}"
    return [
        Route("/v1/responses", create, methods=["POST"], middleware=admission),
        Route(path, responses.stored_response(store), methods=["GET", "DELETE"], middleware=keyed),
        Route(f"{path}/cancel", responses.cancel(store), methods=["POST"], middleware=keyed),
        Route(f"{path}/input_items", responses.input_items(store), middleware=keyed),
    ]


def _native_routes(
    catalog: Catalog,
    permits: Permits,
    options: GatewayOptions,
    openai: _OpenAIAdapters,
    version: str,
    admission: Sequence[Middleware],
) -> list[Route]:
    """Text Generation Inference's native API."""
    limits, model = options.limits, catalog.default_name
    root = NativeAdapter("any", limits, model)
    bare = [ModelOptional(adapter, model) for adapter in openai]

    def generates(path: str, adapter: Adapter, streams: Literal["never", "asked", "always"]) -> Route:
        endpoint = GenerateNative(adapter, catalog, permits, compute_type=options.compute_type, streams=streams)
        return Route(path, endpoint, methods=["POST"], middleware=admission)

    return [
        generates("/", root, "asked"),
        generates("/generate", NativeAdapter("whole", limits, model), "never"),
        generates("/generate_stream", NativeAdapter("stream", limits, model), "always"),
        generates("/vertex", VertexAdapter(limits, model), "never"),
        generates("/invocations", InvocationsAdapter(root, *bare), "asked"),
        Route("/chat_tokenize", native.chat_tokenize(catalog), methods=["POST"], middleware=admission),
        Route("/info", native.info(catalog, limits, permits, version)),
        Route("/ping", endpoints.health(catalog)),
        Route("/", endpoints.health(catalog)),
    ]


def _cors(origins: Sequence[str]) -> list[Middleware]:
    """Pages of these origins may call from a browser, with a key or without."""
    if not origins:
        return []
    headers = ["Authorization", "X-Api-Key", "Anthropic-Version", "Content-Type"]
    return [
        Middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST", "DELETE"], allow_headers=headers
        )
    ]


def _installed_version() -> str:
    try:
        return metadata.version("headrace")
    except metadata.PackageNotFoundError:
        return "0+source"  # run from a checkout that was never installed


def _lifespan(
    catalog: Catalog, store: MemoryStore | SqliteStore
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
        try:
            await _start(catalog.engines)
            catalog.refresh()
            yield
        finally:
            await _stop(catalog.engines)
            store.close()

    return lifespan


async def _start(engines: Sequence[Engine]) -> None:
    """All at once; the first that cannot start cancels the rest, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as starting:
            for engine in engines:
                starting.create_task(engine.start())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _stop(engines: Sequence[Engine]) -> None:
    """Every engine is closed, whatever the others do."""
    for outcome in await asyncio.gather(*(engine.aclose() for engine in engines), return_exceptions=True):
        if isinstance(outcome, Exception):
            logger.error("an engine failed to close", exc_info=outcome)
