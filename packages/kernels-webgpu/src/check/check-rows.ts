import type { NormSpec } from "@coppice/core";
import { scoreTargets } from "../answers.js";
import { addGated, addScaled, clip, combineChoices, copyRows, scaleRows } from "../elementwise.js";
import { type NormCall, norm } from "../norm.js";
import { rotate, unfoldLatent } from "../rotary.js";
import {
  type Implementation,
  type KernelCheck,
  randomValues,
  withBuffers,
  worstDifference,
} from "./kernel-check.js";

/** @param by another implementation than our kernel, which is given no bias and rows without gaps */
export function checkNorm(
  kind: NormSpec["kind"],
  size: number,
  inPlace = false,
  by?: Implementation<NormCall>,
): KernelCheck {
  const checked = by ?? { name: "norm", run: norm };
  return {
    kernel: checked.name,
    key: `${checked.name} ${kind} ${size} ${inPlace}`,
    tolerance: 2e-5,
    run: (gpu) =>
      withBuffers(gpu, async (own) => {
        const { upload, empty } = own;
        const [rows, stride, epsilon] = [3, by ? size : size + 2, 1e-5];
        const x = randomValues(rows * stride, 1).map((value) => value + 0.5);
        const weight = randomValues(size, 2);
        const bias = by ? undefined : randomValues(size, 3);
        const from = upload(x);
        const y = inPlace ? undefined : empty(rows * size);
        const call: NormCall = {
          kind,
          epsilon,
          weight: upload(weight),
          bias: bias && upload(bias),
          x: from,
          y,
          size,
          rows,
          stride,
        };
        await checked.run(gpu, call, own);
        const found = await gpu.readFloats(y ?? from, rows * (y ? size : stride));
        const expected = y ? [] : [...x];
        for (let row = 0; row < rows; row++) {
          const values = Array.from(x.subarray(row * stride, row * stride + size));
          const mean = kind === "layer" ? values.reduce((a, b) => a + b) / size : 0;
          const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / size;
          values.forEach((value, i) => {
            const normed = (value - mean) / Math.sqrt(squares + epsilon);
            expected[row * (y ? size : stride) + i] = normed * (weight[i] as number) + (bias?.[i] ?? 0);
          });
        }
        return worstDifference(found, expected);
      }),
  };
}

export function checkRotary(interleaved: boolean, dimensions: number): KernelCheck {
  return {
    kernel: "rotary",
    key: `rotary ${interleaved} ${dimensions}`,
    tolerance: 1e-5,
    run: (gpu) =>
      withBuffers(gpu, async ({ upload }) => {
        const [tokens, heads, offset] = [3, 2, 1];
        const headDim = dimensions + 3;
        const half = dimensions / 2;
        const x = randomValues(tokens * heads * headDim, 1);
        const table = randomValues(5 * half * 2, 2);
        const rows = Uint32Array.of(4, 0, 3);
        const buffer = upload(x);
        rotate(gpu, {
          x: buffer,
          tokens,
          heads,
          headDim,
          offset,
          dimensions,
          interleaved,
          table: upload(table),
          rows: upload(rows),
        });
        const expected = Array.from(x);
        for (let token = 0; token < tokens; token++) {
          for (let head = 0; head < heads; head++) {
            for (let i = 0; i < half; i++) {
              const start = (token * heads + head) * headDim + offset;
              const [a, b] = interleaved ? [start + 2 * i, start + 2 * i + 1] : [start + i, start + i + half];
              const at = 2 * ((rows[token] as number) * half + i);
              const [c, s] = [table[at] as number, table[at + 1] as number];
              expected[a] = (x[a] as number) * c - (x[b] as number) * s;
              expected[b] = (x[b] as number) * c + (x[a] as number) * s;
            }
          }
        }
        return worstDifference(await gpu.readFloats(buffer, x.length), expected);
      }),
  };
}

/** Keys and values of latent attention from what they are folded into. */
export function checkUnfold(): KernelCheck {
  return {
    kernel: "unfold-latent",
    key: "unfold",
    tolerance: 0,
    run: (gpu) =>
      withBuffers(gpu, async ({ upload, empty }) => {
        const sizes = { tokens: 3, heads: 2, nopeDim: 3, valueDim: 4, rank: 5, rotaryDim: 2 };
        const { tokens, heads, nopeDim, valueDim, rank, rotaryDim } = sizes;
        const unfolded = randomValues(tokens * heads * (nopeDim + valueDim), 1);
        const down = randomValues(tokens * (rank + rotaryDim), 2);
        const keyDim = nopeDim + rotaryDim;
        const keys = empty(tokens * heads * keyDim);
        const values = empty(tokens * heads * valueDim);
        unfoldLatent(gpu, { ...sizes, unfolded: upload(unfolded), down: upload(down), keys, values });
        const expectedKeys: number[] = [];
        const expectedValues: number[] = [];
        for (let row = 0; row < tokens * heads; row++) {
          const at = row * (nopeDim + valueDim);
          const end = (Math.floor(row / heads) + 1) * (rank + rotaryDim);
          expectedKeys.push(...unfolded.subarray(at, at + nopeDim), ...down.subarray(end - rotaryDim, end));
          expectedValues.push(...unfolded.subarray(at + nopeDim, at + nopeDim + valueDim));
        }
        return Math.max(
          worstDifference(await gpu.readFloats(keys, expectedKeys.length), expectedKeys),
          worstDifference(await gpu.readFloats(values, expectedValues.length), expectedValues),
        );
      }),
  };
}

/** The kernels that treat every value or row by itself, one after another. */
export function checkElementwise(): KernelCheck {
  return {
    kernel: "elementwise",
    key: "elementwise",
    tolerance: 1e-5,
    run: (gpu) =>
      withBuffers(gpu, async ({ upload, empty }) => {
        const [tokens, topK, size] = [5, 3, 7];
        const count = tokens * size;
        const x = randomValues(tokens * topK * size, 1);
        const gates = randomValues(tokens * topK, 2);
        const slots = Int32Array.from(gates, (_, i) => (i % 4 === 3 ? -1 : i % 5));
        const shares = randomValues(tokens, 3);
        const index = Uint32Array.of(3, 1, 4, 0, 2);
        const [gx, gIndex] = [upload(x), upload(index)];
        const y = empty(count);
        combineChoices(gpu, { slots: upload(slots), gates: upload(gates), tokens, topK }, gx, y, size, true);
        addGated(gpu, gx, upload(shares), y, tokens, size);
        addScaled(gpu, gx, y, count, 0.25);
        scaleRows(gpu, y, tokens, size, upload(gates));
        clip(gpu, y, count, 0.6);
        const [gathered, scattered] = [empty(count), empty(count)];
        copyRows(gpu, { x: y, y: gathered, rows: tokens, size, index: gIndex, kind: "gather" });
        copyRows(gpu, { x: y, y: scattered, rows: tokens, size, index: gIndex, kind: "scatter" });
        const values = Float64Array.from({ length: count }, (_, at) => {
          const [token, i] = [Math.floor(at / size), at % size];
          let sum = 0;
          for (let choice = token * topK; choice < (token + 1) * topK; choice++) {
            if ((slots[choice] as number) >= 0)
              sum += (gates[choice] as number) * (x[choice * size + i] as number);
          }
          sum += (x[at] as number) / (1 + Math.exp(-(shares[token] as number))) + 0.25 * (x[at] as number);
          return Math.min(0.6, Math.max(-0.6, sum * (gates[token] as number)));
        });
        const row = (from: Float64Array, at: number) => [...from.subarray(at * size, (at + 1) * size)];
        const inverse = [...index.keys()].map((at) => index.indexOf(at));
        return Math.max(
          worstDifference(await gpu.readFloats(y, count), values),
          worstDifference(
            await gpu.readFloats(gathered, count),
            [...index].flatMap((at) => row(values, at)),
          ),
          worstDifference(
            await gpu.readFloats(scattered, count),
            inverse.flatMap((at) => row(values, at)),
          ),
        );
      }),
  };
}

export function checkTargets(vocab: number): KernelCheck {
  return {
    kernel: "score-targets",
    key: `targets ${vocab}`,
    tolerance: 1e-5,
    run: (gpu) =>
      withBuffers(gpu, async ({ upload, empty }) => {
        const rows = 4;
        const logits = randomValues(rows * vocab, 1).map((value) => 5 * value);
        // The largest logit twice: the lower one counts.
        logits.fill(6, vocab + 2, vocab + 4);
        // The row before has one target, and these have two, one, none and three.
        const rowOf = [0, 0, 1, 3, 3, 3];
        const starts = Uint32Array.of(0, 1, 3, 4, 4, 7);
        const targets = Uint32Array.from({ length: 7 }, (_, i) => (3 * i) % vocab);
        const [logProbs, argmax] = [empty(7), empty(7)];
        const [gLogits, gStarts, gTargets] = [upload(logits), upload(starts), upload(targets)];
        const buffers = { logits: gLogits, starts: gStarts, targets: gTargets, logProbs, argmax };
        scoreTargets(gpu, buffers, { rows, vocab, from: 1 });
        const [a, b] = await gpu.read([
          { buffer: logProbs, byte: 4, bytes: 4 * rowOf.length },
          { buffer: argmax, byte: 4, bytes: 4 * rowOf.length },
        ]);
        const lines = rowOf.map((row) => [...logits.subarray(row * vocab, (row + 1) * vocab)]);
        return Math.max(
          worstDifference(
            new Float32Array(a as ArrayBuffer),
            lines.map(
              (line, i) =>
                (line[targets[i + 1] as number] as number) -
                Math.log(line.reduce((sum, value) => sum + Math.exp(value), 0)),
            ),
          ),
          worstDifference(
            new Uint32Array(b as ArrayBuffer),
            lines.map((line) => line.indexOf(Math.max(...line))),
          ),
        );
      }),
  };
}
