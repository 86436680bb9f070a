"""Add the pages of the documentation site that are not in `docs/`: an mkdocs hook, enabled in `mkdocs.yml`.

The README becomes the home page, other Markdown files of the repository (changelog, contributing, benchmarks) are
included, and every package of jpeft gets a page in the API reference. Links between pages are rewritten.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Files of the repository and their names on the site.
BESIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "docs/results/mini_paper/README.md": "results/mini_paper/about.md",  # README.md would collide with its index.html
    "docs/results/smollm2/README.md": "results/smollm2/about.md",  # likewise
}
_LINK = re.compile(r"\[([^\]\[]*)\]\(([^)#\s]+)([^)]*)\)")


def reference_pages() -> dict[str, str]:
    """The API reference as `{page: Markdown}`: one page for the top-level modules and one for each package."""
    modules: dict[str, list[str]] = {}
    for path in sorted((ROOT / "jpeft").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__main__" or len(parts) > 2 and parts[1] == "configs":
            continue
        package = parts[1] if len(parts) > 2 else "jpeft"
        modules.setdefault(package, []).append(".".join(part for part in parts if part != "__init__"))
    pages = {}
    for package, names in modules.items():
        title = "jpeft" if package == "jpeft" else f"jpeft.{package}"
        names.sort(key=lambda name: name not in ("jpeft", "jpeft.api"))  # the public API first
        blocks = [f"::: {name}\n    options:\n      heading_level: 2\n" for name in names]
        pages[f"api/{package}.md"] = f"# {title}\n\n" + "\n".join(blocks)
    return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add every page of the API reference to the navigation (mkdocs hook)."""
    for section in config.nav or []:
        if isinstance(section, dict) and "API reference" in section:
            section["API reference"] = sorted(reference_pages(), key=lambda page: (page != "api/jpeft.md", page))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and those outside `docs/` (mkdocs hook)."""
    for source, name in BESIDE.items():
        if (ROOT / source).exists():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for name, content in reference_pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links that are relative to the repository; one to a file that is not on the site becomes plain text."""
    sources = {name: source for source, name in BESIDE.items()}
    here = (ROOT / sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent

    def fitted(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        path = (here / target).resolve()
        if "://" in target or not path.is_relative_to(ROOT):
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        if name in BESIDE:
            found = BESIDE[name]
        elif name.startswith("docs/"):
            found = name.removeprefix("docs/")
        elif path.exists():  # code and configs are in the repository but not on the site
            return text
        else:
            return link[0]
        depth = page.file.src_uri.count("/")
        return f"[{text}]({'../' * depth}{found}{link[3]})"

    return _LINK.sub(fitted, markdown)
