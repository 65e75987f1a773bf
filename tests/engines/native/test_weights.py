"""Weights from files to their places: shards, slices, names that do not fit, dummies, quantized blocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engines.errors import EngineUnavailable
from engines.native.kernels import reference
from engines.native.layers.context import LayerContext, Shard
from engines.native.layers.linear import Part, column_parallel, row_parallel
from engines.native.models import CausalLM
from engines.native.models.hf_config import config_from_hf
from engines.native.models.llama import LlamaForCausalLM
from engines.native.weights.dummy import DummySource
from engines.native.weights.gguf_dequantize import dequantize_columns, dequantize_rows, storage_type
from engines.native.weights.loader import load_model
from engines.native.weights.safetensors import SafetensorsSource

CPU = torch.device("cpu")
FIELDS: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}
CONFIG = config_from_hf(FIELDS)


def checkpoint() -> dict[str, Tensor]:
    """A tensor for every name of CONFIG's model, each element unlike the others."""
    context = context_for(Shard())
    LlamaForCausalLM(CONFIG, context, 16)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(slot.shape, generator=generator) for name, slot in context.slots.items()}


def context_for(shard: Shard) -> LayerContext:
    return LayerContext(ops=reference, device=CPU, dtype=torch.float32, weight_dtype=torch.float32, shard=shard)


def load(folder: Path, **options: Any) -> CausalLM:
    return load_model(CONFIG, folder, device=CPU, dtype=torch.float32, ops=reference, **options)


def save(tensors: dict[str, Tensor], folder: Path) -> None:
    save_file(tensors, folder / "model.safetensors")


def test_fused_matrices_hold_their_parts_in_order(tmp_path: Path) -> None:
    tensors = checkpoint()
    save(tensors, tmp_path)
    model: Any = load(tmp_path)
    attention, mlp = model.layers[1].attention, model.layers[1].mlp
    names = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
    assert torch.equal(attention.qkv_proj.weight, torch.cat([tensors[f"{name}.weight"] for name in names]))
    assert torch.equal(attention.qkv_proj.bias, torch.cat([tensors[f"{name}.bias"] for name in names]))
    halves = [tensors[f"model.layers.1.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(mlp.gate_up_proj.weight, torch.cat(halves))
    assert model.weight_bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_a_checkpoint_in_several_files_is_read_through_its_index(tmp_path: Path) -> None:
    tensors = checkpoint()
    names = sorted(tensors)
    weight_map = {name: f"model-{1 + index % 3}.safetensors" for index, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, tmp_path / file)
    save_file({"unrelated": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model: Any = load(tmp_path)
    assert torch.equal(model.embed_tokens.table, tensors["model.embed_tokens.weight"])
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(EngineUnavailable, match=r"files that are missing: model-2\.safetensors"):
        load(tmp_path)


def test_progress_counts_the_files_bytes_up_to_the_total(tmp_path: Path) -> None:
    tensors = checkpoint()
    save({name: tensor.bfloat16() for name, tensor in tensors.items()}, tmp_path)
    told: list[tuple[str, int, int]] = []
    load(tmp_path, on_progress=lambda *event: told.append(event))
    total = sum(2 * tensor.numel() for tensor in tensors.values())
    assert told[0] == ("weights", 0, total)
    assert told[-1] == ("weights", total, total)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.0.mlp.up_proj.weight"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.zeros(2)


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = torch.zeros(9)


def quantize(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = torch.zeros(8, dtype=torch.int8)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop, r"missing: model\.layers\.0\.mlp\.up_proj\.weight"),
        (add, r"not of this model: model\.layers\.0\.self_attn\.q_norm\.weight"),
        (reshape, r"of another shape: model\.norm\.weight is \[9\] instead of \[8\]"),
        (quantize, r"tensor model\.norm\.weight has type I8; these are supported"),
    ],
    ids=["missing", "left-over", "shape", "type"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_tensor(
    tmp_path: Path, damage: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    tensors = checkpoint()
    damage(tensors)
    save(tensors, tmp_path)
    with pytest.raises(EngineUnavailable, match=words):
        load(tmp_path)


def test_rotary_frequencies_of_old_checkpoints_are_passed_over(tmp_path: Path) -> None:
    save({**checkpoint(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(1)}, tmp_path)
    load(tmp_path)


@pytest.mark.parametrize(
    ("file", "words"),
    [("pytorch_model.bin", "only pickled weights"), (None, "no weights"), ("model.safetensors", "cannot be read")],
)
def test_a_folder_without_readable_weights_says_what_is_needed(tmp_path: Path, file: str | None, words: str) -> None:
    if file:
        (tmp_path / file).write_bytes(b"not weights")
    with pytest.raises(EngineUnavailable, match=words):
        load(tmp_path)


def test_dummy_weights_repeat_by_seed_and_are_no_zeros(tmp_path: Path) -> None:
    first, again, other = (load(tmp_path, load_format="dummy", seed=seed) for seed in (1, 1, 2))
    weights = [model.layers[0].mlp.down_proj.weight for model in (first, again, other)]  # type: ignore[attr-defined]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert 0.01 < float(weights[0].std()) < 0.04
    norm = first.layers[0].input_norm.weight  # type: ignore[attr-defined]
    assert 0.9 < float(norm.min()) <= float(norm.max()) < 1.1


# --- shards -----------------------------------------------------------------------------------------------------------


def fill(context: LayerContext, tensors: dict[str, Tensor], folder: Path) -> None:
    save(tensors, folder)
    source = SafetensorsSource(folder)
    for name, slot in context.slots.items():
        assert source.tensors[name].shape == slot.shape
        for index, target in slot.pieces:
            source.read(name, index, target)


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_column_shards_hold_whole_heads_and_share_kv_heads_when_ranks_outnumber_them(
    tmp_path: Path, world_size: int, fused: bool
) -> None:
    head_dim, heads, kv_heads, hidden = 3, 4, 2, 8
    q, k, v = (torch.randn(units * head_dim, hidden) for units in (heads, kv_heads, kv_heads))
    names = ["qkv"] * 3 if fused else ["q", "k", "v"]
    tensors = {"qkv.weight": torch.cat([q, k, v])} if fused else {"q.weight": q, "k.weight": k, "v.weight": v}
    for rank in range(world_size):
        context = context_for(Shard(rank, world_size))
        parts = [Part(name, units, head_dim) for name, units in zip(names, (heads, kv_heads, kv_heads), strict=True)]
        linear = column_parallel(context, hidden, parts, bias=False)
        fill(context, tensors, tmp_path)
        own_heads = range(rank * heads // world_size, (rank + 1) * heads // world_size)
        own_kv = sorted({head * kv_heads // heads for head in own_heads})
        expected = [q.view(heads, head_dim, hidden)[list(own_heads)]]
        expected += [part.view(kv_heads, head_dim, hidden)[own_kv] for part in (k, v)]
        assert torch.equal(linear.weight, torch.cat(expected).flatten(0, 1))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_row_shards_are_summands_of_the_whole_product(tmp_path: Path, world_size: int) -> None:
    weight, bias, x = torch.randn(5, 12), torch.randn(5), torch.randn(2, 12)
    total = torch.zeros(2, 5)
    for rank in range(world_size):
        context = context_for(Shard(rank, world_size))
        linear = row_parallel(context, Part("o", 6, 2), 5, bias=True)
        fill(context, {"o.weight": weight, "o.bias": bias}, tmp_path)
        width = 12 // world_size
        total += linear(x[:, rank * width : (rank + 1) * width])
    torch.testing.assert_close(total, x @ weight.T + bias)


def test_dummy_shards_are_parts_of_one_model() -> None:
    source = DummySource({"a.weight": (4, 6)}, seed=3, device=CPU)
    whole, part = torch.empty(4, 6), torch.empty(2, 6)
    source.read("a.weight", (slice(0, 4), slice(0, 6)), whole)
    source.read("a.weight", (slice(2, 4), slice(0, 6)), part)
    assert torch.equal(part, whole[2:])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_ask_for_their_own_parts_of_a_checkpoint_and_together_for_all_of_it(world_size: int) -> None:
    times_read: dict[str, Tensor] = {}
    for rank in range(world_size):
        context = context_for(Shard(rank, world_size))
        LlamaForCausalLM(CONFIG, context, 16)
        for name, slot in context.slots.items():
            counts = times_read.setdefault(name, torch.zeros(slot.shape))
            for piece in slot.pieces:
                assert counts[piece.source].shape == piece.target.shape
                counts[piece.source] += 1
    for name, counts in times_read.items():
        shared_kv = world_size // 2 if ".k_proj" in name or ".v_proj" in name else 1  # 2 KV heads
        on_every_rank = name.endswith("norm.weight")
        assert torch.all(counts == (world_size if on_every_rank else shared_kv)), name


def test_a_vocabulary_that_does_not_split_evenly_leaves_less_to_the_last_ranks() -> None:
    parts = [Shard(rank, 4).take_rows(10) for rank in range(4)]
    assert parts == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    assert Shard(3, 4).take_rows(3) == slice(3, 3)


@pytest.mark.parametrize("columns", [slice(0, 256), slice(256, 512), slice(64, 96), slice(100, 300)])
def test_columns_of_quantized_rows_equal_those_of_the_whole(columns: slice) -> None:
    whole, part = torch.empty(9, 512), torch.empty(4, columns.stop - columns.start)
    rows = torch.from_numpy(random_blocks(gguf.GGMLQuantizationType.Q8_0, 9, 512))
    dequantize_rows(rows, storage_type(gguf.GGMLQuantizationType.Q8_0), whole)
    dequantize_columns(rows[2:6], storage_type(gguf.GGMLQuantizationType.Q8_0), columns, part)
    assert torch.equal(part, whole[2:6, columns])


def test_units_that_ranks_cannot_share_are_refused() -> None:
    with pytest.raises(EngineUnavailable, match="q: 6 cannot be split over 4 ranks"):
        Shard(0, 4).take(6, "q")


# --- quantized blocks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XS"],
)
@pytest.mark.parametrize("columns", [256, 768])
def test_dequantized_blocks_equal_the_gguf_package_to_the_bit(kind: str, columns: int) -> None:
    storage = storage_type(gguf.GGMLQuantizationType[kind])
    rows = random_blocks(storage.kind, 9, columns)
    target = torch.empty(9, columns)
    dequantize_rows(torch.from_numpy(rows), storage, target)
    expected = gguf.dequantize(rows, storage.kind)
    assert np.array_equal(target.numpy(), expected)
    assert float(target.std()) > 0


def random_blocks(kind: gguf.GGMLQuantizationType, num_rows: int, columns: int) -> np.ndarray:
    """Rows of random bytes, without the blocks whose float16 scale happens to be infinite or no number."""
    storage = storage_type(kind)
    count = num_rows * columns // storage.block_size
    blocks = np.random.default_rng(5).integers(0, 256, (count * 5 // 4 + 20, storage.block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        finite = np.isfinite(gguf.dequantize(blocks, kind)).all(axis=1)
    return np.ascontiguousarray(blocks[finite][:count]).reshape(num_rows, storage.row_bytes(columns))


def test_large_tensors_are_dequantized_in_pieces_without_a_seam() -> None:
    storage = storage_type(gguf.GGMLQuantizationType.Q8_0)
    rows = random_blocks(storage.kind, 3000, 512)  # more elements than one piece holds
    target = torch.empty(3000, 512, dtype=torch.bfloat16)
    dequantize_rows(torch.from_numpy(rows), storage, target)
    expected = torch.from_numpy(gguf.dequantize(rows, storage.kind)).bfloat16()
    assert torch.equal(target, expected)
