"""The byte of feedback: what the server writes is what the device reads."""

from __future__ import annotations

import numpy as np
import torch

from hlm.feedback import feedback_bytes, read_feedback


def test_feedback_is_a_flag_and_eighths_of_a_nat():
    log_prob = torch.tensor([0.0, -1.0, -1.07, -100.0, -torch.inf])
    choice = torch.tensor([True, False, True, False, False])
    codes = feedback_bytes(log_prob, choice)
    assert codes.tolist() == [128, 8, 128 + 9, 127, 127]


def test_the_device_reads_what_the_server_wrote():
    log_prob, choice = -torch.linspace(0, 15.9, 1000), torch.arange(1000) % 3 == 0
    read, own = read_feedback(feedback_bytes(log_prob, choice))
    assert np.abs(read - log_prob.numpy()).max() <= 1 / 16
    assert (own == choice.numpy()).all()


def test_every_byte_is_read_and_written_again():
    every = np.arange(256, dtype=np.uint8)
    log_prob, choice = read_feedback(every)
    again = feedback_bytes(torch.from_numpy(log_prob), torch.from_numpy(choice == 1))
    assert (again == every).all()
    assert read_feedback(every[200:201]) == (log_prob[200], choice[200])
