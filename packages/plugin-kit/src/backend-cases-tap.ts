import { type MoeModel, moeLayers, type Plan, type Runner, type TapField } from "@coppice/core";
import {
  type ArrayField,
  type BackendSource,
  type LayerRecord,
  randomSequences,
  recordingTap,
  withRunner,
} from "./backend-subject.js";
import { expectClose, expectEqual, expectThat } from "./compare.js";
import type { ConformanceCase } from "./conformance-case.js";
import type { MemoryModel } from "./memory-model.js";
import { acceptsMaps, mappedPlan, mergedPlan, topOnePlan } from "./sample-plans.js";
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
};
const allFields = Object.keys(arraysOf) as TapField[];

/** What taps show, against the formula and against itself. */
export function tapCases(source: BackendSource, name: string, loaded: MemoryModel): ConformanceCase[] {
  const test = (what: string, make: (model: MoeModel) => Plan | undefined): ConformanceCase => ({
    name: `${name}: taps agree with the formula and with each other, ${what}`,
    async run() {
      const plan = make(loaded.model);
      const sequences = randomSequences(loaded.model, lengths);
      const records = await withRunner(source, loaded, (runner) =>
        tapped(runner, sequences, allFields, plan),
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
        checkAgainstItself(
          record,
          loaded.model.hiddenSize,
          layers[i]?.feedForward.router.scalesInput === true,
        );
      });
    },
  });
  return [
    test("without a plan", () => undefined),
    test("merged", (model) => mergedPlan(model, 41)),
    ...(acceptsMaps(loaded.model) ? [test("under a router map", (model) => mappedPlan(model, 42))] : []),
    test("with a lower top-k", topOnePlan),
    {
      name: `${name}: a tap sees the fields asked for, in the layers that run`,
      async run() {
        const sequences = randomSequences(loaded.model, lengths);
        await withRunner(source, loaded, async (runner) => {
          for (const field of allFields) {
            const records = await tapped(runner, sequences, [field]);
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
          const { tap, records } = recordingTap(["routing"]);
          await runner.run({ sequences, from: last, hidden: boundaries.get(last) as Float32Array, tap });
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

async function tapped(
  runner: Runner,
  sequences: readonly Int32Array[],
  fields: readonly TapField[],
  plan?: Plan,
): Promise<LayerRecord[]> {
  const { tap, records } = recordingTap(fields);
  await runner.run({ sequences, tap, ...(plan && { plan }) });
  const tokens = sequences.reduce((sum, sequence) => sum + sequence.length, 0);
  for (const record of records)
    expectEqual([record.tokens], [tokens], `tokens shown of layer ${record.layer}`);
  return records;
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

/**
 * Peaks and norms are those of the expert outputs, and output = Σ gate · expert output, or Σ expert output when gate
 * weights scale the inputs.
 */
function checkAgainstItself(
  { layer, tokens, topK, arrays }: LayerRecord,
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
