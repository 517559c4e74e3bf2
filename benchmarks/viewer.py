"""How large a page is, how soon it is interactive, how smoothly it pans, and how soon a live answer comes.

    python benchmarks/viewer.py RUN [--task single_double_quote] [--nodes 150] [--rounds 5]

RUN is a run folder whose corpus is still there; its page shows NODES of its nodes drawn at random among those that are
active on the task, and all weights between them. The panned graph is made up: 500 nodes and 3,000 edges. Chromium draws
in software. Prints one row a claim and writes all figures, with the load at the time, to
benchmarks/results/viewer-DATE-MACHINE.json. On a busy machine the wall times are the machine's; the processor times
beside them, of all the browser's processes, are the page's own.
"""

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import sparse_circuits as sc
from sparse_circuits.configs.models import NODE_SITES
from sparse_circuits.edges import EDGE_ENDS
from sparse_circuits.faithfulness.necessity import activity
from sparse_circuits.tasks.pairs import Task
from sparse_circuits.viewer.data import view_model
from sparse_circuits.viewer.live import Session
from sparse_circuits.viewer.page import write_page

WATCH = """
new MutationObserver((_, watcher) => {
  if (!document.querySelector('[data-ready]')) return;
  watcher.disconnect();
  requestAnimationFrame(() => requestAnimationFrame(() => { window.readyAt = performance.now(); }));
}).observe(document, { subtree: true, childList: true, attributes: true });
"""
"""Notes when the page has been drawn and answers."""

PAN = """async (n) => {
  const frame = document.querySelector('.frame'), box = frame.getBoundingClientRect(), deltas = [];
  const send = (type, x, y) => frame.dispatchEvent(new PointerEvent(type, {
    pointerId: 1, button: 0, bubbles: true, clientX: box.left + x, clientY: box.top + y,
  }));
  frame.setPointerCapture = () => {};
  send('pointerdown', 300, 300);
  let last = await new Promise(requestAnimationFrame);
  for (let i = 0; i < n; i += 1) {
    send('pointermove', 300 + 200 * Math.sin(i / 20), 300 + 120 * Math.cos(i / 27));
    const now = await new Promise(requestAnimationFrame);
    deltas.push(now - last);
    last = now;
  }
  send('pointerup', 300, 300);
  return deltas;
}"""
"""Drags the picture in a loop and returns the time of each frame in milliseconds."""


N_FRAME = 120
"""Frames of one round of panning."""


def made_up(view: dict, n_node: int = 500, n_edge: int = 3000) -> dict:
    """Return a view-model of so many nodes and edges, without prompts and examples."""
    rng = random.Random(0)
    joined = [(source, target) for source, targets in EDGE_ENDS.values() for target in targets]
    nodes = []
    for i in range(n_node):
        layer, site = (i // 8) % 4, NODE_SITES[i % 8]
        channel = i // 32 + 16 * (i % 3)
        node = {
            "name": f"{layer}.{site}:{channel}",
            "layer": layer,
            "site": site,
            "channel": channel,
            "effect": rng.random() ** 4,
        }
        if site in ("attn.q", "attn.k", "attn.v"):
            node |= {"head": channel // 16, "channel_in_head": channel % 16}
        nodes.append(node)
    by_place: dict[tuple[int, str], list[str]] = {}
    for node in nodes:
        by_place.setdefault((node["layer"], node["site"]), []).append(node["name"])
    edges = {}
    while len(edges) < n_edge:
        (source, target), layer = rng.choice(joined), rng.randrange(4)
        ends = rng.choice(by_place[layer, source]), rng.choice(by_place[layer, target])
        edges[ends] = {"source": ends[0], "target": ends[1], "weight": rng.gauss(0, 1)}
    empty = {"carries": [], "scores": [], "embedding": [], "unembedding": [], "prompts": None, "samples": None}
    return view | empty | {"nodes": nodes, "edges": list(edges.values())}


def wait_until_ready(page: Any) -> float:
    """Return when the page was interactive, in seconds from its opening; it forbids `eval`, so it is asked again."""
    while not (at := page.evaluate("window.readyAt ?? 0")):
        page.wait_for_timeout(20)
    return at / 1000


def cpu_seconds(session: Any) -> float:
    """Return the processor time that all of the browser's processes have taken."""
    return sum(process["cpuTime"] for process in session.send("SystemInfo.getProcessInfo")["processInfo"])


def in_browser(page: Path, big: Path, n_round: int) -> dict:
    """Open both pages, and pan the second."""
    from playwright.sync_api import sync_playwright

    ready, ready_cpu, frames, frame_cpu = [], [], [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        processes = browser.new_browser_cdp_session()
        for _ in range(n_round):
            opened = browser.new_page(viewport={"width": 1280, "height": 800})
            opened.set_default_timeout(120_000)
            opened.add_init_script(WATCH)
            opened.wait_for_timeout(500)
            before = cpu_seconds(processes)
            opened.goto(page.as_uri())
            ready.append(wait_until_ready(opened))
            ready_cpu.append(cpu_seconds(processes) - before)
            opened.close()
        opened = browser.new_page(viewport={"width": 1280, "height": 800})
        opened.set_default_timeout(120_000)
        opened.goto(big.as_uri())
        opened.wait_for_selector("[data-ready]")
        opened.wait_for_timeout(2000)
        for _ in range(n_round):
            before = cpu_seconds(processes)
            frames += opened.evaluate(PAN, N_FRAME)
            frame_cpu.append(1000 * (cpu_seconds(processes) - before) / N_FRAME)
        shown = [opened.locator(kind).count() for kind in (".node:not(.end)", ".picture .link.edge")]
        browser.close()
    return {
        "seconds_to_interactive": {"median": statistics.median(ready), "all": ready},
        "cpu_seconds_to_interactive": {"median": statistics.median(ready_cpu), "all": ready_cpu},
        "panning": {
            "n_node_and_edge_drawn": shown,
            "n_frame": len(frames),
            "share_within_33_ms": sum(delta <= 33.4 for delta in frames) / len(frames),
            "median_ms": statistics.median(frames),
            "slowest_ms": max(frames),
            "cpu_ms_a_frame": statistics.median(frame_cpu),
        },
    }


def random_circuit(run: Path, name: str, n_node: int) -> tuple[sc.Circuit, Task]:
    """Return a circuit of nodes drawn at random among those that are active on a task, and the task."""
    model = sc.load(run)
    task = sc.task(name, model.tokenizer)
    values = torch.zeros(sum(model.config.node_widths().values()))
    described = {"name": task.name, "hash": task.hash, "seed": 0}
    whole = sc.Circuit.of_nodes(model, torch.ones(len(values), dtype=torch.bool), values=values, task=described)
    active = (activity(whole, task.split("select")) > 0).nonzero().flatten()
    chosen = active[torch.randperm(len(active), generator=torch.Generator().manual_seed(0))[:n_node]]
    keep = torch.zeros(len(values), dtype=torch.bool)
    keep[chosen] = True
    return sc.Circuit.of_nodes(model, keep, values=values, task=described), task


def live(circuit: sc.Circuit, task: Task, n: int) -> dict:
    """Ablate a node live, over and over."""
    session, select = Session(circuit, Path("circuit")), task.split("select")
    prompt = session.tokenizer.decode(select.tokens[0, 0, : int(select.length[0])].tolist())
    asked = {"prompt": prompt, "edits": [{"node": circuit.node_names()[-1], "action": "ablate"}]}
    wall, cpu = [], []
    for _ in range(n):
        start, start_cpu = time.perf_counter(), time.process_time()
        session.run(asked)
        wall.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.process_time() - start_cpu))
    return {"median": statistics.median(wall), "slowest": max(wall), "cpu_median": statistics.median(cpu), "n": n}


def told(results: dict) -> str:
    """Return the figures as rows: what, aim, wall, processor."""
    page, panning, live = results["page"], results["panning"], results["live_ablation_ms"]
    n_node, n_edge = panning["n_node_and_edge_drawn"]
    ready, ready_cpu = results["seconds_to_interactive"], results["cpu_seconds_to_interactive"]
    rows = [
        ("what", "aim", "measured", "processor"),
        (f"file: {page['n_node']} nodes, {page['n_prompt']} prompts", "5 MB", f"{page['megabyte']:.1f} MB", ""),
        ("opened to interactive", "1.5 s", f"{ready['median']:.2f} s", f"{ready_cpu['median']:.2f} s"),
        (
            f"panning {n_node} nodes, {n_edge:,} edges: frames within 33 ms",
            "95 %",
            f"{100 * panning['share_within_33_ms']:.0f} %",
            f"{panning['cpu_ms_a_frame']:.1f} ms a frame",
        ),
        ("live ablation", "200 ms", f"{live['median']:.0f} ms", f"{live['cpu_median']:.0f} ms"),
    ]
    load = results["load_average"][0]
    return "\n".join(f"{a:54}{b:>8}{c:>12}{d:>18}" for a, b, c, d in rows) + f"\nload {load:.1f}\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--task", default="single_double_quote")
    parser.add_argument("--nodes", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    circuit, task = random_circuit(given.run, given.task, given.nodes)
    start = time.process_time()
    view = json.loads(json.dumps(view_model(circuit, task=task)))
    cpu_seconds_made = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        page = write_page(view, Path(folder) / "page.html")
        big = write_page(made_up(view), Path(folder) / "big.html")
        results = {
            "page": {
                "n_node": len(view["nodes"]),
                "n_edge": len(view["edges"]),
                "n_prompt": 2 * len(view["prompts"]["pairs"]),
                "has_examples": view["samples"] is not None,
                "megabyte": page.stat().st_size / 1e6,
                "cpu_seconds_made": cpu_seconds_made,
            },
            **in_browser(page, big, given.rounds),
        }
    results["live_ablation_ms"] = live(circuit, task, 4 * given.rounds)
    results["load_average"] = os.getloadavg()
    sys.stdout.write(told(results))
    machine = f"{platform.machine()}-{os.cpu_count()}"
    out = Path(__file__).parent / "results" / f"viewer-{datetime.date.today()}-{machine}.json"
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
