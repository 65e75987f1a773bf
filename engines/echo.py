"""An engine with no model: it answers with what it was asked.

For demos, for tests that need exact answers, and for load tests of the gateway alone. A chat is answered with its last
user message, any other prompt with itself: once and "stop" where `max_tokens` is absent, repeated up to `max_tokens`
and "length" where it is given. Nothing is sampled, so temperature and its kin, penalties, biases and seeds have no say.

The whole answer, stop conditions included, is decided before its first token; what remains per token is one
`TextDelta`, one turn of the event loop and the configured delay. Knows nothing of HTTP.

Tokens: a run of at most four printable ASCII characters (a space may only lead), or any other single character. An id
says its token by itself, without a vocabulary: below 0x110000 it is a code point, above it base-96 digits.

An embedding counts tokens, each in the place that its id falls on: what shares tokens is near.
"""

from __future__ import annotations

import asyncio
import math
import re
import struct
import time
from bisect import bisect_left
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from config.engines import EchoSettings
from engines.api import (
    ChatPrompt,
    Done,
    EmbeddingRequest,
    Embeddings,
    EngineStats,
    Finish,
    GenerationEvent,
    GenerationRequest,
    Health,
    ModelCard,
    Prompt,
    PromptDetails,
    SamplingParams,
    Started,
    TextDelta,
    TextPrompt,
    Tokenized,
    TokensPrompt,
    Usage,
    WatermarkParams,
    WatermarkReport,
)
from engines.errors import EngineUnavailable, InvalidRequest, PromptTooLong, UnsupportedByEngine

_TOKEN = re.compile(r" [!-~]{1,3}|[!-~]{1,4}|.", re.DOTALL)
_MAX_TOKEN_CHARS = 4
_EMBEDDING_SIZE = 64
_FIRST_RUN_ID = 0x110000  # one past the last code point
_SURROGATES = range(0xD800, 0xE000)


def split_tokens(text: str) -> list[str]:
    """The tokens of `text`; joined they are `text` again."""
    return _TOKEN.findall(text)


def token_id(token: str) -> int:
    """The id that stands for `token` in every process, below 2**27."""
    if len(token) == 1:
        return ord(token)
    run = 0
    for character in token:
        run = run * 96 + ord(character) - 31  # digits 1..95, so that runs of different lengths never collide
    return _FIRST_RUN_ID + run


def token_text(token_id: int) -> str:
    """Inverse of `token_id`. Raises InvalidRequest for an id that stands for nothing."""
    if 0 <= token_id < _FIRST_RUN_ID and token_id not in _SURROGATES:
        return chr(token_id)
    characters: list[str] = []
    run = token_id - _FIRST_RUN_ID
    while run > 0 and len(characters) <= _MAX_TOKEN_CHARS:
        run, digit = divmod(run, 96)
        characters.append(chr(digit + 31))
    text = "".join(reversed(characters))
    if not 2 <= len(text) <= _MAX_TOKEN_CHARS or "\x1f" in text:
        raise InvalidRequest(f"Token id {token_id} is not in this model's vocabulary.", field="prompt")
    return text


class EchoEngine:
    """See the module's docstring. `served_model_name` defaults to `echo`."""

    def __init__(self, settings: EchoSettings) -> None:
        name, *aliases = settings.served_model_name or ("echo",)
        self._settings = settings
        self._card = ModelCard(
            name=name, aliases=tuple(aliases), max_model_len=settings.max_model_len, created=int(time.time())
        )
        self._open = False
        self._running = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0

    @property
    def models(self) -> Sequence[ModelCard]:
        return (self._card,)

    async def start(self) -> None:
        self._open = True

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        if not self._open:
            raise EngineUnavailable("The echo engine is not running.")
        prompt = _read_prompt(request, self._settings.max_model_len)
        steps = _write_answer(prompt, request)
        delay_s = self._settings.token_delay_s
        self._running += 1
        self._prompt_tokens += len(prompt.tokens)
        generated = 0
        try:
            yield Started(prompt_tokens=len(prompt.tokens), prompt=_details(prompt.tokens) if request.echo else None)
            for step in steps:
                await asyncio.sleep(delay_s * step[0].num_tokens)
                for delta in step:
                    yield delta
                    generated += delta.num_tokens
            yield Done(Usage(prompt_tokens=len(prompt.tokens), completion_tokens=generated))
        finally:
            self._running -= 1
            self._generated_tokens += generated

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        if not self._open:
            raise EngineUnavailable("The echo engine is not running.")
        size = request.dimensions or _EMBEDDING_SIZE
        if size > _EMBEDDING_SIZE:
            raise InvalidRequest(
                f"dimensions: this model's vectors have {_EMBEDDING_SIZE} numbers (got {size})", field="dimensions"
            )
        limit = self._settings.max_model_len
        kept = limit if request.truncate_prompt_tokens == -1 else request.truncate_prompt_tokens
        inputs = [_tokens_of(one) for one in request.inputs]
        if kept is not None:
            left = request.truncation_side == "left"
            inputs = [tokens[max(len(tokens) - kept, 0) :] if left else tokens[:kept] for tokens in inputs]
        longest = max(map(len, inputs))
        if longest > limit:
            raise PromptTooLong(f"An input has {longest} tokens; this model takes {limit}.", field="input")
        num_tokens = sum(map(len, inputs))
        self._prompt_tokens += num_tokens
        return Embeddings(tuple(_vector(tokens, size) for tokens in inputs), num_tokens)

    async def tokenize(self, model: str, prompt: Prompt, *, with_texts: bool = False) -> Tokenized:  # noqa: ARG002
        tokens = _tokens_of(prompt)
        ids = tuple(map(token_id, tokens))
        if not with_texts:
            return Tokenized(ids, self._settings.max_model_len)
        ends = list(accumulate(len(token.encode("utf-8", "replace")) for token in tokens))
        offsets = tuple(zip([0, *ends], ends, strict=False))
        return Tokenized(ids, self._settings.max_model_len, tuple(tokens), "".join(tokens), offsets)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:  # noqa: ARG002
        return "".join(map(token_text, token_ids))

    async def detect_watermark(
        self,
        model: str,  # noqa: ARG002
        content: TextPrompt | TokensPrompt,  # noqa: ARG002
        watermark: WatermarkParams,  # noqa: ARG002
    ) -> WatermarkReport:
        raise UnsupportedByEngine("The echo engine samples nothing, so there is no watermark to look for.")

    async def health(self) -> Health:
        return Health(True) if self._open else Health(False, "not running")

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self._running, prompt_tokens=self._prompt_tokens, generated_tokens=self._generated_tokens
        )

    async def aclose(self) -> None:
        self._open = False


def _vector(tokens: Sequence[str], size: int) -> bytes:
    """`size` numbers, of length 1 together."""
    counts = [0.1] * _EMBEDDING_SIZE  # not 0, or a few of them might be a vector without a direction
    for token in tokens:
        counts[token_id(token) * 0x9E3779B1 % 2**32 >> 26] += 1.0
    length = math.hypot(*counts[:size])
    return struct.pack(f"<{size}f", *(count / length for count in counts[:size]))


# --- reading the prompt -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ReadPrompt:
    tokens: Sequence[str]
    answer: str  # what will be said back
    room: int  # tokens that the context still holds


def _read_prompt(request: GenerationRequest, max_model_len: int) -> _ReadPrompt:
    sampling = request.sampling
    needs_logprobs = sampling.logprobs is not None and not sampling.logprobs_optional
    if needs_logprobs or sampling.prompt_logprobs is not None:
        field = "logprobs" if needs_logprobs else "prompt_logprobs"
        raise UnsupportedByEngine(f"The echo engine has no distribution, so it cannot honour '{field}'.", field=field)
    if sampling.watermark:
        raise UnsupportedByEngine("The echo engine samples nothing that could be marked.", field="watermark")
    if request.structured_output is not None:
        field = request.structured_output.field
        raise UnsupportedByEngine("The echo engine says what it was told, so it cannot keep to a form.", field=field)
    tokens = _tokens_of(request.prompt)
    wanted = 1 if sampling.max_tokens is None else sampling.max_tokens
    if (most := request.truncate_prompt_tokens) is not None:
        most = max(max_model_len - wanted, 1) if most < 0 else most
        tokens = tokens[:most] if request.truncation_side == "right" else tokens[-most:]
    room = max_model_len - len(tokens)
    if room < wanted:
        raise PromptTooLong(
            f"This model's context holds {max_model_len} tokens, but the prompt has {len(tokens)} and the answer asks "
            f"for {wanted}.",
            field="messages" if isinstance(request.prompt, ChatPrompt) else "prompt",
        )
    answer = _last_user_text(request.prompt) if isinstance(request.prompt, ChatPrompt) else "".join(tokens)
    return _ReadPrompt(tokens, answer, room)


def _details(tokens: Sequence[str]) -> PromptDetails:
    return PromptDetails(text="".join(tokens), token_ids=tuple(map(token_id, tokens)))


def _tokens_of(prompt: Prompt) -> list[str]:
    if isinstance(prompt, TokensPrompt):
        return [token_text(token_id) for token_id in prompt.token_ids]
    return split_tokens(_render(prompt))


def _render(prompt: TextPrompt | ChatPrompt) -> str:
    if isinstance(prompt, TextPrompt):
        return prompt.text
    turns = [f"{message['role']}: {_content_text(message.get('content'))}" for message in prompt.messages]
    if prompt.add_generation_prompt and not prompt.continue_final_message:
        turns.append("assistant:")
    return "\n".join(turns)


def _last_user_text(prompt: ChatPrompt) -> str:
    if prompt.template is not None:
        raise UnsupportedByEngine("The echo engine has no use for a chat template.", field="chat_template")
    if prompt.tools:
        raise UnsupportedByEngine("The echo engine cannot call tools.", field="tools")
    users = [message for message in prompt.messages if message["role"] == "user"]
    return _content_text((users or prompt.messages)[-1].get("content"))


def _content_text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts: Iterable[Any] = content
    for part in parts:
        if part["type"] != "text":
            raise UnsupportedByEngine(f"The echo engine reads text, not '{part['type']}'.", field="messages")
    return "".join(part["text"] for part in parts)


# --- writing the answer -----------------------------------------------------------------------------------------------


def _write_answer(prompt: _ReadPrompt, request: GenerationRequest) -> list[tuple[TextDelta, ...]]:
    """Every step of the answer: one delta per choice. A request that is not streamed is answered in one step."""
    tokens, finish = _choose_tokens(prompt, request.sampling)
    ids = {token: token_id(token) for token in set(tokens)}
    texts = tokens
    if stop := _first_stop(tokens, ids, request.sampling):
        finish = Finish("stop", stop.matched)
        tokens = tokens[: stop.num_tokens]
        texts = _cut(tokens, stop.num_chars)

    def deltas(text: str, tokens: Sequence[str], finish: Finish | None = None) -> tuple[TextDelta, ...]:
        token_ids = tuple(ids[token] for token in tokens)
        return tuple(TextDelta(i, text, len(tokens), token_ids, (), finish) for i in range(request.n))

    if not tokens or not request.stream:
        return [deltas("".join(texts), tokens, finish)]
    made = {token: deltas(token, (token,)) for token in ids}  # frozen, so a token that is repeated is the same delta
    steps = [made[token] for token in tokens]
    if stop:
        steps = [deltas(text, (token,)) for text, token in zip(texts, tokens, strict=True)]
    steps[-1] = deltas(texts[-1], tokens[-1:], finish)
    return steps


def _choose_tokens(prompt: _ReadPrompt, sampling: SamplingParams) -> tuple[list[str], Finish]:
    """The tokens before any stop condition is looked at, and how the choice ends if none applies."""
    once = split_tokens(prompt.answer)
    if not once:
        return [], Finish("stop")
    if sampling.max_tokens is None and not sampling.ignore_eos and max(len(once), sampling.min_tokens) <= prompt.room:
        num_tokens, finish = max(len(once), sampling.min_tokens), Finish("stop")
    else:
        num_tokens = prompt.room if sampling.max_tokens is None else sampling.max_tokens
        finish = Finish("length")
    again = split_tokens(" " + prompt.answer)
    rounds = -(-max(num_tokens - len(once), 0) // len(again))
    return (once + again * rounds)[:num_tokens], finish


@dataclass(frozen=True, slots=True)
class _Stop:
    matched: str | int
    num_tokens: int  # generated when the condition was met
    num_chars: int  # of text that remain


def _first_stop(tokens: Sequence[str], ids: Mapping[str, int], sampling: SamplingParams) -> _Stop | None:
    """The condition met with the fewest tokens: a token before strings, then the string ending first, then longest."""
    if not tokens or not (sampling.stop or sampling.stop_token_ids):
        return None
    ends = list(accumulate(map(len, tokens)))  # ends[i]: characters of text up to and including token i
    unchecked = ends[min(sampling.min_tokens, len(ends)) - 1] if sampling.min_tokens else 0
    text = "".join(tokens)
    kept = sampling.include_stop_str_in_output
    found: list[tuple[int, int, int, _Stop]] = []  # tokens needed, end, start
    for stop in sampling.stop:
        start = text.find(stop, max(unchecked + 1 - len(stop), 0))
        if start >= 0:
            end = start + len(stop)
            num_tokens = bisect_left(ends, end) + 1
            found.append((num_tokens, end, start, _Stop(stop, num_tokens, end if kept else start)))
    for i in range(sampling.min_tokens, len(tokens)):
        if (matched := ids[tokens[i]]) in sampling.stop_token_ids:
            before = ends[i] - len(tokens[i])
            found.append((i + 1, -1, -1, _Stop(matched, i + 1, ends[i] if kept else before)))
            break
    return min(found, key=lambda item: item[:3])[3] if found else None


def _cut(tokens: Sequence[str], num_chars: int) -> list[str]:
    """The first `num_chars` characters, still one piece per token."""
    pieces: list[str] = []
    for token in tokens:
        pieces.append(token[: max(num_chars, 0)])
        num_chars -= len(token)
    return pieces
