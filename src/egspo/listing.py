"""Lines of ``egspo list``."""

from collections.abc import Callable, Iterator

from egspo import registry
from egspo.compose import recipe_folder

Lines = Iterator[tuple[str, str]]


def objectives() -> Lines:
    for name in registry.names("objectives"):
        kind = registry.load("objectives", name)
        yield name, f"{kind.description} ({kind.paper})"


def tasks() -> Lines:
    for name in registry.names("tasks"):
        kind = registry.load("tasks", name)
        yield name, f"{kind.description} ({kind.source})"


def models() -> Lines:
    from egspo.models import tiny
    from egspo.policy import shipped_models
    from egspo.settings import FILE, shipped_settings

    for name, shape in tiny.PRESETS.items():
        yield f"init: {name}", f"fresh LLaDA-type model, width {shape['d_model']}, {shape['n_layers']} layers"
    for name in shipped_models():
        yield f"tiny:{name}", str(shipped_settings(name).get("about", {}).get("summary", f"see its {FILE}"))
    yield "llada", "checkpoints of model type llada: folder or hub name (LLaDA, arXiv 2502.09992)"


def recipes() -> Lines:
    for path in sorted(recipe_folder().rglob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        yield str(path.relative_to(recipe_folder()).with_suffix("")), first.lstrip("# ") if first.startswith("#") else ""


LISTINGS: dict[str, Callable[[], Lines]] = {
    "objectives": objectives,
    "tasks": tasks,
    "models": models,
    "recipes": recipes,
}
