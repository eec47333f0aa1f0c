import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { reference } from "@coppice/backend-reference";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { sampleAttention } from "@coppice/plugin-kit";
import { beforeAll, describe, expect, it } from "vitest";
import { attentionHash } from "../src/work/attention-plan-file.js";
import { coppiceHere as coppice, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));
const task = writeTask(join(work, "task.jsonl"), 12);
const holdout = writeTask(join(work, "holdout.jsonl"), 10, 500);
const [file, otherFile] = [join(work, "attention.json"), join(work, "other.json")];
const bin = fileURLToPath(new URL("../dist/bin.js", import.meta.url));
const hashes: string[] = [];

beforeAll(async () => {
  await using loaded = await loadModel(await openFolder(model));
  const plan = sampleAttention(loaded.model, {
    sinks: 1,
    rules: [{ alpha: 4, beta: 0 }],
    layers: [[0, 0], [0, 0], null],
  });
  const other = { ...plan, blockSize: 4 };
  for (const [path, one] of [
    [file, plan],
    [otherFile, other],
  ] as const) {
    writeFileSync(path, JSON.stringify({ ...one, report: { method: path } }));
    hashes.push(attentionHash(one));
  }
});

const metric = ["--metric", "log-likelihood"];
const search = (out: string, ...more: string[]) => [
  ...[
    "search",
    model,
    "--task",
    task,
    "--holdout",
    holdout,
    "--keep",
    "4",
    "--budget",
    "3",
    "--workers",
    "1",
  ],
  ...[
    "--strategy",
    "random",
    "--seeds",
    "none",
    "--objective",
    "log-likelihood",
    ...metric,
    "--no-reconstruct",
  ],
  ...["--out", join(work, out), ...more],
];
const evaluate = (samples: string, ...more: string[]) =>
  coppiceJson(["eval", model, "--task", samples, ...metric, "--workers", "1", ...more]);

describe("logits --attention", () => {
  it("are those of the masked reference backend", async () => {
    const ids = [5, 3, 8, 1, 2, 9, 4, 4, 7, 1, 3, 6];
    const args = ["logits", model, "--ids", ids.join(","), "--all", "--workers", "1"];
    const { logits } = await coppiceJson([...args, "--attention", file]);
    await using loaded = await loadModel(await openFolder(model));
    await using runner = await (await reference.create({}, undefined)).load(loaded);
    const { logits: expected } = await runner.run({
      sequences: [Int32Array.from(ids)],
      positions: [Int32Array.from(ids.keys())],
      attention: { plan: JSON.parse(readFileSync(file, "utf8")) },
    });
    const found = (logits as number[][][])[0]?.flat() ?? [];
    const differences = Array.from(expected ?? [], (value, i) => Math.abs(value - (found[i] as number)));
    expect(Math.max(...differences)).toBeLessThan(1e-4);
    expect(await coppiceJson(args)).not.toEqual({ logits });
  });
});

describe("search --attention", () => {
  it("scores and measures every plan under the attention plan", async () => {
    const found = (await coppiceJson(search("run", "--attention", file))) as {
      best: { fitness: number };
      full: { holdout: { value: number } };
      holdout: { value: number };
      planFile: string;
    };
    const under = ["--attention", file];
    const plan = ["--plan", found.planFile];
    const [searched, held, full, dense] = await Promise.all([
      evaluate(task, ...plan, ...under),
      evaluate(holdout, ...plan, ...under),
      evaluate(holdout, ...under),
      evaluate(task, ...plan),
    ]);
    expect(found.best.fitness).toBeCloseTo(searched?.["value"] as number, 5);
    expect(found.best.fitness).not.toBeCloseTo(dense?.["value"] as number, 3);
    expect(found.holdout.value).toBeCloseTo(held?.["value"] as number, 5);
    expect(found.full.holdout.value).toBeCloseTo(full?.["value"] as number, 5);
  });

  it("is part of what a run is: others do not continue it, and those hear of both", async () => {
    const [hash, other] = hashes;
    const refused = await coppice(search("run", "--attention", otherFile));
    expect(refused).toMatchObject({ code: 2, stderr: expect.stringContaining("COPPICE_RUN_IDENTITY") });
    expect(refused.stderr).toContain(`attention was "${hash}", is now "${other}"`);
    const without = await coppice(search("run"));
    expect(without.stderr).toContain(`attention was "${hash}"`);
    // What a method says of a plan changes nothing.
    const plan = JSON.parse(readFileSync(file, "utf8"));
    writeFileSync(join(work, "renamed.json"), JSON.stringify({ ...plan, report: {} }));
    const again = await coppice(search("run", "--attention", join(work, "renamed.json")));
    expect(again).toMatchObject({ code: 0, stderr: expect.stringContaining("Continuing the run") });
  });
});

describe("worker --attention", () => {
  const elsewhere = (...more: string[]) => {
    const worker = [process.execPath, bin, "worker", model, "--workers", "1", ...more];
    const command = [...worker, "--request", "{request}", "--result", "{result}"];
    return ["--executor", "command", "--executor-set", `command=${JSON.stringify(command)}`];
  };

  it("scores as here, and refuses work under another plan with both", async () => {
    const under = ["--attention", file];
    const [here, there] = await Promise.all([
      evaluate(task, ...under),
      evaluate(task, ...under, ...elsewhere(...under)),
    ]);
    const { seconds: _, ...expected } = here ?? {};
    expect(there).toMatchObject(expected);
    const [hash, other] = hashes;
    const args = ["eval", model, "--task", task, ...metric, ...under, ...elsewhere("--attention", otherFile)];
    const refused = await coppice(args);
    expect(refused).toMatchObject({ code: 2, stderr: expect.stringContaining("COPPICE_EXECUTOR_FOREIGN") });
    for (const one of [hash, other]) expect(refused.stderr).toContain(`attention ${one}`);
  });
});
