import { CoppiceError } from "@coppice/core";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { type ChatMessage, type ChatTemplate, createChatTemplate } from "./chat-template.js";

/** Limits of tokenizer files, with room above the largest that are published (tokenizer.json of about 35 MB). */
export const tokenizerLimits = {
  tokenizerChars: 128 * 1024 * 1024,
  configChars: 16 * 1024 * 1024,
} as const;

/** Contents of a checkpoint's tokenizer files. */
export interface TokenizerFiles {
  /** tokenizer.json */
  readonly tokenizer: string;
  /** tokenizer_config.json */
  readonly config?: string;
  /** chat_template.jinja; goes before the template of the config. */
  readonly chatTemplate?: string;
}

/** What is used of the library; its own types do not resolve under NodeNext. */
interface InnerTokenizer {
  readonly model: { readonly vocab?: readonly (string | undefined)[] } | null;
  encode(text: string, options?: { add_special_tokens: boolean }): { readonly ids: (number | undefined)[] };
  decode(ids: readonly number[], options: { clean_up_tokenization_spaces: boolean }): string;
  token_to_id(token: string): number | undefined;
  get_added_tokens_decoder(): Map<number, { readonly special: boolean }>;
}

/** Text to token ids and back, as the checkpoint's own library does. */
export interface Tokenizer {
  /** One more than the highest id that has a token; models may have more logits. */
  readonly size: number;
  /**
   * Ids of `text`. The special tokens that the checkpoint puts before a text (such as a begin token) are added
   * unless `special` is false; those that it puts after a text never are, because the model is to continue it.
   * Special tokens that are written out in the text become those tokens.
   */
  encode(text: string, options?: { special?: boolean }): Int32Array;
  /**
   * Text of `ids`, without special tokens unless `special` is true. Bytes that are no complete character become
   * U+FFFD. Ids without a token have no text. No clean-up of spaces: what was encoded comes back.
   */
  decode(ids: ArrayLike<number>, options?: { special?: boolean }): string;
  /** The tokenizer's own end-of-text token. */
  readonly endToken: number | undefined;
  readonly beginToken: number | undefined;
  /** Ids of tokens whose vocabulary entry could hold a line break, in no other respect looked at. */
  lineBreakCandidates(): number[];
  /** True when the checkpoint has a chat template. */
  readonly hasChatTemplate: boolean;
  /**
   * The prompt text for a conversation, ready for an assistant's answer; encode it with `special: false`, since a
   * template writes its begin token itself.
   * @throws COPPICE_TOKENIZER when there is no template or it fails
   */
  renderChat(messages: readonly ChatMessage[]): string;
}

/** @throws COPPICE_TOKENIZER when a file is malformed or uses parts that are not supported */
export function createTokenizer(files: TokenizerFiles): Tokenizer {
  const json = parseJson(files.tokenizer, "tokenizer.json", tokenizerLimits.tokenizerChars);
  const config =
    files.config === undefined
      ? {}
      : parseJson(files.config, "tokenizer_config.json", tokenizerLimits.configChars);
  const inner = build(json, config);
  const vocab = inner.model?.vocab ?? [];
  const special = new Set<number>();
  for (const [id, token] of inner.get_added_tokens_decoder()) if (token.special) special.add(id);
  const named = (key: string): number | undefined => {
    const text = tokenText(config[key]);
    return text === undefined ? undefined : inner.token_to_id(text);
  };
  const endToken = named("eos_token");
  const beginToken = named("bos_token");
  const prefix = specialPrefix(inner, config.add_bos_token, beginToken);
  let template: ChatTemplate | undefined;
  try {
    template = createChatTemplate(files.chatTemplate, config.chat_template);
  } catch (cause) {
    // A broken template must not keep a model from being used without it.
    template = { render: () => rethrow(cause) };
  }
  return {
    size: vocab.length,
    endToken,
    beginToken,
    hasChatTemplate: template !== undefined,
    encode(text, options) {
      const ids = encodeBare(inner, text);
      const before = options?.special === false ? [] : prefix;
      const out = new Int32Array(before.length + ids.length);
      out.set(before);
      out.set(ids, before.length);
      return out;
    },
    decode(ids, options) {
      const keepSpecial = options?.special === true;
      const known = Array.from(ids).filter(
        (id) => vocab[id] !== undefined && (keepSpecial || !special.has(id)),
      );
      return known.length === 0 ? "" : inner.decode(known, { clean_up_tokenization_spaces: false });
    },
    lineBreakCandidates() {
      // A line break is itself, "Ċ"/"č" in byte-level vocabularies, or a byte token.
      const pattern = /[\n\rĊč]|<0x0[AD]>/;
      const found: number[] = [];
      for (let id = 0; id < vocab.length; id++) if (pattern.test(vocab[id] ?? "")) found.push(id);
      return found;
    },
    renderChat(messages) {
      if (!template) {
        throw new CoppiceError("COPPICE_TOKENIZER", "the checkpoint has no chat template", {
          hint: "evaluate without chat, or add a chat_template.jinja to the checkpoint",
        });
      }
      return template.render(messages, {
        bos_token: tokenText(config.bos_token) ?? "",
        eos_token: tokenText(config.eos_token) ?? "",
        unk_token: tokenText(config.unk_token) ?? "",
        pad_token: tokenText(config.pad_token) ?? "",
      });
    },
  };
}

/** Special tokens before a text: what the post-processor adds, corrected by an explicit `add_bos_token`. */
function specialPrefix(inner: InnerTokenizer, addBegin: unknown, beginToken: number | undefined): number[] {
  const bare = encodeBare(inner, "a");
  const full = knownIds(inner.encode("a").ids);
  let offset = 0;
  while (offset < full.length && !bare.every((id, i) => full[offset + i] === id)) offset++;
  const prefix = full.slice(0, offset === full.length ? 0 : offset);
  if (beginToken === undefined) return prefix;
  if (addBegin === false) return prefix.filter((id) => id !== beginToken);
  if (addBegin === true && !prefix.includes(beginToken)) return [beginToken, ...prefix];
  return prefix;
}

function encodeBare(inner: InnerTokenizer, text: string): number[] {
  return knownIds(inner.encode(text, { add_special_tokens: false }).ids);
}

/** Text that the vocabulary cannot express (no unknown token, no byte fallback) has no id. */
function knownIds(ids: readonly (number | undefined)[]): number[] {
  return ids.filter((id) => id !== undefined && id !== null);
}

function build(json: Record<string, unknown>, config: Record<string, unknown>): InnerTokenizer {
  try {
    const tokenizer: InnerTokenizer = new HuggingFaceTokenizer(json, config);
    if (!Array.isArray(tokenizer.model?.vocab)) throw new Error("it has no vocabulary");
    return tokenizer;
  } catch (cause) {
    throw new CoppiceError("COPPICE_TOKENIZER", `tokenizer.json is not usable: ${message(cause)}`, {
      cause,
      hint: "expected a tokenizer of the Hugging Face tokenizers library (BPE, Unigram or WordPiece)",
    });
  }
}

function parseJson(text: string, name: string, limit: number): Record<string, unknown> {
  if (text.length > limit) {
    throw new CoppiceError(
      "COPPICE_TOKENIZER",
      `${name} has ${text.length} characters; the limit is ${limit}`,
    );
  }
  let value: unknown;
  try {
    value = JSON.parse(text.charCodeAt(0) === 0xfeff ? text.slice(1) : text);
  } catch (cause) {
    throw new CoppiceError("COPPICE_TOKENIZER", `${name} is not JSON: ${message(cause)}`, { cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new CoppiceError(
      "COPPICE_TOKENIZER",
      `${name} holds ${JSON.stringify(value).slice(0, 40)}, expected an object`,
    );
  }
  return value as Record<string, unknown>;
}

/** Special tokens stand in the config as text or as `{ "content": text }`. */
function tokenText(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  if (
    typeof value === "object" &&
    value !== null &&
    "content" in value &&
    typeof value.content === "string"
  ) {
    return value.content;
  }
  return undefined;
}

function message(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}

function rethrow(cause: unknown): never {
  throw cause;
}
