import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { describe, expect, it } from "vitest";

/** Packages whose main entry runs outside Node. */
const portable: readonly string[] = [
  "core",
  "checkpoint",
  "onnx",
  "evaluate",
  "export-onnx",
  "calibrate",
  "allocate",
  "attention",
  "reconstruct",
  "router-repair",
  "search",
  "criteria",
  "gguf",
  "merging",
  "search-eep",
  "search-baselines",
  "search-cma-es",
  "search-nsga2",
  "backend-reference",
  "backend-webgpu",
  "kernels-webgpu",
  "plugin-kit",
  "profiles",
  "quantizers",
  "report",
  "runtime",
];

const dist = (name: string, entry: string) =>
  fileURLToPath(new URL(`../packages/${name}/dist/${entry}.js`, import.meta.url));

/** Bundles a built entry with everything it needs; names of Node's modules are errors for a browser. */
async function bundle(name: string, entry: string) {
  const result = await build({
    entryPoints: [dist(name, entry)],
    bundle: true,
    write: false,
    platform: "browser",
    format: "esm",
    logLevel: "silent",
  }).catch((error: { errors: { text: string }[] }) => ({ ...error, outputFiles: [] }));
  return {
    errors: result.errors.map(({ text }) => text),
    bytes: result.outputFiles[0]?.contents.length ?? 0,
  };
}

describe("main entries bundle for a browser", () => {
  it.each(portable)("%s", async (name) => {
    const { errors, bytes } = await bundle(name, "index");
    expect(errors).toEqual([]);
    expect(bytes).toBeGreaterThan(0);
  });

  it("sees a Node module when there is one", async () => {
    const { errors } = await bundle("checkpoint", "node");
    expect(errors.join("\n")).toMatch(/node:fs/);
  });

  it("keeps core small", async () => {
    const { bytes } = await bundle("core", "index");
    // The whole of core with its four small dependencies, before minifying.
    expect(bytes).toBeLessThan(150_000);
  });

  it("knows every built package", () => {
    for (const name of portable) expect([name, existsSync(dist(name, "index"))]).toEqual([name, true]);
  });
});
