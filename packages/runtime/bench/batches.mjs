// What it would gain to write several texts in one run: runs of one token of each of so many sequences of equal length, in turns.
//
//   npm run bench -- batches [--quick] [--rounds 12] [--past 64,512] [--threads 2] [--model <checkpoint>] [fp32=<folder> ...]
//
// Without folders the demo model (or another checkpoint) is exported as it is and at 4 bits in groups of 32. `texts` is how much more
// a second of processor time writes than with one sequence per run; what it takes to gather sequences is not in it.
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { modelPath } from "@coppice/demo-model";
import * as ort from "onnxruntime-node";
import { exportedFolders } from "./exported-folders.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: "boolean", default: false },
    rounds: { type: "string" },
    past: { type: "string", default: "64,512" },
    threads: { type: "string", default: "2" },
    model: { type: "string", default: modelPath },
  },
});
const { quick, rounds = quick ? "1" : "12" } = values;
const folders =
  positionals.length > 0 ? positionals.map((one) => one.split("=")) : await exportedFolders(values.model, 32);
/** Runs of every contender per round. */
const runs = 4;

const processorMs = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
};

const contenders = [];
for (const [name, folder] of folders) {
  const file = readdirSync(join(folder, "onnx")).find((one) => one.endsWith(".onnx"));
  const session = await ort.InferenceSession.create(join(folder, "onnx", file), {
    intraOpNumThreads: Number(values.threads),
    logSeverityLevel: 4,
    extra: { session: { intra_op: { spin_duration_us: "50" } } },
  });
  for (const past of values.past.split(",").map(Number)) {
    for (const batch of [1, 2, 4, 8]) contenders.push(contender(name, session, past, batch));
  }
}

function contender(name, session, past, batch) {
  const int64 = (values, dims) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
  const feeds = {
    attention_mask: int64(new Array(batch * (past + 1)).fill(1), [batch, past + 1]),
    num_logits_to_keep: int64([1], []),
  };
  for (const { name, shape } of session.inputMetadata) {
    if (!name.startsWith("past_key_values.")) continue;
    const dims = [batch, shape[1], past, shape[3]];
    const size = dims.reduce((product, dim) => product * dim);
    feeds[name] = new ort.Tensor(
      "float32",
      Float32Array.from({ length: size }, (_, i) => Math.sin(i)),
      dims,
    );
  }
  const outputs = { logits: null, newest_key_values: null };
  let token = 0;
  return {
    name,
    past,
    batch,
    processor: [],
    run: () => {
      const ids = Array.from({ length: batch }, () => 100 + ((token++ * 517) % 900));
      return session.run({ ...feeds, input_ids: int64(ids, [batch, 1]) }, outputs);
    },
  };
}

for (let round = -1; round < Number(rounds); round++) {
  for (const { run, processor } of contenders) {
    for (let i = 0; i < runs; i++) {
      const before = processorMs();
      await run();
      // The first round warms up.
      if (round >= 0) processor.push(processorMs() - before);
    }
  }
}

const median = (list) => list.toSorted((a, b) => a - b)[(list.length - 1) >> 1];
console.log("| folder | tokens before | sequences | processor ms/run | texts |");
console.log("|---|---|---|---|---|");
let single;
for (const { name, past, batch, processor } of contenders) {
  if (batch === 1) single = median(processor);
  const gain = (batch * single) / median(processor);
  console.log(`| ${name} | ${past} | ${batch} | ${median(processor).toFixed(1)} | ${gain.toFixed(2)}x |`);
}
// Native threads would keep the process.
process.exit(0);
