"""The fused element-wise Triton kernels agree with the plain PyTorch twins."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native.kernels import reference, triton_fused


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-5 if got.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [64, 576, 1000])
def test_norms(hidden: int, dtype: torch.dtype, device: torch.device) -> None:
    x, residual = torch.randn(2, 7, hidden, device=device).to(dtype)
    weight = torch.randn(hidden, device=device).to(dtype)
    assert_close(triton_fused.rms_norm(x, weight, 1e-3), reference.rms_norm(x, weight, 1e-3))
    kept = x.clone(), residual.clone()
    got, new_residual = triton_fused.add_rms_norm(x, residual, weight, 1e-3)
    expected, expected_residual = reference.add_rms_norm(x, residual, weight, 1e-3)
    assert_close(new_residual, expected_residual)
    assert_close(got, expected)
    assert torch.equal(x, kept[0])
    assert torch.equal(residual, kept[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("intermediate", [48, 1536, 2100])
def test_silu_and_mul(intermediate: int, dtype: torch.dtype, device: torch.device) -> None:
    gate_up = torch.randn(5, 2 * intermediate, device=device).to(dtype)
    assert_close(triton_fused.silu_and_mul(gate_up), reference.silu_and_mul(gate_up))


@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "qk-norm"])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "rotary_dim"),
    [(4, 2, 64, 64), (9, 3, 64, 64), (8, 1, 128, 128), (4, 4, 80, 32), (2, 1, 96, 96)],
    ids=["two groups", "odd heads", "one KV head", "partial rotary", "odd head dim"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rope_and_cache(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    qk_norm: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    num_tokens, num_blocks, block_size = 6, 5, 3
    width = (num_heads + 2 * num_kv_heads) * head_dim
    qkv = torch.randn(num_tokens, width, device=device).to(dtype)
    norms = torch.randn(2, head_dim, device=device).to(dtype) if qk_norm else (None, None)
    positions = torch.tensor([0, 5, 17, 3, 99, 1], device=device)
    slots = torch.tensor([4, 0, 14, -1, 7, 8], device=device)
    angles = torch.rand(100, rotary_dim // 2, device=device) * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    caches = torch.randn(2, 2, num_blocks, block_size, num_kv_heads, head_dim, device=device).to(dtype)
    caches[1] = caches[0]
    shape = (num_heads, num_kv_heads, head_dim)
    got = triton_fused.rope_and_cache(qkv, positions, cos_sin, *norms, 1e-3, *caches[0], slots, *shape)
    expected = reference.rope_and_cache(qkv, positions, cos_sin, *norms, 1e-3, *caches[1], slots, *shape)
    assert_close(got, expected)
    assert_close(caches[0], caches[1])


def test_a_cache_in_e4m3_gets_the_nearest_codes_and_saturates(device: torch.device) -> None:
    qkv = torch.tensor([1.0, -3.5, 0.25, 448.0, 1e6, -1e6, 0.0, 30.0], device=device).repeat(1, 3 * 8)
    caches = torch.zeros(2, 2, 4, 1, 64, device=device).to(torch.float8_e4m3fn)
    slots, positions = torch.tensor([5], device=device), torch.tensor([0], device=device)
    unrotated = torch.cat([torch.ones(1, 32, device=device), torch.zeros(1, 32, device=device)], dim=1)
    triton_fused.rope_and_cache(qkv, positions, unrotated, None, None, 0.0, *caches, slots, 1, 1, 64)
    for cache in caches:
        assert torch.equal(cache.float()[1, 1, 0], qkv[0, :64].clamp(-448, 448))
        assert torch.count_nonzero(cache.float()) == 56


def test_padding_writes_nothing(device: torch.device) -> None:
    caches = torch.randn(2, 3, 4, 2, 64, device=device)
    before = caches.clone()
    qkv = torch.randn(2, 8 * 64, device=device)
    zeros = torch.zeros(2, dtype=torch.int64, device=device)
    triton_fused.rope_and_cache(
        qkv, zeros, torch.randn(1, 64, device=device), None, None, 0.0, *caches, zeros - 1, 4, 2, 64
    )
    assert torch.equal(caches, before)


def test_no_tokens_is_no_work(device: torch.device) -> None:
    weight = torch.ones(64, device=device)
    assert triton_fused.rms_norm(torch.empty(0, 64, device=device), weight, 1e-5).shape == (0, 64)
    assert triton_fused.silu_and_mul(torch.empty(0, 64, device=device)).shape == (0, 32)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 64, 5000])
def test_real_shapes(num_tokens: int, device: torch.device) -> None:
    x, residual = torch.randn(2, num_tokens, 4096, device=device).bfloat16()
    weight = torch.rand(4096, device=device).bfloat16()
    for pdl in (False, True):
        got = triton_fused.add_rms_norm(x, residual, weight, 1e-6, pdl=pdl)
        for one, other in zip(got, reference.add_rms_norm(x, residual, weight, 1e-6), strict=True):
            torch.testing.assert_close(one, other, atol=4e-2, rtol=2e-2)
