"""The chunks of an OpenAI stream: one class for both routes, which differ only in how a chunk holds its text.

A chunk that carries text alone is three byte strings joined: everything up to the text and everything after it are
rendered once, only the text is escaped. Chunks with logprobs, token ids, running usage or a finish take the longer way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from adapters.openai_errors import error_object
from adapters.openai_tools import call_piece
from adapters.openai_types import Identity, StreamOptions, finish_word, stop_reason, usage_object
from adapters.sse import DONE, data_frame, to_json
from engines.api import Done, Finish, Started, TextDelta, TokenLogprob, Usage
from engines.errors import HeadraceError

RenderLogprobs = Callable[[int, Sequence[TokenLogprob]], object]
"""(choice index, tokens) -> what stands under "logprobs"."""


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """How a route's chunk says its text: `before_text` + JSON string + `after_text`, or `without_text`."""

    object: str
    before_text: bytes
    after_text: bytes
    without_text: bytes


class ChunkExtras(NamedTuple):
    """What a stream's client asked for beside text."""

    include_usage: bool = False
    continuous_usage: bool = False
    token_ids: bool = False
    logprobs: RenderLogprobs | None = None

    @staticmethod
    def of(options: StreamOptions | None, *, token_ids: bool, logprobs: RenderLogprobs | None) -> ChunkExtras:
        options = options or StreamOptions()
        return ChunkExtras(bool(options.include_usage), bool(options.continuous_usage_stats), token_ids, logprobs)


class ChunkStream:
    """Renders one exchange's events, all its choices together. Choices count over all requests of the exchange."""

    def __init__(self, identity: Identity, shape: ChunkShape, extras: ChunkExtras) -> None:
        self._shape = shape
        self._extras = extras
        self._is_plain = not (extras.continuous_usage or extras.token_ids or extras.logprobs)
        self._envelope = _open_object(
            id=identity.id,
            object=shape.object,
            created=identity.created,
            model=identity.model,
            system_fingerprint=identity.system_fingerprint,
        )
        self._before_text: dict[int, bytes] = {}  # by choice
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0  # so far, over all choices
        self._after_text = shape.after_text + b',"logprobs":null,"finish_reason":null}]' + self._usage_field() + _END
        self._held: dict[int, list[TextDelta]] = {}  # by choice: pieces without text whose tokens wait for a chunk
        self._final: list[Usage] = []

    def started(self, event: Started, choices: range) -> None:
        """Must come before the first chunk of these choices."""
        self._prompt_tokens += event.prompt_tokens
        self._cached_tokens += event.cached_tokens
        for choice in choices:
            self._before_text[choice] = self._choice_start(choice) + self._shape.before_text

    def delta(self, choice: int, event: TextDelta) -> bytes:
        """A piece of text; b"" while text is held back."""
        if self._is_plain and event.finish is None and not event.reasoning and not event.tool_calls:
            if not event.text:
                return b""
            return self._before_text[choice] + to_json(event.text) + self._after_text
        return self._full_delta(choice, event)

    def done(self, event: Done) -> None:
        self._final.append(event.usage)

    def chunk(
        self,
        choice: int,
        text: bytes,
        *,
        logprobs: object = None,
        finish: Finish | None = None,
        choice_fields: Mapping[str, object] | None = None,
        chunk_fields: Mapping[str, object] | None = None,
    ) -> bytes:
        """Any chunk of one choice. `text` is a rendered member of the choice, such as `"text":"x"`."""
        parts = [self._choice_start(choice), text, b',"logprobs":', to_json(logprobs)]
        if finish is None:
            parts.append(b',"finish_reason":null')
        else:
            parts.append(_members({"finish_reason": finish_word(finish), "stop_reason": stop_reason(finish)}))
        parts += (_members(choice_fields), b"}]", _members(chunk_fields), self._usage_field(), _END)
        return b"".join(parts)

    def end(self) -> bytes:
        """The usage chunk, if asked for, and the end of the stream."""
        if not self._extras.include_usage:
            return DONE
        usage = _members({"usage": usage_object(self._final)})
        return b"data: " + self._envelope + b',"choices":[]' + usage + _END + DONE

    def _full_delta(self, choice: int, event: TextDelta) -> bytes:
        self._completion_tokens += event.num_tokens
        if not (event.text or event.reasoning or event.tool_calls) and event.finish is None:
            self._held.setdefault(choice, []).append(event)
            return b""
        pieces = [*self._held.pop(choice, ()), event]
        tokens = [token for piece in pieces for token in piece.logprobs]
        render = self._extras.logprobs
        token_ids = [token_id for piece in pieces for token_id in piece.token_ids]
        return self.chunk(
            choice,
            self._text_member(event),
            logprobs=render(choice, tokens) if render and tokens else None,
            finish=event.finish,
            choice_fields={"token_ids": token_ids} if self._extras.token_ids else None,
        )

    def _text_member(self, event: TextDelta) -> bytes:
        shape, text = self._shape, event.text
        if event.reasoning or event.tool_calls:
            return b'"delta":' + to_json(_delta(event))
        return shape.before_text + to_json(text) + shape.after_text if text else shape.without_text

    def _choice_start(self, choice: int) -> bytes:
        return b"data: " + self._envelope + b',"choices":[{"index":%d,' % choice

    def _usage_field(self) -> bytes:
        """What every chunk says of usage: the count so far, null where a last chunk will tell, or nothing."""
        if self._extras.continuous_usage:
            prompt, completion = self._prompt_tokens, self._completion_tokens
            return _RUNNING_USAGE % (prompt, completion, prompt + completion, self._cached_tokens)
        return b',"usage":null' if self._extras.include_usage else b""


_END = b"}\n\n"
_RUNNING_USAGE = (  # usage_object's members, rendered for every token
    b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":%d}}'
)


def _delta(event: TextDelta) -> dict[str, object]:
    """A chat delta that says more than text. Reasoning goes by both of its names."""
    delta: dict[str, object] = {}
    if event.reasoning:
        delta |= {"reasoning": event.reasoning, "reasoning_content": event.reasoning}
    if event.text:
        delta["content"] = event.text
    if event.tool_calls:
        delta["tool_calls"] = [call_piece(call) for call in event.tool_calls]
    return delta


def _open_object(**members: object) -> bytes:
    """A JSON object without its closing brace."""
    return to_json(members)[:-1]


def _members(members: Mapping[str, object] | None) -> bytes:
    """Members to add to an object that already has one: `,"name":value` for each."""
    return b"," + to_json(members)[1:-1] if members else b""


def stream_error_frames(error: HeadraceError, status: int) -> bytes:
    """An error after the first byte: OpenAI's error object as an event, and the end of the stream."""
    return data_frame(error_object(error, status)) + DONE
