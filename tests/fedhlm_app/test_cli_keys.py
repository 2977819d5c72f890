"""`fedhlm keys` twice at the same moment."""

from __future__ import annotations

import shlex
import time
from concurrent.futures import ThreadPoolExecutor

from fedhlm_app.cli import keys
from servers.access import DeviceTokens, Tokens

NAMES = [f"device-{number}" for number in range(4)]


def test_tokens_that_are_issued_at_the_same_moment_are_all_there(tmp_path, monkeypatch):
    keys.create(tmp_path, None)
    write = DeviceTokens._write

    def slowly(self, digests):
        # Long enough for all others to have read what is replaced here, if they may.
        time.sleep(0.1)
        write(self, digests)

    monkeypatch.setattr(DeviceTokens, "_write", slowly)
    with ThreadPoolExecutor(len(NAMES)) as pool:
        list(pool.map(lambda name: keys.issue(name, tmp_path), NAMES))
    tokens = Tokens(file=tmp_path / keys.DEVICES)
    given = [(tmp_path / "devices" / name / "token").read_text().strip() for name in NAMES]
    assert [tokens.device(token) for token in given] == NAMES


def test_the_next_command_can_be_typed_whatever_the_folders_name(tmp_path, capsys):
    keys.create(tmp_path / "my keys", None)
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: "))
    assert words[-2:] == ["-f", str(tmp_path / "my keys")]
