"""langchain-tests' standard suites for chat models, as published: ChatOpenAI, on SmolLM2 behind our server.

The suites allow no test to be left out: what cannot hold is switched off by their own properties, or marked xfail with
the reason.
"""

from __future__ import annotations

from typing import Any, Literal

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI

from tests.gateway.live import Live

pytestmark = [
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema"),  # langchain's, of its own suite
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),  # langchain's, of what openai parsed
]

pytest.importorskip("langchain_tests", reason="langchain-tests is installed without its dependencies")

from langchain_tests.integration_tests import ChatModelIntegrationTests  # noqa: E402
from langchain_tests.unit_tests import ChatModelUnitTests  # noqa: E402


class TestUnit(ChatModelUnitTests):
    """What langchain does before anything is sent: nothing here needs a server."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "smollm2", "base_url": "http://127.0.0.1:9/v1", "api_key": "none"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        told = {"OPENAI_API_KEY": "none", "OPENAI_API_BASE": "http://127.0.0.1:9/v1"}
        return told, {"model": "smollm2"}, {"openai_api_key": "none", "openai_api_base": "http://127.0.0.1:9/v1"}

    @pytest.mark.xfail(reason="compares with a snapshot of langchain-openai's own", run=False)
    def test_serdes(self) -> None: ...  # type: ignore[override]

    @pytest.mark.xfail(reason="measures how long langchain-openai takes to start", run=False)
    def test_init_time(self) -> None: ...  # type: ignore[override]


class TestIntegration(ChatModelIntegrationTests):
    """Off, as the properties are by default: images, audio and PDF, in messages and in tools' results. We take text."""

    _url = ""
    _string_ends: tuple[int, ...] = ()

    @pytest.fixture(autouse=True)
    def _served(self, native_live: Live) -> None:
        self._url = f"{native_live.url}/v1"
        texts = [{"model": "smollm2", "prompt": end} for end in ('"', '."', '?"', '!"')]
        answers = [httpx.post(f"{native_live.url}/tokenize", json=text).json() for text in texts]
        self._string_ends = tuple(answer["tokens"][0] for answer in answers)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "smollm2",
            "base_url": self._url,
            "api_key": "none",
            "max_retries": 0,
            "temperature": 0,
            "max_tokens": 100,
            "stream_usage": True,
            "logit_bias": dict.fromkeys(self._string_ends, 4),  # else so small a model may never end a string
            # langchain keeps one client for all event loops: no connection may outlive its test's loop
            "http_async_client": httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0)),
        }

    @property
    def model_override_value(self) -> str:
        return "smollm2-alias"

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        # The other method is in test_structured_output.py. These schemas do not say that there are no other members,
        # and SmolLM2 makes up one after the other; a tool's arguments are those that it describes.
        return {"method": "function_calling"}

    @property
    def supports_json_mode(self) -> bool:
        return False  # the test wants the keys that its prompt names: that needs a smarter model, JSON alone does not

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[Any]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        chat = ChatOpenAI(**self.chat_model_params).bind(max_tokens=1)
        long = "Tell me what comes after these words. " * 10
        chat.invoke(long)
        if not stream:
            answer = chat.invoke(long)
        else:
            chunks = list(chat.stream(long))
            answer = sum(chunks[1:], start=chunks[0])
        assert isinstance(answer, AIMessage)
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["input_token_details"]["cache_read"] > 0
        return answer

    @pytest.mark.xfail(reason="needs a model that calls a tool unasked; SmolLM2-135M answers in words", run=False)
    def test_agent_loop(self) -> None: ...  # type: ignore[override]

    @pytest.mark.xfail(reason="replays recorded HTTP to measure langchain-openai", run=False)
    def test_stream_time(self) -> None: ...  # type: ignore[override]
