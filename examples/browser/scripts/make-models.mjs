// Makes public/models: the demo model and a pruned one, both at 4 bits, as ONNX folders for WebAssembly; the first as safetensors
// for WebGPU, too.
// Usage: node scripts/make-models.mjs [--task arith] [--keep 4] [--bits 4] [--method hqq] [--out public/models] [--if-absent]
import { existsSync } from "node:fs";
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { modelPath, taskPath } from "@coppice/demo-model";
import { runCli } from "coppice";

/** @typedef {import("@coppice/demo-model").TaskName} TaskName */

/** @param {readonly string[]} words */
async function coppice(...words) {
  console.log(`$ coppice ${words.join(" ")}`);
  const { stdout, stderr, stdin, env } = process;
  const code = await runCli([...words, "--quiet"], { stdout, stderr, stdin, env, cwd: process.cwd() });
  if (code !== 0) throw new Error(`coppice ${words[0]} ended with ${code}`);
}

/**
 * The files of a folder, by their names in URLs, and their bytes together.
 * @param {string} folder
 */
async function contentOf(folder) {
  const files = [];
  let bytes = 0;
  for (const name of await readdir(folder, { recursive: true })) {
    const at = await stat(join(folder, name));
    if (!at.isFile()) continue;
    files.push({ name: name.split(sep).join("/"), size: at.size });
    bytes += at.size;
  }
  return { files, bytes };
}

const { values } = parseArgs({
  options: {
    task: { type: "string", default: "arith" },
    keep: { type: "string", default: "4" },
    bits: { type: "string", default: "4" },
    method: { type: "string", default: "hqq" },
    set: { type: "string", multiple: true, default: [] },
    out: { type: "string", default: fileURLToPath(new URL("../public/models", import.meta.url)) },
    "if-absent": { type: "boolean", default: false },
  },
});
const out = resolve(values.out);
if (values["if-absent"] && existsSync(join(out, "models.json"))) process.exit();

const task = /** @type {TaskName} */ (values.task);
const data = taskPath(task, "search");
await mkdir(dirname(out), { recursive: true });
const scratch = await mkdtemp(join(tmpdir(), "coppice-browser-"));
const models = `${out}-${process.pid}`;
await mkdir(models);
try {
  const pruned = join(scratch, "pruned");
  await coppice("prune", modelPath, "--keep", values.keep, "--data", data, "--out", pruned);
  for (const [folder, path] of /** @type {const} */ ([
    ["original", modelPath],
    ["pruned", pruned],
  ])) {
    const small = join(scratch, `${folder}-small`);
    const bits = ["bits", "head-bits", "embedding-bits"].flatMap((name) => [`--${name}`, values.bits]);
    const set = values.set.flatMap((option) => ["--set", option]);
    await coppice(
      "quantize",
      path,
      ...bits,
      "--asymmetric",
      "--method",
      values.method,
      ...set,
      "--out",
      small,
    );
    if (folder === "original") await cp(small, join(models, "checkpoint"), { recursive: true });
    const target = ["--format", "onnx", "--target", "wasm", "--expert-outputs"];
    await coppice("export", small, ...target, "--out", join(models, folder));
  }
  const { num_hidden_layers: layers, num_local_experts: experts } = JSON.parse(
    await readFile(join(modelPath, "config.json"), "utf8"),
  );
  const { plan } = JSON.parse(await readFile(join(models, "pruned", "coppice.json"), "utf8"));
  const all = Array.from({ length: layers }, () => Array.from({ length: experts }, (_, expert) => expert));
  const samples = (await readFile(taskPath(task, "dev"), "utf8")).trim().split("\n").slice(0, 3);
  const manifest = {
    prompts: [
      ...samples.map((line) => JSON.parse(line).prompt),
      "Question: On which continent is Cambodia?\nAnswer:",
      "Translate to German: Zambia\nAnswer:",
      "Once upon a time",
    ],
    checkpoint: { folder: "checkpoint", ...(await contentOf(join(models, "checkpoint"))) },
    models: [
      {
        label: "Original",
        folder: "original",
        experts,
        kept: all,
        ...(await contentOf(join(models, "original"))),
      },
      {
        label: `Pruned for ${task}`,
        folder: "pruned",
        experts,
        kept: plan.layers.map((/** @type {{ experts: number[] }} */ layer) => layer.experts),
        ...(await contentOf(join(models, "pruned"))),
      },
    ],
  };
  await writeFile(join(models, "models.json"), `${JSON.stringify(manifest, undefined, 2)}\n`);
  // As a whole, so that a page never finds half of it.
  await rm(out, { recursive: true, force: true });
  await rename(models, out);
  console.log(`\n${out}`);
  for (const { label, bytes } of manifest.models)
    console.log(`${label.padEnd(20)}${(bytes / 1e6).toFixed(1)} MB`);
} finally {
  await rm(scratch, { recursive: true, force: true });
  await rm(models, { recursive: true, force: true });
}
process.exit();
