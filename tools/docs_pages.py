"""Write the pages of the documentation site, for the site generator that reads ``mkdocs.yml``.

The pages are the README, ``docs/*.md`` and the notebooks, written so that a repository host shows them, too, and the
docstrings of the public names. ``make docs`` calls it with the folder of an installed copy of the package and, where it
could be exported, that of the page on which one drives in the dream::

    python tools/docs_pages.py build/docs/package build/docs/drive
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("wm_gym", "wm_gym.envs", "wm_gym.agents", "wm_gym.data_collection")

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r" *(```+|~~~+)")
_LIST_ITEM = re.compile(r" *([-*]|\d+\.) ")
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")


def page_of(source: str) -> str | None:
    """The page that a file of the repository becomes or is copied to, both as paths with ``/``; ``None`` for others."""
    if source == "README.md":
        return "index.md"
    if source.startswith("docs/"):
        return source.removeprefix("docs/").replace(".ipynb", ".md")
    return None


def rewrite_links(text: str, source: str, repository: str | None, *, is_folder: Callable[[str], bool]) -> str:
    """Lead a page's links to the site's pages, or out of them to the repository.

    Args:
        text: Markdown without fenced code.
        source: The file that it stands in, relative to the root.
        repository: What the address of a file begins with; ``None`` leaves the label of a link without the link.
        is_folder: Whether a path, relative to the root, is a folder.
    """

    def replace(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return match[0]
        file = os.path.normpath(PurePosixPath(source).parent / path).replace(os.sep, "/")
        page = None if is_folder(file) else page_of(file)
        if page is not None:
            start = PurePosixPath(page_of(source) or "").parent
            target = os.path.relpath(page, start).replace(os.sep, "/")
            return f"{image}[{label}]({target}{hash_}{anchor})"
        return f"[{label}]({repository}{file}{hash_}{anchor})" if repository else label

    return _LINK.sub(replace, text)


def _lacks_empty_line(line: str, before: str, first: str) -> bool:
    """Whether a list or a table begins without the empty line that Python-Markdown wants.

    Args:
        line: The line.
        before: The line before it.
        first: The first line since the last empty one.
    """
    if not before.strip():
        return False
    if line.lstrip().startswith("|"):
        return not before.lstrip().startswith("|")
    return bool(_LIST_ITEM.match(line)) and not _LIST_ITEM.match(first)


def python_markdown(text: str, change: Callable[[str], str] = str) -> str:
    """Turn GitHub's Markdown into that of Python-Markdown.

    The latter wants four spaces where a list's content has two, and an empty line before a list and before a table.

    Args:
        text: A page.
        change: What is done with the text between blocks of fenced code.
    """

    def parts() -> Iterator[str]:
        fence = shift = before = first = ""
        plain: list[str] = []
        for line in text.splitlines():
            mark = _FENCE.match(line)
            if fence:
                yield f"{shift}{line}"
                if mark and line.strip() == fence:
                    fence = ""
            elif mark:
                if plain:
                    yield change("\n".join(plain))
                plain = []
                fence, shift, first = mark[1], " " * (len(line) - len(line.lstrip())), line
                # Python-Markdown knows no word behind the language.
                yield f"{shift}{line[: mark.end()]}{line[mark.end() :].partition(' ')[0]}"
            else:
                indent = len(line) - len(line.lstrip())
                if _lacks_empty_line(line, before, first):
                    plain.append("")
                    before = ""
                if not before.strip():
                    first = line
                plain.append(" " * indent + line)
            before = line
        if plain:
            yield change("\n".join(plain))

    return "\n".join(parts()) + "\n"


def notebook_page(notebook: Mapping[str, object], name: str) -> str:
    """A notebook as Markdown, with a link to itself."""
    cells = notebook["cells"]
    assert isinstance(cells, list)
    pieces = []
    for cell in cells:
        source = "".join(cell["source"]).strip()
        pieces.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    pieces.insert(1, f'<a href="../{name}" download>This page as a notebook</a>')
    return "\n\n".join(pieces) + "\n"


def public_names(init: str) -> list[str]:
    """What ``__all__`` lists in a module's text."""
    for node in ast.parse(init).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return [name for name in names if not name.startswith("__")]
    raise ValueError("no __all__")


def api_page(package: str, names: list[str]) -> str:
    """The page of a package, which mkdocstrings fills."""
    entries = "\n\n".join(f"::: {package}.{name}" for name in names)
    title = (
        f"::: {package}\n    options:\n      heading_level: 1\n      members: false\n      show_root_full_path: true"
    )
    return f"{title}\n\n{entries}\n"


def link_roles(text: str, pages: Mapping[str, str]) -> str:
    """Turn Sphinx's roles in docstrings into links to public names, and into code where there is no page.

    Args:
        text: A module.
        pages: The full public name of each name.
    """

    def replace(match: re.Match[str]) -> str:
        name = match[2].rpartition(".")[2]
        shown = name if match[1] else match[2]
        return f"[`{shown}`][{pages[name]}]" if name in pages and ":meth:" not in match[0] else f"`{shown}`"

    return _ROLE.sub(replace, text)


def with_dream(front_page: str, megabytes: float) -> str:
    """Put the dream that one drives, ``drive/`` on the site, below a page's title; it loads when it is opened.

    Args:
        front_page: Markdown that begins with its title.
        megabytes: What the browser loads then.
    """
    title, _, rest = front_page.partition("\n")
    frame = '<iframe src="drive/index.html" loading="lazy" title="The dream, driven by hand or by the agent"></iframe>'
    summary = f"<summary>Drive in the dream here: this browser computes it ({megabytes:.0f} MB to load)</summary>"
    return f'{title}\n\n<details class="dream">{summary}{frame}</details>\n\n{rest}'


def main(package_folder: str, dream_folder: str = "") -> None:
    """Write all pages anew, and put links into the docstrings of the installed copy."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    repository = f"{config['repo_url'].rstrip('/')}/{config['edit_uri']}" if "repo_url" in config else None
    out = ROOT / config["docs_dir"]
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs", out)

    def write(source: Path, text: str) -> None:
        name = source.relative_to(ROOT).as_posix()

        def change(part: str) -> str:
            return rewrite_links(part, name, repository, is_folder=lambda path: (ROOT / path).is_dir())

        page = page_of(name)
        assert page is not None
        (out / page).write_text(python_markdown(text, change), encoding="utf-8")

    for source in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        write(source, source.read_text(encoding="utf-8"))
    if dream_folder and Path(dream_folder).is_dir():
        files = [file for file in Path(dream_folder).rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files if not re.search("webgpu|asyncify", file.name)) / 1e6
        front = out / "index.md"
        front.write_text(with_dream(front.read_text(encoding="utf-8"), size), encoding="utf-8")
    for source in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        write(source, notebook_page(json.loads(source.read_text(encoding="utf-8")), source.name))

    (out / "api").mkdir()
    copy = Path(package_folder)
    pages: dict[str, str] = {}
    for package in PACKAGES:
        names = public_names((copy / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
        pages.update({name: f"{package}.{name}" for name in names})
        (out / "api" / f"{package.rpartition('.')[2]}.md").write_text(api_page(package, names), encoding="utf-8")
    for module in (copy / "wm_gym").rglob("*.py"):
        module.write_text(link_roles(module.read_text(encoding="utf-8"), pages), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
