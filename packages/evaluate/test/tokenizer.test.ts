import { readFileSync } from "node:fs";
import { createTokenizer } from "@coppice/evaluate";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { byteTokenizer, byteTokenizerFiles } from "./byte-tokenizer.js";
import { demoTokenizer } from "./demo-files.js";

const beginTemplate = {
  type: "TemplateProcessing",
  single: [{ SpecialToken: { id: "<begin>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
  pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
  special_tokens: { "<begin>": { id: "<begin>", ids: [1], tokens: ["<begin>"] } },
};
const endTemplate = { ...beginTemplate, single: [...beginTemplate.single].reverse() };

describe("createTokenizer", () => {
  it("gives the ids and texts of the reference implementation", () => {
    const tokenizer = demoTokenizer();
    const cases = JSON.parse(readFileSync(new URL("golden-tokens.json", import.meta.url), "utf8"));
    expect(cases.length).toBeGreaterThan(40);
    for (const { text, ids } of cases) {
      expect([...tokenizer.encode(text)]).toEqual(ids);
      expect(tokenizer.decode(ids, { special: true })).toBe(text);
    }
    expect(tokenizer).toMatchObject({ endToken: 0, size: 4096, hasChatTemplate: false });
    expect(tokenizer.beginToken).toBeUndefined();
  });

  it("brings back every text", () => {
    const tokenizer = byteTokenizer({
      merges: [
        ["a", "b"],
        ["ab", "c"],
      ],
    });
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), (text) => {
        expect(tokenizer.decode(tokenizer.encode(text, { special: false }))).toBe(text);
      }),
      { numRuns: 300 },
    );
  });

  it("adds the special tokens that the files ask for, before a text only", () => {
    const ids = (options: Parameters<typeof byteTokenizer>[0]) => [...byteTokenizer(options).encode("a")];
    const a = 2 + 97;
    expect(ids({})).toEqual([a]);
    expect(ids({ config: { add_bos_token: true } })).toEqual([1, a]);
    expect(ids({ postProcessor: beginTemplate })).toEqual([1, a]);
    expect(ids({ postProcessor: beginTemplate, config: { add_bos_token: true } })).toEqual([1, a]);
    expect(ids({ postProcessor: beginTemplate, config: { add_bos_token: false } })).toEqual([a]);
    expect(ids({ postProcessor: endTemplate })).toEqual([a]);
    const tokenizer = byteTokenizer({ postProcessor: beginTemplate });
    expect([...tokenizer.encode("a", { special: false })]).toEqual([a]);
    expect([...tokenizer.encode("")]).toEqual([1]);
  });

  it("decodes parts of characters, unknown ids and special tokens", () => {
    const tokenizer = byteTokenizer();
    const euro = tokenizer.encode("€");
    expect(euro).toHaveLength(3);
    expect(tokenizer.decode(euro.subarray(0, 2))).toMatch(/^\ufffd+$/);
    expect(tokenizer.decode([0, 2 + 97, 9999])).toBe("a");
    expect(tokenizer.decode([0, 2 + 97], { special: true })).toBe("<end>a");
    expect(tokenizer.decode([])).toBe("");
  });

  it("refuses broken files", () => {
    const { tokenizer, config } = byteTokenizerFiles();
    for (const files of [
      { tokenizer: "{" },
      { tokenizer: "[]" },
      { tokenizer: "{}" },
      { tokenizer: '{"model": {"type": "Magic"}}' },
      { tokenizer, config: "nope" },
    ]) {
      expect(() => createTokenizer(files)).toThrow(expect.objectContaining({ code: "COPPICE_TOKENIZER" }));
    }
    expect(createTokenizer({ tokenizer, config }).endToken).toBe(0);
  });
});

describe("chat templates", () => {
  const template =
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
  const rendered = "<begin>[user] hi\n[assistant]";
  const messages = [{ role: "user", content: "hi" }] as const;

  it.each([
    ["text in the config", { config: { chat_template: template } }],
    [
      "a list in the config",
      {
        config: {
          chat_template: [
            { name: "rag", template: "no" },
            { name: "default", template },
          ],
        },
      },
    ],
    ["a file, which goes first", { chatTemplate: template, config: { chat_template: "no" } }],
  ])("are read from %s", (_, options) => {
    const tokenizer = byteTokenizer(options);
    expect(tokenizer.hasChatTemplate).toBe(true);
    expect(tokenizer.renderChat(messages)).toBe(rendered);
    expect(tokenizer.encode(tokenizer.renderChat(messages), { special: false })[0]).toBe(1);
  });

  it.each([
    ["none", undefined, /no chat template/],
    ["one that does not parse", "{% for %}", /does not parse/],
    ["one that refuses", "{{ raise_exception('roles must alternate') }}", /roles must alternate/],
    [
      "nested endless loops",
      "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
      /takes more than/,
    ],
    ["a huge range", "{% for a in range(1000000000) %}{% endfor %}", /limit is 100000/],
    [
      "text that doubles",
      "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
      /characters; the limit/,
    ],
    ["endless recursion", "{% macro f(g) %}{{ g(g) }}{% endmacro %}{{ f(f) }}", /takes more than|stack/],
  ])("fail with a reason: %s", (_, chatTemplate, reason) => {
    const tokenizer = byteTokenizer(chatTemplate === undefined ? {} : { chatTemplate });
    expect(() => tokenizer.renderChat(messages)).toThrow(
      expect.objectContaining({ code: "COPPICE_TOKENIZER", message: expect.stringMatching(reason) }),
    );
  });
});
