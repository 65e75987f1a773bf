"""Compiles the quantized products' kernels for an H100, where there is none, with the tiles that they choose.

    python -m tests.engines.native.kernels.gpuless_compile

Triton's interpreter takes programs that its compiler refuses, and knows no limits. Prints a JSON line a kernel: its
shared memory, how many values spill from registers, and of some instructions how many there are. In a process of its
own, since compiler and interpreter do not share one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engines.native.kernels import (
    triton_feedback,
    triton_int4_gemv,
    triton_int4_linear,
    triton_int4_weight,
    triton_quantized_linear,
    triton_terms_linear,
)
from engines.native.kernels.triton_kernel import Kernel

N, K = 4096, 12288
TYPES = {
    "x_ptr": "*bf16",
    "residual_ptr": "*bf16",
    "norm_weight_ptr": "*bf16",
    "sum_ptr": "*bf16",
    "eps": "fp32",
    "affine_ptr": "*fp16",
    "bias_ptr": "*bf16",
    "out_ptr": "*bf16",
    "partial_ptr": "*fp32",
    "arrived": "*i32",
}
FEEDBACK_TYPES = dict.fromkeys(
    ("group_ptr", "own_ptr", "cost_ptr", "values_ptr", "starts_ptr", "met_ptr", "scale_ptr", "error_ptr"), "*fp32"
)
INT4_TYPES = {table: {"weight_ptr": "*i32", "affine_ptr": "*i16" if table else "*fp16"} for table in ("", "nf4", "fp4")}
VARYING = ("M", "num_rows")


def compiled(kernel: Kernel, types: dict[str, str], constants: dict[str, Any], **options: int) -> Any:
    """Numbers that are not varying are multiples of 16, as those of models are."""
    function = kernel._jitted
    signature: dict[str, str] = {}
    attributes: dict[tuple[int], list[list[object]]] = {}
    for i, parameter in enumerate(function.params):
        if parameter.name in constants:
            signature[parameter.name] = "constexpr"
            continue
        signature[parameter.name] = types.get(parameter.name, TYPES.get(parameter.name, "i32"))
        if parameter.name not in VARYING:
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={**options, "launch_pdl": True})


def kernels() -> Iterator[tuple[str, Any]]:
    """A name, and what compiles it."""
    for table, tokens, n, k, group in (
        ("", 1, N, K, 32),
        ("", 32, 24576, N, 64),
        ("", 64, N, K, 128),
        ("", 64, N, N, 64),
        ("", 256, 24576, N, 32),
        ("nf4", 8, N, K, 64),
        ("fp4", 64, N, N, 64),
    ):
        config = triton_int4_linear.choose_config(tokens, n, k, group, looks_up=table != "")
        constants = {
            "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP": group,
            "GROUPS": max(config.block_k // group, 1), "SPLIT_K": config.split_k, "EVEN": True,
            "NUM_STAGES": config.num_stages, "HAS_BIAS": False, "TABLE": table, "ASM": True, "PREFETCH_WORDS": 0,
            "PDL": True,
        }  # fmt: skip
        yield (
            f"{table or 'int4'} {tokens} {n} {k} {group}",
            lambda constants=constants, config=config, types=INT4_TYPES[table]: compiled(
                triton_int4_linear._int4_linear_kernel, types, constants,
                num_warps=config.num_warps, num_stages=config.num_stages,
            ),
        )  # fmt: skip
    for table, n, k, group, gated in (
        ("", 6144, N, 32, False),
        ("", 12288, N, 32, True),
        ("", N, K, 64, False),
        ("", N, 896, 128, False),
        ("nf4", 12288, N, 64, True),
        ("fp4", N, K, 32, False),
    ):
        config = triton_int4_gemv.choose_config(n, k, gated=gated)
        constants = {
            "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP": group, "EVEN": k % config.block_k == 0,
            "MANY_STEPS": k > config.block_k, "GATED": gated, "HAS_BIAS": False,
            "TABLE": table, "ASM": True, "EARLY": config.early,
            "PREFETCH_WORDS": config.prefetch_bytes // (8 * config.block_n), "PDL": True,
        }  # fmt: skip
        yield (
            f"{table or 'int4'} gemv {n} {k} {group}",
            lambda constants=constants, config=config, types=INT4_TYPES[table]: compiled(
                triton_int4_gemv._int4_gemv_kernel, types, constants, num_warps=config.num_warps
            ),
        )
    for table in ("", "nf4"):
        constants = {
            "BLOCK_N": 16, "BLOCK_K": 256, "GROUP": 64, "GROUPS": 4, "TABLE": table, "ASM": True, "PDL": True,
        }  # fmt: skip
        yield (
            f"{table or 'int4'} dequantize",
            lambda constants=constants, types=INT4_TYPES[table]: compiled(
                triton_int4_weight._dequantize_kernel, types, constants, num_warps=4
            ),
        )
    for tokens, group, gated, codes in (
        (64, 0, True, "*fp8e4nv"), (256, 128, False, "*fp8e4nv"), (64, 128, True, "*fp8e4nv"), (256, 32, False, "*i8"),
    ):  # fmt: skip
        config = triton_quantized_linear.choose_config(tokens, N, K, group, gated)
        byte_constants = {
            "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP": group,
            "GROUPS": max(config.block_k // group, 1) if group else 1, "SPLIT_K": config.split_k, "EVEN_K": True,
            "NUM_STAGES": config.num_stages, "GATED": gated, "HAS_BIAS": False, "ASM": True, "PREFETCH_K": 0,
            "PDL": True,
        }  # fmt: skip
        yield (
            f"bytes {tokens} {group} {gated} {codes}",
            lambda constants=byte_constants, config=config, codes=codes: compiled(
                triton_quantized_linear._byte_linear_kernel, {"weight_ptr": codes, "scale_ptr": "*fp32"}, constants,
                num_warps=config.num_warps, num_stages=config.num_stages,
            ),
        )  # fmt: skip
    for tokens, n, k, gated, codes in (
        (8, N, K, False, "*fp8e4nv"),
        (16, K, N, True, "*i8"),
        (64, 24576, N, False, "*i8"),
    ):
        config = triton_terms_linear.choose_config(tokens, n, k, gated)
        terms_constants = {
            "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "SPLIT_K": config.split_k,
            "EVEN_K": True, "NUM_STAGES": config.num_stages, "GATED": gated, "HAS_BIAS": False, "NATIVE": True,
            "SECOND": 16.0, "PREFETCH_K": 0, "PDL": True,
        }  # fmt: skip
        types = {"codes_ptr": codes, "weight_ptr": codes, "scale_ptr": "*fp32", "token_scale_ptr": "*fp32"}
        yield (
            f"terms {tokens} {codes}",
            lambda constants=terms_constants, config=config, types=types: compiled(
                triton_terms_linear._terms_linear_kernel, types, constants,
                num_warps=config.num_warps, num_stages=config.num_stages,
            ),
        )  # fmt: skip
    for group in (64, triton_feedback.WIDEST_GROUP):
        feedback_constants = {
            "NUM_VALUES": 16, "NUM_STARTS": 12, "NUM_MET": 8, "GROUP": group, "ROWS": max(2048 // group, 4), "FITS": 1,
            "SMALLEST": 1e-20, "RULES": 0.25, "NEAR": 0.1, "FAR": 1.6, "PDL": False,
        }  # fmt: skip
        yield (
            f"feedback {group}",
            lambda constants=feedback_constants: compiled(
                triton_feedback._take_group_kernel, FEEDBACK_TYPES, constants, num_warps=4
            ),
        )


def main() -> None:
    with ThreadPoolExecutor(2) as pool:
        for name, result in [(name, pool.submit(compile_one)) for name, compile_one in kernels()]:
            kernel = result.result()
            copies = kernel.asm["ttgir"].count("ttg.async_copy_global_to_local")
            looks_up = name.startswith(("nf4", "fp4")) and "dequantize" not in name
            sass = kernel.asm["sass"] if looks_up else ""  # which takes as long as to compile
            wide_loads = kernel.asm["ptx"].count("ld.global.v4.b32")
            print(json.dumps({"name": name, "shared": kernel.metadata.shared, "async_copies": copies,
                              "wide_loads": wide_loads, "spills": sass.count("STL") + sass.count("LDL"),
                              "moves": sass.count("MOV"), "shared_stores": sass.count(" STS")}))  # fmt: skip


if __name__ == "__main__":
    main()
