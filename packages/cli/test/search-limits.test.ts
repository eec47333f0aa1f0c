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
    expect(readFileSync(join(work, "seconds", "report.html"), "utf8")).toContain("A limit of time ended");
    expect(await coppiceJson(timed)).toMatchObject({ evaluations, best, work: { tokenLayers: 0 } });
    const other = await coppiceHere(args("seconds", "--keep", "4", "--seconds", "2", "--budget", "100000"));
    expect(other.stderr).toMatch(/seconds was 1, is now 2/);
  });
});

describe("a search within a memory limit", () => {
  const weightsOf = async (plan: string, out: string) => {
    const written = await coppiceJson(["apply", model, "--plan", plan, "--out", out]);
    return written["bytesAfter"] as number;
  };

  it("keeps as many experts as the weights of the checkpoint have room for", async () => {
    await coppiceJson(args("four", "--keep", "4", "--budget", "2"));
    const four = await weightsOf(join(work, "four", "plan.json"), join(work, "small-four"));
    for (const [limit, keep] of [
      [four, 4],
      [four - 1, 3],
      [1e12, 8],
    ] as const) {
      const out = `limit-${keep}`;
      const found = await coppiceJson(args(out, "--memory", `${limit}`, "--budget", "2"));
      expect(found["memory"]).toMatchObject({ keep, limit });
      const written = await weightsOf(join(work, out, "plan.json"), join(work, `small-${limit}`));
      expect(found["memory"]).toMatchObject({ bytes: written });
    }
  });

  it("says the least possible size when nothing fits, which fewer experts per token make smaller", async () => {
    const least = async (...more: string[]) => {
      const finished = await coppiceHere([...args("none", "--memory", "10kB", ...more), "--json"]);
      expect(finished.code).toBe(2);
      const [, experts, bytes] = /with (\d+) experts .* take (\d+) bytes/.exec(finished.stderr) ?? [];
      return [Number(experts), Number(bytes)] as const;
    };
    const [two, bytesOfTwo] = await least("--top-k", "2");
    const [one, bytesOfOne] = await least("--top-k", "1");
    expect(await least()).toEqual([one, bytesOfOne]);
    expect([two, one]).toEqual([2, 1]);
    expect(bytesOfOne).toBeLessThan(bytesOfTwo);
    const exact = args("exact", "--top-k", "1", "--budget", "2", "--memory", `${bytesOfOne}`);
    expect((await coppiceJson(exact))["memory"]).toMatchObject({ keep: 1, bytes: bytesOfOne });
    // Without --top-k it stays what it is where that fits, and is lowered where it does not.
    for (const [limit, keep, topK] of [
      [bytesOfTwo, 2, undefined],
      [bytesOfTwo - 1, 1, 1],
    ] as const) {
      const found = await coppiceJson(args(`lowered-${keep}`, "--budget", "2", "--memory", `${limit}`));
      expect((found["memory"] as { topK?: number }).topK).toBe(topK);
      const plan = join(work, `lowered-${keep}`, "plan.json");
      for (const layer of JSON.parse(readFileSync(plan, "utf8")).layers) {
        expect(layer.experts).toHaveLength(keep);
        expect(layer.topK).toBe(topK);
      }
      expect(await weightsOf(plan, join(work, `small-lowered-${keep}`))).toBeLessThanOrEqual(limit);
    }
  });

  it("chooses no larger plan of a strategy for several sizes", async () => {
    const words = ["search", model, "--task", task, "--limit", "8", "--metric", "log-likelihood"];
    const front = ["--strategy", "nsga2", "--budget", "24", "--memory", "600kB", "--seeds", "reap"];
    const finished = await coppiceHere([...words, ...front, "--out", join(work, "front")]);
    expect(finished.code).toBe(0);
    const { plan, memory } = JSON.parse(readFileSync(join(work, "front", "result.json"), "utf8"));
    expect(finished.stderr).toContain(`keep more than ${memory.keep} experts in some layer and are left out`);
    for (const { experts } of plan.layers) expect(experts.length).toBeLessThanOrEqual(memory.keep);
  });

  it("wants either a number of experts or a limit", async () => {
    for (const more of [[], ["--keep", "4", "--memory", "1MB"]]) {
      const finished = await coppiceHere(args("either", ...more));
      expect(finished).toMatchObject({ code: 2, stderr: expect.stringMatching(/either --keep or --memory/) });
    }
  });
});
