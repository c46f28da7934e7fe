"""tools.gpu: parts in processes of their own, with limits; a report that grows as they go. Nothing here needs a GPU."""

import json
import os
import sys
import time

import pytest
import torch

from helpers.config import TrainingConfig
from helpers.lesson.speed import planned_flops
from helpers.tools import gpu
from helpers.tools.gpu import Operations, main, run_part


def python(code):
    return [sys.executable, "-c", code]


def test_a_part_that_takes_too_long_is_stopped_with_its_children_and_keeps_what_it_said(tmp_path):
    code = ("import subprocess, sys; print('began', flush=True); "
            "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])")
    report, start = ["heading\n"], time.perf_counter()
    fault = run_part(6, python(code), report, tmp_path / "report.txt")
    assert fault == "took longer than 6 s" and time.perf_counter() - start < 30
    assert (tmp_path / "report.txt").read_text() == "".join(report)
    assert report[:2] == ["heading\n", "began\n"] and report[-1] == "KeyboardInterrupt\n", "it may say where it was"


def test_an_interrupted_command_leaves_no_part_behind(tmp_path):
    class Interrupted(list):
        def append(self, line):
            super().append(line)
            raise KeyboardInterrupt

    report, code = Interrupted(), "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run_part(60, python(code), report, tmp_path / "report.txt")
    with pytest.raises(ProcessLookupError):
        os.kill(int(report[0]), 0)


@pytest.mark.parametrize("code, fault", [("print('fine')", ""), ("raise SystemExit(3)", "exit status 3")])
def test_a_part_says_how_it_ended(tmp_path, code, fault):
    assert run_part(60, python(code), [], tmp_path / "report.txt") == fault


def test_a_failed_part_does_not_stop_the_rest_and_is_in_the_report(tmp_path, capsys):
    status = main(["--out", str(tmp_path), "--data-dir", str(tmp_path / "nothing"), "--parts", "kernels", "machine",
                   "--overrides", "data_source=npz", "device=cpu"])
    content, text = json.loads((tmp_path / "report.json").read_text()), (tmp_path / "report.txt").read_text()
    assert status == 1 and list(content) == ["kernels", "machine"]
    assert "exit status" in content["kernels"]["fault"] and content["machine"]["fault"] == ""
    assert content["machine"]["torch"] == torch.__version__ and torch.__version__ in text
    assert "-- kernels: exit status 1" in text and "-- machine: done" in text
    assert "Traceback" not in text and "nothing" in text and "-- machine: done" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.txt"]


@pytest.mark.parametrize("arguments, words", [
    (["--parts", "machine"], "--out"), (["--out", "x", "--steps", "0"], "--steps 0"),
    (["--out", "x", "--parts", "nothing"], "nothing"),
    (["--out", "x", "--limit-factor", "0"], "--limit-factor 0")])
def test_wrong_arguments_are_told(capsys, arguments, words):
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err


def test_operations_are_counted_without_views_and_with_the_bytes_they_touch():
    numbers = torch.ones(10, 6)
    with Operations() as operations:
        (numbers.T[1:] + 1.0).mul_(2)
    assert operations.count == 2
    assert operations.bytes == 4 * (50 + 50 + 50)        # read, written; and in place, counted once


def test_the_cost_of_a_training_is_that_of_its_images():
    config = TrainingConfig(num_classes=4, widths=(16,) * 4, epochs=2, batch_size=20, start_image_size=24)
    cost = gpu.cost_of_training(config, images=100)
    assert cost["petaflops"] * 1e15 == pytest.approx(planned_flops(config, 100))
