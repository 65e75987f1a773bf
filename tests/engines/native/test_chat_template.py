"""Chat templates: what transformers renders, and the wire's messages made fit for what templates expect."""

from __future__ import annotations

from typing import Any

import pytest

from engines.native.chat_template import ChatTemplate, TemplateError, compiled_template

CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

# In the manner of templates in use: indented blocks, namespaces, loop controls, macros, tools, generation marks.
ELABORATE = """
{%- macro say(role, content) %}
    {%- if content is string %}
        {{- '[' + role + '] ' + content | trim }}
    {%- else %}
        {%- for part in content %}
            {%- if part.type == 'text' %}{{- '[' + role + '] ' + part.text }}{% endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set ns = namespace(turns=0) %}
{%- if tools %}
    {{- 'TOOLS ' + tools | tojson }}
    {% for tool in tools %}
{{ tool | tojson(indent=2) }}
    {% endfor %}
{%- endif %}
{% for message in messages %}
    {% if message.role == 'skip' %}
        {% continue %}
    {% endif %}
    {% set ns.turns = ns.turns + 1 %}
    {{ say(message.role, message.content) }}
    {%- if message.reasoning_content is defined %} <think>{{ message.reasoning_content }}</think>{% endif %}
    {% for call in message.tool_calls or [] %}
        {% if call.function is defined %}{% set call = call.function %}{% endif %}
CALL {{ call.name }} {{ call.arguments | tojson }}
    {% endfor %}
    {% for key, value in message | items %}{% if key == 'name' %}({{ value }}){% endif %}{% endfor %}
    {% if message.role == 'stop' %}{% break %}{% endif %}
{% endfor %}
{% generation %}turns {{ ns.turns }}{% endgeneration %}
{% if add_generation_prompt %}[assistant] {% endif %}
{{- bos_token }}{{ documents is none }}{{ enable_thinking is defined }}
"""

TOOLS = [{"type": "function", "function": {"name": "größe", "parameters": {"type": "object", "x": "<a> & 'b'"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "größe", "arguments": {"ort": "Köln", "n": 1}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "Hi  "}],
    "more turns": [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "a <|im_end|> b {{ messages }} {% raise %}"},
        {"role": "skip", "content": "never said"},
        {"role": "assistant", "content": "yes", "name": "Bo"},
        {"role": "user", "content": "你好 🎉"},
    ],
    "tools": [
        {"role": "user", "content": "How big?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "2 m", "tool_call_id": "1"},
    ],
    "reasoning": [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So.", "reasoning": "hm"},
        {"role": "stop", "content": "end"},
        {"role": "user", "content": "unseen"},
    ],
}


def by_transformers(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template([messages], chat_template=source, **options)
    return rendered[0]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("source", [CHATML, ELABORATE], ids=["ChatML", "elaborate"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
def test_renders_what_transformers_renders(
    conversation: str, source: str, add_generation_prompt: bool, tools: list[dict[str, Any]] | None
) -> None:
    messages = CONVERSATIONS[conversation]
    variables = {"bos_token": "<s>", "enable_thinking": False}
    expected = by_transformers(source, messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables)
    template = ChatTemplate(source)
    assert (
        template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables)
        == expected
    )


@pytest.mark.parametrize("content", ["The answer is", "Sure, ", "line\n", " both "])
@pytest.mark.parametrize("source", [CHATML, CHATML.replace("message.content", "message.content | trim")])
def test_final_message_is_continued_as_in_transformers(content: str, source: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
    rendered = ChatTemplate(source).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert rendered == by_transformers(source, messages, continue_final_message=True)
    assert rendered.endswith(content.strip() if "trim" in source else content)


def test_continuing_works_on_content_parts() -> None:
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two "}]}]
    rendered = ChatTemplate(ELABORATE).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert rendered.endswith("[assistant] one[assistant] two ")
    rendered = ChatTemplate(CHATML).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert rendered == "<|im_start|>assistant\none\ntwo "


@pytest.mark.parametrize(
    ("source", "messages", "message"),
    [
        pytest.param(
            "{{ messages[0].role }}", [{"role": "assistant", "content": "x"}], "does not show", id="not shown"
        ),
        pytest.param(
            "{% for p in messages[0].content %}{{ p }}{% endfor %}",
            [{"role": "assistant", "content": []}],
            "text content",
            id="no text to continue",
        ),
        pytest.param(
            "{{ messages[0].content | upper }}", [{"role": "assistant", "content": "x"}], "does not show", id="changed"
        ),
    ],
)
def test_a_message_that_cannot_be_continued_is_refused(
    source: str, messages: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source).render(messages, add_generation_prompt=False, continue_final_message=True)


def test_continuing_and_a_generation_prompt_exclude_each_other() -> None:
    with pytest.raises(TemplateError, match="exclude each other"):
        ChatTemplate(CHATML).render([{"role": "user", "content": "x"}], continue_final_message=True)


# --- contents ---------------------------------------------------------------------------------------------------------

PARTS = [{"type": "text", "text": "one"}, {"type": "refusal", "refusal": "two"}]
ONLY_PARTS = "{% for m in messages %}{% for p in m['content'] %}<{{ p['text'] }}>{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "content_format"),
    [
        (CHATML, "string"),
        ("{% for m in messages %}{% for line in m.content.split('x') %}{{ line }}{% endfor %}{% endfor %}", "string"),
        (ELABORATE, "parts"),
        (ONLY_PARTS, "parts"),
        ("{% for m in messages %}{% set c = m.content %}{% for p in c %}{{ p.text }}{% endfor %}{% endfor %}", "parts"),
        ("{% for p in (messages[0]['content'] or []) | list %}{{ p.text }}{% endfor %}", "parts"),
        ("{% for p in messages[0].content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}", "parts"),
        ("{% set c = m.content if m.content else [] %}{% set d = c %}{% for p in d %}{{ p }}{% endfor %}", "parts"),
    ],
)
def test_content_format_is_read_off_the_template(source: str, content_format: str) -> None:
    assert ChatTemplate(source).content_format == content_format


def test_parts_are_joined_by_newlines_where_a_template_wants_a_string() -> None:
    messages = [{"role": "user", "content": PARTS}]
    assert ChatTemplate("{{ messages[0].content }}").render(messages) == "one\ntwo"


def test_parts_stay_parts_where_a_template_walks_over_them() -> None:
    assert ChatTemplate(ONLY_PARTS).render([{"role": "user", "content": PARTS}]) == "<one><two>"


def test_string_becomes_a_part_only_where_a_template_knows_no_strings() -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert ChatTemplate(ONLY_PARTS).render(messages) == "<hi>"
    assert "[user] hi" in ChatTemplate(ELABORATE).render(messages)


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, {"type": "text", "text": 1}, {}]
)
@pytest.mark.parametrize("source", [CHATML, ONLY_PARTS], ids=["string", "parts"])
def test_parts_that_are_not_text_are_refused(part: dict[str, Any], source: str) -> None:
    with pytest.raises(TemplateError, match="not supported by this model"):
        ChatTemplate(source).render([{"role": "user", "content": [part]}])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("{{ '<' + messages[0].content + '>' }}", "<>", id="used as a string"),
        pytest.param("{{ messages[0].content is none }}", "True", id="asks for none"),
        pytest.param("{{ messages[0].content is defined }}", "False", id="asks whether it is there"),
    ],
)
@pytest.mark.parametrize("message", [{"role": "assistant"}, {"role": "assistant", "content": None}])
def test_missing_content_is_what_the_template_can_take(source: str, expected: str, message: dict[str, Any]) -> None:
    assert ChatTemplate(source).render([message]) == expected


# --- tool calls and reasoning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param('{"ort": "Köln"}', '{"ort": "Köln"}', id="JSON text"),
        pytest.param({"ort": "Köln"}, '{"ort": "Köln"}', id="an object"),
        pytest.param("", "{}", id="empty"),
        pytest.param("{broken", '"{broken"', id="not JSON"),
        pytest.param("[1]", '"[1]"', id="not an object"),
        pytest.param("[" * 100_000, '"' + "[" * 100_000 + '"', id="too deep"),
    ],
)
def test_tool_call_arguments_reach_the_template_as_objects(arguments: object, expected: str) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    template = ChatTemplate("{{ messages[0].tool_calls[0].function.arguments | tojson }}")
    assert template.render([{"role": "assistant", "content": "", "tool_calls": [call]}]) == expected
    assert call["function"]["arguments"] == arguments  # the request is left as it was


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_found_under_either_name(name: str) -> None:
    template = ChatTemplate("{{ messages[0].reasoning_content }} {{ messages[0].thinking }}")
    assert template.render([{"role": "assistant", "content": "x", name: "hm"}]) == "hm hm"


# --- the language -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param("{{ raise_exception('roles must alternate') }}", "roles must alternate", id="the template's own"),
        pytest.param("{{ messages[0].content + 1 }}", "fails on this conversation", id="a Python error"),
        pytest.param("{{ messages[0].nothing.more }}", "refuses this conversation", id="an undefined name"),
        pytest.param("{{ messages.append(1) }}", "unsafe|not safely callable", id="changing its input"),
        pytest.param("{{ ''.__class__.__mro__ }}", "unsafe", id="reaching for the interpreter"),
        pytest.param("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big", id="an endless range"),
    ],
)
def test_what_goes_wrong_in_a_template_is_a_template_error(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])


def test_no_messages_are_refused() -> None:
    with pytest.raises(TemplateError, match="at least one message"):
        ChatTemplate(CHATML).render([])


def test_broken_source_is_refused_when_compiled() -> None:
    with pytest.raises(TemplateError, match="not valid"):
        ChatTemplate("{% for m in %}")


def test_variables_do_not_replace_the_conversation() -> None:
    template = ChatTemplate("{{ messages[0].content }} {{ tools }} {{ x }}")
    variables = {"messages": [], "tools": "mine", "x": 1}
    assert template.render([{"role": "user", "content": "hi"}], variables=variables) == "hi None 1"


def test_the_date_is_at_hand() -> None:
    rendered = ChatTemplate("{{ strftime_now('%Y') }}").render([{"role": "user", "content": ""}])
    assert rendered.isdigit()
    assert int(rendered) >= 2024


def test_a_template_is_compiled_once() -> None:
    assert compiled_template(CHATML) is compiled_template(CHATML)
