"""Perplexity of each quantization scheme on a fixed public text, against the same model without it.

    python -m benchmarks.perplexity MODEL [--schemes fp8,int8,...] [--tokens 8192] [--window 512] [--off-grid]
        [--output FILE]

The text is CPython's own language reference, as the standard library carries it (pydoc_data.topics): English prose and
some code, on every machine that runs this, and fixed by the version of Python, which the result names. It is cut into
windows that are scored apart, every token but a window's first. Runs the CPU kernels on the weights that a scheme
keeps; `fp8 W8A8` quantizes activations too, as GPUs with e4m3 products do, and `+kv8` keeps keys and values in e4m3.
Prints a table, and one line of JSON last.

A file in Q4_1 has sixteen values for each 32 weights, which other groups of 4 bits meet badly and groups of 32 meet
exactly: neither is what a model in bfloat16 would show. `--off-grid` moves every weight of its linear layers at random
by up to half a step, to where rounding may have moved it from, and compares with that model.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import save_file
from torch import Tensor

from config.engines import NativeSettings
from engines.native.kernels.cpu_ops import CPUOps
from engines.native.kernels.quantized import DenseProduct, Product, QuantizedOps, dequantized
from engines.native.kv_cache import KVCache, KVCacheShape
from engines.native.layers.attention_metadata import AttentionMetadata
from engines.native.models import CausalLM, load_config
from engines.native.quantization import choose_quantizer
from engines.native.quantization.fp8 import quantize_tokens
from engines.native.quantization.weight import QuantizedWeight
from engines.native.tokenizer import Tokenizer
from engines.native.weights.gguf import GGUFSource
from engines.native.weights.loader import load_model

SCHEMES = (
    "none",
    "fp8",
    "fp8 W8A8",
    "int8",
    "int4:32",
    "int4:64",
    "nf4:32",
    "nf4:64",
    "fp4:32",
    "fp4:64",
    "none+kv8",
    "int8+kv8",
)
BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class QuantizedActivations(Product):
    """A product whose activations pass through e4m3 with a scale a token."""

    dense: DenseProduct

    def linear(self, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        codes, scales = quantize_tokens(x)
        return self.dense.linear(codes.float() * scales, bias, out_dtype)

    def tensors(self) -> list[Tensor]:
        return self.dense.tensors()


def off_grid(path: Path, folder: Path) -> None:
    """Writes a .gguf file's model as safetensors, with the weights of linear layers moved."""
    source = GGUFSource(path, load_config(path))
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, info in source.tensors.items():
        tensor = torch.empty(info.shape)
        source.read(name, tuple(slice(0, size) for size in info.shape), tensor)
        if name.endswith("proj.weight"):
            groups = tensor.unflatten(1, (-1, 32))
            steps = (groups.amax(2, keepdim=True) - groups.amin(2, keepdim=True)) / 15
            tensor = (groups + (torch.rand(groups.shape, generator=generator) - 0.5) * steps).flatten(1)
        tensors[name] = tensor.bfloat16()
    save_file(tensors, folder / "model.safetensors")


def load(path: Path, scheme: str, window: int, weights: Path | None = None) -> CausalLM:
    """The model of `path`, its tensors from `weights` where that is given.

    `none`, a scheme of `--quantize`, or `SCHEME:GROUP`; ` W8A8` at the end quantizes activations too."""
    name, _, group_size = scheme.removesuffix(" W8A8").partition(":")
    settings: dict[str, object] = {"quantize": name}
    if group_size:
        settings["quantize_group_size"] = int(group_size)
    quantizer = choose_quantizer(NativeSettings.model_validate(settings))
    inner = CPUOps()

    def make(weight: QuantizedWeight) -> Product:
        dense = dequantized(inner, weight, torch.bfloat16)
        rounds = scheme.endswith(" W8A8") and weight.format.name == "fp8"  # the head is int8
        return QuantizedActivations(dense) if rounds else dense

    return load_model(
        load_config(path),
        weights or path,
        device=torch.device("cpu"),
        dtype=torch.float32,
        weight_dtype=torch.bfloat16,
        ops=QuantizedOps(inner, make) if quantizer is not None else inner,
        max_model_len=window,
        quantizer=quantizer,
        tokenizer=path,
    )


@torch.inference_mode()
def negative_log_likelihood(model: CausalLM, windows: Tensor, kv_dtype: torch.dtype) -> float:
    """Of windows [n, length] int64: the mean over all tokens but each window's first, in nats."""
    config, length = model.config, windows.shape[1]
    shape = KVCacheShape(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        block_size=BLOCK_SIZE,
        dtype=kv_dtype,
    )
    num_blocks = -(-length // BLOCK_SIZE)
    cache = KVCache(shape, num_blocks, torch.device("cpu"))
    metadata = AttentionMetadata(
        query_start_loc=torch.tensor([0, length], dtype=torch.int32),
        seq_lens=torch.tensor([length], dtype=torch.int32),
        block_tables=torch.arange(num_blocks, dtype=torch.int32).unsqueeze(0),
        slot_mapping=torch.arange(length),
        num_decodes=0,
        max_query_len=length,
        max_seq_len=length,
    )
    total = 0.0
    for tokens in windows:
        hidden = model.forward(tokens, torch.arange(length), cache.layers, metadata)
        logits = model.compute_logits(hidden[:-1].contiguous())
        total += float(torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum"))
    return total / (windows.shape[0] * (length - 1))


def text_windows(model: str, num_tokens: int, window: int) -> Tensor:
    """[n, window] int64: the start of the text, in the model's tokens."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = Tokenizer.load(model).encode(text[: 8 * num_tokens])
    count = min(num_tokens, len(ids)) // window
    return torch.tensor(ids[: count * window]).view(count, window)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder with safetensors, or a .gguf file")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--off-grid", action="store_true", help="move a Q4_1 file's weights off its steps")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.off_grid:
            off_grid(Path(arguments.model), Path(folder))
        measure(arguments, Path(folder) if arguments.off_grid else None)


def measure(arguments: argparse.Namespace, weights: Path | None) -> None:
    """See the module's beginning."""
    windows = text_windows(arguments.model, arguments.tokens, arguments.window)
    rows: list[dict[str, object]] = []
    baseline = None
    for name in arguments.schemes.split(","):
        scheme, _, kv = name.partition("+")
        model = load(Path(arguments.model), scheme, arguments.window, weights)
        nll = negative_log_likelihood(model, windows, torch.float8_e4m3fn if kv else torch.bfloat16)
        baseline = nll if baseline is None else baseline
        change = 100 * (math.exp(nll - baseline) - 1)
        rows.append({"scheme": name, "perplexity": round(math.exp(nll), 4), "change_percent": round(change, 2)})
        print(f"{name:12} {math.exp(nll):9.4f} {change:+6.2f} %", flush=True)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "model": Path(arguments.model).name,
        "text": f"pydoc_data.topics of Python {platform.python_version()}",
        "tokens": windows.numel(),
        "window": arguments.window,
        "off_grid": arguments.off_grid,
        "commit": git.stdout.strip(),
        "rows": rows,
    }
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
