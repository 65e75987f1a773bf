"""The sampler at a real vocabulary: greedy, plain and filtered rows, against torch's argmax and a sort."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu.kernels import Built, Case
from benchmarks.gpu.timing import num_copies
from engines.native.kernels import triton_sampler

VOCAB = 151936
FILTERS = {
    "greedy": (0.0, None, None),
    "plain": (0.8, None, None),
    "k20 p.95": (0.8, 20, 0.95),
    "p.9": (0.8, None, 0.9),
    "p.9 flat": (20.0, None, 0.9),
}


def _logits(rows: int, dtype: torch.dtype, warm: bool) -> list[Tensor]:
    """A few tokens stand out of a bell of the rest, as in a language model's logits."""
    copies = 1 if warm else num_copies(rows * VOCAB * dtype.itemsize, most=8)
    logits = [torch.randn(rows, VOCAB, device="cuda") * 2.5 for _ in range(copies)]
    for each in logits:
        each.scatter_add_(1, torch.randint(VOCAB, (rows, 40), device="cuda"), torch.rand(rows, 40, device="cuda") * 14)
    return [each.to(dtype) for each in logits]


def _build(rows: int, dtype: torch.dtype, name: str, pdl: bool, warm: bool) -> Built:
    temperature, top_k, top_p = FILTERS[name]
    device = torch.device("cuda")
    tensors = (
        torch.full((rows,), temperature, device=device),
        None if top_k is None else torch.full((rows,), top_k, device=device),
        None if top_p is None else torch.full((rows,), top_p, device=device),
        None,
        torch.arange(rows, device=device),
        torch.arange(rows, device=device),
    )
    logits = _logits(rows, dtype, warm)

    def run(each: Tensor) -> Tensor:
        return triton_sampler.sample_with_logprobs(each, *tensors, pdl=pdl)[0]

    expected = (lambda: logits[0].argmax(-1)) if name == "greedy" else None
    return Built([functools.partial(run, each) for each in logits], expected)


def _torch(rows: int, dtype: torch.dtype, name: str, warm: bool) -> Built:
    logits = _logits(rows, dtype, warm)

    def sample(each: Tensor) -> Tensor:
        if name == "greedy":
            return each.argmax(-1)
        probabilities = (each.float() / 0.8).softmax(-1)
        if name != "plain":
            ordered, ids = probabilities.sort(-1, descending=True)
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered > 0.9, 0.0)
            probabilities = torch.zeros_like(ordered).scatter_(1, ids, ordered)
        return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)

    return Built([functools.partial(sample, each) for each in logits])


def cases() -> Iterator[Case]:
    for rows in (1, 32, 256):
        for dtype in (torch.bfloat16, torch.float32):
            for name in FILTERS:
                if dtype == torch.float32 and name not in ("greedy", "p.9"):
                    continue
                shape = f"{str(dtype)[6:]} {rows} {name}"
                num_bytes = float(rows * VOCAB * dtype.itemsize)
                for pdl in (False, True):
                    yield Case("sampler", "sampler", shape, "triton" + "+pdl" * pdl, num_bytes, 0.0,
                               functools.partial(_build, rows, dtype, name, pdl),
                               f"sampler {dtype} {FILTERS[name][1:]} {pdl}", launches=8)  # fmt: skip
                if dtype == torch.bfloat16 and name in ("greedy", "plain", "p.9"):
                    yield Case("sampler", "sampler", shape, "torch", num_bytes, 0.0,
                               functools.partial(_torch, rows, dtype, name), launches=8)  # fmt: skip
