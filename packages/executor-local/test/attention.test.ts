import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { attentionPlanModel } from "@coppice/core";
import { parseTask, type TextTask } from "@coppice/evaluate";
import { type AttentionSource, createModelPool } from "@coppice/executor-local";
import { fixturePath } from "@coppice/plugin-kit/node";
import { afterAll, describe, expect, it } from "vitest";

const folder = mkdtempSync(join(tmpdir(), "coppice-attention-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
cpSync(fixturePath("mixtral"), folder, { recursive: true });
/** One token per letter of ASCII. */
const vocab = Object.fromEntries(
  Array.from({ length: 95 }, (_, i) => [i === 0 ? "Ġ" : String.fromCharCode(32 + i), i + 3]),
);
const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
writeFileSync(
  join(folder, "tokenizer.json"),
  JSON.stringify({
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: "BPE", vocab, merges: [] },
  }),
);

const backend = { module: import.meta.resolve("@coppice/backend-reference") };
const masks = new URL("fixtures/masks.mjs", import.meta.url).href;
const line = (i: number) =>
  JSON.stringify({ prompt: `what is ${i} and some more`, answer: ` ${i * 7} it is` });
const task = parseTask(Array.from({ length: 3 }, (_, i) => line(i)).join("\n"), "t.jsonl");
const text = parseTask("Some words to be perplexed by. ".repeat(4), "t.txt") as TextTask;

describe("a pool under limited attention", () => {
  it("gives the same for any number of workers, and other values than without", async () => {
    const results: unknown[] = [];
    for (const workers of [1, 2]) {
      await using pool = await createModelPool({ model: folder, backend, workers, isolation: "thread" });
      const plan = {
        format: "coppice.attention",
        version: 1,
        model: attentionPlanModel(pool.model),
        blockSize: 4,
        sinks: 1,
        rules: [{ alpha: 8, beta: 0 }],
        layers: pool.model.layers.map(() => [0, 0]),
      } as const;
      const sources: (AttentionSource | undefined)[] = [
        undefined,
        { plan },
        { masker: { module: masks, export: "window", options: { window: 7 } } },
        { masker: { module: masks, name: "test-window", options: { window: 7 } } },
      ];
      const found = [];
      for (const source of sources) {
        const limits = source && { attention: source };
        found.push({
          likelihood: await pool.evaluateTask({ task, metric: "log-likelihood", ...limits }),
          f1: await pool.evaluateTask({ task, metric: "f1", ...limits }),
          positions: await pool.evaluatePositions({ task: text, length: 40, parts: 2, ...limits }),
          text: (await pool.generate("what is it and some more", { maxTokens: 8, ...limits })).tokens,
        });
      }
      results.push(found);
      const [dense, planned, masked, named] = found;
      expect(planned?.likelihood.value).not.toBe(dense?.likelihood.value);
      expect(masked?.likelihood.value).not.toBe(dense?.likelihood.value);
      expect(named).toEqual(masked);
      expect(dense?.positions).toMatchObject({ length: 40, windows: 3 });
      // Spans of whole blocks, sinks included, are a window of 7; masks of blocks let a little more through.
      expect(planned?.positions.value).not.toBe(masked?.positions.value);
    }
    expect(results[1]).toEqual(results[0]);
  });

  it("refuses what is no masker", async () => {
    await using pool = await createModelPool({ model: folder, backend, workers: 1, isolation: "thread" });
    const run = (masker: object) =>
      pool.evaluateTask({ task, attention: { masker: { module: masks, ...masker } } });
    await expect(run({ export: "planner" })).rejects.toMatchObject({
      code: "COPPICE_USAGE",
      message: expect.stringContaining("makes plans"),
    });
    await expect(run({ name: "elsewhere" })).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_INVALID",
      message: expect.stringContaining("planner, window"),
    });
    await expect(run({ export: "window", options: { window: -1 } })).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_OPTIONS",
    });
    await expect(run({ module: `${masks}.gone` })).rejects.toMatchObject({ code: "COPPICE_PLUGIN_INVALID" });
  });
});
