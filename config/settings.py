"""All settings of one `headrace serve`, flat as the user gives them, and the sections that the program passes on.

Every field is a flag `--max-model-len`, a variable `HEADRACE_MAX_MODEL_LEN` and a top-level TOML key `max_model_len`.
The engines' fields are not written again here but collected from `config.engines`. Read once, by the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional, cast

import pydantic_settings
from pydantic import Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    ForceDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from config.engines import EchoSettings, EngineSection, EngineSettings, NativeSettings, RemoteSettings
from config.explain import config_path, explain, origins
from config.server import ServerSection
from config.sources import ENV_PREFIX, SettingsError, StrictEnvironment, StrictToml, env_name
from config.tgi import TgiSection

SECTIONS: Mapping[str, type[EngineSection]] = {
    "native": NativeSettings,
    "remote": RemoteSettings,
    "echo": EchoSettings,
}


class Settings(ServerSection, BaseSettings):
    """The fields that are not an engine's. `load_settings` makes the instances, of a subclass that has those too."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_ignore_empty=True, enable_decoding=False
    )

    config: Path | None = Field(default=None, description="TOML file with settings; see config/example.toml.")
    engine: Literal["native", "remote", "echo"] = Field(
        default="native", description="native: our own; remote: an OpenAI-compatible upstream; echo: no model at all."
    )
    engines: Annotated[tuple[EngineSettings, ...], ForceDecode] = Field(
        default=(), description="Several engines, as [[engines]] tables in the TOML file, each with its kind."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order of precedence: command line, environment, TOML file; defaults come last by themselves."""
        given = cast("dict[str, Any]", cast(Any, init_settings).init_kwargs)
        return (init_settings, StrictEnvironment(settings_cls), StrictToml(settings_cls, config_path(given)))

    @property
    def server(self) -> ServerSection:
        return ServerSection(**{name: getattr(self, name) for name in ServerSection.model_fields})

    def engine_sections(self) -> tuple[EngineSettings, ...]:
        """One section per engine. Raises SettingsError for flat fields that do not belong to what was asked for."""
        given = [name for name in engine_fields() if name in self.model_fields_set]
        if self.engines:
            clash = [name for name in ("engine", *given) if name in self.model_fields_set]
            if clash:
                raise SettingsError(f"engines: give either [[engines]] tables or {', '.join(clash)}, not both.")
            return self.engines
        section = SECTIONS[self.engine]
        foreign = [name for name in given if name not in section.model_fields]
        if foreign:
            raise SettingsError(*(_not_of_this_engine(name, self.engine) for name in foreign))
        return (cast(EngineSettings, section(**{name: getattr(self, name) for name in given})),)


def _not_of_this_engine(name: str, engine: str) -> str:
    owners = " or ".join(kind for kind, section in SECTIONS.items() if name in section.model_fields)
    return f"{name}: a setting of engine {owners}, but engine is {engine}."


def engine_fields() -> dict[str, FieldInfo]:
    """Every field of every engine kind by name; the first kind that has it describes it."""
    fields: dict[str, FieldInfo] = {}
    for section in SECTIONS.values():
        for name, info in section.model_fields.items():
            if name != "kind":
                known = fields.setdefault(name, info)
                assert _flat_type(known) == _flat_type(info), f"engine kinds disagree about the type of {name}"
    return fields


def known_settings() -> frozenset[str]:
    """Every setting's name, whoever it belongs to."""
    return frozenset(name for group in setting_groups() for name in group.fields)


class Group(NamedTuple):
    """Fields that help and documentation show together; `kind` is the engine they belong to, None for any."""

    title: str
    kind: str | None
    fields: Mapping[str, FieldInfo]


def setting_groups() -> tuple[Group, ...]:
    """Every setting exactly once, in the order in which people look for them."""
    engine_choice = {"engine": Settings.model_fields["engine"], **EngineSection.model_fields}
    server = {name: info for name, info in ServerSection.model_fields.items() if name not in TgiSection.model_fields}
    groups = [
        Group("Server", None, {"config": Settings.model_fields["config"], **server}),
        Group("TGI's native API", None, TgiSection.model_fields),
        Group("Engine", None, engine_choice),
    ]
    shown = {"kind", *engine_choice}
    for kind, section in SECTIONS.items():
        fields = {name: info for name, info in section.model_fields.items() if name not in shown}
        groups.append(Group(f"Engine {kind}", kind, fields))
        shown.update(fields)
    return tuple(groups)


def _flat_type(info: FieldInfo) -> Any:
    """The field's type, optional: None stands for "not given", and then the engine's own default applies."""
    annotation: Any = Optional[info.annotation]  # noqa: UP045 (a runtime value, not an annotation)
    return Annotated[annotation, *info.metadata] if info.metadata else annotation


_FLAT_FIELDS: dict[str, Any] = {
    name: (_flat_type(info), Field(default=None, description=info.description))
    for name, info in engine_fields().items()
}
_FlatSettings = create_model("Settings", __base__=Settings, **_FLAT_FIELDS)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the program goes on with: checked, frozen sections. `origins` says where each given key came from."""

    server: ServerSection
    engines: tuple[EngineSettings, ...]
    origins: Mapping[str, str]


def load_settings(command_line: Mapping[str, Any]) -> Loaded:
    """Settings from `command_line` (field names to values), the environment, the TOML file and the defaults.

    Raises SettingsError, one line for each problem.
    """
    origin = origins(command_line)
    try:
        settings = _FlatSettings(**command_line)
        return Loaded(settings.server, settings.engine_sections(), origin)
    except ValidationError as error:
        raise SettingsError(*explain(error, origin, SECTIONS)) from None
    except pydantic_settings.SettingsError:  # only `engines` is decoded from a variable
        raise SettingsError(f"engines: {env_name('engines')} is not valid JSON.") from None
