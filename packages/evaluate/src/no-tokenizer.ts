import { CoppiceError } from "@coppice/core";
import type { Tokenizer } from "./tokenizer.js";

/** Stands in for the tokenizer of a model that has none, for callers that work with token ids: ids have no text. */
export const noTokenizer: Tokenizer = {
  size: 0,
  encode: () => refuse(),
  decode: () => "",
  endToken: undefined,
  beginToken: undefined,
  lineBreakCandidates: () => [],
  hasChatTemplate: false,
  renderChat: () => refuse(),
};

function refuse(): never {
  throw new CoppiceError("COPPICE_TOKENIZER", "the model has no tokenizer, so text cannot be read", {
    hint: "copy the tokenizer files beside config.json, or work with token ids",
  });
}
