from __future__ import annotations

import numpy as np
import pytest

from clients.resolvers.introduction import Introduction
from hlm.peers.fingerprints import fingerprints


def sketches(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8), dtype=np.uint8)


def test_the_smallest_fingerprints_of_all_contexts_are_shown_once():
    known = Introduction(count=8)
    contexts = sketches(300)
    shown: list[int] = []
    for begin in range(0, 300, 50):
        known.meet(contexts[begin : begin + 50])
        new = known.new
        shown += new.tolist()
        known.note(new, np.zeros(8, np.bool_))
        assert not len(known.new)
    smallest = np.sort(fingerprints(contexts))[:8]
    assert set(smallest.tolist()) <= set(shown)
    assert len(shown) == len(set(shown))
    # 8 * (1 + 1/2 + ... + 1/6) = 19.6 on average, far fewer than 48.
    assert len(shown) < 32


def test_the_share_in_common_and_when_it_is_due():
    known = Introduction(count=4)
    known.meet(sketches(20))
    assert known.share == 0 and not known.due
    known.note(known.new, np.array([True, True, False, False]))
    assert known.share == 2 / 5 and known.due
    known.note(known.new, np.array([True, True, True, False]))  # a poll
    assert known.share == 3 / 5 and not known.due


def test_a_new_window_shows_other_contexts_and_another_cluster_the_same_again():
    known = Introduction(count=4, window=40)
    known.meet(sketches(40, 1))
    first = known.new
    known.note(first, np.zeros(4, np.bool_))
    known.meet(sketches(40, 2))
    assert np.array_equal(known.new, np.sort(fingerprints(sketches(40, 2)))[:4])
    known.note(known.new, np.ones(4, np.bool_))
    known.start_over()
    assert len(known.new) == 4 and known.share == 0


def test_what_an_edge_server_lost_is_shown_again():
    known = Introduction(count=4)
    known.meet(sketches(20))
    first = known.new
    known.note(first, np.zeros(4, np.bool_))
    assert not len(known.new)
    known.note(known.new, np.zeros(0, np.bool_))  # it holds nothing any more
    assert np.array_equal(known.new, first)


def test_state_goes_round():
    known = Introduction()
    known.meet(sketches(30))
    known.note(known.new[:5], np.array([True, False, False, False, True]))
    again = Introduction()
    again.restore(known.state())
    assert again.share == known.share and again.due
    assert np.array_equal(again.new, known.new) and len(again.new) == 3
    again.meet(sketches(30))
    assert np.array_equal(again.new, known.new)


@pytest.mark.parametrize("options", [{"count": 0}, {"window": 0}])
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Introduction(**options)
