import json
import sys

import pytest

from budgetlm.cli import main
from budgetlm.errors import ConfigError
from budgetlm.outlook import describe, look_ahead
from budgetlm.watch import Watcher


def ahead(config, cache, **options):
    return look_ahead(config, cache, Watcher(), **options)


def test_a_plan_spends_nothing_and_leaves_nothing(tiny_study, cache, home):
    outlook = ahead(tiny_study(16.0), cache)
    assert not list(home.iterdir())
    assert outlook.trials >= 2
    assert sum(stage.runs for stage in outlook.rungs) >= outlook.trials


def test_the_runs_of_a_plan_are_what_the_budget_pays_for(tiny_study, cache):
    less, more = ahead(tiny_study(16.0), cache), ahead(tiny_study(32.0), cache)
    for outlook, seconds in ((less, 16.0), (more, 32.0)):
        assert 0.5 * (seconds - 8.0) < sum(s.runs * s.seconds for s in outlook.rungs) <= seconds
    assert more.trials > less.trials


def test_a_finished_study_is_planned_with_what_it_has_measured(searched, cache):
    from budgetlm.search.plan import load_plan

    outlook, plan = ahead(searched, cache), load_plan(searched.folder)
    assert [s.seconds for s in outlook.rungs] == plan.rungs
    assert (outlook.final.depth, outlook.final.width) == (plan.default.depth, plan.default.width)


def test_a_device_that_is_not_here_trains_a_larger_final(tiny_study, cache):
    config = tiny_study(40.0, budget={"hours": 40 / 3600, "target_hours": 24.0}, space={})
    small, large = ahead(config, cache, device="t4"), ahead(config, cache, device="h100")
    assert large.final.parameters > 3 * small.final.parameters
    assert large.final.peak_bytes < 80e9
    text = describe(large)
    assert "published ceilings, not measured" in text
    assert "beyond about 4 times repeated text" in text


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_precision_that_a_device_does_not_compute_in_is_refused(tiny_study, cache, precision):
    with pytest.raises(ConfigError, match="V100.* has no bf16. Use `auto` or `fp32`"):
        ahead(tiny_study(16.0, train={"precision": precision}), cache, device="v100")
    assert ahead(tiny_study(16.0), cache, device="v100").trials


def test_several_devices_finish_sooner_and_pay_the_same(tiny_study, cache):
    one = ahead(tiny_study(24.0), cache)
    two = ahead(tiny_study(24.0, train={"devices": 2, "threads": 1, "eval_tokens": 256}), cache)
    assert two.wall_hours < one.wall_hours
    alone, together = (sum(stage.runs * stage.seconds for stage in outlook.rungs) for outlook in (one, two))
    assert together == pytest.approx(alone, rel=0.1)  # how many trials that is depends on who climbs


def test_a_final_of_several_devices_ends_sooner_and_each_holds_its_part(tiny_study, cache):
    one, four = (
        ahead(tiny_study(16.0, train={"final_devices": count, "parallel": "fsdp"}), cache, device="h100") for count in (1, 4)
    )
    assert (four.final.depth, four.final.width) == (one.final.depth, one.final.width)
    assert four.final.peak_bytes < one.final.peak_bytes
    assert one.wall_hours - four.wall_hours == pytest.approx(0.75 * one.target_hours)
    assert "trained by 4 devices together; its memory is that of each" in describe(four)
    assert "together" not in describe(one)


def test_the_command_prints_money_and_json(tiny_study, cache, home, monkeypatch, capsys):
    tiny_study(16.0).save(home)
    monkeypatch.setenv("BUDGETLM_CACHE", str(cache))
    monkeypatch.setattr(
        sys, "argv", ["budgetlm", "plan", "--file", "study.toml", "--device", "a100", "--price-per-hour", "3600", "--json"]
    )
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["price"] == pytest.approx(16.0 + 3.2)
    assert {"device", "trials", "rungs", "final", "epochs", "disk_bytes", "wall_hours"} <= set(said)


def test_truncated_proxies_are_planned_at_the_shape_of_the_final(home, cache, corpus_folder, monkeypatch, capsys):
    shapes, data = {}, ["--data", str(corpus_folder)]
    for proxy in ("miniature", "truncate"):
        arguments = ["plan", "--hours", "0.2", "--target-hours", "24", "--device", "h100", "--proxy", proxy, "--json", *data]
        monkeypatch.setenv("BUDGETLM_CACHE", str(cache))
        monkeypatch.setattr(sys, "argv", ["budgetlm", *arguments])
        with pytest.raises(SystemExit):
            main()
        said = json.loads(capsys.readouterr().out)
        shapes[proxy] = [(stage["depth"], stage["width"]) for stage in (*said["rungs"], said["final"])]
    assert len(set(shapes["truncate"])) == 1
    assert len(set(shapes["miniature"])) == len(shapes["miniature"]) > 1


def test_an_unknown_device_is_answered_with_those_that_are_known(tiny_study, cache, home, monkeypatch, capsys):
    tiny_study(60.0).save(home)
    monkeypatch.setattr(sys, "argv", ["budgetlm", "plan", "--file", "study.toml", "--device", "h10"])
    with pytest.raises(SystemExit):
        main()
    assert "h100" in capsys.readouterr().err


def test_a_plan_under_a_limit_says_what_the_default_would_weigh_and_how_it_is_judged(tiny_study, cache):
    wanted = {"least_rung_seconds": 0.15, "max_model_mb": 0.15, "objectives": "loss,size"}
    outlook = ahead(tiny_study(16.0, search=wanted), cache)
    assert 0 < outlook.model_bytes <= outlook.max_model_bytes == 150_000
    text = describe(outlook)
    assert "of 0.15 MB that are allowed" in text
    assert "by the throughput model, not measured; recipes are judged by loss and size" in text
