"""What every running sequence asked of the sampler, resident on the device, so that a step needs only row indices.

Owns the parameters of each row and their host-side mirrors, from which a step learns without asking the device which
passes it needs. It knows nothing of logits; the rows' tokens and lengths belong to the model runner.
"""

from collections.abc import Sequence
from enum import IntFlag

import numpy as np
import torch
from torch import Tensor

from engines.native.types import GREEN_LIST, GREEN_LIST_SELF, GUMBEL, SYNTHID, TokenParams

# Below this temperature the draw could only break ties, and dividing by it costs precision: such a row is greedy.
GREEDY_BELOW = 1e-5

TEMPERATURE, TOP_P, MIN_P, TYPICAL_P, REPETITION_PENALTY, PRESENCE_PENALTY, FREQUENCY_PENALTY = range(7)
TOP_K, SEED, NUM_PROMPT_TOKENS = range(3)


class Feature(IntFlag):
    """What a row needs beyond the largest logit. Greedy rows have none of the first five."""

    RANDOM = 1
    TOP_K = 2
    TOP_P = 4
    MIN_P = 8
    TYPICAL_P = 16
    REPETITION_PENALTY = 32
    OCCURRENCE_PENALTIES = 64
    LOGIT_BIAS = 128
    BAD_WORDS = 256
    MIN_TOKENS = 512
    LOGPROBS = 1024
    MARKED = 2048  # a watermark of logits or noise
    TOURNAMENT = 4096  # a watermark of the distribution
    ALLOWED_TOKENS = 8192


class SamplingState:
    """Parameters of up to `max_rows` sequences. Token ids outside [0, vocab_size) in parameters are without effect.

    floats: [7, max_rows] float32 and ints: [3, max_rows] int64, on the device, indexed by the constants above.
    """

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self.version = 0  # grows with every change, so that what was derived from the rows knows when it is stale
        self.floats = torch.zeros(7, max_rows, dtype=torch.float32, device=device)
        self.ints = torch.zeros(3, max_rows, dtype=torch.int64, device=device)
        self.features = np.zeros(max_rows, dtype=np.int32)  # Feature bits
        self._params: list[TokenParams | None] = [None] * max_rows
        self._num_prompt_tokens = [0] * max_rows

    def set_row(self, row: int, params: TokenParams, num_prompt_tokens: int) -> None:
        """As set_rows, for one row."""
        self.set_rows([(row, params, num_prompt_tokens)])

    def set_rows(self, admitted: Sequence[tuple[int, TokenParams, int]]) -> None:
        """Sequences enter rows: (row, parameters, prompt tokens) of each. What was in those rows is forgotten.

        Three small copies to the device, whatever the number.
        """
        if not admitted:
            return
        floats = np.empty((7, len(admitted)), dtype=np.float32)
        ints = np.empty((3, len(admitted)), dtype=np.int64)
        for i, (row, params, num_prompt_tokens) in enumerate(admitted):
            greedy = params.temperature < GREEDY_BELOW
            floats[:, i] = (
                0.0 if greedy else params.temperature,
                params.top_p,
                params.min_p,
                params.typical_p,
                params.repetition_penalty,
                params.presence_penalty,
                params.frequency_penalty,
            )
            ints[:, i] = params.top_k, _as_int64(params.seed), num_prompt_tokens
            self.features[row] = _features(params, greedy, self.vocab_size)
            self._params[row] = params
            self._num_prompt_tokens[row] = num_prompt_tokens
        rows = on_device(np.array([row for row, _, _ in admitted], dtype=np.int64), self.device)
        self.floats.index_copy_(1, rows, on_device(floats, self.device))
        self.ints.index_copy_(1, rows, on_device(ints, self.device))
        self.version += 1

    def params(self, row: int) -> TokenParams:
        """What the sequence in `row` asked for; the row must have been set."""
        params = self._params[row]
        assert params is not None, f"row {row} was never set"
        return params

    def num_prompt_tokens(self, row: int) -> int:
        return self._num_prompt_tokens[row]


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy to the device that the host does not wait for. On a CPU the tensor shares the array's memory."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _features(params: TokenParams, greedy: bool, vocab_size: int) -> Feature:
    scheme = -1 if params.watermark is None else params.watermark.scheme
    wanted = {
        Feature.RANDOM: not greedy,
        Feature.TOP_K: not greedy and 0 < params.top_k < vocab_size,
        Feature.TOP_P: not greedy and params.top_p < 1.0,
        Feature.MIN_P: not greedy and params.min_p > 0.0,
        Feature.TYPICAL_P: not greedy and params.typical_p < 1.0,
        Feature.REPETITION_PENALTY: params.repetition_penalty != 1.0,
        Feature.OCCURRENCE_PENALTIES: params.presence_penalty != 0.0 or params.frequency_penalty != 0.0,
        Feature.LOGIT_BIAS: bool(params.logit_bias),
        Feature.BAD_WORDS: bool(params.bad_words),
        Feature.MIN_TOKENS: params.min_tokens > 0 and bool(params.stop_token_ids),
        Feature.LOGPROBS: params.logprobs >= 0,
        Feature.MARKED: scheme in (GREEN_LIST, GREEN_LIST_SELF) or (scheme == GUMBEL and not greedy),
        Feature.ALLOWED_TOKENS: bool(params.allowed_token_ids),
        Feature.TOURNAMENT: scheme == SYNTHID and not greedy,
    }
    features = Feature(0)
    for feature, is_wanted in wanted.items():
        if is_wanted:
            features |= feature
    return features


def _as_int64(seed: int) -> int:
    """The seed's low 64 bits as a signed word: every integer is a seed."""
    return (seed + 2**63) % 2**64 - 2**63
