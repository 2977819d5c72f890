from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.uplink import padded, verdict
from clients.policy import RandomPolicy
from hlm.channels import LINKS
from tests.models import VOCAB, random_model
from tests.routed import SAMPLED, build, make_prompts

LARGER = 500


def test_a_padded_vocabulary_changes_no_probability():
    model = random_model("llama", 1)
    larger = padded(model, LARGER)
    prompt = torch.arange(1, 9)[None]
    with torch.inference_mode():
        small, wide = model(prompt).logits, larger(prompt).logits
    assert torch.equal(wide[..., :VOCAB], small)
    assert bool((wide.double().softmax(-1)[..., VOCAB:] == 0).all())
    assert padded(model, VOCAB) is model
    assert model.config.vocab_size == VOCAB
    with pytest.raises(ValueError, match=r"vocab = 8"):
        padded(model, 8)


@pytest.mark.parametrize("verifier", ["coupled", "full"])
def test_a_padded_vocabulary_changes_no_text_but_its_bytes(verifier):
    slm, llm = random_model("llama", 1), random_model("llama", 2)
    prompts = make_prompts(VOCAB, 3)
    plain, _, less = build(slm, llm, RandomPolicy(0.5), SAMPLED, verifier).generate(prompts, 8)
    wide = build(padded(slm, LARGER), padded(llm, LARGER), RandomPolicy(0.5), SAMPLED, verifier)
    same, _, more = wide.generate(prompts, 8)
    assert np.array_equal(plain.tokens, same.tokens)
    assert more.uplink > less.uplink


def result(method, uplink, payload, speed):
    return {
        "method": method,
        "bytes_per_token": {"uplink": uplink},
        "payload_bytes_per_sent_token": payload,
        "tokens_per_second": {link.name: speed for link in LINKS},
    }


def test_the_verdict_is_about_the_aims():
    found = verdict(
        [
            result("hlm", 8000.0, 8192.0, 1.0),
            result("cu-hlm", 24.0, 45.0, 10.0),
            result("cu-hlm k=30", 20.0, 60.0, 9.0),
            result("coupled", 4.0, 1.5, 12.0),
            result("fedhlm-token", 4.0, 1.5, 9.5),
        ]
    )
    assert found["cu-hlm"]["uplink_ratio"] == 6
    assert found["cu-hlm"]["uplink_aim_met"]
    assert found["cu-hlm"]["payload_aim_met"]
    assert not found["cu-hlm"]["speed_aim_met"]
    assert not found["cu-hlm k=30"]["uplink_aim_met"]
    assert found["cu-hlm k=30"]["speed_aim_met"]
    assert found["hlm"]["uplink_ratio"] == 2000
