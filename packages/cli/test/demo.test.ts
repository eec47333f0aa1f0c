import { existsSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { coppice, coppiceJson } from "./cli.js";
import { workshop } from "./workshop.js";

const work = workshop();

it("the demo leaves a proven checkpoint, a plan and a report, and a second run finds them", async () => {
  // Eight evaluations: what is tested is the way, not the result.
  const args = ["demo", "--budget-minutes", "0.05", "--out", "here"];
  const first = await coppice(args, { cwd: work });
  expect(first.stderr).not.toMatch(/error/i);
  expect(first.code).toBe(0);
  expect(first.stdout).toMatch(/^arith +search score +holdout score +weights +active$/m);
  for (const row of ["full model", "random \\(mean of 5 draws\\)", "frequency", "reap", "eep"]) {
    expect(first.stdout).toMatch(new RegExp(`^${row} +[01]\\.\\d{3} \\(.*[53][32]\\.\\d MB +10\\.8 M$`, "m"));
  }
  expect(first.stdout).toMatch(/equals what was evaluated/);
  for (const path of ["run/report.html", "run/plan.json", "run/result.json", "model/config.json"]) {
    expect(existsSync(join(work, "here", path))).toBe(true);
  }
  const again = await coppiceJson(args, { cwd: work });
  expect(again).toMatchObject({
    task: "arith",
    evaluations: 8,
    work: { tokenLayers: 0 },
    verify: { equal: true },
  });
  const tried = /try it +coppice|try it +node/.exec(first.stdout);
  expect(tried).not.toBeNull();
  const text = await coppiceJson(
    ["generate", "here/model", "--prompt", "Compute: 8 + 95 =", "--max-tokens", "4"],
    {
      cwd: work,
    },
  );
  expect((text["tokens"] as number[]).length).toBeGreaterThan(0);
}, 480_000);
