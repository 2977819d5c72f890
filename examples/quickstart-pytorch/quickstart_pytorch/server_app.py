"""A stock ServerApp, but for one import and one class."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from quickstart_pytorch.task import Net, load_data
from quickstart_pytorch.task import test as test_model
from strategies import HierarchicalFedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; the server evaluates on points of its own."""
    torch.manual_seed(0)
    net = Net()
    strategy = HierarchicalFedAvg(
        fraction_train=float(context.run_config["fraction-train"]), clusters=2
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(net.state_dict()),
        train_config=ConfigRecord({"lr": float(context.run_config["lr"])}),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=global_evaluate,
    )
    net.load_state_dict(result.arrays.to_torch_state_dict())
    print(f"Final accuracy: {test_model(net, *load_data(1000))[1]:.3f}")


def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Loss and accuracy of the global model."""
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test_model(net, *load_data(1000))
    return MetricRecord({"loss": loss, "accuracy": accuracy})
