"""Write cellinterp/<room>/__init__.pyi from the room's list of public names, so that editors and type checkers see what
is imported lazily.

    python tools/write_stubs.py
"""
import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def stub(init: Path) -> str:
    "The stub of a room: one import for each module in its `submod_attrs`."
    calls = [node for node in ast.walk(ast.parse(init.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    table = next(k.value for call in calls for k in call.keywords if k.arg == "submod_attrs")
    lines = ["# Written by tools/write_stubs.py from the room's api notebook: do not edit."]
    for module, names in ast.literal_eval(table).items():
        lines += [f"from .{module} import {name} as {name}" for name in names]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for init in sorted((ROOT / "cellinterp").glob("*/__init__.py")):
        if "_notebooks" in init.parts: continue
        target, text = init.with_suffix(".pyi"), stub(init)
        if not target.exists() or target.read_text(encoding="utf-8") != text: target.write_text(text, encoding="utf-8")
