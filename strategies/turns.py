"""Training and calibration one after the other: learn, then certify what was learned."""

from __future__ import annotations

from hlm.arrays import BoolArray, FloatArray
from strategies.calibrated import Calibrating
from strategies.phases import Addition, Phase, Round
from strategies.sampling import Node
from strategies.training import Training
from strategies.validation import Update


def in_turn(training: Training, calibrating: Calibrating) -> Phase:
    """Return the phase of a run that calibrates, after rounds of training where there are any."""
    if not calibrating.options.training_rounds:
        return calibrating
    return TrainingFirst(training, calibrating)


class TrainingFirst:
    """The two phases one after the other.

    Parameters
    ----------
    training : Training
    calibrating : Calibrating
        Also knows who is connected, and refuses replies, in the rounds of the first.
    """

    def __init__(self, training: Training, calibrating: Calibrating) -> None:
        self.training, self.calibrating = training, calibrating
        self.turns = calibrating.turns
        self.inspect = calibrating.inspect
        self.lengths = calibrating.lengths
        self.state_dict = calibrating.state_dict
        self.load_state_dict = calibrating.load_state_dict

    def client_values(self) -> dict[int, FloatArray]:
        """See `Phase`."""
        if self.calibrating.waits:
            return dict(self.training.client_values())
        return self.calibrating.client_values()

    def _trains(self, current: Round) -> bool:
        return current.number <= self.calibrating.options.training_rounds

    def addition(self, current: Round, node: Node) -> Addition:
        """No sums are wanted while the model is trained."""
        if self._trains(current):
            return Addition({"calibrate": False})
        if self.calibrating.options.learned:
            self.calibrating.begin()
        return self.calibrating.addition(current, node)

    def aggregate(self, current: Round, updates: list[Update]) -> BoolArray:
        """See `Phase`."""
        if not self._trains(current):
            return self.calibrating.aggregate(current, updates)
        self.calibrating.meet(current, updates)
        heard = self.training.aggregate(current, updates)
        if self.training.privacy is not None:
            self.calibrating.hold()  # noise must not lift the threshold
        return heard
