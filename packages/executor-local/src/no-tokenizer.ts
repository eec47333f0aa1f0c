import { CoppiceError } from "@coppice/core";
import type { Tokenizer } from "@coppice/evaluate";

/** Stands in for the tokenizer of a checkpoint that has none, for callers that work with token ids: ids have no text. */
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
  throw new CoppiceError("COPPICE_TOKENIZER", "the checkpoint has no tokenizer, so text cannot be read");
}
