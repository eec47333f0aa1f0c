import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { coppiceHere, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));
const task = writeTask(join(work, "task.jsonl"), 40);

const args = (out: string, ...more: string[]) => [
  ...["search", model, "--task", task, "--limit", "8", "--metric", "log-likelihood"],
  ...["--strategy", "random", "--seeds", "none", "--out", join(work, out), ...more],
];

describe("budgets of a search", () => {
  it("ends when patience or time is spent, and at the same place when it is repeated", async () => {
    const patient = await coppiceJson(args("patience", "--keep", "4", "--patience", "5"));
    expect(patient["stopped"]).toBe("patience");
    expect(patient["evaluations"]).toBeLessThan(400);
    const report = readFileSync(join(work, "patience", "report.html"), "utf8");
    expect(report).toContain("the last of which brought nothing better");

    const timed = args("seconds", "--keep", "4", "--seconds", "1", "--budget", "100000");
    const { stopped, evaluations, best } = await coppiceJson(timed);
    expect(stopped).toBe("time");
    expect(await coppiceJson(timed)).toMatchObject({ evaluations, best, work: { tokenLayers: 0 } });
    const other = await coppiceHere(args("seconds", "--keep", "4", "--seconds", "2", "--budget", "100000"));
    expect(other.stderr).toMatch(/seconds was 1, is now 2/);
  });
});
