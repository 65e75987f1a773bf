"""A peer to run beside us on the same machine: transformers' `generate`, one static batch, float32, no HTTP.

    python benchmarks/peer_transformers.py [--workloads 64,128,1 64,128,8 ...]

The shape is SmolLM2-135M's and the weights are random: speed does not depend on them. A workload is input tokens,
output tokens, batch. Prints a JSON line each, with output tokens/s over prompt and decode together.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

WORKLOADS = ("64,128,1", "64,128,8", "64,128,32", "512,128,1", "512,128,8", "512,128,32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="*", default=WORKLOADS)
    args = parser.parse_args()
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    for workload in args.workloads:
        num_input, num_output, batch = map(int, workload.split(","))
        ids = torch.randint(1, 49152, (batch, num_input))
        mask = torch.ones_like(ids)
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=mask, max_new_tokens=num_output, min_new_tokens=num_output, do_sample=False
            )
        seconds = time.perf_counter() - started
        rate = round(batch * num_output / seconds, 1)
        print(json.dumps({"peer": "transformers generate, static batch, float32", "workload": workload,
                          "output_throughput": rate}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
