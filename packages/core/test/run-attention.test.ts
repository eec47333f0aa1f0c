import {
  type AttentionPlan,
  attentionPlanModel,
  type BlockMask,
  blockMask,
  checkBlockMask,
  checkKeyPages,
  checkRunAttention,
  checkRunRequest,
  maskedColumns,
  type RunAttention,
  spanMask,
} from "@coppice/core";
import { describe, expect, test } from "vitest";
import { tinyModel } from "./tiny-model.js";

const { model } = tinyModel();
const plan: AttentionPlan = {
  format: "coppice.attention",
  version: 1,
  model: attentionPlanModel(model),
  blockSize: 4,
  sinks: 2,
  rules: [{ alpha: 6, beta: 0 }],
  layers: [[0], null, [0]],
};
const all = { spans: true, prefillMasks: true, decodePages: true };
const failing = (code: string, message: RegExp) =>
  expect.objectContaining({ code, message: expect.stringMatching(message) });

describe("checkRunAttention", () => {
  test("gives every sequence a length", () => {
    expect(checkRunAttention(model, { plan }, [3, 5], all)).toEqual({ plan, lengths: [3, 5] });
    expect(checkRunAttention(model, { plan, lengths: [9, 8] }, [3, 5], all)).toEqual({
      plan,
      lengths: [9, 8],
    });
    const masker = { prefill: () => undefined };
    expect(checkRunAttention(model, { masker }, [3, 5], all)).toEqual({ masker });
  });

  const refused: [string, RunAttention, string, RegExp][] = [
    ["nothing", {}, "COPPICE_USAGE", /not neither/],
    ["two things at once", { plan, masker: {} }, "COPPICE_USAGE", /not both/],
    ["lengths of a masker", { masker: {}, lengths: [3, 5] }, "COPPICE_USAGE", /masker/],
    ["lengths of other sequences", { plan, lengths: [3] }, "COPPICE_USAGE", /1 lengths for 2 sequences/],
    ["no length", { plan, lengths: [3, 0.5] }, "COPPICE_USAGE", /sequence 1 is 0\.5/],
    [
      "a length beyond the positions",
      { plan, lengths: [3, 33] },
      "COPPICE_ATTENTION_LENGTH",
      /33.*32 positions/,
    ],
    [
      "a plan that is none",
      { plan: { ...plan, layers: [] } },
      "COPPICE_ATTENTION_INVALID",
      /0 entries, expected 3/,
    ],
  ];
  test.each(refused)("refuses %s", (_, attention, code, message) => {
    expect(() => checkRunAttention(model, attention, [3, 5], all)).toThrow(failing(code, message));
  });

  test("refuses what a backend does not know", () => {
    const code = "COPPICE_BACKEND_UNSUPPORTED";
    expect(() => checkRunAttention(model, { plan }, [3])).toThrow(failing(code, /attention plans/));
    const masks = { masker: { prefill: () => undefined } };
    expect(() => checkRunAttention(model, masks, [3], { ...all, prefillMasks: false })).toThrow(
      failing(code, /masks of prompts/),
    );
    const pages = { masker: { decode: () => undefined } };
    expect(() => checkRunAttention(model, pages, [3], { ...all, decodePages: false })).toThrow(
      failing(code, /pages of keys/),
    );
    expect(checkRunAttention(model, pages, [3], { ...all, prefillMasks: false })).toEqual(pages);
  });

  test("is part of checking a run", () => {
    const sequences = [Int32Array.of(1, 2, 3), Int32Array.of(4)];
    const checked = checkRunRequest(model, { sequences, attention: { plan } }, undefined, all);
    expect(checked.attention).toEqual({ plan, lengths: [3, 1] });
    expect(() => checkRunRequest(model, { sequences, attention: { plan } })).toThrow(
      failing("COPPICE_BACKEND_UNSUPPORTED", /attention plans/),
    );
    const cache = { lengths: [0, 0], dispose() {} };
    expect(() => checkRunRequest(model, { sequences, attention: { plan }, cache }, undefined, all)).toThrow(
      failing("COPPICE_USAGE", /cache/),
    );
  });
});

describe("a block mask", () => {
  test("has the layout of the SparseAttention operator", () => {
    // Blocks of 4 of 14 tokens; sinks reach into the first, windows of 3 keys into the block before.
    const mask = spanMask([{ sinks: 1, window: 3 }, undefined], 4, 14, 4);
    expect(mask).toEqual({
      blockSize: 4,
      blocks: 4,
      layouts: 4,
      rows: Int32Array.of(...[0, 1, 3, 6, 9], ...[0, 1, 3, 6, 9], ...[0, 1, 3, 6, 10], ...[0, 1, 3, 6, 10]),
      columns: Int32Array.of(
        ...[0, 0, 1, 0, 1, 2, 0, 2, 3, -1],
        ...[0, 0, 1, 0, 1, 2, 0, 2, 3, -1],
        ...[0, 0, 1, 0, 1, 2, 0, 1, 2, 3],
        ...[0, 0, 1, 0, 1, 2, 0, 1, 2, 3],
      ),
    });
    expect([...maskedColumns(mask, 1, 3)]).toEqual([0, 2, 3]);
    expect([...maskedColumns(mask, 2, 3)]).toEqual([0, 1, 2, 3]);
    expect(spanMask([{ sinks: 1, window: 3 }], 4, 14, 4).layouts).toBe(1);
    expect(() => checkBlockMask(mask, 4, 14)).not.toThrow();
  });

  const good = blockMask(4, 3, 2, () => true);
  const unusable: [string, BlockMask, RegExp][] = [
    ["no block size", { ...good, blockSize: 0 }, /blockSize is 0/],
    ["another length", { ...good, blocks: 4 }, /4 blocks; 10 tokens in blocks of 4 are 3/],
    ["layouts that do not divide", { ...good, layouts: 3 }, /3 layouts.*4 heads/],
    ["rows that are missing", { ...good, rows: good.rows.subarray(1) }, /7 values, expected 2 x 4/],
    ["columns that are missing", { ...good, columns: good.columns.subarray(1) }, /11 values/],
    ["rows that begin late", { ...good, rows: good.rows.with(4, 1) }, /layout 1 begin with 1/],
    [
      "rows that end before they start",
      { ...good, rows: good.rows.with(2, 0) },
      /row 1 of layout 0 holds columns 1 to 0/,
    ],
    ["rows beyond the columns", { ...good, rows: good.rows.with(7, 9) }, /columns 3 to 9 of 6/],
    ["a block of later keys", { ...good, columns: good.columns.with(0, 1) }, /row 0 of layout 0 has block 1/],
    ["a block twice", { ...good, columns: good.columns.with(2, 0) }, /block 0 behind 0/],
    [
      "queries without their own block",
      blockMask(4, 3, 2, (_, row, column) => row !== 1 || column === 0),
      /row 1 of layout 0 lacks/,
    ],
  ];
  test.each(unusable)("with %s is refused", (_, mask, message) => {
    expect(() => checkBlockMask(mask, 4, 10)).toThrow(failing("COPPICE_ATTENTION_INVALID", message));
  });
});

describe("checkKeyPages", () => {
  const pages = (...heads: number[][]) => ({
    pageSize: 4,
    heads: heads.map((list) => Int32Array.from(list)),
  });
  test("takes ascending pages with the newest", () => {
    expect(() => checkKeyPages(pages([0, 2], [2]), 2, 9)).not.toThrow();
  });
  test.each([
    [{ ...pages([0]), pageSize: 0.5 }, /pageSize is 0\.5/],
    [pages([2]), /1 KV heads, expected 2/],
    [pages([2], [0, 1]), /head 1 lacks page 2/],
    [pages([2], []), /head 1 lacks page 2/],
    [pages([0, 0, 2], [2]), /page 0 behind 0/],
    [pages([2, 3], [2]), /page 3 behind 2.*up to 2/],
    [pages([-1, 2], [2]), /page -1/],
  ])("refuses others (%#)", (value, message) => {
    expect(() => checkKeyPages(value, 2, 9)).toThrow(failing("COPPICE_ATTENTION_INVALID", message));
  });
});
