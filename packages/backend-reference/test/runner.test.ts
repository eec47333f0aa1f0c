import { reference } from "@coppice/backend-reference";
import { createRegistry, type MoeModel, type Runner, type RunRequest, type Tap } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { beforeEach, describe, expect, test } from "vitest";

const source = randomModel({ seed: 1, layers: 3 });
const sequences = [Int32Array.of(1, 2, 3), Int32Array.of(4)];

async function load(model: MoeModel = source.model, weights = source.weights): Promise<Runner> {
  const backend = await createRegistry([reference]).create("backend", "reference", {}, undefined);
  return backend.load({ model, weights });
}

describe("the reference runner", () => {
  let runner: Runner;
  beforeEach(async () => {
    runner = await load();
  });
  /** A tap that acts once, when the first layer has run. */
  const during = (act: () => void): Tap => ({
    fields: ["routing"],
    onLayer: ({ layer }) => (layer === 0 ? act() : undefined),
  });

  test("stops at the next layer when it is aborted, and leaves the cache as it was", async () => {
    const cache = runner.createCache(2);
    await runner.run({ sequences, cache });
    const controller = new AbortController();
    let layers = 0;
    const tap: Tap = {
      fields: ["routing"],
      onLayer() {
        layers++;
        controller.abort("enough");
      },
    };
    const { signal } = controller;
    await expect(runner.run({ sequences, cache, tap, signal })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
      cause: "enough",
    });
    expect(layers).toBe(1);
    expect(cache.lengths).toEqual([3, 1]);
    const positions = [Int32Array.of(0, 1, 2), Int32Array.of(0)];
    const after = await runner.run({ sequences, cache, positions });
    const twice = sequences.map((ids) => Int32Array.from([...ids, ...ids]));
    const whole = await runner.run({
      sequences: twice,
      positions: [Int32Array.of(3, 4, 5), Int32Array.of(1)],
    });
    const differences = after.logits?.map((value, i) => Math.abs(value - (whole.logits?.[i] as number)));
    expect(Math.max(...(differences as Float32Array))).toBeLessThan(1e-5);
  });

  test("refuses a run while another is going on, and the first one finishes", async () => {
    let second: Promise<unknown> | undefined;
    const tap = during(() => {
      second = runner.run({ sequences });
      second.catch(() => {});
    });
    await expect(runner.run({ sequences, tap })).resolves.toMatchObject({ tokenLayers: 12 });
    await expect(second).rejects.toMatchObject({ code: "COPPICE_USAGE", hint: expect.any(String) });
    await expect(runner.run({ sequences })).resolves.toBeDefined();
  });

  test("ends a run that is under way when it is disposed", async () => {
    const tap = during(() => void runner.dispose());
    await expect(runner.run({ sequences, tap })).rejects.toMatchObject({ code: "COPPICE_BACKEND_DISPOSED" });
  });

  test("ends a run whose cache is disposed on its way", async () => {
    const cache = runner.createCache(2);
    const tap = during(() => cache.dispose());
    await expect(runner.run({ sequences, cache, tap })).rejects.toMatchObject({
      code: "COPPICE_BACKEND_DISPOSED",
    });
  });

  test("passes on what a tap throws, and works on", async () => {
    const tap = during(() => {
      throw new Error("from the tap");
    });
    await expect(runner.run({ sequences, tap })).rejects.toThrow("from the tap");
    await expect(runner.run({ sequences })).resolves.toBeDefined();
  });

  test("refuses a plan that is broken, and a cache for no sequences", async () => {
    const plan = {
      format: "coppice.plan",
      version: 1,
      model: { family: "random", fingerprint: source.model.fingerprint },
      layers: [{ layer: 0, experts: [0] }],
    } as const satisfies NonNullable<RunRequest["plan"]>;
    await expect(runner.run({ sequences, plan })).rejects.toMatchObject({ code: "COPPICE_PLAN_KEEP" });
    for (const count of [0, -1, 1.5]) expect(() => runner.createCache(count)).toThrow("give 1 or more");
  });

  test("grows a cache token by token far beyond its first size", async () => {
    const ids = Int32Array.from({ length: 150 }, (_, i) => (i * 7) % source.model.vocabSize);
    const cache = runner.createCache(1);
    let last: Float32Array | undefined;
    for (const id of ids) {
      const request = { sequences: [Int32Array.of(id)], positions: [Int32Array.of(0)], cache };
      last = (await runner.run(request)).logits;
    }
    const whole = await runner.run({ sequences: [ids], positions: [Int32Array.of(149)] });
    const differences = last?.map((value, i) => Math.abs(value - (whole.logits?.[i] as number)));
    expect(Math.max(...(differences as Float32Array))).toBeLessThan(1e-5);
    expect(cache.lengths).toEqual([150]);
  });
});

describe("loading", () => {
  test("refuses what a later description might hold", async () => {
    const [first, ...rest] = source.model.layers as [MoeModel["layers"][number], ...MoeModel["layers"]];
    const changed = { ...first, feedForward: { ...first.feedForward, router: { order: "sinkhorn" } } };
    await expect(load({ ...source.model, layers: [changed, ...rest] } as MoeModel)).rejects.toMatchObject({
      code: "COPPICE_BACKEND_UNSUPPORTED",
      exitCode: 5,
      message: expect.stringContaining('layer 0 has router order "sinkhorn"; the reference backend runs "'),
    });
  });

  test("refuses a model whose experts can only be edited, with the reason", async () => {
    const model: MoeModel = { ...source.model, editOnly: "its layers mix Mamba and attention" };
    await expect(load(model)).rejects.toMatchObject({
      code: "COPPICE_BACKEND_UNSUPPORTED",
      message: expect.stringContaining("its layers mix Mamba and attention"),
    });
  });
});
