import { readdirSync } from "node:fs";
import {
  applyPlan,
  compareTensors,
  type LoadedCheckpoint,
  loadModel,
  memoryFolder,
  memoryTarget,
} from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import {
  createPlan,
  elementCount,
  type LayerPlan,
  type MlpSpec,
  moeLayers,
  type Plan,
  packBfloat16,
  Rng,
  selectExperts,
} from "@coppice/core";
import { describe, expect, it } from "vitest";
import { fixtures } from "./helpers.js";

/** Half of the experts of every layer: kept, every second one merged, or with changed down projections. */
function halved({ model }: LoadedCheckpoint, how: "kept" | "merged" | "changed"): Plan {
  const rng = Rng.fromSeed(6);
  return createPlan(
    model,
    moeLayers(model).map(({ index, feedForward }): LayerPlan => {
      const count = feedForward.experts.length;
      const scores = feedForward.experts.map(() => rng.uniform());
      const experts = selectExperts(feedForward, scores, count / 2, index);
      const row = (expert: number, slot: number) =>
        Array.from({ length: count }, (_, e) => (e === expert ? 0.75 : slot % 2 === 1 && e === 0 ? 0.25 : 0));
      const size = elementCount((feedForward.experts[0] as MlpSpec).down.shape);
      const change = (_: unknown, i: number) => ((i % 5) - 2) * 2 ** -6;
      return {
        layer: index,
        experts,
        ...(how === "merged" && { merge: experts.map(row) }),
        ...(how === "changed" && { down: packBfloat16(new Float32Array(experts.length * size).map(change)) }),
      };
    }),
  );
}

describe.each(readdirSync(fixtures))("compareTensors on %s", (name) => {
  it.each(["kept", "merged", "changed"] as const)(
    "agrees with surgery, and sees every changed byte range (experts are %s)",
    async (how) => {
      const original = await loadModel(await openFolder(`${fixtures}/${name}`));
      const plan = halved(original, how);
      const target = memoryTarget();
      await applyPlan(original, plan, target);
      const output = await loadModel(memoryFolder(target.files));
      expect(await compareTensors(original, plan, output)).toMatchObject({
        equal: true,
        differences: [],
        tensors: output.tensors.size,
      });
      const file = "model.safetensors";
      const bytes = target.files.get(file) as Uint8Array;
      const last = output.tensors.size - 1;
      for (const [i, tensor] of [...output.tensors.values()].entries()) {
        // Each tensor costs a comparison; a fifth of them, and always the last, are enough.
        if (i % 5 !== 0 && i !== last) continue;
        const damaged = bytes.slice();
        const at = tensor.begin + Math.floor((tensor.end - tensor.begin) / 2);
        damaged[at] = (damaged[at] as number) ^ 1;
        const changed = await loadModel(memoryFolder(new Map(target.files).set(file, damaged)));
        const { equal, differences } = await compareTensors(original, plan, changed);
        expect(equal, tensor.name).toBe(false);
        expect(differences).toHaveLength(1);
      }
      await original.close();
    },
  );

  it("tells another plan's output apart", async () => {
    const original = await loadModel(await openFolder(`${fixtures}/${name}`));
    const target = memoryTarget();
    await applyPlan(original, halved(original, "kept"), target);
    const output = await loadModel(memoryFolder(target.files));
    const { equal, differences } = await compareTensors(original, createPlan(original.model), output);
    expect(equal).toBe(false);
    expect(differences[0]).toMatch(/experts, expected 8/);
    await original.close();
  });
});

describe("compareTensors on the runtime layout", () => {
  async function lowered() {
    const original = await loadModel(await openFolder(`${fixtures}/mixtral`));
    const plan = createPlan(original.model, [{ layer: 1, experts: [0, 1, 2, 3, 4, 5, 6, 7], topK: 1 }]);
    const target = memoryTarget();
    await applyPlan(original, plan, target, { layout: "runtime" });
    return { original, plan, files: target.files };
  }

  it("knows it by the top-k of layers of equal sizes", async () => {
    const { original, plan, files } = await lowered();
    await using output = await loadModel(memoryFolder(files));
    expect(await compareTensors(original, plan, output)).toMatchObject({ equal: true, differences: [] });
    await original.close();
  });

  it("sees another top-k than that of the plan", async () => {
    const { original, files } = await lowered();
    await using output = await loadModel(memoryFolder(files));
    const { equal, differences } = await compareTensors(original, createPlan(original.model), output);
    expect({ equal, differences }).toEqual({
      equal: false,
      differences: ["layer 1 has top-k 1, expected 2"],
    });
    await original.close();
  });
});
