"""What a team's devices are charged, by what its members say and by when they are heard."""

import pytest

from budgetlm.budget.clock import ManualClock, Meter
from budgetlm.train.parallel.launch import train_together
from budgetlm.train.parallel.member import Ready
from budgetlm.workers.job import Spent


class Told:
    """A team whose words are heard after so many seconds each."""

    def __init__(self, clock, words):
        self._clock, self._words = clock, list(words)

    def start(self):
        pass

    def is_alive(self):
        return bool(self._words)

    def heard(self, seconds):
        if not self._words:
            return []
        after, word = self._words.pop(0)
        self._clock.move(after)
        return [word]

    def outcome(self):
        return "record", []

    def end(self):
        pass


@pytest.mark.parametrize("late", [0.0, 8.0])
def test_a_team_is_charged_what_has_passed_however_late_its_words_are_heard(late):
    clock, charged = ManualClock(), {}

    def charge(_run, spent):
        for purpose, seconds in spent.items():
            charged[purpose] = charged.get(purpose, 0.0) + seconds

    meter = Meter(clock, charge)
    # Two devices, 100 device-seconds used up before; met after 10 s, lost and met again after 40.
    words = [
        (10 + late, Ready(100 + 2 * 10.0)),
        (12 - late, Spent({"compile": 2 * 12.0})),
        (18 + late, Ready(100 + 2 * 40.0)),
        (20 - late, Spent({"train": 2 * 20.0})),
    ]
    ignore = lambda *_: None  # noqa: E731
    train_together(Told(clock, words), 2, meter, 100.0, on_point=ignore, should_stop=lambda: False, note=ignore)
    meter.flush()
    assert sum(charged.values()) == pytest.approx(clock.now()) == pytest.approx(60.0)
    assert charged == {"other": pytest.approx(0.0), "start": pytest.approx(28.0), "compile": 12.0, "train": 20.0}
