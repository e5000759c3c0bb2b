"""Everything that a person can put right, as one tree of exceptions.

Each message says what happened, gives the numbers, and says what to do. The command line prints it as one line
and exits with 1. Anything else that is raised is a bug of ours and keeps its traceback.
"""


class BudgetlmError(Exception):
    """A mistake or a shortage that its reader can put right."""


class ConfigError(BudgetlmError):
    """A study file, an option or a recipe asks for something impossible."""


class DataError(BudgetlmError):
    """A corpus cannot be found, read or split."""


class StudyError(BudgetlmError):
    """A study is missing, unfinished, damaged, or contradicts what was asked of it."""


class SearchRunning(StudyError):
    """Another process leads the search of this study."""


class BudgetExhausted(BudgetlmError):
    """The device-seconds that are left do not pay for what was asked."""


class DiskFull(BudgetlmError):
    """What has to be written next would not fit the disk."""


class EvaluationError(BudgetlmError):
    """There is nothing to measure a model on."""


class CheckpointError(BudgetlmError):
    """A checkpoint cannot be written, or what lies on disk is not one."""


class BucketAway(BudgetlmError):
    """The bucket that the machines of a study share cannot be used just now."""


class LeaseLost(StudyError):
    """This process was taken for dead by another one."""
