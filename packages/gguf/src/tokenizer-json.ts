import type { JsonObject } from "@coppice/checkpoint";
import * as v from "valibot";
import { unsupported } from "./architecture.js";

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
    byte_fallback: v.optional(v.boolean(), false),
    ignore_merges: v.optional(v.boolean(), false),
    unk_token: v.nullish(v.string()),
    continuing_subword_prefix: affix,
    end_of_word_suffix: affix,
  }),
  normalizer: v.unknown(),
  pre_tokenizer: v.unknown(),
  post_processor: v.unknown(),
  added_tokens: v.optional(v.array(addedSchema), []),
});

/** What a GGUF file needs of tokenizer.json. */
export type TokenizerJson = v.InferOutput<typeof tokenizerSchema>;

function isVocabulary(value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  return Object.values(value).every((id) => Number.isSafeInteger(id) && id >= 0);
}

/** @throws COPPICE_EXPORT_UNSUPPORTED for other tokenizers than BPE */
export function parseTokenizer(json: JsonObject): TokenizerJson {
  return parsePart(tokenizerSchema, json, "");
}

/** @throws COPPICE_EXPORT_UNSUPPORTED when `value`, below `place` in tokenizer.json, is not as `schema` says */
export function parsePart<Output>(
  schema: v.GenericSchema<unknown, Output>,
  value: unknown,
  place: string,
): Output {
  const parsed = v.safeParse(schema, value);
  if (parsed.success) return parsed.output;
  const [issue] = parsed.issues;
  const path = [place, v.getDotPath(issue)].filter(Boolean).join(".");
  const expected = issue.type === "custom" ? issue.message : issue.expected;
  throw unsupported(`the tokenizer cannot be written: ${path} is ${issue.received}, expected ${expected}`);
}

/** Both halves of a merge. */
export function mergeParts(merge: string | readonly [string, string]): readonly [string, string] {
  if (typeof merge !== "string") return merge;
  const at = merge.indexOf(" ");
  return [merge.slice(0, at), merge.slice(at + 1)];
}
