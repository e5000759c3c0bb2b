"""What long work says of itself while it goes on. This one says nothing; `progress.py` shows it on a terminal."""

from budgetlm.records import CurvePoint


class Watcher:
    """Is told what happens. Every method may be overridden; none may be slow, for its time is charged."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""

    def working(self, what: str, done: float, total: float) -> None:
        """Preparation of known size is under way; `done == total` ends it."""

    def budget(self, spent_seconds: float, total_seconds: float) -> None:
        """What has been spent of the budget."""

    def run(self, title: str, planned_seconds: float) -> None:
        """A training run begins."""

    def point(self, point: CurvePoint) -> None:
        """The run has reached a point of its curve."""

    def best(self, text: str) -> None:
        """The best so far has changed."""

    def close(self) -> None:
        """Nothing more will come."""
