"""The settings as command-line flags: every flag and its help come from a field of `config`, nothing is written twice.

Values stay text, except lists of repeated flags: the settings check and convert them, so that a mistake reads the same
wherever it was made.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from config.explain import flag_name
from config.settings import Group, Settings, setting_groups

_POSITIONAL = "model_argument"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """One flag per setting, grouped as in the example file, and MODEL as an argument of its own."""
    _add_model(parser)
    for group in setting_groups():
        _add_group(parser, group)


def add_native_settings(parser: argparse.ArgumentParser) -> None:
    """MODEL, the native engine's flags, and --config: for commands that serve nothing."""
    _add_model(parser)
    parser.add_argument("--config", **_options("config", Settings.model_fields["config"]))
    for group in setting_groups():
        if group.kind == "native":
            _add_group(parser, group)


def add_batch_settings(parser: argparse.ArgumentParser) -> None:
    """MODEL, every engine's flags, and those of the server that mean something where nothing is served."""
    _add_model(parser)
    group = parser.add_argument_group("settings")
    for name in ("config", "api_key", "any_model", "log_level"):
        options = _options(name, Settings.model_fields[name])
        if name == "api_key":
            options["help"] = "Bearer token for --url; process lists show flags, so prefer the environment."
        group.add_argument(flag_name(name), **options)
    for settings in setting_groups():
        if settings.kind is not None or "engine" in settings.fields:
            _add_group(parser, settings)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        _POSITIONAL,
        metavar="MODEL",
        nargs="?",
        default=argparse.SUPPRESS,
        help="What the native engine serves, the same as --model.",
    )


def _add_group(parser: argparse.ArgumentParser, group: Group) -> None:
    arguments = parser.add_argument_group(*_heading(group))
    for name, info in group.fields.items():
        arguments.add_argument(flag_name(name), **_options(name, info))


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Field names and what the command line gave for them. Raises ValueError when MODEL was given in both ways."""
    given = {name: value for name, value in vars(arguments).items() if name in _FIELD_NAMES or name == _POSITIONAL}
    if _POSITIONAL in given:
        if "model" in given:
            raise ValueError("give the model once: as MODEL or as --model")
        given["model"] = given.pop(_POSITIONAL)
    return given


_FIELD_NAMES = frozenset(name for group in setting_groups() for name in group.fields)


def _heading(group: Group) -> tuple[str, str | None]:
    if group.kind is None:
        return group.title.lower(), None
    return f"{group.kind} engine", f"with --engine {group.kind}" if group.kind != "native" else None


def _options(name: str, info: FieldInfo) -> dict[str, Any]:
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": _help(info)}
    if info.annotation is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    return options | {"metavar": _metavar(name, info), "action": "append" if _is_list(info) else "store"}


def _help(info: FieldInfo) -> str:
    text = info.description or ""
    if info.default not in (None, (), PydanticUndefined) and info.annotation is not bool:
        text += f" [{info.default}]"
    elif info.annotation is bool:
        text += f" [{'on' if info.default else 'off'}]"
    return text.replace("%", "%%")


def _metavar(name: str, info: FieldInfo) -> str:
    if get_origin(info.annotation) is Literal:
        return "{" + ",".join(get_args(info.annotation)) + "}"
    types = {info.annotation, *get_args(info.annotation)}
    if name.endswith("_s"):
        return "SECONDS"
    if name.endswith("_bytes"):
        return "BYTES"
    if int in types:
        return "N"
    if float in types:
        return "X"
    return "PATH" if Path in types else "NAME" if _is_list(info) else "TEXT"


def _is_list(info: FieldInfo) -> bool:
    return get_origin(info.annotation) is tuple
