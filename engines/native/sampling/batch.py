"""Who is sampled in a step: the sampler's view of a batch. Values only."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class NoiseKeys:
    """What keys the noise of each row's draw, [B] int64 each; a watermark puts its own in their place."""

    seeds: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingBatch:
    """B sequences that get one token each. Entry i of everything belongs to row i of the logits.

    rows:        [B] int64         rows of SamplingState and of token_table
    positions:   [B] int64         position in its sequence of the token to be sampled; with the seed, it keys the noise
    lengths:     [B] int64         known tokens, prompt and generated
    token_table: [max_rows, max_len] int32   the known tokens of each row; what lies behind a row's length is ignored
    row_list, length_list          `rows` and `lengths` on the host
    noise:       seeds, and `positions`; means something where a row is drawn at random
    """

    rows: Tensor
    positions: Tensor
    lengths: Tensor
    token_table: Tensor
    row_list: list[int]
    length_list: list[int]
    noise: NoiseKeys


@dataclass(frozen=True, slots=True)
class DeviceMasks:
    """The tokens that grammars allow, on the device, for the rows that have one."""

    at: Tensor  # [n] int64, batch position
    bits: Tensor  # [n, ceil(vocab_size / 32)] int32, token t at bit t % 32 of word t // 32
