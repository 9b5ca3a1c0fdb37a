import pytest
from tests.report.made_up import make_run

from noiseprop.cli import main
from noiseprop.errors import InputError


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "mlpn")


def fails(capsys, *arguments):
    assert main(["report", *map(str, arguments)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said


def test_a_report_is_written_and_what_is_missing_is_said(run, tmp_path, capsys):
    bare = make_run(tmp_path / "bare", "MLP", judged=None)
    target = tmp_path / "new" / "report.html"
    assert main(["report", str(run), str(bare), str(run), "--out", str(target), "--images", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"Missing: {bare} was not evaluated; run `noiseprop evaluate {bare}` for its figures",
        f"The report of 2 runs is {target}.",
    ]
    text = target.read_text()
    assert "MLPN, MLP" in text
    assert (run / "curve.json").exists()
    assert main(["report", str(run), "--out", str(target), "--images", "2"]) == 0
    assert target.read_text() != text


def test_what_all_runs_lack_is_said_once(tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise InputError("no images here")

    monkeypatch.setattr("noiseprop.report.network_views._make_examples", stop)
    runs = [str(make_run(tmp_path / name, name)) for name in ("MLP", "MLPN")]
    target = tmp_path / "r.html"
    assert main(["report", *runs, "--out", str(target), "--images", "2"]) == 0
    assert capsys.readouterr().out.count("Missing: no images here\n") == 1
    assert target.read_text().count("<li>no images here</li>") == 1


def test_a_damaged_evaluation_is_a_sentence_and_no_crash(run, tmp_path, capsys):
    (run / "evaluation.json").write_bytes(b"\x00" * 1000)
    assert main(["report", str(run), "--out", str(tmp_path / "r.html"), "--images", "0"]) == 0
    assert "not a usable evaluation" in capsys.readouterr().out
    assert "not a usable evaluation" in (tmp_path / "r.html").read_text()


def test_data_that_are_missing_leave_out_what_needs_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NOISEPROP_DATA", str(tmp_path / "no data"))
    run = make_run(tmp_path / "run", change=lambda settings: settings["data"].update(name="cifar10"))
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 0
    assert "Missing: " in capsys.readouterr().out
    assert "sigma of each neuron" in (tmp_path / "r.html").read_text()


def test_what_is_no_run_or_no_report_is_told_in_a_sentence(run, tmp_path, capsys):
    out = tmp_path / "mine.html"
    assert "is not a run folder" in fails(capsys, tmp_path, "--out", out)
    assert not out.exists()
    assert "report requires run folders" in fails(capsys, "--out", out)
    assert "--images is -1; give 0 or more" in fails(capsys, run, "--out", out, "--images", "-1")
    out.write_text("mine")
    said = fails(capsys, run, "--out", out)
    assert said == f"noiseprop: {out} was not written by `noiseprop report` and would be lost; choose another --out\n"
    assert out.read_text() == "mine"
    assert "would be lost" in fails(capsys, run, "--out", tmp_path)
