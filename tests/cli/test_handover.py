from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from gateway.cli.handover import Dealer, channel, handed_over


class Table:
    """A listener, its dealer, and the players: channels whose other ends count what they are dealt."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.address: tuple[str, int] = listener.getsockname()
        self.takers: list[socket.socket] = []
        self.hands: list[socket.socket] = []
        self.dealer = Dealer(listener, lambda: self.takers)

    def seat(self) -> None:
        ours, theirs = channel()
        self.takers.append(self.stack.enter_context(ours))
        self.hands.append(self.stack.enter_context(theirs))

    async def connect(self, number: int) -> list[socket.socket]:
        made = [self.stack.enter_context(socket.create_connection(self.address)) for _ in range(number)]
        await asyncio.sleep(0.2)
        return made

    def dealt(self) -> list[int]:
        return [len([self.stack.enter_context(connection) for connection in handed_over(hand)]) for hand in self.hands]


@pytest.fixture
async def table() -> AsyncIterator[Table]:
    with ExitStack() as stack:
        made = Table(stack)
        made.dealer.start()
        yield made
        made.dealer.close()


async def test_connections_are_dealt_in_turn(table: Table):
    table.seat()
    table.seat()
    await table.connect(6)
    assert table.dealt() == [3, 3]


async def test_dealt_connection_is_the_clients(table: Table):
    table.seat()
    (client,) = await table.connect(1)
    (connection,) = handed_over(table.hands[0])
    with connection:
        client.sendall(b"ping")
        await asyncio.sleep(0.05)
        assert connection.recv(10) == b"ping"
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_process_that_ended_is_passed_over(table: Table):
    table.seat()
    table.seat()
    table.hands[0].close()
    del table.hands[0]
    await table.connect(4)
    assert table.dealt() == [4]


@pytest.mark.parametrize("number", [1, 2])
async def test_connection_waits_until_there_is_a_process(table: Table, number: int):
    await table.connect(number)
    table.seat()
    await asyncio.sleep(0.3)
    assert table.dealt() == [number]


async def test_full_channel_is_passed_over_until_it_has_room(table: Table):
    table.seat()
    fillers = _fill(table.takers[0])
    assert fillers > 10
    await table.connect(1)
    taken = 0
    while taken < fillers + 1:  # the client's comes once the others made room
        taken += sum(table.dealt())
        await asyncio.sleep(0.05)


def _fill(taker: socket.socket) -> int:
    """Hand over copies of a descriptor until no more fit; how many did."""
    with socket.socket() as filler:
        count = 0
        while True:
            try:
                socket.send_fds(taker, [b"c"], [filler.fileno()])
            except BlockingIOError:
                return count
            count += 1


async def test_closed_dealer_refuses(table: Table):
    table.dealer.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(table.address)
