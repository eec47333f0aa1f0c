import {
  antidiagonal,
  antidiagonalMask,
  flexPrefill,
  flexPrefillMask,
  PageChooser,
  pageTopk,
} from "@coppice/attention";
import { reference } from "@coppice/backend-reference";
import {
  type AttentionMasker,
  type AttentionMethod,
  type BlockMask,
  checkBlockMask,
  checkKeyPages,
  type DecodeView,
  type PrefillView,
  Rng,
  seesKey,
} from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { describe, expect, it } from "vitest";
import { slowAntidiagonal, slowFlex, slowPages } from "./slow-maskers.js";

interface Shape {
  readonly tokens: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly keyDim?: number;
  /** How sharp attention is. */
  readonly scale?: number;
  readonly seed?: number;
}

/** Queries and keys of which some keys stand out. */
function view(shape: Shape): PrefillView {
  const { tokens, heads = 4, kvHeads = 2, keyDim = 6, scale = 0.8, seed = 1 } = shape;
  const rng = Rng.fromSeed(seed);
  const normals = (rows: number, size: number, peak: number) =>
    Float32Array.from({ length: rows * size }, (_, i) => {
      const row = Math.floor(i / size);
      return rng.normal() * (row % 11 === 3 ? peak : 1);
    });
  return {
    layer: 3,
    sequence: 0,
    scale,
    heads,
    kvHeads,
    keyDim,
    tokens,
    queries: normals(tokens, heads * keyDim, 1),
    keys: normals(tokens, kvHeads * keyDim, 2.5),
  };
}

/** Blocks of a head, `row column`. */
function blocksOf(mask: BlockMask, head: number): Set<string> {
  const seen = new Set<string>();
  for (let row = 0; row < mask.blocks; row++) {
    for (let column = 0; column <= row; column++) {
      if (seesKey(mask, head, (row + 1) * mask.blockSize - 1, column * mask.blockSize))
        seen.add(`${row} ${column}`);
    }
  }
  return seen;
}

describe("flex-prefill", () => {
  const common = { gamma: 0.7, tau: 0.1, minimum: 4, blockSize: 4 };

  it.each([
    [{ tokens: 48 }, common],
    [{ tokens: 50, seed: 2 }, common],
    [{ tokens: 47, scale: 0.05, seed: 3 }, common],
    [
      { tokens: 61, heads: 3, kvHeads: 3, seed: 4 },
      { ...common, gamma: 0.4, blockSize: 8 },
    ],
    [
      { tokens: 64, scale: 0.01, seed: 5 },
      { ...common, tau: 1 },
    ],
    [
      { tokens: 40, scale: 3, seed: 6 },
      { ...common, tau: 0, minimum: 12 },
    ],
  ])("chooses the blocks of the formula: %o %o", (shape, options) => {
    const own = view(shape);
    const mask = flexPrefillMask(own, options) as BlockMask;
    checkBlockMask(mask, own.heads, own.tokens);
    for (let head = 0; head < own.heads; head++) {
      expect([...blocksOf(mask, head)].sort()).toEqual([...slowFlex(own, head, options).seen].sort());
    }
  });

  it("knows heads that pooled queries foretell, and others", () => {
    const found = (scale: number, tau: number) =>
      [0, 1, 2, 3].map((head) => slowFlex(view({ tokens: 64, scale }), head, { ...common, tau }).foretold);
    expect(found(0.01, 0.1)).toEqual([true, true, true, true]);
    expect(found(2, 0.1)).toContain(false);
    expect(found(0.01, 0)).toEqual([false, false, false, false]);
  });

  it("keeps more for a larger share, and all of short texts", () => {
    const own = view({ tokens: 120, scale: 1.5 });
    const kept = [0.2, 0.6, 0.95].map((gamma) => {
      const mask = flexPrefillMask(own, { ...common, tau: 0, gamma }) as BlockMask;
      return blocksOf(mask, 0).size;
    });
    expect(kept).toEqual([...kept].sort((a, b) => a - b));
    expect(kept[0]).toBeLessThan(kept[2] as number);
    expect(flexPrefillMask(own, { ...common, gamma: 1 })).toBeUndefined();
    expect(flexPrefillMask(own, { ...common, minimum: 120 })).toBeUndefined();
    expect(flexPrefillMask(view({ tokens: 8 }), common)).toBeUndefined();
  });
});

describe("antidiagonal", () => {
  const common = { threshold: 0.6, stride: 2, blockSize: 4 };

  it.each([
    [{ tokens: 48 }, common],
    [
      { tokens: 51, seed: 2 },
      { ...common, stride: 4 },
    ],
    [
      { tokens: 45, scale: 3, seed: 3 },
      { ...common, threshold: 0.9 },
    ],
    [
      { tokens: 66, heads: 3, kvHeads: 1, seed: 4 },
      { threshold: 0.3, stride: 8, blockSize: 16 },
    ],
    [
      { tokens: 33, scale: 0.1, seed: 5 },
      { ...common, stride: 1 },
    ],
  ])("chooses the blocks of the formula: %o %o", (shape, options) => {
    const own = view(shape);
    const mask = antidiagonalMask(own, options) as BlockMask;
    checkBlockMask(mask, own.heads, own.tokens);
    for (let head = 0; head < own.heads; head++) {
      expect([...blocksOf(mask, head)].sort()).toEqual([...slowAntidiagonal(own, head, options)].sort());
    }
  });

  it("finds the block of a key that all queries want", () => {
    const own = view({ tokens: 64, heads: 1, kvHeads: 1, scale: 4 });
    // Key 22 points where all queries point.
    for (let i = 0; i < own.queries.length; i += own.keyDim) own.queries[i] = 3;
    own.keys.fill(0);
    own.keys[22 * own.keyDim] = 3;
    const mask = antidiagonalMask(own, { ...common, threshold: 0.8 }) as BlockMask;
    expect(seesKey(mask, 0, 60, 22)).toBe(true);
    expect(seesKey(mask, 0, 60, 30)).toBe(false);
  });

  it("refuses a stride that does not divide the block", async () => {
    await expect(antidiagonal.create({ stride: 5 }, undefined)).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_OPTIONS",
      message: expect.stringMatching(/5 .* 64/),
    });
    await expect(antidiagonal.create({ threshold: 0 }, undefined)).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_OPTIONS",
    });
  });
});

describe("page-topk", () => {
  const options = { budget: 16, pageSize: 4, denseLayers: 2 };
  const keys = view({ tokens: 90, scale: 0.7 });

  /** Step at which there are `positions` keys. */
  const step = (positions: number, layer = 3, sequence = 0): DecodeView => ({
    ...keys,
    layer,
    sequence,
    positions,
    queries: keys.queries.slice(positions * 24, (positions + 1) * 24),
    keys: keys.keys.slice(0, positions * 12),
  });

  it("reads the pages of the formula, step after step", () => {
    const chooser = new PageChooser(options);
    for (let positions = 10; positions < 90; positions++) {
      const chosen = chooser.choose(step(positions));
      if (positions <= 16) {
        expect(chosen).toBeUndefined();
        continue;
      }
      expect(chosen).toBeDefined();
      if (!chosen) continue;
      checkKeyPages(chosen, 2, positions);
      chosen.heads.forEach((pages, kvHead) => {
        expect([...pages]).toEqual(slowPages(step(positions), kvHead, 4, 4));
      });
    }
  });

  it("keeps sequences and layers apart, and the first layers whole", () => {
    const chooser = new PageChooser(options);
    chooser.choose(step(40, 3, 0));
    const other = { ...step(40, 3, 1), keys: step(40).keys.map((value) => -value) };
    const fresh = new PageChooser(options).choose(other);
    expect(chooser.choose(other)).toEqual(fresh);
    expect(chooser.choose(step(40))).not.toEqual(fresh);
    expect(chooser.choose(step(40, 1))).toBeUndefined();
    expect(new PageChooser({ ...options, budget: 40 }).choose(step(40))).toBeUndefined();
  });
});

describe("with the reference backend", () => {
  const { model, weights } = randomModel({ layers: 3, heads: 4, kvHeads: 2, headDim: 8, vocab: 40 });
  const ids = Int32Array.from({ length: 96 }, (_, i) => (i * i * 7 + i) % 40);

  /** Logits of the last eight tokens, each a step of decoding behind the prompt. */
  async function logits(masker: AttentionMasker | undefined): Promise<number[]> {
    const backend = await reference.create({}, undefined);
    await using runner = await backend.load({ model, weights });
    const cache = runner.createCache(1, masker && { masker });
    const found: number[] = [];
    for (let at = 0; at < ids.length; ) {
      const end = at === 0 ? 88 : at + 1;
      const { logits = [] } = await runner.run({
        sequences: [ids.slice(at, end)],
        positions: [Int32Array.of(end - at - 1)],
        cache,
      });
      found.push(...logits);
      at = end;
    }
    return found;
  }
  const away = (a: readonly number[], b: readonly number[]) =>
    Math.max(...a.map((value, i) => Math.abs(value - (b[i] as number))));

  it.each([
    ["flex-prefill", flexPrefill.create({ minimum: 8, blockSize: 8, gamma: 0.3 }, undefined), 1],
    ["flex-prefill of everything", flexPrefill.create({ gamma: 1 }, undefined), 0],
    ["antidiagonal", antidiagonal.create({ threshold: 0.3, blockSize: 8 }, undefined), 1],
    ["antidiagonal of everything", antidiagonal.create({ threshold: 1 }, undefined), 0],
    ["page-topk", pageTopk.create({ budget: 24, pageSize: 8, denseLayers: 1 }, undefined), 1],
    ["page-topk of everything", pageTopk.create({ budget: 1024 }, undefined), 0],
  ])("limits %s as far as it is told", async (_, plugin: Promise<AttentionMethod>, limited) => {
    const dense = await logits(undefined);
    const distance = away(await logits((await plugin).masker?.()), dense);
    if (limited === 0) expect(distance).toBe(0);
    else expect(distance).toBeGreaterThan(1e-3);
  });
});
