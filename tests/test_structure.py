"""The plan of the house, as ARCHITECTURE.md draws it, held against the imports: layers, no circles, sizes."""

import ast
import re
import statistics
from pathlib import Path

import pytest

import fedser

PACKAGE = Path(fedser.__file__).parent
ARCHITECTURE = Path(__file__).parent.parent / "ARCHITECTURE.md"
FILES = {
    ".".join(["fedser", *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}


def imports_of(module: str, lazy: bool) -> set[str]:
    """fedser's modules that a module imports: at its top only, or inside of functions too."""
    tree = ast.parse(FILES[module].read_text())
    nodes = ast.walk(tree) if lazy else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedser":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in FILES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in FILES}
    return found - {module, "fedser"}


def place(module: str) -> str:
    """A folder of the package, or a file at its root."""
    return ([*module.split("."), "__init__"])[1]


def layers() -> dict[str, int]:
    """Each place's layer, from the numbered list under 'Layers' in ARCHITECTURE.md, the lowest first."""
    section = ARCHITECTURE.read_text().partition("## Layers")[2].partition("\n## ")[0]
    rows = re.findall(r"^(\d+)\. (.*)$", section, re.MULTILINE)
    return {name: int(number) for number, text in rows for name in re.findall(r"`(\w+)`", text.partition("—")[0])}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of the graph, or nothing."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        found = next((found for other in sorted(graph.get(node, ())) if (found := visit(other))), [])
        path.pop()
        done.add(node)
        return found

    return next((found for node in sorted(graph) if (found := visit(node))), [])


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_modules_do_not_import_in_circles():
    assert circle({module: imports_of(module, lazy=True) for module in FILES}) == []


def test_places_do_not_import_in_circles():
    graph: dict[str, set[str]] = {}
    for module in FILES:
        others = {place(other) for other in imports_of(module, lazy=True)} - {place(module)}
        graph.setdefault(place(module), set()).update(others)
    assert circle(graph) == []


@pytest.mark.skipif(not ARCHITECTURE.exists(), reason="installed without the checkout")
def test_imports_go_down_the_layers_that_are_written_down():
    level = layers()
    assert {place(module) for module in FILES} - {"__init__"} == set(level)
    upwards = {
        (module, other)
        for module in FILES
        if place(module) != "__init__"
        for other in imports_of(module, lazy=True)
        if place(other) != "__init__" and level[place(other)] > level[place(module)]
    }
    assert len(upwards) <= 3, sorted(upwards)


def functions():
    for module, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}.{node.name}", node.end_lineno - node.lineno + 1


def test_sizes():
    assert len(list(PACKAGE.glob("*.py"))) <= 10
    # Where it stands with robust training, backbones, waveforms, privacy, the field, stacked clients, kernels, shared memory, an early start.
    assert sum(len(file.read_text().splitlines()) for file in FILES.values()) <= 26_200
    sizes = dict(functions())
    assert statistics.median(sizes.values()) <= 7
    long = {name: size for name, size in sizes.items() if size > 45}
    assert not long


def test_settings_are_looked_up_by_name_and_not_by_string():
    """No `settings["…"]` outside of the config package: typed settings have attributes."""
    for module, file in FILES.items():
        if place(module) not in ("config", "report"):
            assert not re.findall(r"\bsettings\[[\"']", file.read_text()), module
