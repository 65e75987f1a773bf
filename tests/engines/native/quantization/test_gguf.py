"""GGUF blocks stay quantized in memory and mean what the file means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quantize

from config.engines import NativeSettings
from engines.native.quantization import choose_quantizer
from engines.native.quantization.gguf import from_rows
from engines.native.weights.gguf_dequantize import dequantize_rows, storage_type

ROWS, COLUMNS = 6, 512
KEPT = {"Q4_0": ("int4", 32), "Q4_1": ("int4", 32), "Q8_0": ("int8", 32), "Q4_K": ("int4", 32), "Q6_K": ("int8", 16)}


def stored(name: str) -> tuple[torch.Tensor, GGMLQuantizationType]:
    """Rows of a type, quantized by the gguf package where it can, otherwise of random bytes with sane scales."""
    kind = GGMLQuantizationType[name]
    storage = storage_type(kind)
    try:
        numbers = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)
        return torch.from_numpy(quantize(numbers, kind)), kind
    except NotImplementedError:
        generator = torch.Generator().manual_seed(0)
        blocks = torch.randint(0, 256, (ROWS * COLUMNS // storage.block_size, storage.block_bytes), generator=generator)
        blocks = blocks.to(torch.uint8)
        scale = torch.tensor([0.01], dtype=torch.float16).view(torch.uint8)
        for at in {"Q4_K": (0, 2), "Q6_K": (208,)}[name]:
            blocks[:, at : at + 2] = scale
        return blocks.view(ROWS, -1), kind


@pytest.mark.parametrize("name", KEPT)
def test_blocks_are_kept_and_mean_what_they_meant(name: str) -> None:
    rows, kind = stored(name)
    kept = from_rows(rows, storage_type(kind))
    assert kept is not None
    assert (kept.format.name, kept.group_size) == KEPT[name]
    expected = torch.empty(ROWS, COLUMNS)
    dequantize_rows(rows, storage_type(kind), expected)
    steps = float(kept.scales.float().abs().max())
    torch.testing.assert_close(kept.dequantize(), expected, atol=16 * steps * 2**-11, rtol=2**-10)
    part = kept.part(slice(2, 4), slice(256, 512))
    assert torch.equal(part.dequantize(), kept.dequantize()[2:4, 256:])


def test_a_type_that_no_kernel_serves_is_left_to_be_dequantized() -> None:
    rows, kind = torch.zeros(2, 24 * 4, dtype=torch.uint8), GGMLQuantizationType.Q5_1
    assert from_rows(rows, storage_type(kind)) is None


def test_a_file_stays_as_it_is_unless_another_scheme_was_asked_for() -> None:
    own = choose_quantizer(NativeSettings(), keeps_gguf=True)
    assert own is not None
    assert own.name.startswith("GGUF")
    other = choose_quantizer(NativeSettings(quantize="int8"), keeps_gguf=True)
    assert other is not None
    assert other.name == "int8"
