"""Build the docs site from the notebooks and _quarto.yml.

    python tools/build_docs.py            # Quarto where it is installed, else pandoc
    python tools/build_docs.py --draft    # leave out pages that _quarto.yml lists but nobody has written yet

Both ways start from the same prepared notebooks: hidden cells are dropped, exported code moves behind a "Source" fold
under the signature and docstring of what it defines, asserts move behind "Checks". Pandoc then runs once a page, and
only for pages that changed. The page itself (layout, style, outputs, cross references) comes from
cellinterp.runs.report, which also writes the reports. A broken link, an unknown citation, a formula that cannot be
read, or a listed page that does not exist fails the build.
"""
import argparse
import ast
import copy
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tokenize
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import nbformat
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check_links import check_site

from cellinterp.explain.pages import asset, inline, page_html, plain
from cellinterp.runs import pandoc
from cellinterp.runs.markdown import cells_to_markdown, directives, put_outputs, read_title
from cellinterp.runs.pandoc import find_pandoc, markdown_to_html

ROOT = Path(__file__).resolve().parents[1]


# ---- signatures and docstrings as Markdown

NAMED = {"Parameters", "Other Parameters", "Attributes"}
TABLES = {"Parameters", "Other Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns"}


def prose(text: str) -> str:
    "Docstring text as Markdown: code, formulas and citations stay, every other special character stands for itself."
    def escape(match):
        return match[0] if match[1] else re.sub(r"(?m)^(\s*)#", r"\1\\#", re.sub(r"([\\*_<>^~@|])", r"\\\1", match[0]))
    lines = []
    for block in re.split(r"(\n\s*\n)", text.replace("``", "`")):
        if block.startswith("    "): lines.append(block)  # an indented block is code
        elif block.lstrip().startswith(">>>"): lines.append(f"```python\n{block}\n```")
        else: lines.append(re.sub(r"(`[^`]*`|\$[^$\n]+\$|\[@[^\]]+\])|[^`$\[]+|.", escape, block, flags=re.S))
    return "".join(lines)


def definitions(items: list) -> str:
    "(name, type, description) as a Markdown definition list."
    parts = []
    for name, kind, text in items:
        term = f"`{name}`" if re.fullmatch(r"[\w*., ]+", name) else prose(name)
        head = term + (f" : {prose(kind)}" if kind else "") if name else prose(kind)
        body = prose(text).replace("\n", "\n    ") if text else "[]{}"
        parts.append(f"{head}\n:   {body}\n")
    return "\n".join(parts)


def parameter_table(items: list) -> str:
    "(name, type, description) as a table: name, type, default, meaning."
    rows = []
    for name, kind, text in items:
        kind, _, default = kind.partition(", default ")
        cells = [f"`{name}`" if re.fullmatch(r"[\w*., ]+", name) else prose(name), prose(kind)]
        cells += [f"`{default}`" if default and "`" not in default else prose(default), prose(text)]
        # an escaped bar stays; one inside code would end the cell
        rows.append(" | ".join(re.sub(r"(?<!\\)\|", r"\|", " ".join(cell.split())) for cell in cells))
    return "| name | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(f"| {row} |" for row in rows) + "\n"


def read_items(text: str, title: str = "Parameters") -> list:
    "The (name, type, description) entries of a docstring section."
    items = []
    for line in text.strip("\n").splitlines():
        if line and not line[0].isspace():
            name, _, kind = line.partition(" : ")
            if title in {"Returns", "Yields"} and not kind: name, kind = "", name
            items.append([name.strip(), kind.strip(), []])
        elif items: items[-1][2].append(line.strip())
    return [(name, kind, "\n".join(lines).strip()) for name, kind, lines in items]


def description(text: str) -> str:
    "The text above the sections; a paragraph whose lines all read `name : what it is` becomes a list."
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    is_list = [
        len(lines := [line for line in block.splitlines() if not line[:1].isspace()]) > 1
        and all(re.match(r"[\w*, ]+ : \S", line) for line in lines)
        for block in blocks
    ]
    return "\n\n".join(definitions(read_items(block)) if flag else prose(block) for block, flag in zip(blocks, is_list))


def docstring_markdown(doc: str, comments: list = ()) -> str:
    """A numpy docstring as Markdown.

    Parameters
    ----------
    doc : str
        The docstring, dedented.
    comments : list of (name, type, text)
        Parameters described by comments beside them ("docments"), used where the docstring has no Parameters section.

    Returns
    -------
    str
    """
    pieces = re.split(r"(?m)^(\S[^\n]*)\n-{3,}[ \t]*$", doc)
    parts = [description(pieces[0])]
    sections = list(zip(pieces[1::2], pieces[2::2]))
    if comments and "Parameters" not in dict(sections): sections.insert(0, ("Parameters", comments))
    for title, body in sections:
        if title not in TABLES:
            parts.append(f"**{title}**\n\n{prose(body.strip(chr(10)))}")
            continue
        items = read_items(body, title) if isinstance(body, str) else body
        parts.append(f"**{title}**\n\n{(parameter_table if title in NAMED else definitions)(items)}")
    return "\n\n".join(part for part in parts if part)


def signature(name: str, args: ast.arguments, returns=None, drop_first=False) -> str:
    "A call signature, one parameter a line where it is long."
    args = copy.deepcopy(args)
    if drop_first: (args.posonlyargs or args.args).pop(0)
    for arg in args.posonlyargs + args.args + args.kwonlyargs:  # Annotated[int, ...] reads as int
        if isinstance(arg.annotation, ast.Subscript) and ast.unparse(arg.annotation.value).endswith("Annotated"):
            arg.annotation = arg.annotation.slice.elts[0]
    result = f" -> {ast.unparse(returns)}" if returns else ""
    one_line = f"{name}({ast.unparse(args)}){result}"
    if len(one_line) <= 76: return one_line
    plain_args, defaults = args.posonlyargs + args.args, args.defaults
    values = [None] * (len(plain_args) - len(defaults)) + list(defaults)
    rows = [
        ast.unparse(arg) + (f"{' = ' if arg.annotation else '='}{ast.unparse(value)}" if value else "")
        for arg, value in zip(plain_args, values)
    ]
    if args.vararg or args.kwonlyargs: rows.append("*" + (ast.unparse(args.vararg) if args.vararg else ""))
    rows += [
        ast.unparse(arg) + (f"{' = ' if arg.annotation else '='}{ast.unparse(value)}" if value else "")
        for arg, value in zip(args.kwonlyargs, args.kw_defaults)
    ]
    if args.kwarg: rows.append("**" + ast.unparse(args.kwarg))
    return f"{name}(\n    " + ",\n    ".join(rows) + f",\n){result}"


def comments_of(node, source: str) -> list:
    """Parameters described where they stand: by a comment beside them (docments) or by the help text of a command-line
    option.
    """
    args = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    notes = {}
    if len({arg.lineno for arg in args}) == len(args):
        notes = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
    found = []
    for arg in args:
        kind = arg.annotation
        help_text = next((k.value.value for n in ast.walk(kind) if isinstance(n, ast.Call) for k in n.keywords
                          if k.arg == "help" and isinstance(k.value, ast.Constant)), None) if kind else None
        if help_text:
            found.append((arg.arg, "", help_text))
        elif arg.lineno in notes and arg.arg != "self":
            found.append((arg.arg, ast.unparse(kind) if kind else "", notes[arg.lineno]))
    return found


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def public_names(code: str) -> list:
    "The public functions, classes and methods that a cell defines: (name, node, class or None)."
    found = []
    for node in ast.parse(code).body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            patched = next(
                (
                    arg.annotation
                    for arg in getattr(node, "args", ast.arguments([], [], None, [], [], None, [])).args[:1]
                    if any("patch" in ast.unparse(d) for d in node.decorator_list)
                ),
                None,
            )
            found.append((f"{ast.unparse(patched)}.{node.name}" if patched else node.name, node, patched))
            for method in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(method, FUNCTIONS) and not method.name.startswith("_") and ast.get_docstring(method):
                    found.append((f"{node.name}.{method.name}", method, node))
    return found


def api_markdown(code: str) -> str:
    "Signatures and docstrings of what an exported cell defines."
    parts = []
    for name, node, owner in public_names(code):
        if isinstance(node, ast.ClassDef):
            init = next((n for n in node.body if isinstance(n, FUNCTIONS) and n.name == "__init__"), None)
            fields = [
                n
                for n in node.body
                if isinstance(n, ast.AnnAssign) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)
            ]
            if fields:
                call = f"{name}(\n    " + ",\n    ".join(ast.unparse(field) for field in fields) + ",\n)"
                if len(short := f"{name}({', '.join(ast.unparse(field) for field in fields)})") <= 76:
                    call = short
            else:
                call = (
                    signature(name, init.args, drop_first=True)
                    if init
                    else f"{name}({', '.join(map(ast.unparse, node.bases))})"
                )
            notes = comments_of(init, code) if init else []
        else:
            static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
            is_property = any("property" in ast.unparse(d) for d in node.decorator_list)
            call = (
                name if is_property else signature(name, node.args, node.returns, drop_first=bool(owner) and not static)
            )
            notes = comments_of(node, code)
        level = "####" if isinstance(owner, ast.ClassDef) else "###"
        parts.append(
            f"{level} `{name}` {{#api-{name}"
            f" .api}}\n\n```python\n{call}\n```\n\n{docstring_markdown(ast.get_docstring(node) or '', notes)}"
        )
    return "\n\n".join(parts)


# ---- notebooks, prepared for either engine

def is_check(cell, code: str) -> bool:
    "Asserts and nothing to look at."
    if cell.outputs: return False
    try: tree = ast.parse(code)
    except SyntaxError: return False
    return any(
        isinstance(node, ast.Assert) or isinstance(node, ast.Call) and ast.unparse(node.func).startswith("test_")
        for node in ast.walk(tree)
    )


def only_imports(code: str) -> bool:
    try: return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(code).body)
    except SyntaxError: return False


def option_text(name: str, value) -> str:
    "The value of a cell option, as Quarto reads it."
    if name in {"fig-cap", "code-summary"}: return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def prepare(nb):
    """A copy of a notebook as readers should see it.

    Hidden cells go, exported definitions become API entries with their source behind a fold, and checks are folded.
    What is left uses Quarto's directives only.
    """
    nb, cells = copy.deepcopy(nb), []
    for cell in nb.cells:
        if cell.cell_type != "code":
            cells.append(cell)
            continue
        options, code = directives(cell.source)
        if options.get("hide") or options.get("include") is False or "default_exp" in options or not code:
            continue
        fold = None
        if {"export", "exporti", "exports"} & set(options):
            if only_imports(code):
                continue
            text = api_markdown(code)
            if text:
                cells.append(nbformat.v4.new_markdown_cell(text))
            fold = ("show" if "exports" in options else "true", "Source")
        elif is_check(cell, code):
            fold = ("true", "Checks")
        kept = {
            name: value
            for name, value in options.items()
            if name in {"echo", "output", "warning", "code-fold", "code-summary", "label", "fig-cap"}
        }
        if options.get("hide_input"):
            kept["echo"] = False
        if options.get("hide_output"):
            kept["output"] = False
        if fold:
            kept = {"code-fold": fold[0], "code-summary": fold[1], **kept}
        head = "".join(f"#| {name}: {option_text(name, value)}\n" for name, value in kept.items())
        cell.source = head + code
        cells.append(cell)
    nb.cells = cells
    return nb


def read_config(nbs: Path) -> dict:
    "The parts of _quarto.yml that matter here: title, bibliography, sections [(title, [page])]."
    config = yaml.safe_load((nbs / "_quarto.yml").read_text(encoding="utf-8"))
    sections = []
    for entry in config["website"]["sidebar"]["contents"]:
        if isinstance(entry, dict) and "section" in entry:
            sections.append((entry["section"], [e["href"] if isinstance(e, dict) else e for e in entry["contents"]]))
        else:
            sections.append(("", [entry["href"] if isinstance(entry, dict) else entry]))
    bibliography = nbs / config["bibliography"] if config.get("bibliography") else None
    return {"title": config["website"]["title"], "bibliography": bibliography, "sections": sections,
            "repository": config["website"].get("repo-url", "").rstrip("/")}


# ---- the site by pandoc

def link_names(text: str, names: dict, page: str) -> str:
    "Link `Name` and `function(...)` in the text to their API entries."
    def link(match):
        code = match[1]
        name = re.split(r"\(", code)[0]
        known = names.get(name)
        if not known or not (code != name or re.search(r"[A-Z_.]", name)): return match[0]
        return f'<a href="{relative(page, known)}#api-{name}"><code>{code}</code></a>'
    parts = re.split(r"(?s)(<a\b.*?</a>|<pre\b.*?</pre>|<h\d\b.*?</h\d>|<summary.*?</summary>|<math\b.*?</math>)", text)
    return "".join(
        part if i % 2 else re.sub(r"<code>([\w.]+(?:\([^<)]*\))?)</code>", link, part) for i, part in enumerate(parts)
    )


def relative(page: str, target: str) -> str:
    "The address of one page as seen from another; both relative to the site's top."
    return "../" * page.count("/") + target


def search_entries(address: str, title: str, body: str) -> list:
    "One entry a section: what the search looks through."
    body = re.sub(r'(?s)<details class="code".*?</details>|<div class="output">.*?</div>', " ", body)
    marks = list(re.finditer(r'<h[234]\b[^>]*?\bid="([^"]+)"[^>]*>(.*?)</h[234]>', body, flags=re.S))
    starts = [(0, "", "")] + [(m.start(), "#" + m[1], plain(m[2])) for m in marks]
    ends = [m.start() for m in marks] + [len(body)]
    return [
        {"u": address + anchor, "t": title, "h": heading, "x": plain(body[start:end])[:1500]}
        for (start, anchor, heading), end in zip(starts, ends)
    ]


def extra_pages(top: Path, names: dict, first_lines: dict) -> dict:
    "Pages that no notebook writes: all names in alphabetical order, the changelog, how to contribute."
    rows = [
        f"| [`{name}`]({names[name]}#api-{name}) | {prose(first_lines[name])} |"
        for name in sorted(names, key=str.lower)
    ]
    text = (
        "# Index of names\n> Every public function, class and method\n\n| name | what it is |\n|---|---|\n"
        + "\n".join(rows)
    )
    texts = {"names.ipynb": text} if rows else {}
    for name in ("CHANGELOG", "CONTRIBUTING"):
        path = top / f"{name}.md"
        if path.is_file(): texts[f"{name.lower()}.ipynb"] = path.read_text(encoding="utf-8")
    return {page: nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(t)]) for page, t in texts.items()}


def page_links(nbs: Path, page: str, target: Path, repository: str) -> str:
    "A line under the title: the notebook to download and, where a repository is named, its source and how to edit it."
    if not (nbs / page).is_file(): return ""
    shutil.copy2(nbs / page, target)
    links = [f'<a href="{target.name}" download>Download this notebook</a>']
    if repository:
        links.append(f'<a href="{repository}/blob/main/nbs/{page}">Source</a>')
        links.append(f'<a href="{repository}/edit/main/nbs/{page}">Edit</a>')
    return f'<p class="links">{"".join(links)}</p>'


def build_pandoc(nbs: Path, out: Path, pages: list, config: dict, cache: Path, jobs: int) -> list:
    "Write the site; returns the problems found."
    problems, prepared, titles, names, first_lines = [], {}, {}, {}, {}
    bibliography = config["bibliography"] if config["bibliography"] and config["bibliography"].is_file() else None
    stamp = subprocess.run([find_pandoc(), "--version"], capture_output=True, text=True).stdout
    stamp += bibliography.read_text(encoding="utf-8") if bibliography else ""
    stamp += Path(pandoc.__file__).read_text(encoding="utf-8")
    cache.mkdir(parents=True, exist_ok=True)
    for page in pages:
        nb = nbformat.read(nbs / page, as_version=4)
        address = page.removesuffix(".ipynb") + ".html"
        for cell in nb.cells:
            options, code = directives(cell.source) if cell.cell_type == "code" else ({}, "")
            if not {"export", "exports"} & set(options): continue
            for name, node, _ in public_names(code):
                names[name] = address
                first_lines[name] = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
        nb = prepare(nb)
        title, subtitle = read_title(nb)
        titles[page] = (title or Path(page).stem, subtitle)
        prepared[page] = nb

    for page, nb in extra_pages(nbs.parent, names, first_lines).items():
        titles[page], prepared[page] = read_title(nb), nb
    extra = [page for page in prepared if page not in pages]
    pages = [*pages, *extra]
    config = {**config, "sections": [*config["sections"], ("More", extra)]}

    def render(page):
        markdown, outputs = cells_to_markdown(prepared[page])
        key = hashlib.sha256("\0".join([markdown, stamp]).encode()).hexdigest()[:24]
        kept = cache / f"{key}.json"
        if kept.is_file(): body, warnings = json.loads(kept.read_text(encoding="utf-8"))
        else:
            body, warnings = markdown_to_html(markdown, bibliography)
            kept.write_text(json.dumps([body, warnings]), encoding="utf-8")
        kept.touch()
        return body, outputs, warnings, kept

    with ThreadPoolExecutor(jobs) as pool: rendered = dict(zip(pages, pool.map(render, pages)))
    for old in set(cache.glob("*.json")) - {kept for *_, kept in rendered.values()}: old.unlink()

    index, written = [], set()
    for number, page in enumerate(pages):
        body, outputs, warnings, _ = rendered[page]
        problems += [f"{page}: {warning}" for warning in warnings]
        address = page.removesuffix(".ipynb") + ".html"
        body = re.sub(r'(<a\b[^>]*?\bhref="(?!\w+:)[^"]*?)\.ipynb(?=["#])', r"\1.html", body)
        body = link_names(body, names, address)
        title, subtitle = titles[page]
        index += search_entries(address, plain(inline(title)), body)
        body = put_outputs(body, outputs)
        for source in set(re.findall(r'<img\b[^>]*?\bsrc="(?!\w+:)([^"]+)"', body)):
            picture = (nbs / page).parent / source
            if picture.is_file() and nbs.resolve() in picture.resolve().parents:
                target = (out / address).parent / source
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(picture, target)
                written.add(target.resolve())
        root = "../" * page.count("/")
        sidebar = ""
        for section, entries in config["sections"]:
            links = "".join(
                f'<li><a href="{root}{e.removesuffix(".ipynb")}.html"{" aria-current=page" if e == page else ""}>'
                f'{"Overview" if e == "index.ipynb" else inline(titles[e][0])}</a></li>'
                for e in entries
                if e in titles
            )
            if links: sidebar += (f"<p>{section}</p>" if section else "") + f"<ul>{links}</ul>"
        turn = "".join(
            (
                f'<a href="{root}{pages[n].removesuffix(".ipynb")}.html">{text}</a>'
                if 0 <= n < len(pages)
                else "<span></span>"
            )
            for n, text in (
                (number - 1, f"← {inline(titles[pages[number - 1]][0])}"),
                (number + 1, f"{inline(titles[pages[(number + 1) % len(pages)]][0])} →"),
            )
        )
        target = out / address
        target.parent.mkdir(parents=True, exist_ok=True)
        before = page_links(nbs, page, target.with_suffix(".ipynb"), config["repository"])
        if before: written.add(target.with_suffix(".ipynb").resolve())
        target.write_text(
            page_html(
                title,
                body,
                subtitle=subtitle,
                home=config["title"],
                home_link=f"{root}index.html",
                site_title=config["title"] if page != "index.ipynb" else "",
                root=root,
                before=before,
                sidebar=sidebar,
                after=f'<nav class="turn" aria-label="Next page">{turn}</nav>',
            ),
            encoding="utf-8",
        )
        written.add(target.resolve())
    files = {
        "style.css": asset("page.css") + asset("search.css"),
        "page.js": asset("page.js"),
        "search.js": asset("search.js"),
        "index.js": (
            "window.SEARCH=" + json.dumps(index, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
        ),
    }
    (out / "site").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / "site" / name).write_text(text, encoding="utf-8")
        written.add((out / "site" / name).resolve())
    for old in out.rglob("*"):
        if old.is_file() and old.resolve() not in written: old.unlink()
    return problems


# ---- the site by Quarto

def build_quarto(nbs: Path, out: Path, pages: list, work: Path) -> list:
    "Hand the prepared notebooks to Quarto; nothing is executed."
    if work.exists(): shutil.rmtree(work)
    for path in nbs.rglob("*"):
        if (
            path.is_file()
            and path.suffix != ".ipynb"
            and not {part[0] for part in path.relative_to(nbs).parts} & {".", "_"}
        ):
            target = work / path.relative_to(nbs)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    for page in pages:
        nb = prepare(nbformat.read(nbs / page, as_version=4))
        title, subtitle = read_title(nb)
        front = yaml.safe_dump(
            {"title": title or Path(page).stem, **({"subtitle": subtitle} if subtitle else {})},
            allow_unicode=True,
            sort_keys=False,
        )
        nb.cells.insert(0, nbformat.v4.new_raw_cell(f"---\n{front}---"))
        (work / page).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, work / page)
    config = yaml.safe_load((nbs / "_quarto.yml").read_text(encoding="utf-8"))
    config["project"]["output-dir"] = "_site"
    contents = [
        e if isinstance(e, str) else {**e, "contents": [p for p in e["contents"] if p in pages]}
        for e in config["website"]["sidebar"]["contents"]
    ]
    config["website"]["sidebar"]["contents"] = [e for e in contents if isinstance(e, str) or e["contents"]]
    (work / "_quarto.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    done = subprocess.run(["quarto", "render", str(work), "--no-execute"])
    if done.returncode: return [f"quarto render failed with exit status {done.returncode}"]
    if out.exists(): shutil.rmtree(out)
    shutil.move(work / "_site", out)
    return []


# ---- the build

def build_site(nbs, out, work=None, engine: str = "auto", draft: bool = False, jobs: int = 2) -> list:
    """Build the docs site and check it.

    Parameters
    ----------
    nbs : path
        The folder of the notebooks, with `_quarto.yml`.
    out : path
        Where the site is written; whatever else lies there is removed.
    work : path, optional
        Kept between builds: pages that did not change are not rendered again. Default: `_proc` beside `out`.
    engine : "auto", "quarto" or "pandoc"
    draft : bool
        Leave out listed pages that do not exist instead of failing.
    jobs : int
        Pages rendered at a time.

    Returns
    -------
    list of str
        The problems; the site is whole only if there are none.
    """
    nbs, out = Path(nbs), Path(out)
    work = Path(work) if work else out.parent / "_proc"
    config = read_config(nbs)
    listed = [page for _, entries in config["sections"] for page in entries]
    missing = [page for page in listed if not (nbs / page).is_file()]
    problems = [] if draft else [f"_quarto.yml lists {page}, which does not exist" for page in missing]
    if draft and missing: print(f"draft: without {', '.join(missing)}", file=sys.stderr)
    for path in sorted(nbs.rglob("*.ipynb")):
        page = path.relative_to(nbs).as_posix()
        if (
            page not in listed
            and path.name != "api.ipynb"
            and not any(part[0] in "._" for part in PurePosixPath(page).parts)
        ):
            print(f"warning: {page} is not listed in _quarto.yml", file=sys.stderr)
    pages = [page for page in listed if page not in missing]
    if engine == "auto": engine = "quarto" if shutil.which("quarto") else "pandoc"
    out.mkdir(parents=True, exist_ok=True)
    problems += (
        build_quarto(nbs, out, pages, work / "quarto")
        if engine == "quarto"
        else build_pandoc(nbs, out, pages, config, work / "pages", jobs)
    )
    # Quarto's own pages load nothing from elsewhere either, but its theme files are not ours to judge: there only links
    # are checked.
    found = [
        p
        for p in check_site(out)
        if not any(f"{page.removesuffix('.ipynb')}.html does not exist" in p for page in missing)
    ]
    return problems + ([p for p in found if "does not exist" in p or "anchor" in p] if engine == "quarto" else found)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nbs", default=ROOT / "nbs", help="folder of the notebooks")
    parser.add_argument("--out", default=ROOT / "_docs", help="where the site is written")
    parser.add_argument("--engine", choices=["auto", "quarto", "pandoc"], default="auto")
    parser.add_argument("--draft", action="store_true", help="leave out listed pages that do not exist yet")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args(argv)
    start = time.time()
    problems = build_site(args.nbs, args.out, engine=args.engine, draft=args.draft, jobs=args.jobs)
    for problem in problems: print(f"error: {problem}", file=sys.stderr)
    if any("Citeproc" in problem for problem in problems):
        config = read_config(Path(args.nbs))
        print(
            "known citations: "
            + ", ".join(re.findall(r"(?m)^@\w+\{([^,\s]+),", config["bibliography"].read_text(encoding="utf-8"))),
            file=sys.stderr,
        )
    count = len(list(Path(args.out).rglob("*.html")))
    print(
        f"docs: {count} pages in {time.time() - start:.1f} s, {len(problems)} problems,"
        f" {os.path.relpath(Path(args.out) / 'index.html')}"
    )
    return bool(problems)


if __name__ == "__main__": sys.exit(main())
