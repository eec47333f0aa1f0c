import { checkOwned, createPlan, type KvCache, type Runner, RunnerGuard, type WorkPace } from "@coppice/core";
import { describe, expect, test } from "vitest";
import { tinyModel } from "./tiny-model.js";

const { model } = tinyModel();
const sequences = [Int32Array.of(1, 2, 3), Int32Array.of(4)];
const known = { spans: true, prefillMasks: false, decodePages: false };

function guardOf(pace?: WorkPace): RunnerGuard<string> {
  const runner = { model, ...(pace && { pace }) } as Runner;
  return new RunnerGuard(runner, { from: 0, to: 2 }, known, "weights");
}

describe("RunnerGuard", () => {
  test("gives what is loaded until it is released, once", () => {
    const guard = guardOf();
    expect(guard.loaded).toBe("weights");
    expect(guard.release()).toBe("weights");
    expect(guard.release()).toBeUndefined();
    const disposed = expect.objectContaining({
      code: "COPPICE_BACKEND_DISPOSED",
      message: "the runner was disposed and cannot run again",
    });
    for (const use of [
      () => guard.loaded,
      () => guard.throwIfDisposed(),
      () => guard.checkRun({ sequences, to: 1 }),
      () => guard.checkCache(1, undefined),
    ])
      expect(use).toThrow(disposed);
  });

  test("checks requests against the layers that are loaded, and returns plans by layer", () => {
    const guard = guardOf();
    const plan = { ...createPlan(model), layers: [{ layer: 0, experts: [0, 1, 4] }] };
    const { checked, plans } = guard.checkRun({ sequences, to: 2, plan });
    expect(checked).toMatchObject({ tokens: 4, from: 0, to: 2 });
    expect([...plans]).toEqual([[0, plan.layers[0]]]);
    expect(guard.checkRun({ sequences, to: 2 }).plans.size).toBe(0);
    expect(() => guard.checkRun({ sequences })).toThrow("the runner was loaded with those from 0 to 2");
    const signal = AbortSignal.abort();
    expect(() => guard.checkRun({ sequences, to: 2, signal })).toThrow(
      expect.objectContaining({ code: "COPPICE_ABORTED", message: "stopped while starting a run" }),
    );
  });

  test("refuses plans that are broken, every time", () => {
    const guard = guardOf();
    const plan = { ...createPlan(model), layers: [{ layer: 0, experts: [0] }] };
    for (let i = 0; i < 2; i++) {
      expect(() => guard.checkRun({ sequences, to: 2, plan })).toThrow(
        expect.objectContaining({ code: "COPPICE_PLAN_KEEP" }),
      );
    }
  });

  test("lets runners with a pace hold boundaries, and no others", () => {
    const request = { sequences, to: 2, hold: [1] };
    expect(guardOf({ batchTokens: 8, runners: 1 }).checkRun(request).checked.to).toBe(2);
    expect(() => guardOf().checkRun(request)).toThrow("which has no pace");
  });

  test("refuses caches for no sequence, and what the runner cannot limit attention by", () => {
    const guard = guardOf();
    for (const count of [0, -1, 1.5, Number.NaN]) {
      expect(() => guard.checkCache(count, undefined)).toThrow(
        `a cache for ${count} sequences is wanted; give 1 or more`,
      );
    }
    expect(guard.checkCache(2, undefined)).toBeUndefined();
    const masker = { prefill: () => undefined };
    expect(() => guard.checkCache(2, { masker })).toThrow("this backend does not know masks of prompts");
  });
});

describe("checkOwned", () => {
  class Cache implements KvCache {
    readonly lengths = [0];
    disposed = false;
    constructor(readonly owner: object) {}
    dispose(): void {
      this.disposed = true;
    }
  }
  const runner = {};

  test("gives back what the runner made", () => {
    const cache = new Cache(runner);
    expect(checkOwned(runner, Cache, cache, "cache")).toBe(cache);
    expect(checkOwned(runner, Cache, undefined, "cache")).toBeUndefined();
  });

  test("refuses what another runner made, of the same kind or not", () => {
    const foreign = { owner: runner, lengths: [0], dispose() {} };
    for (const given of [new Cache({}), foreign]) {
      expect(() => checkOwned(runner, Cache, given, "cache")).toThrow(
        expect.objectContaining({
          code: "COPPICE_USAGE",
          message: "the cache was made by another runner",
          hint: "make it with createCache of the runner that runs",
        }),
      );
    }
    expect(() => checkOwned(runner, Cache, new Cache({}), "memory")).toThrow(
      expect.objectContaining({ hint: "make it with createMemory of the runner that runs" }),
    );
  });

  test("refuses what was disposed", () => {
    const cache = new Cache(runner);
    cache.dispose();
    expect(() => checkOwned(runner, Cache, cache, "cache")).toThrow(
      expect.objectContaining({
        code: "COPPICE_BACKEND_DISPOSED",
        message: "the cache was disposed before this run",
      }),
    );
  });
});
