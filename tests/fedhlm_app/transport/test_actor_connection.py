from __future__ import annotations

import asyncio
import pickle
import socket
import threading
from contextlib import suppress

import pytest

from fedhlm_app.transport.actor_connection import ActorConnection
from hlm.wire import WireError
from servers.actor_socket import ActorSocket


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    on(loop, ended())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def ended():
    """End all that an actor does."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def answer(kind, content):
    if kind == "refused":
        raise WireError(content)
    if kind == "broken":
        raise KeyError(content)
    if kind == "never":
        await asyncio.Event().wait()
    return content


def on(loop, coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(600)


def opened(loop):
    listening = ActorSocket(answer)
    place = on(loop, listening.place("127.0.0.1"))
    # However many ask, there is one.
    assert on(loop, listening.place("127.0.0.1")) == place
    return listening, place


@pytest.mark.parametrize("content", [b"", b"x" * 3_000_000, [1, 2], None])
def test_what_is_asked_is_answered(loop, content):
    connection = ActorConnection(opened(loop)[1], 600)
    for _ in range(3):
        assert connection.ask("echo", content) == content
    connection.close()


def test_errors_are_answers_and_the_connection_goes_on(loop):
    connection = ActorConnection(opened(loop)[1], 600)
    refused, broken = connection.ask("refused", "vocab=99"), connection.ask("broken", "x")
    assert isinstance(refused, WireError) and str(refused) == "vocab=99"
    assert isinstance(broken, RuntimeError) and str(broken) == "KeyError: 'x'"
    assert connection.ask("echo", 1) == 1
    connection.close()


def test_without_the_key_nothing_is_read(loop):
    _, place = opened(loop)
    read = []

    class Evil:
        def __reduce__(self):
            return read.append, (1,)

    body = pickle.dumps(Evil())
    with socket.create_connection(place[:2]) as caller:
        caller.sendall(bytes(32) + len(body).to_bytes(8, "big") + body)
        # Closed, with what it sent perhaps unread.
        with suppress(ConnectionResetError):
            assert caller.recv(1) == b""
    with pytest.raises(ConnectionError):
        ActorConnection((*place[:2], bytes(32)), 600).ask("echo", 1)
    assert not read


def test_one_that_dies_and_one_that_is_late_are_told_apart(loop):
    listening, place = opened(loop)
    connection = ActorConnection(place, 600)
    assert connection.ask("echo", 1) == 1

    async def die():
        (await listening._opening).close()
        await ended()

    with pytest.raises(TimeoutError):
        ActorConnection(place, 0.05).ask("never", 1)
    on(loop, die())
    with pytest.raises(ConnectionError):
        connection.ask("echo", 1)
    with pytest.raises(ConnectionError):
        ActorConnection(place, 600)
