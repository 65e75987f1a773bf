"""One server for all cases: SmolLM2 under a template that shows what it is told, and with a tokenizer that adds BOS."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from config.engines import NativeSettings
from engines.native.engine import NativeEngine
from engines.native.gguf_tokenizer import load_gguf_tokenizer
from engines.native.tokenizer_backend import set_boundary_tokens
from gateway.app import create_app
from tests.gateway.compatibility.rows import Answer, Row, Table
from tests.gateway.compatibility.sampling import ALIAS, MODEL
from tests.gateway.live import serving

TEMPLATE = """\
{%- if reasoning_effort is defined %}Effort: {{ reasoning_effort }}\n{% endif -%}
{%- if shown is defined %}Shown: {{ shown }}\n{% endif -%}
{%- for document in documents or [] %}Document: {{ document.text }}\n{% endfor -%}
{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined %}<think>\n{% if not enable_thinking %}\n</think>\n{% endif %}{% endif %}{% endif %}"""

Ask = Callable[[str, Mapping[str, Any]], Answer]


@pytest.fixture(scope="session")
def client(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("compatibility")
    section = NativeSettings(
        model=str(smollm2_gguf),
        tokenizer=str(tokenizer_with_bos(smollm2_gguf, folder)),
        chat_template=folder / "template.jinja",
        trust_request_chat_template=True,
        device="cpu",
        kv_cache_memory="256MiB",
        served_model_name=(MODEL, ALIAS),
    )
    (folder / "template.jinja").write_text(TEMPLATE)
    with (
        serving(create_app([NativeEngine(section)]), MODEL) as server,
        httpx.Client(base_url=server.url, timeout=300) as client,
    ):
        yield client


def tokenizer_with_bos(gguf: Path, folder: Path) -> Path:
    """SmolLM2's tokenizer puts nothing around a text, so that `add_special_tokens` could not be seen."""
    pipeline: Tokenizer = load_gguf_tokenizer(gguf).backend._pipeline  # type: ignore[attr-defined]
    set_boundary_tokens(pipeline, "<|endoftext|>", None)
    pipeline.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


@pytest.fixture(scope="session")
def ask(client: httpx.Client, request: pytest.FixtureRequest) -> Ask:
    """Asks each question once. Those of all selected cases are asked together, for a crowd's answers take less time."""
    answers: dict[str, Answer] = {}

    def ask(path: str, body: Mapping[str, Any]) -> Answer:
        question = path + json.dumps(body)
        if question not in answers:
            response = client.post(path, json=body)
            answers[question] = Answer(response.status_code, response.headers, response.text)
        return answers[question]

    cases = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    rows = [(case["table"], case["row"]) for case in cases if "table" in case and "row" in case]
    for path, body in {table.path: table.body for table, _ in rows}.items():
        client.post(path, json=body)  # so that the prefix cache has its prompt
    with ThreadPoolExecutor(16) as crowd:
        list(crowd.map(lambda pair: ask(*pair), questions(rows)))
    return ask


def questions(rows: Sequence[tuple[Table, Row]]) -> list[tuple[str, Mapping[str, Any]]]:
    asked = [(table.path, body) for table, row in rows for body in table.request(row)]
    return list({path + json.dumps(body): (path, body) for path, body in asked}.values())
