import { type JsonObject, type LoadedCheckpoint, parseJsonObject, readSmallFile } from "@coppice/checkpoint";
import { CoppiceError } from "@coppice/core";
import * as v from "valibot";
import { unsupported } from "./architecture.js";
import type { GgufValue } from "./header.js";
import { preTokenizerName } from "./pre-tokenizer.js";

/** Bytes of a tokenizer file that are read: published ones have up to some 40 MB. */
const tokenizerBytes = 128 << 20;

/** Kinds of tokens (`llama_token_type`). */
const tokenType = { normal: 1, control: 3, userDefined: 4, unused: 5 } as const;

const addedSchema = v.looseObject({
  id: v.pipe(v.number(), v.integer(), v.minValue(0)),
  content: v.string(),
  special: v.optional(v.boolean(), false),
});

const affix = v.nullish(v.literal(""));

const tokenizerSchema = v.looseObject({
  model: v.looseObject({
    type: v.literal("BPE"),
    // Not v.record, which leaves out keys such as "constructor".
    vocab: v.custom<Readonly<Record<string, number>>>(isVocabulary, "an object of token ids"),
    merges: v.array(v.union([v.string(), v.tuple([v.string(), v.string()])])),
    byte_fallback: v.optional(v.literal(false)),
    ignore_merges: v.optional(v.boolean(), false),
    continuing_subword_prefix: affix,
    end_of_word_suffix: affix,
  }),
  normalizer: v.nullish(v.looseObject({ type: v.literal("NFC") })),
  pre_tokenizer: v.unknown(),
  post_processor: v.unknown(),
  added_tokens: v.optional(v.array(addedSchema), []),
});

function isVocabulary(value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  return Object.values(value).every((id) => Number.isSafeInteger(id) && id >= 0);
}

type TokenizerJson = v.InferOutput<typeof tokenizerSchema>;

interface TokenizerOptions {
  readonly preTokenizer: string | undefined;
  readonly signal: AbortSignal | undefined;
}

/**
 * Keys that describe the tokenizer, with the names and values of llama.cpp's converter (`_set_vocab_gpt2`,
 * `SpecialVocab`): tokens by id, their types, merges, special tokens, the chat template.
 * @throws COPPICE_TOKENIZER when a file is missing or malformed, COPPICE_EXPORT_UNSUPPORTED for other tokenizers than
 * byte-level BPE
 */
export async function tokenizerMetadata(
  { folder, model, config: modelConfig }: LoadedCheckpoint,
  { preTokenizer, signal }: TokenizerOptions,
): Promise<[key: string, value: GgufValue][]> {
  const names = new Set((await folder.list()).map(({ name }) => name));
  if (!names.has("tokenizer.json")) {
    throw new CoppiceError("COPPICE_TOKENIZER", `tokenizer.json is not in ${folder.label}`, {
      hint: "copy the tokenizer files beside the weights: a GGUF file holds both",
    });
  }
  const read = (name: string) => readSmallFile(folder, name, tokenizerBytes, signal);
  const readJson = async (name: string) => parseJsonObject(await read(name), name, "COPPICE_TOKENIZER");
  const tokenizer = parseTokenizer(await readJson("tokenizer.json"));
  const config = names.has("tokenizer_config.json") ? await readJson("tokenizer_config.json") : {};
  const template = names.has("chat_template.jinja")
    ? new TextDecoder().decode(await read("chat_template.jinja"))
    : defaultTemplate(config.chat_template);
  const { tokens, types } = listTokens(tokenizer, model.vocabSize);
  const pre = preTokenizer ?? preTokenizerName(tokenizer.pre_tokenizer, tokenizer.model.ignore_merges);
  const special = specialTokens(tokenizer, config, {
    bos: modelConfig.bos_token_id ?? model.beginToken,
    eos: modelConfig.eos_token_id,
    pad: modelConfig.pad_token_id,
    firstEnd: model.endTokens[0],
  });
  return [
    ["tokenizer.ggml.model", { type: "string", value: "gpt2" }],
    ["tokenizer.ggml.pre", { type: "string", value: pre }],
    ["tokenizer.ggml.tokens", { type: "strings", value: tokens }],
    ["tokenizer.ggml.token_type", { type: "int32s", value: types }],
    ["tokenizer.ggml.merges", { type: "strings", value: tokenizer.model.merges.map(mergeText) }],
    ...special,
    ...(template === undefined
      ? []
      : [["tokenizer.chat_template", { type: "string", value: template }] as [string, GgufValue]]),
  ];
}

function parseTokenizer(json: JsonObject): TokenizerJson {
  const parsed = v.safeParse(tokenizerSchema, json);
  if (parsed.success) return parsed.output;
  const [issue] = parsed.issues;
  const path = v.getDotPath(issue) ?? "";
  throw unsupported(
    `tokenizer.json is not one of byte-level BPE: ${path} is ${issue.received}, expected ${issue.type === "custom" ? issue.message : issue.expected}`,
  );
}

/** Tokens by id; ids that stand for nothing get a name that no text gives. */
function listTokens(
  { model, added_tokens }: TokenizerJson,
  vocabSize: number,
): { tokens: string[]; types: number[] } {
  const tokens = Array.from({ length: vocabSize }, (_, id) => `[PAD${id}]`);
  const types = new Array<number>(vocabSize).fill(tokenType.unused);
  const place = (id: number, token: string, type: number) => {
    if (id >= vocabSize) {
      throw new CoppiceError(
        "COPPICE_TOKENIZER",
        `tokenizer.json gives ${JSON.stringify(token.slice(0, 60))} the id ${id}; the model has ${vocabSize} tokens`,
      );
    }
    tokens[id] = token;
    types[id] = type;
  };
  for (const [token, id] of Object.entries(model.vocab)) place(id, token, tokenType.normal);
  for (const { id, content, special } of added_tokens) {
    place(id, content, special || looksSpecial(content) ? tokenType.control : tokenType.userDefined);
  }
  return { tokens, types };
}

/** Tokens that some checkpoints forget to call special. */
function looksSpecial(token: string): boolean {
  return token === "<pad>" || token === "<mask>" || /^<\|.*\|>$/s.test(token) || /^<｜.*｜>$/s.test(token);
}

/** Both halves of a merge with a space between; bytes stand for themselves, so a space in one is written as its byte. */
function mergeText(merge: string | readonly [string, string]): string {
  return typeof merge === "string" ? merge : merge.map((part) => part.replaceAll(" ", "Ġ")).join(" ");
}

interface TokenIds {
  readonly bos: unknown;
  readonly eos: unknown;
  readonly pad: unknown;
  /** For an `eos` that is a list. */
  readonly firstEnd: number | undefined;
}

function specialTokens(
  { model, added_tokens, post_processor }: TokenizerJson,
  config: JsonObject,
  ids: TokenIds,
): [string, GgufValue][] {
  const idOf = (token: string | undefined) =>
    token === undefined
      ? undefined
      : (added_tokens.find(({ content }) => content === token)?.id ??
        (Object.hasOwn(model.vocab, token) ? model.vocab[token] : undefined));
  const named = (kind: string, fallback?: unknown) =>
    idOf(tokenText(config[`${kind}_token`])) ?? (typeof fallback === "number" ? fallback : undefined);
  const first = idOf(firstSpecial(post_processor));
  const bos = named("bos", first ?? ids.bos);
  const entries: [string, GgufValue][] = [];
  for (const [key, id] of [
    ["bos", bos],
    ["eos", named("eos", typeof ids.eos === "number" ? ids.eos : ids.firstEnd)],
    ["unknown", named("unk")],
    ["padding", named("pad", ids.pad)],
  ] as const) {
    if (id !== undefined) entries.push([`tokenizer.ggml.${key}_token_id`, { type: "uint32", value: id }]);
  }
  const stated = config.add_bos_token;
  const addsBegin = typeof stated === "boolean" ? stated : first !== undefined && first === bos;
  entries.push(["tokenizer.ggml.add_bos_token", { type: "bool", value: addsBegin }]);
  return entries;
}

const templateSchema = v.looseObject({
  type: v.literal("TemplateProcessing"),
  single: v.pipe(
    v.array(v.looseObject({ SpecialToken: v.optional(v.looseObject({ id: v.string() })) })),
    v.minLength(2),
  ),
});

/** The special token that a template puts before every text. */
function firstSpecial(postProcessor: unknown): string | undefined {
  const sequence = v.safeParse(v.looseObject({ processors: v.array(v.unknown()) }), postProcessor);
  for (const processor of sequence.success ? sequence.output.processors : [postProcessor]) {
    const template = v.safeParse(templateSchema, processor);
    if (template.success) return template.output.single[0]?.SpecialToken?.id;
  }
  return undefined;
}

/** Special tokens stand in the config as text or as `{ "content": text }`. */
function tokenText(value: unknown): string | undefined {
  const parsed = v.safeParse(v.union([v.string(), v.looseObject({ content: v.string() })]), value);
  if (!parsed.success) return undefined;
  return typeof parsed.output === "string" ? parsed.output : parsed.output.content;
}

/** The text, or the one called "default" of several. */
function defaultTemplate(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  const named = v.array(v.looseObject({ name: v.string(), template: v.string() }));
  const parsed = v.safeParse(named, value);
  return parsed.success ? parsed.output.find(({ name }) => name === "default")?.template : undefined;
}
