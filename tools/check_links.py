"""Check a built site: every internal link, anchor and picture exists, and no page asks another host for anything.

    python tools/check_links.py _docs
"""
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself; a link is only followed by a person.
LOADED = {
    ("img", "src"),
    ("script", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("source", "src"),
    ("source", "srcset"),
    ("img", "srcset"),
    ("video", "src"),
    ("audio", "src"),
    ("object", "data"),
    ("embed", "src"),
    ("image", "href"),
    ("use", "href"),
}


class Page(HTMLParser):
    "The anchors of a page, where its links lead, and what it loads."

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if not value: continue
            if name == "id" or (tag == "a" and name == "name"): self.ids.add(value)
            if (tag, name) in LOADED: self.loads.append(value)
            elif tag == "a" and name == "href": self.links.append(value)
            if name == "style": self.loads += outside_css(value)


def outside_css(text: str) -> list:
    "Addresses on another host that a style sheet loads."
    return re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", text)


def check_site(folder) -> list:
    """Find what is broken in a built site.

    Parameters
    ----------
    folder : path
        The site's top folder.

    Returns
    -------
    list of str
        One sentence a problem; empty if all is well.
    """
    folder = Path(folder).resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    problems = [] if pages else [f"{folder.name}: no pages"]
    for path, page in pages.items():
        where = path.relative_to(folder).as_posix()
        for address in page.loads:
            if urlsplit(address).netloc: problems.append(f"{where}: loads {address} from another host")
        for block in re.findall(r"(?s)<style.*?</style>", path.read_text(encoding="utf-8")):
            problems += [f"{where}: its style loads {address}" for address in outside_css(block)]
        for address in page.links + page.loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc: continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir(): target /= "index.html"
            if not target.is_file(): problems.append(f"{where}: {address} does not exist")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                problems.append(f"{where}: {address} has no such anchor")
    for path in folder.rglob("*.css"):
        problems += [f"{path.name}: loads {address}" for address in outside_css(path.read_text(encoding="utf-8"))]
    return problems


if __name__ == "__main__":
    found = check_site(sys.argv[1] if len(sys.argv) > 1 else "_docs")
    print("\n".join(found) or "links: all well")
    sys.exit(bool(found))
