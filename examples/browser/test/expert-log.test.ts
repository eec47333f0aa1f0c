import { describe, expect, it } from "vitest";
import { ExpertLog } from "../src/expert-log.js";

describe("a log of experts", () => {
  it("counts what tokens chose, by the numbers of the original", () => {
    const log = new ExpertLog(4, [
      [0, 1, 2, 3],
      [1, 3],
    ]);
    // Two tokens at once, as those of a prompt come, then one.
    log.add(2, [
      { layer: 0, experts: Int32Array.of(3, 0, 3, 1) },
      { layer: 1, experts: Int32Array.of(0, 1, 1, 0) },
    ]);
    log.add(1, [
      { layer: 0, experts: Int32Array.of(0, 3) },
      { layer: 1, experts: Int32Array.of(1, 0) },
    ]);
    expect([log.layers, log.tokens]).toEqual([2, 3]);
    expect([0, 1, 2].map((token) => log.chosen(0, token))).toEqual([
      [3, 0],
      [3, 1],
      [0, 3],
    ]);
    expect([0, 1, 2].map((token) => log.chosen(1, token))).toEqual([
      [1, 3],
      [3, 1],
      [3, 1],
    ]);
    expect([0, 1, 2, 3].map((expert) => log.share(0, expert))).toEqual([2 / 3, 1 / 3, 0, 1]);
    expect([0, 1, 2, 3].map((expert) => log.share(1, expert))).toEqual([undefined, 1, undefined, 1]);
    expect(log.describe(1)).toBe("layer 1: 4 and 2, layer 2: 4 and 2");
  });

  it("knows nothing before the first token", () => {
    const log = new ExpertLog(2, [[0]]);
    expect([log.tokens, log.chosen(0, 0), log.share(0, 0), log.share(0, 1)]).toEqual([0, [], 0, undefined]);
  });
});
