"""The command line: `headrace serve | launch | chat | batch | bench | config | watermark | version`.

Parses, reads the settings once, and hands over to `gateway/cli/`. Parts are imported when a command needs them, so that
`--help` is quick and `chat` does not load a server.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from config.settings import Loaded, SettingsError, load_settings
from gateway.cli.arguments import add_batch_settings, add_native_settings, add_settings, given_settings
from gateway.cli.bench_arguments import BenchArguments, add_bench_arguments, bench_arguments
from gateway.cli.launch import add_flags, launch

_DESCRIPTION = """\
An OpenAI-compatible gateway with pluggable engines, and a native continuous-batching engine of its own.
"""
_EXAMPLES = """\
examples:
  headrace serve                                   SmolLM2-135M-Instruct on http://127.0.0.1:8080/v1
  headrace serve ./model --port 9000               a folder with config.json and safetensors
  headrace serve model.gguf --max-model-len 4096   a GGUF file
  headrace serve --engine remote --upstream https://example.com/v1
  headrace serve --config headrace.toml            several engines, each with its names
  headrace chat                                    talk to a running server
  headrace batch requests.jsonl                    answer a file of requests, in OpenAI's Batch format
  headrace bench throughput ./model                measure the engine without HTTP
"""
_SERVE_EPILOG = """\
Every flag is also a variable (--max-model-len: HEADRACE_MAX_MODEL_LEN) and a key of the TOML file (max_model_len). The
command line wins over the environment, the environment over the file. Several engines: [[engines]] tables in the file;
`headrace config --example` prints one with every setting.
"""
_BATCH_EPILOG = """\
Run the same command again to go on where it ended: requests that have a final answer in the output are not asked again.
docs/batch.md says what a line of each file holds, and what the exit codes mean.
"""
_BENCH_EPILOG = """\
Each figure comes with its share of what this device was measured to do at the start of the run: copy memory, and
multiply matrices. The last line is everything as one line of JSON. docs/bench.md says what each figure means.
"""


class _Parser(argparse.ArgumentParser):
    """Whole flags only, and unknown ones are refused with a suggestion."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def refuse(self, unknown: str) -> NoReturn:
        close = difflib.get_close_matches(unknown.partition("=")[0], self._option_string_actions, n=1)
        self.error(f"unknown argument {unknown}" + (f"; did you mean {close[0]}?" if close else ""))


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script. Exits 0, 1 for what went wrong while running, 2 for a command line or settings in error."""
    arguments, unknown = _parser().parse_known_args(argv)
    parser: _Parser = arguments.parser
    if unknown:
        parser.refuse(unknown[0])
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        sys.exit(command(arguments))
    except SettingsError as error:
        for problem in error.problems:
            print(f"headrace: error: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="headrace",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True).add_parser
    serve = _command(commands, "serve", _serve, "Serve models behind the OpenAI API.", _SERVE_EPILOG)
    serve.usage = "headrace serve [MODEL] [--SETTING VALUE ...]"
    add_settings(serve)
    summary = "Serve with the flags and variables of text-generation-launcher."
    add_flags(_command(commands, "launch", launch, summary))
    chat = _command(commands, "chat", _chat, "Talk to a running server from the terminal.")
    chat.add_argument("--url", default="http://127.0.0.1:8080/v1", help="Base URL of the server. [%(default)s]")
    chat.add_argument("--model", metavar="NAME", help="Default: the first model that the server lists.")
    chat.add_argument("--system", metavar="TEXT", help="System message that opens the conversation.")
    chat.add_argument("--temperature", type=float, metavar="X", help="Default: the server's.")
    chat.add_argument("--api-key", metavar="TEXT", help="Bearer token, if the server wants one.")
    batch = _command(commands, "batch", _batch, "Answer every request of a file, into another file.", _BATCH_EPILOG)
    batch.usage = "headrace batch FILE [MODEL] [--OPTION VALUE ...]"
    batch.add_argument("file", metavar="FILE", type=Path, help="JSON lines, in the format of OpenAI's Batch API.")
    batch.add_argument(
        "--output", metavar="PATH", type=Path, help="Answers. Default: NAME.output.jsonl beside NAME.jsonl."
    )
    batch.add_argument("--url", type=_base_url, help="Base URL of a server. Default: engines are started for this run.")
    batch.add_argument(
        "--concurrency", metavar="N", type=_at_least_one, default=64, help="Requests open at once. [%(default)s]"
    )
    add_batch_settings(batch)
    bench = _command(commands, "bench", _bench, "Measure the native engine without HTTP.", _BENCH_EPILOG)
    bench.usage = "headrace bench {latency,throughput,prefill,all} [MODEL] [--OPTION VALUE ...]"
    add_bench_arguments(bench)
    add_native_settings(bench)
    config = _command(commands, "config", _config, "Show the settings that serve would use, and where each came from.")
    config.add_argument("--example", action="store_true", help="Print a TOML file with every setting instead.")
    config.usage = "headrace config [--example] [MODEL] [--SETTING VALUE ...]"
    add_settings(config)
    watermark = _command(commands, "watermark", _watermark, "Look for a watermark in a text, with a running server.")
    watermark.add_argument("action", choices=["detect"], help="detect: how surely FILE carries a watermark.")
    watermark.add_argument(
        "file", metavar="FILE", help="The text, without the prompt that led to it. -: standard input."
    )
    watermark.add_argument("--url", default="http://127.0.0.1:8080/v1", help="Base URL of the server. [%(default)s]")
    watermark.add_argument("--model", metavar="NAME", help="Default: the first model that the server lists.")
    watermark.add_argument("--scheme", choices=["green_list", "gumbel", "synthid"], help="Default: the server's.")
    watermark.add_argument("--key-file", metavar="FILE", help="File that holds the key. Default: the server's own key.")
    watermark.add_argument("--false-positive-rate", type=float, metavar="X", help="For the verdict. [1e-4]")
    watermark.add_argument("--api-key", metavar="TEXT", help="Bearer token, if the server wants one.")
    watermark.add_argument("--json", action="store_true", help="Print the server's answer as it is.")
    _command(commands, "version", _version, "Print the version.")
    return parser


def _command(
    add: Callable[..., _Parser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    epilog: str | None = None,
) -> _Parser:
    parser = add(name, help=summary, description=summary, epilog=epilog)
    parser.set_defaults(run=run, parser=parser)
    return parser


def _base_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"must start with http:// or https:// (got {text!r})")
    return text


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes whole numbers of at least 1 (got {text!r})")
    return int(text)


def _load(arguments: argparse.Namespace) -> Loaded:
    parser: _Parser = arguments.parser
    try:
        return load_settings(given_settings(arguments))
    except ValueError as error:
        parser.error(str(error))


def _serve(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments)
    from gateway.cli.display import Display
    from gateway.cli.serve import serve

    return serve(loaded, Display())


def _chat(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from gateway.cli.chat import ChatOptions, chat

    options = ChatOptions(
        url=arguments.url,
        model=arguments.model,
        system=arguments.system,
        temperature=arguments.temperature,
        api_key=arguments.api_key,
    )
    return chat(options, Console())


def _batch(arguments: argparse.Namespace) -> int:
    if arguments.url is not None:
        engines = sorted(given_settings(arguments).keys() - {"config", "api_key", "log_level"})
        if engines:
            parser: _Parser = arguments.parser
            flag = "--" + engines[0].replace("_", "-")
            parser.error(f"{flag} is about an engine of this command's own, and --url names a server instead")
    loaded = _load(arguments)
    from gateway.cli.batch import BatchOptions, batch

    options = BatchOptions(
        file=arguments.file, output=arguments.output, url=arguments.url, concurrency=arguments.concurrency
    )
    return batch(options, loaded)


def _bench(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments)
    parser: _Parser = arguments.parser
    try:
        wanted: BenchArguments = bench_arguments(arguments)
    except ValueError as error:
        parser.error(str(error))
    from gateway.cli.bench import bench

    return bench(loaded, wanted)


def _watermark(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from gateway.cli.watermark import DetectOptions, detect

    options = DetectOptions(
        file=arguments.file,
        url=arguments.url,
        model=arguments.model,
        scheme=arguments.scheme,
        key_file=arguments.key_file,
        false_positive_rate=arguments.false_positive_rate,
        api_key=arguments.api_key,
        as_json=arguments.json,
    )
    return detect(options, Console())


def _config(arguments: argparse.Namespace) -> int:
    if arguments.example:
        from config.example import example_toml

        print(example_toml(), end="")
        return 0
    from rich.console import Console

    from gateway.cli.show_config import show_config

    show_config(_load(arguments), Console())
    return 0


def _version(_: argparse.Namespace) -> int:
    print(f"headrace {metadata.version('headrace')}")
    return 0


if __name__ == "__main__":
    main()
