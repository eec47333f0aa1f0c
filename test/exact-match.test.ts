import { readFileSync } from "node:fs";
import { cpu } from "@coppice/backend-cpu";
import { type LoadedCheckpoint, loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import type { Runner } from "@coppice/core";
import { modelPath, type TaskName, taskNames, taskPath } from "@coppice/demo-model";
import {
  encodeTask,
  generate,
  loadTokenizer,
  normalizeAnswer,
  parseTask,
  scoreSamples,
  type Tokenizer,
} from "@coppice/evaluate";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

/** Long prompts cost most of the time; fewer of them say as much. */
const samplesOf = (name: TaskName) => (name === "recall" ? 16 : 40);

let checkpoint: LoadedCheckpoint;
let runner: Runner;
let tokenizer: Tokenizer;

beforeAll(async () => {
  checkpoint = await loadModel(await openFolder(modelPath));
  const { model, weights, folder } = checkpoint;
  runner = await (await cpu.create({}, undefined)).load({ model, weights });
  tokenizer = await loadTokenizer(folder);
});

afterAll(async () => {
  await runner?.dispose();
  await checkpoint?.close();
});

describe("exact match by teacher forcing", () => {
  it.each(taskNames)("equals generating every answer: %s", async (name) => {
    const source = parseTask(readFileSync(taskPath(name, "dev"), "utf8"), `${name}.jsonl`);
    const task = encodeTask(source, { tokenizer, model: runner.model, limit: samplesOf(name) });
    const forced = await scoreSamples({ runner, tokenizer, task, metric: "exact-match" });
    const scores = new Array<number>(task.samples.length);
    forced.samples.forEach((sample, i) => {
      scores[sample] = forced.scores[i] as number;
    });
    const generated: number[] = [];
    for (const { sequences, promptTokens, gold } of task.samples) {
      const prompt = sequences[0]?.ids.slice(0, promptTokens) ?? new Int32Array(0);
      const { text, finish } = await generate(runner, tokenizer, prompt, {
        maxTokens: 80,
        stop: ["\n", "\r"],
      });
      generated.push(Number(finish !== "length" && normalizeAnswer(text) === gold));
    }
    expect(scores).toEqual(generated);
    // The model knows these tasks; a score of nothing at all would prove nothing.
    expect(generated.filter((score) => score === 1).length).toBeGreaterThan(task.samples.length / 5);
  });
});
