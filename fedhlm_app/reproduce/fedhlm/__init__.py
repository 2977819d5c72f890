"""FedHLM's tables and figures (arXiv 2507.00082); a new one is a module and a line here."""

from __future__ import annotations

from fedhlm_app.reproduce.fedhlm.inputs import Inputs, opened, setup
from fedhlm_app.reproduce.fedhlm.published import PUBLISHED
from fedhlm_app.reproduce.pieces import Experiment

FEDHLM: Experiment[Inputs] = Experiment(
    "fedhlm",
    "FedHLM",
    setup,
    opened,
    (PUBLISHED,),
)
