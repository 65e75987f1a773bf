"""What changes logits before a token is drawn. Each class is one pass, built for the rows of a batch that need it.

A processor is built when the batch changes, holds index tensors on the device, and is applied in every step until the
batch changes again: so a step copies nothing to the device and does work for the rows and the tokens concerned only,
never for the whole vocabulary. Logits are changed in place. The order of the passes is the table in sampler.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from engines.native.sampling import state as columns
from engines.native.sampling.batch import SamplingBatch
from engines.native.sampling.ops import SamplingOps
from engines.native.sampling.state import Feature, SamplingState, on_device
from engines.native.types import TokenParams


class LogitsProcessor(Protocol):
    """logits [B, V] float32, contiguous. `build` gets the batch positions `at` of the rows that have `feature`."""

    feature: Feature

    @classmethod
    def build(cls, state: SamplingState, row_list: list[int], at: list[int], ops: SamplingOps) -> Self: ...

    def apply(self, logits: Tensor, batch: SamplingBatch) -> None: ...


@dataclass(frozen=True, slots=True)
class LogitBias:
    """Adds each row's biases to its logits."""

    index: Tensor  # [entries] int64 into the flattened logits
    bias: Tensor  # [entries] float32
    feature = Feature.LOGIT_BIAS

    @classmethod
    def build(cls, state: SamplingState, row_list: list[int], at: list[int], ops: SamplingOps) -> Self:
        del ops
        entries = [
            (i * state.vocab_size + token_id, bias)
            for i in at
            for token_id, bias in dict(state.params(row_list[i]).logit_bias).items()
            if 0 <= token_id < state.vocab_size
        ]
        return cls(
            _longs([index for index, _ in entries], state.device),
            on_device(np.array([bias for _, bias in entries], dtype=np.float32), state.device),
        )

    def apply(self, logits: Tensor, batch: SamplingBatch) -> None:
        del batch
        logits.view(-1).index_add_(0, self.index, self.bias)


@dataclass(frozen=True, slots=True)
class BadWords:
    """Bans the last token of a bad word where the tokens before it are the known ones' end, the prompt's included."""

    index: Tensor  # [words] int64 into the flattened logits: the banned token
    at: Tensor  # [words] int64, batch position
    prefix: Tensor  # [words, longest] int32, the tokens before the banned one; -1 = anything, on the left
    feature = Feature.BAD_WORDS

    @classmethod
    def build(cls, state: SamplingState, row_list: list[int], at: list[int], ops: SamplingOps) -> Self:
        del ops
        words = [
            (i, word)
            for i in at
            for word in state.params(row_list[i]).bad_words
            if word and 0 <= word[-1] < state.vocab_size
        ]
        prefix = np.full((len(words), max((len(word) - 1 for _, word in words), default=0)), -1, dtype=np.int32)
        for j, (_, word) in enumerate(words):
            prefix[j, prefix.shape[1] - len(word) + 1 :] = word[:-1]
        return cls(
            _longs([i * state.vocab_size + word[-1] for i, word in words], state.device),
            _longs([i for i, _ in words], state.device),
            on_device(prefix, state.device),
        )

    def apply(self, logits: Tensor, batch: SamplingBatch) -> None:
        longest = self.prefix.shape[1]
        column = batch.lengths[self.at, None] - longest + torch.arange(longest, device=logits.device)
        known = batch.token_table[batch.rows[self.at, None], column.clamp(min=0)]
        matches = ((known == self.prefix) & (column >= 0)) | (self.prefix < 0)
        _ban(logits, self.index, matches.all(dim=1))


@dataclass(frozen=True, slots=True)
class MinTokens:
    """Bans a row's stop tokens, EOS among them, until it has generated min_tokens."""

    index: Tensor  # [entries] int64 into the flattened logits
    at: Tensor  # [entries] int64, batch position
    min_length: Tensor  # [entries] int64, prompt + min_tokens
    on_host: list[tuple[int, int]]  # batch position and min_length of each row
    feature = Feature.MIN_TOKENS

    @classmethod
    def build(cls, state: SamplingState, row_list: list[int], at: list[int], ops: SamplingOps) -> Self:
        del ops
        on_host = [(i, state.num_prompt_tokens(row_list[i]) + state.params(row_list[i]).min_tokens) for i in at]
        entries = [
            (i, token_id, min_length)
            for i, min_length in on_host
            for token_id in state.params(row_list[i]).stop_token_ids
            if 0 <= token_id < state.vocab_size
        ]
        return cls(
            _longs([i * state.vocab_size + token_id for i, token_id, _ in entries], state.device),
            _longs([i for i, _, _ in entries], state.device),
            _longs([min_length for _, _, min_length in entries], state.device),
            on_host,
        )

    def apply(self, logits: Tensor, batch: SamplingBatch) -> None:
        if any(batch.length_list[i] < min_length for i, min_length in self.on_host):
            _ban(logits, self.index, batch.lengths[self.at] < self.min_length)


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """CTRL's penalty (arXiv 1909.05858, section 4.1) on every token of the prompt and of what was generated."""

    at: Tensor  # [n] int64, batch position
    on_host: list[int]
    penalty: Tensor  # [n, 1] float32
    feature = Feature.REPETITION_PENALTY

    @classmethod
    def build(cls, state: SamplingState, row_list: list[int], at: list[int], ops: SamplingOps) -> Self:
        del ops
        penalty = _floats(state, row_list, at, lambda params: params.repetition_penalty)
        return cls(_longs(at, state.device), at, penalty[:, None])

    def apply(self, logits: Tensor, batch: SamplingBatch) -> None:
        lengths = batch.lengths[self.at, None]
        width = max(batch.length_list[i] for i in self.on_host)
        # Columns past the end repeat the last token: a token that is written twice gets the same value twice.
        column = torch.arange(width, device=logits.device).minimum(lengths - 1)
        index = _flat_index(logits, batch, self.at, column)
        values = logits.view(-1)[index]
        logits.view(-1)[index] = torch.where(values < 0, values * self.penalty, values / self.penalty)


@dataclass(frozen=True, slots=True)
class OccurrencePenalties:
    """OpenAI's penalties on generated tokens: frequency times the count of a token, presence once where it occurs."""

    at: Tensor  # [n] int64, batch position
    on_host: list[tuple[int, int]]  # batch position, number of prompt tokens
    num_prompt_tokens: Tensor  # [n, 1] int64
    presence: Tensor  # [n, 1] float32
    frequency: Tensor  # [n, 1] float32
    feature = Feature.OCCURRENCE_PENALTIES

    @classmethod
    def build(cls, state: SamplingState, row_list: list[int], at: list[int], ops: SamplingOps) -> Self:
        del ops
        num_prompt_tokens = [state.num_prompt_tokens(row_list[i]) for i in at]
        return cls(
            _longs(at, state.device),
            list(zip(at, num_prompt_tokens, strict=True)),
            _longs(num_prompt_tokens, state.device)[:, None],
            _floats(state, row_list, at, lambda params: params.presence_penalty)[:, None],
            _floats(state, row_list, at, lambda params: params.frequency_penalty)[:, None],
        )

    def apply(self, logits: Tensor, batch: SamplingBatch) -> None:
        width = max(batch.length_list[i] - num_prompt_tokens for i, num_prompt_tokens in self.on_host)
        if width <= 0:
            return
        lengths = batch.lengths[self.at, None]
        column = self.num_prompt_tokens + torch.arange(width, device=logits.device)
        generated = column < lengths
        # Columns past the end repeat the last token, which is a generated one wherever the row has any.
        index = _flat_index(logits, batch, self.at, column.minimum(lengths - 1))
        flat = logits.view(-1)
        # One subtraction per occurrence: all of a token's are equal, so their order on a GPU does not matter.
        flat.index_add_(0, index.view(-1), torch.where(generated, -self.frequency, 0.0).view(-1))
        flat[index] = flat[index] - torch.where(lengths > self.num_prompt_tokens, self.presence, 0.0)


@dataclass(frozen=True, slots=True)
class TypicalP:
    """Bans what is not typical, see torch_core.mask_typical."""

    at: Tensor  # [n] int64, batch position
    temperature: Tensor  # [n] float32
    min_p: Tensor  # [n] float32
    typical_p: Tensor  # [n] float32
    ops: SamplingOps
    feature = Feature.TYPICAL_P

    @classmethod
    def build(cls, state: SamplingState, row_list: list[int], at: list[int], ops: SamplingOps) -> Self:
        rows = _longs([row_list[i] for i in at], state.device)
        floats = state.floats[:, rows]
        return cls(
            _longs(at, state.device),
            floats[columns.TEMPERATURE],
            floats[columns.MIN_P],
            floats[columns.TYPICAL_P],
            ops,
        )

    def apply(self, logits: Tensor, batch: SamplingBatch) -> None:
        del batch
        self.ops.mask_typical(logits, self.at, self.temperature, self.min_p, self.typical_p)


@dataclass(frozen=True, slots=True)
class AllowedTokens:
    """Bans all tokens but some. Of those, bans of earlier passes yield rather than leave nothing."""

    at: Tensor  # [n] int64, batch position
    bits: Tensor  # [n, ceil(vocab_size / 32)] int32, token t at bit t % 32 of word t // 32
    ops: SamplingOps
    feature = Feature.ALLOWED_TOKENS

    @classmethod
    def build(cls, state: SamplingState, row_list: list[int], at: list[int], ops: SamplingOps) -> Self:
        allowed = np.zeros((len(at), -(-state.vocab_size // 32) * 32), dtype=np.uint8)
        for i, position in enumerate(at):
            token_ids = np.array(state.params(row_list[position]).allowed_token_ids, dtype=np.int64)
            allowed[i, token_ids[(token_ids >= 0) & (token_ids < state.vocab_size)]] = 1
        bits = np.packbits(allowed, axis=1, bitorder="little").view(np.int32)
        return cls(_longs(at, state.device), on_device(bits, state.device), ops)

    def apply(self, logits: Tensor, batch: SamplingBatch) -> None:
        del batch
        self.ops.mask_tokens(logits, self.at, self.bits)


def _ban(logits: Tensor, index: Tensor, banned: Tensor) -> None:
    """logits.flat[index] = -inf where banned. Adding keeps an entry that two words name banned if either bans it."""
    logits.view(-1).index_add_(0, index, torch.where(banned, -torch.inf, 0.0))


def _flat_index(logits: Tensor, batch: SamplingBatch, at: Tensor, column: Tensor) -> Tensor:
    """Where in the flattened logits the tokens in `column` [n, width] of the rows at `at` [n] are."""
    token_ids = batch.token_table[batch.rows[at, None], column]
    return at[:, None] * logits.shape[1] + token_ids


def _longs(values: list[int], device: torch.device) -> Tensor:
    return on_device(np.array(values, dtype=np.int64), device)


def _floats(state: SamplingState, row_list: list[int], at: list[int], value: Callable[[TokenParams], float]) -> Tensor:
    values = [value(state.params(row_list[i])) for i in at]
    return on_device(np.array(values, dtype=np.float32), state.device)
