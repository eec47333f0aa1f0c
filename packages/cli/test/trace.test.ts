import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { coppiceHere, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const [task, trace, stats] = ["task.jsonl", "trace.safetensors", "stats.safetensors"].map((name) =>
  join(work, name),
) as [string, string, string];
const run = ["--backend", "reference"];
let model: string;

beforeAll(async () => {
  model = copyModel(join(work, "model"));
  writeTask(task, 5);
  await coppiceJson(["trace", "record", model, "--data", task, "--out", trace, ...run]);
  await coppiceJson(["calibrate", model, "--data", task, "--out", stats, ...run]);
});

/** Bytes of the prompts and of their answers: the tokenizer has one token per byte. */
const lengths = () =>
  readFileSync(task, "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { prompt: string; answer: string })
    .reduce(
      (sum, { prompt, answer }) => ({
        prefill: sum.prefill + prompt.length,
        decode: sum.decode + answer.length,
      }),
      {
        prefill: 0,
        decode: 0,
      },
    );

interface Simulated {
  readonly sequences: number;
  readonly learned: string;
  readonly simulations: readonly {
    readonly policies: readonly { readonly policy: string; readonly decode: { readonly hitRatio: number } }[];
  }[];
}
const simulate = async (...more: string[]) =>
  (await coppiceJson(["trace", "simulate", trace, ...more])) as unknown as Simulated;

describe("trace", () => {
  it("records prompts and answers, prompts alone, and what the model writes", async () => {
    const record = (name: string, ...more: string[]) =>
      coppiceJson(["trace", "record", model, "--data", task, "--out", join(work, name), ...more, ...run]);
    expect(await record("again.safetensors")).toMatchObject({ sequences: 5, ...lengths() });
    const { prefill } = lengths();
    expect(await record("prompts.safetensors", "--kind", "prompts")).toMatchObject({ prefill, decode: 0 });
    const written = await record(
      "own.safetensors",
      "--kind",
      "generations",
      "--max-tokens",
      "3",
      "--limit",
      "2",
    );
    expect(written).toMatchObject({ sequences: 2 });
    // The last token that is written is not read.
    expect(written["decode"]).toBeLessThanOrEqual(4);
  });

  it("simulates caches", async () => {
    const { simulations, learned } = await simulate("--capacity", "2,8");
    expect(learned).toBe("nothing");
    expect(simulations.map(({ policies }) => policies.map(({ policy }) => policy))).toEqual([
      ["lru", "lfu", "belady"],
      ["lru", "lfu", "belady"],
    ]);
    const [small, large] = simulations.map(({ policies }) => policies.map(({ decode }) => decode.hitRatio));
    for (const [i, ratio] of (small ?? []).entries()) expect(ratio).toBeLessThanOrEqual(large?.[i] ?? 0);
    const half = await simulate("--capacity", "2", "--learn", "first-half", "--policies", "static");
    expect(half).toMatchObject({ sequences: 3, learned: "first half" });
    const other = await simulate("--capacity", "10kB", "--global", "--learn", trace);
    expect(other).toMatchObject({ sequences: 5, learned: "another trace" });
    const speeds = ["--memory-bandwidth", "1GB", "--storage-bandwidth", "100MB"];
    const text = await coppiceHere(["trace", "simulate", trace, "--capacity", "2", ...speeds]);
    expect(text.stdout).toMatch(/^ +2 +lru +0\.\d+ .* [\d.]+ to [\d.]+$/m);
  });

  it("says whether to prune or to page", async () => {
    const { bytes } = await coppiceJson(["inspect", model, "--keep", "4"]).then(
      ({ shrink }) => (shrink as { bytes: number }[])[0] as { bytes: number },
    );
    const plan = [
      "trace",
      "plan",
      model,
      "--trace",
      trace,
      "--stats",
      stats,
      "--budget",
      String(bytes + 100),
    ];
    const page = await coppiceJson([...plan, "--tolerance", "0"]);
    expect(page).toMatchObject({ answer: { kind: "page", keep: 8, slots: 4, dropped: 0 } });
    const prune = await coppiceJson([...plan, "--tolerance", "1"]);
    expect(prune).toMatchObject({ answer: { kind: "prune", keep: 4 } });
    const rows = prune["rows"] as { keep: number; kind: string }[];
    expect(rows.map(({ keep, kind }) => [keep, kind])).toEqual([
      [2, "prune"],
      [3, "prune"],
      [4, "prune"],
      [5, "both"],
      [6, "both"],
      [7, "both"],
      [8, "page"],
    ]);
    const text = await coppiceHere([...plan, "--tolerance", "0"]);
    expect(text.stdout).toMatch(
      /^answer +page: 8 experts per layer, 4 of them in memory; 0\.?0* of the probability/m,
    );
    const profiles = join(work, "p.json");
    await coppiceJson(["profile", "build", model, "--stats", `t=${stats}`, "--out", profiles]);
    const from = ["--profiles", profiles, "--task", "t"];
    const same = await coppiceJson([...plan, ...from, "--tolerance", "1"]);
    expect(same["rows"]).toEqual(rows);
  });

  it.each([
    [["record", "MODEL", "--data", task, "--out", trace], "COPPICE_IO_EXISTS"],
    [["record", "MODEL", "--data", task, "--max-tokens", "3", "--out", "x"], "COPPICE_USAGE"],
    [
      ["record", "MODEL", "--data", join(work, "text.txt"), "--kind", "prompts", "--out", "x"],
      "COPPICE_USAGE",
    ],
    [["simulate", task, "--capacity", "2"], "COPPICE_TRACE_FORMAT"],
    [["simulate", trace, "--capacity", "many"], "COPPICE_USAGE"],
    [["simulate", trace, "--capacity", "2", "--policies", "fifo"], "COPPICE_USAGE"],
    [["simulate", trace, "--capacity", "2", "--policies", "static"], "COPPICE_USAGE"],
    [["simulate", trace, "--capacity", "2", "--memory-bandwidth", "1GB"], "COPPICE_USAGE"],
    [["plan", "MODEL", "--trace", trace, "--budget", "1GB"], "COPPICE_USAGE"],
    [["plan", "MODEL", "--trace", trace, "--budget", "1GB", "--task", "t"], "COPPICE_USAGE"],
    [["plan", "MODEL", "--trace", trace, "--stats", stats, "--budget", "1kB"], "COPPICE_PLAN_KEEP"],
  ])("refuses %j", async (words, code) => {
    writeFileSync(join(work, "text.txt"), "some text");
    const finished = await coppiceHere([
      "trace",
      ...words.map((word) => (word === "MODEL" ? model : word)),
      "--json",
    ]);
    expect(finished.stderr).toContain(code);
    expect(finished.code).toBeGreaterThan(0);
  });
});
