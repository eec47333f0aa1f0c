import { createPlan, type LayerPlan, type Plan, packFloats, RunEmitter } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { acceptLayers } from "@coppice/router-repair";
import { describe, expect, test } from "vitest";

const { model } = randomModel({ layers: 4 });
const layer = (index: number, row?: number): LayerPlan => ({
  layer: index,
  experts: [0, 1],
  ...(row !== undefined && { router: { weight: packFloats(Float32Array.of(row)) } }),
});
const plan = createPlan(model, [layer(0), layer(1, 9), layer(2), layer(3)]);
const repaired = { plan: createPlan(model, [layer(0, 1), layer(1, 2), layer(2), layer(3, 3)]), layers: [] };

/** Sum over layers of what their rows are worth. */
function measureOf(worth: Readonly<Record<number, number>>, seen: Plan[] = []) {
  return async (tried: Plan) => {
    seen.push(tried);
    return tried.layers.reduce((sum, { router }, i) => {
      const isNew = router !== undefined && router.weight === repaired.plan.layers[i]?.router?.weight;
      return sum + (isNew ? (worth[i] ?? 0) : 0);
    }, 10);
  };
}

describe("acceptLayers", () => {
  test("keeps the rows of layers that help, beside those that were kept before", async () => {
    const seen: Plan[] = [];
    const emitter = new RunEmitter();
    const done: number[] = [];
    emitter.on("progress", (progress) => done.push(progress.done / progress.total));
    const found = await acceptLayers({
      plan,
      repaired,
      measure: measureOf({ 0: -1, 1: 2, 3: -4 }, seen),
      emitter,
    });
    expect(found).toMatchObject({ before: 10, after: 5 });
    expect(found.layers).toEqual([
      { layer: 0, value: 9, accepted: true },
      { layer: 1, value: 11, accepted: false },
      { layer: 3, value: 5, accepted: true },
    ]);
    expect(found.plan).toEqual(createPlan(model, [layer(0, 1), layer(1, 9), layer(2), layer(3, 3)]));
    expect(seen).toHaveLength(4);
    expect(seen[0]).toEqual(plan);
    expect(done).toEqual([1 / 3, 2 / 3, 1]);
  });

  test("leaves the plan as it was where nothing helps, or nothing is measured", async () => {
    const none = await acceptLayers({ plan, repaired, measure: measureOf({ 0: 0, 1: 1, 3: Number.NaN }) });
    expect(none.plan).toEqual(plan);
    expect(none.after).toBe(none.before);
  });

  test("stops when told, and passes errors on", async () => {
    const signal = AbortSignal.abort();
    await expect(acceptLayers({ plan, repaired, measure: measureOf({}), signal })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
    const measure = () => Promise.reject(new Error("no worker"));
    await expect(acceptLayers({ plan, repaired, measure })).rejects.toThrow("no worker");
  });
});
