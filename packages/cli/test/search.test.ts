import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { coppice, coppiceJson, start } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));
const task = writeTask(join(work, "task.jsonl"), 60);
const holdout = writeTask(join(work, "holdout.jsonl"), 30, 1000);

const args = (out: string, ...more: string[]) => [
  ...["search", model, "--task", task, "--holdout", holdout, "--keep", "4", "--limit", "16"],
  ...[
    "--budget",
    "24",
    "--objective",
    "log-likelihood",
    "--metric",
    "log-likelihood",
    "--out",
    join(work, out),
  ],
  ...more,
];
const read = (out: string, name: string) => JSON.parse(readFileSync(join(work, out, name), "utf8"));

/** What must be equal however often a run was interrupted. */
function outcome(out: string) {
  const { seconds: _, searching: __, work: ___, ...result } = read(out, "result.json");
  return { result, plan: read(out, "plan.json") };
}

describe("search", () => {
  it("writes a run folder that says what was found", async () => {
    const result = await coppiceJson(args("run"));
    expect(result).toMatchObject({
      evaluations: 24,
      samples: { search: 16, choice: 16, holdout: 30 },
      choice: { by: "further samples", samples: 16, fitness: expect.any(Number) },
      holdout: { samples: 30 },
      best: { samples: 16 },
    });
    for (const field of ["cacheHits", "seconds", "work", "baselines", "full"])
      expect(result).toHaveProperty(field);
    const names = (result["baselines"] as { name: string }[]).map(({ name }) => name);
    expect(names).toEqual(["random", "frequency", "soft-activation", "reap", "eep"]);
    const chosen = (result["holdout"] as { value: number }).value;
    for (const { holdout, gain } of result["baselines"] as Record<"holdout" | "gain", { value: number }>[])
      expect(gain.value).toBeCloseTo(chosen - holdout.value, 10);
    const { fitness, layers } = result["reconstruction"] as {
      fitness: { before: number; after: number };
      layers: { fitness: number }[];
    };
    expect(layers.length).toBeGreaterThan(0);
    // Texts that the model wrote are fitted to, so that the search samples judge, layer after layer.
    expect(result["reconstruction"]).toMatchObject({ texts: "written" });
    const course = [fitness.before, ...layers.map((layer) => layer.fitness)];
    expect(course).toEqual([...course].sort((a, b) => a - b));
    expect(layers.at(-1)?.fitness).toBe(fitness.after);
    expect(fitness.after).toBe((result["best"] as { fitness: number }).fitness);
    const { plan } = outcome("run");
    expect(result["planFile"]).toBe(join(work, "run", "plan.json"));
    expect(plan.layers.some((layer: { down?: string }) => layer.down)).toBe(true);
    // What programs read of the command stays small.
    expect(result).not.toHaveProperty("plan");
    expect(plan.layers.every((layer: { experts: number[] }) => layer.experts.length === 4)).toBe(true);
    const report = readFileSync(join(work, "run", "report.html"), "utf8");
    expect(report).toContain("Holdout score");
    expect(existsSync(join(work, "run", "run.lock"))).toBe(false);

    const small = join(work, "small");
    const found = ["--plan", join(work, "run", "plan.json")];
    await coppiceJson(["apply", model, ...found, "--out", small]);
    expect(await coppiceJson(["verify", model, small, ...found])).toMatchObject({ equal: true });
  });

  it("runs nothing on the holdout before one plan is chosen, and then that one and the baselines", () => {
    const journal = readFileSync(join(work, "run", "journal.jsonl"), "utf8")
      .trim()
      .split("\n");
    const records = journal.map((line) => JSON.parse(line) as Record<string, unknown>);
    const text = records.map((record) => JSON.stringify(record));
    const onHoldout = text.flatMap((record, i) => (record.includes('"report ') ? [i] : []));
    const others = text.flatMap((record, i) => (/"(search|choice)"/.test(record) ? [i] : []));
    // The model, five random plans, three criteria and what was found, some of them the same.
    expect(onHoldout.length).toBeGreaterThanOrEqual(7);
    expect(onHoldout.length).toBeLessThanOrEqual(1 + 5 + 3 + 1);
    expect(others.length).toBeGreaterThan(24);
    expect(Math.max(...others)).toBeLessThan(Math.min(...onHoldout));
  });

  it("finds the same again, with another number of workers", async () => {
    const before = outcome("run");
    await coppiceJson(args("again", "--workers", "1"));
    expect(outcome("again")).toEqual(before);
    const known = await coppiceJson(args("run"));
    expect(outcome("run")).toEqual(before);
    // Nothing was left to evaluate.
    expect(known["work"]).toMatchObject({ tokenLayers: 0 });
  });

  it("sets a holdout aside when none is given", async () => {
    const out = join(work, "split");
    const words = [
      "search",
      model,
      "--task",
      task,
      "--keep",
      "4",
      "--budget",
      "4",
      "--strategy",
      "random",
      "--seeds",
      "none",
    ];
    const { samples, choice, baselines } = await coppiceJson([
      ...words,
      "--metric",
      "log-likelihood",
      "--out",
      out,
    ]);
    expect(samples).toEqual({ search: 42, choice: 0, holdout: 18 });
    expect(choice).toMatchObject({ by: "resampling", samples: 42, firstShare: expect.any(Number) });
    expect((baselines as { name: string }[]).map(({ name }) => name)).toEqual(["random", "random"]);
  });

  it("refuses to mix runs, and says what differs", async () => {
    for (const [more, field] of [
      [["--seed", "2"], /seed was 1, is now 2/],
      [["--keep", "3"], /options\.keep was 4, is now 3/],
      [["--strategy", "random"], /strategy\.name was "eep", is now "random"/],
    ] as const) {
      const finished = await coppice(args("run", ...more));
      expect(finished.code).toBe(2);
      expect(finished.stderr).toMatch(/COPPICE_RUN_IDENTITY/);
      expect(finished.stderr).toMatch(field);
    }
    const fresh = await coppice(args("run", "--fresh"));
    expect(fresh).toMatchObject({ code: 2, stderr: expect.stringMatching(/COPPICE_IO_EXISTS/) });
  });

  it("ends the same after kill -9 at any moment", async () => {
    const whole = outcome("run");
    const out = join(work, "killed");
    let kills = 0;
    // Each life ends a little later than the one before; the last one is left alone.
    for (const milliseconds of [300, 700, 900, 1200, 1600, 2400]) {
      const { child, done } = start(args("killed", "--log-format", "json"));
      const timer = setTimeout(() => child.kill("SIGKILL"), milliseconds);
      const { signal } = await done;
      clearTimeout(timer);
      if (signal === "SIGKILL") kills++;
    }
    expect(kills).toBeGreaterThan(1);
    await coppiceJson(args("killed"));
    expect(outcome("killed")).toEqual(whole);
    rmSync(out, { recursive: true });
  });

  it("Ctrl-C saves, ends with 130, and the next run goes on", async () => {
    const { child, done } = start(args("interrupted", "--log-format", "json"));
    let asked = false;
    child.stderr?.on("data", (text: string) => {
      if (asked || !text.includes('"candidate"')) return;
      asked = true;
      child.kill("SIGINT");
    });
    const { code, stderr, stdout } = await done;
    expect([code, stdout]).toEqual([130, ""]);
    expect(stderr).toMatch(/COPPICE_ABORTED/);
    const resumed = await coppice(args("interrupted"));
    expect(resumed.stderr).toMatch(/Continuing the run/);
    expect(outcome("interrupted")).toEqual(outcome("run"));
  });

  it("Ctrl-C twice ends at once", async () => {
    const { child, done } = start(args("twice", "--log-format", "json"));
    let asked = false;
    child.stderr?.on("data", (text: string) => {
      if (asked || !text.includes('"progress"')) return;
      asked = true;
      child.kill("SIGINT");
      setTimeout(() => child.kill("SIGINT"), 20);
    });
    expect((await done).code).toBe(130);
  });

  it("searches merges without pruning, fewer active experts, and free router maps", async () => {
    const out = join(work, "mapped");
    const words = ["search", model, "--task", task, "--holdout", holdout, "--limit", "8", "--seeds", "none"];
    const common = ["--objective", "log-likelihood", "--metric", "log-likelihood", "--budget", "12"];
    const result = await coppiceJson([
      ...words,
      ...common,
      "--keep",
      "8",
      "--top-k",
      "1",
      "--set",
      "router=mapped",
      "--out",
      out,
    ]);
    expect(result["evaluations"]).toBe(12);
    const mapped = (result["plan"] as { layers: { routerMap?: unknown }[] }).layers.some(
      (layer) => layer.routerMap,
    );
    if (mapped) {
      expect(result).toHaveProperty("stockPlan");
      const apply = ["apply", model, "--plan", join(out, "plan.json"), "--out", join(work, "from-mapped")];
      expect((await coppice(apply)).stderr).toMatch(/COPPICE_PLAN_EXPORT/);
      await coppiceJson([...apply, "--project-router"]);
    }
  });
});
