import statistics
from dataclasses import replace

import pytest
from tests.report.made_up import DOUBT, evaluation, make_run

from noiseprop.evaluation.results import Finding
from noiseprop.evaluation.statistics import wilson
from noiseprop.report.accuracy import find_severities, group_doubts, tabulate_accuracies
from noiseprop.report.paired_tests import compare_all_pairs
from noiseprop.report.run_groups import group_runs, read_run


def tabled(folders):
    return tabulate_accuracies(group_runs([read_run(folder) for folder in folders]))


def find(found, group, state, run=None):
    (row,) = [row for row in found.rows if (row.group, row.state, row.run) == (group, state, run)]
    return dict(zip(found.conditions, row.cells, strict=True))


def test_seeds_are_a_mean_with_their_deviation_and_a_run_has_wilson_s_interval(folders):
    found = tabled(folders)
    values = [evaluation("MLP", seed).accuracy("pgd") for seed in (0, 1)]
    cell = find(found, "MLP", "none")["pgd"]
    assert cell.value == pytest.approx(statistics.mean(values))
    assert cell.spread == f"± {statistics.stdev(values):.3f}"
    assert (cell.low, cell.high) == pytest.approx(
        (cell.value - statistics.stdev(values), cell.value + statistics.stdev(values))
    )
    alone = find(found, "MLP", "none", "seed 1")["pgd"]
    interval = wilson(round(values[1] * 60), 60)
    assert (alone.value, alone.low, alone.high) == (interval.estimate, interval.low, interval.high)
    assert alone.spread == f"[{interval.low:.3f}, {interval.high:.3f}]"


def test_a_corruption_is_the_mean_of_its_severities_without_an_interval(folders):
    cell = find(tabled(folders), "MLPN", "one draw")["contrast"]
    by_severity = find_severities(evaluation("MLPN", 0), "contrast")
    assert list(by_severity) == [0, 1, 2, 3, 4, 5]
    assert cell.value == pytest.approx(statistics.mean(by_severity[s] for s in range(1, 6)))
    assert cell.spread == ""


def test_the_strongest_attack_counts(folders):
    e = evaluation("MLPN", 0)
    assert find(tabled(folders), "MLPN", "one draw")["fgsm"].value == e.accuracy("fgsm", state="one", attack_draws=5)
    assert find(tabled(folders), "MLPN", "off")["fgsm"].value == e.accuracy("fgsm", state="off", attack_draws=0)


def test_a_warning_stands_at_the_figures_that_it_touches_and_at_no_other(folders):
    found = tabled(folders)
    (doubt,) = [doubt for doubt in found.doubts if doubt.check == "single step"]
    assert (doubt.group, doubt.sentences) == ("MLPN", [("seed 0", DOUBT.sentence)])
    touched = {
        (row.group, row.state, condition)
        for row in found.rows
        for condition, cell in zip(found.conditions, row.cells, strict=True)
        if cell and doubt in cell.doubts
    }
    assert touched == {("MLPN", state, attack) for state in ("one draw", "vote") for attack in ("fgsm", "pgd")}


def test_a_warning_stands_at_the_charts_of_its_conditions(folders):
    (doubt,) = [doubt for doubt in tabled(folders).doubts if doubt.check == "single step"]
    assert [name for name, found in group_doubts([doubt]).items() if found] == ["FGSM", "PGD"]


def test_a_warning_of_one_seed_stands_at_the_mean_and_at_that_seed(tmp_path):
    failed = Finding("convergence", "failed", {}, "Not converged.")
    passed = replace(failed, outcome="passed")
    runs = [
        make_run(tmp_path / str(seed), "MLP", seed, judged=evaluation("MLP", seed, findings=(finding,)))
        for seed, finding in enumerate((passed, failed))
    ]
    found = tabled(runs)
    marked = [
        row.run
        for row in found.rows
        if any(d.check == "convergence" for d in row.cells[found.conditions.index("pgd")].doubts)
    ]
    assert marked == [None, "seed 1"]


def test_a_check_of_another_version_touches_all(tmp_path):
    judged = evaluation("MLP", 0, findings=(Finding("new check", "failed", {}, "Doubtful."),))
    found = tabled([make_run(tmp_path / "run", "MLP", judged=judged)])
    assert all(any(doubt.check == "new check" for doubt in cell.doubts) for cell in found.rows[0].cells)


def test_an_evaluation_that_lacks_what_its_settings_name_has_gaps_and_no_error(tmp_path):
    e = evaluation("MLPN", 0)
    kept = tuple(m for m in e.measurements if m.condition == "clean" and m.state == "off")
    found = tabled([make_run(tmp_path / "a", judged=replace(e, measurements=kept)), make_run(tmp_path / "b", "MLP")])
    assert find(found, "MLPN", "off")["pgd"] is None
    assert find(found, "MLPN", "off")["clean"].value == kept[0].accuracy


def test_pairs_are_of_the_first_runs_of_groups(folders):
    found = compare_all_pairs(group_runs([read_run(folder) for folder in folders]))
    assert [(pair.a, pair.b) for pair in found] == [
        ("MLP, seed 0", "MLPN, seed 0"),
        ("MLP, seed 0", "CNN-AN, seed 0"),
        ("MLPN, seed 0", "CNN-AN, seed 0"),
    ]
    assert [(line.condition, line.severity) for line in found[0].lines][3:6] == [
        ("pgd", 0),
        ("gaussian_noise", 1),
        ("gaussian_noise", 2),
    ]
    line = found[0].lines[0]
    assert line.test.difference.estimate == pytest.approx(
        evaluation("MLP", 0).accuracy("clean") - evaluation("MLPN", 0).accuracy("clean")
    )
    assert all(line.p_value >= line.test.p_value for line in found[0].lines)


def test_a_group_alone_is_compared_within(folders):
    (pair,) = compare_all_pairs(group_runs([read_run(folder) for folder in folders[:2]]))
    assert (pair.a, pair.b) == ("MLP, seed 0", "MLP, seed 1")


def test_runs_judged_on_other_images_say_why_they_have_no_comparison(tmp_path, folders):
    other = make_run(tmp_path / "other", "MLPN", judged=replace(evaluation("MLPN", 0), digest="e" * 64))
    (pair,) = compare_all_pairs(group_runs([read_run(folder) for folder in (folders[0], other)]))
    assert pair.lines == ()
    assert "the evaluations are of different test images" in pair.trouble
