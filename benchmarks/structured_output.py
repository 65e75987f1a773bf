"""Structured output on the native engine: whether every answer validates, and what it costs.

    python -m benchmarks.structured_output valid [MODEL] [--schemas 1000] [--suite DIR]
    python -m benchmarks.structured_output cost MODEL_DIR [--dummy] [--concurrency 64] [--output-tokens 256]
    python -m benchmarks.structured_output masks MODEL_DIR [--concurrency 64] [--steps 256] [--library-slices]

`valid` asks the model for one answer under each random schema (random_schemas.py), many at once, and validates each
with jsonschema. With --suite it takes the schemas of a JSON Schema test suite's folder (its tests/draft2020-12) and
also holds every instance against the grammar alone: one that is invalid must not be accepted.

`cost` generates a fixed number of tokens for a batch of requests, of which none, one, half or all are bound to a schema
that never ends, and compares the throughput.

`masks` times what a step of such requests asks of the host alone (grammar_masks.py), and steps of other grammars
beside; MODEL_DIR holds a tokenizer and config.json. --library-slices: with the slices that the grammar library cuts.

--dummy: random weights, and a made-up vocabulary of the model's size where there is config.json alone. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema

from benchmarks import grammar_masks
from benchmarks.random_schemas import random_schema
from config.engines import NativeSettings
from engines.api import JsonSchema, StructuredOutput
from engines.native.build import BuiltCore, build_core
from engines.native.grammar.compiler import GrammarCompiler
from engines.native.grammar.constraint import Choosing, GrammarError
from engines.native.grammar.spec import grammar_spec
from engines.native.tokenizer import Tokenizer
from engines.native.types import FINISH_LENGTH, FINISH_REFUSED, AddSequence, GrammarSpec, TokenParams
from engines.native.weights.resolve import resolve_model

# Members of every kind, again and again: as long as an answer may be.
ENDLESS: dict[str, Any] = {
    "type": "array",
    "minItems": 10_000,
    "items": {
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "name": {"type": "string", "maxLength": 40},
            "kind": {"enum": ["small", "large", "unknown"]},
            "scores": {"type": "array", "items": {"type": "number"}, "maxItems": 4},
            "checked": {"type": "boolean"},
        },
        "required": ["id", "name", "kind", "scores", "checked"],
        "additionalProperties": False,
    },
}


def schema_spec(schema: Any) -> GrammarSpec:
    return grammar_spec(StructuredOutput(JsonSchema(schema), "schema"))


def run(built: BuiltCore, requests: list[AddSequence]) -> dict[int, tuple[list[int], int, str]]:
    """Tokens, finish and error of each request, all at once."""
    answers: dict[int, tuple[list[int], int, str]] = {request.seq_id: ([], 0, "") for request in requests}
    for request in requests:
        built.core.add(b"benchmark", request)
    step = built.core.step_overlapped if built.overlapped else built.core.step
    while built.core.has_work or built.core.is_compiling:
        for sequence, output in step():
            seq_id = sequence.key[1]
            tokens = answers[seq_id][0]
            tokens.extend(output.token_ids)
            answers[seq_id] = (tokens, output.finish, output.error)
    return answers


# --- valid ------------------------------------------------------------------------------------------------------------


def valid(args: argparse.Namespace) -> dict[str, Any]:
    section = NativeSettings(model=args.model, max_num_seqs=args.concurrency, kv_cache_memory="1GiB")
    tokenizer = Tokenizer.load(resolve_model(section, lambda *_: None).path)
    if args.suite:
        compiler = GrammarCompiler(lambda: (tokenizer, frozenset()), tokenizer.vocab_size)
        schemas, suite = suite_schemas(Path(args.suite), compiler, tokenizer)
    else:
        schemas, suite = [random_schema(seed) for seed in range(args.schemas)], {}
    ends = tuple(sorted(tokenizer.eos_token_ids))
    requests = [
        AddSequence(
            number,
            tuple(tokenizer.encode(prompt_for(schema, tokenizer), False)),
            TokenParams(max_tokens=args.output_tokens, temperature=args.temperature, seed=number, stop_token_ids=ends),
            grammar=schema_spec(schema),
        )
        for number, schema in enumerate(schemas)
    ]
    built = build_core(section, lambda *_: None)
    started = time.monotonic()
    answers = run(built, requests)
    counts: Counter[str] = Counter()
    for number, (tokens, finish, error) in answers.items():
        counts[judge(schemas[number], tokenizer.decode(tokens), finish, error)] += 1
    num_tokens = sum(len(tokens) for tokens, _, _ in answers.values())
    return {
        "model": built.ready.model,
        "device": built.ready.device,
        "schemas": len(schemas),
        **counts,
        **suite,
        "output_tokens": num_tokens,
        "seconds": round(time.monotonic() - started, 1),
    }


def prompt_for(schema: Any, tokenizer: Tokenizer) -> str:
    asked = f"Write one example of JSON for this schema, and nothing else: {json.dumps(schema)[:1500]}"
    return tokenizer.apply_chat_template([{"role": "user", "content": asked}])


def judge(schema: Any, text: str, finish: int, error: str) -> str:
    if finish == FINISH_REFUSED:
        return f"refused: {error}"
    if finish == FINISH_LENGTH:
        return "ran out of tokens"
    try:
        jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
    except (ValueError, jsonschema.ValidationError) as problem:
        print("INVALID", json.dumps(schema), text, str(problem)[:200], sep="\n  ")
        return "invalid"
    return "valid"


def suite_schemas(folder: Path, compiler: GrammarCompiler, tokenizer: Tokenizer) -> tuple[list[Any], dict[str, Any]]:
    """The suite's schemas that a grammar can be made of, and how the suite's instances fare against those grammars."""
    kept: list[Any] = []
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for path in sorted(folder.glob("*.json")):
        for group in json.loads(path.read_text()):
            counts["suite_schemas"] += 1
            try:
                compiler.request(schema_spec(group["schema"])).result()
            except GrammarError as error:
                counts["suite_refused"] += 1
                reasons[str(error)[:80]] += 1
                continue
            kept.append(group["schema"])
            for test in group["tests"]:
                accepted = accepts(compiler, tokenizer, group["schema"], json.dumps(test["data"], ensure_ascii=False))
                kind = "valid" if test["valid"] else "invalid"
                counts[f"suite_{kind}_{'accepted' if accepted else 'rejected'}"] += 1
                if accepted and not test["valid"]:
                    print("ACCEPTED", path.name, group["description"], "|", test["description"])
    for reason, count in reasons.most_common(20):
        print(f"{count:4} refused: {reason}")
    return kept, dict(counts)


def accepts(compiler: GrammarCompiler, tokenizer: Tokenizer, schema: Any, text: str) -> bool:
    constraint = compiler.request(schema_spec(schema)).result()
    end = min(tokenizer.eos_token_ids)
    progress = "open"
    for token in tokenizer.encode(text, False):
        if progress != "open":
            return False
        progress = constraint.advance(token)
    if progress == "open":
        bits = compiler.masks([Choosing(0, constraint, tokenizer.eos_token_ids)]).bits[0]
        return bool(bits[end // 32] >> (end % 32) & 1)
    return progress == "complete"


# --- cost -------------------------------------------------------------------------------------------------------------


def cost(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        dummy: dict[str, Any] = {}
        if args.dummy:
            dummy = {"load_format": "dummy"}
            if not (Path(args.model) / "tokenizer.json").exists():
                vocab_size = json.loads((Path(args.model) / "config.json").read_text())["vocab_size"]
                dummy["tokenizer"] = str(made_up_tokenizer(vocab_size, Path(folder)))
        section = NativeSettings(model=args.model, max_model_len=4096, prefix_caching=False, **dummy)
        built = build_core(section, lambda *_: None)
        counts = sorted({0, 1, args.concurrency // 2, args.concurrency})
        rates: dict[int, list[float]] = {count: [] for count in counts}
        for round_ in range(args.rounds + 1):
            for count in counts:  # in turn, so that a machine's moods meet all alike
                rate = throughput(built, args.concurrency, count, args.output_tokens)
                if round_:
                    rates[count].append(rate)
    medians = {count: statistics.median(rates[count]) for count in counts}
    for count, rate in medians.items():
        print(f"{count:4} of {args.concurrency} bound: {rate:9.1f} tok/s, {rate / medians[0]:.1%} of unbound")
    return {
        "model": built.ready.model,
        "device": built.ready.device,
        "vocab_size": built.ready.vocab_size,
        "concurrency": args.concurrency,
        "output_tokens": args.output_tokens,
        "tokens_per_s": {str(count): round(rate, 1) for count, rate in medians.items()},
    }


def throughput(built: BuiltCore, concurrency: int, num_bound: int, output_tokens: int) -> float:
    """Generated tokens a second of a whole batch, prompts of 128 random tokens included."""
    rng = random.Random(num_bound)
    requests = [
        AddSequence(
            number,
            tuple(rng.randrange(1000, built.ready.vocab_size - 1000) for _ in range(128)),
            TokenParams(max_tokens=output_tokens, temperature=1.0, seed=number),
            grammar=schema_spec(ENDLESS) if number < num_bound else None,
        )
        for number in range(concurrency)
    ]
    started = time.perf_counter()
    answers = run(built, requests)
    seconds = time.perf_counter() - started
    assert all(finish == FINISH_LENGTH for _, finish, _ in answers.values()), "every request runs to its length"
    return concurrency * output_tokens / seconds


def made_up_tokenizer(vocab_size: int, folder: Path) -> Path:
    """Byte-level tokens in the shape of a large vocabulary: every byte, then words, with and without a space before."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    rng = random.Random(0)
    ends = "<|endoftext|>"
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    seen = set(tokens)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    while len(tokens) < vocab_size - 1:
        body = "".join(rng.choices(letters, weights=range(26, 0, -1), k=rng.randint(2, 9)))
        token = rng.choice(["Ġ", "Ġ", "", ""]) + rng.choice(
            [body, body.capitalize(), f"{body}_", f'{body}"', f"{body},"]
        )
        if token not in seen:
            seen.add(token)
            tokens.append(token)
    backend = Backend(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([ends])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": ends}))
    return folder


# --- masks ------------------------------------------------------------------------------------------------------------


def masks(args: argparse.Namespace) -> dict[str, Any]:
    schemas = {f"schema {seed}": schema_spec(random_schema(seed)) for seed in range(6)}
    run = grammar_masks.Run(args.concurrency, args.steps, args.library_slices)
    return grammar_masks.measure(Path(args.model), schema_spec(ENDLESS), schemas, run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    validity = modes.add_parser("valid")
    validity.add_argument("model", nargs="?", default="smollm2-135m")
    validity.add_argument("--schemas", type=int, default=1000)
    validity.add_argument("--suite")
    validity.add_argument("--concurrency", type=int, default=32)
    validity.add_argument("--output-tokens", type=int, default=1024)
    validity.add_argument("--temperature", type=float, default=1.0)
    price = modes.add_parser("cost")
    price.add_argument("model")
    price.add_argument("--dummy", action="store_true")
    price.add_argument("--concurrency", type=int, default=64)
    price.add_argument("--output-tokens", type=int, default=256)
    price.add_argument("--rounds", type=int, default=3)
    host = modes.add_parser("masks")
    host.add_argument("model")
    host.add_argument("--concurrency", type=int, default=64)
    host.add_argument("--steps", type=int, default=256)
    host.add_argument("--library-slices", action="store_true")
    args = parser.parse_args()
    print(json.dumps({"valid": valid, "cost": cost, "masks": masks}[args.mode](args)))


if __name__ == "__main__":
    main()
