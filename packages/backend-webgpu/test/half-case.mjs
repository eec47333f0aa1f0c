import { createWebgpuBackend } from "@coppice/backend-webgpu";
import { Rng } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { keptHalf } from "./kept-half.mjs";

/** What the backend says of devices that have no units for float16, where the case says nothing. */
export const lacksUnits = "the device has no units that multiply matrices of float16";

export const halfName = "in float16, a run gives the same bits alone and in any company";

/**
 * Runs of one size and of others, of several plans: alone, two by two, and all at once, so that together they have so many rows that
 * products take other tiles than alone. Log-probabilities are also close to those in float32, on average, since a router that is rounded may
 * choose otherwise.
 * @param {import("@coppice/backend-webgpu").DeviceSource} source
 * @throws COPPICE_BACKEND_UNAVAILABLE with `lacksUnits`
 */
export async function runHalfCase(source) {
  // Matrices of 512 rows and more take larger tiles from 512 tokens on.
  const loaded = randomModel({
    seed: 5,
    hidden: 64,
    experts: 6,
    topK: 2,
    width: 48,
    vocab: 640,
    heads: 8,
    kvHeads: 2,
    headDim: 64,
  });
  const { model } = loaded;
  const rng = Rng.fromSeed(6);
  const ids = (/** @type {number} */ length) =>
    Int32Array.from({ length }, () => rng.integer(model.vocabSize));
  const plans = [undefined, keptHalf(model), keptHalf(model, 0.1), keptHalf(model, 0.3)];
  const requests = [40, 150, 64, 33, 200, 97, 150, 48].map((tokens, i) => {
    const plan = plans[i % plans.length];
    const sequences = [ids(tokens), ids(5)];
    const positions = [Int32Array.from({ length: tokens }, (_, at) => at), Int32Array.of(4)];
    return { sequences, positions, targets: [ids(tokens), ids(1)], ...(plan && { plan }) };
  });
  const backend = createWebgpuBackend(source, { precision: "f16" });
  const runner = await backend.load(loaded);
  const exact = await createWebgpuBackend(source).load(loaded);
  try {
    /** @type {Float32Array[]} */
    const alone = [];
    for (const one of requests) alone.push(valuesOf(await runner.run(one)));
    for (const size of [2, 3, requests.length]) {
      for (let from = 0; from < requests.length; from += size) {
        const group = requests.slice(from, from + size);
        const results = await Promise.all(group.map((one) => runner.run(one)));
        for (const [i, result] of results.entries()) {
          const own = alone[from + i] ?? new Float32Array(0);
          const at = valuesOf(result).findIndex((value, place) => value !== own[place]);
          if (at >= 0)
            throw new Error(`run ${from + i} of ${size} at once differs in value ${at} of ${own.length}`);
        }
      }
    }
    let [apart, values] = [0, 0];
    for (const [i, one] of requests.entries()) {
      const { targetLogProbs = [] } = await exact.run(one);
      targetLogProbs.forEach((value, at) => {
        apart += Math.abs(value - (alone[i]?.[at] ?? Number.NaN));
        values++;
      });
    }
    // Written so that NaN counts as a difference; nothing apart means that nothing was rounded.
    if (!(apart > 0 && apart / values <= 0.02))
      throw new Error(`log-probabilities are ${apart / values} from those in float32 on average`);
  } finally {
    await runner.dispose();
    await exact.dispose();
  }
}

/** @param {import("@coppice/core").RunResult} result */
function valuesOf({ targetLogProbs, argmax }) {
  return Float32Array.of(...(targetLogProbs ?? []), ...(argmax ?? []));
}
