"""What passes through a model while it is loaded, to tell how the columns of its layers' inputs go along.

A text of this repository, probe_text.txt: prose in several languages, tables, shell and Python. Which columns are large
shows with random tokens too; which go along with each other does not (docs/quantization.md has figures).
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from engines.native.tokenizer import Tokenizer
from engines.native.tokenizer_backend import TokenizerLoadError

NUM_TOKENS = 4096
SEQUENCE_LENGTH = 512
_TEXT = Path(__file__).with_name("probe_text.txt")
_SEED = 0

logger = logging.getLogger(__name__)


def probe_tokens(tokenizer: str | Path | None, vocab_size: int, max_model_len: int) -> Tensor:
    """[sequences, length] int64, about NUM_TOKENS in all; random where there is no tokenizer."""
    ids = _random(vocab_size) if tokenizer is None else _text(tokenizer, vocab_size)
    length = min(SEQUENCE_LENGTH, max_model_len, len(ids))
    count = min(NUM_TOKENS, len(ids)) // length
    return ids[: count * length].view(count, length)


def _text(tokenizer: str | Path, vocab_size: int) -> Tensor:
    try:
        ids = torch.tensor(Tokenizer.load(tokenizer).encode(_TEXT.read_text(encoding="utf-8")))
    except TokenizerLoadError as error:  # a server of token ids needs none
        logger.warning("Codes are chosen by random tokens, which costs precision: %s", error)
        return _random(vocab_size)
    return ids[ids < vocab_size]


def _random(vocab_size: int) -> Tensor:
    return torch.randint(0, vocab_size, (NUM_TOKENS,), generator=torch.Generator().manual_seed(_SEED))
