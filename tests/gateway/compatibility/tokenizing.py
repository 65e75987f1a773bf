"""The fields of POST /tokenize in vLLM's shape."""

from __future__ import annotations

import httpx

from adapters.tokenize import TokenizeRequest
from tests.gateway.compatibility.chat import OTHER_TEMPLATE, TRUSTING, USER, function
from tests.gateway.compatibility.rows import Answer, Row, Table, honoured, probed, unknown
from tests.gateway.compatibility.sampling import ALIAS, MODEL

BODY = {"model": MODEL, "messages": [USER]}
ONE = {"messages": None, "prompt": "One"}


def _more(told: Answer, plain: Answer) -> bool:
    return told.json["count"] > plain.json["count"]


def _fewer(told: Answer, plain: Answer) -> bool:
    return told.json["count"] < plain.json["count"]


def _texts(told: Answer, plain: Answer) -> bool:
    return len(told.json["token_strs"]) == told.json["count"] and plain.json["token_strs"] is None


def _is_looked_up(client: httpx.Client) -> bool:
    statuses = [client.post("/tokenize", json={**BODY, "model": model}).status_code for model in (ALIAS, "another")]
    return statuses == [200, 404]


ROWS: tuple[Row, ...] = (
    probed("model", _is_looked_up, note="Left out: the server's first model."),
    honoured("messages", [USER, USER], _more),
    honoured("prompt", "One two three", _more, needs=ONE, note="In place of `messages`."),
    honoured("return_token_strs", True, _texts),
    honoured("tools", [function("go")], _more),
    honoured("add_special_tokens", False, _fewer, needs=ONE),
    honoured("add_generation_prompt", False, _fewer),
    honoured(
        "continue_final_message",
        True,
        _fewer,
        needs={"messages": [USER, {"role": "assistant", "content": "One, two,"}]},
    ),
    honoured("chat_template_kwargs", {"shown": "x"}, _more),
    honoured("documents", [{"text": "y"}], _more),
    honoured("chat_template", OTHER_TEMPLATE, _more, setting=TRUSTING),
    *unknown(
        {
            "mm_processor_kwargs": ({}, "Images, audio and video are not supported."),
            "media_io_kwargs": ({}, "Images, audio and video are not supported."),
            "tool_choice": ("auto", "Leave `tools` out where none may be called."),
            "reasoning_effort": ("low", "Send it in `chat_template_kwargs`."),
        }
    ),
)

TOKENIZE = Table(
    path="/tokenize",
    body=BODY,
    model=TokenizeRequest,
    rows=ROWS,
    peers={
        "vLLM": {
            "honoured": """model messages prompt return_token_strs tools add_special_tokens add_generation_prompt
                continue_final_message chat_template_kwargs mm_processor_kwargs media_io_kwargs""",
            "if enabled": "chat_template",
        },
        "SGLang": {
            "honoured": """model messages prompt tools add_special_tokens continue_final_message chat_template_kwargs
                tool_choice reasoning_effort"""
        },
    },
)
