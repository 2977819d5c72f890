"""Features of a step of the small model."""

import numpy as np
import pytest
import torch

from clients.decoding.step_features import (
    HISTORY_FEATURES,
    SCALAR_FEATURES,
    TRACE_FEATURES,
    StepFeatures,
)


def step(rows: int, vocab: int, width: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, vocab, generator=generator)
    hidden = torch.randn(rows, width, generator=generator)
    positions = torch.randint(0, 90, (rows,), generator=generator)
    return logits, hidden, logits.argmax(1), positions


def test_scalar_features_before_standardising() -> None:
    logits, hidden, draft, positions = step(6, 50, 4, 0)
    columns = StepFeatures(4, projection=0)
    features = columns(logits, hidden, draft, positions)
    assert features.dtype == np.float32 and features.shape == (6, columns.count)
    assert columns.count == len(SCALAR_FEATURES)
    np.testing.assert_array_equal(columns(logits, hidden, draft, positions.numpy()), features)
    # Differences between rows cancel the fixed mean; the fixed scale is found from one column.
    named = dict(zip(SCALAR_FEATURES, features.T, strict=True))
    probs = torch.softmax(logits, 1).sort(1, descending=True).values
    expected = {
        "log-top-1": probs[:, 0].log(),
        "log-top-2": probs[:, 1].log(),
        "log-margin": probs[:, 0].log() - probs[:, 1].log(),
        "entropy": -(probs * probs.log()).sum(1),
        "closed-form-1.0": 1 - probs[:, 0],
        "closed-form-2.0": 1 - torch.softmax(logits / 2, 1).amax(1),
        "log-tail-10": (1 - probs[:, :10].sum(1)).log(),
        "log-draft": probs[:, 0].log(),
        "position": positions / 50,
    }
    for name, values in expected.items():
        raw = values.double().numpy()
        slope, intercept = np.polyfit(raw, named[name].astype(np.float64), 1)
        assert slope > 0, name
        np.testing.assert_allclose(slope * raw + intercept, named[name], atol=2e-3, err_msg=name)


def test_features_do_not_depend_on_the_batch_and_stay_finite() -> None:
    logits, hidden, draft, positions = step(9, 40, 300, 1)
    columns = StepFeatures(300, projection=16)
    together = columns(logits, hidden, draft, positions)
    for row in range(9):
        one = slice(row, row + 1)
        alone = columns(logits[one], hidden[one], draft[one], positions[one])
        np.testing.assert_allclose(alone, together[one], rtol=1e-5, atol=1e-5)
    # A distribution on one token, a vocabulary below the largest tail, and a zero hidden state.
    sure = columns(
        torch.tensor([[1e4, 0.0]]), torch.zeros(1, 300), torch.tensor([1]), torch.tensor([0])
    )
    assert np.isfinite(sure).all()


def test_projection_and_embedding_columns() -> None:
    logits, hidden, draft, positions = step(5, 30, 64, 2)
    embeddings = torch.randn(30, 48, generator=torch.Generator().manual_seed(3))
    small = StepFeatures(64, projection=64, embedding_size=48)
    features = small(logits, hidden, draft, positions, embeddings)
    assert features.shape[1] == small.count == len(SCALAR_FEATURES) + 64 + 48
    kept = features[:, len(SCALAR_FEATURES) : -48]
    np.testing.assert_allclose(
        kept, (hidden / hidden.pow(2).mean(1, keepdim=True).sqrt()).numpy(), rtol=1e-5
    )
    wide = StepFeatures(64, projection=20, embedding_size=48, seed=1)
    first = wide(logits, hidden, draft, positions, embeddings)
    assert first.shape[1] == wide.count == len(SCALAR_FEATURES) + 40
    again = StepFeatures(64, 20, 48, seed=1)(logits, hidden, draft, positions, embeddings)
    np.testing.assert_array_equal(first, again)
    other = StepFeatures(64, 20, 48, seed=2)(logits, hidden, draft, positions, embeddings)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(
        first[:, : len(SCALAR_FEATURES)], other[:, : len(SCALAR_FEATURES)]
    )


def brute_force_history(log_probs: np.ndarray, draft: int, text: list[int]) -> list[float]:
    """One row of the history columns by plain search."""
    two = [j for j in range(len(text) - 1) if text[j] == text[-1]]
    three = [j for j in two if j > 0 and text[j - 1] == text[-2]]
    after_two = text[two[-1] + 1] if two else None
    after_three = text[three[-1] + 1] if three else None
    copied = after_three if three else after_two
    return [
        float(bool(two) and after_two == draft),
        float(bool(two) and after_two != draft),
        float(bool(three) and after_three == draft),
        float(bool(three) and after_three != draft),
        np.log1p(text.count(draft)),
        0.0 if copied is None else (log_probs[copied] - log_probs[draft]) / 3,
        0.0 if copied is None else np.exp(log_probs[copied]),
    ]


def test_history_columns_equal_brute_force() -> None:
    rng = np.random.default_rng(4)
    logits, hidden, draft, positions = step(200, 6, 4, 4)
    lengths = rng.integers(1, 25, 200)
    # Six different tokens make repeats frequent; what lies beyond a text's end must not count.
    tokens = rng.integers(0, 6, (200, 30))
    columns = StepFeatures(4, projection=0, history=True)
    features = columns(logits, hidden, draft, positions, tokens=tokens, lengths=lengths)
    assert features.shape[1] == columns.count
    log_probs = torch.log_softmax(logits, 1).numpy()
    expected = [
        brute_force_history(log_probs[row], int(draft[row]), tokens[row, : lengths[row]].tolist())
        for row in range(200)
    ]
    np.testing.assert_allclose(features[:, len(SCALAR_FEATURES) :], expected, atol=1e-5)
    assert (np.array(expected).sum(axis=0) != 0).all() and len(HISTORY_FEATURES) == 7
    with pytest.raises(ValueError, match="history"):
        columns(logits, hidden, draft, positions)
    with pytest.raises(ValueError, match="lengths"):
        columns(logits, hidden, draft, positions, tokens=tokens, lengths=lengths[:3])


def brute_force_trace(trace: np.ndarray, length: int) -> list[float]:
    """One row of the trace columns, token by token."""
    fast, slow, told = np.zeros(3), np.zeros(3), []
    for place in range(length):
        known = not np.isnan(trace[place, 0])
        value = trace[place] if known else np.zeros(3)
        fast, slow = 0.7 * fast + 0.3 * value, 0.9 * slow + 0.1 * value
        told += [value] if known else []
    mean = (np.mean(told, 0) - [3.0, 0.6, 0.4]) * [1, 2, 1] if told else np.zeros(3)
    last, before = (
        np.nan_to_num(trace[length - back]) if length >= back else np.zeros(3) for back in (1, 2)
    )
    size = np.array([1 / 3, 1, 1])
    return [*mean, *(fast * size), *(slow * size), *(last * size), *(before * size)]


def test_trace_columns_equal_brute_force() -> None:
    rng = np.random.default_rng(8)
    logits, hidden, draft, positions = step(120, 6, 4, 8)
    lengths = rng.integers(1, 20, 120)
    traces = rng.random((120, 24, 3)).astype(np.float32) * np.float32([6, 1, 1])
    # A text's first token was not foretold; a gap may come from a text that was cut.
    traces[:, 0] = np.nan
    traces[rng.random((120, 24)) < 0.1] = np.nan
    columns = StepFeatures(4, projection=0, trace=True)
    features = columns(logits, hidden, draft, positions, lengths=lengths, traces=traces)
    assert features.shape[1] == columns.count == len(SCALAR_FEATURES) + len(TRACE_FEATURES)
    expected = [brute_force_trace(traces[row], int(lengths[row])) for row in range(120)]
    np.testing.assert_allclose(features[:, len(SCALAR_FEATURES) :], expected, atol=1e-5)
    with pytest.raises(ValueError, match="traces"):
        columns(logits, hidden, draft, positions, lengths=lengths)


def test_bad_shapes_are_refused() -> None:
    logits, hidden, draft, positions = step(3, 20, 8, 5)
    columns = StepFeatures(8, 8, embedding_size=4)
    with pytest.raises(ValueError, match="hidden"):
        columns(logits, hidden[:, :4], draft, positions, torch.zeros(20, 4))
    with pytest.raises(ValueError, match="embeddings"):
        columns(logits, hidden, draft, positions)
    with pytest.raises(ValueError, match="draft"):
        columns(logits, hidden, draft[:2], positions, torch.zeros(20, 4))
    with pytest.raises(ValueError, match="logits"):
        columns(logits[:, :1], hidden, draft, positions, torch.zeros(20, 4))
    with pytest.raises(ValueError, match="hidden_size"):
        StepFeatures(0)
