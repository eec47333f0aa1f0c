import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { modelPath } from "@coppice/demo-model";
import { encodeModel, GraphBuilder } from "@coppice/onnx";
import { type ModelPiece, openExportedModel, type TextModel, urlFolder } from "@coppice/runtime";
import { isExportedFolder, openModelFolder } from "@coppice/runtime/node";
import { describe, expect, it } from "vitest";
import { deviceRuntime } from "./device-runtime.js";
import { toyExport, toyText, toyVocab } from "./toy-export.js";

const ids = (length: number, step = 37) => Int32Array.from({ length }, (_, i) => 100 + ((i * step) % 900));
const prompt = ids(40);

async function pieces(model: TextModel, ...given: Parameters<TextModel["stream"]>): Promise<ModelPiece[]> {
  const found: ModelPiece[] = [];
  for await (const piece of model.stream(...given)) found.push(piece);
  return found;
}

describe("a model", () => {
  it.each([{}, { keepsLogits: true }])("writes what its formula says, exported with %j", async (options) => {
    await using toy = await toyExport(options);
    await using model = await openModelFolder(toy.path);
    const { tokens, promptTokens, cachedTokens, finish } = await model.generate(prompt, { maxTokens: 20 });
    expect([...tokens]).toEqual(toyText(prompt, 20));
    expect([promptTokens, cachedTokens, finish]).toEqual([40, 0, "length"]);
    expect([model.vocabSize, model.contextLength]).toEqual([toyVocab, 512]);
  });

  it("runs long prompts in parts", async () => {
    await using toy = await toyExport();
    await using model = await openModelFolder(toy.path, { chunk: 7, keptPrefixes: 0 });
    expect([...(await model.generate(prompt, { maxTokens: 3 })).tokens]).toEqual(toyText(prompt, 3));
  });

  it("streams the text of the tokens, ends at stop strings and full contexts", async () => {
    await using toy = await toyExport({ context: 50 });
    await using model = await openModelFolder(toy.path);
    const whole = await model.generate(prompt);
    expect([whole.tokens.length, whole.finish]).toEqual([11, "length"]);
    const streamed = await pieces(model, prompt);
    expect(streamed.map(({ text }) => text).join("")).toBe(whole.text);
    expect(streamed.flatMap(({ token }) => token ?? [])).toEqual([...whole.tokens]);
    expect(model.decode(whole.tokens)).toBe(whole.text);
    const stop = whole.text.slice(5, 9);
    const stopped = await model.generate(prompt, { stop: [stop] });
    expect([stopped.text, stopped.finish]).toEqual([whole.text.slice(0, whole.text.indexOf(stop)), "stop"]);
  });

  it("ends at the end tokens of its configuration", async () => {
    const [, , third] = toyText(prompt, 3);
    await using toy = await toyExport({
      generation: { eos_token_id: [7, third], temperature: 0.5, top_k: 0 },
    });
    await using model = await openModelFolder(toy.path);
    const { tokens, finish } = await model.generate(prompt);
    expect([tokens.length, finish]).toEqual([2, "end"]);
    expect(model.sampling).toEqual({ temperature: 0.5 });
  });

  it("takes no memory for a context that nobody fills", async () => {
    await using toy = await toyExport({ context: Number.MAX_SAFE_INTEGER });
    await using model = await openModelFolder(toy.path);
    const long = ids(1100);
    expect([...(await model.generate(long, { maxTokens: 3 })).tokens]).toEqual(toyText(long, 3));
  });

  it("samples by seed", async () => {
    await using toy = await toyExport();
    await using model = await openModelFolder(toy.path);
    const sample = async (seed: number) => [
      ...(await model.generate(prompt, { temperature: 1, topP: 0.9, seed, maxTokens: 8 })).tokens,
    ];
    expect(await sample(1)).toEqual(await sample(1));
    expect(await sample(1)).not.toEqual(await sample(2));
  });

  it("gives the experts that its graph shows, those of the prompt with the first token", async () => {
    await using toy = await toyExport({ experts: true });
    await using model = await openModelFolder(toy.path, { chunk: 16 });
    await model.generate(prompt, { maxTokens: 2 });
    const [first, second] = await pieces(model, prompt, { experts: true, maxTokens: 2 });
    expect(first?.experts?.map(({ layer }) => layer)).toEqual([3]);
    expect([...(first?.experts?.[0]?.experts ?? [])]).toEqual([...prompt].map((id) => id % 8));
    expect([...(second?.experts?.[0]?.experts ?? [])]).toEqual([(first?.token as number) % 8]);
    expect((await pieces(model, prompt, { maxTokens: 1 }))[0]?.experts).toBeUndefined();
  });

  it("writes several texts at once as each alone", async () => {
    await using toy = await toyExport();
    await using model = await openModelFolder(toy.path, { chunk: 16 });
    const prompts = Array.from({ length: 12 }, (_, i) => ids(20 + 3 * i, 11 + i));
    const texts = await Promise.all(prompts.map((p) => model.generate(p, { maxTokens: 15 })));
    for (const [i, { tokens }] of texts.entries()) {
      expect([...tokens]).toEqual(toyText(prompts[i] as Int32Array, 15));
    }
  });
});

describe("kept beginnings", () => {
  it("continue a conversation, and share instructions", async () => {
    await using toy = await toyExport();
    await using model = await openModelFolder(toy.path, { keptPrefixes: 2 });
    const first = await model.generate(prompt, { maxTokens: 10 });
    // The last token was never run.
    const next = Int32Array.from([...prompt, ...first.tokens, 5, 6, 7]);
    const second = await model.generate(next, { maxTokens: 10 });
    expect(second.cachedTokens).toBe(49);
    expect([...second.tokens]).toEqual(toyText(next, 10));
    const other = Int32Array.from([...prompt.subarray(0, 30), 9, 8, 7]);
    const third = await model.generate(other, { maxTokens: 10 });
    expect(third.cachedTokens).toBe(30);
    expect([...third.tokens]).toEqual(toyText(other, 10));
    // The same prompt again: all but its last token.
    const again = await model.generate(other, { maxTokens: 10 });
    expect([again.cachedTokens, [...again.tokens]]).toEqual([32, toyText(other, 10)]);
  });

  it("hold for texts at the same time", async () => {
    await using toy = await toyExport();
    await using model = await openModelFolder(toy.path, { keptPrefixes: 3 });
    await model.generate(prompt, { maxTokens: 5 });
    const prompts = Array.from({ length: 8 }, (_, i) => Int32Array.from([...prompt, ...ids(i + 1, 3 + i)]));
    const texts = await Promise.all(prompts.map((p) => model.generate(p, { maxTokens: 9 })));
    for (const [i, { tokens }] of texts.entries()) {
      expect([...tokens]).toEqual(toyText(prompts[i] as Int32Array, 9));
    }
    expect(texts.some(({ cachedTokens }) => cachedTokens === 40)).toBe(true);
  });

  it("are let go, oldest first, and never kept where none are wanted", async () => {
    await using toy = await toyExport();
    await using one = await openModelFolder(toy.path);
    await one.generate(prompt, { maxTokens: 2 });
    await one.generate(ids(40, 41), { maxTokens: 2 });
    expect((await one.generate(prompt, { maxTokens: 2 })).cachedTokens).toBe(0);
    await using none = await openModelFolder(toy.path, { keptPrefixes: 0 });
    await none.generate(prompt, { maxTokens: 2 });
    expect((await none.generate(prompt, { maxTokens: 2 })).cachedTokens).toBe(0);
  });
});

describe("tensors on a device", () => {
  it("stay there, go on from text to text, and are all given back", async () => {
    await using toy = await toyExport({ experts: true });
    const { runtime, live } = deviceRuntime();
    const model = await openModelFolder(toy.path, { runtime, keptPrefixes: 2, chunk: 16 });
    const { tokens } = await model.generate(prompt, { maxTokens: 10 });
    expect([...tokens]).toEqual(toyText(prompt, 10));
    // Keys and values of the one layer.
    expect(live()).toBe(2);
    const next = Int32Array.from([...prompt, ...tokens, 5]);
    const second = await model.generate(next, { maxTokens: 3 });
    expect([second.cachedTokens, [...second.tokens]]).toEqual([49, toyText(next, 3)]);
    expect(live()).toBe(2);
    // A part of what is kept cannot be cut out over there.
    const other = Int32Array.from([...prompt.subarray(0, 30), 1]);
    expect((await model.generate(other, { maxTokens: 2 })).cachedTokens).toBe(0);
    expect((await pieces(model, ids(20, 3), { experts: true, maxTokens: 2 }))[0]?.experts).toHaveLength(1);
    expect(live()).toBe(4);
    const unfinished = model.stream(ids(25, 5));
    await unfinished.next();
    await model.dispose();
    await expect(unfinished.next()).rejects.toMatchObject({ code: "COPPICE_BACKEND_DISPOSED" });
    expect(live()).toBe(0);
  });
});

describe("an end before the end", () => {
  it("comes with the signal, also within a long prompt", async () => {
    await using toy = await toyExport();
    await using model = await openModelFolder(toy.path, { chunk: 1 });
    const controller = new AbortController();
    const stream = model.stream(prompt, { signal: controller.signal });
    await stream.next();
    controller.abort();
    await expect(stream.next()).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
    const late = new AbortController();
    const running = model.generate(ids(500), { signal: late.signal });
    setTimeout(() => late.abort(), 5);
    await expect(running).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
    // What ran before the abort was kept, and nothing is wrong with it.
    expect([...(await model.generate(prompt, { maxTokens: 4 })).tokens]).toEqual(toyText(prompt, 4));
  });

  it("comes when the consumer leaves", async () => {
    await using toy = await toyExport();
    await using model = await openModelFolder(toy.path);
    let count = 0;
    for await (const { token } of model.stream(prompt, { maxTokens: 100 })) {
      expect(token).toBeDefined();
      if (++count === 3) break;
    }
    const next = Int32Array.from([...prompt, ...toyText(prompt, 2), 1]);
    expect((await model.generate(next, { maxTokens: 1 })).cachedTokens).toBe(42);
  });

  it("comes with disposal, which may happen twice", async () => {
    await using toy = await toyExport();
    const model = await openModelFolder(toy.path);
    const stream = model.stream(prompt);
    await stream.next();
    const waiting = model.generate(ids(300), { maxTokens: 50 });
    await Promise.all([
      expect(waiting).rejects.toMatchObject({ code: "COPPICE_BACKEND_DISPOSED" }),
      model.dispose(),
    ]);
    await expect(stream.next()).rejects.toMatchObject({ code: "COPPICE_BACKEND_DISPOSED" });
    await expect(model.generate(prompt)).rejects.toMatchObject({ code: "COPPICE_BACKEND_DISPOSED" });
    await model.dispose();
  });
});

describe("folders", () => {
  it.each<[string, object, string, RegExp]>([
    ["config.json", { vocab_size: 4096 }, "COPPICE_FORMAT_CONFIG", /max_position_embeddings/],
    ["config.json", { vocab_size: 0, max_position_embeddings: 5 }, "COPPICE_FORMAT_CONFIG", /vocab_size/],
    ["generation_config.json", { top_p: "most" }, "COPPICE_FORMAT_CONFIG", /generation_config.json.*top_p/],
  ])("with a bad %s are refused: %j", async (file, content, code, message) => {
    await using toy = await toyExport();
    await writeFile(join(toy.path, file), JSON.stringify(content));
    await expect(openModelFolder(toy.path)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
  });

  it.each([
    ["config.json", "COPPICE_FORMAT_MISSING_FILE"],
    ["onnx/model.onnx", "COPPICE_FORMAT_MISSING_FILE"],
    ["onnx", "COPPICE_FORMAT_MISSING_FILE"],
  ])("without %s are refused", async (file, code) => {
    await using toy = await toyExport();
    await rm(join(toy.path, file), { recursive: true });
    await expect(openModelFolder(toy.path)).rejects.toMatchObject({ code });
  });

  it("without a tokenizer work with token ids", async () => {
    await using toy = await toyExport();
    await rm(join(toy.path, "tokenizer.json"));
    await using model = await openModelFolder(toy.path);
    const { tokens, text } = await model.generate(prompt, { maxTokens: 5 });
    expect([[...tokens], text]).toEqual([toyText(prompt, 5), ""]);
    expect(model.decode(tokens)).toBe("");
    await expect(model.generate("hello")).rejects.toMatchObject({ code: "COPPICE_TOKENIZER" });
  });

  it("with several graphs need a choice", async () => {
    await using toy = await toyExport();
    await writeFile(
      join(toy.path, "onnx", "model_q4.onnx"),
      await readFile(join(toy.path, "onnx", "model.onnx")),
    );
    await expect(openModelFolder(toy.path)).rejects.toMatchObject({
      code: "COPPICE_USAGE",
      message: expect.stringContaining("model.onnx, model_q4.onnx"),
    });
    await using model = await openModelFolder(toy.path, { dtype: "q4" });
    expect([...(await model.generate(prompt, { maxTokens: 1 })).tokens]).toEqual(toyText(prompt, 1));
    await expect(openModelFolder(toy.path, { dtype: "q2" })).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    await expect(openModelFolder(toy.path, { dtype: "constructor" })).rejects.toMatchObject({
      code: "COPPICE_USAGE",
    });
    await using named = await toyExport({ config: { "transformers.js_config": { dtype: "q4" } } });
    await writeFile(
      join(named.path, "onnx", "model_q4.onnx"),
      await readFile(join(toy.path, "onnx", "model.onnx")),
    );
    await using byConfig = await openModelFolder(named.path);
    expect(byConfig.vocabSize).toBe(toyVocab);
  });

  it("whose graph is no decoder, or none at all, are refused", async () => {
    await using toy = await toyExport();
    const g = new GraphBuilder("other");
    g.output(g.node("Relu", [g.input("pixels", [1])], {}, "logits"), [1]);
    await writeFile(join(toy.path, "onnx", "model.onnx"), encodeModel(g.build()));
    await expect(openModelFolder(toy.path)).rejects.toMatchObject({
      code: "COPPICE_BACKEND_UNSUPPORTED",
      message: expect.stringContaining("input_ids"),
    });
    await writeFile(join(toy.path, "onnx", "model.onnx"), "not a graph");
    await expect(openModelFolder(toy.path)).rejects.toMatchObject({ code: "COPPICE_BACKEND_FAILED" });
  });

  it("are told from checkpoints", async () => {
    await using toy = await toyExport();
    expect(await isExportedFolder(toy.path)).toBe(true);
    expect(await isExportedFolder(modelPath)).toBe(false);
    expect(await isExportedFolder(join(toy.path, "nothing"))).toBe(false);
  });
});

describe("requests that cannot be", () => {
  it("are refused", async () => {
    await using toy = await toyExport({ context: 50 });
    await using model = await openModelFolder(toy.path);
    const refused = (given: Parameters<TextModel["generate"]>, code: string) =>
      expect(model.generate(...given)).rejects.toMatchObject({ code });
    await refused([Int32Array.of(toyVocab)], "COPPICE_TOKENIZER");
    await refused([Int32Array.of(-1)], "COPPICE_TOKENIZER");
    await refused([new Int32Array(0)], "COPPICE_USAGE");
    await refused([ids(51)], "COPPICE_TASK_TOO_LONG");
    await refused([prompt, { maxTokens: 0 }], "COPPICE_USAGE");
    await refused([prompt, { topK: -1 }], "COPPICE_USAGE");
    await refused([[{ role: "user", content: "hello" }]], "COPPICE_TOKENIZER");
    await expect(openModelFolder(toy.path, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
    await expect(openModelFolder(toy.path, { chunk: 0 })).rejects.toMatchObject({ code: "COPPICE_USAGE" });
    await expect(openModelFolder(toy.path, { keptPrefixes: 1.5 })).rejects.toMatchObject({
      code: "COPPICE_USAGE",
    });
  });
});

describe("urlFolder", () => {
  it("loads what fetch gives, with progress, and tells what is missing", async () => {
    await using toy = await toyExport();
    const asked: string[] = [];
    const progress: string[] = [];
    const folder = urlFolder("https://models.example/toy", {
      async fetch(url) {
        const name = url.slice("https://models.example/toy/".length);
        asked.push(name);
        const bytes = await readFile(join(toy.path, name)).catch(() => undefined);
        if (!bytes) return new Response("none", { status: 404 });
        return new Response(new Uint8Array(bytes), { headers: { "content-length": String(bytes.length) } });
      },
      onProgress: ({ file, loaded, total }) => progress.push(`${file} ${loaded === total}`),
    });
    await using model = await openExportedModel(folder, { runtime: await import("onnxruntime-node") });
    expect([...(await model.generate(prompt, { maxTokens: 5 })).tokens]).toEqual(toyText(prompt, 5));
    expect(asked).toContain("generation_config.json");
    expect(progress.at(-1)).toBe("onnx/model.onnx true");
  });

  it.each([
    [async () => new Response("", { status: 503 }), "COPPICE_IO_READ"],
    [async () => Promise.reject(new Error("offline")), "COPPICE_IO_READ"],
    [async () => new Response("", { status: 404 }), "COPPICE_FORMAT_MISSING_FILE"],
    [async () => new Response("{", { status: 200 }), "COPPICE_FORMAT_CONFIG"],
  ])("refuses what is not there: %#", async (fetch, code) => {
    const runtime = await import("onnxruntime-node");
    await expect(
      openExportedModel(urlFolder("https://models.example/", { fetch }), { runtime }),
    ).rejects.toMatchObject({ code });
  });

  it("sees when a file ends early", async () => {
    const fetch = async () => new Response("{}", { headers: { "content-length": "10" } });
    await expect(
      openExportedModel(urlFolder("https://models.example", { fetch }), {
        runtime: await import("onnxruntime-node"),
      }),
    ).rejects.toMatchObject({ code: "COPPICE_FORMAT_TRUNCATED" });
  });
});
