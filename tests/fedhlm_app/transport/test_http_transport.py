"""A proxy that loses its server under a request is asked once more, and only once."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from fedhlm_app.transport.http_transport import HttpTransport
from hlm.transport import LinkDown
from tests.served import serving_app


class Proxy:
    """Answers like one whose server dies under the next `lost` requests."""

    def __init__(self, lost: int, refusal: bytes = b"", status: int = 500) -> None:
        self.lost, self.refusal, self.bodies = lost, Response(refusal, status), list[bytes]()
        self.app = Starlette(
            routes=[Route(path, self, methods=["POST"]) for path in ("/v1/exchange", "/v1/stream")]
        )

    async def __call__(self, scope, receive, send) -> None:
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(message["body"])
        if len(self.bodies) <= self.lost:
            if self.refusal.body:
                await self.refusal(scope, receive, send)
            return  # the web server answers by itself
        await StreamingResponse(iter([b"answer"]))(scope, receive, send)


@pytest.mark.parametrize("way", ["exchange", "stream"])
def test_a_server_that_dies_under_a_request_costs_nothing(way):
    proxy = Proxy(lost=1)
    with serving_app(proxy.app) as port:
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        for _ in range(2):
            answer = getattr(link, way)(b"asked")
            assert (answer if way == "exchange" else b"".join(answer)) == b"answer"
        link.close()
    assert proxy.bodies == [b"asked"] * 3


@pytest.mark.parametrize("way", ["exchange", "stream"])
def test_one_that_dies_twice_is_down(way):
    proxy = Proxy(lost=2)
    with serving_app(proxy.app) as port:
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        with pytest.raises(LinkDown, match="answered 500"):
            getattr(link, way)(b"asked")
        link.close()
    assert len(proxy.bodies) == 2


def test_a_failure_that_the_server_tells_of_itself_is_not_asked_about_again():
    proxy = Proxy(lost=1, refusal=b"the engine failed: MemoryError")
    with serving_app(proxy.app) as port:
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        with pytest.raises(LinkDown, match="the engine failed"):
            link.exchange(b"asked")
        link.close()
    assert len(proxy.bodies) == 1


@pytest.mark.parametrize(("status", "said"), [(404, "no server of FedHLM's"), (503, "<p> Busy")])
def test_what_a_server_of_others_says_is_told_in_one_line(status, said):
    proxy = Proxy(lost=1, refusal=b"<html>\n<p>\n Busy </p>", status=status)
    with serving_app(proxy.app) as port:
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        with pytest.raises(LinkDown, match=f"answered {status}: .*{said}") as found:
            link.exchange(b"asked")
        link.close()
    assert "\n" not in str(found.value)
