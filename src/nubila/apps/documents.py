"""Write the generated documents: ``python -m nubila.apps.documents [--check] [DIRECTORY]``.

``docs/reference/<service>.md``, ``docs/policy-sample.yaml`` and ``docs/configuration.md`` say what the declarations
say. ``--check`` writes nothing, names what is stale and ends with status 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nubila.apps import errors, wiring
from nubila.edge import reference
from nubila.services import identity

DOCS = Path(__file__).resolve().parents[3] / "docs"


def documents() -> dict[str, str]:
    """Every generated document: path below docs/ to text."""
    services = wiring.services()
    public = [s for s in services if s.type]
    found = {f"reference/{s.name}.md": reference.page(s) for s in public}
    index = [f"- [{s.name.capitalize()}]({s.name}.md): `{s.type}`, `{s.prefix or '/v3'}`" for s in public]
    found["reference/identity-errors.md"] = errors.page(
        "Identity", reference.GENERATED, errors.errors(Path(identity.__file__).parent)
    )
    index.append("- [Errors of Identity](identity-errors.md)")
    found["reference/README.md"] = "\n".join(["# API reference", "", f"<!-- {reference.GENERATED} -->", "", *index, ""])
    found["policy-sample.yaml"] = reference.policy_sample(public)
    found["configuration.md"] = reference.settings()
    return found


def stale(docs: Path = DOCS) -> list[str]:
    """The documents on disk that are not what the declarations say, and pages of services that are gone."""
    wanted = documents()
    out = [name for name, text in wanted.items() if not _same(docs / name, text)]
    return out + [f"reference/{p.name}" for p in docs.glob("reference/*.md") if f"reference/{p.name}" not in wanted]


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def write(docs: Path = DOCS) -> list[str]:
    """Bring the documents on disk up to date; returns those that changed."""
    wanted, changed = documents(), stale(docs)
    for name in changed:
        path = docs / name
        if name not in wanted:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[name], encoding="utf-8")
    return changed


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m nubila.apps.documents", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say what is stale")
    parser.add_argument("directory", nargs="?", type=Path, default=DOCS)
    args = parser.parse_args()
    changed = stale(args.directory) if args.check else write(args.directory)
    for name in changed:
        print(f"{'stale' if args.check else 'written'}: {args.directory / name}")
    sys.exit(1 if args.check and changed else 0)


if __name__ == "__main__":
    main()
