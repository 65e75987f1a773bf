"""Where settings come from, each source refusing keys that it does not know.

pydantic-settings ignores unknown top-level environment variables even with `extra="forbid"`, so `StrictEnvironment`
looks for itself. Neither source knows which engine a key belongs to.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource

ENV_PREFIX = "HEADRACE_"
_SERVICE_LINK = re.compile(ENV_PREFIX + r"(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)\w*))")


class SettingsError(Exception):
    """Settings that cannot be used; `problems` holds one line each, naming the key and where it was given."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean ...?` for the closest known name, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def env_name(key: str) -> str:
    return ENV_PREFIX + key.upper()


class StrictEnvironment(EnvSettingsSource):
    """`HEADRACE_*` variables; one that is no setting is an error, or else it would be a setting without effect."""

    def __call__(self) -> dict[str, Any]:
        known = [env_name(key) for key in self.settings_cls.model_fields]
        unknown = sorted(
            name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name.upper() not in known
        )
        if unknown:
            raise SettingsError(*(_unknown_variable(name, known) for name in unknown))
        return super().__call__()


def _unknown_variable(name: str, known: list[str]) -> str:
    if _SERVICE_LINK.fullmatch(name):
        return (
            f"{name}: set by Kubernetes for a service named headrace; set enableServiceLinks: false in the pod's spec."
        )
    return f"{name}: unknown setting in the environment.{did_you_mean(name.upper(), known)}"


class StrictToml(InitSettingsSource):
    """The top-level keys of one TOML file. Keys inside `[[engines]]` are checked by the engine's own section."""

    def __init__(self, settings_cls: type[BaseSettings], path: Path | None) -> None:
        values = {} if path is None else read_toml(path)
        known = [key for key in settings_cls.model_fields if key != "config"]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise SettingsError(*(f"{key}: unknown key in {path}.{did_you_mean(key, known)}" for key in unknown))
        super().__init__(settings_cls, values)


def read_toml(path: Path) -> dict[str, Any]:
    """Raises SettingsError for a file that cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"config: cannot read {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"config: {path} is not valid TOML: {error}.") from None
