"""The model and its data: a small network that tells three clouds of points apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two layers; the batch norm brings buffers and a counter, which are averaged too."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 16)
        self.norm = nn.BatchNorm1d(16)
        self.output = nn.Linear(16, 3)

    def forward(self, points: Tensor) -> Tensor:
        """Logits [n, 3] of points [n, 2]."""
        return self.output(torch.relu(self.norm(self.hidden(points))))


def load_data(partition: int) -> tuple[Tensor, Tensor]:
    """Points float32 [n, 2] and labels int64 [n], made on the fly."""
    generator = torch.Generator().manual_seed(partition)
    labels = torch.randint(3, (96 + 32 * partition,), generator=generator)
    centres = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
    return centres[labels] + torch.randn(len(labels), 2, generator=generator), labels


def train(net: Net, points: Tensor, labels: Tensor, epochs: int, lr: float) -> float:
    """Train by SGD in batches of 32; returns the mean loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    losses = []
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(points[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def test(net: Net, points: Tensor, labels: Tensor) -> tuple[float, float]:
    """Loss and accuracy."""
    net.eval()
    with torch.no_grad():
        logits = net(points)
        loss = nn.functional.cross_entropy(logits, labels)
    return loss.item(), (logits.argmax(1) == labels).float().mean().item()
