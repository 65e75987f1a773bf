"""Who is computed together, with a model that remembers what it was given."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from engines.native.encoder.core import EncoderCore
from engines.native.scheduler import SchedulerLimits
from engines.native.types import FINISH_STOP, AddSequence, Pooling, TokenParams

CLIENT, OTHER = b"client", b"other"
PARAMS = TokenParams(max_tokens=0, pooling=Pooling())


class Model:
    """A vector is its input's tokens."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []

    def embed(self, inputs: Sequence[list[int]], poolings: Sequence[Pooling]) -> list[bytes]:
        assert len(inputs) == len(poolings)
        self.batches.append(list(inputs))
        return [bytes(one) for one in inputs]


def core_of(max_num_seqs: int = 8, budget: int = 64) -> tuple[EncoderCore, Model]:
    model = Model()
    return EncoderCore(model, SchedulerLimits(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)), model


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    max_num_seqs=st.integers(1, 8),
    budget=st.integers(1, 100),
)
def test_everyone_gets_its_vector_in_batches_that_fit(lengths: list[int], max_num_seqs: int, budget: int):
    core, model = core_of(max_num_seqs, budget)
    inputs = [[index] * length for index, length in enumerate(lengths)]
    for index, one in enumerate(inputs):
        core.add(CLIENT, AddSequence(index, tuple(one), PARAMS))
    found: dict[int, bytes] = {}
    waiting = list(range(len(lengths)))
    while core.has_work:
        outputs = core.step()
        assert waiting[0] in [sequence.key[1] for sequence, _ in outputs], "the oldest is always served"
        for sequence, output in outputs:
            assert (output.finish, output.seq_id, output.token_ids) == (FINISH_STOP, sequence.key[1], ())
            found[output.seq_id] = output.embedding
            waiting.remove(output.seq_id)
    assert found == {index: bytes(one) for index, one in enumerate(inputs)}
    for batch in model.batches:
        computed = len(batch) * max(map(len, batch))
        assert len(batch) <= max_num_seqs
        assert len(batch) == 1 or computed <= budget
        assert sum(map(len, batch)) * 2 >= computed
    assert core.stats().prompt_tokens == sum(lengths)
    assert core.stats().waiting == 0


def test_inputs_of_one_length_share_a_batch_though_others_stand_between():
    core, model = core_of(max_num_seqs=4)
    for index, length in enumerate([2, 30, 2, 30, 2]):
        core.add(CLIENT, AddSequence(index, (7,) * length, PARAMS))
    core.step()
    core.step()
    assert [[len(one) for one in batch] for batch in model.batches] == [[2, 2, 2], [30, 30]]


def test_what_is_aborted_is_not_computed():
    core, model = core_of()
    for index in range(4):
        core.add(CLIENT, AddSequence(index, (index,), PARAMS))
        core.add(OTHER, AddSequence(index, (9,), PARAMS))
    core.abort(CLIENT, (1, 3, 99))
    core.abort_client(OTHER)
    core.step()
    assert model.batches == [[[0], [2]]]
    assert not core.has_work
    assert core.num_waiting == 0
