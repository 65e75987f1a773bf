"""Weights are quantized while they are loaded: the same codes for every number of ranks, and never a whole copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.kernels import reference
from engines.native.kernels.ops import Ops
from engines.native.kernels.quantized import QuantizedOps, ReferenceProduct
from engines.native.layers.context import LayerContext, Shard
from engines.native.layers.linear import Linear, Part, column_parallel, row_parallel
from engines.native.models.hf_config import config_from_hf
from engines.native.quantization import choose_quantizer
from engines.native.weights.loader import _fill, load_model
from engines.native.weights.safetensors import SafetensorsSource

SCHEMES = ["fp8", "int8", "int4", "nf4", "fp4"]
CPU = torch.device("cpu")
_ALONE = Shard()
OPS = QuantizedOps(cast("Ops", reference), ReferenceProduct)


def context_for(scheme: str, shard: Shard = _ALONE) -> LayerContext:
    quantizer = choose_quantizer(NativeSettings.model_validate({"quantize": scheme}))
    return LayerContext(OPS, CPU, torch.float32, torch.float32, shard, quantizer)


def loaded(context: LayerContext, linear: Linear, tensors: dict[str, Tensor], folder: Path) -> Tensor:
    """The layer's matrix as it will be multiplied."""
    save_file(tensors, folder / "model.safetensors")
    _fill(context.slots, SafetensorsSource(folder), lambda *_: None)
    linear.prepare()
    return linear.weight.weight.dequantize()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ranks_hold_parts_of_the_codes_that_one_rank_holds(scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    q, k, o = torch.randn(64, 128), torch.randn(32, 128), torch.randn(48, 256)
    tensors = {"q.weight": q, "k.weight": k, "o.weight": o}

    def matrices(rank: int, world_size: int) -> tuple[Tensor, Tensor]:
        columns = context_for(scheme, Shard(rank, world_size))
        fused = column_parallel(columns, 128, [Part("q", 8, 8), Part("k", 4, 8)], bias=False)
        rows = context_for(scheme, Shard(rank, world_size))
        output = row_parallel(rows, Part("o", 4, 64), 48, bias=False)
        return loaded(columns, fused, tensors, tmp_path), loaded(rows, output, tensors, tmp_path)

    fused, output = matrices(0, 1)
    first, second = matrices(0, 2), matrices(1, 2)
    assert torch.equal(torch.cat([first[0][:32], second[0][:32], first[0][32:], second[0][32:]]), fused)
    assert torch.equal(torch.cat([first[1], second[1]], dim=1), output)


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize(("scheme", "bytes_per_weight"), [("int8", 1.0), ("int4", 0.625)])
def test_weight_bytes_count_what_stays(scheme: str, bytes_per_weight: float, tied: bool) -> None:
    config = config_from_hf({**CONFIG, "tie_word_embeddings": tied})
    quantizer = choose_quantizer(NativeSettings.model_validate({"quantize": scheme}))
    model: Any = load_model(
        config, Path(), device=CPU, dtype=torch.float32, ops=OPS, load_format="dummy", quantizer=quantizer
    )
    layer = 128 * (2 * 128 + 2 * 64) + 3 * 128 * 256
    table = 96 * 128
    expected = 2 * layer * bytes_per_weight + 4 * table + table  # layers, embedding, a head of eight bits
    scales = (2 * (2 * 256 + 128 + 256 + 128) if scheme == "int8" else 0) * 4 + 5 * 128 * 4 + 96 * 4
    assert expected <= model.weight_bytes <= expected + scales + 512
    assert all(part.weight.format.name == scheme for part in (model.layers[0].mlp.down_proj.weight,))
    assert model.lm_head._linear.weight.weight.format.name == "int8"
    assert model.embed_tokens.table.dtype == torch.float32


def test_a_group_that_does_not_divide_a_ranks_share_names_the_layer() -> None:
    with pytest.raises(EngineUnavailable, match=r"groups of 32 does not fit o, which has 48 input columns here"):
        row_parallel(context_for("int4", Shard(0, 2)), Part("o", 6, 16), 48, bias=False)


@pytest.mark.parametrize("fused", [False, True], ids=["of their own", "one tensor"])
@pytest.mark.parametrize(
    ("scheme", "of_values"),
    [("nf4", "int8"), ("fp4", "int8"), ("int4", "int4"), ("int8", "int8"), ("fp8", "fp8")],
)
def test_values_are_projected_in_the_bits_that_the_scheme_has_for_them(
    scheme: str, of_values: str, fused: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(64, 128), torch.randn(32, 128), torch.randn(32, 128)
    names = ("qkv",) * 3 if fused else ("q", "k", "v")
    tensors = {"qkv.weight": torch.cat([q, k, v])} if fused else {"q.weight": q, "k.weight": k, "v.weight": v}
    for rank in (0, 1):
        context = context_for(scheme, Shard(rank, 2))
        parts = [Part(names[0], 8, 8), Part(names[1], 4, 8), Part(names[2], 4, 8, makes_values=True)]
        linear = column_parallel(context, 128, parts, bias=False)
        save_file(tensors, tmp_path / "model.safetensors")
        _fill(context.slots, SafetensorsSource(tmp_path), lambda *_: None)
        formats = [(part.format.name, len(part.codes)) for part in linear.weight.finish()]
        mixed = [(scheme, 32 + 16), (of_values, 16)]
        assert formats == (mixed if scheme != of_values else [(scheme, 64)])
