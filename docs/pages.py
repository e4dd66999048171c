"""MkDocs hook: pages that lie outside docs/, and links as they are written for the repository.

Markdown files link to each other by paths in the repository, which hosts of repositories follow. On
the site a link to a page leads to that page, and a link to any other file leads to the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Text in code spans and fences is matched first, so that links in it stay as they are.
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
    if page.parent is None:  # a tab of its own: the list beside it would hold its name alone
        page.meta["hide"] = ["navigation"]
    pages = {source: name for name, source in config.extra["pages"].items()}
    here = config.extra["pages"].get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewritten(match: re.Match[str]) -> str:
        if match["to"] is None:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match["to"]))
        if not (_root(config) / target).exists():
            raise PluginError(f"{here}: link to '{match['to']}': there is no such file")
        name = pages.get(target) or pages.get(f"{target}/README.md") or target.removeprefix("docs/")
        if files.get_file_from_path(name) is None:
            return f"{config.repo_url}/blob/main/{target}{match['anchor'] or ''}"
        start = posixpath.dirname(page.file.src_uri)
        return posixpath.relpath(name, start or ".") + (match["anchor"] or "")

    return _LINK.sub(rewritten, markdown)


def _root(config: MkDocsConfig) -> Path:
    return Path(config.docs_dir).parent
