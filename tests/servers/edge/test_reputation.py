from __future__ import annotations

import pytest

from servers.edge.reputation import Reputation


def test_an_unknown_device_is_neither_trusted_nor_barred():
    reputation = Reputation()
    assert not reputation.trusts(1, 2) and not reputation.excludes(1, 2)


def test_trust_is_earned_by_audits_and_lost_by_them():
    reputation = Reputation()
    for _ in range(4):
        assert not reputation.trusts(3, 2)
        reputation.note(2, 1, True)
    assert reputation.trusts(3, 2)
    wrong = 0
    while reputation.trusts(3, 2):
        reputation.note(2, 1, False)
        wrong += 1
    assert wrong <= 3
    for _ in range(200):
        reputation.note(2, 1, True)
    assert reputation.trusts(3, 2)
    wrong = 0
    while reputation.trusts(3, 2):
        reputation.note(2, 1, False)
        wrong += 1
    # The window bounds how long a good past protects.
    assert wrong <= 8


def test_two_reporters_bar_a_device_one_only_for_itself():
    reputation = Reputation()
    for _ in range(50):
        reputation.note(2, 1, False)
    assert reputation.excludes(1, 2) and not reputation.excludes(3, 2)
    assert not reputation.barred
    barred = [reputation.note(2, 3, False) for _ in range(6)]
    assert barred.count(True) == 1
    assert reputation.barred == {2} and reputation.excludes(4, 2) and not reputation.trusts(4, 2)


def test_one_liar_cannot_bar_an_honest_device():
    reputation = Reputation()
    for _ in range(100):
        reputation.note(2, 66, False)
        reputation.note(2, 1, True)
        reputation.note(2, 3, True)
    assert not reputation.barred and reputation.trusts(1, 2)


def test_in_a_cluster_of_two_one_reporter_is_enough():
    reputation = Reputation(reporters=1)
    assert any(reputation.note(2, 1, False) for _ in range(10))


def test_nobody_audits_itself():
    reputation = Reputation()
    for _ in range(50):
        reputation.note(2, 2, True)
    assert not reputation.trusts(1, 2)


@pytest.mark.parametrize("field", [{"limit": 0}, {"limit": 1.1}, {"window": 0}])
def test_bad_settings_are_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        Reputation(**field)
