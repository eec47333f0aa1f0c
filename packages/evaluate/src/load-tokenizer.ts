import { CoppiceError } from "@coppice/core";
import { createTokenizer, type Tokenizer, tokenizerLimits } from "./tokenizer.js";

/** What is needed of a checkpoint's folder; a `CheckpointFolder` of `@coppice/checkpoint` is one. */
export interface TokenizerFolder {
  readonly label: string;
  list(): Promise<readonly { readonly name: string; readonly size: number }[]>;
  open(name: string): Promise<{
    readonly size: number;
    read(offset: number, into: Uint8Array): Promise<void>;
    close(): Promise<void>;
  }>;
}

/**
 * The tokenizer of a checkpoint folder: tokenizer.json, and when they are there tokenizer_config.json and
 * chat_template.jinja. The folder stays open.
 * @throws COPPICE_TOKENIZER when there is none or it is malformed; the folder's own errors
 */
export async function loadTokenizer(folder: TokenizerFolder): Promise<Tokenizer> {
  const sizes = new Map((await folder.list()).map(({ name, size }) => [name, size]));
  const tokenizer = await readTokenizer(async (name, limit) => {
    const size = sizes.get(name);
    if (size === undefined) return undefined;
    if (size > limit) {
      throw new CoppiceError("COPPICE_TOKENIZER", `${name} has ${size} bytes, at most ${limit} are read`);
    }
    const source = await folder.open(name);
    try {
      const bytes = new Uint8Array(source.size);
      await source.read(0, bytes);
      return new TextDecoder().decode(bytes);
    } finally {
      await source.close();
    }
  });
  if (tokenizer) return tokenizer;
  throw new CoppiceError("COPPICE_TOKENIZER", `tokenizer.json is not in ${folder.label}`, {
    hint: "copy the tokenizer files beside the weights, or work with token ids",
  });
}

/**
 * The same from whatever gives texts; undefined when there is no tokenizer.json.
 * @param read gives the text of a file of at most `limit` bytes, or undefined when there is none of that name
 * @throws COPPICE_TOKENIZER when it is malformed; what `read` throws
 */
export async function readTokenizer(
  read: (name: string, limit: number) => Promise<string | undefined>,
): Promise<Tokenizer | undefined> {
  // A character takes at least one byte and at most four.
  const tokenizer = await read("tokenizer.json", 4 * tokenizerLimits.tokenizerChars);
  if (tokenizer === undefined) return undefined;
  const config = await read("tokenizer_config.json", 4 * tokenizerLimits.configChars);
  const chatTemplate = await read("chat_template.jinja", 4 * tokenizerLimits.configChars);
  return createTokenizer({
    tokenizer,
    ...(config !== undefined && { config }),
    ...(chatTemplate !== undefined && { chatTemplate }),
  });
}
