"""The small model's embeddings, with and without the model."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from fedhlm_app.client.edge import token_embeddings
from fedhlm_app.models.embeddings import slm_embeddings
from fedhlm_app.models.load import load_slm
from fedhlm_app.settings import Settings


def test_the_built_in_embeddings_are_the_models() -> None:
    expected = token_embeddings(load_slm())
    for dtype in ("float32", "bfloat16"):
        found = slm_embeddings(Settings(dtype=dtype))
        assert found.dtype == np.float32
        tolerance = 0 if dtype == "float32" else 2**-8
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=0)


def test_an_edge_server_needs_no_torch() -> None:
    code = (
        "import sys; from fedhlm_app.hosting.edge import build_edge; "
        "from fedhlm_app.settings import Settings; import servers.edge.actor; "
        "build_edge(Settings(preset='fedhlm', peer_mode='context'), 1, 0, [0, 1], 1); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
