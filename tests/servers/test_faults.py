"""What a device's text keeps while what it asks fails, and that it is asked again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import pytest

from clients.policy import FixedPolicy
from fedhlm_app.cli.edge import open_upstream
from fedhlm_app.transport.http_transport import HttpTransport
from fedhlm_app.transport.transports import DirectTransport
from servers.edge.service import ServedEdge
from tests.certificates import Authority
from tests.models import VOCAB
from tests.routed import make_prompts, new_part
from tests.served import make_service, serving, serving_app
from tests.servers.edge.test_service import build
from tests.servers.test_service import routed

NEVER = FixedPolicy(kept=False)
TEXTS, TOKENS = 3, 6


class Changing:
    """A link around which something happens before some of its messages, by their numbers."""

    def __init__(self, link: HttpTransport, happens: Mapping[int, Callable[[], object]]) -> None:
        self.link, self.happens, self.number = link, happens, 0

    def exchange(self, body: bytes) -> bytes:
        self.number += 1
        self.happens.get(self.number, lambda: None)()
        return self.link.exchange(body)


def assert_lost(records, messages: int) -> None:
    """Every token has a place, and only those of so many messages none of the LLM's."""
    stages = records.stage_counts()
    assert stages.pop("unresolved") == TEXTS * messages
    assert stages["llm_accepted"] + stages["llm_resampled"] == TEXTS * (TOKENS - messages)


def test_an_edge_server_that_is_gone_for_a_while_costs_the_tokens_of_that_while():
    prompts = make_prompts(VOCAB, TEXTS)
    with serving(make_service()) as (behind, _), ExitStack() as second, ExitStack() as first:

        def edge(stack: ExitStack, port: int = 0) -> int:
            upstream = open_upstream(f"127.0.0.1:{behind}", "")
            return stack.enter_context(serving_app(ServedEdge(build, upstream=upstream).app, port))

        port = edge(first)
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        _, records, traffic = routed(
            Changing(link, {3: first.close, 5: lambda: edge(second, port)}), NEVER, prompts, TOKENS
        )
        link.close()
    assert_lost(records, 2)
    assert (traffic.failures, traffic.refused, traffic.untrusted) == (2, 0, 0)


def test_a_certificate_that_expires_is_told_by_name_and_renewed(tmp_path):
    authority, prompts = Authority(tmp_path), make_prompts(VOCAB, TEXTS)
    with ExitStack() as renewed, ExitStack() as expired, ExitStack() as first:

        def serve(stack: ExitStack, port: int = 0, **issued) -> int:
            certificate, key = authority.issue("127.0.0.1", **issued)
            files = {"certificate": certificate, "key": key}
            return stack.enter_context(serving(make_service(), port, **files))[0]

        def expire() -> None:
            link.close()  # or the server waits for it
            first.close()
            serve(expired, port, expired=True)

        def renew() -> None:
            expired.close()
            serve(renewed, port)

        port = serve(first)
        link = HttpTransport(f"https://127.0.0.1:{port}", timeout=120, ca_file=authority.file)
        _, records, traffic = routed(Changing(link, {3: expire, 5: renew}), NEVER, prompts, TOKENS)
        link.close()
    assert_lost(records, 2)
    assert (traffic.failures, traffic.refused, traffic.untrusted) == (2, 0, 2)


@pytest.mark.slow
def test_an_llm_that_is_slow_by_ten_seconds_costs_time_or_its_tokens_and_no_text():
    prompts, service = make_prompts(VOCAB, TEXTS), make_service()
    service.engine.pace = 10.0
    with serving(service) as (port, _):
        patient = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        texts, records, traffic = routed(patient, NEVER, prompts, 1)
        impatient = HttpTransport(f"127.0.0.1:{port}", timeout=0.5)
        _, alone, lost = routed(impatient, NEVER, prompts, 2)
        patient.close()
        impatient.close()
    direct, same, _ = routed(DirectTransport(make_service()), NEVER, prompts, 1)
    assert [new_part(texts, row) for row in range(TEXTS)] == [
        new_part(direct, row) for row in range(TEXTS)
    ]
    assert records.stage_counts() == same.stage_counts() and traffic.waited >= 10
    assert alone.stage_counts()["unresolved"] == alone.tokens == 2 * TEXTS
    assert lost.failures == 2
