"""Imported once by the server that workers are forked from, so that each of them starts in a few hundredths of a second."""

import gc
import signal

import torch

import budgetlm.train.loop  # noqa: F401  # what every worker runs
from budgetlm.train.step import warm_up

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to the whole group, it must not take the server from under its workers
torch.set_num_threads(1)  # threads do not survive a fork, and there must be no CUDA context either
warm_up()
gc.collect()
gc.freeze()  # workers share these pages, and their collector need not look at what is never freed
