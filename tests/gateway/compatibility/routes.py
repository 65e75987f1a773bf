"""Which routes there are: here, and with the peers. What is not here is a 404 in JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Peer = Literal["there", "if enabled", "not there", ""]
"""How a peer has a route; "" where nothing is known."""

PEERS = ("vLLM", "SGLang", "TGI")


@dataclass(frozen=True, slots=True)
class RouteRow:
    """`routes` are methods and paths, as "POST /x, GET /y"."""

    routes: str
    peers: tuple[Peer, Peer, Peer]  # in the order of PEERS
    note: str = ""

    @property
    def each(self) -> list[tuple[str, str]]:
        return [(method, path) for method, _, path in (route.partition(" ") for route in self.routes.split(", "))]


_ALL: tuple[Peer, Peer, Peer] = ("there", "there", "there")
_TGI: tuple[Peer, Peer, Peer] = ("not there", "not there", "there")
_ONLY_HERE: tuple[Peer, Peer, Peer] = ("not there", "not there", "not there")
_BOTH_OTHERS: tuple[Peer, Peer, Peer] = ("there", "there", "not there")

THERE = (
    RouteRow("POST /v1/chat/completions", _ALL, "[Fields](#post-v1chatcompletions)."),
    RouteRow("POST /v1/completions", _ALL, "[Fields](#post-v1completions)."),
    RouteRow("POST /v1/responses", _BOTH_OTHERS, "[Fields](#post-v1responses)."),
    RouteRow(
        "GET /v1/responses/{response_id}, POST /v1/responses/{response_id}/cancel",
        ("if enabled", "if enabled", "not there"),
        "Answers are kept unless the client says otherwise; made in the background they are not, so nothing can be "
        "cancelled, which the 400 says.",
    ),
    RouteRow(
        "DELETE /v1/responses/{response_id}, GET /v1/responses/{response_id}/input_items",
        _ONLY_HERE,
        "As with OpenAI.",
    ),
    RouteRow("POST /v1/messages", _BOTH_OTHERS, "[Fields](#post-v1messages)."),
    RouteRow(
        "POST /v1/messages/count_tokens", _BOTH_OTHERS, "Takes the fields of `/v1/messages` that are part of a prompt."
    ),
    RouteRow(
        "POST /v1/embeddings",
        ("if enabled", "if enabled", "not there"),
        "[Fields](#post-v1embeddings). With any model here; see [embeddings.md](embeddings.md).",
    ),
    RouteRow("GET /v1/models", _ALL, "In Anthropic's shape, in pages, for a client that sends `anthropic-version`."),
    RouteRow("GET /v1/models/{model:path}", ("not there", "there", "not there"), "Likewise in either shape."),
    RouteRow("POST /tokenize", _ALL, "vLLM's shapes; TGI's where the body has `inputs`."),
    RouteRow("POST /detokenize", _BOTH_OTHERS, "vLLM's shape."),
    RouteRow("POST /v1/watermark/detect", _ONLY_HERE, "See [watermark.md](watermark.md)."),
    RouteRow("POST /, POST /generate_stream", _TGI, "See [tgi.md](tgi.md)."),
    RouteRow(
        "POST /generate",
        ("not there", "there", "there"),
        "TGI's, [with these fields](#post-generate-parameters). SGLang's route of this name takes another body.",
    ),
    RouteRow("POST /chat_tokenize, GET /info, GET /", _TGI, "See [tgi.md](tgi.md)."),
    RouteRow("POST /vertex", _TGI, "SGLang's is called `/vertex_generate`."),
    RouteRow("POST /invocations, GET /ping", _ALL, "For SageMaker."),
    RouteRow("GET /health", _ALL, "Answers at once, whatever the device is computing."),
    RouteRow("GET /health/live, GET /health/ready", _ONLY_HERE, "SGLang's readiness is at `/ready`."),
    RouteRow("GET /metrics", ("there", "if enabled", "there"), "`headrace_*`, and TGI's series under TGI's names."),
    RouteRow("GET /version", ("there", "not there", "not there")),
    RouteRow("GET /openapi.json", ("there", "there", "not there")),
    RouteRow("GET /api-doc/openapi.json", _TGI, "The same document."),
    RouteRow("GET /docs", _ALL, "A list of the routes; what goes in and out stands in `/openapi.json`."),
)

NOT_THERE = (
    RouteRow(
        "POST /v1/score, POST /v1/rerank, POST /rerank, POST /v2/rerank, POST /classify, POST /pooling",
        ("if enabled", "if enabled", "not there"),
        "For models that rank, classify or pool (vLLM and SGLang have them with such models alone, some under other "
        "names); there are none here.",
    ),
    RouteRow(
        "POST /v1/audio/transcriptions, POST /v1/audio/translations",
        ("if enabled", "if enabled", "not there"),
        "For speech models; models here read and write text. SGLang transcribes and does not translate.",
    ),
    RouteRow(
        "POST /v1/images/generations, POST /v1/moderations", _ONLY_HERE, "Models here write text, and nobody judges it."
    ),
    RouteRow(
        "POST /v1/files, POST /v1/batches",
        _ONLY_HERE,
        "`headrace batch FILE` answers files in the format of OpenAI's Batch API: [batch.md](batch.md). vLLM has "
        "`vllm run-batch`.",
    ),
    RouteRow(
        "POST /v1/chat/completions/batch",
        ("there", "not there", "not there"),
        "Send the conversations as requests of their own: they are computed together all the same.",
    ),
    RouteRow(
        "POST /v1/load_lora_adapter, POST /v1/unload_lora_adapter",
        ("if enabled", "not there", "not there"),
        "There are no adapters here; merge one into its model's weights. SGLang has such routes under other names.",
    ),
    RouteRow("GET /load", ("if enabled", "not there", "not there"), "`/metrics` has running and waiting requests."),
    RouteRow("GET /tokenizer_info", ("if enabled", "not there", "not there"), "Read the model's own files."),
    RouteRow(
        "POST /sleep, POST /wake_up, GET /is_sleeping",
        ("if enabled", "not there", "not there"),
        "Stop the server and start it again; nothing outlasts a request but the prefix cache, and stored responses if "
        "`--responses-path` is set.",
    ),
    RouteRow(
        "POST /pause, POST /resume, POST /reset_prefix_cache, POST /collective_rpc, GET /server_info",
        ("if enabled", "", "not there"),
        "For training loops, which are not served here. `--no-prefix-caching` does without the cache.",
    ),
    RouteRow(
        "POST /start_profile, POST /stop_profile",
        ("if enabled", "there", "not there"),
        "`headrace bench` measures and profiles without a server: [bench.md](bench.md).",
    ),
    RouteRow(
        "POST /inference/v1/generate",
        ("if enabled", "not there", "not there"),
        "Tokens in, tokens out: `/v1/completions` takes token ids and gives them back with `return_token_ids`.",
    ),
    RouteRow(
        "POST /v1/decisions", ("there", "there", "not there"), "`structured_outputs.choice` chooses among labels."
    ),
    RouteRow("GET /v1/realtime", ("if enabled", "there", "not there"), "For speech models."),
    RouteRow(
        "POST /api/chat, POST /api/generate, GET /api/tags, POST /api/show",
        ("not there", "there", "not there"),
        "Ollama's protocol; its clients can be told to speak OpenAI's.",
    ),
    RouteRow("GET /v2/health/live", ("not there", "", "if enabled"), "KServe's protocol; KServe also speaks OpenAI's."),
)
