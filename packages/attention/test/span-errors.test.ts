import { Rng } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { outputGram } from "../src/output-gram.js";
import { type HeadInputs, spanErrors } from "../src/span-errors.js";

const [tokens, queryHeads, keyDim, valueDim, hidden] = [40, 3, 6, 5, 7];

function randomInputs(rng: Rng, rows: readonly number[]): HeadInputs {
  const normal = (length: number) => Float32Array.from({ length }, () => 2 * rng.normal());
  return {
    rows: Int32Array.from(rows),
    queries: normal(rows.length * queryHeads * keyDim),
    keys: normal(tokens * keyDim),
    values: normal(tokens * valueDim),
    queryHeads,
    keyDim,
    valueDim,
    scale: 0.4,
  };
}

/** One head's output, with the keys that `sees` says: softmax and sum, written out. */
function attend(inputs: HeadInputs, row: number, head: number, sees: (key: number) => boolean): number[] {
  const { rows, queries, keys, values, scale, sinkLogits } = inputs;
  const scores = Array.from({ length: (rows[row] as number) + 1 }, (_, j) => {
    let dot = 0;
    for (let i = 0; i < keyDim; i++)
      dot += (queries[(row * queryHeads + head) * keyDim + i] as number) * (keys[j * keyDim + i] as number);
    return sees(j) ? Math.exp(scale * dot) : 0;
  });
  const extra = sinkLogits ? Math.exp(sinkLogits[head] as number) : 0;
  const total = scores.reduce((a, b) => a + b, extra);
  return Array.from({ length: valueDim }, (_, i) =>
    scores.reduce((sum, p, j) => sum + (p / total) * (values[j * valueDim + i] as number), 0),
  );
}

describe("spanErrors", () => {
  it.each([0, 3])("measures each window as attention with that window does, with %i sinks", (sinks) => {
    const rng = Rng.fromSeed(7);
    const rows = [0, 1, 5, 12, 25, 39];
    const windows = [1, 2, 8, 9, 24, 36, 60];
    // The heads stand in the middle of the layer's.
    const columns = (queryHeads + 2) * valueDim;
    const output = Float32Array.from({ length: hidden * columns }, () => rng.normal());
    const gram = outputGram(output, columns, valueDim, queryHeads * valueDim);
    for (const sinkLogits of [undefined, Float32Array.of(0.5, -1, 2)]) {
      const inputs = { ...randomInputs(rng, rows), ...(sinkLogits && { sinkLogits }) };
      const { errors, outputs } = spanErrors(inputs, { sinks, windows }, gram);
      rows.forEach((position, row) => {
        windows.forEach((window, w) => {
          const change = Array<number>(hidden).fill(0);
          for (let head = 0; head < queryHeads; head++) {
            const full = attend(inputs, row, head, () => true);
            const cut = attend(inputs, row, head, (j) => j < sinks || j > position - window);
            for (let i = 0; i < valueDim; i++) {
              expect(outputs[(row * queryHeads + head) * valueDim + i]).toBeCloseTo(full[i] as number, 9);
              for (let y = 0; y < hidden; y++)
                change[y] =
                  (change[y] as number) +
                  (output[y * columns + valueDim + head * valueDim + i] as number) *
                    ((cut[i] as number) - (full[i] as number));
            }
          }
          const square = change.reduce((sum, value) => sum + value ** 2, 0);
          expect(errors[row * windows.length + w]).toBeCloseTo(square, 7);
        });
      });
    }
  });
});
