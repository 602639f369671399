"""Write README.md from nbs/index.ipynb, the first page of the docs: the same text, in the Markdown that code hosts
show.

    python tools/write_readme.py            # write it
    python tools/write_readme.py --check    # exit with 1 if it is out of date

Only Markdown cells and visible code are taken. Pictures must be files beside the notebook
(`![caption](images/law.svg)`), since a README cannot hold data.
"""
import re
import sys
from pathlib import Path

import nbformat

from cellinterp.runs.markdown import directives

ROOT = Path(__file__).resolve().parents[1]
HEAD = "<!-- Written from nbs/index.ipynb by tools/write_readme.py: edit that. -->\n\n"


def read_references(path: Path) -> dict:
    "key: (names, year, address) of a BibTeX file."
    found = {}
    for key, body in re.findall(r"(?ms)^@\w+\{([^,\s]+),(.*?)^\}", path.read_text(encoding="utf-8")):
        fields = dict(re.findall(r"(?m)^\s*(\w+)\s*=\s*\{(.*)\},?\s*$", body))
        last = [re.sub(r"[{}]", "", name.split(",")[0]) for name in fields["author"].split(" and ")]
        names = last[0] if len(last) == 1 else " and ".join(last) if len(last) == 2 else f"{last[0]} et al."
        found[key] = (
            names,
            fields["year"],
            f"https://doi.org/{fields['doi']}" if "doi" in fields else fields.get("url", ""),
        )
    return found


def cite(text: str, references: dict) -> str:
    "Citations as links to the papers."
    def one(key, in_text):
        if key not in references: raise ValueError(f"references.bib has no {key}; it has {', '.join(references)}")
        names, year, address = references[key]
        words = f"{names} ({year})" if in_text else f"{names} {year}"
        return f"[{words}]({address})" if address else words
    text = re.sub(
        r"\[((?:@[\w-]+(?:;\s*)?)+)\]",
        lambda m: "(" + "; ".join(one(key, False) for key in re.findall(r"@([\w-]+)", m[1])) + ")",
        text,
    )
    return re.sub(r"(?<![\w`/@])@([a-z][\w-]*)", lambda m: one(m[1], True) if m[1] in references else m[0], text)


def number_names(text: str) -> dict:
    "Figures, tables and equations in the order of the page: {'fig-law': 'Figure 1'}."
    numbers = {}
    for name, kind in re.findall(r"\{#((fig|tbl|eq)-[\w-]+)", text):
        numbers[name] = (
            f"{dict(fig='Figure', tbl='Table', eq='Equation')[kind]}"
            f" {1 + sum(other.startswith(kind) for other in numbers)}"
        )
    return numbers


def plain_markdown(text: str, folder: str, references: dict, numbers: dict) -> str:
    "Markdown without what only pandoc reads; addresses relative to the repository's top."
    parts = re.split(r"(?ms)(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$|`[^`\n]+`)", text)
    for i in range(0, len(parts), 2):
        part = re.sub(r"(?s)<!--.*?-->", "", parts[i])
        part = re.sub(r"@((?:fig|tbl|eq)-[\w-]+)", lambda m: numbers.get(m[1], m[0]), part)
        part = re.sub(
            r"(?m)^(!\[([^\n]*)\]\([^)\n]*\))\{#(fig-[\w-]+)[^}\n]*\}[ \t]*$",
            lambda m: f"{m[1]}\n\n*{numbers[m[3]]}. {m[2]}*",
            part,
        )
        part = re.sub(r"(?m)(?:(?<=[)\]$])\s*|^(#+ [^\n{]*?)\s*)\{[#.][^}\n]*\}", r"\1", part)
        part = re.sub(
            r"(?ms)^::: *\{\.callout-(\w+)[^}]*\}\n(.*?)\n:::[ \t]*$",
            lambda m: f"> **{m[1].capitalize()}**\n>\n" + "\n".join(f"> {line}".rstrip() for line in m[2].splitlines()),
            part,
        )
        part = re.sub(r"(\]\()(?!\w+:|#|/)([^)\s]+)", rf"\1{folder}/\2", part)
        parts[i] = cite(part, references)
    return "".join(parts)


def readme(notebook: Path) -> str:
    """The README's text.

    Parameters
    ----------
    notebook : Path
        The index notebook; its folder's name is put before the addresses in it.

    Returns
    -------
    str
    """
    bibliography = notebook.parent / "references.bib"
    references = read_references(bibliography) if bibliography.is_file() else {}
    parts, cells = [], nbformat.read(notebook, as_version=4).cells
    numbers = number_names("\n".join(cell.source for cell in cells))
    for cell in cells:
        if cell.cell_type == "markdown":
            parts.append(plain_markdown(cell.source, notebook.parent.name, references, numbers).strip())
        if cell.cell_type == "code":
            options, code = directives(cell.source)
            if code and not options.get("hide") and options.get("echo") is not False:
                parts.append(f"```python\n{code}\n```")
    return HEAD + re.sub(r"\n{3,}", "\n\n", "\n\n".join(part for part in parts if part)) + "\n"


def main(argv) -> int:
    text, target = readme(ROOT / "nbs" / "index.ipynb"), ROOT / "README.md"
    if "--check" in argv:
        same = target.is_file() and target.read_text(encoding="utf-8") == text
        print("README.md is up to date" if same else "README.md is out of date: run python tools/write_readme.py")
        return not same
    target.write_text(text, encoding="utf-8")
    print(f"README.md: {len(text.splitlines())} lines")
    return 0


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
