"""What a chat template says of a model's way to call tools and to reason, and what each request makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.api import (
    ChatPrompt,
    GenerationRequest,
    JsonObject,
    StructuredOutput,
    TextPrompt,
    ToolCallDelta,
    ToolChoice,
)
from engines.errors import InvalidRequest
from engines.native.choice import Choice
from engines.native.dialect import Dialect
from engines.native.tokenizer import Tokenizer
from engines.native.types import FINISH_NONE, FINISH_STOP, TokenOutput
from tests.engines.native import small_tokenizers

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
TEMPLATES: dict[str, str] = {
    "hermes": "{% for t in tools %}{{ t }}{% endfor %}<tool_call></tool_call>" + PLAIN,
    "mistral": "{{ tools }}[TOOL_CALLS]" + PLAIN,
    "mistral_named": "{{ tools }}[TOOL_CALLS]name[ARGS]" + PLAIN,
    "llama3_json": '{{ tools }}{"name": function name, "parameters": dictionary of names and values}' + PLAIN,
    "pythonic": "{{ tools }}[func_name1(params_name1=params_value1)]" + PLAIN,
    "json": "{{ tools | tojson }}" + PLAIN,
}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
CHAT = ChatPrompt(messages=({"role": "user", "content": "Hi"},), tools=(TOOL,))
REQUEST = GenerationRequest(request_id="r", model="m", prompt=CHAT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    config = {"eos_token": "<|im_end|>"}
    return small_tokenizers.save(small_tokenizers.byte_level(), folder, tokenizer_config=config)


@pytest.fixture
def tokenizer_with(folder: Path):
    return lambda template: Tokenizer.load(folder, chat_template=template)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_tells_its_format(tokenizer_with, name: str):
    dialect = Dialect(tokenizer_with(TEMPLATES[name]))
    plan = dialect.plan(REQUEST, "")
    assert plan.calls is not None
    assert plan.calls.name == name
    assert Dialect(tokenizer_with(TEMPLATES[name]), tool_parser="json").plan(REQUEST, "").calls.name == "json"  # type: ignore[union-attr]


def test_a_template_that_knows_no_tools_is_taught_them(tokenizer_with):
    dialect = Dialect(tokenizer_with(PLAIN))
    text = dialect.render(CHAT)
    assert text.startswith("<|im_start|>system\n")
    assert '{"name": "now"' in text
    assert dialect.plan(REQUEST, text).calls.name == "hermes"  # type: ignore[union-attr]
    assert "now" in Dialect(tokenizer_with(TEMPLATES["json"])).render(CHAT).partition("<|im_start|>")[0]


def test_nothing_is_planned_for_plain_requests(tokenizer_with):
    dialect = Dialect(tokenizer_with(TEMPLATES["hermes"]))
    for prompt in (replace(CHAT, tools=None), TextPrompt("Hi")):
        plan = dialect.plan(replace(REQUEST, prompt=prompt), "")
        assert plan.reader() is None
        assert (plan.grammar, plan.thinking) == (None, None)


def test_template_variables_cannot_stand_in_for_the_conversation(tokenizer_with):
    with pytest.raises(InvalidRequest) as caught:
        Dialect(tokenizer_with(PLAIN)).render(replace(CHAT, template_kwargs={"messages": []}))
    assert caught.value.field == "chat_template_kwargs.messages"


@pytest.mark.parametrize(
    ("prompt_end", "fields", "sent"),
    [
        ("<think>\n", {"thinking_budget": 5}, ("<think>", "</think>", True, 5)),
        ("<think>\n", {"structured_output": StructuredOutput(JsonObject(), "f")}, ("<think>", "</think>", True, -1)),
        ("", {"tool_choice": ToolChoice("required")}, ("<think>", "</think>", False, -1)),
        ("<think>\n\n</think>\n\n", {"structured_output": StructuredOutput(JsonObject(), "f")}, None),
        ("<think>\n", {}, None),
    ],
    ids=["budget", "form", "required call", "reasoning is over", "nothing to do"],
)
def test_the_core_follows_reasoning_only_where_something_depends_on_it(tokenizer_with, prompt_end, fields, sent):
    dialect = Dialect(tokenizer_with(TEMPLATES["hermes"] + "{{ '</think>' }}"))
    thinking = dialect.plan(replace(REQUEST, **fields), f"<|im_start|>assistant\n{prompt_end}").thinking
    assert (
        None if thinking is None else (thinking.opening, thinking.closing, thinking.is_inside, thinking.budget)
    ) == sent


def test_reasoning_can_be_switched_off_and_on(tokenizer_with):
    assert Dialect(tokenizer_with("</think>" + PLAIN), reasoning_parser="none").plan(REQUEST, "").tags is None
    assert Dialect(tokenizer_with(PLAIN), reasoning_parser="think").plan(REQUEST, "").tags is not None


# --- a choice of such a plan ------------------------------------------------------------------------------------------

SAID = '<think>Hm.</think>Look:\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize("stream", [True, False])
def test_a_choice_tells_reasoning_text_and_calls_apart(tokenizer_with, stream: bool):
    tokenizer = tokenizer_with(TEMPLATES["hermes"] + "</think>")
    plan = Dialect(tokenizer).plan(REQUEST, "")
    choice = Choice(0, REQUEST.sampling, tokenizer, stream=stream, after_text=False, plan=plan)
    ids = tokenizer.encode(SAID, False)
    end = next(iter(tokenizer.eos_token_ids))
    outputs = [*(TokenOutput(1, (token,), FINISH_NONE) for token in ids), TokenOutput(1, (end,), FINISH_STOP)]
    deltas = [delta for delta in map(choice.push, outputs) if delta is not None]
    assert (len(deltas) > 3) == stream
    assert "".join(delta.reasoning for delta in deltas) == "Hm."
    assert "".join(delta.text for delta in deltas) == "Look:"
    calls: list[ToolCallDelta] = [call for delta in deltas for call in delta.tool_calls]
    assert [call.name for call in calls if call.name] == ["now"]
    assert "".join(call.arguments for call in calls) == "{}"
    assert deltas[-1].finish is not None
    assert deltas[-1].finish.reason == "tool_calls"
    assert sum(delta.num_tokens for delta in deltas) == len(ids) + 1
    closing = len(tokenizer.encode("<think>Hm.</think>", False))
    assert closing <= choice.num_reasoning_tokens <= closing + 1
