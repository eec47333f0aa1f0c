import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { packFloats } from "@coppice/core";
import { fixturePath, loadFixture } from "@coppice/plugin-kit/node";
import { describe, expect, it } from "vitest";
import { coppiceHere as coppice, coppiceJson } from "./cli.js";
import { copyModel, readSafetensors, workshop, writeSafetensors, writeTask } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));
const task = writeTask(join(work, "task.jsonl"), 12);

describe("inspect", () => {
  it("describes the checkpoint and what pruning saves", async () => {
    const inspected = await coppiceJson(["inspect", model, "--keep", "4"]);
    expect(inspected).toMatchObject({
      family: "mixtral",
      layers: 3,
      experts: 8,
      topK: 2,
      parameters: 219_072,
      bytes: 4 * 219_072,
      shrink: [{ keep: 4, bytes: 4 * 144_576, parameters: 144_576 }],
    });
    expect(inspected["activeParameters"]).toBeLessThan(219_072);
    const text = await coppice(["inspect", model]);
    expect(text.stdout).toMatch(/4 per layer +578 kB +66\.0 %/);
    expect(text.stderr).toBe("");
  });
});

describe("logits and generate", () => {
  it.each(["mixtral", "qwen3_moe"] as const)("agree with the reference outputs of %s", async (name) => {
    const { golden, model: spec } = await loadFixture(name);
    const folder = name === "mixtral" ? model : copyModel(join(work, name), name);
    const ids = golden.sequences.flatMap((sequence) => ["--ids", sequence.join(",")]);
    const all = (await coppiceJson(["logits", folder, ...ids, "--all"]))["logits"] as number[][][];
    const flat = Float32Array.from(all.flat(2));
    expect(flat.length).toBe(golden.logits.length);
    expect(Math.max(...flat.map((value, i) => Math.abs(value - golden.logits[i]!)))).toBeLessThan(2e-4);
    const last = (await coppiceJson(["logits", folder, ...ids]))["logits"] as number[][];
    expect(last.map((row) => row.length)).toEqual([spec.vocabSize, spec.vocabSize]);
    expect(Math.max(...last[1]!.map((value, i) => Math.abs(value - all[1]!.at(-1)![i]!)))).toBeLessThan(1e-4);

    const first = golden.sequences[0]!.join(",");
    const generated = await coppiceJson(["generate", folder, "--ids", first, "--max-tokens", "16"]);
    expect(generated["tokens"]).toEqual([...golden.greedy]);
    expect(generated["tokensPerSecond"]).toBeGreaterThan(0);
  });

  it("works from ids without a tokenizer", async () => {
    const { golden } = await loadFixture("mixtral");
    const fixture = fixturePath("mixtral");
    const first = golden.sequences[0]!.join(",");
    const generated = await coppiceJson(["generate", fixture, "--ids", first, "--max-tokens", "4"]);
    expect(generated["tokens"]).toEqual([...golden.greedy.slice(0, 4)]);
  });

  it("streams text to stdout and nothing else", async () => {
    const words = [
      "generate",
      model,
      "--prompt",
      "1 + 1 =",
      "--max-tokens",
      "12",
      "--temperature",
      "0.9",
      "--seed",
      "4",
    ];
    const json = await coppiceJson(words);
    const plain = await coppice(words);
    expect(plain.stdout).toBe(`${json["text"]}\n`);
    expect(plain.stderr).toMatch(/12 tokens/);
    expect((await coppice([...words, "--seed", "5"])).stdout).not.toBe(plain.stdout);
  });

  it("wants one input", async () => {
    for (const words of [[], ["--prompt", "a", "--ids", "1"]]) {
      expect((await coppice(["generate", model, ...words])).code).toBe(2);
    }
  });
});

describe("eval, calibrate, score", () => {
  it("scores a task with an interval, under a plan too", async () => {
    const score = await coppiceJson([
      "eval",
      model,
      "--task",
      task,
      "--metric",
      "perplexity",
      "--limit",
      "6",
    ]);
    expect(score).toMatchObject({ metric: "perplexity", samples: 6 });
    expect(score["low"]).toBeLessThan(score["value"] as number);
    expect(score["high"]).toBeGreaterThan(score["value"] as number);
    expect(score["seconds"]).toBeGreaterThan(0);
    const small = join(work, "for-eval");
    await coppiceJson(["prune", model, "--keep", "4", "--criterion", "random", "--out", small]);
    const args = ["--task", task, "--metric", "perplexity"];
    const planned = await coppiceJson(["eval", model, ...args, "--plan", join(small, "coppice.json")]);
    const written = await coppiceJson(["eval", small, ...args]);
    expect(planned["value"]).toBeCloseTo(written["value"] as number, 3);
    expect(planned["value"]).not.toBeCloseTo(score["value"] as number, 2);
  });

  it("collects statistics that criteria score from", async () => {
    const stats = join(work, "stats.safetensors");
    const made = await coppiceJson(["calibrate", model, "--data", task, "--out", stats]);
    const text = readFileSync(task, "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    const tokens = text.reduce((sum, { prompt, answer }) => sum + prompt.length + answer.length, 0);
    expect(made["tokens"]).toBe(tokens);
    const { scores } = await coppiceJson(["score", model, "--criterion", "frequency", "--stats", stats]);
    const rows = scores as number[][];
    expect(rows.map((row) => row.length)).toEqual([8, 8, 8]);
    for (const row of rows) expect(row.reduce((sum, score) => sum + score, 0)).toBe(2 * tokens);
    const direct = await coppiceJson(["score", model, "--criterion", "frequency", "--data", task]);
    expect(direct["scores"]).toEqual(rows);
    const prompts = await coppiceJson([
      "calibrate",
      model,
      "--data",
      task,
      "--out",
      `${stats}2`,
      "--kind",
      "prompts",
      "--limit",
      "2",
    ]);
    expect(prompts["tokens"]).toBe(text.slice(0, 2).reduce((sum, { prompt }) => sum + prompt.length, 0));
    expect((await coppice(["calibrate", model, "--data", task, "--out", stats])).stderr).toMatch(
      /COPPICE_IO_EXISTS/,
    );
  });
});

describe("prune, apply, verify", () => {
  it("write what they said they would, equal to the plan", async () => {
    const out = join(work, "pruned");
    const args = ["prune", model, "--keep", "4", "--criterion", "reap", "--data", task, "--out", out];
    const dry = await coppiceJson([...args, "--dry-run"]);
    expect(existsSync(out)).toBe(false);
    const pruned = await coppiceJson(args);
    expect(pruned).toMatchObject({ bytesBefore: 4 * 219_072, bytesAfter: 4 * 144_576 });
    expect({ ...pruned, dryRun: true }).toEqual(dry);
    const kept = pruned["files"] as { name: string; bytes: number }[];
    for (const { name, bytes } of kept) expect(readFileSync(join(out, name)).length).toBe(bytes);
    expect(await coppiceJson(["inspect", out])).toMatchObject({ experts: 4, bytes: pruned["bytesAfter"] });
    expect(await coppiceJson(["verify", model, out, "--task", task])).toMatchObject({ equal: true });

    const plan = join(out, "coppice.json");
    const again = join(work, "applied");
    const applied = await coppiceJson([
      "apply",
      model,
      "--plan",
      plan,
      "--out",
      again,
      "--max-shard-size",
      "300kB",
    ]);
    expect(applied["plan"]).toEqual(pruned["plan"]);
    expect((applied["files"] as unknown[]).length).toBeGreaterThan(kept.length);
    expect(await coppiceJson(["verify", model, again])).toMatchObject({ equal: true });
  });

  it("count other parts of the model before as after", async () => {
    const folder = copyModel(join(work, "with-tower"));
    const file = join(folder, "model.safetensors");
    const { header, data } = readSafetensors(file);
    const end = data.length + 4000;
    header["vision_tower.weight"] = { dtype: "F32", shape: [1000], data_offsets: [data.length, end] };
    writeSafetensors(file, header, Buffer.concat([data, Buffer.alloc(4000)]));
    const args = ["prune", folder, "--keep", "4", "--criterion", "random", "--out", join(work, "tower-out")];
    const { bytesBefore, bytesAfter } = await coppiceJson([...args, "--dry-run"]);
    expect({ bytesBefore, bytesAfter }).toEqual({
      bytesBefore: 4 * 219_072 + 4000,
      bytesAfter: 4 * 144_576 + 4000,
    });
  });

  it("refuse to write into the checkpoint that they read", async () => {
    const out = join(model, "inside");
    const args = ["prune", model, "--keep", "4", "--criterion", "random", "--out", out];
    expect((await coppice(args)).stderr).toMatch(/COPPICE_USAGE: .*lies inside the checkpoint/);
    expect(existsSync(out)).toBe(false);
  });

  it("compare tensor by tensor without running anything", async () => {
    const out = join(work, "by-tensor");
    await coppiceJson(["prune", model, "--keep", "4", "--criterion", "random", "--out", out]);
    const equal = await coppiceJson(["verify", model, out, "--tensors", "--backend", "none-such"]);
    expect(equal).toMatchObject({ equal: true, differences: [], plan: true });
    const path = join(out, "model.safetensors");
    const { header, data } = readSafetensors(path);
    const name = "model.layers.1.block_sparse_moe.experts.3.w2.weight";
    data.writeFloatLE(0.5, header[name]!.data_offsets[0]);
    writeSafetensors(path, header, data);
    const finished = await coppice(["verify", model, out, "--tensors"]);
    expect(finished.code).toBe(1);
    expect(finished.stdout).toMatch(new RegExp(`^DIFFERENT.*\ndiffers +${name} differs`, "m"));
  });

  it("write different numbers of experts per layer for this program, where stock runtimes cannot load them", async () => {
    const { fingerprint, family } = await coppiceJson(["inspect", model]);
    const layers = [
      { layer: 0, experts: [0, 1, 2, 3, 5] },
      { layer: 1, experts: [6, 7] },
    ];
    const plan = join(work, "uneven.json");
    writeFileSync(
      plan,
      JSON.stringify({ format: "coppice.plan", version: 1, model: { fingerprint, family }, layers }),
    );
    const out = join(work, "uneven");
    const refused = await coppice(["apply", model, "--plan", plan, "--out", out]);
    expect(refused.stderr).toMatch(/COPPICE_PLAN_EXPORT.*layer 0 has 5 experts and layer 1 has 2.*runtime/s);
    expect(existsSync(out)).toBe(false);
    await coppiceJson(["apply", model, "--plan", plan, "--out", out, "--layout", "runtime"]);
    expect(await coppiceJson(["inspect", out])).toMatchObject({ expertsByLayer: [5, 2, 8] });
    expect(await coppiceJson(["verify", model, out])).toMatchObject({ equal: true, maxAbsDiff: 0 });
    expect(await coppiceJson(["verify", model, out, "--tensors"])).toMatchObject({ equal: true });
  });

  it("write merged units and new router rows, and in the runtime layout skip rules, and verify them", async () => {
    const { fingerprint, family, hiddenSize } = await coppiceJson(["inspect", model]);
    const [{ width = 0 } = {}] = (await loadFixture("mixtral")).model.layers.flatMap(({ feedForward }) =>
      feedForward.kind === "moe" ? feedForward.experts : [],
    );
    const turned = Array.from({ length: width }, (_, unit) => (unit + 1) % width);
    const whole = Array.from({ length: width }, (_, unit) => unit);
    const units = [
      [
        { expert: 1, to: whole, rows: 0.75, columns: 0.75 },
        { expert: 4, to: turned, rows: 0.25, columns: 0.25 },
      ],
      null,
    ];
    const values = Float32Array.from({ length: 2 * (hiddenSize as number) }, (_, i) => Math.sin(i) / 4);
    const router = { weight: packFloats(values) };
    const layers = [0, 1, 2].map((layer) => ({ layer, experts: [1, 6], units, router }));
    const plan = join(work, "units.json");
    const write = (more: object) =>
      writeFileSync(
        plan,
        JSON.stringify({
          format: "coppice.plan",
          version: 1,
          model: { fingerprint, family },
          layers: layers.map((layer) => ({ ...layer, ...more })),
        }),
      );
    write({});
    const stock = join(work, "units");
    await coppiceJson(["apply", model, "--plan", plan, "--out", stock]);
    for (const how of [[], ["--tensors"]]) {
      expect(await coppiceJson(["verify", model, stock, ...how])).toMatchObject({ equal: true });
    }
    write({ skip: { rule: "ratio", threshold: 0.75 } });
    const skips = join(work, "skips");
    const refused = await coppice(["apply", model, "--plan", plan, "--out", skips]);
    expect(refused.stderr).toMatch(/COPPICE_PLAN_EXPORT.*skips experts by a rule.*runtime layout/s);
    await coppiceJson(["apply", model, "--plan", plan, "--out", skips, "--layout", "runtime"]);
    for (const how of [[], ["--tensors"]]) {
      expect(await coppiceJson(["verify", model, skips, ...how])).toMatchObject({ equal: true });
    }
    expect((await coppice(["inspect", skips])).stdout).toMatch(/skips experts +in 3 of 3 layers/);
    // The two differ in their rules alone, which verification must see.
    const finished = await coppice(["verify", model, stock, "--plan", plan, "--json"]);
    expect({ code: finished.code, ...finished.json() }).toMatchObject({ code: 1, equal: false });
  });

  it("needs no backend for criteria without data", async () => {
    const out = join(work, "no-backend");
    const args = ["prune", model, "--keep", "2", "--criterion", "weight-magnitude", "--out", out];
    expect(await coppiceJson([...args, "--backend", "none-such"])).toMatchObject({ bytesAfter: 4 * 107_328 });
  });

  it("verify ends with 1 when something differs", async () => {
    const out = join(work, "damaged");
    await coppiceJson(["prune", model, "--keep", "4", "--criterion", "random", "--out", out]);
    const path = join(out, "model.safetensors");
    const { header, data } = readSafetensors(path);
    const [begin] = header["lm_head.weight"]!.data_offsets;
    data.writeFloatLE(data.readFloatLE(begin) + 0.5, begin);
    writeSafetensors(path, header, data);
    const finished = await coppice(["verify", model, out, "--json"]);
    expect(finished.code).toBe(1);
    expect(finished.json()).toMatchObject({ equal: false, at: { token: 0 } });
    expect(finished.json()["maxAbsDiff"]).toBeGreaterThan(1e-3);
    expect((await coppice(["verify", model, out])).stdout).toMatch(/^DIFFERENT/);
  });

  it("verify asks for a plan that it cannot know", async () => {
    const other = copyModel(join(work, "other"));
    const path = join(other, "model.safetensors");
    const { header, data } = readSafetensors(path);
    data.writeFloatLE(3, header["lm_head.weight"]!.data_offsets[0]);
    writeSafetensors(path, header, data);
    expect((await coppice(["verify", model, other])).stderr).toMatch(/COPPICE_USAGE: .*coppice\.json/);
    expect(await coppiceJson(["verify", model, copyModel(join(work, "same"))])).toMatchObject({
      equal: true,
      maxAbsDiff: 0,
      plan: false,
    });
  });
});
