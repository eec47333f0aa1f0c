import { measureSensitivity, type WidthMatrix } from "@coppice/allocate";
import { reference } from "@coppice/backend-reference";
import { createPlan, createRegistry, moeLayers, type Plan, RunEmitter } from "@coppice/core";
import { type MemoryModel, memoryModel, randomModel, sampleShapes, slowForward } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { dropCounts, dropLosses } from "../src/drop-losses.js";

const backend = () => createRegistry([reference]).create("backend", "reference", {}, undefined);
const sequences = [
  [3, 1, 4, 1, 5, 9],
  [2, 6, 5],
];
/** The last position of each alone, and one more. */
const positions = [[2, 5], [2]];

function matricesOf({ model }: MemoryModel): WidthMatrix[] {
  const all: WidthMatrix[] = [{ name: "embedding", role: "embedding", weight: model.embedding }];
  for (const { index, attention, feedForward } of model.layers) {
    if (attention.kind === "gqa") {
      all.push({ name: `${index} value`, role: "value", weight: attention.value.weight, layer: index });
    }
    if (feedForward.kind !== "moe") continue;
    for (const [expert, { up, down }] of feedForward.experts.entries()) {
      all.push({ name: `${index} ${expert} up`, role: "up", weight: up, layer: index, expert });
      all.push({ name: `${index} ${expert} down`, role: "down", weight: down, layer: index, expert });
    }
  }
  return model.tied ? all : [...all, { name: "head", role: "head", weight: model.head }];
}

/** Coarse enough to be seen. */
function rounded(values: Float32Array, bits: number): Float32Array {
  const steps = 2 ** bits;
  return values.map((value) => Math.round(value * steps) / steps);
}

function quantizedModel(source: MemoryModel, matrices: readonly WidthMatrix[], bits: number): MemoryModel {
  const tensors = new Map(source.tensors);
  for (const { weight } of matrices) {
    tensors.set(weight.name, rounded(tensors.get(weight.name) as Float32Array, bits));
  }
  return memoryModel(source.model, tensors);
}

/** KL(p || q) of rows of logits. */
function slowDivergence(p: ArrayLike<number>, q: ArrayLike<number>): number {
  const total = (row: ArrayLike<number>) =>
    Math.log(Array.from(row).reduce((sum, z) => sum + Math.exp(z), 0));
  const [normalP, normalQ] = [total(p), total(q)];
  return Array.from(p).reduce(
    (sum, z, i) => sum + Math.exp(z - normalP) * (z - normalP - ((q[i] as number) - normalQ)),
    0,
  );
}

function slowLoss(source: MemoryModel, other: MemoryModel, plan?: Plan): number {
  let [sum, count] = [0, 0];
  sequences.forEach((ids, s) => {
    const [full, changed] = [slowForward(source, ids).logits, slowForward(other, ids, plan).logits];
    for (const at of positions[s] ?? []) {
      sum += slowDivergence(full[at] as number[], changed[at] as number[]);
      count++;
    }
  });
  return sum / count;
}

/** Σ_t (g ‖f' - f‖)² of one expert. */
function slowError(source: MemoryModel, other: MemoryModel, index: number, expert: number): number {
  const { scalesInput } = (
    moeLayers(source.model).find((layer) => layer.index === index) as never as {
      feedForward: { router: { scalesInput?: true } };
    }
  ).feedForward.router;
  let sum = 0;
  for (const ids of sequences) {
    const [own, changed] = [source, other].map(
      (model) => slowForward(model, ids).layers.find(({ layer }) => layer === index)?.choices,
    );
    own?.forEach((choices, t) => {
      choices.forEach(({ slot, gate, output }, k) => {
        if (slot !== expert) return;
        const distance = Math.hypot(
          ...output.map((value, h) => value - (changed?.[t]?.[k]?.output[h] as number)),
        );
        sum += ((scalesInput ? 1 : gate) * distance) ** 2;
      });
    });
  }
  return sum;
}

/** What is lost when these matrices are quantized, and the error of each one's expert. */
function slowGroup(source: MemoryModel, group: readonly WidthMatrix[], bits: number) {
  const other = quantizedModel(source, group, bits);
  const errors = group.map(({ layer, expert }) =>
    layer === undefined || expert === undefined ? 0 : slowError(source, other, layer, expert),
  );
  return { loss: slowLoss(source, other), errors };
}

const near = (found: number, expected: number) =>
  expect(Math.abs(found - expected)).toBeLessThanOrEqual(1e-6 + 1e-3 * Math.abs(expected));

describe("measureSensitivity", () => {
  test.each([
    ["dense-layers", "matrices"],
    ["tied-head", "experts"],
    ["shared-expert-gate", "matrices"],
    ["scaled-inputs", "experts"],
  ] as const)(
    "agrees with slow runs of %s in which only that is quantized, %s at a time",
    async (name, quantize) => {
      const source = randomModel(sampleShapes[name]);
      const { model, weights } = source;
      const matrices = matricesOf(source);
      const emitter = new RunEmitter();
      const seen: number[] = [];
      emitter.on("progress", ({ done, total }) => seen.push(done / total));
      const found = await measureSensitivity({
        model,
        weights,
        backend: await backend(),
        matrices,
        bits: [1, 3],
        quantize,
        quantized: async ({ weight }, bits) => rounded(source.tensors.get(weight.name) as Float32Array, bits),
        sequences: sequences.map((ids) => Int32Array.from(ids)),
        positions: positions.map((at) => Int32Array.from(at)),
        divergence: slowDivergence,
        emitter,
      });
      expect(found).toMatchObject({ model: model.fingerprint, quantized: quantize, positions: 3 });
      expect(found.matrices.map((matrix) => matrix.name)).toEqual(matrices.map((matrix) => matrix.name));
      expect(seen.at(-1)).toBe(1);
      expect(seen).toEqual(seen.toSorted((a, b) => a - b));
      const known = new Map<string, ReturnType<typeof slowGroup>>();
      for (const [w, bits] of [1, 3].entries()) {
        for (const [i, matrix] of matrices.entries()) {
          const { layer, expert, role } = matrix;
          const own = found.matrices[i]?.widths[w] as { bits: number; loss: number; error?: number };
          expect(own.bits).toBe(bits);
          const group = matrices.filter(
            (other) =>
              other === matrix ||
              (expert !== undefined &&
                other.expert !== undefined &&
                other.layer === layer &&
                (quantize === "experts" || other.role === role)),
          );
          const key = [bits, ...group.map((one) => one.name)].join();
          const slow = known.get(key) ?? slowGroup(source, group, bits);
          known.set(key, slow);
          const { loss, errors } = slow;
          if (expert === undefined || layer === undefined) {
            near(own.loss, loss);
            expect(own.error).toBeUndefined();
            continue;
          }
          const parts = quantize === "experts" ? 2 : 1;
          near(own.error as number, (errors[group.indexOf(matrix)] as number) / parts);
          const total = errors.reduce((a, b) => a + b, 0) / parts;
          near(own.loss, total > 0 ? (loss * (own.error as number)) / total : 0);
        }
      }
      checkDropped(source, found.experts);
    },
  );

  test("shares out what drops cost by points in between", () => {
    expect([dropCounts(3), dropCounts(20)]).toEqual([
      [1, 2, 3],
      [3, 5, 8, 10, 13, 15, 18, 20],
    ]);
    const errors = Float64Array.of(4, 0, 1, 3, 8);
    const points = [
      { count: 3, loss: 0.8 },
      { count: 4, loss: 0.6 },
    ];
    // 0.8 over errors of 0, 1 and 3; the fourth costs no less than the third; the fifth is in no point.
    const losses = dropLosses([1, 2, 3, 0, 4], errors, points);
    expect(Array.from(losses, (loss) => Number(loss.toFixed(12)))).toEqual([0.6, 0, 0.2, 0.6, 0.6]);
    expect(dropLosses([0, 1], Float64Array.of(1, 5), [{ count: 1, loss: 0.2 }])).toEqual(
      Float64Array.of(0.2, 1),
    );
  });

  test("refuses no positions, and stops when told", async () => {
    const { model, weights } = randomModel({ seed: 1 });
    const request = {
      model,
      weights,
      backend: await backend(),
      matrices: [],
      bits: [4],
      quantized: async () => new Float32Array(),
      sequences: [Int32Array.of(1)],
      divergence: slowDivergence,
    };
    await expect(measureSensitivity({ ...request, positions: [new Int32Array()] })).rejects.toMatchObject({
      code: "COPPICE_TASK_EMPTY",
    });
    await expect(
      measureSensitivity({ ...request, positions: [Int32Array.of(0)], signal: AbortSignal.abort() }),
    ).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
  });
});

/** What dropping experts changes of the block's output, and their shares of the choices. */
function checkDropped(
  source: MemoryModel,
  found: Awaited<ReturnType<typeof measureSensitivity>>["experts"],
): void {
  const { model } = source;
  expect(found).toHaveLength(
    moeLayers(model).reduce((sum, layer) => sum + layer.feedForward.experts.length, 0),
  );
  for (const { index, feedForward } of moeLayers(model)) {
    const { experts, router } = feedForward;
    const here = found.filter(({ layer }) => layer === index);
    near(
      here.reduce((sum, { share }) => sum + share, 0),
      1,
    );
    near(
      here.reduce((sum, { gateShare }) => sum + gateShare, 0),
      1,
    );
    for (const { expert, dropped } of here.slice(0, 3)) {
      const kept = experts.map((_, i) => i).filter((i) => i !== expert);
      const plan = createPlan(model, [{ layer: index, experts: kept }]);
      let error = 0;
      for (const ids of sequences) {
        const [own, changed] = [undefined, plan].map((one) =>
          slowForward(source, ids, one)
            .layers.find(({ layer }) => layer === index)
            ?.choices.map((choices) =>
              choices.reduce(
                (sum, { gate, output }) =>
                  sum.map((v, h) => v + (router.scalesInput ? 1 : gate) * (output[h] as number)),
                new Array<number>(model.hiddenSize).fill(0),
              ),
            ),
        );
        own?.forEach((row, t) => {
          error += row.reduce((sum, v, h) => sum + (v - (changed?.[t]?.[h] as number)) ** 2, 0);
        });
      }
      near(dropped?.error as number, error);
    }
    const order = here.toSorted((a, b) => (a.dropped?.error as number) - (b.dropped?.error as number));
    const losses = order.map(({ dropped }) => dropped?.loss as number);
    expect(losses).toEqual(losses.toSorted((a, b) => a - b));
    for (let count = 1; count <= experts.length - router.topK; count++) {
      const gone = new Set(order.slice(0, count).map(({ expert }) => expert));
      const kept = experts.map((_, i) => i).filter((i) => !gone.has(i));
      const loss = slowLoss(source, source, createPlan(model, [{ layer: index, experts: kept }]));
      const sum = losses.slice(0, count).reduce((a, b) => a + b, 0);
      expect(sum).toBeGreaterThanOrEqual(0.999 * loss - 1e-6);
      if (count === 1) near(sum, loss);
    }
  }
}
