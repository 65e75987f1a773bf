"""Every answer that a tool grammar allows is read back as calls that the tools accept."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from engines.api import JsonObject, JsonSchema, Regex, StructuredOutput, ToolChoice
from engines.errors import InvalidRequest
from engines.native.grammar.compiler import GrammarCompiler, GrammarConstraint
from engines.native.grammar.constraint import Choosing, GrammarError
from engines.native.tokenizer import Tokenizer
from engines.native.tools.formats import FORMATS, HERMES, MISTRAL, PYTHONIC, ToolFormat
from engines.native.tools.grammar import MAX_CALLS, format_of_choice, tool_grammar
from tests.engines.native import small_tokenizers
from tests.engines.native.tools.test_readers import read

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
ADD: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"type": "array", "items": {"type": "null"}, "maxItems": 2}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "add": ADD, "now": {"type": "object", "additionalProperties": False}}


def tool(name: str, parameters: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [tool(name, schema) for name, schema in SCHEMAS.items()]
STRICT = [tool(name, schema, strict=True) for name, schema in SCHEMAS.items()]
MARKS = sorted({mark for tool_format in FORMATS.values() for mark in tool_format.marks})


@pytest.fixture(scope="module", params=["marks are text", "marks are special tokens"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    backend = small_tokenizers.byte_level()
    if "special" in request.param:
        backend.add_special_tokens(MARKS)
    folder = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer.load(small_tokenizers.save(backend, folder, tokenizer_config={"eos_token": "<|im_end|>"}))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(lambda: (tokenizer, frozenset()), tokenizer.vocab_size)


@pytest.fixture
def special(tokenizer: Tokenizer):
    def token_id(mark: str) -> int | None:
        found = tokenizer.token_id(mark)
        return found if found in tokenizer.special_ids else None

    return token_id


def compiled(compiler: GrammarCompiler, spec) -> GrammarConstraint:
    assert spec is not None
    return compiler.request(spec).result(timeout=30)


def allowed(compiler: GrammarCompiler, constraint: GrammarConstraint) -> list[int]:
    masks = compiler.masks([Choosing(0, constraint, compiler.eos_token_ids)])
    return np.flatnonzero(np.unpackbits(masks.bits.view(np.uint8), bitorder="little")).tolist()


def random_answer(compiler, tokenizer, spec, rng: np.random.Generator, start: str = "", limit: int = 600) -> str:
    """A walk through what is allowed, after `start`, which must be."""
    constraint, tokens = compiled(compiler, spec), []
    for token in tokenizer.encode(start, False):
        assert token in allowed(compiler, constraint), (start, tokenizer.decode(tokens))
        constraint.advance(token)
        tokens.append(token)
    while len(tokens) < limit:
        token = int(rng.choice(allowed(compiler, constraint)))
        if token in compiler.eos_token_ids:
            break
        tokens.append(token)
        if constraint.advance(token) == "complete":
            break
    else:
        pytest.fail(f"no end: {tokenizer.decode(tokens, False)}")
    return tokenizer.decode(tokens, skip_special_tokens=False)


def check_calls(text: str, tool_format: ToolFormat, *, allows_text: bool = False) -> list[tuple[str, str]]:
    told, calls = read(tool_format.reader(frozenset(SCHEMAS)), [text])
    assert allows_text or not told, told
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])
    return calls


@pytest.mark.parametrize("tool_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "single"])
def test_required_calls_are_calls_of_the_tools(compiler, tokenizer, special, tool_format, parallel):
    choice = ToolChoice("required", parallel=parallel)
    tool_format = format_of_choice(tool_format, choice)
    spec = tool_grammar(TOOLS, choice, tool_format, special)
    rng = np.random.default_rng(1)
    counts = {len(check_calls(random_answer(compiler, tokenizer, spec, rng), tool_format)) for _ in range(12)}
    assert min(counts) == 1
    assert max(counts) == 1 if not parallel else 1 < max(counts) <= MAX_CALLS


@pytest.mark.parametrize("tool_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "single"])
def test_a_named_tool_is_called_once_and_no_other(compiler, tokenizer, special, tool_format, parallel):
    choice = ToolChoice("named", "get_weather", parallel=parallel)
    tool_format = format_of_choice(tool_format, choice)
    spec = tool_grammar(TOOLS, choice, tool_format, special)
    for seed in range(4):
        answer = random_answer(compiler, tokenizer, spec, np.random.default_rng(seed))
        assert [name for name, _ in check_calls(answer, tool_format)] == ["get_weather"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "pythonic"])
def test_strict_tools_may_be_called_or_not_and_their_arguments_hold(compiler, tokenizer, special, name):
    tool_format = FORMATS[name]
    shape = tool_format.shape
    assert shape is not None
    spec = tool_grammar(STRICT, ToolChoice(), tool_format, special)
    start = f"{shape.mark}{shape.opening}{shape.before_name}get_weather{shape.before_arguments}"
    for seed in range(4):
        rng = np.random.default_rng(seed)
        words = "" if not shape.mark else "Let me look. "
        answer = random_answer(compiler, tokenizer, spec, rng, words + start, limit=6000)
        assert check_calls(answer, tool_format, allows_text=True)[0][0] == "get_weather"
        told = random_answer(compiler, tokenizer, spec, rng, "It is sunny.", limit=6000)
        assert told.startswith("It is sunny.")


def test_free_tools_leave_the_answer_free(special):
    assert tool_grammar(TOOLS, ToolChoice(), HERMES, special) is None
    assert tool_grammar(STRICT, ToolChoice(), HERMES, special) is not None


@pytest.mark.parametrize("tool_format", [HERMES, MISTRAL], ids=lambda one: one.name)
def test_beside_a_form_an_answer_is_calls_or_the_form(compiler, tokenizer, special, tool_format):
    form = StructuredOutput(JsonSchema({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                                        "additionalProperties": False}), "f")  # fmt: skip
    spec = tool_grammar(TOOLS, ToolChoice(), tool_format, special, form)
    kinds = set()
    for seed in range(12):
        answer = random_answer(compiler, tokenizer, spec, np.random.default_rng(seed))
        if answer.startswith("{"):
            assert set(json.loads(answer)) == {"ok"}
            kinds.add("form")
        elif check_calls(answer, tool_format):
            kinds.add("calls")
    assert kinds == {"form", "calls"}


LISTED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "boolean"}}}


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "loose"])
@pytest.mark.parametrize(
    ("schema", "is_closed"),
    [
        (None, True),
        ({"type": "object", "properties": {}}, True),
        (LISTED, True),
        ({**LISTED, "required": ["a"]}, True),
        ({"type": "object"}, False),
        ({**LISTED, "additionalProperties": {"type": "boolean"}}, False),
        ({**LISTED, "required": ["b"]}, False),
        ({**LISTED, "anyOf": [{"properties": {"b": {}}}]}, False),
    ],
    ids=["no schema", "no properties", "optional", "required", "any object", "open", "required, not listed", "anyOf"],
)
def test_arguments_that_a_tool_does_not_describe_are_not_made_up(
    compiler, tokenizer, special, schema, is_closed, strict
):
    offered = [tool("f", schema, strict=strict)]
    constraint = compiled(compiler, tool_grammar(offered, ToolChoice("required"), HERMES, special))
    for token in tokenizer.encode('<tool_call>\n{"name": "f", "arguments": {', False):
        assert constraint.advance(token) == "open"
    if (quote := tokenizer.encode('"', False)[0]) in allowed(compiler, constraint):
        constraint.advance(quote)
    assert (tokenizer.encode("b", False)[0] in allowed(compiler, constraint)) != is_closed


def test_what_cannot_be_enforced_is_refused_when_strict_and_passed_over_otherwise(compiler, special):
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    choice = ToolChoice("required")
    assert compiled(compiler, tool_grammar([tool("f", schema)], choice, HERMES, special))
    with pytest.raises(GrammarError, match="uniqueItems"):
        compiled(compiler, tool_grammar([tool("f", schema, strict=True)], choice, HERMES, special))


def test_forms_and_strict_tools_that_no_grammar_can_join_are_refused_by_name(special):
    with pytest.raises(InvalidRequest) as caught:
        tool_grammar(TOOLS, ToolChoice(), HERMES, special, StructuredOutput(Regex("a"), "structured_outputs.regex"))
    assert caught.value.field == "structured_outputs.regex"
    with pytest.raises(InvalidRequest) as caught:
        tool_grammar(STRICT, ToolChoice(), PYTHONIC, special)
    assert caught.value.field == "tools"
    with pytest.raises(InvalidRequest):
        tool_grammar(TOOLS, ToolChoice(), PYTHONIC, special, StructuredOutput(JsonObject(), "response_format"))
