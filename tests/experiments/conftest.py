"""One thread per test process: these tensors are tiny, and threads that wait for each other cost minutes."""

import torch

torch.set_num_threads(1)
