import { createPlan, type HeldBoundary, type Plan, Rng, type Runner } from "@coppice/core";
import { createEvaluator, encodeTask, parseTask, partBatches } from "@coppice/evaluate";
import { expect, it } from "vitest";
import { byteTokenizer } from "./byte-tokenizer.js";
import { fakeModel, hiddenRunner, scriptedRunner } from "./fake-runners.js";

const tokenizer = byteTokenizer();
const model = fakeModel();
const lines = Array.from({ length: 40 }, (_, i) =>
  JSON.stringify({ prompt: "x".repeat(1 + ((i * 7) % 30)) + i, answer: ` ${i % 7}` }),
);
const task = encodeTask(parseTask(lines.join("\n"), "t.jsonl"), { tokenizer, model });
const pace = { batchTokens: 100, runners: 1 };

/** A runner that takes overlapping runs, holds boundaries, and tells how many of both there are. */
function paced(inner: Runner) {
  const seen = { underWay: 0, most: 0, alive: 0, mostAlive: 0, targets: 0 };
  const held = new Map<HeldBoundary, Float32Array>();
  const hold = (values: Float32Array): HeldBoundary => {
    const one = {
      bytes: values.byteLength,
      dispose: () => {
        if (held.delete(one)) seen.alive--;
      },
    };
    held.set(one, values);
    seen.mostAlive = Math.max(seen.mostAlive, ++seen.alive);
    return one;
  };
  const runner: Runner = {
    ...inner,
    pace,
    async run({ held: start, hold: wanted = [], ...request }) {
      seen.most = Math.max(seen.most, ++seen.underWay);
      seen.targets += Number(request.targets !== undefined);
      // The order in which runs end is not that in which they began.
      for (let turn = (7 * seen.most) % 5; turn >= 0; turn--) await new Promise((done) => setImmediate(done));
      const hidden = start && held.get(start);
      if (start && !hidden) throw new Error("a boundary was disposed before its run");
      seen.underWay--;
      const result = await inner.run({ ...request, ...(hidden && { hidden }), boundaries: wanted });
      return {
        ...result,
        boundaries: new Map(),
        held: new Map([...result.boundaries].map(([layer, values]) => [layer, hold(values)])),
      };
    },
  };
  return { runner, seen };
}

function plans(count: number): Plan[] {
  const rng = Rng.fromSeed(3);
  return Array.from({ length: count }, () =>
    createPlan(
      model,
      [1, 2, 3].map((layer) => ({
        layer,
        experts: rng.pick([
          [0, 1],
          [0, 1, 2],
          [3, 5],
        ]),
      })),
    ),
  );
}

it("evaluates plans side by side with the bits of one after another, and lets go of what it holds", async () => {
  const plain = createEvaluator({ runner: hiddenRunner(model), task, prefixCacheBytes: 0 });
  const expected = [];
  for (const plan of plans(30)) expected.push(await plain.evaluate(plan));
  const largest = Math.max(
    ...partBatches(task, pace).map((batches) => batches.reduce((sum, { tokens }) => sum + tokens, 0)),
  );
  for (const budget of [0, 3, 1000]) {
    const { runner, seen } = paced(hiddenRunner(model));
    const evaluator = createEvaluator({
      runner,
      task,
      prefixCacheBytes: budget * largest * model.hiddenSize * Float32Array.BYTES_PER_ELEMENT,
    });
    expect(await Promise.all(plans(30).map((plan) => evaluator.evaluate(plan)))).toEqual(expected);
    for (const [i, plan] of plans(30).entries()) expect(await evaluator.evaluate(plan)).toEqual(expected[i]);
    expect(seen.most).toBeGreaterThan(30);
    expect(seen.mostAlive > 0).toBe(budget > 0);
    const stop = AbortSignal.abort();
    await expect(evaluator.evaluate(createPlan(model), { signal: stop })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
    evaluator[Symbol.dispose]();
    expect(seen.alive).toBe(0);
  }
});

it("gives a device batches that fill it", () => {
  const tokens = partBatches(task)
    .flat()
    .reduce((sum, batch) => sum + batch.tokens, 0);
  const cut = partBatches(task, { batchTokens: tokens - 1, runners: 1 });
  expect(cut.map((batches) => batches.length)).toEqual([1, 1, 1, 1]);
  expect(cut.flat().flatMap(({ samples }) => samples)).toHaveLength(40);
  for (const batches of partBatches(task, pace)) expect(batches.length).toBeGreaterThan(1);
});

it("asks for the probabilities of choices instead of all logits", async () => {
  const line = '{"prompt":"p","choices":["a","b","c"],"answer":1}';
  const choices = encodeTask(parseTask(line, "c"), { tokenizer, model });
  const a = 2 + 97;
  const logits = scriptedRunner(model, () => {
    const row = new Float32Array(model.vocabSize).fill(-100);
    row.set(
      [0.2, 0.5, 0.1].map((p) => Math.log(p)),
      a,
    );
    row[7] = Math.log(0.2);
    return row;
  });
  const { runner, seen } = paced(logits);
  for (const objective of ["likelihood", "imitation"] as const) {
    const values = await Promise.all(
      [logits, runner].map((one) =>
        createEvaluator({ runner: one, task: choices, objective, prefixCacheBytes: 0 }).evaluate(
          createPlan(model),
        ),
      ),
    );
    expect(values[1]?.scores[0]).toBeCloseTo(values[0]?.scores[0] as number, 6);
    expect(values[1]?.correct).toEqual(Uint8Array.of(1));
  }
  expect(seen.targets).toBe(2);
});

it("says how many parts at a time keep a device busy", () => {
  const { runner } = paced(hiddenRunner(model));
  const evaluator = createEvaluator({ runner, task });
  const tokens = partBatches(task)
    .flat()
    .reduce((sum, batch) => sum + batch.tokens, 0);
  // Four of its batches, in parts of a quarter of the task.
  expect(evaluator.busyParts).toBe(Math.ceil((4 * pace.batchTokens) / (tokens / 4)));
  evaluator[Symbol.dispose]();
  const plain = createEvaluator({ runner: hiddenRunner(model), task });
  expect(plain.busyParts).toBeUndefined();
  plain[Symbol.dispose]();
});
