"""How large the page is, how soon it stands, and how fast it is written.

    python -m benchmarks.page [--out results.json] [--features 1000,10000] [--work DIR]

Pages of the demo's two dictionaries, their features repeated under new numbers, opened from disk in headless Chromium
($CHROMIUM, or `chromium` on the path; Playwright is in the extra `dev`). Times are from the start of the navigation, or
from the key, to the frame in which what was asked for is drawn. Dashboards are made once, into `--work`.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sae_vis
import torch
from playwright.sync_api import Browser, Page, sync_playwright

from crossvis_tl import SaeVisData, demo, load_dictionary, load_model, load_tokens
from crossvis_tl.page import write_page
from crossvis_tl.page_data import feature_page

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-precise-memory-info"]
OPENINGS, SWITCHES, SIDE_BY_SIDE = 5, 50, 300
DEMOS = {
    "one model, a CLT": (demo._clt, [demo.TUNED], demo.CLT),
    "two models, a crosscoder": (demo._crosscoder, [demo.BASE, demo.TUNED], demo.CROSSCODER),
}
Pages = tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]

# In the page: when the first screen is in a frame that was drawn, and how long each of some steps takes.
WATCH = """
const drawn = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
window.stood = new Promise((resolve) => {
  const watch = new MutationObserver(async () => {
    if (!document.querySelector("main article, main [data-map]")) return;
    watch.disconnect();
    await drawn();
    resolve(performance.now());
  });
  watch.observe(document, { childList: true, subtree: true });
});
"""
STEP = """async (presses) => {
  const drawn = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  const shown = () => document.querySelector("main article")?.dataset.featureId;
  const times = [];
  for (let i = 0; i < presses; i++) {
    const [before, start] = [shown(), performance.now()];
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
    while (shown() === before) await new Promise((resolve) => setTimeout(resolve));
    await drawn();
    times.push(performance.now() - start);
  }
  return times;
}"""


def demo_pages(name: str, work: Path) -> Pages:
    """Head and payloads of the demo's dashboards, which are made once: that takes a minute."""
    saved = work / f"demo_{Path(DEMOS[name][2]).name}.json"
    if not saved.is_file():
        DEMOS[name][0](lambda _: None).save_json(saved)
    head, payloads = feature_page(SaeVisData.load_json(saved), None)
    return head, list(payloads)


def repeated(pages: Pages, n: int) -> tuple[dict[str, Any], Iterator[tuple[int, dict[str, Any]]]]:
    """The same features over and over, numbered from 0 to `n` - 1."""
    head, payloads = pages

    def longer(column: list[Any]) -> list[Any]:
        return (column * (n // len(column) + 1))[:n]

    index = {name: longer(column) for name, column in head["features"].items() if name != "measures"}
    measures = [measure | {"values": longer(measure["values"])} for measure in head["features"]["measures"]]
    index |= {"id": list(range(n)), "measures": measures}
    features = ((i, payloads[i % len(payloads)][1]) for i in range(n))
    return head | {"features": index, "first": 0, "open_map": True}, features


def opened(browser: Browser, path: Path, address: str) -> tuple[Page, float]:
    """A page in a browser context of its own -> milliseconds until it stood."""
    page = browser.new_context(viewport={"width": 1500, "height": 950}).new_page()
    page.add_init_script(WATCH)
    page.goto(path.as_uri() + address, wait_until="commit")
    return page, page.evaluate("window.stood")


def standing(browser: Browser, path: Path, address: str) -> float:
    """The median of some openings, in milliseconds."""
    times = []
    for _ in range(OPENINGS):
        page, took = opened(browser, path, address)
        times.append(took)
        page.context.close()
    return statistics.median(times)


def of_page(browser: Browser, pages: Pages, n: int, path: Path) -> dict[str, float]:
    head, features = repeated(pages, n)
    start = time.process_time()
    size = write_page(path, head, features)
    wrote = time.process_time() - start
    found = {"bytes": size, "bytes a feature": size / n, "features written a CPU second": n / wrote}
    found |= {"first feature ms": standing(browser, path, "#f=0"), "map ms": standing(browser, path, "")}
    page, _ = opened(browser, path, "#f=0")
    page.wait_for_load_state()
    times = page.evaluate(STEP, SWITCHES)
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    heap = session.send("Runtime.getHeapUsage")["usedSize"]
    page.context.close()
    return found | {"switch ms": statistics.median(times), "slowest switch ms": max(times), "heap MB": heap / 2**20}


def beside_stock(name: str, work: Path) -> dict[str, float]:
    """Bytes of our page and of sae_vis' own, of the same dashboards in sae_vis' default layout."""
    _, models, dictionary = DEMOS[name]
    chosen = sorted(number for number, _ in demo_pages(name, work)[1])[:SIDE_BY_SIDE]
    cfg = sae_vis.SaeVisConfig(features=chosen, minibatch_size_tokens=16)
    data = SaeVisData.create(
        load_dictionary(dictionary), [load_model(one) for one in models], load_tokens(demo.TOKENS), cfg
    )
    ours, stock = work / "ours.html", work / "stock.html"
    data.save_feature_centric_vis(ours)
    data.save_feature_centric_vis(stock, renderer="sae_vis")
    sizes = [path.stat().st_size for path in (ours, stock)]
    return {"features": len(chosen), "ours": sizes[0], "sae_vis": sizes[1], "sae_vis / ours": sizes[1] / sizes[0]}


def table(results: dict[str, Any], counts: Sequence[int]) -> str:
    """Markdown."""
    columns = [(kind, str(n)) for kind in results for n in counts]
    heads = (f"{kind}, {int(n):,} features" for kind, n in columns)
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "--:|" * len(columns)]
    for row in results[columns[0][0]]["pages"][columns[0][1]]:
        cells = (f"{results[kind]['pages'][n][row]:,.0f}" for kind, n in columns)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    for kind, found in results.items():
        one = found["beside sae_vis"]
        times = f"sae_vis' own page {one['sae_vis']:,}, {one['sae_vis / ours']:.1f} times as many"
        lines += ["", f"{kind}, {one['features']} features in sae_vis' default layout: {one['ours']:,} bytes; {times}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    parser.add_argument("--features", default="1000,10000", help="numbers of features")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "crossvis_benchmarks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    counts = [int(n) for n in args.features.split(",")]
    results: dict[str, Any] = {name: {"beside sae_vis": beside_stock(name, args.work)} for name in DEMOS}
    with sync_playwright() as playwright:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name in DEMOS:
            pages = demo_pages(name, args.work)
            measured = {str(n): of_page(browser, pages, n, args.work / f"page_{n}.html") for n in counts}
            results[name]["pages"] = measured
        browser.close()
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results, counts))  # noqa: T201 - the result


if __name__ == "__main__":
    main()
