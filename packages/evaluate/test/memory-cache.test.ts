import { createPlan, type LayerMemory, type Plan, Rng, type Runner } from "@coppice/core";
import { createEvaluator, encodeTask, parseTask } from "@coppice/evaluate";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MemoryCache } from "../src/memory-cache.js";
import { byteTokenizer } from "./byte-tokenizer.js";
import { type FakeRunner, fakeModel, hiddenRunner } from "./fake-runners.js";

interface FakeMemory extends LayerMemory {
  bytes: number;
  disposed: boolean;
}

/** Memories that are told how much they hold. */
function fakeMemories() {
  const made: FakeMemory[] = [];
  const create = (): FakeMemory => {
    const memory = {
      bytes: 0,
      disposed: false,
      dispose: () => void Object.assign(memory, { disposed: true }),
    };
    made.push(memory);
    return memory;
  };
  return { made, create };
}

describe("MemoryCache", () => {
  it("keeps the budget by letting the least recently used prefixes go, for any uses", () => {
    const uses = fc.array(fc.record({ key: fc.nat(5), grown: fc.nat(40) }), { maxLength: 60 });
    fc.assert(
      fc.property(uses, fc.integer({ min: 1, max: 120 }), (steps, budget) => {
        const { made, create } = fakeMemories();
        const cache = new MemoryCache(budget, create);
        /** Keys and what they hold, the least recently used first. */
        let model: { key: number; bytes: number }[] = [];
        for (const { key, grown } of steps) {
          const memories = cache.of(`${key}`, 2) as FakeMemory[];
          const known = model.find((entry) => entry.key === key);
          expect(memories.map(({ bytes }) => bytes)).toEqual([known?.bytes ?? 0, 0]);
          (memories[0] as FakeMemory).bytes += grown;
          cache.trim();
          model = [...model.filter((entry) => entry !== known), { key, bytes: (known?.bytes ?? 0) + grown }];
          while (model.reduce((sum, { bytes }) => sum + bytes, 0) > budget) model.shift();
          expect(cache.bytes).toBe(model.reduce((sum, { bytes }) => sum + bytes, 0));
          expect(cache.bytes).toBeLessThanOrEqual(budget);
          expect(made.filter(({ disposed }) => !disposed)).toHaveLength(2 * model.length);
        }
        cache.clear();
        expect(made.every(({ disposed }) => disposed)).toBe(true);
        expect(cache.bytes).toBe(0);
      }),
    );
  });

  it("makes none without a budget, and where the backend has none", () => {
    const { made, create } = fakeMemories();
    expect(new MemoryCache(0, create).of("a", 3)).toEqual([]);
    expect(new MemoryCache(100, undefined).of("a", 3)).toEqual([]);
    expect(made).toEqual([]);
  });
});

describe("an evaluator on a runner with memories", () => {
  const model = fakeModel();
  const lines = Array.from({ length: 40 }, (_, i) =>
    JSON.stringify({ prompt: "x".repeat(9 + i), answer: ` ${i}` }),
  );
  const task = encodeTask(parseTask(lines.join("\n"), "t.jsonl"), { tokenizer: byteTokenizer(), model });

  /** Memories hold as much as is told, after any run with them. */
  function remembering(bytes: number): { runner: Runner; inner: FakeRunner; made: FakeMemory[] } {
    const inner = hiddenRunner(model);
    const { made, create } = fakeMemories();
    const runner: Runner = {
      ...inner,
      createMemory: create,
      run(request) {
        if (request.memory) (request.memory as FakeMemory).bytes = bytes;
        return inner.run(request);
      },
    };
    return { runner, inner, made };
  }

  const plans = (count: number): Plan[] => {
    const rng = Rng.fromSeed(2);
    const layers = () => [1, 2, 3].map((layer) => ({ layer, experts: [rng.integer(3), 3 + rng.integer(3)] }));
    return Array.from({ length: count }, () => createPlan(model, layers()));
  };

  it("gives runs that start with the same input one memory, and others another", async () => {
    const { runner, inner } = remembering(1);
    using evaluator = createEvaluator({ runner, task });
    for (const plan of plans(30)) await evaluator.evaluate(plan);
    const inputs = new Map<LayerMemory, unknown>();
    for (const { memory, hidden, sequences, from = 0 } of inner.requests) {
      const input = { from, first: sequences[0], hidden: hidden && [...hidden] };
      if (memory && inputs.has(memory)) expect(input).toEqual(inputs.get(memory));
      expect(memory).toBeDefined();
      inputs.set(memory as LayerMemory, input);
    }
    expect(inputs.size).toBeLessThan(inner.requests.length);
    expect(inputs.size).toBeGreaterThan(8);
  });

  it("holds no more than half of its budget in memories, and lets go of all in the end", async () => {
    const { runner, made } = remembering(20_000);
    const evaluator = createEvaluator({ runner, task, prefixCacheBytes: 2_000_000 });
    const live = () => made.filter(({ disposed }) => !disposed).length;
    let most = 0;
    for (const plan of plans(40)) {
      await evaluator.evaluate(plan);
      most = Math.max(most, live());
    }
    expect(most).toBeLessThanOrEqual(50);
    expect(most).toBeGreaterThan(20);
    expect(made.length).toBeGreaterThan(most);
    evaluator[Symbol.dispose]();
    expect(live()).toBe(0);
  });
});
