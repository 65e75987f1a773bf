"""Settings to engines, engines to the application. A plan crosses processes; what it becomes does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Route

from adapters.tgi_types import NativeLimits
from config.engines import EngineSettings, NativeSettings
from config.server import ServerSection
from engines.api import Engine
from engines.errors import EngineUnavailable
from engines.factory import create_engine
from gateway.app import GatewayOptions, create_app
from gateway.cli.display import EngineFacts, describe

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ServePlan:
    """What every gateway process of one `headrace serve` is made from."""

    server: ServerSection
    engines: tuple[EngineSettings, ...]
    core_addresses: Mapping[int, str] = field(default_factory=dict[int, str])  # engine's place -> its running core
    metrics_dir: Path | None = None
    responses_path: Path | None = None  # where several processes share what the settings leave in memory


@dataclass(frozen=True, slots=True)
class Report:
    """What a gateway process says when it listens."""

    engines: tuple[EngineFacts, ...]
    paths: tuple[str, ...]


class Gateway:
    """The engines of a plan and the application in front of them; nothing is started yet.

    Raises EngineUnavailable for an engine whose packages are missing, ValueError for a model name claimed twice
    or a `responses_path` that cannot be opened.
    """

    def __init__(self, plan: ServePlan, on_progress: OnProgress | None = None) -> None:
        self._kinds = [section.kind for section in plan.engines]
        self.engines = [
            _engine(section, plan.core_addresses.get(place), on_progress) for place, section in enumerate(plan.engines)
        ]
        self.app: Starlette = create_app(self.engines, options=_options(plan))

    def report(self) -> Report:
        """Of use once the engines are started."""
        facts = tuple(describe(engine, kind) for engine, kind in zip(self.engines, self._kinds, strict=True))
        paths = [route.path for route in self.app.routes if isinstance(route, Route)]
        return Report(facts, tuple(dict.fromkeys(path for path in paths if "{" not in path)))


def _options(plan: ServePlan) -> GatewayOptions:
    server = plan.server
    return GatewayOptions(
        max_body_bytes=server.max_body_bytes,
        api_key=None if server.api_key is None else server.api_key.get_secret_value(),
        cors_allow_origin=server.cors_allow_origin,
        max_concurrent_requests=server.max_concurrent_requests,
        any_model=server.any_model,
        limits=NativeLimits(
            max_best_of=server.max_best_of,
            max_stop_sequences=server.max_stop_sequences,
            max_top_n_tokens=server.max_top_n_tokens,
            max_client_batch_size=server.max_client_batch_size,
            keep_stop=server.keep_stop,
        ),
        tgi_dialect=server.tgi_dialect,
        compute_type=server.compute_type,
        responses_path=server.responses_path or plan.responses_path,
        responses_max_bytes=server.responses_max_bytes,
        metrics_dir=plan.metrics_dir,
    )


def _engine(section: EngineSettings, address: str | None, on_progress: OnProgress | None) -> Engine:
    try:
        if isinstance(section, NativeSettings):
            from engines.native.engine import NativeEngine

            return NativeEngine(section, address=address, on_progress=on_progress)
        return create_engine(section)
    except ImportError as error:
        raise missing_package(section.kind, error) from error


def missing_package(kind: str, error: ImportError) -> EngineUnavailable:
    return EngineUnavailable(
        f"The {kind} engine needs the package {error.name}; install Headrace with its extra [{kind}]."
    )
