"""Jobs that end in every way that a job can end; in a module of their own, so that a worker's process can import them."""

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from budgetlm.allocator import loaded_allocator
from budgetlm.errors import ConfigError, StudyError
from budgetlm.records import CurvePoint


@dataclass
class Look:
    """Where it finds itself."""

    def work(self, desk):
        return {
            "pid": os.getpid(),
            "threads": torch.get_num_threads(),
            "allocator": loaded_allocator(),
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "oom": int(Path("/proc/self/oom_score_adj").read_text()),
        }


@dataclass
class Talk:
    def work(self, desk):
        with desk.meter.during("train"):
            end = time.monotonic() + 0.6
            while time.monotonic() < end:
                pass
        desk.say(CurvePoint(step=1, seconds=0.6, tokens=1, loss=1.0, lr=0.1, tokens_per_second=1.0))
        return "done"


@dataclass
class Break:
    how: str

    def work(self, desk):
        if self.how == "abort":
            os.abort()
        elif self.how == "segfault":
            ctypes.string_at(0)
        elif self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "exit":
            os._exit(7)
        elif self.how == "bug":
            raise ZeroDivisionError("ours")
        elif self.how == "config":
            raise ConfigError("no such shape")
        elif self.how == "disk":
            raise StudyError("the disk is full")
        elif self.how == "cuda":
            raise RuntimeError("CUDA error: unspecified launch failure")
        elif self.how == "lambda":
            return lambda: 1
        raise AssertionError(self.how)


@dataclass
class Grow:
    """Asks for more memory than it may have, as a tensor would."""

    gigabytes: float

    def work(self, desk):
        return float(torch.ones(int(self.gigabytes * 2.5e8)).sum())


@dataclass
class Wait:
    """Works until it is asked to stop, or for ever."""

    listens: bool = True

    def work(self, desk):
        desk.say(CurvePoint(step=0, seconds=0.0, tokens=0, loss=1.0, lr=0.1, tokens_per_second=1.0))
        while not (self.listens and desk.should_stop()):
            time.sleep(0.01)
        return "stopped"


@dataclass
class Forget:
    """Leaves a mark after some time, if it is still there."""

    path: str

    def work(self, desk):
        time.sleep(3)
        Path(self.path).write_text("still here")
