"""A stock ClientApp: it knows nothing of clusters."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart_numpy.task import load_data, loss
from quickstart_numpy.task import train as train_model

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    config = msg.content["config"]
    features, targets = load_data(int(context.node_config["partition-id"]))
    model = msg.content["arrays"].to_numpy_ndarrays()
    model = train_model(
        model, features, targets, int(context.run_config["local-steps"]), float(config["lr"])
    )
    metrics = {"num-examples": len(targets), "train-loss": loss(model, features, targets)}
    content = RecordDict({"arrays": ArrayRecord(model), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    features, targets = load_data(int(context.node_config["partition-id"]))
    model = msg.content["arrays"].to_numpy_ndarrays()
    metrics = {"num-examples": len(targets), "eval-loss": loss(model, features, targets)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
