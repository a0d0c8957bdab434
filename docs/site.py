"""`make docs`: the pages of docs/ and the docstrings of lapa become a site, build/docs/site/index.html (Zensical).

The pages are read on GitHub too, so their links lead to files of the repository. What is not a page of the site is
led to the reference of that module, or is no link there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
WORK = ROOT / "build" / "docs"
ALSO = {"README.md": "index.md", "client/README.md": "client.md", "CONTRIBUTING.md": "contributing.md"}
COPIED = ("*.md", "*.png", "*.jpg", "*.json", "*.txt")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
CSS = ".md-grid { max-width: 72rem; } .md-typeset table:not([class]) { display: block; overflow-x: auto; }\n"


def main() -> int:
    """Write the pages to build/docs/pages and build the site. Returns 1 where a link leads nowhere."""
    pages = WORK / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    sources = {page.relative_to(DOCS).as_posix(): page for kind in COPIED for page in DOCS.rglob(kind)}
    sources |= {name: ROOT / place for place, name in ALSO.items() if name != "index.md"}
    api = references()
    for name, source in sources.items():
        target = pages / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".md":
            target.write_text(relinked(source.read_text(), source, name, api))
        else:
            shutil.copyfile(source, target)
    (pages / "api").mkdir()
    for name, text in api.items():
        (pages / "api" / f"{name}.md").write_text(text)
    (pages / "site.css").write_text(CSS)
    listed = ", ".join(f'{{ "{name}" = "api/{name}.md" }}' for name in api)
    config = (DOCS / "zensical.toml").read_text()
    more = "".join(f', "{name}"' for name in sorted(sources) if name.endswith(".md") and f'"{name}"' not in config)
    config = config.replace('{ "API" = "api" },', f'{{ "API" = [{listed}] }}{more}')
    (WORK / "zensical.toml").write_text(config)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=WORK, capture_output=True, text=True, check=False)
    if done.returncode:
        print(re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr))
        return 1
    print(f"The site is in {WORK / 'site'}. To read it: {sys.executable} -m http.server -d {WORK / 'site'}")
    return 0


def references() -> dict[str, str]:
    """A page for each part of lapa, {name: text}: mkdocstrings fills in the docstrings."""
    found = {}
    for part in sorted((ROOT / "lapa").iterdir()):
        if part.name.startswith("_") or (part.suffix != ".py" and not (part / "__init__.py").exists()):
            continue
        modules = [part] if part.suffix else sorted(part.rglob("*.py"))
        lines = [f"# lapa.{part.stem}"]
        for module in modules:
            inner = module.relative_to(ROOT).with_suffix("").parts
            name = ".".join(inner[:-1] if inner[-1] == "__init__" else inner)
            lines += ["", *([f"## {name}", ""] if name != f"lapa.{part.stem}" else []), f"::: {name}"]
        found[part.stem] = "\n".join(lines) + "\n"
    return found


def relinked(text: str, source: Path, name: str, api: dict[str, str]) -> str:
    """The text of a page with links that lead somewhere on the site; `name`: of the page there."""

    def one(found: re.Match[str]) -> str:
        picture, words, target, place = found[1], found[2], found[3], found[4] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = (source.parent / target).resolve()
        within = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        if path.is_relative_to(DOCS) and path.suffix in (".md", ".png", ".jpg", ".json", ".txt"):
            there = path.relative_to(DOCS).as_posix()
        elif within in ALSO:
            there = ALSO[within]
        elif within.startswith("lapa/") and within.split("/")[1].removesuffix(".py") in api:
            there = f"api/{within.split('/')[1].removesuffix('.py')}.md"
        else:
            return words
        back = os.path.relpath(there, Path(name).parent)
        return f"{picture}[{words}]({back}{place})"

    return LINK.sub(one, text)


if __name__ == "__main__":
    sys.exit(main())
