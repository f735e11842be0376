"""The house rules of CONTRIBUTING.md that a machine can check: who imports whom, how long, and never what."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import egspo

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "egspo"

# A module imports only from what stands on its left, in its own layer too. A folder stands for its files,
# which may import each other.
LAYERS = (
    ("types", "external", "registry", "launch"),
    (
        "ops",
        "answers",
        "records",
        "splits",
        "hub",
        "sandbox",
        "workers",
        "quantities",
        "rationals",
        "latex",
        "equality",
        "symbolic",
        "paper",
        "views",
    ),
    ("objectives", "tasks"),
    ("compose", "sections", "config"),
    ("models", "policy"),
    ("likelihood", "proxies", "denoising", "rollout", "rewards"),
    ("checkpoint", "tracking", "data", "metrics", "optim", "settings", "sharing", "replay"),
    ("answerlog", "evaluation", "elbo", "harness", "grading", "trace", "card", "publish", "seen"),
    ("sft", "trainer"),
    ("compare",),
    ("report",),
    (
        "madeup",
        "footprint",
        "capacity",
        "passes",
        "memory",
        "fit",
        "doctor",
        "dryrun",
        "listing",
        "console",
        "comparison",
        "cli",
    ),
    ("__init__", "__main__"),
)
ORDER = [name for layer in LAYERS for name in layer]
TREES = {
    str(path.relative_to(SOURCE)): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
}
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAY_PRINT = ("cli.py", "tracking.py")


def top(file: str) -> str:
    """The name that a file has in ``LAYERS``: its folder's, or its own."""
    return Path(file).parts[0].removesuffix(".py")


def imports(file: str) -> list[str]:
    """Dotted names of all that a file imports, wherever in it the import stands."""
    found = []
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            # ``from egspo import policy`` names a module, ``from egspo.types import Views`` what is in one.
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(place, name of what is called, call) of all calls of the package."""
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{file}:{node.lineno}", ast.unparse(node.func), node


def test_every_module_stands_in_exactly_one_layer():
    assert sorted(ORDER) == sorted({top(file) for file in TREES})


def test_the_layers_are_those_of_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    chain = re.search(r"^(`types.*?); `report`", text, re.MULTILINE | re.DOTALL)
    assert chain is not None
    written = [tuple(layer.split(", ")) for layer in re.findall(r"`([^`]+)`", chain[1])]
    # The report and the two doors of the package are told of in words.
    assert written == [layer for layer in LAYERS if layer not in (("report",), ("__init__", "__main__"))]


def test_imports_come_from_the_left():
    wrong = []
    for file in TREES:
        for name in imports(file):
            package, *rest = name.split(".")
            if package == "egspo" and rest[0] != top(file) and ORDER.index(rest[0]) > ORDER.index(top(file)):
                wrong.append(f"{file} imports {name}")
    assert wrong == []


def test_maths_and_records_import_torch_alone():
    allowed = {"torch", "jaxtyping", *sys.stdlib_module_names}
    wrong = [
        f"{file} imports {name}"
        for file in TREES
        for name in imports(file)
        if top(file) in ("ops", "types")
        and name.split(".")[0] not in allowed
        and not name.startswith(("egspo.types.", "egspo.ops."))
    ]
    assert wrong == []


def test_the_guest_imports_the_standard_library_and_itself():
    """It is sent into processes that have no package of this project."""
    wrong = [
        f"{file} imports {name}"
        for file in TREES
        for name in imports(file)
        if file.startswith("sandbox/guest/")
        and name.split(".")[0] not in {*sys.stdlib_module_names, "numpy", "pytest"}
        and not name.startswith("egspo.sandbox.guest")
    ]
    assert wrong == []


def test_the_report_imports_nothing_of_the_package():
    ours = [name for file in TREES if top(file) == "report" for name in imports(file) if name[:6] == "egspo."]
    assert [name for name in ours if not name.startswith("egspo.report.")] == []


def test_a_file_is_read_in_one_sitting():
    lengths = {file: len((SOURCE / file).read_text(encoding="utf-8").splitlines()) for file in TREES}
    assert {file: n for file, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_a_function_fits_on_a_screen():
    lengths = {
        f"{file}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {place: n for place, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}


def test_only_the_command_line_and_the_screen_print():
    assert [place for place, name, _ in calls() if name == "print" and not place.startswith(MAY_PRINT)] == []


def test_no_text_is_run_as_code():
    """The sandbox's guest alone does, in processes that are locked up before."""
    runs = [place for place, name, _ in calls() if name in ("eval", "exec", "compile", "__import__")]
    assert [place for place in runs if not place.startswith("sandbox/guest/")] == []
    assert {place.partition(":")[0] for place in runs} == {
        "sandbox/guest/program.py",
        "sandbox/guest/tester.py",
    }


def test_remote_code_is_never_trusted():
    flags = [
        (place, ast.unparse(keyword.value))
        for place, _, call in calls()
        for keyword in call.keywords
        if keyword.arg == "trust_remote_code"
    ]
    assert [(place, value) for place, value in flags if value != "False"] == []
    # transformers runs no remote code unless told to; said where its own Auto classes load from outside.
    assert len(flags) == 3


def test_public_names_are_no_modules():
    """Importing a module sets its name in the package, over a function of the same name."""
    modules = {top(file) for file in TREES}
    assert modules.isdisjoint(egspo.__all__)
    for name in egspo.__all__:
        assert getattr(egspo, name) is not None


def test_the_package_itself_loads_nothing_heavy():
    """``egspo --help`` shall not wait for torch."""
    code = "import sys, egspo.cli; print(sorted({'torch', 'transformers', 'accelerate'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_training_loads_peft_for_adapters_only():
    """It takes a second or two, at every start."""
    code = "import sys, egspo.trainer, egspo.memory; print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_nobody_seeds_globally():
    """``torch.manual_seed`` only between the leaves of ``torch.random.fork_rng``."""
    wrong = {place for place, name, _ in calls() if name.endswith("manual_seed")}
    assert wrong
    for file, tree in TREES.items():
        for block in ast.walk(tree):
            if isinstance(block, ast.With) and any("fork_rng" in ast.unparse(item) for item in block.items):
                wrong -= {f"{file}:{line}" for line in range(block.lineno, block.end_lineno + 1)}
    assert wrong == set()
