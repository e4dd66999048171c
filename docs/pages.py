"""MkDocs hook that adds pages outside docs/ and rewrites links between files of the repository.

Markdown files link to each other by paths in the repository. On the site, a link to a page leads to
that page, and a link to any other file leads to the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Code spans and fences are matched first, so that links in them are not rewritten.
_LINK = re.compile(
    r"^```.*?^```|`[^`\n]*`(?!\])|(?<=\]\()(?P<to>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))",
    re.DOTALL | re.MULTILINE,
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages of `extra.pages`."""
    for page, source in config.extra["pages"].items():
        files.append(File.generated(config, page, abs_src_path=str(_root(config) / source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page.

    Raises:
        PluginError: A link leads to a file that does not exist.
    """
    if page.parent is None:  # a tab with a single page: hide the navigation list
        page.meta["hide"] = ["navigation"]
    pages = {source: name for name, source in config.extra["pages"].items()}
    here = config.extra["pages"].get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewrite(match: re.Match[str]) -> str:
        if match["to"] is None:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match["to"]))
        if not (_root(config) / target).exists():
            raise PluginError(f"{here}: link to '{match['to']}': no such file")
        name = pages.get(target) or pages.get(f"{target}/README.md") or target.removeprefix("docs/")
        if files.get_file_from_path(name) is None:
            return f"{config.repo_url}/blob/main/{target}{match['anchor'] or ''}"
        start = posixpath.dirname(page.file.src_uri)
        return posixpath.relpath(name, start or ".") + (match["anchor"] or "")

    return _LINK.sub(rewrite, markdown)


def _root(config: MkDocsConfig) -> Path:
    return Path(config.docs_dir).parent
