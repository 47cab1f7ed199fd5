"""The notebooks: their committed outputs are whole, and each runs from top to bottom with a tiny budget."""

from __future__ import annotations

import ctypes.util
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from sb3_softmod.envs.worker_pool import WORKERS

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

#: Seconds for one cell.
TIMEOUT = 300

#: Options of ``sb3-softmod train`` for a run of seconds.
TRAIN = (
    "-n 60 --eval-freq 30 --eval-episodes 1 --env-kwargs horizon:5 --vec-env dummy "
    "-params n_envs:3 batch_size:6 learning_starts:15 buffer_size:200 train_freq:5"
)

#: What stands in place of the values of the parameters cell.
BUDGETS: dict[str, dict[str, object]] = {
    "01_quickstart": dict(STEPS=600, EPISODES=1, CURVE=1, FILMED=5),
    "02_inside_the_routing": dict(STEPS=360, SNAPSHOT_EVERY=180, ROLLOUT=5, EPISODES=1),
    "03_compare_methods": dict(ALGOS=["softmod_shallow", "mt_sac"], SEEDS=[0], TRAIN=TRAIN, EPISODES=1),
    "04_your_own_tasks": dict(STEPS=600, CARTPOLE_STEPS=40, EPISODES=1),
    "05_paper_figures": dict(ROLLOUT=5),
    "06_new_tasks": dict(
        NEW=["handle-press-v3", "coffee-button-v3"],
        **dict(STEPS=60, EVAL_EVERY=30, EPISODES=1, ROLLOUT=5, SEEDS=[0], ENVS=1),
    ),
}

#: What more stands in the parameters cell: how long the search for the task that is most alike plays.
FASTER = {
    "06_new_tasks": (
        "from sb3_softmod.algorithm import nearest_tasks\nnearest_tasks.EPISODES, nearest_tasks.LONGEST = 1, 10\n"
    )
}

#: What the output must hold: text, or the number of pictures.
FINDINGS = {
    "01_quickstart": (r"95 % interval.*reach-v3.*(<video.*<video|No video: Rendering failed.*MUJOCO_GL)", 1),
    "02_inside_the_routing": (r"largest difference \d\.\de-0[678]", 6),
    "03_compare_methods": (r"Ours \(Shallow\).*1 seed of 1 episodes a task.*IQM \d\.\d+", 3),
    "04_your_own_tasks": (r"did you mean 'window-open-v3'.*moon.*MT-SAC.*differ in their action space", 1),
    "05_paper_figures": (r"begin\{tabular\}.*MT-MH-SAC-5-Wide", 6),
    "06_new_tasks": (r"the old tasks act as before: True.*from scratch.*most alike", 2),
}


def source_tags(cell: nbformat.NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def text_of(notebook: nbformat.NotebookNode) -> str:
    """Everything that the cells wrote."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(
        str(output.get("text", "")) + "\n".join(v for k, v in output.get("data", {}).items() if k.startswith("text/"))
        for output in outputs
    )


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def execute(name: str, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook with its tiny budget; a cell that fails raises."""
    path = next(path for path in NOTEBOOKS if path.stem == name)
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in source_tags(cell))
    for key, value in BUDGETS[name].items():
        parameters.source, changed = re.subn(
            rf"^{key} = .*$", f"{key} = {value!r}", parameters.source, flags=re.MULTILINE
        )
        assert changed == 1, f"{name} has no parameter {key}"
    parameters.source += "\n" + FASTER.get(name, "")
    env = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    if name == "04_your_own_tasks":  # whose classes reach worker processes
        del env[WORKERS]
    if ctypes.util.find_library("OSMesa") is None:  # nothing can be rendered here
        notebook.cells = [cell for cell in notebook.cells if "opengl" not in source_tags(cell)]
    else:
        env["MUJOCO_GL"] = "osmesa"
    client = NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(folder)}})
    client.execute(env=env)
    return notebook


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nbformat.NotebookNode]:
    """A folder with the runs of the comparison, which the paper's figures are drawn from, and its notebook."""
    folder = tmp_path_factory.mktemp("notebooks")
    return folder, execute("03_compare_methods", folder)


def check(name: str, notebook: nbformat.NotebookNode) -> None:
    text, count = FINDINGS[name]
    assert re.search(text, text_of(notebook), re.S)
    has_opengl = any("opengl" in source_tags(cell) for cell in notebook.cells)
    assert pictures(notebook) == count + has_opengl


@pytest.mark.parametrize("name", ["01_quickstart", "02_inside_the_routing", "04_your_own_tasks", "06_new_tasks"])
def test_runs(name: str, tmp_path: Path) -> None:
    check(name, execute(name, tmp_path))


def test_methods_are_compared(compared: tuple[Path, nbformat.NotebookNode]) -> None:
    folder, notebook = compared
    check("03_compare_methods", notebook)
    assert len(list((folder / "runs").rglob("evaluation.json"))) == 2


def test_paper_figures_from_the_runs_of_the_comparison(compared: tuple[Path, nbformat.NotebookNode]) -> None:
    folder, _ = compared
    check("05_paper_figures", execute("05_paper_figures", folder))
    assert {path.suffix for path in (folder / "runs" / "figures").iterdir()} == {".svg", ".csv"}


def test_the_quickstart_has_few_imports_and_ends_with_an_interval_and_a_video() -> None:
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    lines = [line for cell in code for line in cell.source.splitlines()]
    assert sum(line.startswith(("import ", "from ")) for line in lines) <= 5
    *_, evaluated, filmed = code
    assert "95 % interval" in evaluated.outputs[0].text
    assert ["<video" in output.data["text/html"] for output in filmed.outputs] == [True, True]


def test_a_failing_cell_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell("STEPS = 10", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("assert STEPS == 10"),
    ]
    path = tmp_path / "broken.ipynb"
    nbformat.write(notebook, path)
    monkeypatch.setitem(BUDGETS, "broken", dict(STEPS=11))
    monkeypatch.setattr(f"{__name__}.NOTEBOOKS", [path])
    with pytest.raises(Exception, match="AssertionError"):
        execute("broken", tmp_path)


def test_there_is_a_budget_for_each_notebook() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(BUDGETS) == list(FINDINGS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_of_one_whole_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert pictures(notebook) >= FINDINGS[path.stem][1]
    assert not re.search(r"(/home|/root|/tmp|/work|/Users)/", text_of(notebook))
    assert path.stat().st_size < 1_500_000
