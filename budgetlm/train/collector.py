"""Python's garbage collector, out of the way of training: it works between steps that the loop chooses, and looks only at what training left."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_held() -> Iterator[None]:
    """Within this, garbage is collected only where `gc.collect` is called; afterwards the collector is as it was, whatever happened.

    What is there already is set apart, so that a collection is a matter of a fraction of a millisecond: a process that has loaded PyTorch
    holds hundreds of thousands of objects. Where others have set some apart (`workers/preload.py`), that stays so, and no more is, for
    the collector could not tell them from each other afterwards.
    """
    was_enabled, sets_apart = gc.isenabled(), gc.get_freeze_count() == 0
    gc.disable()
    if sets_apart:
        gc.freeze()
    try:
        yield
    finally:
        if sets_apart:
            gc.unfreeze()
        if was_enabled:
            gc.enable()
