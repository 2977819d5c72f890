"""CU-HLM's pieces: k* against brute force, the channel against its fades, and the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedhlm_app.reproduce.cu_hlm import CU_HLM, inputs
from fedhlm_app.reproduce.cu_hlm.channel import RayleighChannel
from fedhlm_app.reproduce.cu_hlm.truncation import offline, online, ratios
from fedhlm_app.reproduce.experiments import EXPERIMENTS
from fedhlm_app.reproduce.pieces import Options
from fedhlm_app.reproduce.runner import reproduce
from hlm.truncation.k_star import k_star_online, uncertainty_scale


@pytest.fixture(scope="module")
def places():
    rng = np.random.default_rng(1)
    probs = np.sort(rng.dirichlet(np.full(40, 0.2), 30), axis=1)[:, ::-1]
    return probs, probs[:, 0].copy(), rng.random(30)


def test_ratios_are_the_papers_and_the_online_rule_is_the_devices(places):
    probs, chance, beta = places
    found = ratios(*places)
    scale = uncertainty_scale(torch.from_numpy(chance), torch.from_numpy(beta)).numpy()
    for row in (0, 7, 29):
        for k in (1, 5, 39):
            tail = probs[row, k:]
            assert found[row, k - 1] * scale[row] == pytest.approx(np.abs(tail - tail.mean()).sum())
    for theta in (0.01, 0.1, 0.5):
        device = k_star_online(*(torch.from_numpy(a.copy()) for a in places), theta)
        assert online(found, theta).tolist() == device.tolist()


def test_offline_keeps_the_mean_and_sends_no_more_than_online(places):
    found = ratios(*places)
    for theta in (0.01, 0.1, 0.5):
        chosen, alone = offline(found, theta), online(found, theta)
        assert found[np.arange(len(found)), chosen - 1].mean() <= theta
        assert chosen.sum() <= alone.sum()
    # Nothing cheaper keeps the mean: all pairs of counts of two tokens.
    two = found[:2]
    k = np.add.outer(np.arange(39), np.arange(39)) + 2
    allowed = np.add.outer(two[0], two[1]) / 2 <= 0.1
    assert offline(two, 0.1).sum() - k[allowed].min() <= 1


def test_the_rate_is_the_mean_over_fades():
    channel = RayleighChannel(1e6, 10.0)
    fades = np.random.default_rng(0).exponential(size=200_000)
    assert channel.rate == pytest.approx(1e6 * np.log2(1 + 10 * fades).mean(), rel=5e-3)
    assert channel.link(0.005).name == "1 MHz, 10 dB"
    with pytest.raises(ValueError, match="snr_db"):
        RayleighChannel(1e6, -60.0)


@pytest.mark.slow
def test_every_piece_of_the_command_is_made_of_real_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "sizes", lambda options: (6, 1, 4))
    options = Options(quick=True, seeds=1)
    page = reproduce(CU_HLM, options, tmp_path, EXPERIMENTS).read_text("utf-8")
    made = {path.stem: json.loads(path.read_text("utf-8")) for path in _pieces(tmp_path)}
    assert set(made) == {piece.name for piece in CU_HLM.pieces}
    for piece in CU_HLM.pieces:
        found = made[piece.name]
        assert found["table"]["rows"] and found["words"] and f"### {piece.title}" in page
        assert all(len(points) for one in found["figures"] for points in one["series"].values())
    (tokens,) = [inputs.recorded(inputs.settings_of(options, 0), 6)]
    # A draft from x is rejected with the chance TV(x, y), and so is it on average.
    assert tokens.beta.mean() == pytest.approx(tokens.distance.mean(), abs=0.1)
    everything = made["skips"]["table"]["rows"][-1]
    assert everything[1] == [1.0, 0.0] and everything[2][0] == tokens.beta.mean()
    by_name = {row[0]: row for row in made["methods"]["table"]["rows"]}
    assert by_name["slm"][1][0] == 1 and by_name["hlm"][1][0] == 0
    assert by_name["cu-hlm"][2][0] < by_name["hlm"][2][0]
    monkeypatch.setattr(inputs, "compared", None)  # what is there is not made again
    assert reproduce(CU_HLM, options, tmp_path, EXPERIMENTS).read_text("utf-8") == page


def _pieces(folder: Path) -> list[Path]:
    names = {piece.name for piece in CU_HLM.pieces}
    return [path for path in (folder / "cu-hlm").glob("*.json") if path.stem in names]
