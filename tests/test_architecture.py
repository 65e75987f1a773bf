"""Imports point one way: gateway -> adapters -> engines.api <- every engine; config is a leaf. Torch stays apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("gateway", "adapters", "engines", "config")
CONTRACT = ("engines.api", "engines.errors", "engines.step_stats")
KINDS = ("engines.echo", "engines.remote", "engines.native", "engines.fallback", "engines.transformers", "engines.ray")


def modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(module: str) -> Iterator[str]:
    """Every module of ours that `module` imports, also inside functions; names of packages as they stand."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in MODULES else source


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def allowed(module: str) -> tuple[str, ...]:
    """What of ours a module may import."""
    if within(module, ("config",)):
        return ("config",)
    if module in CONTRACT:
        return CONTRACT
    if within(module, ("adapters",)):
        return ("adapters", *CONTRACT)
    if within(module, ("gateway.__main__", "gateway.cli")):
        return PACKAGES  # the one place that wires things together
    if within(module, ("gateway",)):
        return ("gateway", "adapters", *CONTRACT)
    if module == "engines.factory":
        return (*CONTRACT, "config", *KINDS)
    kind = tuple(kind for kind in KINDS if within(module, (kind,)))
    return (*CONTRACT, "config", *kind)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrow(module: str):
    ours = {name for name in imports_of(module) if within(name, PACKAGES)}
    wrong = {name for name in ours if not within(name, allowed(module))}
    assert wrong == set(), f"{module} must not import {sorted(wrong)}"


def test_the_arrow_is_looked_for_where_it_could_bend():
    assert "engines.api" in set(imports_of("adapters.openai_chat"))
    assert "engines.echo" in set(imports_of("engines.factory"))
    assert not within("engines.echo", allowed("gateway.app"))
    assert not within("engines.remote.engine", allowed("engines.echo"))
    assert not within("adapters.adapter", allowed("engines.native.engine"))


# --- no torch where there is no model ---------------------------------------------------------------------------------

BLOCKED = ("torch", "transformers", "tokenizers", "numba", "numpy", "triton", "safetensors", "gguf", "zmq", "jinja2")

WITHOUT_MODEL_PACKAGES = f"""
import asyncio, sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # importing it raises ImportError

from config.engines import EchoSettings, RemoteSettings
from engines.factory import create_engine
from gateway.app import create_app

async def main():
    engines = [
        create_engine(EchoSettings()),
        create_engine(RemoteSettings(upstream="http://127.0.0.1:9/v1", served_model_name=("far",))),
    ]
    app = create_app(engines)
    async with app.router.lifespan_context(app):
        print("served without them")

asyncio.run(main())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_gateway_with_echo_and_remote_engines_runs_without_the_model_packages():
    process = run(WITHOUT_MODEL_PACKAGES)
    assert process.stdout == "served without them\n", process.stderr


def test_command_line_can_be_imported_without_the_model_packages():
    blocks = "\n".join(f"sys.modules[{name!r}] = None" for name in BLOCKED)
    process = run(f"import sys\n{blocks}\nimport gateway.__main__\nprint('imported')")
    assert process.stdout == "imported\n", process.stderr


def test_the_deciding_half_of_the_native_engine_needs_no_torch():
    names = ("core", "scheduler", "prefix_cache", "block_pool", "sequence", "token_output", "types")
    process = run(
        "import sys; sys.modules['torch'] = sys.modules['numba'] = sys.modules['transformers'] = None\n"
        + "\n".join(f"import engines.native.{name}" for name in names)
        + "\nprint('imported')"
    )
    assert process.stdout == "imported\n", process.stderr


def test_adapters_need_neither_an_engine_nor_a_server():
    process = run(
        f"CONTRACT = {CONTRACT}\n"
        "import sys, adapters.openai_chat, adapters.openai_completions, adapters.tokenize\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('starlette', 'uvicorn', 'httpx', 'gateway')"
        " or name.startswith('engines.') and name not in CONTRACT])"
    )
    assert process.stdout == "[]\n", process.stderr
