// Slow check of exported graphs: every layer of a quantized model, as ONNX Runtime computes it in Node and in WebAssembly, against
// the reference backend on the dequantized weights.
//
//   node scripts/check-layers.mjs [--quick] [--tokens 48] [<checkpoint> ...]
//
// Default: the demo model. All bits, groups that divide its rows, with zero points and without; `--quick`: groups of 32 alone.
import { basename } from "node:path";
import { parseArgs } from "node:util";
import { reference } from "@coppice/backend-reference";
import { loadModel, memoryFolder, memoryTarget } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { quantizedBits, quantizedGroups } from "@coppice/core";
import { modelPath } from "@coppice/demo-model";
import { exportOnnx } from "@coppice/export-onnx";
import { modelMatrices, quantizeCheckpoint, rtn, uniformFormat } from "@coppice/quantizers";
import * as node from "onnxruntime-node";
import * as web from "onnxruntime-web";
import { layerAgreement } from "./layer-agreement.mjs";

const least = 0.9999;
/** No more tokens than this share may choose other experts, and only such as are nearly as good, by the router's logits. */
const mostMoved = 0.1;
const mostWorse = 0.1;
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { quick: { type: "boolean", default: false }, tokens: { type: "string", default: "48" } },
});
const ids = Int32Array.from({ length: Number(values.tokens) }, (_, i) => 100 + ((i * 37) % 900));
web.env.wasm.numThreads = 1;
const runtimes = { cpu: node, wasm: web };
const backend = await reference.create({}, undefined);
const quantizer = await rtn.create({ clip: false }, undefined);
const models = positionals.length > 0 ? positionals : [modelPath];
const name = (path) => (path === modelPath ? "demo model" : basename(path));
const row = (model, bits, group, zeros, ...cosines) =>
  console.log(
    [model.padEnd(24), ...[bits, group, zeros].map((cell) => String(cell).padEnd(7)), ...cosines].join(" "),
  );

let lowest = 1;
let moved = 0;
let worse = 0;
// Least cosines of a layer: of what it puts out, and of what it adds to its input.
const titles = ["cpu out", "cpu added", "wasm out", "wasm added", "moved", "worse"].map((title) =>
  title.padEnd(11),
);
row("model", "bits", "group", "zeros", ...titles);
for (const path of models) {
  const whole = await loadModel(await openFolder(path));
  const columns = modelMatrices(whole.model).map(({ weight }) => weight.shape[1]);
  const groups = quantizedGroups.filter((size) => columns.every((count) => count % size === 0));
  for (const bits of quantizedBits) {
    for (const groupSize of values.quick ? [32] : groups) {
      for (const symmetric of [true, false]) {
        const worst = await agreement(whole, { bits, groupSize, symmetric });
        lowest = Math.min(lowest, ...worst.map(({ output }) => output));
        const [share, distance] = ["moved", "worse"].map((kind) =>
          Math.max(...worst.map((one) => one[kind])),
        );
        moved = Math.max(moved, share);
        worse = Math.max(worse, distance);
        const cosines = worst.flatMap(({ output, added }) => [output, added]);
        row(
          name(path),
          bits,
          groupSize,
          symmetric ? "no" : "yes",
          ...cosines.map((value) => value.toFixed(9)),
          `${(100 * share).toFixed(1)} %`.padEnd(11),
          distance.toFixed(3),
        );
      }
    }
  }
  await whole.close();
}
const verdict = (holds) => (holds ? "reached" : "MISSED ");
console.log(
  `${verdict(lowest >= least)}  every layer puts out what the weights say: the least cosine is ${lowest.toFixed(8)}, at least ${least}`,
);
console.log(
  `${verdict(moved <= mostMoved)}  few tokens choose other experts, and are left out: ${(100 * moved).toFixed(1)} % in some layer, at most ${100 * mostMoved} %`,
);
console.log(
  `${verdict(worse <= mostWorse)}  these are nearly as good: their logits are ${worse.toFixed(3)} below the others, at most ${mostWorse}`,
);
process.exit(lowest >= least && moved <= mostMoved && worse <= mostWorse ? 0 : 1);

/** The least cosines of all layers, per runtime. */
async function agreement(whole, format) {
  const target = memoryTarget();
  await quantizeCheckpoint(whole, target, { quantizer, format: uniformFormat(format) });
  const loaded = await loadModel(memoryFolder(target.files));
  const runner = await backend.load({ model: loaded.model, weights: loaded.weights });
  const worst = [];
  for (const [target, runtime] of Object.entries(runtimes)) {
    const exported = memoryTarget();
    await exportOnnx(loaded, exported, { target, expertOutputs: true });
    const layers = await layerAgreement({ loaded, files: exported.files, runner, runtime, ids });
    const lowest = (kind) => Math.min(...layers.map((one) => one[kind]));
    const most = (kind) => Math.max(...layers.map((one) => one[kind]));
    const [output, added] = [lowest("output"), lowest("added")];
    worst.push({ output, added, moved: most("moved") / ids.length, worse: most("worse") });
  }
  await runner.dispose();
  await loaded.close();
  return worst;
}
