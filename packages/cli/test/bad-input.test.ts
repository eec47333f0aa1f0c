import { cpSync, existsSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { coppice, coppiceHere, coppiceJson } from "./cli.js";
import { copyModel, readSafetensors, workshop, writeSafetensors, writeTask } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));
const weights = "model.safetensors";
let count = 0;

/** A copy of the model with something wrong in it. */
function broken(damage: (folder: string) => void): string {
  const folder = join(work, `broken-${count++}`);
  cpSync(model, folder, { recursive: true });
  damage(folder);
  return folder;
}

function edited(name: string, edit: (json: Record<string, unknown>) => void): (folder: string) => void {
  return (folder) => {
    const json = JSON.parse(readFileSync(join(folder, name), "utf8"));
    edit(json);
    writeFileSync(join(folder, name), JSON.stringify(json));
  };
}

function tensors(edit: (file: ReturnType<typeof readSafetensors>) => void): (folder: string) => void {
  return (folder) => {
    const file = readSafetensors(join(folder, weights));
    edit(file);
    writeSafetensors(join(folder, weights), file.header, file.data);
  };
}

/** Splits the one file into an index and a shard. */
function sharded(index: (names: string[]) => Record<string, string>): (folder: string) => void {
  return (folder) => {
    const { header } = readSafetensors(join(folder, weights));
    renameSync(join(folder, weights), join(folder, "model-00001-of-00001.safetensors"));
    const names = Object.keys(header).filter((name) => name !== "__metadata__");
    writeFileSync(
      join(folder, "model.safetensors.index.json"),
      JSON.stringify({ metadata: {}, weight_map: index(names) }),
    );
  };
}

const everyTensorIn = (file: string) => (names: string[]) =>
  Object.fromEntries(names.map((name) => [name, file]));
const some = "model.layers.1.self_attn.q_proj.weight";

/** What is wrong, the code, and what the message must hold besides. */
const models: readonly [what: string, damage: (folder: string) => void, code: string, message: RegExp][] = [
  ["no weights", (f) => rmSync(join(f, weights)), "COPPICE_FORMAT_MISSING_FILE", /safetensors/],
  [
    "a missing shard",
    sharded(everyTensorIn("model-00002-of-00002.safetensors")),
    "COPPICE_FORMAT_MISSING_FILE",
    /model-00002-of-00002/,
  ],
  [
    "a truncated shard",
    (f) => truncateSync(join(f, weights), 500_000),
    "COPPICE_FORMAT_TRUNCATED",
    /500000|887200/,
  ],
  [
    "a header length beyond the file",
    (f) => {
      const { header, data } = readSafetensors(join(f, weights));
      writeSafetensors(join(f, weights), header, data, 90_000_000n);
    },
    "COPPICE_FORMAT_(TRUNCATED|HEADER)",
    /90000000/,
  ],
  [
    "a header length beyond any memory",
    (f) => {
      const { header, data } = readSafetensors(join(f, weights));
      writeSafetensors(join(f, weights), header, data, 1n << 62n);
    },
    "COPPICE_FORMAT_(LIMIT|HEADER|TRUNCATED)",
    /./,
  ],
  [
    "overlapping offsets",
    tensors(({ header }) => {
      const names = Object.keys(header).filter((name) => name !== "__metadata__");
      const [a, b] = names.map((name) => header[name]!).filter(({ shape }) => String(shape) === "64,64");
      b!.data_offsets = a!.data_offsets;
    }),
    "COPPICE_FORMAT_OFFSETS",
    /./,
  ],
  [
    "offsets outside the file",
    tensors(({ header, data }) => {
      header[some]!.data_offsets = [data.length, data.length + 4 * 64 * 64];
    }),
    "COPPICE_FORMAT_(OFFSETS|TRUNCATED)",
    /./,
  ],
  [
    "a shape that its bytes do not fit",
    tensors(({ header }) => {
      header[some]!.shape = [64, 65];
    }),
    "COPPICE_FORMAT_SHAPE",
    /q_proj/,
  ],
  [
    "an index that leaves the folder",
    sharded(everyTensorIn("../model/model.safetensors")),
    "COPPICE_FORMAT_PATH",
    /\.\.\/model/,
  ],
  ["an index with an absolute path", sharded(everyTensorIn("/etc/passwd")), "COPPICE_FORMAT_PATH", /etc/],
  [
    "pickle files only",
    (f) => renameSync(join(f, weights), join(f, "pytorch_model.bin")),
    "COPPICE_FORMAT_PICKLE",
    /pytorch_model\.bin/,
  ],
  [
    "an unknown family",
    edited("config.json", (config) => {
      config["model_type"] = "bert";
      config["architectures"] = ["BertModel"];
    }),
    "COPPICE_FAMILY_UNKNOWN",
    /bert/,
  ],
  [
    "config.json that is no JSON",
    (f) => writeFileSync(join(f, "config.json"), "{"),
    "COPPICE_FORMAT_CONFIG",
    /config\.json/,
  ],
  [
    "a config without a needed key",
    edited("config.json", (config) => {
      delete config["num_attention_heads"];
    }),
    "COPPICE_FORMAT_CONFIG",
    /num_attention_heads/,
  ],
  [
    "a tensor that is missing",
    tensors(({ header }) => {
      const entry = header[some]!;
      delete header[some];
      header["something.else"] = entry;
    }),
    "COPPICE_FORMAT_MISSING_TENSOR|COPPICE_FAMILY_UNKNOWN",
    /q_proj/,
  ],
];

describe("a bad model file", () => {
  it.each(models)("%s", async (_, damage, code, message) => {
    const out = join(work, `out-${count}`);
    const folder = broken(damage);
    const args = ["prune", folder, "--keep", "4", "--criterion", "random", "--out", out, "--json"];
    const { code: exit, stderr, json } = await coppice(args);
    expect(stderr).toMatch(new RegExp(`^error (${code}): `));
    expect(stderr).toMatch(message);
    expect(exit).toBe(4);
    expect(json()).toMatchObject({
      error: { code: expect.stringMatching(code), message: expect.stringMatching(message) },
    });
    expect(existsSync(out)).toBe(false);
  });

  it("NaN weights, named", async () => {
    const folder = broken(
      tensors(({ header, data }) => {
        data.writeFloatLE(Number.NaN, header[some]!.data_offsets[0] + 40);
      }),
    );
    const finished = await coppice(["logits", folder, "--ids", "1,2"]);
    expect(finished.stderr).toMatch(/COPPICE_FORMAT_NAN: .*model\.layers\.1\.self_attn\.q_proj\.weight/);
    expect([finished.code, finished.stdout]).toEqual([4, ""]);
  });

  it.each([
    ["a matrix", some],
    ["a norm", "model.layers.0.input_layernorm.weight"],
    ["an embedding", "model.embed_tokens.weight"],
    ["a router", "model.layers.1.block_sparse_moe.gate.weight"],
  ])("NaN in %s, before anything is quantized or exported", async (_, name) => {
    const folder = broken(
      tensors(({ header, data }) => {
        data.writeFloatLE(Number.NaN, header[name]!.data_offsets[0] + 4);
      }),
    );
    const commands = [
      ["quantize", folder, "--group", "16"],
      ["export", folder, "--format", "onnx"],
    ];
    for (const command of commands) {
      const out = join(work, `nan-${count++}`);
      const { code, stderr } = await coppiceHere([...command, "--out", out]);
      expect([code, stderr]).toEqual([4, expect.stringContaining("COPPICE_FORMAT_NAN")]);
      expect(stderr).toContain(name);
      expect(existsSync(out)).toBe(false);
    }
  });

  it("a folder that does not exist", async () => {
    const finished = await coppice(["inspect", join(work, "nowhere")]);
    expect(finished.stderr).toMatch(/nowhere/);
    expect(finished.code).toBe(4);
  });

  it("but __proto__ is a legal tensor name", async () => {
    const folder = broken((f) => {
      const file = readSafetensors(join(f, weights));
      const text = JSON.stringify(file.header).replace(
        /^\{/,
        `{"__proto__":{"dtype":"F32","shape":[2],"data_offsets":[${file.data.length},${file.data.length + 8}]},`,
      );
      const length = Buffer.alloc(8);
      length.writeBigUInt64LE(BigInt(text.length));
      writeFileSync(join(f, weights), Buffer.concat([length, Buffer.from(text), file.data, Buffer.alloc(8)]));
    });
    const out = join(work, "proto");
    await coppiceJson(["prune", folder, "--keep", "4", "--criterion", "random", "--out", out]);
    expect(await coppiceJson(["inspect", out])).toMatchObject({ experts: 4 });
  });
});

const task = writeTask(join(work, "task.jsonl"), 12);
const file = (name: string, text: string) => {
  writeFileSync(join(work, name), text);
  return join(work, name);
};
const long = `${"1 ".repeat(400)}=`;

/** Arguments, the code, and what the message must hold besides. */
const commands: readonly [what: string, args: () => string[], code: string, message: RegExp][] = [
  [
    "an empty task",
    () => ["eval", model, "--task", file("empty.jsonl", "\n\n")],
    "COPPICE_TASK_EMPTY",
    /empty\.jsonl/,
  ],
  [
    "a malformed line",
    () => ["eval", model, "--task", file("bad.jsonl", '{"prompt": "a", "answer": "b"}\n{"prompt": 1}\n')],
    "COPPICE_TASK_LINE",
    /line 2/,
  ],
  [
    "a line that is no JSON",
    () => [
      "calibrate",
      model,
      "--data",
      file("text.jsonl", '{"text": "a b"}\n\nhello\n'),
      "--out",
      join(work, "s1"),
    ],
    "COPPICE_TASK_LINE",
    /line 3/,
  ],
  [
    "a sample longer than the context",
    () => ["eval", model, "--task", file("long.jsonl", JSON.stringify({ prompt: long, answer: " 1" }))],
    "COPPICE_TASK_TOO_LONG",
    /512/,
  ],
  [
    "a metric that does not fit",
    () => ["eval", model, "--task", task, "--metric", "choice-accuracy"],
    "COPPICE_TASK_METRIC",
    /exact-match/,
  ],
  [
    "a task that is not there",
    () => ["eval", model, "--task", join(work, "none.jsonl")],
    "COPPICE_USAGE",
    /none\.jsonl/,
  ],
  [
    "keep below top-k",
    () => ["prune", model, "--keep", "1", "--criterion", "random", "--out", join(work, "o1")],
    "COPPICE_PLAN_KEEP",
    /keep=1.*top-k=2/,
  ],
  [
    "keep above the experts",
    () => ["search", model, "--keep", "9", "--task", task, "--out", join(work, "o2")],
    "COPPICE_PLAN_KEEP",
    /keep=9.*8 experts/,
  ],
  [
    "a plan that is no plan",
    () => ["apply", model, "--plan", file("plan0.json", '{"a": 1}'), "--out", join(work, "o3")],
    "COPPICE_PLAN_INVALID",
    /./,
  ],
  [
    "statistics for a criterion that needs them",
    () => ["score", model, "--criterion", "reap"],
    "COPPICE_USAGE",
    /--stats.*--data/,
  ],
  [
    "a statistics file that is none",
    () => ["score", model, "--stats", task],
    "COPPICE_STATS_FORMAT",
    /task\.jsonl/,
  ],
  [
    "a limit of data beside a statistics file",
    () => ["score", model, "--stats", task, "--limit", "3"],
    "COPPICE_USAGE",
    /--limit.*--stats/,
  ],
  [
    "holdout and search that share samples",
    () => ["search", model, "--keep", "4", "--task", task, "--holdout", task, "--out", join(work, "o4")],
    "COPPICE_TASK_OVERLAP",
    /task\.jsonl/,
  ],
  [
    "a task too small to split",
    () => [
      "search",
      model,
      "--keep",
      "4",
      "--task",
      file("one.jsonl", '{"prompt": "a", "answer": " b"}'),
      "--out",
      join(work, "o5"),
    ],
    "COPPICE_TASK_EMPTY",
    /./,
  ],
  [
    "a token outside the vocabulary",
    () => ["logits", model, "--ids", "1,256"],
    "COPPICE_USAGE",
    /256.*0 to 255/,
  ],
  ["an unknown command", () => ["prone"], "COPPICE_USAGE", /prune/],
  ["an unknown option", () => ["inspect", model, "--kep", "4"], "COPPICE_USAGE", /--keep/],
  ["no number", () => ["inspect", model, "--keep", "four"], "COPPICE_USAGE", /whole number/],
  ["a missing option", () => ["search", model, "--keep", "4"], "COPPICE_USAGE", /--task|--out/],
  [
    "options that a strategy does not know",
    () => ["search", model, "--keep", "4", "--task", task, "--out", join(work, "o6"), "--set", "sped=3"],
    "COPPICE_PLUGIN_OPTIONS",
    /sped/,
  ],
  [
    "an output that exists",
    () => ["prune", model, "--keep", "4", "--criterion", "random", "--out", model],
    "COPPICE_IO_EXISTS",
    /model/,
  ],
  [
    "a run folder that is none",
    () => ["search", model, "--keep", "4", "--task", task, "--out", model],
    "COPPICE_IO_EXISTS",
    /model/,
  ],
];

describe("a command that cannot be done", () => {
  it.each(commands)("%s", async (_, args, code, message) => {
    const words = args();
    const finished = await coppice(words);
    expect(finished.stderr).toMatch(new RegExp(`(^|\\n)error ${code}: `));
    expect(finished.stderr).toMatch(message);
    expect(finished.code).toBe(2);
    expect(finished.stdout).toBe("");
    const out = words[words.indexOf("--out") + 1] ?? "";
    if (words.includes("--out") && out !== model)
      expect([out, existsSync(join(out, "config.json"))]).toEqual([out, false]);
  });

  it("a search whose strategy refuses its options, which leaves no run folder behind", async () => {
    const out = join(work, "refused");
    const args = ["search", model, "--keep", "4", "--task", task, "--out", out, "--set", "sped=3"];
    expect((await coppice(args)).stderr).toMatch(/^error COPPICE_PLUGIN_OPTIONS: /);
    expect(existsSync(out)).toBe(false);
  });

  it("a plan of another model", async () => {
    const other = copyModel(join(work, "qwen"), "qwen3_moe");
    const out = join(work, "small");
    await coppiceJson(["prune", model, "--keep", "4", "--criterion", "random", "--out", out]);
    const finished = await coppice([
      "apply",
      other,
      "--plan",
      join(out, "coppice.json"),
      "--out",
      join(work, "never"),
    ]);
    expect(finished.stderr).toMatch(/COPPICE_PLAN_MODEL: .*mixtral.*qwen3_moe/);
    expect(finished.code).toBe(2);
    expect(existsSync(join(work, "never"))).toBe(false);
  });

  it("names that could act on a terminal are shown, not obeyed", async () => {
    const finished = await coppice(["inspect", join(work, "\u001b]0;title\u0007")]);
    expect(finished.code).toBe(4);
    expect(finished.stderr).not.toContain("\u001b");
    expect(finished.stderr).toContain("\\u001b");
  });
});
