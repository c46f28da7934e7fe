"""The notebook as its users run it: papermill, nbval, and as it lies in the repository."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from helpers.config import ALIASES, EVERYDAY

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "CIFAR_100_CNN_Training.ipynb"
DEMO = {"preset": "demo", "epochs": 2}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(notebook) -> str:
    """All text that the code cells have put out."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "\n".join(output.get("text", "") for output in outputs)


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(executed notebook, folder of its run): the demo preset through papermill, with injected parameters."""
    folder = tmp_path_factory.mktemp("papermill")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "Agg")       # as on many clusters
        papermill.execute_notebook(NOTEBOOK, folder / "out.ipynb", DEMO | {"runs_dir": str(folder / "runs")}, cwd=ROOT,
                                   progress_bar=False)
    return nbformat.read(folder / "out.ipynb", as_version=4), folder / "runs" / "demo-epochs=2"


def test_papermill_runs_every_cell(executed):
    notebook, _ = executed
    assert all(cell.execution_count for cell in code_cells(notebook))
    assert not [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == "error"]


def test_papermill_leaves_metrics_figures_and_checkpoint(executed):
    _, run = executed
    content = json.loads((run / "metrics.json").read_text())
    assert content["config"]["epochs"] == len(content["history"]) == 2
    assert content["results"]["images"] == 1000
    assert content["results"]["top1"] > 10      # chance is 1 %
    assert len(list((run / "figures").glob("*.png"))) >= 11
    assert (run / "checkpoints" / "final.pt").is_file()
    assert "epoch 2/2" in (run / "train.log").read_text()


def test_demo_results_say_that_they_are_not_cifar100(executed):
    notebook, run = executed
    content = json.loads((run / "metrics.json").read_text())
    assert content["note"] == content["results"]["note"] == "drawn demo data"
    for cell in code_cells(notebook):
        if "top-1" in (text := "".join(output.get("text", "") for output in cell.outputs)):
            assert "drawn demo data" in text or "epoch " in text


def test_every_figure_is_a_picture_in_the_notebook_whatever_the_backend(executed):
    notebook, _ = executed
    shown = [output.data for cell in code_cells(notebook) for output in cell.outputs if "data" in output]
    figures = [data for data in shown if "Figure" in data.get("text/plain", "") or "Picture" in data["text/plain"]]
    assert len(figures) >= 15 and all("image/png" in data for data in figures)


def test_headless_training_is_one_line_an_epoch(executed):
    notebook, _ = executed
    lines = [line for line in texts_of(notebook).splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert "it/s" not in texts_of(notebook)


def test_no_widget_state_is_kept(executed):
    assert "widgets" not in executed[0].metadata


def test_a_misspelt_parameter_is_an_error_with_the_nearest_name(tmp_path):
    with pytest.raises(PapermillExecutionError, match="did you mean 'learning_rate'"):
        papermill.execute_notebook(NOTEBOOK, tmp_path / "out.ipynb", DEMO | {"learnig_rate": 0.2}, cwd=ROOT,
                                   progress_bar=False)


def test_the_command_line_gives_the_same_weights_as_the_notebook(executed, tmp_path):
    _, run = executed
    subprocess.run([sys.executable, "train.py", "--config", "configs/experiments/demo.yaml", "--epochs", "2",
                    "--runs-dir", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    ours = json.loads((tmp_path / "demo-epochs=2" / "metrics.json").read_text())
    notebooks = json.loads((run / "metrics.json").read_text())
    if ours["system"]["precision"] != notebooks["system"]["precision"]:
        pytest.skip("other work on this CPU made bf16 seem slow in one of the two")
    tolerance = 0 if ours["system"]["device"] == "cpu" else 0.1     # a GPU may round otherwise each time
    for found, expected in zip(ours["history"], notebooks["history"], strict=True):
        assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=tolerance, abs=0)
    assert ours["results"]["top1"] == pytest.approx(notebooks["results"]["top1"], rel=tolerance, abs=0)
    assert tolerance or ours["results"] == notebooks["results"]


def test_nbval_finds_the_stored_outputs(committed, tmp_path):
    """nbval cannot inject parameters, so it gets a copy that papermill has put the demo preset into."""
    copy = tmp_path / NOTEBOOK.name
    parameters = DEMO | {"epochs": 1, "runs_dir": str(tmp_path / "runs")}
    papermill.execute_notebook(NOTEBOOK, copy, parameters, prepare_only=True, cwd=ROOT)
    prepared = nbformat.read(copy, as_version=4)
    checked = [cell for cell in code_cells(prepared) if "NBVAL_CHECK_OUTPUT" in cell.source]
    assert len(checked) >= 2 and all(cell.outputs for cell in checked)
    setup = next(cell for cell in code_cells(prepared) if "REPOSITORY" in cell.source)
    setup.source = f"import os\nos.chdir({str(ROOT)!r})\n" + setup.source       # nbval runs where the notebook lies
    nbformat.write(prepared, copy)
    outcome = subprocess.run([sys.executable, "-m", "pytest", "--nbval-lax", "-p", "no:cacheprovider", str(copy)],
                             cwd=tmp_path, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout
    assert (tmp_path / "runs" / "demo-epochs=1" / "metrics.json").is_file()     # and so the parameters were heard


@pytest.fixture
def setup(committed, tmp_path):
    """(source of the setup cell, with a repository of this test; that repository, which knows where it lies)."""
    source = next(cell.source for cell in code_cells(committed) if "REPOSITORY" in cell.source)
    origin = tmp_path / "origin" / "cifar100-cnn-training"
    subprocess.run(["git", "init", "--quiet", str(origin)], check=True)
    (origin / "cifar100_pipeline.py").write_text("found = __file__\n")
    git = ["git", "-C", str(origin), "-c", "user.name=t", "-c", "user.email=t@example.org",
           "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "one"], check=True)
    (tmp_path / "elsewhere").mkdir()
    return re.sub(r'REPOSITORY = ".*"', f'REPOSITORY = "{origin.as_uri()}"', source), origin


@pytest.mark.parametrize("host", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"])
def test_on_colab_and_kaggle_the_setup_cell_fetches_the_project_and_says_so(host, setup, tmp_path):
    source, origin = setup
    command = [sys.executable, "-c", source + "\nimport cifar100_pipeline\nprint(cifar100_pipeline.found)"]
    environment = os.environ | {"PYTHONPATH": "", host: "1"}
    said = [subprocess.run(command, cwd=tmp_path / "elsewhere", check=True, env=environment, capture_output=True,
                           text=True).stdout for _ in range(2)]
    assert f"fetching {origin.as_uri()}" in said[0] and "fetching" not in said[1]     # the second finds it
    assert str(tmp_path / "elsewhere" / origin.name) in said[1]


@pytest.mark.parametrize("host", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"])
def test_without_a_network_the_first_cells_end_in_one_line_that_says_what_to_do(host, setup, committed, tmp_path):
    """And not in a traceback of CalledProcessError."""
    pip = next(cell.source for cell in code_cells(committed) if "missing_requirements" in cell.source)
    pip = pip.replace("missing_requirements()", "['no-such-package']").replace("from", "import sys, subprocess #")
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = os.environ | proxy | {host: "1", "PIP_RETRIES": "0", "PIP_INDEX_URL": "https://pypi.invalid/simple"}
    for source in (setup[0].replace(setup[1].as_uri(), "https://github.invalid/cifar100"), pip):
        done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path / "elsewhere", env=environment,
                              capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "turn on the network (on Kaggle: Settings > Internet)" in done.stderr.splitlines()[-1]


def test_a_clone_that_was_cut_off_is_told_and_not_used(setup, tmp_path):
    source, origin = setup
    (tmp_path / "elsewhere" / origin.name / ".git").mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path / "elsewhere", capture_output=True, text=True,
                          env=os.environ | {"COLAB_RELEASE_TAG": "1"})
    assert done.returncode == 1 and str(tmp_path / "elsewhere" / origin.name) in done.stderr


def test_elsewhere_the_setup_cell_takes_the_project_beside_the_notebook_and_fetches_none(setup, tmp_path):
    source, origin = setup
    cells = [nbformat.v4.new_code_cell(text) for text in (source, "import cifar100_pipeline as p; print(p.found)")]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "PYTHONPATH")}
    (tmp_path / "third").mkdir()
    for folder, finds, more in ((origin, str(origin), []), (origin, str(origin), ["--cwd", str(tmp_path / "third")]),
                                (tmp_path, "--cwd", [])):
        nbformat.write(notebook, folder / "mine.ipynb")
        papermill = [sys.executable, "-m", "papermill", os.path.relpath(folder / "mine.ipynb", tmp_path / "elsewhere"),
                     "out.ipynb", "--no-progress-bar", *more]
        done = subprocess.run(papermill, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True)
        assert finds in (tmp_path / "elsewhere" / "out.ipynb").read_text(encoding="utf-8"), done.stderr
        assert (done.returncode == 0) == (folder == origin)
        assert os.listdir(tmp_path / "elsewhere") == ["out.ipynb"]


# As it lies in the repository -------------------------------------------------------------------------------

def test_parameters_are_the_documented_ones_and_all_none(committed):
    cell = next(cell for cell in committed.cells if "parameters" in cell.metadata.get("tags", []))
    namespace = {}
    exec(cell.source, namespace)
    names = [name for name in namespace if not name.startswith("__")]
    assert [ALIASES.get(name, name) for name in names] == list(EVERYDAY)      # what train.py --help shows
    assert all(namespace[name] is None for name in names)


def test_cells_are_short_and_follow_prose(committed):
    assert max(len(cell.source.splitlines()) for cell in code_cells(committed)) <= 15
    assert committed.cells[0].cell_type == "markdown"


def test_headings_are_in_english_and_traditional_chinese(committed):
    headings = [line for cell in committed.cells if cell.cell_type == "markdown"
                for line in cell.source.splitlines() if line.startswith("#")]
    assert len(headings) > 10
    assert all(re.search(r"[A-Za-z]{3}", line) and re.search(r"[\u4e00-\u9fff]", line) for line in headings)


def test_the_stored_outputs_are_of_a_real_run_and_name_no_machine(committed):
    text = texts_of(committed)
    assert "50,000 training and 10,000 test images" in text and "drawn demo data" not in text
    assert not re.search(r"(?<![\w.:/])/(?:[\w.-]+/)+[\w.-]+", text), "an absolute path is in an output"
    assert NOTEBOOK.stat().st_size < 3_000_000
    assert "widgets" not in committed.metadata


def test_the_repository_has_one_address(committed):
    source = next(cell.source for cell in code_cells(committed) if "REPOSITORY" in cell.source)
    owner_and_name = re.search(r'REPOSITORY = "https://github.com/([^"]+)"', source).group(1)
    badge = f"https://colab.research.google.com/github/{owner_and_name}/blob/main/{NOTEBOOK.name}"
    documents = [committed.cells[0].source, (ROOT / "README.md").read_text(encoding="utf-8"),
                 (ROOT / "README.zh-TW.md").read_text(encoding="utf-8")]
    for document in documents:
        assert badge in document
        assert set(re.findall(r"github\.com/([\w-]+/[\w-]+)", document)) <= {owner_and_name}
