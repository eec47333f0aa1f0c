import { CoppiceError } from "@coppice/core";
import * as v from "valibot";

const stepSchema = v.looseObject({
  type: v.string(),
  individual_digits: v.optional(v.boolean()),
  add_prefix_space: v.optional(v.boolean(), true),
  use_regex: v.optional(v.boolean(), true),
  pattern: v.optional(v.looseObject({ Regex: v.optional(v.string()) })),
  behavior: v.optional(v.string()),
  invert: v.optional(v.boolean(), false),
});
const sequenceSchema = v.looseObject({ type: v.literal("Sequence"), pretokenizers: v.array(v.unknown()) });

type Step = v.InferOutput<typeof stepSchema>;

const contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+";
const rest = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/**
 * How text is split before merges, and whether whole words that are tokens skip the merges, with the name of
 * `tokenizer.ggml.pre` that does the same in llama.cpp (`llama-vocab.cpp`). `GPT-2` is the expression that ByteLevel
 * has by itself.
 */
const known = [
  { steps: "GPT-2", ignoreMerges: false, name: "gpt-2" },
  { steps: "digits, GPT-2", ignoreMerges: false, name: "smollm" },
  { steps: `${contractions}|\\p{N}|${rest}`, ignoreMerges: false, name: "qwen2" },
  { steps: `${contractions}|\\p{N}{1,3}|${rest}`, ignoreMerges: true, name: "llama-bpe" },
  { steps: `${contractions}|\\p{N}{1,3}|${rest}`, ignoreMerges: false, name: "dbrx" },
] as const;

/**
 * The name of the pre-tokenizer of a byte-level BPE tokenizer. llama.cpp's converter looks it up by a hash of the tokens
 * of a test text, which is known for published vocabularies only; the expressions themselves say it for all.
 * @param json `pre_tokenizer` of tokenizer.json
 * @throws COPPICE_EXPORT_UNSUPPORTED
 */
export function preTokenizerName(json: unknown, ignoreMerges: boolean): string {
  const steps = describeSteps(json);
  const found = known.find((one) => one.steps === steps && one.ignoreMerges === ignoreMerges);
  if (found) return found.name;
  throw new CoppiceError(
    "COPPICE_EXPORT_UNSUPPORTED",
    `GGUF: the tokenizer splits text by ${steps ?? JSON.stringify(json ?? null).slice(0, 300)}${ignoreMerges ? ", with ignore_merges" : ""}, for which no pre-tokenizer of llama.cpp is known`,
    {
      hint: `give the name of the one that does the same; known are ${known.map(({ name }) => name).join(", ")}`,
    },
  );
}

function describeSteps(json: unknown): string | undefined {
  const sequence = v.safeParse(sequenceSchema, json);
  const parsed = v.safeParse(v.array(stepSchema), sequence.success ? sequence.output.pretokenizers : [json]);
  if (!parsed.success) return undefined;
  const last = parsed.output.at(-1);
  if (last?.type !== "ByteLevel" || last.add_prefix_space) return undefined;
  const words = parsed.output.slice(0, -1).map(describeStep);
  if (last.use_regex) words.push("GPT-2");
  return words.includes(undefined) ? undefined : words.join(", ");
}

function describeStep({ type, individual_digits, pattern, behavior, invert }: Step): string | undefined {
  if (type === "Digits") return individual_digits ? "digits" : undefined;
  if (type === "Split") return behavior === "Isolated" && !invert ? pattern?.Regex : undefined;
  return undefined;
}
