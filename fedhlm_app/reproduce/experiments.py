"""The papers that can be reproduced: a new one is its module and a line here."""

from __future__ import annotations

from typing import Any

from fedhlm_app.reproduce.cu_hlm import CU_HLM
from fedhlm_app.reproduce.fedhlm import FEDHLM
from fedhlm_app.reproduce.pieces import Experiment

EXPERIMENTS: dict[str, Experiment[Any]] = {one.name: one for one in (FEDHLM, CU_HLM)}
