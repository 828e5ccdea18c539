"""Packages import each other in one direction, without cycles, and each works without what it does not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.paths import REPOSITORY
from tools import structure

PACKAGES = ("configs", "shards", "preprocessing", "hiervl_train", "eval", "cluster")
MAY_IMPORT: dict[str, set[str]] = {
    "configs": set(),
    "shards": set(),
    "preprocessing": {"configs", "shards"},
    "hiervl_train": {"configs", "shards"},
    "eval": {"configs", "shards", "hiervl_train"},
    "cluster": {"configs"},
}
# The only imports beyond those: file → modules.
EXCEPTIONS = {
    "shards/verify/__main__.py": {"configs.cli"},
    "shards/inspect/__main__.py": {"configs.cli"},
    "shards/export/__main__.py": {"configs.cli"},
    "shards/browse/__main__.py": {"configs.cli", "eval.text_queries"},  # lazily: only --checkpoint needs a model
    "shards/features/__main__.py": {"configs.cli"},
    "preprocessing/dense_features.py": {"hiervl_train.features"},
    "preprocessing/extract_features.py": {"hiervl_train.features"},  # the only entry there that needs torch
    "hiervl_train/pretrain.py": {"eval.in_training"},  # a run can evaluate itself
    "hiervl_train/finetune.py": {"eval.in_training"},
}
LAZY = ("hiervl_train/pretrain.py", "hiervl_train/finetune.py")
# Sub-packages that depend on little of their own package: sub-package → the modules and sub-packages it may import.
MAY_IMPORT_OF_ITS_PACKAGE = {
    "shards": {"shards.sampling"},
    "shards.html": {"shards.files"},
    "preprocessing.annotations": set(),
    "preprocessing.video": {"preprocessing.config", "preprocessing.errors"},
    "preprocessing.demo": set(),
    "hiervl_train.models": set(),
    "eval.metrics": set(),
    "eval.report": {"eval.results", "eval.metrics", "eval.nearest"},
}
# Modules and sub-packages that must stay independent of others: importer → what it must not import.
MUST_NOT_IMPORT = {
    "eval.metrics": ("configs", "shards", "hiervl_train"),  # but the relevancy that fine-tuning uses, too
    "hiervl_train.checkpoint": ("hiervl_train.tasks", "hiervl_train.monitor", "hiervl_train.trainer"),
    "hiervl_train.monitor": ("hiervl_train.tasks", "hiervl_train.checkpoint", "hiervl_train.trainer"),
    "hiervl_train.trainer": ("hiervl_train.tasks",),
}
# What only these may import: modules and sub-packages that nothing else should come to depend on.
ONLY_IMPORTED_BY: dict[str, set[str]] = {
    "shards.verify": set(),
    "shards.inspect": set(),
    "shards.browse": set(),
    "shards.export": set(),
    "preprocessing.demo": {"preprocessing.build_shards", "preprocessing.config"},
}
MUST_NOT_USE = {
    "shards": {"dask", "distributed"},
    "preprocessing": {"torch", "torchvision", "timm", "transformers"},
    "configs": {"torch", "dask"},
}
SHARED = "hiervl_train.relevancy"
MODULES_PER_FOLDER = 22


@cache
def modules() -> dict[str, structure.Module]:
    """Return the modules of the packages in the working tree."""
    sources = structure.read_sources(REPOSITORY)
    return structure.parse({path: text for path, text in sources.items() if path.split("/")[0] in PACKAGES})


def is_below(module: str, package: str) -> bool:
    """Return whether a dotted name is a package or inside it."""
    return module == package or module.startswith(f"{package}.")


def crossing(package: str) -> Iterator[tuple[str, str]]:
    """Yield (module, imported module) for each import that leaves a package or sub-package."""
    for name, targets in structure.import_graph(modules()).items():
        if is_below(name, package):
            yield from ((name, target) for target in sorted(targets) if not is_below(target, package))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_the_packages_below_it(package: str) -> None:
    wrong = [
        f"{name} imports {target}"
        for name, target in crossing(package)
        if target.split(".")[0] not in MAY_IMPORT[package] and target not in EXCEPTIONS.get(modules()[name].path, ())
    ]
    assert not wrong


@pytest.mark.parametrize("package", MUST_NOT_USE)
def test_a_package_does_not_use_libraries_it_must_not_need(package: str) -> None:
    wrong = [
        f"{module.path} imports {imported}"
        for module in modules().values()
        if is_below(module.name, package)
        for imported in sorted(module.imports)
        if imported.split(".")[0] in MUST_NOT_USE[package]
    ]
    assert not wrong


@pytest.mark.parametrize("package", MAY_IMPORT_OF_ITS_PACKAGE)
def test_a_sub_package_depends_on_little_of_its_package(package: str) -> None:
    wrong = [
        f"{name} imports {target}"
        for name, target in crossing(package)
        if target.split(".")[0] == package.split(".")[0]
        and not any(is_below(target, allowed) for allowed in MAY_IMPORT_OF_ITS_PACKAGE[package])
    ]
    assert not wrong


@pytest.mark.parametrize("package", MUST_NOT_IMPORT)
def test_a_sub_package_stays_independent(package: str) -> None:
    wrong = [
        f"{name} imports {target}"
        for name, target in crossing(package)
        if any(is_below(target, forbidden) for forbidden in MUST_NOT_IMPORT[package]) and target != SHARED
    ]
    assert not wrong


@pytest.mark.parametrize("package", ONLY_IMPORTED_BY)
def test_nothing_else_depends_on_a_command_or_the_demo(package: str) -> None:
    users = {
        name
        for name, targets in structure.import_graph(modules()).items()
        if not is_below(name, package) and any(is_below(target, package) for target in targets)
    }
    assert users <= ONLY_IMPORTED_BY[package]


@pytest.mark.parametrize("path", LAZY)
def test_training_imports_evaluation_once_and_lazily(path: str) -> None:
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lazy = [node for function in functions for node in ast.walk(function) if _imports_eval(node)]
    assert len(lazy) == 1
    assert len([node for node in ast.walk(tree) if _imports_eval(node)]) == 1


def _imports_eval(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(is_below(alias.name, "eval") for alias in node.names)
    return isinstance(node, ast.ImportFrom) and is_below(node.module or "", "eval")


def test_there_is_no_import_cycle() -> None:
    found = structure.cycles(structure.import_graph(modules()))
    assert not found


def test_no_folder_is_crowded() -> None:
    sizes = structure.folder_sizes(modules().values())
    assert not {folder: count for folder, count in sizes.items() if count > MODULES_PER_FOLDER}


def test_modules_and_functions_stay_small() -> None:
    large = {module.path: module.lines for module in modules().values() if module.lines >= 450}
    long = {
        f"{module.path}:{name}": lines
        for module in modules().values()
        for name, lines in module.functions.items()
        if lines >= 90
    }
    assert not large | long


def test_no_module_shadows_the_standard_library() -> None:
    """A script run by path has its folder first on the module path; namespace packages do not take precedence."""
    shadowing = [
        module.path
        for module in modules().values()
        if module.name.rpartition(".")[2] in sys.stdlib_module_names and not module.name.endswith("__main__")
    ]
    assert not shadowing


@pytest.mark.parametrize("script", ["shards/keys.py", "shards/inspect/tables.py", "eval/results.py"])
def test_a_module_that_is_run_by_path_finds_the_standard_library(script: str) -> None:
    done = subprocess.run([sys.executable, script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = REPOSITORY / Path(script).parts[0]
    code = "import inspect, html, statistics, sys; print(inspect.__file__, html.__file__, statistics.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert str(REPOSITORY / "shards") not in found and "None" not in found


@pytest.mark.parametrize("package", ["shards", "preprocessing", "configs"])
def test_a_processing_node_needs_no_torch(package: str) -> None:
    entries = {
        "shards": "shards.verify.run, shards.inspect.tables, shards.index",
        "preprocessing": "preprocessing.build_shards",
        "configs": "configs.loading, configs.cli",
    }
    code = f"import sys, {entries[package]}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


@pytest.mark.parametrize("package", ["configs", "shards", "preprocessing", "hiervl_train", "eval"])
def test_a_package_is_marked_as_typed(package: str) -> None:
    assert (REPOSITORY / package / "py.typed").is_file()


def test_every_module_says_what_it_is_for() -> None:
    parsed = structure.parse(structure.read_sources(REPOSITORY)).values()
    silent = [module.path for module in parsed if "(module)" in module.undocumented]
    assert not silent


def test_nothing_is_run_through_a_shell_or_as_text() -> None:
    found = []
    for module in modules().values():
        for node in ast.walk(ast.parse((REPOSITORY / module.path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.append(f"{module.path}:{node.lineno}")
            if isinstance(node, ast.keyword) and node.arg == "shell":
                found.append(f"{module.path}:{node.value.lineno}")
    assert not found
