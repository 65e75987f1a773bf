"""The refusals in /openapi.json: which statuses the routes refuse with, why, and in whose shape.

Five kinds of component, named after their shape and status: "Refusal404" in OpenAI's, "NativeRefusal404" in TGI's,
"MessagesRefusal404" in Anthropic's; "TokenizeRefusal404" in OpenAI's or TGI's, as the body was, and "ModelsRefusal404"
in OpenAI's or Anthropic's, as the headers were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REFUSALS = {
    400: "The request cannot be honoured; `param` names the field.",
    401: "The server wants its API key.",
    404: "No model, or no route, of that name.",
    405: "The route does not answer this method; `Allow` lists those that it does.",
    413: "The body is larger than this server accepts.",
    415: "The body is not declared as application/json, or is compressed.",
    500: "The generation failed, or a bug; the message names the request's id.",
    502: "A remote engine's upstream failed.",
    503: "The engine is starting, stopping, dead, or its queue is full (then with `Retry-After`).",
    504: "A remote engine's upstream did not answer in time.",
}
GENERATES = (400, 401, 404, 405, 413, 415, 500, 502, 503, 504)
STORED = (400, 401, 404, 405)
COUNTS = (400, 401, 404, 405, 413, 415, 500, 503)

_NATIVE_REFUSALS = {
    400: "The body is not JSON.",
    401: _REFUSALS[401],
    404: "No model of that name.",
    413: _REFUSALS[413],
    415: _REFUSALS[415],
    422: "The request cannot be honoured; the message names the parameter.",
    424: "The generation failed.",
    429: "As many requests are being answered as this server takes.",
    500: "A bug; the message names the request's id.",
    503: "The engine is starting, stopping or dead.",
}

_MESSAGES_REFUSALS = {
    **_REFUSALS,
    400: "The request cannot be honoured; the message names the field.",
    503: "The engine is starting, stopping or dead.",
    529: "The engine's queue is full, or as many requests are being answered as this server takes.",
}

NATIVE = tuple(_NATIVE_REFUSALS)
_MODELS = (400, 404, 405)
TOKENIZES = (*COUNTS, 422)

_KINDS: Mapping[str, tuple[Mapping[int, str], tuple[str, ...]]] = {
    "Refusal": (_REFUSALS, ("ErrorBody",)),
    "NativeRefusal": (_NATIVE_REFUSALS, ("NativeError",)),
    "MessagesRefusal": (_MESSAGES_REFUSALS, ("MessagesError",)),
    "ModelsRefusal": (
        {**{status: _REFUSALS[status] for status in _MODELS}, 400: "A parameter of the query cannot be honoured."},
        ("ErrorBody", "MessagesError"),
    ),
    "TokenizeRefusal": ({**_REFUSALS, 422: _NATIVE_REFUSALS[422]}, ("ErrorBody", "NativeError")),
}


def refusal_components() -> dict[str, Any]:
    """For `components.responses`."""
    return {
        f"{kind}{status}": {"description": text, "content": {"application/json": {"schema": _any_of(shapes)}}}
        for kind, (texts, shapes) in _KINDS.items()
        for status, text in texts.items()
    }


def _any_of(shapes: tuple[str, ...]) -> dict[str, Any]:
    references = [{"$ref": f"#/components/schemas/{shape}"} for shape in shapes]
    return references[0] if len(references) == 1 else {"anyOf": references}
