import { describe, expect, it } from "vitest";
import {
  bytesOf,
  editJson,
  editTensors,
  expectError,
  type Files,
  load,
  poison,
  rawSafetensors,
  text,
  tinyFiles,
} from "./helpers.js";

const model = "model.safetensors";
const index = "model.safetensors.index.json";

describe("bad files", () => {
  const cases: [
    string,
    (files: Files) => Files | Promise<Files>,
    Parameters<typeof expectError>[1],
    ...string[],
  ][] = [
    [
      "no config",
      (files) => drop(files, "config.json"),
      "COPPICE_FORMAT_MISSING_FILE",
      "config.json",
      "the folder",
    ],
    ["no weights", (files) => drop(files, model), "COPPICE_FORMAT_MISSING_FILE", model, index],
    [
      "pickle files only",
      (files) => drop(files, model).set("pytorch_model-00001-of-00002.bin", bytesOf("x")),
      "COPPICE_FORMAT_PICKLE",
      "pytorch_model-00001-of-00002.bin",
    ],
    [
      "weights of another name",
      (files) => drop(files, model).set("weights.safetensors", files.get(model)!),
      "COPPICE_FORMAT_MISSING_FILE",
      "weights.safetensors",
    ],
    [
      "a config that is no JSON",
      (files) => files.set("config.json", bytesOf("{,")),
      "COPPICE_FORMAT_CONFIG",
      "config.json",
    ],
    [
      "a config that is a list",
      (files) => files.set("config.json", bytesOf("[1]")),
      "COPPICE_FORMAT_CONFIG",
      "[1]",
    ],
    [
      "a truncated file",
      (files) => files.set(model, files.get(model)!.slice(0, -1)),
      "COPPICE_FORMAT_TRUNCATED",
      model,
    ],
    [
      "NaN",
      (files) => poison(files, "model.layers.1.block_sparse_moe.gate.weight", 13, 0x7fc0),
      "COPPICE_FORMAT_NAN",
      "model.layers.1.block_sparse_moe.gate.weight",
      "NaN at [1, 5]",
    ],
    [
      "infinity",
      (files) => poison(files, "model.norm.weight", 2, 0xff80),
      "COPPICE_FORMAT_NAN",
      "-Infinity at [2]",
    ],
    [
      "experts of one layer in different dtypes",
      (files) =>
        editTensors(files, (tensors) => {
          const name = "model.layers.1.block_sparse_moe.experts.2.w2.weight";
          tensors.set(name, { dtype: "F32", shape: [8, 6], bytes: new Uint8Array(192) });
        }),
      "COPPICE_FORMAT_DTYPE",
      "layer 1",
      "experts.0.w2.weight in BF16",
      "experts.2.w2.weight in F32",
    ],
    [
      "integer weights",
      (files) =>
        editTensors(files, (tensors) => {
          tensors.set("model.norm.weight", { dtype: "I8", shape: [8], bytes: new Uint8Array(8) });
        }),
      "COPPICE_FORMAT_DTYPE",
      "model.norm.weight",
      "I8",
    ],
  ];
  for (const [name, damage, code, ...parts] of cases) {
    it(`refuses ${name}`, async () => {
      const damaged = await damage(await tinyFiles());
      const all = async () => {
        const checkpoint = await load(damaged);
        for (const ref of checkpoint.tensors.values()) await checkpoint.weights.read(ref);
      };
      await expectError(all, code, ...parts);
    });
  }

  it("takes a single file before an index, as other loaders do", async () => {
    const files = (await tinyFiles()).set(index, bytesOf("nonsense"));
    expect((await load(files)).shards.map(({ name }) => name)).toEqual([model]);
  });
});

describe("shards", () => {
  const shards = () => tinyFiles({ maxShardBytes: 1200 });
  const first = "model-00001-of-00004.safetensors";
  const second = "model-00002-of-00004.safetensors";
  const editMap = (files: Files, edit: (map: Record<string, unknown>) => void) => {
    const map = (JSON.parse(text(files.get(index))) as { weight_map: Record<string, unknown> }).weight_map;
    edit(map);
    return editJson(files, index, { weight_map: map });
  };

  it("are read through the index", async () => {
    const files = await shards();
    const checkpoint = await load(files);
    expect(checkpoint.shards.map(({ name }) => name)).toContain(first);
    expect(checkpoint.shards).toHaveLength(4);
    expect(checkpoint.shards.map(({ size }) => size)).toEqual(
      checkpoint.shards.map(({ name }) => files.get(name)!.length),
    );
  });

  const cases: [string, (files: Files) => Files, Parameters<typeof expectError>[1], ...string[]][] = [
    ["a missing shard", (files) => drop(files, second), "COPPICE_FORMAT_MISSING_FILE", second],
    [
      "two missing shards",
      (files) => drop(drop(files, first), second),
      "COPPICE_FORMAT_MISSING_FILE",
      first,
      "1 of the other 3",
    ],
    [
      "a truncated shard",
      (files) => files.set(second, files.get(second)!.slice(0, -10)),
      "COPPICE_FORMAT_TRUNCATED",
      second,
    ],
    [
      "a tensor in another shard than the index says",
      (files) => editMap(files, (map) => Object.assign(map, { "model.embed_tokens.weight": second })),
      "COPPICE_FORMAT_INDEX",
      "model.embed_tokens.weight",
      first,
      second,
    ],
    [
      "a tensor that the index does not list",
      (files) => editMap(files, (map) => delete map["model.embed_tokens.weight"]),
      "COPPICE_FORMAT_INDEX",
      "does not list",
    ],
    [
      "a tensor that only the index lists",
      (files) => editMap(files, (map) => Object.assign(map, { "model.ghost": first })),
      "COPPICE_FORMAT_INDEX",
      "model.ghost",
      first,
    ],
    [
      "a tensor in two shards",
      (files) => files.set(second, files.get(first)!),
      "COPPICE_FORMAT_INDEX",
      first,
      second,
    ],
    [
      "a map that is a list",
      (files) => editJson(files, index, { weight_map: [] }),
      "COPPICE_FORMAT_INDEX",
      "weight_map",
    ],
    [
      "a number for a file",
      (files) => editMap(files, (map) => Object.assign(map, { x: 5 })),
      "COPPICE_FORMAT_INDEX",
      "5",
    ],
    ["an index that is no JSON", (files) => files.set(index, bytesOf("{")), "COPPICE_FORMAT_INDEX", "JSON"],
    ...["../x", "/etc/passwd", "a/b", "..\\x", "C:\\x", "C:x", "\\\\host\\x", "x\0y", "..", ""].map(
      (name): [string, (files: Files) => Files, "COPPICE_FORMAT_PATH", string] => [
        `the file name ${JSON.stringify(name)}`,
        (files) => editMap(files, (map) => Object.assign(map, { x: name })),
        "COPPICE_FORMAT_PATH",
        JSON.stringify(name),
      ],
    ),
  ];
  for (const [name, damage, code, ...parts] of cases) {
    it(`refuse ${name}`, async () => expectError(load(damage(await shards())), code, ...parts));
  }

  it("refuse an index of too many files", async () => {
    const map = Object.fromEntries(Array.from({ length: 10_001 }, (_, i) => [`t${i}`, `f${i}`]));
    const files = new Map([
      ["config.json", bytesOf("{}")],
      [index, bytesOf(JSON.stringify({ weight_map: map }))],
    ]);
    await expectError(load(files), "COPPICE_FORMAT_LIMIT", "10001");
  });

  it("refuse a header that lies about its length in any shard", async () => {
    const files = (await shards()).set(second, rawSafetensors({}, 0, 10n ** 7n));
    await expectError(load(files), "COPPICE_FORMAT_HEADER", second, "10000000");
  });
});

function drop(files: Files, name: string): Files {
  const rest = new Map(files);
  rest.delete(name);
  return rest;
}
