"""What a captured step reads from RowState's tables and writes there is what the plain PyTorch twins read and write."""

import random

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native import row_ops
from engines.native.kernels import triton_rows

NUM_ROWS, MAX_LEN, BLOCK_SIZE = 40, 700, 16
SCRATCH = NUM_ROWS


def tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 1000, (NUM_ROWS + 1, MAX_LEN + 1), dtype=torch.int32, device=device)
    blocks = torch.randint(0, 500, (NUM_ROWS + 1, -(-MAX_LEN // BLOCK_SIZE)), dtype=torch.int32, device=device)
    return tokens, blocks


def random_step(rng: random.Random, num_decodes: int, counts: list[int], padding: int) -> list[list[int]]:
    """Rows, starts, counts; some decodes are padding, and so are the last sequence's `padding` tokens."""
    rows = rng.sample(range(NUM_ROWS), num_decodes + len(counts))
    unused = rng.sample(range(num_decodes), num_decodes // 3)
    starts = [rng.randrange(MAX_LEN - count) for count in [1] * num_decodes + counts]
    return [
        [*(SCRATCH if i in unused else row for i, row in enumerate(rows)), SCRATCH],
        [*(0 if i in unused else start for i, start in enumerate(starts)), 0],
        [*(rng.randrange(9) for _ in range(num_decodes)), *counts, padding],  # counts of decodes say nothing
    ]


@pytest.mark.parametrize(
    ("num_decodes", "counts", "padding"),
    [(0, [5], 0), (3, [], 0), (7, [1, 40, 0, 3], 20), (0, [600], 88), (12, [300, 1, 257], 0), (1, [2], 300)],
)
def test_a_step_is_read_as_the_twin_reads_it(num_decodes: int, counts: list[int], padding: int, device: torch.device):
    tokens, blocks = tables(device)
    table = random_step(random.Random(num_decodes), num_decodes, counts, padding)
    sequences = torch.tensor(table, device=device)
    num_tokens = num_decodes + sum(counts) + padding
    arguments = sequences, tokens, blocks, BLOCK_SIZE, num_decodes, num_tokens
    expected = row_ops.read_rows(*arguments)
    got = triton_rows.read_rows(*arguments)
    for name, ours, twin in zip(expected._fields, got, expected, strict=True):
        assert ours.dtype == twin.dtype, name
        assert torch.equal(ours, twin), name


def test_the_twin_reads_what_the_tables_say():
    tokens, blocks = tables(torch.device("cpu"))
    sequences = torch.tensor([[4, SCRATCH, 9, SCRATCH], [20, 0, 31, 0], [7, 7, 3, 2]])
    step = row_ops.read_rows(sequences, tokens, blocks, BLOCK_SIZE, 2, 7)
    assert step.positions.tolist() == [20, 0, 31, 32, 33, 0, 0]
    assert step.input_ids.tolist() == [
        tokens[row, at] for row, at in ((4, 20), (SCRATCH, 0), (9, 31), (9, 32), (9, 33), (SCRATCH, 0), (SCRATCH, 0))
    ]
    first, second, third = (int(block) * BLOCK_SIZE for block in (blocks[4, 1], blocks[9, 1], blocks[9, 2]))
    assert step.slot_mapping.tolist() == [first + 4, -1, second + 15, third, third + 1, -1, -1]
    assert step.query_starts.tolist() == [0, 1, 2, 5, 7]
    assert step.seq_lens.tolist() == [21, 0, 34, 0]
    assert step.last_tokens.tolist() == [0, 1, 4, 6]
    assert torch.equal(step.block_tables, blocks[sequences[0]])


@pytest.mark.parametrize("count", [1, 128, 300])
def test_tokens_are_stored_where_the_twin_stores_them(count: int, device: torch.device):
    table = torch.zeros((400, 9), dtype=torch.int32, device=device)
    rows = torch.randperm(400, device=device)[:count]
    lengths, ids = torch.randint(0, 9, (2, count), device=device)
    expected = table.clone()
    row_ops.store_tokens(expected, rows, lengths, ids)
    triton_rows.store_tokens(table, rows, lengths, ids)
    assert torch.equal(table, expected)
