"""Names as plain text: what each target reads back is the name, whatever characters it has."""
import html
import json
import shlex
import xml.etree.ElementTree as ET

import nh3
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cellinterp.data import escape

SPECIAL = "<>&\"'`$\\%#~^{}[]()|*_-+!@:;,.=/? \n\r\t\0\x07\x1b\x85\u2028aé細🔬"
names = st.text(st.sampled_from(SPECIAL), max_size=24) | st.text(max_size=24)
many = settings(max_examples=300, deadline=None, derandomize=True)


@many
@given(names)
def test_html_xml_and_json_read_back_as_the_name(name):
    shown = escape.visible(name)
    assert html.unescape(escape.to_html(name)) == shown
    assert nh3.clean_text(shown) and nh3.clean(f"<b>{escape.to_html(name)}</b>", tags={"b"}).count("<") == 2 or not name
    root = ET.fromstring(f"<a b='{escape.to_xml(name)}' c=\"{escape.to_xml(name)}\">{escape.to_xml(name)}</a>")
    assert (root.text or "") == shown.replace("\r\n", "\n").replace("\r", "\n")
    packed = escape.to_json([name])
    assert json.loads(packed) == [name] and not set("<>&") & set(packed)


@many
@given(names)
def test_yaml_and_shell_read_back_as_the_name(name):
    line = escape.to_yaml(name)
    assert yaml.safe_load(f"a: {line}\nb: 1") == {"a": name, "b": 1}
    if "\0" in name:
        with pytest.raises(ValueError, match="text: .*; expected no null byte"): escape.to_shell(name)
    else: assert shlex.split(f"echo {escape.to_shell(name)} end") == ["echo", name, "end"]


@many
@given(names)
def test_a_job_script_line_is_one_line_or_refused(name):
    try: line = escape.to_slurm("partition", name)
    except ValueError as error: assert "expected one line" in str(error)
    else:
        assert len(line.splitlines()) == 1
        assert shlex.split(line.removeprefix("#")) == ["SBATCH", f"--partition={name}"]


@many
@given(names)
def test_a_figure_shows_the_name_and_no_formula(name):
    from matplotlib.text import Text
    text = Text(0, 0, escape.to_mathtext(name))
    lines = [text._preprocess_math(line) for line in text.get_text().split("\n")]
    assert not any(is_math for _, is_math in lines)
    shown = "\n".join(line for line, _ in lines)
    assert shown.removeprefix("\u200b") == escape.visible(name).replace("\r", "\n")


def test_a_figure_of_hostile_names_is_drawn_beside_formulas(tmp_path):
    import matplotlib.pyplot as plt
    figure, ax = plt.subplots()
    ax.set_title(r"$z_{3}$ and " + escape.to_mathtext("$\\frac{$ <b> 5 $"))
    ax.plot([0, 1], label=escape.to_mathtext("_hidden"))
    ax.set_xticks([0, 1], [escape.to_mathtext(n) for n in ("$\\undefined$", "a\nb\0")])
    assert [t.get_text() for t in ax.legend().get_texts()] == ["\u200b_hidden"]
    figure.savefig(tmp_path / "a.svg")
    ET.parse(tmp_path / "a.svg")
    plt.close(figure)


def test_markdown_and_latex_show_the_name(tmp_path):
    from cellinterp.explain.pages import plain
    from cellinterp.runs.pandoc import markdown_to_html
    lines = ["a_b *c* <b>d</b> $5 and $6", "# 1. - + > | [x](javascript:y) `q` @z ^s^ ~t~", "<script>x</script>",
             "'it's' -- \"so\" ... &amp; {{7*7}} {#id .c} ::: $$ \\frac", "line\n\nend"]
    text, warnings = markdown_to_html("\n\n".join("x " + escape.to_markdown(line) for line in lines))
    assert warnings == []
    for line in lines: assert f"x {' '.join(line.split())}" in plain(text), line
    assert "<script" not in text and "<b>" not in text and "<em>" not in text and "<math" not in text
    for line in lines[:3]:
        text, warnings = markdown_to_html(rf"$$\text{{{escape.to_latex(line)}}}: x$$")
        shown = plain(text).replace("’", "'").replace("‘", "`")
        assert warnings == [] and shown == f"{line}:x", (shown, line)


def test_links_lead_to_files_or_the_web():
    assert escape.to_link("javascript:alert(1)") == "./javascript%3Aalert(1)"
    assert escape.to_link("JaVaScript:x").startswith("./") and escape.to_link("//host/a") == "./host/a"
    assert escape.to_link("https://a.org/?q=1") == "https://a.org/?q=1"
    assert escape.to_link("a b#c%.html") == "./a%20b%23c%25.html"


@many
@given(names)
def test_a_star_value_is_one_token_or_refused(name):
    try: value = escape.to_star(name)
    except ValueError: return
    assert len(value.splitlines()) == 1
    if value[0] in "'\"": assert value == f"{value[0]}{name}{value[0]}"
    else: assert value == name and name[0] not in "_#$'\"[];" and not set(" \t") & set(name)


TAGS = (
    """<script> </script> <img src=x onerror= javascript: <svg <math> <style> --> <!-- data:text/html, <a href= <mtext>
          &lt; onload= <p>""".split()
)
PIECES = st.sampled_from([*"<>\"'/= ab", *TAGS])


@many
@given(st.lists(PIECES, max_size=20).map("".join))
def test_cleaned_html_is_stable_closed_and_does_nothing(text):
    from html.parser import HTMLParser
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs): found.append((tag, dict(attrs)))

    clean = escape.clean_html(text)
    Reader().feed(clean)
    assert escape.clean_html(clean) == clean
    for tag, attributes in found:
        assert tag not in {"script", "style", "iframe", "svg", "object", "form", "link", "base", "meta"}
        for name, value in attributes.items():
            assert not name.startswith("on") and not (value or "").strip().lower().startswith("javascript:")
