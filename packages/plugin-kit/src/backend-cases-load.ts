import type { LayerRange, MoeModel, Plan, RunRequest, TapField } from "@coppice/core";
import {
  allLogits,
  allPositions,
  type BackendSource,
  createBackend,
  type LayerRecord,
  randomSequences,
  tapped,
  withRunner,
} from "./backend-subject.js";
import { expectClose, expectCode, expectEqual, expectThat } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import { headTensors, layerTensors, type MemoryModel } from "./memory-model.js";
import { everythingPlan } from "./sample-plans.js";

const tolerance = 1e-5;
const lengths = [5, 1, 7];
const fields: readonly TapField[] = [
  "input",
  "routerLogits",
  "routing",
  "expertNorms",
  "output",
  "everyUnit",
];

/** What loading reads, and runners of some layers. */
export function loadCases(source: BackendSource, name: string, loaded: MemoryModel): ConformanceCase[] {
  const { model } = loaded;
  const count = model.layers.length;
  const sequences = randomSequences(model, lengths);
  const ranges = model.layers.flatMap((_, from): LayerRange[] =>
    Array.from({ length: count - from }, (_, more) => ({ from, to: from + more + 1 })),
  );
  return [
    {
      name: `${name}: loading and running read what the layers need, each tensor once`,
      async run() {
        for (const layers of [undefined, ...ranges]) {
          const { from, to } = layers ?? { from: 0, to: count };
          const read: string[] = [];
          const weights: typeof loaded.weights = {
            read(ref, options) {
              read.push(ref.name);
              return loaded.weights.read(ref, options);
            },
          };
          const hidden = new Float32Array(sequences.flatMap((ids) => [...ids]).length * model.hiddenSize);
          await withRunner(source, { model, weights, ...(layers && { layers }) }, (runner) =>
            runner.run({
              sequences,
              from,
              to,
              ...(from > 0 && { hidden: hidden.fill(0.5) }),
              ...(to === count && { positions: allPositions(sequences) }),
            }),
          );
          const wanted = tensorNames(model, from, to);
          const where = `layers ${from} to ${to}`;
          const twice = read.filter((tensor, i) => read.indexOf(tensor) !== i);
          expectThat(twice.length === 0, `${where}: ${twice.join(", ")} are read more than once`);
          const more = read.filter((tensor) => !wanted.has(tensor));
          expectThat(more.length === 0, `${where}: ${more.join(", ")} are read, but not needed`);
          const missing = [...wanted].filter((tensor) => !read.includes(tensor));
          expectThat(missing.length === 0, `${where}: ${missing.join(", ")} are never read`);
        }
      },
    },
    {
      name: `${name}: layers that are loaded one at a time give what all layers give`,
      async run() {
        for (const plan of [undefined, everythingPlan(loaded, 81)]) {
          const whole = await withRunner(source, loaded, async (runner) => ({
            logits: await allLogits(runner, sequences, plan),
            records: await tapped(runner, { sequences, ...(plan && { plan }) }, fields),
          }));
          const parts = await layerByLayer(source, loaded, sequences, plan);
          expectClose(parts.logits, whole.logits, tolerance, "logits");
          expectEqual(
            parts.records.map(({ layer }) => layer),
            whole.records.map(({ layer }) => layer),
            "layers that the tap saw",
          );
          whole.records.forEach(({ layer, arrays }, i) => {
            for (const [field, values] of Object.entries(arrays)) {
              const found = parts.records[i]?.arrays[field as keyof typeof arrays];
              expectClose(found, values, tolerance, `${field} of layer ${layer}`);
            }
          });
        }
      },
    },
    {
      name: `${name}: a runner of some layers refuses others, and runs its own`,
      async run() {
        const full = await withRunner(source, loaded, (runner) =>
          runner.run({ sequences, boundaries: Array.from({ length: count }, (_, layer) => layer + 1) }),
        );
        const inputOf = (from: number): Partial<RunRequest> =>
          from === 0 ? {} : { from, hidden: full.boundaries.get(from) as Float32Array };
        for (const layers of ranges.filter(({ from, to }) => to - from < count)) {
          await withRunner(source, { ...loaded, layers }, async (runner) => {
            for (const { from, to } of ranges) {
              const request = { sequences, ...inputOf(from), to, boundaries: [to] };
              const where = `layers ${from} to ${to} of a runner of ${layers.from} to ${layers.to}`;
              if (from < layers.from || to > layers.to) {
                await expectCode(() => runner.run(request), ["COPPICE_USAGE"], where);
              } else {
                const { boundaries } = await runner.run(request);
                expectClose(boundaries.get(to), full.boundaries.get(to) as Float32Array, tolerance, where);
              }
            }
          });
        }
      },
    },
    {
      name: `${name}: layers that the model does not have are not loaded`,
      async run() {
        const backend = await createBackend(source);
        for (const [from, to] of [
          [0, 0],
          [1, 0],
          [-1, 1],
          [0, count + 1],
          [0.5, 1],
        ] as const) {
          const load = () => backend.load({ model, weights: loaded.weights, layers: { from, to } });
          await expectCode(load, ["COPPICE_USAGE"], `layers ${from} to ${to}`);
        }
      },
    },
  ];
}

function tensorNames(model: MoeModel, from: number, to: number): Set<string> {
  const refs = [
    ...(from === 0 ? [model.embedding] : []),
    ...model.layers.slice(from, to).flatMap(layerTensors),
    ...(to === model.layers.length ? headTensors(model) : []),
  ];
  return new Set(refs.map(({ name }) => name));
}

/** Runs every layer on a runner of its own. */
async function layerByLayer(
  source: BackendSource,
  loaded: MemoryModel,
  sequences: readonly Int32Array[],
  plan: Plan | undefined,
): Promise<{ logits: Float32Array | undefined; records: LayerRecord[] }> {
  const count = loaded.model.layers.length;
  const records: LayerRecord[] = [];
  let hidden: Float32Array | undefined;
  let logits: Float32Array | undefined;
  for (let layer = 0; layer < count; layer++) {
    const request: RunRequest = {
      sequences,
      from: layer,
      to: layer + 1,
      boundaries: [layer + 1],
      ...(plan && { plan }),
      ...(hidden && { hidden }),
      ...(layer + 1 === count && { positions: allPositions(sequences) }),
    };
    await withRunner(source, { ...loaded, layers: { from: layer, to: layer + 1 } }, async (runner) => {
      const result = await runner.run(request);
      records.push(...(await tapped(runner, request, fields)));
      hidden = result.boundaries.get(layer + 1)?.slice();
      logits = result.logits;
    });
  }
  return { logits, records };
}
