"""A whole model on the CUDA path's operations computes what it does on the plain ones."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from typing import cast

from engines.native.kernels import reference
from engines.native.kernels.ops import Ops
from engines.native.kernels.triton_ops import TritonOps
from engines.native.layers.context import LayerContext
from engines.native.models.hf_config import config_from_hf
from engines.native.models.llama import LlamaForCausalLM
from tests.engines.native.models.paged_harness import PagedRunner

FIELDS = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "torch_dtype": "float32",
}


def model_on(ops: Ops) -> LlamaForCausalLM:
    """In float32, on the CPU, with the same random weights each time."""
    context = LayerContext(ops=ops, device=torch.device("cpu"), dtype=torch.float32, weight_dtype=torch.float32)
    model = LlamaForCausalLM(config_from_hf(FIELDS), context, 64)
    generator = torch.Generator().manual_seed(0)
    for slot in context.slots.values():
        for piece in slot.pieces:
            piece.target.normal_(generator=generator, std=0.3)
    return model


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled kernels take no CPU tensors")
def test_prompts_mixed_steps_and_single_decodes() -> None:
    runners = [PagedRunner(model_on(ops)) for ops in (TritonOps(), cast("Ops", reference))]
    for chunks in ({"a": [5, 9, 2, 7, 1]}, {"a": [3]}, {"a": [4], "b": [8, 8, 6]}, {"b": [1]}, {"a": [2], "b": [11]}):
        got, expected = (runner.step(chunks) for runner in runners)
        for name in chunks:
            torch.testing.assert_close(got[name], expected[name], atol=2e-4, rtol=1e-4)
