"""`headrace launch` and `text-generation-launcher`: TGI's flags and variables as our settings, then `headrace serve`.

Says on standard error what was taken without effect, and ends before loading where something would be missed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, NoReturn

from config.settings import SettingsError, load_settings
from config.sources import env_name
from gateway.cli.gpus import visible_gpus
from gateway.cli.tgi_flags import (
    FLAGS,
    SAGEMAKER,
    SAGEMAKER_PORT,
    VARIABLES,
    BadValue,
    Flag,
    NoEffect,
    Refusal,
    Setting,
    truth,
)

_HUB_CACHE = "HF_HUB_CACHE"
_DESCRIPTION = """\
Serve a model with the flags and variables of Hugging Face's text-generation-launcher. Each flag is also a variable
(--max-total-tokens: MAX_TOTAL_TOKENS); the flag wins. Settings that have no flag here are HEADRACE_ variables, as for
`headrace serve`. docs/tgi.md lists what became of every flag.
"""


@dataclass(slots=True)
class Translation:
    """What a command line and an environment of TGI's come to."""

    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    environment: dict[str, str] = field(default_factory=dict[str, str])  # for the libraries that read it
    notes: list[str] = field(default_factory=list[str])


def translate(given: Mapping[str, Any], environment: Mapping[str, str]) -> Translation:
    """`given`: flags by key ("model_id"), text or True or lists of text. Raises SettingsError, a line a problem."""
    environment = _without_sagemaker(environment)
    result = Translation()
    problems: list[str] = []
    names: dict[str, str] = {}  # setting -> the flag or variable that said it
    for flag in (*FLAGS, *VARIABLES):
        value, name = _value(flag, given, environment)
        if value is None:
            continue
        try:
            _apply(flag, value, name, result, names)
        except BadValue as error:
            problems.append(f"{name}: {error}.")
    _add_defaults(result, given, environment)
    problems += _combinations(result.settings, given, environment)
    if problems:
        raise SettingsError(*problems)
    if token := environment.get("HF_API_TOKEN"):
        result.environment.setdefault("HF_TOKEN", environment.get("HF_TOKEN", token))
    return result


def _without_sagemaker(environment: Mapping[str, str]) -> dict[str, str]:
    """SageMaker's names under TGI's, which win where both are set."""
    renamed = {ours: environment[theirs] for theirs, ours in SAGEMAKER.items() if environment.get(theirs)}
    port = {"PORT": str(SAGEMAKER_PORT)} if "MODEL_ID" in renamed and not environment.get("MODEL_ID") else {}
    return {**renamed, **environment, **port}


def _value(flag: Flag, given: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[Any, str]:
    """What was said, None for nothing, and where."""
    if flag.key in given:
        return given[flag.key], f"--{flag.name}"
    text = environment.get(flag.variable, "")
    if not text:
        return None, ""
    if flag.kind == "switch":
        return (True if text.lower() not in ("0", "false", "no", "off") else None), flag.variable
    return ([text] if flag.kind == "list" else text), flag.variable


def _apply(flag: Flag, value: Any, name: str, result: Translation, names: dict[str, str]) -> None:
    becomes = flag.becomes
    if isinstance(becomes, Refusal):
        raise BadValue(f"cannot be honoured: {becomes.why}")
    if isinstance(becomes, NoEffect):
        result.notes.append(f"{name}: no effect: {becomes.why}.")
        return
    if becomes.name == _HUB_CACHE:
        result.environment[_HUB_CACHE] = value
        return
    other = names.get(becomes.name)
    if other is not None and other.startswith("--") and not name.startswith("--"):
        return  # a flag wins over another flag's variable
    if other is not None and other.startswith("--") == name.startswith("--") and flag not in VARIABLES:
        raise BadValue(f"says the same as {other}; give one of them")
    names[becomes.name] = name
    result.settings[becomes.name] = value if flag.kind == "list" else becomes.convert(value)


def _add_defaults(result: Translation, given: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """TGI's own, for what nobody said in its words or in ours."""
    for setting in ("any_model", "tgi_dialect"):
        if env_name(setting) not in environment:
            result.settings.setdefault(setting, True)
    sharded = given.get("sharded", environment.get("SHARDED", ""))
    if "tensor_parallel_size" not in result.settings and env_name("tensor_parallel_size") not in environment:
        num_gpus = 1 if sharded and not _is_true(sharded) else visible_gpus(environment)
        if num_gpus > 1:
            result.settings["tensor_parallel_size"] = num_gpus
            result.notes.append(
                f"the model is split over the {num_gpus} GPUs that are visible; --num-shard says how many."
            )
    for flag in FLAGS:
        becomes = flag.becomes
        if isinstance(becomes, Setting) and becomes.default is not None and env_name(becomes.name) not in environment:
            result.settings.setdefault(becomes.name, becomes.default)


def _combinations(settings: Mapping[str, Any], given: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    problems: list[str] = []
    longest, total = settings.get("max_prompt_tokens"), settings.get("max_model_len")
    if longest is not None and total is not None and _int(longest) >= _int(total) > 0:
        problems.append(f"--max-input-tokens: {longest} must be less than --max-total-tokens, {total}.")
    sharded = given.get("sharded", environment.get("SHARDED", ""))
    if sharded and not _is_true(sharded) and _int(settings.get("tensor_parallel_size", 1)) > 1:
        problems.append("--num-shard: more than 1, but --sharded is false.")
    return problems


def _int(value: Any) -> int:
    """-1 for what the settings will refuse by themselves."""
    try:
        return int(value)
    except ValueError:
        return -1


def _is_true(value: str) -> bool:
    try:
        return truth(value)
    except BadValue:
        return True


# --- the command ------------------------------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for flag in FLAGS:
        words = ([f"-{flag.short}"] if flag.short else []) + [f"--{flag.name}"]
        options: dict[str, Any] = {"dest": flag.key, "default": argparse.SUPPRESS, "help": _help(flag)}
        if flag.kind == "switch":
            parser.add_argument(*words, action="store_true", **options)
        else:
            action = "append" if flag.kind == "list" else "store"
            parser.add_argument(*words, action=action, metavar="VALUE", **options)
    parser.add_argument(
        "-V", "--version", action="version", version=f"text-generation-launcher (headrace {_version()})"
    )
    parser.add_argument("-e", "--env", dest="env", action="store_true", help="Print what runs this, and go on.")


def _help(flag: Flag) -> str:
    becomes = flag.becomes
    if isinstance(becomes, Refusal):
        return f"refused: {becomes.why}"
    if isinstance(becomes, NoEffect):
        return f"no effect: {becomes.why}"
    default = "" if becomes.default is None else f" [{becomes.default}]"
    return (f"variable {becomes.name}" if becomes.name == _HUB_CACHE else f"setting {becomes.name}") + default


def launch(arguments: argparse.Namespace) -> int:
    """Raises SettingsError."""
    keys = {flag.key for flag in FLAGS}
    given = {key: value for key, value in vars(arguments).items() if key in keys}
    translation = translate(given, os.environ)
    if arguments.env or os.environ.get("ENV", "").lower() in ("true", "1"):
        _print_environment()
    for note in translation.notes:
        print(f"headrace: {note}", file=sys.stderr)
    os.environ.update(translation.environment)
    try:
        loaded = load_settings(translation.settings)
    except SettingsError as error:
        raise SettingsError(*map(_in_tgis_words, error.problems)) from None
    from gateway.cli.display import Display
    from gateway.cli.serve import serve

    return serve(loaded, Display())


def _in_tgis_words(problem: str) -> str:
    """A problem of a setting, named by the flag that the user knows."""
    name, _, rest = problem.partition(":")
    for flag in FLAGS:
        if isinstance(flag.becomes, Setting) and flag.becomes.name == name:
            return f"--{flag.name}:{rest}".replace(f"from --{name.replace('_', '-')}", f"from --{flag.name}")
    return problem


def _version() -> str:
    try:
        return metadata.version("headrace")
    except metadata.PackageNotFoundError:
        return "0+source"  # run from a checkout that was never installed


def _print_environment() -> None:
    import platform

    print(f"python {platform.python_version()} on {platform.platform()}", file=sys.stderr)
    for package in ("headrace", "torch", "triton", "transformers", "tokenizers"):
        try:
            print(f"{package} {metadata.version(package)}", file=sys.stderr)
        except metadata.PackageNotFoundError:
            print(f"{package} is not installed", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script `text-generation-launcher`."""
    from gateway.__main__ import main as headrace

    headrace(["launch", *(sys.argv[1:] if argv is None else argv)])
