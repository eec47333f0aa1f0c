// What drawing a token takes on a GPU, and how often it is the one that core's `drawToken` gives in float64 for the same random number.
// Usage: npm install webgpu && node packages/kernels-webgpu/bench/draw.mjs [--rows 200]
import { parseArgs } from "node:util";
import { drawToken, Rng } from "@coppice/core";
import { drawBytes, drawTables, drawTokens } from "../dist/index.js";
import { median, openDevice } from "./open-device.mjs";

const { values } = parseArgs({ options: { rows: { type: "string", default: "200" } } });
const rows = Number(values.rows);
const { gpu, name } = await openDevice();
console.log(`${name}, Node ${process.version}`);
console.log("| vocabulary | rule | ms a token | ms on the host | other tokens |\n|---|---|---|---|---|");
const rules = [
  { temperature: 0.8 },
  { temperature: 0.8, topP: 0.95 },
  { temperature: 1.2, topK: 50, topP: 0.95, minP: 0.02, repetitionPenalty: 1.1 },
  { repetitionPenalty: 1.1 },
];
for (const vocab of [32_000, 151_936, 262_144]) {
  const rng = Rng.fromSeed(vocab);
  const bytes = drawBytes(1, vocab);
  const work = Object.fromEntries(Object.entries(bytes).map(([key, size]) => [key, gpu.buffer(size, key)]));
  const tokens = gpu.buffer(4, "tokens");
  const buffers = [tokens, ...Object.values(work)];
  const logits = gpu.buffer(4 * vocab, "logits");
  for (const rule of rules) {
    const hostTimes = [];
    let [ms, others] = [0, 0];
    for (let row = 0; row < rows; row++) {
      const steep = 1 + 3 * rng.uniform();
      const own = Float32Array.from({ length: vocab }, () => steep * rng.normal());
      const draw = {
        rule,
        uniforms: Float64Array.of(rng.uniform()),
        seen: [Int32Array.from(rng.sample(vocab, 500))],
      };
      const tables = drawTables(draw, 0, 1, vocab);
      const uniforms = gpu.upload(tables.uniforms, "uniforms");
      const seen = tables.seen && gpu.upload(tables.seen, "seen");
      const record = () => drawTokens(gpu, { logits, rows: 1, vocab, rule, uniforms, seen, tokens, work });
      gpu.write(logits, own);
      record();
      const [read] = await gpu.read([{ buffer: tokens, bytes: 4 }]);
      const begin = performance.now();
      const expected = drawToken(own, rule, draw.uniforms[0], draw.seen[0]);
      hostTimes.push(performance.now() - begin);
      if (new Uint32Array(read)[0] !== expected) others++;
      if (row === 0) ms = await median(gpu, record);
      uniforms.dispose();
      seen?.dispose();
    }
    const host = hostTimes.sort((a, b) => a - b)[rows >> 1];
    console.log(
      `| ${vocab} | ${JSON.stringify(rule).replaceAll('"', "")} | ${ms.toFixed(3)} | ${host.toFixed(2)} | ${others} of ${rows} |`,
    );
  }
  for (const one of [logits, ...buffers]) one.dispose();
}
gpu.dispose();
process.exit(0);
