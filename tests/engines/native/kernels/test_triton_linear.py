"""The Triton linear kernels, their fused variants and the choice among them agree with the plain PyTorch twins."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native.kernels import reference, triton_linear
from engines.native.kernels.triton_gemv import GemvConfig, gemv
from engines.native.kernels.triton_launch import arrival_counters
from engines.native.kernels.triton_linear import LinearConfig
from engines.native.kernels.triton_ops import TritonOps

GEMV = GemvConfig(block_n=8, block_k=128)
SKINNY = LinearConfig(block_m=16, block_n=32, block_k=64)
SKINNY_SPLIT = LinearConfig(block_m=16, block_n=32, block_k=64, split_k=3)
SHAPES = pytest.mark.parametrize(("n", "k"), [(96, 256), (50, 200)], ids=["even", "ragged"])


def tensors(m: int, n: int, k: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m * n + k)
    x = torch.randn(m, k, generator=generator)
    weight = torch.randn(n, k, generator=generator) / k**0.5
    return x.to(device, dtype), weight.to(device, dtype)


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-5 if got.dtype == torch.float32 else 4e-2
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@SHAPES
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
def test_product_of_one_token(n: int, k: int, has_bias: bool, device: torch.device, dtype: torch.dtype) -> None:
    x, weight = tensors(1, n, k, device, dtype)
    bias = torch.randn(n, device=device).to(dtype) if has_bias else None
    got, total = gemv(x, weight, bias, config=GEMV)
    assert_close(got, reference.linear(x, weight, bias))
    assert total is x


@SHAPES
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("has_residual", [False, True], ids=["first layer", "residual"])
def test_norm_residual_and_gate_of_one_token(
    n: int, k: int, has_bias: bool, has_residual: bool, device: torch.device, dtype: torch.dtype
) -> None:
    x, weight = tensors(1, 2 * n, k, device, dtype)
    bias = torch.randn(2 * n, device=device).to(dtype) if has_bias else None
    residual = torch.randn(1, k, device=device).to(dtype) if has_residual else None
    norm_weight = torch.randn(k, device=device).to(dtype)
    fused = {"residual": residual, "norm_weight": norm_weight, "eps": 1e-3, "config": GEMV}
    for gated, twin in ((False, reference.norm_linear), (True, reference.norm_gated_linear)):
        got, total = gemv(x, weight, bias, gated=gated, **fused)
        expected, expected_total = twin(x, residual, norm_weight, 1e-3, weight, bias)
        assert_close(got, expected)
        assert torch.equal(total, expected_total)


@pytest.mark.parametrize(("m", "config"), [(1, SKINNY), (5, SKINNY), (5, SKINNY_SPLIT), (40, SKINNY_SPLIT)])
@SHAPES
def test_product_of_few_tokens(
    m: int, n: int, k: int, config: LinearConfig, device: torch.device, dtype: torch.dtype
) -> None:
    x, weight = tensors(m, n, k, device, dtype)
    bias = torch.randn(n, device=device).to(dtype)
    assert_close(triton_linear.linear(x, weight, config=config), reference.linear(x, weight))
    assert_close(triton_linear.linear(x, weight, bias, config=config), reference.linear(x, weight, bias))
    assert not arrival_counters(device).any()


@SHAPES
def test_gate_of_few_tokens(n: int, k: int, device: torch.device, dtype: torch.dtype) -> None:
    x, weight = tensors(9, 2 * n, k, device, dtype)
    bias = torch.randn(2 * n, device=device).to(dtype)
    for each in (None, bias):
        expected = reference.silu_and_mul(reference.linear(x, weight, each))
        assert_close(triton_linear.linear(x, weight, each, gated=True, config=SKINNY), expected)


def test_strided_rows_and_wider_output(device: torch.device) -> None:
    x, weight = tensors(6, 64, 128, device, torch.float16)
    wide = torch.cat([x, torch.full_like(x, float("nan"))], dim=1)
    got = triton_linear.linear(wide[:, :128], weight, out_dtype=torch.float32, config=SKINNY)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, x.float() @ weight.float().T, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(m, n, k) for m in (1, 2, 16, 17, 33, 65) for n, k in ((64, 128), (40, 2304))],
)
def test_any_number_of_tokens_and_any_shape_has_a_right_kernel(m: int, n: int, k: int, device: torch.device) -> None:
    """float16, whose tiles are those of bfloat16, which the interpreter does not multiply."""
    ops = TritonOps()
    x, weight = tensors(m, n, k, device, torch.float16)
    norm_weight = torch.randn(k, device=device).half()
    residual = torch.randn(m, k, device=device).half()
    assert_close(ops.linear(x, weight), reference.linear(x, weight))
    assert ops.logits(x, weight).dtype == torch.float32
    torch.testing.assert_close(ops.logits(x, weight), reference.logits(x, weight), atol=1e-2, rtol=1e-2)
    for before in (None, residual):
        for mine, twin in (
            (ops.norm_linear, reference.norm_linear),
            (ops.norm_gated_linear, reference.norm_gated_linear),
        ):
            got, expected = (f(x, before, norm_weight, 1e-3, weight) for f in (mine, twin))
            assert_close(got[0], expected[0])
            assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("m", [2, 17])
def test_more_rows_than_split_products_are_for(m: int, device: torch.device) -> None:
    x, weight = tensors(m, 2080, 40, device, torch.float16)
    assert_close(TritonOps().linear(x, weight), reference.linear(x, weight))


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 3, 16, 32, 64])
@pytest.mark.parametrize(("n", "k"), [(6144, 4096), (4096, 12288), (1024, 3072), (28672, 4096), (151936, 1024)])
def test_real_shapes(m: int, n: int, k: int, device: torch.device) -> None:
    x, weight = tensors(m, n, k, device, torch.bfloat16)
    expected = (x.float() @ weight.float().T).bfloat16()
    for pdl in (False, True):
        assert_close(TritonOps(pdl=pdl).linear(x, weight), expected)
    norm_weight, residual = torch.rand(k, device=device).bfloat16(), torch.randn(m, k, device=device).bfloat16()
    got = TritonOps().norm_gated_linear(x, residual, norm_weight, 1e-6, weight)
    for one, other in zip(got, reference.norm_gated_linear(x, residual, norm_weight, 1e-6, weight), strict=True):
        assert_close(one, other)
