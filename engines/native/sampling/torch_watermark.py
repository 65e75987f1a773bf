"""Watermarks on logits in plain PyTorch, on any device: the meaning that kernels/triton_watermark.py keeps.

The hash is that of watermark/prf.py, for a whole vocabulary at once. Everything is a function of a row's own tokens and
its key, read from the device's table of tokens: so a mark is the same alone and in a batch, before and after a
preemption, and when the token before it is not known to the host yet.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engines.native.sampling import torch_core
from engines.native.sampling.noise import mix, random_bits
from engines.native.types import GREEN_LIST, GREEN_LIST_SELF, GUMBEL
from engines.native.watermark import prf

ROUND_LAYERS = 10  # layers of a tournament that are played at a time
VANISHED = 1e-300  # growth of a class whose rivals had all the mass
_WORD = 0xFFFFFFFF
MASS_UNIT = 2.0**32  # the likeliest token's weight, in units of which masses are summed exactly


AT, SCHEME, KEY, WIDTH, NUM_PROMPT_TOKENS, THRESHOLD = range(6)


@dataclass(frozen=True, slots=True)
class MarkedRows:
    """n rows of a batch that are marked.

    ints:    [6, n] int64, on the device, by the constants above: batch position, scheme, key, context width, number of
             prompt tokens, and a green list's threshold
    deltas:  [n] float32, on the device
    schemes: [n] on the host
    """

    ints: Tensor
    deltas: Tensor
    schemes: list[int]
    max_width: int

    @property
    def at(self) -> Tensor:
        return self.ints[AT]

    @property
    def keys(self) -> Tensor:
        return self.ints[KEY]

    @property
    def widths(self) -> Tensor:
        return self.ints[WIDTH]

    @property
    def num_prompt_tokens(self) -> Tensor:
        return self.ints[NUM_PROMPT_TOKENS]

    @property
    def thresholds(self) -> Tensor:
        return self.ints[THRESHOLD]

    def of(self, scheme: int) -> "MarkedRows | None":
        """Those of one scheme, None if there are none."""
        chosen = [i for i, of_row in enumerate(self.schemes) if of_row == scheme]
        if not chosen:
            return None
        return MarkedRows(self.ints[:, chosen], self.deltas[chosen], [scheme] * len(chosen), self.max_width)


def mark_tokens(
    logits: Tensor,
    token_table: Tensor,
    rows: Tensor,
    lengths: Tensor,
    marked: MarkedRows,
    seeds: Tensor,
    positions: Tensor,
) -> None:
    """Green lists and Gumbel-max, in place.

    A green row's logits rise by delta where the token is green. A Gumbel row's seed and position, which key the noise
    of its draw, become the context's key and the scheme's domain, where the context is whole and fresh.

    logits [B, V] float32; token_table [max_rows, max_len] int32; rows, lengths, seeds, positions [B] int64.
    """
    for scheme, bits_of in ((GREEN_LIST, _list_bits), (GREEN_LIST_SELF, _self_hash_bits)):
        green = marked.of(scheme)
        if green is not None:
            keys = green_keys(token_table, rows, lengths, green)
            whole = (lengths[green.at] >= green.widths)[:, None]
            bits = bits_of(green, keys, torch.arange(logits.shape[1], device=logits.device))
            bias = torch.where((bits < green.thresholds[:, None]) & whole, green.deltas[:, None], 0.0)
            logits.index_add_(0, green.at, bias)
    key_noise(token_table, rows, lengths, marked, seeds, positions)


def green_keys(token_table: Tensor, rows: Tensor, lengths: Tensor, green: MarkedRows) -> Tensor:
    """What green rows of one scheme hash a candidate with, [n, k] int64: the context's key (k = 1), or with self-hash
    a key for each token of the context, the last token's first."""
    context = _context(token_table, rows, lengths, green)
    if green.schemes[0] != GREEN_LIST_SELF:
        return _context_keys(green.keys, context, green.widths)[:, None]
    one = torch.ones_like(green.widths)
    keys = [_context_keys(green.keys, context[:, -back, None], one) for back in range(1, green.max_width + 1)]
    return torch.stack(keys, dim=1)


def key_noise(
    token_table: Tensor, rows: Tensor, lengths: Tensor, marked: MarkedRows, seeds: Tensor, positions: Tensor
) -> None:
    """The part of mark_tokens that is Gumbel-max."""
    gumbel = marked.of(GUMBEL)
    if gumbel is not None:
        keys, is_fresh = fresh_contexts(token_table, rows, lengths, gumbel)
        seeds[gumbel.at] = torch.where(is_fresh, keys, seeds[gumbel.at])
        positions[gumbel.at] = torch.where(is_fresh, prf.GUMBEL_DOMAIN, positions[gumbel.at])


def fresh_contexts(token_table: Tensor, rows: Tensor, lengths: Tensor, marked: MarkedRows) -> tuple[Tensor, Tensor]:
    """Each row's context key [n] int64, and [n] bool: whether its last generated tokens are as many as the context has,
    and were not the context of an earlier generated token."""
    context = _context(token_table, rows, lengths, marked)
    lengths = lengths[marked.at]
    # A GPU would have to be asked for the longest row.
    width = int(lengths.max()) if lengths.device.type == "cpu" else token_table.shape[1]
    known = token_table[rows[marked.at], :width]
    columns = torch.arange(known.shape[1], device=known.device)
    # Column j is compared as the context of token j: the tokens at j - 1, j - 2 and so on.
    begins = (marked.num_prompt_tokens + marked.widths)[:, None]
    repeats = (columns >= begins) & (columns < lengths[:, None])
    for back in range(1, marked.max_width + 1):
        is_same = known.roll(back, dims=1) == context[:, -back, None]
        repeats &= is_same | (back > marked.widths)[:, None]
    is_whole = lengths - marked.num_prompt_tokens >= marked.widths
    return _context_keys(marked.keys, context, marked.widths), is_whole & ~repeats.any(dim=1)


def compete(
    logits: Tensor, at: Tensor, keys: Tensor, is_marked: Tensor, temperature: Tensor, depths: Tensor, num_layers: int
) -> None:
    """SynthID-Text's tournament (Dathathri et al., Nature 634, 2024, equation 2 with two competitors), in place.

    The distribution softmax(logits / temperature) becomes that of a tournament's winner: in each layer the mass of
    tokens with a one grows by the share of those with a zero, p <- p * (1 + g - sum of p where g is 1). Over random
    keys the mean is the distribution itself.

    Tokens with the same bits in some layers grow alike in them, so ROUND_LAYERS layers need only the masses of
    2**ROUND_LAYERS classes of tokens. Masses are summed as integers: their order does not matter.

    logits [B, V] float32; at [n] int64; keys [n] int64 and is_marked [n] bool as fresh_contexts gives them; temperature
    [n] float32, positive; depths [n] int64, at most num_layers.
    """
    scores = torch_core.scaled(logits[at], temperature)
    token_ids = torch.arange(logits.shape[1], device=logits.device)
    bits = random_bits(keys[:, None], torch.full_like(keys, prf.SYNTHID_DOMAIN)[:, None], token_ids)
    growth = torch.zeros_like(scores)
    for first in range(0, num_layers, ROUND_LAYERS):
        classes = (bits >> first) & (2**ROUND_LAYERS - 1)
        masses = ((scores + growth).exp() * MASS_UNIT).round().long()
        sums = torch.zeros((len(at), 2**ROUND_LAYERS), dtype=torch.int64, device=logits.device)
        sums.scatter_add_(1, classes, masses)
        growth += play_round(sums, depths - first).gather(1, classes)
    growth.masked_fill_(~is_marked[:, None], 0.0)
    logits[at] = logits[at] + growth * temperature[:, None]


def play_round(sums: Tensor, layers: Tensor) -> Tensor:
    """sums [n, 2**ROUND_LAYERS] int64, each class's mass -> float32 logarithms of what each class grows by.

    layers: [n] int64, how many layers are left to play, negative included. Class c has bit l of c in layer l.
    """
    classes = torch.arange(sums.shape[1], device=sums.device)
    masses = sums.double()
    masses /= masses.sum(dim=1, keepdim=True).clamp_(min=1.0)
    growth = torch.ones_like(masses)
    for layer in range(ROUND_LAYERS):
        ones = ((classes >> layer) & 1).double()
        factor = 1.0 + ones - (masses * ones).sum(dim=1, keepdim=True)
        factor = torch.where((layers > layer)[:, None], factor, 1.0)
        masses = masses * factor
        growth = growth * factor
    return growth.clamp_(min=VANISHED).log().float()


def _context(token_table: Tensor, rows: Tensor, lengths: Tensor, marked: MarkedRows) -> Tensor:
    """[n, max_width] int64: the last known tokens of each row, rubbish where a row has fewer."""
    back = torch.arange(-marked.max_width, 0, device=token_table.device)
    columns = (lengths[marked.at, None] + back).clamp_(min=0)
    return token_table[rows[marked.at, None], columns].long()


def _context_keys(keys: Tensor, context: Tensor, widths: Tensor) -> Tensor:
    """prf.context_key for each row, of the last `widths` columns of context [n, max_width]; as int64."""
    low = _fold(keys, context, widths, prf.CONTEXT_INIT_LOW)
    return low | _fold(keys, context, widths, prf.CONTEXT_INIT_HIGH) << 32


def _fold(keys: Tensor, context: Tensor, widths: Tensor, init: int) -> Tensor:
    hashed = mix((keys & _WORD) ^ init)
    hashed = mix((hashed * 5 + ((keys >> 32) & _WORD)) & _WORD)
    max_width = context.shape[1]
    for column in range(max_width):
        absorbed = mix((hashed * 5 + context[:, column]) & _WORD)
        hashed = torch.where(max_width - column <= widths, absorbed, hashed)
    return hashed


def _list_bits(green: MarkedRows, keys: Tensor, token_ids: Tensor) -> Tensor:
    """[n, V] int64 in [0, 2**32)."""
    del green
    return _green_bits(keys[:, 0], token_ids)


def _self_hash_bits(green: MarkedRows, keys: Tensor, token_ids: Tensor) -> Tensor:
    """prf.self_hash_bits for every token."""
    smallest = _green_bits(keys[:, 0], token_ids)
    for back in range(2, keys.shape[1] + 1):
        bits = _green_bits(keys[:, back - 1], token_ids)
        smallest = torch.where((back <= green.widths)[:, None], smallest.minimum(bits), smallest)
    return mix((smallest * prf.SELF_HASH_MULTIPLIER) & _WORD)


def _green_bits(keys: Tensor, token_ids: Tensor) -> Tensor:
    return random_bits(keys[:, None], torch.full_like(keys, prf.GREEN_DOMAIN)[:, None], token_ids)
