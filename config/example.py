"""Writes `config/example.toml`: every setting with its description and default, so that the two never part.

A line `#key = value` is a key to uncomment; lines of prose start with `# `.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from config.settings import Group, setting_groups

_HEAD = """\
# Settings of `headrace serve`. Use a copy: headrace serve --config FILE, or HEADRACE_CONFIG=FILE.
#
# Every key is also a flag (max_model_len: --max-model-len) and a variable (HEADRACE_MAX_MODEL_LEN).
# The command line wins over the environment, the environment over this file, this file over the defaults.
# Values shown are the defaults, or an example where it says so. Engine keys are commented out, because the keys of one
# engine kind are refused beside another kind.
"""

_SEVERAL = """\
# ---- Several engines ----
# Instead of the engine keys above: one table per engine, with the keys of its kind, and names that differ.

#[[engines]]
#kind = "native"
#model = "smollm2-135m"
#
#[[engines]]
#kind = "remote"
#upstream = "https://example.com/v1"
#served_model_name = ["large", "large-latest"]
"""


def example_toml() -> str:
    return "\n".join([_HEAD, *(_group(group) for group in setting_groups()), _SEVERAL])


def _group(group: Group) -> str:
    lines = [f"# ---- {group.title} ----", ""]
    for key, info in group.fields.items():
        if key != "config":  # names this very file
            lines += _entry(key, info, active=group.kind is None and group.title != "Engine")
    return "\n".join(lines)


def _entry(key: str, info: FieldInfo, *, active: bool) -> Iterator[str]:
    yield from textwrap.wrap(info.description or "", width=118, initial_indent="# ", subsequent_indent="# ")
    has_default = info.default is not None and info.default is not PydanticUndefined and info.default != ()
    value = info.default if has_default else (info.examples or [""])[0]
    mark = "" if has_default and active else "#"
    note = "" if has_default else "  # example"
    yield f"{mark}{key} = {_toml(value)}{note}"
    yield ""


def _toml(value: object) -> str:
    """JSON's strings, booleans, numbers and flat lists are TOML's too."""
    return json.dumps(str(value) if isinstance(value, Path) else value)
