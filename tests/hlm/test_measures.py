"""What the registry of uncertainty measures says of its functions."""

from __future__ import annotations

from inspect import signature

import numpy as np
import pytest
import torch

from hlm.measures import MEASURES


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_takes_what_its_entry_says_and_tells_certain_from_open(name: str) -> None:
    kind = MEASURES[name]
    measure = kind.load()
    assert list(signature(measure).parameters) == ["logits", *kind.takes]
    logits = torch.zeros(2, 10)
    logits[0, 3] = 50.0
    given = {
        "draft": torch.tensor([3, 3]),
        "temperature": 1.0,
        "uniforms": torch.from_numpy(np.random.default_rng(0).random((2, 40))),
    }
    certain, uniform = measure(logits, **{key: given[key] for key in kind.takes}).tolist()
    assert 0 <= certain < 0.01 and 0.5 < uniform <= 1
