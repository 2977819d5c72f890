"""Everything that can be refused before a model is loaded or a round begins."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhlm_app.data.chats import check_chats
from fedhlm_app.data.dataset import items_of
from fedhlm_app.data.items import Items
from fedhlm_app.data.partitions import partition
from fedhlm_app.hosting.pairs import check_pair, ids_on_the_wire
from fedhlm_app.models.context_length import longest_context
from fedhlm_app.models.sources import BUILTIN, check_folder
from fedhlm_app.models.vocabulary import check_context, label_tokens, load_tokenizer
from fedhlm_app.results.events import trackers_of
from fedhlm_app.results.unresolved import needs_llm
from fedhlm_app.server import resuming
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.settings.errors import closest
from fedhlm_app.settings.ray_cluster import joined, reach
from fedhlm_app.transport.llm_access import check_llm, require_tokens, require_verifier, served_llm


def check(settings: Settings, *, simulated: bool = True) -> Items:
    """Check folders, devices, rules, data, tokenizers, contexts and the served LLM; no weights.

    Parameters
    ----------
    settings : Settings
        Of the run.
    simulated : bool
        The devices are processes of this machine, so that it must have what they run on.

    Returns
    -------
    Items
        The dataset, which is in memory now.

    Raises
    ------
    ValueError
        Naming the setting, its value and what is allowed (`DataError`, `PairError`,
        `SettingsError`).
    """
    settings.check_paths()
    if settings.resume:
        resuming.check(settings)
    check_writable(settings)
    trackers_of(settings.trackers)
    if address := joined():
        reach(address)
    else:
        check_devices(settings, simulated=simulated)
    check_rules(settings)
    check_folder(settings.slm, "slm")
    check_folder(settings.llm, "llm", weights=settings.loads_llm)
    check_pair(settings)
    items = items_of(settings)
    partition(items, settings.clients, settings.partition, settings.dirichlet_alpha, settings.seed)
    longest = longest_context(settings)
    check_context(settings.slm, longest, "slm")
    check_context(settings.llm, longest, "llm")
    if settings.workload == "classify":
        label_tokens(load_tokenizer(settings.llm), items.label_names)
    elif settings.llm != BUILTIN:
        load_tokenizer(settings.llm)
    check_chats(items, settings, settings.workload)
    if settings.edges:
        from fedhlm_app.server.served_edges import check_edges  # takes Flower's second to load

        check_edges(settings)
    if settings.llm_address and needs_llm(settings):
        require_model(settings, check_llm(settings))
    return items


def require_model(settings: Settings, told: Mapping[str, Any]) -> None:
    """Refuse an LLM that is not what the settings name, or that cannot do what the run asks.

    Parameters
    ----------
    settings : Settings
        Of the run.
    told : mapping
        What the LLM says of itself: ``vocab``, ``max_context`` and ``verifiers``, and where it is
        served ``model`` and ``tokenizer``.

    Raises
    ------
    SettingsError
        Naming both models.
    """
    require_tokens(settings, *ids_on_the_wire(settings), told)
    require_verifier(settings, told)
    # A text's last token is decided, and never read.
    longest = longest_context(settings) - 1
    if told.get("max_context", longest) < longest:
        raise SettingsError(
            f"setting 'llm-context': {served_llm(settings, told)} reads texts of at most "
            f"{told['max_context']} tokens, and the run's have up to {longest}; raise it where the "
            "LLM is served (--context)"
        )


def check_writable(settings: Settings) -> None:
    """Refuse a folder of runs, or a run to go on with, that cannot be written to."""
    name = "resume" if settings.resume else "run-dir"
    wanted = Path(settings.resume or settings.run_dir)
    there = next(path for path in (wanted, *wanted.parents) if path.exists())
    try:
        # What permissions say is not all: a file system may be read-only, or none for folders.
        tempfile.TemporaryDirectory(prefix=".fedhlm-", dir=there).cleanup()
    except OSError:
        why = "may not be written to" if there.is_dir() else "is not a folder"
        raise SettingsError(
            f"setting {name!r} = '{wanted}': '{there}' {why}; give a folder that can be written to"
        ) from None


def check_devices(settings: Settings, *, simulated: bool = True) -> None:
    """Refuse devices that this machine does not have, of the models that it runs."""
    wanted = [("device", settings.device)] if simulated else []
    if not settings.llm_address:
        wanted.append(("llm-device", settings.llm_device))
    for setting, device in wanted:
        if device != "cpu":  # PyTorch takes seconds to import
            from fedhlm_app.models.torch_names import torch_device

            torch_device(device, setting)


def check_rules(settings: Settings) -> None:
    """Refuse rules of edge and cloud that do not exist."""
    for setting, rule in (("edge-rule", settings.edge_rule), ("cloud-rule", settings.cloud_rule)):
        if rule in ("weighted-mean", "unweighted-mean"):
            continue  # the strategies, and with them Flower, take a second to import
        from strategies.rules import RENAMED, RULES

        if rule in RENAMED:
            raise SettingsError(
                f"setting {setting!r} = {rule!r} is not allowed: now called {RENAMED[rule]}"
            )
        if rule not in RULES:
            near = closest(rule, RULES)
            raise SettingsError(
                f"setting {setting!r} = {rule!r} is not allowed: one of {', '.join(sorted(RULES))}"
                + (f"; did you mean {near!r}?" if near else "")
            )
