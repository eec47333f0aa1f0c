import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { modelPath, taskPath } from "@coppice/demo-model";
import { coppice, tasks } from "./judge.mjs";

/** Bytes of an exported folder, tokenizer and all. */
const limit = 10_000_000;
/** Room for all that is no weight: tokenizer, graph, config. */
const others = 400_000;
/** Groups of 64 leave room for a head of 8 bits. */
const four = ["--bits", "4", "--group", "64", "--embedding-bits", "4"];
const chosen = ["--group", "64", "--bytes", String(limit - others)];

/** What fits 10 MB: experts dropped by a criterion or by a search whose projections are fitted, and by the choice of bits. */
export async function checkSmall(bench, { samples, plans, probes }) {
  bench.head("within 10 MB (the exported folder)");
  const reap = bench.place("reap");
  const learn = ["--criterion", "reap", "--data", bench.mixed];
  coppice("prune", modelPath, "--keep", "4", ...learn, "--out", reap);
  await row("keep 4 by reap, 4 bits", reap, four);
  const found = [
    await row("keep 4 by search and fits, 4 bits", pruned(4), four),
    await row("experts and bits chosen together", modelPath, widths(modelPath, "0,2,4,8")),
    await row("keep 6 by search and fits, bits chosen", pruned(6), widths(bench.place("keep-6"), "2,4,8")),
  ];
  for (const { name, bytes, mean } of found) {
    bench.demand(bytes < limit, `${name}: ${bytes} bytes, mean ${mean.toFixed(3)}`);
  }

  /** The model with so many experts per layer, found by a search for all tasks at once. */
  function pruned(keep) {
    const [run, out] = [bench.place(`run-${keep}`), bench.place(`keep-${keep}`)];
    const given = tasks.flatMap((name) => ["--task", `${name}=${taskPath(name, "search")}`]);
    const budget = ["--limit", String(samples), "--budget", String(plans)];
    coppice("search", modelPath, ...given, "--keep", String(keep), ...budget, "--out", run);
    coppice("apply", modelPath, "--plan", join(run, "plan.json"), "--out", out);
    return out;
  }

  /** Arguments that choose bits by what every matrix loses. */
  function widths(model, list) {
    const args = [...chosen, "--widths", list];
    const file = `${bench.place(model)}-widths.json`;
    const measured = ["--data", bench.mixed, "--limit", String(probes * tasks.length)];
    coppice("quantize", model, ...args, ...measured, "--plan-out", file, "--out", `${file}-rtn`);
    return [...args, "--sensitivity", file];
  }

  async function row(name, model, args) {
    const out = bench.place(name);
    coppice("quantize", model, ...args, "--method", "gptq", "--data", bench.mixed, "--out", out);
    const exported = `${out}-onnx`;
    coppice("export", out, "--format", "onnx", "--target", "cpu", "--out", exported);
    return { name, ...(await bench.showFolder(name, out, folderBytes(exported))) };
  }
}

function folderBytes(path) {
  return readdirSync(path, { withFileTypes: true }).reduce((sum, entry) => {
    const inner = join(path, entry.name);
    return sum + (entry.isDirectory() ? folderBytes(inner) : statSync(inner).size);
  }, 0);
}
