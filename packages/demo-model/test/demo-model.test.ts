import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { modelPath, taskNames, taskPath } from "@coppice/demo-model";
import { describe, expect, it } from "vitest";

const lines = (path: string) => readFileSync(path, "utf8").trim().split("\n");

describe("the demo model", () => {
  it("has every shard that its index names", () => {
    const index = JSON.parse(readFileSync(join(modelPath, "model.safetensors.index.json"), "utf8"));
    const shards = new Set<string>(Object.values(index.weight_map));
    expect([...shards].sort()).toEqual(
      readdirSync(modelPath)
        .filter((name) => name.endsWith(".safetensors"))
        .sort(),
    );
    const bytes = [...shards].reduce((sum, name) => sum + statSync(join(modelPath, name)).size, 0);
    expect(bytes).toBeGreaterThan(53e6);
    for (const name of ["config.json", "tokenizer.json", "tokenizer_config.json"]) {
      expect(existsSync(join(modelPath, name))).toBe(true);
    }
  });
});

describe("the task files", () => {
  it("are all listed", () => {
    for (const split of ["search", "dev"]) {
      const files = readdirSync(join(modelPath, "..", "tasks", split)).sort();
      expect(files).toEqual(taskNames.map((name) => `${name}.jsonl`));
    }
  });

  it.each(taskNames)("%s: 300 samples per split, none shared", (name) => {
    const search = lines(taskPath(name, "search"));
    const dev = lines(taskPath(name, "dev"));
    expect([search.length, dev.length]).toEqual([300, 300]);
    const prompts = new Set(search.map((line) => JSON.parse(line).prompt));
    expect(dev.filter((line) => prompts.has(JSON.parse(line).prompt))).toEqual([]);
    for (const line of [...search, ...dev]) {
      expect(JSON.parse(line)).toEqual({ prompt: expect.any(String), answer: expect.any(String) });
    }
  });

  it("names what exists when asked for something else", () => {
    // @ts-expect-error a task that is not shipped
    expect(() => taskPath("../secret", "search")).toThrow(/tasks are arith/);
    // @ts-expect-error a split that is not shipped
    expect(() => taskPath("arith", "test")).toThrow(/splits are search, dev/);
  });
});
