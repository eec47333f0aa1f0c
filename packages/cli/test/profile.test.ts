import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { coppiceHere, coppiceJson } from "./cli.js";
import { copyModel, workshop, writeTask } from "./workshop.js";

const work = workshop();
const [sums, words] = [join(work, "sums.jsonl"), join(work, "words.jsonl")];
const profiles = join(work, "profiles.json");
const run = ["--backend", "reference"];
let model: string;

beforeAll(async () => {
  model = copyModel(join(work, "model"));
  writeTask(sums, 6);
  const lines = ["zebra", "quartz", "onyx", "jigsaw"].map((word) =>
    JSON.stringify({ prompt: `~~${word.toUpperCase()}~~`, answer: ` ${word}` }),
  );
  writeFileSync(words, lines.join("\n"));
  const data = ["--data", `sums=${sums}`, "--data", `words=${words}`];
  await coppiceJson(["profile", "build", model, ...data, "--general", "all", "--out", profiles, ...run]);
});

interface Listed {
  readonly profiles: readonly { readonly name: string; readonly general: boolean; readonly tokens: number }[];
}
const list = async (file: string) => (await coppiceJson(["profile", "list", file])) as unknown as Listed;
const prompt = "7 + 7 =";

describe("profile", () => {
  it("builds profiles of tasks, and a general one", async () => {
    const { profiles: found } = await list(profiles);
    expect(found.map(({ name, general }) => [name, general])).toEqual([
      ["all", true],
      ["sums", false],
      ["words", false],
    ]);
    const text = await coppiceHere(["profile", "list", profiles]);
    expect(text.stdout).toMatch(/^all \(general\) +reap +[\d,]+ +0\.\d+/m);
  });

  it("builds from statistics files, merges files and leaves profiles out", async () => {
    const stats = join(work, "stats.safetensors");
    await coppiceJson(["calibrate", model, "--data", sums, "--out", stats, ...run]);
    const [one, both, fewer] = ["one.json", "both.json", "fewer.json"].map((name) => join(work, name)) as [
      string,
      string,
      string,
    ];
    const build = ["profile", "build", model, "--stats", `again=${stats}`, "--criterion", "frequency"];
    await coppiceJson([...build, "--out", one]);
    await coppiceJson(["profile", "merge", profiles, one, "--out", both]);
    expect((await list(both)).profiles.map(({ name }) => name)).toEqual(["again", "all", "sums", "words"]);
    await coppiceJson(["profile", "remove", both, "all", "again", "--out", fewer]);
    expect((await list(fewer)).profiles.map(({ name }) => name)).toEqual(["sums", "words"]);
  });

  it("finds the profile of a prompt", async () => {
    const pick = (text: string, ...more: string[]) =>
      coppiceJson(["profile", "pick", model, "--profiles", profiles, "--prompt", text, ...more, ...run]);
    expect(await pick(prompt)).toMatchObject({ kind: "nearest", profiles: ["sums"] });
    expect(await pick("~~GRAVY~~")).toMatchObject({ kind: "nearest", profiles: ["words"] });
    expect(await pick(prompt, "--margin", "1")).toMatchObject({ kind: "union", profiles: ["sums", "words"] });
    const general = await pick(prompt, "--margin", "1", "--otherwise", "general");
    expect(general).toMatchObject({ kind: "general", profiles: ["all"] });
  });

  it("writes plans that other commands run", async () => {
    const out = join(work, "plan.json");
    const plan = ["profile", "plan", model, "--profiles", profiles];
    const planned = await coppiceJson([...plan, "--task", "sums", "--keep", "4", "--out", out]);
    expect(planned).toMatchObject({ keep: [4, 4, 4], picked: { profiles: ["sums"] } });
    expect(JSON.parse(readFileSync(out, "utf8"))).toEqual(planned["plan"]);
    const ids = ["--ids", "55,32,43"];
    await coppiceJson(["logits", model, ...ids, "--plan", out, ...run]);
    const found = await coppiceJson([...plan, "--prompt", prompt, "--keep", "4", ...run]);
    expect(found["plan"]).toEqual(planned["plan"]);
    const bytes = String(planned["bytes"]);
    expect((await coppiceJson([...plan, "--task", "sums", "--budget", bytes]))["keep"]).toEqual([4, 4, 4]);
    const uneven = await coppiceJson([...plan, "--task", "sums", "--budget", bytes, "--uneven"]);
    expect(uneven["dropped"]).toBeLessThanOrEqual(planned["dropped"] as number);
  });

  it("generates with some experts, and with ever more of them when the text drifts", async () => {
    const generate = [
      "profile",
      "generate",
      model,
      "--profiles",
      profiles,
      "--prompt",
      prompt,
      "--max-tokens",
      "5",
    ];
    const out = join(work, "four.json");
    await coppiceJson([
      "profile",
      "plan",
      model,
      "--profiles",
      profiles,
      "--task",
      "sums",
      "--keep",
      "4",
      "--out",
      out,
    ]);
    const plain = (...more: string[]) =>
      coppiceJson(["generate", model, "--prompt", prompt, "--max-tokens", "5", ...more, ...run]);
    const calm = await coppiceJson([...generate, "--keep", "4", "--threshold", "1", ...run]);
    expect(calm).toMatchObject({ widenings: [], picked: { profiles: ["sums"] } });
    expect(calm["tokens"]).toEqual((await plain("--plan", out))["tokens"]);
    const drifting = await coppiceJson([
      ...generate,
      "--keep",
      "4",
      "--threshold",
      "0",
      "--step",
      "2",
      ...run,
    ]);
    expect(drifting).toMatchObject({
      widenings: [{ keep: [6, 6, 6] }, { keep: [8, 8, 8] }],
    });
  });

  it.each([
    [["build", "MODEL", "--out", "x"], "COPPICE_USAGE"],
    [["build", "MODEL", "--data", "sums", "--out", "x"], "COPPICE_USAGE"],
    [["build", "MODEL", "--data", `a=${sums}`, "--stats", `a=${sums}`, "--out", "x"], "COPPICE_USAGE"],
    [["build", "MODEL", "--data", `a=${sums}`, "--out", profiles], "COPPICE_IO_EXISTS"],
    [["list", sums], "COPPICE_PROFILE_FORMAT"],
    [["merge", profiles, "--out", "x"], "COPPICE_USAGE"],
    [["merge", profiles, profiles, "--out", "x"], "COPPICE_USAGE"],
    [["remove", profiles, "none", "--out", "x"], "COPPICE_USAGE"],
    [["pick", "MODEL", "--profiles", profiles], "COPPICE_USAGE"],
    [["plan", "MODEL", "--profiles", profiles, "--task", "sums"], "COPPICE_USAGE"],
    [["plan", "MODEL", "--profiles", profiles, "--task", "sums", "--keep", "1"], "COPPICE_PLAN_KEEP"],
    [["plan", "MODEL", "--profiles", profiles, "--task", "none", "--keep", "4"], "COPPICE_USAGE"],
    [
      ["plan", "MODEL", "--profiles", profiles, "--task", "sums", "--ids", "1", "--keep", "4"],
      "COPPICE_USAGE",
    ],
    [["plan", "MODEL", "--profiles", profiles, "--task", "sums", "--keep", "4", "--uneven"], "COPPICE_USAGE"],
    [["generate", "MODEL", "--profiles", profiles, "--keep", "4", "--prompt", ""], "COPPICE_USAGE"],
    [
      [
        "generate",
        "MODEL",
        "--profiles",
        profiles,
        "--keep",
        "4",
        "--ids",
        "1",
        "--task",
        "sums",
        "--widen",
        "profiles",
      ],
      "COPPICE_USAGE",
    ],
    [["sort"], "COPPICE_USAGE"],
  ])("refuses %j", async (words, code) => {
    const args = words.map((word) => (word === "MODEL" ? model : word));
    const finished = await coppiceHere([
      "profile",
      ...args,
      ...(words.includes("pick") ? run : []),
      "--json",
    ]);
    expect(finished.stderr).toContain(code);
    expect(finished.code).toBeGreaterThan(0);
    expect(existsSync("x")).toBe(false);
  });

  it("refuses profiles of another model", async () => {
    const other = copyModel(join(work, "other"), "qwen3_moe");
    const finished = await coppiceHere([
      "profile",
      "plan",
      other,
      "--profiles",
      profiles,
      "--task",
      "sums",
      "--keep",
      "4",
    ]);
    expect(finished.stderr).toContain("COPPICE_PROFILE_MODEL");
  });
});
