import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { cpu } from "@coppice/backend-cpu";
import { reference } from "@coppice/backend-reference";
import {
  applyPlan,
  compareTensors,
  loadModel,
  memoryFolder,
  memoryTarget,
  partialModel,
} from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { createRegistry } from "@coppice/core";
import { loadFixtureFolder } from "@coppice/plugin-kit/node";
import { describe, expect, it } from "vitest";
import { halved, largestDifference, logitsOf } from "./sample-runs.js";

const folder = fileURLToPath(new URL("./fixtures/variants/", import.meta.url));
const names = readdirSync(folder);
const registry = createRegistry([cpu, reference]);

describe.each(names)("%s", (name) => {
  it.each(["reference", "cpu"] as const)(
    "computes what the reference implementation does on %s",
    async (kind) => {
      const { model, weights, golden } = await loadFixtureFolder(`${folder}${name}`);
      const backend = await registry.create("backend", kind, {}, undefined);
      await using runner = await backend.load({ model, weights });
      const { sequences, greedy } = golden;
      expect(largestDifference(await logitsOf(runner, sequences), golden.logits)).toBeLessThan(2e-4);
      const cache = runner.createCache(1);
      const found: number[] = [];
      for (let next = sequences[0] as Int32Array; found.length < greedy.length; ) {
        const positions = [Int32Array.of(next.length - 1)];
        const { argmax } = await runner.run({
          sequences: [next],
          positions,
          targets: [Int32Array.of(0)],
          cache,
        });
        next = argmax as Int32Array;
        found.push(next[0] as number);
      }
      cache.dispose();
      expect(found).toEqual([...greedy]);
    },
  );

  it("halved and written computes what the plan says, and holds what it should", async () => {
    const { golden } = await loadFixtureFolder(`${folder}${name}`);
    await using original = await loadModel(await openFolder(`${folder}${name}`));
    const plan = halved(original.model);
    const target = memoryTarget();
    await applyPlan(original, plan, target);
    await using written = await loadModel(memoryFolder(target.files));
    expect(await compareTensors(original, plan, written)).toMatchObject({ equal: true });
    const backend = await registry.create("backend", "reference", {}, undefined);
    await using under = await backend.load(original);
    await using alone = await backend.load(written);
    const { sequences } = golden;
    const expected = await logitsOf(under, sequences, plan);
    expect(largestDifference(await logitsOf(alone, sequences), expected)).toBe(0);
    expect(largestDifference(expected, golden.logits)).toBeGreaterThan(1e-3);
    await using part = await backend.load(partialModel(original.model, original.weights, plan));
    expect(largestDifference(await logitsOf(part, sequences), expected)).toBe(0);
  });
});
