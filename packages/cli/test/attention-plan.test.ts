import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { coppice, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
let model: string;
let task: string;

beforeAll(() => {
  model = copyModel(join(work, "model"));
  task = writeTask(join(work, "task.jsonl"), 8);
});

interface Written {
  out: string;
  densities: { length: number; density: number }[];
  plan: { layers: number[][]; report: Record<string, unknown> };
}

async function planned(name: string, args: readonly string[]): Promise<Written> {
  const out = join(work, name);
  const words = ["attention", "plan", model, "--lengths", "64,128", ...args, "--out", out];
  const said = (await coppiceJson(words)) as unknown as Written;
  expect(JSON.parse(readFileSync(out, "utf8"))).toEqual(said.plan);
  return said;
}

const blocks = ["--set", "blockSize=4"];

describe("attention plan", () => {
  it("gives every head sinks and a window", async () => {
    const { densities } = await planned("window.json", [
      ...["--method", "sink-window", "--density", "0.25"],
      ...blocks,
    ]);
    expect(densities).toEqual([64, 128].map((length) => ({ length, density: 0.25 })));
  });

  it("profiles heads on data, and shows what it found", async () => {
    const few = ["rows=16", "checks=4", "probeTexts=1", "candidates=2"].flatMap((word) => ["--set", word]);
    const { densities, plan } = await planned("moa.json", [
      ...["--density", "0.5", "--data", task, "--samples", "1"],
      ...blocks,
      ...few,
    ]);
    for (const { density } of densities) expect(density).toBeLessThanOrEqual(0.5);
    expect(plan.report).toMatchObject({ method: "moa-span", lengths: [64, 128] });
    const page = join(work, "moa.html");
    const file = join(work, "moa.json");
    const shown = await coppice(["attention", "show", file, "--model", model, "--html", page]);
    expect(shown.stdout).toMatch(/predicted against measured/);
    expect(shown.stdout).toMatch(/heads at 128 tokens/);
    const html = readFileSync(page, "utf8");
    expect(html).toMatch(/Attention plan of moa-span/);
    expect(html).toMatch(/Loss by position/);
    expect(html).not.toMatch(/<script/);
  });

  it("reads published patterns", async () => {
    const { layers } = (await planned("window.tmp.json", ["--method", "sink-window", ...blocks])).plan;
    const rows = layers.map((heads, layer) =>
      heads.map((_, head) => (layer === head ? 0.9 : 0.1)).join("\t"),
    );
    const pattern = join(work, "pattern.tsv");
    writeFileSync(pattern, rows.join("\n"));
    const method = ["--method", "duo-heads", "--set", "recent=12", "--pattern", pattern, "--density", "0.7"];
    const { plan } = await planned("duo.json", [...method, ...blocks]);
    expect(plan.report).toMatchObject({ method: "duo-heads", ranking: "pattern" });
  });

  it.each([
    [["--method", "moa-span"], /needs --data/],
    [
      ["--method", "sink-window", "--density", "0.01"],
      /density of 0.01 is asked for at 64 tokens; the least possible is/,
    ],
    [
      ["--method", "sink-window", "--lengths", "1024"],
      /1024 tokens is asked for; the model has 512 positions/,
    ],
    [["--method", "flex-prefill"], /flex-prefill makes masks while a text runs/],
  ] as const)("refuses %j", async (args, message) => {
    const out = join(work, "none.json");
    const { code, stderr } = await coppice([
      ...["attention", "plan", model, "--lengths", "64,128"],
      ...args,
      ...["--out", out],
    ]);
    expect(stderr).toMatch(message);
    expect(code).toBe(2);
    expect(existsSync(out)).toBe(false);
  });
});
