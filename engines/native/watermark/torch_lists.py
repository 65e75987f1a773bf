"""Green lists as TGI and transformers draw them: torch.randperm from a generator on a CPU, worked out without torch.

They seed torch's generator with hash key times previous token, permute the vocabulary, and take its first tokens. On a
CPU that generator is MT19937 (Matsumoto and Nishimura 1998), seeded with the low 32 bits, and the permutation is Fisher
and Yates': element i changes places with element i + (word i mod what is left). One token's colour needs only the path
of that token. On a GPU torch permutes otherwise, and so that it depends on the device: such lists cannot be had here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.native.watermark.detect import Detection, green_detection

MAX_TOKENS = 4096  # of one text: each costs a permutation's worth of random words, about a millisecond


def is_green(hash_key: int, previous: int, token_id: int, vocab_size: int, num_green: int) -> bool:
    """Whether `token_id` is among the first num_green of the permutation after `previous`. vocab_size < 2**27."""
    seed = hash_key * previous % (2**64 - 1) & 0xFFFFFFFF
    words = np.random.RandomState(seed).randint(0, 2**32, size=vocab_size - 1, dtype=np.uint32)
    swapped_with = np.arange(vocab_size - 1) + words % np.arange(vocab_size, 1, -1, dtype=np.uint32)
    place, step = token_id, 0
    while True:
        moves = np.flatnonzero(swapped_with[step : place + 1] == place)
        if len(moves) and step + moves[0] < place:
            return bool(step + moves[0] < num_green)  # taken to the front of what is left: there it stays
        if place == vocab_size - 1:
            return place < num_green
        step, place = place + 1, int(swapped_with[place])
        if step > place:
            return step - 1 < num_green


def detect(token_ids: Sequence[int], hash_key: int, share: float, vocab_size: int) -> Detection:
    """As detect.detect, of text marked by TGI on a CPU; vocab_size is the width of the model's logits."""
    num_green = int(vocab_size * share)
    marks: list[float | None] = [None] * len(token_ids)
    seen: set[tuple[int, int]] = set()
    for place in range(1, len(token_ids)):
        pair = (token_ids[place - 1], token_ids[place])
        if pair not in seen:
            seen.add(pair)
            marks[place] = float(is_green(hash_key, *pair, vocab_size, num_green))
    return green_detection(marks, num_green / vocab_size)
