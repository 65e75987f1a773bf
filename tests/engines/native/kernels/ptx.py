"""Runs, without a GPU, the PTX that kernels have inline: the instructions that nf4 and fp4 are looked up and summed by.

Meanings are those of the PTX ISA. One thread; registers hold 32 bits as a number that is not negative.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

import torch

MASK = 0xFFFFFFFF


def run(text: str, operands: dict[int, int]) -> dict[str, int]:
    """What the registers hold in the end, $0 among them, after a text whose other $ are operands."""
    registers = {f"${i}": value & MASK for i, value in operands.items()}
    registers["%lanemask_lt"] = 0x7FFFFFFF  # lane 31's

    def value(name: str) -> int:
        return registers[name] if name in registers else int(name, 0) & MASK

    for line in re.split(r"[;\n]", text.strip().strip("{}")):
        if not line.strip() or line.strip().startswith(".reg"):
            continue
        operation, arguments = line.strip().split(maxsplit=1)
        target, *sources = (each.strip() for each in arguments.split(","))
        registers[target] = OPERATIONS[operation](*map(value, sources)) & MASK
    return registers


def signed(word: int, bits: int = 32) -> int:
    return (word & ((1 << bits) - 1)) - ((word >> (bits - 1) & 1) << bits)


def prmt(low: int, high: int, selector: int) -> int:
    data = (low | high << 32).to_bytes(8, "little")
    picked = 0
    for i in range(4):
        nibble = selector >> (4 * i) & 15
        byte = data[nibble & 7]
        picked |= ((255 if byte & 128 else 0) if nibble & 8 else byte) << (8 * i)
    return picked


def dp4a(a: int, b: int, total: int) -> int:
    return total + sum(signed(a >> shift, 8) * signed(b >> shift, 8) for shift in (0, 8, 16, 24))


def dp2a_lo(a: int, b: int, total: int) -> int:
    return total + (a & 0xFFFF) * (b & 255) + (a >> 16) * (b >> 8 & 255)


def bfloat16s(word: int) -> torch.Tensor:
    return torch.tensor([signed(word, 16), signed(word >> 16, 16)], dtype=torch.int16).view(torch.bfloat16)


def sub_bfloat16s(a: int, b: int) -> int:
    low, high = (bfloat16s(a) - bfloat16s(b)).view(torch.int16).tolist()
    return (low & 0xFFFF) | (high & 0xFFFF) << 16


def bits_of_float(number: int) -> int:
    return struct.unpack("<I", struct.pack("<f", float(number)))[0]


OPERATIONS: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "mov.u32": lambda a: a,
    "xor.b32": lambda a, b: a ^ b,
    "shr.u32": lambda a, b: a >> b,
    "add.s32": lambda a, b: a + b,
    "mul.lo.s32": lambda a, b: a * b,
    "mad.lo.s32": lambda a, b, c: a * b + c,
    "prmt.b32": prmt,
    "dp2a.lo.u32.u32": dp2a_lo,
    "dp4a.s32.s32": dp4a,
    "sub.rn.bf16x2": sub_bfloat16s,
    "cvt.rn.f32.s32": lambda a: bits_of_float(signed(a)),
}
