"""While a model is loaded, random tokens tell which columns matter; matrices are quantized layer by layer."""

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
from engines.native.weights.dummy import DummySource
from engines.native.weights.importance import Probe, quantize_by_importance
from engines.native.weights.loader import _fill, load_model

CPU = torch.device("cpu")
OPS = QuantizedOps(cast("Ops", reference), ReferenceProduct)
NUM_LAYERS = 6
CONFIG = config_from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
    }
)


def unloaded() -> tuple[LlamaForCausalLM, LayerContext, DummySource]:
    quantizer = choose_quantizer(NativeSettings.model_validate({"quantize": "int4"}))
    context = LayerContext(OPS, CPU, torch.float32, torch.float32, quantizer=quantizer)
    model = LlamaForCausalLM(CONFIG, context, 64)
    return model, context, DummySource({name: slot.shape for name, slot in context.slots.items()}, 0, CPU)


def probed(gain: float) -> list[torch.Tensor]:
    """Importances of the first layer's four matrices, column 5 of its first norm multiplied by `gain`."""
    model, context, source = unloaded()
    _fill(context.slots, source, lambda *_: None)
    model.layers[0].input_norm.weight[5] *= gain
    probe = Probe(model, context, 64)
    probe.enter()
    return probe.pass_layer(0, context.linears[:4])


def test_a_column_that_tokens_make_larger_matters_more() -> None:
    plain, scaled = probed(1.0), probed(64.0)
    assert [len(importance) for importance in plain] == [128, 128, 128, 192]
    assert float(scaled[0][5] / plain[0][5]) == 4096
    others = torch.arange(128) != 5
    assert torch.equal(scaled[0][others], plain[0][others])


def test_importances_are_powers_of_two_so_that_other_orders_of_summing_agree() -> None:
    for importance in probed(1.0):
        assert torch.equal(importance.log2(), importance.log2().round())
        assert importance.min() > 0


@pytest.mark.parametrize("gain", [float("inf"), float("nan"), 1e30], ids=["inf", "nan", "square overflows"])
def test_what_overflows_weighs_all_columns_the_same(gain: float) -> None:
    assert torch.equal(probed(gain)[0], torch.ones(128))


def test_plain_matrices_of_three_layers_at_most_are_in_memory() -> None:
    model, context, source = unloaded()
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        waiting = [linear for linear in context.linears if isinstance(linear.weight, PendingWeight)]
        most = max(most, sum(bool(linear.weight.plain()) for linear in waiting))

    _fill(context.slots, source, look, functools.partial(quantize_by_importance, model, context, 64))
    assert len(context.linears) == 4 * NUM_LAYERS + 1
    assert 4 < most <= 3 * 4


@pytest.mark.parametrize("scheme", ["int4", "nf4"])
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
    assert model.weight_bytes < 0.4 * 4 * NUM_LAYERS * 128 * (2 * 128 + 2 * 64 + 3 * 192)
