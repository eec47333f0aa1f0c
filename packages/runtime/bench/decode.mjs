// Speed of exported folders: this package on each of them, and transformers.js on the same ones, one after the other in
// turns, so that what else the machine does meets all alike.
//
//   node bench/decode.mjs [--rounds 7] [--tokens 48] [--threads 2] fp32=<folder> q4=<folder> ...
//
// The first folder is the one that others are compared with. Every round prefills a prompt of 512 tokens and then decodes,
// greedily. Decode times include everything that a caller waits for: sampling, and here also text. Processor time is that
// of the whole process, spinning threads included; it says most where the machine is busy with something else.
import {
  cpSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { openModelFolder } from "@coppice/runtime/node";
import { AutoModelForCausalLM, env, Tensor } from "@huggingface/transformers";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: "string", default: "7" },
    tokens: { type: "string", default: "48" },
    threads: { type: "string", default: "2" },
  },
});
const [rounds, tokens, threads] = [values.rounds, values.tokens, values.threads].map(Number);
if (positionals.length === 0) throw new Error("name folders, such as fp32=./model-onnx q4=./model-q4-onnx");
env.allowRemoteModels = false;

/** Ids that need no tokenizer. */
const prompt = Int32Array.from({ length: 512 }, (_, i) => 100 + ((i * 37) % 900));

/** A copy of the folder, weights linked, whose texts never end by themselves, so that all write equally many tokens. */
function endless(folder) {
  const copy = mkdtempSync(join(dirname(resolve(folder)), ".decode-bench-"));
  process.on("exit", () => rmSync(copy, { recursive: true }));
  cpSync(folder, copy, { recursive: true, filter: (path) => resolve(path) !== resolve(folder, "onnx") });
  mkdirSync(join(copy, "onnx"));
  for (const name of readdirSync(join(folder, "onnx"))) {
    linkSync(join(folder, "onnx", name), join(copy, "onnx", name));
  }
  for (const name of ["config.json", "generation_config.json", "tokenizer_config.json"]) {
    const { eos_token_id: _, eos_token: __, ...rest } = JSON.parse(readFileSync(join(copy, name), "utf8"));
    writeFileSync(join(copy, name), JSON.stringify(rest));
  }
  return copy;
}

const mark = () => {
  const { user, system } = process.cpuUsage();
  return { wall: performance.now(), cpu: (user + system) / 1000 };
};

/** Runs once; gives the time and the processor time, in milliseconds, at the start and at each token. */
const contenders = {};
for (const positional of positionals) {
  const [name, path] = positional.split("=");
  const folder = endless(path);
  // Beginnings that are kept would save the prefill that is measured.
  const model = await openModelFolder(folder, { threads, keptPrefixes: 0, chunk: 512 });
  contenders[name] = async () => {
    const times = [mark()];
    for await (const _ of model.stream(prompt, { maxTokens: tokens + 1 })) times.push(mark());
    return times;
  };
  const session_options = { intraOpNumThreads: threads };
  const theirs = await AutoModelForCausalLM.from_pretrained(folder, { session_options });
  contenders[`${name}, transformers.js`] = async () => {
    const times = [mark()];
    const dims = [1, prompt.length];
    let skipped = false;
    await theirs.generate({
      input_ids: new Tensor("int64", BigInt64Array.from(prompt, BigInt), dims),
      attention_mask: new Tensor("int64", new BigInt64Array(prompt.length).fill(1n), dims),
      max_new_tokens: tokens + 1,
      do_sample: false,
      streamer: {
        put() {
          // The prompt comes first.
          if (skipped) times.push(mark());
          skipped = true;
        },
        end() {},
      },
    });
    return times;
  };
}

const measured = new Map(
  Object.keys(contenders).map((name) => [name, { prefill: [], prefillCpu: [], step: [], stepCpu: [] }]),
);
for (let round = -1; round < rounds; round++) {
  for (const [name, run] of Object.entries(contenders)) {
    const times = await run();
    if (times.length !== tokens + 2) throw new Error(`${name} wrote ${times.length - 1} tokens`);
    // The first round warms up.
    if (round < 0) continue;
    const { prefill, prefillCpu, step, stepCpu } = measured.get(name);
    prefill.push(times[1].wall - times[0].wall);
    prefillCpu.push(times[1].cpu - times[0].cpu);
    for (let i = 2; i < times.length; i++) step.push(times[i].wall - times[i - 1].wall);
    stepCpu.push((times.at(-1).cpu - times[1].cpu) / (times.length - 2));
  }
}

const quantile = (list, share) => list.toSorted((a, b) => a - b)[Math.floor((list.length - 1) * share)];
const median = (list) => quantile(list, 0.5);
const [base] = measured.values();
const columns = {
  run: ([name]) => name,
  "tokens/s": ([, { step }]) => (1000 / median(step)).toFixed(1),
  "fastest tenth": ([, { step }]) => (1000 / quantile(step, 0.1)).toFixed(1),
  "against the first": ([, { step }]) => `${(median(base.step) / median(step)).toFixed(2)}x`,
  "processor ms/token": ([, { stepCpu }]) => median(stepCpu).toFixed(1),
  "prefill of 512, ms": ([, { prefill }]) =>
    `${median(prefill).toFixed(0)}, least ${quantile(prefill, 0).toFixed(0)}`,
  "time of the first": ([, { prefill }]) => `${(median(prefill) / median(base.prefill)).toFixed(2)}x`,
  "processor ms": ([, { prefillCpu }]) => median(prefillCpu).toFixed(0),
};
console.log(`| ${Object.keys(columns).join(" | ")} |`);
console.log(`|${"---|".repeat(Object.keys(columns).length)}`);
for (const entry of measured) {
  console.log(
    `| ${Object.values(columns)
      .map((cell) => cell(entry))
      .join(" | ")} |`,
  );
}
// Native threads of the two libraries would keep the process.
process.exit(0);
