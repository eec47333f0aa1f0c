// Where the time of a token goes in an exported folder, by ONNX Runtime's own profile.
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { openModelFolder } from "@coppice/runtime/node";
import { scratchFolder } from "./exported-folders.mjs";

/** Tokens that only warm up, and are left out. */
const warm = 16;

/**
 * A table of all operators of a graph: how often each runs for a token, and how long. The profiler adds some microseconds to whatever
 * it times, also to operators that do nothing; what the quickest kind takes is therefore left out of all. Times are medians of all tokens.
 * @returns lines of Markdown
 */
export async function operatorTable(folder, { prompt, tokens, threads }) {
  const runs = (await profiledRuns(folder, { prompt, tokens: warm + tokens, threads })).slice(-tokens);
  const names = new Set(runs.flat().map(({ operator }) => operator));
  const counted = Array.from(names, (name) => {
    const times = runs.map((run) => run.filter(({ operator }) => operator === name));
    const median = times.map((list) => list.reduce((sum, { time }) => sum + time, 0)).sort((x, y) => x - y);
    return { name, count: times.at(-1).length, time: median[median.length >> 1] };
  });
  const quickest = Math.min(...counted.map(({ count, time }) => time / count));
  const rows = counted
    .map(({ name, count, time }) => [name, count, time - count * quickest])
    .sort(([, , x], [, , y]) => y - x);
  const total = (column) => rows.reduce((all, row) => all + row[column], 0);
  const cells = (name, count, time) =>
    `| ${name} | ${count.toFixed(0)} | ${time.toFixed(0)} | ${((100 * time) / total(2)).toFixed(0)} % |`;
  return [
    `| operator | times a token | \u00b5s a token, less ${quickest.toFixed(1)} each | share |`,
    "|---|---|---|---|",
    ...rows.map(([name, count, time]) => cells(name, count, time)),
    cells("all", total(1), total(2)),
  ].join("\n");
}

/** The operators of every run, in order, with their microseconds. */
async function profiledRuns(folder, { prompt, tokens, threads }) {
  const scratch = scratchFolder();
  const session = { logSeverityLevel: 4, enableProfiling: true, profileFilePrefix: join(scratch, "profile") };
  const model = await openModelFolder(folder, { threads, keptPrefixes: 0, chunk: prompt.length, session });
  await model.generate(prompt, { maxTokens: tokens + 1 });
  // The profile is written when the session ends.
  await model.dispose();
  const [file] = readdirSync(scratch);
  const events = JSON.parse(readFileSync(join(scratch, file), "utf8"));
  rmSync(join(scratch, file));
  const runs = [];
  let operators = [];
  for (const { name, cat, dur, args } of events) {
    // The operators of a branch are listed themselves.
    if (cat === "Node" && name.endsWith("_kernel_time") && args.op_name !== "If")
      operators.push({ operator: args.op_name, time: dur });
    if (name !== "model_run") continue;
    runs.push(operators);
    operators = [];
  }
  return runs;
}
