import type { MoeModel } from "@coppice/core";
import type { Tokenizer } from "./tokenizer.js";

const lineBreak = /[\n\r]/;

/**
 * The form in which answers are compared, the same for what a model wrote and what was expected: up to the first
 * line break, without white space around it. Case and inner white space count.
 */
export function normalizeAnswer(text: string): string {
  const end = text.search(lineBreak);
  return (end < 0 ? text : text.slice(0, end)).trim();
}

/** `open`: the text so far can still become the expected one. */
export type Verdict = "right" | "wrong" | "open";

/**
 * Judges an answer while it is being written.
 * @param text decoded so far; U+FFFD at its end may be the begin of a character of several bytes
 * @param ended true when an end-of-text token followed
 * @param gold normalised expected answer
 */
export function judgeAnswer(text: string, ended: boolean, gold: string): Verdict {
  if (ended || lineBreak.test(text)) return normalizeAnswer(text) === gold ? "right" : "wrong";
  const begun = text.replace(/\ufffd+$/, "").trimStart();
  if (begun.length <= gold.length) return gold.startsWith(begun) ? "open" : "wrong";
  return begun.startsWith(gold) && begun.slice(gold.length).trim() === "" ? "open" : "wrong";
}

/** Tokens that end a text: those of the model and the tokenizer's own. */
export function endOfTextTokens(model: MoeModel, tokenizer: Tokenizer): Set<number> {
  const tokens = new Set(model.endTokens);
  if (tokenizer.endToken !== undefined) tokens.add(tokenizer.endToken);
  return tokens;
}

/**
 * Tokens that end an answer and add nothing to it: end-of-text and all tokens that are white space up to a line
 * break. After the whole expected answer, any of them makes it right.
 */
export function answerEndingTokens(model: MoeModel, tokenizer: Tokenizer): Set<number> {
  const tokens = endOfTextTokens(model, tokenizer);
  for (const id of tokenizer.lineBreakCandidates()) {
    const text = tokenizer.decode([id]);
    if (lineBreak.test(text) && normalizeAnswer(text) === "") tokens.add(id);
  }
  return tokens;
}

/** Ends beyond these cost a row of logits per sample and add next to nothing. */
const mostLikelyEnds = 4;

/**
 * The ending tokens whose probabilities add up to that of an answer's end: those of end-of-text and a line break by
 * itself. A model that was trained on lists of examples shares the probability of the end out among them, so either
 * alone says little. At most four.
 */
export function likelyEnds(model: MoeModel, tokenizer: Tokenizer): number[] {
  const lineBreaks = tokenizer.lineBreakCandidates().filter((id) => tokenizer.decode([id]) === "\n");
  const ends = new Set([...endOfTextTokens(model, tokenizer), ...lineBreaks]);
  return [...ends].slice(0, mostLikelyEnds);
}
