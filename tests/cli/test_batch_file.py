from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.batch_file import BatchAnswer, BatchFileError, open_answers, read_requests

GOOD: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "é\u2028"}}


def answers_of(path: Path, *answers: BatchAnswer) -> bytes:
    with open_answers(path, {answer.custom_id for answer in answers}) as file:
        for answer in answers:
            file.write(answer)
    return path.read_bytes()


def test_body_is_sent_as_it_stands(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    path.write_text("\ufeff" + json.dumps(GOOD) + "\r\n\n", encoding="utf-8")
    (request,) = read_requests(path)
    assert (request.custom_id, request.url, json.loads(request.body)) == ("a", "/v1/completions", {"prompt": "é\u2028"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "line 1: Invalid JSON: EOF while parsing"),
        ("[]", "line 1: Input should be an object"),
        (json.dumps(GOOD | {"custom_id": ""}), "line 1: custom_id: String should have at least 1 character"),
        (json.dumps(GOOD | {"custom_id": 7}), "line 1: custom_id: Input should be a valid string"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "body"}), "line 1: body: Field required"),
        (
            json.dumps(GOOD | {"url": "/v1/nope"}),
            "line 1: url: Input should be '/v1/chat/completions', '/v1/completions', '/v1/responses' or",
        ),
        (json.dumps(GOOD | {"extra": 1}), "line 1: extra: Extra inputs are not permitted"),
        (json.dumps(GOOD | {"body": {"stream": True}}), "line 1: body.stream: a batch's answers come whole"),
        ("\n \n", "holds no request"),
    ],
    ids=["torn", "list", "empty id", "number id", "no body", "url", "extra", "stream", "empty"],
)
def test_bad_line_is_named_with_its_field(tmp_path: Path, text: str, problem: str):
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(BatchFileError) as caught:
        read_requests(path)
    assert problem in str(caught.value)


def test_problems_beyond_ten_are_counted(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    path.write_text("{}\n" * 5)  # four fields missing in each
    with pytest.raises(BatchFileError) as caught:
        read_requests(path)
    assert len(caught.value.problems) == 11
    assert caught.value.problems[-1] == "... and 10 more like these"


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(BatchFileError, match=r"cannot read .*none\.jsonl: No such file or directory"):
        read_requests(tmp_path / "none.jsonl")


@given(cut=st.integers(min_value=0), text=st.text(max_size=20))
def test_output_cut_anywhere_keeps_its_whole_lines(tmp_path_factory: pytest.TempPathFactory, cut: int, text: str):
    path = tmp_path_factory.mktemp("cut") / "o.jsonl"
    written = answers_of(path, *(BatchAnswer(f"r{i}", 200, "id", {"text": text}) for i in range(3)))
    rest = written[: cut % (len(written) + 1)]
    path.write_bytes(rest)
    with open_answers(path, {"r0", "r1", "r2"}) as file:
        whole = rest.count(b"\n")
        assert [f"r{i}" in file.statuses for i in range(3)][:whole] == [True] * whole
        assert len(file.statuses) <= whole + 1  # a line that only lacks its end is whole too
        file.write(BatchAnswer("r2", 200))
    lines = path.read_bytes().splitlines()
    assert len(lines) == len(file.statuses) + 1
    assert all(json.loads(line)["custom_id"].startswith("r") for line in lines)


def test_failures_are_dropped_and_final_answers_kept(tmp_path: Path):
    path = tmp_path / "o.jsonl"
    statuses = {"ok": 200, "bad": 400, "long": 413, "key": 403, "busy": 429, "broken": 500, "gone": 0}
    answers_of(path, *(BatchAnswer(name, status, error="why") for name, status in statuses.items()))
    with open_answers(path, statuses) as file:
        assert file.statuses == {"ok": 200, "bad": 400, "long": 413}
    kept = [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]
    assert kept == ["ok", "bad", "long"]
    assert list(tmp_path.iterdir()) == [path]


def test_answer_that_never_came_has_an_error(tmp_path: Path):
    (line,) = answers_of(tmp_path / "o.jsonl", BatchAnswer("a", 0, error="the connection broke")).splitlines()
    assert json.loads(line)["response"] is None
    assert json.loads(line)["error"] == {"code": "no_response", "message": "the connection broke"}


@pytest.mark.parametrize(
    "content", ["my notes\n", "my notes", '{"custom_id": "other", "response": null}\n', "{}\n{}\n"]
)
def test_file_that_holds_something_else_is_left_alone(tmp_path: Path, content: str):
    path = tmp_path / "o.jsonl"
    path.write_text(content)
    with pytest.raises(BatchFileError, match=r"line 1: .*name another file with --output"), open_answers(path, {"a"}):
        pass
    assert path.read_text() == content


def test_second_run_on_one_output_is_refused(tmp_path: Path):
    path = tmp_path / "o.jsonl"
    path.write_text('{"custom_id": "a", "response": null}\n')  # the first run replaces the file
    for _ in range(2):
        with (
            open_answers(path, {"a"}),
            pytest.raises(BatchFileError, match="another run is writing to it"),
            open_answers(path, {"a"}),
        ):
            pass
