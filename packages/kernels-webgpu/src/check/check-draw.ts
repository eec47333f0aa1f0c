import { type DrawRule, drawToken, Rng, type TokenDraw } from "@coppice/core";
import { drawBytes, drawTables, drawTokens } from "../draw-tokens.js";
import { type KernelCheck, withBuffers } from "./kernel-check.js";

/** How far places along [0, 1) may be apart: errors of exp in float32, and of quotients under a penalty. */
const tolerance = 1e-5;

/**
 * Tokens drawn of some rows against `drawToken` of core. The difference is 0 where they are equal, and where they are not, how far the random
 * number and top-p have to move for the same token; 1 when that is too far.
 */
export function checkDraw({
  rows,
  vocab,
  rule,
}: {
  rows: number;
  vocab: number;
  rule: DrawRule;
}): KernelCheck {
  return {
    kernel: "draw",
    key: `draw ${rows} ${vocab} ${JSON.stringify(rule)}`,
    tolerance,
    run: (gpu) =>
      withBuffers(gpu, async ({ upload, empty }) => {
        const rng = Rng.fromSeed(vocab);
        const logits = Array.from({ length: rows }, (_, row) => logitsOf(rng, row, vocab));
        const uniforms = Float64Array.from({ length: rows }, () => rng.uniform());
        if (rows > 2) uniforms.set([0, 1 - 2 ** -53], rows - 2);
        // Half of all tokens, so that the most likely ones are among them.
        const seen = logits.map((_, row) =>
          Int32Array.from({ length: Math.ceil(vocab / 2) }, (_, i) => Math.min(2 * i + (row % 2), vocab - 1)),
        );
        const draw: TokenDraw = { rule, uniforms, seen };
        const tables = drawTables(draw, 0, rows, vocab);
        const packed = new Float32Array(rows * vocab);
        logits.forEach((values, row) => {
          packed.set(values, row * vocab);
        });
        const bytes = drawBytes(rows, vocab);
        const tokens = empty(rows);
        drawTokens(gpu, {
          logits: upload(packed),
          rows,
          vocab,
          rule,
          uniforms: upload(tables.uniforms),
          seen: tables.seen && upload(tables.seen),
          tokens,
          work: {
            peaks: empty(bytes.peaks / 4),
            sums: empty(bytes.sums / 4),
            states: empty(bytes.states / 4),
          },
        });
        const [found] = await gpu.read([{ buffer: tokens, bytes: 4 * rows }]);
        const differences = Array.from(new Uint32Array(found as ArrayBuffer), (token, row) =>
          differenceOf(token, (by) =>
            drawToken(
              logits[row] as Float32Array,
              { ...rule, ...(rule.topP !== undefined && { topP: within(rule.topP + by.topP, 1) }) },
              within((uniforms[row] as number) + by.uniform, 1 - 2 ** -53),
              seen[row],
            ),
          ),
        );
        return Math.max(...differences);
      }),
  };
}

function differenceOf(token: number, expected: (by: { uniform: number; topP: number }) => number): number {
  for (const by of [0, 1e-6, tolerance]) {
    const moves = by === 0 ? [0] : [-by, 0, by];
    const fits = moves.some((topP) => moves.some((uniform) => expected({ uniform, topP }) === token));
    if (fits) return by;
  }
  return 1;
}

const within = (value: number, most: number) => Math.min(most, Math.max(2 ** -53, value));

/** Steep, with many ties also of the most likely, flat with one that stands out, and with values that are not finite, in turn. */
function logitsOf(rng: Rng, row: number, vocab: number): Float32Array {
  const values = Float32Array.from({ length: vocab }, () => 3 * rng.normal());
  if (row % 4 === 1) return values.map((value) => Math.min(4, Math.round(value)));
  if (row % 4 === 2) return values.map((_, id) => (id === vocab - 1 ? 5 : 0));
  if (row % 4 === 3) {
    return values.map((value, id) => {
      if (id % 5 === 1) return Number.NEGATIVE_INFINITY;
      return id % 5 === 2 ? Number.NaN : value;
    });
  }
  return values;
}
