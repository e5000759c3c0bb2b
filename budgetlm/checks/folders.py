"""The folders: whether they can be written, and whether locks and SQLite's write-ahead log work there."""

from budgetlm.checks import probes
from budgetlm.checks.case import Case, Finding, NotCheckedError, judge
from budgetlm.studies import REPORTS


def folders(case: Case) -> Finding:
    """Whether all that is written can be written where it goes."""
    faults = []
    for what, folder in {"study": case.config.folder, "cache": case.cache, "reports": REPORTS}.items():
        try:
            probes.try_writing(folder)
        except OSError as error:
            case.unwritable.add(folder)
            faults.append(f"the {what} folder {folder} cannot be written: {error.strerror}. Allow it, or work elsewhere.")
    return judge(faults, [], "" if faults else f"{case.config.folder}, {case.cache} and {REPORTS} can be written")


def locks(case: Case) -> Finding:
    """Whether a study's lock and database work where it lies: network file systems promise more than they keep."""
    folder = case.config.folder.parent
    if case.config.folder in case.unwritable:
        raise NotCheckedError("it needs a study folder that can be written (see above).")
    with probes.scratch_folder(folder) as scratch:
        faults = [fault for fault in (probes.try_locking(scratch), probes.try_write_ahead(scratch)) if fault]
    kind = probes.file_system(folder)
    if faults:
        return (
            "fault",
            f"{'; '.join(faults)} under {folder} ({kind or 'file system unknown'}). Keep studies on a local disk.",
        )
    if probes.is_network_file_system(kind):
        return "warning", (
            f"{folder} is on a network file system ({kind}): it works from here, but SQLite's write-ahead log breaks if a second "
            "machine opens the study (sqlite.org/wal.html). Use it from this machine alone, or a local disk."
        )
    return "ok", f"file locks and SQLite's write-ahead log work under {folder} ({kind or 'file system unknown'})"
