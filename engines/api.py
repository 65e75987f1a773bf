"""The contract between the gateway and every engine.

An engine is any object with the methods of `Engine`. The gateway turns a wire request into one frozen
`GenerationRequest`, iterates the events that `generate` yields, and closes the iterator when the client leaves: closing
is cancelling, and there is no other path. Nothing here knows HTTP, tensors or processes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from engines.step_stats import StepStats

FinishReason = Literal["stop", "length", "tool_calls", "abort"]

# --- what goes in -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt as text; the engine tokenizes it."""

    text: str
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TokensPrompt:
    """A prompt as token ids, used as they are."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation for the model's chat template.

    `messages` are plain dicts in OpenAI's shape, already validated: role, content (a string or a list of content parts)
    and, where they apply, name, tool_calls, tool_call_id.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    template: str | None = None  # the client's own, in Jinja, in place of the model's


Prompt = TextPrompt | TokensPrompt | ChatPrompt


WatermarkScheme = Literal["green_list", "gumbel", "synthid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkParams:
    """A mark to generate with or to look for. None means "as the engine is set", or the scheme's own default."""

    scheme: WatermarkScheme | None = None
    key: str | None = field(default=None, repr=False)  # a secret: not for logs, errors or answers
    gamma: float | None = None  # green_list: share of the vocabulary that is green
    delta: float | None = None  # green_list: added to green logits
    context_width: int | None = None  # tokens before the marked one that its mark depends on
    self_hash: bool | None = None  # green_list: whether it depends on the marked token as well
    depth: int | None = None  # synthid: layers of the tournament
    lists: Literal["headrace", "tgi"] | None = None  # green_list, in detection only: whose lists the text was made with


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop. None means "the engine's default": the model's own where it has one.

    Units: token counts are tokens; probabilities are in [0, 1]; penalties follow OpenAI's definition (presence and
    frequency are subtracted from logits, counted over generated tokens) and CTRL's for repetition (arXiv 1909.05858,
    over prompt and generated tokens).
    """

    max_tokens: int | None = None  # None: whatever the context still holds
    min_tokens: int = 0  # stop conditions are not looked at before that many generated tokens
    temperature: float | None = None  # 0 is greedy
    top_p: float | None = None
    top_k: int | None = None  # 0 or -1: off
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None  # 1: off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()  # no others are generated, EOS included; (): all
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None  # how many alternatives beside the chosen token; None: no logprobs at all
    logprobs_optional: bool = False  # True: an engine that has no distribution leaves them out and does not refuse
    prompt_logprobs: int | None = None  # the same for the prompt's tokens
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    watermark: WatermarkParams | bool | None = None  # None: as the engine is set


@dataclass(frozen=True, slots=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """A JSON value that the schema accepts. The schema is enforced whether or not the client called it strict."""

    schema: Mapping[str, Any] | bool
    name: str = "answer"
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that the regular expression matches as a whole."""

    pattern: str


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of these texts, at least one, none of them empty."""

    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """Text that a context-free grammar derives: GBNF, or Lark as llguidance reads it."""

    text: str


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """What the answer's text must be. `field` is where the client wrote it, for refusals."""

    form: JsonObject | JsonSchema | Regex | OneOf | Grammar
    field: str


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether and how the model may call the prompt's tools: "none", "auto" (its choice), "required" (at least one
    call), "named" (one call of `name`). `parallel`: whether an answer may hold several calls."""

    mode: Literal["none", "auto", "required", "named"] = "auto"
    name: str = ""
    parallel: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt, `n` choices. Valid by construction: adapters check ranges and types before they build one."""

    request_id: str
    model: str  # the name the client used; one of the engine's own ModelCard names or aliases
    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    structured_output: StructuredOutput | None = None  # holds for the answer proper, not for reasoning before it
    tool_choice: ToolChoice = ToolChoice()  # of ChatPrompt.tools
    thinking_budget: int | None = None  # tokens of reasoning after which the engine ends it
    n: int = 1
    stream: bool = True  # a hint: when False the engine may deliver text in larger pieces
    echo: bool = False  # Started must carry the prompt's text and token ids
    truncate_prompt_tokens: int | None = None  # keep only so many prompt tokens; -1: as many as leave the answer room
    truncation_side: Literal["left", "right"] = "left"  # where prompt tokens go: at the start or at the end
    priority: int = 0  # the lowest is served first, by engines that are set to look at it
    cache_salt: str = ""  # prefix-cache hits only between requests of one salt
    forwarded: Mapping[str, Any] = field(default_factory=dict[str, Any])  # wire fields that only an upstream may use


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts or tokens to be made into vectors, at least one; none of them is empty."""

    request_id: str
    model: str  # as in GenerationRequest
    inputs: tuple[TextPrompt | TokensPrompt, ...]
    dimensions: int | None = None  # cut each vector to so many numbers and scale it back to length 1
    truncate_prompt_tokens: int | None = None  # keep only so many tokens of each; -1: as many as the model takes
    truncation_side: Literal["left", "right"] = "right"  # where tokens go: at the start or at the end
    cache_salt: str = ""  # as in GenerationRequest
    forwarded: Mapping[str, Any] = field(default_factory=dict[str, Any])  # wire fields that only an upstream may use


# --- what comes out ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One alternative at one position: log-probability (natural log) under the model's own distribution."""

    token_id: int
    token: str
    bytes: bytes
    logprob: float
    special: bool = False  # a token that stands for no text of its own, such as EOS


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The chosen token's log-probability with the `logprobs` most likely alternatives, most likely first."""

    token_id: int
    token: str
    bytes: bytes
    logprob: float
    top: tuple[TopLogprob, ...] = ()
    special: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDetails:
    """The prompt as the engine saw it. `logprobs[i]` belongs to token i; the first has none."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob | None, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Always the first event: the request was accepted and its prompt processed."""

    prompt_tokens: int
    cached_tokens: int = 0  # of those, found in the prefix cache
    queued_s: float = 0.0  # seconds between the engine's taking the request and its first step for it
    prompt: PromptDetails | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a choice ended. `matched` is the stop string or stop token id that ended it, None for EOS and for lengths."""

    reason: FinishReason
    matched: str | int | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of one tool call. `index` counts the calls of a choice.

    A call's first piece has its `id` and `name`, whole; later pieces have neither. The `arguments` of all its pieces,
    joined, are its arguments: a JSON object, unless the model wrote something else or ran out of tokens.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of one choice. The last piece of a choice carries `finish`; text may be empty while text is held back.

    Where it has several parts they were said in the order reasoning, text, tool calls.

    `num_tokens` counts generated tokens this piece stands for (EOS and a cut stop string's tokens included), so that
    the sum over a choice is its completion_tokens. `token_ids` may be empty where the engine does not know them.
    """

    index: int
    text: str
    num_tokens: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    reasoning: str = ""  # what the model thought before its answer
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of a whole request, over all choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion tokens


@dataclass(frozen=True, slots=True)
class Done:
    """Always the last event, after every choice has finished."""

    usage: Usage


GenerationEvent = Started | TextDelta | Done


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector per input, in their order, each as little-endian float32; `prompt_tokens` counts those of all."""

    vectors: tuple[bytes, ...]
    prompt_tokens: int


# --- what an engine tells about itself --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """A model an engine serves. `aliases` are further names it answers to."""

    name: str
    aliases: tuple[str, ...] = ()
    max_model_len: int | None = None  # prompt + output tokens; None: not known (remote)
    max_prompt_tokens: int | None = None  # None: whatever max_model_len leaves
    created: int = 0  # Unix seconds
    owned_by: str = "headrace"


@dataclass(frozen=True, slots=True)
class Health:
    """`detail` says, in words for an operator, what is wrong when `ok` is False."""

    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Gauges and counters for /metrics. Zeros where an engine has no such thing."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    kv_block_size: int = 0  # tokens
    prefix_cache_hit_tokens: int = 0
    prefix_cache_query_tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: StepStats = field(default_factory=StepStats)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """What was tokenized and into what. The last three are there when asked for, as far as the engine knows them.

    `token_texts[i]` is token i as text, `text` the whole that was tokenized (a conversation as its template wrote it),
    and `offsets[i]` the bytes [start, stop) of it, in UTF-8, that token i covers: (0, 0) for a token put around it.
    """

    token_ids: tuple[int, ...]
    max_model_len: int | None = None
    token_texts: tuple[str, ...] = ()
    text: str = ""
    offsets: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class MarkedToken:
    """`mark` is from 0 (speaks against a watermark) to 1 (for it), None where the token was not scored."""

    token_id: int
    text: str
    mark: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkReport:
    """How surely tokens carry a mark. `p_value`: how often unmarked text would score as high or higher."""

    scheme: WatermarkScheme
    num_tokens_scored: int
    statistic: float
    z_score: float
    p_value: float
    tokens: tuple[MarkedToken, ...]


class Engine(Protocol):
    """What stands behind a model name. All methods run on the gateway's event loop and must not block it.

    What an engine cannot do (`generate` included, for a model that only embeds) it refuses with UnsupportedByEngine.
    `generate` raises a `HeadraceError` before its first event for a request it refuses; after `Started` an error means
    the generation was lost. Closing the generator (`aclose`) cancels the request and frees what it held.
    """

    @property
    def models(self) -> Sequence[ModelCard]: ...

    async def start(self) -> None:
        """Return when able to answer. Raises EngineUnavailable when it never will be."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]: ...

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Cancelling the call frees what it held. Raises UnsupportedByEngine where the engine or its model cannot."""
        ...

    async def tokenize(self, model: str, prompt: Prompt, *, with_texts: bool = False) -> Tokenized:
        """Raises UnsupportedByEngine where the engine has no tokenizer."""
        ...

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str: ...

    async def detect_watermark(
        self, model: str, content: TextPrompt | TokensPrompt, watermark: WatermarkParams
    ) -> WatermarkReport:
        """Looks for a mark in what was generated. Raises UnsupportedByEngine where the engine cannot."""
        ...

    async def health(self) -> Health: ...

    def stats(self) -> EngineStats: ...

    async def aclose(self) -> None: ...
