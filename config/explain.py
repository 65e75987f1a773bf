"""Says in one line what is wrong with a setting, and where each setting came from.

Knows pydantic's error records and the sources' order; not what any setting means.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from config.sources import ENV_PREFIX, did_you_mean, env_name, read_toml

DEFAULT = "default"


def flag_name(key: str) -> str:
    return "--" + key.replace("_", "-")


def config_path(command_line: Mapping[str, Any]) -> Path | None:
    """The TOML file: `--config`, else HEADRACE_CONFIG, else none."""
    path = command_line.get("config") or _environment().get("config")
    return Path(path).expanduser() if path else None


def origins(command_line: Mapping[str, Any]) -> dict[str, str]:
    """For each setting that was given, where: a flag, a variable's name or the file. The strongest source wins."""
    path = config_path(command_line)
    from_file = {} if path is None else dict.fromkeys(read_toml(path), str(path))
    from_environment = {key: env_name(key) for key in _environment()}
    from_command_line = {key: flag_name(key) for key in command_line}
    return from_file | from_environment | from_command_line


def _environment() -> dict[str, str]:
    """Keys of the variables that are set; an empty one counts as not set, as in `env_ignore_empty`."""
    prefixed = ((name.upper(), value) for name, value in os.environ.items())
    return {name[len(ENV_PREFIX) :].lower(): value for name, value in prefixed if name.startswith(ENV_PREFIX) and value}


def explain(error: ValidationError, origin: Mapping[str, str], sections: Mapping[str, type[BaseModel]]) -> list[str]:
    """One line for each problem: the key, what is wrong, what was given and where."""
    return [_line(record, origin, sections) for record in error.errors(include_url=False)]


def _line(record: Any, origin: Mapping[str, str], sections: Mapping[str, type[BaseModel]]) -> str:
    location: tuple[int | str, ...] = record["loc"]
    key, last = str(location[0]), str(location[-1])
    where = origin.get(key)
    name = _name(location, sections)
    match record["type"]:
        case "extra_forbidden":
            known = sections[str(location[2])].model_fields if len(location) > 2 else ()
            return f"{name}: unknown key in {where}.{did_you_mean(last, known)}"
        case "missing":
            hint = f"; give {flag_name(key)} or {env_name(key)}" if len(location) == 1 else ""
            return f"{name}: required by this engine{hint}."
        case "union_tag_not_found" | "union_tag_invalid":
            return f"{name}: needs kind = {' or '.join(map(repr, sections))}."
        case _:
            return f"{name}: {record['msg']}{_given(record['input'], last, where)}."


def _name(location: tuple[int | str, ...], sections: Mapping[str, type[BaseModel]]) -> str:
    """`engines[0].upstream` out of ("engines", 0, "remote", "upstream"): the union's tag is not the user's word."""
    if len(location) > 2 and location[2] in sections:
        location = (*location[:2], *location[3:])
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _given(value: object, key: str, where: str | None) -> str:
    secret = isinstance(value, SecretStr) or "key" in key
    shown = f"got {value!r}" if isinstance(value, str | int | float) and not secret else ""
    source = f"from {where}" if where else ""
    both = " ".join(part for part in (shown, source) if part)
    return f" ({both})" if both else ""
