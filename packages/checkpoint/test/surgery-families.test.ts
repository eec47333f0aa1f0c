import { readdirSync } from "node:fs";
import {
  applyPlan,
  families,
  type LoadedCheckpoint,
  loadModel,
  memoryFolder,
  memoryTarget,
} from "@coppice/checkpoint";
import { openFolder, type SyntheticOptions, writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import {
  createPlan,
  type LayerPlan,
  type MlpSpec,
  mergeRows,
  moeLayers,
  Rng,
  roundToStored,
  selectExperts,
  type TensorRef,
} from "@coppice/core";
import { describe, expect, it } from "vitest";
import { expectError, fixtures } from "./helpers.js";

const names = readdirSync(fixtures);
/** Families that score groups by two experts. */
const pairs = ["deepseek_v3", "glm4_moe"];
/** Families whose routers allow to fill up layers. */
const padded = ["deepseek_v3", "glm4_moe", "gpt_oss", "minimax_m2"];

async function applied(
  checkpoint: LoadedCheckpoint,
  layers: readonly LayerPlan[],
  options: Parameters<typeof applyPlan>[3] = {},
) {
  const target = memoryTarget();
  const summary = await applyPlan(checkpoint, createPlan(checkpoint.model, layers), target, options);
  return { summary, output: await loadModel(memoryFolder(target.files)) };
}

/** A plan with `keep` experts for each MoE layer, by its position. */
function plansOf(checkpoint: LoadedCheckpoint, keep: (layer: number) => number): LayerPlan[] {
  const rng = Rng.fromSeed(4);
  return moeLayers(checkpoint.model).map(({ index, feedForward }, position) => {
    const scores = feedForward.experts.map(() => rng.uniform());
    return { layer: index, experts: selectExperts(feedForward, scores, keep(position), index) };
  });
}

const roles = ["gate", "up", "down", "gateBias", "upBias", "downBias"] as const satisfies (keyof MlpSpec)[];

/** As `toEqual`, which is slow on large arrays. */
function expectSame(found: Float32Array | undefined, expected: Float32Array | undefined) {
  const bytes = (values: Float32Array | undefined) =>
    values && Buffer.from(values.buffer, values.byteOffset, values.byteLength);
  if (found && expected && bytes(found)!.equals(bytes(expected)!)) return;
  expect(found).toEqual(expected);
}

/** Compares what a reader gives: every expert, every router row, and all else. */
async function expectSliced(
  checkpoint: LoadedCheckpoint,
  output: LoadedCheckpoint,
  plans: readonly LayerPlan[],
) {
  const read = (from: LoadedCheckpoint, ref: TensorRef | undefined) => ref && from.weights.read(ref);
  for (const [position, layer] of moeLayers(output.model).entries()) {
    const { experts: kept, merge } = plans[position] as LayerPlan;
    const before = moeLayers(checkpoint.model)[position]!.feedForward;
    const after = layer.feedForward;
    for (const [slot, expert] of kept.entries()) {
      for (const role of roles) {
        const own = before.experts[expert]![role];
        if (!own) continue;
        let expected = await checkpoint.weights.read(own);
        // A single coefficient of 1 is that expert, in its own form.
        if (merge && merge[slot]!.some((value, other) => value !== Number(other === expert))) {
          const all = await Promise.all(before.experts.map((spec) => checkpoint.weights.read(spec[role]!)));
          expected = new Float32Array(expected.length);
          mergeRows(all, merge[slot]!, expected);
          roundToStored(expected, own);
        }
        expectSame(await read(output, after.experts[slot]![role]), expected);
      }
      for (const role of ["weight", "bias", "correction"] as const) {
        const [a, b] = [await read(checkpoint, before.router[role]), await read(output, after.router[role])];
        if (!a || !b) continue;
        const width = a.length / before.experts.length;
        expectSame(
          b.subarray(slot * width, (slot + 1) * width),
          a.subarray(expert * width, (expert + 1) * width),
        );
      }
    }
    for (let slot = kept.length; slot < after.experts.length; slot++) {
      expect((await read(output, after.experts[slot]!.down))!.every((value) => value === 0)).toBe(true);
    }
  }
  const edited = new Set(
    checkpoint.edits.flatMap(({ rows, separate, stacked }) =>
      [...rows, ...separate, ...stacked].map(({ tensor }) => tensor.name),
    ),
  );
  for (const [name, ref] of checkpoint.tensors) {
    if (edited.has(name)) continue;
    expectSame(await read(output, output.tensors.get(name)), await read(checkpoint, ref));
  }
}

describe.each(names)("%s", (name) => {
  const open = async () => loadModel(await openFolder(`${fixtures}${name}`));

  it("is pruned to half as slicing it does", async () => {
    await using checkpoint = await open();
    const plans = plansOf(checkpoint, () => moeLayers(checkpoint.model)[0]!.feedForward.experts.length / 2);
    const { output, summary } = await applied(checkpoint, plans);
    expect(summary.padded.experts).toBe(0);
    await expectSliced(checkpoint, output, plans);
  });

  it("is merged as a backend merges it", async () => {
    await using checkpoint = await open();
    const rng = Rng.fromSeed(9);
    const plans = plansOf(
      checkpoint,
      () => moeLayers(checkpoint.model)[0]!.feedForward.experts.length / 2,
    ).map((plan, position): LayerPlan => {
      const all = moeLayers(checkpoint.model)[position]!.feedForward.experts;
      return { ...plan, merge: plan.experts.map(() => all.map(() => rng.normal() / 3)) };
    });
    const { output } = await applied(checkpoint, plans);
    await expectSliced(checkpoint, output, plans);
  });

  it(padded.includes(name) ? "is filled up" : "refuses stock layers of different sizes", async () => {
    await using checkpoint = await open();
    const router = moeLayers(checkpoint.model)[0]!.feedForward.router;
    // Groups of two experts: six of eight are three groups, all but two of them.
    const plans = plansOf(checkpoint, (position) => (position % 2 ? 6 : router.groups ? 8 : 4));
    const work = applied(checkpoint, plans);
    if (!padded.includes(name)) return expectError(work, "COPPICE_PLAN_EXPORT", name, "cannot be filled up");
    const { output, summary } = await work;
    const kept = plans.reduce((sum, { experts }) => sum + experts.length, 0);
    expect(summary.padded.experts).toBe(summary.experts * plans.length - kept);
    expect(summary.padded.bytes).toBeGreaterThan(0);
    await expectSliced(checkpoint, output, plans);
  });

  it("keeps a single expert, and as many as its loaders ask for", async () => {
    await using checkpoint = await open();
    if (moeLayers(checkpoint.model)[0]!.feedForward.router.order === "sparsemixer") return;
    const plans = moeLayers(checkpoint.model).map(({ index }) => ({ layer: index, experts: [1], topK: 1 }));
    const { output, summary } = await applied(checkpoint, plans);
    // They take the two best experts of a group, also where there is one group.
    expect(summary.experts).toBe(pairs.includes(name) ? 2 : 1);
    await expectSliced(checkpoint, output, plans);
  });

  it("keeps layers of different sizes in the runtime layout", async () => {
    await using checkpoint = await open();
    const { router } = moeLayers(checkpoint.model)[0]!.feedForward;
    if (router.groups) return;
    const plans = plansOf(checkpoint, (position) => (position % 2 ? 5 : 3));
    const { output, summary } = await applied(checkpoint, plans, { layout: "runtime" });
    expect(summary).toMatchObject({ experts: 5, padded: { experts: 0, bytes: 0 } });
    const sizes = moeLayers(output.model).map(({ feedForward }) => feedForward.experts.length);
    expect(sizes).toEqual(plans.map(({ experts }) => experts.length));
    await expectSliced(checkpoint, output, plans);
    // Pruned further to one size, it is an ordinary checkpoint again.
    const again = await applied(
      output,
      plansOf(output, () => 2),
    );
    const counts = checkpoint.detected.counts.experts.map((path) =>
      path
        .split(".")
        .reduce<unknown>((value, key) => (value as Record<string, unknown>)[key], again.output.config),
    );
    expect(counts).toEqual(counts.map(() => 2));
  });
});

const sizes = {
  layers: 2,
  hiddenSize: 160,
  vocabSize: 20,
  heads: 4,
  kvHeads: 2,
  experts: 4,
  topK: 2,
  expertWidth: 96,
};
const latent = { q_lora_rank: null, kv_lora_rank: 16, first_k_dense_replace: 1, n_group: 1, topk_group: 1 };
const quantized: [string, Partial<SyntheticOptions>][] = [
  ["mixtral in fp8", { family: "mixtral", quantized: "fp8" }],
  ["deepseek_v3 in fp8", { family: "deepseek_v3", quantized: "fp8", config: latent }],
  ["gpt_oss in MXFP4", { family: "gpt_oss", quantized: "mxfp4" }],
  ["llama4_text, stacks turned", { family: "llama4_text", topK: 1 }],
  ["granitemoe", { family: "granitemoe" }],
];

describe.each(quantized)("made-up %s", (_, options) => {
  it("is pruned, merged and filled up as a reader sees it", async () => {
    const target = memoryTarget();
    await writeSyntheticCheckpoint(target, { ...sizes, family: "", ...options });
    await using checkpoint = await loadModel(memoryFolder(target.files));
    const plans = plansOf(checkpoint, () => 3);
    const { output } = await applied(checkpoint, plans);
    await expectSliced(checkpoint, output, plans);
    const rng = Rng.fromSeed(2);
    const merged = plans.map((plan) => ({
      ...plan,
      merge: plan.experts.map((expert, slot) =>
        Array.from({ length: 4 }, (__, other) => (slot === 0 ? Number(other === expert) : rng.normal() / 2)),
      ),
    }));
    await expectSliced(checkpoint, (await applied(checkpoint, merged)).output, merged);
  });
});

it("leaves no family out that is executed", () => {
  const executed = families.filter(({ editOnly }) => editOnly === undefined);
  expect([...names].sort()).toEqual(executed.map(({ name }) => name).sort());
});
