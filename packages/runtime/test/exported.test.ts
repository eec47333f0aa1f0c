import { copyFile, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadModel } from "@coppice/checkpoint";
import { folderTarget, openFolder } from "@coppice/checkpoint/node";
import { modelPath } from "@coppice/demo-model";
import { exportOnnx } from "@coppice/export-onnx";
import { type FixtureName, fixturePath, loadFixture } from "@coppice/plugin-kit/node";
import { openExportedModel, urlFolder } from "@coppice/runtime";
import { openModelFolder } from "@coppice/runtime/node";
import * as web from "onnxruntime-web";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

let scratch: string;
let folders = 0;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "coppice-runtime-"));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

/** An exported fixture; its tokens have the texts of the demo model's first ones. */
async function exported(name: FixtureName, expertOutputs = false): Promise<string> {
  const folder = join(scratch, `${name}-${++folders}`);
  await using loaded = await loadModel(await openFolder(fixturePath(name)));
  await exportOnnx(loaded, folderTarget(folder), { target: "cpu", expertOutputs });
  await copyFile(join(modelPath, "tokenizer.json"), join(folder, "tokenizer.json"));
  return folder;
}

describe.each<FixtureName>(["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v2"])("exported %s", (name) => {
  it("writes what the reference implementation does, however it is asked", async () => {
    const { golden } = await loadFixture(name);
    const [prompt] = golden.sequences as [Int32Array];
    const greedy = [...golden.greedy];
    const folder = await exported(name);
    await using model = await openModelFolder(folder, { keptPrefixes: 2, chunk: 5 });
    const write = async (ids: Int32Array, maxTokens: number) => {
      const { tokens, cachedTokens } = await model.generate(ids, { maxTokens });
      return { tokens: [...tokens], cachedTokens };
    };
    expect((await write(prompt, greedy.length)).tokens).toEqual(greedy);
    // From the middle, with what is kept.
    const middle = Int32Array.from([...prompt, ...greedy.slice(0, 7)]);
    const rest = await write(middle, greedy.length - 7);
    expect(rest.tokens).toEqual(greedy.slice(7));
    expect(rest.cachedTokens).toBe(middle.length >= 17 ? middle.length - 1 : 0);
    // Several at once, in turns.
    const again = await Promise.all([1, 2, 3].map((left) => write(prompt, greedy.length - left)));
    expect(again.map(({ tokens }) => tokens)).toEqual([1, 2, 3].map((left) => greedy.slice(0, -left)));
  });
});

describe("keys and values that are extended where they are", () => {
  it("give the same text as copies of them, beyond the room that they began with", async () => {
    const folder = await exported("mixtral");
    const write = async (inPlace: boolean) => {
      await using model = await openModelFolder(folder, { inPlace, chunk: 7 });
      const write = async (prompt: Int32Array) =>
        (await model.generate(prompt, { maxTokens: model.contextLength })).tokens;
      const whole = await write(Int32Array.of(5, 3, 8, 1));
      // Again from the middle of what is kept.
      return [whole, await write(Int32Array.of(5, 3, 8, 1, ...whole.subarray(0, 20), 9))].map(String);
    };
    const texts = await write(true);
    expect(texts[0]?.split(",").length).toBeGreaterThan(100);
    expect(texts).toEqual(await write(false));
  });
});

describe("onnxruntime-web", () => {
  it("writes the same from files that are fetched", async () => {
    // Threads of this library are for pages; in Node they are not needed.
    web.env.wasm.numThreads = 1;
    const { golden } = await loadFixture("qwen3_moe");
    const [prompt] = golden.sequences as [Int32Array];
    const path = await exported("qwen3_moe");
    const folder = urlFolder("https://models.example", {
      async fetch(url) {
        const bytes = await readFile(join(path, url.slice("https://models.example/".length))).catch(
          () => null,
        );
        return new Response(bytes && new Uint8Array(bytes), { status: bytes ? 200 : 404 });
      },
    });
    await using model = await openExportedModel(folder, { runtime: web });
    const { tokens } = await model.generate(prompt, { maxTokens: golden.greedy.length });
    expect([...tokens]).toEqual([...golden.greedy]);
  });
});

describe("chosen experts", () => {
  it("come for every layer and token, as many as the router chooses", async () => {
    const { golden, model: spec } = await loadFixture("mixtral");
    const [prompt] = golden.sequences as [Int32Array];
    await using model = await openModelFolder(await exported("mixtral", true), { chunk: 5 });
    const shown: number[][] = [];
    const tokens: number[] = [];
    for await (const { experts, token } of model.stream(prompt, { experts: true, maxTokens: 3 })) {
      if (token !== undefined) tokens.push(token);
      if (experts) shown.push(experts.map(({ experts }) => experts.length));
      for (const { experts: chosen } of experts ?? []) {
        expect(chosen.every((expert) => expert >= 0 && expert < 8)).toBe(true);
      }
    }
    const layers = spec.layers.length;
    expect(shown).toEqual([
      Array(layers).fill(2 * prompt.length),
      Array(layers).fill(2),
      Array(layers).fill(2),
    ]);
    expect(tokens).toEqual([...golden.greedy.slice(0, 3)]);
  });
});
