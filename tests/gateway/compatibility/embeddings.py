"""The fields of POST /v1/embeddings."""

from __future__ import annotations

import math
import struct
from base64 import b64decode
from typing import Any

from adapters.openai_embeddings import EmbeddingsRequest
from tests.gateway.compatibility.rows import Answer, Table, honoured, no_effect, unknown
from tests.gateway.compatibility.sampling import ALIAS, MODEL


def _vector(answer: Answer) -> Any:
    return answer.json["data"][0]["embedding"]


def _is_another(told: Answer, plain: Answer) -> bool:
    return _vector(told) != _vector(plain)


def _says_model(told: Answer, plain: Answer) -> bool:
    return (told.json["model"], plain.json["model"]) == (ALIAS, MODEL)


def _is_base64(told: Answer, plain: Answer) -> bool:
    numbers = struct.unpack(f"<{len(_vector(plain))}f", b64decode(_vector(told)))
    return all(math.isclose(one, other, abs_tol=1e-3) for one, other in zip(numbers, _vector(plain), strict=True))


def _is_short(told: Answer, plain: Answer) -> bool:
    return len(_vector(told)) == 8 < len(_vector(plain)) and math.isclose(math.hypot(*_vector(told)), 1, abs_tol=1e-5)


def _has_three_tokens(told: Answer, plain: Answer) -> bool:
    return told.num_prompt == 3 < plain.num_prompt


def _has_fewer_tokens(told: Answer, plain: Answer) -> bool:
    return told.num_prompt < plain.num_prompt


ROWS = (
    honoured("model", ALIAS, _says_model),
    honoured("input", "Another text altogether", _is_another, note="A text, token ids, or a list of either."),
    honoured("encoding_format", "base64", _is_base64, note="`float` or `base64`: little-endian float32."),
    honoured("dimensions", 8, _is_short, note="Any number up to the model's own."),
    honoured("truncate_prompt_tokens", 3, _has_three_tokens),
    honoured("truncation_side", "left", _is_another, needs={"truncate_prompt_tokens": 3}),
    honoured("add_special_tokens", False, _has_fewer_tokens),
    honoured("cache_salt", "a", None),
    no_effect("user", "someone"),
    *unknown(
        {
            "messages": ([{"role": "user", "content": "Hi"}], "Send the text of the conversation as `input`."),
            "embed_dtype": ("float16", "Vectors are float32."),
            "endianness": ("big", "Vectors are little-endian."),
            "use_activation": (False, "Whether vectors have length 1 is the model's own to say."),
            "priority": (1, "Inputs are embedded in the order in which they came."),
        }
    ),
)

VLLM = {
    "honoured": """model input encoding_format truncate_prompt_tokens add_special_tokens cache_salt messages
        truncation_side embed_dtype endianness use_activation""",
    "if enabled": "dimensions priority",
}
SGLANG = {
    "honoured": "model input",
    "": """encoding_format dimensions truncate_prompt_tokens truncation_side add_special_tokens cache_salt messages
        priority""",
}

EMBEDDINGS = Table(
    path="/v1/embeddings",
    body={"model": MODEL, "input": "One, two, three, four"},
    model=EmbeddingsRequest,
    rows=ROWS,
    peers={"vLLM": VLLM, "SGLang": SGLANG},
)
