"""Random JSON Schemas of the kinds that clients send, each a function of its seed. No model, no library.

Objects with required, optional and pattern properties, arrays and tuples, strings by length, pattern and format,
numbers by range and step, enums, constants, unions, intersections and shared definitions. Sizes are bounded, so that an
answer can be: where a value may go on for ever, a small model may, until its tokens end.
"""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any] | bool

_NAMES = [
    "id",
    "name",
    "kind",
    "value",
    "items",
    "created_at",
    "isActive",
    "größe",
    "a b",
    "x-1",
    "$ref_",
    'q"uote',
    "0",
]
_PATTERNS = [
    r"^[a-z]{2,6}$",
    r"^\d{3}-\d{4}$",
    r"^(red|green|blue)$",
    r"^[A-Z][a-z]{1,8}( [A-Z][a-z]{1,8})?$",
    r"^0x[0-9a-f]{4}$",
]
_FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email", "hostname", "duration"]
_SCALARS: list[Any] = [None, True, False, 0, -7, 3.5, "", "x", "two words", "ünï 🎉", 'with "quotes"', "line\nbreak"]
_MAX_DEPTH = 3


def random_schema(seed: int) -> dict[str, Any]:
    """An object schema with a nested value or two; deterministic."""
    rng = random.Random(seed)
    schema = _object(rng, 0)
    if rng.random() < 0.1:
        schema["$defs"] = {
            "point": {"type": "array", "prefixItems": [_integer(rng, 0)] * 2, "minItems": 2, "items": False}
        }
        schema["properties"] |= {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}}
        schema["required"] = sorted({*schema["required"], "to"})
    elif rng.random() < 0.1:
        depth = rng.randint(1, 3)
        schema["$defs"] = {f"node{level}": _node(level) for level in range(depth + 1)}
        schema["properties"]["tree"] = {"$ref": f"#/$defs/node{depth}"}
        schema["required"] = sorted({*schema["required"], "tree"})
    return schema


def _node(level: int) -> dict[str, Any]:
    """A list's node with at most `level` others behind it."""
    following = [{"$ref": f"#/$defs/node{level - 1}"}] if level else []
    return {
        "type": "object",
        "properties": {"label": {"type": "string", "maxLength": 8}, "next": {"anyOf": [{"type": "null"}, *following]}},
        "required": ["label", "next"],
        "additionalProperties": False,
    }


def _value(rng: random.Random, depth: int) -> Schema:
    leaves = [_string, _string, _number, _integer, _enum, _constant, _boolean, _null]
    kinds = leaves if depth >= _MAX_DEPTH else [*leaves, _object, _map, _array, _tuple, _union, _either, _intersection]
    schema = rng.choice(kinds)(rng, depth)
    if rng.random() < 0.2:
        schema["description"] = "What it is."
    return schema


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_NAMES, rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _value(rng, depth + 1) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def _map(_rng: random.Random, _depth: int) -> dict[str, Any]:
    values = {"^p_[a-z]$": {"type": "integer", "minimum": 0, "maximum": 99}}
    return {"type": "object", "patternProperties": values, "additionalProperties": False, "maxProperties": 3}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 2)
    return {"type": "array", "items": _value(rng, depth + 1), "minItems": least, "maxItems": least + rng.randint(0, 2)}


def _tuple(rng: random.Random, depth: int) -> dict[str, Any]:
    members = [_value(rng, depth + 1) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": members, "items": False, "minItems": len(members)}


def _string(rng: random.Random, _depth: int) -> dict[str, Any]:
    match rng.randrange(4):
        case 0:
            return {"type": "string", "pattern": rng.choice(_PATTERNS)}
        case 1:
            return {"type": "string", "format": rng.choice(_FORMATS), "maxLength": 40}
        case _:
            least = rng.randint(0, 4)
            return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 12)}


def _integer(rng: random.Random, _depth: int) -> dict[str, Any]:
    least = rng.randint(-1000, 1000)
    schema: dict[str, Any] = {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 100_000)}
    if rng.random() < 0.3:
        return {"type": "integer", "minimum": 0, "exclusiveMaximum": 1000, "multipleOf": rng.choice([2, 5, 10])}
    return schema


def _number(rng: random.Random, _depth: int) -> dict[str, Any]:
    least = rng.randint(-50, 50)
    largest = least + rng.choice([1, 2.5, 100])
    return {
        "type": "number",
        "minimum": least,
        "exclusiveMaximum": largest,
        "multipleOf": rng.choice([0.125, 0.25, 0.5]),
    }


def _enum(rng: random.Random, _depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(_SCALARS, rng.randint(1, 5))}


def _constant(rng: random.Random, _depth: int) -> dict[str, Any]:
    return {"const": rng.choice([*_SCALARS, [1, "a"], {"k": [None]}])}


def _boolean(_rng: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": "boolean"}


def _null(_rng: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": "null"}


def _union(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_value(rng, depth + 1) for _ in range(rng.randint(2, 3))]}


def _either(rng: random.Random, depth: int) -> dict[str, Any]:
    """Alternatives told apart by a constant, as pydantic writes discriminated unions."""
    arms = []
    for kind in rng.sample(["cat", "dog", "fish"], 2):
        arm = _object(rng, depth + 1)
        arm["properties"] = {"kind": {"const": kind}} | {k: v for k, v in arm["properties"].items() if k != "kind"}
        arm["required"] = sorted({*arm["required"], "kind"})
        arms.append(arm)
    return {"oneOf": arms}


def _intersection(rng: random.Random, _depth: int) -> dict[str, Any]:
    low = rng.randint(0, 50)
    return {"allOf": [{"type": "integer", "minimum": low}, {"type": "integer", "maximum": low + 40}]}
