"""One step's plan as a small binary record, from the rank that decides to the ranks that follow.

    int32 x 5     number of decodes, prefill chunks, block appends, admissions; whether the step awaits masks
    int32         row of each scheduled sequence
    int32         start of each scheduled sequence
    int32         number of tokens of each prefill chunk: a decode has one
    int32         whether each prefill chunk samples: a decode does
    int32 x 3     each block append
    msgpack       the admissions, where there are any: prompts and sampling parameters travel once per sequence

The masks that a step awaits follow it as a record of their own:

    int32 x 2     number of masks, words of each
    int32         place of each mask
    int32         the masks' words

All numbers are little-endian. A step of decodes is eight bytes a sequence and 20 of head. Knows no transport.
"""

from __future__ import annotations

import struct
from itertools import chain

import msgspec
import numpy as np

from engines.native.grammar.constraint import TokenMasks
from engines.native.types import Admission, BatchPlan

_HEAD = struct.Struct("<5i")
_HEAD_WORDS = 5
_MASKS_HEAD = struct.Struct("<2i")
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[Admission])


def encode_plan(plan: BatchPlan) -> bytes:
    num_decodes = plan.num_decodes
    chunks = len(plan.rows) - num_decodes
    counts = num_decodes, chunks, len(plan.block_appends), len(plan.admissions)
    words = [*counts, plan.awaits_masks, *plan.rows, *plan.starts]
    if chunks:
        words += plan.num_tokens[num_decodes:]
        words += plan.samples[num_decodes:]
    if plan.block_appends:
        words += chain.from_iterable(plan.block_appends)
    record = struct.pack(f"<{len(words)}i", *words)
    return record + _ENCODER.encode(plan.admissions) if plan.admissions else record


def decode_plan(record: bytes) -> BatchPlan:
    """What encode_plan was given. Raises struct.error or msgspec.DecodeError for bytes that it did not make."""
    num_decodes, chunks, num_appends, num_admissions, awaits_masks = _HEAD.unpack_from(record)
    total = num_decodes + chunks
    end = _HEAD_WORDS + 2 * total + 2 * chunks + 3 * num_appends
    words = list(struct.unpack_from(f"<{end}i", record))
    rows_at, starts_at = _HEAD_WORDS, _HEAD_WORDS + total
    counts_at, samples_at = starts_at + total, starts_at + total + chunks
    appends = words[samples_at + chunks :]
    return BatchPlan(
        rows=words[rows_at:starts_at],
        starts=words[starts_at:counts_at],
        num_tokens=[1] * num_decodes + words[counts_at:samples_at],
        samples=[True] * num_decodes + [bool(samples) for samples in words[samples_at : samples_at + chunks]],
        num_decodes=num_decodes,
        awaits_masks=bool(awaits_masks),
        admissions=_DECODER.decode(record[4 * end :]) if num_admissions else [],
        block_appends=list(zip(appends[::3], appends[1::3], appends[2::3], strict=True)),
    )


def encode_masks(masks: TokenMasks) -> bytes:
    count, width = masks.bits.shape
    return struct.pack(f"<{2 + count}i", count, width, *masks.places) + masks.bits.astype("<i4", copy=False).tobytes()


def decode_masks(record: bytes) -> TokenMasks:
    """What encode_masks was given."""
    count, width = _MASKS_HEAD.unpack_from(record)
    places = list(struct.unpack_from(f"<{count}i", record, _MASKS_HEAD.size))
    bits = np.frombuffer(record, dtype="<i4", offset=_MASKS_HEAD.size + 4 * count).reshape(count, width)
    return TokenMasks(places, bits.copy())  # writable, as torch wants its memory
