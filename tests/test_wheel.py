"""What users install: the built wheel, alone in an environment, with the sources out of the way."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = [pytest.mark.wheel, pytest.mark.slow]

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A fresh environment with the wheel in it, that borrows the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("evomerge-*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    site = next((environment / "lib").glob("python3*")) / "site-packages"
    # The folder alone: .pth files inside it, such as that of an editable install, do not count.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--no-deps"]
    subprocess.run([*pip, "--quiet", str(wheel)], check=True)
    return environment / "bin"


def run(binary: Path, *arguments: object, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(binary), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_three_packages_come_from_the_wheel_and_nothing_else_does(installed, tmp_path):
    code = """
import json, importlib.util, evomerge, search_spaces, fitness
print(json.dumps({
    "files": [m.__file__ for m in (evomerge, search_spaces, fitness)],
    "others": [n for n in ("tests", "experiments") if importlib.util.find_spec(n)],
}))
"""
    found = json.loads(run(installed / "python", "-c", code, cwd=tmp_path))
    assert all(file.startswith(str(installed.parent)) for file in found["files"])
    assert found["others"] == []


def test_the_command_searches_reports_and_exports(installed, write_config, tmp_path):
    assert "demo" in run(installed / "evomerge", "--help", cwd=tmp_path)
    config = write_config(budget={"evaluations": 3})
    run(installed / "evomerge", "search", config, "--run", "run", cwd=tmp_path)
    run(installed / "evomerge", "report", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "views" / "report.html").stat().st_size > 100_000
    run(installed / "evomerge", "export", "run", "--out", "merged", cwd=tmp_path)
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert "evomerge.demo" in run(
        installed / "python", "-c", "import evomerge.demo.showcase as s; print(s.__name__)",
        cwd=tmp_path,
    )  # fmt: skip
