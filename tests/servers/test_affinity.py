"""Which replica a device asks: always the same one, and another only where that one is gone."""

from __future__ import annotations

from collections import Counter

from servers.affinity import caller_of, ranked

REPLICAS = [f"replica-{number}" for number in range(4)]
CALLERS = [bytes([*divmod(number, 256)]) * 8 for number in range(1000)]


def scope(token: str = "", client: tuple[str, int] | None = ("10.0.0.1", 1)):
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    return {"type": "http", "headers": headers, "client": client}


def test_a_caller_is_a_token_and_an_address_and_no_connection():
    assert caller_of(scope("one")) == caller_of(scope("one", ("10.0.0.1", 999)))
    others = [
        scope("one"), scope("two"), scope(), scope("one", ("10.0.0.2", 1)), scope(client=None),
        scope(client=("2001:db8::1", 1)),
    ]  # fmt: skip
    assert len({caller_of(one) for one in others}) == len(others)
    # Of IPv6 one line has 64 bits.
    assert caller_of(scope(client=("2001:db8::2", 7))) == caller_of(others[-1])


def test_the_order_is_the_callers_own_and_no_others_business():
    assert {tuple(ranked(CALLERS[0], order)) for order in (REPLICAS, REPLICAS[::-1])} == {
        tuple(ranked(CALLERS[0], iter(REPLICAS)))
    }
    firsts = Counter(ranked(caller, REPLICAS)[0] for caller in CALLERS)
    assert set(firsts) == set(REPLICAS) and min(firsts.values()) > len(CALLERS) / 5


def test_a_lost_replica_moves_its_own_callers_alone_and_to_all_others():
    moved = Counter()
    for caller in CALLERS:
        first, second, *_ = ranked(caller, REPLICAS)
        left = ranked(caller, [name for name in REPLICAS if name != REPLICAS[0]])
        if first == REPLICAS[0]:
            assert left[0] == second
            moved[second] += 1
        else:
            assert left[0] == first
    assert len(moved) == 3 and min(moved.values()) > moved.total() / 5


def test_a_new_replica_takes_its_share_alone():
    taken = 0
    for caller in CALLERS:
        first = ranked(caller, [*REPLICAS, "new"])[0]
        taken += first == "new"
        assert first in ("new", ranked(caller, REPLICAS)[0])
    assert len(CALLERS) / 8 < taken < len(CALLERS) / 3
