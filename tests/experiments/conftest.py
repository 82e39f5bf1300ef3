"""Whole experiments on tiny models: one thread a process (threads that wait for each other cost minutes), and in the
second part of the tests, since each of them takes seconds."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)
