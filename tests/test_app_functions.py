"""The page's pure functions in a real browser, against the library's: paste, outlines, budgets, edges."""

from __future__ import annotations

import graphlib
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.app_fakes import MACS, blob, rising_quality

from dynamask.models.masks import policies
from dynamask.ops.masks import mask_edges, paste_mask

STATIC = Path(__file__).resolve().parent.parent / "app" / "static"


@pytest.fixture(scope="module")
def library(browser):
    """A page that has the exports of the pure modules as globals."""
    page = browser.new_page()
    page.route("http://app.test/*", lambda route: route.fulfill(path=STATIC / route.request.url.rpartition("/")[2]))
    page.route("http://app.test/", lambda route: route.fulfill(body="<!doctype html>"))
    page.goto("http://app.test/")
    page.evaluate("""async () => {
        for (const name of ["masks", "policies"]) Object.assign(window, await import(`/${name}.js`));
    }""")
    yield page
    page.close()


def test_the_browsers_paste_is_ours(library):
    height, width = 90, 130
    for size, box in ((14, (10.3, 5.7, 96.2, 71.9)), (112, (-4.0, 20.2, 61.5, 95.0)), (28, (100.1, 3.0, 100.9, 80.0))):
        grid = blob(size, 5, 0.4)
        grid_bytes = (grid * 255).round().byte()
        answer = library.evaluate(
            "([mask, size, box, w, h]) => { const f = pasteField(mask, size, box, w, h);"
            " return [f.x, f.y, f.w, f.h, [...f.values].map((v) => v >= LEVEL)]; }",
            [grid_bytes.flatten().tolist(), size, list(box), width, height],
        )
        x, y, w, h, inside = answer
        pasted = np.zeros((height + 2, width + 2), bool)
        pasted[y + 1 : y + 1 + h, x + 1 : x + 1 + w] = np.array(inside).reshape(h, w)
        ours = paste_mask(grid, box, (height, width)).numpy()
        same_bytes = paste_mask(grid_bytes.float() / 255, box, (height, width)).numpy()
        assert (pasted[1:-1, 1:-1] == same_bytes).mean() > 0.9999
        assert (pasted[1:-1, 1:-1] != ours).sum() <= 0.002 * max(ours.sum(), 1)


def test_outlines_enclose_exactly_the_pasted_pixels(library):
    grid = blob(56, 4, 0.0)
    grid[20:30, 20:30] = 0  # a hole
    wrong = library.evaluate(
        """(mask) => {
            const f = pasteField(mask, 56, [7.4, 6.1, 80.3, 70.8], 100, 90);
            const path = outlinePath(f);
            const context = document.createElement("canvas").getContext("2d");
            let wrong = 0, inside = 0, area = 0;
            for (let j = 0; j < f.h; j++) for (let i = 0; i < f.w; i++) {
              const value = f.values[j * f.w + i];
              area += value >= LEVEL;
              if (Math.abs(value - LEVEL) < 1) continue;
              const drawn = context.isPointInPath(path, f.x + i + 0.5, f.y + j + 0.5, "evenodd");
              wrong += drawn !== value >= LEVEL;
              inside += drawn;
            }
            return { wrong, inside, area, loops: traceOutlines(f).length };
        }""",
        (grid * 255).round().byte().flatten().tolist(),
    )
    assert wrong["wrong"] == 0 and wrong["loops"] == 2
    assert abs(wrong["inside"] - wrong["area"]) < 20 and wrong["area"] > 1000


ASSIGN = """([instances, policy, macs, budget, overrides]) => assign(
    instances.map((one, index) => ({ index, ...one })), policy,
    { sizes: [14, 28, 56, 112], macs, budget, size: [640, 480], overrides: new Map(overrides), fronts: new Map() })"""


def test_the_browsers_budget_is_the_exact_optimum(library):
    generator = torch.Generator().manual_seed(1)
    macs = [231_000_000, 622_000_000, 1_011_000_000, 1_402_000_000]
    for count in (1, 2, 5):
        probs = torch.softmax(3 * torch.randn((count, 4), generator=generator), dim=1).double().tolist()
        for budget in (macs[0], 500e6, 700.5e6, 1000e6, 2000e6):
            instances = [{"values": np.log(row).tolist()} for row in probs]
            chosen = library.evaluate(ASSIGN, [instances, "budget", macs, budget])

            def value(assignment, probs=probs):
                return sum(math.log(row[k]) for row, k in zip(probs, assignment))

            def affordable(assignment, budget=budget, count=count):
                return sum(macs[k] for k in assignment) <= budget * count

            best = max(value(a) for a in itertools.product(range(4), repeat=count) if affordable(a))
            assert affordable(chosen) and value(chosen) == pytest.approx(best, abs=1e-9)


def test_the_browser_and_the_predictor_choose_alike(library):
    logits = 3 * torch.randn((12, 4), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    boxes = torch.rand((12, 4), generator=torch.Generator().manual_seed(6)) * 300
    boxes[:, 2:] += boxes[:, :2]
    sides = torch.tensor([0, 1, 68, 70, 137, 140, 276, 279, 480]).float()  # around the limits of Eq. 8
    boxes[:9] = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    quality = rising_quality(12)
    expected = {
        "learned": policies.learned(logits),
        "quality": policies.nearly_best(policies.combined_quality(quality)),
        "size": policies.size_based(boxes, (480, 640)),
        "fixed:56": policies.fixed(12, 56),
    }
    columns = {"box": boxes.tolist(), "values": policies.LEARNED.preferences(logits, None).tolist()}
    instances = [dict(zip(columns, row)) for row in zip(*columns.values())]
    for i, one in enumerate(instances):
        one["chosen"] = {policy: int(expected[policy][i]) for policy in ("learned", "quality")}
    for policy, indices in expected.items():
        assert library.evaluate(ASSIGN, [instances, policy, MACS, 0]) == indices.tolist()
    for gmacs in (0.010, 0.0137, 0.02, 0.031):
        indices = policies.exact_budget(logits, MACS, policies.budget_in_macs(gmacs, MACS))
        assert library.evaluate(ASSIGN, [instances, "budget", MACS, gmacs * 1e9]) == indices.tolist()
    values = policies.combined_quality(quality)
    instances = [{"quality": q, "values": v} for q, v in zip(quality.tolist(), values.tolist())]
    for gmacs in (0.010, 0.0137, 0.02, 0.031):
        indices = policies.exact_budget(values, MACS, policies.budget_in_macs(gmacs, MACS))
        assert library.evaluate(ASSIGN, [instances, "budget", MACS, gmacs * 1e9]) == indices.tolist()


def test_equal_quality_leaves_no_budget_unspent(library):
    instances = [{"quality": True, "values": [0.9, 1.0, 1.0, 1.0]}] * 2
    assert library.evaluate(ASSIGN, [instances, "budget", [10, 17, 25, 32], 32]) == [3, 3]


def test_sizes_set_by_hand_are_paid_first(library):
    instances = [{"values": np.log([0.1, 0.1, 0.1, 0.7]).tolist()}] * 3

    def chosen(budget, overrides):
        return library.evaluate(ASSIGN, [instances, "budget", [10, 17, 25, 32], budget, overrides])

    assert chosen(40, []) == [3, 3, 3]
    assert chosen(25, [[1, 0]]) == [3, 0, 3]  # 75 in all, 10 of them by hand: two of 32 fit into 65
    assert chosen(11, [[0, 3], [1, 3]]) == [3, 3, 0]  # nothing is left: the rest is cheapest


def test_edges_are_equation_4(library):
    grid = (torch.rand((28, 28), generator=torch.Generator().manual_seed(8)) * 255).round()
    edges = library.evaluate("(mask) => [...edgeCells(mask, 28)]", grid.flatten().tolist())
    assert edges == mask_edges((grid[None] >= 127.5).float())[0].flatten().int().tolist()


def test_a_hundred_instances_are_solved_at_once(library):
    probs = torch.softmax(2 * torch.randn((100, 4), generator=torch.Generator().manual_seed(2)), dim=1).tolist()
    macs = [10_071_040, 17_297_792, 24_743_712, 32_189_633]
    timed = f"(given) => {{ const start = performance.now(); ({ASSIGN})(given); return performance.now() - start; }}"
    instances = [{"values": np.log(row).tolist()} for row in probs]
    assert library.evaluate(timed, [instances, "budget", macs, macs[1]]) < 2000


def test_modules_import_what_others_export_and_without_cycles():
    sources = {path.name: path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")}
    exports = {
        name: set(re.findall(r"^export (?:async )?(?:function|const|let) ([\w$]+)", text, re.M))
        for name, text in sources.items()
    }
    imports = {}
    for name, text in sources.items():
        found = re.findall(r'^import \{ ([^}]+) \} from "\./(\w+\.js)";$', text, re.M)
        assert len(found) == len(re.findall(r"^import\b", text, re.M)), name
        for names, file in found:
            assert set(names.split(", ")) <= exports[file], (name, file)
        imports[name] = {file for _, file in found}
    order = list(graphlib.TopologicalSorter(imports).static_order())  # raises CycleError
    assert {"explore.js", "budget_curve.js", "class_table.js"} <= set(order) == set(sources)
    assert not imports["masks.js"] and not imports["policies.js"]  # pure


@pytest.mark.parametrize("root_path", ["", "/tools/dynamask"])
def test_modules_are_served_behind_a_proxy_and_nothing_else(root_path):
    pytest.importorskip("gradio", reason="the page needs gradio")
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from app.templates import module_loader, static_prefix, static_route

    client = TestClient(Starlette(routes=[static_route()]), root_path=root_path)
    answer = client.get(f"/{static_prefix()}/masks.js")
    assert answer.text == (STATIC / "masks.js").read_text(encoding="utf-8")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert f"{static_prefix()}/explore.js" in module_loader("explore")
    for name in ("absent.js", "..%2Fui.py", "../ui.py"):
        assert client.get(f"/{static_prefix()}/{name}").status_code == 404
