import {
  createPlan,
  type ErrorCode,
  highest,
  isCoppiceError,
  packBfloat16,
  packFloats,
  parsePlan,
  planFromScores,
} from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { anyPlan } from "./plan-arbitrary.js";
import { tinyModel } from "./tiny-model.js";

const { model } = tinyModel();
const valid = createPlan(model, [{ layer: 0, experts: [3, 1] }]);
const layer = (entry: unknown) => ({ ...valid, layers: [entry] });
const row = [0, 0, 0, 1, 0];
const source = (changes: object = {}) => ({ expert: 0, to: [0, 1, 2], rows: 1, columns: 1, ...changes });
const rows = (slots: number) => packFloats(new Float32Array(slots * 8));
const deltas = (count: number) => packBfloat16(new Float32Array(count));

function expectRefused(value: unknown, code: ErrorCode, message: RegExp): void {
  expect(() => parsePlan(value, model)).toThrow(
    expect.objectContaining({ code, message: expect.stringMatching(message) }),
  );
}

describe("parsePlan", () => {
  test("gives back every valid plan after JSON", () => {
    fc.assert(
      fc.property(anyPlan(model), (plan) => {
        const text = JSON.stringify(plan);
        expect(JSON.stringify(parsePlan(JSON.parse(text), model))).toBe(text);
      }),
    );
  });

  test("fails with its own codes on any value", () => {
    const layers = fc.array(
      fc.dictionary(fc.constantFrom("layer", "experts", "merge", "topK", "x"), fc.anything()),
    );
    fc.assert(
      fc.property(
        fc.oneof(
          fc.anything(),
          layers.map((list) => ({ ...valid, layers: list })),
        ),
        (value) => {
          try {
            parsePlan(value, model);
          } catch (error) {
            expect(isCoppiceError(error)).toBe(true);
          }
        },
      ),
      { numRuns: 500 },
    );
  });

  const refused: [unknown, RegExp][] = [
    [null, /the plan is null, expected an object/],
    [[], /the plan is \[\], expected an object/],
    [{ ...valid, format: "onnx" }, /format is "onnx", expected "coppice.plan"/],
    [{ ...valid, version: 2 }, /version is 2, this release reads version 1/],
    [{ ...valid, version: "1" }, /version is "1"/],
    [{ ...valid, extra: 1 }, /unknown key "extra"; known are format, version, model, layers/],
    [{ ...valid, layers: {} }, /layers is {}, expected an array/],
    [{ ...valid, model: null }, /model is null/],
    [layer({ layer: 0, expert: [1, 2] }), /layers\[0\] has the unknown key "expert"/],
    [layer({ layer: 1, experts: [0, 1] }), /layers\[0\].layer is 1; the model's MoE layers are 0, 2/],
    [layer({ layer: 0.5, experts: [0, 1] }), /layer is 0.5, expected an integer/],
    [layer({ layer: 0, experts: [0, 5] }), /experts\[1\] is 5; layer 0 has experts 0 to 4/],
    [layer({ layer: 0, experts: [0, -1] }), /experts\[1\] is -1/],
    [layer({ layer: 0, experts: [0, "1"] }), /experts\[1\] is "1", expected an integer/],
    [layer({ layer: 0, experts: [2, 3, 2] }), /lists an expert twice: 2, 3, 2/],
    [layer({ layer: 0, experts: [0, 1], topK: 0 }), /topK is 0, expected at least 1/],
    [layer({ layer: 0, experts: [0, 1], topK: null }), /topK is null/],
    [layer({ layer: 0, experts: [0, 1], merge: [row] }), /merge has 1 rows, expected 2, one per slot/],
    [
      layer({ layer: 0, experts: [0, 1], merge: [row, [1, 2]] }),
      /merge\[1\] has 2 values, expected 5, one per expert/,
    ],
    [
      layer({ layer: 0, experts: [0, 1], merge: [row, row.with(2, 1e7)] }),
      /merge\[1\]\[2\] is 10000000, .*±1000000/,
    ],
    [layer({ layer: 0, experts: [0, 1], routerMap: [row, row.with(4, Number.NaN)] }), /routerMap\[1\]\[4\]/],
    [layer({ layer: 0, experts: [0, 1], routerMap: "x" }), /routerMap is "x", expected an array/],
    [layer({ layer: 0, experts: [0, 1], units: [null] }), /units has 1 entries, expected 2, one per slot/],
    [layer({ layer: 0, experts: [0, 1], units: [null, [source({ expert: 5 })]] }), /expert is 5; .* 0 to 4/],
    [layer({ layer: 0, experts: [0, 1], units: [null, [source({ to: [0, 1] })]] }), /to has 2 values, .* 3/],
    [layer({ layer: 0, experts: [0, 1], units: [null, [source({ to: [0, 1, 3] })]] }), /to\[2\] is 3/],
    [layer({ layer: 0, experts: [0, 1], units: [null, [source({ to: [0, 1, -2] })]] }), /to\[2\] is -2/],
    [layer({ layer: 0, experts: [0, 1], units: [null, [source({ rows: [1] })]] }), /rows has 1 values/],
    [layer({ layer: 0, experts: [0, 1], units: [null, [source({ columns: "1" })]] }), /columns is "1"/],
    [layer({ layer: 0, experts: [0, 1], units: [[source(), source()], null] }), /expert 0 out of ascending/],
    [layer({ layer: 0, experts: [0, 1], down: 1 }), /down is 1, expected packed/],
    [
      layer({ layer: 0, experts: [0, 1], down: deltas(47) }),
      /down has 47 values, expected 48: 2 slots of \[8, 3\]/,
    ],
    [layer({ layer: 0, experts: [0, 1], down: "A" }), /down has 1 characters, which hold no .* expected 48/],
    [layer({ layer: 0, experts: [0, 1], down: `*${deltas(48).slice(1)}` }), /down: 128 characters/],
    [layer({ layer: 0, experts: [0, 1], down: `gH8A${deltas(48).slice(4)}` }), /down: value 0 is Infinity/],
    [layer({ layer: 0, experts: [0, 1], router: {} }), /router.weight is undefined, expected packed/],
    [layer({ layer: 0, experts: [0, 1], router: { weight: "AAAA" } }), /router.weight: 4 characters/],
    [
      layer({ layer: 0, experts: [0, 1], router: { weight: rows(2), bias: [0, 0] } }),
      /router.bias is given; the model's router has none/,
    ],
    [
      layer({ layer: 0, experts: [3], topK: 1, routerMap: [row], router: { weight: rows(1) } }),
      /a routerMap and router rows, which exclude each other/,
    ],
    [layer({ layer: 0, experts: [0, 1], skip: { rule: "p", threshold: 1 } }), /skip.rule is "p"/],
    [
      layer({ layer: 0, experts: [0, 1], skip: { rule: "ratio", threshold: 2 } }),
      /threshold is 2, .* 0 to 1/,
    ],
    [layer({ layer: 0, experts: [0, 1], skip: { rule: "ratio", threshold: 1, spare: -1 } }), /spare is -1/],
    [{ ...valid, layers: [valid.layers[0], valid.layers[0]] }, /layer 0 is listed twice/],
    [JSON.parse('{"__proto__": 1, "format": "coppice.plan"}'), /unknown key "__proto__"/],
  ];
  test.each(refused)("refuses %j", (value, message) => {
    expectRefused(value, "COPPICE_PLAN_INVALID", message);
  });

  test("refuses plans of another model, and fewer experts than top-k", () => {
    expectRefused(
      { ...valid, model: { family: "tiny", fingerprint: "beef" } },
      "COPPICE_PLAN_MODEL",
      /"beef".*"f00d"/,
    );
    expectRefused({ ...valid, model: { family: "x", fingerprint: "f00d" } }, "COPPICE_PLAN_MODEL", /"x"/);
    expectRefused(
      layer({ layer: 0, experts: [1] }),
      "COPPICE_PLAN_KEEP",
      /keep=1 leaves fewer .* top-k=2 in layer 0/,
    );
    expectRefused(layer({ layer: 0, experts: [] }), "COPPICE_PLAN_KEEP", /keep=0 is not possible/);
    expectRefused(layer({ layer: 0, experts: [1, 2], topK: 3 }), "COPPICE_PLAN_KEEP", /top-k=3/);
    expect(parsePlan(layer({ layer: 0, experts: [1], topK: 1 }), model).layers).toHaveLength(1);
  });

  test("never prints a whole hostile value", () => {
    try {
      parsePlan({ ...valid, format: "x".repeat(1e6) }, model);
      expect.unreachable();
    } catch (error) {
      expect((error as Error).message.length).toBeLessThan(300);
    }
  });
});

describe("planFromScores", () => {
  test("keeps the highest scores of every MoE layer, ties to the lower expert", () => {
    const scores = [
      [5, 1, 3, 3, 9],
      [0, 0, 0, 0, 0],
    ];
    const plan = planFromScores(model, scores, 3);
    expect(plan.layers).toEqual([
      { layer: 0, experts: [0, 2, 4] },
      { layer: 2, experts: [0, 1, 2] },
    ]);
    expect(parsePlan(JSON.parse(JSON.stringify(plan)), model)).toEqual(plan);
    expect(plan.model).toEqual({ family: "tiny", fingerprint: "f00d" });
  });

  test("takes any array of numbers and leaves it as it is", () => {
    const scores = [Float64Array.of(1, 2, 3, 4, 5), Float32Array.of(5, 4, 3, 2, 1)];
    expect(planFromScores(model, scores, 2).layers.map(({ experts }) => experts)).toEqual([
      [3, 4],
      [0, 1],
    ]);
    expect([...(scores[0] as Float64Array)]).toEqual([1, 2, 3, 4, 5]);
    expect(highest([Number.NEGATIVE_INFINITY, 2, Number.POSITIVE_INFINITY], 2)).toEqual([1, 2]);
  });

  test("refuses what no router can serve, with both numbers", () => {
    const scores = [
      [1, 2, 3, 4, 5],
      [1, 2, 3, 4, 5],
    ];
    const refused = (keep: number, message: RegExp) =>
      expect(() => planFromScores(model, scores, keep)).toThrow(
        expect.objectContaining({ code: "COPPICE_PLAN_KEEP", message: expect.stringMatching(message) }),
      );
    refused(1, /keep=1 leaves fewer experts than top-k=2/);
    refused(6, /keep=6 is not possible in layer 0, which has 5 experts/);
    refused(0, /keep=0/);
    refused(2.5, /keep=2.5/);
    refused(Number.NaN, /keep=NaN/);
    expect(() => planFromScores(model, scores.slice(1), 2)).toThrow(
      expect.objectContaining({
        code: "COPPICE_PLAN_INVALID",
        message: expect.stringMatching(/1 layers.*2 MoE/),
      }),
    );
  });
});
