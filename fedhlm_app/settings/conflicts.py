"""What settings may not say together."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from fedhlm_app.settings.address import parse_address

if TYPE_CHECKING:
    from fedhlm_app.settings.model import Settings

_DEVICE = re.compile(r"cpu|auto|mps|cuda(:\d+)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST_TEXTS = 1 << 31
"""Texts of one kind with a number of their own (`fedhlm_app.client.device`): 2**32 in all."""


def conflicts(settings: Settings) -> list[str]:
    """Return one sentence for every contradiction; an empty list when there is none."""
    return [
        *_size(settings),
        *_evaluation(settings),
        *_clusters(settings),
        *_decoding(settings),
        *_learning(settings),
        *_participation(settings),
        *_privacy(settings),
        *_text(settings),
        *_address(settings),
    ]


def _size(settings: Settings) -> list[str]:
    found = []
    clients = settings.clients
    if settings.clusters > clients:
        found.append(
            f"settings 'clusters' = {settings.clusters} and 'clients' = {clients}: "
            "there can be at most one cluster per client"
        )
    if settings.min_clients > clients:
        found.append(
            f"settings 'min-clients' = {settings.min_clients} and 'clients' = {clients}: "
            "no round could ever have enough replies"
        )
    elif settings.min_clients > (asked := max(1, math.floor(settings.fraction_train * clients))):
        found.append(
            f"settings 'min-clients' = {settings.min_clients} and 'fraction-train' = "
            f"{settings.fraction_train}: a round asks only {asked} of {clients} clients"
        )
    if settings.tokens_per_prompt > settings.tokens_per_round:
        found.append(
            f"settings 'tokens-per-prompt' = {settings.tokens_per_prompt} and 'tokens-per-round' "
            f"= {settings.tokens_per_round}: one prompt would take more than the round's tokens"
        )
    for names, texts in (
        ("rounds' x 'tokens-per-round", settings.rounds * settings.tokens_per_round),
        ("evaluate-prompts", settings.evaluate_prompts),
    ):
        if texts > MOST_TEXTS:
            found.append(
                f"settings '{names}' = {texts}: at most {MOST_TEXTS} texts have a number each"
            )
    longest = settings.prompt_tokens + settings.tokens_per_prompt
    if longest > settings.llm_context:
        found.append(
            f"settings 'prompt-tokens' + 'tokens-per-prompt' = {longest} and 'llm-context' = "
            f"{settings.llm_context}: the text would not fit into the large model's context"
        )
    return found


def _evaluation(settings: Settings) -> list[str]:
    if settings.evaluate_every == 0:
        return []
    return [
        f"settings 'evaluate-every' = {settings.evaluate_every} and '{name}' = 0: "
        f"there is nothing to evaluate; set evaluate-every=0 or raise {name}"
        for name, value in (
            ("fraction-evaluate", settings.fraction_evaluate),
            ("held-out-fraction", settings.held_out_fraction),
        )
        if value == 0
    ]


def _clusters(settings: Settings) -> list[str]:
    by, every = settings.cluster_by, settings.recluster_every
    found = []
    if by == "classifier" and min(settings.profile_rows, settings.profile_prompts) < 2:
        found.append(
            f"settings 'cluster-by' = 'classifier', 'profile-rows' = {settings.profile_rows} and "
            f"'profile-prompts' = {settings.profile_prompts}: its two-sample test needs at least "
            "2 of both; raise them, or set cluster-by=profile"
        )
    if every and by not in ("classifier", "profile"):
        found.append(
            f"settings 'recluster-every' = {every} and 'cluster-by' = '{by}': there is nothing to "
            "learn anew; set cluster-by=profile or classifier"
        )
    shared = settings.personalisation in ("cluster", "shrunk")
    if every and shared and settings.learning.startswith("certified"):
        found.append(
            f"settings 'recluster-every' = {every}, 'learning' = '{settings.learning}' and "
            f"'personalisation' = '{settings.personalisation}': what was guaranteed to a cluster's "
            "clients says nothing about others; set recluster-every=0 or personalisation=global"
        )
    return found


def _decoding(settings: Settings) -> list[str]:
    greedy = settings.decoding == "greedy"
    verification = settings.verification
    if greedy and verification not in ("auto", "greedy"):
        return [
            f"settings 'verification' = '{verification}' and 'decoding' = 'greedy': it decides "
            "sampled drafts; set decoding=sampled, or verification=greedy"
        ]
    if not greedy and verification == "greedy":
        return [
            "settings 'verification' = 'greedy' and 'decoding' = 'sampled': sampled text would "
            "not follow the large model's distribution; set verification=coupled or another, "
            "or auto"
        ]
    return []


def _learning(settings: Settings) -> list[str]:
    rule = settings.learning
    if settings.policy == "router":
        return _router(settings)
    if rule not in ("linear", "certified", "certified-high-probability"):
        return []
    found = [
        f"settings 'learning' = '{rule}' and '{name}' = '{value}': the rule adds up sums and "
        f"averages no policies; set {name}={plain}"
        for name, value, plain in (
            ("strategy", settings.strategy, "fedavg"),
            ("edge-rule", settings.edge_rule, "weighted-mean"),
            ("cloud-rule", settings.cloud_rule, "unweighted-mean"),
        )
        if value != plain
    ]
    shrunk = settings.personalisation == "shrunk"
    if shrunk and settings.workload == "generate" and rule != "linear":
        found.append(
            f"settings 'personalisation' = 'shrunk' and 'learning' = '{rule}': in generation "
            "sums of text made at different thresholds cannot be joined; set "
            "personalisation=cluster or local"
        )
    return found


def _participation(settings: Settings) -> list[str]:
    """With given texts a client that is never heard counts as wrong: too many leave no budget."""
    given = settings.workload != "generate" and settings.learning.startswith("certified")
    if not given or settings.personalisation not in ("global", "cluster"):
        return []
    clients, rounds = settings.clients, min(settings.calibration_rounds, settings.rounds)
    asked = min(
        max(math.floor(settings.fraction_train * clients + 1e-9), settings.min_clients), clients
    )
    bound = 1 / settings.audit_rate if settings.audit_rate > 0 else 1.0
    if 1 - asked * rounds / clients < settings.fidelity_budget / bound:
        return []
    return [
        f"settings 'fraction-train' = {settings.fraction_train}, 'calibration-rounds' = "
        f"{settings.calibration_rounds} and 'learning' = '{settings.learning}': {rounds} rounds "
        f"hear {asked * rounds} of {clients} clients, the others count as wrong, and nothing could "
        f"be certified; set calibration-rounds to {math.ceil(clients / asked)} or more"
    ]


def _router(settings: Settings) -> list[str]:
    rule = settings.learning
    if rule in ("linear", "primal-dual"):
        return [
            f"settings 'learning' = '{rule}' and 'policy' = 'router': a router's threshold is set "
            "by balanced, paper, certified or certified-high-probability"
        ]
    found = []
    if rule != "none" and settings.router_rounds >= settings.rounds:
        found.append(
            f"settings 'router-rounds' = {settings.router_rounds} and 'rounds' = "
            f"{settings.rounds}: no round is left for the router's threshold"
        )
    if settings.router_optimizer == "adam" and settings.strategy in ("scaffold", "fednova"):
        found.append(
            f"settings 'router-optimizer' = 'adam' and 'strategy' = '{settings.strategy}': it "
            "corrects plain gradient steps; set router-optimizer=sgd or strategy=fedavg"
        )
    if not rule.startswith("certified"):
        return found
    if settings.personalisation in ("local", "shrunk"):
        found.append(
            f"settings 'personalisation' = '{settings.personalisation}' and 'policy' = 'router': "
            "a certified router is shared; set personalisation=global or cluster"
        )
    return found


def _privacy(settings: Settings) -> list[str]:
    if settings.privacy == "none":
        return []
    found = []
    if settings.strategy not in ("fedavg", "fedprox"):
        found.append(
            f"settings 'privacy' = '{settings.privacy}' and 'strategy' = '{settings.strategy}': "
            "what else the strategy sends would bare what the noise hides; set strategy=fedavg"
        )
    if settings.privacy == "local" and settings.personalisation in ("local", "shrunk"):
        found.append(
            f"settings 'privacy' = 'local' and 'personalisation' = '{settings.personalisation}': "
            "where a client starts from would bare what the noise hides; set personalisation=global"
        )
    if settings.learning.startswith("certified") and settings.workload == "generate":
        found.append(
            f"settings 'privacy' = '{settings.privacy}', 'learning' = '{settings.learning}' and "
            "'workload' = 'generate': text made at a candidate has no rising risk curve that "
            "noise could be bounded on; set workload=score or classify, or learning=balanced"
        )
    elif settings.learning in ("linear", "certified", "certified-high-probability") and (
        settings.privacy == "central" and settings.personalisation in ("local", "shrunk")
    ):
        found.append(
            f"settings 'privacy' = 'central' and 'personalisation' = '{settings.personalisation}': "
            "a single client's sums would drown in the noise that hides it; set "
            "personalisation=global or cluster"
        )
    if settings.privacy == "local" and settings.token_log:
        found.append(
            "settings 'privacy' = 'local' and 'token-log' = True: the log sends every token's "
            "uncertainty and loss without noise; set token-log=false"
        )
    if settings.privacy == "central" and settings.edge_rule != "weighted-mean":
        found.append(
            f"settings 'privacy' = 'central' and 'edge-rule' = '{settings.edge_rule}': the noise "
            "is made for means; set edge-rule=weighted-mean"
        )
    return found


def _text(settings: Settings) -> list[str]:
    found = []
    if not _NAME.fullmatch(settings.name):
        found.append(
            f"setting 'name' = {settings.name!r} is not allowed: 1 to 64 letters, digits, "
            "dots, dashes or underscores, starting with a letter or digit"
        )
    for name, value in (("device", settings.device), ("llm-device", settings.llm_device)):
        if not _DEVICE.fullmatch(value):
            found.append(
                f"setting {name!r} = {value!r} is not allowed: cpu, cuda, cuda:N, mps or auto"
            )
    for name in ("slm", "llm", "dataset", "run_dir", "edge_rule", "cloud_rule"):
        if not getattr(settings, name).strip():
            found.append(f"setting '{name.replace('_', '-')}' is empty")
    return found


def _address(settings: Settings) -> list[str]:
    """Where the LLM is, and what its server is to be trusted and given."""
    secure = False
    if settings.llm_address:
        try:
            secure = parse_address(settings.llm_address).secure
        except ValueError as error:
            return [str(error)]
    found = []
    if settings.llm_ca_file and not secure:
        found.append(
            f"settings 'llm-ca-file' = {settings.llm_ca_file!r} and 'llm-address' = "
            f"{settings.llm_address!r}: only an https:// address has a certificate to check"
        )
    if settings.llm_token_file and not settings.llm_address:
        found.append(
            f"settings 'llm-token-file' = {settings.llm_token_file!r} and 'llm-address' = '': "
            "there is no server to give the token to"
        )
    return found
