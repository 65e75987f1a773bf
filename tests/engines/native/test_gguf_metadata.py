"""GGUF metadata against what the gguf package writes and reads, and damage reported instead of guessed around."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest

from engines.native.gguf_metadata import GGUFError, read_gguf_metadata


def write_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("t.u8", 255)
    writer.add_int8("t.i8", -5)
    writer.add_uint16("t.u16", 65535)
    writer.add_int16("t.i16", -300)
    writer.add_uint32("t.u32", 4_000_000_000)
    writer.add_int32("t.i32", -70_000)
    writer.add_float32("t.f32", 0.5)
    writer.add_uint64("t.u64", 1 << 60)
    writer.add_int64("t.i64", -(1 << 60))
    writer.add_float64("t.f64", 1e300)
    writer.add_bool("t.bool", True)
    writer.add_string("t.string", "naïve 你好 \x00 end")
    writer.add_array("t.strings", ["a", "", "long " * 400_000, "é"])  # longer than the reading window
    writer.add_array("t.ints", [-1, 2, 3])
    writer.add_array("t.floats", [0.25, -2.0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_value_type_is_read_as_the_reference_reader_does(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "all.gguf")
    metadata = read_gguf_metadata(path)
    reference = {
        key: field.contents() for key, field in gguf.GGUFReader(path).fields.items() if not key.startswith("GGUF.")
    }
    assert metadata == reference
    assert metadata["t.string"] == "naïve 你好 \x00 end"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_file_cut_inside_its_metadata_is_an_error(tmp_path: Path, share: float) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    end = whole.rindex(struct.pack("<f", -2.0))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(end * share)])
    with pytest.raises(GGUFError, match=r"cut\.gguf"):
        read_gguf_metadata(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"PK\x03\x04" + bytes(60), "not a GGUF file", id="another format"),
        pytest.param(b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1", id="version 1"),
        pytest.param(b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian", id="big-endian"),
        pytest.param(b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99), "value type 99", id="unknown value type"),
        pytest.param(
            b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 1 << 62), "cut short", id="impossible count"
        ),
        pytest.param(b"GGUF" + struct.pack("<IQQQ1sIQ1s", 3, 0, 1, 1, b"k", 8, 1, b"\xff"), "damaged", id="not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(GGUFError, match=message):
        read_gguf_metadata(path)
