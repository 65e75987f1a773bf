"""What the Triton kernels share about launching: programmatic dependent launch, L2 prefetch, arrival counters.

Programmatic dependent launch (PDL, Hopper and later) lets a kernel's blocks start while its predecessor in the stream
still drains. Before `wait_for_predecessor` a kernel may touch only what no kernel of the step writes (weights, norm
weights); the wait returns once the predecessor has finished and its writes are visible. Every path through a kernel
launched so must wait, early exits too: completion is only transitive because each link of the chain waits.

It knows nothing of any one kernel's arithmetic.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

ARRIVAL_COUNTERS = 1 << 16


def div_ceil(dividend: int, divisor: int) -> int:
    """triton.cdiv, whose own costs 2 us, since it also serves inside kernels."""
    return -(-dividend // divisor)


def next_power_of_2(number: int) -> int:
    """The least power of 2 that is not below number > 0; triton's own costs 2 us."""
    return 1 << (number - 1).bit_length()


def fit_groups(block_k: int, group_size: int) -> int:
    """The largest part of block_k, a power of 2, that holds whole groups or lies within one. Groups come in 32s."""
    while block_k % group_size and group_size % block_k:
        block_k //= 2
    return block_k


@triton.jit
def wait_for_predecessor(PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def release_successor(PDL: tl.constexpr):
    """Let the next kernel's blocks be scheduled where this one leaves room: a hint, its own wait keeps the order."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch_rows_to_l2(pointer, num_rows, row_stride, row_bytes):
    """Ask for `row_bytes` of each of `num_rows` rows, `row_stride` bytes apart, to be brought into L2.

    Thread i asks for row i, so at most one row a thread. Pointer and byte counts are multiples of 16.
    """
    tl.inline_asm_elementwise(
        """{
        .reg .pred has_row;
        .reg .u32 thread;
        .reg .u64 address;
        mov.u32 thread, %tid.x;
        setp.lt.u32 has_row, thread, $2;
        mad.wide.u32 address, thread, $3, $1;
        @has_row cp.async.bulk.prefetch.L2.global [address], $4;
        mov.u32 $0, 0;
        }""",
        "=r,l,r,r,r",
        [pointer.to(tl.int64), num_rows, row_stride, row_bytes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_weights(weight_ptr, first_row, num_rows, first_k, K, BLOCK_N: tl.constexpr, PREFETCH_K: tl.constexpr):
    """The head of a block's share of a weight [num_rows, K] into L2: BLOCK_N rows, PREFETCH_K columns from first_k on.

    Weights depend on no kernel, so this may stand before the wait.
    """
    start = weight_ptr + first_row.to(tl.int64) * K + first_k
    row_bytes = tl.minimum(PREFETCH_K, K - first_k) * (weight_ptr.dtype.element_ty.primitive_bitwidth // 8)
    row_stride = K * (weight_ptr.dtype.element_ty.primitive_bitwidth // 8)
    prefetch_rows_to_l2(start, tl.minimum(BLOCK_N, num_rows - first_row), row_stride, row_bytes // 16 * 16)


@functools.lru_cache(maxsize=16)
def arrival_counters(device: torch.device) -> Tensor:
    """[ARRIVAL_COUNTERS] int32 zeros that kernels with a last-block reduction count in, and leave at zero.

    One buffer a device serves all of them as long as such kernels run one after the other on one stream.
    """
    return torch.zeros(ARRIVAL_COUNTERS, dtype=torch.int32, device=device)


def can_launch_early(tensor: Tensor, wanted: bool) -> bool:
    """Whether to launch with PDL: wanted, and on a GPU that has it (never in the interpreter, on CPU tensors)."""
    return wanted and tensor.is_cuda and _has_dependent_launch(tensor.device)


@functools.lru_cache(maxsize=16)
def _has_dependent_launch(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)
