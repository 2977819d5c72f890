"""What a server tells whoever watches it, and that no text is in it."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from servers.metrics import Histogram, JsonLines, logger
from tests.served import make_service, payload, serving
from tests.servers.test_access import TOKEN, bearer, status
from tests.servers.test_service import asked

ROOT = Path(__file__).resolve().parents[2]
LABEL = r'[a-z]+="[^"\\]*"'
LINE = re.compile(rf"fedhlm_[a-z_]+(\{{{LABEL}(,{LABEL})*\}})? -?[0-9.e+-]+")


def parsed(text):
    """Values by name and labels, of lines that Prometheus would read."""
    lines = [line for line in text.splitlines() if not line.startswith("# ")]
    assert not [line for line in lines if not LINE.fullmatch(line)]
    helps = re.findall(r"# HELP (\S+) ", text)
    assert helps == re.findall(r"# TYPE (\S+) (?:counter|gauge|histogram)\n", text)
    assert len(set(helps)) == len(helps)
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_what_was_asked_is_counted():
    sent = [payload(client=client) for client in range(3)]
    with serving(make_service()) as (port, _):
        for body in [*sent, b"\x00"]:
            asked(port, "POST", "/v1/exchange", body)
        asked(port, "GET", "/nowhere/else")
        code, text = asked(port, "GET", "/metrics")
    found = parsed(text)
    assert code == 200
    assert found['fedhlm_requests_total{path="/v1/exchange",status="200"}'] == 3
    assert found['fedhlm_requests_total{path="other",status="404"}'] == 1
    assert found['fedhlm_refused_total{reason="invalid"}'] == 1
    assert found['fedhlm_request_seconds_bucket{path="/v1/exchange",le="+Inf"}'] == 4
    assert found["fedhlm_verdicts_total"] == found["fedhlm_sessions"] == 3
    assert found["fedhlm_batch_requests_sum"] == 3
    assert found['fedhlm_bytes_total{way="uplink"}'] == sum(map(len, sent))
    assert found["fedhlm_tokens_read_total"] >= 9


def test_values_fall_into_the_first_bound_that_holds_them():
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 1.5, 2, 9):
        histogram.observe(value)
    assert list(histogram.lines("x", 'a="b"')) == [
        'x_bucket{a="b",le="1"} 2',
        'x_bucket{a="b",le="2"} 4',
        'x_bucket{a="b",le="+Inf"} 5',
        'x_sum{a="b"} 14.0',
        'x_count{a="b"} 5',
    ]


def test_ready_is_told_apart_from_alive():
    service = make_service()
    with serving(service, token=TOKEN) as (port, _):
        assert asked(port, "GET", "/readyz") == (200, '{"status":"ready"}')
        score, service.engine.score = service.engine.score, None
        assert status(port, "POST", "/v1/exchange", payload(), **bearer(TOKEN)) == 500
        code, text = asked(port, "GET", "/readyz")
        assert code == 503 and "the engine failed: TypeError" in text
        assert asked(port, "GET", "/healthz")[0] == 200
        service.engine.score = score
        assert status(port, "POST", "/v1/exchange", payload(), **bearer(TOKEN)) == 200
        assert asked(port, "GET", "/readyz")[0] == 200
        assert asked(port, "GET", "/metrics")[0] == 401


@pytest.mark.parametrize("brought", [TOKEN, "a-wrong-token-0123456789"])
def test_each_request_is_a_line_without_secrets(brought, caplog):
    with caplog.at_level(logging.INFO, logger.name), serving(make_service(), token=TOKEN) as (p, _):
        found = status(p, "POST", "/v1/exchange", payload(), **bearer(brought))
    (record,) = [one for one in caplog.records if one.name == logger.name]
    line = JsonLines().format(record)
    told = json.loads(line)
    assert (told["event"], told["status"], told["path"]) == ("request", found, "/v1/exchange")
    assert told.get("refused") == (None if found == 200 else "token")
    assert told["from"] == "127.0.0.1" and told["seconds"] > 0 and "\n" not in line
    assert brought not in line


def test_the_dashboard_shows_metrics_that_are_there():
    shown = {
        re.sub("_(bucket|sum|count)$", "", name)
        for panel in json.loads((ROOT / "deploy" / "grafana.json").read_text("utf-8"))["panels"]
        for target in panel["targets"]
        for name in re.findall(r"fedhlm_\w+", target["expr"])
    }
    told = {
        f"fedhlm_{name}"
        for folder in ("servers", "fedhlm_app/serve_device")
        for module in (ROOT / folder).glob("*.py")
        for name in re.findall(r'"([a-z_]+)", "[A-Z]', module.read_text("utf-8"))
    }
    assert len(shown) > 15 and shown <= told
