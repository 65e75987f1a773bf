"""While a model is loaded, tokens tell how columns go along; matrices are quantized layer by layer."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import cast

import pytest
import torch

from config.engines import NativeSettings
from engines.native.kernels import reference
from engines.native.kernels.ops import Ops
from engines.native.kernels.quantized import QuantizedOps, ReferenceProduct
from engines.native.layers.context import LayerContext
from engines.native.models.hf_config import config_from_hf
from engines.native.models.llama import LlamaForCausalLM
from engines.native.quantization import choose_quantizer
from engines.native.quantization.pending import PendingWeight
from engines.native.tokenizer import Tokenizer
from engines.native.weights.dummy import DummySource
from engines.native.weights.loader import _fill, load_model
from engines.native.weights.moments import Probe, quantize_by_moments
from engines.native.weights.probe_tokens import NUM_TOKENS, SEQUENCE_LENGTH, probe_tokens

CPU = torch.device("cpu")
OPS = QuantizedOps(cast("Ops", reference), ReferenceProduct)
NUM_LAYERS = 6
TOKENS = probe_tokens(None, 96, 64)
CONFIG = config_from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
    }
)


def unloaded(scheme: str = "nf4") -> tuple[LlamaForCausalLM, LayerContext, DummySource]:
    quantizer = choose_quantizer(NativeSettings.model_validate({"quantize": scheme, "quantize_group_size": 32}))
    context = LayerContext(OPS, CPU, torch.float32, torch.float32, quantizer=quantizer)
    model = LlamaForCausalLM(CONFIG, context, 64)
    return model, context, DummySource({name: slot.shape for name, slot in context.slots.items()}, 0, CPU)


def probed(gain: float, tokens: torch.Tensor = TOKENS, scheme: str = "nf4") -> list[torch.Tensor]:
    """Moments of the first layer's four matrices, column 5 of its first norm multiplied by `gain`."""
    model, context, source = unloaded(scheme)
    _fill(context.slots, source, lambda *_: None)
    model.layers[0].input_norm.weight[5] *= gain
    probe = Probe(model, context, tokens)
    probe.enter()
    return probe.pass_layer(0, context.linears[:4])


def test_columns_that_tokens_make_larger_weigh_more_alone_and_with_others() -> None:
    plain, scaled = probed(1.0)[0][0], probed(64.0)[0][0]
    gains = torch.ones(128)
    gains[5] = 64.0
    torch.testing.assert_close(scaled, plain * gains * gains.unsqueeze(1), rtol=1e-4, atol=1e-6)
    assert plain.fill_diagonal_(0).abs().max() > 0.01


def test_a_matrix_that_ranks_split_by_columns_is_held_in_pieces_for_one_to_eight_of_them() -> None:
    """Four heads: one, two or four ranks. 128 and 256 columns in groups of 32."""
    assert [tuple(moments.shape) for moments in probed(1.0)] == [
        (1, 128, 128), (4, 32, 32), (1, 128, 128), (4, 64, 64),
    ]  # fmt: skip


def test_of_a_scheme_that_spreads_no_errors_each_column_is_held_alone() -> None:
    for alone, together in zip(probed(1.0, scheme="int4"), probed(1.0), strict=True):
        assert alone.shape[1:] == (1, 1)
        octaves = alone.flatten().log2() - together.diagonal(dim1=1, dim2=2).flatten().log2()
        assert octaves.abs().max() < 0.51, "the nearest power of two"


def test_sequences_do_not_see_each_other() -> None:
    twice = TOKENS[:1].repeat(3, 1)
    for once, again in zip(probed(1.0, TOKENS[:1]), probed(1.0, twice), strict=True):
        torch.testing.assert_close(once, again, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gain", [float("inf"), float("nan"), 1e30], ids=["inf", "nan", "square overflows"])
def test_what_overflows_weighs_all_columns_the_same(gain: float) -> None:
    assert torch.equal(probed(gain)[0][0], torch.eye(128))


def test_plain_matrices_of_three_layers_at_most_are_in_memory() -> None:
    model, context, source = unloaded()
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        waiting = [linear for linear in context.linears if isinstance(linear.weight, PendingWeight)]
        most = max(most, sum(bool(linear.weight.plain()) for linear in waiting))

    _fill(context.slots, source, look, functools.partial(quantize_by_moments, model, context, TOKENS))
    assert len(context.linears) == 4 * NUM_LAYERS + 1
    assert 4 < most <= 3 * 4


@pytest.mark.parametrize("scheme", ["fp8", "int4", "nf4"])
def test_a_model_shorter_than_the_probe_loads(scheme: str) -> None:
    quantizer = choose_quantizer(NativeSettings.model_validate({"quantize": scheme}))
    model = load_model(
        CONFIG,
        Path(),
        device=CPU,
        dtype=torch.float32,
        ops=OPS,
        load_format="dummy",
        quantizer=quantizer,
        max_model_len=3,
    )
    bits = 8.5 if scheme == "fp8" else 6.4
    assert model.weight_bytes < bits / 8 * NUM_LAYERS * 128 * (2 * 128 + 2 * 64 + 3 * 256) + 4 * 96 * 128 * 2


def test_the_text_fills_the_probe_in_a_model_s_own_tokens(smollm2_gguf: Path) -> None:
    tokens = probe_tokens(smollm2_gguf, 49152, 8192)
    assert tokens.shape == (NUM_TOKENS // SEQUENCE_LENGTH, SEQUENCE_LENGTH)
    assert "river had risen" in Tokenizer.load(smollm2_gguf).decode(tokens[0].tolist())


def test_a_folder_without_a_tokenizer_is_probed_by_random_tokens(tmp_path: Path) -> None:
    assert torch.equal(probe_tokens(tmp_path, 96, 64), TOKENS)
