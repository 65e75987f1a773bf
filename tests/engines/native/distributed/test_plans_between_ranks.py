"""Plans arrive at the other ranks as they were sent, whatever their size and whoever is slow."""

from __future__ import annotations

import os
import threading
import time
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engines.native.distributed.plan_record import decode_masks, decode_plan, encode_masks, encode_plan
from engines.native.distributed.ring import CAPACITY, Pulse, Ring, create_memory
from engines.native.grammar.constraint import TokenMasks
from engines.native.types import Admission, BatchPlan, TokenParams

words = st.integers(0, 2**31 - 1)
admissions = st.builds(
    Admission,
    row=words,
    token_ids=st.lists(words, max_size=20),
    num_prompt_tokens=words,
    params=st.builds(TokenParams, max_tokens=words, temperature=st.floats(0, 2), logit_bias=st.just(((3, 1.5),))),
)


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    num_decodes, chunks = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    size = num_decodes + chunks
    return BatchPlan(
        rows=draw(st.lists(words, min_size=size, max_size=size)),
        starts=draw(st.lists(words, min_size=size, max_size=size)),
        num_tokens=[1] * num_decodes + draw(st.lists(words, min_size=chunks, max_size=chunks)),
        samples=[True] * num_decodes + draw(st.lists(st.booleans(), min_size=chunks, max_size=chunks)),
        num_decodes=num_decodes,
        awaits_masks=draw(st.booleans()),
        admissions=draw(st.lists(admissions, max_size=3)),
        block_appends=draw(st.lists(st.tuples(words, words, words), max_size=5)),
    )


@given(plans())
def test_a_plan_survives_the_way(plan: BatchPlan):
    assert decode_plan(encode_plan(plan)) == plan


@given(st.lists(words, max_size=5), st.integers(1, 40), st.randoms())
def test_masks_survive_the_way(places: list[int], width: int, random: Random):
    bits = np.array([[random.getrandbits(32) - 2**31 for _ in range(width)] for _ in places], dtype=np.int32)
    masks = decode_masks(encode_masks(TokenMasks(places, bits.reshape(len(places), width))))
    assert masks.places == places
    assert np.array_equal(masks.bits, bits.reshape(len(places), width))


def test_a_decode_step_is_eight_bytes_a_sequence():
    plan = BatchPlan(rows=list(range(512)), starts=[9] * 512, num_tokens=[1] * 512, samples=[True] * 512)
    plan.num_decodes = 512
    assert len(encode_plan(plan)) == 20 + 8 * 512


def test_records_of_all_sizes_reach_every_reader_in_order_past_the_rings_end():
    fd = create_memory(3)
    records = [os.urandom(size) for size in (1, 24, CAPACITY // 4, CAPACITY + 12345, 100, 2 * CAPACITY, 7)]
    received: list[list[bytes]] = [[], []]

    def read(rank: int) -> None:
        ring = Ring(fd, rank, 3)
        for _ in records:
            received[rank - 1].append(ring.read(time.sleep, spin_s=0.0))

    readers = [threading.Thread(target=read, args=(rank,), daemon=True) for rank in (1, 2)]
    for reader in readers:
        reader.start()
    ring = Ring(fd, 0, 3)
    for record in records:
        ring.write(record, check=lambda: None)
    for reader in readers:
        reader.join(timeout=30)
    assert received == [records, records]
    os.close(fd)


def test_a_reader_that_slept_is_named_to_the_writer_and_wakes():
    fd = create_memory(2)
    asleep, wake = threading.Event(), threading.Event()
    received: list[bytes] = []

    def sleep(_seconds: float) -> None:
        asleep.set()
        wake.wait(20)

    reader = threading.Thread(target=lambda: received.append(Ring(fd, 1, 2).read(sleep, spin_s=0.0)), daemon=True)
    reader.start()
    assert asleep.wait(20)
    assert Ring(fd, 0, 2).write(b"record", check=lambda: None) == [1]
    wake.set()
    reader.join(20)
    assert received == [b"record"]
    os.close(fd)


def test_a_rank_that_stops_beating_is_noticed_after_as_many_looks_as_patience_has():
    fd = create_memory(2)
    watcher, watched = Ring(fd, 0, 2), Ring(fd, 1, 2)
    pulse = Pulse(watcher, 1, patience=3)
    for _ in range(10):
        watched.beat()
        assert not pulse.stopped()
    assert [pulse.stopped() for _ in range(5)] == [False, False, False, True, True]
    watched.beat()
    assert not pulse.stopped()
    os.close(fd)
