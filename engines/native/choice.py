"""One choice's way from token ids to text: detokenized, cut at stop sequences, with the logprobs of what is kept.

Knows nothing of sockets and of the other choices. The same code serves streamed and whole answers, so that they say the
same.
"""

from __future__ import annotations

from collections import deque

from engines.api import Finish, SamplingParams, TextDelta, TokenLogprob, TopLogprob
from engines.native.answer_text import AnswerText, Said
from engines.native.detokenizer import Detokenizer
from engines.native.dialect import AnswerPlan
from engines.native.stop_sequences import StopMatcher
from engines.native.tokenizer import Tokenizer
from engines.native.types import FINISH_COMPLETE, FINISH_LENGTH, FINISH_STOP, LogprobRow, TokenOutput

NOTHING_PLANNED = AnswerPlan()


def token_logprob(row: LogprobRow, tokenizer: Tokenizer) -> TokenLogprob:
    """Give a row of numbers its tokens' texts."""
    top = tuple(
        TopLogprob(
            token_id,
            tokenizer.token_text(token_id),
            tokenizer.token_bytes[token_id],
            logprob,
            token_id in tokenizer.special_ids,
        )
        for token_id, logprob in zip(row.top_ids, row.top_logprobs, strict=True)
    )
    token_id = row.token_id
    return TokenLogprob(
        token_id,
        tokenizer.token_text(token_id),
        tokenizer.token_bytes[token_id],
        row.logprob,
        top,
        token_id in tokenizer.special_ids,
    )


class Choice:
    """Turns a sequence's TokenOutputs into TextDeltas. `finished` is True once a delta carried its finish.

    `after_text` says that the choice continues a text and does not begin one, so that a leading space is its own.
    """

    def __init__(
        self,
        index: int,
        sampling: SamplingParams,
        tokenizer: Tokenizer,
        *,
        stream: bool,
        after_text: bool,
        plan: AnswerPlan = NOTHING_PLANNED,
    ) -> None:
        self.index = index
        self.finished = False
        self.num_tokens = self.num_reasoning_tokens = 0
        self._tokenizer = tokenizer
        self._stream = stream
        self._min_tokens = sampling.min_tokens
        self._include_stop = sampling.include_stop_str_in_output
        self._detokenizer = Detokenizer(
            tokenizer,
            skip_special_tokens=sampling.skip_special_tokens and not plan.shows_special,
            spaces_between_special_tokens=sampling.spaces_between_special_tokens,
            after_text=after_text,
        )
        self._matcher = StopMatcher(sampling.stop, sampling.include_stop_str_in_output) if sampling.stop else None
        self._num_chars = 0  # of text detokenized so far
        self._num_shown = 0  # of those, released to the client
        self._held_logprobs: deque[tuple[int, TokenLogprob]] = deque()  # with the character their token starts at
        # Said by the next delta: text may be held back, and a whole answer is one delta.
        self._texts: list[str] = []
        self._reader = plan.reader()  # takes the place of _texts where not all text is answer
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def push(self, output: TokenOutput) -> TextDelta | None:
        """What this output lets the client see now; None when that is nothing yet."""
        token_ids = output.token_ids
        self._token_ids += token_ids
        hidden = output.finish == FINISH_STOP and not self._include_stop  # the stop token is counted, but not shown
        shown_ids, rows = (token_ids[:-1], output.logprobs[:-1]) if hidden else (token_ids, output.logprobs)
        for row in rows:
            self._held_logprobs.append((self._num_chars, token_logprob(row, self._tokenizer)))
        text = self._detokenizer.push(shown_ids)
        if output.finish:
            text += self._detokenizer.finish()
        matched = self._show(text, len(token_ids))
        finish = None
        if matched is not None:
            finish = Finish("stop", matched)
        elif output.finish == FINISH_STOP:
            finish = Finish("stop", None if token_ids[-1] in self._tokenizer.eos_token_ids else token_ids[-1])
        elif output.finish == FINISH_COMPLETE:
            finish = Finish("stop")
        elif output.finish == FINISH_LENGTH:
            finish = Finish("length")
        if finish is not None and matched is None and self._matcher is not None:
            self._say(self._matcher.flush())
        if matched is None and self._reader is not None and self._reader.is_over:
            finish = Finish("stop")
        self._release_logprobs(everything=finish is not None and matched is None)
        return self._delta(finish)

    def _show(self, text: str, num_new_tokens: int) -> str | None:
        """Pass text through the stop matcher; the stop string that ended it, if one did."""
        self.num_tokens += num_new_tokens
        self._num_chars += len(text)
        matched = None
        if self._matcher is not None and self.num_tokens > self._min_tokens:
            text, matched = self._matcher.push(text)
        was_thinking = self._reader is not None and self._reader.is_thinking
        self._say(text)
        if was_thinking or (self._reader is not None and self._reader.is_thinking):
            self.num_reasoning_tokens += num_new_tokens  # the tags are part of it
        return matched

    def _say(self, text: str) -> None:
        self._num_shown += len(text)
        if self._reader is None:
            self._texts.append(text)
        else:
            self._reader.push(text)

    def _release_logprobs(self, *, everything: bool) -> None:
        """Those whose token starts in text that is shown; after a stop sequence the rest is never said."""
        held = self._held_logprobs
        while held and (everything or held[0][0] < self._num_shown):
            self._logprobs.append(held.popleft()[1])

    def _delta(self, finish: Finish | None) -> TextDelta | None:
        if self._reader is not None:
            return self._delta_of(self._reader, finish)
        if finish is None and not (self._stream and (self._logprobs or any(self._texts))):
            return None
        return self._tell(Said(text="".join(self._texts)), finish)

    def _delta_of(self, reader: AnswerText, finish: Finish | None) -> TextDelta | None:
        if finish is None and not (self._stream and (self._logprobs or reader.has_news)):
            return None
        if finish is not None:
            reader.finish()
            if reader.num_calls and finish.reason == "stop":
                finish = Finish("tool_calls", finish.matched)
        return self._tell(reader.take(), finish)

    def _tell(self, said: Said, finish: Finish | None) -> TextDelta:
        self.finished = finish is not None
        delta = TextDelta(
            index=self.index,
            text=said.text,
            num_tokens=len(self._token_ids),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            finish=finish,
            reasoning=said.reasoning,
            tool_calls=said.calls,
        )
        self._texts, self._token_ids, self._logprobs = [], [], []
        return delta
