"""The layers of `kinetics_jax`, as data: a room imports rooms of lower lines only, and its own modules.

A room is a folder of the package, or a module at its root. test_imports.py holds the imports against this,
docs/architecture.md draws it.
"""

LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("report",),
    ("analysis", "devices"),
    ("runs",),
    ("language_model", "tasks", "costs"),
    ("engine", "checkpoints"),
    ("attention",),
    ("models",),
    ("sharding", "attention.policies", "stats"),
    ("config", "settings", "tokenizer", "compile_cache"),
    ("config_fields", "padding", "hub", "assets"),
    ("files",),
    ("errors",),
)

# Rooms that use less than the lines below them: all that they import of the package.
STANDALONE: dict[str, set[str]] = {
    "attention.policies": {"errors", "settings"},
    "costs": {"attention.policies", "config", "config_fields", "errors", "files", "padding", "stats"},
    "stats": {"errors"},
    "tasks": {"assets", "errors", "files", "hub"},
}

# Modules of other rooms that a room may import, where it may not import the whole room.
DOORS: dict[tuple[str, str], set[str]] = {
    ("analysis", "runs"): {f"kinetics_jax.runs.{name}" for name in ("folder", "cut_grades", "records", "truncation")},
    ("report", "runs"): {"kinetics_jax.runs.folder", "kinetics_jax.runs.whole_run"},
}

# Arrows up or in a circle that stand: (importing module, imported module) → why. Empty is what it should be.
EXCEPTIONS: dict[tuple[str, str], str] = {}

# What loads without jax: a room with all its modules, or one module.
WITHOUT_JAX: tuple[str, ...] = (
    "config",
    "config_fields",
    "settings",
    "padding",
    "files",
    "hub",
    "attention.policies",
    "costs",
    "stats",
    "analysis",
    "tasks",
    "runs.folder",
    "runs.cut_grades",
    "sharding.axes",
    "cli.main",
)
