// Evidence for attention plans: what every method keeps at a half and a quarter of the context, and what planning takes.
//
//   npm run check:attention -- [model folder] [options]
//
//   --tasks <folder>  has search/ and dev/ with recall-64.jsonl and recall-128.jsonl; default: the demo's recall alone
//   --text <file>     long text like what the model was trained on, its first half to plan by, its second half to measure on;
//                     default: samples of the demo's tasks, one after the other
//   --lengths <list>  that plans are made for; default 1024,2048,4096
//   --windows <n>     of the longest length, that perplexity is measured on; default 8
//   --limit <n>       only the first n samples of each task
//   --threads <n>     of the backend; default: one per core
//   --densities <list>  default 0.5,0.25
//   --methods <list>  default moa-span,duo-heads,sink-window
//   --plans <folder>  keeps the plans there; those that are there already are not made again
//
// Plans see the search split and the first half of the text only. Memory is read from /proc, so this needs Linux.
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, loadavg, tmpdir } from "node:os";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { cpu } from "@coppice/backend-cpu";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { spanDensity } from "@coppice/core";
import { modelPath, taskNames, taskPath } from "@coppice/demo-model";
import { evaluatePositions, evaluateTask, loadTokenizer, parseTask } from "@coppice/evaluate";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tasks: { type: "string" },
    text: { type: "string" },
    lengths: { type: "string", default: "1024,2048,4096" },
    windows: { type: "string", default: "8" },
    limit: { type: "string", default: "1000" },
    densities: { type: "string", default: "0.5,0.25" },
    methods: { type: "string", default: "moa-span,duo-heads,sink-window" },
    plans: { type: "string" },
    threads: { type: "string", default: String(availableParallelism()) },
  },
});
const [path = modelPath] = positionals;
const lengths = options.lengths.split(",").map(Number);
const longest = lengths.at(-1);
const densities = options.densities.split(",").map(Number);
/** What is promised of the first task, of the harder one, and of perplexity. */
const [half, quarter] = [0.5, 0.25];
const methods = options.methods.split(",");
const names = options.tasks === undefined ? ["recall"] : ["recall-64", "recall-128"];

const cli = fileURLToPath(new URL("../dist/bin.js", import.meta.url));
const base = mkdtempSync(join(tmpdir(), "coppice-attention-"));
try {
  await check();
} finally {
  rmSync(base, { recursive: true, force: true });
}
// Native memory is left to the system.
process.exit();

async function check() {
  const texts = halves();
  const data = [...names.map((name) => taskFile(name, "search")), texts.search].join();
  const plans = [];
  console.log(`${basename(path)}: planning for ${lengths.join(", ")} tokens\n`);
  head("method", "density", "seconds", "processor s", "told", "more memory", "told", "rank correlation");
  for (const density of densities) {
    for (const method of methods) {
      const out = join(options.plans ?? base, `${method}-${density}.json`);
      const made = existsSync(out) ? undefined : await plan(method, density, data, out);
      plans.push({ method, density, plan: JSON.parse(readFileSync(out, "utf8")) });
      const { rankCorrelation } = plans.at(-1).plan.report ?? {};
      if (!made) {
        row(method, density, "made before", "", "", "", "", rankCorrelation?.toFixed(3) ?? "");
        continue;
      }
      row(
        method,
        density,
        made.seconds.toFixed(0),
        made.processor.toFixed(0),
        made.told.time,
        method === "sink-window" ? "" : `${(made.grown / 1e6).toFixed(0)} MB`,
        made.told.memory,
        rankCorrelation?.toFixed(3) ?? "",
      );
    }
  }
  console.log(
    `\n${availableParallelism()} cores, ${loadavg()[1].toFixed(1)} processes wanted them at the end\n`,
  );
  await compare(plans, parseTask(readFileSync(texts.dev, "utf8"), texts.dev));
}

/** Runs the command, and looks at it several times a second. */
async function plan(method, density, data, out) {
  const words = ["attention", "plan", path, "--method", method, "--density", density, "--out", out];
  words.push("--backend-set", `threads=${options.threads}`);
  words.push("--lengths", lengths.join(), ...(method === "sink-window" ? [] : ["--data", data]));
  const start = performance.now();
  const child = spawn(process.execPath, [cli, ...words], { stdio: ["ignore", "ignore", "pipe"] });
  let [text, before, peak, processor] = ["", 0, 0, 0];
  child.stderr.on("data", (part) => {
    text += part;
    if (before === 0 && text.includes("The profile takes")) before = residentBytes(child.pid);
  });
  const timer = setInterval(() => {
    peak = Math.max(peak, residentBytes(child.pid));
    processor = Math.max(processor, processorSeconds(child.pid));
  }, 100);
  const code = await new Promise((resolve) => child.on("close", resolve));
  clearInterval(timer);
  if (code !== 0) throw new Error(`attention plan ended with ${code}: ${text}`);
  const [, memory = "", time = ""] = /takes about (.*?) besides .*? and about (.*?)\./.exec(text) ?? [];
  const seconds = (performance.now() - start) / 1000;
  return { seconds, processor, grown: peak - before, told: { memory, time } };
}

/** Scores under every plan, beside those of the model as it is. */
async function compare(plans, text) {
  const { model, weights, folder } = await loadModel(await openFolder(path));
  const tokenizer = await loadTokenizer(folder);
  const backend = await cpu.create({ threads: Number(options.threads) }, undefined);
  const runner = await backend.load({ model, weights });
  const tasks = names.map((name) => {
    const { samples, ...task } = parseTask(readFileSync(taskFile(name, "dev"), "utf8"), name);
    return { ...task, samples: samples.slice(0, Number(options.limit)) };
  });
  const measure = async (own, density) => {
    const attention = own && { plan: own };
    const scores = [];
    for (const [i, task] of tasks.entries()) {
      // The harder task is promised at a half only.
      if (i > 0 && density < half) continue;
      scores.push(await evaluateTask({ runner, tokenizer, task, attention }));
    }
    const positions = await evaluatePositions({
      ...{ runner, tokenizer, task: text, length: longest, limit: Number(options.windows), attention },
    });
    return { scores, perplexity: positions.value };
  };
  const shown = ({ value, low, high }) => `${value.toFixed(2)} [${low.toFixed(2)}, ${high.toFixed(2)}]`;
  head("method", `density at ${lengths.join(", ")}`, ...names, `perplexity at ${longest}`);
  const dense = await measure();
  row("as it is", "1", ...dense.scores.map(shown), dense.perplexity.toFixed(3));
  const results = [];
  for (const { method, density, plan } of plans) {
    const { scores, perplexity } = await measure(plan, density);
    const more = perplexity / dense.perplexity - 1;
    results.push({ method, density, lost: scores.map((of, i) => dense.scores[i].value - of.value), more });
    const kept = lengths.map((length) => spanDensity(plan, length).toFixed(3));
    row(
      method,
      kept.join(", "),
      ...names.map((_, i) => (scores[i] ? shown(scores[i]) : "")),
      `${perplexity.toFixed(3)} (${more < 0 ? "" : "+"}${(100 * more).toFixed(1)} %)`,
    );
  }
  console.log("");
  judge(results);
}

/** What is promised of the better of the two methods. */
function judge(results) {
  const say = (isReached, words) => {
    if (!isReached) process.exitCode = 1;
    console.log(`${isReached ? "reached" : "MISSED "}  ${words}`);
  };
  const least = (density, lost) =>
    Math.min(
      ...results
        .filter((result) => result.density === density && result.method !== "sink-window")
        .map((result) => lost(result)),
    );
  if (densities.includes(half)) {
    for (const [i, name] of names.entries()) {
      const lost = least(half, (result) => result.lost[i]);
      say(lost <= 0.0301, `${name} loses ${lost.toFixed(2)} at half of the span, at most .03`);
    }
    const more = least(half, (result) => result.more);
    say(more <= 0.02, `perplexity is ${(100 * more).toFixed(1)} % higher at half of the span, at most 2 %`);
  }
  if (densities.includes(quarter)) {
    const lost = least(quarter, (result) => result.lost[0]);
    say(lost <= 0.1001, `${names[0]} loses ${lost.toFixed(2)} at a quarter of it, at most .10`);
  }
}

function taskFile(name, split) {
  return options.tasks === undefined ? taskPath(name, split) : join(options.tasks, split, `${name}.jsonl`);
}

/** Files with the text to plan by and the text to measure on. */
function halves() {
  const files = { search: join(base, "search.txt"), dev: join(base, "dev.txt") };
  if (options.text === undefined) {
    for (const [split, file] of Object.entries(files)) writeFileSync(file, taskText(split));
  } else {
    const text = readFileSync(options.text, "utf8");
    const middle = text.indexOf("\n", text.length / 2);
    writeFileSync(files.search, text.slice(0, middle));
    writeFileSync(files.dev, text.slice(middle + 1));
  }
  return files;
}

/** Prompts and answers of all tasks of the demo in turns. */
function taskText(split) {
  const lines = taskNames.map((name) => readFileSync(taskPath(name, split), "utf8").trim().split("\n"));
  return Array.from({ length: 100 }, (_, i) => lines.map((own) => own[i]))
    .flat()
    .map((line) => JSON.parse(line))
    .map(({ prompt, answer }) => `${prompt}${answer}\n`)
    .join("\n");
}

/** Resident memory of a process; 0 once it is gone. */
function residentBytes(pid) {
  try {
    return 1024 * Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
  } catch {
    return 0;
  }
}

/** Time of all cores that a process has taken; 0 once it is gone. */
function processorSeconds(pid) {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1].split(" ");
    // User and system time, in hundredths of seconds.
    return (Number(fields[11]) + Number(fields[12])) / 100;
  } catch {
    return 0;
  }
}

function row(...cells) {
  console.log(`| ${cells.join(" | ")} |`);
}

function head(...cells) {
  row(...cells);
  row(...cells.map(() => "---"));
}
