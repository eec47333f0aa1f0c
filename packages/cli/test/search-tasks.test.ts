import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { coppiceHere, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));
const sums = writeTask(join(work, "sums.jsonl"), 40);
const sumsHoldout = writeTask(join(work, "sums-holdout.jsonl"), 12, 1000);
const pick = lines(
  "pick.jsonl",
  (i) => ({ prompt: `The ${i}th is`, choices: [" a", " b"], answer: i % 2 }),
  20,
);
const words = lines("words.jsonl", (i) => ({ text: `${"so on and so forth ".repeat(3)}${i}` }), 10);

function lines(name: string, line: (i: number) => object, count: number): string {
  const path = join(work, name);
  writeFileSync(path, Array.from({ length: count }, (_, i) => `${JSON.stringify(line(i))}\n`).join(""));
  return path;
}

interface TaskResult {
  readonly name: string;
  readonly metric: string;
  readonly objective: string;
  readonly search: { readonly value: number; readonly samples: number };
  readonly holdout: { readonly value: number; readonly samples: number; readonly difference?: object };
  readonly baselines: readonly { readonly name: string }[];
  readonly minimum?: Record<"search" | "holdout", { readonly value: number; readonly samples: number }>;
}

const args = (out: string, ...more: string[]) => [
  ...["search", model, "--task", sums, "--task", `choose=${pick}`, "--task", words, "--keep", "4"],
  ...[
    "--holdout",
    `sums=${sumsHoldout}`,
    "--objective",
    "log-likelihood",
    "--objective",
    "choose=exact-match",
  ],
  ...["--metric", "log-likelihood", "--metric", "choose=choice-accuracy", "--weight", "sums=2"],
  ...["--budget", "10", "--seeds", "frequency,reap", "--out", join(work, out), ...more],
];

describe("a search for several tasks", () => {
  it("maximises the weighted mean, and reports the tasks one by one", async () => {
    const result = await coppiceJson(args("run"));
    const tasks = result["tasks"] as TaskResult[];
    expect(tasks.map(({ name, metric, objective }) => [name, metric, objective])).toEqual([
      ["sums", "log-likelihood", "log-likelihood"],
      ["choose", "choice-accuracy", "exact-match"],
      ["words", "log-likelihood", "log-likelihood"],
    ]);
    expect(tasks.map(({ search, holdout }) => [search.samples, holdout.samples])).toEqual([
      [40, 12],
      [14, 6],
      [7, 3],
    ]);
    for (const { baselines, holdout } of tasks) {
      expect(baselines.map(({ name }) => name)).toEqual(["random", "frequency", "reap", "eep"]);
      expect(holdout).toHaveProperty("difference");
    }
    // Here metrics and objectives are the same, measured in another way.
    const [a, b, c] = tasks.map(({ search }) => search.value) as [number, number, number];
    const { fitness } = result["best"] as { fitness: number };
    expect(fitness).toBeCloseTo((2 * a + b + c) / 4, 4);
    expect(result["identity"]).toMatchObject({ tasks: [{ name: "sums", weight: 2 }, {}, {}] });
    const report = readFileSync(join(work, "run", "report.html"), "utf8");
    for (const name of ["sums", "choose", "words"]) expect(report).toContain(`Scores: ${name}`);
  });

  it("finds the same again, and refuses other weights in the same folder", async () => {
    const before = readFileSync(join(work, "run", "plan.json"), "utf8");
    const again = await coppiceJson(args("run"));
    expect(again["work"]).toMatchObject({ tokenLayers: 0 });
    await coppiceJson(args("single", "--workers", "1"));
    expect(readFileSync(join(work, "single", "plan.json"), "utf8")).toBe(before);
    const other = await coppiceHere(args("run", "--weight", "choose=3"));
    expect(other.stderr).toMatch(/COPPICE_RUN_IDENTITY.*tasks/s);
  });

  it("prefers plans that reach the minimums, and says what became of them", async () => {
    // A little more than what the mean of all prefers, so that the minimum can change the choice.
    const free = (await coppiceJson(args("run")))["tasks"] as TaskResult[];
    const least = (free[1]?.search.value as number) + 0.01;
    const finished = await coppiceHere(args("minimum", "--minimum", `choose=${least}`, "--budget", "30"));
    expect(finished.code).toBe(0);
    expect(finished.stdout).toMatch(/^sums: log-likelihood, weight 2$/m);
    const { tasks, best } = JSON.parse(readFileSync(join(work, "minimum", "result.json"), "utf8")) as {
      tasks: TaskResult[];
      best: { fitness: number };
    };
    const choose = tasks[1] as Required<TaskResult>;
    const { search, holdout } = choose.minimum;
    expect([search.samples, holdout.samples]).toEqual([14, 6]);
    expect(search.value).toBeCloseTo(choose.search.value, 9);
    const kept = search.value >= least;
    expect(finished.stdout).toContain(`${kept ? "Reaches" : "MISSES"} the minimum of`);
    // log-likelihood is never below -20: lower fitness is that of plans that miss a minimum.
    expect(best.fitness < (3 * -20) / 4).toBe(!kept);
  });

  it.each([
    [["--task", sums], /two tasks have the name "sums"/],
    [["--weight", "sum=2"], /--weight is for the task "sum", the tasks are sums, choose, words/],
    [["--weight", "2"], /--weight does not say for which task/],
    [["--holdout", sumsHoldout], /--holdout does not say for which task/],
    [["--weight", "sums=0"], /expected a number above 0/],
    [["--objective", "words=likelihood"], /COPPICE_TASK_METRIC/],
    [["--task", `more=${sumsHoldout}`], /COPPICE_TASK_OVERLAP/],
  ])("refuses %s", async (more, message) => {
    const finished = await coppiceHere(args("refused", ...more));
    expect(finished.code).toBe(2);
    expect(finished.stderr).toMatch(message);
  });

  it("refuses to weigh one task", async () => {
    const one = ["search", model, "--task", sums, "--keep", "4", "--out", join(work, "one")];
    const finished = await coppiceHere([...one, "--minimum", "sums=0.5"]);
    expect(finished.stderr).toMatch(/there is only one/);
  });
});
