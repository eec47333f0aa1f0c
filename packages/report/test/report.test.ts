import { createPlan, type MoeModel, packBfloat16 } from "@coppice/core";
import { type ReportLayer, type ReportScores, renderReport, reportLayers } from "@coppice/report";
import { describe, expect, it } from "vitest";
import { formatBytes, formatCount, formatDifference, formatScore } from "../src/format.js";
import { escapeHtml } from "../src/html.js";
import { sampleReport } from "./sample-report.js";

const hostile = `</style></title><script>alert(1)</script><img src=x onerror="alert(2)">' \u202e\u0000\ud800`;

/** Tags and attributes of a page, found without trusting the code that made it. */
function tags(page: string): string[] {
  return [
    ...page.replace(/<style>[\s\S]*?<\/style>/, "<style></style>").matchAll(/<([a-z][a-z0-9]*)\b([^>]*)>/gi),
  ].map((match) => match[0]);
}

describe("renderReport", () => {
  const page = renderReport(sampleReport());

  it("holds every score, size and fact as text", () => {
    for (const text of [
      "0.863",
      "0.813",
      "mean of 5 draws",
      "53.5 MB",
      "31.2 MB",
      "2 min 41 s",
      "--seed 1",
    ]) {
      expect(page).toContain(text);
    }
    expect(page).toContain("−0.050"); // 0.813 - 0.863
  });

  it("has no script, no handler and no address that could be fetched", () => {
    const found = tags(page);
    expect(found.filter((tag) => /^<(script|iframe|object|embed|link|img|a|form|base)\b/i.test(tag))).toEqual(
      [],
    );
    expect(found.filter((tag) => /\s(on\w+|src|href|action|formaction|xlink:href)\s*=/i.test(tag))).toEqual(
      [],
    );
    expect(page).not.toMatch(/https?:|url\(|@import/i);
    expect(page).toContain(`default-src 'none'`);
  });

  it("gives the same elements whatever the names are", () => {
    const names = (text: string) => tags(text).map((tag) => /^<(\w+)/.exec(tag)?.[1]);
    const attacked = renderReport(sampleReport(hostile));
    expect(names(attacked)).toEqual(names(renderReport(sampleReport("x"))));
    expect(attacked).not.toContain("alert(1)</script>");
    for (const character of ["\u202e", "\u0000"]) expect(attacked.includes(character)).toBe(false);
  });

  it("names every table and landmark for a screen reader", () => {
    const ids = new Set([...page.matchAll(/\sid="([^"]+)"/g)].map((match) => match[1]));
    for (const [, id] of page.matchAll(/aria-labelledby="([^"]+)"/g)) expect(ids).toContain(id);
    expect(page).toMatch(/<html lang="en">/);
    expect(page).toMatch(/scope="row"/);
  });

  it("counts no probe as a result", () => {
    const { evaluations: _, ...data } = sampleReport();
    const fitness = [0.9, 0.2, 0.3];
    const evaluations = fitness.map((value, i) => ({
      evaluation: i + 1,
      fitness: value,
      phase: "prune",
      probe: i === 0,
    }));
    const shown = renderReport({ ...data, evaluations });
    expect(shown).toContain("The best of 2 candidates reached 0.300.");
    expect(shown).toContain("prune (probes, no results)");
    const [, best = ""] = /class="best" d="([^"]*)"/.exec(shown) ?? [];
    expect(best.match(/V/g)).toHaveLength(1);
    expect(renderReport({ ...data, evaluations: evaluations.slice(0, 1) })).not.toContain("NaN");
  });

  it("shows a table and a card for every task", () => {
    const data = sampleReport();
    const [table] = data.scores as [ReportScores];
    const second = { ...table, metric: "perplexity", task: hostile, note: `A minimum of 0.5.${hostile}` };
    const shown = renderReport({ ...data, scores: [{ ...table, task: "sums" }, second] });
    expect(shown).toContain("Holdout score, sums");
    expect(shown).toContain('<h2 id="scores">Scores: sums</h2>');
    expect(shown).toMatch(/<h2 id="scores-2">Scores: &lt;/);
    expect(shown).toContain("holdout samples did not. A minimum of 0.5.");
    expect(shown).not.toContain("<script>");
    expect(shown.match(/<tr class="chosen">/g)).toHaveLength(2);
    const ids = new Set([...shown.matchAll(/\sid="([^"]+)"/g)].map((match) => match[1]));
    for (const [, id] of shown.matchAll(/aria-labelledby="([^"]+)"/g)) expect(ids).toContain(id);
  });

  it("shows the front as a table, the smallest plans first", () => {
    const point = (fitness: number, bytes: number, experts: readonly number[]) => ({
      values: [fitness, bytes],
      experts,
      topK: [2, 2],
    });
    const objectives = [
      { name: "fitness", better: "higher" },
      { name: hostile, better: "lower" },
    ] as const;
    const points = [
      point(0.9, 7e9, [8, 8]),
      { ...point(0.5, 3e9, [4, 3]), chosen: true },
      point(0.7, 5e9, [6, 6]),
    ];
    const shown = renderReport({ ...sampleReport(), front: { objectives, points } });
    const section = shown.slice(shown.indexOf('<h2 id="front">'), shown.indexOf('<h2 id="progress">'));
    const rows = [...section.matchAll(/<th scope="row">([^<]*)/g)].map(([, text]) => text);
    expect(rows).toEqual(["4, 3", "6", "8"]);
    expect(section).toContain("the chosen plan");
    expect(section).not.toContain("<script>");
    expect(page).not.toContain('id="front"');
  });

  it("thins out a long front without losing its ends", () => {
    const points = Array.from({ length: 5000 }, (_, i) => ({
      values: [Math.sin(i / 5000), 1000 + i, 5000 - (i % 977)],
      experts: [8],
      topK: [2],
      ...(i === 1234 && { chosen: true }),
    }));
    const objectives = [
      { name: "fitness", better: "higher" },
      { name: "bytes", better: "lower" },
      { name: "activeParameters", better: "lower" },
    ] as const;
    const shown = renderReport({ ...sampleReport(), front: { objectives, points } });
    expect(shown).toContain("5000 of the evaluated plans");
    expect(shown.match(/<tr class="(chosen)?"><th scope="row">8/g)?.length).toBeLessThanOrEqual(101);
    for (const text of ["1.00 kB", "6.00 kB", "4.02 k", "the chosen plan", "active parameters"])
      expect(shown).toContain(text);
  });

  it("keeps a few broken plans from flattening the picture", () => {
    const { evaluations: _, ...data } = sampleReport();
    const evaluations = Array.from({ length: 100 }, (_, i) => ({
      evaluation: i + 1,
      fitness: i < 5 ? -100 : 0.5 + i / 1000,
      phase: "prune",
    }));
    const shown = renderReport({ ...data, evaluations });
    expect(shown).toContain("5 far below the others lie on the lower edge");
    const [, dots = ""] = /class="dot p0" d="([^"]*)"/.exec(shown) ?? [];
    const heights = [...dots.matchAll(/M[\d.]+ ([\d.]+)h0/g)].map(([, y]) => Number(y));
    expect(heights.slice(0, 5)).toEqual(Array(5).fill(1000));
    expect(Math.max(...heights.slice(5)) - Math.min(...heights)).toBeGreaterThan(400);
  });

  it("survives a run without evaluations, holdout or merges", () => {
    const { scores, ...rest } = sampleReport();
    const empty = renderReport({
      ...rest,
      scores: scores.map((table) => ({
        ...table,
        rows: table.rows.map(({ label, role }) => ({ label, role })),
      })),
      evaluations: [],
      work: [],
    });
    expect(empty).not.toContain("NaN");
    expect(empty).not.toContain("undefined");
    expect(empty).not.toContain("Infinity");
  });

  it("draws metrics that are not shares and values that are not finite", () => {
    const data = sampleReport();
    const page = renderReport({
      ...data,
      scores: data.scores.map((table) => ({
        ...table,
        rows: table.rows.map((row) => ({
          ...row,
          search: { value: 412.5, low: 300, high: Number.POSITIVE_INFINITY, samples: 3 },
        })),
      })),
      evaluations: data.evaluations.map((point) => ({ ...point, fitness: -4 })),
    });
    expect(page).not.toMatch(/NaN|Infinity/);
    expect(page).toContain("412.5");
  });

  it("says which layers have slots by units, refitted experts, new routers and skip rules", () => {
    const data = sampleReport();
    const [first, second, third, ...others] = data.layers as [
      ReportLayer,
      ReportLayer,
      ReportLayer,
      ...ReportLayer[],
    ];
    const page = renderReport({
      ...data,
      layers: [
        { ...first, unitSlots: 3, refitSlots: 4, newRouter: true },
        { ...second, refitSlots: 1, skip: { rule: "ratio", threshold: 0.25 } },
        { ...third, unitSlots: 1, skip: { rule: "top-p", threshold: 0.9, spare: 0.02 } },
        ...others,
      ],
    });
    expect(page).toContain(
      "layer 0: 4 of 8, top-2, 3 slots by units, 4 down projections refitted, new router<",
    );
    expect(page).toContain(
      "layer 1: 4 of 8, top-2, 1 down projection refitted, skips below 25.0 % of the largest<",
    );
    expect(page).toContain(
      "layer 2: 4 of 8, top-2, 1 slot by units, skips beyond 90.0 % of the sum, spares 2.0 % of tokens<",
    );
    expect(page).toContain("layer 3: 4 of 8, top-2<");
    for (const sentence of [
      "averages over the units",
      "their last matrix was computed anew",
      "of the kept experts, but computed anew",
      "sizes per token are those without",
    ]) {
      expect(page).toContain(sentence);
      expect(renderReport(data)).not.toContain(sentence);
    }
  });

  it("stays small for many evaluations and experts", () => {
    const data = sampleReport();
    const page = renderReport({
      ...data,
      evaluations: Array.from({ length: 50_000 }, (_, i) => ({
        evaluation: i + 1,
        fitness: i % 7,
        phase: "prune",
      })),
      layers: Array.from({ length: 48 }, (_, layer) => ({
        layer,
        experts: 128,
        kept: Array.from({ length: 64 }, (_, i) => 2 * i),
        mapped: false,
        topK: 8,
      })),
    });
    expect(page.length).toBeLessThan(1_200_000);
  });
});

describe("reportLayers", () => {
  const model = {
    family: "mixtral",
    fingerprint: "f",
    layers: [0, 1].map((index) => ({
      index,
      feedForward: { kind: "moe", router: { topK: 2 }, experts: [{}, {}, {}] },
    })),
  } as unknown as MoeModel;

  it("lists layers that the plan leaves alone as kept whole", () => {
    const plan = createPlan(model, [
      {
        layer: 1,
        experts: [2, 0],
        topK: 1,
        merge: [
          [0, 0, 1],
          [1, 0, 0],
        ],
      },
    ]);
    expect(reportLayers(model, plan)).toEqual([
      { layer: 0, experts: 3, kept: [0, 1, 2], mapped: false, topK: 2 },
      {
        layer: 1,
        experts: 3,
        kept: [2, 0],
        mapped: false,
        topK: 1,
        merge: [
          [0, 0, 1],
          [1, 0, 0],
        ],
      },
    ]);
  });
});

describe("reportLayers of plans with units, refitted experts, router rows and skip rules", () => {
  const skip = { rule: "ratio", threshold: 0.5 } as const;
  const model = {
    family: "mixtral",
    fingerprint: "f",
    layers: [0, 1].map((index) => ({
      index,
      feedForward: { kind: "moe", router: { topK: 1, ...(index === 1 && { skip }) }, experts: [{}, {}, {}] },
    })),
  } as unknown as MoeModel;
  const units = [
    { expert: 0, to: [1, 0, -1, 2], rows: [1, 0.5, 8, 0.5], columns: 1 },
    { expert: 2, to: [0, 1, 2, 3], rows: 0.25, columns: 0.75 },
  ];

  it("averages over units, and tells merged, whole and put together slots apart", () => {
    const merge = [
      [0.5, 0, 0.5],
      [0.125, 0.875, 0],
    ];
    const layer = { layer: 0, experts: [2, 1], units: [units, null], router: { weight: "" } };
    const [plain] = reportLayers(model, createPlan(model, [layer]));
    const fields = {
      layer: 0,
      experts: 3,
      kept: [2, 1],
      mapped: false,
      topK: 1,
      unitSlots: 1,
      newRouter: true,
    };
    expect(plain).toEqual({
      ...fields,
      merge: [
        [0.5, 0, 0.25],
        [0, 1, 0],
      ],
    });
    const [merged] = reportLayers(model, createPlan(model, [{ ...layer, merge }]));
    expect(merged?.merge).toEqual([[0.5, 0, 0.25], merge[1]]);
  });

  it("counts the slots whose down projections are changed", () => {
    const down = packBfloat16(Float32Array.of(0, 0, 0, 1, -1, 0));
    const [layer, other] = reportLayers(model, createPlan(model, [{ layer: 0, experts: [2, 1, 0], down }]));
    expect(layer?.refitSlots).toBe(2);
    expect(other).not.toHaveProperty("refitSlots");
  });

  it("names the rule in force: the model's own, or the plan's in its place", () => {
    const all = { layer: 1, experts: [0, 1, 2] };
    expect(reportLayers(model, createPlan(model))[1]?.skip).toEqual(skip);
    const other = { rule: "top-p", threshold: 0.5 } as const;
    expect(reportLayers(model, createPlan(model, [{ ...all, skip: other }]))[1]?.skip).toEqual(other);
    const none = { rule: "ratio", threshold: 0 } as const;
    expect(reportLayers(model, createPlan(model, [{ ...all, skip: none }]))[1]).not.toHaveProperty("skip");
  });
});

describe("formatting", () => {
  it("keeps units and digits readable", () => {
    expect([0, 999, 999_499, 999_500, 53_548_032, 7e9].map(formatBytes)).toEqual([
      "0 B",
      "999 B",
      "999 kB",
      "1.00 MB",
      "53.5 MB",
      "7.00 GB",
    ]);
    expect([8, 1500, 26_774_016].map(formatCount)).toEqual(["8", "1.50 k", "26.8 M"]);
    expect([0.5, 412.49, Number.NaN].map(formatScore)).toEqual(["0.500", "412.5", "–"]);
    expect([0.05, -0.05].map(formatDifference)).toEqual(["+0.050", "−0.050"]);
  });

  it("escapes what could leave an attribute or a text", () => {
    expect(escapeHtml(`<&>"'`)).toBe("&lt;&amp;&gt;&quot;&#39;");
    expect(escapeHtml("a\u202eb\u0007")).toBe("a\\u202eb\\u0007");
    expect(escapeHtml("\ud83c\udf33\ud800")).toBe("\ud83c\udf33\ufffd");
  });
});
