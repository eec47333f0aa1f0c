// Shows that the folder of a large model is written by streaming and opens with little more memory than its files have bytes.
//
//   node packages/export-onnx/scripts/large-folder.mjs [folder] [options]
//
//   --millions <n>   parameters of the model, a Qwen3-MoE; default 1500
//   --bits <n>       2, 4 or 8: quantized first, in groups of 128; default: not quantized
//
// Makes an untrained checkpoint in a new folder below `folder` (default: the system's folder for temporary files), exports it
// for cpu, opens it in onnxruntime-node in a process of its own, and deletes everything. Needs 6 bytes of disk per parameter.
// Exits with 1 when exporting peaks at 600 MB or more, when opening takes private memory of 1.3 times the files or more, or
// when a file has more than 2,000,000,000 bytes. Private memory is read from Linux's /proc.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { loadModel } from "@coppice/checkpoint";
import { folderTarget, openFolder, writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import { modelSize } from "@coppice/core";
import { exportOnnx } from "@coppice/export-onnx";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    step: { type: "string" },
    millions: { type: "string", default: "1500" },
    bits: { type: "string" },
  },
});

/** Experts of 3 * 1024 * 512 parameters, 32 in each layer; 55.6 million parameters a layer. */
const size = {
  family: "qwen3_moe",
  hiddenSize: 1024,
  vocabSize: 32_000,
  heads: 16,
  kvHeads: 4,
  headDim: 128,
  experts: 32,
  topK: 4,
  expertWidth: 512,
  tied: true,
};

const steps = {
  async quantize(source, target) {
    const { quantizeCheckpoint, rtn, uniformFormat } = await import("@coppice/quantizers");
    const bits = Number(options.bits);
    const format = uniformFormat({ bits, groupSize: 128, symmetric: true, embedding: bits });
    const quantizer = await rtn.create({ clip: false }, undefined);
    const loaded = await loadModel(await openFolder(source));
    await quantizeCheckpoint(loaded, folderTarget(target), { quantizer, format });
    await loaded.close();
    return {};
  },
  async export(source, target) {
    const loaded = await loadModel(await openFolder(source));
    const { files, bytes, type } = await exportOnnx(loaded, folderTarget(target), { target: "cpu" });
    await loaded.close();
    const largest = Math.max(...files.map((file) => file.bytes));
    return {
      parameters: modelSize(loaded.model).parameters,
      type,
      bytes,
      largest,
      peak: process.resourceUsage().maxRSS * 1024,
    };
  },
  async open(_, target) {
    const { InferenceSession } = await import("onnxruntime-node");
    const graph = readdirSync(join(target, "onnx")).find((name) => name.endsWith(".onnx"));
    const before = privateBytes();
    const started = performance.now();
    const session = await InferenceSession.create(join(target, "onnx", graph), { logSeverityLevel: 3 });
    const seconds = (performance.now() - started) / 1000;
    const after = privateBytes();
    await session.release();
    return { private: after - before, seconds };
  },
};

function privateBytes() {
  const map = readFileSync("/proc/self/smaps_rollup", "utf8");
  return [...map.matchAll(/^Private_(?:Dirty|Hugetlb):\s+(\d+) kB/gm)].reduce(
    (sum, [, kb]) => sum + kb * 1024,
    0,
  );
}

function run(step, ...paths) {
  const flags = ["--step", step, ...(options.bits ? ["--bits", options.bits] : [])];
  const text = execFileSync(process.execPath, [fileURLToPath(import.meta.url), ...paths, ...flags], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  return JSON.parse(text);
}

if (options.step) {
  const [source, target] = positionals;
  process.stdout.write(JSON.stringify(await steps[options.step](source, target)));
} else {
  const base = mkdtempSync(join(positionals[0] ?? tmpdir(), "coppice-large-"));
  try {
    const source = join(base, "model");
    const layers = Math.max(1, Math.round((Number(options.millions) * 1e6 - 32.8e6) / 55.6e6));
    await writeSyntheticCheckpoint(source, { ...size, layers });
    const model = options.bits ? join(base, "quantized") : source;
    if (options.bits) run("quantize", source, model);
    if (options.bits) rmSync(source, { recursive: true });
    const target = join(base, "onnx-folder");
    const exported = run("export", model, target);
    rmSync(model, { recursive: true });
    const opened = run("open", model, target);
    const files = readdirSync(join(target, "onnx")).map((name) => statSync(join(target, "onnx", name)).size);
    const onnxBytes = files.reduce((sum, bytes) => sum + bytes, 0);
    const ratio = opened.private / onnxBytes;
    const mb = (bytes) => `${(bytes / 1e6).toFixed(0)} MB`;
    console.log(
      `parameters      ${(exported.parameters / 1e6).toFixed(0)} million, ${layers} layers, ${exported.type}`,
    );
    console.log(`files           ${files.length}, ${mb(onnxBytes)}, the largest ${mb(exported.largest)}`);
    console.log(`export peak     ${mb(exported.peak)}`);
    console.log(
      `private memory  ${mb(opened.private)} once open (${ratio.toFixed(2)} times the files), after ${opened.seconds.toFixed(1)} s`,
    );
    const failed = exported.peak >= 600e6 || ratio >= 1.3 || exported.largest > 2e9;
    process.exitCode = failed ? 1 : 0;
  } finally {
    rmSync(base, { recursive: true, force: true });
  }
}
