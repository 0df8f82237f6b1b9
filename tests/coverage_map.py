"""Which requirement rows are proven: collects ``@pytest.mark.req`` marks and lines them up with the inventories.

``./run coverage-map`` prints a table per area; ``--write`` puts it into docs/coverage.md. The inventories are looked
for beside the repository (``../shared/requirements``) or where ``--inventories`` says.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import defaultdict
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def marks() -> dict[str, list[str]]:
    """Requirement id -> tests that carry it."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("mark.req"):
                    for argument in decorator.args:
                        if isinstance(argument, ast.Constant):
                            found[str(argument.value)].append(f"{path.relative_to(ROOT)}::{node.name}")
    return found


def rows(directory: Path) -> list[str]:
    """Every row id of the three inventories, as ``A/ID-22``."""
    out = []
    for letter in "ABC":
        path = directory / f"inventory-{letter}.md"
        if path.exists():
            for match in re.finditer(r"^\|\s*\**([A-Z][A-Z0-9]*-\d+[a-z]?)\**\s*\|", path.read_text(), re.M):
                out.append(f"{letter}/{match[1]}")
    return out


def judged() -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Rows replaced by something else (``by`` what, with which ``proof``) and rows that are open, with the reason."""
    said = yaml.safe_load((ROOT / "tests" / "rows.yaml").read_text())
    for row, why in said["replaced"].items():
        if not (ROOT / why["proof"]).exists():
            raise SystemExit(f"tests/rows.yaml: {row}: there is no {why['proof']}")
    return said["replaced"], said["open"]


def table(known: list[str], proven: dict[str, list[str]]) -> str:
    """Counts per area and the rows."""
    replaced, open_ = judged()
    replaced = {row: why for row, why in replaced.items() if row not in proven}
    areas: dict[str, list[str]] = defaultdict(list)
    for row in known:
        areas[row.rpartition("-")[0]].append(row)
    lines = ["| area | rows | proven | replaced | open |", "|---|---|---|---|---|"]
    for area, ids in sorted(areas.items()):
        done = sum(1 for i in ids if i in proven)
        better = sum(1 for i in ids if i in replaced)
        lines.append(f"| {area} | {len(ids)} | {done} | {better} | {len(ids) - done - better} |")
    lines += ["", "| row | test |", "|---|---|"]
    lines += [f"| {row} | {'<br>'.join(tests)} |" for row, tests in sorted(proven.items())]
    lines += ["", "| row | replaced by | proof |", "|---|---|---|"]
    lines += [f"| {row} | {why['by']} | {why['proof']} |" for row, why in sorted(replaced.items())]
    lines += ["", "| row | open because |", "|---|---|"]
    lines += [f"| {row} | {why} |" for row, why in sorted(open_.items()) if row not in proven]
    unknown = sorted(set(proven) - set(known)) if known else []
    if unknown:
        lines += ["", f"Marks that name no row: {', '.join(unknown)}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print or write the map."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inventories", type=Path, default=ROOT.parent / "shared" / "requirements")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    text = table(rows(args.inventories), marks())
    if args.write:
        intro = "# Requirements and their proofs\n\nWritten by `./run coverage-map --write`.\n\n"
        (ROOT / "docs" / "coverage.md").write_text(intro + text)
    print(text)


if __name__ == "__main__":
    main()
