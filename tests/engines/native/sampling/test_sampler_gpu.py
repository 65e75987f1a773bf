"""On a GPU the sampler gives the tokens that it gives on a CPU, and the host never waits for the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engines.native.sampling.ops import TORCH_OPS, SamplingOps, sampling_ops
from engines.native.sampling.sampler import Sampler, SamplerOutput
from engines.native.sampling.state import SamplingState
from engines.native.types import TokenParams
from tests.engines.native.sampling.batches import read_back

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

ROWS, VOCAB, LENGTH = 64, 32_000, 50


def params(i: int) -> TokenParams:
    """Sequence i of a batch in which every parameter is in use somewhere."""
    return TokenParams(
        max_tokens=100,
        min_tokens=40 if i % 7 == 0 else 0,
        temperature=(0.0, 0.6, 1.0, 1.5)[i % 4],
        top_k=(0, 50)[i // 4 % 2],
        top_p=(1.0, 0.9)[i // 8 % 2],
        min_p=0.02 if i % 9 == 0 else 0.0,
        typical_p=0.9 if i % 10 == 0 else 1.0,
        repetition_penalty=1.2 if i % 5 == 0 else 1.0,
        presence_penalty=0.5 if i % 6 == 0 else 0.0,
        frequency_penalty=0.5 if i % 6 == 1 else 0.0,
        seed=i * 10**15,
        stop_token_ids=(2, 3),
        logit_bias=((7, 4.0),) if i % 3 == 0 else (),
        bad_words=((9,), (11, 12)) if i % 4 == 1 else (),
        allowed_token_ids=tuple(range(0, VOCAB, 3)) if i % 11 == 3 else (),
        logprobs=5 if i % 8 == 0 else -1,
    )


def sample(device: torch.device, ops: SamplingOps, logits: Tensor, table: Tensor, sync: str) -> SamplerOutput:
    state = SamplingState(ROWS, VOCAB, device)
    sampler = Sampler(state, ops)
    rows, lengths = torch.arange(ROWS, device=device), torch.full((ROWS,), LENGTH, device=device)
    logits, table = logits.to(device), table.to(device)
    torch.cuda.set_sync_debug_mode(sync)
    try:
        state.set_rows([(i, params(i), 10 + i % 30) for i in range(ROWS)])
        return sampler.sample(
            logits,
            rows=rows,
            row_list=list(range(ROWS)),
            positions=lengths,
            token_table=table,
            lengths=lengths,
            length_list=[LENGTH] * ROWS,
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("which", ["torch", "fastest"])
def test_gpu_samples_what_the_cpu_samples_without_waiting(which: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((ROWS, VOCAB), generator=generator) * 3
    table = torch.randint(0, VOCAB, (ROWS, LENGTH + 8), generator=generator, dtype=torch.int32)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    ops = TORCH_OPS if which == "torch" else sampling_ops(gpu)
    sample(gpu, ops, logits, table, "default")  # compiles
    expected = read_back(sample(cpu, TORCH_OPS, logits.clone(), table, "default"))
    got = read_back(sample(gpu, ops, logits, table, "error"))
    assert got.token_ids == expected.token_ids
    assert set(got.logprobs) == set(expected.logprobs)
    for i, row in got.logprobs.items():
        assert row.top_ids == expected.logprobs[i].top_ids
        assert row.logprob == pytest.approx(expected.logprobs[i].logprob, abs=1e-4)
