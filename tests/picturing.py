"""Pictures of dashboards: every panel's queries in the graphs of a real Prometheus' own pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from playwright.sync_api import ViewportSize

from chromium import chromium
from leaderboard.cli.dashboards import Dashboard

VIEW: Final[ViewportSize] = {"width": 1500, "height": 900}
RANGE: Final = "1m"
DRAWN_MS: Final = 30_000
_STYLE: Final = """
nav, .query-history, .form-inline, a[name=remove], .nav-tabs, .prometheus_input_group, #add_graph,
.eval_stats, .spinner { display: none !important }
body { padding-top: 0 !important }
#graph_container { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 8px 20px }
#graph_container > .clearfix { display: none }
.graph_wrapper .col-lg-10 { flex: 0 0 100%; max-width: 100% }
.expression_input { font-size: 11px !important; min-height: 3.4em }
.tab-pane { border: none !important }
.graph { min-height: 170px !important }
.legend { font-size: 10px }
h1 { font-size: 22px; margin: 12px 16px 0 }
h2 { font-size: 15px; margin: 0 }
"""
_STYLED: Final = """
document.addEventListener("DOMContentLoaded", () => {
  const style = document.createElement("style");
  style.textContent = %r;
  document.head.append(style);
});
"""
# By its own constructor: of more than ten in an address the page mixes up the order.
_ASKED: Final = """
([queries, range]) => {
  document.querySelectorAll(".graph_wrapper").forEach((graph) => graph.remove());
  for (const expr of queries) {
    const options = { expr, range_input: range, tab: 0 };
    new Prometheus.Graph($("#graph_container"), options, () => {}, () => {});
  }
}
"""
_TITLED: Final = """
([title, titles]) => {
  const first = document.createElement("h1");
  first.textContent = title;
  document.querySelector("#graph_container").before(first);
  document.querySelectorAll(".graph_wrapper").forEach((graph, at) => {
    const head = document.createElement("h2");
    head.textContent = titles[at];
    graph.prepend(head);
  });
}
"""
_DRAWN: Final = """
(graphs) => graphs.map((one) => [
  one.querySelector("textarea").value,
  one.querySelectorAll(".graph svg path").length,
])
"""


def picture(
    board: Dashboard, chosen: Mapping[str, str], prometheus_url: str, path: Path
) -> dict[str, int]:
    """Write the picture to `path`, as PNG; how many curves each query has drawn.

    `chosen`: what stands for the dashboard's variables."""
    titles, queries = [], []
    for panel in board.panels:
        for legend, query in panel.queries.items():
            titles.append(panel.title if len(panel.queries) == 1 else f"{panel.title}: {legend}")
            queries.append(_with(query, chosen))
    with chromium() as browser:
        page = browser.new_page(viewport=VIEW)
        page.add_init_script(_STYLED % _STYLE)
        page.goto(f"{prometheus_url}/classic/graph")
        page.wait_for_selector(".graph_wrapper")
        page.evaluate(_ASKED, [queries, RANGE])
        page.wait_for_function("() => !window.jQuery.active", timeout=DRAWN_MS)
        page.evaluate(_TITLED, [board.title, titles])
        drawn = page.eval_on_selector_all(".graph_wrapper", _DRAWN)
        page.screenshot(path=path, full_page=True)
    return {query: int(curves) for query, curves in drawn}


def _with(query: str, chosen: Mapping[str, str]) -> str:
    for variable, value in chosen.items():
        query = query.replace(variable, value)
    return query
