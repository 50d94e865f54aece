"""What `pip install` brings: every file of the package, what running needs, and configurations."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import setuptools

from alexnet_jax.config import flatten, load_config, shipped
from tests.tiny import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# tensorboardX takes the first where it is; TFDS's imagenette builder needs the second; the third is
# looked for by its files; the last is TensorFlow on a Mac.
NOT_IMPORTED = {"crc32c", "importlib-resources", "scikit-image", "tensorflow"}
BROUGHT = {"jaxlib", "etils", "array-record"}  # by JAX and by TFDS
EXTRAS = {"torch"}


def names(requirements):
    """The distributions that lines of requirements name, in pip's spelling."""
    found = (re.match(r"[\w.-]+", line) for line in requirements)
    return {match[0].lower().replace("_", "-") for match in found if match}


def imported(folder):
    """The distributions that the modules of a folder import, wherever in them."""
    modules = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.partition(".")[0])
    known = importlib.metadata.packages_distributions()
    others = modules - set(sys.stdlib_module_names) - {"alexnet_jax", "google", "tensorflow"}
    dists = {known[each][0] if each in known else each for each in others}
    google = {"protobuf"} if "google" in modules else set()
    tensorflow = {"tensorflow-cpu"} if "tensorflow" in modules else set()
    return names(dists) | google | tensorflow


def test_a_wheel_holds_every_file_of_the_package():
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "alexnet_jax"], capture_output=True, text=True
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    built = PROJECT["tool"]["setuptools"]
    patterns = ["*.py", *built["package-data"]["*"]]
    packages = setuptools.find_packages(str(ROOT), **built["packages"]["find"])
    folders = [ROOT / package.replace(".", "/") for package in packages]
    held = {path for folder in folders for pattern in patterns for path in folder.glob(pattern)}
    assert {ROOT / name for name in tracked if (ROOT / name).exists()} <= held
    assert not [path for path in held if path.relative_to(ROOT).parts[0] != "alexnet_jax"]


def test_requirements_are_what_running_needs():
    required = names((ROOT / "requirements.txt").read_text().splitlines())
    assert imported("alexnet_jax") - EXTRAS - BROUGHT == required - NOT_IMPORTED


def test_an_installed_package_has_its_configurations_in_any_folder(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "alexnet_jax").symlink_to(ROOT / "alexnet_jax")
    for name, package in {"mine": "alexnet_jax.configs", "checkout": "configs"}.items():
        (tmp_path / f"{name}.py").write_text(
            f"from {package} import default\n"
            "def get_config():\n"
            "    config = default.get_config()\n"
            "    config.seed = 7\n"
            "    return config\n"
        )
    code = (
        "from alexnet_jax.config import load_config\n"
        "for name in ('mine.py', 'checkout.py', './mine.py', 'default', 'configs/default.py'):\n"
        "    config = load_config(name)\n"
        "    print(config.seed, config.data.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.split("\n") == ["7 photos"] * 3 + ["0 photos"] * 2 + [""]


def test_names_of_shipped_configurations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "imagenette" in shipped()
    assert not [name for name in shipped() if name.startswith("_")]
    for name in shipped():
        expected = flatten(load_config(ROOT / "configs" / f"{name}.py"))
        assert flatten(load_config(name)) == expected
    Path("default.py").write_text(
        "from alexnet_jax.configs import default\n"
        "def get_config():\n"
        "    config = default.get_config()\n"
        "    config.seed = 7\n"
        "    return config\n"
    )
    assert load_config("default.py").seed == 7  # a file of one's own goes before
    assert load_config("default").seed == 0
