"""What settings may not say together."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from fedhlm_app.learning.rules import RULES, certifier, named_rule
from fedhlm_app.settings.address import parse_address
from fedhlm_app.settings.hierarchy import cloud_only
from hlm.local_steps import LOCAL_METHODS
from hlm.verifiers import VERIFIERS

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
        *(why_not_span(settings) if settings.escalation == "span" else []),
        *_learning(settings),
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
    if settings.token_texts and not settings.token_log:
        found.append(
            "settings 'token-texts' = True and 'token-log' = False: there is no log to hold the "
            "texts; set token-log=true"
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
    if settings.average_at == "edge" and (needed := cloud_only(settings)):
        found.append(f"setting 'average-at' = 'edge': edge servers can't average here; {needed}")
    return found


def _decoding(settings: Settings) -> list[str]:
    greedy = settings.decoding == "greedy"
    verification = settings.verification
    decides = VERIFIERS[settings.verifier].decoding
    if greedy and decides == "sampled":
        return [
            f"settings 'verification' = '{verification}' and 'decoding' = 'greedy': it decides "
            "sampled drafts; set decoding=sampled, or verification=greedy"
        ]
    if not greedy and decides == "greedy":
        return [
            f"settings 'verification' = '{verification}' and 'decoding' = 'sampled': sampled text "
            "would not follow the large model's distribution; set verification=coupled or another, "
            "or auto"
        ]
    return []


def why_not_span(settings: Settings) -> list[str]:
    """Why escalations cannot open streams; none: they can."""
    found = []
    if not VERIFIERS[settings.verifier].shared_draw:
        found.append(
            f"settings 'escalation' = 'span' and 'verification' = '{settings.verifier}': the large "
            "model goes on from a token of its own; set verification=auto, or escalation=token"
        )
    if (rule := named_rule(settings)).needs_ratio:
        found.append(
            f"settings 'escalation' = 'span' and 'learning' = '{rule.name}': it learns from eq. 3, "
            "and of streamed tokens nobody tells the probabilities; set escalation=token"
        )
    return found


def _learning(settings: Settings) -> list[str]:
    rule = named_rule(settings)
    if settings.policy != "router":
        return rule.conflicts() + _certifying(settings)
    if not rule.sets_router:
        setters = [one.name for one in RULES.values() if one.learns and one.sets_router]
        return [
            f"settings 'learning' = '{rule.name}' and 'policy' = 'router': a router's threshold is "
            f"set by {', '.join(setters[:-1])} or {setters[-1]}"
        ]
    found = rule.conflicts()
    if rule.learns and settings.router_rounds >= settings.rounds:
        found.append(
            f"settings 'router-rounds' = {settings.router_rounds} and 'rounds' = "
            f"{settings.rounds}: no round is left for the router's threshold"
        )
    if settings.router_optimizer == "adam" and not LOCAL_METHODS[settings.strategy].plain:
        found.append(
            f"settings 'router-optimizer' = 'adam' and 'strategy' = '{settings.strategy}': it "
            "corrects plain gradient steps; set router-optimizer=sgd or strategy=fedavg"
        )
    return found


def _certifying(settings: Settings) -> list[str]:
    """What cannot be certified after `learn-rounds`."""
    if certifier(settings) is None:
        return []
    refused = (
        ("privacy", settings.privacy, ("local", "central"), "sums would need noise of their own"),
        ("personalisation", settings.personalisation, ("local", "shrunk"), "one client is too few"),
    )
    found = [
        f"settings 'learn-rounds' = {settings.learn_rounds} and '{name}' = '{value}': what is "
        f"learned is then certified, and {why}; set learn-rounds=0"
        for name, value, bad, why in refused
        if value in bad
    ]
    if settings.recluster_every and settings.personalisation == "cluster":
        found.append(
            f"settings 'learn-rounds' = {settings.learn_rounds} and 'recluster-every' = "
            f"{settings.recluster_every}: what is certified of a cluster's clients says nothing "
            "about others; set recluster-every=0 or personalisation=global"
        )
    return found


def _privacy(settings: Settings) -> list[str]:
    if settings.privacy == "none":
        return []
    found = []
    if not LOCAL_METHODS[settings.strategy].plain:
        found.append(
            f"settings 'privacy' = '{settings.privacy}' and 'strategy' = '{settings.strategy}': "
            "what else the strategy sends would bare what the noise hides; set strategy=fedavg"
        )
    if settings.privacy == "local" and settings.personalisation in ("local", "shrunk"):
        found.append(
            f"settings 'privacy' = 'local' and 'personalisation' = '{settings.personalisation}': "
            "where a client starts from would bare what the noise hides; set personalisation=global"
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
    found = _edge_addresses(settings)
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


def _edge_addresses(settings: Settings) -> list[str]:
    if not settings.edge_addresses:
        return []
    found = []
    if settings.peer_mode == "off":
        found.append(
            f"settings 'edge-addresses' = {settings.edge_addresses!r} and 'peer-mode' = 'off': "
            "nobody asks an edge server; set peer-mode=context"
        )
    if len(settings.edges) != settings.clusters:
        found.append(
            f"settings 'edge-addresses' = {settings.edge_addresses!r} and 'clusters' = "
            f"{settings.clusters}: {len(settings.edges)} addresses; each cluster has one"
        )
    for address in settings.edges:
        try:
            parse_address(address, "edge-addresses")
        except ValueError as error:
            found.append(str(error))
    return found
