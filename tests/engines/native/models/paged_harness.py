"""Runs a model over a paged cache as the engine would: ragged steps, scattered blocks, decodes first."""

from __future__ import annotations

import itertools
import random

import torch
from torch import Tensor

from engines.native.layers.attention_metadata import AttentionMetadata
from engines.native.models import CausalLM

POISON = float("nan")  # unwritten cache slots: reading one shows


class PagedRunner:
    """`step` computes some more tokens of some sequences and returns their logits, sequence by sequence."""

    def __init__(self, model: CausalLM, num_blocks: int = 64, block_size: int = 3, seed: int = 0) -> None:
        config = model.config
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
        self.model, self.block_size = model, block_size
        self.caches = [(torch.full(shape, POISON), torch.full(shape, POISON)) for _ in range(config.num_layers)]
        self.free = list(range(num_blocks))
        random.Random(seed).shuffle(self.free)
        self.blocks: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}

    def step(self, chunks: dict[str, list[int]], *, last_only: bool = False) -> dict[str, Tensor]:
        """chunks: sequence name to its next tokens. Returns name to logits [len(tokens), vocab] float32, or with
        last_only [1, vocab]."""
        names = sorted(chunks, key=lambda name: len(chunks[name]) > 1)
        for name in names:
            self._reserve(name, len(chunks[name]))
        input_ids = torch.tensor([token for name in names for token in chunks[name]])
        starts = {name: self.computed[name] for name in names}
        positions = [starts[name] + i for name in names for i in range(len(chunks[name]))]
        slots = [self._slot(name, starts[name] + i) for name in names for i in range(len(chunks[name]))]
        lengths = [len(chunks[name]) for name in names]
        for name in names:
            self.computed[name] += len(chunks[name])
        metadata = self._metadata(names, lengths, slots)
        last_tokens = metadata.query_start_loc[1:].long() - 1 if last_only else None
        hidden = self.model.forward(input_ids, torch.tensor(positions), self.caches, metadata, last_tokens)
        logits = self.model.compute_logits(hidden)
        if last_only:
            lengths = [1] * len(names)
        return dict(zip(names, logits.split(lengths), strict=True))

    def _metadata(self, names: list[str], lengths: list[int], slots: list[int]) -> AttentionMetadata:
        tables = [self.blocks[name] for name in names]
        width = max(map(len, tables))
        seq_lens = [self.computed[name] for name in names]
        return AttentionMetadata(
            query_start_loc=torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
            block_tables=torch.tensor([table + [0] * (width - len(table)) for table in tables], dtype=torch.int32),
            slot_mapping=torch.tensor(slots),
            num_decodes=sum(length == 1 for length in lengths),
            max_query_len=max(lengths),
            max_seq_len=max(seq_lens),
        )

    def _reserve(self, name: str, num_tokens: int) -> None:
        table = self.blocks.setdefault(name, [])
        needed = self.computed.setdefault(name, 0) + num_tokens
        while len(table) * self.block_size < needed:
            table.append(self.free.pop())

    def _slot(self, name: str, position: int) -> int:
        return self.blocks[name][position // self.block_size] * self.block_size + position % self.block_size
