"""The documentation site: its navigation, the pages that tools/docs_pages.py writes, docstrings of all public names."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import itertools
import json
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("docs_pages", ROOT / "tools" / "docs_pages.py")
docs_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(docs_pages)
PUBLIC = [
    (package, name)
    for package in docs_pages.PACKAGES
    for name in importlib.import_module(package).__all__
    if not name.startswith("__")
]


def rewritten(text: str, source: str = "docs/a.md", repository: str | None = None) -> str:
    return docs_pages.rewrite_links(text, source, repository, is_folder=lambda path: "." not in path)


def test_links_to_pages_stay_links():
    assert rewritten("[b](b.md#part) ![c](c.png)") == "[b](b.md#part) ![c](c.png)"
    assert rewritten("[x](https://a.org/b) [y](#part)") == "[x](https://a.org/b) [y](#part)"
    assert rewritten("[a](docs/a.md) ![c](docs/c.png)", "README.md") == "[a](a.md) ![c](c.png)"
    assert rewritten("[start](../README.md)") == "[start](index.md)"
    assert rewritten("[b](../b.md) [n](n.ipynb)", "docs/notebooks/m.ipynb") == "[b](../b.md) [n](n.md)"


def test_links_out_of_the_pages_lead_to_the_repository_or_are_text():
    text = "[`x`](../wm_gym/x.py) and [a\nfolder](../wm_gym)"
    assert rewritten(text) == "`x` and a\nfolder"
    assert rewritten(text, repository="https://host/o/n/blob/main/") == (
        "[`x`](https://host/o/n/blob/main/wm_gym/x.py) and [a\nfolder](https://host/o/n/blob/main/wm_gym)"
    )


def test_lists_and_tables_are_told_to_python_markdown():
    markdown = pytest.importorskip("markdown")
    text = "Said:\n- one\n  on\n\n  | a | b |\n  | - | - |\n  | 1 | 2 |\n- two\n  1. three\n\n  more\n- four\n- five"
    page = markdown.markdown(docs_pages.python_markdown(text), extensions=["tables"])
    assert page.count("<li>") == 5
    assert page.count("<table>") == 1
    assert page.index("<ul>") < page.index("<table>") < page.index("two") < page.index("<ol>") < page.index("</ul>")


def test_the_dream_stands_below_the_front_page_s_title_and_loads_when_opened():
    page = docs_pages.with_dream("# Name\nWhat it is.\n", 11.52)
    title, dream, text = page.split("\n\n")
    assert (title, text) == ("# Name", "What it is.\n")
    assert "(12 MB to load)" in dream
    assert '<iframe src="drive/index.html" loading="lazy"' in dream


def test_code_in_a_list_moves_with_it():
    text = "- a\n\n  ```sh\n    if\n  - no item\n  ```\n"
    assert docs_pages.python_markdown(text) == "- a\n\n    ```sh\n      if\n    - no item\n    ```\n"


def test_only_text_between_fences_is_changed():
    text = "a\n```python no-test\nx = 'a'\n```\n\n~~~\na\n```\n~~~\na\n"
    assert docs_pages.python_markdown(text, str.upper) == "A\n```python\nx = 'a'\n```\n\n~~~\na\n```\n~~~\nA\n"


def test_roles_become_links_to_public_names_alone():
    pages = {"Driver": "wm_gym.agents.Driver"}
    text = "A :class:`~wm_gym.agents.bundles.driver.Driver`, :func:`other`, :meth:`~a.b.load`."
    assert docs_pages.link_roles(text, pages) == "A [`Driver`][wm_gym.agents.Driver], `other`, `load`."


def test_a_notebook_becomes_a_page():
    cells = [{"cell_type": "markdown", "source": ["# T\n", "words"]}, {"cell_type": "code", "source": ["x = 1\n"]}]
    page = docs_pages.notebook_page({"cells": cells}, "t.ipynb")
    assert page.startswith("# T\nwords\n\n")
    assert "../t.ipynb" in page
    assert page.endswith("```python\nx = 1\n```\n")


def pages_of(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(entry)]


def test_every_page_has_its_place_in_the_navigation():
    nav = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    sources = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "notebooks").glob("*.ipynb")]
    pages = [docs_pages.page_of(source.relative_to(ROOT).as_posix()) for source in sources]
    api = [f"api/{package.rpartition('.')[2]}.md" for package in docs_pages.PACKAGES]
    assert sorted(nav) == sorted([*pages, *api])


def test_links_of_the_notebooks_lead_to_files():
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            for _, _, target in docs_pages._LINK.findall(
                "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
            ):
                assert target.startswith("http") or (notebook.parent / target).exists(), target


def text_below(name: str, module: Path) -> str | None:
    """The docstring of a value, which stands below it."""
    body = ast.parse(module.read_text(encoding="utf-8")).body
    for node, following in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            return following.value.value
    return None


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[f"{package}.{name}" for package, name in PUBLIC])
def test_every_public_name_says_what_it_is(package, name):
    module = importlib.import_module(package)
    value = getattr(module, name)
    if inspect.isclass(value):
        assert vars(value)["__doc__"]
        for member, definition in vars(value).items():
            function = (
                definition.fget
                if isinstance(definition, property)
                else inspect.unwrap(getattr(definition, "__func__", definition))
            )
            if not member.startswith("_") and inspect.isroutine(function):
                assert function.__doc__, member
        if dataclasses.is_dataclass(value):
            fields = [field.name for field in dataclasses.fields(value)]
        else:
            fields = [field for field, info in getattr(value, "model_fields", {}).items() if not info.description]
        assert [field for field in fields if f"        {field}: " not in value.__doc__] == []
    elif inspect.isroutine(value):
        assert value.__doc__
    else:
        assert text_below(name, Path(importlib.import_module(module._MODULES[name]).__file__))
