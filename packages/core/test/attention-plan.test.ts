import {
  type AttentionPlan,
  attentionPlanModel,
  type GroupedQueryAttentionSpec,
  limitableLayers,
  type MoeModel,
  parseAttentionPlan,
  resolveSpans,
  seesPosition,
  spanDensity,
  spanTokens,
} from "@coppice/core";
import { describe, expect, test } from "vitest";
import { tinyModel } from "./tiny-model.js";

const { model } = tinyModel();

function plan(more: Partial<Record<keyof AttentionPlan, unknown>> = {}): AttentionPlan {
  return {
    format: "coppice.attention",
    version: 1,
    model: { family: "tiny", fingerprint: "f00d", layers: 3, heads: 2, kvHeads: 1, headDim: 4 },
    blockSize: 4,
    sinks: 2,
    rules: [
      { alpha: 0, beta: 1 },
      { alpha: -8, beta: 0.5 },
      { alpha: 6, beta: 0 },
    ],
    layers: [[0], [1], [2]],
    ...more,
  } as AttentionPlan;
}

/** The model with other attention in its last layer. */
function changed(attention: Partial<GroupedQueryAttentionSpec> | MoeModel["layers"][number]["attention"]) {
  const [a, b, c] = model.layers as [MoeModel["layers"][number], ...MoeModel["layers"]];
  const last = c as MoeModel["layers"][number];
  return {
    ...model,
    layers: [a, b, { ...last, attention: { ...last.attention, ...attention } }],
  } as MoeModel;
}

const latent = {
  kind: "mla",
  heads: 2,
  scale: 1,
  nopeDim: 2,
  valueDim: 2,
  rank: 2,
} as unknown as MoeModel["layers"][number]["attention"];

describe("parseAttentionPlan", () => {
  test("reads what JSON holds", () => {
    const whole = plan({ layers: [[0], null, [2]], report: { losses: [1, 2] } });
    expect(parseAttentionPlan(JSON.parse(JSON.stringify(whole)), model)).toEqual(whole);
  });

  const refused: [string, unknown, string, RegExp][] = [
    ["no object", [], "COPPICE_ATTENTION_INVALID", /\[\]/],
    [
      "another format",
      plan({ format: "coppice.plan" }),
      "COPPICE_ATTENTION_INVALID",
      /coppice\.plan.*coppice\.attention/,
    ],
    ["another version", plan({ version: 2 }), "COPPICE_ATTENTION_INVALID", /is 2.*version 1/],
    ["an unknown key", { ...plan(), span: 3 }, "COPPICE_ATTENTION_INVALID", /"span"/],
    ["no blocks", plan({ blockSize: 0 }), "COPPICE_ATTENTION_INVALID", /blockSize is 0, expected 1 to 4096/],
    [
      "more sinks than positions",
      plan({ sinks: 32 }),
      "COPPICE_ATTENTION_INVALID",
      /sinks is 32, expected 0 to 31/,
    ],
    [
      "a share above 1",
      plan({ rules: [{ alpha: 0, beta: 1.5 }] }),
      "COPPICE_ATTENTION_INVALID",
      /rules\[0\].beta is 1.5/,
    ],
    [
      "no number",
      plan({ rules: [{ alpha: null, beta: 1 }] }),
      "COPPICE_ATTENTION_INVALID",
      /rules\[0\].alpha is null/,
    ],
    [
      "endless rules",
      plan({ rules: new Array(4097).fill({ alpha: 0, beta: 1 }) }),
      "COPPICE_ATTENTION_INVALID",
      /4097 rules; at most 4096/,
    ],
    ["too few layers", plan({ layers: [[0], [1]] }), "COPPICE_ATTENTION_INVALID", /2 entries, expected 3/],
    [
      "a rule that is not there",
      plan({ layers: [[0], [3], null] }),
      "COPPICE_ATTENTION_INVALID",
      /layers\[1\]\[0\] is 3, expected 0 to 2/,
    ],
    [
      "too many heads",
      plan({ layers: [[0, 1], null, null] }),
      "COPPICE_ATTENTION_INVALID",
      /layers\[0\] has 2 rules, expected 1/,
    ],
    ["a report that is none", plan({ report: [1] }), "COPPICE_ATTENTION_INVALID", /report is \[1\]/],
    [
      "another model",
      plan({ model: { ...plan().model, fingerprint: "cafe" } }),
      "COPPICE_ATTENTION_MODEL",
      /"cafe".*"f00d"/,
    ],
    [
      "another head count",
      plan({ model: { ...plan().model, kvHeads: 2 } }),
      "COPPICE_ATTENTION_MODEL",
      /2 KV heads.*has 1/,
    ],
    [
      "another layer count",
      plan({ model: { ...plan().model, layers: 9 } }),
      "COPPICE_ATTENTION_MODEL",
      /9 decoder layers.*has 3/,
    ],
  ];
  test.each(refused)("refuses %s", (_, value, code, message) => {
    expect(() => parseAttentionPlan(value, model)).toThrow(
      expect.objectContaining({ code, message: expect.stringMatching(message) }),
    );
  });

  test("takes plans for what a model was made from", () => {
    const smaller = { ...model, fingerprint: "beef", derivedFrom: ["cafe", "f00d"] };
    expect(parseAttentionPlan(plan(), smaller).model.fingerprint).toBe("f00d");
    expect(() => parseAttentionPlan(plan(), { ...smaller, derivedFrom: ["cafe"] })).toThrow(
      /"f00d".*"beef" and was made from "cafe"/,
    );
  });

  test.each([
    ["a sliding window of 5", changed({ slidingWindow: 5 })],
    ["chunks of 8", changed({ chunk: 8 })],
    ["multi-head latent attention", changed(latent)],
    ["Mamba-2", changed({ kind: "other", name: "Mamba-2" })],
  ])("leaves a layer as it is that has %s", (name, other) => {
    expect(limitableLayers(other).map(({ index }) => index)).toEqual([0, 1]);
    expect(parseAttentionPlan(plan({ layers: [[0], [1], null] }), other).layers[2]).toBeNull();
    expect(() => parseAttentionPlan(plan(), other)).toThrow(
      expect.objectContaining({
        code: "COPPICE_ATTENTION_UNSUPPORTED",
        message: expect.stringContaining(`layer 2 has ${name}`),
      }),
    );
  });
});

describe("attentionPlanModel", () => {
  test("names the sizes of the layers that can be limited", () => {
    expect(attentionPlanModel(changed(latent))).toEqual(plan().model);
  });

  test("refuses models without such a layer, and those whose layers differ", () => {
    const none = { ...model, layers: changed(latent).layers.slice(2) };
    expect(() => attentionPlanModel(none)).toThrow(/tiny model.*1 layers have multi-head latent attention/);
    expect(() => attentionPlanModel(changed({ heads: 4 }))).toThrow(/layer 2 has 4 heads.*layer 0 has 2/);
  });
});

describe("spans", () => {
  test("are whole blocks, with a key behind the sinks at least", () => {
    const of = (sinks: number, alpha: number, beta: number, length: number) =>
      spanTokens({ blockSize: 4, sinks }, { alpha, beta }, length);
    expect(of(2, -8, 0.5, 64)).toBe(24);
    expect(of(2, -7, 0.5, 64)).toBe(28);
    expect(of(2, -100, 0.5, 64)).toBe(4);
    expect(of(4, -100, 0.5, 64)).toBe(8);
    expect(of(0, 0, 0, 64)).toBe(4);
    expect(of(2, 0, 1, 63)).toBe(64);
  });

  test("are resolved at a length, and nothing where all heads see everything", () => {
    expect(resolveSpans(plan(), 0, 64)).toBeUndefined();
    expect(resolveSpans(plan(), 1, 64)).toEqual([{ sinks: 2, window: 22 }]);
    expect(resolveSpans(plan({ layers: [null, null, null] }), 1, 64)).toBeUndefined();
    // 8 tokens of 8.
    expect(resolveSpans(plan(), 2, 8)).toBeUndefined();
    expect(resolveSpans(plan(), 2, 9)).toEqual([{ sinks: 2, window: 6 }]);
  });

  test("let a query see the sinks and what is before it", () => {
    const seen = Array.from({ length: 12 }, (_, key) => key).filter((key) =>
      seesPosition({ sinks: 2, window: 3 }, 9, key),
    );
    expect(seen).toEqual([0, 1, 7, 8, 9]);
    expect(seesPosition(undefined, 9, 0)).toBe(true);
    expect(seesPosition(undefined, 9, 10)).toBe(false);
  });

  test("have a density", () => {
    expect(spanDensity(plan(), 64)).toBeCloseTo((1 + 24 / 64 + 8 / 64) / 3, 12);
    expect(spanDensity(plan({ layers: [null, null, null] }), 64)).toBe(1);
  });
});
