// Shows that a checkpoint larger than memory allows is calibrated some layers at a time, as fast as was said.
//
//   npm run check:calibrate -- [folder] [options]
//
//   --gigabytes <n>  size of the checkpoint; default 8
//   --memory <size>  limit; default 3GB
//   --tokens <n>     tokens of the data; default 4096
//   --threads <n>    of the backend; default: one per core
//   --kill           kill the command after its second load of layers, and let it continue
//
// Makes an untrained checkpoint in a new folder below `folder` (default: the system's folder for temporary files),
// calibrates on it with a sample, and deletes everything. Needs 1.1 times its size of disk. Exits with 1 when the command
// and its worker together reach more resident memory than the limit. Memory is read from /proc, so this needs Linux.
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import { letterTokenizer } from "./letter-tokenizer.mjs";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    gigabytes: { type: "string", default: "8" },
    memory: { type: "string", default: "3GB" },
    tokens: { type: "string", default: "4096" },
    threads: { type: "string", default: String(availableParallelism()) },
    kill: { type: "boolean", default: false },
  },
});

const shape = {
  family: "mixtral",
  hiddenSize: 2048,
  heads: 16,
  kvHeads: 8,
  experts: 8,
  topK: 2,
  expertWidth: 4096,
  vocabSize: 32_000,
};
const layerBytes = shape.experts * 3 * shape.hiddenSize * shape.expertWidth * 2;

const cli = fileURLToPath(new URL("../dist/bin.js", import.meta.url));
const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(2)} GB`;
const base = mkdtempSync(join(positionals[0] ?? tmpdir(), "coppice-calibrate-"));
try {
  const model = join(base, "model");
  await writeSyntheticCheckpoint(model, {
    ...shape,
    layers: Math.max(2, Math.round((Number(options.gigabytes) * 1e9) / layerBytes)),
    maxShardBytes: 3e9,
    seed: 1,
  });
  writeFileSync(join(model, "tokenizer.json"), JSON.stringify(letterTokenizer()));
  const size = readdirSync(model).reduce((sum, name) => sum + statSync(join(model, name)).size, 0);
  console.log(`checkpoint      ${gigabytes(size)}`);
  const data = join(base, "data.jsonl");
  writeFileSync(data, texts(Number(options.tokens)));

  const out = join(base, "statistics.safetensors");
  const words = ["calibrate", model, "--data", data, "--out", out, "--memory", options.memory];
  words.push("--backend-set", `threads=${options.threads}`, "--sample", "inputs", "--json");
  let killed = 0;
  if (options.kill) {
    const first = await run(words, ({ child }) => {
      const work = `${out}.partial`;
      const parts = existsSync(work) ? readdirSync(work).filter((name) => name.startsWith("layers-")) : [];
      if (parts.length >= 2) child.kill("SIGKILL");
    });
    killed = first.peak;
    console.log(`killed          after ${first.seconds.toFixed(1)} s`);
  }
  const { code, seconds, peak, estimatedAfter, stdout } = await run(words);
  if (code !== 0) throw new Error(`calibrate ended with ${code}: ${stdout}`);
  const { tokens, estimate } = JSON.parse(stdout);
  const limit = bytesOf(options.memory);
  const most = Math.max(peak, killed);
  console.log(`tokens          ${tokens}`);
  console.log(`loads           ${estimate.loads}`);
  console.log(`predicted       ${estimate.seconds.toFixed(1)} s, told after ${estimatedAfter.toFixed(1)} s`);
  console.log(
    `real            ${(seconds - estimatedAfter).toFixed(1)} s from then on, ${seconds.toFixed(1)} s in all`,
  );
  console.log(`memory bound    ${gigabytes(estimate.memoryBytes)}`);
  console.log(
    `peak            ${gigabytes(most)} of ${gigabytes(limit)} ${most <= limit ? "ok" : "TOO MUCH"}`,
  );
  if (most > limit) process.exitCode = 1;
} finally {
  rmSync(base, { recursive: true, force: true });
}

/** Runs the command, and looks at it and its worker several times a second. */
function run(words, watch = () => {}) {
  const start = performance.now();
  const since = () => (performance.now() - start) / 1000;
  const child = spawn(process.execPath, [cli, ...words], { stdio: ["ignore", "pipe", "pipe"] });
  let stdout = "";
  let estimatedAfter;
  let peak = 0;
  child.stdout.on("data", (text) => {
    stdout += text;
  });
  child.stderr.on("data", (text) => {
    process.stderr.write(text);
    if (String(text).includes("Estimate:")) estimatedAfter ??= since();
  });
  const timer = setInterval(() => {
    peak = Math.max(peak, residentBytes(child.pid));
    watch({ child });
  }, 100);
  return new Promise((resolve) => {
    child.on("close", (code) => {
      clearInterval(timer);
      resolve({ code, seconds: since(), peak, estimatedAfter, stdout });
    });
  });
}

/** Resident memory of a process and those that it started; 0 once it is gone. */
function residentBytes(pid) {
  try {
    const status = readFileSync(`/proc/${pid}/status`, "utf8");
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
    const own = 1024 * Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1] ?? 0);
    return children.split(" ").reduce((sum, child) => sum + (child ? residentBytes(child) : 0), own);
  } catch {
    return 0;
  }
}

function bytesOf(text) {
  const [, digits, unit] = /^([\d.]+)\s*([KMGT])i?B$/i.exec(text);
  return Number(digits) * 1000 ** " KMGT".indexOf(unit.toUpperCase());
}

/** Texts of 256 letters, one token each. */
function texts(tokens) {
  const letter = (i) => String.fromCharCode(97 + ((i * i + 7 * i) % 26));
  const lines = Array.from({ length: Math.ceil(tokens / 256) }, (_, line) => {
    const length = Math.min(256, tokens - 256 * line);
    return JSON.stringify({ text: Array.from({ length }, (_, i) => letter(i + 31 * line)).join("") });
  });
  return `${lines.join("\n")}\n`;
}
