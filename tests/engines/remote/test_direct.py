"""The direct transport against servers that say exactly what a test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from engines.remote.direct import DirectTransport

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Script = Callable[[Reader, Writer], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Upstream:
    """A server that runs `script` for each request on each connection, until the script closes it."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.url = ""
        self.heads: list[bytes] = []
        self.connections = 0
        self.ended = asyncio.Event()  # a connection is over

    async def handle(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                await self._script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.ended.set()


@asynccontextmanager
async def upstream(script: Script) -> AsyncGenerator[Upstream, None]:
    scripted = Upstream(script)
    server = await asyncio.start_server(scripted.handle, "127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield scripted
    finally:
        server.close()


@asynccontextmanager
async def client(
    max_connections: int = 10, keepalive_s: float = 30.0, timeout_s: float = 5.0
) -> AsyncGenerator[httpx.AsyncClient, None]:
    transport = DirectTransport(max_connections=max_connections, keepalive_s=keepalive_s)
    timeout = httpx.Timeout(None, connect=timeout_s, pool=timeout_s)
    async with httpx.AsyncClient(transport=transport, timeout=timeout) as made:
        yield made


def says(*pieces: bytes, pause_s: float = 0.0, close: bool = False) -> Script:
    async def script(_: Reader, writer: Writer) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if close:
            writer.close()

    return script


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "close", "body"),
    [
        ([OK], False, b"ok"),
        ([CHUNKED + b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"], False, b"abcde"),
        ([CHUNKED, b"2\r", b"\nab\r\n3\r\nc", b"de\r\n0\r\n", b"\r\n"], False, b"abcde"),
        ([b"HTTP/1.1 200 OK\r\n\r\nuntil the end"], True, b"until the end"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", OK], False, b"ok"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], False, b""),
    ],
    ids=["length", "chunked", "chunked in pieces", "until close", "continue first", "no content"],
)
async def test_every_framing_is_read(pieces: list[bytes], close: bool, body: bytes):
    async with upstream(says(*pieces, pause_s=0.01, close=close)) as server, client() as http:
        assert (await http.get(server.url)).content == body


async def test_request_goes_out_as_httpx_made_it():
    async def script(reader: Reader, writer: Writer) -> None:
        assert await reader.readexactly(9) == b'{"a":"b"}'
        writer.write(OK)

    async with upstream(script) as server, client() as http:
        await http.post(f"{server.url}/chat?x=1", content=b'{"a":"b"}', headers={"Authorization": "Bearer k"})
    lines = server.heads[0].lower().split(b"\r\n")
    assert lines[0] == b"post /v1/chat?x=1 http/1.1"
    assert {b"authorization: bearer k", b"content-length: 9"} <= set(lines)
    assert any(line.startswith(b"host: 127.0.0.1:") for line in lines)


async def test_status_and_headers_come_back():
    answer = b"HTTP/1.1 404 Not Found\r\nX-Kind: none\r\nContent-Length: 0\r\n\r\n"
    async with upstream(says(answer)) as server, client() as http:
        response = await http.get(server.url)
    assert (response.status_code, response.headers["x-kind"]) == (404, "none")


async def test_chunks_of_one_read_are_one_piece():
    chunks = b"".join(b"1\r\n%d\r\n" % (i % 10) for i in range(100))
    async with (
        upstream(says(CHUNKED + chunks + b"0\r\n\r\n")) as server,
        client() as http,
        http.stream("GET", server.url) as response,
    ):
        pieces = [piece async for piece in response.aiter_raw()]
    assert b"".join(pieces) == b"0123456789" * 10
    assert len(pieces) <= 2


async def test_connection_is_used_again_after_a_whole_answer():
    async with upstream(says(OK)) as server, client() as http:
        for _ in range(3):
            await http.get(server.url)
    assert server.connections == 1


@pytest.mark.parametrize(
    ("script", "keepalive_s"),
    [
        (says(OK, close=True), 30.0),
        (says(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"), 30.0),
        (says(OK + b"and more"), 30.0),
        (says(OK), 0.0),
    ],
    ids=["server closed it", "server will close it", "server said too much", "idle too long"],
)
async def test_connection_is_not_used_again(script: Script, keepalive_s: float):
    async with upstream(script) as server, client(keepalive_s=keepalive_s) as http:
        for _ in range(2):
            assert (await http.get(server.url)).content == b"ok"
            await asyncio.sleep(0.05)
    assert server.connections == 2


async def test_leaving_an_answer_early_closes_its_connection():
    async def endless(_: Reader, writer: Writer) -> None:
        writer.write(CHUNKED)
        while True:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with upstream(endless) as server, client() as http:
        async with http.stream("GET", server.url) as response:
            await anext(response.aiter_raw())
        async with asyncio.timeout(5):
            await server.ended.wait()


async def test_slow_reader_makes_the_upstream_wait():
    sent = 0

    async def flood(_: Reader, writer: Writer) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n")
        while sent < 64 * 2**20:
            writer.write(bytes(2**20))
            await writer.drain()
            sent += 2**20

    async with upstream(flood) as server, client() as http, http.stream("GET", server.url) as response:
        await asyncio.sleep(0.5)
        assert sent < 32 * 2**20  # what the sockets' own buffers hold
        received = sum([len(piece) async for piece in response.aiter_raw()])
    assert received == 64 * 2**20


async def test_no_more_than_the_allowed_connections():
    async with upstream(says(OK)) as server, client(max_connections=1, timeout_s=0.05) as http:
        async with http.stream("GET", server.url):
            with pytest.raises(httpx.PoolTimeout):
                await http.get(server.url)
        assert (await http.get(server.url)).content == b"ok"
    assert server.connections == 1


async def test_cancelled_request_gives_its_place_back():
    async def silent(reader: Reader, _: Writer) -> None:
        await reader.read()

    async with upstream(silent) as server, client(max_connections=1, timeout_s=1.0) as http:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await http.get(server.url)


async def test_upstream_that_is_not_there():
    async with client() as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (says(b"", close=True), httpx.ReadError),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", close=True), httpx.ReadError),
        (says(CHUNKED + b"2\r\nab\r\n", close=True), httpx.ReadError),
        (says(b"SSH-2.0-nonsense\r\n"), httpx.RemoteProtocolError),
        (says(CHUNKED + b"not a length\r\n"), httpx.RemoteProtocolError),
    ],
    ids=["no answer", "short", "chunks cut", "not HTTP", "bad chunk"],
)
async def test_broken_answer_is_an_error(script: Script, error: type[httpx.HTTPError]):
    async with upstream(script) as server, client() as http:
        with pytest.raises(error):
            await http.get(server.url)
