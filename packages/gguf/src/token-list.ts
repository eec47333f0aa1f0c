import { CoppiceError } from "@coppice/core";
import type { TokenizerJson } from "./tokenizer-json.js";

/** Kinds of tokens (`llama_token_type`). */
const tokenType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

export interface TokenList {
  /** By id; those of ids that stand for nothing get a name that no text gives. */
  readonly tokens: string[];
  readonly types: number[];
}

/** @throws COPPICE_TOKENIZER when an id is not one of the model's */
export function listTokens({ model, added_tokens }: TokenizerJson, vocabSize: number): TokenList {
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
  for (const [token, id] of Object.entries(model.vocab)) {
    place(id, token, model.byte_fallback && isByte(token) ? tokenType.byte : tokenType.normal);
  }
  for (const { id, content, special } of added_tokens) {
    const isUnknown = model.byte_fallback && content === model.unk_token;
    const isControl = special || looksSpecial(content);
    place(id, content, isUnknown ? tokenType.unknown : isControl ? tokenType.control : tokenType.userDefined);
  }
  return { tokens, types };
}

function isByte(token: string): boolean {
  return /^<0x[0-9A-F]{2}>$/.test(token);
}

/** Tokens that some checkpoints forget to call special. */
function looksSpecial(token: string): boolean {
  return token === "<pad>" || token === "<mask>" || /^<\|.*\|>$/s.test(token) || /^<｜.*｜>$/s.test(token);
}
