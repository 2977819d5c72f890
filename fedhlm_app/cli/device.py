"""A device that serves texts, from settings to the last request (`fedhlm serve device`)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING

from fedhlm_app.cli.listening import run_until_stopped
from fedhlm_app.settings import Settings, SettingsError

if TYPE_CHECKING:
    from fedhlm_app.client.feedback_folder import ServedPolicy
    from fedhlm_app.serve_device.texts import ServedTexts
    from hlm.transport import Transport


def allowed_hosts(host: str, names: list[str]) -> set[str]:
    """Names under which a device may be asked.

    Parameters
    ----------
    host : str
        Address to listen on.
    names : list of str
        Those of `--allow-host`.

    Raises
    ------
    SettingsError
        When others could reach it, and nobody has said so twice.
    """
    from fedhlm_app.serve_device.guard import LOOPBACK

    if host not in LOOPBACK and not names:
        raise SettingsError(
            f"--host {host}: whoever reaches it spends the LLM's budget and teaches this device; "
            "where that is wanted, say by which name it is asked, as in --allow-host my-device"
        )
    return {*LOOPBACK, *(name.lower() for name in names)}


def open_texts(
    settings: Settings,
    client: int,
    link: Transport,
    store: Path | None,
    policy: ServedPolicy | None,
) -> ServedTexts:
    """Load the small model, and open the store, which is made if absent.

    Raises
    ------
    OSError
        When the folder or the model cannot be had.
    ValueError
        When the model cannot be loaded, the file in the folder is no store, or a setting is none
        that a serving device can follow.
    """
    from fedhlm_app.client.feedback_folder import FeedbackFolder
    from fedhlm_app.serve_device.texts import ServedTexts

    folder = None
    if store is not None:
        store.mkdir(parents=True, exist_ok=True)
        folder = FeedbackFolder(store.resolve())
    return ServedTexts(settings, client, link, folder, policy)


def serve_texts(
    texts: ServedTexts,
    listener: socket,
    queue: int,
    fail_without_llm: bool,
    hosts: Collection[str],
) -> None:
    """Serve texts until the process is asked to stop; see `DeviceService`."""
    from fedhlm_app.results.report.verdict import threshold
    from fedhlm_app.serve_device.service import DeviceService

    service = DeviceService(texts, queue, needs_llm=fail_without_llm, hosts=hosts)
    settings, folder, value = texts.settings, texts.folder, texts.threshold
    shown = "not used" if value is None else threshold(value)
    learns = "learns nothing: no --store" if folder is None else f"feedback in {folder.path}"
    llm = settings.llm_address or f"{settings.llm} in this process"

    def ready(at: str) -> None:
        print(
            f"serving device {texts.device.client} at {at} (slm {settings.slm}, llm {llm}, "
            f"policy {settings.policy}, threshold {shown}; {learns})\n"
            f"page: http://{at}/  API: http://{at}/v1",
            flush=True,
        )

    try:
        run_until_stopped(service.app, listener, ready)
    finally:
        service.close()
