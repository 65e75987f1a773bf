"""The Triton linear kernels and their fused variants agree with the plain PyTorch twins."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native.kernels import reference, triton_linear
from engines.native.kernels.triton_launch import arrival_counters
from engines.native.kernels.triton_linear import LinearConfig

GEMV = LinearConfig(block_m=1, block_n=8, block_k=128)
GEMV_SPLIT = LinearConfig(block_m=1, block_n=8, block_k=64, split_k=3)
SKINNY = LinearConfig(block_m=16, block_n=32, block_k=64)
SKINNY_SPLIT = LinearConfig(block_m=16, block_n=32, block_k=64, split_k=3)


def tensors(m: int, n: int, k: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m * n + k)
    x = torch.randn(m, k, generator=generator)
    weight = torch.randn(n, k, generator=generator) / k**0.5
    return x.to(device, dtype), weight.to(device, dtype)


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-5 if got.dtype == torch.float32 else 4e-2
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("m", "config"),
    [(1, GEMV), (1, GEMV_SPLIT), (1, SKINNY), (5, SKINNY), (5, SKINNY_SPLIT), (40, SKINNY), (40, SKINNY_SPLIT)],
)
@pytest.mark.parametrize(("n", "k"), [(96, 256), (50, 200)], ids=["even", "ragged"])
def test_product_and_bias_match(
    m: int, n: int, k: int, config: LinearConfig, device: torch.device, dtype: torch.dtype
) -> None:
    x, weight = tensors(m, n, k, device, dtype)
    bias = torch.randn(n, device=device).to(dtype)
    assert_close(triton_linear.linear(x, weight, config=config), reference.linear(x, weight))
    assert_close(triton_linear.linear(x, weight, bias, config=config), reference.linear(x, weight, bias))
    assert not arrival_counters(device).any()


@pytest.mark.parametrize(("m", "config"), [(1, GEMV), (9, SKINNY)], ids=["gemv", "skinny"])
@pytest.mark.parametrize(("n", "k"), [(96, 256), (50, 200)], ids=["even", "ragged"])
def test_norm_gate_and_residual_fuse(
    m: int, n: int, k: int, config: LinearConfig, device: torch.device, dtype: torch.dtype
) -> None:
    x, weight = tensors(m, 2 * n, k, device, dtype)
    norm_weight = torch.randn(k, device=device).to(dtype)
    normed = reference.rms_norm(x, norm_weight, 1e-3)
    gated = reference.silu_and_mul(reference.linear(normed, weight))
    residual = torch.randn(m, n, device=device).to(dtype)
    fused = {"norm_weight": norm_weight, "eps": 1e-3, "config": config}
    assert_close(triton_linear.linear(x, weight, **fused), reference.linear(normed, weight))
    assert_close(triton_linear.linear(x, weight, gated=True, **fused), gated)
    assert_close(triton_linear.linear(x, weight, gated=True, residual=residual, **fused), gated + residual)


@pytest.mark.parametrize(("m", "config"), [(1, GEMV_SPLIT), (9, SKINNY_SPLIT)], ids=["gemv", "skinny"])
def test_residual_is_added_once_under_split_k(
    m: int, config: LinearConfig, device: torch.device, dtype: torch.dtype
) -> None:
    x, weight = tensors(m, 64, 256, device, dtype)
    residual = torch.randn(m, 64, device=device).to(dtype)
    assert_close(triton_linear.linear(x, weight, residual=residual, config=config), x @ weight.T + residual)


def test_strided_rows_and_wider_output(device: torch.device) -> None:
    x, weight = tensors(6, 64, 128, device, torch.float16)
    wide = torch.cat([x, torch.full_like(x, float("nan"))], dim=1)
    got = triton_linear.linear(wide[:, :128], weight, out_dtype=torch.float32, config=SKINNY)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, x.float() @ weight.float().T, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("m", [1, 2, 16, 17, 64, 100])
@pytest.mark.parametrize(("n", "k"), [(64, 128), (96, 576)])
def test_chosen_configs_are_right(m: int, n: int, k: int, device: torch.device, dtype: torch.dtype) -> None:
    x, weight = tensors(m, 2 * n, k, device, dtype)
    norm_weight = torch.randn(k, device=device).to(dtype)
    expected = reference.silu_and_mul(reference.linear(reference.rms_norm(x, norm_weight, 1e-5), weight))
    assert_close(triton_linear.linear(x, weight), reference.linear(x, weight))
    assert_close(triton_linear.linear(x, weight, norm_weight=norm_weight, eps=1e-5, gated=True), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 3, 16, 64])
@pytest.mark.parametrize(("n", "k"), [(6144, 4096), (4096, 12288), (1024, 3072)])
def test_real_shapes(m: int, n: int, k: int, device: torch.device) -> None:
    x, weight = tensors(m, n, k, device, torch.bfloat16)
    residual = torch.randn(m, n, device=device).bfloat16()
    expected = (x.double() @ weight.double().T + residual.double()).bfloat16()
    for pdl in (False, True):
        assert_close(triton_linear.linear(x, weight, residual=residual, pdl=pdl), expected)
