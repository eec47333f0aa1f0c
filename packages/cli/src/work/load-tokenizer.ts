import type { CheckpointFolder } from "@coppice/checkpoint";
import { CoppiceError } from "@coppice/core";
import { createTokenizer, type Tokenizer, tokenizerLimits } from "@coppice/evaluate";

/**
 * The tokenizer of a checkpoint folder.
 * @throws COPPICE_TOKENIZER when the folder has none
 */
export async function loadTokenizer(folder: CheckpointFolder): Promise<Tokenizer> {
  const sizes = new Map((await folder.list()).map(({ name, size }) => [name, size]));
  const read = async (name: string, limit: number): Promise<string | undefined> => {
    const size = sizes.get(name);
    if (size === undefined) return undefined;
    // A character takes at least one byte and at most four.
    if (size > 4 * limit) {
      throw new CoppiceError("COPPICE_TOKENIZER", `${name} has ${size} bytes, at most ${4 * limit} are read`);
    }
    const source = await folder.open(name);
    try {
      const bytes = new Uint8Array(source.size);
      await source.read(0, bytes);
      return new TextDecoder().decode(bytes);
    } finally {
      await source.close();
    }
  };
  const tokenizer = await read("tokenizer.json", tokenizerLimits.tokenizerChars);
  if (tokenizer === undefined) {
    throw new CoppiceError("COPPICE_TOKENIZER", `tokenizer.json is not in ${folder.label}`, {
      hint: "copy the tokenizer files beside the weights, or work with token ids (--ids)",
    });
  }
  const config = await read("tokenizer_config.json", tokenizerLimits.configChars);
  const chatTemplate = await read("chat_template.jinja", tokenizerLimits.configChars);
  return createTokenizer({
    tokenizer,
    ...(config !== undefined && { config }),
    ...(chatTemplate !== undefined && { chatTemplate }),
  });
}
