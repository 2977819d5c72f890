"""CU-HLM's figures (arXiv 2505.11788), with U-HLM's line (2412.12687); one module a question."""

from __future__ import annotations

from fedhlm_app.reproduce.cu_hlm.inputs import Inputs, opened, setup
from fedhlm_app.reproduce.cu_hlm.line import LINE, SKIPS
from fedhlm_app.reproduce.cu_hlm.truncation import TRUNCATION
from fedhlm_app.reproduce.cu_hlm.wireless import METHODS, THROUGHPUT
from fedhlm_app.reproduce.pieces import Experiment

CU_HLM: Experiment[Inputs] = Experiment(
    "cu-hlm",
    "CU-HLM",
    setup,
    opened,
    (LINE, SKIPS, TRUNCATION, THROUGHPUT, METHODS),
)
