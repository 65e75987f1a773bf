"""`headrace launch` as TGI's users start it, before a real model: flags, variables, limits, and what is not said."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.cli.process import serving

SERVERS_KEY, TENANTS_KEY = "a-key-of-the-server", "a-key-of-a-tenant"
PROMPT = "The capital of France is"


@pytest.mark.usefixtures("smollm2_gguf")
def test_tgis_command_serves_within_its_limits_and_keeps_secrets():
    flags = ["--model-id", "smollm2-135m", "--port", "0", "--hostname", "127.0.0.1", "--max-input-tokens", "64"]
    flags += ["--max-total-tokens", "128", "--max-best-of", "3", "--max-batch-size", "4", "--trust-remote-code"]
    variables = {"MAX_TOP_N_TOKENS": "2", "COMPUTE_TYPE": "1-cpu", "LOG_LEVEL": "debug", "PREFILL_CHUNKING": "1"}
    key = {"HEADRACE_WATERMARK_KEY": SERVERS_KEY}
    with serving(*flags, by="launch", **variables, **key) as server, httpx.Client(base_url=server.url) as client:
        client.timeout = 120
        said = "".join(server.lines)
        assert "headrace: --trust-remote-code: no effect: " in said
        assert "headrace: PREFILL_CHUNKING: no effect: " in said

        info = client.get("/info").json()
        assert (info["max_input_tokens"], info["max_total_tokens"], info["max_best_of"]) == (64, 128, 3)

        def generate(**parameters: Any) -> httpx.Response:
            return client.post("/generate", json={"inputs": PROMPT, "parameters": parameters})

        answer = generate(max_new_tokens=4, watermark={"key": TENANTS_KEY}, details=True)
        assert answer.json()["details"]["generated_tokens"] == 4
        assert answer.headers["x-compute-type"] == "1-cpu"
        assert generate(top_n_tokens=3).json()["error_type"] == "validation"
        assert "128" in generate(max_new_tokens=125).json()["error"]
        wrong = generate(max_new_tokens=4, watermark={"key": TENANTS_KEY, "scheme": "green_list", "depth": 3})
        found = client.post("/v1/watermark/detect", json={"text": "some words", "key": TENANTS_KEY, "frob": 1})
        assert (wrong.status_code, found.status_code) == (422, 400)
        shown = [client.get(path).text for path in ("/info", "/metrics", "/v1/models", "/openapi.json")]
        chat = {"model": "tgi", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "frobnicate": 1}
        assert client.post("/v1/chat/completions", json=chat).headers["x-ignored-fields"] == "frobnicate"
    for text in (*shown, *server.lines, wrong.text, found.text):
        assert SERVERS_KEY not in text
        assert TENANTS_KEY not in text
    assert any('"path": "/generate"' in line for line in server.lines)
