import { moeLayers, type Plan, type TapField } from "@coppice/core";
import {
  type ArrayField,
  type BackendSource,
  type LayerRecord,
  randomSequences,
  tapped,
  withRunner,
} from "./backend-subject.js";
import { expectClose, expectEqual, expectThat } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { MemoryModel } from "./memory-model.js";
import {
  acceptsMaps,
  everythingPlan,
  mappedPlan,
  mergedPlan,
  sampleRules,
  skippingPlan,
  topOnePlan,
} from "./sample-plans.js";
import { type SlowLayer, slowForward } from "./slow-model.js";

const tolerance = 1e-4;
const lengths = [7, 1, 4];

const arraysOf: Record<TapField, readonly ArrayField[]> = {
  residual: ["residual"],
  input: ["input"],
  routerLogits: ["routerLogits"],
  routing: ["slots", "gates"],
  expertOutputs: ["expertOutputs"],
  expertNorms: ["expertNorms"],
  expertPeaks: ["expertPeaks"],
  output: ["output"],
  everyOutput: ["everyRows", "everyOutput"],
  everyUnit: ["everyRows", "everyUnit"],
};
const allFields = Object.keys(arraysOf) as TapField[];

/** What taps show, against the formula and against itself. */
export function tapCases(source: BackendSource, name: string, loaded: MemoryModel): ConformanceCase[] {
  const { model } = loaded;
  const test = (what: string, plan?: Plan): ConformanceCase => ({
    name: `${name}: taps agree with the formula and with each other, ${what}`,
    async run() {
      const sequences = randomSequences(model, lengths);
      const records = await withRunner(source, loaded, (runner) =>
        tapped(runner, { sequences, ...(plan && { plan }) }, allFields),
      );
      const slow = sequences.map((ids) => slowForward(loaded, [...ids], plan).layers);
      const layers = moeLayers(loaded.model);
      expectEqual(
        records.map(({ layer }) => layer),
        layers.map(({ index }) => index),
        "layers that the tap saw",
      );
      records.forEach((record, i) => {
        const parts = slow.map((result) => result[i] as SlowLayer);
        const layerPlan = plan?.layers.find(({ layer }) => layer === record.layer);
        const kept = layerPlan && !layerPlan.routerMap ? layerPlan.experts : undefined;
        checkAgainstFormula(record, parts, kept);
        checkEvery(record, parts);
        checkAgainstItself(
          record,
          loaded.model.hiddenSize,
          layers[i]?.feedForward.router.scalesInput === true,
        );
      });
    },
  });
  return [
    test("without a plan"),
    test("merged", mergedPlan(model, 41)),
    ...(acceptsMaps(model) ? [test("under a router map", mappedPlan(model, 42))] : []),
    test("with a lower top-k", topOnePlan(model)),
    ...Object.entries(sampleRules).map(([rule, skip]) =>
      test(`where tokens skip experts by the rule ${rule}`, skippingPlan(model, skip)),
    ),
    test("merged by unit, with other router rows and skipped experts", everythingPlan(loaded, 43)),
    {
      name: `${name}: a tap sees what all experts compute of the tokens that it asks for`,
      async run() {
        const sequences = randomSequences(model, lengths);
        const tokens = sequences.flatMap((ids) => [...ids]).length;
        const slow = sequences.map((ids) => slowForward(loaded, [...ids]).layers);
        const masks = [
          Uint8Array.from({ length: tokens }, (_, row) => (row % 3 === 1 ? 1 : 0)),
          Uint8Array.from({ length: tokens }, (_, row) => (row === tokens - 1 ? 1 : 0)),
          new Uint8Array(tokens),
        ];
        await withRunner(source, loaded, async (runner) => {
          for (const mask of masks) {
            const records = await tapped(runner, { sequences }, ["everyOutput", "everyUnit"], mask);
            records.forEach((record, i) => {
              checkEvery(
                record,
                slow.map((result) => result[i] as SlowLayer),
                mask,
              );
            });
          }
        });
      },
    },
    {
      name: `${name}: a tap sees the fields asked for, in the layers that run`,
      async run() {
        const sequences = randomSequences(loaded.model, lengths);
        await withRunner(source, loaded, async (runner) => {
          for (const field of allFields) {
            const records = await tapped(runner, { sequences }, [field]);
            for (const { layer, arrays } of records) {
              const present = Object.entries(arrays).flatMap(([key, values]) =>
                values.length > 0 ? [key] : [],
              );
              const wanted = arraysOf[field].join(" and ");
              expectThat(
                present.sort().join() === [...arraysOf[field]].sort().join(),
                `layer ${layer} shows ${present.join(" and ") || "nothing"} when ${wanted} is wanted`,
              );
            }
          }
          const last = loaded.model.layers.length - 1;
          const { boundaries } = await runner.run({ sequences, to: last, boundaries: [last] });
          const hidden = boundaries.get(last) as Float32Array;
          const records = await tapped(runner, { sequences, from: last, hidden }, ["routing"]);
          expectEqual(
            records.map(({ layer }) => layer),
            [last],
            "layers that the tap saw when the last one ran",
          );
        });
      },
    },
  ];
}

function checkAgainstFormula(
  { layer, arrays }: LayerRecord,
  parts: readonly SlowLayer[],
  kept: readonly number[] | undefined,
): void {
  const where = (what: string) => `${what} of layer ${layer}`;
  const choices = parts.flatMap((part) => part.choices).flat();
  const residual = parts.flatMap((part) => part.residual).flat();
  expectClose(arrays.residual, residual, tolerance, where("residual stream before the block"));
  expectClose(arrays.input, parts.flatMap((part) => part.input).flat(), tolerance, where("input"));
  const logits = parts.flatMap((part) => part.routerLogits);
  const shown = logits.flatMap((row) => (kept ? kept.map((expert) => row[expert] as number) : row));
  expectClose(arrays.routerLogits, shown, tolerance, where("router logits"));
  expectEqual(
    arrays.slots,
    choices.map(({ slot }) => slot),
    where("chosen slots"),
  );
  expectClose(
    arrays.gates,
    choices.map(({ gate }) => gate),
    tolerance,
    where("gates"),
  );
  expectClose(
    arrays.expertOutputs,
    choices.flatMap(({ output }) => output),
    tolerance,
    where("expert outputs"),
  );
  expectClose(
    arrays.expertNorms,
    choices.map(({ output }) => Math.hypot(...output)),
    tolerance,
    where("norms"),
  );
}

/** All slots of the tokens that the mask asks for, of all without one. */
function checkEvery({ layer, arrays }: LayerRecord, parts: readonly SlowLayer[], mask?: Uint8Array): void {
  const tokens = parts.flatMap((part) => part.input.map((_, token) => () => part.every(token)));
  const wanted = [...tokens.keys()].filter((row) => mask?.[row] ?? 1);
  const all = wanted.flatMap((row) => tokens[row]?.() ?? []);
  const where = (what: string) => `${what} of all experts of layer ${layer}`;
  expectEqual(arrays.everyRows, wanted, where("tokens"));
  expectClose(
    arrays.everyOutput,
    all.flatMap(({ output }) => output),
    tolerance,
    where("outputs"),
  );
  expectClose(
    arrays.everyUnit,
    all.flatMap(({ units }) => units),
    tolerance,
    where("hidden units"),
  );
}

/**
 * Peaks and norms are those of the expert outputs, and output = Σ gate · expert output, or Σ expert output when gate
 * weights scale the inputs.
 */
function checkAgainstItself(
  { layer, rows: { length: tokens }, topK, arrays }: LayerRecord,
  hidden: number,
  scalesInput: boolean,
): void {
  const { gates, expertOutputs, expertNorms, expertPeaks, output } = arrays;
  const rows = gates.map((_, choice) => expertOutputs.slice(choice * hidden, (choice + 1) * hidden));
  const norms = rows.map((row) => Math.hypot(...row));
  expectClose(expertNorms, norms, 1e-5, `norms of the expert outputs shown of layer ${layer}`);
  expectEqual(
    expertPeaks,
    rows.map((row) => Math.max(...row.map(Math.abs))),
    `peaks of the expert outputs shown of layer ${layer}`,
  );
  const sums = Array.from({ length: tokens * hidden }, (_, at) => {
    const token = Math.floor(at / hidden);
    let sum = 0;
    for (let choice = token * topK; choice < (token + 1) * topK; choice++) {
      const gate = scalesInput ? 1 : (gates[choice] as number);
      sum += gate * (expertOutputs[choice * hidden + (at % hidden)] as number);
    }
    return sum;
  });
  expectClose(output, sums, 1e-5, `gate-weighted sum of the expert outputs shown of layer ${layer}`);
}
