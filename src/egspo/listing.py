"""Lines of ``egspo list``."""

from collections.abc import Callable, Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from egspo import compose, registry
from egspo.config import RLRun, SFTRun

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
    from egspo.models.family import families
    from egspo.models.source import shipped_models
    from egspo.settings import FILE, shipped_settings

    for name, shape in tiny.PRESETS.items():
        yield f"init: {name}", f"fresh LLaDA-type model, width {shape['d_model']}, {shape['n_layers']} layers"
    for name in shipped_models():
        yield f"tiny:{name}", str(shipped_settings(name).get("about", {}).get("summary", f"see its {FILE}"))
    for name, family in families().items():
        kinds = ", ".join(family.model_types) if family.cacheable else f"{len(family.model_types)} of them"
        targets = ", ".join(family.lora_targets)
        about = f"{family.description}; model type {kinds}; LoRA on {targets} ({family.source})"
        yield f"family {name}", f"folder or hub name: {about}"


def recipes() -> Lines:
    for name, path in compose.recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        yield name, first.lstrip("# ") if first.startswith("#") else ""


def settings() -> Lines:
    """Every key of a configuration with its type, default and meaning."""
    fields = SFTRun.model_fields | RLRun.model_fields
    for key, info in fields.items():
        folder = f"{key}s"
        if folder in registry.KINDS:
            for name in registry.names(folder):
                yield from _keys(f"{key}[{name}].", registry.load(folder, name).Config)
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _keys(f"{key}.", info.annotation)
        else:
            yield key, _describe(info)


def _keys(prefix: str, section: type[BaseModel]) -> Lines:
    for key, info in section.model_fields.items():
        yield prefix + key, _describe(info)


def _describe(info: FieldInfo) -> str:
    kind = getattr(info.annotation, "__name__", None) or str(info.annotation)
    kind = str(info.annotation).replace("typing.", "") if "[" in str(info.annotation) else kind
    default = "required" if info.is_required() else f"default {info.get_default(call_default_factory=True)!r}"
    return "; ".join(part for part in (kind, default, info.description) if part)


LISTINGS: dict[str, Callable[[], Lines]] = {
    "objectives": objectives,
    "tasks": tasks,
    "models": models,
    "recipes": recipes,
    "settings": settings,
}
