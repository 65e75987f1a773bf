"""How surely each watermark is found, how seldom it is seen where there is none, and what it does to distributions.

    python -m benchmarks.watermark --model PATH > figures.jsonl           # add --plot docs/images/watermark_tpr.png
    python -m benchmarks.watermark --only synthetic,unmarked,distribution

Prints one JSON line a figure. `synthetic`: texts drawn from next-token distributions of a stated entropy. `model`:
texts of a real model on this machine's device, asked in batches of mixed requests, tested as text alone. `unmarked`:
false positives in texts that carry no mark. `distribution`: chi-square of tokens drawn after fresh contexts against the
distribution that they were drawn from. `cost`: time of a sampling step on this machine's device. True positives are
counted at a false-positive rate of 1e-4, temperature 1.0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import torch

from config.engines import NativeSettings
from engines.api import Done, GenerationRequest, SamplingParams, TextDelta, TextPrompt, WatermarkParams
from engines.native.engine import NativeEngine
from engines.native.sampling.ops import sampling_ops
from engines.native.sampling.sampler import Sampler
from engines.native.sampling.state import SamplingState
from engines.native.types import GREEN_LIST, GREEN_LIST_SELF, TokenParams, Watermark
from engines.native.watermark.detect import Detection, detect
from engines.native.watermark.resolve import resolve
from engines.native.watermark.tails import binomial_tail

RATE = 1e-4
NUM_TOKENS = 200
LENGTHS = (10, 20, 30, 40, 50, 60, 80, 100, 125, 150, 175, 200)
KEY = "a benchmark's key"
SCHEMES = {
    "green list": WatermarkParams(scheme="green_list", key=KEY),
    "green list, self-hash": WatermarkParams(scheme="green_list", key=KEY, self_hash=True, context_width=4),
    "Gumbel-max": WatermarkParams(scheme="gumbel", key=KEY),
    "SynthID-Text": WatermarkParams(scheme="synthid", key=KEY),
}
MARKS: dict[str, Watermark] = {name: resolve(params, NativeSettings()) for name, params in SCHEMES.items()}
VOCAB = 4096
TOPICS = (
    "the sea", "a lighthouse", "growing tomatoes", "an old bridge", "the history of paper", "learning the violin",
    "winter in the mountains", "a lost dog", "how bread is made", "a journey by train", "the planet Mars", "bees",
    "a small bookshop", "the invention of the clock", "rivers", "a football match", "cooking rice", "the night sky",
    "a letter to a friend", "glass", "a market in the morning", "volcanoes", "tea", "a forgotten village",
)  # fmt: skip
OPENINGS = ("Write a story about {}.", "Explain {} to a child.", "Tell me five facts about {}.", "An essay on {}:",
            "What do people think of {}?", "A poem about {}:")  # fmt: skip


def report(part: str, **figures: Any) -> dict[str, Any]:
    line = {"part": part, **figures}
    print(json.dumps(line), flush=True)
    return line


def curve(part: str, name: str, texts: Sequence[Sequence[int]], mark: Watermark, **about: Any) -> dict[str, Any]:
    """True positives by length, each text cut to its first tokens."""
    found = {n: sum(detect(text[:n], mark).p_value <= RATE for text in texts) / len(texts) for n in LENGTHS}
    whole = [detect(text, mark) for text in texts]
    return report(
        part,
        scheme=name,
        **about,
        texts=len(texts),
        tokens=NUM_TOKENS,
        false_positive_rate=RATE,
        true_positive_rate=found[NUM_TOKENS],
        median_z=sorted(d.z_score for d in whole)[len(whole) // 2],
        by_length=found,
    )


# --- synthetic distributions ------------------------------------------------------------------------------------------


def logits_of_entropy(nats: float, generator: torch.Generator) -> torch.Tensor:
    """[VOCAB] normal logits, scaled so that their softmax has that entropy."""
    base = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    low, high = 0.0, 50.0
    for _ in range(60):
        scale = (low + high) / 2
        log_probs = (base * scale).log_softmax(0)
        entropy = float(-(log_probs.exp() * log_probs).sum())
        low, high = (scale, high) if entropy > nats else (low, scale)
    return (base * low).float()


def synthetic_texts(marks: Sequence[Watermark | None], nats: float, num_tokens: int) -> list[list[int]]:
    """One text a mark, all in one batch; each step's distribution is one of that entropy over shuffled tokens."""
    generator = torch.Generator().manual_seed(int(nats * 1000))
    values = logits_of_entropy(nats, generator)
    rows = torch.arange(len(marks))
    state = SamplingState(len(marks), VOCAB, torch.device("cpu"))
    state.set_rows([(i, TokenParams(max_tokens=1, seed=i, watermark=mark), 1) for i, mark in enumerate(marks)])
    sampler = Sampler(state, sampling_ops(torch.device("cpu")))
    table = torch.zeros((len(marks), num_tokens + 1), dtype=torch.int32)
    for length in range(1, num_tokens + 1):
        logits = torch.stack([values[torch.randperm(VOCAB, generator=generator)] for _ in marks])
        lengths = torch.full((len(marks),), length)
        output = sampler.sample(
            logits, rows=rows, row_list=rows.tolist(), positions=lengths, token_table=table, lengths=lengths,
            length_list=lengths.tolist(),
        )  # fmt: skip
        table[:, length] = output.token_ids.int()
    return table[:, 1:].tolist()


def run_synthetic(texts_each: int) -> Iterator[dict[str, Any]]:
    for nats in (0.5, 1.0, 2.0, 3.0):
        names = [name for name in MARKS for _ in range(texts_each)]
        texts = synthetic_texts([MARKS[name] for name in names], nats, NUM_TOKENS)
        for name, mark in MARKS.items():
            own = [text for text, of in zip(texts, names, strict=True) if of == name]
            yield curve("synthetic", name, own, mark, entropy_nats=nats)


# --- texts without a mark ---------------------------------------------------------------------------------------------


def run_unmarked(num_texts: int) -> Iterator[dict[str, Any]]:
    """Words by Zipf's law, and loops among them: every tenth text repeats one passage. Each has keys of its own."""
    rng = random.Random(0)
    weights = [1 / (rank + 2.7) for rank in range(VOCAB)]
    cases = [(name, rate) for name in MARKS for rate in (0.05, 0.01, 1e-3, RATE)]
    positives, attainable = dict.fromkeys(cases, 0), dict.fromkeys(cases, 0.0)
    for i in range(num_texts):
        text = rng.choices(range(VOCAB), weights, k=NUM_TOKENS)
        if i % 10 == 0:
            text = (text[: 5 + i % 40] * NUM_TOKENS)[:NUM_TOKENS]
        keyed = {name: msgspec.structs.replace(mark, key=rng.getrandbits(64)) for name, mark in MARKS.items()}
        found = {name: detect(text, mark) for name, mark in keyed.items()}
        for name, rate in cases:
            positives[name, rate] += found[name].p_value <= rate
            attainable[name, rate] += attainable_rate(MARKS[name], found[name].num_tokens_scored, rate)
    for (name, rate), count in positives.items():
        expected = attainable[name, rate]
        yield report(
            "unmarked",
            scheme=name,
            texts=num_texts,
            nominal=rate,
            attainable=expected / num_texts,
            measured=count / num_texts,
            within_99=poisson_binomial_within(count, expected),
        )


@cache
def attainable_rate(mark: Watermark, num_scored: int, rate: float) -> float:
    """The largest p-value up to `rate` that so many tokens can have: few green tokens are few possible counts."""
    if mark.scheme not in (GREEN_LIST, GREEN_LIST_SELF):
        return rate
    share = mark.threshold / 2**32
    tails = (binomial_tail(count, num_scored, share) for count in range(num_scored + 2))
    return next(tail for tail in tails if tail <= rate)


def poisson_binomial_within(count: int, expected: float) -> bool:
    """Whether a sum of rare events of that mean is within its central 99 %, as a Poisson variable's is."""
    below = sum(math.exp(k * math.log(expected) - expected - math.lgamma(k + 1)) for k in range(count + 1))
    at = math.exp(count * math.log(expected) - expected - math.lgamma(count + 1))
    return below > 0.005 and 1 - below + at > 0.005


# --- what is left of the distribution ---------------------------------------------------------------------------------


def run_distribution(num_contexts: int) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(64, generator=generator) * 1.5
    expected = values.double().softmax(0) * num_contexts
    for name, mark in MARKS.items():
        state = SamplingState(num_contexts, 64, torch.device("cpu"))
        params = [TokenParams(max_tokens=1, seed=i, watermark=mark) for i in range(num_contexts)]
        state.set_rows([(i, of_row, 1) for i, of_row in enumerate(params)])
        width = 9
        table = torch.randint(0, 2**31 - 1, (num_contexts, width), generator=generator, dtype=torch.int32)
        rows, lengths = torch.arange(num_contexts), torch.full((num_contexts,), width)
        drawn = Sampler(state, sampling_ops(torch.device("cpu"))).sample(
            values.repeat(num_contexts, 1), rows=rows, row_list=rows.tolist(), positions=lengths, token_table=table,
            lengths=lengths, length_list=lengths.tolist(),
        ).token_ids  # fmt: skip
        counts = torch.bincount(drawn, minlength=64).double()
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        yield report("distribution", scheme=name, contexts=num_contexts, degrees_of_freedom=63, chi_square=chi_square)


# --- a real model -----------------------------------------------------------------------------------------------------


async def run_model(path: str, texts_each: int, concurrency: int) -> list[dict[str, Any]]:
    section = NativeSettings(model=path, generation_defaults="openai")
    engine = NativeEngine(section)
    await engine.start()
    try:
        prompts = [opening.format(topic) for opening in OPENINGS for topic in TOPICS][:texts_each]
        jobs = [(name, prompt) for prompt in prompts for name in (*SCHEMES, "none")]
        gate = asyncio.Semaphore(concurrency)
        started = time.monotonic()
        texts = await asyncio.gather(*(_text(engine, gate, i, *job) for i, job in enumerate(jobs)))
        report("model-speed", tokens_per_s=len(jobs) * NUM_TOKENS / (time.monotonic() - started), batch=concurrency)
        of: dict[str, list[list[int]]] = {name: [] for name in (*SCHEMES, "none")}
        for (name, _), text in zip(jobs, texts, strict=True):
            tokens = (await engine.tokenize(path, TextPrompt(text, False))).token_ids
            of[name].append(list(tokens)[:NUM_TOKENS])
        lines = [curve("model", name, of[name], mark, model=Path(path).name) for name, mark in MARKS.items()]
        for name, mark in MARKS.items():
            found: list[Detection] = [detect(text, mark) for text in of["none"]]
            report("model-unmarked", scheme=name, texts=len(found), lowest_p_value=min(d.p_value for d in found))
        return lines
    finally:
        await engine.aclose()


async def _text(engine: NativeEngine, gate: asyncio.Semaphore, seed: int, name: str, prompt: str) -> str:
    request = GenerationRequest(
        request_id=f"r{seed}",
        model=engine.models[0].name,
        prompt=TextPrompt(prompt),
        sampling=SamplingParams(
            max_tokens=NUM_TOKENS, temperature=1.0, seed=seed, ignore_eos=True, watermark=SCHEMES.get(name, False)
        ),
        stream=False,
    )
    text = ""
    async with gate:
        async for event in engine.generate(request):
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, Done):
                break
    return text


# --- what it costs ----------------------------------------------------------------------------------------------------


def run_cost(batch: int, vocab: int, known_tokens: int = 500) -> Iterator[dict[str, Any]]:
    """Time of a whole sampling step, launches included, with no row marked and with every row marked."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    logits = torch.randn((batch, vocab), device=device) * 3
    table = torch.randint(0, vocab, (batch, 2048), dtype=torch.int32, device=device)
    rows, lengths = torch.arange(batch, device=device), torch.full((batch,), known_tokens, device=device)
    for filters in ({}, {"top_k": 20, "top_p": 0.95}):
        for name, mark in {"none": None, **MARKS}.items():
            state = SamplingState(batch, vocab, device)
            params = [TokenParams(max_tokens=1, seed=i, watermark=mark, **filters) for i in range(batch)]
            state.set_rows([(i, of_row, 1) for i, of_row in enumerate(params)])
            sampler = Sampler(state, sampling_ops(device))
            seconds: list[float] = []
            for turn in range(25):
                copy = logits.clone()
                _wait(device)
                started = time.perf_counter()
                sampler.sample(
                    copy, rows=rows, row_list=list(range(batch)), positions=lengths, token_table=table,
                    lengths=lengths, length_list=[known_tokens] * batch,
                )  # fmt: skip
                _wait(device)
                if turn >= 5:
                    seconds.append(time.perf_counter() - started)
            median_us = statistics.median(seconds) * 1e6
            yield report(
                "cost",
                scheme=name,
                device=device.type,
                batch=batch,
                vocab=vocab,
                **filters,
                median_us=round(median_us, 1),
            )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# --- the picture ------------------------------------------------------------------------------------------------------


def plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    model = [line for line in lines if line["part"] == "model"]
    groups = [(f"{model[0]['model']}", model)] if model else []
    for nats in (2.0, 1.0, 0.5):
        of = [line for line in lines if line["part"] == "synthetic" and line["entropy_nats"] == nats]
        if of:
            groups.append((f"synthetic, {nats:g} nat a token", of))
    figure, panels = pyplot.subplots(1, len(groups), figsize=(3.3 * len(groups), 3.4), sharey=True, squeeze=False)
    for panel, (title, of) in zip(panels[0], groups, strict=True):
        for line, marker in zip(of, "osD^", strict=False):
            by_length = {int(n): rate for n, rate in line["by_length"].items()}
            panel.plot(list(by_length), list(by_length.values()), marker=marker, ms=4, lw=1.5, label=line["scheme"])
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("tokens")
        panel.grid(alpha=0.3)
        panel.set_ylim(-0.03, 1.03)
    panels[0][0].set_ylabel("found, at 1 false positive in 10,000")
    panels[0][-1].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder, GGUF file or name of the model for the part `model`.")
    parser.add_argument("--only", default="synthetic,unmarked,distribution,model,cost")
    parser.add_argument("--texts", type=int, default=100, help="Marked texts a scheme.")
    parser.add_argument("--unmarked-texts", type=int, default=10_000)
    parser.add_argument("--contexts", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=32, help="Requests that the model is asked at a time.")
    parser.add_argument("--cost-batch", type=int, default=64)
    parser.add_argument("--cost-vocab", type=int, default=151_936)
    parser.add_argument("--plot", type=Path, help="Where to write the picture (needs matplotlib).")
    parser.add_argument("--from", dest="figures", type=Path, help="Plot these figures instead of measuring.")
    options = parser.parse_args()
    if options.figures:
        plot([json.loads(line) for line in options.figures.read_text().splitlines()], options.plot)
        return
    torch.set_num_threads(1)  # as the engine does on CPU, whose kernels have threads of their own
    wanted = options.only.split(",")
    lines: list[dict[str, Any]] = []
    if "cost" in wanted:
        lines += run_cost(options.cost_batch, options.cost_vocab)
    if "distribution" in wanted:
        lines += run_distribution(options.contexts)
    if "synthetic" in wanted:
        lines += run_synthetic(options.texts)
    if "model" in wanted and options.model:
        lines += asyncio.run(run_model(options.model, options.texts, options.batch))
    if "unmarked" in wanted:
        lines += run_unmarked(options.unmarked_texts)
    if options.plot:
        plot(lines, options.plot)


if __name__ == "__main__":
    main()
