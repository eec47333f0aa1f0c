import { createTokenizer, type Tokenizer } from "@coppice/evaluate";

/** GPT-2's table of printable stand-ins for bytes. */
function byteSymbols(): string[] {
  const symbols: string[] = [];
  let spare = 0;
  for (let byte = 0; byte < 256; byte++) {
    const printable =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
    symbols.push(String.fromCharCode(printable ? byte : 256 + spare++));
  }
  return symbols;
}

const symbols = byteSymbols();
const toSymbols = (text: string) => [...new TextEncoder().encode(text)].map((byte) => symbols[byte]).join("");

export interface ByteTokenizerOptions {
  /** Pairs that merge, in order of rank. */
  readonly merges?: readonly (readonly [string, string])[];
  readonly config?: Readonly<Record<string, unknown>>;
  readonly chatTemplate?: string;
  readonly postProcessor?: unknown;
}

/**
 * A byte-level BPE tokenizer: id 0 is `<end>`, 1 is `<begin>`, byte b is 2 + b, then the merges. Files as strings.
 */
export function byteTokenizerFiles(options: ByteTokenizerOptions = {}) {
  const merges = (options.merges ?? []).map((pair) => pair.map(toSymbols));
  const names = ["<end>", "<begin>", ...symbols, ...merges.map((pair) => pair.join(""))];
  const vocab = Object.fromEntries(names.map((name, id) => [name, id]));
  const added = ["<end>", "<begin>"].map((content, id) => ({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }));
  const tokenizer = JSON.stringify({
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: options.postProcessor ?? null,
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab,
      merges: merges.map((pair) => pair.join(" ")),
    },
  });
  const config = JSON.stringify({ eos_token: "<end>", bos_token: "<begin>", ...options.config });
  return { tokenizer, config, ...(options.chatTemplate && { chatTemplate: options.chatTemplate }) };
}

export function byteTokenizer(options: ByteTokenizerOptions = {}): Tokenizer {
  return createTokenizer(byteTokenizerFiles(options));
}
