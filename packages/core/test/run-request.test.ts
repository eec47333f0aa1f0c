import {
  checkLoadRange,
  checkRunRequest,
  createPlan,
  type KvCache,
  type RunRequest,
  type TokenDraw,
} from "@coppice/core";
import { describe, expect, test } from "vitest";
import { tinyModel } from "./tiny-model.js";

const { model } = tinyModel();
const ids = (...tokens: number[]) => Int32Array.from(tokens);
const sequences = [ids(1, 2, 3), ids(4), ids(5, 6)];
const cacheOf = (lengths: number[]): KvCache => ({ lengths, dispose() {} });

describe("checkRunRequest", () => {
  test("packs rows and fills in the whole range of layers", () => {
    expect(checkRunRequest(model, { sequences })).toEqual({
      tokens: 6,
      starts: ids(0, 3, 4, 6),
      from: 0,
      to: 3,
    });
    const positions = [ids(0, 2), ids(), ids(1)];
    expect(checkRunRequest(model, { sequences, positions }).rows).toEqual(ids(0, 2, 5));
    const targets = [ids(7, 8), ids(), ids(9)];
    expect(checkRunRequest(model, { sequences, positions, targets }).targets).toEqual(ids(7, 8, 9));
    const hidden = new Float32Array(6 * 8);
    expect(checkRunRequest(model, { sequences, from: 1, to: 2, hidden, boundaries: [2] })).toMatchObject({
      from: 1,
      to: 2,
    });
    expect(checkRunRequest(model, { sequences, cache: cacheOf([0, 3, 9]) }).tokens).toBe(6);
  });

  test("takes held boundaries of runners that hold them", () => {
    const held = { bytes: 192, dispose: () => {} };
    const check = (request: Partial<RunRequest>) =>
      checkRunRequest(model, { sequences, ...request }, undefined, undefined, {
        pace: { batchTokens: 1, runners: 1 },
      });
    expect(check({ from: 1, held, hold: [2] })).toMatchObject({ from: 1, to: 3 });
    expect(() => check({ held })).toThrow(/held is given but from is 0/);
    expect(() => check({ from: 1, held, hidden: new Float32Array(48) })).toThrow(/both hidden and held/);
    expect(() => check({ from: 1, held, hold: [1] })).toThrow(/boundary 1 .* expected 2 to 3/);
  });

  test("takes what is to be drawn of runners that draw", () => {
    const positions = [ids(1), ids(), ids(0, 1)];
    const check = (draw: Partial<TokenDraw>, more: Partial<RunRequest> = {}) => {
      const whole = { rule: { temperature: 1, topK: 3 }, uniforms: Float64Array.of(0, 0.5, 0.9), ...draw };
      const request = { sequences, positions, draw: whole, ...more };
      return checkRunRequest(model, request, undefined, undefined, { draws: true });
    };
    const targets = [ids(1), ids(), ids(1, 1)];
    expect(check({ seen: [ids(1, 2), ids(), ids(10)] }).rows).toEqual(ids(1, 4, 5));
    expect(() => check({ rule: { topP: 0 } })).toThrow(/topP is 0, expected more than 0/);
    expect(() => check({ uniforms: Float64Array.of(0) })).toThrow(/1 random numbers .* to draw 3 tokens/);
    expect(() => check({ uniforms: Float64Array.of(0, 1, 0) })).toThrow(/drawn with 1; give numbers of/);
    expect(() => check({ seen: [ids()] })).toThrow(/seen tokens are given for 1 rows, 3 are drawn/);
    expect(() => check({ seen: [ids(), ids(11), ids()] })).toThrow(/seen tokens of row 1 has token 11 at 0/);
    expect(() => check({}, { targets })).toThrow(/both targets and a draw/);
    const alone: RunRequest = { sequences, draw: { rule: {}, uniforms: new Float64Array(0) } };
    expect(() => checkRunRequest(model, alone, undefined, undefined, { draws: true })).toThrow(
      /a draw is given without positions/,
    );
  });

  test("packs more targets than a call can take arguments", () => {
    const many = new Int32Array(300_000).fill(3);
    const positions = [many.map((_, i) => i)];
    expect(checkRunRequest(model, { sequences: [many], positions, targets: [many] }).targets).toHaveLength(
      300_000,
    );
  });

  const hidden = new Float32Array(48);
  const refused: [string, RunRequest, RegExp][] = [
    ["no sequence", { sequences: [] }, /no sequence/],
    ["an empty sequence", { sequences: [ids(1), ids()] }, /sequence 1 is empty/],
    [
      "an unknown token",
      { sequences: [ids(1, 11)] },
      /sequence 0 has token 11 at 1; the vocabulary is 0 to 10/,
    ],
    ["a negative token", { sequences: [ids(-1)] }, /token -1/],
    ["from beyond to", { sequences, from: 2, to: 1, hidden }, /layers from 2 to 1.*0 <= from < to <= 3/],
    ["an empty range", { sequences, from: 1, to: 1, hidden }, /from 1 to 1/],
    ["a fraction", { sequences, to: 1.5 }, /to 1.5/],
    ["a layer too many", { sequences, to: 4 }, /to 4/],
    ["a negative layer", { sequences, from: -1 }, /from -1/],
    ["no hidden", { sequences, from: 1 }, /from is 1 but hidden/],
    ["boundaries to hold", { sequences, hold: [1] }, /held by the runner, which has no pace/],
    ["a held boundary", { sequences, from: 1, held: { bytes: 0, dispose: () => {} } }, /which has no pace/],
    [
      "tokens to draw",
      { sequences, positions: [ids(), ids(), ids()], draw: { rule: {}, uniforms: new Float64Array(0) } },
      /drawn by the runner, which has no draws/,
    ],
    ["hidden at the start", { sequences, hidden }, /hidden is given but from is 0/],
    [
      "hidden of another size",
      { sequences, from: 1, hidden: hidden.subarray(1) },
      /47 values, expected 6 x 8/,
    ],
    ["an early boundary", { sequences, from: 1, hidden, boundaries: [1] }, /boundary 1 .* expected 2 to 3/],
    ["a late boundary", { sequences, to: 2, boundaries: [3] }, /boundary 3 .* expected 1 to 2/],
    ["a broken boundary", { sequences, boundaries: [0.5] }, /boundary 0.5/],
    ["positions of two", { sequences, positions: [ids(), ids()] }, /for 2 sequences, the batch has 3/],
    [
      "a far position",
      { sequences, positions: [ids(3), ids(), ids()] },
      /position 3 .* sequence 0 of 3 tokens/,
    ],
    ["a descending position", { sequences, positions: [ids(1, 0), ids(), ids()] }, /position 0 follows 1/],
    ["positions inside", { sequences, to: 2, positions: [ids(), ids(), ids()] }, /layers up to 3, not 2/],
    ["lone targets", { sequences, targets: [] }, /targets are given without positions/],
    [
      "targets for two",
      { sequences, positions: [ids(), ids(), ids()], targets: [ids(), ids()] },
      /targets are given for 2 sequences/,
    ],
    [
      "too few targets",
      { sequences, positions: [ids(0, 1), ids(), ids()], targets: [ids(1), ids(), ids()] },
      /sequence 0 has 1 targets for 2 positions/,
    ],
    [
      "an unknown target",
      { sequences, positions: [ids(0), ids(), ids()], targets: [ids(11), ids(), ids()] },
      /targets of sequence 0 has token 11/,
    ],
    ["a cache of two", { sequences, cache: cacheOf([0, 0]) }, /cache holds 2 sequences, the request 3/],
    [
      "a mask of other tokens",
      { sequences, tap: { fields: [], every: new Uint8Array(5), onLayer() {} } },
      /mask has 5 values for 6 tokens/,
    ],
    [
      "a memory and a cache",
      { sequences, memory: { bytes: 0, dispose() {} }, cache: cacheOf([0, 0, 0]) },
      /a memory of layer 0 is given together with a cache/,
    ],
    ["a cache of a part", { sequences, to: 2, cache: cacheOf([0, 0, 0]) }, /a cache needs all 3 layers/],
  ];
  test.each(refused)("refuses %s", (_, request, message) => {
    expect(() => checkRunRequest(model, request)).toThrow(
      expect.objectContaining({ code: "COPPICE_USAGE", message: expect.stringMatching(message) }),
    );
  });

  test("refuses layers that the runner was not loaded with", () => {
    const loaded = { from: 1, to: 2 };
    expect(checkRunRequest(model, { sequences, from: 1, to: 2, hidden }, loaded)).toMatchObject(loaded);
    for (const request of [{ sequences, to: 2 }, { sequences, from: 1, hidden }, { sequences }]) {
      expect(() => checkRunRequest(model, request, loaded)).toThrow(
        expect.objectContaining({
          code: "COPPICE_USAGE",
          message: expect.stringMatching(/are wanted; the runner was loaded with those from 1 to 2/),
        }),
      );
    }
  });

  test("refuses a plan of another model", () => {
    const plan = createPlan({ ...model, fingerprint: "beef" });
    expect(() => checkRunRequest(model, { sequences, plan })).toThrow(
      expect.objectContaining({
        code: "COPPICE_PLAN_MODEL",
        message: expect.stringMatching(/"beef".*"f00d"/),
      }),
    );
  });
});

describe("checkLoadRange", () => {
  test("gives all layers, or those that are asked for", () => {
    expect(checkLoadRange({ model })).toEqual({ from: 0, to: 3 });
    expect(checkLoadRange({ model, layers: { from: 1, to: 2 } })).toEqual({ from: 1, to: 2 });
  });

  test.each([
    [1, 1],
    [2, 1],
    [-1, 1],
    [0, 4],
    [0.5, 1],
    [0, 1.5],
    [Number.NaN, 1],
  ])("refuses %d to %d", (from, to) => {
    expect(() => checkLoadRange({ model, layers: { from, to } })).toThrow(
      expect.objectContaining({
        code: "COPPICE_USAGE",
        message: `layers from ${from} to ${to} are to be loaded; give 0 <= from < to <= 3`,
      }),
    );
  });
});
