"""The fields of Text Generation Inference's native routes: POST / and its `parameters`, which /generate has as well."""

from __future__ import annotations

import httpx

from adapters.tgi_types import GenerateParameters, NativeRequest
from tests.gateway.compatibility.completions import PROMPT
from tests.gateway.compatibility.rows import Answer, Row, Table, honoured, is_stream, probed, refused
from tests.gateway.compatibility.sampling import ALIAS

PARAMETERS = {"max_new_tokens": 6, "details": True}
BODY = {"inputs": PROMPT, "parameters": PARAMETERS}
LONGER = {"max_new_tokens": 30}
SEEDED = {"temperature": 1.8, "seed": 1}


def _details(answer: Answer) -> dict[str, object]:
    return answer.json["details"]


def generates(count: int):
    return lambda told, plain: _details(told)["generated_tokens"] == count != _details(plain)["generated_tokens"]


def _has(name: str):
    return lambda told, plain: bool(_details(told).get(name)) and not _details(plain).get(name)


def _is_cut(told: Answer, plain: Answer) -> bool:
    return _details(told)["finish_reason"] == "stop_sequence" and _details(plain)["finish_reason"] == "length"


def _is_full(told: Answer, plain: Answer) -> bool:
    return told.text == PROMPT + plain.text


def _is_not_full(told: Answer, plain: Answer) -> bool:
    return plain.text == PROMPT + told.text


def _without_stop(told: Answer, plain: Answer) -> bool:
    return plain.text == told.text + ","


def _samples(told: Answer, plain: Answer) -> bool:
    return _details(told)["seed"] is not None and _details(plain)["seed"] is None


def _prefill(answer: Answer) -> list[object]:
    return answer.json["details"]["prefill"]


def _has_prefill(told: Answer, plain: Answer) -> bool:
    return len(_prefill(told)) > 10 and not _prefill(plain)


def _shorter_prefill(told: Answer, plain: Answer) -> bool:
    return len(_prefill(told)) == 5 < len(_prefill(plain))


def _is_form(told: Answer, plain: Answer) -> bool:
    return told.text == "xyz" != plain.text


def _has_details(told: Answer, plain: Answer) -> bool:
    return "tokens" in told.json["details"] and "details" not in plain.json


def _is_looked_up(client: httpx.Client) -> bool:
    statuses = [client.post("/", json={**BODY, "model": model}).status_code for model in (ALIAS, "another")]
    return statuses == [200, 404]


GENERATE_ROWS: tuple[Row, ...] = (
    honoured("best_of", 2, _has("best_of_sequences"), needs={"do_sample": True}),
    honoured("temperature", 1.8, needs={"seed": 1}),
    honoured("repetition_penalty", 2.0),
    honoured(
        "frequency_penalty",
        2.0,
        needs=LONGER,
        note="OpenAI's formula; TGI divides by the length and counts the prompt.",
    ),
    honoured("top_k", 1, needs=SEEDED),
    honoured("top_p", 0.01, needs=SEEDED, note="Below 1, as TGI has it."),
    honoured("typical_p", 0.01, needs=SEEDED),
    honoured("do_sample", True, _samples),
    honoured("max_new_tokens", 3, generates(3)),
    honoured("return_full_text", True, _is_full),
    honoured(
        "stop", ["1", "2", "3", ","], _is_cut, note="Or a string. Found anywhere, not at the ends of tokens alone."
    ),
    honoured("stop_sequences", ["1", "2", "3", ","], _is_cut, note="The older name of `stop`, which TGI ignores."),
    honoured("truncate", 5, _shorter_prefill, needs={"decoder_input_details": True}),
    honoured("watermark", True, needs=LONGER, note="Or the mark's settings."),
    honoured("details", True, _has_details, needs={"details": False}),
    honoured("decoder_input_details", True, _has_prefill),
    honoured("seed", 2, needs=SEEDED),
    honoured("top_n_tokens", 2, _has("top_tokens")),
    honoured(
        "grammar", {"type": "regex", "value": "xyz"}, _is_form, note="`json`, `json_object`, `json_schema`, `regex`."
    ),
    honoured("include_stop_str_in_output", False, _without_stop, needs={"stop": [","]}),
    refused("adapter_id", "x", note="This server has no adapters; TGI answers from the base model."),
)
ROOT_ROWS: tuple[Row, ...] = (
    honoured("inputs", "The river"),
    honoured("parameters", {"max_new_tokens": 3, "do_sample": False}),
    honoured("stream", True, is_stream, note="Read by `POST /` alone, as in TGI."),
    probed("model", _is_looked_up, note="Beyond TGI: one of several models."),
)

GENERATE = Table(
    path="/generate",
    body=BODY,
    model=GenerateParameters,
    rows=GENERATE_ROWS,
    peers={
        "TGI": {
            "honoured": """temperature repetition_penalty frequency_penalty top_k top_p typical_p do_sample
                max_new_tokens return_full_text stop truncate watermark details seed top_n_tokens grammar best_of""",
            "if enabled": "adapter_id decoder_input_details",
        }
    },
    prefix="parameters.",
)
ROOT = Table(
    path="/",
    body=BODY,
    model=NativeRequest,
    rows=ROOT_ROWS,
    peers={"TGI": {"honoured": "inputs parameters stream"}},
)
