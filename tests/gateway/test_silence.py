"""What a silent stream is kept alive with disturbs no client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from anthropic import Anthropic
from huggingface_hub import InferenceClient
from openai import OpenAI

from config.engines import EchoSettings
from engines.echo import EchoEngine
from gateway.app import create_app
from tests.gateway.live import Live, serving

SAID = "one two three"
TOKENS = 4  # which that is


@pytest.fixture(scope="module")
def halting() -> Iterator[Live]:
    """Keeps a stream alive several times before every token."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gateway.streaming.KEEP_ALIVE_S", 0.02)
        with serving(create_app([EchoEngine(EchoSettings(token_delay_s=0.1))]), "echo") as live:
            yield live


def test_openai_sdk(halting: Live):
    with OpenAI(base_url=f"{halting.url}/v1", api_key="-") as client:
        stream = client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": SAID}], stream=True, max_tokens=TOKENS
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == SAID
        events = list(client.responses.create(model="echo", input=SAID, stream=True, max_output_tokens=16))
        said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert said == " ".join([SAID] * 4)


def test_anthropic_sdk(halting: Live):
    with (
        Anthropic(base_url=halting.url, api_key="-") as client,
        client.messages.stream(model="echo", max_tokens=TOKENS, messages=[{"role": "user", "content": SAID}]) as stream,
    ):
        assert "".join(stream.text_stream) == SAID


def test_hub_client(halting: Live):
    client = InferenceClient(halting.url)
    assert "".join(client.text_generation(SAID, stream=True, max_new_tokens=TOKENS)) == SAID


@pytest.mark.filterwarnings("ignore:The `dict` method is deprecated", "ignore:unclosed:ResourceWarning")
def test_the_client_of_text_generation_inference(halting: Live):
    text_generation = pytest.importorskip("text_generation", reason="is installed without its dependencies")
    stream = text_generation.Client(halting.url).generate_stream(SAID, max_new_tokens=TOKENS)
    assert "".join(part.token.text for part in stream if not part.token.special) == SAID
