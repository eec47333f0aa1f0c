// Speed of exported folders: this package on each of them, and transformers.js on the same ones, one after the other in
// turns, so that what else the machine does meets all alike.
//
//   npm run bench -- decode [--quick] [--rounds 9] [--tokens 48] [--threads 2] [--model <checkpoint> | --random 400M] [--group 128]
//     [--alone] [--operators] [fp32=<folder> q4=<folder> ...]
//
// Without folders the demo model (or another checkpoint, or one that is made up with so many parameters) is exported as it is and
// at 4 bits in groups of 128. The first folder is the one that others are compared with, and every other one has to be so much
// faster. Every round prefills a prompt of 512 tokens and then decodes, greedily. Decode times include everything that a caller
// waits for: sampling, and here also text. Processor time is that of the whole process, spinning threads included; it says most
// where the machine is busy with something else. `--alone` leaves transformers.js out, for models that fit into memory but once.
// `--operators` prints instead where the time of a token goes in each folder, operator by operator. `--quick` only tries whether
// everything runs.
import { parseArgs } from "node:util";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { modelPath } from "@coppice/demo-model";
import { openModelFolder } from "@coppice/runtime/node";
import { AutoModelForCausalLM, env, Tensor } from "@huggingface/transformers";
import { endless, exportedFolders, randomCheckpoint } from "./exported-folders.mjs";
import { operatorTable } from "./operator-table.mjs";

/** What a folder of few bits has to reach. */
const demands = { decode: 1.5, library: 1, prefill: 1.1 };

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: "boolean", default: false },
    rounds: { type: "string" },
    tokens: { type: "string" },
    threads: { type: "string", default: "2" },
    model: { type: "string", default: modelPath },
    random: { type: "string" },
    group: { type: "string", default: "128" },
    alone: { type: "boolean", default: false },
    operators: { type: "boolean", default: false },
  },
});
const { quick, rounds = quick ? "2" : "9", tokens: length = quick ? "12" : "48" } = values;
const [turns, tokens, threads] = [rounds, length, values.threads].map(Number);
env.allowRemoteModels = false;
const checkpoint = async () => (values.random ? await randomCheckpoint(values.random) : values.model);
const folders =
  positionals.length > 0
    ? positionals.map((one) => one.split("="))
    : await exportedFolders(await checkpoint(), Number(values.group));

/** Ids that need no tokenizer. */
const prompt = Int32Array.from({ length: 512 }, (_, i) => 100 + ((i * 37) % 900));

if (values.operators) {
  for (const [name, folder] of folders) {
    console.log(`\n${name}\n\n${await operatorTable(endless(folder), { prompt, tokens, threads })}`);
  }
  process.exit(0);
}

/** The run of transformers.js on a folder. */
const libraryOn = (name) => `${name}, transformers.js`;

const mark = () => {
  const { user, system } = process.cpuUsage();
  return { wall: performance.now(), cpu: (user + system) / 1000 };
};

/** Runs once; gives the time and the processor time, in milliseconds, at the start and at each token. */
const contenders = {};
for (const [name, path] of folders) {
  const folder = endless(path);
  // Beginnings that are kept would save the prefill that is measured.
  const model = await openModelFolder(folder, { threads, keptPrefixes: 0, chunk: 512 });
  contenders[name] = async () => {
    const times = [mark()];
    for await (const _ of model.stream(prompt, { maxTokens: tokens + 1 })) times.push(mark());
    return times;
  };
  if (values.alone) continue;
  const session_options = { intraOpNumThreads: threads };
  const theirs = await AutoModelForCausalLM.from_pretrained(folder, { session_options });
  contenders[libraryOn(name)] = async () => {
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

// What one run leaves behind would be collected during the next: transformers.js leaves a whole cache for every token.
setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc");

const measured = new Map(
  Object.keys(contenders).map((name) => [name, { prefill: [], prefillCpu: [], step: [], stepCpu: [] }]),
);
for (let round = -1; round < turns; round++) {
  for (const [name, run] of Object.entries(contenders)) {
    collectGarbage();
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

let failed = false;
const demand = (ok, what) => {
  failed ||= !ok;
  console.log(`${ok ? "reached" : "MISSED "}  ${what}`);
};
const [[first], ...others] = folders;
for (const [name] of others) {
  const own = measured.get(name);
  const ratio = (other, kind) => median(other[kind]) / median(own[kind]);
  const decode = ratio(base, "step");
  demand(
    decode >= demands.decode,
    `${name} decodes ${decode.toFixed(2)} times as fast as ${first}, at least ${demands.decode}`,
  );
  if (!values.alone) {
    const library = ratio(measured.get(libraryOn(name)), "step");
    demand(
      library >= demands.library,
      `${name} decodes ${library.toFixed(2)} times as fast as transformers.js on it, at least ${demands.library}`,
    );
  }
  const prefill = 1 / ratio(base, "prefill");
  demand(
    prefill <= demands.prefill,
    `${name} takes ${prefill.toFixed(2)} times the prefill time of ${first}, at most ${demands.prefill}`,
  );
}
// Native threads of the two libraries would keep the process.
process.exit(failed && !quick ? 1 : 0);
