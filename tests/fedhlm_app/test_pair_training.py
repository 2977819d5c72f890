"""The training recipe: rates, loss, order, resuming, and a whole tiny pair."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from fedhlm_app.pair.cli import pair_app
from fedhlm_app.pair.load import load_pair
from fedhlm_app.pair.pipeline import distil_pair, train_pair
from fedhlm_app.pair.recipe import ModelShape, PairTraining, StageRecipe
from fedhlm_app.pair.sequences import batch_of, batches_by_length, shuffled_batches
from fedhlm_app.pair.training import new_model, run_stage, stage_loss

TINY = ModelShape(hidden=8, layers=1, heads=2, intermediate=16)


def tiny_model(seed=1):
    return new_model(TINY, 40, 32, seed, (0, 1, 2))


def tiny_sequences(count=30, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(4, 12, size=count)
    return [generator.integers(3, 40, size=length).astype(np.int32) for length in lengths]


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class TestRecipe:
    recipe = StageRecipe(steps=1000, peak_rate=2.0, warmup=100)

    def test_rate_warms_up_stays_and_falls(self):
        assert self.recipe.rate(0) == pytest.approx(0.02)
        assert self.recipe.rate(99) == self.recipe.rate(100) == self.recipe.rate(599) == 2.0
        assert self.recipe.rate(800) == pytest.approx(2.0 * (0.02 + 0.98 * 0.5))
        assert self.recipe.rate(1000) == pytest.approx(0.04)

    @given(st.integers(0, 998))
    def test_rate_never_jumps(self, step):
        assert abs(self.recipe.rate(step + 1) - self.recipe.rate(step)) <= 0.021

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
    def test_every_row_once_an_epoch(self):
        lengths = [len(sequence) for sequence in tiny_sequences(53)]
        batches = shuffled_batches(lengths, 8, seed=4)
        epoch = np.concatenate([next(batches) for _ in range(7)])
        assert sorted(epoch.tolist()) == list(range(53))

    def test_starting_later_gives_the_same_batches(self):
        lengths = [len(sequence) for sequence in tiny_sequences(53)]
        from_start, later = shuffled_batches(lengths, 8, 4), shuffled_batches(lengths, 8, 4, 9)
        batches = [next(from_start) for _ in range(20)]
        assert all(np.array_equal(batches[9 + n], next(later)) for n in range(11))

    def test_epochs_differ(self):
        batches = shuffled_batches([5] * 40, 8, seed=4)
        first = [next(batches).tolist() for _ in range(5)]
        assert first != [next(batches).tolist() for _ in range(5)]

    def test_batches_are_of_like_length(self):
        lengths = np.random.default_rng(0).integers(5, 90, size=640)
        batches = shuffled_batches(lengths.tolist(), 64, seed=0)
        assert np.mean([np.ptp(lengths[next(batches)]) for _ in range(10)]) < 15
        assert [len(batch) for batch in batches_by_length([3, 1, 2], 2)] == [2, 1]

    def test_padding_and_label_positions(self):
        batch = batch_of([np.array([1, 9, 3, 4, 2]), np.array([1, 3, 5, 2])], pad=0)
        assert batch.tokens.tolist() == [[1, 9, 3, 4, 2], [1, 3, 5, 2, 0]]
        assert batch.mask.tolist() == [[True] * 5, [True] * 4 + [False]]
        assert batch.tokens[torch.arange(2), batch.label_positions].tolist() == [4, 5]


class TestLoss:
    batch = batch_of(tiny_sequences(6), pad=0)

    def test_cross_entropy_equals_one_sequence_at_a_time(self):
        model = tiny_model()
        losses, tokens = 0.0, 0
        for row, mask in zip(self.batch.tokens, self.batch.mask, strict=True):
            ids = row[mask][None]
            losses += float(model(ids, labels=ids).loss.detach()) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
        assert float(stage_loss(model, None, self.batch, 0.0).detach()) == pytest.approx(
            losses / tokens, rel=1e-5
        )

    @pytest.mark.parametrize("weight", [0.3, 1.0])
    def test_gradient_is_that_of_kl_and_cross_entropy(self, weight):
        student, teacher = tiny_model(1), tiny_model(2)
        stage_loss(student, teacher, self.batch, weight).backward()
        mixed = torch.cat([p.grad.flatten() for p in student.parameters()])
        student.zero_grad()
        where = self.batch.mask[:, 1:]
        logits = student(self.batch.tokens[:, :-1]).logits[where]
        target_law = teacher(self.batch.tokens[:, :-1]).logits[where].softmax(-1).detach()
        divergence = nn.functional.kl_div(logits.log_softmax(-1), target_law, reduction="batchmean")
        entropy = nn.functional.cross_entropy(logits, self.batch.tokens[:, 1:][where])
        (weight * divergence + (1 - weight) * entropy).backward()
        reference = torch.cat([p.grad.flatten() for p in student.parameters()])
        assert torch.allclose(mixed, reference, atol=1e-6)

    def test_the_teacher_gets_no_gradient(self):
        teacher = tiny_model(2)
        stage_loss(tiny_model(1), teacher, self.batch, 0.5).backward()
        assert all(parameter.grad is None for parameter in teacher.parameters())


class TestStage:
    recipe = StageRecipe(steps=12, peak_rate=1e-2, warmup=3, batch=8, distillation=0.5)

    def run(self, folder, model, recipe=recipe, **options):
        return run_stage(
            "distil",
            model,
            recipe,
            tiny_sequences(),
            folder,
            seed=5,
            teacher=tiny_model(2),
            bfloat16=False,
            checkpoint_every=5,
            **options,
        )

    def test_resumed_weights_equal_uninterrupted_ones(self, tmp_path):
        whole, first, second = tiny_model(), tiny_model(), tiny_model(seed=9)
        done = self.run(tmp_path / "whole", whole)
        self.run(tmp_path / "parts", first, stop_after=7)
        resumed = self.run(tmp_path / "parts", second)
        assert torch.equal(weights(whole), weights(second))
        assert not torch.equal(weights(whole), weights(first))
        assert done["steps"] == resumed["steps"] == 12
        assert done["tokens"] == resumed["tokens"] > 0
        assert done["loss"] > 0

    def test_a_finished_stage_is_only_read_back(self, tmp_path):
        whole, again = tiny_model(), tiny_model(seed=9)
        self.run(tmp_path, whole)
        self.run(tmp_path, again)
        assert torch.equal(weights(whole), weights(again))

    def test_nothing_unfinished_stays_behind(self, tmp_path):
        self.run(tmp_path, tiny_model())
        assert sorted(file.name for file in tmp_path.iterdir()) == [
            "distil.checkpoint",
            "distil.jsonl",
        ]

    def test_a_checkpoint_of_other_settings_is_refused(self, tmp_path):
        self.run(tmp_path, tiny_model(), stop_after=2)
        other = dataclasses.replace(self.recipe, peak_rate=2e-2)
        with pytest.raises(ValueError, match="written with other settings"):
            self.run(tmp_path, tiny_model(), other)

    def test_a_stage_may_become_shorter_before_its_rate_falls(self, tmp_path):
        shorter = dataclasses.replace(self.recipe, steps=10)
        whole, changed = tiny_model(), tiny_model()
        self.run(tmp_path / "whole", whole, shorter)
        self.run(tmp_path / "changed", changed, stop_after=6)
        self.run(tmp_path / "changed", changed, shorter)
        assert torch.equal(weights(whole), weights(changed))
        self.run(tmp_path / "late", changed, stop_after=7)
        with pytest.raises(ValueError, match="written with other settings"):
            self.run(tmp_path / "late", changed, shorter)

    def test_distilling_brings_the_law_nearer(self, tmp_path):
        student, teacher = tiny_model(), tiny_model(2)
        # A teacher with something to say: random logits are all alike.
        with torch.no_grad():
            teacher.get_input_embeddings().weight.mul_(40.0)
        recipe = StageRecipe(steps=60, peak_rate=2e-2, warmup=5, batch=8, distillation=1.0)
        batch = batch_of(tiny_sequences(), pad=0)

        def distance():
            with torch.inference_mode():
                laws = [m(batch.tokens).logits[batch.mask].softmax(-1) for m in (student, teacher)]
            return float((laws[0] - laws[1]).abs().sum(-1).mean() / 2)

        before = distance()
        run_stage(
            "near",
            student,
            recipe,
            tiny_sequences(),
            tmp_path,
            seed=1,
            teacher=teacher,
            bfloat16=False,
        )
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
    pair = load_pair(str(folder / "slm"), str(folder / "llm"), label_names=("cats", "dogs"))
    stored = (folder / "slm" / "model.safetensors").stat().st_size
    assert stored < 2 * pair.slm.num_parameters() + 4000  # fp16, tied weights once
    assert pair.labels == {"cats": 4, "dogs": 5}
    assert pair.topic_token == 3
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
    elsewhere = dataclasses.replace(settings, out=str(tmp_path / "d"))
    report = distil_pair(str(folder / "slm"), str(folder / "llm"), elsewhere)
    assert (folder / "llm" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "d" / "slm" / "config.json").exists()
    assert report.stages["distil"]["steps"] == 5


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
