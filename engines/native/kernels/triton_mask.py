"""Forbidding tokens on the GPU by a packed bit mask: the CUDA twin of torch_core.mask_tokens, which says what it means.

Grid (masked rows, chunks of CHUNK tokens). Each block loads CHUNK / 32 words of the mask, spreads them over their
tokens, and writes back only the logits that change. Rows without a mask are not touched.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import div_ceil
from engines.native.sampling.torch_core import banned_floor

CHUNK = 4096  # tokens per block


@kernel(varying=["logits_ptr", "at_ptr", "bits_ptr"])
def _mask_kernel(
    logits_ptr,  # [rows, vocab], row stride logits_stride, bfloat16, float16 or float32
    at_ptr,  # [n] int64
    bits_ptr,  # [n, num_words] int32
    floor,
    vocab,
    num_words,
    logits_stride,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    tl.static_assert(not PDL, "the logits are whoever ran before's")
    masked, chunk = tl.program_id(0), tl.program_id(1)
    row_ptr = logits_ptr + tl.load(at_ptr + masked) * logits_stride
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    exists = ids < vocab
    words = tl.load(bits_ptr + masked.to(tl.int64) * num_words + ids // 32, mask=exists, other=0)
    allowed = ((words >> (ids % 32)) & 1) != 0
    logits = tl.load(row_ptr + ids, mask=exists & allowed, other=0.0).to(tl.float32)
    masked_logits = tl.where(allowed, floor, float("-inf"))
    tl.store(row_ptr + ids, masked_logits.to(row_ptr.dtype.element_ty), mask=exists & ((logits < floor) | ~allowed))


def mask_tokens(logits: Tensor, at: Tensor, bits: Tensor) -> None:
    """As torch_core.mask_tokens; each row of logits contiguous, bits contiguous."""
    vocab = logits.shape[1]
    if not len(at):
        return
    _mask_kernel(
        (len(at), div_ceil(vocab, CHUNK)),
        logits,
        at,
        bits,
        banned_floor(logits.dtype),
        vocab,
        bits.shape[1],
        logits.stride(0),
        CHUNK=CHUNK,
        num_warps=8,
    )
