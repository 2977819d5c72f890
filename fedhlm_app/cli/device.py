"""A device that serves texts, from settings to the last request (`fedhlm serve device`)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING

from fedhlm_app.cli.listening import Access, run_until_stopped
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
        When it listens on every address, and nobody has said by which name it will be asked.
    """
    from fedhlm_app.serve_device.guard import LOOPBACK

    everywhere = host in ("0.0.0.0", "::")
    if everywhere and not names:
        raise SettingsError(
            f"--host {host}: pages of other sites are told apart by the name they ask; say by "
            "which name this device is asked, as in --allow-host my-device"
        )
    own = [] if everywhere else [host]
    return {*LOOPBACK, *(name.lower() for name in [*own, *names])}


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
    access: Access,
) -> None:
    """Serve texts until the process is asked to stop; see `DeviceService`."""
    from fedhlm_app.results.report.verdict import threshold
    from fedhlm_app.serve_device.service import DeviceService

    service = DeviceService(
        texts, queue, needs_llm=fail_without_llm, hosts=hosts, tokens=access.tokens
    )
    settings, folder, value = texts.settings, texts.folder, texts.threshold
    shown = "not used" if value is None else threshold(value)
    learns = "learns nothing: no --store" if folder is None else f"feedback in {folder.path}"
    llm = settings.llm_address or f"{settings.llm} in this process"

    def ready(at: str) -> None:
        url = f"http{'s' if access.certificate else ''}://{at}"
        print(
            f"serving device {texts.device.client} at {at} (slm {settings.slm}, llm {llm}, "
            f"policy {settings.policy}, threshold {shown}; {learns})\n"
            f"page: {url}/  API: {url}/v1{', with a token' if access.tokens else ''}",
            flush=True,
        )

    try:
        run_until_stopped(service.app, listener, ready, access)
    finally:
        service.close()
