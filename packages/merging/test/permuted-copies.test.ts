import {
  type LayerPlan,
  type LayerStatistics,
  type MergerPlugins,
  type MlpSpec,
  mergeRows,
  mergeUnitColumns,
  mergeUnitRows,
  moeLayers,
  Rng,
  type Statistics,
  type TensorRef,
} from "@coppice/core";
import { intoMemory, type MemoryModel, memoryModel, randomModel } from "@coppice/plugin-kit";
import { loadFixture } from "@coppice/plugin-kit/node";
import { beforeAll, describe, expect, test } from "vitest";
import { merge } from "./merge.js";

const rng = Rng.fromSeed(81);
const tokens = 12;

async function fixture(name: "mixtral" | "gpt_oss" | "llama4_text"): Promise<MemoryModel> {
  const { model, weights } = await loadFixture(name);
  return intoMemory(model, weights);
}

/** Gate, biases, fused layouts, and experts without a gate. */
const models: Record<string, () => Promise<MemoryModel>> = {
  mixtral: () => fixture("mixtral"),
  gpt_oss: () => fixture("gpt_oss"),
  llama4_text: () => fixture("llama4_text"),
  relu2: async () =>
    randomModel({ seed: 5, experts: 8, width: 12, activation: { kind: "relu2" }, mlpBias: true }),
};

interface Copies {
  readonly source: MemoryModel;
  readonly statistics: Statistics;
}

/** Experts 4 to 7 become copies of 0 to 3 with their hidden units in another order, and are used less. */
async function withCopies(load: () => Promise<MemoryModel>): Promise<Copies> {
  const original = await load();
  const tensors = new Map([...original.tensors].map(([name, values]) => [name, values.slice()]));
  const values = (ref: TensorRef) => tensors.get(ref.name) as Float32Array;
  const layers = moeLayers(original.model).map(({ index, feedForward: { experts, router } }) => {
    const orders = experts.map(({ width }, expert) => {
      const order = Array.from({ length: width }, (_, unit) => unit);
      return expert < 4 ? order : rng.shuffle(order);
    });
    for (let expert = 4; expert < 8; expert++) {
      const [from, to] = [experts[expert - 4] as MlpSpec, experts[expert] as MlpSpec];
      const order = orders[expert] as number[];
      for (const part of ["gate", "up", "gateBias", "upBias"] as const) {
        const [source, target] = [from[part], to[part]];
        if (!source || !target) continue;
        const size = values(source).length / from.width;
        order.forEach((unit, i) => {
          values(target).set(values(source).subarray(unit * size, (unit + 1) * size), i * size);
        });
      }
      const down = values(from.down);
      values(to.down).set(
        down.map((_, i) => down[i - (i % to.width) + (order[i % to.width] as number)] as number),
      );
      if (from.downBias && to.downBias) values(to.downBias).set(values(from.downBias));
      const size = router.weight.shape[1] as number;
      const rows = values(router.weight);
      rows.copyWithin(expert * size, (expert - 4) * size, (expert - 3) * size);
    }
    return statisticsOf(index, experts, orders);
  });
  return {
    source: memoryModel(original.model, tensors),
    statistics: {
      model: original.model.fingerprint,
      tokens,
      layers,
      sample: { limit: tokens, priorities: Float64Array.from({ length: tokens }, (_, t) => t) },
    },
  };
}

/** Statistics in which each expert and its copy are alike and all others are not. */
function statisticsOf(
  layer: number,
  experts: readonly MlpSpec[],
  orders: readonly (readonly number[])[],
): LayerStatistics {
  const count = Float64Array.from(experts, (_, e) => (e < 4 ? 9 - e : 4 - (e - 4) / 3));
  const alike = Float64Array.from({ length: 64 }, (_, i) => {
    return Math.floor(i / 8) % 4 === i % 4 ? tokens : 0;
  });
  const width = experts[0]?.width as number;
  const units = new Float32Array(tokens * 8 * width);
  for (let token = 0; token < tokens; token++) {
    for (let expert = 0; expert < 4; expert++) {
      const original = Array.from({ length: width }, () => rng.normal());
      for (const copy of [expert, expert + 4]) {
        const order = orders[copy] as number[];
        units.set(
          order.map((unit) => original[unit] as number),
          (token * 8 + copy) * width,
        );
      }
    }
  }
  const sums: Partial<LayerStatistics> = {
    layer,
    tokens,
    count,
    gate: count,
    gateNorm: count.map((value) => value * value),
    logitGram: alike,
    everyOutputSum: Float64Array.from({ length: 8 * 4 }, (_, i) => Number(Math.floor(i / 4) % 4 === i % 4)),
    outputCosine: alike,
    sample: { logits: new Float32Array(tokens * 8), units },
  };
  return sums as LayerStatistics;
}

/** The parts of a slot as every consumer of plans computes them. */
function slotParts(source: MemoryModel, plan: LayerPlan, experts: readonly MlpSpec[], slot: number) {
  const first = experts[0] as MlpSpec;
  const sources = plan.units?.[slot] ?? [];
  const given = (part: (typeof parts)[number]) =>
    sources.map((unit) => ({
      source: unit,
      values: valuesOf(source, experts[unit.expert] as MlpSpec, part),
    }));
  return parts.flatMap((part) => {
    if (!first[part]) return [];
    const out = new Float32Array(valuesOf(source, first, part).length);
    if (part === "down") mergeUnitColumns(given(part), first.width, out);
    else if (part !== "downBias") mergeUnitRows(given(part), out.length / first.width, out);
    else {
      const row = plan.merge?.[slot] ?? experts.map((_, e) => Number(e === plan.experts[slot]));
      mergeRows(
        experts.map((expert) => valuesOf(source, expert, part)),
        row,
        out,
      );
    }
    return [[part, out] as const];
  });
}

const parts = ["gate", "up", "down", "gateBias", "upBias", "downBias"] as const;

function valuesOf({ tensors }: MemoryModel, expert: MlpSpec, part: (typeof parts)[number]): Float32Array {
  return tensors.get((expert[part] as TensorRef).name) as Float32Array;
}

const mergers = {
  "m-smoe": {},
  "logit-clusters": {},
  "hc-smoe": {},
  ream: { capacity: 2 },
  average: { weights: "saliency" },
  dern: {},
} as const satisfies { [N in keyof MergerPlugins]: MergerPlugins[N] };

describe.each(Object.keys(models))("permuted copies of experts of %s", (name) => {
  const cases = Object.entries(mergers).flatMap(([merger, options]) =>
    (["weights", "activations", "both"] as const).map((align) => ({ merger, align, options })),
  );

  let copies: Copies;

  beforeAll(async () => {
    copies = await withCopies(models[name] as () => Promise<MemoryModel>);
  });

  test.each(cases)(
    "$merger, aligned by $align, gives back the expert",
    async ({ merger, align, options }) => {
      const { source, statistics } = copies;
      const plans = await merge(
        merger as "m-smoe",
        { ...source, statistics, keep: 4 },
        { ...options, align },
      );
      for (const [i, { feedForward }] of moeLayers(source.model).entries()) {
        const plan = plans[i] as LayerPlan;
        expect(plan.experts).toEqual([0, 1, 2, 3]);
        for (const [slot, expert] of plan.experts.entries()) {
          expect(plan.units?.[slot]?.map((unit) => unit.expert)).toEqual([expert, expert + 4]);
          const spec = feedForward.experts[expert] as MlpSpec;
          for (const [part, merged] of slotParts(source, plan, feedForward.experts, slot)) {
            const values = valuesOf(source, spec, part);
            expect(
              merged.findIndex((value, i) => value !== values[i]),
              part,
            ).toBe(-1);
          }
        }
      }
    },
  );
});
