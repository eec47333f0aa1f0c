import { describe, expect, it } from "vitest";
import { exportGguf, type Files, fixtureFiles } from "./checkpoint.js";

type Json = Record<string, unknown>;

async function metadataOf(edit: (files: Files) => unknown, preTokenizer?: string) {
  const files = await fixtureFiles("mixtral");
  edit(files);
  return (await exportGguf(await files.load(), preTokenizer === undefined ? {} : { preTokenizer })).metadata;
}

const editModel = (edit: (model: Json) => void) => (files: Files) =>
  files.json("tokenizer.json", ({ model }) => edit(model as Json));

describe("a byte-level BPE tokenizer", () => {
  it("has its tokens by id, their types and its merges", async () => {
    const metadata = await metadataOf(() => {});
    const tokens = metadata["tokenizer.ggml.tokens"] as string[];
    const types = metadata["tokenizer.ggml.token_type"] as number[];
    expect(tokens).toHaveLength(256);
    expect(tokens.slice(0, 5)).toEqual(["<pad>", "<s>", "</s>", "constructor", "!"]);
    expect(types.slice(0, 5)).toEqual([3, 3, 3, 1, 1]);
    // Not called special but clearly so; a user's own; ids without a token.
    expect([tokens[250], types[250]]).toEqual(["<|tool|>", 3]);
    expect([tokens[252], types[252]]).toEqual(["[note]", 4]);
    expect([tokens[255], types[255]]).toEqual(["[PAD255]", 5]);
    expect(metadata["tokenizer.ggml.merges"]).toEqual(["a b", "ab c"]);
    expect(metadata).toMatchObject({
      "tokenizer.ggml.model": "gpt2",
      "tokenizer.ggml.pre": "smollm",
      "tokenizer.ggml.bos_token_id": 1,
      "tokenizer.ggml.eos_token_id": 2,
      "tokenizer.ggml.padding_token_id": 0,
      "tokenizer.ggml.add_bos_token": true,
      "tokenizer.chat_template": "{{ messages[0].content }}",
    });
  });

  it("writes the byte of a space in a merge", async () => {
    const metadata = await metadataOf(editModel((model) => (model["merges"] = [[" ", "a"]])));
    expect(metadata["tokenizer.ggml.merges"]).toEqual(["Ġ a"]);
  });

  it("adds no begin token that the config turns off, and takes ids of config.json", async () => {
    const metadata = await metadataOf((files) =>
      files
        .set("tokenizer_config.json", {
          add_bos_token: false,
          chat_template: [{ name: "default", template: "x" }],
        })
        .json("tokenizer.json", (json) => (json["post_processor"] = null))
        .json("config.json", (config) => (config["eos_token_id"] = [9, 8]))
        .json("generation_config.json", (config) => (config["eos_token_id"] = [7, 8])),
    );
    expect(metadata).toMatchObject({
      "tokenizer.ggml.bos_token_id": 1,
      "tokenizer.ggml.eos_token_id": 7,
      "tokenizer.ggml.padding_token_id": 0,
      "tokenizer.ggml.add_bos_token": false,
      "tokenizer.chat_template": "x",
    });
  });

  it("takes the template of its own file first", async () => {
    const metadata = await metadataOf((files) => files.set("chat_template.jinja", "{{ own }}"));
    expect(metadata["tokenizer.chat_template"]).toBe("{{ own }}");
  });
});

describe("pre-tokenizers", () => {
  const split = (regex: string) => ({
    type: "Sequence",
    pretokenizers: [
      { type: "Split", pattern: { Regex: regex }, behavior: "Isolated", invert: false },
      { type: "ByteLevel", add_prefix_space: false, use_regex: false },
    ],
  });
  // As in tokenizer.json of Qwen3-30B-A3B and of Llama-3.
  const qwen =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  const llama = qwen.replace("\\p{N}|", "\\p{N}{1,3}|");
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, use_regex: true };
  it.each([
    ["gpt-2", byteLevel, false],
    ["qwen2", split(qwen), false],
    ["llama-bpe", split(llama), true],
    ["dbrx", split(llama), false],
  ])("%s is recognized", async (name, json, ignoreMerges) => {
    const metadata = await metadataOf((files) =>
      files.json("tokenizer.json", (tokenizer) => {
        tokenizer["pre_tokenizer"] = json;
        (tokenizer["model"] as Json)["ignore_merges"] = ignoreMerges;
      }),
    );
    expect(metadata["tokenizer.ggml.pre"]).toBe(name);
  });

  it.each([
    ["another expression", split("\\w+"), /splits text by \\w\+, for which/],
    ["a space before the text", { type: "ByteLevel" }, /add_prefix_space|ByteLevel/],
    ["none", null, /splits text by null/],
  ])("%s is refused, unless its name is given", async (_, json, message) => {
    const edit = (files: Files) =>
      files.json("tokenizer.json", (tokenizer) => (tokenizer["pre_tokenizer"] = json));
    await expect(metadataOf(edit)).rejects.toMatchObject({
      code: "COPPICE_EXPORT_UNSUPPORTED",
      message: expect.stringMatching(message),
      hint: expect.stringContaining("qwen2"),
    });
    expect((await metadataOf(edit, "mine"))["tokenizer.ggml.pre"]).toBe("mine");
  });
});

describe("a SentencePiece tokenizer", () => {
  const words = ["<unk>", "<s>", "</s>", "<0x00>", "<0x0A>", "▁", "a", "b", "ab", "▁a", "▁ab"];
  const edit = (rest: Json) => (files: Files) =>
    files.set("tokenizer_config.json", { bos_token: "<s>", unk_token: "<unk>" }).set("tokenizer.json", {
      added_tokens: [0, 1, 2].map((id) => ({ id, content: words[id], special: true })),
      normalizer: {
        type: "Sequence",
        normalizers: [
          { type: "Prepend", prepend: "▁" },
          { type: "Replace", pattern: { String: " " }, content: "▁" },
        ],
      },
      pre_tokenizer: null,
      post_processor: null,
      model: {
        type: "BPE",
        vocab: Object.fromEntries(words.map((word, id) => [word, id])),
        // Two ways to "▁ab": the first one counts.
        merges: ["a b", "▁ a", "▁ ab", "▁a b"],
        unk_token: "<unk>",
        byte_fallback: true,
      },
      ...rest,
    });

  it("has scores in the order of its merges, and types of bytes", async () => {
    const metadata = await metadataOf(edit({}));
    expect(metadata).toMatchObject({
      "tokenizer.ggml.model": "llama",
      "tokenizer.ggml.pre": "default",
      "tokenizer.ggml.add_space_prefix": true,
      "tokenizer.ggml.unknown_token_id": 0,
      "tokenizer.ggml.add_bos_token": false,
    });
    expect((metadata["tokenizer.ggml.scores"] as number[]).slice(0, 11)).toEqual([
      -4, -4, -4, -4, -4, -4, -4, -4, -0, -1, -2,
    ]);
    expect((metadata["tokenizer.ggml.token_type"] as number[]).slice(0, 12)).toEqual([
      2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 5,
    ]);
    expect(metadata).not.toHaveProperty("tokenizer.ggml.merges");
  });

  it.each([
    [{ prepend_scheme: "first" }, true],
    [{ prepend_scheme: "never", split: false }, false],
  ])("reads Metaspace %j", async (scheme, addsSpace) => {
    const pre_tokenizer = { type: "Metaspace", replacement: "▁", ...scheme };
    const metadata = await metadataOf(edit({ normalizer: null, pre_tokenizer }));
    expect(metadata["tokenizer.ggml.add_space_prefix"]).toBe(addsSpace);
  });

  it.each([
    [{ normalizer: { type: "NFKC" } }, /normalizer\.type is "NFKC", expected "Sequence"/],
    [
      { pre_tokenizer: { type: "ByteLevel" }, normalizer: null },
      /pre_tokenizer\.type is "ByteLevel", expected "Metaspace"/,
    ],
    [
      { pre_tokenizer: { type: "Metaspace", replacement: "▁", split: true }, normalizer: null },
      /split is true/,
    ],
  ])("refuses %j", async (rest, message) => {
    await expect(metadataOf(edit(rest))).rejects.toMatchObject({
      code: "COPPICE_EXPORT_UNSUPPORTED",
      message: expect.stringMatching(message),
    });
  });
});

describe("other tokenizers are refused", () => {
  it.each<[string, string, (files: Files) => unknown, RegExp]>([
    [
      "none",
      "COPPICE_TOKENIZER",
      (files) => files.files.delete("tokenizer.json"),
      /tokenizer\.json is not in/,
    ],
    ["no JSON", "COPPICE_TOKENIZER", (files) => files.set("tokenizer.json", "{"), /not valid JSON/],
    [
      "an id beyond the model",
      "COPPICE_TOKENIZER",
      editModel((model) => Object.assign(model["vocab"] as Json, { far: 256 })),
      /"far" the id 256; the model has 256 tokens/,
    ],
    [
      "Unigram",
      "COPPICE_EXPORT_UNSUPPORTED",
      editModel((model) => (model["type"] = "Unigram")),
      /model\.type is "Unigram", expected "BPE"/,
    ],
    [
      "ids that are none",
      "COPPICE_EXPORT_UNSUPPORTED",
      editModel((model) => (model["vocab"] = { a: -1 })),
      /model\.vocab .* token ids/,
    ],
    [
      "lower case",
      "COPPICE_EXPORT_UNSUPPORTED",
      (files) => files.json("tokenizer.json", (json) => (json["normalizer"] = { type: "Lowercase" })),
      /normalizer\.type is "Lowercase", expected "NFC"/,
    ],
  ])("%s", async (_, code, edit, message) => {
    await expect(metadataOf(edit)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });
});
