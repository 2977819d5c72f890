"""FedProx (Li et al., arXiv 1812.06127): a proximal term on the client, FedAvg on the server."""

from __future__ import annotations

from strategies.local_methods import LocalMethod


class FedProx(LocalMethod):
    """Clients minimise F_k(y) + mu/2 ||y - x||^2, x being what they started from.

    Parameters
    ----------
    proximal_mu : float
        mu >= 0, sent as ``proximal-mu`` like Flower's own FedProx does; 0 is FedAvg.
    """

    name = "fedprox"

    def __init__(self, proximal_mu: float = 0.1) -> None:
        if not 0 <= proximal_mu < float("inf"):
            raise ValueError(f"proximal_mu: {proximal_mu}; allowed: finite and >= 0")
        self.proximal_mu = proximal_mu

    def config(self) -> dict[str, int | float | str]:
        """Send the method's name and ``proximal-mu``."""
        return {**super().config(), "proximal-mu": float(self.proximal_mu)}
