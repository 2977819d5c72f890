"""The training recipe: rates, loss, order, resuming, and a whole tiny pair."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers.trainer_callback import DefaultFlowCallback
from typer.testing import CliRunner

from fedhlm_app.models.load import load_pair
from fedhlm_app.models.vocabulary import label_tokens, topic_tokens
from fedhlm_app.pair import pipeline
from fedhlm_app.pair.cli import pair_app
from fedhlm_app.pair.pipeline import train_pair
from fedhlm_app.pair.recipe import ModelShape, PairTraining, StageRecipe
from fedhlm_app.pair.sequences import Example, OrderByLength, batch_of, batches_by_length
from fedhlm_app.pair.trainer import token_losses
from fedhlm_app.pair.training import new_model, run_stage

TINY = ModelShape(hidden=8, layers=1, heads=2, intermediate=16)


def tiny_model(seed=1):
    return new_model(TINY, 40, 32, seed, (0, 1, 2))


def tiny_sequences(count=30, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(4, 12, size=count)
    return [Example(generator.integers(3, 40, size=n).astype(np.int32)) for n in lengths]


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class TestRecipe:
    recipe = StageRecipe(steps=1000, peak_rate=2.0, warmup=100)

    @pytest.mark.parametrize(
        ("field", "value"),
        [("steps", -1), ("peak_rate", 0.0), ("batch", 0), ("distillation", 1.5)],
    )
    def test_refusals_name_field_and_value(self, field, value):
        with pytest.raises(ValueError, match=f"{field} = {value}"):
            dataclasses.replace(self.recipe, **{field: value})

    def test_shape_needs_even_heads(self):
        with pytest.raises(ValueError, match="hidden = 9"):
            ModelShape(hidden=9, layers=1, heads=3, intermediate=4)


class TestOrder:
    lengths = tuple(len(sequence) for sequence in tiny_sequences(53))

    def test_every_row_once_an_epoch_and_epochs_differ(self):
        order = OrderByLength(self.lengths, 8, seed=4)
        first = list(order)
        order.set_epoch(1)
        second = list(order)
        assert sorted(first) == sorted(second) == list(range(53))
        assert first != second

    def test_an_epoch_is_the_same_whoever_draws_it(self):
        order = OrderByLength(self.lengths, 8, seed=4)
        for _ in range(3):
            list(order)  # an interrupted training drew other epochs before
        again = OrderByLength(self.lengths, 8, seed=4)
        order.set_epoch(2)
        again.set_epoch(2)
        assert list(order) == list(again)
        other = OrderByLength(self.lengths, 8, seed=5)
        other.set_epoch(2)
        assert list(other) != list(again)

    def test_batches_are_of_like_length(self):
        lengths = np.random.default_rng(0).integers(5, 90, size=6400)
        order = list(OrderByLength(lengths.tolist(), 64, seed=0))
        batches = [order[start : start + 64] for start in range(0, 640, 64)]
        assert np.mean([np.ptp(lengths[batch]) for batch in batches]) < 15
        assert [len(batch) for batch in batches_by_length([3, 1, 2], 2)] == [2, 1]

    def test_padding_and_label_positions(self):
        batch = batch_of([Example(np.array(one)) for one in ([1, 9, 3, 4, 2], [1, 3, 5, 2])], pad=0)
        assert batch.tokens.tolist() == [[1, 9, 3, 4, 2], [1, 3, 5, 2, 0]]
        assert batch.mask.tolist() == [[True] * 5, [True] * 4 + [False]]
        assert batch.tokens[torch.arange(2), batch.label_positions].tolist() == [4, 5]


class TestLoss:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 40, generator=generator)
    teacher = torch.randn(7, 40, generator=generator)
    targets = torch.arange(7)

    @pytest.mark.parametrize("weight", [0.3, 1.0])
    def test_gradient_is_that_of_kl_and_cross_entropy(self, weight):
        mixed, reference = (self.logits.clone().requires_grad_() for _ in range(2))
        token_losses(mixed, self.targets, self.teacher, weight).backward()
        divergence = nn.functional.kl_div(
            reference.log_softmax(-1), self.teacher.softmax(-1), reduction="sum"
        )
        entropy = nn.functional.cross_entropy(reference, self.targets, reduction="sum")
        (weight * divergence + (1 - weight) * entropy).backward()
        assert torch.allclose(mixed.grad, reference.grad, atol=1e-6)

    def test_without_a_teacher_it_is_cross_entropy(self):
        picked = -self.logits.log_softmax(-1)[torch.arange(7), self.targets].sum()
        assert torch.allclose(token_losses(self.logits, self.targets, None, 0.0), picked)


class Killed(Exception):
    """Takes the place of a kill."""


def kill_at(patch, last):
    """Break off every training after a step, as a kill between two of them would."""

    def on_step_begin(self, args, state, control, **rest):
        if state.global_step == last:
            raise Killed

    patch.setattr(DefaultFlowCallback, "on_step_begin", on_step_begin)


class TestStage:
    recipe = StageRecipe(steps=12, peak_rate=1e-2, warmup=3, batch=8, distillation=0.5)

    def run(self, folder, model, recipe=recipe, **changes):
        settings = PairTraining("", str(folder), seed=5, bfloat16=False, checkpoint_every=2)
        changed = dataclasses.replace(settings, **changes)
        return run_stage("distil", model, recipe, tiny_sequences(), changed, teacher=tiny_model(2))

    def cut(self, patch, folder, model, last, **changes):
        with patch.context() as inside, pytest.raises(Killed):
            kill_at(inside, last)
            self.run(folder, model, **changes)

    def test_a_step_is_the_recipe_written_out(self, tmp_path):
        """AdamW, rates, clipping and the loss, against plain PyTorch."""
        sequences = tiny_sequences()
        recipe = StageRecipe(steps=6, peak_rate=1e-2, warmup=2, batch=8, distillation=0.5)
        trained, plain, teacher = tiny_model(), tiny_model(), tiny_model(2)
        self.run(tmp_path, trained, recipe)
        optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in plain.parameters() if p.ndim >= 2], "weight_decay": 0.1},
                {"params": [p for p in plain.parameters() if p.ndim < 2], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
        )
        order = OrderByLength([len(sequence) for sequence in sequences], 8, seed=5)
        batches = []
        for epoch in range(2):
            order.set_epoch(epoch)
            rows = list(order)
            batches += [rows[start : start + 8] for start in range(0, 30, 8)]
        # Warm-up over two steps from .02, constant until 60 %, then straight down to .02.
        shares = [0.02, 0.51, 1.0, 1.0, 1.0 - 0.98 / 3, 1.0 - 0.98 * 2 / 3]
        for rows, share in zip(batches, shares, strict=False):
            batch = batch_of([sequences[row] for row in rows])
            where = batch.mask[:, 1:]
            logits = [m(batch.tokens[:, :-1]).logits[where] for m in (plain, teacher)]
            probs = logits[1].softmax(-1).detach()
            onehot = nn.functional.one_hot(batch.tokens[:, 1:][where], 40)
            loss = nn.functional.cross_entropy(logits[0], 0.5 * probs + 0.5 * onehot)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            for group in optimiser.param_groups:
                group["lr"] = recipe.peak_rate * share
            optimiser.step()
        assert torch.allclose(weights(trained), weights(plain), atol=2e-5)

    def test_accumulating_gives_the_same_weights(self, tmp_path):
        whole, parts = tiny_model(), tiny_model()
        self.run(tmp_path / "whole", whole)
        self.run(tmp_path / "parts", parts, accumulate=4)
        assert torch.allclose(weights(whole), weights(parts), atol=1e-4)

    def test_bfloat16_is_gone_when_the_stage_is_over(self, tmp_path):
        model, teacher = tiny_model(), tiny_model(2)
        settings = PairTraining("", str(tmp_path), checkpoint_every=2)
        run_stage("distil", model, self.recipe, tiny_sequences(), settings, teacher=teacher)
        copy = tiny_model(3)
        copy.load_state_dict(model.state_dict())
        tokens = batch_of(tiny_sequences(4)).tokens
        assert torch.equal(model(tokens).logits, copy(tokens).logits)
        assert all(parameter.grad is None for parameter in teacher.parameters())

    def test_a_loss_that_is_not_finite_ends_it(self, tmp_path):
        broken = tiny_model()
        with torch.no_grad():
            broken.get_input_embeddings().weight.fill_(math.nan)
        with pytest.raises(ValueError, match="loss nan at step 0; lower the peak rate"):
            self.run(tmp_path, broken)

    def test_resumed_weights_equal_uninterrupted_ones(self, tmp_path, monkeypatch):
        whole, first, second = tiny_model(), tiny_model(), tiny_model(seed=9)
        done = self.run(tmp_path / "whole", whole)
        self.cut(monkeypatch, tmp_path / "parts", first, 7)
        folder = tmp_path / "parts" / "checkpoints" / "distil"
        # Killed once more, this time while it wrote a checkpoint.
        (folder / "checkpoint-8").mkdir()
        (folder / "checkpoint-8" / "model.safetensors").write_bytes(b"half")
        resumed = self.run(tmp_path / "parts", second)
        assert torch.equal(weights(whole), weights(second))
        assert not torch.equal(weights(whole), weights(first))
        assert done["steps"] == resumed["steps"] == 12
        assert done["tokens"] == resumed["tokens"] > 0
        assert done["loss"] == resumed["loss"] > 0
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-12"]

    def test_a_finished_stage_is_only_read_back(self, tmp_path):
        whole, again = tiny_model(), tiny_model(seed=9)
        done = self.run(tmp_path, whole)
        assert self.run(tmp_path, again) == done
        assert torch.equal(weights(whole), weights(again))

    def test_a_checkpoint_of_other_settings_is_refused(self, tmp_path, monkeypatch):
        self.cut(monkeypatch, tmp_path, tiny_model(), 3)
        other = dataclasses.replace(self.recipe, peak_rate=2e-2)
        told = r"other settings: peak_rate 0\.\d+ there and 0\.02 now; give the same"
        with pytest.raises(ValueError, match=told):
            self.run(tmp_path, tiny_model(), other)

    def test_a_stage_may_become_shorter_before_its_rate_falls(self, tmp_path, monkeypatch):
        shorter = dataclasses.replace(self.recipe, steps=10)
        whole, changed = tiny_model(), tiny_model()
        self.run(tmp_path / "whole", whole, shorter)
        self.cut(monkeypatch, tmp_path / "changed", changed, 6)
        self.run(tmp_path / "changed", changed, shorter)
        assert torch.equal(weights(whole), weights(changed))
        self.cut(monkeypatch, tmp_path / "late", changed, 9)
        with pytest.raises(ValueError, match="written with other settings"):
            self.run(tmp_path / "late", changed, shorter)

    def test_distilling_brings_the_distribution_nearer(self, tmp_path):
        student, teacher = tiny_model(), tiny_model(2)
        # A teacher with something to say: random logits are all alike.
        with torch.no_grad():
            teacher.get_input_embeddings().weight.mul_(40.0)
        recipe = StageRecipe(steps=60, peak_rate=2e-2, warmup=5, batch=8, distillation=1.0)
        batch = batch_of(tiny_sequences(), pad=0)

        def distance():
            with torch.inference_mode():
                probs = [m(batch.tokens).logits[batch.mask].softmax(-1) for m in (student, teacher)]
            return float((probs[0] - probs[1]).abs().sum(-1).mean() / 2)

        before = distance()
        settings = PairTraining("", str(tmp_path), bfloat16=False)
        run_stage("near", student, recipe, tiny_sequences(), settings, teacher=teacher)
        assert distance() < 0.9 * before


@pytest.fixture
def dataset(tmp_path):
    subjects = {"cats": ["cat purrs", "kitten naps"], "dogs": ["dog barks", "puppy runs"]}
    lines = [
        {"text": f"the {word} near house {number}", "label": label}
        for label, words in subjects.items()
        for word in words
        for number in range(12)
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    for split, chosen in (("train", lines), ("validation", lines[::5])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in chosen))
    return str(folder)


def tiny_settings(dataset, out):
    stage = StageRecipe(steps=25, peak_rate=1e-2, warmup=4, batch=8)
    return PairTraining(
        dataset=dataset,
        out=str(out),
        vocabulary=320,
        text_tokens=20,
        slm_shape=TINY,
        llm_shape=ModelShape(hidden=16, layers=1, heads=2, intermediate=32),
        llm=stage,
        slm=stage,
        distil=dataclasses.replace(stage, steps=5, distillation=0.8),
        bfloat16=False,
    )


def test_a_tiny_pair_is_trained_saved_and_loaded(dataset, tmp_path):
    report = train_pair(tiny_settings(dataset, tmp_path / "pair"))
    assert set(report.stages) == {"llm", "slm", "distil"}
    assert report.figures.llm.perplexity < 100 < 320  # far below a uniform guess
    folder = tmp_path / "pair"
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"| perplexity | {report.figures.slm.perplexity:.1f}" in card
    assert json.loads((folder / "report.json").read_text())["stages"]["distil"]["steps"] == 5
    pair = load_pair(str(folder / "slm"), str(folder / "llm"))
    stored = (folder / "slm" / "model.safetensors").stat().st_size
    assert stored < 2 * pair.slm.num_parameters() + 4000  # fp16, tied weights once
    assert label_tokens(pair.tokenizer, ("cats", "dogs")) == {"cats": 4, "dogs": 5}
    assert topic_tokens(pair.tokenizer) == [3]
    again = train_pair(tiny_settings(dataset, tmp_path / "pair"))
    assert again.figures == report.figures


def test_a_file_without_splits_gives_up_a_share(dataset, tmp_path):
    settings = tiny_settings(f"{dataset}/train.jsonl", tmp_path / "pair")
    none = StageRecipe(steps=0, peak_rate=1.0)
    report = train_pair(dataclasses.replace(settings, llm=none, slm=none, distil=none))
    assert report.figures.articles == 2  # 5 % of 48


def test_distilling_alone_leaves_the_llm_as_it_is(dataset, tmp_path):
    settings = tiny_settings(dataset, tmp_path / "pair")
    train_pair(dataclasses.replace(settings, distil=StageRecipe(steps=0, peak_rate=1.0)))
    folder = tmp_path / "pair"
    before = (folder / "llm" / "model.safetensors").read_bytes()
    models = ["--slm", str(folder / "slm"), "--llm", str(folder / "llm"), "--batch", "8"]
    arguments = ["distil", "--dataset", dataset, "--out", str(tmp_path / "d"), *models]
    told = CliRunner().invoke(pair_app, [*arguments, "--tokens", "300", "--rows", "4"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["articles"] == 4
    assert (folder / "llm" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "d" / "slm" / "config.json").exists()
    done = json.loads((tmp_path / "d" / "report.json").read_text())["stages"]["distil"]
    assert 200 < done["tokens"] < 450  # 300, but for articles not all being of one length


def test_commands_evaluate_and_pack(dataset, tmp_path):
    folder = tmp_path / "pair"
    train_pair(tiny_settings(dataset, folder))
    runner = CliRunner()
    arguments = ["pack", "--source", str(folder / "llm"), "--out", str(tmp_path / "packed")]
    packed = runner.invoke(pair_app, [*arguments, "--group-size", "8"])
    assert packed.exit_code == 0
    assert "bytes of weights" in packed.output
    models = ["--slm", str(folder / "slm"), "--llm", str(folder / "llm")]
    measured = runner.invoke(pair_app, ["evaluate", "--dataset", dataset, *models])
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.output)["articles"] == 10


@pytest.mark.slow
def test_a_command_prints_its_figures_and_a_tracker_sees_the_steps(dataset, tmp_path):
    out = tmp_path / "pair"
    arguments = ["train", "--dataset", dataset, "--out", str(out), "--report-to", "tensorboard"]
    steps = ["--llm-steps", "2", "--slm-steps", "1", "--distil-steps", "1"]
    trained = CliRunner().invoke(pair_app, [*arguments, *steps])
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["articles"] == 10
    assert "llm: 0 of 2 steps done" in trained.stderr
    (events,) = (out / "checkpoints" / "llm").rglob("events.out.*")
    tags = EventAccumulator(str(events)).Reload().Tags()["scalars"]
    assert {"train/loss", "train/learning_rate"} <= set(tags)


def test_without_the_extra_a_command_says_what_brings_it(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "is_accelerate_available", lambda: False)
    arguments = ["train", "--dataset", dataset, "--out", str(tmp_path / "pair")]
    refused = CliRunner().invoke(pair_app, arguments)
    assert refused.exit_code == 2
    assert "pip install 'fedhlm[train]'" in refused.output
    assert not (tmp_path / "pair").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--report-to", "nobody", "report_to = 'nobody' is not allowed; trackers installed here"),
        ("--accumulate", "3", "accumulate = 3 is not allowed; it must divide a batch, 64"),
    ],
)
def test_options_of_the_trainer_are_refused_before_work(dataset, tmp_path, option, value, words):
    arguments = ["train", "--dataset", dataset, "--out", str(tmp_path / "pair"), option, value]
    refused = CliRunner().invoke(pair_app, arguments)
    assert refused.exit_code == 2
    assert words in refused.output
    assert not (tmp_path / "pair").exists()


@pytest.mark.parametrize(
    ("there", "words"),
    [("checkpoint-4", "goes on from the last checkpoint"), ("", "begins anew")],
)
def test_ctrl_c_says_how_to_go_on(there, words, tmp_path, monkeypatch):
    def stopped(*_):
        (tmp_path / "checkpoints" / "distil" / there).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "distil_pair", stopped)
    arguments = ["distil", "--slm", "builtin", "--llm", "builtin", "--dataset", "builtin"]
    told = CliRunner().invoke(pair_app, [*arguments, "--out", str(tmp_path)])
    assert told.exit_code == 130
    assert f"fedhlm: stopped; the same command {words}" in told.stderr
