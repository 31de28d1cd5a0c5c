"""Connections that end badly: who still sends hears his answer, and who takes none holds up nobody."""

import asyncio
import re
import socket
import time

import pytest
from serving import TOKEN, chain, png, running, until
from test_refusals import trickle
from uvicorn.server import ServerState

from medfedpure.service.app import create_app
from medfedpure.service.heads import Connection
from medfedpure.service.limits import Limits
from medfedpure.service.run import _config

QUICK = Limits(upload_seconds=0.5)
HOST = b"Host: localhost\r\n"


def connected(service):
    made = socket.create_connection(("127.0.0.1", service.port))
    made.settimeout(20)
    return made


def all_of(connection):
    """Everything up to the end of the connection, which has to be an end and no reset."""
    found = b""
    while more := connection.recv(65536):
        found += more
    return found


@pytest.mark.parametrize("head", [b"HTTP/1.1\r\nConnection: close\r\n", b"HTTP/1.0\r\n"])
def test_whoever_sends_on_behind_a_refusal_hears_it_also_on_a_connection_for_one_request(chain, head):
    with running(chain, TOKEN) as service, connected(service) as connection:
        connection.sendall(b"POST /v1/verdict " + head + HOST + b"Content-Length: 1000000\r\n\r\n")
        until(lambda: connection.recv(1, socket.MSG_PEEK))
        for _ in range(10):
            connection.sendall(bytes(100_000))
            time.sleep(0.01)
        said = all_of(connection)
    assert said.startswith(b"HTTP/1.1 401 ")
    assert said.endswith(b'"}')


def test_whoever_sends_no_http_hears_that_behind_all_he_sends(chain):
    with running(chain) as service, connected(service) as connection:
        connection.sendall(b"POST /v1/verdict HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nno size\r\n")
        until(lambda: connection.recv(1, socket.MSG_PEEK))
        for _ in range(5):
            connection.sendall(bytes(100_000))
            time.sleep(0.01)
        assert all_of(connection).startswith(b"HTTP/1.1 400 ")


def test_whoever_says_two_lengths_is_refused_and_nothing_behind_it_is_a_request(chain):
    smuggled = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
    with running(chain) as service, connected(service) as connection:
        head = b"POST /v1/verdict HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"0\r\n\r\n" + smuggled)
        said = all_of(connection)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"send one of them" in said


def test_a_connection_goes_on_behind_refusals(chain):
    bad = b"POST /v1/verdict HTTP/1.1\r\n" + HOST + b"Content-Type: image/png\r\nContent-Length: 3\r\n\r\nbad"
    good = b"GET /health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    with running(chain) as service, connected(service) as connection:
        connection.sendall(bad + bad + good)
        said = all_of(connection)
    assert re.findall(rb"HTTP/1\.1 (\d+)", said) == [b"415", b"415", b"200"]


def test_who_waits_for_leave_to_send_gets_it(chain):
    content = png(0)
    head = b"Content-Type: image/png\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(content)
    with running(chain) as service, connected(service) as connection:
        connection.sendall(b"POST /v1/verdict HTTP/1.1\r\n" + HOST + head)
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(content)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_refused_sender_who_never_stops_is_ended(chain):
    with running(chain, TOKEN, limits=QUICK) as service, connected(service) as connection:
        connection.sendall(b"POST /v1/verdict HTTP/1.0\r\n" + HOST + b"Content-Length: 1000000\r\n\r\n")
        with pytest.raises(ConnectionError):
            trickle(connection, 10)
        until(lambda: not service.server.server_state.connections)


def reads_nothing(service):
    """A connection on which more answers are asked for than fit into any buffer, and none is read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", service.port))
    connection.setblocking(False)
    ask = 500 * (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    try:
        while True:
            connection.send(ask)
    except BlockingIOError:
        return connection


def held_up(service):
    """Whether an answer waits for somebody to take what is before it."""
    return any(one.flow.write_paused for one in service.server.server_state.connections)


def test_whoever_takes_no_answer_is_cut_off(chain):
    with running(chain, limits=QUICK) as service, reads_nothing(service):
        until(lambda: held_up(service))
        until(lambda: not service.server.server_state.connections)
        until(lambda: service.app.state.service.in_flight == 0)
        assert service.client.post("/v1/verdict", files={"file": png(0)}).status_code == 200


def test_a_second_signal_waits_for_nobody(chain):
    with running(chain) as service, reads_nothing(service):
        until(lambda: held_up(service))
        service.server.handle_exit(15, None)
        service.server.handle_exit(15, None)
        until(lambda: not service.server.server_state.connections, Limits().upload_seconds / 2)


class Transport(asyncio.Transport):
    """Of which nothing is known but how much of an answer is left at each look."""

    def __init__(self, left):
        super().__init__()
        self.left, self.aborted = list(left), asyncio.Event()

    def get_write_buffer_size(self):
        return self.left.pop(0)

    def abort(self):
        self.aborted.set()


@pytest.mark.parametrize(("left", "looks"), [([9, 9], 2), ([9, 8, 8, 3], 3), ([9, 8, 7, 6, 6], 5), ([9, 0], 2)])
def test_whoever_takes_some_of_an_answer_now_and_then_is_waited_for(chain, left, looks):
    async def cut_off():
        config = _config(create_app(chain, token=None, limits=Limits(upload_seconds=0.01)))
        config.load()
        connection, transport = Connection(config, ServerState(), {}), Transport(left)
        connection.connection_made(transport)
        connection._forget()  # no head is awaited here
        connection.pause_writing()
        await asyncio.wait_for(transport.aborted.wait(), 20)
        return len(left) - len(transport.left)

    assert asyncio.run(cut_off()) == looks


def test_a_head_alone_is_answered_as_a_get_is_without_its_body(chain):
    with running(chain) as service:
        for path, status in (("/", 200), ("/health", 200), ("/metrics", 200), ("/v1/verdict", 405), ("/gone", 404)):
            answer = service.client.head(path)
            assert (answer.status_code, answer.content) == (status, b""), path
            length = service.client.get(path).headers["content-length"]
            assert answer.headers["content-length"] == length or path == "/metrics"


def test_no_answer_sends_a_scan_elsewhere(chain):
    with running(chain) as service:
        for path in ("/v1/verdict/", "/health/", "//v1/verdict"):
            answer = service.client.post(f"http://127.0.0.1:{service.port}{path}", files={"file": png(0)})
            assert (answer.status_code, "location" in answer.headers) == (404, False), path
        assert service.client.get("/health", headers={"host": "LocalHost:80"}).status_code == 200
