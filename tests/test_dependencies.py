"""What the package imports is declared in pyproject.toml, not installed by luck as a dependency of something else."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import jpeft

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
# JAX's plug-ins come with its extras; which build of torch is right depends on the machine.
UNDECLARED = {"jax_plugins", "torch"}


def imported() -> set[str]:
    """The top-level modules that the package imports, beside its own and those of Python."""
    found: set[str] = set()
    for file in Path(jpeft.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"jpeft"}


def declared() -> set[str]:
    """The names of all requirements, those of extras too."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    requirements = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def test_every_package_that_is_imported_is_declared():
    of = packages_distributions()
    names = {module: {normal(name) for name in of.get(module, [module])} for module in imported() - UNDECLARED}
    assert {module for module, of_module in names.items() if not of_module & declared()} == set()
