import { type DType, mergeRows, Rng, roundToDtype } from "@coppice/core";
import { embed } from "../embedding.js";
import { createMatrix, disposeMatrix, type WeightFormat, writeRows } from "../gpu-matrix.js";
import { type Merge, type MergedFormat, mergeExperts, mergeTable } from "../merge-experts.js";
import { type KernelCheck, randomValues, withBuffers } from "./kernel-check.js";

const dtypes: Readonly<Record<MergedFormat, DType>> = { f32: "F32", f16: "F16", bf16: "BF16" };

/** Experts merged on the device against core's definition: the number of values that have other bits. */
export function checkMerge(format: MergedFormat, to: MergedFormat = format): KernelCheck {
  return {
    kernel: "merge-experts",
    key: `merge ${format} ${to}`,
    tolerance: 0,
    run: (gpu) =>
      withBuffers(gpu, async ({ upload, empty }) => {
        const [blocks, rows, columns] = [18, 2, 22];
        const size = rows * columns;
        const rng = Rng.fromSeed(5);
        const values = randomValues(blocks * size, 4).map((value, i) => {
          // Of all magnitudes, down to those that the format holds no more, and as large as no sum may be.
          if (i % 11 === 0) return 0;
          const scale = i % 7 === 0 ? 2 ** (-40 * rng.uniform()) : i % 13 === 0 ? 2 ** 15 : 1;
          return value * scale;
        });
        roundToDtype(values, dtypes[format]);
        const form = (kind: MergedFormat, count: number): Parameters<typeof createMatrix>[1] => ({
          format: { kind } satisfies WeightFormat,
          blocks: count,
          rows,
          columns,
        });
        // Ties, cancelled values, one expert alone, more than one and two passes of `mergeRows`.
        const merges: Merge[] = [
          [1],
          [0.5, 0.5],
          [1, 1, -1],
          [-0.75, 1 / 3, 1e-9],
          [3e4, 2e4],
          Array.from({ length: 9 }, () => 2 * rng.uniform() - 1),
          Array.from({ length: blocks }, () => rng.uniform() ** 8),
        ].map((factors, target) => ({
          target,
          sources: factors.map((factor, i) => ({ block: factors.length === 1 ? 3 : i, factor })),
        }));
        const source = createMatrix(gpu, form(format, blocks), "a check");
        const target = createMatrix(gpu, form(to, merges.length), "a check");
        try {
          writeRows(gpu, source, 0, values);
          mergeExperts(gpu, source, target, upload(mergeTable(merges)), { count: merges.length });
          const total = merges.length * rows;
          const out = empty(total * columns);
          embed(gpu, target, upload(Uint32Array.from({ length: total }, (_, i) => i)), total, out);
          const found = new Uint32Array((await gpu.readFloats(out, total * columns)).buffer);
          let wrong = 0;
          for (const { target: slot, sources } of merges) {
            const expected = new Float32Array(size);
            mergeRows(
              sources.map(({ block }) => values.subarray(block * size, (block + 1) * size)),
              sources.map(({ factor }) => factor),
              expected,
            );
            roundToDtype(expected, dtypes[to]);
            // Reading a row multiplies it by 1, which may drop the sign of a zero.
            const bits = new Uint32Array(expected.buffer);
            for (const [i, own] of bits.entries()) {
              const other = found[slot * size + i] as number;
              if (own !== other && ((own | other) << 1) >>> 0 !== 0) wrong++;
            }
          }
          return wrong;
        } finally {
          disposeMatrix(source);
          disposeMatrix(target);
        }
      }),
  };
}
