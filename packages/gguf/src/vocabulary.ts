import * as v from "valibot";
import type { GgufValue } from "./header.js";
import { preTokenizerName } from "./pre-tokenizer.js";
import { listTokens, type TokenList } from "./token-list.js";
import { mergeParts, parsePart, type TokenizerJson } from "./tokenizer-json.js";

type Entries = [key: string, value: GgufValue][];

/**
 * Keys of the vocabulary, for both kinds of BPE: `gpt2`, whose alphabet is that of bytes, and `llama`, SentencePiece, whose
 * spaces are "▁" and whose other bytes have tokens such as `<0x0A>`.
 * @throws COPPICE_TOKENIZER, COPPICE_EXPORT_UNSUPPORTED
 */
export function vocabularyMetadata(
  tokenizer: TokenizerJson,
  vocabSize: number,
  preTokenizer: string | undefined,
): Entries {
  const list = listTokens(tokenizer, vocabSize);
  return tokenizer.model.byte_fallback
    ? sentencePieceMetadata(tokenizer, list, preTokenizer)
    : byteLevelMetadata(tokenizer, list, preTokenizer);
}

function byteLevelMetadata(
  { model, normalizer, pre_tokenizer }: TokenizerJson,
  list: TokenList,
  preTokenizer: string | undefined,
): Entries {
  parsePart(v.nullish(v.looseObject({ type: v.literal("NFC") })), normalizer, "normalizer");
  const pre = preTokenizer ?? preTokenizerName(pre_tokenizer, model.ignore_merges);
  // Bytes stand for themselves, so a space in a half is written as its byte.
  const merges = model.merges.map((merge) =>
    typeof merge === "string" ? merge : merge.map((part) => part.replaceAll(" ", "Ġ")).join(" "),
  );
  return [...common("gpt2", pre, list), ["tokenizer.ggml.merges", { type: "strings", value: merges }]];
}

function sentencePieceMetadata(
  tokenizer: TokenizerJson,
  list: TokenList,
  preTokenizer: string | undefined,
): Entries {
  const ranks = new Map<string, number>();
  tokenizer.model.merges.forEach((merge, rank) => {
    const piece = mergeParts(merge).join("");
    if (!ranks.has(piece)) ranks.set(piece, rank);
  });
  // SentencePiece joins the neighbours whose piece has the highest score, tokenizer.json those whose merge comes first.
  const last = tokenizer.model.merges.length;
  const scores = list.tokens.map((token) => -(ranks.get(token) ?? last));
  return [
    ...common("llama", preTokenizer ?? "default", list),
    ["tokenizer.ggml.scores", { type: "float32s", value: scores }],
    ["tokenizer.ggml.add_space_prefix", { type: "bool", value: addsSpace(tokenizer) }],
  ];
}

function common(model: string, pre: string, { tokens, types }: TokenList): Entries {
  return [
    ["tokenizer.ggml.model", { type: "string", value: model }],
    ["tokenizer.ggml.pre", { type: "string", value: pre }],
    ["tokenizer.ggml.tokens", { type: "strings", value: tokens }],
    ["tokenizer.ggml.token_type", { type: "int32s", value: types }],
  ];
}

const space = v.literal("▁");
const prepend = v.looseObject({ type: v.literal("Prepend"), prepend: space });
const replace = v.looseObject({
  type: v.literal("Replace"),
  pattern: v.looseObject({ String: v.literal(" ") }),
  content: space,
});
const metaspace = v.looseObject({
  type: v.literal("Metaspace"),
  replacement: space,
  prepend_scheme: v.optional(v.picklist(["always", "first", "never"]), "always"),
  split: v.optional(v.literal(false)),
});

/** Whether a space is put before a text. Both ways in which tokenizer.json says how spaces become "▁" are known. */
function addsSpace({ normalizer, pre_tokenizer }: TokenizerJson): boolean {
  if (pre_tokenizer !== null && pre_tokenizer !== undefined) {
    parsePart(v.nullish(v.never()), normalizer, "normalizer");
    return parsePart(metaspace, pre_tokenizer, "pre_tokenizer").prepend_scheme !== "never";
  }
  const sequence = v.looseObject({
    type: v.literal("Sequence"),
    normalizers: v.union([v.tuple([prepend, replace]), v.tuple([replace])]),
  });
  return parsePart(sequence, normalizer, "normalizer").normalizers.length === 2;
}
