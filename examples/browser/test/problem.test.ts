import { CoppiceError } from "@coppice/core";
import { afterEach, describe, expect, it, vi } from "vitest";
import { MissingModels, readManifest } from "../src/manifest.js";
import { browserProblem, problemOf } from "../src/problem.js";

afterEach(() => {
  vi.unstubAllGlobals();
});

describe("what the page says", () => {
  it.each([
    ["memory", new RangeError("WebAssembly.Memory(): could not allocate memory")],
    ["memory", new Error("failed to call OrtRun(). ERROR_CODE: 6, std::bad_alloc")],
    ["memory", new CoppiceError("COPPICE_BACKEND_FAILED", "ONNX Runtime failed: Out of memory")],
    ["npm run models", new MissingModels("models.json answers with status 404.")],
    ["npm run models", new CoppiceError("COPPICE_FORMAT_MISSING_FILE", "onnx/model.onnx is not there")],
    ["server", new CoppiceError("COPPICE_IO_READ", "it cannot be fetched")],
    ["Shorten", new CoppiceError("COPPICE_TASK_TOO_LONG", "the prompt has 5000 tokens")],
    [
      "copy the tokenizer",
      new CoppiceError("COPPICE_TOKENIZER", "no tokenizer", { hint: "copy the tokenizer" }),
    ],
    ["Load again", new Error("something else")],
  ])("names %s", (word, error) => {
    const { message, advice } = problemOf(error);
    expect(`${message} ${advice}`).toContain(word);
    expect(message).toContain(error.message);
  });

  it("has nothing to say about this WebAssembly, and says when there is none or no SIMD", () => {
    vi.stubGlobal("Worker", class {});
    expect(browserProblem()).toBeUndefined();
    vi.stubGlobal("WebAssembly", { validate: () => false });
    expect(browserProblem()?.message).toContain("SIMD");
    vi.stubGlobal("WebAssembly", undefined);
    expect(browserProblem()?.message).toContain("no WebAssembly");
  });
});

describe("models.json", () => {
  const read = (body: string, status = 200) => {
    vi.stubGlobal("fetch", async () => new Response(body, { status }));
    return readManifest("http://page.example/models/", new AbortController().signal);
  };
  const files = [{ name: "config.json", size: 1 }];
  const model = { label: "a", folder: "b", files, bytes: 1, experts: 2, kept: [[0, 1]] };
  const manifest = { prompts: ["Once"], checkpoint: { folder: "c", files, bytes: 1 }, models: [model] };

  it("is read", async () => {
    expect(await read(JSON.stringify(manifest))).toEqual(manifest);
  });

  it.each([
    ["nothing", "", 404],
    ["no JSON", "<html>", 200],
    ["no models", JSON.stringify({ ...manifest, models: [] }), 200],
    ["no checkpoint", JSON.stringify({ ...manifest, checkpoint: undefined }), 200],
    ["experts by the million", JSON.stringify({ ...manifest, models: [{ ...model, experts: 1e6 }] }), 200],
  ])("is refused with %s", async (_, body, status) => {
    await expect(read(body, status)).rejects.toThrow(MissingModels);
  });
});
