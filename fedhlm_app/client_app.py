"""The Flower ClientApp: route this device's texts, learn from feedback, report sums."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.records import FloatArray
from clients.uplink import Transport
from fedhlm_app.calibrating import calibrates, sums_of
from fedhlm_app.device import Device
from fedhlm_app.edge import edge_actor_name
from fedhlm_app.learning import learn_locally, private_policy
from fedhlm_app.links import HttpLink, RayLink, llm_actor_name
from fedhlm_app.profiles import PROFILE, profile_record, requested
from fedhlm_app.routed import Figures, calibration_feedback, feedback_of, figures
from fedhlm_app.router import trains_router
from fedhlm_app.settings import Settings
from fedhlm_app.token_columns import TOKENS, token_columns
from hlm.local_steps import Personalisation, starting_point

app = ClientApp()

OWN_POLICY, OWN_CONTROL, OWN_WEIGHT = "own-policy", "own-control", "own-weight"
"""Keys of what a client keeps in `context.state` between rounds."""
EDGE_STATE = "edge-tier-"
"""Prefix of the records that hold its cache and what it learned about its edge server."""
EDGE_TIMEOUT = 10.0
"""Seconds to wait for an edge server before the LLM is asked instead."""


@app.train()
def train(message: Message, context: Context) -> Message:
    """Route a round's tokens, learn from them, and send back the policy and sums."""
    settings, device = open_device(context)
    config = message.content.config_records["config"]
    server_round = int(cast(int, config["round"]))
    arrays = {
        name: array.numpy().astype(np.float64)
        for name, array in message.content.array_records["arrays"].items()
    }
    start = _start(arrays, config, context)
    calibrate = bool(config.get("calibrate", False))
    _join_cluster(device, config, context)
    routed = device.train_round(device.policy(start), server_round, calibrate)
    if device.edge is not None:
        for name, arrays_kept in device.edge.finish(routed.traffic).items():
            kept = {key: Array(np.asarray(value)) for key, value in arrays_kept.items()}
            context.state[EDGE_STATE + name] = ArrayRecord(kept)
    begin = time.perf_counter()
    step = learn_locally(
        settings,
        start,
        feedback_of(routed, settings),
        config,
        arrays.get("control"),
        _own_control(arrays, context),
    )
    sent = private_policy(settings, step.result.policy, start, np.random.default_rng())
    reply = {"policy": sent}
    if config["personalisation"] in ("local", "shrunk"):
        reply["start"] = start
    if step.result.control_delta is not None:
        reply["control_delta"] = step.result.control_delta
    _keep(context, step.result.policy, step.result.new_client_control, step.examples)
    metrics: Figures = {
        **figures(routed, settings),
        **({} if device.edge is None else device.edge.figures()),
        "num-examples": step.examples,
        "round": server_round,
        "client": device.client,
        "threshold": float(sent[0]),
        "loss-before": step.loss_before,
        "loss-after": step.loss_after,
        "local-steps": max(1, step.result.steps),
        "seconds-learning": time.perf_counter() - begin,
    }
    if calibrates(settings):
        counted = calibration_feedback(routed, settings)
        if not trains_router(settings, server_round):
            metrics["num-examples"] = int(counted.known.sum())
        if calibrate:
            metrics.update(sums_of(settings, counted))
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(value) for name, value in reply.items()}),
            "metrics": MetricRecord(metrics),
        }
    )
    if settings.token_log:
        content[TOKENS] = ConfigRecord({**token_columns(routed, settings)})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Route held-out texts with the policy as it is."""
    settings, device = open_device(context)
    config = message.content.config_records["config"]
    arrays = {
        name: array.numpy().astype(np.float64)
        for name, array in message.content.array_records["arrays"].items()
    }
    _join_cluster(device, config, context)
    routed = device.evaluate(device.policy(_start(arrays, config, context)))
    metrics = figures(routed, settings)
    identity: Figures = {
        "num-examples": metrics["tokens"],
        "round": int(cast(int, config["round"])),
        "client": device.client,
    }
    content = RecordDict({"metrics": MetricRecord({**metrics, **identity})})
    return Message(content, reply_to=message)


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Tell the server which data partition this node is and, where asked, its profile."""
    metrics = MetricRecord({"client": int(cast(int, context.node_config["partition-id"]))})
    content = RecordDict({"metrics": metrics})
    release = requested(message)
    if release is not None:
        content[PROFILE] = profile_record(open_device(context)[1], release)
    return Message(content, reply_to=message)


def open_device(context: Context) -> tuple[Settings, Device]:
    """The settings of the run and this node's device, built once per process.

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
    client = int(cast(int, context.node_config["partition-id"]))
    return settings, _device(settings, client, context.run_id)


@lru_cache(maxsize=64)
def _device(settings: Settings, client: int, run: int) -> Device:
    import torch

    # Simulated devices run side by side, one per core: threads of their own would only compete.
    torch.set_num_threads(1)
    transport: Transport
    if settings.llm_address:
        transport = HttpLink(settings.llm_address, settings.llm_timeout)
    else:
        transport = RayLink(llm_actor_name(run), settings.llm_timeout)
    return Device(
        settings,
        client,
        transport,
        lambda cluster: RayLink(edge_actor_name(run, cluster), EDGE_TIMEOUT),
    )


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


def _start(arrays: dict[str, FloatArray], config: ConfigRecord, context: Context) -> FloatArray:
    """Where this client starts from: what it was sent, or its own policy."""
    own, weight = arrays.get("own"), float(cast(float, config.get("own-weight", 0.0)))
    if own is None and OWN_POLICY in context.state.array_records:
        own = context.state.array_records[OWN_POLICY]["value"].numpy()
        weight = float(cast(float, context.state.metric_records[OWN_WEIGHT]["value"]))
    return starting_point(
        cast(Personalisation, config["personalisation"]),
        arrays["policy"],
        arrays.get("cluster"),
        own,
        weight,
        float(cast(float, config.get("shrink-weight", 0.0))),
    )


def _own_control(arrays: dict[str, FloatArray], context: Context) -> FloatArray | None:
    if "client_control" in arrays:
        return arrays["client_control"]
    if OWN_CONTROL in context.state.array_records:
        return context.state.array_records[OWN_CONTROL]["value"].numpy()
    return None


def _keep(context: Context, policy: FloatArray, control: FloatArray | None, weight: float) -> None:
    context.state[OWN_POLICY] = ArrayRecord({"value": Array(policy)})
    context.state[OWN_WEIGHT] = MetricRecord({"value": float(weight)})
    if control is not None:
        context.state[OWN_CONTROL] = ArrayRecord({"value": Array(control)})
