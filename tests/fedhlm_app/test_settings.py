"""The settings model: precedence, ranges, conflicts, words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedhlm_app.presets import DEFAULT, PRESETS, preset_settings
from fedhlm_app.settings import Settings, SettingsError, markdown_table, rows
from fedhlm_app.settings.sources import environment_name, looks_like_path, without_settings


def build(**values: object) -> Settings:
    return Settings.from_sources({k.replace("_", "-"): v for k, v in values.items()}, {})  # type: ignore[misc]


def test_the_default_job_is_the_papers() -> None:
    settings = build()
    assert (settings.clients, settings.clusters, settings.rounds) == (20, 4, 30)
    assert settings.clients * settings.rounds * settings.tokens_per_round == 18_000
    assert settings.verifier == "greedy"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        build().clients = 3  # type: ignore[misc]


def test_environment_beats_defaults_and_the_command_line_beats_both() -> None:
    environ = {"FEDHLM_CLIENTS": "10", "FEDHLM_FREE_FEEDBACK": "false", "PATH": "x"}
    assert Settings.from_sources({}, environ).clients == 10
    assert Settings.from_sources({}, environ).free_feedback is False
    # Even where the command line asks for the default.
    assert Settings.from_sources({"clients": "20"}, environ).clients == 20


def test_a_complete_run_config_lets_the_environment_fill_what_the_user_left() -> None:
    fused = Settings.defaults() | {"rounds": 3}
    settings = Settings.from_run_config(fused, {"FEDHLM_CLIENTS": "10", "FEDHLM_ROUNDS": "9"})
    assert (settings.clients, settings.rounds) == (10, 3)


def test_in_a_partial_run_config_every_value_was_typed() -> None:
    assert Settings.from_run_config({"clients": 20}, {"FEDHLM_CLIENTS": "10"}).clients == 20


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"client": 3}, "unknown setting 'client'; did you mean 'clients'?"),
        ({"tokens_per_rounds": 3}, "did you mean 'tokens-per-round'?"),
        ({"thershold": 3}, "did you mean 'initial-threshold' or 'line-threshold'?"),
        ({"xyzzy": 3}, "`fedhlm settings --all` lists them"),
        ({"clients": 0}, "setting 'clients' = 0 is not allowed: an integer at least 1"),
        ({"clients": "3x"}, "setting 'clients' = '3x' is not allowed"),
        ({"clients": True}, "setting 'clients' = True is not allowed"),
        ({"clients": 2.5}, "setting 'clients' = 2.5 is not allowed"),
        ({"top-p": 0}, "setting 'top-p' = 0 is not allowed: a number above 0 and at most 1"),
        ({"learning-rate": float("nan")}, "setting 'learning-rate' = nan is not allowed"),
        ({"round-timeout": float("inf")}, "setting 'round-timeout' = inf is not allowed"),
        ({"workload": "chat"}, "one of generate, score, classify"),
        ({"device": "gpu"}, "setting 'device' = 'gpu' is not allowed: cpu, cuda, cuda:N"),
        ({"llm-address": "nowhere"}, "setting 'llm-address' = 'nowhere' is not allowed"),
        ({"name": "../x"}, "setting 'name' = '../x' is not allowed"),
        ({"slm": " "}, "setting 'slm' is empty"),
        ({"clusters": 5, "clients": 4}, "at most one cluster per client"),
        ({"min-clients": 21}, "'min-clients' = 21 and 'clients' = 20"),
        ({"min-clients": 11, "fraction-train": 0.5}, "a round asks only 10 of 20"),
        ({"fraction-train": 0}, "setting 'fraction-train' = 0 is not allowed"),
        ({"fraction-evaluate": 0}, "'evaluate-every' = 5 and 'fraction-evaluate' = 0"),
        ({"held-out-fraction": 0}, "'evaluate-every' = 5 and 'held-out-fraction' = 0"),
        ({"tokens-per-prompt": 40}, "one prompt would take more than the round's tokens"),
        ({"rounds": 10**6, "tokens-per-round": 10**4}, "'rounds' x 'tokens-per-round' = 10000"),
        ({"evaluate-prompts": 2**31 + 1}, "'evaluate-prompts' = 2147483649: at most 2147483648"),
        ({"llm-context": 25}, "'prompt-tokens' + 'tokens-per-prompt' = 26 and 'llm-context' = 25"),
        ({"verification": "coupled"}, "'decoding' = 'greedy'"),
        ({"verification": "greedy", "decoding": "sampled"}, "'decoding' = 'sampled'"),
        (
            {"escalation": "span", "decoding": "sampled", "verification": "scalar"},
            "'escalation' = 'span' and 'verification' = 'scalar'",
        ),
        ({"escalation": "span", "learning": "paper"}, "'escalation' = 'span' and 'learning' = 'pa"),
        ({"escalation": "span", "policy": "u-hlm"}, "'escalation' = 'span' and 'learning' = 'lin"),
        ({"escalation": "word"}, "setting 'escalation' = 'word' is not allowed: one of auto"),
        ({"llm-pace": 0}, "setting 'llm-pace' = 0 is not allowed: a number above 0"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(values: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError) as error:
        build(**values)
    assert says in str(error.value)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        build(clients=0, rounds=0, client=1)
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    "values",
    [
        {"evaluate-every": 0, "fraction-evaluate": 0},
        {"decoding": "sampled", "verification": "scalar"},
        {"llm-context": 26},
        {"clients": 1, "clusters": 1},
        {"llm-address": "[::1]:8080"},
        {"device": "cuda:1"},
        {"initial-threshold": -1},
    ],
)
def test_the_edge_of_what_is_allowed(values: dict[str, object]) -> None:
    build(**values)


def test_a_misspelt_variable_is_refused_and_a_foreign_one_is_not() -> None:
    with pytest.raises(SettingsError, match="did you mean 'FEDHLM_CLIENTS'"):
        Settings.from_sources({}, {"FEDHLM_CLIENT": "3"})
    assert Settings.from_sources({}, {"FEDHLM_SHARED": "/x", "FEDHLM_RUN_FOLDER": "/y"}) == build()


@pytest.mark.parametrize(("clients", "clusters"), [(1, 1), ("3", 3), (4, 4), (5, 4)])
def test_fewer_clients_than_the_usual_clusters_use_fewer(clients: int | str, clusters: int) -> None:
    settings = Settings.from_sources({"clients": clients}, {})
    assert settings.clusters == clusters
    # What a launch hands on, and what an app makes of a complete run-config.
    assert Settings.from_run_config(settings.handed_on(), {}).clusters == clusters
    complete = Settings.defaults() | {"clients": int(clients)}
    assert Settings.from_run_config(complete, {}).clusters == clusters


def test_smollm2_has_a_small_model_of_its_own() -> None:
    for one in ({"llm": "smollm2"}, Settings.defaults() | {"llm": "smollm2"}):
        settings = Settings.from_run_config(one, {})
        assert settings.slm == "smollm2-small"
        assert Settings.from_run_config(settings.handed_on(), {}).slm == "smollm2-small"
    assert build(llm="smollm2", slm="org/small").slm == "org/small"
    assert build(llm="org/large").slm == "builtin"


def test_assigned_clusters_are_round_robin_ones() -> None:
    assert build(cluster_by="assigned").cluster_by == "round-robin"


def test_auto_verification_follows_the_decoding() -> None:
    assert build(decoding="sampled").verifier == "coupled"
    assert build(decoding="sampled", verification="full").verifier == "full"


def test_paths_become_absolute_and_hub_names_stay(tmp_path: Path) -> None:
    (tmp_path / "pair").mkdir()
    settings = Settings.from_sources(
        {"slm": "pair", "llm": "org/model", "dataset": "news.csv.gz", "run-dir": "out"},
        {},
        tmp_path,
    )
    assert settings.slm == str(tmp_path / "pair")
    assert settings.llm == "org/model"
    assert settings.dataset == str(tmp_path / "news.csv.gz")
    assert settings.run_dir == str(tmp_path / "out")
    with pytest.raises(SettingsError, match=r"'dataset' = .*news.csv.gz': no such file"):
        settings.check_paths()
    (tmp_path / "news.csv.gz").write_text("")
    settings.check_paths()


def test_a_missing_checkpoint_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'resume'"):
        Settings.from_sources({"resume": "gone"}, {}, tmp_path).check_paths()


@pytest.mark.parametrize(
    ("value", "is_path"),
    [("builtin", False), ("org/name", False), ("./x", True), ("/x", True), ("a/b.jsonl", True)],
)
def test_what_looks_like_a_path(value: str, is_path: bool) -> None:
    assert looks_like_path(value) is is_path


def test_a_preset_replaces_defaults_and_nothing_else() -> None:
    environ = {"FEDHLM_PRESET": "u-hlm", "FEDHLM_UNCERTAINTY_SAMPLES": "5"}
    given = {"preset": "cu-hlm", "theta-tv": "0.2", "verification": "auto"}
    settings = Settings.from_sources(given, environ)
    assert (settings.preset, settings.policy, settings.theta_tv) == ("cu-hlm", "u-hlm", 0.2)
    assert (settings.uncertainty_samples, settings.verifier) == (5, "coupled")
    assert Settings.from_sources({}, environ).uncertainty == "temperature-sweep"
    changed = {"theta-tv": 0.2, "verification": "auto", "uncertainty-samples": 5}
    assert settings.changed() == changed
    # As a launch hands them on nothing changes them a second time.
    assert Settings.from_run_config(settings.handed_on(), {"FEDHLM_GAMMA": "3"}) == settings
    # In Flower's own run-config a value that is the default counts as not typed.
    fused = Settings.defaults() | given
    assert Settings.from_run_config(fused, {}).verification == "truncated"


@pytest.mark.parametrize(
    ("given", "followed"),
    [
        ({"rounds": 10}, {"learn-rounds"}),
        ({"rounds": 2, "clients": 3}, {"learning", "learn-rounds", "clusters"}),
        ({"learn-rounds": 0}, {"learning"}),
        ({"llm": "smollm2"}, {"slm"}),
        ({"initial-threshold": 0.3}, set()),
    ],
)
def test_what_follows_from_a_change_is_none_of_the_users(given, followed) -> None:
    settings = Settings.from_sources({"preset": "fedhlm", **given}, {})
    assert settings.changed() == given
    assert settings.followed().keys() == followed
    assert Settings.from_sources({"preset": "fedhlm", **settings.changed()}, {}) == settings


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_one_that_may_run_and_says_what_it_changes(name: str) -> None:
    settings = Settings.from_sources({"preset": name}, {})
    assert settings.preset == name and settings.changed() == {}
    defaults, wanted = Settings.defaults(), preset_settings(name)
    if wanted.get("learn-rounds") == "auto":
        wanted["learn-rounds"] = 12
    assert all(type(defaults[key]) is type(value) for key, value in wanted.items())
    assert wanted.items() <= settings.to_run_config().items()


@pytest.mark.parametrize(
    ("given", "rounds"),
    [
        ({}, 12),
        ({"rounds": "5"}, 2),
        ({"rounds": 1}, 0),
        ({"learn-rounds": 3}, 3),
        ({"privacy": "local"}, 0),
        ({"personalisation": "shrunk", "learning": "balanced"}, 0),
        ({"personalisation": "cluster"}, 12),
        ({"personalisation": "cluster", "recluster-every": 2}, 0),
    ],
)
def test_rounds_that_learn_are_two_fifths_where_what_they_learn_can_be_certified(
    given: dict[str, int | str], rounds: int
) -> None:
    settings = Settings.from_sources(given, {}, preset=DEFAULT)
    assert settings.preset == DEFAULT and settings.learn_rounds == rounds


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"^unknown preset 'papr'; did you mean 'paper'"):
        build(preset="papr")
    with pytest.raises(SettingsError, match=r"^unknown preset 'xyz'; one of fedhlm, paper"):
        Settings.from_sources({}, {"FEDHLM_PRESET": "xyz"})


@given(
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**31 - 1),
            "clients": st.integers(4, 1000),
            "temperature": st.floats(0.01, 100),
            "free-feedback": st.booleans(),
            "reduction": st.sampled_from(["mean", "sum"]),
        }
    )
)
def test_settings_survive_the_run_config(values: dict[str, bool | int | float | str]) -> None:
    settings = Settings.from_sources(values, {}, Path("/base"))
    again = Settings.from_run_config(settings.to_run_config(), {}, Path("/elsewhere"))
    assert again == settings


def test_a_child_does_not_see_settings_in_its_environment() -> None:
    environ = {environment_name("top-p"): "1", "FEDHLM_LAUNCH": "x", "HOME": "/"}
    assert without_settings(environ, Settings.defaults()) == {"FEDHLM_LAUNCH": "x", "HOME": "/"}


def test_the_table_has_every_setting_once_with_its_meaning() -> None:
    listed = rows()
    assert [row.name for row in listed] == list(Settings.defaults())
    assert all(row.description and row.allowed for row in listed)
    numbers = [row for row in listed if row.allowed.startswith("an integer")]
    assert [row.name for row in numbers if not row.unit] == ["seed"]
    assert markdown_table().count("\n| `") == len(listed)
    page = Path(__file__).parents[2] / "docs/settings.md"
    assert markdown_table() in page.read_text("utf-8"), "`fedhlm settings --markdown` prints it"


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({}, "certified-high-probability"),
        ({"learning": "auto", "workload": "score"}, "certified-high-probability"),
        ({"strategy": "scaffold"}, "balanced"),
        ({"edge-rule": "fedmedian"}, "balanced"),
        ({"initial-threshold": 0.4}, "balanced"),
        ({"recluster-every": 1, "cluster-by": "profile"}, "certified-high-probability"),
        (
            {"recluster-every": 1, "cluster-by": "profile", "personalisation": "cluster"},
            "balanced",
        ),
        ({"policy": "u-hlm"}, "linear"),
        ({"policy": "router"}, "balanced"),
        ({"learning": "paper", "strategy": "scaffold"}, "paper"),
    ],
)
def test_auto_chooses_a_rule_that_fits_what_was_given(given, rule):
    settings = Settings.from_sources(given, {})
    assert settings.learning == rule
    # What a launcher passes on means the same to the app.
    assert Settings.from_run_config(settings.to_run_config(), {}) == settings
