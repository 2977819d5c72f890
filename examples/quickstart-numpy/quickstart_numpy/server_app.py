"""A stock ServerApp, but for one import and one class."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

from quickstart_numpy.task import initial_model
from strategies import HierarchicalFedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and save the model."""
    strategy = HierarchicalFedAvg(
        fraction_train=float(context.run_config["fraction-train"]), clusters=2
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(initial_model()),
        train_config=ConfigRecord({"lr": float(context.run_config["lr"])}),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    print(f"Final model: {[array.tolist() for array in result.arrays.to_numpy_ndarrays()]}")
