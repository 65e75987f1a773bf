"""The CPU kernels agree with the reference, and a row's result does not depend on what shares its batch."""

import dataclasses

import pytest
import torch
from torch import Tensor

from engines.native.kernels import cpu_attention, cpu_fused, cpu_linear, reference
from engines.native.kernels.cpu_compile import kernel
from engines.native.kernels.cpu_ir import HAS_FAST_BFLOAT16
from engines.native.kernels.cpu_vector import exp, from_e4m3, to_e4m3
from tests.engines.native.kernels.ragged_batches import CachedBatch, cached_batch

CACHE_DTYPES = pytest.mark.parametrize(
    "cache_dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=["float32", "bfloat16", "e4m3"]
)
WEIGHT_DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@WEIGHT_DTYPES
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 8, 29])
@pytest.mark.parametrize(("num_rows", "num_columns"), [(96, 64), (100, 33), (7, 9), (1, 1)])
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
def test_linear_is_the_product_with_rounded_weights(
    dtype: torch.dtype, num_tokens: int, num_rows: int, num_columns: int, has_bias: bool
) -> None:
    x, weight = torch.randn(num_tokens, num_columns), torch.randn(num_rows, num_columns)
    bias = torch.randn(num_rows) if has_bias else None
    expected = reference.linear(x.double(), weight.to(dtype).double(), None if bias is None else bias.double())
    got = cpu_linear.linear(x, cpu_linear.pack_weight(weight, dtype), bias)
    torch.testing.assert_close(got, expected.float(), atol=2e-5, rtol=1e-5)


@WEIGHT_DTYPES
def test_linear_gives_a_row_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    x, weight = torch.randn(45, 200), cpu_linear.pack_weight(torch.randn(130, 200), dtype)
    together = cpu_linear.linear(x, weight)
    for rows in (slice(0, 1), slice(7, 9), slice(5, 18), slice(44, 45)):
        assert torch.equal(cpu_linear.linear(x[rows].contiguous(), weight), together[rows])


def test_linear_of_no_tokens_is_empty() -> None:
    assert cpu_linear.linear(torch.empty(0, 8), cpu_linear.pack_weight(torch.randn(40, 8))).shape == (0, 40)


def test_linear_takes_a_plain_weight() -> None:
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    assert torch.equal(cpu_linear.linear(x, weight), reference.linear(x, weight))


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 8, 29])
@pytest.mark.parametrize(("num_rows", "num_columns"), [(96, 64), (100, 33), (7, 9), (1, 1)])
def test_bfloat16_products_round_the_activations_where_that_is_faster(
    num_tokens: int, num_rows: int, num_columns: int
) -> None:
    x, weight, bias = torch.randn(num_tokens, num_columns), torch.randn(num_rows, num_columns), torch.randn(num_rows)
    packed = cpu_linear.pack_weight(weight, bfloat16_products=True)
    got, rounded = cpu_linear.linear(x, packed, bias), x.bfloat16() if HAS_FAST_BFLOAT16 else x
    expected = reference.linear(rounded.double(), weight.bfloat16().double(), bias.double())
    torch.testing.assert_close(got, expected.float(), atol=2e-5, rtol=1e-5)
    assert torch.equal(cpu_linear.linear(x[:1], packed, bias), got[:1])


def test_weights_are_not_packed_as_integers() -> None:
    with pytest.raises(ValueError, match=r"not torch\.int8"):
        cpu_linear.pack_weight(torch.randn(4, 4), torch.int8)


@pytest.mark.parametrize("num_tokens", [0, 1, 5, 200])
@pytest.mark.parametrize("width", [1, 48, 576])
def test_norms_agree_with_the_reference(num_tokens: int, width: int) -> None:
    x, residual, weight = torch.randn(num_tokens, width), torch.randn(num_tokens, width), torch.randn(width)
    torch.testing.assert_close(cpu_fused.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    got = cpu_fused.add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(got, reference.add_rms_norm(x, residual, weight, 1e-5))


@pytest.mark.parametrize("num_tokens", [0, 1, 5, 200])
@pytest.mark.parametrize("width", [3, 48, 1536])
def test_silu_and_mul_agrees_with_the_reference(num_tokens: int, width: int) -> None:
    gate_up = torch.randn(num_tokens, 2 * width) * 10
    torch.testing.assert_close(cpu_fused.silu_and_mul(gate_up), reference.silu_and_mul(gate_up), atol=1e-5, rtol=4e-6)


def test_silu_of_great_numbers_stays_finite() -> None:
    gate = torch.tensor([[-1e4, -200.0, -80.0, 80.0, 200.0, 1e4]])
    got = cpu_fused.silu_and_mul(torch.cat([gate, torch.ones_like(gate)], dim=1))
    torch.testing.assert_close(got, gate.clamp(min=0.0), atol=1e-30, rtol=0.0)


@kernel("float32(float32)")
def exp_of_one(x):
    return exp(x)


def test_exp_is_exact_to_two_units_in_the_last_place() -> None:
    x = torch.linspace(-86.9, 87.9, 4001)
    got = torch.tensor([exp_of_one(value) for value in x.tolist()])
    torch.testing.assert_close(got, x.double().exp().float(), atol=0.0, rtol=2 * torch.finfo(torch.float32).eps)


@CACHE_DTYPES
@pytest.mark.parametrize("norms", [False, True], ids=["plain", "qk_norm"])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "rotary_dim"),
    [(9, 3, 64, 64), (4, 1, 20, 8), (2, 2, 128, 128)],
    ids=["gqa", "partial_rotary", "mha"],
)
def test_rope_and_cache_agrees_with_the_reference(
    cache_dtype: torch.dtype, norms: bool, num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int
) -> None:
    num_tokens, block_size = 37, 5
    qkv = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    positions, table = torch.randint(0, 100, (num_tokens,)), torch.randn(100, rotary_dim)
    weights = [torch.randn(head_dim) for _ in range(2)] if norms else [None, None]
    slots = torch.randperm(10 * block_size)[:num_tokens]
    slots[4] = -1

    def run(rope_and_cache) -> tuple[Tensor, Tensor, Tensor]:
        caches = [torch.zeros(10, block_size, num_kv_heads, head_dim, dtype=cache_dtype) for _ in range(2)]
        shape = (num_heads, num_kv_heads, head_dim)
        return rope_and_cache(qkv.clone(), positions, table, *weights, 1e-6, *caches, slots, *shape), *caches

    (q, keys, values), expected = run(cpu_fused.rope_and_cache), run(reference.rope_and_cache)
    torch.testing.assert_close(q, expected[0], atol=1e-5, rtol=1e-5)
    neighbours = {torch.bfloat16: 2**-7, torch.float8_e4m3fn: 2**-3}  # what lies at a rounding border may go either way
    torch.testing.assert_close(
        keys.float(), expected[1].float(), atol=2**-9 if cache_dtype.itemsize == 1 else 1e-5,
        rtol=neighbours.get(cache_dtype, 1e-5),
    )  # fmt: skip
    assert torch.equal(values.float(), expected[2].float())


@kernel("uint8(float32)")
def e4m3_of_one(x):
    return to_e4m3(x)


@kernel("float32(uint8)")
def number_of_one(x):
    return from_e4m3(x)


def test_e4m3_is_torchs_for_every_code_and_between_them() -> None:
    codes = [code for code in range(256) if code & 0x7F != 0x7F]  # that one is NaN
    numbers = torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert [number_of_one(code) for code in codes] == numbers.tolist()
    between = torch.cat([numbers, numbers.sort().values.unfold(0, 2, 1).mean(dim=1), torch.randn(500) * 100])
    between = between[(between != 0) & (between.abs() <= 448)]
    expected = between.to(torch.float8_e4m3fn).view(torch.uint8)
    assert [e4m3_of_one(value) for value in between.tolist()] == expected.tolist()
    assert [e4m3_of_one(value) for value in (1e9, -449.0)] == [0x7E, 0xFE]


def run_attention(batch: CachedBatch, window: int = 0) -> Tensor:
    return cpu_attention.paged_attention(
        batch.query, batch.key_cache, batch.value_cache, batch.metadata, batch.query.shape[2] ** -0.5, window
    )


LENGTHS = [(1, 1), (1, 64), (1, 65), (1, 333), (5, 5), (64, 100), (33, 300), (130, 130), (1, 40), (2, 129)]


@CACHE_DTYPES
@pytest.mark.parametrize("window", [0, 1, 50, 1000])
@pytest.mark.parametrize(
    ("block_size", "num_heads", "num_kv_heads", "head_dim"),
    [(16, 9, 3, 64), (1, 2, 2, 32), (7, 8, 1, 128), (64, 4, 2, 80), (16, 14, 2, 64), (3, 4, 2, 20), (8, 2, 1, 8)],
)
def test_attention_agrees_with_the_reference_on_ragged_batches(
    cache_dtype: torch.dtype, window: int, block_size: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    batch = cached_batch(
        LENGTHS,
        block_size=block_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        cache_dtype=cache_dtype,
    )
    arguments = (batch.query, batch.key_cache, batch.value_cache, batch.metadata, head_dim**-0.5, window)
    expected = reference.paged_attention(*arguments)
    torch.testing.assert_close(run_attention(batch, window), expected, atol=1e-5, rtol=1e-5)


@CACHE_DTYPES
@pytest.mark.parametrize("window", [0, 50], ids=["full", "window"])
def test_a_sequence_alone_has_the_bits_it_has_in_the_batch(cache_dtype: torch.dtype, window: int) -> None:
    batch = cached_batch(LENGTHS, cache_dtype=cache_dtype)
    together, starts = run_attention(batch, window), batch.metadata.query_start_loc.tolist()
    for sequence in range(len(LENGTHS)):
        alone = run_attention(batch.only(sequence), window)
        assert torch.equal(alone, together[starts[sequence] : starts[sequence + 1]])


@pytest.mark.parametrize("window", [0, 50], ids=["full", "window"])
@pytest.mark.parametrize("chunk", [2, 37, 128, 256])
def test_a_prompt_in_chunks_has_the_bits_of_the_whole(window: int, chunk: int) -> None:
    seq_len = 300
    whole = cached_batch([(seq_len, seq_len)], num_heads=6)
    expected = run_attention(whole, window)
    for start in range(0, seq_len, chunk):
        end = min(start + chunk, seq_len)
        metadata = dataclasses.replace(
            whole.metadata,
            query_start_loc=torch.tensor([0, end - start], dtype=torch.int32),
            seq_lens=torch.tensor([end], dtype=torch.int32),
            max_query_len=end - start,
            max_seq_len=end,
        )
        part = dataclasses.replace(whole, query=whole.query[start:end], metadata=metadata)
        assert torch.equal(run_attention(part, window), expected[start:end])


def test_scores_far_apart_do_not_overflow() -> None:
    batch = cached_batch([(1, 200), (90, 200)])
    batch = dataclasses.replace(batch, query=batch.query * 1e3)
    expected = reference.paged_attention(batch.query, batch.key_cache, batch.value_cache, batch.metadata, 0.125)
    torch.testing.assert_close(run_attention(batch), expected, atol=1e-3, rtol=1e-3)


def test_decodes_without_tokens_give_zeros() -> None:
    batch = cached_batch([(1, 3), (1, 5)])
    metadata = dataclasses.replace(batch.metadata, seq_lens=torch.tensor([0, 5], dtype=torch.int32))
    got = run_attention(dataclasses.replace(batch, metadata=metadata))
    assert torch.equal(got[0], torch.zeros_like(got[0]))
    assert torch.equal(got[1], run_attention(batch)[1])
