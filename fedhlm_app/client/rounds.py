"""A client's side of a round: route this device's texts, learn from feedback, report sums."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from logging import WARNING
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.logger import log

from clients.records import Traffic
from fedhlm_app.client.device import Device
from fedhlm_app.client.edge import leave_update
from fedhlm_app.client.feedback_folder import FeedbackFolder
from fedhlm_app.client.from_store import next_policy, told_since
from fedhlm_app.client.routed import (
    Figures,
    RoundResult,
    Routed,
    calibration_feedback,
    feedback_of,
    figures,
)
from fedhlm_app.client.take_back import learns_take_back, run_counts
from fedhlm_app.client.token_columns import TOKENS, token_columns
from fedhlm_app.learning.gradients import initial_policy, learn_locally, loss_of, private_policy
from fedhlm_app.learning.router import escalates_all
from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.learning.rules.sums import SumsRule
from fedhlm_app.results.unresolved import lost_words
from fedhlm_app.settings import Settings
from fedhlm_app.settings.hierarchy import averages_at_edge
from fedhlm_app.transport.actor_names import llm_actor_name
from fedhlm_app.transport.edge_access import edge_link
from fedhlm_app.transport.llm_access import llm_link
from fedhlm_app.transport.transports import SocketTransport
from hlm.arrays import FloatArray, joined, parted
from hlm.local_steps import Personalisation, starting_point
from hlm.risk import ESCALATE_ALL
from hlm.transport import Transport

BOOKMARK = "feedback-bookmark"
"""Key, in `context.state`, of how far into its stored texts the client has told the server."""
FEEDBACK_STORE = "feedback-store"
"""Node config: the folder that `fedhlm serve device --store` writes to."""
EDGE_STATE = "edge-tier-"
"""Prefix of the records that hold its cache and what it learned about its edge server."""
EDGE_TIMEOUT = 10.0
"""Seconds to wait for an edge server before the LLM is asked instead."""


def train(message: Message, context: Context) -> Message:
    """Route a round's tokens, or take those served since, learn, send back policy and sums."""
    settings, client = opened(context)
    folder = served_folder(context)
    config = message.content.config_records["config"]
    server_round = int(cast(int, config["round"]))
    arrays = {
        name: array.numpy().astype(np.float64)
        for name, array in message.content.array_records["arrays"].items()
    }
    first = initial_policy(settings)
    start = _start(arrays, first, config)
    calibrate = bool(config.get("calibrate", False))
    if folder is None:
        device = _device(settings, client, context.run_id)
        told = _route_round(device, parted(start, first), calibrate, config, context)
    else:
        bookmark = _bookmark(folder, settings, config, context)
        told = told_since(folder, settings, parted(start, first), bookmark)
        context.state[BOOKMARK] = MetricRecord(
            {"text": bookmark, "round": server_round, "text-of-round": told.newest}
        )
    _warn_of_lost(client, server_round, told.figures)
    begin = time.perf_counter()
    step = learn_locally(settings, start, told.feedback, config, arrays)
    # Seeded by the operating system: noise from a seed the server knows could be taken away.
    generator = np.random.default_rng()
    sent = private_policy(settings, step.result.policy, start, server_round, generator)
    policy = parted(sent, first)
    reply = dict(policy)
    if config["personalisation"] in ("local", "shrunk"):
        reply["start"] = start
    reply |= step.result.arrays
    metrics: Figures = {
        **told.figures,
        "num-examples": step.examples,
        "round": server_round,
        "client": client,
        "threshold": float(policy["threshold"][0]),
        "loss-before": step.loss_before,
        "loss-after": step.loss_after,
        "local-steps": max(1, step.result.steps),
        "seconds-learning": time.perf_counter() - begin,
    }
    if (rule := sums_rule(settings)) is not None:
        metrics.update(_calibration(rule, told, server_round, calibrate, generator))
    if averages_at_edge(settings):
        edge = _device(settings, client, context.run_id).edge
        metrics["bytes-update"] = leave_update(edge, settings, sent, metrics, config)
        content = RecordDict({"metrics": MetricRecord(metrics)})
    else:
        arrays_up = {name: Array(value) for name, value in reply.items()}
        content = RecordDict({"arrays": ArrayRecord(arrays_up), "metrics": MetricRecord(metrics)})
    if told.columns:
        content[TOKENS] = ConfigRecord({**told.columns})
    if folder is not None:
        # It serves with what it has learned, although the next round may bring the older one back.
        learned = {**arrays, "own": step.result.policy}
        after = parted(_start(learned, first, {**config, "own-weight": step.examples}), first)
        place = server_round, told.newest, bookmark
        folder.write_policy(
            next_policy(settings, after, *place, calibrating=calibrate, take_back=_counts(config))
        )
    return Message(content, reply_to=message)


def _calibration(
    rule: SumsRule,
    told: RoundResult,
    server_round: int,
    calibrate: bool,
    generator: np.random.Generator,
) -> Figures:
    """What a rule of sums says of a round: its own count of tokens, and the sums if wanted."""
    found: Figures = {}
    settings = rule.settings
    if loss_of(settings, server_round) is None:
        # With noise on the device not even the number of tokens is told.
        hidden = settings.privacy == "local"
        found["num-examples"] = (
            settings.tokens_per_round if hidden else int(told.counted.known.sum())
        )
    if calibrate:
        found.update(rule.sums(told.counted, generator))
    return found


def evaluate(message: Message, context: Context) -> Message:
    """Route held-out texts with the policy as it is; a device that serves takes it up instead."""
    settings, client = opened(context)
    config = message.content.config_records["config"]
    arrays = {
        name: array.numpy().astype(np.float64)
        for name, array in message.content.array_records["arrays"].items()
    }
    first, server_round = initial_policy(settings), int(cast(int, config["round"]))
    start = parted(_start(arrays, first, config), first)
    folder = served_folder(context)
    if folder is None:
        device = _device(settings, client, context.run_id)
        _join_cluster(device, config, context)
        device.heard(_counts(config))
        routed = device.evaluate(device.policy(start))
    else:
        routed = Routed([], Traffic())
        # While a threshold is under test, the texts of a device must be made with it.
        if sums_rule(settings) is None or server_round >= settings.rounds:
            told, counts = _bookmark(folder, settings, config, context), _counts(config)
            folder.write_policy(
                next_policy(
                    settings, start, server_round, told, told, calibrating=False, take_back=counts
                )
            )
    metrics = figures(routed, settings)
    _warn_of_lost(client, server_round, metrics)
    identity: Figures = {
        "num-examples": metrics["tokens"],
        "round": server_round,
        "client": client,
    }
    content = RecordDict({"metrics": MetricRecord({**metrics, **identity})})
    return Message(content, reply_to=message)


def _warn_of_lost(client: int, server_round: int, sums: Figures) -> None:
    if lost := lost_words(sums):
        log(WARNING, "client %d, round %d: %s", client, server_round, lost)


def opened(context: Context) -> tuple[Settings, int]:
    """The settings of the run, and this node's number in it.

    Raises
    ------
    ValueError
        When the node has no ``partition-id``.
    """
    settings = Settings.from_run_config(context.run_config)
    if "partition-id" not in context.node_config:
        raise ValueError(
            "node config: partition-id is missing; start the SuperNode with "
            '--node-config "partition-id=0 num-partitions=20"'
        )
    return settings, int(cast(int, context.node_config["partition-id"]))


def served_folder(context: Context) -> FeedbackFolder | None:
    """The folder this node's serving process writes to; None where it routes a dataset's texts.

    Raises
    ------
    ValueError
        When the folder does not exist.
    """
    path = str(context.node_config.get(FEEDBACK_STORE, ""))
    return FeedbackFolder(path) if path else None


@lru_cache(maxsize=64)
def _device(settings: Settings, client: int, run: int) -> Device:
    import torch

    # Simulated devices run side by side, one per core: threads of their own would only compete.
    torch.set_num_threads(1)
    transport: Transport
    if settings.llm_address:
        transport = llm_link(settings)
    else:
        transport = SocketTransport(llm_actor_name(run), settings.llm_timeout)
    return Device(
        settings,
        client,
        transport,
        edge_link(settings, run, EDGE_TIMEOUT),
    )


def _route_round(
    device: Device,
    start: dict[str, FloatArray],
    calibrate: bool,
    config: ConfigRecord,
    context: Context,
) -> RoundResult:
    """Route a round's texts of the dataset."""
    settings, server_round = device.settings, int(cast(int, config["round"]))
    if escalates_all(settings, server_round):
        start = {**start, "threshold": np.array([ESCALATE_ALL])}
    _join_cluster(device, config, context)
    device.heard(_counts(config))
    routed = device.train_round(
        device.policy(start),
        server_round,
        calibrate,
        int(cast(int, config.get("contribution", -1))),
    )
    counts = run_counts(routed) if learns_take_back(settings) else {}
    hits = {}
    if device.edge is not None:
        for name, arrays_kept in device.edge.finish(routed.traffic).items():
            kept = {key: Array(np.asarray(value)) for key, value in arrays_kept.items()}
            context.state[EDGE_STATE + name] = ArrayRecord(kept)
        hits = device.edge.figures()
    return RoundResult(
        feedback_of(routed, settings),
        calibration_feedback(routed, settings),
        {**figures(routed, settings), **hits, **counts},
        token_columns(routed, settings, device.work) if settings.token_log else {},
    )


def _bookmark(
    folder: FeedbackFolder, settings: Settings, config: ConfigRecord, context: Context
) -> int:
    """Number of the last stored text that a round of this run has had and the server accepted.

    What a lost or refused reply told is told again.
    """
    accepted = int(cast(int, config.get("accepted-round", 0)))
    if BOOKMARK in context.state.metric_records:
        kept = context.state.metric_records[BOOKMARK]
        key = "text-of-round" if kept["round"] == accepted else "text"
        return int(cast(int, kept[key]))
    # To Flower a run that goes on is a new one: what it has learned from stands in the folder.
    before = folder.read_policy() if settings.resume else None
    if before is None:
        return 0
    return before.consumed if before.server_round == accepted else before.consumed_before


def _counts(config: ConfigRecord) -> list[float]:
    """How drafts of the last round followed each other; none yet: empty."""
    return cast(list[float], config.get("take-back", []))


def _join_cluster(device: Device, config: ConfigRecord, context: Context) -> None:
    """Give the device its cluster, and what its edge tier kept from earlier rounds."""
    if device.edge is None:
        return
    state = {
        name.removeprefix(EDGE_STATE): {key: array.numpy() for key, array in record.items()}
        for name, record in context.state.array_records.items()
        if name.startswith(EDGE_STATE)
    }
    cluster = int(cast(int, config["cluster"]))
    sizes = cast(list[int], config.get("cluster-sizes", []))
    device.edge.join(cluster, sizes[cluster] if cluster < len(sizes) else 1, state)


def _start(
    arrays: Mapping[str, FloatArray],
    policy: Mapping[str, FloatArray],
    config: Mapping[str, object],
) -> FloatArray:
    """Where this client starts from, float64 [d]: what it was sent, or its own as last accepted.

    `policy` has the names of what is learned, in the order in which they are joined.
    """
    return starting_point(
        cast(Personalisation, config["personalisation"]),
        joined({name: arrays[name] for name in policy}),
        arrays.get("cluster"),
        arrays.get("own"),
        float(cast(float, config.get("own-weight", 0.0))),
        float(cast(float, config.get("shrink-weight", 0.0))),
    )
