import { type JsonObject, type LoadedCheckpoint, parseJsonObject, readSmallFile } from "@coppice/checkpoint";
import { CoppiceError } from "@coppice/core";
import * as v from "valibot";
import type { GgufValue } from "./header.js";
import { parseTokenizer, type TokenizerJson } from "./tokenizer-json.js";
import { vocabularyMetadata } from "./vocabulary.js";

/** Bytes of a tokenizer file that are read: published ones have up to some 40 MB. */
const tokenizerBytes = 128 << 20;

interface TokenizerOptions {
  readonly preTokenizer: string | undefined;
  readonly signal: AbortSignal | undefined;
}

/**
 * Keys that describe the tokenizer, with the names and values of llama.cpp's converter (`_set_vocab_gpt2`,
 * `SpecialVocab`): the vocabulary, special tokens, the chat template.
 * @throws COPPICE_TOKENIZER when a file is missing or malformed, COPPICE_EXPORT_UNSUPPORTED for other tokenizers than
 * BPE of bytes or of SentencePiece
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
  const special = specialTokens(tokenizer, config, {
    bos: modelConfig.bos_token_id ?? model.beginToken,
    eos: modelConfig.eos_token_id,
    pad: modelConfig.pad_token_id,
    firstEnd: model.endTokens[0],
  });
  return [
    ...vocabularyMetadata(tokenizer, model.vocabSize, preTokenizer),
    ...special,
    ...(template === undefined
      ? []
      : [["tokenizer.chat_template", { type: "string", value: template }] as [string, GgufValue]]),
  ];
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
