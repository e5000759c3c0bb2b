import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

from budgetlm import passport
from budgetlm.checks import machine, probes
from budgetlm.checks.case import Case
from budgetlm.cli import app
from budgetlm.config import DATABASE
from budgetlm.doctor import CHECKS, examine
from budgetlm.errors import StudyError
from budgetlm.studies import LOCK, PLAN, ledger_of
from budgetlm.train import compilation
from budgetlm.watch import Watcher
from tests.conftest import sentences

ROOT = Path(__file__).parent.parent


@pytest.fixture
def found(cache, monkeypatch):
    """Examines a study on a device of known ceilings (GFLOP/s), and gives its checks by name."""
    monkeypatch.setattr(passport, "_ceiling", lambda _, dtype: {"float32": 50.0, "bfloat16": 0.5}[dtype])
    return lambda config, cache=cache, **options: {c.name: c for c in examine(config, cache, **options)}


def states(checks):
    return {name: check.state for name, check in checks.items()}


# --- nothing wrong ---------------------------------------------------------------------------------------------------


def test_a_healthy_study_has_no_fault_on_this_very_machine(tiny_study, cache, home):
    checks = examine(tiny_study(), cache)
    assert [c.name for c in checks] == list(CHECKS)
    assert [c for c in checks if c.state == "fault"] == []
    assert all(c.says for c in checks)
    assert list(home.iterdir()) == []  # no folder is left behind


def test_what_it_prepares_is_what_the_search_will_use(tiny_study, tmp_path, found):
    found(tiny_study(), cache=tmp_path / "own")
    made = sorted((tmp_path / "own").rglob("*.json"))
    assert {"corpus.json", "tokens.json"} <= {path.name for path in made}
    from budgetlm.search.study import prepare

    prepare(tiny_study(), 320, tmp_path / "own", Watcher())
    assert sorted((tmp_path / "own").rglob("*.json")) == made


def test_it_charges_nothing_and_changes_no_study(searched, found):
    before = (ledger_of("tiny").balance(), (searched.folder / PLAN).read_text())
    files = sorted(p.name for p in searched.folder.rglob("*") if not p.name.startswith(DATABASE))
    checks = found(searched)
    assert "fault" not in states(checks).values()
    assert (ledger_of("tiny").balance(), (searched.folder / PLAN).read_text()) == before
    assert sorted(p.name for p in searched.folder.rglob("*") if not p.name.startswith(DATABASE)) == files


# --- machine ---------------------------------------------------------------------------------------------------------


def test_required_versions_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    specified = {"python": project["requires-python"]}
    for line in project["dependencies"]:
        name = line.split(">")[0]
        specified[name] = line.removeprefix(name)
    for name, (least, below) in machine.REQUIRED.items():
        limits = [f">={machine._dotted(least)}"] + ([f"<{machine._dotted(below)}"] if below else [])
        assert specified[name] == ",".join(limits)


@pytest.mark.parametrize(
    ("required", "message"),
    [
        ({"torch": ((99,), ())}, "torch is 2.*, but 99 or newer is needed"),
        ({"optuna": ((1,), (2,))}, "1 or newer, below 2 is needed"),
        ({"no_such_package": ((1,), ())}, "no_such_package cannot be imported"),
    ],
)
def test_a_version_that_does_not_do_is_a_fault_that_all_else_waits_for(tiny_study, found, monkeypatch, required, message):
    monkeypatch.setattr(machine, "REQUIRED", required)
    checks = found(tiny_study())
    assert states(checks) == {"versions": "fault"}
    assert re.search(message, checks["versions"].says)


def test_cuda_asked_for_but_missing_is_a_fault_and_what_needs_it_says_so(tiny_study, found, monkeypatch, corpus_folder):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checks = found(tiny_study(train={"device": "cuda"}, data={"source": str(corpus_folder)}))
    assert checks["device"].state == "fault"
    assert "sees no GPU" in checks["device"].says
    assert checks["precision"].says.startswith("not checked: it needs a device")
    assert "300 documents" in checks["data"].says
    assert "not tokenised" in checks["data"].says
    assert checks["memory"].says.startswith("not checked")
    assert checks["budget"].state == "ok"


def test_more_threads_than_cores_are_a_warning(tiny_study, found, monkeypatch):
    monkeypatch.setattr(probes, "core_limit", lambda: 0.5)
    checks = found(tiny_study(train={"threads": 2}))
    assert checks["device"].state == "warning"
    assert "--threads 1" in checks["device"].says


def test_bf16_asked_for_where_it_is_emulated_is_a_warning(tiny_study, found):
    checks = found(tiny_study(train={"precision": "bf16", "threads": 1}))
    assert checks["precision"].state == "warning"
    assert "bf16 is 100 times slower" in checks["precision"].says


def test_a_device_that_fails_at_a_product_is_a_fault(tiny_study, found, monkeypatch):
    def fail(device, dtype):
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore lines")

    monkeypatch.setattr(passport, "_ceiling", fail)
    check = found(tiny_study())["precision"]
    assert check.state == "fault"
    assert "fails at a plain matrix product: CUDA out of memory." in check.says
    assert "More lines" not in check.says


def test_a_clock_that_stands_still_is_a_fault(tiny_study, cache, monkeypatch):
    case = Case(tiny_study(), cache, Watcher(), compile=False)
    monkeypatch.setattr(probes, "time", SimpleNamespace(monotonic=lambda: 5.0))
    state, says = machine.clock(case)
    assert (state, "stands still" in says) == ("fault", True)


def test_a_wall_clock_in_the_past_and_a_missing_boot_id_are_warnings(tiny_study, found, monkeypatch):
    monkeypatch.setattr(machine, "MADE", machine.datetime(3000, 1, 1, tzinfo=machine.UTC))
    monkeypatch.setattr(probes, "boot_id", lambda: "")
    check = found(tiny_study())["clock"]
    assert check.state == "warning"
    assert "wall clock says" in check.says
    assert "no boot id" in check.says


def test_compressions_are_tried_where_they_are_searched_and_slow_ones_are_a_warning(tiny_study, found, monkeypatch):
    speeds = {("int8", 256): 0.9, ("int8", 1): 0.2, ("int8-dynamic", 256): 0.1, ("int8-dynamic", 1): 0.1}
    monkeypatch.setattr(probes, "rounded_speed", lambda option, _device, rows: speeds[option, rows])
    checks = {
        named: found(tiny_study(space={"compression": named}))["compression"]
        for named in ("none", "prune", "prune+int8", "int8-dynamic-qat")
    }
    assert {named: check.state for named, check in checks.items() if check.state != "ok"} == {"int8-dynamic-qat": "warning"}
    assert "0.90 times" in checks["prune+int8"].says
    assert "Use int8" in checks["int8-dynamic-qat"].says


def test_a_compression_that_cannot_be_had_here_is_a_fault(tiny_study, found, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    without = found(tiny_study(space={"compression": "int8"}))["compression"]
    assert without.state == "fault"
    assert "pip install 'budgetlm[compress]'" in without.says


def test_rounded_products_are_really_timed():
    assert 0 < probes.rounded_speed("int8", "cpu", rows=4) < 1000


def test_compiling_is_only_tried_when_asked_for(tiny_study, found, monkeypatch):
    tried = []
    monkeypatch.setattr(probes, "try_compile", lambda device: tried.append(device) or 1.5)
    assert "not checked" in found(tiny_study())["compile"].says
    assert tried == []
    assert "1.5 s" in found(tiny_study(), compile=True)["compile"].says
    assert "1.5 s" in found(tiny_study(train={"compile": "on", "threads": 1}))["compile"].says
    assert tried == ["cpu", "cpu"]


def test_compiling_that_fails_is_a_fault_where_the_study_wants_it_and_a_warning_where_not(tiny_study, found, monkeypatch):
    def fail(device):
        raise RuntimeError("no working C++ compiler\nmore")

    monkeypatch.setattr(probes, "try_compile", fail)
    monkeypatch.setattr(compilation, "compiler", lambda: "")
    assert states(found(tiny_study(), compile=True))["compile"] == "warning"
    check = found(tiny_study(train={"compile": "on", "threads": 1}))["compile"]
    assert check.state == "fault"
    assert "torch.compile fails: no working C++ compiler; no C++ compiler is found" in check.says


def test_a_shared_processor_is_a_warning_that_names_the_heaviest(tiny_study, found, monkeypatch):
    looks = iter([{1: probes.ProcessTime("hog", 0.0)}, {1: probes.ProcessTime("hog", 10_000.0)}])
    monkeypatch.setattr(probes, "process_times", lambda: next(looks))
    case = Case(tiny_study(), Path("cache"), Watcher(), compile=False, processes=probes.process_times())
    state, says = machine.load(case)
    assert state == "warning"
    assert "(hog " in says


def test_a_gpu_is_described_with_its_driver_and_who_else_uses_it(tiny_study, home, monkeypatch):
    """With stand-ins for the card and for nvidia-smi: it says what they answer, not that a card works."""
    tool = home / "nvidia-smi"
    tool.write_text("#!/bin/sh\ncase $1 in *driver*) echo 580.1;; *) echo '7, train.py, 9000 MiB';; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(home), prepend=os.pathsep)
    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    for name, answer in {
        "is_available": True,
        "get_device_properties": card,
        "mem_get_info": (70 * 2**30, card.total_memory),
        "get_device_capability": (9, 0),
        "get_arch_list": ["sm_80", "sm_90"],
        "device_count": 2,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    case = Case(tiny_study(train={"device": "cuda"}), home, Watcher(), compile=False)
    state, says = machine.device(case)
    assert state == "ok"
    for part in ("NVIDIA H100", "compute capability 9.0", "driver 580.1", "CUDA 12.8", "the first of 2 is used"):
        assert part in says
    state, says = machine.load(case)
    assert state == "warning"
    assert "10.0 GiB of the GPU are in use by others (7 train.py 9000 MiB)" in says
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"])
    state, says = machine.device(case)
    assert (state, "does not run on compute capability 9.0" in says) == ("fault", True)

    def busy():
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nfor pages")

    monkeypatch.setattr(torch.cuda, "mem_get_info", busy)
    state, says = machine.device(case)
    assert (state, case.identity) == ("fault", None)
    assert "cannot use it: CUDA error: CUDA-capable device(s) is/are busy or unavailable. Check" in says


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_study_folder_that_cannot_be_made_is_a_fault(tiny_study, found, home):
    (home / "studies").write_text("a file where a folder should be")
    checks = found(tiny_study())
    assert checks["folders"].state == "fault"
    assert "the study folder studies/tiny cannot be written" in checks["folders"].says
    assert checks["locks"].says.startswith("not checked")
    assert "the cache" not in checks["folders"].says


def test_a_cache_that_cannot_be_written_is_a_fault_and_data_is_not_prepared(tiny_study, found, home):
    (home / "file").write_text("")
    checks = found(tiny_study(), cache=home / "file" / "cache")
    assert "the cache folder" in checks["folders"].says
    assert states(checks)["folders"] == "fault"
    assert checks["data"].says.startswith("not checked")


def test_locks_and_write_ahead_logs_that_fail_are_a_fault(tiny_study, found, monkeypatch):
    real = probes.try_locking, probes.try_write_ahead

    def in_a_bad_place(number):
        def probe(folder):
            (folder / "lock").mkdir(exist_ok=True)
            (folder / "probe.db-wal").mkdir(exist_ok=True)
            return real[number](folder)

        return probe

    monkeypatch.setattr(probes, "try_locking", in_a_bad_place(0))
    monkeypatch.setattr(probes, "try_write_ahead", in_a_bad_place(1))
    check = found(tiny_study())["locks"]
    assert check.state == "fault"
    assert "a lock cannot be taken" in check.says
    assert "SQLite" in check.says


def test_a_network_file_system_is_a_warning(tiny_study, found, monkeypatch):
    monkeypatch.setattr(probes, "file_system", lambda _: "nfs4")
    check = found(tiny_study())["locks"]
    assert check.state == "warning"
    assert "network file system (nfs4)" in check.says


@pytest.mark.parametrize(("free", "state"), [(10**6, "fault"), (150_000_000, "warning"), (10**12, "ok")])
def test_too_little_disk_for_the_default_final_is_a_fault_and_for_the_largest_a_warning(
    tiny_study, found, monkeypatch, free, state
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    space = {"depth": 1, "width": {"low": 16, "high": 512, "step": 16}, "batch_tokens": 128}
    check = found(tiny_study(space=space))["disk"]
    assert check.state == state, check.says
    assert ("left" in check.says) == (state != "ok")


# --- study -----------------------------------------------------------------------------------------------------------


def test_a_corpus_too_small_for_the_context_is_a_fault(tiny_study, found, home):
    (home / "small.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in ["a few words", "some others"]))
    checks = found(tiny_study(data={"source": "small.jsonl", "vocab_size": 320}))
    assert checks["data"].state == "fault"
    assert "a context of 32 needs at least" in checks["data"].says
    assert checks["recipe"].says.startswith("not checked: it needs tokens")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "table.jsonl"}, "no column 'text'. Its columns are: body"),
        ({"source": "missing"}, "there is no file or folder 'missing'"),
        ({"source": "table.jsonl", "column": "body", "tokenizer": "none.json"}, "could not read the tokenizer"),
    ],
)
def test_data_that_cannot_be_read_is_a_fault_that_says_why(tiny_study, found, home, data, message):
    (home / "table.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in sentences(20)))
    check = found(tiny_study(data=data))["data"]
    assert check.state == "fault"
    assert message in check.says


def test_validation_text_that_is_trained_on_is_dropped_or_a_warning_where_it_is_kept(tiny_study, found, home):
    texts = sentences(100)
    copies = [text + "and an end of its own\n" for text in texts]
    (home / "twice.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts + copies))
    data = {"source": "twice.jsonl", "vocab_size": 320, "validation_fraction": 0.3}
    check = found(tiny_study(data=data | {"drop_overlap": False}))["data"]
    assert check.state == "warning"
    assert "validation documents are in training documents, too" in check.says
    check = found(tiny_study(data=data))["data"]
    assert check.state == "ok"
    assert "in training, too dropped" in check.says


def test_data_that_the_final_would_repeat_too_often_is_a_warning_with_what_would_be_enough(tiny_study, found):
    check = found(tiny_study(budget={"hours": 1, "target_hours": 4}))["repetition"]
    assert check.state == "warning"
    assert "arXiv:2305.16264" in check.says
    assert "M tokens or more" in check.says
    assert found(tiny_study(budget={"hours": 1, "target_hours": 0.0001}))["repetition"].state == "ok"


def test_a_budget_that_pays_for_nothing_is_a_fault_and_none_at_all_a_warning(tiny_study, found):
    check = found(tiny_study(0.5))["budget"]
    assert (check.state, "do not pay for a ladder" in check.says) == ("fault", True)
    check = found(tiny_study(0))["budget"]
    assert (check.state, "Give `--hours`" in check.says) == ("warning", True)
    check = found(tiny_study(6.0))["budget"]
    assert (check.state, "a ladder of 2 rungs" in check.says) == ("ok", True)


def test_too_little_memory_is_a_fault_for_the_default_recipe_and_a_warning_for_the_largest(tiny_study, found, monkeypatch):
    checks = found(tiny_study(space={"depth": {"low": 1, "high": 64}, "width": {"low": 16, "high": 16_384, "step": 16}}))
    assert checks["memory"].state == "warning"
    assert "the largest recipes do not fit" in checks["memory"].says
    assert checks["space"].state == "warning"  # some of those drawn do not fit either
    assert "needs about" in checks["space"].says
    monkeypatch.setattr(probes, "memory_available", lambda: 2**20)
    assert "beside what is running now" in found(tiny_study())["memory"].says
    check = found(tiny_study(train={"eval_tokens": 256, "threads": 1, "memory_gb": 0.001}))["memory"]
    assert check.state == "fault"
    assert "the default recipe does not fit" in check.says


def test_a_space_of_which_some_recipes_are_impossible_is_a_warning_and_one_of_none_but_such_a_fault(tiny_study, found):
    check = found(tiny_study(space={"width": [48], "kv_groups": [1, 4], "depth": 1}))["space"]
    assert check.state == "warning"  # 48 is at most 3 heads of 16: half of what is drawn wants them in groups of 4
    assert "share keys and values in groups of 4" in check.says
    check = found(tiny_study(space={"width": 16_384, "depth": 256}))["space"]
    assert check.state == "fault"
    assert check.says.startswith("100 of 100 recipes")


def test_an_earlier_study_is_described_with_what_it_spent_and_why_it_stopped(searched, found):
    checks = found(searched)
    assert "the budget is spent" in checks["study"].says
    assert "was begun with these settings" in checks["study"].says
    assert checks["budget"].state == "warning"
    assert "do not pay for another run" in checks["budget"].says
    assert "by the study's own measurements" in checks["recipe"].says


def test_a_lower_budget_than_what_is_spent_is_a_fault(searched, found, tiny_study):
    check = found(tiny_study(3.0))["budget"]
    assert check.state == "fault"
    assert "already spent" in check.says


def test_other_settings_than_the_study_was_begun_with_are_a_fault(searched, tiny_study, found):
    check = found(tiny_study(model={"context_length": 64}))["study"]
    assert check.state == "fault"
    assert "model.context_length was 32, is 64" in check.says


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (lambda plan: plan["passport"].update(name="a faster one"), "study", "another machine"),
        (lambda plan: plan.update(data="0" * 16), "data", "has changed since it was begun"),
    ],
)
def test_another_machine_and_other_text_than_the_study_was_begun_with_are_faults(searched, found, change, name, message):
    plan = json.loads((searched.folder / PLAN).read_text())
    change(plan)
    (searched.folder / PLAN).write_text(json.dumps(plan))
    check = found(searched)[name]
    assert check.state == "fault"
    assert message in check.says


def test_a_damaged_plan_is_a_fault_and_the_rest_is_still_checked(searched, found):
    (searched.folder / PLAN).write_text("{")
    checks = found(searched)
    assert checks["study"].state == "fault"
    assert "damaged" in checks["study"].says
    assert list(checks) == list(CHECKS)


def test_a_study_at_work_is_a_fault(searched, found):
    with FileLock(searched.folder / LOCK):
        check = found(searched)["study"]
    assert check.state == "fault"
    assert "another process is at work" in check.says
    assert found(searched)["study"].state == "ok"


def test_what_crashes_left_is_a_warning_and_what_is_being_written_is_not(searched, found):
    (searched.folder / f".plan.json.{os.getpid()}.tmp").write_text("now")
    assert found(searched)["study"].state == "ok"
    (searched.folder / ".plan.json.999999999.tmp").write_text("then")
    check = found(searched)["study"]
    assert check.state == "warning"
    assert "1 temporary files" in check.says


# --- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("built_for", "capability", "runs"),
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80"], (8, 6), True),
        (["sm_86"], (8, 0), False),
        (["sm_80"], (9, 0), False),
        (["compute_80"], (12, 0), True),
        (["sm_100", "sm_120a"], (12, 0), True),
        ([], (9, 0), False),
    ],
)
def test_kernels_run_on_later_minor_versions_and_ptx_on_everything_later(built_for, capability, runs):
    assert probes.has_kernels_for(built_for, capability) is runs


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path, monkeypatch):
    inner = tmp_path / "net" / "deep"
    inner.mkdir(parents=True)
    (tmp_path / "mounts").write_text(
        f"rootfs / ext4 rw 0 0\nserver:/x {tmp_path}/net nfs4 rw 0 0\nother {tmp_path}/ne xfs rw 0 0\n"
    )
    monkeypatch.setattr(probes, "PROC", tmp_path)
    assert probes.file_system(inner / "not" / "yet") == "nfs4"
    assert probes.file_system(tmp_path) == "ext4"
    assert [probes.is_network_file_system(kind) for kind in ("nfs4", "fuse.sshfs", "ext4", "overlay")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_containers_limits_are_read_where_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "CGROUP", tmp_path)
    assert probes.core_limit() is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert probes.core_limit() == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert probes.core_limit() is None


def test_another_process_at_work_is_seen_and_ones_own_is_not():
    burner = "import os\nif os.fork(): os._exit(0)\nprint(os.getpid(), flush=True)\nfor _ in range(10**9): pass\n"
    with subprocess.Popen([sys.executable, "-c", burner], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())  # a grandchild: children of ours are left out
        process.wait()
        try:
            before = probes.process_times()
            while (now := probes.process_times())[pid].seconds < before[pid].seconds + 0.05:
                pass
        finally:
            os.kill(pid, 9)
    assert os.getpid() not in now
    busy = probes.cores_used_between({pid: before[pid]}, {pid: now[pid]}, seconds=0.1)
    assert busy[0].seconds >= 0.5


def test_locks_and_write_ahead_logs_work_in_a_plain_folder(tmp_path):
    assert (probes.try_locking(tmp_path), probes.try_write_ahead(tmp_path)) == ("", "")


@pytest.mark.skipif(not compilation.compiler(), reason="no C++ compiler here")
@pytest.mark.skipif(" " in sys.prefix, reason="the compiler that PyTorch calls does not find it behind a path with a space")
def test_a_tiny_function_is_really_compiled():
    assert probes.try_compile("cpu") > 0


# --- command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(cache, found, monkeypatch):
    monkeypatch.setenv("BUDGETLM_CACHE", str(cache))
    return lambda *arguments: CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_the_command_prints_a_line_for_each_check_and_exits_with_0_without_a_fault(run, corpus_folder):
    result = run("--hours", 0.1, "--target-hours", 0.1, "--data", corpus_folder, "--threads", 1)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines] == list(CHECKS)
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}


def test_the_command_needs_no_option_and_says_what_it_could_not_check(run, corpus_folder):
    result = run("--data", corpus_folder, "--threads", 1)
    assert result.exit_code == 0
    assert "warning  budget     how much may the search spend?" in result.stdout


def test_the_command_exits_with_1_and_tells_scripts_in_json(run, corpus_folder):
    result = run("--hours", 0.0001, "--data", corpus_folder, "--threads", 1, "--json")
    assert result.exit_code == 1
    checks = json.loads(result.stdout)
    assert all(set(check) == {"name", "state", "says"} for check in checks)
    assert [check["name"] for check in checks if check["state"] == "fault"] == ["budget"]


def test_settings_that_nothing_understands_are_a_fault_too(run, home):
    (home / "typo.toml").write_text("[space]\nwidht = 64\n")
    result = run("--file", "typo.toml", "--json")
    assert result.exit_code == 1
    (check,) = json.loads(result.stdout)
    assert (check["name"], check["state"]) == ("settings", "fault")
    assert "Did you mean `width`" in check["says"]


def test_every_error_of_ours_is_a_finding_and_a_bug_is_not(tiny_study, found, monkeypatch):
    def complain(case):
        raise StudyError("something that a person can mend")

    monkeypatch.setitem(CHECKS, "clock", complain)
    assert found(tiny_study())["clock"].says == "something that a person can mend"
    monkeypatch.setitem(CHECKS, "clock", lambda case: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        found(tiny_study())
