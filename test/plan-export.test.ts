import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { reference } from "@coppice/backend-reference";
import {
  applyPlan,
  compareTensors,
  type LoadedCheckpoint,
  loadModel,
  memoryFolder,
  memoryTarget,
  type OutputLayout,
} from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import {
  type Backend,
  createPlan,
  createRegistry,
  elementCount,
  type LayerPlan,
  type MlpSpec,
  type MoeModel,
  type MoeSpec,
  moeLayers,
  type Plan,
  packBfloat16,
  packFloats,
  Rng,
  type SkipRule,
  type TensorRef,
  type UnitSource,
} from "@coppice/core";
import { fixtureNames, fixturePath, loadFixtureFolder } from "@coppice/plugin-kit/node";
import { beforeAll, describe, expect, it } from "vitest";
import { halved, largestDifference, logitsOf } from "./sample-runs.js";

const variants = fileURLToPath(new URL("./fixtures/variants/", import.meta.url));
const folders: (readonly [name: string, path: string])[] = [
  ...fixtureNames.map((name) => [name, fixturePath(name)] as const),
  ...readdirSync(variants).map((name) => [name, `${variants}${name}`] as const),
];

let backend: Backend;
beforeAll(async () => {
  backend = await createRegistry([reference]).create("backend", "reference", {}, undefined);
});

/** Units of the slot's expert with those of two others: permuted, or some of them sharing places and some left out. */
function someUnits(rng: Rng, { experts }: MoeSpec, expert: number): UnitSource[] {
  const { width } = experts[expert] as MlpSpec;
  const all = Array.from({ length: width }, (_, unit) => unit);
  const others = rng
    .sample(experts.length, 3)
    .filter((other) => other !== expert)
    .slice(0, 2);
  return [expert, ...others]
    .sort((a, b) => a - b)
    .map((source, i) => ({
      expert: source,
      to: i === 0 ? rng.sample(width, width) : all.map(() => rng.integer(width + 1) - 1),
      rows: source === expert ? all.map(() => 1 + 0.2 * rng.normal()) : 0.25,
      columns: source === expert ? 0.75 : all.map(() => 0.2 * rng.normal()),
    }));
}

/** Changes of the down projections of most slots, as large as a tenth of what stands there. */
async function downChanges(
  rng: Rng,
  { weights }: Pick<LoadedCheckpoint, "weights">,
  spec: MoeSpec,
  slots: number,
): Promise<string> {
  const { down } = spec.experts[0] as MlpSpec;
  const size = elementCount(down.shape);
  const scale = 0.1 * (await weights.read(down)).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const changes = new Float32Array(slots * size);
  for (let i = 0; i < changes.length; i++) {
    if (Math.floor(i / size) % 4 !== 1) changes[i] = scale * rng.normal();
  }
  return packBfloat16(changes);
}

/** Half of the experts, as they are but for their down projections. */
async function refit(original: Pick<LoadedCheckpoint, "model" | "weights">): Promise<Plan> {
  const { model } = original;
  const rng = Rng.fromSeed(9);
  const specs = new Map(moeLayers(model).map(({ index, feedForward }) => [index, feedForward]));
  const layers: LayerPlan[] = [];
  for (const layer of halved(model).layers) {
    const spec = specs.get(layer.layer) as MoeSpec;
    layers.push({ ...layer, down: await downChanges(rng, original, spec, layer.experts.length) });
  }
  return createPlan(model, layers);
}

/**
 * Half of the experts: slots put together unit by unit, merged, both or neither, their down projections changed, and router
 * rows near the kept ones.
 */
async function rebuilt({ model, weights }: Pick<LoadedCheckpoint, "model" | "weights">): Promise<Plan> {
  const rng = Rng.fromSeed(8);
  const specs = new Map(moeLayers(model).map(({ index, feedForward }) => [index, feedForward]));
  const layers: LayerPlan[] = [];
  for (const [i, { layer, experts }] of halved(model).layers.entries()) {
    const spec = specs.get(layer) as MoeSpec;
    const near = async (ref: TensorRef) => {
      const values = await weights.read(ref);
      const size = values.length / spec.experts.length;
      const rows = experts.flatMap((expert) => [...values.subarray(expert * size, (expert + 1) * size)]);
      return rows.map((value) => value * (1 + 0.1 * rng.normal()) + 0.01);
    };
    const { weight, bias, correction } = spec.router;
    const own = (expert: number) => spec.experts.map((_, j) => Number(j === expert));
    const mixed = (expert: number) => own(expert).map((value) => value + 0.1 * rng.normal());
    layers.push({
      layer,
      experts,
      ...(i % 2 === 0 && {
        merge: experts.map((expert, slot) => (slot % 2 ? own(expert) : mixed(expert))),
      }),
      units: experts.map((expert, slot) => (slot % 3 === 2 ? null : someUnits(rng, spec, expert))),
      down: await downChanges(rng, { weights }, spec, experts.length),
      router: {
        weight: packFloats(Float32Array.from(await near(weight))),
        ...(bias && i % 2 === 0 && { bias: await near(bias) }),
        ...(correction && i % 2 === 0 && { correction: await near(correction) }),
      },
    });
  }
  return createPlan(model, layers);
}

/** All experts, of which tokens skip some. */
function skipping(model: MoeModel): Plan {
  const rules: SkipRule[] = [
    { rule: "ratio", threshold: 0.9 },
    { rule: "top-p", threshold: 0.6 },
    { rule: "ratio", threshold: 1, spare: 0.3 },
  ];
  return createPlan(
    model,
    moeLayers(model).map(({ index, feedForward }, i) => ({
      layer: index,
      experts: feedForward.experts.map((_, expert) => expert),
      skip: rules[i % rules.length] as SkipRule,
    })),
  );
}

/** The checkpoint that a plan makes, its logits alone, and those of the original under the plan. */
async function written(
  path: string,
  planOf: (original: LoadedCheckpoint) => Plan | Promise<Plan>,
  layout?: OutputLayout,
) {
  const { golden } = await loadFixtureFolder(path);
  await using original = await loadModel(await openFolder(path));
  const plan = await planOf(original);
  const target = memoryTarget();
  await applyPlan(original, plan, target, layout ? { layout } : {});
  await using output = await loadModel(memoryFolder(target.files));
  await using under = await backend.load(original);
  await using alone = await backend.load(output);
  return {
    golden,
    model: output.model,
    expected: await logitsOf(under, golden.sequences, plan),
    found: await logitsOf(alone, golden.sequences),
    comparison: await compareTensors(original, plan, output),
  };
}

describe.each(folders)("%s", (_, path) => {
  it("with merged units, changed down projections and new router rows computes what the plan says, and holds what it should", async () => {
    const { golden, expected, found, comparison } = await written(path, rebuilt);
    expect(comparison.differences).toEqual([]);
    expect(largestDifference(found, expected)).toBe(0);
    expect(largestDifference(expected, golden.logits)).toBeGreaterThan(1e-3);
  });

  it("with changed down projections computes what the plan says, and holds what it should", async () => {
    const { golden, expected, found, comparison } = await written(path, refit);
    expect(comparison.differences).toEqual([]);
    expect(largestDifference(found, expected)).toBe(0);
    const pruned = await written(path, ({ model }) => halved(model));
    expect(largestDifference(expected, golden.logits)).toBeGreaterThan(1e-3);
    expect(largestDifference(expected, pruned.expected)).toBeGreaterThan(1e-4);
  });

  it("keeps skip rules in the runtime layout", async () => {
    const { golden, model, expected, found, comparison } = await written(
      path,
      ({ model }) => skipping(model),
      "runtime",
    );
    expect(comparison.differences).toEqual([]);
    expect(largestDifference(found, expected)).toBe(0);
    const [first] = moeLayers(model);
    expect(first?.feedForward.router.skip).toEqual({ rule: "ratio", threshold: 0.9 });
    if ((first?.feedForward.router.topK ?? 0) > 1) {
      expect(largestDifference(expected, golden.logits)).toBeGreaterThan(1e-4);
    }
  });
});
