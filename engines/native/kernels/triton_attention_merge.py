"""What the splits of a decode's keys found, merged into one output by the block that arrives last.

It knows the layout of the splits' partial outputs, and nothing of keys, values or batches.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import triton
import triton.language as tl

_MERGE_SPLITS = tl.constexpr(8)


@triton.jit
def merge_splits(
    partial_out,  # [num_splits, GROUP_ROWS * BLOCK_D] float32
    partial_lse,  # the same, a head's value repeated for its dimensions
    out,
    active_splits,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Softmax-weighted sum of the splits' outputs; loads bypass L1 (.cg), where an older launch's values may lie.

    Every thread sums elements of its own, whose exponents it reads beside them: nothing crosses threads, and the loads
    of MERGE_SPLITS splits are under way together.
    """
    elements = tl.arange(0, GROUP_ROWS * BLOCK_D)
    acc = tl.zeros([GROUP_ROWS * BLOCK_D], tl.float32)
    total = tl.zeros([GROUP_ROWS * BLOCK_D], tl.float32)
    running_max = tl.full([GROUP_ROWS * BLOCK_D], float("-inf"), tl.float32)
    for first in range(0, active_splits, _MERGE_SPLITS):
        for i in tl.static_range(_MERGE_SPLITS):
            offsets = (first + i) * (GROUP_ROWS * BLOCK_D) + elements
            exists = first + i < active_splits
            lse = tl.load(partial_lse + offsets, mask=exists, other=float("-inf"), cache_modifier=".cg")
            partial = tl.load(partial_out + offsets, mask=exists, other=0.0, cache_modifier=".cg")
            new_max = tl.maximum(running_max, lse)
            weight = tl.exp2(lse - new_max)
            rescale = tl.exp2(running_max - new_max)
            acc = acc * rescale + partial * weight
            total = total * rescale + weight
            running_max = new_max
    heads, dims = elements // BLOCK_D, elements % BLOCK_D
    merged = (acc / total).to(out.dtype.element_ty)
    tl.store(out + heads * HEAD_DIM + dims, merged, mask=(heads < GROUP) & (dims < HEAD_DIM))
